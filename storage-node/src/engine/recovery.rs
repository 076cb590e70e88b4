//! From a disk's bytes to its index, by reading every extent; and making what was decided durable before serving.
//!
//! A sealed extent has a summary of its records: it is read instead of walking from head to head. An extent without one, or
//! whose summary does not verify, is walked: the records alone are the truth, and a summary only says it in fewer reads.
//!
//! How torn writes are told from rot: every record names its batch and the newest batch that was flushed when it was
//! written; when a disk falls idle or stops, the superblock names its last one. Batches up to the greatest such number were acknowledged, so damage there is rot: it is counted, and the
//! rest of the extent keeps serving. Records of later batches may be torn: their payloads are checked, the bad ones are
//! cut, and so are gaps that start in them. A cut is recorded in a system extent, and itself claims no more flushed than was
//! known before, so a crash during recovery changes nothing. Behind the last valid record there is
//! nothing to decide, unless others of its batch are missing: no valid record is there, and new ones overwrite it.

use super::committer::Counters;
use super::flusher::IN_FLIGHT_MAX;
use super::headers::read_extents;
use super::index::{Entry, Index, Mark};
use super::loose::Loose;
use super::scan::{Log, walk_extent};
use super::summaries::{Backlog, Listing, Summaries};
use super::superblocks;
use super::tail::{FooterBytes, look_at_tail, read_entries};
use crate::device::{AlignedBuf, Device, DeviceError, DeviceErrorKind, align_down, align_up};
use crate::format::extent::{DiskIdentity, ExtentHeader, SYSTEM_UNIT};
use crate::format::layout::Layout;
use crate::format::record::{
    CUT_PLACES_MAX, CutPlace, HEAD_BYTES_MAX, RecordHead, RecordKind, RecordPlace, decode_cut_places,
};
use crate::format::summary::{SummaryEntry, SummaryFooter, Tail};
use crate::format::superblock::Superblock;
use crate::protocol::{ShardKey, UnitId, bad_block, seal_seed};
use std::collections::{HashMap, HashSet};

/// How often a head that was read before is read again before it counts as lost.
const READ_ATTEMPTS: usize = 3;

/// What recovery found.
pub struct Recovered {
    /// What the disk holds.
    pub index: Index,
    /// Where the growing numbers stand.
    pub counters: Counters,
    /// Headers whose two copies disagree, to be written again.
    pub headers: Vec<ExtentHeader>,
    /// What may not be on the disk, although it can be read.
    pub loose: Loose,
    /// Places cut now, still to be recorded.
    pub new_cuts: Vec<CutPlace>,
    /// Records lost to rot, as far as gaps tell.
    pub rotten: u64,
    /// What is listed of extents that have no summary yet.
    pub summaries: Summaries,
    /// How the extents were read.
    pub opened: Opened,
}

/// How many extents of units were read in which way when a disk was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// By their summary.
    pub summed_up: u64,
    /// From head to head.
    pub walked: u64,
}

