//! The census: compares the ledger with what every disk says it holds, both ways, over and over.
//!
//! ```text
//! a cycle: volume by volume ─► piece by piece ─► unit by unit   missing, of another length ─► suspects (repair)
//!                                                               unnamed ───────────────────► set aside
//!          then disk by disk                                    units that are not theirs ─► counted (leftovers drops them)
//! ```
//! What a difference means, and why no race makes it mean something else, is `census/compare`. The ledger remembers the volume that
//! the cycle goes on with, so whoever stops, the next one goes on.
//!
//! Invariant: a cycle is clean only if each unit of every volume was compared since it began, on the disk that the ledger names
//! for it, at one epoch, and nothing was missing, newly unnamed, astray, or waiting to be deleted or repaired. What could not be
//! looked at is counted as that. What was set aside before (`unnamed`) is counted apart, and is accounted for.
//! Invariant: a disk that was opened anew is compared at once, before the cycle comes to it: it may be a copy of an earlier state
//! (`cluster/admission`). It is in doubt until all of its units were.
//! Deliberately absent: any clock in what is found. The pace, which only this process knows, is one; while something is set aside
//! it is so fast that the censuses that have to find it fit the time that it is kept.

mod compare;
pub mod record;

use super::rebuild::Moving;
use super::worker::{Step, Worker};
use crate::cluster::disks::{Disk, Health};
use crate::error::{Error, Result};
use crate::ledger::model::{CensusRow, ScrubRow, SuspectRow, UnitCensusRow, VolumeCensusRow, VolumeRow};
use crate::ledger::store::LedgerError;
use crate::ledger::{CommitBuilder, key};
use crate::object::Objects;
use crate::placement::volumes::Volume;
use bytes::Bytes;
use compare::{Cycle, Difference};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{DiskId, NodeError, UnitAddress};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The usual length of a cycle.
pub const CYCLE: Duration = Duration::from_secs(86_400);
/// How often there is a look at whether something was asked for.
const REST: Duration = Duration::from_millis(500);
/// While requests are in progress, it rests so many times as long as it took.
const REST_SHARE: u32 = 4;
/// And at most so long.
const PIECE_REST_MAX: Duration = Duration::from_millis(500);
/// A volume whose units move meanwhile is begun again so often.
const ATTEMPTS: usize = 3;
/// While so many shards are to be repaired, no more are queued,
const SUSPECTS_MAX: usize = 20_000;
/// until this much later.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);
/// A disk in doubt that could not be compared is tried again this much later, or as much later as comparing it took.
const DOUBT_REST: Duration = Duration::from_secs(10);
/// Queues are counted up to this.
const COUNT_MAX: usize = 10_000;
/// What waits to be deleted or repaired when a cycle ends gets this long.
const SETTLE: Duration = Duration::from_secs(10);

/// A unit, and how to ask its disk.
pub struct Unit {
    index: u8,
    client: Arc<dyn StorageClient>,
    address: UnitAddress,
}

/// Of a unit: what was found; none if it could not be compared.
type Counted = Option<Counts>;

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    missing: u64,
    wrong: u64,
    unnamed: u64,
    set_aside: u64,
    surplus: u64,
}

/// How looking at a volume ended.
enum Looked {
    /// With this, for each unit, in index order.
    At(Vec<Counted>),
    /// A unit moved meanwhile.
    Moved,
    /// It was told to stop.
    Stopped,
}

/// See the module.
pub struct Census {
    objects: Arc<Objects>,
    moving: Moving,
    cycle: Duration,
    /// When there was something to do last, and for how many volumes it stood: what comes next is due a share of the cycle later,
    /// unless it is wanted at once.
    last: Mutex<Option<(Instant, u32)>>,
    /// The cycle that was in progress when this process took over: how long it was to take still, nobody knows, so it goes on at once.
    resumed: OnceLock<Option<u64>>,
    /// Disks in doubt that could not be compared.
    put_off: Mutex<HashMap<DiskId, Instant>>,
    wake: Arc<Notify>,
    stop: watch::Receiver<bool>,
}

