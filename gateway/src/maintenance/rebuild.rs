//! Gives the units of disks that are gone, or are to go, other disks, and fills them there.
//!
//! ```text
//! its disk is out or absent    move (new disk, epoch + 1, incomplete) ─► fill from the others ─► census ─► whole
//! its disk is draining         fill from the disk itself, or the others ─► census ─► move (new disk, epoch + 1, whole)
//! ```
//! Volume by volume, those with the fewest losses left first. What a unit should hold is what the ledger says its volume's
//! blobs are; what it lacks is what its disk's inventory lacks. So this begins again where it stopped, whoever stopped.
//! A unit is whole when a census finds nothing missing.
//!
//! Invariants: a volume takes no new blobs from before its unit moves, and no upload is writing to it then, so that nothing
//! is acknowledged with a shard on a disk that the ledger no longer names. A unit is not moved while its volume could not be
//! decoded: its disk may come back, and then nothing is lost. Results are checked against the stripe's digests before they
//! are written, and are written durably.

use super::worker::{Step, Worker};
use crate::cluster::disks::{Disk, Health};
use crate::error::{Error, Result};
use crate::ledger::key;
use crate::ledger::model::{BlobRef, BlobRow, Membership, VolumeState};
use crate::object::shard_reader::StripeSource;
use crate::object::{Objects, encode, off_reactor};
use crate::placement::choose;
use crate::placement::volumes::Volume;
use ec_core::{Codec, seal};
use futures::StreamExt;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use storage_node::client::{INVENTORY_LIMIT_MAX, StorageClient};
use storage_node::protocol::{BlockRange, DiskId, Seal, SealedShard, ShardKey, UnitAddress, UnitId};
use tokio::sync::watch;
use tokio::time::Instant;

/// Volumes that are worked on at once, so that no disk does it all.
const VOLUMES_AT_ONCE: usize = 4;
/// Shards of a unit that are rebuilt at once: while nobody waits for the disks, and while somebody does.
const SHARDS_AT_ONCE: (usize, usize) = (32, 4);
/// Blobs looked at in one piece of work.
const BLOBS_AT_ONCE: usize = 256;
const DEADLINE: Duration = Duration::from_secs(10);

/// Units that are filled on a disk that the ledger does not name for them yet.
#[derive(Clone, Default)]
pub struct Moving(Arc<Mutex<HashSet<(UnitId, DiskId)>>>);

impl Moving {
    /// Whether this unit is on its way to this disk.
    pub fn has(&self, unit: UnitId, disk: DiskId) -> bool {
        self.lock().contains(&(unit, disk))
    }

    /// Whether any unit is on its way to this disk.
    pub fn is_target(&self, disk: DiskId) -> bool {
        self.lock().iter().any(|(_, to)| *to == disk)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(UnitId, DiskId)>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What operators see of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RebuildStatus {
    /// Units still to be made whole on another disk.
    pub units: usize,
    /// Of these, units that wait: for a disk that could take them, or for sources.
    pub waiting: usize,
    /// Bytes still to be written, as far as is known.
    pub left_bytes: u64,
    /// Bytes written since there was last nothing to do.
    pub done_bytes: u64,
    /// How long it takes at the rate so far.
    pub eta_s: Option<u64>,
}

/// How far the present work has got.
#[derive(Default)]
pub struct Progress {
    since: Option<Instant>,
    done_bytes: u64,
    /// Bytes there are on its new disk, for each unit that is being filled.
    filled: HashMap<UnitId, u64>,
    status: RebuildStatus,
}

/// What is to be done with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Its disk is gone: another one.
    Move,
    /// It is on its new disk, and not whole.
    Fill,
    /// Its disk is to go: a copy elsewhere first.
    Drain,
}

struct Task {
    /// Losses that its volume survives from now on; fewer come first.
    spare: i64,
    volume: Arc<Volume>,
    index: u8,
    need: Need,
    /// Whether its volume can be decoded from what is there.
    decodable: bool,
}

/// Where a unit is to be filled.
struct Target {
    disk: Arc<Disk>,
    client: Arc<dyn StorageClient>,
    address: UnitAddress,
}

impl Objects {
    /// Which units of a volume are not where they should be, or not whole there.
    fn needs(&self, volume: &Volume) -> Vec<(u8, Need)> {
        let need = |index: u8| {
            let disk = self.disks.get(volume.disks[usize::from(index)]);
            let Some(disk) = disk else { return Some(Need::Move) };
            match (disk.membership, &disk.health) {
                (Membership::Out | Membership::Absent, _) => Some(Need::Move),
                (_, Health::Online) if !volume.is_whole(index) => Some(Need::Fill),
                (Membership::Draining, Health::Online) => Some(Need::Drain),
                _ => None,
            }
        };
        let indices = 0..volume.disks.len() as u8;
        indices.filter_map(|index| Some((index, need(index)?))).collect()
    }

