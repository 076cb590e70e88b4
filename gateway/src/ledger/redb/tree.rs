//! The tree: redb, one file, two tables. Rows are what the ledger stores; meta is what this engine knows about itself:
//!
//! ```text
//! rows   key bytes  → version (8 bytes, little-endian) ‖ value
//! meta   "format"   → "cairn-ledger" ‖ format version (4 bytes, little-endian)
//!        "sequence" → the version of the last commit that the tree has (8 bytes, little-endian)
//!        "log"      → the ledger's id (16 bytes) ‖ 1 if the log may hold commits that the tree does not have, else 0
//! ```
//!
//! The sequence is a row of its own, written in the transaction of the commits it counts: a version is thus never
//! used twice, whatever was deleted or lost in a crash. The format row comes first into a new file, and a file comes
//! under its name only with the format row in it, so a file without one is somebody else's and is refused.
//!
//! After a crash. redb writes pages copy-on-write, so nothing acknowledged is ever lost; what differs is how it gets
//! to know again which pages are free. Without quick-repair an open after `kill -9` walks and checksums the whole
//! file (17 s for 2.1 GiB, measured); with it, every transaction saves the allocator's state and flushes twice, and the open only
//! loads it (2 ms). Quick-repair is on: the cluster is down while the ledger opens, and a transaction has thousands of commits.

use super::log::LogId;
use super::recent::Rows;
use crate::ledger::store::{LedgerError, Versioned};
use ::redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition, TableHandle,
    WriteTransaction,
};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

pub(super) const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(super) const FORMAT_KEY: &str = "format";
pub(super) const FORMAT_MAGIC: &[u8] = b"cairn-ledger";
/// 2 has a log beside the tree; 1 had none.
pub(super) const FORMAT_VERSION: u32 = 2;
const SEQUENCE_KEY: &str = "sequence";
const LOG_KEY: &str = "log";

const VERSION_BYTES: usize = size_of::<u64>();

/// The rows of one moment.
pub type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// What can go wrong inside: redb, or what a row holds.
#[derive(Debug)]
pub enum Failure {
    /// redb failed.
    Redb(::redb::Error),
    /// What a row holds cannot be understood.
    Damaged(String),
}

impl<E: Into<::redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Redb(error) => error.fmt(f),
            Failure::Damaged(what) => what.fmt(f),
        }
    }
}

/// What a tree says of itself.
pub struct Described {
    /// The version of the last commit that it has.
    pub sequence: u64,
    /// Whose log belongs to it; none in a ledger of before there were logs.
    pub log: Option<LogId>,
    /// Whether that log may hold commits that it does not have.
    pub log_matters: bool,
}

/// The file.
pub struct Tree {
    /// None once closed.
    database: RwLock<Option<Arc<Database>>>,
}

