//! Getting space back: freeing extents with nothing live, and moving live records out of the emptiest others.
//!
//! Invariants: an extent is freed by a durable header, after the copies of its live records are durable and indexed;
//! it is used again after the readers of its old records left. A shard is copied only if it verifies. Only then are its dead records forgotten, and with
//! them the tombstones that nothing else needs.

use super::batch::Draft;
use super::committer::Committer;
use super::index::{Entry, Extent, ExtentUse, Index, Mark};
use super::reader::{check_head, read_span};
use super::rests::{STEP_BYTES, Spare};
use super::room::{Purpose, READY_MIN};
use crate::device::BLOCK;
use crate::format::extent::SYSTEM_UNIT;
use crate::format::layout::Layout;
use crate::format::record::{RecordHead, RecordKind, RecordPlace, encode_cut_places};
use crate::format::summary::summary_start;
use crate::protocol::{BLOCK_BYTES, ShardKey, UnitId, bad_block, block_crc, seal_seed};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Steps made at once for a put that found no space.
const URGENT_STEPS_MAX: usize = 256;
/// How often a record that does not verify is read again before it is left where it is.
const COPY_ATTEMPTS: usize = 3;
/// How long to wait, between steps, for readers to leave a freed extent.
const DRAIN_PATIENCE: Duration = Duration::from_millis(1);

/// An extent being emptied.
pub struct Job {
    victim: u32,
    generation: u64,
    owner: UnitId,
    remaining: VecDeque<Item>,
    stuck: bool,
}

enum Item {
    Shard(ShardKey, Entry),
    Tombstone(UnitId, u64, Mark),
    Drop(UnitId, Mark),
    Cut(Mark, Bytes),
}

impl Item {
    fn place(&self) -> RecordPlace {
        match self {
            Item::Shard(_, entry) => entry.place,
            Item::Tombstone(_, _, mark) | Item::Drop(_, mark) | Item::Cut(mark, _) => mark.place,
        }
    }
}

/// How much space is free, as far as compaction cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// None to be opened for copies.
    Tight,
    /// Little: less waste is tolerated.
    Low,
    /// Enough.
    Ample,
}

/// Which extent to empty next, if it is worth it. Pure. When space is low, an extent that fits into the rest of its unit's
/// open one is merged into it; when it is tight, nothing else is done.
pub fn choose_victim(index: &Index, layout: &Layout, space: Space) -> Option<u32> {
    let low = space <= Space::Low;
    let capacity = u64::from(layout.extent_capacity());
    // Copies of one extent waste a block or two themselves: less than that is not worth a copy, nor ever done.
    let wasted_min = if low {
        capacity / 16 + 2 * BLOCK as u64
    } else {
        capacity / 2
    };
    let worth = |number: u32, extent: &Extent| {
        let ExtentUse::Owned(owner) = extent.used else {
            return None;
        };
        if extent.unreadable || extent.stuck || extent.live == 0 {
            return None;
        }
        let open = index.open_extent(owner);
        let is_open = open == Some(number);
        let wasted = u64::from(extent.end - layout.data_start()).saturating_sub(extent.live_bytes);
        if wasted >= wasted_min && (space == Space::Ample && !is_open || space == Space::Low) {
            return Some(capacity + wasted);
        }
        // Copies may need padding: without this allowance, extents could be copied around for ever.
        let used = extent.live_bytes;
        let needed = used + extent.live * BLOCK as u64;
        let room = open.map_or(0, |open| {
            room_of(&index.extents[open as usize], owner, extent.live, layout)
        });
        (low && !is_open && needed <= u64::from(room)).then(|| capacity - used.min(capacity))
    };
    let numbered = index
        .extents
        .iter()
        .enumerate()
        .map(|(number, extent)| (number as u32, extent));
    let candidates = numbered.filter_map(|(number, extent)| Some((worth(number, extent)?, number)));
    candidates.max().map(|(_, number)| number)
}

/// Bytes that so many more records can take in an open extent, whose summary will list them.
fn room_of(open: &Extent, owner: UnitId, more: u64, layout: &Layout) -> u32 {
    let until = match owner {
        SYSTEM_UNIT => layout.data_end(),
        _ => summary_start(layout, u64::from(open.ordinal) + more),
    };
    until.saturating_sub(open.end)
}

