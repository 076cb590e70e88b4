//! The tree: redb, one file ([`file`](super::file)), two tables. Rows are what the ledger stores; meta is what this engine knows about
//! itself:
//!
//! ```text
//! sealed key bytes  → version (8 bytes, little-endian) ‖ seal (8 bytes, little-endian) ‖ value
//! meta   "format"   → "cairn-ledger" ‖ format version (4 bytes, little-endian)
//!        "sequence" → the version of the last commit that the tree has (8 bytes, little-endian)
//!        "log"      → the ledger's id (16 bytes) ‖ 1 if the log may hold commits that the tree does not have, else 0
//! rows   key bytes  → version ‖ value: what a ledger of format 1 or 2 has, on its way into the table "sealed"
//! ```
//!
//! The seal is a checksum (CRC-64/NVME) over bytes of the key (4, little-endian) ‖ key ‖ version ‖ value. It is checked whenever a row is
//! read, so that no row is taken for another's, or for an earlier one that was damaged on its way through memory.
//!
//! The sequence is a row of its own, written in the transaction of the commits it counts: a version is thus never
//! used twice, whatever was deleted or lost in a crash. The format row comes first into a new file, and a file comes
//! under its name only with the format row in it, so a file without one is somebody else's and is refused.
//!
//! Migration. The format is 3 from the first transaction on (a program of before refuses it then), and each one moves some thousand rows,
//! so that a ledger of any size is migrated in bounded memory, and goes on where a kill stopped it. It is over when there is no table
//! "rows".
//!
//! After a crash. redb writes pages copy-on-write, so nothing acknowledged is ever lost; what differs is how it gets
//! to know again which pages are free. Without quick-repair an open after `kill -9` walks and checksums the whole
//! file (17 s for 2.1 GiB, measured); with it, every transaction saves the allocator's state and flushes twice, and the open only
//! loads it (2 ms). Quick-repair is on: the cluster is down while the ledger opens, and a transaction has thousands of commits.
//!
//! Invariants:
//! - A row is answered as it was written, or its damage is; what is answered as absent was looked up through pages that hold.
//! - A transaction that meets damage is given up: nothing damaged is ever written again under a new checksum.

use super::file::{Backend, DamagedPage, PageFile};
use super::log::LogId;
use super::recent::{Entry, Rows};
use super::reserve::{Reserve, Unflushed, is_full};
use crate::ledger::damage::Damage;
use crate::ledger::group_commit::panic_message;
use crate::ledger::key;
use crate::ledger::store::{Direction, Gap, KeyRange, LedgerError, Row, Versioned};
use ::redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition, TableHandle,
    WriteTransaction,
};
use bytes::Bytes;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

pub(super) const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("sealed");
/// Of formats 1 and 2.
pub(super) const UNSEALED: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(super) const FORMAT_KEY: &str = "format";
pub(super) const FORMAT_MAGIC: &[u8] = b"cairn-ledger";
/// 3 has sealed rows; 2 has a log beside the tree; 1 had none.
pub(super) const FORMAT_VERSION: u32 = 3;
const SEQUENCE_KEY: &str = "sequence";
const LOG_KEY: &str = "log";

const VERSION_BYTES: usize = size_of::<u64>();
const SEAL_BYTES: usize = size_of::<u64>();
const ROW_HEAD_BYTES: usize = VERSION_BYTES + SEAL_BYTES;
/// The most rows, and about the most bytes, that one transaction of a migration moves.
const MIGRATED_ROWS_MAX: usize = if cfg!(test) { 50 } else { 20_000 };
const MIGRATED_BYTES_MAX: usize = 32 << 20;
/// How often the place behind damage is looked for more closely.
const BISECTIONS_MAX: usize = 400;

/// What can go wrong inside: redb, or what is read.
#[derive(Debug)]
pub enum Failure {
    /// redb failed.
    Redb(::redb::Error),
    /// What the ledger holds cannot be understood; it must not go on.
    Damaged(String),
    /// What was asked for is damaged: a row, or the way to it. Everything else goes on.
    Unreadable(String),
}

