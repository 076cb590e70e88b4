//! The thread that commits: it decides, appends to the log, and shows the rows. What it shares with the settler is here, too.
//!
//! Invariants:
//! - The log's lock is its writer's; the settler takes it only when nobody has it: to switch halves of a ledger at rest, or to take up
//!   again what a failure left.
//! - Halves and recent rows are switched together, so what a half holds is what is being settled; and only when nothing else is.
//! - Only a failure after which it is unknown what is durable latches: one of the log, or of a tree that took a commit directly. Those
//!   commits are kept, and become true when the ledger is taken up again: their versions are used no second time.
//! - Who finds no room in the log while the tree takes nothing is refused, and nothing has changed.

use super::build::Building;
use super::log::{Frame, HALF_BYTES, Log, LogId};
use super::recent::{Entry, Recent, Rows};
use super::reserve::Reserve;
use super::tree::{Failure, Tree};
use crate::ledger::changes::{Batch, Changes};
use crate::ledger::group_commit::{Apply, Latch, Outcome};
use crate::ledger::room::{Measured, Needed};
use crate::ledger::store::{Commit, LedgerError, Mutation, Versioned};
use bytes::Bytes;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long who reads waits for a tree that is being opened again.
const TREE_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often a read that fails itself is tried again.
const READ_RETRIES: u32 = 1;

/// What writer, settler and readers share.
pub struct Shared {
    /// The rows over the tree.
    pub recent: Recent,
    /// The tree.
    pub tree: Tree,
    /// A failure that nobody has made good yet.
    pub latch: Latch,
    /// Those who follow what is committed.
    pub changes: Arc<Changes>,
    /// Room that is kept for the tree.
    pub reserve: Arc<Reserve>,
    pub(super) log: Mutex<Log>,
    /// What failed to become durable, if it did.
    pub(super) doubtful: Mutex<Option<Doubtful>>,
    pub(super) turn: Mutex<Turn>,
    pub(super) changed: Condvar,
}

/// A batch of which it is unknown whether it is durable.
pub(super) struct Doubtful {
    pub rows: Rows,
    /// The version of its last commit.
    pub last: u64,
    /// For those who follow.
    pub to_follow: Option<Batch>,
}

/// What the settler is to do, and whether it can.
#[derive(Default)]
pub(super) struct Turn {
    pub settling: bool,
    /// The tree must be opened again.
    pub broken: bool,
    /// Why nothing comes into the tree for now.
    pub stuck: Option<LedgerError>,
    /// A tree that is to come into the place of this one.
    pub mended: Option<Mended>,
    pub closed: bool,
}

/// A copy of the tree without its damage.
pub(super) struct Mended {
    pub building: Building,
    pub log: LogId,
    /// The version of the last commit that it has, without those that were followed.
    pub position: u64,
    pub answer: std::sync::mpsc::SyncSender<Result<(), Failure>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a batch was not committed.
enum Refusal {
    /// Nothing of it was written.
    Unwritten(LedgerError),
    /// Whether it is durable is unknown.
    Unknown(String),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal::Unwritten(refused(&failure))
    }
}

/// The error of what did not happen.
pub(super) fn refused(failure: &Failure) -> LedgerError {
    match failure {
        _ if failure.is_full() => LedgerError::Full,
        Failure::Unreadable(what) => LedgerError::Damaged { what: what.clone() },
        _ => LedgerError::Unavailable {
            what: format!("the ledger's tree: {failure}"),
        },
    }
}