/// Which extents hold nothing that is needed: neither do those of which a crash left the header alone. Pure. An open one is
/// kept, unless space runs low.
pub fn dead_extents(index: &Index, low: bool) -> Vec<u32> {
    let is_dead = |number: u32, extent: &Extent| {
        let ExtentUse::Owned(owner) = extent.used else {
            return false;
        };
        let open = index.open_extent(owner) == Some(number);
        !extent.unreadable && extent.live == 0 && (!open || low)
    };
    let numbered = index
        .extents
        .iter()
        .enumerate()
        .map(|(number, extent)| (number as u32, extent));
    numbered
        .filter(|(number, extent)| is_dead(*number, extent))
        .map(|(number, _)| number)
        .collect()
}

impl Committer {
    /// Free extents above those that are low: space that runs low is won as fast as it goes.
    pub(super) fn spare(&self) -> Spare {
        let of = self.shared.layout.extents() as usize;
        let low = self.shared.reserve + (of / 32).max(1);
        let free = if self.starved { 0 } else { self.free.len() };
        Spare {
            extents: free.saturating_sub(low),
            of,
        }
    }

    fn is_low(&self) -> bool {
        self.spare().extents == 0
    }

    /// How long compaction rests yet.
    pub(super) fn rest_left(&self) -> Duration {
        self.rests.left(Instant::now(), self.spare())
    }

    pub(super) fn is_resting(&self) -> bool {
        !self.rest_left().is_zero()
    }

    /// Does a little background work, and rests from it if somebody reads or writes; says whether there is more to do.
    pub(super) fn polite_step(&mut self) -> bool {
        self.drain();
        let started = Instant::now();
        let bytes_max = self.rests.step_bytes(self.answered(), self.spare());
        let more = self.background_step(bytes_max);
        let (now, answered) = (Instant::now(), self.answered());
        self.rests.begin(now, now - started, answered, self.spare());
        more
    }

    /// Requests of clients.
    fn answered(&self) -> u64 {
        self.shared.metrics.gets.get() + self.shared.metrics.puts.get()
    }

    fn space(&self) -> Space {
        let none_granted = self.starved && self.ready() == 0;
        match self.is_low() {
            _ if none_granted || !self.may_open(Purpose::Move) => Space::Tight,
            true => Space::Low,
            false => Space::Ample,
        }
    }

    /// Whether there is any; if not, it is not looked for again for a while.
    pub(super) fn finds_background_work(&mut self) -> bool {
        let found = self.has_background_work();
        if !found {
            self.rests.found_nothing(Instant::now());
        }
        found
    }

    /// Whether there may be any: looked at while a batch is in flight, and looked at again when none is.
    pub(super) fn has_background_work(&self) -> bool {
        if self.job.is_some() || self.is_draining() {
            return true;
        }
        let (index, space) = (self.shared.index(), self.space());
        !dead_extents(&index, space <= Space::Low).is_empty()
            || choose_victim(&index, &self.shared.layout, space).is_some()
    }

    /// Does a little background work, as much as fits into so many bytes; says whether there is more to do.
    fn background_step(&mut self, bytes_max: u64) -> bool {
        self.reclaim_drained();
        if self.free_dead(self.is_low()) {
            return true;
        }
        if self.job.is_none() {
            self.job = self.next_job();
        }
        match self.job.take() {
            Some(job) => self.advance(job, bytes_max),
            None => false,
        }
    }

    /// Compacts until a put finds space again or nothing more can be won.
    pub(super) fn make_room(&mut self) {
        for _ in 0..URGENT_STEPS_MAX {
            let enough = self.free.len() > self.shared.reserve && (!self.starved || self.ready() > READY_MIN);
            if enough || self.shared.fence.get().is_some() {
                return;
            }
            if !self.background_step(STEP_BYTES) {
                if !self.is_draining() {
                    return;
                }
                std::thread::sleep(DRAIN_PATIENCE);
            }
        }
    }

