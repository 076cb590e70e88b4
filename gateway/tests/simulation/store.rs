//! The ledger as one gateway reaches it: a file that outlives the gateway and can be copied, and a gateway that may die in the middle
//! of a commit.
//!
//! Invariants: commits take effect in the order in which they came, and are in the file's log and with those who follow it before they are
//! answered. A copy has all commits up to one, and none after it.

use crate::network::Life;
use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use gateway::ledger::changes::{Batch, Changes};
use gateway::ledger::memory::MemoryStore;
use gateway::ledger::store::{Commit, Direction, KeyRange, LedgerError, Mutation, Row, Store, Versioned};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// When a gateway dies at a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    Before,
    After,
}

/// A ledger's file. Not more than one gateway that lives has it open.
pub struct LedgerFile {
    /// No other file has it.
    pub name: String,
    pub rows: Arc<MemoryStore>,
    log: Mutex<VecDeque<Batch>>,
    /// The log has so many commits at most; older ones are in the rows alone.
    log_commits: usize,
}

impl LedgerFile {
    /// An empty one.
    pub fn new(name: &str, log_commits: usize) -> Arc<LedgerFile> {
        Arc::new(LedgerFile {
            name: name.into(),
            rows: Arc::default(),
            log: Mutex::default(),
            log_commits,
        })
    }

    /// A copy as it is now, whoever has it open.
    pub fn copy(&self, name: String) -> Arc<LedgerFile> {
        Arc::new(LedgerFile {
            name,
            rows: Arc::new(self.rows.copy()),
            log: Mutex::new(self.lock().clone()),
            log_commits: self.log_commits,
        })
    }

    /// The version of its last commit.
    pub fn position(&self) -> u64 {
        self.rows.position()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Batch>> {
        self.log.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Commits, and answers what those who follow are to hear.
    async fn commit(&self, commit: Commit) -> Result<Batch, LedgerError> {
        let body = body_of(&commit.mutations);
        let first = self.rows.commit(commit).await?; // At once: nobody else commits meanwhile.
        let commits = 1;
        let batch = Batch { first, commits, body };
        let mut log = self.lock();
        log.push_back(batch.clone());
        while log.len() > self.log_commits {
            log.pop_front();
        }
        Ok(batch)
    }
}

/// A commit as the log of a ledger has it.
fn body_of(mutations: &[Mutation]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u32_le(mutations.len() as u32);
    for mutation in mutations {
        let (key, value) = match mutation {
            Mutation::Put { key, value } => (key, Some(value)),
            Mutation::Delete { key } => (key, None),
        };
        body.put_u32_le(key.len() as u32);
        body.put_u32_le(value.map_or(u32::MAX, |value| value.len() as u32));
        body.put_slice(key);
        body.put_slice(value.map_or(&[], |value| value));
    }
    body.freeze()
}

pub struct LivingStore {
    pub file: Arc<LedgerFile>,
    pub life: Arc<Life>,
    changes: Arc<Changes>,
    rng: Mutex<StdRng>,
    doom: Arc<Mutex<Option<(u32, Doom)>>>,
    /// Hears of it when the last commit that came is done.
    last: Mutex<Option<oneshot::Receiver<()>>>,
}

impl LivingStore {
    /// Opens a file.
    pub fn open(file: Arc<LedgerFile>, life: Arc<Life>, seed: u64) -> LivingStore {
        let logged = file.lock().iter().cloned().collect();
        LivingStore {
            file,
            life,
            changes: Arc::new(Changes::new(logged)),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            doom: Arc::default(),
            last: Mutex::default(),
        }
    }

    /// The version of the last commit.
    pub fn position_now(&self) -> u64 {
        self.file.position()
    }

    /// The gateway dies at the commit after so many.
    pub fn die_at(&self, after: u32, doom: Doom) {
        *self.doom.lock().unwrap_or_else(|e| e.into_inner()) = Some((after, doom));
    }

    fn delay(&self, most_us: u64) -> Duration {
        let mut rng = self.rng.lock().unwrap_or_else(|e| e.into_inner());
        Duration::from_micros(rng.random_range(20..most_us))
    }

    async fn turn(&self, most_us: u64) {
        self.life.go_on().await;
        tokio::time::sleep(self.delay(most_us)).await;
        self.life.go_on().await;
    }
}

fn meets_doom(doom: &Mutex<Option<(u32, Doom)>>) -> Option<Doom> {
    let mut doom = doom.lock().unwrap_or_else(|e| e.into_inner());
    match &mut *doom {
        Some((0, when)) => Some(*when),
        Some((left, _)) => {
            *left -= 1;
            None
        }
        None => None,
    }
}

#[async_trait]
impl Store for LivingStore {
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError> {
        self.turn(500).await;
        self.file.rows.get(keys).await
    }

    async fn scan(
        &self,
        range: KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Row>, LedgerError> {
        self.turn(500).await;
        self.file.rows.scan(range, limit, direction).await
    }

    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError> {
        self.life.go_on().await;
        let done_at = Instant::now() + self.delay(3_000);
        let (done, next) = oneshot::channel();
        let before = self.last.lock().unwrap_or_else(|e| e.into_inner()).replace(next);
        let (file, life, changes, doom) = (
            self.file.clone(),
            self.life.clone(),
            self.changes.clone(),
            self.doom.clone(),
        );
        // Whoever asks may go away, or look at other things for a while: an engine goes on with it.
        let committing = tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await; // Done.
            }
            tokio::time::sleep_until(done_at).await;
            life.go_on().await;
            let doom = meets_doom(&doom);
            if doom == Some(Doom::Before) {
                life.end();
                life.go_on().await;
            }
            let committed = file.commit(commit).await;
            if let Ok(batch) = &committed {
                changes.push(batch);
            }
            if doom == Some(Doom::After) {
                life.end();
            }
            drop(done);
            committed
        });
        let committed = committing.await.expect("a commit ends");
        // The answer has a way to go, too.
        self.turn(500).await;
        committed.map(|batch| batch.last())
    }

    fn position(&self) -> u64 {
        self.file.position()
    }

    fn changes(&self) -> Option<Arc<Changes>> {
        Some(self.changes.clone())
    }
}