impl Census {
    /// For one gateway: a cycle takes this long, unless somebody wants it at once, which `wake` says.
    pub fn new(
        objects: Arc<Objects>,
        moving: Moving,
        cycle: Duration,
        wake: Arc<Notify>,
        stop: watch::Receiver<bool>,
    ) -> Census {
        Census {
            objects,
            moving,
            cycle,
            last: Mutex::default(),
            resumed: OnceLock::new(),
            put_off: Mutex::default(),
            wake,
            stop,
        }
    }

    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// The cycle takes its time: each of so many volumes is due so much after the one before.
    fn is_due(&self) -> bool {
        let cycle = match self.objects.unnamed.summary().census_within {
            Some(within) => self.cycle.min(within),
            None => self.cycle,
        };
        let last = *self.last.lock().unwrap_or_else(|e| e.into_inner());
        last.is_none_or(|(at, volumes)| at.elapsed() >= cycle / volumes)
    }

    fn note_done(&self) {
        let volumes = u32::try_from(self.objects.volumes.all().len().max(1)).unwrap_or(u32::MAX);
        *self.last.lock().unwrap_or_else(|e| e.into_inner()) = Some((Instant::now(), volumes));
    }

    /// A step of the cycle: its next volume, or its end.
    async fn go_on(&self, row: &ScrubRow, census: CensusRow) -> Result<Step> {
        let mut range = key::table(b'v');
        range.start = key::volume(row.from_volume);
        let next = self.objects.ledger.scan::<VolumeRow>(range, 1).await?;
        let Some(volume) = next.first().and_then(|(row_key, _)| key::single_number(row_key)) else {
            return self.finish(census).await;
        };
        let cycle = Cycle {
            number: census.cycle,
            counts: true,
        };
        let Some((epoch_disks, counted)) = self.look(volume, None, cycle).await? else {
            return Ok(Step::Idle);
        };
        let now_ms = self.objects.clock.now_ms();
        let unit = |(disk, counted): (&DiskId, &Counted)| UnitCensusRow {
            disk: Bytes::copy_from_slice(&disk.0.to_be_bytes()),
            at_ms: if counted.is_some() { now_ms } else { 0 },
            missing: counted.map_or(0, |counts| counts.missing + counts.wrong),
            unnamed: counted.map_or(0, |counts| counts.unnamed),
        };
        let of_volume = VolumeCensusRow {
            cycle: census.cycle,
            units: epoch_disks.iter().zip(&counted).map(unit).collect(),
        };
        let note = |row: &mut ScrubRow| {
            // Begun anew meanwhile: what was seen is of the cycle before.
            let now = row.now.as_mut().filter(|now| now.cycle == census.cycle)?;
            now.volumes += 1;
            counted.iter().for_each(|counted| add(now, counted));
            row.from_volume = volume + 1;
            Some(())
        };
        let further = |commit: CommitBuilder| commit.put(key::volume_census(volume), &of_volume);
        self.objects.change_scrub(note, further).await?;
        let mut rest = key::table(b'v');
        rest.start = key::volume(volume + 1);
        // The end comes at once after the last.
        if self.objects.ledger.count(rest, 1).await? > 0 {
            self.note_done();
        }
        Ok(Step::Worked)
    }

