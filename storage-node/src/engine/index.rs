//! What a disk holds, in memory: units and their shards, extents and their use, tombstones and why they are kept.
//!
//! Pure: no I/O. The committer changes it after a flush, recovery builds it by the same calls, readers look things up.
//!
//! Invariants:
//! - Only this file changes a shard's location; a move is a compare-and-swap.
//! - `dead` counts the records of a (unit, blob) that are on the disk and must never come back. A tombstone is needed
//!   while that count is positive; a drop while an older extent of its unit is there; a cut while a place it names is.
//! - The write position of an extent is `Extent::end`, and nothing else says where to write.

mod shards;

use crate::format::extent::SYSTEM_UNIT;
use crate::format::record::{CutPlace, HEAD_FIXED_BYTES, RecordHead, RecordPlace, head_len, place};
use crate::protocol::{ShardKey, UnitId, block_count};
pub use shards::{Location, Shards};
use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

/// Where a shard is and what is needed to read it; made from a [`Location`] when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where its head is.
    pub place: RecordPlace,
    /// Where the payload starts, from the head.
    pub payload_at: u32,
    /// Payload bytes.
    pub len: u32,
    /// Digests in the head's table.
    pub digests: u8,
}

impl Entry {
    /// The entry of a record.
    pub fn of(head: &RecordHead) -> Self {
        Entry {
            place: head.place,
            payload_at: head.payload_at,
            len: head.len,
            digests: head.digests.len() as u8,
        }
    }

    /// The entry of the record at a place: where its payload starts follows from the rest.
    pub fn at(here: RecordPlace, len: u32, digests: u8) -> Self {
        let (payload_at, _) = place(here.offset, head_len(block_count(len), digests.into()), len);
        Entry {
            place: here,
            payload_at,
            len,
            digests,
        }
    }

    fn location(&self) -> Location {
        Location {
            extent: self.place.extent,
            offset: self.place.offset,
            len: self.len,
            digests: self.digests,
        }
    }

    /// The bytes it takes in its extent.
    pub fn footprint(&self) -> u64 {
        u64::from(self.payload_at) + u64::from(self.len)
    }
}

/// One unit.
#[derive(Debug, Default)]
pub struct Unit {
    /// The newest epoch seen.
    pub epoch: u32,
    /// Its live shards.
    pub shards: Shards,
    /// Their payload bytes.
    pub live_bytes: u64,
    /// The extent that takes its next record.
    pub open: Option<u32>,
}

/// What an extent is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentUse {
    /// Nothing.
    Free,
    /// Records of this unit.
    Owned(UnitId),
    /// Freed on the disk; readers of old locations are still at it.
    Draining,
    /// Both headers are bad: left alone.
    Quarantined,
}

/// One extent.
#[derive(Debug)]
pub struct Extent {
    /// What it is used for.
    pub used: ExtentUse,
    /// Which use this is.
    pub generation: u64,
    /// Where the next batch is written, from its start.
    pub end: u32,
    /// The next record's number.
    pub ordinal: u32,
    /// Records that are live (in a system extent: needed).
    pub live: u64,
    /// Bytes of those records; the rest of what was written is waste.
    pub live_bytes: u64,
    /// The blobs of its dead records, one for each.
    pub dead_blobs: Vec<u64>,
    /// The smallest sequence in it.
    pub oldest: u64,
    /// Parts of it could not be read: it is neither written nor freed nor compacted.
    pub unreadable: bool,
    /// Compaction could not read all of its live records: it is left alone until they are superseded or deleted.
    pub stuck: bool,
    /// Readers hold a clone while they read from it.
    pub pin: Arc<()>,
}

impl Extent {
    /// An extent in this use, with nothing in it.
    pub fn new(used: ExtentUse, generation: u64, end: u32) -> Self {
        Extent {
            used,
            generation,
            end,
            ordinal: 0,
            live: 0,
            live_bytes: 0,
            dead_blobs: Vec::new(),
            oldest: u64::MAX,
            unreadable: false,
            stuck: false,
            pin: Arc::new(()),
        }
    }
}

/// A tombstone, a drop or a cut: where it is recorded, and what is needed to move it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where.
    pub place: RecordPlace,
    /// Which request made it.
    pub sequence: u64,
    /// The unit's epoch then.
    pub epoch: u32,
    needed: bool,
}

impl Mark {
    /// A mark recorded by this head.
    pub fn of(head: &RecordHead) -> Self {
        Mark {
            place: head.place,
            sequence: head.sequence,
            epoch: head.epoch,
            needed: false,
        }
    }

