//! Writes entries to the disks: each is a blob of a system volume, copied to m + 1 disks in distinct failure domains.
//!
//! A system volume is a group of disks that nobody else knows of: its id is random, its units are found by it. It is used as long as all its
//! disks can be written; then comes another.
//!
//! Invariant: an entry is written when every copy is durable. One that was written in part is written again, whole, there or elsewhere.

use super::entry::{EntryError, Header};
use super::finding::{Finder, Found, Place, Places};
use super::state::Rotten;
use crate::cluster::disks::no_node;
use crate::error::{Error, Result};
use crate::object::{Objects, encode, off_reactor};
use crate::placement::choose::{Candidate, choose};
use bytes::Bytes;
use ec_core::Scheme;
use futures::future::join_all;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{
    DiskId, SHARD_BYTES_MAX, SYSTEM_VOLUME_MIN, SealedShard, ShardKey, UnitAddress, UnitId,
};
use tokio::time::Instant;

/// A stripe has this long to be durable on a disk.
const STRIPE_TIME: Duration = Duration::from_secs(10);
/// Volumes that an entry is offered to.
const ATTEMPTS_MAX: usize = 4;
/// A disk that failed gets no entry for so long.
const AVOIDED: Duration = Duration::from_secs(10);
/// The epoch of every system volume: its disks never change.
const EPOCH: u32 = 1;

/// A group of disks that holds entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemVolume {
    /// Its id.
    pub id: u64,
    /// The disks of its units, in index order.
    pub disks: Vec<DiskId>,
}

/// How many copies an entry has: one more than the losses that the cluster survives.
pub fn scheme(of: Scheme) -> Result<Scheme> {
    Scheme::replica(of.losses_survived() + 1)
        .map_err(|e| Error::Internal(format!("the archive's scheme: {e}")))
}

/// What became of a copy that was found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It was written anew.
    Written,
    /// It is right, or is not there any more.
    NotNeeded,
    /// There is no right copy of the entry.
    NoCopyIsRight,
}

/// Writes to one volume after the other.
pub struct SystemBlobs {
    objects: Arc<Objects>,
    scheme: Scheme,
    volume: Option<SystemVolume>,
    /// The volumes that it made.
    own: HashSet<u64>,
    /// Disks that failed, and when. A volume takes an extent of each of its disks: there must not be one for every attempt.
    failed: HashMap<DiskId, Instant>,
}

impl SystemBlobs {
    /// For the disks of a gateway.
    pub fn new(objects: Arc<Objects>) -> Result<SystemBlobs> {
        let scheme = scheme(objects.scheme)?;
        Ok(SystemBlobs {
            objects,
            scheme,
            volume: None,
            own: HashSet::new(),
            failed: HashMap::new(),
        })
    }

    /// Goes on with a volume that is there already, if all of it is.
    pub fn take_up(&mut self, found: &Found) {
        let mut volumes: BTreeMap<u64, BTreeMap<u8, DiskId>> = BTreeMap::new();
        for place in found.units.keys() {
            let disks = volumes.entry(place.unit.volume).or_default();
            disks.insert(place.unit.index, place.disk);
        }
        let whole = volumes.into_iter().map(|(id, disks)| SystemVolume {
            id,
            disks: disks.into_values().collect(),
        });
        // Which of them does not matter.
        self.volume = whole.into_iter().find(|volume| self.is_usable(volume));
    }

    /// The disks in use.
    pub fn volume(&self) -> Option<&SystemVolume> {
        self.volume.as_ref()
    }

    /// The volumes that this process made.
    pub fn own(&self) -> &HashSet<u64> {
        &self.own
    }

    fn is_usable(&self, volume: &SystemVolume) -> bool {
        let disks = &self.objects.disks;
        let level = disks.level(self.scheme.total_shards());
        let writable = |id: &DiskId| disks.get(*id).filter(|disk| disk.writable());
        let domains: HashSet<u128> = volume
            .disks
            .iter()
            .filter_map(writable)
            .map(|disk| disk.domain(level))
            .collect();
        volume.disks.len() == self.scheme.total_shards() && domains.len() == volume.disks.len()
    }