impl Failure {
    /// Whether the filesystem had no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Failure::Redb(::redb::Error::Io(error)) if is_full(error))
    }

    /// Whether the file failed now.
    pub fn is_io(&self) -> bool {
        matches!(self, Failure::Redb(::redb::Error::Io(_)))
    }

    /// Whether redb's file failed, now or before, or was closed: it has to be opened again.
    pub fn breaks(&self) -> bool {
        use ::redb::Error::{DatabaseClosed, Io, PreviousIo};
        matches!(self, Failure::Redb(Io(_) | PreviousIo | DatabaseClosed))
    }
}

impl<E: Into<::redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        match error.into() {
            ::redb::Error::Corrupted(what) => Self::Unreadable(what),
            other => Self::Redb(other),
        }
    }
}

const PAGE_WORDS: &str = "page ";

/// Which page an error of [`guarded`] is about.
pub fn page_in(what: &str) -> Option<u64> {
    what.strip_prefix(PAGE_WORDS)?.split(' ').next()?.parse().ok()
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether what panics on this thread now is an error of its call, which its caller tells: a panic hook need not.
pub fn expects_panic() -> bool {
    GUARDED.get()
}

/// Does what goes through redb; what unwinds out of it is an error of this call.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    done.unwrap_or_else(|payload| {
        Err(Failure::Unreadable(match payload.downcast::<DamagedPage>() {
            Ok(page) => format!("{PAGE_WORDS}{} of the ledger is not what was written", page.0),
            Err(other) => {
                let text = panic_message(&*other);
                format!("a page of the ledger makes no sense: {text}")
            }
        }))
    })
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Redb(error) => error.fmt(f),
            Failure::Damaged(what) | Failure::Unreadable(what) => what.fmt(f),
        }
    }
}

/// What a tree says of itself.
#[derive(Debug)]
pub struct Described {
    /// The version of the last commit that it has.
    pub sequence: u64,
    /// Whose log belongs to it; none in a ledger of before there were logs.
    pub log: Option<LogId>,
    /// Whether that log may hold commits that it does not have.
    pub log_matters: bool,
}

/// Where a tree is kept.
pub trait Source: Send + Sync {
    /// Opens it.
    fn open(&self) -> Result<Database, LedgerError>;
    /// Bytes that it takes where it is kept.
    fn bytes(&self) -> u64;
    /// Where it is, if it is in a file.
    fn path(&self) -> Option<&Path> {
        None
    }
    /// The file that was opened last, if it is one.
    fn file(&self) -> Option<Arc<PageFile>> {
        None
    }
}

/// A tree in a file.
struct InFile {
    path: PathBuf,
    cache_bytes: usize,
    reserve: Arc<Reserve>,
    unflushed: Unflushed,
    damage: Arc<Damage>,
    opened: Mutex<Weak<PageFile>>,
}

impl Source for InFile {
    fn open(&self) -> Result<Database, LedgerError> {
        let path = &self.path;
        let failed = |error: std::io::Error| unavailable(path, &error);
        if path.metadata().map_err(failed)?.len() == 0 {
            // redb would make a database of it.
            return Err(damaged(path, "not a Cairn ledger: it is empty"));
        }
        let opened = guarded(|| {
            let (reserve, unflushed) = (self.reserve.clone(), self.unflushed.clone());
            let file = PageFile::open(path, reserve, unflushed, self.damage.clone())?;
            let mut database = Builder::new()
                .set_cache_size(self.cache_bytes)
                .create_with_backend(Backend(file.clone()));
            if let (Ok(database), false) = (&mut database, file.is_checking()) {
                // Also what redb never reads must be known before it is taken for whole.
                database.check_integrity()?;
                file.make_sums()?;
            }
            *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&file);
            Ok(database)
        });
        match opened {
            Ok(database) => database.map_err(|error| open_error(path, error)),
            Err(Failure::Redb(error)) => Err(unavailable(path, &error)),
            Err(failure) => Err(damaged(path, &failure)),
        }
    }

    fn bytes(&self) -> u64 {
        let blocks = |found: std::fs::Metadata| std::os::unix::fs::MetadataExt::blocks(&found) * 512;
        self.path.metadata().map_or(0, blocks)
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn file(&self) -> Option<Arc<PageFile>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.upgrade()
    }
}