    /// Whether something on the disk would come back without it.
    pub fn is_needed(&self) -> bool {
        self.needed
    }
}

/// What a disk holds.
#[derive(Debug, Default)]
pub struct Index {
    /// Units by id.
    pub units: BTreeMap<UnitId, Unit>,
    /// Extents by number.
    pub extents: Vec<Extent>,
    /// Deleted blobs that the disk remembers.
    pub tombstones: BTreeMap<(UnitId, u64), Mark>,
    /// Dropped units that the disk remembers.
    pub drops: BTreeMap<UnitId, Mark>,
    /// Recovery's cuts.
    pub cuts: Vec<(Mark, Vec<CutPlace>)>,
    /// The extent that takes the next tombstone.
    pub system_open: Option<u32>,
    dead: HashMap<(UnitId, u64), u32>,
    has_unreadable_extents: bool,
    keeps_marks: bool,
}

impl Index {
    fn extent(&mut self, number: u32) -> &mut Extent {
        &mut self.extents[number as usize]
    }

    /// Whether a record of this unit and blob, made by request `sequence`, must not live.
    pub fn is_deleted(&self, unit: UnitId, blob: u64, sequence: u64) -> bool {
        self.tombstones.contains_key(&(unit, blob))
            || self.drops.get(&unit).is_some_and(|drop| sequence < drop.sequence)
    }

    /// The unit, made if it is new, with at least this epoch.
    pub fn unit(&mut self, unit: UnitId, epoch: u32) -> &mut Unit {
        let unit = self.units.entry(unit).or_default();
        unit.epoch = unit.epoch.max(epoch);
        unit
    }

    /// Where a shard is.
    pub fn find(&self, unit: UnitId, key: ShardKey) -> Option<Entry> {
        let location = self.units.get(&unit)?.shards.get(key)?;
        Some(self.entry(&location))
    }

    /// A unit's shards in key order.
    pub fn shards(&self, unit: UnitId, after: Bound<ShardKey>) -> impl Iterator<Item = (ShardKey, Entry)> {
        let shards = self
            .units
            .get(&unit)
            .into_iter()
            .flat_map(move |unit| unit.shards.range(after));
        shards.map(|(key, location)| (key, self.entry(&location)))
    }

    fn entry(&self, location: &Location) -> Entry {
        let place = RecordPlace {
            extent: location.extent,
            generation: self.extents[location.extent as usize].generation,
            offset: location.offset,
        };
        Entry::at(place, location.len, location.digests)
    }

    /// A record became durable, made by request `sequence`: it lives unless something deletes it, in the place of the one
    /// that was there. Of one key, records come in the order of their sequences; copies of one record in any.
    pub fn insert(&mut self, unit_id: UnitId, key: ShardKey, entry: Entry, sequence: u64, epoch: u32) {
        self.note_shard(&entry, sequence);
        if self.is_deleted(unit_id, key.blob, sequence) {
            return self.bury(unit_id, key.blob, &entry);
        }
        let unit = self.unit(unit_id, epoch);
        let before = unit.shards.insert(key, entry.location());
        unit.live_bytes += u64::from(entry.len);
        unit.live_bytes -= before.map_or(0, |before| u64::from(before.len));
        if let Some(before) = before {
            let before = self.entry(&before);
            self.bury(unit_id, key.blob, &before);
        }
    }

    /// A record was found that something newer has replaced: it is dead.
    pub fn insert_dead(&mut self, unit: UnitId, key: ShardKey, entry: Entry, sequence: u64) {
        self.note_shard(&entry, sequence);
        self.bury(unit, key.blob, &entry);
    }

    /// A shard is given up: its record counts as dead.
    pub fn remove(&mut self, unit_id: UnitId, key: ShardKey) {
        if let Some(entry) = self.find(unit_id, key) {
            let unit = self.unit(unit_id, 0);
            unit.shards.remove(key);
            unit.live_bytes -= u64::from(entry.len);
            self.bury(unit_id, key.blob, &entry);
        }
    }

    /// A record counts in its extent, as live until it is buried.
    fn note_shard(&mut self, entry: &Entry, sequence: u64) {
        let extent = self.extent(entry.place.extent);
        extent.oldest = extent.oldest.min(sequence);
        extent.live += 1;
        extent.live_bytes += entry.footprint();
    }