    /// Looks at a volume's units, or only at the one on this disk. The disks of the units and what was found; none if it was
    /// told to stop.
    async fn look(
        &self,
        volume: u64,
        only: Option<DiskId>,
        cycle: Cycle,
    ) -> Result<Option<(Vec<DiskId>, Vec<Counted>)>> {
        let mut attempts = 0;
        loop {
            let now = self.objects.volumes.refresh(volume).await?;
            attempts += 1;
            let looked = match self.look_once(&now, only, cycle).await {
                // A census of the others goes on; this volume was not compared.
                Err(Error::Ledger(LedgerError::Damaged { what })) => {
                    tracing::warn!(volume, what, "a volume is not compared: the ledger is damaged");
                    return Ok(Some((now.disks.clone(), vec![None; now.disks.len()])));
                }
                looked => looked?,
            };
            match looked {
                Looked::At(counted) => return Ok(Some((now.disks.clone(), counted))),
                Looked::Stopped => return Ok(None),
                Looked::Moved if attempts < ATTEMPTS => {}
                Looked::Moved => return Ok(Some((now.disks.clone(), vec![None; now.disks.len()]))),
            }
        }
    }

    async fn look_once(&self, volume: &Arc<Volume>, only: Option<DiskId>, cycle: Cycle) -> Result<Looked> {
        let codec = self.objects.codecs.get(volume.scheme)?;
        let mut units: Vec<Unit> = (0..volume.disks.len() as u8)
            .filter(|index| only.is_none_or(|disk| volume.disks[usize::from(*index)] == disk))
            .filter_map(|index| self.unit(volume, index))
            .collect();
        let mut counted: Vec<Counted> = vec![None; volume.disks.len()];
        units
            .iter()
            .for_each(|unit| counted[usize::from(unit.index)] = Some(Counts::default()));
        let mut from = Some(0);
        while let Some(first) = from.filter(|_| !units.is_empty()) {
            if self.is_stopped() {
                return Ok(Looked::Stopped);
            }
            let began = Instant::now();
            let piece = self.piece(volume, &codec, first).await?;
            let mut found = Vec::new();
            let mut lost = Vec::new();
            for unit in &units {
                match self.compare(unit, &piece, cycle).await? {
                    Ok(difference) => found.push((unit.index, difference)),
                    Err(NodeError::StaleEpoch { current }) => {
                        let (id, index) = (volume.id, unit.index);
                        self.objects.note_newer_epoch(id, index, current).await?;
                        return Ok(Looked::Moved);
                    }
                    Err(error) => {
                        self.objects.disks.report(unit.address.disk, &error);
                        tracing::debug!(volume = volume.id, unit.index, %error, "a unit could not be compared");
                        lost.push(unit.index);
                    }
                }
            }
            // Between looking and deciding nothing moved.
            let differs = found.iter().any(|(_, difference)| difference.is_lacking());
            if differs && !is_as(&*self.objects.volumes.refresh(volume.id).await?, volume) {
                return Ok(Looked::Moved);
            }
            for (index, difference) in found {
                self.queue(volume, index, &difference).await?;
                if let Some(counts) = &mut counted[usize::from(index)] {
                    counts.add(&difference);
                }
            }
            units.retain(|unit| !lost.contains(&unit.index));
            lost.iter().for_each(|index| counted[usize::from(*index)] = None);
            from = piece.next;
            drop(piece);
            self.rest_after(began.elapsed()).await;
        }
        match is_as(&*self.objects.volumes.refresh(volume.id).await?, volume) {
            true => Ok(Looked::At(counted)),
            false => Ok(Looked::Moved),
        }
    }

    /// A unit that can be compared: whole, on a disk that is there and not given up.
    fn unit(&self, volume: &Volume, index: u8) -> Option<Unit> {
        let disk = self.objects.disks.get(volume.disks[usize::from(index)])?;
        if disk.is_given_up() || disk.health != Health::Online || !volume.is_whole(index) {
            return None;
        }
        Some(Unit {
            index,
            address: volume.address(index, &disk),
            client: disk.client.clone()?,
        })
    }

