//! Compares the ledger with the disks, both ways: what is named must be there, whole and right; what is there must be named.

use crate::faults::SHARED;
use crate::world::{World, disk_id};
use ec_core::{Codec, Kernel, Scheme};
use gateway::ledger::key;
use gateway::ledger::model::{
    BlobRow, DiskRow, GarbageRow, IdRangeRow, Membership, ObjectRow, PartRow, SuspectRow, UnnamedRow,
    UploadRow, VolumeRow,
};
use gateway::object::encode;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use storage_node::client::INVENTORY_LIMIT_MAX;
use storage_node::protocol::*;

const DEADLINE: Duration = Duration::from_secs(60);

/// What a census found. Every list is empty in a cluster that is well and idle.
#[derive(Debug, Default)]
pub struct Census {
    /// Shards that a blob row needs and the right disk lacks, or has wrong.
    pub missing: Vec<String>,
    /// Shards whose blob no blob row names.
    pub unnamed: Vec<String>,
    /// Shards of a named blob in a unit that is not the disk's.
    pub stray: Vec<String>,
    /// Shards of a stripe that failed, behind the end of its blob. They go with it, and do no harm until then.
    pub tails: usize,
    /// Shards whose blob no blob row names, for reasons that ARCHITECTURE's debts name: sent before their gateway died, and arrived
    /// after what it left was swept; or copied by a drain, and deleted before their unit moved.
    pub unclaimed: usize,
    /// Shards in volumes that this ledger does not have: of a copy of it that was given up. They are left alone.
    pub astray: usize,
    /// Rows that contradict one another.
    pub rows: Vec<String>,
    /// Units that are not whole, or on a disk that is to hold nothing, or share a machine.
    pub units: Vec<String>,
    /// Rows of work that is left: garbage, what is set aside, suspects, id ranges of dead gateways.
    pub queued: Vec<String>,
    pub blobs: usize,
    pub shards: usize,
}

impl Census {
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty()
            && self.unnamed.is_empty()
            && self.stray.is_empty()
            && self.rows.is_empty()
            && self.units.is_empty()
            && self.queued.is_empty()
    }
}

type Held = BTreeMap<(DiskId, UnitId), (u32, BTreeMap<ShardKey, u32>)>;

impl World {
    /// What is still queued, or not where it should be: cheap, from rows alone.
    pub async fn unsettled(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (row_key, row) in self.table::<GarbageRow>(b'g').await {
            let blob = key::volume_and_blob(&row_key);
            left.push(format!("garbage {blob:?}, pending {:?}", row.pending));
        }
        for (row_key, row) in self.table::<UnnamedRow>(b'U').await {
            let blob = key::volume_and_blob(&row_key);
            left.push(format!("set aside {blob:?}, {row:?}"));
        }
        for (row_key, row) in self.table::<SuspectRow>(b's').await {
            left.push(format!(
                "suspect {:?}: {}",
                key::suspect_parts(&row_key),
                row.reason
            ));
        }
        let leases: BTreeSet<u64> = self
            .table::<gateway::ledger::model::LeaseRow>(b'l')
            .await
            .iter()
            .filter_map(|(row_key, _)| key::single_number(row_key))
            .collect();
        for (row_key, row) in self.table::<IdRangeRow>(b'r').await {
            let range = key::id_range_parts(&row_key);
            if range.is_some_and(|(lease, _)| !leases.contains(&lease)) {
                left.push(format!("id range {range:?}, swept {:?}", row.swept));
            }
        }
        left
    }

    /// Units that are not where they should be.
    pub async fn displaced(&self) -> Vec<String> {
        let disks: BTreeMap<DiskId, DiskRow> = self
            .table::<DiskRow>(b'd')
            .await
            .into_iter()
            .map(|(row_key, row)| (DiskId(key::disk_id(&row_key).expect("a disk's key")), row))
            .collect();
        let mut wrong = Vec::new();
        for (row_key, row) in self.table::<VolumeRow>(b'v').await {
            let volume = key::single_number(&row_key).expect("a volume's key");
            let mut machines = BTreeSet::new();
            for (index, id) in row.disks.iter().enumerate() {
                let id = disk_id(id);
                let Some(disk) = disks.get(&id) else {
                    wrong.push(format!("unit {volume}/{index} is on a disk without row: {id}"));
                    continue;
                };
                if disk.membership() != Membership::Active {
                    wrong.push(format!(
                        "unit {volume}/{index} is on {}, {:?}",
                        disk.label,
                        disk.membership()
                    ));
                }
                if !machines.insert(disk.node.clone()) {
                    wrong.push(format!("volume {volume} ({}){SHARED}{}", row.scheme, disk.label));
                }
            }
            if !row.incomplete.is_empty() {
                wrong.push(format!(
                    "volume {volume}: units {:?} are not whole",
                    row.incomplete
                ));
            }
        }
        wrong
    }

