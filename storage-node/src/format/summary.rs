//! The summary of a sealed extent: what its records say of themselves, in one place, so that opening a disk need not
//! walk from head to head.
//!
//! It lies at the extent's tail, from a block boundary up to header B, so that one read gets header B and the footer:
//! ```text
//! | header A | record | record | … | unused | entry | entry | … | zeros | footer | header B |
//!                                           ^ on 4 KiB                           ^ data end
//! ```
//! An entry is a valid record of a shard, live or dead, in the order of their places:
//! ```text
//!   0  blob         8
//!   8  stripe       4
//!  12  sequence     4   signed, from the footer's base
//!  16  place        8   bits: offset ÷ 64, 22 | len 21 | digests 8 | zero 13
//! ```
//! The footer is the last 128 bytes before header B:
//! ```text
//!   0  magic        4   "CSUM"
//!   4  crc          4   CRC-32 of bytes 8..128, seeded with disk, incarnation, extent and generation
//!   8  version      4   1
//!  12  extent       4
//!  16  generation   8
//!  24  incarnation  8
//!  32  volume       8
//!  40  unit index   1
//!  41  zero         3
//!  44  entries      4   how many
//!  48  entries crc  4   of all their bytes, seeded in the same way
//!  52  end          4   where the log ends, from the extent's start
//!  56  ordinal      4   the next record's number, if there were one
//!  60  epoch        4   the greatest in the extent
//!  64  base         8   what the entries' sequences count from
//!  72  sequence     8   the greatest in the extent
//!  80  batch        8   the greatest in the extent
//!  88  flushed      8   every batch up to this one was flushed when the summary was written
//!  96  zero        32
//! ```
//! Why so: entries are as many as there are records, so they hold no more than recovery needs; the footer is of one
//! sector, so a torn write leaves all of it or nothing, and its second checksum tells whether the entries are whole.
//!
//! Invariants: a summary is written when every batch of its records was flushed (`batch` ≤ `flushed`), and nothing is
//! appended to its extent afterwards. What does not verify is worth nothing: the records say all of it themselves.

use super::bytes::{get_u32, get_u64, put};
use super::extent::DiskIdentity;
use super::layout::{EXTENT_SIZE_MAX, Layout};
use super::record::{RECORD_ALIGN, head_len, place};
use super::{FormatError, NUMBER_LIMIT};
use crate::device::BLOCK;
use crate::protocol::{SHARD_BYTES_MAX, ShardKey, UnitId, block_count};

/// The bytes of an encoded entry.
pub const SUMMARY_ENTRY_BYTES: usize = 24;
/// The bytes of an encoded footer.
pub const SUMMARY_FOOTER_BYTES: usize = 128;
/// The version this program writes and reads.
const SUMMARY_VERSION: u32 = 1;

const MAGIC: &[u8; 4] = b"CSUM";
const OFFSET_BITS: u32 = 22;
const LEN_BITS: u32 = 21;
const DIGEST_BITS: u32 = 8;

const _: () = assert!(SUMMARY_FOOTER_BYTES <= 512, "a footer is written atomically");
const _: () = assert!(EXTENT_SIZE_MAX / RECORD_ALIGN as u64 <= 1 << OFFSET_BITS);
const _: () = assert!(SHARD_BYTES_MAX < 1 << LEN_BITS);
const _: () = assert!(crate::protocol::STRIPE_SHARDS_MAX < 1 << DIGEST_BITS);
const _: () = assert!(OFFSET_BITS + LEN_BITS + DIGEST_BITS <= 64);

/// The bytes that a summary of so many records takes, whole blocks.
pub fn summary_len(entries: u64) -> u64 {
    crate::device::align_up(entries * SUMMARY_ENTRY_BYTES as u64 + SUMMARY_FOOTER_BYTES as u64)
}

/// Where records must end in an extent that is to have a summary of so many, from the extent's start. It is before
/// [`Layout::data_start`] if they are too many for any.
pub fn summary_start(layout: &Layout, entries: u64) -> u32 {
    u64::from(layout.data_end()).saturating_sub(summary_len(entries)) as u32
}

/// One record of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummaryEntry {
    /// Of which shard.
    pub key: ShardKey,
    /// The order of the request.
    pub sequence: u64,
    /// Where its head is, from the extent's start.
    pub offset: u32,
    /// Payload bytes.
    pub len: u32,
    /// Digests in the head's table.
    pub digests: u8,
}

