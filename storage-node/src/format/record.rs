//! A record: what an extent's log is made of. A head with its tables, then the payload.
//!
//! ```text
//!   0  magic        4   "CREC"
//!   4  crc          4   CRC-32 of bytes 8..head end, seeded with disk, incarnation, extent and generation
//!   8  kind         1   1 shard, 2 tombstone, 3 unit dropped, 4 cut
//!   9  unit index   1
//!  10  digests      1   number of digests in the table
//!  11  form         1   1: bytes 64.. are whitened; 0: as they are, in records of format version 1
//!  12  payload at   4   from the head's start
//!  16  next at      4   where the next record starts, from the head's start
//!  20  len          4   payload bytes
//!  24  volume       8
//!  32  blob         8
//!  40  stripe       4
//!  44  epoch        4
//!  48  sequence     8   of the request: the newest record of a key wins; moving a record keeps it
//!  56  batch        8   of the write: one batch, one flush
//!  64  flushed      8   every batch up to this one was flushed when this record was written
//!  72  generation   8
//!  80  incarnation  8
//!  88  extent       4
//!  92  offset       4   of the head, from the extent's start: a misdirected record does not pass
//!  96  ordinal      4   number of the record in the extent: tells how many a gap swallowed
//! 100  part start   4   where the batch's part of the extent starts: tells which batch a gap is in
//! 104  loose start  4   where what was not flushed yet began then: before the part start if the batch before was still being
//!                       written; 0: at the part start
//! 108  zero        20
//! 128  block CRCs   4 × ⌈len / 64 KiB⌉
//!      digests     32 × digests
//! ```
//! Why in that order: what a reader needs to bound everything else comes first, then the identity, then the place.
//!
//! Whitened: XORed with words that the batch's number gives. The first 64 bytes of a head are in one sector, the rest may be in
//! others. Of a batch that a power cut tore, a head's first sector may be left, and the next batch at that place may
//! bring a second one that says the same, as when a shard is moved once more. The two must not make a valid head of a batch
//! that was never acknowledged.
//!
//! A head starts on a 64 B boundary. A payload of at least 32 KiB starts on a 4 KiB boundary, a smaller one right
//! after its head. The last record of a batch is followed by padding to 4 KiB, which its `next at` skips. There is no
//! batch header: every record of a batch carries its number, so that one bad bit can cost one record, not a batch.
//! Records that may be torn are those of a batch that no record calls flushed.

use super::bytes::{get_u32, get_u64, put};
use super::extent::DiskIdentity;
use super::{FormatError, NUMBER_LIMIT};
use crate::device::BLOCK;
use crate::protocol::{SHARD_BYTES_MAX, STRIPE_SHARDS_MAX, ShardKey, UnitId, block_count};
use std::borrow::Cow;

/// Heads start on multiples of this many bytes.
pub const RECORD_ALIGN: u32 = 64;
/// Payloads of at least this many bytes are aligned for direct I/O.
pub const ALIGNED_PAYLOAD_MIN: u32 = 32 * 1024;
/// The fixed part of a head.
pub const HEAD_FIXED_BYTES: u32 = 128;
/// The longest head: 16 block CRCs and 255 digests.
pub const HEAD_BYTES_MAX: u32 = HEAD_FIXED_BYTES + 4 * block_count_max() + 32 * STRIPE_SHARDS_MAX as u32;
/// Heads are whitened from here on.
pub(crate) const WHITE_FROM: usize = RECORD_ALIGN as usize;
/// The magic number, as the resynchronising scan looks for it.
pub const RECORD_MAGIC: &[u8; 4] = b"CREC";

const fn block_count_max() -> u32 {
    SHARD_BYTES_MAX.div_ceil(crate::protocol::BLOCK_BYTES)
}