/// The file.
pub struct Tree {
    /// None once closed.
    database: RwLock<Option<Arc<Database>>>,
    source: Box<dyn Source>,
    damage: Arc<Damage>,
}

impl Tree {
    /// Opens the file, which must be there. `cache_bytes` bounds redb's page cache; what is damaged is noted. Where the filesystem is
    /// full, the reserve is given up for it. Blocks.
    pub fn open(
        path: &Path,
        cache_bytes: usize,
        reserve: Arc<Reserve>,
        damage: Arc<Damage>,
    ) -> Result<Tree, LedgerError> {
        let source = InFile {
            path: path.to_owned(),
            cache_bytes,
            reserve,
            unflushed: Unflushed::default(),
            damage: damage.clone(),
            opened: Mutex::default(),
        };
        let mut tree = Tree::of(Box::new(source))?;
        tree.damage = damage;
        Ok(tree)
    }

    /// Of a database with the tables of [`initialise`].
    pub fn of(source: Box<dyn Source>) -> Result<Tree, LedgerError> {
        let database = source.open()?;
        Ok(Tree {
            database: RwLock::new(Some(Arc::new(database))),
            source,
            damage: Arc::default(),
        })
    }

    /// The file, if it is in one that is open.
    pub fn file(&self) -> Option<Arc<PageFile>> {
        self.source.file()
    }

    /// What is known to be damaged.
    pub fn damage(&self) -> &Arc<Damage> {
        &self.damage
    }

    /// Opens it once more: redb does nothing after its file failed once. What was committed is there, of a transaction that failed
    /// all or nothing. Tables of before answer errors from now on. Blocks.
    pub fn reopen(&self) -> Result<(), LedgerError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let_go(database.take()); // Its lock, too.
        *database = Some(Arc::new(self.source.open()?));
        Ok(())
    }

    /// Closes it, has another one come into its place, and opens that; the same one if that failed. Blocks.
    pub fn replace(&self, place: impl FnOnce() -> Result<(), LedgerError>) -> Result<(), LedgerError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let_go(database.take());
        let placed = place();
        *database = Some(Arc::new(self.source.open()?));
        placed
    }

    /// Where it is, if it is in a file.
    pub fn path(&self) -> Option<&Path> {
        self.source.path()
    }

    /// Bytes that it takes where it is kept.
    pub fn bytes(&self) -> u64 {
        self.source.bytes()
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
        let_go(database);
    }

    /// What it says of itself, if it is a ledger that this program understands.
    pub fn describe(&self) -> Result<Described, Failure> {
        guarded(|| self.describe_unguarded())
    }

    fn describe_unguarded(&self) -> Result<Described, Failure> {
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

    /// Makes rows, up to this version, part of it; durable when this returns. Without a version they are a part of what one later
    /// brings: until then they must be in the log, or be nothing that anybody was told of.
    pub fn apply<'a>(
        &self,
        rows: impl IntoIterator<Item = (&'a Bytes, &'a Entry)>,
        sequence: Option<u64>,
    ) -> Result<(), Failure> {
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
            put_rows(transaction, rows, Some(sequence))?;
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
        // Given up here, and not while it unwinds: redb then knows again which pages are free.
        guarded(|| work(&transaction))?;
        guarded(|| Ok(transaction.commit()?))
    }

    /// Seals the rows of a ledger of before.
    pub fn migrate(&self) -> Result<(), Failure> {
        let mut is_begun = false;
        loop {
            let transaction = self.database()?.begin_read()?;
            if !guarded(|| {
                Ok(transaction
                    .list_tables()?
                    .any(|table| table.name() == UNSEALED.name()))
            })? {
                return Ok(());
            }
            if !std::mem::replace(&mut is_begun, true) {
                tracing::info!("the rows of the ledger are being sealed: it is of an earlier format");
            }
            let mut rows = Vec::new();
            let mut is_last = false;
            guarded(|| {
                let mut bytes = 0;
                let table = transaction.open_table(UNSEALED)?;
                let mut from = table.range::<&[u8]>(..)?;
                while rows.len() < MIGRATED_ROWS_MAX && bytes < MIGRATED_BYTES_MAX {
                    let Some(row) = from.next() else {
                        is_last = true;
                        break;
                    };
                    let (key, row) = row?;
                    let (key, row) = (Bytes::copy_from_slice(key.value()), row.value());
                    let Some((version, value)) = row.split_first_chunk() else {
                        return Err(Failure::Damaged(format!("{} has no version", key::words(&key))));
                    };
                    bytes += key.len() + row.len();
                    let (version, value) = (u64::from_le_bytes(*version), Bytes::copy_from_slice(value));
                    rows.push((key, Versioned { version, value }));
                }
                Ok(())
            })?;
            drop(transaction);
            self.transact(|transaction| {
                let (mut unsealed, mut sealed) =
                    (transaction.open_table(UNSEALED)?, transaction.open_table(ROWS)?);
                for (key, row) in &rows {
                    put_row(&mut sealed, key, row)?;
                    unsealed.remove(&key[..])?;
                }
                drop(unsealed);
                if is_last {
                    transaction.delete_table(UNSEALED)?;
                }
                transaction
                    .open_table(META)?
                    .insert(FORMAT_KEY, &format_row()[..])?;
                Ok(())
            })?;
        }
    }

    /// Its rows as they are now.
    pub fn table(&self) -> Result<Table, Failure> {
        let rows = guarded(|| Ok(self.database()?.begin_read()?.open_table(ROWS)?))?;
        let damage = self.damage.clone();
        Ok(Table { rows, damage })
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.close();
    }
}

