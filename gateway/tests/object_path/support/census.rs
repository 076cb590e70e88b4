//! Compares the ledger with the disks, both ways: what is named must be there, whole; what is there must be named.

use super::cluster::{Cluster, World};
use super::memory_node::verify;
use bytes::Bytes;
use ec_core::{Codec, Kernel, Scheme};
use gateway::ledger::model::{
    BlobRow, BucketRow, GarbageRow, IdRangeRow, ObjectRow, PartRow, SealsRow, SuspectRow, UploadRow,
    VolumeRow,
};
use gateway::ledger::{Typed, key};
use gateway::object::encode;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use storage_node::protocol::{DiskId, SealedShard, ShardKey, UnitId};

/// What a census found. Every list is empty in a cluster that is well and idle.
#[derive(Debug, Default)]
pub struct Census {
    /// Shards that a blob row needs and the right disk lacks, or has wrong.
    pub missing: Vec<String>,
    /// Shards whose blob no blob row names.
    pub unnamed: Vec<String>,
    /// Shards of a named blob that it does not have by its length, or that are on a wrong disk.
    pub stray: Vec<String>,
    /// Rows that contradict one another.
    pub rows: Vec<String>,
    pub garbage: usize,
    pub suspects: usize,
    pub id_ranges: usize,
    pub blobs: usize,
    /// Blobs by scheme.
    pub schemes: BTreeMap<String, usize>,
}

impl Census {
    /// Nothing is missing, unnamed, stray, contradictory or queued.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(
            self.missing.is_empty()
                && self.unnamed.is_empty()
                && self.stray.is_empty()
                && self.rows.is_empty(),
            "{self:#?}"
        );
        assert_eq!((self.garbage, self.suspects), (0, 0), "{self:#?}");
    }

    /// As `assert_clean`, but shards that a failed stripe left under a named blob are let pass.
    #[track_caller]
    pub fn assert_whole(&self) {
        assert!(
            self.missing.is_empty() && self.unnamed.is_empty() && self.rows.is_empty(),
            "{self:#?}"
        );
        assert_eq!(self.garbage, 0, "{self:#?}");
    }
}

struct Volume {
    scheme: Scheme,
    disks: Vec<DiskId>,
}

type Shards = BTreeMap<(DiskId, UnitId, ShardKey), SealedShard>;

impl World {
    pub async fn census(&self) -> Census {
        self.cluster.census().await
    }
}

impl Cluster {
    async fn table<T: Message + Default>(&self, tag: u8) -> Vec<(Bytes, T)> {
        let mut rows = Vec::new();
        let each = |row_key, row: Typed<T>| rows.push((row_key, row.row));
        self.ledger().for_each(key::table(tag), each).await.unwrap();
        rows
    }

    /// Looks at everything. Disks that are away are looked at too.
    pub async fn census(&self) -> Census {
        let mut census = Census {
            garbage: self.table::<GarbageRow>(b'g').await.len(),
            suspects: self.table::<SuspectRow>(b's').await.len(),
            id_ranges: self.table::<IdRangeRow>(b'r').await.len(),
            ..Default::default()
        };
        let blobs: BTreeMap<(u64, u64), BlobRow> = self
            .table(b'B')
            .await
            .into_iter()
            .map(|(k, row)| (key::volume_and_blob(&k).unwrap(), row))
            .collect();
        census.blobs = blobs.len();
        self.check_seals(&blobs, &mut census).await;
        self.check_references(&blobs, &mut census).await;
        let mut volumes = BTreeMap::new();
        for (row_key, row) in self.table::<VolumeRow>(b'v').await {
            let disk = |b: &Bytes| DiskId(u128::from_be_bytes(b[..].try_into().unwrap()));
            let disks: Vec<DiskId> = row.disks.iter().map(disk).collect();
            if disks.iter().collect::<BTreeSet<_>>().len() != disks.len() {
                census.rows.push(format!("a disk is twice in a volume: {row:?}"));
            }
            volumes.insert(
                key::single_number(&row_key).unwrap(),
                Volume {
                    scheme: row.scheme.parse().unwrap(),
                    disks,
                },
            );
        }
        let mut shards = Shards::new();
        self.node.each(|id, disk| {
            shards.extend(
                disk.shards()
                    .map(|(unit, shard)| ((id, unit, shard.key), shard.clone())),
            );
        });
        for ((volume, blob), row) in &blobs {
            check_blob(*volume, &volumes[volume], *blob, row, &mut shards, &mut census);
        }
        for (disk, unit, shard) in shards.into_keys() {
            let what = format!("{shard:?} of {unit:?} on {disk}");
            match blobs.contains_key(&(unit.volume, shard.blob)) {
                true => census.stray.push(what),
                false => census.unnamed.push(what),
            }
        }
        census
    }

