//! What a disk holds, in numbers: superblocks, extents by use, units, records and how much of what was written is live.

use super::Progress;
use super::disk::{Disk, SuperblockCopy};
use super::survey::{Extent, Survey};
use super::walk::{Judged, RecordState, WalkedUnit, walk};
use crate::format::extent::SYSTEM_UNIT;
use crate::format::record::{RecordHead, RecordKind};
use crate::format::summary::Tail;
use crate::protocol::{ClusterId, DiskId, UnitId};
use serde::Serialize;

/// Which records to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordFilter {
    /// Of this blob.
    pub blob: u64,
    /// And of this stripe; tombstones are of a whole blob and listed always.
    pub stripe: Option<u32>,
}

impl RecordFilter {
    fn takes(&self, head: &RecordHead) -> bool {
        let about_blob = matches!(head.kind, RecordKind::Shard | RecordKind::Tombstone);
        let stripe = head.kind != RecordKind::Shard || self.stripe.is_none_or(|s| s == head.key.stripe);
        about_blob && head.key.blob == self.blob && stripe
    }
}

/// What an extent is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtentUse {
    /// Nothing.
    Free,
    /// Records of a unit.
    Unit,
    /// Tombstones, drops and cuts.
    System,
    /// Both headers are bad: it is left alone.
    Bad,
    /// The disk was cut short and it is not all there.
    Missing,
}

/// One extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExtentLine {
    /// Its number.
    pub extent: u32,
    /// Where it starts on the device.
    pub offset: u64,
    /// What it is used for.
    #[serde(rename = "use")]
    pub used: ExtentUse,
    /// Whose it is.
    pub unit: Option<UnitId>,
    /// Its records are summed up at its tail, and nothing is appended to it.
    pub sealed: bool,
    /// Which use of it this is.
    pub generation: u64,
    /// The sequence of the header that counts.
    pub sequence: u64,
    /// Records in it.
    pub records: u64,
    /// Of those, live shards.
    pub live_records: u64,
    /// Bytes its log takes.
    pub written_bytes: u64,
    /// Bytes of the live shards' records.
    pub live_bytes: u64,
}

/// One unit, or the system's extents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnitLine {
    /// Which; none for the system.
    pub unit: Option<UnitId>,
    /// The newest epoch in its records.
    pub epoch: u32,
    /// Its extents.
    pub extents: u64,
    /// Records in them.
    pub records: u64,
    /// Of those, live shards.
    pub live_records: u64,
    /// Bytes their logs take.
    pub written_bytes: u64,
    /// Bytes of the live shards' records, heads included.
    pub live_bytes: u64,
    /// Payload bytes of the live shards.
    pub payload_bytes: u64,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // The fields of the format, by their names there.
pub struct RecordLine {
    pub kind: &'static str,
    pub unit: UnitId,
    pub blob: u64,
    pub stripe: u32,
    pub state: RecordState,
    /// `ok`, or what is wrong with the payload.
    pub payload: String,
    /// Of the head, on the device.
    pub device_offset: u64,
    pub extent: u32,
    /// Of the head, from the extent's start.
    pub offset: u32,
    pub payload_at: u32,
    pub next_at: u32,
    pub len: u32,
    pub epoch: u32,
    pub sequence: u64,
    pub batch: u64,
    pub flushed: u64,
    pub generation: u64,
    pub ordinal: u32,
    pub part_start: u32,
    pub digests: usize,
}

/// What a disk holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The disk.
    pub disk: DiskId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Which life of the disk this is.
    pub incarnation: u64,
    /// The version of its format.
    pub format: u32,
    /// The device's size now.
    pub size_bytes: u64,
    /// And when it was formatted.
    pub formatted_bytes: u64,
    /// Bytes of one extent.
    pub extent_bytes: u64,
    /// No extent has this generation or a greater one yet.
    pub generation_limit: u64,
    /// Every batch up to this one was flushed.
    pub flushed: u64,
    /// The superblock's copies.
    pub superblocks: Vec<SuperblockCopy>,
    /// How many extents have which use.
    pub extents_total: u64,
    /// Free ones.
    pub extents_free: u64,
    /// Those of units.
    pub extents_of_units: u64,
    /// Those of the system.
    pub extents_of_system: u64,
    /// Those whose headers are both bad.
    pub extents_bad: u64,
    /// Those that are not all there.
    pub extents_missing: u64,
    /// Shard records, live or not.
    pub shards: u64,
    /// Those that are served.
    pub live_shards: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Records of dropped units.
    pub drops: u64,
    /// Records of recovery's cuts.
    pub cuts: u64,
    /// Bytes that logs take, the system's included.
    pub written_bytes: u64,
    /// Bytes of live shards' records.
    pub live_bytes: u64,
    /// Each unit, then the system.
    pub units: Vec<UnitLine>,
    /// Each extent.
    pub extents: Vec<ExtentLine>,
    /// The records that were asked for.
    pub records: Option<Vec<RecordLine>>,
}

