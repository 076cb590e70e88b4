//! Setting aside: the row of a blob that disks have shards of and nothing names, made or brought up to date by what a unit holds.

use super::PAGE;
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRow, GarbageRow, UnnamedRow, UnnamedWhy};
use crate::ledger::{CONFLICT_RETRIES, CommitBuilder, key};
use crate::object::Objects;
use std::collections::BTreeMap;
use std::ops::AddAssign;
use storage_node::protocol::InventoryEntry;

/// More rows than that are not made: past it nothing goes by itself, and what is listed says enough.
pub const ROWS_MAX: u64 = 1_000_000;

/// What a unit has of a blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Shards.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a unit has of blobs, by blob.
pub type HeldBlobs = BTreeMap<u64, Held>;

/// Counts a shard.
pub fn take_in(blobs: &mut HeldBlobs, entry: &InventoryEntry) {
    let held = blobs.entry(entry.key.blob).or_default();
    held.shards += 1;
    held.bytes += u64::from(entry.len);
}

/// Cuts a full page of an inventory so that no blob is only half in it.
pub fn whole_blobs(page: &mut Vec<InventoryEntry>) {
    if let (Some(first), Some(last)) = (page.first(), page.last())
        && first.key.blob != last.key.blob
    {
        let last = last.key.blob;
        page.retain(|entry| entry.key.blob != last);
    }
}

/// Where and by whom blobs were found.
#[derive(Clone, Copy, Debug)]
pub struct Finding {
    /// The volume.
    pub volume: u64,
    /// The unit.
    pub index: u8,
    /// By whom.
    pub why: UnnamedWhy,
    /// The census in progress, or the last one.
    pub cycle: u64,
    /// Whether this is a part of that census.
    pub counts: bool,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aside {
    /// Blobs that have a row now and had none.
    pub new: u64,
    /// Blobs that had one, met for the first time in this census.
    pub known: u64,
    /// Blobs that got none: there are too many, or a hold.
    pub unlisted: u64,
}

impl AddAssign for Aside {
    fn add_assign(&mut self, other: Aside) {
        self.new += other.new;
        self.known += other.known;
        self.unlisted += other.unlisted;
    }
}

impl Objects {
    /// Sets blobs aside that a unit has, and that nothing names, as whoever found them made sure.
    pub async fn set_aside(&self, finding: &Finding, blobs: &HeldBlobs) -> Result<Aside> {
        let mut aside = Aside::default();
        // What is missing in a ledger that cannot be trusted says nothing.
        if !self.holds.may_delete() {
            aside.unlisted = blobs.len() as u64;
            return Ok(aside);
        }
        let all: Vec<(u64, Held)> = blobs.iter().map(|(blob, held)| (*blob, *held)).collect();
        for page in all.chunks(PAGE) {
            aside += self.set_aside_page(finding, page).await?;
        }
        if aside.new > 0 {
            self.unnamed.lock().blobs += aside.new;
            tracing::info!(
                volume = finding.volume,
                index = finding.index,
                blobs = aside.new,
                "blobs that nothing names are set aside"
            );
        }
        Ok(aside)
    }

    async fn set_aside_page(&self, finding: &Finding, page: &[(u64, Held)]) -> Result<Aside> {
        for _ in 0..CONFLICT_RETRIES {
            let mut left: HeldBlobs = page.iter().copied().collect();
            self.retain_without_rows(finding.volume, &mut left).await?;
            let rows = left.keys().map(|blob| key::unnamed(finding.volume, *blob));
            let rows = self.ledger.get_many::<UnnamedRow>(rows.collect()).await?;
            let (_, ran_s) = self.keep().await?;
            let room = ROWS_MAX.saturating_sub(self.unnamed.lock().blobs);
            let mut aside = Aside::default();
            let (mut commit, mut changes) = (CommitBuilder::new(), false);
            for ((blob, held), found) in left.into_iter().zip(rows) {
                let row_key = key::unnamed(finding.volume, blob);
                let version = found.as_ref().map(|found| found.version);
                let mut row = match found {
                    Some(found) => found.row,
                    None if aside.new >= room => {
                        aside.unlisted += 1;
                        continue;
                    }
                    None => {
                        aside.new += 1;
                        commit = commit
                            .expect(&key::blob(finding.volume, blob), None)
                            .expect(&key::garbage(finding.volume, blob), None);
                        UnnamedRow {
                            seen_ms: self.clock.now_ms(),
                            seen_run_s: ran_s,
                            why: finding.why.into(),
                            since_cycle: finding.cycle,
                            ..UnnamedRow::default()
                        }
                    }
                };
                let (is_first, is_changed) = bring_up_to_date(&mut row, finding, held);
                aside.known += u64::from(is_first && version.is_some());
                if is_changed {
                    commit = commit.expect(&row_key, version).put(row_key, &row);
                    changes = true;
                }
            }
            if !changes || self.commit_unless_changed(commit).await? {
                return Ok(aside);
            }
        }
        Err(Error::Conflict)
    }