const _: () = assert!(HEAD_FIXED_BYTES.is_multiple_of(RECORD_ALIGN));
const _: () = assert!((BLOCK as u32).is_multiple_of(RECORD_ALIGN));
const _: () = assert!(HEAD_BYTES_MAX <= 3 * BLOCK as u32);

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A shard.
    Shard,
    /// Every shard of one (unit, blob) is deleted.
    Tombstone,
    /// Every shard of the unit with a smaller sequence is deleted.
    UnitDropped,
    /// Recovery's decision: the payload lists places whose record was never acknowledged ([`CutPlace`]).
    Cut,
}

/// The head of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// What it says.
    pub kind: RecordKind,
    /// About which unit.
    pub unit: UnitId,
    /// About which shard (for a tombstone: its blob).
    pub key: ShardKey,
    /// The unit's epoch when it was written.
    pub epoch: u32,
    /// The order of requests on this disk.
    pub sequence: u64,
    /// The batch that wrote it.
    pub batch: u64,
    /// Every batch up to this one was flushed by then.
    pub flushed: u64,
    /// Where it is.
    pub place: RecordPlace,
    /// Its number in the extent.
    pub ordinal: u32,
    /// Where the batch's part of the extent starts, from the extent's start.
    pub part_start: u32,
    /// Where what was not flushed yet began when it was written. Between here and the part's start is what the batch before
    /// this one wrote.
    pub loose_start: u32,
    /// Where the payload starts, from the head's start.
    pub payload_at: u32,
    /// Where the next record starts, from the head's start.
    pub next_at: u32,
    /// Payload bytes.
    pub len: u32,
    /// One CRC for each 64 KiB block of the payload.
    pub block_crcs: Vec<u32>,
    /// The digests of the stripe's shards.
    pub digests: Vec<[u8; 32]>,
}

/// Where a record is on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordPlace {
    /// The extent.
    pub extent: u32,
    /// The use of the extent.
    pub generation: u64,
    /// From the extent's start.
    pub offset: u32,
}

/// The bytes of a head with these tables.
pub fn head_len(blocks: u32, digests: u32) -> u32 {
    HEAD_FIXED_BYTES + 4 * blocks + 32 * digests
}

/// Where a record lands when the log stands at `at` (on a 64 B boundary): payload start and end, from `at`.
/// `at` counts from the extent's start.
pub fn place(at: u32, head_len: u32, len: u32) -> (u32, u32) {
    let payload_at = if len >= ALIGNED_PAYLOAD_MIN {
        (at + head_len).next_multiple_of(BLOCK as u32) - at
    } else {
        head_len
    };
    (payload_at, payload_at + len)
}

impl RecordHead {
    /// The bytes of this head.
    pub fn head_len(&self) -> u32 {
        head_len(self.block_crcs.len() as u32, self.digests.len() as u32)
    }

    /// Writes the head to the start of `out`, which is at least [`Self::head_len`] long.
    pub fn encode(&self, identity: &DiskIdentity, out: &mut [u8]) {
        let end = self.head_len() as usize;
        let b = &mut out[..end];
        b[..HEAD_FIXED_BYTES as usize].fill(0);
        put(b, 0, RECORD_MAGIC);
        b[8] = match self.kind {
            RecordKind::Shard => 1,
            RecordKind::Tombstone => 2,
            RecordKind::UnitDropped => 3,
            RecordKind::Cut => 4,
        };
        b[9] = self.unit.index;
        b[10] = self.digests.len() as u8;
        b[11] = Form::Whitened as u8;
        put(b, 12, &self.payload_at.to_le_bytes());
        put(b, 16, &self.next_at.to_le_bytes());
        put(b, 20, &self.len.to_le_bytes());
        put(b, 24, &self.unit.volume.to_le_bytes());
        put(b, 32, &self.key.blob.to_le_bytes());
        put(b, 40, &self.key.stripe.to_le_bytes());
        put(b, 44, &self.epoch.to_le_bytes());
        put(b, 48, &self.sequence.to_le_bytes());
        put(b, 56, &self.batch.to_le_bytes());
        put(b, 64, &self.flushed.to_le_bytes());
        put(b, 72, &self.place.generation.to_le_bytes());
        put(b, 80, &identity.incarnation.to_le_bytes());
        put(b, 88, &self.place.extent.to_le_bytes());
        put(b, 92, &self.place.offset.to_le_bytes());
        put(b, 96, &self.ordinal.to_le_bytes());
        put(b, 100, &self.part_start.to_le_bytes());
        if self.loose_start < self.part_start {
            put(b, 104, &self.loose_start.to_le_bytes());
        }
        let mut at = HEAD_FIXED_BYTES as usize;
        for crc in &self.block_crcs {
            put(b, at, &crc.to_le_bytes());
            at += 4;
        }
        for digest in &self.digests {
            put(b, at, digest);
            at += 32;
        }
        whiten(&mut b[WHITE_FROM..], self.batch);
        let crc = head_crc(identity, &self.place, b);
        put(b, 4, &crc.to_le_bytes());
    }

