//! The ledger as one gateway reaches it: its rows outlive the gateway, and the gateway may die in the middle of a commit.

use crate::network::Life;
use async_trait::async_trait;
use bytes::Bytes;
use gateway::ledger::memory::MemoryStore;
use gateway::ledger::store::{Commit, Direction, KeyRange, LedgerError, Row, Store, Versioned};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// When a gateway dies at a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    Before,
    After,
}

pub struct LivingStore {
    pub rows: Arc<MemoryStore>,
    pub life: Arc<Life>,
    rng: Mutex<StdRng>,
    doom: Mutex<Option<(u32, Doom)>>,
}

impl LivingStore {
    pub fn new(rows: Arc<MemoryStore>, life: Arc<Life>, seed: u64) -> LivingStore {
        LivingStore {
            rows,
            life,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            doom: Mutex::default(),
        }
    }

    /// The gateway dies at the commit after so many.
    pub fn die_at(&self, after: u32, doom: Doom) {
        *self.doom.lock().unwrap_or_else(|e| e.into_inner()) = Some((after, doom));
    }

    async fn turn(&self, most_us: u64) {
        self.life.go_on().await;
        let us = self
            .rng
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .random_range(20..most_us);
        tokio::time::sleep(Duration::from_micros(us)).await;
        self.life.go_on().await;
    }

    fn meets_doom(&self) -> Option<Doom> {
        let mut doom = self.doom.lock().unwrap_or_else(|e| e.into_inner());
        match &mut *doom {
            Some((0, when)) => Some(*when),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        }
    }
}

#[async_trait]
impl Store for LivingStore {
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError> {
        self.turn(500).await;
        self.rows.get(keys).await
    }

    async fn scan(
        &self,
        range: KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Row>, LedgerError> {
        self.turn(500).await;
        self.rows.scan(range, limit, direction).await
    }

    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError> {
        self.turn(3_000).await;
        let doom = self.meets_doom();
        if doom == Some(Doom::Before) {
            self.life.end();
            self.life.go_on().await;
        }
        let committed = self.rows.commit(commit).await;
        if doom == Some(Doom::After) {
            self.life.end();
        }
        // The answer has a way to go, too.
        self.turn(500).await;
        committed
    }
}
