//! Writing again, when a disk is opened, what was read of it and is perhaps not on it.
//!
//! After a flush that failed the kernel holds what was written before for clean, and so may the drive: it can be read, no later flush
//! covers it, and the power takes it away. A disk that was fenced for such a flush and is opened again, by the same kernel, is read
//! from there. What recovery believes of it is made dirty once more, by writing the very bytes that are there, before the flush
//! after which it is served.
//!
//! What may be lost so: the records of batches that nothing calls flushed, and the headers of extents that no superblock calls
//! flushed.
//!
//! Invariant: only bytes that two reads agree on are written back.

use super::Shared;
use super::committer::Committer;
use super::index::ExtentUse;
use super::scan::walk_extent;
use super::tail::{look_at_tail, read_footer};
use crate::device::{AlignedBuf, BLOCK, Completion, align_down};
use crate::format::extent::SYSTEM_UNIT;
use crate::format::summary::Tail;
use crate::protocol::{NodeError, UnitId};
use std::ops::Range;

/// Bytes written at a time.
const STEP_BYTES: u32 = 1 << 20;
/// How often something is read until two reads agree.
const READ_ATTEMPTS: usize = 3;

/// What can be read of a disk and is perhaps not on it.
pub struct Loose {
    /// Extents whose header no superblock calls flushed.
    pub headers: Vec<u32>,
    /// Extents with records of batches that nothing calls flushed.
    pub extents: Vec<u32>,
}

impl Committer {
    /// Starts to write again what is perhaps not on the disk; the caller flushes.
    pub(super) fn write_loose_again(&mut self, loose: &Loose) -> Result<(), NodeError> {
        let flushed = self.counters.flushed;
        let shared = &*self.shared;
        let (header, header_b) = (0..BLOCK as u32, shared.layout.data_end());
        let mut writes = Vec::new();
        for &number in &loose.extents {
            let (used, generation, end) = {
                let extent = &shared.index().extents[number as usize];
                (extent.used, extent.generation, extent.end)
            };
            if let ExtentUse::Owned(owner) = used {
                let part = loose_part(shared, number, generation, owner, flushed);
                rewrite(shared, number, part.unwrap_or(end)..end, &mut writes);
            }
        }
        for &number in &loose.headers {
            rewrite(shared, number, header.clone(), &mut writes);
            rewrite(shared, number, header_b..header_b + BLOCK as u32, &mut writes);
        }
        let result = writes.into_iter().try_for_each(Completion::wait);
        result.map_err(|error| shared.fence_with(&error))
    }
}

/// Where the first record of a batch behind `flushed` is in an extent. One with a summary has none.
fn loose_part(shared: &Shared, number: u32, generation: u64, owner: UnitId, flushed: u64) -> Option<u32> {
    let (device, layout, identity) = (&*shared.device, &shared.layout, &shared.identity);
    let here = (number, generation);
    if owner != SYSTEM_UNIT
        && let footer = read_footer(device, layout, number)
        && let Tail::Sealed(_) = look_at_tail(device, layout, identity, here, footer)
    {
        return None;
    }
    let mut from = None;
    walk_extent(device, layout, identity, number, generation, |head| {
        if head.batch > flushed {
            from.get_or_insert(head.place.offset);
        }
    });
    from.map(|offset| align_down(offset.into()) as u32)
}

/// Starts to write the bytes that are in a part of an extent. What cannot be read was not believed either.
fn rewrite(shared: &Shared, number: u32, part: Range<u32>, writes: &mut Vec<Completion<()>>) {
    let start = shared.layout.extent_offset(number);
    for at in part.clone().step_by(STEP_BYTES as usize) {
        let len = STEP_BYTES.min(part.end - at);
        let place = start + u64::from(at);
        match read_twice(shared, place, len as usize) {
            Some(bytes) => writes.push(shared.device.write(place, bytes.share())),
            None => {
                tracing::warn!(disk = %shared.identity.disk, extent = number, offset = at, "not written again: two reads differ");
            }
        }
    }
}

fn read_twice(shared: &Shared, at: u64, len: usize) -> Option<AlignedBuf> {
    let read = || shared.device.read(at, AlignedBuf::recycled(len)).wait().ok();
    (0..READ_ATTEMPTS).find_map(|_| read().zip(read()).and_then(|(a, b)| (*a == *b).then_some(a)))
}
