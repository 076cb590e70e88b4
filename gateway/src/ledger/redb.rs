//! The embedded engine: a log that makes commits durable, and a tree that keeps them.
//!
//! A commit is appended to the log ([`log`]), with all that arrived while the one before was being made durable (group commit): one
//! write and one flush. It is then in memory ([`recent`]), and once a half of the log is full, or nobody commits for a second, in
//! the tree ([`tree`]): redb, in one transaction of thousands of commits. [`writer`] does both.
//!
//! Why not redb alone: a transaction of a few commits, each of rows all over the tree, writes every page from the root to each of
//! them and flushes twice. Measured with 3,000,000 rows, three a commit, 64 commits at a time: 270 transactions a second and
//! 38 µs of processor time a commit; the log takes 10,000 flushed appends a second, and rows by the thousand cost redb 14 µs a commit.
//!
//! Invariants:
//! - What is answered is in the log, flushed, or in the tree.
//! - A failure after which it is unknown what is durable latches, until the engine has taken itself up again ([`settler`]). No
//!   other failure does: who reads waits for a tree that is opened again, and commits stay in the log meanwhile.
//! - Damage that is met by a read is an error of that read, noted in [`Damage`]; everything else goes on.
//! - Room for the tree is kept ahead ([`reserve`]), so a full filesystem ends uploads ([`gauge`]) and nothing else.
//! - A read is of one moment: the rows in memory and the tree below them are taken together.

mod build;
#[cfg(test)]
mod faulty;
mod file;
mod gauge;
mod log;
mod mend;
pub mod offline;
mod overlay;
mod recent;
mod reserve;
mod settler;
mod tree;
mod writer;