    /// A copy of a record became durable: the index follows it if it still points at `from`. The copy may be in an extent
    /// that was opened before the one it leaves.
    pub fn relocate(
        &mut self,
        unit_id: UnitId,
        key: ShardKey,
        from: RecordPlace,
        copy: Entry,
        sequence: u64,
    ) {
        self.note_shard(&copy, sequence);
        let mut dead = copy;
        if let Some(there) = self.find(unit_id, key).filter(|there| there.place == from) {
            self.unit(unit_id, 0).shards.insert(key, copy.location());
            dead = there;
        }
        self.bury(unit_id, key.blob, &dead);
    }

    /// A record that counted as live is dead, and stays on the disk until its extent is freed.
    fn bury(&mut self, unit: UnitId, blob: u64, entry: &Entry) {
        let extent = self.extent(entry.place.extent);
        extent.live -= 1;
        extent.live_bytes -= entry.footprint();
        extent.dead_blobs.push(blob);
        *self.dead.entry((unit, blob)).or_default() += 1;
        self.review_tombstone(unit, blob);
    }

    /// A tombstone became durable (or moved): it kills every record of the blob.
    pub fn delete_blob(&mut self, unit_id: UnitId, blob: u64, tombstone: Mark) {
        self.unit(unit_id, tombstone.epoch);
        self.forget_tombstone(unit_id, blob);
        self.note_system_record(&tombstone);
        self.tombstones.insert((unit_id, blob), tombstone);
        self.review_tombstone(unit_id, blob);
        self.kill_shards(
            unit_id,
            ShardKey { blob, stripe: 0 }..=ShardKey {
                blob,
                stripe: u32::MAX,
            },
        );
    }

    /// A drop became durable (or moved): it kills every record of the unit that is there.
    pub fn drop_unit(&mut self, unit_id: UnitId, drop: Mark) {
        let moved = self
            .drops
            .get(&unit_id)
            .is_some_and(|old| old.sequence == drop.sequence);
        self.forget_drop(unit_id);
        self.note_system_record(&drop);
        self.drops.insert(unit_id, drop);
        if moved {
            return self.review_marks();
        }
        let all = ShardKey { blob: 0, stripe: 0 }..=ShardKey {
            blob: u64::MAX,
            stripe: u32::MAX,
        };
        self.kill_shards(unit_id, all);
        if self
            .units
            .get(&unit_id)
            .is_some_and(|unit| unit.shards.is_empty())
        {
            self.units.remove(&unit_id);
        }
        self.review_marks();
    }

    /// A cut became durable (or moved).
    pub fn cut(&mut self, cut: Mark, places: Vec<CutPlace>) {
        self.note_system_record(&cut);
        self.cuts.push((cut, places));
        self.review_marks();
    }

    /// A cut was copied: it is recorded somewhere else now.
    pub fn relocate_cut(&mut self, from: RecordPlace, to: Mark) {
        if let Some(at) = self.cuts.iter().position(|(mark, _)| mark.place == from) {
            let (old, places) = self.cuts.swap_remove(at);
            self.discount(&old);
            self.cut(to, places);
        }
    }

    fn kill_shards(&mut self, unit_id: UnitId, keys: RangeInclusive<ShardKey>) {
        let shards = self.shards(unit_id, Bound::Included(*keys.start()));
        let doomed: Vec<ShardKey> = shards
            .map(|(key, _)| key)
            .take_while(|key| key <= keys.end())
            .collect();
        doomed.into_iter().for_each(|key| self.remove(unit_id, key));
    }

    fn note_system_record(&mut self, mark: &Mark) {
        let extent = self.extent(mark.place.extent);
        extent.oldest = extent.oldest.min(mark.sequence);
    }

    /// Makes a mark count as live in its extent, or no longer.
    fn set_needed(extents: &mut [Extent], mark: &mut Mark, needed: bool) {
        let extent = &mut extents[mark.place.extent as usize];
        match (mark.needed, needed) {
            (false, true) => {
                extent.live += 1;
                extent.live_bytes += u64::from(HEAD_FIXED_BYTES);
            }
            (true, false) => {
                extent.live -= 1;
                extent.live_bytes -= u64::from(HEAD_FIXED_BYTES);
            }
            _ => {}
        }
        mark.needed = needed;
    }

    fn discount(&mut self, mark: &Mark) {
        Self::set_needed(&mut self.extents, &mut mark.clone(), false);
    }

    fn forget_tombstone(&mut self, unit: UnitId, blob: u64) {
        if let Some(old) = self.tombstones.remove(&(unit, blob)) {
            self.discount(&old);
        }
    }

