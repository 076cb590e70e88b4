//! This gateway's lease and the blob ids it hands out under it.
//!
//! Every commit that names new data has the lease row as a precondition. Blob ids come from ranges that are rows
//! too, written before any shard with such an id can exist. So when a gateway dies, its lease is revoked and every
//! blob in its ranges that no row names is garbage: no clock, no guess. (`maintenance/orphans.rs` sweeps them.)

use crate::error::Result;
use crate::ledger::model::{CounterRow, IdRangeRow, LeaseRow};
use crate::ledger::{CommitBuilder, Ledger, Typed, key};
use bytes::Bytes;
use std::collections::BTreeSet;
use tokio::sync::Mutex;

/// Ids leased at a time. Leasing costs one commit, an unused id costs nothing.
const RANGE_IDS: u64 = 16_384;

/// A lease that is held.
pub struct Lease {
    ledger: Ledger,
    id: u64,
    version: u64,
    ids: Mutex<std::ops::Range<u64>>,
}

impl Lease {
    /// Takes a lease, after revoking every other one: the embedded ledger belongs to one gateway at a time (the
    /// file is locked), so whoever held a lease before is dead.
    pub async fn take_over(ledger: Ledger, gateway: &str) -> Result<Lease> {
        let mut revoked = CommitBuilder::new();
        for (row_key, row) in ledger.scan::<LeaseRow>(key::table(b'l'), 1_000).await? {
            revoked = revoked.expect(&row_key, Some(row.version)).delete(row_key);
        }
        let id = ledger.take_ids(key::Counter::Lease, 1).await?;
        let row_key = key::lease(id);
        let commit = revoked.expect(&row_key, None).put(
            row_key.clone(),
            &LeaseRow {
                gateway: gateway.into(),
            },
        );
        let version = ledger.commit(commit.build()).await?;
        Ok(Lease {
            ledger,
            id,
            version,
            ids: Mutex::new(0..0),
        })
    }

    /// The precondition that fences a gateway whose lease is gone.
    pub fn fence(&self, commit: CommitBuilder) -> CommitBuilder {
        commit.expect(&key::lease(self.id), Some(self.version))
    }

    /// The lease's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// A blob id that nobody ever used.
    pub async fn next_blob(&self) -> Result<u64> {
        let mut ids = self.ids.lock().await;
        if ids.is_empty() {
            let start = self.ledger.take_ids(key::Counter::Blob, RANGE_IDS).await?;
            let end = start + RANGE_IDS;
            let range_key = key::id_range(self.id, start);
            let commit = self.fence(CommitBuilder::new()).put(
                range_key,
                &IdRangeRow {
                    end,
                    swept: Vec::new(),
                },
            );
            self.ledger.commit(commit.build()).await?;
            *ids = start..end;
        }
        let next = ids.start;
        ids.start += 1;
        Ok(next)
    }

    /// Takes out of these ids, of blobs that disks were seen to hold, those that another gateway may still name: ids in the
    /// ranges of leases that stand. What no range has was named, or made garbage, before its lease ended. Answers,
    /// apart, those that were never handed out: the ledger is older than the disks, and will hand them out.
    pub async fn retain_ended(&self, blobs: &mut BTreeSet<u64>) -> Result<BTreeSet<u64>> {
        for (row_key, _) in self.ledger.scan::<LeaseRow>(key::table(b'l'), 1_000).await? {
            let Some(other) = key::single_number(&row_key).filter(|id| *id != self.id) else {
                continue;
            };
            let each = |row_key: Bytes, range: Typed<IdRangeRow>| {
                let start = key::id_range_parts(&row_key).map_or(0, |(_, start)| start);
                blobs.retain(|blob| !(start..range.row.end).contains(blob));
            };
            self.ledger.for_each(key::id_ranges(other), each).await?;
        }
        let next = self
            .ledger
            .get::<CounterRow>(key::counter(key::Counter::Blob))
            .await?;
        Ok(blobs.split_off(&next.map_or(0, |next| next.row.next)))
    }

    /// Gives the lease back when nothing written under it is in flight any more and every abandoned blob is a
    /// garbage row: its ranges then need no sweep.
    pub async fn give_back(&self) -> Result<()> {
        let mut commit = self.fence(CommitBuilder::new()).delete(key::lease(self.id));
        let mut ranges: Vec<Bytes> = Vec::new();
        let all = self.ledger.scan::<IdRangeRow>(key::table(b'r'), 10_000).await?;
        for (row_key, _) in all {
            if key::id_range_parts(&row_key).is_some_and(|(lease, _)| lease == self.id) {
                ranges.push(row_key);
            }
        }
        for range in ranges {
            commit = commit.delete(range);
        }
        self.ledger.commit(commit.build()).await?;
        Ok(())
    }
}