pub use self::build::Building;
use self::gauge::Gauge;
use self::log::Log;
use self::log::LogFile;
pub use self::log::parse as parse_commits;
use self::recent::Recent;
pub use self::recent::Rows;
use self::reserve::Reserve;
use self::settler::{PIECE_ROWS_MIN, Settler, next_piece};
pub use self::tree::expects_panic;
use self::tree::{Described, Failure, Tree, damaged, unavailable};
use self::writer::{Shared, Writer, refused, rows_of};
use super::bounds;
use super::changes::Changes;
use super::damage::Damage;
use super::group_commit::{GroupCommit, Latch, shut_down};
use super::room::Measured;
use super::store::{
    BlocksChecked, Commit, Direction, EngineState, Gap, KeyRange, LedgerError, Mending, Row, SCAN_LIMIT_MAX,
    Scanned, Store, Versioned,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The part of the cache that holds rows rather than pages: one in so many bytes.
const ROWS_SHARE: usize = 4;

/// A ledger in two files: the tree, and its log beside it.
pub struct RedbStore {
    group: GroupCommit,
    shared: Arc<Shared>,
    settler: Mutex<Settler>,
    gauge: Gauge,
}

impl RedbStore {
    /// Opens the ledger, which must be there. `cache_bytes` bounds what is cached of it in memory.
    ///
    /// Blocks; a file of another program or of a newer Cairn is refused and left as it is.
    pub fn open(path: impl AsRef<Path>, cache_bytes: usize) -> Result<Self, LedgerError> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(LedgerError::Unavailable {
                what: format!(
                    "{} is not there: put back what was there, with the files beside it, or have it restored",
                    path.display()
                ),
            });
        }
        let rows_bytes = cache_bytes / ROWS_SHARE;
        let reserve = Arc::new(Reserve::beside(path));
        let tree = Tree::open(path, cache_bytes - rows_bytes, reserve.clone(), Arc::default())?;
        let failed = |failure: Failure| match failure {
            Failure::Redb(error) => unavailable(path, &error),
            other => damaged(path, &other),
        };
        let described = tree.describe().map_err(failed)?;
        tree.migrate().map_err(failed)?;
        let log_path = log::path_of(path);
        let log_failed = |error: std::io::Error| unavailable(&log_path, &error);
        let mut content = match described.log_matters {
            true => std::fs::read(&log_path).map_err(log_failed)?,
            // The tree has all of it, but those who follow may not.
            false => std::fs::read(&log_path).unwrap_or_default(),
        };
        // Before the file is touched: what is left of it may be all that there is.
        if described.log_matters && content.len() != 2 * log::HALF_BYTES {
            return Err(failed(Failure::Damaged("its log was cut short".into())));
        }
        if let (true, Some(id)) = (described.log_matters, &described.log) {
            if log::is_of_another(id, &content) {
                return Err(failed(Failure::Damaged("its log is another ledger's".into())));
            }
            let corrected = log::correct(id, &mut content, described.sequence);
            (0..corrected).for_each(|_| tree.damage().note_corrected_log());
        }
        let file = reserve
            .with_room(|| LogFile::open(log_path.clone()))
            .map_err(log_failed)?;
        let needed: &[u8] = if described.log_matters { &content } else { &[] };
        let (log, sequence) = take_up(&tree, &reserve, described, needed, Box::new(file)).map_err(failed)?;
        let changes = Changes::new(log::newest(log.id(), &content, sequence));
        Self::start(tree, sequence, log, changes, rows_bytes as u64, reserve, path)
    }

    /// Makes an empty ledger, where there must be none, and opens it. Blocks.
    pub fn create(path: impl AsRef<Path>, cache_bytes: usize) -> Result<Self, LedgerError> {
        Building::begin(path.as_ref())?.finish()?;
        Self::open(path, cache_bytes)
    }

    fn start(
        tree: Tree,
        sequence: u64,
        log: Log,
        changes: Changes,
        rows_bytes: u64,
        reserve: Arc<Reserve>,
        path: &Path,
    ) -> Result<Self, LedgerError> {
        let table = tree.table().map_err(|failure| match failure {
            Failure::Redb(error) => unavailable(path, &error),
            other => damaged(path, &other),
        })?;
        let latch = Latch::default();
        let recent = Recent::new(table, sequence, rows_bytes);
        let shared = Shared::new(
            recent,
            tree,
            log,
            latch.clone(),
            Arc::new(changes),
            reserve.clone(),
        );
        let shared = Arc::new(shared);
        let no_thread = |error: std::io::Error| unavailable(path, &error);
        Ok(Self {
            group: GroupCommit::start(Writer::new(shared.clone()), latch).map_err(no_thread)?,
            settler: Mutex::new(Settler::start(shared.clone()).map_err(no_thread)?),
            gauge: Gauge::start(reserve).map_err(no_thread)?,
            shared,
        })
    }

    /// Takes no more requests, answers those in hand, and brings all that is in the log into the tree. Reads in progress finish.
    pub async fn shutdown(self: &Arc<Self>) {
        self.group.shutdown().await;
        let store = self.clone();
        // Should it fail, the next start does it.
        let _closed = tokio::task::spawn_blocking(move || store.close()).await;
    }

    fn close(&self) {
        let mut settler = self.settler.lock().unwrap_or_else(PoisonError::into_inner);
        settler.close(&self.shared);
        self.shared.recent.close();
        self.shared.tree.close();
    }

    /// Reads the tree of one moment, off the reactor.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnMut() -> (u64, Result<T, Failure>) + Send + 'static,
    ) -> Result<T, LedgerError> {
        let shared = self.shared.clone();
        let unavailable = |what: &dyn std::fmt::Display| LedgerError::Unavailable {
            what: format!("reading the ledger: {what}"),
        };
        match tokio::task::spawn_blocking(move || shared.reading(read)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Damaged(what) | Failure::Unreadable(what))) => Err(LedgerError::Damaged { what }),
            Ok(Err(failure)) => Err(unavailable(&failure)),
            Err(panicked) => Err(unavailable(&panicked)),
        }
    }
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStore")
            .field("latch", &self.shared.latch)
            .finish_non_exhaustive()
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.group.close();
        self.close();
    }
}

/// Brings what a log holds into the tree, and says there that the log matters from now on.
fn take_up(
    tree: &Tree,
    reserve: &Reserve,
    described: Described,
    content: &[u8],
    medium: Box<dyn log::Medium>,
) -> Result<(Log, u64), Failure> {
    let id = described.log.unwrap_or_else(rand::random);
    let recovered = log::recover(&id, content, described.sequence).map_err(Failure::Damaged)?;
    let sequence = described.sequence + recovered.len() as u64;
    let rows = rows_of(recovered);
    let mut rest = rows.iter().peekable();
    while rest.peek().is_some() {
        let room = reserve
            .measure()
            .as_ref()
            .map_or(u64::MAX, Measured::for_transaction);
        tree.apply(next_piece(&mut rest, tree.bytes(), room, PIECE_ROWS_MIN), None)?;
    }
    tree.apply_and_mark(&recent::Rows::new(), sequence, &id, true)?;
    Ok((Log::new(id, medium), sequence))
}

fn check_blocks(
    file: &file::PageFile,
    damage: &Damage,
    from: u64,
    most: u64,
) -> Result<BlocksChecked, Failure> {
    let blocks = file.blocks()?;
    let until = (from + most).min(blocks);
    let mut wrong = 0;
    for block in from..until {
        match file.check_block(block)? {
            file::BlockState::Damaged => wrong += 1,
            file::BlockState::Whole | file::BlockState::Corrected => damage.forget_page(block),
        }
    }
    Ok(BlocksChecked {
        blocks: until.saturating_sub(from),
        wrong,
        next: (until < blocks).then_some(until),
    })
}

