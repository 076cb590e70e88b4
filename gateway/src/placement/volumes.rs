//! The volumes: finding the one a blob is in, and the one a new blob goes to.
//!
//! Width shrinks, parity never: when fewer than k+m failure domains can be written, new blobs go to volumes of a
//! narrower scheme with the same parity. Only when not even the narrowest finds enough disks that are trusted, those that are
//! not are taken too, the worst last: a write that may fail is better than one that is refused. Rows are cached; a volume's disks change only with its epoch, and a node
//! that refuses an old epoch makes the reader fetch the row anew.

use super::begun::Begun;
use super::choose::{self, Candidate};
use super::found::FoundVolume;
use crate::cluster::conduct::Trust;
use crate::cluster::disks::{Disk, Disks, Health};
use crate::cluster::lease::Lease;
use crate::error::{Error, Result};
use crate::ledger::model::{DiskRow, Membership, VolumeRow, VolumeState};
use crate::ledger::store::LedgerError;
use crate::ledger::{CommitBuilder, Ledger, Typed, key};
use bytes::Bytes;
use ec_core::Scheme;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use storage_node::protocol::{DiskId, UnitAddress, UnitId};
use tokio::sync::Mutex;

/// How often a volume is looked for, or made, before the upload that wants it fails.
const PICK_ATTEMPTS: usize = 4;
/// Volumes of one scheme that are open at once, when there are enough disks for different groups.
const OPEN_VOLUMES: usize = 4;
/// A volume is sealed when its units have used this share of the smallest of its disks.
const UNIT_SHARE: u64 = 32;
/// But not before: every volume takes an extent of each of its disks, and those of small disks are few.
const UNIT_BYTES_MIN: u64 = 4 << 20;

/// A volume, as of one epoch.
#[derive(Debug)]
pub struct Volume {
    /// Its id.
    pub id: u64,
    /// Its scheme.
    pub scheme: Scheme,
    /// Its epoch.
    pub epoch: u32,
    /// Whether it takes new blobs, according to the ledger.
    pub state: VolumeState,
    /// The disk of each unit, in index order.
    pub disks: Vec<DiskId>,
    /// Units that moved to another disk and are not whole there yet.
    pub incomplete: Vec<u8>,
    /// Shard bytes written to each unit since this gateway started, or found there when it did.
    used_bytes: AtomicU64,
}

impl Volume {
    fn from_row(id: u64, row: &VolumeRow) -> Result<Volume> {
        let damaged = |what: String| Error::Internal(format!("volume {id}: {what}"));
        let scheme: Scheme = row.scheme.parse().map_err(|e| damaged(format!("{e}")))?;
        let disk = |b: &Bytes| b.as_ref().try_into().ok().map(|b| DiskId(u128::from_be_bytes(b)));
        let disks: Option<Vec<DiskId>> = row.disks.iter().map(disk).collect();
        match disks {
            Some(disks) if disks.len() == scheme.total_shards() => Ok(Volume {
                id,
                scheme,
                epoch: row.epoch,
                state: row.state(),
                disks,
                incomplete: row
                    .incomplete
                    .iter()
                    .filter_map(|i| u8::try_from(*i).ok())
                    .collect(),
                used_bytes: AtomicU64::new(0),
            }),
            _ => Err(damaged(format!(
                "{} disks recorded for {scheme}",
                row.disks.len()
            ))),
        }
    }

    /// Whether the unit at `index` has all that it should.
    pub fn is_whole(&self, index: u8) -> bool {
        !self.incomplete.contains(&index)
    }

    /// The unit at `index`.
    pub fn unit(&self, index: u8) -> UnitId {
        UnitId {
            volume: self.id,
            index,
        }
    }

    /// Where requests for the unit at `index` go.
    pub fn address(&self, index: u8, disk: &Disk) -> UnitAddress {
        UnitAddress {
            disk: disk.id,
            incarnation: disk.incarnation,
            unit: self.unit(index),
            epoch: self.epoch,
            ledger: disk.ledger,
        }
    }