    /// Reads the head at the start of `b`. `extent`, `generation` and `offset` are where the reader believes to be:
    /// a head of anywhere else is refused.
    pub fn decode(b: &[u8], identity: &DiskIdentity, here: RecordPlace) -> Result<Self, FormatError> {
        let fixed = b.get(..HEAD_FIXED_BYTES as usize).ok_or(FormatError::Short)?;
        if &fixed[..4] != RECORD_MAGIC {
            return Err(FormatError::Magic("record"));
        }
        let (digests, len) = (u32::from(fixed[10]), get_u32(fixed, 20));
        if len > SHARD_BYTES_MAX {
            return Err(FormatError::Content("record head: payload too long"));
        }
        let blocks = block_count(len);
        let end = head_len(blocks, digests) as usize;
        let b = b.get(..end).ok_or(FormatError::Short)?;
        if get_u32(b, 4) != head_crc(identity, &here, b) {
            return Err(FormatError::Checksum("record head"));
        }
        let plain = plain(b).ok_or(FormatError::Content("record head: unknown form"))?;
        let b = &plain[..];
        let place = RecordPlace {
            extent: get_u32(b, 88),
            generation: get_u64(b, 72),
            offset: get_u32(b, 92),
        };
        if place != here || get_u64(b, 80) != identity.incarnation {
            return Err(FormatError::Content("record head: written for another place"));
        }
        let tables = &b[HEAD_FIXED_BYTES as usize..];
        let (crcs, digest_table) = tables.split_at(4 * blocks as usize);
        let head = RecordHead {
            kind: match b[8] {
                1 => RecordKind::Shard,
                2 => RecordKind::Tombstone,
                3 => RecordKind::UnitDropped,
                4 => RecordKind::Cut,
                _ => return Err(FormatError::Content("record head: unknown kind")),
            },
            unit: UnitId {
                volume: get_u64(b, 24),
                index: b[9],
            },
            key: ShardKey {
                blob: get_u64(b, 32),
                stripe: get_u32(b, 40),
            },
            epoch: get_u32(b, 44),
            sequence: get_u64(b, 48),
            batch: get_u64(b, 56),
            flushed: get_u64(b, 64),
            place,
            ordinal: get_u32(b, 96),
            part_start: get_u32(b, 100),
            loose_start: match get_u32(b, 104) {
                0 => get_u32(b, 100),
                start => start,
            },
            payload_at: get_u32(b, 12),
            next_at: get_u32(b, 16),
            len,
            block_crcs: crcs.chunks_exact(4).map(|c| get_u32(c, 0)).collect(),
            digests: digest_table.as_chunks::<32>().0.to_vec(),
        };
        head.check_geometry(end as u32)?;
        Ok(head)
    }

    /// What damaged bytes at the start of `b` claim to be a record of: unit, key and batch. Nothing vouches for it; but
    /// they carry the magic number and the right place, so a record was here in this use of the extent.
    pub fn claim(b: &[u8], here: RecordPlace) -> Option<(UnitId, ShardKey, u64)> {
        let plain = plain(b.get(..HEAD_FIXED_BYTES as usize)?)?;
        let b = &plain[..];
        let place = RecordPlace {
            extent: get_u32(b, 88),
            generation: get_u64(b, 72),
            offset: get_u32(b, 92),
        };
        let unit = UnitId {
            volume: get_u64(b, 24),
            index: b[9],
        };
        let key = ShardKey {
            blob: get_u64(b, 32),
            stripe: get_u32(b, 40),
        };
        (b.starts_with(RECORD_MAGIC) && place == here).then(|| (unit, key, get_u64(b, 56)))
    }