/// Closes a database. That reads and writes, and may meet what is damaged: then the next open finds it not closed cleanly.
fn let_go(database: Option<Arc<Database>>) {
    let closed = guarded(move || {
        drop(database);
        Ok(())
    });
    if let Err(failure) = closed {
        tracing::debug!(%failure, "the tree of the ledger was not closed cleanly");
    }
}

/// The rows of one moment.
pub struct Table {
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    damage: Arc<Damage>,
}

impl Table {
    /// The row of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Versioned>, Failure> {
        guarded(|| {
            let row = self.rows.get(key)?;
            row.map(|row| self.unsealed(key, row.value())).transpose()
        })
    }

    /// Whether there is a row of a key, damaged or not.
    pub fn has(&self, key: &[u8]) -> Result<bool, Failure> {
        guarded(|| Ok(self.rows.get(key)?.is_some()))
    }

    fn unsealed(&self, key: &[u8], row: &[u8]) -> Result<Versioned, Failure> {
        unseal(key, row).ok_or_else(|| {
            let what = key::words(key);
            self.damage.note_row(key, &what);
            Failure::Unreadable(format!("{what}: its seal does not hold"))
        })
    }

    /// The rows of a range, in that order. After an error that is not of one row nothing comes.
    pub fn scan(&self, range: &KeyRange, direction: Direction) -> Result<Scan<'_>, Failure> {
        let start = &range.start[..];
        let entries = guarded(|| {
            Ok(match &range.end {
                Some(end) => self.rows.range::<&[u8]>(start..&end[..])?,
                None => self.rows.range::<&[u8]>(start..)?,
            })
        })?;
        Ok(Scan {
            table: self,
            entries: Some(entries),
            direction,
            damaged_key: None,
        })
    }

    /// The rows of a range up to `limit`, and what of it cannot be read.
    pub fn scan_beside(&self, range: &KeyRange, limit: usize) -> Result<(Vec<Row>, Vec<Gap>), Failure> {
        let (mut rows, mut gaps) = (Vec::new(), Vec::new());
        let mut rest = range.clone();
        'parts: loop {
            let mut scan = self.scan(&rest, Direction::Forward)?;
            while rows.len() < limit {
                match scan.next() {
                    None => break 'parts,
                    Some(Ok(row)) => {
                        rest.start = key::after(&row.key);
                        rows.push(row);
                    }
                    Some(Err(Failure::Unreadable(what))) => match scan.damaged_key.take() {
                        Some(key) => {
                            rest.start = key::after(&key);
                            gaps.push(Gap {
                                end: Some(rest.start.clone()),
                                start: key,
                                is_one_row: true,
                            });
                        }
                        None => {
                            let end = self.first_behind(&rest, &what);
                            let start = std::mem::replace(&mut rest.start, end.clone().unwrap_or_default());
                            gaps.push(Gap {
                                start,
                                end: end.clone().or(rest.end.clone()),
                                is_one_row: false,
                            });
                            match end {
                                Some(_) => continue 'parts,
                                None => break 'parts,
                            }
                        }
                    },
                    Some(Err(failure)) => return Err(failure),
                }
            }
            break;
        }
        Ok((rows, gaps))
    }

    /// The first key in a range, which begins with this damage, that it does not concern; none if all of it is damaged so. A damaged
    /// page is all keys between two, so it is found by halving.
    fn first_behind(&self, range: &KeyRange, damage: &str) -> Option<Bytes> {
        let is_readable = |from: &Bytes| {
            let range = KeyRange {
                start: from.clone(),
                end: range.end.clone(),
            };
            let first = self.scan(&range, Direction::Forward).map(|mut scan| scan.next());
            !matches!(first, Ok(Some(Err(Failure::Unreadable(what)))) | Err(Failure::Unreadable(what)) if what == damage)
        };
        let is_inside = |key: &Bytes| range.end.as_ref().is_none_or(|end| key < end);
        let prefixes = (0..=range.start.len()).rev();
        let nearest = prefixes.filter_map(|bytes| key::successor(&range.start[..bytes]));
        let mut below = range.start.clone();
        let mut above = None;
        for key in nearest.filter(is_inside) {
            if is_readable(&key) {
                above = Some(key);
                break;
            }
            below = key;
        }
        let mut above = above.or_else(|| range.end.clone())?;
        for _ in 0..BISECTIONS_MAX {
            let Some(middle) = between(&below, &above) else {
                break;
            };
            match is_readable(&middle) {
                true => above = middle,
                false => below = middle,
            }
        }
        // Keys that differ only in zeros at their end are nearer than halves come.
        let cut = (0..above.len()).map(|bytes| above.slice(..bytes));
        let nearest = cut.filter(|key| *key > below).find(|key| is_readable(key));
        let above = nearest.unwrap_or(above);
        (range.end.as_ref() != Some(&above)).then_some(above)
    }
}

