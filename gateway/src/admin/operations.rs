//! What operators do with disks, as a plan first: what it moves, how low redundancy falls, and what it would lose.
//!
//! Invariant: an action runs only if what it was planned on is still so. A plan carries a fingerprint of every disk's membership and
//! every volume's epoch; when one has changed, the plan is refused and made again.
//! Invariant: nothing that would lose data runs, unless whoever asks for it names the disk once more.

use super::status::membership_word;
use crate::cluster::disks::{Disk, Health};
use crate::error::{Error, Result};
use crate::ledger::key;
use crate::ledger::model::{DiskRow, Membership, VolumeState};
use crate::ledger::{CommitBuilder, Typed};
use crate::object::Objects;
use crate::object::condition::ReadConditions;
use crate::object::encode;
use crate::object::get::Wanted;
use crate::placement::choose;
use crate::placement::volumes::Volume;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;
use storage_node::protocol::DiskId;

/// What is to be done with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Copy what it holds elsewhere while it serves; nothing new goes there.
    Drain,
    /// Give it up now: what it holds is rebuilt from the others.
    Retire,
    /// Back to normal: it gets new units again.
    Activate,
    /// Forget a disk that was retired and holds nothing any more.
    Remove,
}

/// Which disk, and what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanRequest {
    /// Its name or its id.
    pub disk: String,
    /// What is to be done.
    pub action: Action,
}

/// What an action would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The disk's name.
    pub disk: String,
    /// What is to be done.
    pub action: Action,
    /// What it is planned on: [`ApplyRequest::plan`].
    pub plan: String,
    /// Units that are on the disk.
    pub units: usize,
    /// Bytes to be written to other disks.
    pub move_bytes: u64,
    /// Losses that the most endangered volume survives now, and until its units are whole elsewhere.
    pub spare_now: Option<i64>,
    /// See `spare_now`.
    pub spare_then: Option<i64>,
    /// Disks that can take what it holds.
    pub targets: usize,
    /// Volumes that could not be read any more.
    pub lost_volumes: Vec<u64>,
    /// Units that no disk could take for now.
    pub stuck_units: usize,
    /// Why it cannot be done, if it cannot.
    pub refused: Option<String>,
}

/// A plan that is to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// Its name or its id.
    pub disk: String,
    /// What is to be done.
    pub action: Action,
    /// [`Plan::plan`].
    pub plan: String,
    /// The disk's name once more, to lose what only it has.
    #[serde(default)]
    pub force: Option<String>,
}

/// Why an operator's wish was not granted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// There is no such disk, volume or object.
    #[error("{0}")]
    NotFound(String),
    /// It would do harm, or makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The cluster has changed since the plan was made.
    #[error("the cluster has changed since this was planned: look at the new plan")]
    Outdated,
    /// The ledger could not be reached.
    #[error("{0}")]
    Failed(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error {
            Error::Conflict => Refusal::Outdated,
            error => Refusal::Failed(error.to_string()),
        }
    }
}

type Answer<T> = std::result::Result<T, Refusal>;

impl Objects {
    /// A disk by its name or id.
    pub fn find_disk(&self, name: &str) -> Answer<Arc<Disk>> {
        let disks = self.disks.all();
        let by_id = name.parse::<DiskId>().ok();
        let found = disks
            .iter()
            .find(|disk| disk.label == name || Some(disk.id) == by_id);
        found.cloned().ok_or_else(|| {
            let names: Vec<&str> = disks.iter().take(20).map(|disk| disk.label.as_str()).collect();
            Refusal::NotFound(format!(
                "there is no disk {name:?}; there are {}",
                names.join(", ")
            ))
        })
    }

    /// What an action would do.
    pub fn plan(&self, request: &PlanRequest) -> Answer<Plan> {
        let disk = self.find_disk(&request.disk)?;
        let volumes = self.volumes.all();
        let on_it: Vec<&Arc<Volume>> = volumes.iter().filter(|v| v.disks.contains(&disk.id)).collect();
        let moves = matches!(request.action, Action::Drain | Action::Retire);
        let without = (request.action == Action::Retire).then_some(disk.id);
        let spare = |without| on_it.iter().map(|v| self.spare(v, without).0).min();
        let lost_volumes: Vec<u64> = match without {
            Some(_) => on_it
                .iter()
                .filter(|v| self.spare(v, None).1 && !self.spare(v, without).1)
                .map(|v| v.id)
                .collect(),
            None => Vec::new(),
        };
        let candidates = |scheme| -> Vec<choose::Candidate> {
            let targets = self.volumes.targets(scheme).into_iter();
            targets.filter(|candidate| candidate.disk != disk.id).collect()
        };
        let stuck = |volume: &&&Arc<Volume>| {
            let level = self.disks.level(volume.scheme.total_shards());
            let others = volume.disks.iter().filter(|other| **other != disk.id);
            let taken: HashSet<u128> = others
                .filter_map(|other| Some(self.disks.get(*other)?.domain(level)))
                .collect();
            choose::choose_one(&candidates(volume.scheme), &taken, 0).is_none()
        };
        let stuck_units = if moves {
            on_it.iter().filter(stuck).count()
        } else {
            0
        };
        Ok(Plan {
            refused: refusal(&disk, request.action, on_it.len(), &lost_volumes),
            disk: disk.label.clone(),
            action: request.action,
            plan: self.fingerprint(),
            units: on_it.len(),
            move_bytes: if moves {
                on_it.iter().map(|v| v.used_bytes()).sum()
            } else {
                0
            },
            spare_now: spare(None),
            spare_then: spare(without),
            targets: candidates(self.scheme).len(),
            lost_volumes,
            stuck_units,
        })
    }