impl Shared {
    /// Of a tree and the log in front of it.
    pub fn new(
        recent: Recent,
        tree: Tree,
        log: Log,
        latch: Latch,
        changes: Arc<Changes>,
        reserve: Arc<Reserve>,
    ) -> Shared {
        Shared {
            recent,
            tree,
            latch,
            changes,
            reserve,
            log: Mutex::new(log),
            doubtful: Mutex::default(),
            turn: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Hands what is active to the settler, and goes on in the other half. Nothing must be settling.
    pub(super) fn switch(&self, log: &mut Log) {
        self.recent.switch();
        log.switch();
        lock(&self.turn).settling = true;
        self.changed.notify_all();
    }

    /// Waits until nothing is being settled; an error if it cannot be for now.
    fn wait_until_settled(&self) -> Result<(), Refusal> {
        let mut turn = lock(&self.turn);
        while turn.settling {
            if let Some(why) = &turn.stuck {
                return Err(Refusal::Unwritten(why.clone()));
            }
            turn = self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Waits for another tree than this one, which failed who read it; whether there is one in time.
    fn wait_for_tree(&self, failed: u64, until: Instant) -> bool {
        let mut turn = lock(&self.turn);
        while self.recent.trees() == failed {
            turn.broken = true;
            self.changed.notify_all();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || turn.closed {
                return false;
            }
            let waited = self.changed.wait_timeout(turn, left);
            (turn, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Reads through `read`, which says of which tree; again when that tree could not be read, and was opened anew. What makes it fail
    /// itself each time is an answer.
    pub fn reading<T>(&self, mut read: impl FnMut() -> (u64, Result<T, Failure>)) -> Result<T, Failure> {
        let until = Instant::now() + TREE_WAIT_MAX;
        let mut own_failures = 0;
        loop {
            let (tree, done) = read();
            let Err(failure) = done else { return done };
            if failure.is_io() {
                own_failures += 1;
                tracing::warn!(%failure, "a read of the ledger's tree failed");
            }
            if !failure.breaks() || own_failures > READ_RETRIES || !self.wait_for_tree(tree, until) {
                return Err(failure);
            }
        }
    }

    /// What a transaction may count on. A filesystem that does not say has what is needed, or will refuse it.
    pub(super) fn room(&self) -> u64 {
        let measured = self.reserve.measure();
        measured.as_ref().map_or(u64::MAX, Measured::for_transaction)
    }
}

/// Lives in the writer thread.
pub struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    /// For what is shared.
    pub fn new(shared: Arc<Shared>) -> Writer {
        Writer { shared }
    }

    /// The version that a key has now: in this batch, or before it.
    fn version_of(&self, key: &Bytes, batch: &Rows) -> Result<Option<u64>, Failure> {
        let version = |entry: &Entry| entry.as_ref().map(|row| row.version);
        if let Some(entry) = batch.get(key) {
            return Ok(version(entry));
        }
        self.shared.reading(|| {
            let Some(found) = self.shared.recent.find(std::slice::from_ref(key)) else {
                return (0, Err(closed()));
            };
            if let [Some(entry)] = &found.entries[..] {
                return (found.trees, Ok(version(entry)));
            }
            let row = found.tree.get(key);
            (found.trees, row.map(|row| row.map(|row| row.version)))
        })
    }

    /// All of the commit joins the batch, or a conflict and nothing of it.
    fn take_in(&self, commit: &Commit, batch: &mut Rows, version: u64) -> Result<Outcome, Failure> {
        for (index, precondition) in commit.preconditions.iter().enumerate() {
            let version = match self.version_of(precondition.key(), batch) {
                Err(failure @ Failure::Unreadable(_)) => return Ok(Err(refused(&failure))),
                version => version?,
            };
            if !precondition.holds(version) {
                return Ok(Err(LedgerError::Conflict { index }));
            }
        }
        batch.extend(commit.mutations.iter().map(|mutation| row_of(mutation, version)));
        Ok(Ok(version))
    }

    fn write(&self, commits: &[Commit]) -> Result<Vec<Outcome>, Refusal> {
        let mut log = lock(&self.shared.log);
        let (mut sequence, _) = self.shared.recent.sequence();
        let (mut batch, mut frame) = (Rows::new(), Frame::new(log.id(), sequence + 1));
        let mut outcomes = Vec::with_capacity(commits.len());
        for commit in commits {
            let outcome = self.take_in(commit, &mut batch, sequence + 1)?;
            if outcome.is_ok() {
                frame.push(commit);
                sequence += 1;
            }
            outcomes.push(outcome);
        }
        if !outcomes.iter().any(Outcome::is_ok) {
            return Ok(outcomes);
        }
        self.append(&mut log, frame, batch, sequence)?;
        Ok(outcomes)
    }

    fn append(&self, log: &mut Log, frame: Frame, batch: Rows, sequence: u64) -> Result<(), Refusal> {
        let shared = &self.shared;
        let to_follow = frame.batch();
        if !log.fits(&frame) {
            shared.wait_until_settled()?;
            shared.switch(log);
        }
        if frame.len() > HALF_BYTES {
            shared.wait_until_settled()?;
            return self.append_to_tree(batch, sequence, to_follow);
        }
        let gone = self.leave_nothing(&batch)?;
        if let Err(error) = log.append(frame) {
            *lock(&shared.doubtful) = Some(Doubtful {
                rows: batch,
                last: sequence,
                to_follow,
            });
            return Err(Refusal::Unknown(format!("its log: {error}")));
        }
        shared.recent.commit(batch, &gone, sequence);
        to_follow.iter().for_each(|batch| shared.changes.push(batch));
        Ok(())
    }

    /// What the log cannot hold goes into the tree at once, after all before it, and in one transaction.
    fn append_to_tree(&self, batch: Rows, sequence: u64, to_follow: Option<Batch>) -> Result<(), Refusal> {
        let shared = &self.shared;
        let needed = batch.iter().fold(Needed::on_tree(shared.tree.bytes()), with_row);
        if needed.bytes() > shared.room() {
            return Err(Refusal::Unwritten(LedgerError::Full));
        }
        let applied = shared.tree.apply(&batch, Some(sequence));
        match applied.and_then(|()| shared.tree.table()) {
            Ok(table) => {
                shared.recent.adopt(batch, sequence, table);
                to_follow.iter().for_each(|batch| shared.changes.push(batch));
            }
            Err(failure) => {
                lock(&shared.turn).broken = true;
                *lock(&shared.doubtful) = Some(Doubtful {
                    rows: batch,
                    last: sequence,
                    to_follow,
                });
                return Err(Refusal::Unknown(failure.to_string()));
            }
        }
        Ok(())
    }

    /// The keys among those that a batch removes that the tree has not, nor will get.
    fn leave_nothing(&self, batch: &Rows) -> Result<Vec<Bytes>, Failure> {
        self.shared.reading(|| {
            let Some((keys, tree, number)) = self.shared.recent.removed_soon(batch) else {
                return (0, Err(closed()));
            };
            let absent = |key: &Bytes| match tree.has(key) {
                Err(Failure::Unreadable(_)) => Ok(false), // A mark over it costs little.
                has => has.map(|has| !has),
            };
            let gone = keys.into_iter().filter_map(|key| match absent(&key) {
                Ok(true) => Some(Ok(key)),
                Ok(false) => None,
                Err(failure) => Some(Err(failure)),
            });
            (number, gone.collect())
        })
    }
}

/// What is needed with this row, too.
pub(super) fn with_row(needed: Needed, (key, entry): (&Bytes, &Entry)) -> Needed {
    needed.with_row(key.len() + entry.as_ref().map_or(0, |row| row.value.len()))
}

fn closed() -> Failure {
    Failure::Damaged("the ledger is closed".into())
}

fn row_of(mutation: &Mutation, version: u64) -> (Bytes, Entry) {
    match mutation {
        Mutation::Put { key, value } => {
            let value = value.clone();
            (key.clone(), Some(Versioned { version, value }))
        }
        Mutation::Delete { key } => (key.clone(), None),
    }
}

/// The rows that logged commits leave.
pub fn rows_of(commits: Vec<(u64, Vec<Mutation>)>) -> Rows {
    let rows = |(version, mutations): (u64, Vec<Mutation>)| {
        mutations
            .into_iter()
            .map(move |mutation| row_of(&mutation, version))
    };
    commits.into_iter().flat_map(rows).collect()
}

impl Apply for Writer {
    fn apply(&mut self, batch: &[Commit]) -> Result<Vec<Outcome>, String> {
        match self.write(batch) {
            Ok(outcomes) => Ok(outcomes),
            Err(Refusal::Unwritten(why)) => Ok(vec![Err(why); batch.len()]),
            Err(Refusal::Unknown(what)) => {
                let what = format!("writing the ledger: {what}");
                self.shared.latch.set(what.clone());
                self.shared.changed.notify_all(); // The settler takes it up again.
                Err(what)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::redb::faulty::{Disk, Paper, Plot};
    use crate::ledger::redb::settler::settle_once;
    use crate::ledger::store::{Direction, KeyRange};

    /// A ledger that settles when told.
    struct Ledger(Writer);

    impl Ledger {
        fn new() -> Ledger {
            let tree = Tree::of(Box::new(Disk::initialised(&[1; 16]))).unwrap();
            let recent = Recent::new(tree.table().unwrap(), 0, 1 << 20);
            let log = Log::new([1; 16], Box::new(Paper::new()));
            let (changes, reserve) = (Changes::new(Vec::new()), Plot::new(1 << 30).reserve());
            let shared = Shared::new(recent, tree, log, Latch::default(), Arc::new(changes), reserve);
            Ledger(Writer::new(Arc::new(shared)))
        }

        fn commit(&mut self, mutations: Vec<Mutation>) {
            let commit = Commit {
                preconditions: Vec::new(),
                mutations,
            };
            assert!(self.0.apply(&[commit]).unwrap()[0].is_ok());
        }

        fn put(&mut self, key: &'static str) {
            let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(b"v"));
            self.commit(vec![Mutation::Put { key, value }]);
        }

        fn delete(&mut self, key: &'static str) {
            let key = Bytes::from_static(key.as_bytes());
            self.commit(vec![Mutation::Delete { key }]);
        }

        fn switch(&self) {
            let shared = &self.0.shared;
            shared.switch(&mut lock(&shared.log));
        }

        fn settle(&self) {
            settle_once(&self.0.shared, 0).unwrap();
            lock(&self.0.shared.turn).settling = false;
        }

        /// Rows and marks over the tree.
        fn recent(&self) -> Vec<(Bytes, bool)> {
            let (start, end) = (Bytes::new(), None);
            let range = KeyRange { start, end };
            let found = self.0.shared.recent.range(&range, 100, Direction::Forward);
            let entries = found.unwrap().0.into_iter();
            entries.map(|(key, entry)| (key, entry.is_some())).collect()
        }

        /// What a reader finds.
        fn has(&self, key: &'static str) -> bool {
            let key = Bytes::from_static(key.as_bytes());
            let found = self.0.version_of(&key, &Rows::new());
            found.unwrap().is_some()
        }
    }

    fn mark(key: &'static str) -> (Bytes, bool) {
        (Bytes::from_static(key.as_bytes()), false)
    }

    #[test]
    fn a_row_that_is_put_and_soon_removed_leaves_nothing() {
        let mut ledger = Ledger::new();
        ledger.put("short");
        assert!(ledger.has("short"));
        ledger.delete("short");
        assert!(!ledger.has("short"));
        assert_eq!(ledger.recent(), []);
        // The log is emptied all the same.
        let shared = ledger.0.shared.clone();
        assert_eq!(shared.recent.sequence(), (2, true));
        ledger.switch();
        ledger.settle();
        assert_eq!(shared.recent.sequence(), (2, false));
        assert_eq!(shared.tree.describe().unwrap().sequence, 2);
    }

    #[test]
    fn a_removed_row_leaves_a_mark_while_the_tree_has_it() {
        let mut ledger = Ledger::new();
        ledger.put("old");
        ledger.switch();
        ledger.settle();
        ledger.delete("old");
        assert_eq!(ledger.recent(), [mark("old")]);
        // Put once more, it is young again, and the tree has it still.
        ledger.put("old");
        ledger.delete("old");
        assert_eq!(ledger.recent(), [mark("old")]);
        assert!(!ledger.has("old"));
        ledger.switch();
        ledger.settle();
        assert!(!ledger.has("old") && ledger.recent().is_empty());
    }

    #[test]
    fn a_removed_row_leaves_a_mark_while_it_is_on_its_way_to_the_tree() {
        let mut ledger = Ledger::new();
        ledger.put("settling");
        ledger.switch();
        ledger.put("settling");
        ledger.delete("settling");
        assert_eq!(ledger.recent(), [mark("settling")]);
        ledger.settle();
        assert!(!ledger.has("settling"));
        ledger.switch();
        ledger.settle();
        assert!(!ledger.has("settling") && ledger.recent().is_empty());
    }
}