/// A key between two, about in the middle; none if there is hardly one.
fn between(below: &[u8], above: &[u8]) -> Option<Bytes> {
    let bytes = below.len().max(above.len()) + 1;
    let at = |key: &[u8], index: usize| u16::from(key.get(index).copied().unwrap_or(0));
    let mut sum: Vec<u16> = (0..bytes)
        .map(|index| at(below, index) + at(above, index))
        .collect();
    let mut carry = 0;
    for digit in sum.iter_mut().rev() {
        *digit += carry;
        carry = *digit >> 8;
        *digit &= 0xFF;
    }
    let mut middle = Vec::with_capacity(bytes);
    for digit in sum {
        let value = digit | carry << 8;
        middle.push((value >> 1) as u8);
        carry = value & 1;
    }
    while middle.last() == Some(&0) {
        middle.pop();
    }
    (below < &middle[..] && &middle[..] < above).then(|| middle.into())
}

/// Rows of a range, one after the other.
pub struct Scan<'a> {
    table: &'a Table,
    entries: Option<::redb::Range<'static, &'static [u8], &'static [u8]>>,
    direction: Direction,
    /// The key of the row that failed last; none if it was no row's failure.
    damaged_key: Option<Bytes>,
}

impl Iterator for Scan<'_> {
    type Item = Result<Row, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let entries = self.entries.as_mut()?;
        let entry = guarded(|| {
            let entry = match self.direction {
                Direction::Forward => entries.next(),
                Direction::Backward => entries.next_back(),
            };
            let Some((key, row)) = entry.transpose()? else {
                return Ok(None);
            };
            // Of a page that makes no sense these may unwind, too.
            let key = Bytes::copy_from_slice(key.value());
            let row = self.table.unsealed(&key, row.value());
            Ok(Some((key, row)))
        });
        let (key, row) = match entry {
            Ok(entry) => entry?,
            Err(failure) => {
                self.entries = None;
                return Some(Err(failure));
            }
        };
        match row {
            Ok(versioned) => Some(Ok(Row { key, versioned })),
            Err(failure) => {
                self.damaged_key = Some(key);
                Some(Err(failure))
            }
        }
    }
}