    /// Does what was planned.
    pub async fn apply(&self, request: &ApplyRequest) -> Answer<Plan> {
        let plan = self.plan(&PlanRequest {
            disk: request.disk.clone(),
            action: request.action,
        })?;
        if plan.plan != request.plan {
            return Err(Refusal::Outdated);
        }
        let forced = request.force.as_deref() == Some(plan.disk.as_str()) && !plan.lost_volumes.is_empty();
        if let Some(why) = plan.refused.as_ref().filter(|_| !forced) {
            return Err(Refusal::Refused(why.clone()));
        }
        let disk = self.find_disk(&request.disk)?;
        match request.action {
            Action::Drain => self.decide(disk.id, Membership::Draining).await?,
            Action::Retire => self.decide(disk.id, Membership::Out).await?,
            Action::Activate => self.decide(disk.id, Membership::Active).await?,
            Action::Remove => self.remove_disk(disk.id).await?,
        }
        tracing::info!(disk = %disk.label, action = ?request.action, forced, "disk: an operator decided");
        Ok(plan)
    }

    async fn remove_disk(&self, id: DiskId) -> Result<()> {
        let row_key = key::disk(id.0);
        if let Some(Typed { version, .. }) = self.ledger.get::<DiskRow>(row_key.clone()).await? {
            let commit = CommitBuilder::new()
                .expect(&row_key, Some(version))
                .delete(row_key);
            self.ledger.commit(self.lease.fence(commit).build()).await?;
        }
        self.disks.remove(id);
        Ok(())
    }

    /// How many more losses a volume survives, and whether it can be decoded; as if this disk were gone, if one is given.
    pub fn spare(&self, volume: &Volume, without: Option<DiskId>) -> (i64, bool) {
        let readable = |index: &usize| {
            let id = volume.disks[*index];
            let online = self
                .disks
                .get(id)
                .is_some_and(|disk| disk.health == Health::Online);
            volume.is_whole(*index as u8) && online && Some(id) != without
        };
        let there: Vec<usize> = (0..volume.disks.len()).filter(readable).collect();
        let lost = (volume.disks.len() - there.len()) as i64;
        let codec = self.codecs.get(volume.scheme);
        let decodable = codec.is_ok_and(|codec| codec.code().is_decodable(there) == Ok(true));
        (volume.scheme.losses_survived() as i64 - lost, decodable)
    }

    /// Of every disk's membership and health and every volume's epoch and whole units.
    fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for disk in self.disks.all().iter() {
            hasher.update(&disk.id.0.to_le_bytes());
            let online = u8::from(disk.health == Health::Online);
            hasher.update(&[disk.membership as u8, online]);
        }
        for volume in self.volumes.all() {
            hasher.update(&volume.id.to_le_bytes());
            hasher.update(&volume.epoch.to_le_bytes());
            hasher.update(&[volume.incomplete.len() as u8]);
            hasher.update(&volume.incomplete);
        }
        hasher.finalize().to_hex()[..16].to_string()
    }
}