impl Tree {
    /// Opens the file, or makes an empty one if there is none. `cache_bytes` bounds redb's page cache. Blocks.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Tree, LedgerError> {
        if !path.exists() {
            create(path).map_err(|error| unavailable(path, &error))?;
        }
        let database = Builder::new()
            .set_cache_size(cache_bytes)
            .open(path)
            .map_err(|error| open_error(path, error))?;
        Ok(Tree::of(database))
    }

    /// Of a database with the tables of [`initialise`].
    pub fn of(database: Database) -> Tree {
        Tree {
            database: RwLock::new(Some(Arc::new(database))),
        }
    }

    fn database(&self) -> Result<Arc<Database>, Failure> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database
            .clone()
            .ok_or_else(|| Failure::Damaged("the ledger is closed".into()))
    }

    /// Closes the file. Blocks.
    pub fn close(&self) {
        let database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(database);
    }

    /// What it says of itself, if it is a ledger that this program understands.
    pub fn describe(&self) -> Result<Described, Failure> {
        let foreign = || Failure::Damaged("not a Cairn ledger: it has no format row".to_owned());
        let transaction = self.database()?.begin_read()?;
        if !transaction
            .list_tables()?
            .any(|table| table.name() == META.name())
        {
            return Err(foreign());
        }
        let meta = match transaction.open_table(META) {
            Err(::redb::TableError::TableTypeMismatch { .. }) => return Err(foreign()),
            other => other?,
        };
        let format = meta.get(FORMAT_KEY)?.ok_or_else(foreign)?;
        let version = format
            .value()
            .strip_prefix(FORMAT_MAGIC)
            .and_then(|version| version.try_into().ok());
        let version = u32::from_le_bytes(version.ok_or_else(foreign)?);
        if !(1..=FORMAT_VERSION).contains(&version) {
            return Err(Failure::Damaged(format!(
                "a ledger of format {version}; this program understands formats 1 to {FORMAT_VERSION}"
            )));
        }
        let sequence = meta.get(SEQUENCE_KEY)?;
        let sequence = sequence.and_then(|sequence| sequence.value().try_into().ok());
        let sequence = sequence
            .map(u64::from_le_bytes)
            .ok_or_else(|| Failure::Damaged("it has no sequence row".to_owned()))?;
        let log = meta.get(LOG_KEY)?;
        let log = log.as_ref().and_then(|log| log.value().split_first_chunk::<16>());
        if version > 1 && log.is_none() {
            return Err(Failure::Damaged("it has no log row".to_owned()));
        }
        Ok(Described {
            sequence,
            log: log.map(|(id, _)| *id),
            log_matters: log.is_some_and(|(_, matters)| matters == [1]),
        })
    }

    /// Makes rows, up to this version, part of it; durable when this returns.
    pub fn apply(&self, rows: &Rows, sequence: u64) -> Result<(), Failure> {
        self.transact(|transaction| put_rows(transaction, rows, sequence))
    }

    /// The same, and from then on (or no more) the log may hold commits that it does not have.
    pub fn apply_and_mark(
        &self,
        rows: &Rows,
        sequence: u64,
        id: &LogId,
        log_matters: bool,
    ) -> Result<(), Failure> {
        self.transact(|transaction| {
            put_rows(transaction, rows, sequence)?;
            let mut meta = transaction.open_table(META)?;
            meta.insert(FORMAT_KEY, &format_row()[..])?;
            meta.insert(LOG_KEY, &log_row(id, log_matters)[..])?;
            Ok(())
        })
    }

    fn transact(&self, work: impl FnOnce(&WriteTransaction) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut transaction = self.database()?.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        work(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    /// Its rows as they are now.
    pub fn table(&self) -> Result<Table, Failure> {
        Ok(self.database()?.begin_read()?.open_table(ROWS)?)
    }
}

fn put_rows(transaction: &WriteTransaction, rows: &Rows, sequence: u64) -> Result<(), Failure> {
    let mut table = transaction.open_table(ROWS)?;
    for (key, entry) in rows {
        let Some(Versioned { version, value }) = entry else {
            table.remove(&key[..])?;
            continue;
        };
        let mut row = table.insert_reserve(&key[..], VERSION_BYTES + value.len())?;
        let (version_slot, value_slot) = row.as_mut().split_at_mut(VERSION_BYTES);
        version_slot.copy_from_slice(&version.to_le_bytes());
        value_slot.copy_from_slice(value);
    }
    transaction
        .open_table(META)?
        .insert(SEQUENCE_KEY, &sequence.to_le_bytes()[..])?;
    Ok(())
}

/// The row of a key as it is stored.
pub fn decode(key: &[u8], row: &[u8]) -> Result<Versioned, Failure> {
    let Some((version, value)) = row.split_first_chunk::<VERSION_BYTES>() else {
        return Err(Failure::Damaged(format!(
            "the row of key {:?} has no version",
            key.escape_ascii().to_string()
        )));
    };
    Ok(Versioned {
        version: u64::from_le_bytes(*version),
        value: Bytes::copy_from_slice(value),
    })
}

/// Makes an empty ledger beside its place and moves it there when it is whole, so that a crash on the way leaves
/// nothing under the name.
fn create(path: &Path) -> Result<(), ::redb::Error> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let database = Database::create(&unfinished)?;
    initialise(&database, &rand::random())?;
    database.close()?;
    std::fs::rename(&unfinished, path)?;
    std::fs::File::open(directory)?.sync_all()?;
    Ok(())
}

/// Makes the tables and the rows of this engine's own.
pub(super) fn initialise(database: &Database, id: &LogId) -> Result<(), ::redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT_KEY, &format_row()[..])?;
        meta.insert(SEQUENCE_KEY, &0_u64.to_le_bytes()[..])?;
        meta.insert(LOG_KEY, &log_row(id, false)[..])?;
        transaction.open_table(ROWS)?;
    }
    transaction.commit()?;
    Ok(())
}

fn format_row() -> Vec<u8> {
    [FORMAT_MAGIC, &FORMAT_VERSION.to_le_bytes()].concat()
}

fn log_row(id: &LogId, matters: bool) -> Vec<u8> {
    [&id[..], &[u8::from(matters)]].concat()
}

fn open_error(path: &Path, error: ::redb::DatabaseError) -> LedgerError {
    let path_shown = path.display();
    match &error {
        ::redb::DatabaseError::DatabaseAlreadyOpen => LedgerError::Unavailable {
            what: format!("{path_shown} is open in another process"),
        },
        ::redb::DatabaseError::Storage(::redb::StorageError::Io(io))
            if io.kind() == std::io::ErrorKind::InvalidData =>
        {
            LedgerError::Damaged {
                what: format!("{path_shown}: not a Cairn ledger: {io}"),
            }
        }
        _ => unavailable(path, &error),
    }
}

/// That opening what is at `path` failed.
pub fn unavailable(path: &Path, error: &dyn std::fmt::Display) -> LedgerError {
    LedgerError::Unavailable {
        what: format!("opening {}: {error}", path.display()),
    }
}
