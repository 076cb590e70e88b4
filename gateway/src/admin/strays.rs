//! Units on disks that are not theirs, for operators: the list, and letting go of them.
//!
//! `maintenance/leftovers` drops what the ledger has whole elsewhere. What it keeps takes space until an operator decides: units of
//! volumes that the ledger does not know, and units that have shards which the disk in the ledger lacks.
//!
//! Invariant: units are dropped only as planned: the plan has a fingerprint of what the disks have.
//! Invariant: a unit with shards that are lacking elsewhere is in no drop of all; by its own name only.

use super::operations::{Answer, Refusal};
use crate::cluster::disks::Disk;
use crate::error::Error;
use crate::maintenance::rebuild::Moving;
use crate::maintenance::strays::Stray;
use crate::object::Objects;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{UnitAddress, UnitId};

/// So many units are listed.
pub const UNITS_MAX: usize = 10_000;
const DEADLINE: Duration = Duration::from_secs(10);

/// Units on disks that are not theirs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StrayUnits {
    /// The first [`UNITS_MAX`] of them, by disk.
    pub units: Vec<StrayUnit>,
    /// How many there are.
    pub found: u64,
    /// Disks that could not be asked.
    pub away: Vec<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StrayUnit {
    /// The disk that it is on.
    pub disk: String,
    /// Its volume.
    pub volume: u64,
    /// Its index in the volume.
    pub index: u8,
    /// Shards in it.
    pub shards: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Why it is there.
    pub why: Why,
}

/// Why a unit lies where the ledger does not name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The ledger does not know its volume: a ledger that was given up may.
    UnknownVolume,
    /// It moved, and all of it is where the ledger has it: it goes by itself.
    Moved,
    /// It has shards that the disk in the ledger lacks, or that disk cannot be asked.
    Needed,
}

/// A unit by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitName {
    /// Its disk, by name or id.
    pub disk: String,
    /// Its volume.
    pub volume: u64,
    /// Its index in the volume.
    pub index: u8,
}

/// Letting go of units.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropRequest {
    /// Which; all but those that are needed, if empty.
    #[serde(default)]
    pub units: Vec<UnitName>,
    /// [`DropPlan::plan`], if it is to run.
    #[serde(default)]
    pub plan: Option<String>,
}

/// What would go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropPlan {
    /// What it is planned on.
    pub plan: String,
    /// Units that go.
    pub units: u64,
    /// Shards in them.
    pub shards: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Of these, units of volumes that the ledger does not know.
    pub unknown: u64,
    /// Of these, units with shards that are lacking where the ledger has them: `DISK/VOLUME.INDEX`, the first few.
    pub needed: Vec<String>,
    /// Units with such shards that stay.
    pub left: u64,
    /// Disks that could not be asked: what is on them stays.
    pub away: Vec<String>,
    /// Why it cannot be done, if it cannot.
    pub refused: Option<String>,
}

type Found = (Arc<Disk>, Stray, Why);

impl Objects {
    /// Units on disks that are not theirs.
    pub async fn stray_units(&self, moving: &Moving) -> Answer<StrayUnits> {
        let (found, away) = self.find_strays(moving).await?;
        let line = |(disk, stray, why): &Found| StrayUnit {
            disk: disk.label.clone(),
            volume: stray.info.unit.volume,
            index: stray.info.unit.index,
            shards: stray.info.shards,
            bytes: stray.info.live_bytes,
            why: *why,
        };
        Ok(StrayUnits {
            units: found.iter().take(UNITS_MAX).map(line).collect(),
            found: found.len() as u64,
            away,
        })
    }