    /// How many units are to be made whole on another disk, and about how many bytes they have.
    pub fn to_rebuild(&self) -> (usize, u64) {
        self.volumes.all().iter().fold((0, 0), |(units, bytes), volume| {
            let needs = self.needs(volume).len();
            (units + needs, bytes + needs as u64 * volume.used_bytes())
        })
    }
}

/// See the module.
pub struct Rebuild {
    objects: Arc<Objects>,
    moving: Moving,
    progress: Arc<Mutex<Progress>>,
    /// Where the next piece of each unit begins.
    cursors: Mutex<HashMap<(UnitId, DiskId), u64>>,
    stop: watch::Receiver<bool>,
}

impl Rebuild {
    /// For one gateway; ends in the middle of a unit when `stop` turns true.
    pub fn new(
        objects: Arc<Objects>,
        moving: Moving,
        progress: Arc<Mutex<Progress>>,
        stop: watch::Receiver<bool>,
    ) -> Rebuild {
        Rebuild {
            objects,
            moving,
            progress,
            cursors: Mutex::default(),
            stop,
        }
    }

    /// Everything that is to be done, most endangered first.
    fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for volume in self.objects.volumes.all() {
            let needs = self.objects.needs(&volume);
            if needs.is_empty() {
                continue;
            }
            let (spare, decodable) = self.objects.spare(&volume, None);
            tasks.extend(needs.into_iter().map(|(index, need)| Task {
                spare,
                volume: volume.clone(),
                index,
                need,
                decodable,
            }));
        }
        tasks.sort_by_key(|task| (task.need == Need::Drain, task.spare, task.volume.id, task.need));
        tasks
    }

    /// Does a piece of a task. False when nothing could be done.
    async fn work(&self, task: &Task) -> Result<bool> {
        if !task.decodable {
            return Ok(false);
        }
        let volume = self.objects.volumes.refresh(task.volume.id).await?;
        if !self.objects.needs(&volume).contains(&(task.index, task.need)) {
            return Ok(true);
        }
        // From here on no blob is begun in it; one that was has to end.
        if volume.state == VolumeState::Open {
            self.objects.volumes.seal(volume.id).await?;
        }
        if self.objects.abandoned.is_writing(volume.id) {
            return Ok(false);
        }
        match task.need {
            Need::Move => self.move_away(&volume, task.index).await,
            Need::Fill => {
                let Some(target) = self.target(
                    &volume,
                    task.index,
                    volume.disks[usize::from(task.index)],
                    volume.epoch,
                ) else {
                    return Ok(false);
                };
                if !self.fill(&volume, task.index, &target, false).await? {
                    return Ok(!*self.stop.borrow());
                }
                let lease = &self.objects.lease;
                let done = self
                    .objects
                    .volumes
                    .complete(&volume, task.index, |commit| lease.fence(commit));
                done.await?;
                self.finished(&volume, task.index, &target);
                Ok(true)
            }
            Need::Drain => self.drain(&volume, task.index).await,
        }
    }

    async fn move_away(&self, volume: &Volume, index: u8) -> Result<bool> {
        let Some(to) = self.choose(volume, index) else {
            return Ok(false);
        };
        let lease = &self.objects.lease;
        let moved = self
            .objects
            .volumes
            .move_unit(volume, index, to, false, |commit| lease.fence(commit))
            .await?;
        let disk = self.objects.disks.get(to);
        let to = disk.map_or_else(|| to.to_string(), |disk| disk.label.clone());
        tracing::info!(
            volume = volume.id,
            index,
            epoch = moved.epoch,
            to,
            "unit moved; it is rebuilt there"
        );
        Ok(true)
    }