impl SummaryEntry {
    /// To bytes; none if the sequence is too far from `base`.
    pub fn encode(&self, base: u64) -> Option<[u8; SUMMARY_ENTRY_BYTES]> {
        let delta = i32::try_from(self.sequence as i64 - base as i64).ok()?;
        let bits = u64::from(self.offset / RECORD_ALIGN) << (LEN_BITS + DIGEST_BITS)
            | u64::from(self.len) << DIGEST_BITS
            | u64::from(self.digests);
        let mut b = [0; SUMMARY_ENTRY_BYTES];
        put(&mut b, 0, &self.key.blob.to_le_bytes());
        put(&mut b, 8, &self.key.stripe.to_le_bytes());
        put(&mut b, 12, &delta.to_le_bytes());
        put(&mut b, 16, &bits.to_le_bytes());
        Some(b)
    }

    /// Where the head of an encoded entry is.
    pub fn offset_of(b: &[u8; SUMMARY_ENTRY_BYTES]) -> u32 {
        low(get_u64(b, 16) >> (LEN_BITS + DIGEST_BITS), OFFSET_BITS) * RECORD_ALIGN
    }

    fn decode(b: &[u8; SUMMARY_ENTRY_BYTES], base: u64) -> Result<Self, FormatError> {
        let bits = get_u64(b, 16);
        let sequence = base.checked_add_signed(i64::from(get_u32(b, 12) as i32));
        let entry = SummaryEntry {
            key: ShardKey {
                blob: get_u64(b, 0),
                stripe: get_u32(b, 8),
            },
            sequence: sequence
                .filter(|s| *s < NUMBER_LIMIT)
                .ok_or(FormatError::Content("summary entry: impossible sequence"))?,
            offset: Self::offset_of(b),
            len: low(bits >> DIGEST_BITS, LEN_BITS),
            digests: low(bits, DIGEST_BITS) as u8,
        };
        if bits >> (OFFSET_BITS + LEN_BITS + DIGEST_BITS) != 0 || entry.len > SHARD_BYTES_MAX {
            return Err(FormatError::Content("summary entry: impossible geometry"));
        }
        Ok(entry)
    }

    /// Where the record's payload ends, from the extent's start.
    fn end(&self) -> u64 {
        let head = head_len(block_count(self.len), self.digests.into());
        let (_, length) = place(self.offset, head, self.len);
        u64::from(self.offset) + u64::from(length)
    }
}

/// What a summary says of the extent as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummaryFooter {
    /// The extent.
    pub extent: u32,
    /// The use of the extent.
    pub generation: u64,
    /// Whose records they are.
    pub unit: UnitId,
    /// How many entries there are.
    pub entries: u32,
    /// The CRC of their bytes.
    pub entries_crc: u32,
    /// Where the log ends.
    pub end: u32,
    /// The next record's number.
    pub ordinal: u32,
    /// The greatest epoch.
    pub epoch: u32,
    /// What sequences count from.
    pub base: u64,
    /// The greatest sequence.
    pub sequence: u64,
    /// The greatest batch.
    pub batch: u64,
    /// Every batch up to this one was flushed.
    pub flushed: u64,
}

/// What is at the tail of an extent, where a footer would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing that calls itself a summary of this use of the extent.
    Open,
    /// The footer of a summary.
    Sealed(SummaryFooter),
    /// It calls itself the footer of this use, and does not verify: or it could not be read. The extent may be sealed.
    Damaged(String),
}

impl SummaryFooter {
    /// To bytes.
    pub fn encode(&self, identity: &DiskIdentity) -> [u8; SUMMARY_FOOTER_BYTES] {
        let mut b = [0; SUMMARY_FOOTER_BYTES];
        put(&mut b, 0, MAGIC);
        put(&mut b, 8, &SUMMARY_VERSION.to_le_bytes());
        put(&mut b, 12, &self.extent.to_le_bytes());
        put(&mut b, 16, &self.generation.to_le_bytes());
        put(&mut b, 24, &identity.incarnation.to_le_bytes());
        put(&mut b, 32, &self.unit.volume.to_le_bytes());
        b[40] = self.unit.index;
        put(&mut b, 44, &self.entries.to_le_bytes());
        put(&mut b, 48, &self.entries_crc.to_le_bytes());
        put(&mut b, 52, &self.end.to_le_bytes());
        put(&mut b, 56, &self.ordinal.to_le_bytes());
        put(&mut b, 60, &self.epoch.to_le_bytes());
        put(&mut b, 64, &self.base.to_le_bytes());
        put(&mut b, 72, &self.sequence.to_le_bytes());
        put(&mut b, 80, &self.batch.to_le_bytes());
        put(&mut b, 88, &self.flushed.to_le_bytes());
        let crc = seeded_crc(identity, self.extent, self.generation, &b[8..]);
        put(&mut b, 4, &crc.to_le_bytes());
        b
    }