    /// Looks at everything that machines serve.
    pub async fn census(&self) -> Census {
        let mut census = Census {
            queued: self.unsettled().await,
            units: self.displaced().await,
            ..Census::default()
        };
        let blobs: BTreeMap<(u64, u64), BlobRow> = self
            .table::<BlobRow>(b'B')
            .await
            .into_iter()
            .filter_map(|(row_key, row)| Some((key::volume_and_blob(&row_key)?, row)))
            .collect();
        census.blobs = blobs.len();
        self.check_references(&blobs, &mut census).await;
        let mut held = self.held().await;
        census.shards = held.values().map(|(_, shards)| shards.len()).sum();
        let volumes: BTreeMap<u64, VolumeRow> = self
            .table::<VolumeRow>(b'v')
            .await
            .into_iter()
            .filter_map(|(row_key, row)| Some((key::single_number(&row_key)?, row)))
            .collect();
        for (&(volume, blob), row) in &blobs {
            match volumes.get(&volume) {
                Some(found) => {
                    self.check_blob((volume, found), (blob, row), &mut held, &mut census)
                        .await
                }
                None => census
                    .rows
                    .push(format!("blob {blob} is in volume {volume}, which has no row")),
            }
        }
        for ((disk, unit), (epoch, shards)) in held {
            let owns = |row: &VolumeRow| {
                row.disks
                    .get(usize::from(unit.index))
                    .is_some_and(|id| disk_id(id) == disk)
            };
            let is_its = volumes.get(&unit.volume).is_some_and(owns);
            for key in shards.into_keys() {
                let what = format!("{key:?} of {unit:?} (epoch {epoch}) on {disk}");
                match blobs.contains_key(&(unit.volume, key.blob)) {
                    true if is_its => census.tails += 1, // What the blob has by its length was taken out.
                    // Of a ledger that was given up, or kept because it holds what may be of one.
                    _ if self.has_copy_acted() && !is_its => census.astray += 1,
                    true => census.stray.push(what),
                    false if epoch > 1 || self.is_straggler(unit, key) => census.unclaimed += 1,
                    false => census.unnamed.push(what),
                }
            }
        }
        census
    }

    fn is_straggler(&self, unit: UnitId, key: ShardKey) -> bool {
        self.ways.iter().any(|way| way.is_straggler(unit, key))
    }

    /// Every shard of every disk that is served and has a row.
    async fn held(&self) -> Held {
        let mut held = Held::new();
        for way in &self.ways {
            for (disk, engine) in way.machine.engines() {
                if self.owner(disk).await != Some(way.machine.id) {
                    continue;
                }
                let units = engine.units().unwrap_or_default();
                for info in units.into_iter().filter(|info| !info.unit.is_system()) {
                    let address = address(disk, info.unit, info.epoch);
                    let listed = engine.inventory(&address, None, INVENTORY_LIMIT_MAX);
                    let shards = listed.expect("an inventory").into_iter().map(|e| (e.key, e.len));
                    held.insert((disk, info.unit), (info.epoch, shards.collect()));
                }
            }
        }
        held
    }