/// Reads a whole disk.
pub fn recover(
    device: &dyn Device,
    superblock: &Superblock,
    layout: &Layout,
    identity: &DiskIdentity,
) -> Result<Recovered, DeviceError> {
    let (extents, header, generation) = read_extents(device, superblock, layout, identity);
    if extents.bad.len() == layout.extents() as usize {
        // Superblocks alone make no disk: formatting wrote every header.
        let what = format!(
            "the disk was overwritten: none of its {} extents has a valid header",
            extents.bad.len()
        );
        return Err(DeviceError::new(DeviceErrorKind::Gone, what));
    }
    let mut survey = Survey {
        device,
        layout,
        identity,
        index: Index::default(),
        flushed: superblock.flushed,
        sequence: 0,
        batch: superblock.flushed,
        epochs: HashMap::new(),
        cut: HashSet::new(),
        doubtful: Vec::new(),
        logs: Vec::new(),
        rotten: 0,
        footers: HashMap::new(),
        sealed: HashSet::new(),
        backlog: Backlog::default(),
        opened: Opened::default(),
    };
    survey.index.extents = extents.extents;
    // Marks first: they are few, and a shard that comes after its tombstone is buried at once.
    let (system, units): (Vec<_>, Vec<_>) = extents
        .owned
        .into_iter()
        .partition(|(_, owner)| *owner == SYSTEM_UNIT);
    let cuts = survey.read_marks(&system);
    for (number, owner) in units {
        let footer = extents.footers.get(&number).copied();
        survey.read_unit_extent(number, owner, footer);
    }
    let new_cuts = survey.judge();
    survey.settle(cuts, &new_cuts);
    if extents.unknown {
        survey.index.keep_marks();
    }
    let summaries = survey.backlog.settle(&new_cuts, &survey.index, layout);
    let flushed = survey.flushed;
    let loose = Loose {
        headers: extents.loose,
        extents: survey
            .logs
            .iter()
            .filter(|(_, log)| log.batch > flushed)
            .map(|(_, log)| log.extent)
            .collect(),
    };
    let Opened { summed_up, walked } = survey.opened;
    tracing::info!(disk = %identity.disk, summed_up, walked, "extents read");
    Ok(Recovered {
        counters: Counters {
            sequence: survey.sequence + 1,
            // Those that were in flight may have left nothing but pieces of sectors: their numbers are not used again.
            batch: survey.batch + 1 + IN_FLIGHT_MAX as u64,
            flushed: survey.flushed,
            generation,
            header,
        },
        index: survey.index,
        headers: extents.disagreeing,
        loose,
        new_cuts,
        rotten: survey.rotten,
        summaries,
        opened: survey.opened,
    })
}

/// What is known while the extents are read one after the other. Shards go into the index as they are met, but those of
/// batches that nothing has called flushed yet: at most the newest batch met so far, in a disk that was not cut off more often
/// than it wrote.
struct Survey<'a> {
    device: &'a dyn Device,
    layout: &'a Layout,
    identity: &'a DiskIdentity,
    index: Index,
    /// The newest batch that is known to be flushed.
    flushed: u64,
    /// The greatest met.
    sequence: u64,
    batch: u64,
    /// Of every unit that a record names.
    epochs: HashMap<UnitId, u32>,
    /// Places that this recovery or an earlier one decided against.
    cut: HashSet<CutPlace>,
    doubtful: Vec<RecordHead>,
    logs: Vec<(UnitId, Log)>,
    rotten: u64,
    /// Of the extents that were read by their summary.
    footers: HashMap<u32, SummaryFooter>,
    /// Walked extents that may have a summary all the same: they are not appended to.
    sealed: HashSet<u32>,
    /// What is listed of walked extents.
    backlog: Backlog,
    opened: Opened,
}

/// A shard's record, as its head or the summary of its extent names it.
struct Met {
    unit: UnitId,
    key: ShardKey,
    entry: Entry,
    sequence: u64,
    epoch: u32,
}

impl Met {
    fn in_head(head: &RecordHead) -> Met {
        Met {
            unit: head.unit,
            key: head.key,
            entry: Entry::of(head),
            sequence: head.sequence,
            epoch: head.epoch,
        }
    }

    fn in_summary(footer: &SummaryFooter, entry: &SummaryEntry) -> Met {
        let place = RecordPlace {
            extent: footer.extent,
            generation: footer.generation,
            offset: entry.offset,
        };
        Met {
            unit: footer.unit,
            key: entry.key,
            entry: Entry::at(place, entry.len, entry.digests),
            sequence: entry.sequence,
            epoch: footer.epoch,
        }
    }
}

