//! Clears disks of units that are no longer theirs: of a disk that returns after its units were rebuilt elsewhere, of a move that
//! a crash cut off, of a clone. A clone that is refused while the ledger names units on the disk is let in, to be cleared, when it
//! names none any more.
//!
//! The ledger decides: a unit is dropped only if the ledger has its volume and names another disk for it, and the drop carries the
//! volume's epoch, so that no older request makes the unit again. While there is a hold (`holds`) nothing is.
//!
//! A ledger that was restored or accepted may have forgotten moves: the unit that it takes for a leftover may be the one that holds the
//! shards. There a unit is dropped only when the disk that is named has all of its shards that are wanted, or may be by an operator.

use super::rebuild::Moving;
use super::worker::{Step, Worker};
use crate::cluster::disks::{Disk, Health};
use crate::error::Result;
use crate::ledger::key;
use crate::ledger::model::{Membership, VolumeRow};
use crate::object::Objects;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{DiskId, UnitAddress, UnitId};
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(10);
/// A unit that is kept is looked at again after so long: its shards are listed for it.
const KEPT_UNTIL_LOOKED_AT: Duration = Duration::from_secs(600);

/// See the module.
pub struct Leftovers {
    objects: Arc<Objects>,
    moving: Moving,
    /// Units that are kept, and when they are looked at again.
    kept: Mutex<HashMap<(DiskId, UnitId), Instant>>,
}

impl Leftovers {
    /// For one gateway; what `moving` says is on its way is left alone.
    pub fn new(objects: Arc<Objects>, moving: Moving) -> Leftovers {
        Leftovers {
            objects,
            moving,
            kept: Mutex::default(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<(DiskId, UnitId), Instant>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a unit is on the disk, or on its way there.
    fn is_named(&self, disk: &Disk) -> bool {
        let volumes = self.objects.volumes.all();
        volumes.iter().any(|volume| volume.disks.contains(&disk.id)) || self.moving.is_target(disk.id)
    }

    /// Drops what is not the disk's; says how many units, or that the disk could not be asked.
    async fn clear(&self, disk: &Disk, client: &Arc<dyn StorageClient>) -> Result<Option<usize>> {
        let Ok(units) = client.units(disk.id, disk.incarnation, DEADLINE).await else {
            return Ok(None);
        };
        let kept_below = self.objects.kept_below_blob().await?;
        self.kept().retain(|_, until| *until > Instant::now());
        let mut dropped = 0;
        for info in units {
            let (volume, index) = (info.unit.volume, info.unit.index);
            if info.unit.is_system() {
                continue;
            }
            // The row, not what is remembered of it: another unit may have moved a moment ago.
            let known = self.objects.ledger.get::<VolumeRow>(key::volume(volume)).await?;
            if known.is_none() {
                continue;
            }
            let volume = self.objects.volumes.refresh(volume).await?;
            // In this order: what begins to move there later has a newer epoch than the drop.
            let is_coming = self.moving.has(info.unit, disk.id);
            if is_coming || volume.disks.get(usize::from(index)) == Some(&disk.id) {
                continue;
            }
            if self.kept().contains_key(&(disk.id, info.unit)) {
                continue;
            }
            if kept_below > 0
                && !self
                    .objects
                    .is_spare(disk, client, &volume, &info, kept_below)
                    .await?
            {
                tracing::debug!(disk = %disk.label, volume = volume.id, index, "kept: not all of it is where the ledger has it");
                self.kept()
                    .insert((disk.id, info.unit), Instant::now() + KEPT_UNTIL_LOOKED_AT);
                continue;
            }
            let address = UnitAddress {
                epoch: volume.epoch.max(info.epoch),
                ..volume.address(index, disk)
            };
            if !self.objects.holds.may_delete()
                || !self
                    .objects
                    .disks
                    .tell(disk, self.objects.ledger.position())
                    .await
            {
                return Ok(None);
            }
            if let Err(error) = client.drop_unit(&address, DEADLINE).await {
                tracing::debug!(disk = %disk.label, %error, "a leftover unit was not dropped");
                return Ok(None);
            }
            tracing::info!(disk = %disk.label, volume = volume.id, index, shards = info.shards, "leftover unit dropped");
            dropped += 1;
        }
        Ok(Some(dropped))
    }
}

#[async_trait::async_trait]
impl Worker for Leftovers {
    fn name(&self) -> &'static str {
        "leftovers"
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn step(&self) -> Result<Step> {
        let mut worked = false;
        if !self.objects.holds.may_delete() {
            return Ok(Step::Idle);
        }
        for disk in self.objects.disks.all().iter() {
            if disk.is_stale() && !self.is_named(disk) {
                self.objects.disks.set_cleared(disk.id);
                tracing::info!(disk = %disk.label, "a copy of the disk is let in: nothing on it counts any more");
                worked = true;
            }
            let (Some(client), Health::Online) = (&disk.client, &disk.health) else {
                continue;
            };
            let Some(dropped) = self.clear(disk, client).await? else {
                continue;
            };
            worked |= dropped > 0;
            if disk.membership == Membership::Absent {
                self.objects.decide(disk.id, Membership::Active).await?;
                tracing::info!(disk = %disk.label, "disk is back in service");
                worked = true;
            }
        }
        Ok(if worked { Step::Worked } else { Step::Idle })
    }
}
