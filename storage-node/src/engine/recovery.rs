//! From a disk's bytes to its index, by reading every extent; and making what was decided durable before serving.
//!
//! How torn writes are told from rot: every record names its batch and the newest batch that was flushed when it was
//! written; when a disk falls idle or stops, the superblock names its last one. Batches up to the greatest such number were acknowledged, so damage there is rot: it is counted, and the
//! rest of the extent keeps serving. Records of later batches may be torn: their payloads are checked, the bad ones are
//! cut, and so are gaps that start in them. A cut is recorded in a system extent, and itself claims no more flushed than was
//! known before, so a crash during recovery changes nothing. Behind the last valid record there is nothing to decide:
//! no valid record is there, and new ones overwrite it.

use super::committer::Counters;
use super::index::{Entry, Extent, ExtentUse, Index, Mark};
use super::scan::{Scan, scan_extent};
use super::superblocks;
use crate::device::{AlignedBuf, BLOCK, Device, DeviceError};
use crate::format::extent::{DiskIdentity, ExtentHeader, SYSTEM_UNIT};
use crate::format::layout::Layout;
use crate::format::record::{CUT_PLACES_MAX, CutPlace, RecordHead, RecordKind, decode_cut_places};
use crate::format::superblock::Superblock;
use crate::protocol::{ShardKey, UnitId, bad_block, seal_seed};
use std::collections::HashSet;

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
    let mut index = Index::default();
    let mut counters = Counters {
        sequence: 1,
        batch: 1,
        flushed: 0,
        generation: superblock.generation_limit,
        header: 1,
    };
    let (mut headers, mut scans, mut unknown) = (Vec::new(), Vec::new(), false);
    for number in 0..layout.extents() {
        let ([a, b], failed) = read_headers(device, layout, identity, number);
        let choice = choose_header(a, b);
        // It may be readable next time, with all it holds.
        unknown |= failed && choice == HeaderChoice::Bad;
        let extent = match choice {
            HeaderChoice::Bad => Extent::new(ExtentUse::Quarantined, 0, layout.data_end()),
            HeaderChoice::Header { header, agreed } => {
                counters.header = counters.header.max(header.sequence + 1);
                counters.generation = counters.generation.max(header.generation + 1);
                if !agreed {
                    headers.push(header);
                }
                let used = header.owner.map_or(ExtentUse::Free, ExtentUse::Owned);
                Extent::new(used, header.generation, layout.data_start())
            }
        };
        if let ExtentUse::Owned(owner) = extent.used {
            scans.push((
                owner,
                scan_extent(device, layout, identity, number, extent.generation),
            ));
        } else if extent.used == ExtentUse::Quarantined {
            tracing::error!(disk = %identity.disk, extent = number, "both extent headers are bad: left alone");
        }
        index.extents.push(extent);
    }
    let verdict = judge(device, layout, &scans, superblock.flushed);
    let rotten = verdict.rotten;
    let (sequence, batch) = numbers(&scans);
    counters.sequence = sequence + 1;
    counters.batch = batch.max(superblock.flushed) + 1;
    counters.flushed = verdict.flushed;
    replay(&mut index, layout, scans, &verdict);
    if unknown {
        index.keep_marks();
    }
    Ok(Recovered {
        index,
        counters,
        headers,
        new_cuts: verdict.new_cuts,
        rotten,
    })
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

fn numbers(scans: &[(UnitId, Scan)]) -> (u64, u64) {
    let heads = || scans.iter().flat_map(|(_, scan)| &scan.heads);
    let sequence = heads().map(|h| h.sequence).max().unwrap_or(0);
    (sequence, heads().map(|h| h.batch).max().unwrap_or(0))
}

struct Verdict {
    flushed: u64,
    cuts: Vec<(RecordHead, Vec<CutPlace>)>,
    cut: HashSet<CutPlace>,
    new_cuts: Vec<CutPlace>,
    rotten: u64,
}

