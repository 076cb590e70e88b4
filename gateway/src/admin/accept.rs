//! What operators see of a ledger that is behind the disks, and how they accept it as it is.
//!
//! Accepting gives up what was committed since the ledger was copied. It is bound to a plan: if what disks say has changed since the
//! operator saw it, it is refused and the plan is shown again. One commit then moves every counter past all that any disk knows, takes
//! the units where disks have them, and takes a generation that all disks obey. What the ledger does not know is not deleted: blobs
//! below the new counter are kept until an operator decides (`kept_below_blob`), and so are units of volumes that it does not know.

use crate::archive::restored::{self, Places};
use crate::cluster::disks::Health;
use crate::cluster::generation::{self, Base};
use crate::cluster::setup;
use crate::error::{Error, Result};
use crate::ledger::model::{DiskRow, VolumeRow, VolumeState};
use crate::ledger::{CommitBuilder, Ledger, key};
use crate::object::Objects;
use crate::placement::found::{self, FoundVolume};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;
use storage_node::protocol::{DiskId, LedgerMarks};

const DEADLINE: Duration = Duration::from_secs(10);

/// What a disk knows of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskKnows {
    /// The disk.
    pub disk: String,
    /// The number of the generation that it obeys.
    pub generation: u64,
    /// The position of that generation that it was told of.
    pub position: u64,
}

/// What accepting the ledger as it is would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptPlan {
    /// Why the gateway only reads.
    pub why: String,
    /// The number of this ledger's generation.
    pub generation: u64,
    /// Its last commit.
    pub position: u64,
    /// Disks that know of something newer.
    pub newer: Vec<DiskKnows>,
    /// Disks that cannot be asked: what they know is found out when they come.
    pub away: Vec<String>,
    /// Disks that the ledger does not know, and that it takes in.
    pub unlisted: Vec<String>,
    /// Volumes of which units are taken where disks have them.
    pub moved_volumes: usize,
    /// Volumes on disks that the ledger does not know; they are left alone.
    pub unknown_volumes: usize,
    /// Shards of these.
    pub unknown_shards: u64,
    /// The next blob id.
    pub next_blob: u64,
    /// The next volume id.
    pub next_volume: u64,
    /// The next generation.
    pub next_generation: u64,
}

/// What is to be committed.
struct Accepting {
    plan: AcceptPlan,
    found: HashMap<u64, FoundVolume>,
    unlisted: Vec<(DiskId, DiskRow)>,
}

impl Objects {
    /// Asks the disks where units are, and reads them there.
    pub async fn find_units(&self) {
        self.volumes.set_found(self.units_on_disks().await);
    }

    async fn units_on_disks(&self) -> HashMap<u64, FoundVolume> {
        let disks = self.disks.all();
        let asked = disks.iter().map(async |disk| {
            let client = disk.client.as_ref().filter(|_| disk.health == Health::Online)?;
            let units = client.units(disk.id, disk.incarnation, DEADLINE).await.ok()?;
            Some((disk.id, units))
        });
        found::by_volume(futures::future::join_all(asked).await.into_iter().flatten())
    }

    /// What accepting the ledger as it is would do.
    pub async fn accept_plan(&self) -> Result<AcceptPlan> {
        Ok(self.accepting().await?.plan)
    }