    /// Takes a blob's shards out of what is held, checking each.
    async fn check_blob(
        &self,
        (volume, volume_row): (u64, &VolumeRow),
        (blob, row): (u64, &BlobRow),
        held: &mut Held,
        census: &mut Census,
    ) {
        let scheme: Scheme = volume_row.scheme.parse().expect("a scheme");
        let codec = Codec::new(scheme, Kernel::Scalar).expect("a codec");
        let geometry = encode::geometry(&codec, row.length).expect("a length");
        for stripe in 0..geometry.stripes() {
            let key = ShardKey { blob, stripe };
            let mut digests: Option<Vec<[u8; 32]>> = None;
            for (index, id) in volume_row.disks.iter().enumerate() {
                let (disk, unit) = (
                    disk_id(id),
                    UnitId {
                        volume,
                        index: index as u8,
                    },
                );
                let what = format!("{key:?} of {unit:?} ({scheme}, {}) on {disk}", row.owner);
                let Some((epoch, len)) = held
                    .get_mut(&(disk, unit))
                    .and_then(|(epoch, shards)| Some((*epoch, shards.remove(&key)?)))
                else {
                    census.missing.push(what);
                    continue;
                };
                if epoch > volume_row.epoch {
                    census.units.push(format!(
                        "{what}: epoch {epoch}, the ledger has {}",
                        volume_row.epoch
                    ));
                }
                if len != geometry.shard_len(stripe) {
                    census.missing.push(format!("{what}: {len} bytes"));
                    continue;
                }
                match self.read(disk, unit, epoch, key).await {
                    Err(error) => census.missing.push(format!("{what}: {error}")),
                    Ok(shard) => {
                        let seed = seal_seed(unit, key, len);
                        if bad_block(seed, &shard.payload, &shard.block_crcs).is_some()
                            || shard.digests.get(index) != Some(blake3::hash(&shard.payload).as_bytes())
                        {
                            census.missing.push(format!("{what}: wrong bytes"));
                        }
                        if *digests.get_or_insert_with(|| shard.digests.clone()) != shard.digests {
                            census
                                .missing
                                .push(format!("{what}: other digests than its stripe"));
                        }
                    }
                }
            }
        }
    }

    async fn read(
        &self,
        disk: DiskId,
        unit: UnitId,
        epoch: u32,
        key: ShardKey,
    ) -> Result<ShardBlocks, NodeError> {
        let engines = self.ways.iter().flat_map(|way| way.machine.engines());
        let found = engines.into_iter().find(|(id, _)| *id == disk);
        let (_, engine) = found.ok_or(NodeError::WrongDisk)?;
        let address = address(disk, unit, epoch);
        engine.get(&address, key, BlockRange::ALL, DEADLINE).await
    }

    /// Counts who refers to each blob.
    async fn check_references(&self, blobs: &BTreeMap<(u64, u64), BlobRow>, census: &mut Census) {
        let mut uploads = BTreeSet::new();
        for (row_key, _) in self.table::<UploadRow>(b'u').await {
            uploads.insert(key::upload_name(&row_key).expect("an upload's key").1);
        }
        let mut named = Vec::new();
        for (row_key, row) in self.table::<ObjectRow>(b'o').await {
            if row.blobs.iter().map(|b| b.length).sum::<u64>() != row.size {
                let name = key::object_name(&row_key);
                census
                    .rows
                    .push(format!("object {name:?}: its blobs are not its size"));
            }
            named.extend(row.blobs);
        }
        for (row_key, row) in self.table::<PartRow>(b'p').await {
            let upload = u128::from_be_bytes(row_key[1..17].try_into().expect("a part's key"));
            if !uploads.contains(&upload) {
                census.rows.push(format!(
                    "part {:?} of an upload that is gone",
                    key::part_number(&row_key)
                ));
            }
            named.extend(row.blobs);
        }
        let mut counted: BTreeMap<(u64, u64), u32> = BTreeMap::new();
        for blob in named {
            *counted.entry((blob.volume, blob.blob)).or_default() += 1;
            match blobs.get(&(blob.volume, blob.blob)) {
                None => census.rows.push(format!("{blob:?} is named and has no row")),
                Some(row) if row.length != blob.length => {
                    census.rows.push(format!("{blob:?} is not {row:?}"))
                }
                Some(_) => {}
            }
        }
        for (blob, row) in blobs {
            let count = counted.get(blob).copied().unwrap_or(0);
            if count != row.references {
                census
                    .rows
                    .push(format!("{blob:?} has {count} references, its row says {row:?}"));
            }
        }
    }
}

fn address(disk: DiskId, unit: UnitId, epoch: u32) -> UnitAddress {
    UnitAddress {
        disk,
        incarnation: 1,
        unit,
        epoch,
        ledger: storage_node::protocol::Generation::NONE,
    }
}
