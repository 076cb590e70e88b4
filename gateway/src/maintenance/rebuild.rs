//! Gives the units of disks that are gone, or are to go, other disks, and fills them there.
//!
//! ```text
//! its disk is out or absent    move (new disk, epoch + 1, incomplete) ─► fill from the others ─► census ─► whole
//! its disk is draining         epoch + 1 ─► fill from the disk itself, or the others ─► census ─► move (new disk, epoch + 1, whole)
//!
//! tasks ─► census of a unit ─► transfer of what it lacks, at the pace that clients allow ─► progress
//! ```
//! Volume by volume, those with the fewest losses left first. What a unit should hold is what the ledger says its volume's
//! blobs are; what it lacks is what its disk's inventory lacks. So this begins again where it stopped, whoever stopped.
//! A unit is whole when a census finds nothing missing.
//!
//! Invariants: a volume takes no new blobs from before its unit moves, and no upload is writing to it then, so that nothing
//! is acknowledged with a shard on a disk that the ledger no longer names. A unit is not moved while its volume could not be
//! decoded without it: its disk may come back, or be back already, and then nothing is lost. Results are checked against the stripe's digests before they
//! are written, and are written durably.

mod census;
pub mod pace;
mod progress;
mod setting;
mod tasks;
mod transfer;

use super::worker::{Step, Worker};
use crate::cluster::disks::{Disk, Health};
use crate::error::{Error, Result};
use crate::ledger::model::VolumeState;
use crate::object::Objects;
use crate::placement::choose;
use crate::placement::volumes::Volume;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pace::{Pace, Wanted};
pub use progress::{Progress, RebuildStatus};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{DiskId, UnitAddress, UnitId};
pub use tasks::{Need, Task};
use tokio::sync::watch;
use tokio::time::Instant;
use transfer::Job;

/// Volumes that are worked on at once, so that no disk does it all.
const VOLUMES_AT_ONCE: usize = 4;
/// After this long it is looked anew at what is to be done, and in which order.
const STEP_MAX: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(30);

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

/// Where a unit is to be filled.
struct Target {
    disk: Arc<Disk>,
    client: Arc<dyn StorageClient>,
    address: UnitAddress,
}

/// What working on a unit came to.
enum Did {
    /// Something; there is more to do.
    Some,
    /// All of it.
    All,
    /// Nothing: it waits for a disk that could take it, or for sources, or for an upload.
    Nothing,
}

/// What operators and the worker share.
pub struct Shared {
    /// How far it has got.
    pub progress: Mutex<Progress>,
    /// How fast it may go.
    pub pace: Pace,
}

impl Shared {
    /// With this many bytes a second, however busy clients are.
    pub fn new(objects: &Objects, floor: u64) -> Shared {
        Shared {
            progress: Mutex::default(),
            pace: Pace::new(floor, objects.latencies.clone()),
        }
    }