/// Tells torn from rotten. `marked`: what the superblock says was flushed.
fn judge(device: &dyn Device, layout: &Layout, scans: &[(UnitId, Scan)], marked: u64) -> Verdict {
    let heads = || scans.iter().flat_map(|(_, scan)| &scan.heads);
    let flushed = heads().map(|head| head.flushed).fold(marked, u64::max);
    let mut verdict = Verdict {
        flushed,
        cuts: Vec::new(),
        cut: HashSet::new(),
        new_cuts: Vec::new(),
        rotten: 0,
    };
    for head in heads().filter(|head| head.kind == RecordKind::Cut) {
        if let Some(places) = read_payload(device, layout, head).and_then(|b| decode_cut_places(&b).ok()) {
            verdict.cut.extend(&places);
            verdict.cuts.push((head.clone(), places));
        }
    }
    for (_, scan) in scans {
        // A gap that swallowed no record is what an earlier cut left behind.
        for gap in scan.gaps.iter().filter(|gap| gap.lost > 0) {
            if verdict.cut.contains(&gap.place) {
                continue;
            }
            if gap.batch > flushed {
                verdict.new_cuts.push(gap.place);
            } else {
                verdict.rotten += u64::from(gap.lost);
            }
        }
        for head in scan.heads.iter().filter(|head| head.batch > flushed) {
            let reads = || read_payload(device, layout, head).is_some();
            if !verdict.cut.contains(&head.place) && !reads() && !reads() {
                verdict.new_cuts.push(head.place);
            }
        }
    }
    verdict.cut.extend(&verdict.new_cuts);
    verdict
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

/// Builds the index from what is valid. The order of the records does not matter.
fn replay(index: &mut Index, layout: &Layout, scans: Vec<(UnitId, Scan)>, verdict: &Verdict) {
    let valid = |head: &&RecordHead| !verdict.cut.contains(&head.place);
    for (_, scan) in &scans {
        let extent = &mut index.extents[scan.extent as usize];
        (extent.end, extent.ordinal) = (scan.end, scan.ordinal);
    }
    // Marks first: they are few, and a shard that comes after its tombstone is buried at once.
    let heads = || scans.iter().flat_map(|(_, scan)| &scan.heads).filter(valid);
    let mut drops: Vec<_> = heads().filter(|h| h.kind == RecordKind::UnitDropped).collect();
    drops.sort_by_key(|head| (head.sequence, head.place.generation));
    for head in drops {
        index.drop_unit(head.unit, Mark::of(head));
    }
    let mut tombstones: Vec<_> = heads().filter(|h| h.kind == RecordKind::Tombstone).collect();
    tombstones.sort_by_key(|head| (head.sequence, head.place.generation));
    for head in tombstones {
        index.delete_blob(head.unit, head.key.blob, Mark::of(head));
    }
    for head in heads().filter(|h| h.kind == RecordKind::Shard) {
        index.insert(head.unit, head.key, Entry::of(head), head.epoch);
    }
    for (head, places) in &verdict.cuts {
        if verdict.new_cuts.contains(&head.place) {
            continue;
        }
        index.cut(Mark::of(head), places.clone());
    }
    for (_, scan) in scans.iter().filter(|(_, scan)| scan.unreadable) {
        index.mark_unreadable(scan.extent);
    }
    settle_units(index, layout, &scans);
    index.review_marks();
}

/// Epochs from every record, and which extent each unit goes on with: the newest that has room.
fn settle_units(index: &mut Index, layout: &Layout, scans: &[(UnitId, Scan)]) {
    let drops: Vec<UnitId> = index.drops.keys().copied().collect();
    for unit in drops {
        if index.units.get(&unit).is_some_and(|u| u.entries.is_empty()) {
            index.units.remove(&unit);
        }
    }
    for head in scans.iter().flat_map(|(_, scan)| &scan.heads) {
        if let Some(unit) = index.units.get_mut(&head.unit) {
            unit.epoch = unit.epoch.max(head.epoch);
        }
    }
    for (owner, scan) in scans {
        let known = *owner == SYSTEM_UNIT || index.units.contains_key(owner);
        let newest = index.open_extent(*owner).is_none_or(|open| {
            index.extents[open as usize].generation < index.extents[scan.extent as usize].generation
        });
        if known && newest && !scan.unreadable && scan.end < layout.data_end() {
            index.set_open(*owner, Some(scan.extent));
        }
    }
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