    fn forget_drop(&mut self, unit: UnitId) {
        if let Some(old) = self.drops.remove(&unit) {
            self.discount(&old);
        }
    }

    fn has_unreadable(&self, unit: UnitId) -> bool {
        self.extents
            .iter()
            .any(|e| e.unreadable && e.used == ExtentUse::Owned(unit))
    }

    fn review_tombstone(&mut self, unit: UnitId, blob: u64) {
        let unreadable = self.keeps_marks || self.has_unreadable_extents && self.has_unreadable(unit);
        if let Some(mark) = self.tombstones.get_mut(&(unit, blob)) {
            let needed = unreadable || self.dead.contains_key(&(unit, blob));
            Self::set_needed(&mut self.extents, mark, needed);
        }
    }

    /// Decides anew which drops and cuts are needed. They are few.
    pub fn review_marks(&mut self) {
        for (unit, drop) in &mut self.drops {
            let used = ExtentUse::Owned(*unit);
            let older = |e: &Extent| e.used == used && (e.unreadable || e.oldest < drop.sequence);
            let needed = self.keeps_marks || self.extents.iter().any(older);
            Self::set_needed(&mut self.extents, drop, needed);
        }
        for (cut, places) in &mut self.cuts {
            let names = |p: &CutPlace, e: &Extent| {
                e.generation == p.generation && matches!(e.used, ExtentUse::Owned(_))
            };
            let is_there = |p: &CutPlace| self.extents.get(p.extent as usize).is_some_and(|e| names(p, e));
            let needed = self.keeps_marks || places.iter().any(is_there);
            Self::set_needed(&mut self.extents, cut, needed);
        }
    }

    /// Recovery could not read the headers of an extent: whose it is is not known, and next time it may be there again.
    /// Until the disk is opened again, every tombstone, drop and cut stays needed.
    pub fn keep_marks(&mut self) {
        self.keeps_marks = true;
        let marks: Vec<(UnitId, u64)> = self.tombstones.keys().copied().collect();
        for (unit, blob) in marks {
            self.review_tombstone(unit, blob);
        }
        self.review_marks();
    }

    /// Recovery found parts of an extent unreadable: what it hides keeps its unit's tombstones needed.
    pub fn mark_unreadable(&mut self, number: u32) {
        self.extent(number).unreadable = true;
        self.has_unreadable_extents = true;
        let marks: Vec<(UnitId, u64)> = self.tombstones.keys().copied().collect();
        for (unit, blob) in marks {
            self.review_tombstone(unit, blob);
        }
        self.review_marks();
    }

    /// An extent is durably free: its dead records can never come back, nor are its marks remembered.
    pub fn free(&mut self, number: u32, end: u32) {
        let extent = self.extent(number);
        let ExtentUse::Owned(owner) = extent.used else {
            return;
        };
        let (pin, generation) = (extent.pin.clone(), extent.generation);
        let dead_blobs = std::mem::take(&mut extent.dead_blobs);
        *extent = Extent {
            pin,
            ..Extent::new(ExtentUse::Draining, generation, end)
        };
        if owner == SYSTEM_UNIT {
            self.tombstones.retain(|_, mark| mark.place.extent != number);
            self.drops.retain(|_, mark| mark.place.extent != number);
            self.cuts.retain(|(mark, _)| mark.place.extent != number);
            if self.system_open == Some(number) {
                self.system_open = None;
            }
        } else if let Some(unit) = self.units.get_mut(&owner)
            && unit.open == Some(number)
        {
            unit.open = None;
        }
        for blob in dead_blobs {
            if let Some(count) = self.dead.get_mut(&(owner, blob)) {
                *count -= 1;
                if *count == 0 {
                    self.dead.remove(&(owner, blob));
                    self.review_tombstone(owner, blob);
                }
            }
        }
        self.review_marks();
    }

    /// The extent that takes the next record of this owner.
    pub fn open_extent(&self, owner: UnitId) -> Option<u32> {
        if owner == SYSTEM_UNIT {
            self.system_open
        } else {
            self.units.get(&owner)?.open
        }
    }

    /// Makes an extent (or none) take the next record of this owner.
    pub fn set_open(&mut self, owner: UnitId, extent: Option<u32>) {
        if owner == SYSTEM_UNIT {
            self.system_open = extent;
        } else {
            self.unit(owner, 0).open = extent;
        }
    }
}