/// What the tree has of a range, with recent rows over it.
fn beside(
    (below, mut gaps): (Vec<Row>, Vec<Gap>),
    recent: recent::Ordered,
    limit: usize,
) -> Result<Scanned, Failure> {
    let is_recent = |gap: &Gap| {
        let found = recent.binary_search_by(|(key, _)| key.cmp(&gap.start));
        gap.is_one_row && found.is_ok()
    };
    gaps.retain(|gap| !is_recent(gap));
    let rows = recent::overlay(recent, below.into_iter().map(Ok), limit, Direction::Forward)?;
    if let Some(last) = rows.last().filter(|_| rows.len() == limit) {
        gaps.retain(|gap| gap.start <= last.key);
    }
    Ok(Scanned { rows, gaps })
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError> {
        bounds::check_get(&keys)?;
        self.shared.latch.check()?;
        let found = self.shared.recent.find(&keys).ok_or_else(shut_down)?;
        if found.entries.iter().all(Option::is_some) {
            return Ok(found.entries.into_iter().flatten().collect());
        }
        let (shared, mut found) = (self.shared.clone(), Some(found));
        let rows = self.read(move || {
            // Asked once more only if that tree has failed.
            let Some(found) = found.take().or_else(|| shared.recent.find(&keys)) else {
                return (0, Ok(None));
            };
            let value = |(key, entry): (&Bytes, &Option<Option<Versioned>>)| match entry {
                Some(entry) => Ok(entry.clone()),
                None => {
                    let row = found.tree.get(key)?;
                    if let Some(row) = &row {
                        shared.recent.remember(&found, key, row);
                    }
                    Ok(row)
                }
            };
            let values: Result<_, Failure> = keys.iter().zip(&found.entries).map(value).collect();
            (found.trees, values.map(Some))
        });
        rows.await?.ok_or_else(shut_down)
    }

    async fn scan(
        &self,
        range: KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Row>, LedgerError> {
        self.shared.latch.check()?;
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return Ok(Vec::new());
        }
        let limit = limit.min(SCAN_LIMIT_MAX);
        let shared = self.shared.clone();
        let rows = self.read(move || {
            let Some((recent, tree, number)) = shared.recent.range(&range, limit, direction) else {
                return (0, Ok(None));
            };
            let below = tree.scan(&range, direction);
            let rows = below.and_then(|below| recent::overlay(recent, below, limit, direction));
            (number, rows.map(Some))
        });
        rows.await?.ok_or_else(shut_down)
    }

    async fn scan_beside(&self, range: KeyRange, limit: usize) -> Result<Scanned, LedgerError> {
        self.shared.latch.check()?;
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return Ok(Scanned::default());
        }
        let limit = limit.min(SCAN_LIMIT_MAX);
        let shared = self.shared.clone();
        let scanned = self.read(move || {
            let Some((recent, tree, number)) = shared.recent.range(&range, limit, Direction::Forward) else {
                return (0, Ok(None));
            };
            // As many more as recent rows may hide.
            let below = tree.scan_beside(&range, limit + recent.len());
            (
                number,
                below.and_then(|below| beside(below, recent, limit)).map(Some),
            )
        });
        scanned.await?.ok_or_else(shut_down)
    }

    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError> {
        bounds::check_commit(&commit)?;
        self.group.commit(commit).await
    }

    fn state(&self) -> EngineState {
        let failure = self.shared.latch.failure();
        EngineState {
            unavailable: failure.map(|(what, since)| (what, since.elapsed())),
            room: self.gauge.room(),
        }
    }

    fn position(&self) -> u64 {
        self.shared.recent.sequence().0
    }

    async fn check_blocks(&self, from: u64, most: u64) -> Result<BlocksChecked, LedgerError> {
        let Some(file) = self.shared.tree.file() else {
            return Ok(BlocksChecked::default());
        };
        let damage = self.shared.tree.damage().clone();
        self.read(move || (0, check_blocks(&file, &damage, from, most)))
            .await
    }

    async fn find_damage(&self) -> Result<Option<Box<dyn Mending>>, LedgerError> {
        let shared = self.shared.clone();
        let begun = tokio::task::spawn_blocking(move || mend::TreeMending::begin(shared)).await;
        let begun = begun.map_err(|panicked| LedgerError::Unavailable {
            what: panicked.to_string(),
        })?;
        let begun = begun.map_err(|failure| refused(&failure))?;
        Ok(begun.map(|mending| Box::new(mending) as Box<dyn Mending>))
    }

    fn damage(&self) -> Option<Arc<Damage>> {
        Some(self.shared.tree.damage().clone())
    }

    fn changes(&self) -> Option<Arc<Changes>> {
        Some(self.shared.changes.clone())
    }
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
