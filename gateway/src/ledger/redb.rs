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
//! - Any failure latches. What the files hold is then unknown until they are opened again.
//! - A read is of one moment: the rows in memory and the tree below them are taken together.

mod log;
mod recent;
mod tree;
mod writer;

use self::log::Log;
use self::recent::Recent;
use self::tree::{Described, Failure, Tree, decode, unavailable};
use self::writer::{Settler, Shared, Writer, rows_of};
use super::bounds;
use super::group_commit::{GroupCommit, Latch, shut_down};
use super::store::{Commit, Direction, KeyRange, LedgerError, Row, SCAN_LIMIT_MAX, Store, Versioned};
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
}

impl RedbStore {
    /// Opens the ledger, or makes an empty one if there is no file. `cache_bytes` bounds what is cached of it in memory.
    ///
    /// Blocks; a file of another program or of a newer Cairn is refused and left as it is.
    pub fn open(path: impl AsRef<Path>, cache_bytes: usize) -> Result<Self, LedgerError> {
        let path = path.as_ref();
        let rows_bytes = cache_bytes / ROWS_SHARE;
        let tree = Tree::open(path, cache_bytes - rows_bytes)?;
        let failed = |failure: Failure| match failure {
            Failure::Redb(error) => unavailable(path, &error),
            Failure::Damaged(what) => LedgerError::Damaged {
                what: format!("{}: {what}", path.display()),
            },
        };
        let described = tree.describe().map_err(failed)?;
        let log_path = log::path_of(path);
        let log_failed = |error: std::io::Error| unavailable(&log_path, &error);
        let content = match described.log_matters {
            true => std::fs::read(&log_path).map_err(log_failed)?,
            false => Vec::new(),
        };
        // Before the file is touched: what is left of it may be all that there is.
        if described.log_matters && content.len() != 2 * log::HALF_BYTES {
            return Err(failed(Failure::Damaged("its log was cut short".into())));
        }
        let file = log::create_file(&log_path).map_err(log_failed)?;
        let (log, sequence) = take_up(&tree, described, &content, Box::new(file)).map_err(failed)?;
        Self::start(tree, sequence, log, rows_bytes as u64, path)
    }

    fn start(tree: Tree, sequence: u64, log: Log, rows_bytes: u64, path: &Path) -> Result<Self, LedgerError> {
        let table = tree.table().map_err(|failure| unavailable(path, &failure))?;
        let latch = Latch::default();
        let recent = Recent::new(table, sequence, rows_bytes);
        let shared = Arc::new(Shared::new(recent, tree, log, latch.clone()));
        let no_thread = |error: std::io::Error| unavailable(path, &error);
        Ok(Self {
            group: GroupCommit::start(Writer::new(shared.clone()), latch).map_err(no_thread)?,
            settler: Mutex::new(Settler::start(shared.clone()).map_err(no_thread)?),
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
        read: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, LedgerError> {
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Damaged(what))) => Err(LedgerError::Damaged { what }),
            Ok(Err(Failure::Redb(error))) => {
                Err(self.shared.latch.set(format!("reading the ledger: {error}")))
            }
            Err(panicked) => Err(self.shared.latch.set(format!("reading the ledger: {panicked}"))),
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
    described: Described,
    content: &[u8],
    medium: Box<dyn log::Medium>,
) -> Result<(Log, u64), Failure> {
    let id = described.log.unwrap_or_else(rand::random);
    let recovered = log::recover(&id, content, described.sequence).map_err(Failure::Damaged)?;
    let sequence = described.sequence + recovered.len() as u64;
    tree.apply_and_mark(&rows_of(recovered), sequence, &id, true)?;
    Ok((Log::new(id, medium), sequence))
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError> {
        bounds::check_get(&keys)?;
        self.shared.latch.check()?;
        let mut found = self.shared.recent.find(&keys).ok_or_else(shut_down)?;
        if found.entries.iter().all(Option::is_some) {
            return Ok(found.entries.into_iter().flatten().collect());
        }
        let shared = self.shared.clone();
        self.read(move || {
            let entries = std::mem::take(&mut found.entries);
            let value = |(key, entry): (&Bytes, Option<Option<Versioned>>)| match entry {
                Some(entry) => Ok(entry),
                None => {
                    let row = found.tree.get(&key[..])?;
                    let row = row.map(|row| decode(key, row.value())).transpose()?;
                    if let Some(row) = &row {
                        shared.recent.remember(&found, key, row);
                    }
                    Ok(row)
                }
            };
            keys.iter().zip(entries).map(value).collect()
        })
        .await
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
            let Some((recent, tree)) = shared.recent.range(&range, limit, direction) else {
                return Ok(None);
            };
            let start = &range.start[..];
            let below = match &range.end {
                Some(end) => tree.range::<&[u8]>(start..&end[..])?,
                None => tree.range::<&[u8]>(start..)?,
            };
            let row = |entry: Result<(::redb::AccessGuard<&[u8]>, ::redb::AccessGuard<&[u8]>), _>| {
                let (key, value) = entry.map_err(|error: ::redb::StorageError| Failure::from(error))?;
                let key = Bytes::copy_from_slice(key.value());
                let versioned = decode(&key, value.value())?;
                Ok(Row { key, versioned })
            };
            let rows = match direction {
                Direction::Forward => recent::overlay(recent, below.map(row), limit, direction),
                Direction::Backward => recent::overlay(recent, below.rev().map(row), limit, direction),
            };
            rows.map(Some)
        });
        rows.await?.ok_or_else(shut_down)
    }

    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError> {
        bounds::check_commit(&commit)?;
        self.group.commit(commit).await
    }
}

#[cfg(test)]
mod tests;