    /// A volume whose disks can all be written.
    fn pick(&mut self, avoid: &HashSet<DiskId>) -> Result<SystemVolume> {
        let known = self.volume.take();
        let known = known.filter(|volume| self.is_usable(volume));
        if let Some(known) = known.filter(|volume| volume.disks.iter().all(|disk| !avoid.contains(disk))) {
            self.volume = Some(known.clone());
            return Ok(known);
        }
        let disks = &self.objects.disks;
        let copies = self.scheme.total_shards();
        let level = disks.level(copies);
        let all = disks.all();
        let usable = all
            .iter()
            .filter(|disk| disk.writable() && !avoid.contains(&disk.id));
        let candidate = |disk: &Arc<crate::cluster::disks::Disk>| {
            let status = disk.status.as_ref();
            Candidate {
                disk: disk.id,
                domain: disk.domain(level),
                free_bytes: status.map_or(0, |status| status.free_bytes),
                capacity_bytes: status.map_or(0, |status| status.capacity_bytes),
                open_units: 0,
            }
        };
        let candidates: Vec<Candidate> = usable.map(candidate).collect();
        let id = SYSTEM_VOLUME_MIN | rand::random::<u64>();
        let disks = choose(&candidates, copies, id).ok_or_else(|| {
            Error::WriteFailed(format!(
                "the archive of the ledger needs {copies} disks in failure domains of their own, and {} can be written",
                candidates.len()
            ))
        })?;
        let volume = SystemVolume { id, disks };
        self.own.insert(id);
        self.volume = Some(volume.clone());
        Ok(volume)
    }