    fn check_geometry(&self, head_len: u32) -> Result<(), FormatError> {
        let payload_end = u64::from(self.payload_at) + u64::from(self.len);
        let next = u64::from(self.next_at);
        let sound = self.payload_at >= head_len
            && u64::from(self.payload_at) <= u64::from(head_len) + BLOCK as u64
            && next >= payload_end
            && next <= payload_end + BLOCK as u64
            && next.is_multiple_of(u64::from(RECORD_ALIGN))
            && u64::from(self.place.offset) + next <= super::layout::EXTENT_SIZE_MAX
            && self.sequence < NUMBER_LIMIT
            && self.batch < NUMBER_LIMIT
            && self.flushed < self.batch
            && self.part_start <= self.place.offset
            && self.loose_start <= self.part_start
            && u64::from(self.ordinal) * u64::from(RECORD_ALIGN) <= super::layout::EXTENT_SIZE_MAX;
        if sound {
            Ok(())
        } else {
            Err(FormatError::Content("record head: impossible geometry"))
        }
    }
}

/// How the bytes of a head behind the first 64 are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    AsTheyAre = 0,
    Whitened = 1,
}

/// A head's bytes as they were before they were whitened; none if its form is unknown.
pub(crate) fn plain(b: &[u8]) -> Option<Cow<'_, [u8]>> {
    if b[11] == Form::AsTheyAre as u8 {
        return Some(b.into());
    }
    (b[11] == Form::Whitened as u8).then(|| {
        let mut plain = b.to_vec();
        whiten(&mut plain[WHITE_FROM..], get_u64(b, 56));
        plain.into()
    })
}

/// XORs with the output of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014) that
/// starts at the batch's number. Twice is not at all.
pub(crate) fn whiten(b: &mut [u8], batch: u64) {
    let mut state = batch;
    for word in b.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        for (byte, white) in word.iter_mut().zip(mixed.to_le_bytes()) {
            *byte ^= white;
        }
    }
}

fn head_crc(identity: &DiskIdentity, place: &RecordPlace, b: &[u8]) -> u32 {
    let mut hasher =
        crc32fast::Hasher::new_with_initial(identity.record_seed(place.extent, place.generation));
    hasher.update(&b[8..]);
    hasher.finalize()
}

/// A place that recovery cut: the record there, or the gap that starts there, was never acknowledged.
pub type CutPlace = RecordPlace;

/// The bytes of one encoded [`CutPlace`].
pub const CUT_PLACE_BYTES: usize = 16;

/// The most places one cut record lists: its payload stays small and packed.
pub const CUT_PLACES_MAX: usize = 1024;

/// To bytes: extent u32, offset u32, generation u64, each.
pub fn encode_cut_places(places: &[CutPlace]) -> Vec<u8> {
    let encode = |p: &CutPlace| {
        let mut b = [0; CUT_PLACE_BYTES];
        put(&mut b, 0, &p.extent.to_le_bytes());
        put(&mut b, 4, &p.offset.to_le_bytes());
        put(&mut b, 8, &p.generation.to_le_bytes());
        b
    };
    places.iter().flat_map(encode).collect()
}

/// From bytes.
pub fn decode_cut_places(b: &[u8]) -> Result<Vec<CutPlace>, FormatError> {
    if !b.len().is_multiple_of(CUT_PLACE_BYTES) {
        return Err(FormatError::Short);
    }
    let decode = |b: &[u8]| CutPlace {
        extent: get_u32(b, 0),
        offset: get_u32(b, 4),
        generation: get_u64(b, 8),
    };
    Ok(b.chunks_exact(CUT_PLACE_BYTES).map(decode).collect())
}