    /// Queues for repair what a unit lacks.
    async fn queue(&self, volume: &Volume, index: u8, difference: &Difference) -> Result<()> {
        let missing = difference
            .missing
            .iter()
            .map(|key| (*key, "a census found it missing".to_owned()));
        let wrong = difference
            .wrong
            .iter()
            .map(|(key, len)| (*key, format!("a census found it to be {len} bytes long")));
        let all: Vec<_> = missing.chain(wrong).collect();
        let Some((first, reason)) = all.first() else {
            return Ok(());
        };
        tracing::warn!(
            volume = volume.id,
            index,
            shards = all.len(),
            blob = first.blob,
            stripe = first.stripe,
            reason,
            "shards queued for repair by the census"
        );
        let until = Instant::now() + QUEUE_PATIENCE;
        while self.objects.ledger.count(key::table(b's'), SUSPECTS_MAX).await? >= SUSPECTS_MAX
            && Instant::now() < until
            && !self.is_stopped()
        {
            tokio::time::sleep(REST).await;
        }
        let mut commit = CommitBuilder::new();
        for (shard, reason) in &all {
            let row = SuspectRow {
                reason: reason.clone(),
            };
            commit = commit.put(key::suspect(volume.id, shard.blob, shard.stripe, index), &row);
        }
        self.objects
            .ledger
            .commit(self.objects.lease.fence(commit).build())
            .await?;
        Ok(())
    }

    /// Whoever else asks the disks comes first.
    async fn rest_after(&self, work: Duration) {
        if self.objects.metrics.requests_in_flight.get() > 0 {
            tokio::time::sleep((work * REST_SHARE).min(PIECE_REST_MAX)).await;
        }
    }

    /// Counts what is where it does not belong, waits a little for what was found to be dealt with, and ends the cycle.
    async fn finish(&self, census: CensusRow) -> Result<Step> {
        let (mut strays, mut unknown, mut away) = (0, 0, 0);
        // A ledger that was given up had volumes that this one does not know: their units are kept, and no fault of the disk.
        let keeps_unknown = self.objects.kept_below_blob().await? > 0;
        for disk in self.objects.disks.all().iter() {
            match self.objects.strays(disk, &self.moving).await? {
                Some(found) => {
                    let kept = found
                        .iter()
                        .filter(|stray| !stray.is_known && keeps_unknown)
                        .count();
                    strays += (found.len() - kept) as u64;
                    unknown += kept as u64;
                }
                None if disk.is_given_up() => {} // Its units that are not elsewhere yet were skipped.
                None => away += 1,
            }
        }
        let ledger = &self.objects.ledger;
        let until = Instant::now() + SETTLE;
        let (garbage, suspects) = loop {
            let garbage = ledger.count(key::table(b'g'), COUNT_MAX).await?;
            let suspects = ledger.count(key::table(b's'), COUNT_MAX).await?;
            if garbage + suspects == 0 || Instant::now() > until || self.is_stopped() {
                break (garbage as u64, suspects as u64);
            }
            tokio::time::sleep(REST / 5).await;
        };
        if self.is_stopped() {
            return Ok(Step::Idle);
        }
        self.note_done();
        let counted = self.objects.count_census(census.cycle).await?;
        let now_ms = self.objects.clock.now_ms();
        let end = |row: &mut ScrubRow| {
            let now = row.now.filter(|now| now.cycle == census.cycle)?;
            row.now = None;
            row.at_once = false;
            row.last = Some(CensusRow {
                ended_ms: now_ms.max(1),
                strays,
                unknown_units: unknown,
                disks_away: away,
                garbage,
                suspects,
                // A gateway that stopped in a volume may have found some that it did not count.
                unnamed: now.unnamed.max(counted.new),
                set_aside: counted.known,
                ..now
            });
            row.last
        };
        if let Some(ended) = self.objects.change_scrub(end, |commit| commit).await? {
            let report = record::CensusReport::new(&ended);
            tracing::info!(?report, "census ended");
        }
        Ok(Step::Worked)
    }

