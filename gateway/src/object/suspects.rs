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
use std::collections::{BTreeSet, HashMap, HashSet};
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
    is_unreadable: bool,
}

/// Blobs of which too many shards are gone or wrong for them to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// How many.
    pub blobs: usize,
    /// The volumes that they are in.
    pub volumes: BTreeSet<u64>,
    /// The first of them: its volume and its id.
    pub first: Option<(u64, u64)>,
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

    /// Repair could not do it now; `is_unreadable`: because the shards that are left do not make it up.
    pub fn put_off_repair(&self, key: &Bytes, why: &str, is_unreadable: bool) {
        let mut put_off = self.put_off();
        if put_off.len() >= REMEMBERED_MAX {
            put_off.clear();
        }
        let pause = put_off
            .get(key)
            .map_or(PAUSE_MIN, |last| (last.pause * 2).min(PAUSE_MAX));
        let why = why.to_owned();
        let until = Instant::now() + pause;
        let last = PutOff {
            pause,
            until,
            why,
            is_unreadable,
        };
        put_off.insert(key.clone(), last);
    }

    /// A disk is back that may have what was missing: what could not be read is tried again now.
    pub fn hurry(&self) {
        let now = Instant::now();
        let mut put_off = self.put_off();
        let unreadable = put_off.values_mut().filter(|last| last.is_unreadable);
        unreadable.for_each(|last| last.until = now);
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

    /// What can not be read, by what reads, the census and verifying found and repair has tried. What is mended is forgotten.
    pub fn unreadable(&self) -> Unreadable {
        let put_off = self.put_off();
        let unreadable = put_off.iter().filter(|(_, last)| last.is_unreadable);
        let blobs: BTreeSet<(u64, u64)> = unreadable
            .filter_map(|(row_key, _)| key::suspect_parts(row_key))
            .map(|(volume, blob, _, _)| (volume, blob))
            .collect();
        Unreadable {
            blobs: blobs.len(),
            volumes: blobs.iter().map(|(volume, _)| *volume).collect(),
            first: blobs.first().copied(),
        }
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
        if self.ledger.check_writable().is_err() {
            return Ok(()); // Who may change nothing repairs nothing.
        }
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
                suspects.put_off_repair(&shard, "a test", false);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((140..160).contains(&attempts), "{attempts} attempts in a day");
        assert_eq!(suspects.in_vain(), (1, Some("a test".into())));
        suspects.forget(&shard);
        assert!(suspects.is_due(&shard));
        assert_eq!(suspects.in_vain(), (0, None));
    }

    #[test]
    fn blobs_that_cannot_be_read_are_counted_once_and_until_they_can() {
        let suspects = Suspects::default();
        let shard = |volume, blob, index| key::suspect(volume, blob, 0, index);
        for index in 0..6 {
            suspects.put_off_repair(&shard(3, 17, index), "too few", true);
            suspects.put_off_repair(&shard(4, 18, index), "not written", false);
        }
        suspects.put_off_repair(&shard(3, 9, 0), "too few", true);
        let unreadable = suspects.unreadable();
        assert_eq!((unreadable.blobs, unreadable.first), (2, Some((3, 9))));
        assert_eq!(unreadable.volumes, BTreeSet::from([3]));
        assert!(!suspects.is_due(&shard(3, 9, 0)));
        suspects.hurry();
        assert!(suspects.is_due(&shard(3, 9, 0)) && !suspects.is_due(&shard(4, 18, 0)));
        (0..6).for_each(|index| suspects.forget(&shard(3, 17, index)));
        suspects.put_off_repair(&shard(3, 9, 0), "not written", false);
        assert_eq!(suspects.unreadable(), Unreadable::default());
    }
}