    async fn drain(&self, volume: &Arc<Volume>, index: u8) -> Result<bool> {
        let unit = volume.unit(index);
        let known = self
            .moving
            .lock()
            .iter()
            .find(|(moving, _)| *moving == unit)
            .map(|(_, to)| *to);
        let usable = |to: &DiskId| self.objects.disks.get(*to).is_some_and(|disk| disk.writable());
        if let Some(known) = known.filter(|known| !usable(known)) {
            self.moving.lock().remove(&(unit, known)); // What it got is a leftover now.
        }
        let Some(to) = known.filter(usable).or_else(|| self.choose(volume, index)) else {
            return Ok(false);
        };
        self.moving.lock().insert((unit, to));
        let Some(target) = self.target(volume, index, to, volume.epoch + 1) else {
            return Ok(false);
        };
        if !self.fill(volume, index, &target, true).await? {
            return Ok(!*self.stop.borrow());
        }
        let lease = &self.objects.lease;
        let switched = self
            .objects
            .volumes
            .move_unit(volume, index, to, true, |commit| lease.fence(commit))
            .await?;
        tracing::info!(
            volume = volume.id,
            index,
            epoch = switched.epoch,
            to = target.disk.label,
            "unit moved, whole"
        );
        self.finished(volume, index, &target);
        self.moving.lock().remove(&(unit, to));
        Ok(true)
    }

    /// A disk for a unit, in a failure domain that its volume does not use; one that it used until now is as good as any.
    fn choose(&self, volume: &Volume, index: u8) -> Option<DiskId> {
        let others = (0..)
            .zip(&volume.disks)
            .filter(|(i, _)| *i != index)
            .map(|(_, disk)| *disk);
        let others: Vec<DiskId> = others.collect();
        let level = self.objects.disks.level(volume.scheme.total_shards());
        let domain = |id: &DiskId| {
            self.objects
                .disks
                .get(*id)
                .map_or(id.0, |disk| disk.domain(level))
        };
        let taken: HashSet<u128> = others.iter().map(domain).collect();
        let mut candidates = self.objects.volumes.targets(volume.scheme);
        candidates.retain(|candidate| candidate.disk != volume.disks[usize::from(index)]);
        // Those that get the least of this work now come first.
        for (_, to) in self.moving.lock().iter() {
            candidates
                .iter_mut()
                .filter(|c| c.disk == *to)
                .for_each(|c| c.open_units += 1);
        }
        for volume in self.objects.volumes.all() {
            for index in &volume.incomplete {
                let to = volume.disks[usize::from(*index)];
                candidates
                    .iter_mut()
                    .filter(|c| c.disk == to)
                    .for_each(|c| c.open_units += 1);
            }
        }
        choose::choose_one(&candidates, &taken, rand::random())
    }

    fn target(&self, volume: &Volume, index: u8, to: DiskId, epoch: u32) -> Option<Target> {
        let disk = self
            .objects
            .disks
            .get(to)
            .filter(|disk| disk.health == Health::Online)?;
        let address = UnitAddress {
            epoch,
            ..volume.address(index, &disk)
        };
        Some(Target {
            client: disk.client.clone()?,
            address,
            disk,
        })
    }

    /// Writes some of what the unit lacks on its target. True when a census finds that nothing is missing.
    async fn fill(
        &self,
        volume: &Arc<Volume>,
        index: u8,
        target: &Target,
        from_itself: bool,
    ) -> Result<bool> {
        let cursor_key = (volume.unit(index), target.disk.id);
        let cursor = self.cursors().get(&cursor_key).copied();
        let mut from = cursor.unwrap_or(0);
        let mut failed = 0;
        loop {
            let page = self.look(volume, target, from).await?;
            self.set_filled(volume.unit(index), &page, from == 0);
            if !page.missing.is_empty() {
                failed = self.write(volume, index, target, from_itself, &page).await?;
            }
            match page.next {
                // What failed is looked at again from here.
                _ if failed > 0 => break,
                Some(next) => from = next,
                None => break,
            }
            if !page.missing.is_empty() || *self.stop.borrow() {
                self.cursors().insert(cursor_key, from);
                return Ok(false);
            }
        }
        self.cursors()
            .insert(cursor_key, if failed > 0 { from } else { 0 });
        if failed > 0 {
            return Err(Error::Internal(format!(
                "{failed} shards of volume {} could not be rebuilt on {}",
                volume.id, target.disk.label
            )));
        }
        self.is_whole(volume, target).await
    }

    /// The census of one unit: whether the ledger names nothing that its disk lacks.
    async fn is_whole(&self, volume: &Arc<Volume>, target: &Target) -> Result<bool> {
        let mut from = Some(0);
        while let Some(blob) = from {
            let page = self.look(volume, target, blob).await?;
            if !page.missing.is_empty() || *self.stop.borrow() {
                return Ok(false);
            }
            from = page.next;
        }
        Ok(true)
    }