impl Survey<'_> {
    fn note(&mut self, head: &RecordHead) {
        self.flushed = self.flushed.max(head.flushed);
        self.sequence = self.sequence.max(head.sequence);
        self.batch = self.batch.max(head.batch);
        self.note_epoch(head.unit, head.epoch);
    }

    fn note_epoch(&mut self, unit: UnitId, epoch: u32) {
        let known = self.epochs.entry(unit).or_default();
        *known = epoch.max(*known);
    }

    fn add_log(&mut self, owner: UnitId, log: Log) {
        let extent = &mut self.index.extents[log.extent as usize];
        (extent.end, extent.ordinal) = (log.end, log.ordinal);
        self.logs.push((owner, log));
    }

    /// Reads the system's extents into the index; answers the cuts, which are put in when all is decided.
    fn read_marks(&mut self, extents: &[(u32, UnitId)]) -> Vec<(RecordHead, Vec<CutPlace>)> {
        let mut heads = Vec::new();
        for &(number, owner) in extents {
            let generation = self.index.extents[number as usize].generation;
            let visit = |head| heads.push(head);
            let log = walk_extent(self.device, self.layout, self.identity, number, generation, visit);
            self.add_log(owner, log);
        }
        let mut cuts = Vec::new();
        for head in &heads {
            self.note(head);
            if head.kind == RecordKind::Cut {
                match read_payload(self.device, self.layout, head).and_then(|b| decode_cut_places(&b).ok()) {
                    Some(places) => {
                        self.cut.extend(&places);
                        cuts.push((head.clone(), places));
                    }
                    None => self.doubtful.push(head.clone()),
                }
            }
        }
        heads.retain(|head| !self.cut.contains(&head.place));
        heads.sort_by_key(|head| (head.sequence, head.place.generation));
        for head in heads.iter().filter(|head| head.kind == RecordKind::UnitDropped) {
            self.index.drop_unit(head.unit, Mark::of(head));
        }
        for head in heads.iter().filter(|head| head.kind == RecordKind::Tombstone) {
            self.index.delete_blob(head.unit, head.key.blob, Mark::of(head));
        }
        cuts
    }

    fn read_unit_extent(&mut self, number: u32, owner: UnitId, footer: Option<FooterBytes>) {
        let (device, layout, identity) = (self.device, self.layout, self.identity);
        let generation = self.index.extents[number as usize].generation;
        match look_at_tail(device, layout, identity, (number, generation), footer) {
            Tail::Sealed(footer) if footer.unit == owner && self.read_summary(&footer) => return,
            Tail::Open => {}
            Tail::Sealed(_) | Tail::Damaged(_) => {
                tracing::warn!(disk = %identity.disk, extent = number, "its summary does not verify: walking it");
                self.sealed.insert(number);
            }
        }
        let mut listing = Some(Listing::new(owner, generation, layout));
        let log = walk_extent(device, layout, identity, number, generation, |head| {
            let was_cut = self.cut.contains(&head.place);
            listing = listing.take().and_then(|listing| listing.with(&head, was_cut));
            self.meet(head)
        });
        if let Some(listing) = listing
            && log.gaps.is_empty()
            && !log.unreadable
        {
            self.backlog
                .keep(number, listing, self.sealed.contains(&number), layout);
        }
        self.opened.walked += 1;
        self.add_log(owner, log);
    }

    /// Takes a sealed extent's records from its summary. False if it does not verify.
    fn read_summary(&mut self, footer: &SummaryFooter) -> bool {
        let Ok(entries) = read_entries(self.device, self.layout, self.identity, footer) else {
            return false;
        };
        let known = self.flushed;
        self.flushed = self.flushed.max(footer.flushed);
        self.sequence = self.sequence.max(footer.sequence);
        self.batch = self.batch.max(footer.flushed);
        self.note_epoch(footer.unit, footer.epoch);
        self.footers.insert(footer.extent, *footer);
        for entry in &entries {
            let met = Met::in_summary(footer, entry);
            if !self.cut.contains(&met.entry.place) {
                self.take_in(&met);
            }
        }
        let extent = &mut self.index.extents[footer.extent as usize];
        (extent.end, extent.ordinal) = (footer.end, footer.ordinal);
        self.opened.summed_up += 1;
        self.settle_doubts(known);
        true
    }

    /// Takes a record of a unit's extent: into the index if its batch was flushed, else it waits to be judged.
    fn meet(&mut self, head: RecordHead) {
        let known = self.flushed;
        self.note(&head);
        if self.cut.contains(&head.place) {
            return;
        }
        if head.batch > self.flushed {
            self.doubtful.push(head);
        } else {
            self.take_in_head(&head);
        }
        self.settle_doubts(known);
    }

    /// More batches may be known to be flushed than before: what waited for that is taken in.
    fn settle_doubts(&mut self, known: u64) {
        let flushed = self.flushed;
        if flushed > known {
            let settled: Vec<RecordHead> = self
                .doubtful
                .extract_if(.., |head| head.batch <= flushed)
                .collect();
            settled.iter().for_each(|head| self.take_in_head(head));
        }
    }

    fn take_in_head(&mut self, head: &RecordHead) {
        if head.kind == RecordKind::Shard {
            self.take_in(&Met::in_head(head));
        }
    }

    /// Puts a valid shard into the index: the newest record of a key lives, wherever in the order they are met.
    fn take_in(&mut self, met: &Met) {
        let there = self.index.find(met.unit, met.key);
        let newer = match there {
            None => true,
            Some(there) => match self.rank(met, &there) {
                Some(rank) => rank < (met.sequence, met.entry.place.generation, met.entry.place.offset),
                None => {
                    // Its head was read a moment ago and cannot be any more. Which of the two is newer is not known, and
                    // an older one must not be served: neither is, and repair writes it again.
                    tracing::warn!(disk = %self.identity.disk, unit = ?met.unit, key = ?met.key, "unreadable while recovering");
                    self.rotten += 1;
                    self.index.remove(met.unit, met.key);
                    false
                }
            },
        };
        match newer {
            true => self
                .index
                .insert(met.unit, met.key, met.entry, met.sequence, met.epoch),
            false => self.index.insert_dead(met.unit, met.key, met.entry, met.sequence),
        }
    }

    /// How new the record is that the index has for a key that is met again. The index does not keep it: it is read again,
    /// from its head, or from the summary when nothing has looked at that head yet and it turns out to be damaged.
    fn rank(&self, met: &Met, there: &Entry) -> Option<(u64, u64, u32)> {
        let place = there.place;
        let sequence = self.sequence_in_head(met, place).or_else(|| {
            let footer = self.footers.get(&place.extent)?;
            let entries = read_entries(self.device, self.layout, self.identity, footer).ok()?;
            let at = entries.binary_search_by_key(&place.offset, |entry| entry.offset);
            Some(entries[at.ok()?].sequence)
        });
        sequence.map(|sequence| (sequence, place.generation, place.offset))
    }

    fn sequence_in_head(&self, met: &Met, place: RecordPlace) -> Option<u64> {
        let start = self.layout.extent_offset(place.extent) + u64::from(place.offset);
        let first = align_down(start);
        let skip = (start - first) as usize;
        (0..READ_ATTEMPTS).find_map(|_| {
            let len = align_up((skip + HEAD_BYTES_MAX as usize) as u64);
            let len =
                len.min(u64::from(self.layout.data_end()) + self.layout.extent_offset(place.extent) - first);
            let buf = self
                .device
                .read(first, AlignedBuf::zeroed(len as usize))
                .wait()
                .ok()?;
            let found = RecordHead::decode(&buf[skip..], self.identity, place).ok()?;
            let same = (found.unit, found.key) == (met.unit, met.key);
            same.then_some(found.sequence)
        })
    }

    /// Tells torn from rotten, once all is read: what was never acknowledged is cut, the rest goes into the index.
    fn judge(&mut self) -> Vec<CutPlace> {
        let mut new_cuts = Vec::new();
        // A gap that swallowed no record is what an earlier cut left behind.
        let gaps = self
            .logs
            .iter()
            .flat_map(|(_, log)| &log.gaps)
            .filter(|gap| gap.lost > 0);
        for gap in gaps.filter(|gap| !self.cut.contains(&gap.place)) {
            match gap.batch > self.flushed {
                true => new_cuts.push(gap.place),
                false => self.rotten += u64::from(gap.lost),
            }
        }
        for head in std::mem::take(&mut self.doubtful) {
            let reads = || read_payload(self.device, self.layout, &head).is_some();
            if head.batch > self.flushed && !self.cut.contains(&head.place) && !reads() && !reads() {
                new_cuts.push(head.place);
            } else {
                self.take_in_head(&head);
            }
        }
        new_cuts
    }

    /// What can be said only when everything is in the index.
    fn settle(&mut self, cuts: Vec<(RecordHead, Vec<CutPlace>)>, new_cuts: &[CutPlace]) {
        for (head, places) in cuts {
            if !new_cuts.contains(&head.place) {
                self.index.cut(Mark::of(&head), places);
            }
        }
        for (_, log) in self.logs.iter().filter(|(_, log)| log.unreadable) {
            self.index.mark_unreadable(log.extent);
        }
        self.settle_units();
        self.index.review_marks();
    }

    /// Epochs from every record, and which extent each unit goes on with: the newest that has room and is not sealed.
    fn settle_units(&mut self) {
        let index = &mut self.index;
        let drops: Vec<UnitId> = index.drops.keys().copied().collect();
        for unit in drops {
            if index.units.get(&unit).is_some_and(|u| u.shards.is_empty()) {
                index.units.remove(&unit);
            }
        }
        for (unit, epoch) in &self.epochs {
            if let Some(unit) = index.units.get_mut(unit) {
                unit.epoch = unit.epoch.max(*epoch);
            }
        }
        for (owner, log) in &self.logs {
            let known = *owner == SYSTEM_UNIT || index.units.contains_key(owner);
            let newest = index.open_extent(*owner).is_none_or(|open| {
                index.extents[open as usize].generation < index.extents[log.extent as usize].generation
            });
            let sealed = self.sealed.contains(&log.extent);
            if known && newest && !log.unreadable && !sealed && log.end < self.layout.data_end() {
                index.set_open(*owner, Some(log.extent));
            }
        }
    }
}