    /// Bytes of each of its units, as far as is known.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Counts bytes written to each of its units.
    pub fn add_used(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The volumes that are known; those that take new blobs also in a list of their own, by id.
#[derive(Default)]
struct Cache {
    by_id: HashMap<u64, Arc<Volume>>,
    open: Vec<Arc<Volume>>,
}

impl Cache {
    fn insert(&mut self, volume: Arc<Volume>) {
        if let Some(before) = self.by_id.insert(volume.id, volume.clone()) {
            volume.add_used(before.used_bytes.load(Ordering::Relaxed));
        }
        self.open.retain(|v| v.id != volume.id);
        if volume.state == VolumeState::Open {
            let at = self.open.partition_point(|v| v.id < volume.id);
            self.open.insert(at, volume);
        }
    }
}

/// All volumes.
pub struct Volumes {
    ledger: Ledger,
    lease: Arc<Lease>,
    disks: Arc<Disks>,
    cache: RwLock<Cache>,
    creating: Mutex<()>,
    begun: Begun,
    /// What disks say of volumes, where the ledger is behind them; empty else.
    found: RwLock<HashMap<u64, FoundVolume>>,
}

impl Volumes {
    /// Reads the volumes from the ledger.
    pub async fn load(ledger: Ledger, lease: Arc<Lease>, disks: Arc<Disks>) -> Result<Volumes> {
        let mut cache = Cache::default();
        let mut damaged = None;
        ledger
            .for_each(
                key::table(b'v'),
                |row_key, Typed { row, .. }: Typed<VolumeRow>| {
                    let Some(id) = key::single_number(&row_key) else {
                        return;
                    };
                    match Volume::from_row(id, &row) {
                        Ok(volume) => cache.insert(Arc::new(volume)),
                        Err(error) => damaged = Some(error),
                    }
                },
            )
            .await?;
        match damaged {
            Some(error) => Err(error),
            None => Ok(Volumes {
                ledger,
                lease,
                disks,
                cache: RwLock::new(cache),
                creating: Mutex::new(()),
                begun: Begun::default(),
                found: RwLock::default(),
            }),
        }
    }

    /// A volume by id, from the cache or the ledger.
    pub async fn get(&self, id: u64) -> Result<Arc<Volume>> {
        let cached = self.read().by_id.get(&id).cloned();
        match cached {
            Some(volume) => Ok(volume),
            None => self.refresh(id).await,
        }
    }

    /// A volume by id, from the ledger.
    pub async fn refresh(&self, id: u64) -> Result<Arc<Volume>> {
        let row = self.ledger.get::<VolumeRow>(key::volume(id)).await?;
        let row = row.ok_or_else(|| Error::Internal(format!("the ledger has no volume {id}")))?;
        let volume = Arc::new(self.as_found(Volume::from_row(id, &row.row)?));
        self.write().insert(volume.clone());
        Ok(volume)
    }

    /// Reads units where disks say that they are, from now on: the ledger is behind them.
    pub fn set_found(&self, found: HashMap<u64, FoundVolume>) {
        *self.found.write().unwrap_or_else(|e| e.into_inner()) = found;
        for volume in self.all() {
            let known = Volume {
                used_bytes: AtomicU64::new(0), // Nothing is written.
                disks: volume.disks.clone(),
                incomplete: volume.incomplete.clone(),
                ..*volume
            };
            self.write().insert(Arc::new(self.as_found(known)));
        }
    }

    fn as_found(&self, volume: Volume) -> Volume {
        let found = self.found.read().unwrap_or_else(|e| e.into_inner());
        match found.get(&volume.id) {
            None => volume,
            Some(found) => Volume {
                epoch: found.epoch.max(volume.epoch),
                disks: found.disks(&volume.disks),
                ..volume
            },
        }
    }

    /// All that are known.
    pub fn all(&self) -> Vec<Arc<Volume>> {
        let mut all: Vec<_> = self.read().by_id.values().cloned().collect();
        all.sort_by_key(|v| v.id);
        all
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Cache> {
        self.cache.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes in what each unit holds already, so that volumes are sealed in time after a restart.
    pub fn set_used(&self, used: &HashMap<u64, u64>) {
        for volume in self.all() {
            volume
                .used_bytes
                .fetch_max(used.get(&volume.id).copied().unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// An open volume for a new blob of the wanted scheme, or of a narrower one of the same parity when too few
    /// disks can be written. `avoid` holds disks that just failed in this request; `salt` spreads the choice.
    pub async fn pick(&self, wanted: Scheme, avoid: &HashSet<DiskId>, salt: u64) -> Result<Arc<Volume>> {
        for _ in 1..PICK_ATTEMPTS {
            match self.pick_now(wanted, avoid, salt).await {
                Err(Error::Conflict) => {} // A disk's row changed meanwhile.
                picked => return picked,
            }
        }
        self.pick_now(wanted, avoid, salt).await
    }

    async fn pick_now(&self, wanted: Scheme, avoid: &HashSet<DiskId>, salt: u64) -> Result<Arc<Volume>> {
        let (candidates, scheme) = self.takers(wanted, avoid);
        let Some(scheme) = scheme else {
            return Err(self.cannot_write(wanted, choose::domains(&candidates)));
        };
        let writable: HashSet<DiskId> = candidates.iter().map(|c| c.disk).collect();
        let open = self.open(scheme, &writable);
        let target = if candidates.len() > scheme.total_shards() {
            OPEN_VOLUMES
        } else {
            1
        };
        if open.len() >= target {
            return Ok(open[(salt % open.len() as u64) as usize].clone());
        }
        match self.creating.try_lock() {
            Ok(_one_at_a_time) => self.create(scheme, &candidates).await,
            Err(_) if !open.is_empty() => Ok(open[(salt % open.len() as u64) as usize].clone()),
            Err(_) => {
                let _one_at_a_time = self.creating.lock().await;
                match self.open(scheme, &writable).into_iter().next() {
                    Some(volume) => Ok(volume),
                    None => self.create(scheme, &candidates).await,
                }
            }
        }
    }

    /// The scheme of new blobs that want this one, with the disks that can be written now; none if there are too few.
    pub fn write_scheme(&self, wanted: Scheme) -> Option<Scheme> {
        self.takers(wanted, &HashSet::new()).1
    }

    /// Whether a new stripe of a blob that wants this scheme may still go to a volume.
    pub fn takes(&self, volume: &Volume, wanted: Scheme, avoid: &HashSet<DiskId>) -> bool {
        let is_trusted = |id: &DiskId| self.disks.get(*id).is_some_and(|disk| disk.writable());
        volume.disks.iter().all(is_trusted) || {
            let (takers, _) = self.takers(wanted, avoid);
            let takes = |id: &DiskId| takers.iter().any(|taker| taker.disk == *id);
            volume.disks.iter().all(takes)
        }
    }

    /// Records that a volume takes no more blobs.
    pub async fn seal(&self, id: u64) -> Result<()> {
        let row_key = key::volume(id);
        if let Some(Typed { mut row, version }) = self.ledger.get::<VolumeRow>(row_key.clone()).await? {
            row.set_state(VolumeState::Sealed);
            let commit = CommitBuilder::new()
                .expect(&row_key, Some(version))
                .put(row_key, &row)
                .build();
            self.ledger.commit(commit).await?;
        }
        self.refresh(id).await.map(|_| ())
    }

    /// Gives a unit another disk, in the ledger and then here. From then on requests carry the new epoch, and the unit, unless it
    /// is whole there already, is incomplete until [`Volumes::complete`]. `fence` adds the preconditions of whoever decided it.
    pub async fn move_unit(
        &self,
        volume: &Volume,
        index: u8,
        to: DiskId,
        whole: bool,
        fence: impl FnOnce(CommitBuilder) -> CommitBuilder,
    ) -> Result<Arc<Volume>> {
        let target = self.expect_active(CommitBuilder::new(), &[to]).await?;
        self.change(volume, target, fence, |row| {
            if let Some(disk) = row.disks.get_mut(usize::from(index)) {
                *disk = Bytes::copy_from_slice(&to.0.to_be_bytes());
            }
            row.epoch += 1;
            row.set_state(VolumeState::Sealed);
            if !whole && !row.incomplete.contains(&index.into()) {
                row.incomplete.push(index.into());
            }
        })
        .await
    }

    /// Gives a volume, which takes no new blobs any more, another epoch: what was asked of its units before is refused from
    /// then on by who has heard of it.
    pub async fn raise_epoch(
        &self,
        volume: &Volume,
        fence: impl FnOnce(CommitBuilder) -> CommitBuilder,
    ) -> Result<Arc<Volume>> {
        self.change(volume, CommitBuilder::new(), fence, |row| {
            row.epoch += 1;
            row.set_state(VolumeState::Sealed);
        })
        .await
    }

    /// Records that a unit has all that it should.
    pub async fn complete(
        &self,
        volume: &Volume,
        index: u8,
        fence: impl FnOnce(CommitBuilder) -> CommitBuilder,
    ) -> Result<Arc<Volume>> {
        self.change(volume, CommitBuilder::new(), fence, |row| {
            row.incomplete.retain(|i| *i != u32::from(index))
        })
        .await
    }

    /// Changes a volume's row, as part of a commit, if it still has the epoch it was decided by.
    async fn change(
        &self,
        volume: &Volume,
        commit: CommitBuilder,
        fence: impl FnOnce(CommitBuilder) -> CommitBuilder,
        change: impl FnOnce(&mut VolumeRow),
    ) -> Result<Arc<Volume>> {
        let row_key = key::volume(volume.id);
        let found = self.ledger.get::<VolumeRow>(row_key.clone()).await?;
        let Some(Typed { mut row, version }) = found.filter(|found| found.row.epoch == volume.epoch) else {
            return Err(Error::Conflict);
        };
        change(&mut row);
        let commit = commit.expect(&row_key, Some(version)).put(row_key, &row);
        self.ledger.commit(fence(commit).build()).await?;
        self.refresh(volume.id).await
    }

    /// Disks that could take a unit of a volume of this scheme: those that may be written.
    pub fn targets(&self, scheme: Scheme) -> Vec<Candidate> {
        self.candidates(&HashSet::new(), scheme, Trust::Full)
    }

    /// Disks that new blobs of this scheme may go to, and the scheme they get there; none if all are too few.
    fn takers(&self, wanted: Scheme, avoid: &HashSet<DiskId>) -> (Vec<Candidate>, Option<Scheme>) {
        let trusted_so = |trust| {
            let candidates = self.candidates(avoid, wanted, trust);
            let scheme = wanted.narrowed(choose::domains(&candidates));
            (candidates, scheme)
        };
        let mut enough = [Trust::Full, Trust::ReadsWrong].into_iter().map(trusted_so);
        let enough = enough.find(|(_, scheme)| scheme.is_some());
        enough.unwrap_or_else(|| trusted_so(Trust::WritesFail))
    }

    /// Volumes that are full but not sealed yet.
    pub fn full(&self) -> Vec<u64> {
        let open = self.read().open.clone();
        open.iter().filter(|v| self.is_full(v)).map(|v| v.id).collect()
    }

    fn is_full(&self, volume: &Volume) -> bool {
        let capacity = |id: &DiskId| Some(self.disks.get(*id)?.status.as_ref()?.capacity_bytes);
        let smallest = volume.disks.iter().filter_map(capacity).min().unwrap_or(u64::MAX);
        volume.used_bytes.load(Ordering::Relaxed) >= (smallest / UNIT_SHARE).max(UNIT_BYTES_MIN)
    }

    /// The open volumes of a scheme that have room, on disks that can be written.
    fn open(&self, scheme: Scheme, writable: &HashSet<DiskId>) -> Vec<Arc<Volume>> {
        let usable = |v: &&Arc<Volume>| {
            v.scheme == scheme && v.disks.iter().all(|d| writable.contains(d)) && !self.is_full(v)
        };
        self.read().open.iter().filter(usable).cloned().collect()
    }

    /// Disks that are trusted at least so far.
    fn candidates(&self, avoid: &HashSet<DiskId>, scheme: Scheme, least: Trust) -> Vec<Candidate> {
        let disks = self.disks.all();
        let level = self.disks.level(scheme.total_shards());
        let is_trusted = |disk: &Disk| disk.trust().is_some_and(|trust| trust <= least);
        let usable = disks.iter().filter(|d| is_trusted(d) && !avoid.contains(&d.id));
        usable
            .map(|d| Candidate {
                disk: d.id,
                domain: d.domain(level),
                free_bytes: d.status.as_ref().map_or(0, |s| s.free_bytes),
                capacity_bytes: d.status.as_ref().map_or(0, |s| s.capacity_bytes),
                open_units: 0,
            })
            .collect()
    }

    fn cannot_write(&self, wanted: Scheme, healthy: usize) -> Error {
        let needed = wanted.losses_survived() + 1;
        let full = self
            .disks
            .all()
            .iter()
            .filter(|d| d.full() && !matches!(d.health, Health::Down(_)))
            .count();
        if healthy + full >= needed {
            Error::StorageFull
        } else {
            Error::TooFewDomains { healthy, needed }
        }
    }

    async fn create(&self, scheme: Scheme, candidates: &[Candidate]) -> Result<Arc<Volume>> {
        let id = self.ledger.take_ids(key::Counter::Volume, 1).await?;
        let mut candidates = candidates.to_vec();
        for volume in &self.read().open {
            if volume.scheme == scheme && !self.is_full(volume) {
                let uses = candidates.iter_mut().filter(|c| volume.disks.contains(&c.disk));
                uses.for_each(|c| c.open_units += 1);
            }
        }
        let disks = choose::choose(&candidates, scheme.total_shards(), rand::random())
            .ok_or_else(|| Error::Internal("fewer domains than counted".into()))?;
        let row = VolumeRow {
            scheme: scheme.to_string(),
            epoch: 1,
            state: VolumeState::Open as i32,
            disks: disks
                .iter()
                .map(|d| Bytes::copy_from_slice(&d.0.to_be_bytes()))
                .collect(),
            incomplete: Vec::new(),
        };
        let volume = self.record(id, row).await?;
        tracing::info!(volume = id, %scheme, "volume created");
        Ok(volume)
    }

    /// Writes the row of a new volume, and takes it in. Whoever waits for it may leave at any moment, and the answer may be lost:
    /// until it is known what became of the row, it is among those that were begun.
    async fn record(&self, id: u64, row: VolumeRow) -> Result<Arc<Volume>> {
        let volume = Arc::new(Volume::from_row(id, &row)?);
        let row_key = key::volume(id);
        let commit = self.expect_active(CommitBuilder::new(), &volume.disks).await?;
        let commit = commit.expect(&row_key, None).put(row_key, &row);
        self.begun.add(id, row);
        let committed = self.ledger.commit(self.lease.fence(commit).build()).await;
        if let Ok(_) | Err(LedgerError::Conflict { .. }) = committed {
            self.begun.remove(id);
        }
        committed?;
        self.write().insert(volume.clone());
        Ok(volume)
    }

    /// Finds out what became of volumes that were begun. One that has no row gets it: a commit that is still on its way then
    /// finds it there, and fails.
    pub async fn settle_begun(&self) -> Result<()> {
        if self.begun.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.creating.lock().await;
        for (id, row) in self.begun.all() {
            match self.record(id, row).await {
                Ok(_) => tracing::info!(volume = id, "volume created, as was begun before"),
                // It is there, or cannot be any more: a disk of it is not in service, nor will it be as it was.
                Err(Error::Conflict) => {
                    if self.ledger.get::<VolumeRow>(key::volume(id)).await?.is_some() {
                        self.refresh(id).await?;
                    }
                    self.begun.remove(id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds to a commit that these disks are in service, as they are now: none of them is emptied, given up or removed before it.
    async fn expect_active(&self, mut commit: CommitBuilder, disks: &[DiskId]) -> Result<CommitBuilder> {
        let keys: Vec<Bytes> = disks.iter().map(|id| key::disk(id.0)).collect();
        let rows = self.ledger.get_many::<DiskRow>(keys.clone()).await?;
        for (row_key, found) in keys.iter().zip(rows) {
            let found = found.filter(|found| found.row.membership() == Membership::Active);
            let version = found.ok_or(Error::Conflict)?.version;
            commit = commit.expect(row_key, Some(version));
        }
        Ok(commit)
    }

    /// How many units the ledger has on these disks. Volumes that were not known here are, after that.
    pub async fn units_on(&self, disks: &[DiskId]) -> Result<usize> {
        let names: Vec<[u8; 16]> = disks.iter().map(|id| id.0.to_be_bytes()).collect();
        let (mut units, mut volumes) = (0, Vec::new());
        self.ledger
            .for_each(
                key::table(b'v'),
                |row_key, Typed { row, .. }: Typed<VolumeRow>| {
                    let on_them = row
                        .disks
                        .iter()
                        .filter(|disk| names.iter().any(|name| *disk == name.as_slice()))
                        .count();
                    if on_them > 0 {
                        units += on_them;
                        volumes.extend(key::single_number(&row_key));
                    }
                },
            )
            .await?;
        for id in volumes {
            self.refresh(id).await?;
        }
        Ok(units)
    }
}