    /// Compares some of a volume's blobs with what the target has. The blobs are pinned as long as the page lives.
    async fn look(&self, volume: &Arc<Volume>, target: &Target, from: u64) -> Result<Page> {
        let entering = self.objects.readers.enter();
        let mut range = key::blobs(volume.id);
        range.start = key::blob(volume.id, from);
        let rows = self.objects.ledger.scan::<BlobRow>(range, BLOBS_AT_ONCE).await?;
        let blobs: Vec<BlobRef> = rows
            .iter()
            .filter_map(|(row_key, row)| {
                let (volume, blob) = key::volume_and_blob(row_key)?;
                Some(BlobRef {
                    volume,
                    blob,
                    length: row.row.length,
                })
            })
            .collect();
        let pins = entering.pin(blobs.iter().map(|blob| (blob.volume, blob.blob)).collect());
        let last = blobs.last().map_or(0, |blob| blob.blob);
        let codec = self.objects.codecs.get(volume.scheme)?;
        let mut there = match blobs.first() {
            Some(first) => self.inventory(target, first.blob, last).await?,
            None => HashSet::new(),
        };
        let (mut missing, mut there_bytes) = (Vec::new(), 0);
        for blob in &blobs {
            for stripe in 0..encode::geometry(&codec, blob.length)?.stripes() {
                let source = StripeSource::new(&codec, volume.clone(), blob, stripe)?;
                match there.remove(&source.key) {
                    true => there_bytes += u64::from(source.shard_len),
                    false => missing.push(source),
                }
            }
        }
        Ok(Page {
            missing,
            there_bytes,
            next: (rows.len() == BLOBS_AT_ONCE).then_some(last + 1),
            _pins: pins,
        })
    }

    /// What the target has of these blobs.
    async fn inventory(&self, target: &Target, first: u64, last: u64) -> Result<HashSet<ShardKey>> {
        let mut found = HashSet::new();
        let mut after = first.checked_sub(1).map(|blob| ShardKey {
            blob,
            stripe: u32::MAX,
        });
        loop {
            let page = target
                .client
                .inventory(&target.address, after, INVENTORY_LIMIT_MAX, DEADLINE)
                .await;
            let page =
                page.map_err(|e| Error::Internal(format!("inventory of {}: {e}", target.disk.label)))?;
            after = page.last().map(|entry| entry.key);
            let full = page.len() == INVENTORY_LIMIT_MAX;
            found.extend(
                page.into_iter()
                    .map(|entry| entry.key)
                    .filter(|key| key.blob <= last),
            );
            if !full || after.is_none_or(|key| key.blob > last) {
                return Ok(found);
            }
        }
    }

