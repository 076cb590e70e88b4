//! One batch: records laid out at the ends of their extents, then turned into aligned writes, for each extent one if it can be.
//!
//! Large payloads are written from where they are, if their memory is aligned; everything else is copied between them.
//!
//! Invariant: an extent's part of a batch starts at the extent's write position, on a 4 KiB boundary, and ends on one.

use crate::device::{AlignedBuf, AlignedBytes, BLOCK, PARTS_MAX, align_down};
use crate::format::extent::DiskIdentity;
use crate::format::record::{
    ALIGNED_PAYLOAD_MIN, RECORD_ALIGN, RecordHead, RecordKind, RecordPlace, head_len, place,
};
use crate::protocol::{ShardKey, UnitId, block_count};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;

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
    loose_start: u32,
    cursor: u32,
    ordinal: u32,
    records: Vec<(RecordHead, Bytes)>,
}

/// One write.
pub struct Write {
    /// To this extent.
    pub extent: u32,
    /// From its start.
    pub offset: u32,
    /// The bytes, one part behind the other.
    pub parts: Vec<AlignedBytes>,
}

/// A batch in the making.
pub struct Batch {
    number: u64,
    flushed: u64,
    parts: BTreeMap<u32, Part>,
    bytes: u64,
}

/// Where an extent's log stands before a batch.
#[derive(Clone, Copy, Debug)]
pub struct LogEnd {
    /// The extent.
    pub extent: u32,
    /// Which use of it this is.
    pub generation: u64,
    /// Its write position.
    pub end: u32,
    /// Where what is not flushed yet begins: at the write position, unless the batch before is still being written.
    pub loose_start: u32,
    /// Its next record's number.
    pub ordinal: u32,
}

/// Where an extent's log stands after a batch.
pub struct Advance {
    /// The extent.
    pub extent: u32,
    /// Where the batch's part of it starts.
    pub start: u32,
    /// Its new write position.
    pub end: u32,
    /// Its next record's number.
    pub ordinal: u32,
}

impl Batch {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

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

