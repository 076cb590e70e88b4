//! From a disk's bytes to its index, by reading every extent; and making what was decided durable before serving.
//!
//! How torn writes are told from rot: every record names its batch and the newest batch that was flushed when it was
//! written; when a disk falls idle or stops, the superblock names its last one. Batches up to the greatest such number were acknowledged, so damage there is rot: it is counted, and the
//! rest of the extent keeps serving. Records of later batches may be torn: their payloads are checked, the bad ones are
//! cut, and so are gaps that start in them. A cut is recorded in a system extent, and itself claims no more flushed than was
//! known before, so a crash during recovery changes nothing. Behind the last valid record there is
//! nothing to decide, unless others of its batch are missing: no valid record is there, and new ones overwrite it.

use super::committer::Counters;
use super::index::{Entry, Extent, ExtentUse, Index, Mark};
use super::scan::{Log, walk_extent};
use super::superblocks;
use crate::device::{AlignedBuf, BLOCK, Device, DeviceError, align_down, align_up};
use crate::format::extent::{DiskIdentity, ExtentHeader, SYSTEM_UNIT};
use crate::format::layout::Layout;
use crate::format::record::{
    CUT_PLACES_MAX, CutPlace, HEAD_BYTES_MAX, RecordHead, RecordKind, decode_cut_places,
};
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
    /// Places cut now, still to be recorded.
    pub new_cuts: Vec<CutPlace>,
    /// Records lost to rot, as far as gaps tell.
    pub rotten: u64,
}

/// What an extent's two headers mean together. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderChoice {
    /// This one counts; both copies say so if `agreed`.
    Header {
        /// The one that counts.
        header: ExtentHeader,
        /// Both copies are alike.
        agreed: bool,
    },
    /// Neither is valid.
    Bad,
}

/// The newer of two header copies.
pub fn choose_header(a: Option<ExtentHeader>, b: Option<ExtentHeader>) -> HeaderChoice {
    match (a, b) {
        (None, None) => HeaderChoice::Bad,
        (Some(a), Some(b)) if a == b => HeaderChoice::Header {
            header: a,
            agreed: true,
        },
        (Some(a), Some(b)) => HeaderChoice::Header {
            header: if a.sequence >= b.sequence { a } else { b },
            agreed: false,
        },
        (Some(one), None) | (None, Some(one)) => HeaderChoice::Header {
            header: one,
            agreed: false,
        },
    }
}

/// Reads a whole disk.
pub fn recover(
    device: &dyn Device,
    superblock: &Superblock,
    layout: &Layout,
    identity: &DiskIdentity,
) -> Result<Recovered, DeviceError> {
    let (extents, header, generation) = read_extents(device, superblock, layout, identity);
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
    };
    survey.index.extents = extents.extents;
    // Marks first: they are few, and a shard that comes after its tombstone is buried at once.
    let (system, units): (Vec<_>, Vec<_>) = extents
        .owned
        .into_iter()
        .partition(|(_, owner)| *owner == SYSTEM_UNIT);
    let cuts = survey.read_marks(&system);
    for (number, owner) in units {
        survey.read_unit_extent(number, owner);
    }
    let new_cuts = survey.judge();
    survey.settle(cuts, &new_cuts);
    if extents.unknown {
        survey.index.keep_marks();
    }
    Ok(Recovered {
        counters: Counters {
            sequence: survey.sequence + 1,
            batch: survey.batch + 1,
            flushed: survey.flushed,
            generation,
            header,
        },
        index: survey.index,
        headers: extents.disagreeing,
        new_cuts,
        rotten: survey.rotten,
    })
}

/// What the headers of all extents say.
#[derive(Default)]
struct Extents {
    extents: Vec<Extent>,
    owned: Vec<(u32, UnitId)>,
    /// Headers whose two copies disagree.
    disagreeing: Vec<ExtentHeader>,
    /// The headers of one could not be read: it may be there next time, with all it holds.
    unknown: bool,
}

