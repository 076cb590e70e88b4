//! A ledger whose commits are answered when they are in the archive: what is acknowledged then survives the gateway's machine.
//!
//! Only commits are another thing here: what else an engine answers is passed on, its room and its damage too.

use super::state::Archive;
use crate::ledger::changes::Changes;
use crate::ledger::damage::Damage;
use crate::ledger::store::{
    BlocksChecked, Commit, Direction, EngineState, KeyRange, LedgerError, Mending, Row, Scanned, Store,
    Versioned,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// A commit that is not in the archive by then is answered as one whose outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub struct SyncStore {
    store: Arc<dyn Store>,
    archive: Arc<Archive>,
}

impl SyncStore {
    /// Over an engine that the archive follows.
    pub fn new(store: Arc<dyn Store>, archive: Arc<Archive>) -> SyncStore {
        SyncStore { store, archive }
    }
}

#[async_trait]
impl Store for SyncStore {
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError> {
        self.store.get(keys).await
    }

    async fn scan(
        &self,
        range: KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Row>, LedgerError> {
        self.store.scan(range, limit, direction).await
    }

    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError> {
        let version = self.store.commit(commit).await?;
        match tokio::time::timeout(PATIENCE, self.archive.shipped(version)).await {
            Ok(()) => Ok(version),
            Err(_) => Err(LedgerError::Unavailable {
                what: "the commit is in the ledger, and not in its archive yet".into(),
            }),
        }
    }

    async fn scan_beside(&self, range: KeyRange, limit: usize) -> Result<Scanned, LedgerError> {
        self.store.scan_beside(range, limit).await
    }

    async fn check_blocks(&self, from: u64, most: u64) -> Result<BlocksChecked, LedgerError> {
        self.store.check_blocks(from, most).await
    }

    async fn find_damage(&self) -> Result<Option<Box<dyn Mending>>, LedgerError> {
        self.store.find_damage().await
    }

    fn damage(&self) -> Option<Arc<Damage>> {
        self.store.damage()
    }

    fn state(&self) -> EngineState {
        self.store.state()
    }

    fn position(&self) -> u64 {
        self.store.position()
    }

    fn changes(&self) -> Option<Arc<Changes>> {
        self.store.changes()
    }
}