    fn reclaim_drained(&mut self) {
        let mut index = self.shared.index_mut();
        for (number, extent) in index.extents.iter_mut().enumerate() {
            if extent.used == ExtentUse::Draining && Arc::strong_count(&extent.pin) == 1 {
                extent.used = ExtentUse::Free;
                // To the front: written blocks are cheaper to write again than fresh ones.
                self.free.push_front(number as u32);
            }
        }
        self.shared
            .free_extents
            .store(self.free.len() as u64, Ordering::Relaxed);
    }

    fn free_dead(&mut self, low: bool) -> bool {
        let dead = dead_extents(&self.shared.index(), low);
        if dead.is_empty() {
            return false;
        }
        for &number in &dead {
            let generation = self.shared.index().extents[number as usize].generation;
            self.stage_header(number, None, generation);
            self.summaries.forget(number);
        }
        let batch = self.new_batch();
        if self.write_batch(batch).is_err() {
            return false;
        }
        let mut index = self.shared.index_mut();
        for &number in &dead {
            index.free(number, self.shared.layout.data_start());
        }
        drop(index);
        self.shared.metrics.extents_freed.add(dead.len() as u64);
        self.reclaim_drained();
        true
    }

    fn next_job(&mut self) -> Option<Job> {
        let victim = choose_victim(&self.shared.index(), &self.shared.layout, self.space())?;
        let mut index = self.shared.index_mut();
        let ExtentUse::Owned(owner) = index.extents[victim as usize].used else {
            return None;
        };
        if index.open_extent(owner) == Some(victim) {
            index.set_open(owner, None);
            self.summaries.forget(victim);
        }
        let mut items = live_items(&index, owner, victim);
        items.sort_by_key(Item::place);
        let generation = index.extents[victim as usize].generation;
        Some(Job {
            victim,
            generation,
            owner,
            remaining: items.into(),
            stuck: false,
        })
    }

    fn advance(&mut self, mut job: Job, bytes_max: u64) -> bool {
        let mut batch = self.new_batch();
        let (mut moved, mut blocked) = (Vec::new(), false);
        while batch.bytes() < bytes_max
            && let Some(item) = job.remaining.pop_front()
        {
            if !is_current(&self.shared.index(), job.owner, &item) {
                continue;
            }
            let Some(draft) = self.copy(job.owner, &item) else {
                tracing::warn!(disk = %self.superblock.disk, place = ?item.place(), "a record cannot be moved: it does not verify");
                job.stuck = true;
                continue;
            };
            match self.append(&mut batch, job.owner, draft, Purpose::Move) {
                Ok(head) => moved.push((item, head)),
                Err(_) => {
                    blocked = true;
                    break;
                }
            }
        }
        if self.write_batch(batch).is_err() {
            return false;
        }
        self.shared.metrics.records_moved.add(moved.len() as u64);
        let mut index = self.shared.index_mut();
        for (item, head) in moved {
            follow(&mut index, job.owner, item, &head);
        }

        drop(index);
        if blocked {
            // What is left stays where it is. Another extent may fit where this one does not.
            return self.has_background_work();
        }
        if !job.remaining.is_empty() {
            self.job = Some(job);
            return true;
        }
        let mut index = self.shared.index_mut();
        // What could not be moved stays where it is; without this mark the extent would be chosen again and again.
        let extent = &mut index.extents[job.victim as usize];
        if job.stuck && extent.generation == job.generation {
            extent.stuck = true;
        }
        true
    }

    /// A copy of a live record; none if it cannot be read as what it should be.
    fn copy(&self, owner: UnitId, item: &Item) -> Option<Draft> {
        let mark_draft = |kind, unit, blob, mark: &Mark| Draft {
            kind,
            unit,
            key: ShardKey { blob, stripe: 0 },
            epoch: mark.epoch,
            sequence: mark.sequence,
            block_crcs: Vec::new(),
            digests: Vec::new(),
            payload: Bytes::new(),
        };
        match item {
            Item::Shard(key, entry) => self.copy_shard(owner, *key, entry),
            Item::Tombstone(unit, blob, mark) => Some(mark_draft(RecordKind::Tombstone, *unit, *blob, mark)),
            Item::Drop(unit, mark) => Some(mark_draft(RecordKind::UnitDropped, *unit, 0, mark)),
            Item::Cut(mark, places) => Some(Draft {
                block_crcs: cut_crcs(places),
                payload: places.clone(),
                ..mark_draft(RecordKind::Cut, SYSTEM_UNIT, 0, mark)
            }),
        }
    }