/// Reads all headers; and where the numbers of headers and generations stand.
fn read_extents(
    device: &dyn Device,
    superblock: &Superblock,
    layout: &Layout,
    identity: &DiskIdentity,
) -> (Extents, u64, u64) {
    let mut found = Extents::default();
    let (mut next_header, mut generation) = (1, superblock.generation_limit);
    for number in 0..layout.extents() {
        let ([a, b], failed) = read_headers(device, layout, identity, number);
        let choice = choose_header(a, b);
        found.unknown |= failed && choice == HeaderChoice::Bad;
        let extent = match choice {
            HeaderChoice::Bad => {
                tracing::error!(disk = %identity.disk, extent = number, "both extent headers are bad: left alone");
                Extent::new(ExtentUse::Quarantined, 0, layout.data_end())
            }
            HeaderChoice::Header { header, agreed } => {
                next_header = next_header.max(header.sequence + 1);
                generation = generation.max(header.generation + 1);
                if !agreed {
                    found.disagreeing.push(header);
                }
                found.owned.extend(header.owner.map(|owner| (number, owner)));
                let used = header.owner.map_or(ExtentUse::Free, ExtentUse::Owned);
                Extent::new(used, header.generation, layout.data_start())
            }
        };
        found.extents.push(extent);
    }
    (found, next_header, generation)
}

/// Both copies of a header, and whether one of them could not be read.
fn read_headers(
    device: &dyn Device,
    layout: &Layout,
    identity: &DiskIdentity,
    number: u32,
) -> ([Option<ExtentHeader>; 2], bool) {
    let start = layout.extent_offset(number);
    let places = [start, start + u64::from(layout.data_end())];
    let read = |offset| device.read(offset, AlignedBuf::zeroed(BLOCK));
    let mut failed = 0;
    let first = places.map(read).map(|read| read.wait());
    let headers = [0, 1].map(|copy: usize| {
        let decode = |block: &AlignedBuf| ExtentHeader::decode(block, identity, number).ok();
        // One bad read decides nothing.
        first[copy].as_ref().ok().and_then(decode).or_else(|| {
            let again = read(places[copy]).wait();
            failed += usize::from(again.is_err());
            again.ok().as_ref().and_then(decode)
        })
    });
    (headers, failed > 0)
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
}

impl Survey<'_> {
    fn note(&mut self, head: &RecordHead) {
        self.flushed = self.flushed.max(head.flushed);
        self.sequence = self.sequence.max(head.sequence);
        self.batch = self.batch.max(head.batch);
        let epoch = self.epochs.entry(head.unit).or_default();
        *epoch = head.epoch.max(*epoch);
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

    fn read_unit_extent(&mut self, number: u32, owner: UnitId) {
        let (device, layout, identity) = (self.device, self.layout, self.identity);
        let generation = self.index.extents[number as usize].generation;
        let log = walk_extent(device, layout, identity, number, generation, |head| {
            self.meet(head)
        });
        self.add_log(owner, log);
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
            self.take_in(&head);
        }
        if self.flushed > known {
            let flushed = self.flushed;
            let settled: Vec<RecordHead> = self
                .doubtful
                .extract_if(.., |head| head.batch <= flushed)
                .collect();
            settled.iter().for_each(|head| self.take_in(head));
        }
    }

    /// Puts a valid shard into the index: the newest record of a key lives, wherever in the order they are met.
    fn take_in(&mut self, head: &RecordHead) {
        if head.kind != RecordKind::Shard {
            return;
        }
        let entry = Entry::of(head);
        let there = self.index.find(head.unit, head.key);
        let newer = match there {
            None => true,
            Some(there) => match self.rank(head, &there) {
                Some(rank) => rank < (head.sequence, head.place.generation, head.place.offset),
                None => {
                    // Its head was read a moment ago and cannot be any more. Which of the two is newer is not known, and
                    // an older one must not be served: neither is, and repair writes it again.
                    tracing::warn!(disk = %self.identity.disk, unit = ?head.unit, key = ?head.key, "unreadable while recovering");
                    self.rotten += 1;
                    self.index.remove(head.unit, head.key);
                    false
                }
            },
        };
        match newer {
            true => self
                .index
                .insert(head.unit, head.key, entry, head.sequence, head.epoch),
            false => self.index.insert_dead(head.unit, head.key, entry, head.sequence),
        }
    }

    /// How new the record is that the index has for the key of `head`. The index does not keep it: it is read again.
    fn rank(&self, head: &RecordHead, there: &Entry) -> Option<(u64, u64, u32)> {
        let place = there.place;
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
            let same = (found.unit, found.key) == (head.unit, head.key);
            same.then_some((found.sequence, place.generation, place.offset))
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
                self.take_in(&head);
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

    /// Epochs from every record, and which extent each unit goes on with: the newest that has room.
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
            if known && newest && !log.unreadable && log.end < self.layout.data_end() {
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