    /// Adds a record to an extent whose log stood like this before this batch; it must fit. Returns its head, whose
    /// `next at` is not final.
    pub fn add(&mut self, log: LogEnd, draft: Draft) -> RecordHead {
        let extent = log.extent;
        let part = self.parts.entry(extent).or_insert_with(|| Part {
            generation: log.generation,
            start: log.end,
            loose_start: log.loose_start,
            cursor: log.end,
            ordinal: log.ordinal,
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
            loose_start: part.loose_start,
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

    /// The writes.
    pub fn encode(&mut self, identity: &DiskIdentity) -> Vec<Write> {
        let mut writes = Vec::new();
        for (&extent, part) in &mut self.parts {
            let mut offset = part.start;
            for parts in part.encode(identity).chunks(PARTS_MAX) {
                let parts = parts.to_vec();
                let len: usize = parts.iter().map(|part| part.len()).sum();
                writes.push(Write {
                    extent,
                    offset,
                    parts,
                });
                offset += len as u32;
            }
        }
        writes
    }

    /// Where the logs stand afterwards.
    pub fn advances(&self) -> Vec<Advance> {
        let advance = |(extent, part): (&u32, &Part)| Advance {
            extent: *extent,
            start: part.start,
            end: part.cursor.next_multiple_of(BLOCK as u32),
            ordinal: part.ordinal,
        };
        self.parts.iter().map(advance).collect()
    }
}

impl Part {
    /// The whole blocks of a record's payload that can be written from where they are, and where they land from the part's
    /// start.
    fn in_place(&self, head: &RecordHead, payload: &Bytes) -> Option<(usize, AlignedBytes)> {
        let at = (head.place.offset - self.start + head.payload_at) as usize;
        let whole = align_down(payload.len() as u64) as usize;
        if head.len < ALIGNED_PAYLOAD_MIN {
            return None;
        }
        Some((at, AlignedBytes::of(payload.slice(..whole))?))
    }

    /// The bytes from the part's start to its end.
    fn encode(&mut self, identity: &DiskIdentity) -> Vec<AlignedBytes> {
        let end = self.cursor.next_multiple_of(BLOCK as u32);
        if let Some((last, _)) = self.records.last_mut() {
            last.next_at = end - last.place.offset;
        }
        let in_place: Vec<_> = self.records.iter().map(|(h, p)| self.in_place(h, p)).collect();
        let placed: usize = in_place.iter().flatten().map(|(_, bytes)| bytes.len()).sum();
        let mut copied = Copied {
            buf: AlignedBuf::cleared((end - self.start) as usize - placed),
            skipped: 0,
        };
        let mut cuts = Vec::new();
        for ((head, payload), place) in self.records.iter().zip(&in_place) {
            let at = (head.place.offset - self.start) as usize;
            head.encode(identity, copied.from(at));
            let rest = match place {
                None => (at + head.payload_at as usize, &payload[..]),
                Some((start, bytes)) => {
                    cuts.push((start - copied.skipped, bytes));
                    copied.skipped += bytes.len();
                    (start + bytes.len(), &payload[bytes.len()..])
                }
            };
            copied.from(rest.0)[..rest.1.len()].copy_from_slice(rest.1);
        }
        let copied = copied.buf.share();
        let (mut parts, mut from) = (Vec::new(), 0);
        let add = |range: Range<usize>| (!range.is_empty()).then(|| copied.slice(range));
        for (at, bytes) in cuts {
            parts.extend(add(from..at));
            parts.push(bytes.clone());
            from = at;
        }
        parts.extend(add(from..(end - self.start) as usize - placed));
        parts
    }
}

/// What is copied of a part: all but the payloads that were skipped so far.
struct Copied {
    buf: AlignedBuf,
    skipped: usize,
}

impl Copied {
    /// From a place in the part on.
    fn from(&mut self, at: usize) -> &mut [u8] {
        &mut self.buf[at - self.skipped..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(payload: Bytes, blob: u64) -> Draft {
        Draft {
            kind: RecordKind::Shard,
            unit: UnitId { volume: 1, index: 0 },
            key: ShardKey { blob, stripe: 0 },
            epoch: 1,
            sequence: blob,
            block_crcs: vec![7; block_count(payload.len() as u32) as usize],
            digests: vec![[3; 32]; 6],
            payload,
        }
    }

    /// The same bytes, at an aligned address or beside one.
    fn bytes(len: usize, aligned: bool) -> Bytes {
        let start = usize::from(!aligned);
        let mut buf = AlignedBuf::zeroed(start + len);
        let content = buf[start..start + len].iter_mut();
        content.enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
        Bytes::from_owner(buf).slice(start..start + len)
    }

    fn log(extent: u32, end: u32) -> LogEnd {
        LogEnd {
            extent,
            generation: 9,
            end,
            loose_start: end,
            ordinal: 0,
        }
    }

    const IDENTITY: DiskIdentity = DiskIdentity {
        disk: crate::protocol::DiskId(1),
        incarnation: 1,
    };

    /// Where the bytes come from makes no difference to what is written.
    #[test]
    fn payloads_in_place_are_written_as_copied_ones_are() {
        let sizes = [
            1,
            40_000,
            32 << 10,
            1 << 20,
            500,
            100_001,
            4096,
            65_536,
            70_000,
            33_000,
        ];
        let write = |aligned: fn(usize) -> bool| {
            let mut batch = Batch::new(5, 4);
            for (number, len) in sizes.into_iter().enumerate() {
                batch.add(log(3, 8192), draft(bytes(len, aligned(number)), number as u64));
            }
            let writes = batch.encode(&IDENTITY);
            let [
                Write {
                    extent: 3,
                    offset: 8192,
                    parts,
                },
            ] = &writes[..]
            else {
                panic!("one write to where the log ends");
            };
            let all: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            assert_eq!(8192 + all.len() as u32, batch.advances()[0].end);
            (parts.len(), all)
        };
        let (copied, in_place, mixed) = (write(|_| false), write(|_| true), write(|n| n % 3 == 0));
        assert_eq!((copied.0, in_place.0), (1, 2 * 7 + 1));
        assert!(in_place.1 == copied.1 && mixed.1 == copied.1);
    }

    #[test]
    fn more_parts_than_one_write_takes_become_several() {
        let mut batch = Batch::new(5, 4);
        let payload = bytes(32 << 10, true);
        for blob in 0..600 {
            batch.add(log(0, 4096), draft(payload.clone(), blob));
        }
        let writes = batch.encode(&IDENTITY);
        assert!(writes.len() == 2 && writes.iter().all(|write| write.parts.len() <= PARTS_MAX));
        let first: usize = writes[0].parts.iter().map(|part| part.len()).sum();
        assert_eq!(writes[1].offset as usize, 4096 + first);
    }
}
