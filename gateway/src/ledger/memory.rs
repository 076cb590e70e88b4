//! The engine for tests: a B-tree under a lock, with the exact semantics of `store.rs`, nothing durable, and
//! failures on request.
//!
//! Invariant: a failed commit latches, as a real engine does: everything after it is `Unavailable` until `reopen`.
//! Whether the failing commit took effect is the test's choice, because a caller must be right in both cases.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::bounds;
use super::store::{
    Commit, Direction, KeyRange, LedgerError, Mutation, Row, SCAN_LIMIT_MAX, Store, Versioned,
};

/// Rows in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

/// How an injected failure leaves the commit that meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitFault {
    /// Nothing of it is stored.
    Lost,
    /// All of it is stored, only the answer is lost.
    Applied,
}

#[derive(Debug, Default)]
struct State {
    rows: BTreeMap<Bytes, Versioned>,
    sequence: u64,
    fault: Option<CommitFault>,
    latched: bool,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next commit whose preconditions hold answers `Unavailable`, and the store latches.
    pub fn fail_next_commit(&self, fault: CommitFault) {
        self.lock().fault = Some(fault);
    }

    /// What opening a failed engine again does: the rows are there, and it answers.
    pub fn reopen(&self) {
        let mut state = self.lock();
        state.latched = false;
        state.fault = None;
    }

    /// A copy of all that is there, as a backup is one.
    pub fn copy(&self) -> MemoryStore {
        let state = self.lock();
        MemoryStore {
            state: Mutex::new(State {
                rows: state.rows.clone(),
                sequence: state.sequence,
                ..State::default()
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check_latch(&self) -> Result<(), LedgerError> {
        if self.latched {
            Err(unavailable("it failed before"))
        } else {
            Ok(())
        }
    }

    fn commit(&mut self, commit: Commit) -> Result<u64, LedgerError> {
        let version_of = |key: &Bytes| self.rows.get(key).map(|row| row.version);
        if let Some(index) = commit
            .preconditions
            .iter()
            .position(|p| !p.holds(version_of(p.key())))
        {
            return Err(LedgerError::Conflict { index });
        }
        let fault = self.fault.take();
        self.latched = fault.is_some();
        if fault != Some(CommitFault::Lost) {
            self.apply(commit.mutations);
        }
        match fault {
            None => Ok(self.sequence),
            Some(_) => Err(unavailable("an injected failure")),
        }
    }

    fn apply(&mut self, mutations: Vec<Mutation>) {
        self.sequence += 1;
        let version = self.sequence;
        for mutation in mutations {
            match mutation {
                Mutation::Put { key, value } => self.rows.insert(key, Versioned { version, value }),
                Mutation::Delete { key } => self.rows.remove(&key),
            };
        }
    }

    fn scan(&self, range: KeyRange, limit: usize, direction: Direction) -> Vec<Row> {
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return Vec::new();
        }
        let end = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.rows.range((Bound::Included(range.start), end));
        let row = |(key, versioned): (&Bytes, &Versioned)| Row {
            key: key.clone(),
            versioned: versioned.clone(),
        };
        match direction {
            Direction::Forward => rows.take(limit).map(row).collect(),
            Direction::Backward => rows.rev().take(limit).map(row).collect(),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError> {
        bounds::check_get(&keys)?;
        let state = self.lock();
        state.check_latch()?;
        Ok(keys.iter().map(|key| state.rows.get(key).cloned()).collect())
    }

    async fn scan(
        &self,
        range: KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Row>, LedgerError> {
        let state = self.lock();
        state.check_latch()?;
        Ok(state.scan(range, limit.min(SCAN_LIMIT_MAX), direction))
    }

    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError> {
        bounds::check_commit(&commit)?;
        let mut state = self.lock();
        state.check_latch()?;
        state.commit(commit)
    }

    fn position(&self) -> u64 {
        self.lock().sequence
    }
}

fn unavailable(what: &str) -> LedgerError {
    LedgerError::Unavailable {
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ledger::conformance;

    struct Memory;

    #[async_trait]
    impl conformance::Engine for Memory {
        async fn empty(&self) -> Arc<dyn Store> {
            Arc::new(MemoryStore::new())
        }

        async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
            store
        }
    }

    #[test]
    fn conforms() {
        conformance::run(&Memory);
    }

    fn put(key: &'static str) -> Commit {
        let mutation = Mutation::Put {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
        };
        Commit {
            preconditions: Vec::new(),
            mutations: vec![mutation],
        }
    }

    async fn has(store: &MemoryStore, key: &'static str) -> bool {
        store.get(vec![Bytes::from_static(key.as_bytes())]).await.unwrap()[0].is_some()
    }

    #[tokio::test]
    async fn an_injected_failure_latches_until_reopened() {
        for (fault, applied) in [(CommitFault::Lost, false), (CommitFault::Applied, true)] {
            let store = MemoryStore::new();
            store.commit(put("before")).await.unwrap();
            store.fail_next_commit(fault);
            assert!(matches!(
                store.commit(put("faulty")).await,
                Err(LedgerError::Unavailable { .. })
            ));
            assert!(matches!(
                store.get(Vec::new()).await,
                Err(LedgerError::Unavailable { .. })
            ));
            assert!(matches!(
                store.commit(put("after")).await,
                Err(LedgerError::Unavailable { .. })
            ));
            store.reopen();
            assert!(has(&store, "before").await);
            assert_eq!(has(&store, "faulty").await, applied);
            assert!(!has(&store, "after").await);
            store.commit(put("after")).await.unwrap();
            assert!(has(&store, "after").await);
        }
    }
}
