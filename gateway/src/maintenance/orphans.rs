//! Finds what a gateway that died left on disks: shards of blobs in its id ranges that no row names. They are set aside
//! (`unnamed`). And retires the ranges of the gateway that lives, which leave nothing to find.
//!
//! A dead gateway's lease is revoked, so nothing can name them any more. Every disk is swept, once for all ranges that it was not swept
//! of yet, several disks at once; those that are away when they come back. A range is forgotten when all disks have been.
//! (`cluster/lease.rs` says why this needs no clock.)
//!
//! Invariant: nothing is deleted here, and what was found is a row before the range that it was found by is forgotten.
//! Invariant: units of volumes that the ledger does not have are left alone, and so are those of the system.
//! Invariant: while there is a hold nothing is looked for: what rows lack then says nothing.

use super::unnamed::aside::{Finding, HeldBlobs, take_in, whole_blobs};
use super::worker::{Step, Worker};
use crate::cluster::disks::{Disk, Health};
use crate::error::{Error, Result};
use crate::ledger::model::{IdRangeRow, LeaseRow, UnnamedWhy, VolumeRow};
use crate::ledger::{CommitBuilder, Typed, key};
use crate::object::Objects;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::{INVENTORY_LIMIT_MAX, StorageClient};
use storage_node::protocol::{DiskId, ShardKey, UnitAddress};

const DEADLINE: Duration = Duration::from_secs(10);
/// So many disks are swept at once.
const DISKS_AT_ONCE: usize = 8;
/// So many ranges are looked for in one step.
const RANGES_MAX: usize = 100_000;
/// So many rows of ranges are changed in one commit.
const COMMIT_MAX: usize = 1_000;

/// See the module.
pub struct Orphans {
    objects: Arc<Objects>,
}

/// A range of a gateway that died.
struct Orphaned {
    row_key: Bytes,
    start: u64,
    found: Typed<IdRangeRow>,
}

impl Orphaned {
    fn is_swept(&self, disk: DiskId) -> bool {
        let id = disk.0.to_be_bytes();
        self.found.row.swept.iter().any(|swept| swept[..] == id)
    }
}

impl Orphans {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> Orphans {
        Orphans { objects }
    }

    /// The ranges under leases that are gone.
    async fn orphaned(&self) -> Result<Vec<Orphaned>> {
        let ledger = &self.objects.ledger;
        let mut ranges = Vec::new();
        let each = |row_key: Bytes, found: Typed<IdRangeRow>| {
            let Some((lease, start)) = key::id_range_parts(&row_key) else {
                return;
            };
            if ranges.len() < RANGES_MAX {
                let range = Orphaned {
                    row_key,
                    start,
                    found,
                };
                ranges.push((lease, range));
            }
        };
        ledger.for_each(key::table(b'r'), each).await?;
        let leases: BTreeSet<u64> = ranges.iter().map(|(lease, _)| *lease).collect();
        let mut living = HashSet::new();
        for lease in leases {
            if ledger.get::<LeaseRow>(key::lease(lease)).await?.is_some() {
                living.insert(lease);
            }
        }
        let dead = ranges.into_iter().filter(|(lease, _)| !living.contains(lease));
        Ok(dead.map(|(_, range)| range).collect())
    }

    /// Sets aside what a disk has of these ranges and nothing names.
    async fn sweep(&self, disk: &Disk, client: &Arc<dyn StorageClient>, ranges: &[Range<u64>]) -> Result<()> {
        let failed = |e| Error::Internal(format!("sweeping {}: {e}", disk.label));
        let row = self.objects.scrub_row().await?;
        let units = client.units(disk.id, disk.incarnation, DEADLINE).await;
        for info in units.map_err(failed)? {
            let volume = info.unit.volume;
            if info.shards == 0 || info.unit.is_system() {
                continue;
            }
            let known = self.objects.ledger.get::<VolumeRow>(key::volume(volume)).await?;
            if known.is_none() {
                continue; // A census counts it as astray.
            }
            let address = UnitAddress {
                disk: disk.id,
                incarnation: disk.incarnation,
                unit: info.unit,
                epoch: info.epoch,
                ledger: disk.ledger,
            };
            let finding = Finding {
                volume,
                index: info.unit.index,
                why: UnnamedWhy::DeadLease,
                cycle: row.now.or(row.last).map_or(0, |census| census.cycle),
                counts: false,
            };
            self.sweep_unit(client, &address, ranges, &finding).await?;
        }
        Ok(())
    }

