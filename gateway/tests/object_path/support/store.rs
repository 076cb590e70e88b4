//! The memory engine with a gate: a test can stop one commit before or after it applies, and let it go on later.

use async_trait::async_trait;
use bytes::Bytes;
use gateway::ledger::memory::{CommitFault, MemoryStore};
use gateway::ledger::model::VolumeRow;
use gateway::ledger::store::{Commit, Direction, KeyRange, LedgerError, Mutation, Row, Store, Versioned};
use prost::Message;
use std::sync::Mutex;
use tokio::sync::oneshot;

/// When a commit is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

type Which = Box<dyn Fn(&Commit) -> bool + Send>;

struct Gate {
    which: Which,
    what: What,
}

enum What {
    Hold {
        when: When,
        arrived: oneshot::Sender<()>,
        go_on: oneshot::Receiver<()>,
    },
    Fail(CommitFault),
}

/// A commit that is, or will be, stopped.
pub struct Held {
    arrived: oneshot::Receiver<()>,
    go_on: oneshot::Sender<()>,
}

impl Held {
    /// Returns when the commit has been stopped.
    pub async fn arrived(&mut self) {
        (&mut self.arrived).await.expect("the commit comes");
    }

    /// Lets it go on.
    pub fn go_on(self) {
        let _ = self.go_on.send(()); // The request may be gone.
    }
}

/// See the module.
#[derive(Default)]
pub struct GatedStore {
    pub rows: MemoryStore,
    gate: Mutex<Option<Gate>>,
}

impl GatedStore {
    /// Of these rows.
    pub fn of(rows: MemoryStore) -> GatedStore {
        GatedStore {
            rows,
            ..GatedStore::default()
        }
    }

    /// Stops the next commit that `which` names.
    pub fn hold(&self, when: When, which: impl Fn(&Commit) -> bool + Send + 'static) -> Held {
        let (arrive, arrived) = oneshot::channel();
        let (go_on, wait) = oneshot::channel();
        self.set(Gate {
            which: Box::new(which),
            what: What::Hold {
                when,
                arrived: arrive,
                go_on: wait,
            },
        });
        Held { arrived, go_on }
    }

    /// Makes the engine fail at the next commit that `which` names.
    pub fn fail(&self, fault: CommitFault, which: impl Fn(&Commit) -> bool + Send + 'static) {
        self.set(Gate {
            which: Box::new(which),
            what: What::Fail(fault),
        });
    }

    fn set(&self, gate: Gate) {
        *self.gate.lock().unwrap() = Some(gate);
    }

    fn met(&self, commit: &Commit) -> Option<What> {
        let mut gate = self.gate.lock().unwrap();
        gate.take_if(|g| (g.which)(commit)).map(|g| g.what)
    }
}

/// Commits that write a row of this table.
pub fn puts(table: u8) -> impl Fn(&Commit) -> bool + Send + 'static {
    move |commit| {
        commit
            .mutations
            .iter()
            .any(|m| matches!(m, Mutation::Put { key, .. } if key[0] == table))
    }
}

/// Commits that write such a row of a volume.
pub fn puts_volume(which: impl Fn(&VolumeRow) -> bool + Send + 'static) -> impl Fn(&Commit) -> bool + Send {
    move |commit| {
        commit.mutations.iter().any(|m| match m {
            Mutation::Put { key, value } if key[0] == b'v' => {
                which(&VolumeRow::decode(value.clone()).unwrap())
            }
            _ => false,
        })
    }
}

/// Commits that remove a row of this table.
pub fn deletes(table: u8) -> impl Fn(&Commit) -> bool + Send + 'static {
    move |commit| {
        commit
            .mutations
            .iter()
            .any(|m| matches!(m, Mutation::Delete { key } if key[0] == table))
    }
}

#[async_trait]
impl Store for GatedStore {
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError> {
        tokio::task::yield_now().await;
        self.rows.get(keys).await
    }

    async fn scan(
        &self,
        range: KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Row>, LedgerError> {
        tokio::task::yield_now().await;
        self.rows.scan(range, limit, direction).await
    }

    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError> {
        tokio::task::yield_now().await;
        match self.met(&commit) {
            None => self.rows.commit(commit).await,
            Some(What::Fail(fault)) => {
                self.rows.fail_next_commit(fault);
                self.rows.commit(commit).await
            }
            Some(What::Hold { when, arrived, go_on }) => {
                let applied = match when {
                    When::Before => None,
                    When::After => Some(self.rows.commit(commit.clone()).await),
                };
                let _ = arrived.send(());
                let _ = go_on.await;
                match applied {
                    Some(applied) => applied,
                    None => self.rows.commit(commit).await,
                }
            }
        }
    }

    fn position(&self) -> u64 {
        self.rows.position()
    }
}