fn put_rows<'a>(
    transaction: &WriteTransaction,
    rows: impl IntoIterator<Item = (&'a Bytes, &'a Entry)>,
    sequence: Option<u64>,
) -> Result<(), Failure> {
    let mut table = transaction.open_table(ROWS)?;
    for (key, entry) in rows {
        // What unwinds must not get past the table: redb would not give up the transaction of one that is dropped while it unwinds.
        guarded(|| {
            match entry {
                Some(row) => put_row(&mut table, key, row)?,
                None => _ = table.remove(&key[..])?,
            }
            Ok(())
        })?;
    }
    if let Some(sequence) = sequence {
        transaction
            .open_table(META)?
            .insert(SEQUENCE_KEY, &sequence.to_le_bytes()[..])?;
    }
    Ok(())
}

fn put_row(
    table: &mut ::redb::Table<'_, &'static [u8], &'static [u8]>,
    key: &[u8],
    Versioned { version, value }: &Versioned,
) -> Result<(), Failure> {
    let mut row = table.insert_reserve(key, ROW_HEAD_BYTES + value.len())?;
    let (head, value_slot) = row.as_mut().split_at_mut(ROW_HEAD_BYTES);
    let (version_slot, seal_slot) = head.split_at_mut(VERSION_BYTES);
    version_slot.copy_from_slice(&version.to_le_bytes());
    seal_slot.copy_from_slice(&seal_of(key, *version, value).to_le_bytes());
    value_slot.copy_from_slice(value);
    Ok(())
}

fn seal_of(key: &[u8], version: u64, value: &[u8]) -> u64 {
    let mut seal = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    seal.update(&(key.len() as u32).to_le_bytes());
    seal.update(key);
    seal.update(&version.to_le_bytes());
    seal.update(value);
    seal.finalize()
}

/// The row of a key as it is stored; none if its seal does not hold.
pub fn unseal(key: &[u8], row: &[u8]) -> Option<Versioned> {
    let (version, row) = row.split_first_chunk()?;
    let (seal, value) = row.split_first_chunk()?;
    let version = u64::from_le_bytes(*version);
    (u64::from_le_bytes(*seal) == seal_of(key, version, value)).then(|| Versioned {
        version,
        value: Bytes::copy_from_slice(value),
    })
}

/// Makes the tables and the rows of this engine's own.
pub(super) fn initialise(database: &Database, id: &LogId) -> Result<(), ::redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_quick_repair(true);
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

pub(super) fn open_error(path: &Path, error: ::redb::DatabaseError) -> LedgerError {
    let path_shown = path.display();
    match &error {
        ::redb::DatabaseError::DatabaseAlreadyOpen => LedgerError::Unavailable {
            what: format!("{path_shown} is open in another process"),
        },
        ::redb::DatabaseError::Storage(::redb::StorageError::Io(io))
            if io.kind() == std::io::ErrorKind::InvalidData =>
        {
            damaged(path, &format!("not a Cairn ledger: {io}"))
        }
        _ => unavailable(path, &error),
    }
}

/// That what is at `path` is damaged.
pub fn damaged(path: &Path, what: &(impl std::fmt::Display + ?Sized)) -> LedgerError {
    LedgerError::Damaged {
        what: format!("{}: {what}", path.display()),
    }
}

/// That opening what is at `path` failed.
pub fn unavailable(path: &Path, error: &dyn std::fmt::Display) -> LedgerError {
    LedgerError::Unavailable {
        what: format!("opening {}: {error}", path.display()),
    }
}