    /// From bytes: valid only on this disk, in this incarnation, for this use of this extent.
    pub fn decode(
        b: &[u8],
        identity: &DiskIdentity,
        extent: u32,
        generation: u64,
        layout: &Layout,
    ) -> Result<Self, FormatError> {
        let b = b.get(..SUMMARY_FOOTER_BYTES).ok_or(FormatError::Short)?;
        if &b[..4] != MAGIC {
            return Err(FormatError::Magic("summary"));
        }
        if get_u32(b, 4) != seeded_crc(identity, extent, generation, &b[8..]) {
            return Err(FormatError::Checksum("summary"));
        }
        if get_u32(b, 8) != SUMMARY_VERSION {
            return Err(FormatError::Version(get_u32(b, 8)));
        }
        if !claims(b, identity, extent, generation) {
            return Err(FormatError::Content("a summary of another extent"));
        }
        let footer = SummaryFooter {
            extent,
            generation,
            unit: UnitId {
                volume: get_u64(b, 32),
                index: b[40],
            },
            entries: get_u32(b, 44),
            entries_crc: get_u32(b, 48),
            end: get_u32(b, 52),
            ordinal: get_u32(b, 56),
            epoch: get_u32(b, 60),
            base: get_u64(b, 64),
            sequence: get_u64(b, 72),
            batch: get_u64(b, 80),
            flushed: get_u64(b, 88),
        };
        footer.check(layout)?;
        Ok(footer)
    }

    fn check(&self, layout: &Layout) -> Result<(), FormatError> {
        let numbers = [self.base, self.sequence, self.batch, self.flushed];
        let sound = numbers.iter().all(|number| *number < NUMBER_LIMIT)
            && self.batch <= self.flushed
            && self.entries <= self.ordinal
            && u64::from(self.ordinal) * u64::from(RECORD_ALIGN) <= EXTENT_SIZE_MAX
            && self.end.is_multiple_of(BLOCK as u32)
            && self.end >= layout.data_start()
            && self.end <= summary_start(layout, self.entries.into());
        match sound {
            true => Ok(()),
            false => Err(FormatError::Content("summary: impossible numbers")),
        }
    }

    /// The entries in `b`, which starts where the summary does: all of them valid and in order, or none.
    pub fn decode_entries(
        &self,
        b: &[u8],
        identity: &DiskIdentity,
    ) -> Result<Vec<SummaryEntry>, FormatError> {
        let len = self.entries as usize * SUMMARY_ENTRY_BYTES;
        let b = b.get(..len).ok_or(FormatError::Short)?;
        if self.entries_crc != seeded_crc(identity, self.extent, self.generation, b) {
            return Err(FormatError::Checksum("summary entries"));
        }
        let (mut entries, mut at) = (Vec::with_capacity(self.entries as usize), BLOCK as u64);
        for b in b.as_chunks::<SUMMARY_ENTRY_BYTES>().0 {
            let entry = SummaryEntry::decode(b, self.base)?;
            if u64::from(entry.offset) < at || entry.end() > self.end.into() || entry.sequence > self.sequence
            {
                return Err(FormatError::Content("summary entry: out of place"));
            }
            at = entry.end();
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl Tail {
    /// What a footer's bytes are.
    pub fn of(b: &[u8], identity: &DiskIdentity, extent: u32, generation: u64, layout: &Layout) -> Tail {
        match SummaryFooter::decode(b, identity, extent, generation, layout) {
            Ok(footer) => Tail::Sealed(footer),
            Err(error) if claims(b, identity, extent, generation) => Tail::Damaged(error.to_string()),
            Err(_) => Tail::Open,
        }
    }
}

fn low(bits: u64, count: u32) -> u32 {
    (bits & ((1 << count) - 1)) as u32
}

/// Whether bytes say that they are the footer of this use of the extent. Nothing vouches for it.
fn claims(b: &[u8], identity: &DiskIdentity, extent: u32, generation: u64) -> bool {
    b.len() >= SUMMARY_FOOTER_BYTES
        && b.starts_with(MAGIC)
        && get_u32(b, 12) == extent
        && get_u64(b, 16) == generation
        && get_u64(b, 24) == identity.incarnation
}

/// The CRC of bytes that belong to one use of an extent.
pub fn seeded_crc(identity: &DiskIdentity, extent: u32, generation: u64, b: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(identity.record_seed(extent, generation));
    hasher.update(b);
    hasher.finalize()
}
