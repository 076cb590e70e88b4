//! The end of a census: what is set aside counts it once, or is gone.

use super::PAGE;
use crate::error::{Error, Result};
use crate::ledger::model::{UnnamedRow, UnnamedWhy, VolumeCensusRow};
use crate::ledger::{CONFLICT_RETRIES, CommitBuilder, key};
use crate::object::Objects;
use std::collections::HashMap;

/// What a census found unnamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Blobs that were not known before.
    pub new: u64,
    /// Blobs that were.
    pub known: u64,
}

/// What becomes of a row at the end of a cycle that looked at all units of its volume, or not.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    Counts,
    Gone,
}

fn change(row: &UnnamedRow, cycle: u64, is_complete: bool) -> Change {
    match row.found_cycle == cycle {
        _ if !is_complete || row.counted_cycle >= cycle => Change::Nothing,
        true => Change::Counts,
        // What was set aside while the census went on may have been too late for it.
        false if row.since_cycle < cycle => Change::Gone,
        false => Change::Nothing,
    }
}

impl Objects {
    /// Counts a census that came to its end, for each blob that is set aside. It may be counted again: that changes nothing.
    pub async fn count_census(&self, cycle: u64) -> Result<Counted> {
        let mut counted = Counted::default();
        let mut complete = HashMap::new();
        let mut range = key::table(b'U');
        loop {
            let rows = self.ledger.scan::<UnnamedRow>(range.clone(), PAGE).await?;
            let Some((last, _)) = rows.last() else {
                return Ok(counted);
            };
            let end = key::after(last);
            let keys: Vec<_> = rows.into_iter().map(|(row_key, _)| row_key).collect();
            let page = self.count_page(cycle, &keys, &mut complete).await?;
            counted.new += page.new;
            counted.known += page.known;
            range.start = end;
        }
    }

    async fn count_page(
        &self,
        cycle: u64,
        keys: &[bytes::Bytes],
        complete: &mut HashMap<u64, bool>,
    ) -> Result<Counted> {
        for _ in 0..CONFLICT_RETRIES {
            let rows = self.ledger.get_many::<UnnamedRow>(keys.to_vec()).await?;
            let mut counted = Counted::default();
            let (mut commit, mut changes, mut gone) = (CommitBuilder::new(), false, 0);
            for (row_key, found) in keys.iter().zip(rows) {
                let (Some(mut found), Some((volume, _))) = (found, key::volume_and_blob(row_key)) else {
                    continue;
                };
                let row = &mut found.row;
                if row.found_cycle == cycle {
                    let is_new = row.since_cycle == cycle && row.why() == UnnamedWhy::Census;
                    counted.new += u64::from(is_new);
                    counted.known += u64::from(!is_new);
                }
                let is_complete = match complete.get(&volume) {
                    Some(known) => *known,
                    None => *complete
                        .entry(volume)
                        .or_insert(self.was_looked_at(volume, cycle).await?),
                };
                // While the ledger cannot be trusted a census counts for nothing.
                if !self.holds.may_delete() {
                    continue;
                }
                let expected = |commit: CommitBuilder| commit.expect(row_key, Some(found.version));
                match change(row, cycle, is_complete) {
                    Change::Nothing => continue,
                    Change::Counts => {
                        row.censuses = row.censuses.saturating_add(1);
                        row.counted_cycle = cycle;
                        commit = expected(commit).put(row_key.clone(), row);
                    }
                    Change::Gone => {
                        commit = expected(commit).delete(row_key.clone());
                        gone += 1;
                    }
                }
                changes = true;
            }
            if !changes || self.commit_unless_changed(commit).await? {
                if gone > 0 {
                    tracing::info!(blobs = gone, "blobs that were set aside are on no disk any more");
                }
                return Ok(counted);
            }
        }
        Err(Error::Conflict)
    }

    /// Whether all units of a volume were compared in this cycle.
    async fn was_looked_at(&self, volume: u64, cycle: u64) -> Result<bool> {
        let found: Option<VolumeCensusRow> = self.last_census(volume).await?;
        Ok(found.is_some_and(|row| row.cycle == cycle && row.units.iter().all(|unit| unit.at_ms > 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_census_counts_once_and_only_a_later_complete_one_says_that_it_is_gone() {
        let row = |since_cycle, found_cycle, counted_cycle| UnnamedRow {
            since_cycle,
            found_cycle,
            counted_cycle,
            ..UnnamedRow::default()
        };
        for (row, is_complete, expected) in [
            (row(7, 7, 0), true, Change::Counts),
            (row(3, 7, 6), true, Change::Counts),
            (row(3, 7, 6), false, Change::Nothing),
            (row(3, 7, 7), true, Change::Nothing),
            (row(3, 6, 6), true, Change::Gone),
            (row(3, 6, 6), false, Change::Nothing),
            (row(7, 0, 0), true, Change::Nothing),
        ] {
            assert_eq!(change(&row, 7, is_complete), expected, "{row:?}, {is_complete}");
        }
    }
}
