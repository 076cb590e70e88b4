//! The first look at a disk: the headers of every extent, and what only the whole disk knows together: which batches
//! were flushed, what was deleted, what recovery cut.

use super::Progress;
use super::disk::Disk;
use crate::device::BLOCK;
use crate::engine::headers::{HeaderChoice, choose_header};
use crate::engine::scan::{Log, walk_extent};
use crate::engine::tail::{look_at_tail, read_footer};
use crate::format::extent::{ExtentHeader, SYSTEM_UNIT};
use crate::format::record::{CutPlace, RecordHead, RecordKind, RecordPlace, decode_cut_places};
use crate::format::summary::Tail;
use crate::protocol::{UnitId, bad_block, seal_seed};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What the headers of an extent say.
pub struct Extent {
    /// Both copies: a header, or why it is none.
    pub headers: [Result<ExtentHeader, String>; 2],
    /// The one that counts.
    pub header: Option<ExtentHeader>,
    /// Whether it is sealed, if it is a unit's.
    pub tail: Tail,
    /// Bytes of it that are behind the end of a disk that was cut short; if any, it is not read.
    pub missing: u64,
}

/// What the whole disk knows.
pub struct Survey {
    /// By number.
    pub extents: Vec<Extent>,
    /// Every batch up to this one was flushed.
    pub flushed: u64,
    /// Deleted blobs.
    pub tombstones: HashSet<(UnitId, u64)>,
    /// Dropped units, and before which request.
    pub drops: HashMap<UnitId, u64>,
    /// Places that recovery cut.
    pub cuts: HashSet<CutPlace>,
}

impl Survey {
    /// Reads headers and heads of the whole disk.
    pub fn of(disk: &Disk, progress: Progress<'_>) -> Survey {
        let number = disk.layout.extents();
        let mut survey = Survey {
            extents: (0..number).map(|extent| read_headers(disk, extent)).collect(),
            flushed: disk.superblock.flushed,
            tombstones: HashSet::new(),
            drops: HashMap::new(),
            cuts: HashSet::new(),
        };
        for extent in &survey.extents {
            if let Tail::Sealed(footer) = &extent.tail {
                survey.flushed = survey.flushed.max(footer.flushed);
            }
        }
        let mut marks = Vec::new();
        let owned: Vec<(UnitId, u32)> = survey.owned().collect();
        let steps = 2 * owned.len() as u64;
        for (step, (owner, extent)) in owned.into_iter().enumerate() {
            progress(step as u64, steps);
            let mut heads = Vec::new();
            let flushed = &mut survey.flushed;
            scan(disk, &survey.extents, extent, |head| {
                *flushed = head.flushed.max(*flushed);
                if owner == SYSTEM_UNIT {
                    heads.push(head);
                }
            });
            for head in &heads {
                survey.note_cut(disk, head);
            }
            marks.extend(heads);
        }
        for head in marks {
            survey.note_mark(&head);
        }
        survey
    }

    /// The extents of each owner.
    pub fn units(&self) -> BTreeMap<UnitId, Vec<u32>> {
        let mut units: BTreeMap<UnitId, Vec<u32>> = BTreeMap::new();
        for (owner, extent) in self.owned() {
            units.entry(owner).or_default().push(extent);
        }
        units
    }

    fn owned(&self) -> impl Iterator<Item = (UnitId, u32)> {
        let numbered = (0..).zip(&self.extents);
        numbered.filter_map(|(number, extent)| {
            let owner = extent.header?.owner?;
            (extent.missing == 0).then_some((owner, number))
        })
    }

    fn note_cut(&mut self, disk: &Disk, head: &RecordHead) {
        if head.kind == RecordKind::Cut
            && let Ok(payload) = read_payload(disk, head)
            && let Ok(places) = decode_cut_places(&payload)
        {
            self.cuts.extend(places);
        }
    }

    fn note_mark(&mut self, head: &RecordHead) {
        if self.cuts.contains(&head.place) {
            return;
        }
        if head.kind == RecordKind::Tombstone {
            self.tombstones.insert((head.unit, head.key.blob));
        } else if head.kind == RecordKind::UnitDropped {
            let before = self.drops.entry(head.unit).or_default();
            *before = head.sequence.max(*before);
        }
    }
}

/// Walks an extent that is owned, with the engine's own scan.
pub fn scan(disk: &Disk, extents: &[Extent], number: u32, visit: impl FnMut(RecordHead)) -> Log {
    let generation = extents[number as usize].header.map_or(0, |h| h.generation);
    walk_extent(
        &*disk.device,
        &disk.layout,
        &disk.identity,
        number,
        generation,
        visit,
    )
}

fn read_headers(disk: &Disk, number: u32) -> Extent {
    let end = disk.offset(number, 0) + disk.layout.extent_size();
    let read = |at| {
        let decode = || {
            let block = disk.read(number, at, BLOCK as u32).map_err(|e| e.to_string())?;
            ExtentHeader::decode(&block, &disk.identity, number).map_err(|e| e.to_string())
        };
        // One bad read decides nothing.
        decode().or_else(|_| decode())
    };
    let headers = [read(0), read(disk.layout.data_end())];
    let [a, b] = [0, 1].map(|copy: usize| headers[copy].as_ref().ok().copied());
    let header = match choose_header(a, b) {
        HeaderChoice::Header { header, .. } => Some(header),
        HeaderChoice::Bad => None,
    };
    let missing = end
        .saturating_sub(disk.device.info().size)
        .min(disk.layout.extent_size());
    let of_unit = header.filter(|header| header.owner.is_some_and(|owner| owner != SYSTEM_UNIT));
    let tail = match of_unit {
        Some(header) if missing == 0 => read_tail(disk, number, header.generation),
        _ => Tail::Open,
    };
    Extent {
        headers,
        header,
        tail,
        missing,
    }
}

fn read_tail(disk: &Disk, number: u32, generation: u64) -> Tail {
    let (device, layout) = (&*disk.device, &disk.layout);
    let first = read_footer(device, layout, number);
    look_at_tail(device, layout, &disk.identity, (number, generation), first)
}

/// A record's payload, or what is wrong with it.
pub fn read_payload(disk: &Disk, head: &RecordHead) -> Result<Vec<u8>, String> {
    let RecordPlace { extent, offset, .. } = head.place;
    let at = offset + head.payload_at;
    let skip = at % BLOCK as u32;
    let read = || {
        let buf = disk
            .read(extent, at - skip, skip + head.len)
            .map_err(|e| e.to_string())?;
        let payload = &buf[skip as usize..(skip + head.len) as usize];
        match bad_block(
            seal_seed(head.unit, head.key, head.len),
            payload,
            &head.block_crcs,
        ) {
            None => Ok(payload.to_vec()),
            Some(block) => Err(format!("block {block} of the payload: checksum mismatch")),
        }
    };
    read().or_else(|_| read())
}