/// Why an action is not done as it is asked for, if it is not.
fn refusal(disk: &Disk, action: Action, units: usize, lost: &[u64]) -> Option<String> {
    let is = membership_word(disk.membership);
    match (action, disk.membership) {
        (Action::Drain, Membership::Active | Membership::Draining) => None,
        (Action::Drain, _) => Some(format!(
            "{} is {is}: there is nothing to be copied from it",
            disk.label
        )),
        (Action::Activate, Membership::Out) if units == 0 => Some(format!(
            "{} was retired; remove it, then add the disk anew",
            disk.label
        )),
        (Action::Retire, _) if !lost.is_empty() => Some(format!(
            "{} volumes could not be read without {}: drain it, or wait for the others; only --force {} gives up what is in them",
            lost.len(),
            disk.label,
            disk.label
        )),
        (Action::Remove, Membership::Out) if units == 0 => None,
        (Action::Remove, Membership::Out) => Some(format!(
            "{units} units are still to be rebuilt elsewhere: see `cairn rebuild status`"
        )),
        (Action::Remove, _) => Some(format!("{} is {is}: drain it or retire it first", disk.label)),
        _ => None,
    }
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeDetail {
    /// Its id.
    pub id: u64,
    /// Its scheme.
    pub scheme: String,
    /// open or sealed.
    pub state: String,
    /// Grows when a unit moves.
    pub epoch: u32,
    /// Losses it survives from now on; below zero if it cannot be read.
    pub spare: i64,
    /// Whether it can be decoded.
    pub readable: bool,
    /// Bytes of each unit, as far as is known.
    pub unit_bytes: u64,
    /// Its units, in index order.
    pub units: Vec<UnitDetail>,
}

/// One unit of a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnitDetail {
    /// Its disk's name.
    pub disk: String,
    /// The disk's state: online, suspect or down.
    pub state: String,
    /// What was decided of the disk.
    pub membership: String,
    /// Whether it has all that it should.
    pub whole: bool,
    /// When its disk was last verified to the end, in milliseconds since 1970; none if it was not yet.
    #[serde(default)]
    pub verified_ms: Option<u64>,
    /// When it was last compared with the ledger; none if it was not yet, or if nobody asked.
    #[serde(default)]
    pub census_ms: Option<u64>,
    /// Shards that it lacked then.
    #[serde(default)]
    pub census_missing: u64,
}

/// Where an object is: its blobs in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Located {
    /// Bytes.
    pub size: u64,
    /// Its blobs.
    pub blobs: Vec<LocatedBlob>,
}

/// A blob of an object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LocatedBlob {
    /// Its id.
    pub blob: u64,
    /// Bytes.
    pub length: u64,
    /// Its stripes: each is one shard on every unit.
    pub stripes: u32,
    /// Its volume.
    pub volume: VolumeDetail,
}

impl Objects {
    /// What is known of a volume.
    pub fn volume_detail(&self, volume: &Volume) -> VolumeDetail {
        let unit = |(index, id): (u8, &DiskId)| {
            let disk = self.disks.get(*id);
            let (state, membership) = match &disk {
                None => ("removed", "out"),
                Some(disk) => (
                    match disk.health {
                        Health::Online => "online",
                        Health::Suspect(_) => "suspect",
                        Health::Down(_) => "down",
                    },
                    membership_word(disk.membership),
                ),
            };
            UnitDetail {
                disk: disk
                    .as_ref()
                    .map_or_else(|| id.to_string(), |disk| disk.label.clone()),
                state: state.into(),
                membership: membership.into(),
                whole: volume.is_whole(index),
                verified_ms: disk.map(|disk| disk.verified_ms).filter(|at| *at > 0),
                census_ms: None,
                census_missing: 0,
            }
        };
        let (spare, readable) = self.spare(volume, None);
        VolumeDetail {
            id: volume.id,
            scheme: volume.scheme.to_string(),
            state: match volume.state {
                VolumeState::Open => "open".into(),
                VolumeState::Sealed => "sealed".into(),
            },
            epoch: volume.epoch,
            spare,
            readable,
            unit_bytes: volume.used_bytes(),
            units: (0..).zip(&volume.disks).map(unit).collect(),
        }
    }

    /// What is known of a volume, and of the last census of its units where they are.
    async fn volume_detail_censused(&self, volume: &Volume) -> Result<VolumeDetail> {
        let mut detail = self.volume_detail(volume);
        let census = self.last_census(volume.id).await?.unwrap_or_default();
        for ((unit, disk), seen) in detail.units.iter_mut().zip(&volume.disks).zip(&census.units) {
            if seen.at_ms > 0 && seen.disk == disk.0.to_be_bytes()[..] {
                unit.census_ms = Some(seen.at_ms);
                unit.census_missing = seen.missing;
            }
        }
        Ok(detail)
    }

    /// Where an object's shards are, and when they were last looked at.
    pub async fn locate(&self, bucket: &str, name: &str) -> Answer<Located> {
        let missing = || Refusal::NotFound(format!("there is no object {name:?} in the bucket {bucket:?}"));
        let found = self
            .head(bucket, name, Wanted::All, &ReadConditions::default())
            .await;
        let row = match found {
            Err(Error::NoSuchBucket | Error::NoSuchKey) => return Err(missing()),
            found => found?.row,
        };
        let mut blobs = Vec::new();
        for blob in &row.blobs {
            let volume = self.volumes.get(blob.volume).await?;
            let codec = self.codecs.get(volume.scheme)?;
            blobs.push(LocatedBlob {
                blob: blob.blob,
                length: blob.length,
                stripes: encode::geometry(&codec, blob.length)?.stripes(),
                volume: self.volume_detail_censused(&volume).await?,
            });
        }
        Ok(Located {
            size: row.size,
            blobs,
        })
    }
}
