//! What the ledger remembers of scrubbing: what operators want of it, and the census in progress and before.

use crate::error::{Error, Result};
use crate::ledger::model::{CensusRow, ScrubRow, VolumeCensusRow};
use crate::ledger::{CONFLICT_RETRIES, CommitBuilder, Typed, key};
use crate::object::Objects;
use serde::{Deserialize, Serialize};

/// What a cycle of the census has found, as operators see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusReport {
    /// Its number, from 1.
    pub cycle: u64,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it ended; none while it goes on.
    pub ended_ms: Option<u64>,
    /// Volumes looked at.
    pub volumes: u64,
    /// Units compared.
    pub units: u64,
    /// Units that could not be: their disk was away, or they were on their way.
    pub skipped_units: u64,
    /// Disks that were not there to be asked for what is not theirs.
    pub disks_away: u64,
    /// Shards that the ledger names and a disk lacked; queued for repair.
    pub missing_shards: u64,
    /// Shards of another length than the ledger says; queued for repair.
    pub wrong_shards: u64,
    /// Blobs of which a disk had shards, that nothing names, and that were not known before; set aside.
    pub unnamed_blobs: u64,
    /// Blobs that nothing names and that were set aside before.
    #[serde(default)]
    pub set_aside_blobs: u64,
    /// Shards past the end of a named blob, left by a stripe that failed: they go when their blob does.
    pub surplus_shards: u64,
    /// Units on disks that are not theirs; `leftovers` drops them.
    pub stray_units: u64,
    /// Units of volumes that the ledger does not know, and that are kept until an operator decides.
    #[serde(default)]
    pub unknown_units: u64,
    /// Blobs waiting to be deleted when it ended.
    pub garbage_blobs: u64,
    /// Shards waiting for repair when it ended.
    pub suspect_shards: u64,
    /// Whether every unit of every volume was compared since it began, and nothing was missing, newly unnamed or waiting. What was
    /// set aside before is accounted for.
    pub clean: bool,
}

impl CensusReport {
    /// From the row.
    pub fn new(row: &CensusRow) -> CensusReport {
        let found = [
            row.skipped,
            row.disks_away,
            row.missing,
            row.wrong,
            row.unnamed,
            row.strays,
            row.garbage,
            row.suspects,
        ];
        CensusReport {
            cycle: row.cycle,
            started_ms: row.started_ms,
            ended_ms: (row.ended_ms > 0).then_some(row.ended_ms),
            volumes: row.volumes,
            units: row.units,
            skipped_units: row.skipped,
            disks_away: row.disks_away,
            missing_shards: row.missing,
            wrong_shards: row.wrong,
            unnamed_blobs: row.unnamed,
            set_aside_blobs: row.set_aside,
            surplus_shards: row.surplus,
            stray_units: row.strays,
            unknown_units: row.unknown_units,
            garbage_blobs: row.garbage,
            suspect_shards: row.suspects,
            clean: row.ended_ms > 0 && found.iter().all(|count| *count == 0),
        }
    }
}

impl Objects {
    /// What the ledger has of scrubbing.
    pub async fn scrub_row(&self) -> Result<ScrubRow> {
        let found = self.ledger.get::<ScrubRow>(key::scrub()).await?;
        Ok(found.map_or_else(ScrubRow::default, |found| found.row))
    }

    /// Changes it, and whatever else `further` adds to the commit. `change` says no by answering none.
    pub async fn change_scrub<T>(
        &self,
        change: impl Fn(&mut ScrubRow) -> Option<T>,
        further: impl Fn(CommitBuilder) -> CommitBuilder,
    ) -> Result<Option<T>> {
        let row_key = key::scrub();
        for _ in 0..CONFLICT_RETRIES {
            let found = self.ledger.get::<ScrubRow>(row_key.clone()).await?;
            let (mut row, version) = match found {
                Some(Typed { row, version }) => (row, Some(version)),
                None => (ScrubRow::default(), None),
            };
            let Some(answer) = change(&mut row) else {
                return Ok(None);
            };
            let commit = further(CommitBuilder::new().expect(&row_key, version)).put(row_key.clone(), &row);
            match self
                .ledger
                .commit(self.lease.fence(commit).build())
                .await
                .map_err(Error::from)
            {
                Ok(_) => return Ok(Some(answer)),
                Err(Error::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Conflict)
    }

    /// Begins a cycle of the census now, in place of one that is on its way. Its number.
    pub async fn begin_census(&self, at_once: bool) -> Result<u64> {
        let now_ms = self.clock.now_ms();
        let begin = |row: &mut ScrubRow| {
            let cycle_of = |census: &Option<CensusRow>| census.map_or(0, |census| census.cycle);
            let cycle = cycle_of(&row.now).max(cycle_of(&row.last)) + 1;
            row.at_once = at_once;
            row.from_volume = 0;
            row.now = Some(CensusRow {
                cycle,
                started_ms: now_ms,
                ..CensusRow::default()
            });
            Some(cycle)
        };
        let begun = self.change_scrub(begin, |commit| commit).await?;
        begun.ok_or(Error::Conflict)
    }

    /// The last census of a volume, if there was one.
    pub async fn last_census(&self, volume: u64) -> Result<Option<VolumeCensusRow>> {
        let found = self.ledger.get(key::volume_census(volume)).await?;
        Ok(found.map(|found| found.row))
    }
}