    /// Takes out those that a blob row or, after that, a garbage row names.
    pub async fn retain_without_rows(&self, volume: u64, blobs: &mut HeldBlobs) -> Result<()> {
        let asked: Vec<u64> = blobs.keys().copied().collect();
        let rows = asked.iter().map(|blob| key::blob(volume, *blob)).collect();
        let named = self.ledger.get_many::<BlobRow>(rows).await?;
        let rows = asked.iter().map(|blob| key::garbage(volume, *blob)).collect();
        let garbage = self.ledger.get_many::<GarbageRow>(rows).await?;
        for ((blob, named), garbage) in asked.iter().zip(named).zip(garbage) {
            if named.is_some() || garbage.is_some() {
                blobs.remove(blob);
            }
        }
        Ok(())
    }
}

/// Takes what a unit has into a row. Whether this census met the blob for the first time, and whether the row is another one now.
fn bring_up_to_date(row: &mut UnnamedRow, finding: &Finding, held: Held) -> (bool, bool) {
    let is_first = finding.counts && row.found_cycle < finding.cycle;
    if is_first {
        row.found_cycle = finding.cycle;
        row.units.clear();
        (row.shards, row.bytes) = (0, 0);
    }
    let index = u32::from(finding.index);
    let is_there = row.units.contains(&index);
    if !is_there {
        row.units.push(index);
        row.units.sort_unstable();
        row.shards += held.shards;
        row.bytes += held.bytes;
    }
    (is_first, is_first || !is_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_node::protocol::ShardKey;

    #[test]
    fn a_row_has_what_the_newest_census_saw_each_unit_once() {
        let mut finding = Finding {
            volume: 1,
            index: 2,
            why: UnnamedWhy::Census,
            cycle: 5,
            counts: true,
        };
        let held = Held { shards: 3, bytes: 30 };
        let mut row = UnnamedRow::default();
        assert_eq!(bring_up_to_date(&mut row, &finding, held), (true, true));
        assert_eq!(bring_up_to_date(&mut row, &finding, held), (false, false));
        finding.index = 0;
        assert_eq!(bring_up_to_date(&mut row, &finding, held), (false, true));
        assert_eq!((&row.units[..], row.shards, row.bytes), (&[0, 2][..], 6, 60));
        finding.cycle = 6;
        assert_eq!(bring_up_to_date(&mut row, &finding, held), (true, true));
        assert_eq!((&row.units[..], row.shards, row.bytes), (&[0][..], 3, 30));
        // Whoever sweeps orphans adds to what is known, and counts for no census.
        (finding.cycle, finding.counts, finding.index) = (9, false, 4);
        assert_eq!(bring_up_to_date(&mut row, &finding, held), (false, true));
        assert_eq!((&row.units[..], row.found_cycle), (&[0, 4][..], 6));
    }

    #[test]
    fn no_blob_is_cut_by_the_end_of_a_page() {
        let entry = |blob, stripe| InventoryEntry {
            key: ShardKey { blob, stripe },
            len: 1,
        };
        let mut page = vec![entry(1, 0), entry(2, 0), entry(2, 1)];
        whole_blobs(&mut page);
        assert_eq!(page, [entry(1, 0)]);
        whole_blobs(&mut page);
        assert_eq!(page, [entry(1, 0)]);
    }
}
