//! The two threads that change the ledger: the writer appends commits to the log, and the settler brings them into the tree.
//!
//! Invariants:
//! - The log's lock is its writer's; the settler takes it only when nobody has it, to switch halves of a ledger at rest.
//! - Halves and recent rows are switched together, so what a half holds is what is being settled; and only when nothing else is.
//! - A failure of either, or a panic, latches. What is on disk is then unknown until the ledger is opened again.

use super::log::{Frame, HALF_BYTES, Log};
use super::recent::{Entry, Recent, Rows};
use super::tree::{self, Failure, Tree};
use crate::ledger::group_commit::{Apply, Latch, Outcome};
use crate::ledger::store::{Commit, LedgerError, Mutation, Versioned};
use bytes::Bytes;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A ledger that is at rest for so long is brought into the tree, and its log is empty.
const REST: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1_000 });

/// What writer, settler and readers share.
pub struct Shared {
    /// The rows over the tree.
    pub recent: Recent,
    /// The tree.
    pub tree: Tree,
    /// The first failure.
    pub latch: Latch,
    log: Mutex<Log>,
    turn: Mutex<Turn>,
    changed: Condvar,
}

#[derive(Default)]
struct Turn {
    settling: bool,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Of a tree and the log in front of it.
    pub fn new(recent: Recent, tree: Tree, log: Log, latch: Latch) -> Shared {
        Shared {
            recent,
            tree,
            latch,
            log: Mutex::new(log),
            turn: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Hands what is active to the settler, and goes on in the other half. Nothing must be settling.
    fn switch(&self, log: &mut Log) {
        self.recent.switch();
        log.switch();
        lock(&self.turn).settling = true;
        self.changed.notify_all();
    }

    /// Waits until nothing is being settled.
    fn wait_until_settled(&self) -> Result<(), String> {
        let mut turn = lock(&self.turn);
        while turn.settling {
            turn = self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        self.latch.check().map_err(|error| error.to_string())
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
        let found = self
            .shared
            .recent
            .find(std::slice::from_ref(key))
            .ok_or_else(closed)?;
        if let [Some(entry)] = &found.entries[..] {
            return Ok(version(entry));
        }
        let row = found.tree.get(&key[..])?;
        let row = row.map(|row| tree::decode(key, row.value())).transpose()?;
        Ok(row.map(|row| row.version))
    }

    /// All of the commit joins the batch, or a conflict and nothing of it.
    fn take_in(&self, commit: &Commit, batch: &mut Rows, version: u64) -> Result<Outcome, Failure> {
        for (index, precondition) in commit.preconditions.iter().enumerate() {
            if !precondition.holds(self.version_of(precondition.key(), batch)?) {
                return Ok(Err(LedgerError::Conflict { index }));
            }
        }
        batch.extend(commit.mutations.iter().map(|mutation| row_of(mutation, version)));
        Ok(Ok(version))
    }

    fn write(&self, commits: &[Commit]) -> Result<Vec<Outcome>, Failure> {
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

    fn append(&self, log: &mut Log, frame: Frame, batch: Rows, sequence: u64) -> Result<(), Failure> {
        let shared = &self.shared;
        let settled = || shared.wait_until_settled().map_err(Failure::Damaged);
        if !log.fits(&frame) {
            settled()?;
            shared.switch(log);
        }
        if frame.len() > HALF_BYTES {
            // It goes into the tree at once, after all before it.
            settled()?;
            shared.tree.apply(&batch, sequence)?;
            shared.recent.adopt(batch, sequence, shared.tree.table()?);
            return Ok(());
        }
        let gone = self.leave_nothing(&batch)?;
        log.append(frame)
            .map_err(|error| Failure::Damaged(format!("its log: {error}")))?;
        shared.recent.commit(batch, &gone, sequence);
        Ok(())
    }

    /// The keys among those that a batch removes that the tree has not, nor will get.
    fn leave_nothing(&self, batch: &Rows) -> Result<Vec<Bytes>, Failure> {
        let (keys, tree) = self.shared.recent.removed_soon(batch).ok_or_else(closed)?;
        let mut gone = Vec::new();
        for key in keys {
            if tree.get(&key[..])?.is_none() {
                gone.push(key);
            }
        }
        Ok(gone)
    }
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
        self.write(batch)
            .map_err(|failure| format!("writing the ledger: {failure}"))
    }
}

/// The thread that brings commits into the tree.
#[derive(Debug)]
pub struct Settler {
    thread: Option<JoinHandle<()>>,
}

impl Settler {
    /// Starts it.
    pub fn start(shared: Arc<Shared>) -> std::io::Result<Settler> {
        let settle = move || {
            let _latching = LatchOnPanic(&shared);
            settle(&shared);
        };
        let thread = std::thread::Builder::new()
            .name("ledger-settler".into())
            .spawn(settle)?;
        Ok(Settler { thread: Some(thread) })
    }

    /// Brings the rest into the tree and ends. The writer must have ended. Blocks.
    pub fn close(&mut self, shared: &Shared) {
        lock(&shared.turn).closed = true;
        shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _joined = thread.join(); // A panic was latched.
        }
    }
}

/// Nobody may wait for a settler that is gone.
struct LatchOnPanic<'a>(&'a Shared);

impl Drop for LatchOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.latch.set("the ledger's settler thread panicked".into());
        }
        lock(&self.0.turn).settling = false;
        self.0.changed.notify_all();
    }
}