    /// Writes an entry, durably. Where it is then.
    pub async fn write(&mut self, header: &Header, body: &[u8]) -> Result<Places> {
        let mut bytes = header.encode();
        bytes.extend_from_slice(body);
        let bytes = Bytes::from(bytes);
        self.failed.retain(|_, at| at.elapsed() < AVOIDED);
        let mut failure = None;
        for _ in 0..ATTEMPTS_MAX {
            let avoid = self.failed.keys().copied().collect();
            let volume = match (self.pick(&avoid), failure.take()) {
                (Ok(volume), _) => volume,
                // That a disk failed says more than that too few are left.
                (Err(_), Some(failure)) => return Err(failure),
                (Err(error), None) => return Err(error),
            };
            match self.write_to(&volume, header.number, &bytes).await {
                Ok(()) => return Ok(places(&volume)),
                Err((disks, error)) => {
                    self.failed
                        .extend(disks.into_iter().map(|disk| (disk, Instant::now())));
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::Internal("an entry was not offered to any disk".into())))
    }

    /// Writes a copy of an entry anew, from one that is right, and reads it back. An error if a disk that may have a right copy does not
    /// answer.
    pub async fn renew(&self, finder: &Finder, copy: &Rotten) -> Result<Renewed> {
        let places = finder.places_of(copy.unit.volume).await;
        let places = places.ok_or_else(|| Error::WriteFailed("a disk does not say what it has".into()))?;
        let is_it = |place: &&Place| place.disk == copy.disk && place.unit == copy.unit;
        let Some(place) = places.iter().find(is_it) else {
            return Ok(Renewed::NotNeeded); // It was dropped meanwhile.
        };
        let others: Vec<Place> = places.iter().filter(|place| !is_it(place)).copied().collect();
        let silent = || Error::WriteFailed(EntryError::Silent.to_string());
        let header = match finder.header(copy.number, &others).await {
            Ok(header) => header,
            Err(EntryError::Silent) => return Err(silent()),
            Err(_) => return Ok(Renewed::NoCopyIsRight),
        };
        if finder.is_right(&header, place).await {
            return Ok(Renewed::NotNeeded);
        }
        let body = match finder.body(&header, &others).await {
            Ok(body) => body,
            Err(EntryError::Silent) => return Err(silent()),
            Err(_) => return Ok(Renewed::NoCopyIsRight),
        };
        let mut bytes = header.encode();
        bytes.extend_from_slice(&body);
        let bytes = Bytes::from(bytes);
        for (stripe, start) in (0..).zip((0..bytes.len()).step_by(SHARD_BYTES_MAX as usize)) {
            let part = bytes.slice(start..bytes.len().min(start + SHARD_BYTES_MAX as usize));
            let key = ShardKey {
                blob: copy.number,
                stripe,
            };
            let shards = self.seal(copy.unit.volume, key, part).await?;
            let shard = shards.into_iter().nth(usize::from(copy.unit.index));
            let shard = shard.ok_or_else(|| Error::Internal("a unit that no entry has".into()))?;
            self.put_at(place.disk, place.unit, shard)
                .await
                .map_err(|error| Error::WriteFailed(format!("the archive of the ledger: {error}")))?;
        }
        match finder.is_right(&header, place).await {
            true => Ok(Renewed::Written),
            false => Err(Error::WriteFailed(
                "a copy was written and does not read back right".into(),
            )),
        }
    }

    async fn write_to(
        &self,
        volume: &SystemVolume,
        number: u64,
        entry: &Bytes,
    ) -> std::result::Result<(), (Vec<DiskId>, Error)> {
        for (stripe, start) in (0..).zip((0..entry.len()).step_by(SHARD_BYTES_MAX as usize)) {
            let bytes = entry.slice(start..entry.len().min(start + SHARD_BYTES_MAX as usize));
            let key = ShardKey { blob: number, stripe };
            let shards = self.seal(volume.id, key, bytes).await;
            let shards = shards.map_err(|error| (Vec::new(), error))?;
            let sent = shards.into_iter().enumerate().map(|(index, shard)| async move {
                let id = volume.disks[index];
                let stored = self.put(volume, index as u8, shard).await;
                stored.map_err(|error| (id, error))
            });
            let failed: Vec<_> = join_all(sent)
                .await
                .into_iter()
                .filter_map(|sent| sent.err())
                .collect();
            if let Some((_, error)) = failed.first() {
                let error = Error::WriteFailed(format!("the archive of the ledger: {error}"));
                return Err((failed.iter().map(|(disk, _)| *disk).collect(), error));
            }
        }
        Ok(())
    }

    async fn seal(&self, volume: u64, key: ShardKey, bytes: Bytes) -> Result<Vec<SealedShard>> {
        let codec = self.objects.codecs.get(self.scheme)?;
        off_reactor(move || encode::encode(&codec, &bytes, volume, key)).await?
    }

    async fn put(
        &self,
        volume: &SystemVolume,
        index: u8,
        shard: SealedShard,
    ) -> std::result::Result<(), storage_node::protocol::NodeError> {
        let unit = UnitId {
            volume: volume.id,
            index,
        };
        self.put_at(volume.disks[usize::from(index)], unit, shard).await
    }

    async fn put_at(
        &self,
        disk: DiskId,
        unit: UnitId,
        shard: SealedShard,
    ) -> std::result::Result<(), storage_node::protocol::NodeError> {
        let disks = &self.objects.disks;
        let disk = disks.get(disk).ok_or_else(no_node)?;
        let address = UnitAddress {
            disk: disk.id,
            incarnation: disk.incarnation,
            unit,
            epoch: EPOCH,
            ledger: disk.ledger,
        };
        disks.put_shard(&disk, &address, shard, STRIPE_TIME).await
    }
}

fn places(volume: &SystemVolume) -> Places {
    let place = |(index, disk): (usize, &DiskId)| Place {
        disk: *disk,
        unit: UnitId {
            volume: volume.id,
            index: index as u8,
        },
        epoch: EPOCH,
    };
    Arc::new(volume.disks.iter().enumerate().map(place).collect())
}