    /// What operators see.
    pub fn status(&self) -> RebuildStatus {
        RebuildStatus {
            wanted: self.pace.wanted(),
            limit: self.pace.limit(),
            ..self.progress().status(Instant::now())
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// See the module.
pub struct Rebuild {
    objects: Arc<Objects>,
    moving: Moving,
    shared: Arc<Shared>,
    /// Where the next piece of each unit begins.
    cursors: Mutex<HashMap<(UnitId, DiskId), u64>>,
    stop: watch::Receiver<bool>,
}

impl Rebuild {
    /// For one gateway; ends in the middle of a unit when `stop` turns true.
    pub fn new(
        objects: Arc<Objects>,
        moving: Moving,
        shared: Arc<Shared>,
        stop: watch::Receiver<bool>,
    ) -> Rebuild {
        Rebuild {
            objects,
            moving,
            shared,
            cursors: Mutex::default(),
            stop,
        }
    }

    /// Works on a unit, until this moment at the longest. False when nothing could be done.
    async fn work(&self, task: &Task, until: Instant) -> Result<bool> {
        let mut worked = false;
        while task.decodable && !*self.stop.borrow() && (!worked || Instant::now() < until) {
            let volume = self.objects.volumes.refresh(task.volume.id).await?;
            let Some(need) = self.objects.need(&volume, task.index) else {
                return Ok(true);
            };
            match self.work_on(task, &volume, need, until).await? {
                Did::Some => worked = true,
                Did::All => return Ok(true),
                Did::Nothing => break,
            }
        }
        Ok(worked)
    }

    async fn work_on(&self, task: &Task, volume: &Arc<Volume>, need: Need, until: Instant) -> Result<Did> {
        // A move gives up what its disk has. That disk may serve after all, and the others need it: until they are whole.
        let leaves = (need == Need::Move).then(|| volume.disks[usize::from(task.index)]);
        if leaves.is_some() && !self.objects.spare(volume, leaves.as_slice()).1 {
            return Ok(Did::Nothing);
        }
        // From here on no blob is begun in it; one that was has to end.
        if volume.state == VolumeState::Open {
            self.objects.volumes.seal(volume.id).await?;
            self.progress().count_again(volume);
        }
        if self.objects.abandoned.is_writing(volume.id) {
            return Ok(Did::Nothing);
        }
        match need {
            Need::Move => self.move_away(volume, task.index).await,
            Need::Fill => {
                let to = volume.disks[usize::from(task.index)];
                let Some(target) = self.target(volume, task.index, to, volume.epoch) else {
                    return Ok(Did::Nothing);
                };
                let job = Job {
                    volume,
                    index: task.index,
                    target: &target,
                    from_itself: false,
                    is_urgent: task.spare <= 0,
                };
                if !self.fill(&job, until).await? {
                    return Ok(Did::Some);
                }
                let lease = &self.objects.lease;
                let done = self
                    .objects
                    .volumes
                    .complete(volume, task.index, |commit| lease.fence(commit));
                done.await?;
                self.finished(volume, task.index, &target);
                Ok(Did::All)
            }
            Need::Drain => self.drain(volume, task.index, until).await,
        }
    }

    async fn move_away(&self, volume: &Volume, index: u8) -> Result<Did> {
        let Some(to) = self.choose(volume, index) else {
            return Ok(Did::Nothing);
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
        Ok(Did::Some)
    }

    async fn drain(&self, volume: &Arc<Volume>, index: u8, until: Instant) -> Result<Did> {
        let unit = volume.unit(index);
        let known = self
            .moving
            .lock()
            .iter()
            .find(|(moving, _)| *moving == unit)
            .map(|(_, to)| *to);
        // Another unit of the volume may have moved there meanwhile, or near it.
        let usable = |to: &DiskId| self.objects.may_take(volume, index, *to);
        if let Some(known) = known.filter(|known| !usable(known)) {
            self.moving.lock().remove(&(unit, known)); // What it got is a leftover now.
        }
        let Some(to) = known.filter(usable) else {
            let relocation = self.objects.relocation(volume, index);
            return match relocation.or_else(|| self.choose(volume, index)) {
                Some(to) => self.begin_drain(volume, unit, to).await,
                None => Ok(Did::Nothing),
            };
        };
        let Some(target) = self.target(volume, index, to, volume.epoch) else {
            return Ok(Did::Nothing);
        };
        let job = Job {
            volume,
            index,
            target: &target,
            from_itself: true,
            is_urgent: false,
        };
        if !self.fill(&job, until).await? {
            return Ok(Did::Some);
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
        Ok(Did::All)
    }

    /// What the disk has of the unit, from an attempt that was cut off, may be about to be dropped as a leftover. So it is named
    /// first, and then the epoch grows: whoever drops with the new one has seen the name, and a drop with an older one is refused
    /// once the disk was asked for its inventory.
    async fn begin_drain(&self, volume: &Volume, unit: UnitId, to: DiskId) -> Result<Did> {
        self.moving.lock().insert((unit, to));
        let lease = &self.objects.lease;
        let raised = self
            .objects
            .volumes
            .raise_epoch(volume, |commit| lease.fence(commit));
        if let Err(error) = raised.await {
            self.moving.lock().remove(&(unit, to));
            return Err(error);
        }
        Ok(Did::Some)
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
            .filter(|disk| disk.standing() == Health::Online)?;
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

    /// Writes what the unit lacks on its target, until this moment at the longest. True when a census finds that nothing is
    /// missing.
    async fn fill(&self, job: &Job<'_>, until: Instant) -> Result<bool> {
        let (volume, target) = (job.volume, job.target);
        let cursor_key = (volume.unit(job.index), target.disk.id);
        let mut from = self.cursors().get(&cursor_key).copied().unwrap_or(0);
        let mut page = self.look(volume, target, from).await?;
        loop {
            self.progress()
                .found(volume.unit(job.index), page.there_bytes, from == 0);
            let is_time = *self.stop.borrow() || Instant::now() >= until;
            let next = page.next.filter(|_| !is_time);
            // The next page is looked at while this one is written.
            let ahead = async {
                match next {
                    Some(next) => self.look(volume, target, next).await.map(Some),
                    None => Ok(None),
                }
            };
            let (failed, ahead) = futures::join!(self.write(job, &page.missing), ahead);
            let failed = failed?;
            if failed > 0 {
                // What failed is looked at again from here.
                self.cursors().insert(cursor_key, from);
                return Err(Error::Internal(format!(
                    "{failed} shards of volume {} could not be rebuilt on {}",
                    volume.id, target.disk.label
                )));
            }
            from = page.next.unwrap_or(0);
            self.cursors().insert(cursor_key, from);
            match ahead? {
                Some(ahead) => page = ahead,
                None if page.next.is_some() || *self.stop.borrow() => return Ok(false),
                None => return self.is_whole(volume, target).await,
            }
        }
    }

    /// Counts what the units should have, until this moment at the longest: what is left is known in bytes.
    async fn count(&self, until: Instant) -> Result<()> {
        while !*self.stop.borrow() && Instant::now() < until {
            let next = self.progress().next_to_count();
            let Some(counting) = next else { break };
            let volume = self.objects.volumes.get(counting.volume).await?;
            let (bytes, next) = self.objects.unit_bytes(&volume, counting.from).await?;
            self.progress().counted(counting, bytes, next);
        }
        Ok(())
    }

    /// What the operator wants of the pace, and what it has to be for that.
    async fn set_pace(&self, is_done: bool) -> Result<()> {
        let objects = &self.objects;
        let wanted = objects.wanted_pace().await?;
        // It was for what is done now.
        if is_done && matches!(wanted, Wanted::Deadline(_)) {
            objects.want_pace(Wanted::Auto, Some(wanted)).await?;
        }
        let left = self.progress().left_bytes();
        self.shared
            .pace
            .set(wanted, left, objects.clock.now_ms(), Instant::now());
        Ok(())
    }

    /// Works on all that is to be done, most endangered first, until this moment at the longest: whether something was done,
    /// how many units wait, and what went wrong.
    async fn work_on_all(&self, tasks: &[Task], until: Instant) -> (bool, usize, Option<Error>) {
        let (mut worked, mut waiting, mut failure) = (false, 0, None);
        // A volume's units one after the other: its epoch grows with each.
        let mut volumes = HashSet::new();
        let mut left = tasks.iter().filter(|task| volumes.insert(task.volume.id));
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < VOLUMES_AT_ONCE
                && !*self.stop.borrow()
                && (!worked || Instant::now() < until)
            {
                match left.next() {
                    Some(task) => running.push(self.work(task, until)),
                    None => break,
                }
            }
            match running.next().await {
                None => return (worked, waiting, failure),
                Some(Ok(true)) => worked = true,
                Some(Ok(false)) => waiting += 1,
                Some(Err(Error::Conflict)) => worked = true, // Decided by a row that has changed: again.
                Some(Err(error)) => failure = Some(error),
            }
        }
    }

    fn cursors(&self) -> MutexGuard<'_, HashMap<(UnitId, DiskId), u64>> {
        self.cursors.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.shared.progress()
    }

    fn finished(&self, volume: &Volume, index: u8, target: &Target) {
        self.cursors().remove(&(volume.unit(index), target.disk.id));
        self.progress().finished(volume.unit(index));
        self.objects.metrics.rebuilt_units.inc();
        tracing::info!(volume = volume.id, index, disk = %target.disk.label, "unit whole");
    }
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
        let tasks = self.objects.rebuild_tasks();
        let is_done = self.progress().note_tasks(&tasks);
        self.set_pace(is_done).await?;
        if tasks.is_empty() {
            return Ok(Step::Idle);
        }
        let until = Instant::now() + STEP_MAX;
        let (worked, counted) = futures::join!(self.work_on_all(&tasks, until), self.count(until));
        let (worked, waiting, failure) = worked;
        self.progress().waiting = if worked { 0 } else { waiting };
        match failure.or(counted.err()) {
            Some(error) if !worked => Err(error),
            _ if worked => Ok(Step::Worked),
            _ => Ok(Step::Idle),
        }
    }
}