    /// Writes what is missing; how many could not be written.
    async fn write(
        &self,
        volume: &Arc<Volume>,
        index: u8,
        target: &Target,
        from_itself: bool,
        page: &Page,
    ) -> Result<u64> {
        let codec = self.objects.codecs.get(volume.scheme)?;
        let busy = self.objects.metrics.requests_in_flight.get() > 0;
        let at_once = if busy { SHARDS_AT_ONCE.1 } else { SHARDS_AT_ONCE.0 };
        let failed = AtomicU64::new(0);
        let each = |source: &StripeSource| {
            let (source, codec, failed) = (source.clone(), codec.clone(), &failed);
            async move {
                if *self.stop.borrow() {
                    return;
                }
                match self.write_one(&codec, &source, index, target, from_itself).await {
                    Ok(bytes) => self.note_written(source.volume.unit(index), bytes),
                    Err(error) => {
                        let (volume, blob, stripe) = (source.volume.id, source.key.blob, source.key.stripe);
                        tracing::debug!(volume, blob, stripe, index, %error, "not rebuilt");
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        futures::stream::iter(page.missing.iter().map(each))
            .for_each_concurrent(at_once, |work| work)
            .await;
        Ok(failed.into_inner())
    }

    /// Makes one shard and writes it durably.
    async fn write_one(
        &self,
        codec: &Arc<Codec>,
        source: &StripeSource,
        index: u8,
        target: &Target,
        from_itself: bool,
    ) -> Result<u64> {
        let shards = source.volume.scheme.total_shards() as u64 + 1;
        let bytes = u64::from(source.shard_len);
        let _reserved = self
            .objects
            .budget
            .decode
            .reserve_patiently(bytes * shards)
            .await?;
        let copied = match from_itself {
            true => self.copy(source, index).await?,
            false => None,
        };
        let shard = match copied {
            Some(shard) => shard,
            None => {
                let made = self.objects.reconstruct(codec, source, index).await?;
                made.map_err(Error::Internal)?
            }
        };
        let written = target.client.put(&target.address, shard, DEADLINE).await;
        written.map_err(|error| {
            self.objects.disks.report(target.disk.id, &error);
            Error::WriteFailed(error.to_string())
        })?;
        self.objects.metrics.rebuilt_bytes.inc_by(bytes);
        Ok(bytes)
    }

    /// The shard as its own disk has it, if it is right.
    async fn copy(&self, source: &StripeSource, index: u8) -> Result<Option<SealedShard>> {
        let Ok(read) = self.objects.read_shard(source, index, BlockRange::ALL).await else {
            return Ok(None);
        };
        let key = source.key;
        off_reactor(move || {
            let right = read.digests.get(usize::from(index)) == Some(&seal::digest(&read.payload));
            right.then_some(SealedShard {
                key,
                seal: Seal {
                    block_crcs: read.block_crcs,
                    digests: read.digests,
                },
                payload: read.payload,
            })
        })
        .await
    }

    fn cursors(&self) -> MutexGuard<'_, HashMap<(UnitId, DiskId), u64>> {
        self.cursors.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn set_filled(&self, unit: UnitId, page: &Page, first: bool) {
        let mut progress = self.progress();
        let filled = progress.filled.entry(unit).or_default();
        if first {
            *filled = 0;
        }
        *filled += page.there_bytes;
    }

    fn note_written(&self, unit: UnitId, bytes: u64) {
        let mut progress = self.progress();
        progress.done_bytes += bytes;
        *progress.filled.entry(unit).or_default() += bytes;
    }

    fn finished(&self, volume: &Volume, index: u8, target: &Target) {
        self.cursors().remove(&(volume.unit(index), target.disk.id));
        self.progress().filled.remove(&volume.unit(index));
        self.objects.metrics.rebuilt_units.inc();
        tracing::info!(volume = volume.id, index, disk = %target.disk.label, "unit whole");
    }

    fn note_tasks(&self, tasks: &[Task]) {
        let mut progress = self.progress();
        let left = tasks.iter().map(|task| {
            let filled = progress
                .filled
                .get(&task.volume.unit(task.index))
                .copied()
                .unwrap_or(0);
            task.volume.used_bytes().saturating_sub(filled)
        });
        let left_bytes: u64 = left.sum();
        if tasks.is_empty() {
            *progress = Progress::default();
            return;
        }
        let since = *progress.since.get_or_insert_with(Instant::now);
        let rate = progress.done_bytes as f64 / since.elapsed().as_secs_f64().max(0.001);
        progress.status = RebuildStatus {
            units: tasks.len(),
            waiting: progress.status.waiting.min(tasks.len()),
            left_bytes,
            done_bytes: progress.done_bytes,
            eta_s: (progress.done_bytes > 0).then_some((left_bytes as f64 / rate) as u64),
        };
    }
}

impl Progress {
    /// What operators see.
    pub fn status(&self) -> RebuildStatus {
        RebuildStatus {
            done_bytes: self.done_bytes,
            ..self.status.clone()
        }
    }
}

/// Some of a volume's blobs, compared with what a unit's disk has.
struct Page {
    missing: Vec<StripeSource>,
    there_bytes: u64,
    /// The blob that the next page begins with.
    next: Option<u64>,
    _pins: crate::object::readers::Pins,
}

#[async_trait::async_trait]
impl Worker for Rebuild {
    fn name(&self) -> &'static str {
        "rebuild"
    }

    fn rest(&self) -> Duration {
        Duration::from_millis(500)
    }

    async fn step(&self) -> Result<Step> {
        let tasks = self.tasks();
        self.note_tasks(&tasks);
        let (mut worked, mut waiting, mut failure) = (false, 0, None);
        let mut left = tasks.iter().peekable();
        // A volume's units one after the other: its epoch grows with each.
        while left.peek().is_some() && !worked && !*self.stop.borrow() {
            let mut volumes = HashSet::new();
            let mut now = Vec::new();
            while let Some(task) =
                left.next_if(|task| now.len() < VOLUMES_AT_ONCE || volumes.contains(&task.volume.id))
            {
                if volumes.insert(task.volume.id) {
                    now.push(task);
                }
            }
            for done in join_all(now.into_iter().map(|task| self.work(task))).await {
                match done {
                    Ok(done) => (worked, waiting) = (worked | done, waiting + usize::from(!done)),
                    Err(Error::Conflict) => worked = true, // Decided by a row that has changed: again.
                    Err(error) => failure = Some(error),
                }
            }
        }
        self.progress().status.waiting = if worked { 0 } else { waiting };
        match failure {
            Some(error) if !worked => Err(error),
            _ if worked => Ok(Step::Worked),
            _ => Ok(Step::Idle),
        }
    }
}