fn settle(shared: &Shared) {
    let mut seen = 0;
    loop {
        let (settling, closed) = {
            let turn = lock(&shared.turn);
            let waiting = |turn: &mut Turn| !turn.settling && !turn.closed;
            let (turn, _) = shared
                .changed
                .wait_timeout_while(turn, REST, waiting)
                .unwrap_or_else(PoisonError::into_inner);
            (turn.settling, turn.closed)
        };
        if settling {
            if let Err(failure) = settle_once(shared) {
                shared.latch.set(format!("writing the ledger: {failure}"));
                return;
            }
            lock(&shared.turn).settling = false;
            shared.changed.notify_all();
            continue;
        }
        if shared.latch.check().is_err() {
            return;
        }
        let (sequence, is_behind) = shared.recent.sequence();
        if is_behind && (closed || sequence == seen) {
            if let Ok(mut log) = shared.log.try_lock() {
                shared.switch(&mut log);
            }
            continue;
        }
        seen = sequence;
        if closed {
            return finish(shared, sequence);
        }
    }
}

fn settle_once(shared: &Shared) -> Result<(), Failure> {
    if let Some(settling) = shared.recent.settling() {
        shared.tree.apply(&settling.rows, settling.sequence)?;
        shared.recent.settled(shared.tree.table()?);
    }
    Ok(())
}

/// Says in the tree that it has everything. If that fails, the next start reads the log for nothing.
fn finish(shared: &Shared, sequence: u64) {
    let id = *lock(&shared.log).id();
    if let Err(error) = shared.tree.apply_and_mark(&Rows::new(), sequence, &id, false) {
        tracing::warn!(%error, "the ledger was not closed cleanly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::redb::log::Medium;
    use crate::ledger::store::{Direction, KeyRange};

    #[derive(Debug)]
    struct NoMedium;

    impl Medium for NoMedium {
        fn write(&mut self, _at: u64, _bytes: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A ledger that settles when told.
    struct Ledger(Writer);

    impl Ledger {
        fn new() -> Ledger {
            let backend = ::redb::backends::InMemoryBackend::new();
            let database = ::redb::Builder::new().create_with_backend(backend).unwrap();
            tree::initialise(&database, &[1; 16]).unwrap();
            let tree = Tree::of(database);
            let recent = Recent::new(tree.table().unwrap(), 0, 1 << 20);
            let log = Log::new([1; 16], Box::new(NoMedium));
            let shared = Shared::new(recent, tree, log, Latch::default());
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
            settle_once(&self.0.shared).unwrap();
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
