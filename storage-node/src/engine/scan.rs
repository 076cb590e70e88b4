//! Walking one extent's log: record after record, and past damage to the next valid one.
//!
//! Heads are handed out one by one: an extent of small records has hundreds of thousands of them.
//!
//! Invariant: no damage hides more than the records it touches. Where a head is bad, every 64 B boundary up to the end
//! of the extent is tried; heads are bound to their place, so nothing that merely looks like a record passes.

use crate::device::{AlignedBuf, BLOCK, Device, align_down, align_up};
use crate::format::extent::DiskIdentity;
use crate::format::layout::Layout;
use crate::format::record::{
    HEAD_BYTES_MAX, HEAD_FIXED_BYTES, RECORD_ALIGN, RECORD_MAGIC, RecordHead, RecordPlace,
};

/// Bytes read at a time while walking from head to head over large payloads: a head, wherever it starts in its block.
const STEP_BYTES: u32 = 16 * 1024;
/// Bytes read at a time while looking for the next valid head, and while walking over small records.
const SEARCH_BYTES: u32 = 1024 * 1024;

const _: () = assert!(HEAD_BYTES_MAX + BLOCK as u32 <= STEP_BYTES);

/// Damage between two valid records, or behind the last when others of its batch are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where it starts.
    pub place: RecordPlace,
    /// How many records it swallowed, by their ordinals.
    pub lost: u32,
    /// The batch that it starts in, if it is that of the valid record after it or the one before; an older one otherwise (0).
    pub batch: u64,
}

/// What an extent's log is like, besides its records.
#[derive(Debug)]
pub struct Log {
    /// Which extent.
    pub extent: u32,
    /// Damage between records, and of the last batch.
    pub gaps: Vec<Gap>,
    /// Where the next batch goes.
    pub end: u32,
    /// The next record's number.
    pub ordinal: u32,
    /// The last record's batch, which is the newest: they grow along an extent. 0 if there are none.
    pub batch: u64,
    /// Parts could not be read.
    pub unreadable: bool,
}

/// Walks an extent and hands every valid head to `visit`, in order.
pub fn walk_extent(
    device: &dyn Device,
    layout: &Layout,
    identity: &DiskIdentity,
    extent: u32,
    generation: u64,
    mut visit: impl FnMut(RecordHead),
) -> Log {
    let mut window = Window {
        device,
        start: layout.extent_offset(extent),
        limit: layout.data_end(),
        at: 0,
        bytes: None,
        unreadable: false,
    };
    let place = |offset| RecordPlace {
        extent,
        generation,
        offset,
    };
    let mut log = Log {
        extent,
        gaps: Vec::new(),
        end: layout.data_start(),
        ordinal: 0,
        batch: 0,
        unreadable: false,
    };
    let (mut at, mut step) = (layout.data_start(), STEP_BYTES);
    while let Some((found, head)) = next_head(&mut window, identity, at, step, &place) {
        if found != at {
            let lost = head.ordinal.saturating_sub(log.ordinal);
            let batch = match at {
                at if at >= head.part_start => head.batch,
                at if at >= head.loose_start => head.batch - 1,
                _ => 0,
            };
            log.gaps.push(Gap {
                place: place(at),
                lost,
                batch,
            });
        }
        at = found + head.next_at;
        step = match head.next_at {
            STEP_BYTES.. => STEP_BYTES,
            _ => (2 * step).min(SEARCH_BYTES),
        };
        log.ordinal = head.ordinal + 1;
        log.batch = head.batch;
        log.end = align_up(u64::from(at)) as u32;
        visit(head);
    }
    if log.end > at {
        // The last record of a batch reaches to a block's end, so others of its batch came behind this one. To be decided now:
        // once more is written behind them, this gap could not be told from a new one.
        log.gaps.push(Gap {
            place: place(at),
            lost: 1,
            batch: log.batch,
        });
    }
    log.unreadable = window.unreadable;
    log
}

/// The first valid head at or after `at`.
fn next_head(
    window: &mut Window<'_>,
    identity: &DiskIdentity,
    mut at: u32,
    mut step: u32,
    place: &impl Fn(u32) -> RecordPlace,
) -> Option<(u32, RecordHead)> {
    let mut doubted = false;
    while at + HEAD_FIXED_BYTES <= window.limit {
        let bytes = window.bytes(at, HEAD_BYTES_MAX, step);
        if bytes.starts_with(RECORD_MAGIC)
            && let Ok(head) = RecordHead::decode(bytes, identity, place(at))
            && at + head.next_at <= window.limit
        {
            return Some((at, head));
        }
        step = SEARCH_BYTES;
        if doubted {
            at += RECORD_ALIGN;
        } else {
            // One bad read is no damage: this place is read again before anything is decided.
            doubted = true;
            window.bytes = None;
        }
    }
    None
}

/// The part of an extent that was read last.
struct Window<'a> {
    device: &'a dyn Device,
    start: u64,
    limit: u32,
    at: u32,
    bytes: Option<AlignedBuf>,
    unreadable: bool,
}

impl Window<'_> {
    /// Up to `wanted` bytes at `at`; reads `step` bytes where they are not there yet.
    fn bytes(&mut self, at: u32, wanted: u32, step: u32) -> &[u8] {
        let end = (at + wanted).min(self.limit);
        let held = self.bytes.as_ref().map_or(0, |bytes| bytes.len());
        if at < self.at || end as usize > self.at as usize + held {
            let from = align_down(u64::from(at)) as u32;
            let to = (align_up(u64::from(from + step)) as u32)
                .max(align_up(u64::from(end)) as u32)
                .min(self.limit);
            self.read(from, to);
        }
        let held = self.bytes.as_deref().unwrap_or_default();
        &held[(at - self.at) as usize..(end - self.at) as usize]
    }

    fn read(&mut self, from: u32, to: u32) {
        self.at = from;
        let offset = self.start + u64::from(from);
        let len = (to - from) as usize;
        let read = self.device.read(offset, AlignedBuf::recycled(len)).wait();
        self.bytes = Some(read.unwrap_or_else(|_| self.read_by_blocks(offset, len)));
    }

    /// One bad sector must not hide its neighbours.
    fn read_by_blocks(&mut self, offset: u64, len: usize) -> AlignedBuf {
        let mut bytes = AlignedBuf::cleared(len);
        for (number, block) in bytes.chunks_mut(BLOCK).enumerate() {
            match self
                .device
                .read(offset + (number * BLOCK) as u64, AlignedBuf::recycled(BLOCK))
                .wait()
            {
                Ok(buf) => block.copy_from_slice(&buf),
                Err(error) => {
                    tracing::warn!(%error, offset = offset + (number * BLOCK) as u64, "unreadable while recovering");
                    self.unreadable = true;
                }
            }
        }
        bytes
    }
}