/// A record's payload, if it can be read and matches its CRCs.
fn read_payload(device: &dyn Device, layout: &Layout, head: &RecordHead) -> Option<Vec<u8>> {
    let start = layout.extent_offset(head.place.extent) + u64::from(head.place.offset + head.payload_at);
    let first = crate::device::align_down(start);
    let skip = (start - first) as usize;
    let buf = device
        .read(first, AlignedBuf::zeroed(skip + head.len as usize))
        .wait()
        .ok()?;
    let payload = &buf[skip..skip + head.len as usize];
    let seed = seal_seed(head.unit, head.key, head.len);
    if bad_block(seed, payload, &head.block_crcs).is_some() {
        return None;
    }
    Some(payload.to_vec())
}

/// The drafts that record the cuts of this recovery.
pub fn cut_drafts(
    places: &[CutPlace],
    mut sequence: impl FnMut() -> u64,
) -> Vec<(super::batch::Draft, Vec<CutPlace>)> {
    let draft = |places: &[CutPlace]| {
        let payload = crate::format::record::encode_cut_places(places);
        let draft = super::batch::Draft {
            kind: RecordKind::Cut,
            unit: SYSTEM_UNIT,
            key: ShardKey { blob: 0, stripe: 0 },
            epoch: 0,
            sequence: sequence(),
            block_crcs: super::compaction::cut_crcs(&payload),
            digests: Vec::new(),
            payload: payload.into(),
        };
        (draft, places.to_vec())
    };
    places.chunks(CUT_PLACES_MAX).map(draft).collect()
}

/// Opens the superblocks of a disk, repairing copies that differ from the one that counts.
pub fn open_superblock(device: &dyn Device) -> Result<Superblock, String> {
    let copies = superblocks::read(device);
    let chosen = superblocks::choose(&copies, device.info().size).map_err(|e| e.to_string())?;
    if copies.iter().any(|copy| copy.as_ref() != Ok(&chosen)) {
        superblocks::write(device, &chosen).map_err(|e| e.to_string())?;
    }
    Ok(chosen)
}
