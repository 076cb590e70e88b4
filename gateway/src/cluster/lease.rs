//! This gateway's lease and the blob ids it hands out under it.
//!
//! Every commit that names new data has the lease row as a precondition. Blob ids come from ranges that are rows
//! too, written before any shard with such an id can exist. So when a gateway dies, its lease is revoked and every
//! blob in its ranges that no row names will never be named under it: no clock, no guess. (`maintenance/orphans.rs` sweeps them.)
//! While the gateway lives, a range whose ids were all handed out is retired when each of them was named, or is garbage, or was never
//! written with: so what a crash leaves to sweep is the last few ranges, however many objects there are.
//!
//! Invariant: a range is retired only by its owner, under its lease, and not while an id of it may still be written or named: it is in
//! `Handed`, or `object/abandoned` has it. Whoever takes an id over from the one adds it to the other first, and who looks
//! for it looks in the same order.

use crate::error::Result;
use crate::ledger::model::{CounterRow, IdRangeRow, LeaseRow};
use crate::ledger::{CommitBuilder, Ledger, Typed, key};
use crate::object::abandoned::Abandoned;
use bytes::Bytes;
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use tokio::sync::Mutex;

/// Ids leased at a time. Leasing costs one commit, an unused id costs nothing.
pub const RANGE_IDS: u64 = 16_384;

/// A lease that is held.
pub struct Lease {
    ledger: Ledger,
    id: u64,
    version: u64,
    ids: Mutex<Range<u64>>,
    /// Ranges that were used up and not retired yet.
    full: std::sync::Mutex<Vec<Range<u64>>>,
    handed: Handed,
}

/// Ids that were handed out and that nobody is known to write with yet.
type Handed = Arc<std::sync::Mutex<HashSet<u64>>>;

/// A blob id that nobody ever used. Dropped when its blob is known to `object/abandoned`, or was not begun.
pub struct FreshId {
    /// The id.
    pub id: u64,
    handed: Handed,
}

impl Drop for FreshId {
    fn drop(&mut self) {
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        handed.remove(&self.id);
    }
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
            full: Default::default(),
            handed: Default::default(),
        })
    }

    /// None: of a gateway that commits nothing. No row has its id, so no commit under it applies.
    pub fn none(ledger: Ledger) -> Lease {
        Lease {
            ledger,
            id: 0,
            version: 0,
            ids: Mutex::new(0..0),
            full: Default::default(),
            handed: Default::default(),
        }
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
    pub async fn next_blob(&self) -> Result<FreshId> {
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
        let id = ids.start;
        ids.start += 1;
        let handed = self.handed.clone();
        handed.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        if ids.is_empty() {
            let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
            full.push(ids.end - RANGE_IDS..ids.end);
        }
        Ok(FreshId { id, handed })
    }

    /// Forgets the ranges whose ids are all settled: nobody is about to write or name one of them. Answers how many.
    pub async fn retire(&self, abandoned: &Abandoned) -> Result<usize> {
        let full = self.full.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if full.is_empty() {
            return Ok(0);
        }
        let unsettled = self.unsettled(abandoned);
        let is_settled = |range: &Range<u64>| unsettled.range(range.clone()).next().is_none();
        let settled: Vec<Range<u64>> = full.into_iter().filter(is_settled).collect();
        if settled.is_empty() {
            return Ok(0);
        }
        let commit = settled
            .iter()
            .fold(self.fence(CommitBuilder::new()), |commit, range| {
                commit.delete(key::id_range(self.id, range.start))
            });
        self.ledger.commit(commit.build()).await?;
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        full.retain(|range| !settled.contains(range));
        Ok(settled.len())
    }

    /// Ids that may still be written or named, in the order in which they go from place to place.
    fn unsettled(&self, abandoned: &Abandoned) -> BTreeSet<u64> {
        let handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut unsettled: BTreeSet<u64> = handed.into_iter().collect();
        abandoned.extend_unsettled(&mut unsettled);
        unsettled
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
    /// garbage row: its ranges then need no sweep, but for those with blobs of a commit whose outcome nobody told.
    pub async fn give_back(&self, abandoned: &Abandoned) -> Result<()> {
        let mut ranges: Vec<Bytes> = Vec::new();
        let unsettled = self.unsettled(abandoned);
        let each = |row_key: Bytes, range: Typed<IdRangeRow>| {
            let start = key::id_range_parts(&row_key).map_or(0, |(_, start)| start);
            if unsettled.range(start..range.row.end.max(start)).next().is_none() {
                ranges.push(row_key);
            }
        };
        self.ledger.for_each(key::id_ranges(self.id), each).await?;
        let mut commit = self.fence(CommitBuilder::new()).delete(key::lease(self.id));
        for range in ranges {
            commit = commit.delete(range);
        }
        self.ledger.commit(commit.build()).await?;
        Ok(())
    }
}