    /// Goes through a unit's inventory once, past what is in none of the ranges, which are in order.
    async fn sweep_unit(
        &self,
        client: &Arc<dyn StorageClient>,
        unit: &UnitAddress,
        ranges: &[Range<u64>],
        finding: &Finding,
    ) -> Result<()> {
        let mut from = ranges.first().map(|range| range.start);
        while let Some(blob) = from {
            let after = blob.checked_sub(1).map(|blob| ShardKey {
                blob,
                stripe: u32::MAX,
            });
            let page = client.inventory(unit, after, INVENTORY_LIMIT_MAX, DEADLINE).await;
            let mut page = page.map_err(|e| Error::Internal(format!("inventory: {e}")))?;
            let is_full = page.len() >= INVENTORY_LIMIT_MAX;
            if is_full {
                whole_blobs(&mut page);
            }
            let mut found = HeldBlobs::new();
            let is_in_range = |blob: u64| range_from(ranges, blob).is_some_and(|range| range.contains(&blob));
            page.iter()
                .filter(|entry| is_in_range(entry.key.blob))
                .for_each(|entry| take_in(&mut found, entry));
            self.objects
                .retain_without_rows(finding.volume, &mut found)
                .await?;
            let aside = self.objects.set_aside(finding, &found).await?;
            if aside.unlisted > 0 {
                return Err(Error::Internal(
                    "not everything could be set aside: there is too much, or a reason to delete nothing"
                        .into(),
                ));
            }
            self.objects.metrics.orphan_blobs.inc_by(aside.new);
            let last = page.last().filter(|_| is_full).map(|entry| entry.key.blob);
            from = last.and_then(|last| {
                let next = last.checked_add(1)?;
                range_from(ranges, next).map(|range| range.start.max(next))
            });
        }
        Ok(())
    }

    /// Sweeps a disk of the ranges that it was not swept of yet, if it can be. Whether it needs none any more.
    async fn sweep_disk(&self, disk: &Disk, ranges: &[Orphaned]) -> Result<bool> {
        let left = ranges.iter().filter(|range| !range.is_swept(disk.id));
        let mut left: Vec<Range<u64>> = left.map(|range| range.start..range.found.row.end).collect();
        left.sort_unstable_by_key(|range| range.start);
        if left.is_empty() {
            return Ok(true);
        }
        match (&disk.client, &disk.health) {
            (Some(client), Health::Online) => self.sweep(disk, client, &left).await.map(|()| true),
            _ => Ok(false),
        }
    }

    /// Notes of ranges which disks were swept of them, and forgets those of which all were.
    async fn note_swept(&self, ranges: &mut [Orphaned], swept: &[DiskId], all: &[Arc<Disk>]) -> Result<()> {
        for ranges in ranges.chunks_mut(COMMIT_MAX) {
            let (mut commit, mut changes) = (CommitBuilder::new(), false);
            for range in ranges {
                let new: Vec<DiskId> = swept.iter().copied().filter(|id| !range.is_swept(*id)).collect();
                let row = &mut range.found.row;
                row.swept
                    .extend(new.iter().map(|id| Bytes::copy_from_slice(&id.0.to_be_bytes())));
                let is_over = all.iter().all(|disk| range.is_swept(disk.id));
                if !is_over && new.is_empty() {
                    continue;
                }
                let expected = commit.expect(&range.row_key, Some(range.found.version));
                commit = match is_over {
                    true => expected.delete(range.row_key.clone()),
                    false => expected.put(range.row_key.clone(), &range.found.row),
                };
                changes = true;
            }
            if changes {
                let commit = self.objects.lease.fence(commit).build();
                self.objects.ledger.commit(commit).await?;
            }
        }
        Ok(())
    }
}

/// The range that a blob is in, or else the next; of ranges in order that do not overlap.
fn range_from(ranges: &[Range<u64>], blob: u64) -> Option<&Range<u64>> {
    ranges.get(ranges.partition_point(|range| range.end <= blob))
}

#[async_trait::async_trait]
impl Worker for Orphans {
    fn name(&self) -> &'static str {
        "orphans"
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn step(&self) -> Result<Step> {
        let objects = &self.objects;
        objects.lease.retire(&objects.abandoned).await?;
        if !objects.holds.may_delete() {
            return Ok(Step::Idle);
        }
        let mut ranges = self.orphaned().await?;
        if ranges.is_empty() {
            return Ok(Step::Idle);
        }
        let all = objects.disks.all();
        let shared = &ranges[..];
        let outcomes: Vec<_> = stream::iter(all.iter().cloned().collect::<Vec<_>>())
            .map(|disk| async move { (disk.id, self.sweep_disk(&disk, shared).await) })
            .buffer_unordered(DISKS_AT_ONCE)
            .collect()
            .await;
        let mut swept = Vec::new();
        let mut failed = None;
        for (disk, outcome) in outcomes {
            match outcome {
                Ok(true) => swept.push(disk),
                Ok(false) => {}
                // One disk that fails does not keep the others waiting.
                Err(error) => failed = Some(error),
            }
        }
        self.note_swept(&mut ranges, &swept, &all).await?;
        failed.map_or(Ok(Step::Idle), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_range_is_found() {
        let ranges = [5..10, 10..20, 30..40];
        for (blob, expected) in [
            (0, Some(5..10)),
            (9, Some(5..10)),
            (10, Some(10..20)),
            (20, Some(30..40)),
            (39, Some(30..40)),
            (40, None),
        ] {
            assert_eq!(range_from(&ranges, blob), expected.as_ref(), "{blob}");
        }
    }
}