    /// Every blob has its seals, and no other has any, unless its shards are still to be deleted.
    async fn check_seals(&self, blobs: &BTreeMap<(u64, u64), BlobRow>, census: &mut Census) {
        let keys = |rows: Vec<Bytes>| -> BTreeSet<(u64, u64)> {
            rows.iter()
                .filter_map(|row_key| key::volume_and_blob(row_key))
                .collect()
        };
        let sealed = self.table::<SealsRow>(b'e').await;
        let sealed = keys(sealed.into_iter().map(|(row_key, _)| row_key).collect());
        let garbage = self.table::<GarbageRow>(b'g').await;
        let garbage = keys(garbage.into_iter().map(|(row_key, _)| row_key).collect());
        let unsealed = blobs.keys().filter(|blob| !sealed.contains(blob));
        let left = sealed
            .iter()
            .filter(|blob| !blobs.contains_key(blob) && !garbage.contains(blob));
        census
            .rows
            .extend(unsealed.map(|blob| format!("blob {blob:?} has no seals")));
        census
            .rows
            .extend(left.map(|blob| format!("seals of {blob:?}, which is gone")));
    }

    /// Counts who refers to each blob, and checks that parts have uploads and objects and uploads have buckets.
    async fn check_references(&self, blobs: &BTreeMap<(u64, u64), BlobRow>, census: &mut Census) {
        let buckets: BTreeSet<u64> = self
            .table::<BucketRow>(b'b')
            .await
            .into_iter()
            .map(|(_, b)| b.id)
            .collect();
        let bucket_of = |k: &Bytes| u64::from_be_bytes(k[1..9].try_into().unwrap());
        let mut uploads = BTreeSet::new();
        for (row_key, _) in self.table::<UploadRow>(b'u').await {
            uploads.insert(key::upload_name(&row_key).unwrap().1);
            if !buckets.contains(&bucket_of(&row_key)) {
                census
                    .rows
                    .push(format!("an upload without a bucket: {}", row_key.escape_ascii()));
            }
        }
        let mut named = Vec::new();
        for (row_key, row) in self.table::<ObjectRow>(b'o').await {
            if !buckets.contains(&bucket_of(&row_key)) {
                census
                    .rows
                    .push(format!("an object without a bucket: {}", row_key.escape_ascii()));
            }
            if row.blobs.iter().map(|b| b.length).sum::<u64>() != row.size {
                census.rows.push(format!(
                    "an object whose blobs are not its size: {}",
                    row_key.escape_ascii()
                ));
            }
            named.extend(row.blobs);
        }
        for (row_key, row) in self.table::<PartRow>(b'p').await {
            let upload = u128::from_be_bytes(row_key[1..17].try_into().unwrap());
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

/// Takes the shards of a blob out of `shards`, checking each, and that the parity is that of the data.
fn check_blob(
    volume_id: u64,
    volume: &Volume,
    blob: u64,
    row: &BlobRow,
    shards: &mut Shards,
    census: &mut Census,
) {
    let codec = Codec::new(volume.scheme, Kernel::Scalar).unwrap();
    let geometry = encode::geometry(&codec, row.length).unwrap();
    *census.schemes.entry(volume.scheme.to_string()).or_default() += 1;
    for stripe in 0..geometry.stripes() {
        let key = ShardKey { blob, stripe };
        let mut payloads = Vec::new();
        let mut digests = Vec::new();
        for (index, disk) in volume.disks.iter().enumerate() {
            let unit = UnitId {
                volume: volume_id,
                index: index as u8,
            };
            let what = format!("{key:?} of {unit:?} ({}, {}) on {disk}", volume.scheme, row.owner);
            let Some(shard) = shards.remove(&(*disk, unit, key)) else {
                census.missing.push(what);
                continue;
            };
            if let Err(why) = verify(unit, &shard) {
                census.missing.push(format!("{what}: {why}"));
            } else if shard.payload.len() as u32 != geometry.shard_len(stripe) {
                census
                    .missing
                    .push(format!("{what}: {} bytes", shard.payload.len()));
            }
            payloads.push(shard.payload);
            digests.push(shard.seal.digests);
        }
        if payloads.len() < volume.disks.len() || payloads.iter().any(|p| p.len() != payloads[0].len()) {
            continue;
        }
        if digests.windows(2).any(|pair| pair[0] != pair[1]) {
            census
                .missing
                .push(format!("{key:?}: its shards disagree on the digests"));
        }
        let (data, parity) = payloads.split_at(volume.scheme.data_shards());
        let mut computed = vec![vec![0; payloads[0].len()]; parity.len()];
        let data: Vec<&[u8]> = data.iter().map(|p| p.as_ref()).collect();
        codec
            .encode(
                &data,
                &mut computed.iter_mut().map(|p| p.as_mut_slice()).collect::<Vec<_>>(),
            )
            .unwrap();
        if computed
            .iter()
            .zip(parity)
            .any(|(computed, stored)| computed[..] != stored[..])
        {
            census
                .missing
                .push(format!("{key:?}: the parity is not that of the data"));
        }
    }
}
