//! Builds a ledger: an empty one, or from rows and changes that come from elsewhere (`archive`, repair); beside its place, and there once it
//! is whole.
//!
//! Invariant: nothing is under the ledger's name before all of it is durable; a file that is there is left alone.

use super::file::{Backend, PageFile, sums_path_of};
use super::log::LogId;
use super::recent::Rows;
use super::reserve::Reserve;
use super::tree::{Failure, Table, Tree, initialise, unavailable};
use crate::ledger::store::LedgerError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Of pages, in memory.
const CACHE_BYTES: usize = 64 << 20;

/// What is added to a ledger's name for one in the making, by who makes it: two that make one at a time do
/// not meet.
const UNFINISHED: &str = ".unfinished";
const UNREPAIRED: &str = ".unrepaired";

/// A ledger in the making.
pub struct Building {
    tree: Tree,
    path: PathBuf,
    unfinished: PathBuf,
}

impl Building {
    /// An empty one, for this place. What an earlier attempt left beside it is removed. Blocks.
    pub fn begin(path: &Path) -> Result<Building, LedgerError> {
        if path.exists() {
            return Err(unavailable(path, &"there is a ledger already"));
        }
        Building::with_reserve(path, Arc::new(Reserve::beside(path)))
    }

    /// The same, in the place of one that is there and that nobody has open but the caller, who has it
    /// locked.
    pub(super) fn to_repair(path: &Path) -> Result<Building, LedgerError> {
        Building::named(path, UNREPAIRED, Arc::new(Reserve::beside(path)))
    }

    /// The same, with the reserve of the one that is there.
    pub(super) fn with_reserve(path: &Path, reserve: Arc<Reserve>) -> Result<Building, LedgerError> {
        Building::named(path, UNFINISHED, reserve)
    }

    fn named(path: &Path, suffix: &str, reserve: Arc<Reserve>) -> Result<Building, LedgerError> {
        let failed = |error: io::Error| unavailable(path, &error);
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(suffix);
        let unfinished = PathBuf::from(unfinished);
        for left in [&unfinished, &sums_path_of(&unfinished)] {
            match std::fs::remove_file(left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        std::fs::File::create_new(&unfinished).map_err(failed)?;
        let made = make(&unfinished, reserve.clone());
        made.map_err(|failure| unavailable(path, &failure))?;
        Ok(Building {
            tree: Tree::open(&unfinished, CACHE_BYTES, reserve, Arc::default())?,
            path: path.to_owned(),
            unfinished,
        })
    }

    /// Puts rows, and removes those of keys that have none now; `sequence` is the version of the last commit that it then has. Blocks.
    pub fn apply(&self, rows: &Rows, sequence: u64) -> Result<(), LedgerError> {
        let applied = self.tree.apply(rows, Some(sequence));
        applied.map_err(|failure: Failure| unavailable(&self.path, &failure))
    }

    /// Has it go on with a log that is there, which may hold commits that it does not have.
    pub(super) fn mark(&self, sequence: u64, id: &LogId) -> Result<(), Failure> {
        self.tree.apply_and_mark(&Rows::new(), sequence, id, true)
    }

    /// Its rows as they are now.
    pub(super) fn table(&self) -> Result<Table, Failure> {
        self.tree.table()
    }

    /// Leaves nothing of it. Blocks.
    pub(super) fn abandon(self) {
        self.tree.close();
        for left in [&self.unfinished, &sums_path_of(&self.unfinished)] {
            if let Err(error) = std::fs::remove_file(left) {
                tracing::debug!(%error, path = %left.display(), "removed when the next one is built");
            }
        }
    }

    /// Puts it in its place. Blocks.
    pub fn finish(self) -> Result<(), LedgerError> {
        self.tree.close();
        // In this order: a crash between the two leaves a whole tree with sums of another, which are made anew. A damaged tree without
        // sums would not be opened any more.
        let placed = std::fs::rename(&self.unfinished, &self.path)
            .and_then(|()| std::fs::rename(sums_path_of(&self.unfinished), sums_path_of(&self.path)))
            .and_then(|()| {
                let directory = match self.path.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                std::fs::File::open(directory)?.sync_all()
            });
        placed.map_err(|error| unavailable(&self.path, &error))
    }
}

/// Makes an empty tree in a file that is there and empty.
fn make(path: &Path, reserve: Arc<Reserve>) -> Result<(), Failure> {
    let file = PageFile::open(path, reserve, Arc::default(), Arc::default())?;
    let database = ::redb::Builder::new().create_with_backend(Backend(file))?;
    initialise(&database, &rand::random())?;
    Ok(database.close()?)
}
