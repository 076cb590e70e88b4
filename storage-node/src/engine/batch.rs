//! One batch: records laid out at the ends of their extents, then turned into one aligned write for each extent.
//!
//! Invariant: an extent's part of a batch starts at the extent's write position, on a 4 KiB boundary, and ends on one.

use crate::device::{AlignedBuf, AlignedBytes, BLOCK};
use crate::format::extent::DiskIdentity;
use crate::format::record::{RECORD_ALIGN, RecordHead, RecordKind, RecordPlace, head_len, place};
use crate::protocol::{ShardKey, UnitId, block_count};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A record that is to be written somewhere.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What it says.
    pub kind: RecordKind,
    /// About which unit.
    pub unit: UnitId,
    /// About which shard.
    pub key: ShardKey,
    /// The unit's epoch.
    pub epoch: u32,
    /// The request's order.
    pub sequence: u64,
    /// One CRC for each block of the payload.
    pub block_crcs: Vec<u32>,
    /// The stripe's digests.
    pub digests: Vec<[u8; 32]>,
    /// The payload.
    pub payload: Bytes,
}

impl Draft {
    fn head_len(&self) -> u32 {
        head_len(block_count(self.payload.len() as u32), self.digests.len() as u32)
    }
}

struct Part {
    generation: u64,
    start: u32,
    cursor: u32,
    ordinal: u32,
    records: Vec<(RecordHead, Bytes)>,
}

/// A batch in the making.
pub struct Batch {
    number: u64,
    flushed: u64,
    parts: BTreeMap<u32, Part>,
    bytes: u64,
}

/// Where an extent's log stands after a batch.
pub struct Advance {
    /// The extent.
    pub extent: u32,
    /// Its new write position.
    pub end: u32,
    /// Its next record's number.
    pub ordinal: u32,
}

impl Batch {
    /// An empty batch.
    pub fn new(number: u64, flushed: u64) -> Self {
        Batch {
            number,
            flushed,
            parts: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes to write so far, roughly.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a record fits into an extent whose log stood at `end` before this batch.
    pub fn fits(&self, extent: u32, end: u32, data_end: u32, draft: &Draft) -> bool {
        let at = self.parts.get(&extent).map_or(end, |part| part.cursor);
        let (_, length) = place(at, draft.head_len(), draft.payload.len() as u32);
        (at + length).next_multiple_of(BLOCK as u32) <= data_end
    }

    /// Adds a record to an extent whose log stood at `end` before this batch; it must fit. Returns its head, whose
    /// `next at` is not final.
    pub fn add(&mut self, extent: u32, generation: u64, end: u32, ordinal: u32, draft: Draft) -> RecordHead {
        let part = self.parts.entry(extent).or_insert_with(|| Part {
            generation,
            start: end,
            cursor: end,
            ordinal,
            records: Vec::new(),
        });
        let len = draft.payload.len() as u32;
        let (payload_at, length) = place(part.cursor, draft.head_len(), len);
        let head = RecordHead {
            kind: draft.kind,
            unit: draft.unit,
            key: draft.key,
            epoch: draft.epoch,
            sequence: draft.sequence,
            batch: self.number,
            flushed: self.flushed,
            place: RecordPlace {
                extent,
                generation: part.generation,
                offset: part.cursor,
            },
            ordinal: part.ordinal,
            part_start: part.start,
            payload_at,
            next_at: length.next_multiple_of(RECORD_ALIGN),
            len,
            block_crcs: draft.block_crcs,
            digests: draft.digests,
        };
        part.ordinal += 1;
        part.cursor += head.next_at;
        self.bytes += u64::from(head.next_at);
        part.records.push((head.clone(), draft.payload));
        head
    }

    /// The writes: extent, offset in it, bytes.
    pub fn encode(&mut self, identity: &DiskIdentity) -> Vec<(u32, u32, AlignedBytes)> {
        let encode = |(extent, part): (&u32, &mut Part)| (*extent, part.start, part.encode(identity));
        self.parts.iter_mut().map(encode).collect()
    }

    /// Where the logs stand afterwards.
    pub fn advances(&self) -> Vec<Advance> {
        let advance = |(extent, part): (&u32, &Part)| Advance {
            extent: *extent,
            end: part.cursor.next_multiple_of(BLOCK as u32),
            ordinal: part.ordinal,
        };
        self.parts.iter().map(advance).collect()
    }
}

impl Part {
    fn encode(&mut self, identity: &DiskIdentity) -> AlignedBytes {
        let end = self.cursor.next_multiple_of(BLOCK as u32);
        if let Some((last, _)) = self.records.last_mut() {
            last.next_at = end - last.place.offset;
        }
        let mut buf = AlignedBuf::zeroed((end - self.start) as usize);
        for (head, payload) in &self.records {
            let at = (head.place.offset - self.start) as usize;
            head.encode(identity, &mut buf[at..]);
            buf[at + head.payload_at as usize..][..payload.len()].copy_from_slice(payload);
        }
        buf.share()
    }
}