    /// What letting go of units would do; with the fingerprint of such a plan, it is done.
    pub async fn drop_strays(&self, moving: &Moving, request: &DropRequest) -> Answer<DropPlan> {
        let (found, away) = self.find_strays(moving).await?;
        let (left, going) = self.chosen(found, &request.units)?;
        let mut hasher = blake3::Hasher::new();
        for (disk, stray, _) in &going {
            hasher.update(&disk.id.0.to_le_bytes());
            hasher.update(&stray.info.unit.volume.to_le_bytes());
            hasher.update(&[stray.info.unit.index]);
            hasher.update(&stray.info.epoch.to_le_bytes());
            hasher.update(&stray.info.shards.to_le_bytes());
        }
        let needed = going.iter().filter(|(.., why)| *why == Why::Needed);
        let plan = DropPlan {
            plan: hasher.finalize().to_hex()[..16].to_string(),
            units: going.len() as u64,
            shards: going.iter().map(|(_, stray, _)| stray.info.shards).sum(),
            bytes: going.iter().map(|(_, stray, _)| stray.info.live_bytes).sum(),
            unknown: going
                .iter()
                .filter(|(.., why)| *why == Why::UnknownVolume)
                .count() as u64,
            needed: needed
                .take(20)
                .map(|(disk, stray, _)| name(disk, stray.info.unit))
                .collect(),
            left,
            away,
            refused: self.holds.all().into_iter().next().map(|(_, why)| why),
        };
        let Some(wanted) = &request.plan else {
            return Ok(plan);
        };
        if *wanted != plan.plan {
            return Err(Refusal::Outdated);
        }
        if let Some(why) = &plan.refused {
            return Err(Refusal::Refused(why.clone()));
        }
        let mut dropped = 0;
        for (disk, stray, _) in &going {
            self.drop_stray(moving, disk, stray).await.map_err(|why| {
                Refusal::Failed(format!(
                    "{} was not dropped, after {dropped} that were: {why}",
                    name(disk, stray.info.unit)
                ))
            })?;
            dropped += 1;
        }
        tracing::info!(
            units = dropped,
            shards = plan.shards,
            "stray units are dropped: an operator decided"
        );
        Ok(plan)
    }

    async fn find_strays(&self, moving: &Moving) -> Answer<(Vec<Found>, Vec<String>)> {
        let kept_below = self.kept_below_blob().await?;
        let (mut all, mut away) = (Vec::new(), Vec::new());
        for disk in self.disks.all().iter() {
            let (Some(strays), Some(client)) = (self.strays(disk, moving).await?, &disk.client) else {
                if !disk.is_given_up() {
                    away.push(disk.label.clone());
                }
                continue;
            };
            for stray in strays {
                let why = if !stray.is_known {
                    Why::UnknownVolume
                } else {
                    let volume = self.volumes.refresh(stray.info.unit.volume).await?;
                    // A ledger that lost nothing is right about where its units are.
                    let is_spare = kept_below == 0
                        || self
                            .is_spare(disk, client, &volume, &stray.info, kept_below)
                            .await?;
                    match is_spare {
                        true => Why::Moved,
                        false => Why::Needed,
                    }
                };
                all.push((disk.clone(), stray, why));
            }
        }
        Ok((all, away))
    }

    /// How many stay of all, and which go: those that are named, each of which must be there, or all that are not needed.
    fn chosen(&self, found: Vec<Found>, names: &[UnitName]) -> Answer<(u64, Vec<Found>)> {
        if names.is_empty() {
            let (left, going): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(.., why)| *why == Why::Needed);
            return Ok((left.len() as u64, going));
        }
        let mut going: Vec<Found> = Vec::new();
        for wanted in names {
            let disk = self.find_disk(&wanted.disk)?.id;
            let unit = UnitId {
                volume: wanted.volume,
                index: wanted.index,
            };
            let is_it = |(on, stray, _): &&Found| on.id == disk && stray.info.unit == unit;
            let one = found.iter().find(is_it).ok_or_else(|| {
                Refusal::NotFound(format!(
                    "{}/{}.{} is no unit on a disk that is not its",
                    wanted.disk, wanted.volume, wanted.index
                ))
            })?;
            if !going.iter().any(|there| is_it(&there)) {
                going.push(one.clone());
            }
        }
        Ok((0, going))
    }

    async fn drop_stray(&self, moving: &Moving, disk: &Arc<Disk>, stray: &Stray) -> Result<(), String> {
        // Looked at again: others went before it, and meanwhile it may have become the disk's.
        let strays = self
            .strays(disk, moving)
            .await
            .map_err(|error| error.to_string())?;
        if !strays.is_some_and(|strays| strays.contains(stray)) {
            return Err("it changed meanwhile".into());
        }
        let epoch = match stray.is_known {
            false => stray.info.epoch,
            true => {
                let volume = self.volumes.refresh(stray.info.unit.volume).await;
                volume
                    .map_err(|error: Error| error.to_string())?
                    .epoch
                    .max(stray.info.epoch)
            }
        };
        let client = disk.client.as_ref().ok_or("the disk is away")?;
        if !self.holds.may_delete() || !self.disks.tell(disk, self.ledger.position()).await {
            return Err("nothing may be deleted there now".into());
        }
        let address = UnitAddress {
            disk: disk.id,
            incarnation: disk.incarnation,
            unit: stray.info.unit,
            epoch,
            ledger: disk.ledger,
        };
        client
            .drop_unit(&address, DEADLINE)
            .await
            .map_err(|error| error.to_string())
    }
}

fn name(disk: &Disk, unit: UnitId) -> String {
    format!("{}/{}.{}", disk.label, unit.volume, unit.index)
}
