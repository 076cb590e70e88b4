//! The second look: every record of one unit after the other, each with what it is worth.
//!
//! Live is what recovery would serve: the newest record of its key, in a place that was not cut, of a blob without a
//! tombstone, not older than a drop of its unit. Only the records of one unit compete, so only they are in memory.

use super::Progress;
use super::disk::Disk;
use super::survey::{Survey, read_payload, scan};
use crate::device::BLOCK;
use crate::engine::scan::{Gap, Log};
use crate::format::record::{
    HEAD_FIXED_BYTES, RECORD_ALIGN, RECORD_MAGIC, RecordHead, RecordKind, RecordPlace,
};
use crate::protocol::{ShardKey, UnitId};
use serde::Serialize;
use std::collections::HashMap;

/// Bytes looked at in one go behind the last valid record.
const SEARCH_BYTES: u32 = 1 << 20;

/// What a record is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordState {
    /// A shard that is served.
    Live,
    /// A newer record of its key is there.
    Superseded,
    /// Its blob has a tombstone.
    Deleted,
    /// Its unit was dropped since.
    Dropped,
    /// Recovery cut it: it was never acknowledged.
    Cut,
    /// It was being written when the disk stopped, and never acknowledged: the next start cuts it.
    Torn,
    /// A tombstone, a drop or a cut.
    Mark,
}

/// A record and what it is worth.
pub struct Judged {
    /// Its head, without tables.
    pub head: RecordHead,
    /// How many digests its table has.
    pub digests: usize,
    /// What it is worth.
    pub state: RecordState,
    /// What is wrong with its payload, if it was read.
    pub payload: Option<Result<(), String>>,
}

/// Damage where a head should be.
pub struct Hole {
    /// Where it starts.
    pub place: RecordPlace,
    /// How many records it swallowed.
    pub lost: u32,
    /// The batch it is in, as far as is known.
    pub batch: u64,
    /// Behind it is no valid record.
    pub at_end: bool,
    /// What the bytes say they are.
    pub claim: Option<(UnitId, ShardKey)>,
}

/// One extent of a unit.
pub struct WalkedExtent {
    /// Its number.
    pub number: u32,
    /// Bytes that its log takes.
    pub written: u64,
    /// Damage, cut places left out.
    pub holes: Vec<Hole>,
    /// Parts could not be read.
    pub unreadable: bool,
}

/// One unit, or the system.
pub struct WalkedUnit {
    /// Which.
    pub unit: UnitId,
    /// Its extents.
    pub extents: Vec<WalkedExtent>,
    /// Its records, by extent and offset.
    pub records: Vec<Judged>,
}

/// Walks unit after unit. `wants` says which payloads to check beside those whose batch may not have been flushed.
pub fn walk(
    disk: &Disk,
    survey: &Survey,
    wants: impl Fn(&RecordHead) -> bool,
    progress: Progress<'_>,
    mut each: impl FnMut(WalkedUnit),
) {
    let units = survey.units();
    let half = units.values().map(|extents| extents.len() as u64).sum::<u64>();
    let mut step = half;
    for (unit, numbers) in units {
        let mut walked = WalkedUnit {
            unit,
            extents: Vec::new(),
            records: Vec::new(),
        };
        for number in numbers {
            progress(step, 2 * half);
            step += 1;
            let log = scan(disk, &survey.extents, number, |head| {
                let check = head.batch > survey.flushed || wants(&head);
                let payload = check.then(|| read_payload(disk, &head).map(drop));
                walked.records.push(Judged {
                    digests: head.digests.len(),
                    state: RecordState::Mark,
                    payload,
                    head: RecordHead {
                        block_crcs: Vec::new(),
                        digests: Vec::new(),
                        ..head
                    },
                });
            });
            walked.extents.push(walk_extent(disk, survey, &log));
        }
        judge(survey, &mut walked.records);
        each(walked);
    }
    progress(step, 2 * half);
}

fn judge(survey: &Survey, records: &mut [Judged]) {
    let mut newest: HashMap<ShardKey, (u64, u64, u32)> = HashMap::new();
    let rank = |head: &RecordHead| (head.sequence, head.place.generation, head.place.offset);
    for record in records.iter_mut() {
        let head = &record.head;
        let is_bad = matches!(record.payload, Some(Err(_)));
        record.state = if survey.cuts.contains(&head.place) {
            RecordState::Cut
        } else if head.batch > survey.flushed && is_bad {
            RecordState::Torn
        } else if head.kind != RecordKind::Shard {
            RecordState::Mark
        } else if survey.tombstones.contains(&(head.unit, head.key.blob)) {
            RecordState::Deleted
        } else if survey
            .drops
            .get(&head.unit)
            .is_some_and(|drop| head.sequence < *drop)
        {
            RecordState::Dropped
        } else {
            let best = newest.entry(head.key).or_insert(rank(head));
            *best = rank(head).max(*best);
            RecordState::Live
        };
    }
    for record in records.iter_mut().filter(|r| r.state == RecordState::Live) {
        if newest.get(&record.head.key) != Some(&rank(&record.head)) {
            record.state = RecordState::Superseded;
        }
    }
}

fn walk_extent(disk: &Disk, survey: &Survey, log: &Log) -> WalkedExtent {
    let generation = survey.extents[log.extent as usize]
        .header
        .map_or(0, |h| h.generation);
    // A gap that swallowed no record is what an earlier cut left behind.
    let gaps = log
        .gaps
        .iter()
        .filter(|gap| gap.lost > 0 && !survey.cuts.contains(&gap.place));
    let mut holes: Vec<Hole> = gaps.map(|gap| hole(disk, gap)).collect();
    holes.extend(holes_at_end(disk, log, generation));
    WalkedExtent {
        number: log.extent,
        written: u64::from(log.end - disk.layout.data_start()),
        holes,
        unreadable: log.unreadable,
    }
}

fn hole(disk: &Disk, gap: &Gap) -> Hole {
    let skip = gap.place.offset % BLOCK as u32;
    let block = disk.read(gap.place.extent, gap.place.offset - skip, BLOCK as u32);
    let claim = block
        .ok()
        .and_then(|b| RecordHead::claim(&b[skip as usize..], gap.place));
    Hole {
        place: gap.place,
        lost: gap.lost,
        batch: gap.batch,
        at_end: false,
        claim: claim.map(|(unit, key, _)| (unit, key)),
    }
}

/// Recovery has nothing to decide behind the last valid record; but when the last records of an extent rot, their bytes
/// are still there to be found: they carry the magic number, this place and this generation.
fn holes_at_end(disk: &Disk, log: &Log, generation: u64) -> Vec<Hole> {
    let (mut holes, mut at) = (Vec::new(), log.end);
    while at < disk.layout.data_end() {
        let len = SEARCH_BYTES.min(disk.layout.data_end() - at);
        let Ok(bytes) = disk.read(log.extent, at, len) else {
            at += len;
            continue;
        };
        for from in (0..=len - HEAD_FIXED_BYTES).step_by(RECORD_ALIGN as usize) {
            let place = RecordPlace {
                extent: log.extent,
                generation,
                offset: at + from,
            };
            let bytes = &bytes[from as usize..len as usize];
            if bytes.starts_with(RECORD_MAGIC)
                && let Some((unit, key, batch)) = RecordHead::claim(bytes, place)
            {
                holes.push(Hole {
                    place,
                    lost: 1,
                    batch,
                    at_end: true,
                    claim: Some((unit, key)),
                });
            }
        }
        at += len;
    }
    holes
}