    async fn accepting(&self) -> Result<Accepting> {
        let Err(why) = self.ledger.check_writable() else {
            return Err(Error::InvalidRequest(
                "the ledger is not behind its disks: there is nothing to accept".into(),
            ));
        };
        let base = Base::of(&self.ledger).await?;
        let disks = self.disks.all();
        let (mut newer, mut away, mut unlisted) = (Vec::new(), Vec::new(), Vec::new());
        let mut most = LedgerMarks {
            generation: base.generation,
            blob_limit: base.next_blob,
            volume_limit: base.next_volume,
            ..LedgerMarks::default()
        };
        for disk in disks.iter() {
            let shown = disk.status.as_ref().filter(|_| disk.health == Health::Online);
            let Some(marks) = shown.and_then(|status| status.ledger) else {
                away.push(disk.label.clone());
                continue;
            };
            if !marks.is_plausible() {
                away.push(format!(
                    "{} (its marks of the ledger are no ledger's: retire it)",
                    disk.label
                ));
                continue;
            }
            if generation::judge(&base, None, &marks).is_err() {
                newer.push(DiskKnows {
                    disk: disk.label.clone(),
                    generation: marks.generation.number,
                    position: marks.position,
                });
            }
            if marks.generation.number > most.generation.number {
                most.generation = marks.generation;
            }
            most.blob_limit = most.blob_limit.max(marks.blob_limit);
            most.volume_limit = most.volume_limit.max(marks.volume_limit);
            if disk.is_unlisted {
                unlisted.push((disk.id, disk.as_row()));
            }
        }
        let found = self.units_on_disks().await;
        let known: HashMap<u64, _> = self
            .volumes
            .all()
            .into_iter()
            .map(|volume| (volume.id, volume))
            .collect();
        let unknown = found
            .iter()
            .filter(|(id, _)| !known.contains_key(*id))
            .map(|(_, volume)| volume);
        let (mut moved_volumes, rows) = (0, self.volume_rows().await?);
        for (id, row) in &rows {
            let volume = found.get(id);
            moved_volumes += usize::from(volume.is_some_and(|volume| taken_in(row, volume).is_some()));
        }
        let plan = AcceptPlan {
            why: why.to_string(),
            generation: base.generation.number,
            position: base.position,
            newer,
            away,
            unlisted: unlisted.iter().map(|(_, row)| row.label.clone()).collect(),
            moved_volumes,
            unknown_volumes: unknown.clone().count(),
            unknown_shards: unknown.map(FoundVolume::shards).sum(),
            next_blob: most.blob_limit,
            next_volume: most.volume_limit,
            next_generation: most.generation.number + 1,
        };
        Ok(Accepting {
            plan,
            found,
            unlisted,
        })
    }

    async fn volume_rows(&self) -> Result<Vec<(u64, VolumeRow)>> {
        let mut rows = Vec::new();
        let each = |row_key: Bytes, row: crate::ledger::Typed<VolumeRow>| {
            rows.extend(key::single_number(&row_key).map(|id| (id, row.row)));
        };
        self.ledger.for_each(key::table(b'v'), each).await?;
        Ok(rows)
    }

    /// Accepts the ledger as it is, if that does what the plan says. The gateway must be started anew then.
    pub async fn accept(&self, plan: &AcceptPlan) -> Result<()> {
        let accepting = self.accepting().await?;
        if accepting.plan != *plan {
            return Err(Error::Conflict);
        }
        let mut commit = CommitBuilder::new();
        for (id, row) in self.volume_rows().await? {
            if let Some(row) = accepting.found.get(&id).and_then(|found| taken_in(&row, found)) {
                commit = commit.put(key::volume(id), &row);
            }
        }
        for (disk, row) in &accepting.unlisted {
            commit = commit.put(key::disk(disk.0), row);
        }
        // Not through the ledger of this gateway, which is frozen.
        let ledger = Ledger::new(self.ledger.store().clone());
        let found = setup::find(&ledger).await?;
        let (cluster, _) = found.ok_or_else(|| Error::Internal("the ledger holds no cluster".into()))?;
        let marks = [accepting.plan.marks()];
        restored::settle(&ledger, cluster, &marks, Places::Known, commit).await?;
        Ok(())
    }
}

impl AcceptPlan {
    fn marks(&self) -> LedgerMarks {
        LedgerMarks {
            generation: storage_node::protocol::Generation {
                number: self.next_generation - 1,
                nonce: 0,
            },
            blob_limit: self.next_blob,
            volume_limit: self.next_volume,
            ..LedgerMarks::default()
        }
    }
}

/// The row of a volume as disks have it, if that is another one.
fn taken_in(row: &VolumeRow, found: &FoundVolume) -> Option<VolumeRow> {
    let disk = |bytes: &Bytes| {
        bytes
            .as_ref()
            .try_into()
            .ok()
            .map(|id| DiskId(u128::from_be_bytes(id)))
    };
    let named: Option<Vec<DiskId>> = row.disks.iter().map(disk).collect();
    let named = named?;
    let disks = found.disks(&named);
    if disks == named && found.epoch <= row.epoch {
        return None;
    }
    let mut taken = VolumeRow {
        disks: disks
            .iter()
            .map(|disk| Bytes::copy_from_slice(&disk.0.to_be_bytes()))
            .collect(),
        epoch: found.epoch.max(row.epoch) + 1,
        ..row.clone()
    };
    taken.set_state(VolumeState::Sealed);
    Some(taken)
}
