//! Units that lie on a disk for which the ledger does not name them: of volumes that it has elsewhere, and of volumes that it does not
//! know. Looks, and changes nothing.
//!
//! Units of the ledger's own archive are none of these.

use super::rebuild::Moving;
use crate::cluster::disks::{Disk, Health};
use crate::error::Result;
use crate::ledger::key;
use crate::ledger::model::{BlobRow, GarbageRow, VolumeRow};
use crate::object::Objects;
use crate::placement::volumes::Volume;
use bytes::Bytes;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::{INVENTORY_LIMIT_MAX, StorageClient};
use storage_node::protocol::{ShardKey, UnitAddress, UnitInfo};

const DEADLINE: Duration = Duration::from_secs(10);

/// A unit on a disk that is not its.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// The unit, as the disk has it.
    pub info: UnitInfo,
    /// Whether the ledger has its volume, with another disk for it.
    pub is_known: bool,
}

impl Objects {
    /// Units with shards on a disk that are not its, and not on their way there; none if the disk cannot be asked.
    pub async fn strays(&self, disk: &Disk, moving: &Moving) -> Result<Option<Vec<Stray>>> {
        let (Some(client), Health::Online) = (&disk.client, &disk.health) else {
            return Ok(None);
        };
        let Ok(units) = client.units(disk.id, disk.incarnation, DEADLINE).await else {
            return Ok(None);
        };
        let mut strays = Vec::new();
        for info in units {
            // A unit without shards is a number that the disk remembers.
            if info.shards == 0 || info.unit.is_system() || moving.has(info.unit, disk.id) {
                continue;
            }
            // After the disk was asked: a volume has its row before it has a shard.
            let row = self
                .ledger
                .get::<VolumeRow>(key::volume(info.unit.volume))
                .await?;
            let is_known = row.is_some();
            let named = row.and_then(|row| row.row.disks.get(usize::from(info.unit.index)).cloned());
            if named.is_none_or(|named| named != disk.id.0.to_be_bytes()[..]) {
                strays.push(Stray { info, is_known });
            }
        }
        Ok(Some(strays))
    }

    /// Whether the disk that the ledger names has every shard of this unit that is named, or that an operator has to decide about.
    pub async fn is_spare(
        &self,
        disk: &Disk,
        client: &Arc<dyn StorageClient>,
        volume: &Volume,
        info: &UnitInfo,
        kept_below: u64,
    ) -> Result<bool> {
        let index = info.unit.index;
        let named = volume.disks.get(usize::from(index)).copied();
        let Some(named) = named.and_then(|id| self.disks.get(id)) else {
            return Ok(false);
        };
        let Some(named_client) = named.client.as_ref().filter(|_| named.health == Health::Online) else {
            return Ok(false);
        };
        let here = UnitAddress {
            epoch: info.epoch,
            ..volume.address(index, disk)
        };
        let there = volume.address(index, &named);
        let mut after = None;
        loop {
            let page = client.inventory(&here, after, INVENTORY_LIMIT_MAX, DEADLINE);
            let Ok(page) = page.await else {
                return Ok(false);
            };
            let Some(last) = page.last().map(|entry| entry.key) else {
                return Ok(true);
            };
            let Some(present) = keys_between(named_client, &there, after, last).await else {
                return Ok(false);
            };
            let lacking = page.iter().filter(|entry| !present.contains(&entry.key));
            let lacking: BTreeSet<u64> = lacking.map(|entry| entry.key.blob).collect();
            let keys = |of: fn(u64, u64) -> Bytes| lacking.iter().map(|blob| of(volume.id, *blob)).collect();
            let rows = self.ledger.get_many::<BlobRow>(keys(key::blob)).await?;
            let garbage = self.ledger.get_many::<GarbageRow>(keys(key::garbage)).await?;
            for ((blob, row), garbage) in lacking.iter().zip(rows).zip(garbage) {
                if row.is_some() || (garbage.is_none() && *blob < kept_below) {
                    return Ok(false);
                }
            }
            after = Some(last);
        }
    }
}

/// The shards of a unit after `after`, up to `last`; none if the disk does not say.
async fn keys_between(
    client: &Arc<dyn StorageClient>,
    unit: &UnitAddress,
    after: Option<ShardKey>,
    last: ShardKey,
) -> Option<HashSet<ShardKey>> {
    let (mut keys, mut after) = (HashSet::new(), after);
    loop {
        let page = client.inventory(unit, after, INVENTORY_LIMIT_MAX, DEADLINE);
        let page = page.await.ok()?;
        keys.extend(page.iter().map(|entry| entry.key).filter(|key| *key <= last));
        match page.last() {
            Some(end) if page.len() == INVENTORY_LIMIT_MAX && end.key < last => after = Some(end.key),
            _ => return Some(keys),
        }
    }
}
