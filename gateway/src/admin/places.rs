//! Where things are: a volume's units, an object's shards, and when they were last looked at.

use super::operations::{Answer, Refusal};
use super::status::membership_word;
use crate::error::Error;
use crate::ledger::model::VolumeState;
use crate::object::Objects;
use crate::object::condition::ReadConditions;
use crate::object::encode;
use crate::object::get::Wanted;
use crate::placement::volumes::Volume;
use serde::{Deserialize, Serialize};
use storage_node::protocol::DiskId;

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
                Some(disk) => (disk.standing().word(), membership_word(disk.membership)),
            };
            UnitDetail {
                disk: disk
                    .as_ref()
                    .map_or_else(|| id.to_string(), |disk| disk.label.clone()),
                state: state.into(),
                membership: membership.into(),
                whole: volume.is_whole(index),
                verified_ms: disk.and_then(|disk| disk.last_verified_ms(self.clock.now_ms())),
                census_ms: None,
                census_missing: 0,
            }
        };
        let (spare, readable) = self.spare(volume, &[]);
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
    async fn volume_detail_censused(&self, volume: &Volume) -> crate::error::Result<VolumeDetail> {
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
