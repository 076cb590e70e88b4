//! Shards that are queued for repair: what puts them there, once each, and when repair tries again what it could not do.
//!
//! Invariant: a row of the queue goes only when its shard was read back right, or nothing needs it. A shard that cannot be
//! repaired is tried again for ever, and ever more seldom.

use super::Objects;
use super::shard_reader::StripeSource;
use crate::error::Result;
use crate::ledger::CommitBuilder;
use crate::ledger::key;
use crate::ledger::model::SuspectRow;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use storage_node::protocol::{NodeError, ShardKey};
use tokio::time::Instant;

/// Past this many shards all is forgotten: a commit or an attempt too many does no harm.
const REMEMBERED_MAX: usize = 65_536;
/// A repair that failed is tried again after this long,
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// then after twice as long each time, up to this.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// What this gateway knows of the queue.
#[derive(Default)]
pub struct Suspects {
    /// Shards that are in it, so that every further read of them costs no commit.
    queued: Mutex<HashSet<Bytes>>,
    put_off: Mutex<HashMap<Bytes, PutOff>>,
}

struct PutOff {
    pause: Duration,
    until: Instant,
    why: String,
}

impl Suspects {
    /// Whether this one was not queued yet.
    fn remember(&self, key: &Bytes) -> bool {
        let mut queued = self.queued();
        if queued.len() >= REMEMBERED_MAX {
            queued.clear();
        }
        queued.insert(key.clone())
    }

    /// Repair is done with it.
    pub fn forget(&self, key: &Bytes) {
        self.queued().remove(key);
        self.put_off().remove(key);
    }

    /// Repair could not do it now.
    pub fn put_off_repair(&self, key: &Bytes, why: &str) {
        let mut put_off = self.put_off();
        if put_off.len() >= REMEMBERED_MAX {
            put_off.clear();
        }
        let pause = put_off
            .get(key)
            .map_or(PAUSE_MIN, |last| (last.pause * 2).min(PAUSE_MAX));
        let why = why.to_owned();
        let until = Instant::now() + pause;
        put_off.insert(key.clone(), PutOff { pause, until, why });
    }

    /// Whether repair should try it now.
    pub fn is_due(&self, key: &Bytes) -> bool {
        self.put_off()
            .get(key)
            .is_none_or(|last| Instant::now() >= last.until)
    }

    /// How many shards repair has tried in vain, and why it failed with the one that it tried most often.
    pub fn in_vain(&self) -> (usize, Option<String>) {
        let put_off = self.put_off();
        let worst = put_off.values().max_by_key(|last| last.pause);
        (put_off.len(), worst.map(|last| last.why.clone()))
    }

    fn queued(&self) -> MutexGuard<'_, HashSet<Bytes>> {
        self.queued.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn put_off(&self) -> MutexGuard<'_, HashMap<Bytes, PutOff>> {
        self.put_off.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Objects {
    /// Queues a shard for repair, once.
    pub async fn suspect(&self, source: &StripeSource, index: u8, error: &NodeError) {
        let reason = error.to_string();
        let queued = self.queue_for_repair(source.volume.id, source.key, index, reason);
        if let Err(error) = queued.await {
            tracing::warn!(%error, "the shard could not be queued; the next read of it will try again");
        }
    }

    /// The same for whoever has a reason of its own.
    pub async fn queue_for_repair(
        &self,
        volume: u64,
        shard: ShardKey,
        index: u8,
        reason: String,
    ) -> Result<()> {
        let key = key::suspect(volume, shard.blob, shard.stripe, index);
        if !self.suspects.remember(&key) {
            return Ok(());
        }
        tracing::warn!(volume, blob = shard.blob, stripe = shard.stripe, index, error = %reason, "shard queued for repair");
        let row = SuspectRow { reason };
        let commit = self
            .lease
            .fence(CommitBuilder::new().put(key.clone(), &row))
            .build();
        if let Err(error) = self.ledger.commit(commit).await {
            self.suspects.forget(&key);
            return Err(error.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_repair_that_fails_is_tried_ever_more_seldom() {
        let suspects = Suspects::default();
        let shard = Bytes::from_static(b"shard");
        let mut attempts = 0;
        for _ in 0..24 * 60 * 60 {
            if suspects.is_due(&shard) {
                attempts += 1;
                suspects.put_off_repair(&shard, "a test");
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((140..160).contains(&attempts), "{attempts} attempts in a day");
        assert_eq!(suspects.in_vain(), (1, Some("a test".into())));
        suspects.forget(&shard);
        assert!(suspects.is_due(&shard));
        assert_eq!(suspects.in_vain(), (0, None));
    }
}