/// Looks at a whole disk. Blocks: it reads every extent in use twice.
pub fn inspect(disk: &Disk, filter: Option<RecordFilter>, progress: Progress<'_>) -> Inspection {
    let survey = Survey::of(disk, progress);
    let extents = (0..)
        .zip(&survey.extents)
        .map(|(number, extent)| extent_line(disk, number, extent));
    let mut found = new_inspection(disk, &survey, extents.collect());
    found.records = filter.map(|_| Vec::new());
    let wants = |head: &RecordHead| filter.is_some_and(|f| f.takes(head));
    walk(disk, &survey, wants, progress, |unit| {
        if let (Some(records), Some(filter)) = (&mut found.records, filter) {
            let taken = unit.records.iter().filter(|r| filter.takes(&r.head));
            records.extend(taken.map(|record| record_line(disk, record)));
        }
        count(&mut found, &unit);
    });
    found
}

fn new_inspection(disk: &Disk, survey: &Survey, extents: Vec<ExtentLine>) -> Inspection {
    let superblock = &disk.superblock;
    let used = |used| extents.iter().filter(|e| e.used == used).count() as u64;
    Inspection {
        disk: superblock.disk,
        cluster: superblock.cluster,
        incarnation: superblock.incarnation,
        format: superblock.version,
        size_bytes: disk.device.info().size,
        formatted_bytes: superblock.device_size,
        extent_bytes: superblock.extent_size,
        generation_limit: superblock.generation_limit,
        flushed: survey.flushed,
        superblocks: disk.copies.clone(),
        extents_total: extents.len() as u64,
        extents_free: used(ExtentUse::Free),
        extents_of_units: used(ExtentUse::Unit),
        extents_of_system: used(ExtentUse::System),
        extents_bad: used(ExtentUse::Bad),
        extents_missing: used(ExtentUse::Missing),
        shards: 0,
        live_shards: 0,
        tombstones: 0,
        drops: 0,
        cuts: 0,
        written_bytes: 0,
        live_bytes: 0,
        units: Vec::new(),
        extents,
        records: None,
    }
}

fn extent_line(disk: &Disk, number: u32, extent: &Extent) -> ExtentLine {
    let owner = extent.header.and_then(|header| header.owner);
    let used = match (extent.header, owner) {
        _ if extent.missing > 0 => ExtentUse::Missing,
        (None, _) => ExtentUse::Bad,
        (Some(_), None) => ExtentUse::Free,
        (Some(_), Some(SYSTEM_UNIT)) => ExtentUse::System,
        (Some(_), Some(_)) => ExtentUse::Unit,
    };
    ExtentLine {
        extent: number,
        offset: disk.offset(number, 0),
        used,
        unit: owner.filter(|owner| *owner != SYSTEM_UNIT),
        sealed: matches!(extent.tail, Tail::Sealed(_)),
        generation: extent.header.map_or(0, |h| h.generation),
        sequence: extent.header.map_or(0, |h| h.sequence),
        records: 0,
        live_records: 0,
        written_bytes: 0,
        live_bytes: 0,
    }
}

/// Adds a unit to the numbers.
fn count(found: &mut Inspection, walked: &WalkedUnit) {
    let mut line = UnitLine {
        unit: (walked.unit != SYSTEM_UNIT).then_some(walked.unit),
        epoch: walked.records.iter().map(|r| r.head.epoch).max().unwrap_or(0),
        extents: walked.extents.len() as u64,
        records: walked.records.len() as u64,
        live_records: 0,
        written_bytes: walked.extents.iter().map(|e| e.written).sum(),
        live_bytes: 0,
        payload_bytes: 0,
    };
    for extent in &walked.extents {
        found.extents[extent.number as usize].written_bytes = extent.written;
    }
    for Judged { head, state, .. } in &walked.records {
        *match head.kind {
            RecordKind::Shard => &mut found.shards,
            RecordKind::Tombstone => &mut found.tombstones,
            RecordKind::UnitDropped => &mut found.drops,
            RecordKind::Cut => &mut found.cuts,
        } += 1;
        let extent = &mut found.extents[head.place.extent as usize];
        extent.records += 1;
        if *state == RecordState::Live {
            let footprint = u64::from(head.payload_at) + u64::from(head.len);
            extent.live_records += 1;
            extent.live_bytes += footprint;
            line.live_records += 1;
            line.live_bytes += footprint;
            line.payload_bytes += u64::from(head.len);
        }
    }
    found.live_shards += line.live_records;
    found.written_bytes += line.written_bytes;
    found.live_bytes += line.live_bytes;
    found.units.push(line);
}

fn record_line(disk: &Disk, record: &Judged) -> RecordLine {
    let head = &record.head;
    RecordLine {
        kind: kind_name(head.kind),
        unit: head.unit,
        blob: head.key.blob,
        stripe: head.key.stripe,
        state: record.state,
        payload: match &record.payload {
            Some(Err(what)) => what.clone(),
            _ => "ok".into(),
        },
        device_offset: disk.offset(head.place.extent, head.place.offset),
        extent: head.place.extent,
        offset: head.place.offset,
        payload_at: head.payload_at,
        next_at: head.next_at,
        len: head.len,
        epoch: head.epoch,
        sequence: head.sequence,
        batch: head.batch,
        flushed: head.flushed,
        generation: head.place.generation,
        ordinal: head.ordinal,
        part_start: head.part_start,
        digests: record.digests,
    }
}

fn kind_name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Shard => "shard",
        RecordKind::Tombstone => "tombstone",
        RecordKind::UnitDropped => "unit_dropped",
        RecordKind::Cut => "cut",
    }
}