    /// Compares a disk that was opened anew. False if that has to be tried again.
    async fn settle_doubt(&self, disk: &Disk, admission: u64) -> Result<bool> {
        let row = self.objects.scrub_row().await?;
        let cycle = Cycle {
            number: row.now.or(row.last).map_or(0, |census| census.cycle),
            counts: false,
        };
        for volume in self.objects.volumes.all() {
            let Some(index) = volume.disks.iter().position(|id| *id == disk.id) else {
                continue;
            };
            let Some((disks, counted)) = self.look(volume.id, Some(disk.id), cycle).await? else {
                return Ok(false);
            };
            let now = self.objects.volumes.get(volume.id).await?;
            // What is filled there, or moved away from there, is compared by whoever does that.
            let is_settled = counted.get(index).is_some_and(Option::is_some)
                || disks.get(index) != Some(&disk.id)
                || !now.is_whole(index as u8);
            if !is_settled {
                return Ok(false);
            }
        }
        self.objects.disks.note_censused(disk.id, admission).await
    }

    /// Disks that are there and were opened since they were last compared, and the admission that each has since then.
    fn in_doubt(&self) -> Vec<(Arc<Disk>, u64)> {
        let mut put_off = self.put_off.lock().unwrap_or_else(|e| e.into_inner());
        put_off.retain(|_, until| Instant::now() < *until);
        let disks = self.objects.disks.all();
        let there = disks
            .iter()
            .filter(|disk| disk.health == Health::Online && !disk.is_given_up())
            .filter(|disk| !put_off.contains_key(&disk.id));
        there
            .filter_map(|disk| Some((disk.clone(), disk.in_doubt()?)))
            .collect()
    }

    /// Compares the disks that are in doubt. Whether there were any.
    async fn settle_doubts(&self) -> Result<bool> {
        let in_doubt = self.in_doubt();
        for (disk, admission) in &in_doubt {
            if self.is_stopped() {
                break;
            }
            let began = Instant::now();
            if !self.settle_doubt(disk, *admission).await? {
                // The cycle gets as much time as that took.
                let mut put_off = self.put_off.lock().unwrap_or_else(|e| e.into_inner());
                put_off.insert(disk.id, Instant::now() + began.elapsed().max(DOUBT_REST));
            }
        }
        Ok(!in_doubt.is_empty())
    }
}

impl Difference {
    fn is_lacking(&self) -> bool {
        !self.missing.is_empty() || !self.wrong.is_empty()
    }
}

impl Counts {
    fn add(&mut self, difference: &Difference) {
        self.missing += difference.missing.len() as u64;
        self.wrong += difference.wrong.len() as u64;
        self.unnamed += difference.unnamed;
        self.set_aside += difference.set_aside;
        self.surplus += difference.surplus;
    }
}

fn add(row: &mut CensusRow, counted: &Counted) {
    let Some(counts) = counted else {
        row.skipped += 1;
        return;
    };
    row.units += 1;
    row.missing += counts.missing;
    row.wrong += counts.wrong;
    row.unnamed += counts.unnamed;
    row.set_aside += counts.set_aside;
    row.surplus += counts.surplus;
}

/// Whether a volume's units are where, and as whole as, they were.
fn is_as(now: &Volume, then: &Volume) -> bool {
    (now.epoch, &now.disks, &now.incomplete) == (then.epoch, &then.disks, &then.incomplete)
}

#[async_trait::async_trait]
impl Worker for Census {
    fn name(&self) -> &'static str {
        "census"
    }

    fn rest(&self) -> Duration {
        REST
    }

    async fn woken(&self) {
        self.wake.notified().await;
    }

    async fn step(&self) -> Result<Step> {
        if self.settle_doubts().await? {
            return Ok(Step::Worked);
        }
        let row = self.objects.scrub_row().await?;
        let resumed = *self.resumed.get_or_init(|| row.now.map(|census| census.cycle));
        match row.now {
            Some(census) if row.at_once || resumed == Some(census.cycle) || self.is_due() => {
                self.go_on(&row, census).await
            }
            None if self.is_due() => match self.objects.begin_census(false).await {
                Ok(_) | Err(Error::Conflict) => Ok(Step::Worked),
                Err(error) => Err(error),
            },
            _ => Ok(Step::Idle),
        }
    }
}