    /// What is copied is checked first: the copy becomes the only one, so neither a read that fails once nor one that
    /// returns wrong bytes once may decide what it holds.
    fn copy_shard(&self, unit: UnitId, key: ShardKey, entry: &Entry) -> Option<Draft> {
        (0..COPY_ATTEMPTS).find_map(|_| {
            let span = read_span(&self.shared, entry.place, 0, entry.footprint() as u32);
            let bytes = span.wait().ok()?.bytes();
            let head = check_head(&self.shared.identity, &bytes, unit, key, entry).ok()?;
            let payload = bytes.slice(entry.payload_at as usize..entry.footprint() as usize);
            bad_block(seal_seed(unit, key, head.len), &payload, &head.block_crcs)
                .is_none()
                .then_some(Draft {
                    kind: RecordKind::Shard,
                    unit,
                    key,
                    epoch: head.epoch,
                    sequence: head.sequence,
                    block_crcs: head.block_crcs,
                    digests: head.digests,
                    payload,
                })
        })
    }
}

/// The block CRCs of a cut's payload.
pub fn cut_crcs(payload: &[u8]) -> Vec<u32> {
    let seed = seal_seed(SYSTEM_UNIT, ShardKey { blob: 0, stripe: 0 }, payload.len() as u32);
    let blocks = payload.chunks(BLOCK_BYTES as usize).enumerate();
    blocks
        .map(|(number, block)| block_crc(seed, number as u32, block))
        .collect()
}

fn live_items(index: &Index, owner: UnitId, victim: u32) -> Vec<Item> {
    if owner != SYSTEM_UNIT {
        let shards = index.shards(owner, Bound::Unbounded);
        let here = shards.filter(|(_, entry)| entry.place.extent == victim);
        return here.map(|(key, entry)| Item::Shard(key, entry)).collect();
    }
    let needed = |mark: &&Mark| mark.place.extent == victim && mark.is_needed();
    let tombstones = index.tombstones.iter().filter(|(_, mark)| needed(mark));
    let drops = index.drops.iter().filter(|(_, mark)| needed(mark));
    let cuts = index.cuts.iter().filter(|(mark, _)| needed(&mark));
    tombstones
        .map(|((unit, blob), mark)| Item::Tombstone(*unit, *blob, mark.clone()))
        .chain(drops.map(|(unit, mark)| Item::Drop(*unit, mark.clone())))
        .chain(cuts.map(|(mark, places)| Item::Cut(mark.clone(), encode_cut_places(places).into())))
        .collect()
}

/// Whether what was to be moved is still there: it may have been deleted or superseded between two steps.
fn is_current(index: &Index, owner: UnitId, item: &Item) -> bool {
    let at = |mark: &Mark| mark.place == item.place() && mark.is_needed();
    match item {
        Item::Shard(key, entry) => index.find(owner, *key) == Some(*entry),
        Item::Tombstone(unit, blob, _) => index.tombstones.get(&(*unit, *blob)).is_some_and(at),
        Item::Drop(unit, _) => index.drops.get(unit).is_some_and(at),
        Item::Cut(..) => index.cuts.iter().any(|(mark, _)| at(mark)),
    }
}

fn follow(index: &mut Index, owner: UnitId, item: Item, copy: &RecordHead) {
    match item {
        Item::Shard(key, entry) => index.relocate(owner, key, entry.place, Entry::of(copy), copy.sequence),
        Item::Tombstone(unit, blob, _) => index.delete_blob(unit, blob, Mark::of(copy)),
        Item::Drop(unit, _) => index.drop_unit(unit, Mark::of(copy)),
        Item::Cut(mark, _) => index.relocate_cut(mark.place, Mark::of(copy)),
    }
}
