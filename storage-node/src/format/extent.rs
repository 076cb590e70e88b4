//! The extent header: who owns an extent and which use of it this is. Copy A in its first block, B in its last.
//!
//! ```text
//!   0  magic        4   "CEXT"
//!   4  crc          4   CRC-32 of bytes 8..80, seeded with the disk id
//!   8  state        1   1 owned, 2 free
//!   9  unit index   1
//!  10  zero         2
//!  12  extent       4   its own number: a misdirected header does not pass
//!  16  generation   8   of this use; never reused on the disk
//!  24  sequence     8   grows with every header write on the disk; the greater of A and B wins
//!  32  volume       8
//!  40  incarnation  8
//!  48  disk id     16
//!  64  zero        16
//! ```
//! Freeing writes a header: an extent that is free stays free after a crash, so its dead records cannot come back
//! once their tombstones are dropped.

use super::bytes::{get_u32, get_u64, get_u128, put};
use super::{FormatError, NUMBER_LIMIT};
use crate::protocol::{DiskId, UnitId};

/// The bytes of an encoded extent header.
pub const EXTENT_HEADER_BYTES: usize = 80;

/// What an extent begins with.
pub const EXTENT_MAGIC: &[u8; 4] = b"CEXT";
const _: () = assert!(
    EXTENT_HEADER_BYTES <= 512,
    "an extent header is written atomically"
);

/// Owns the extents of tombstones and cuts: no volume has this id.
pub const SYSTEM_UNIT: UnitId = UnitId {
    volume: u64::MAX,
    index: u8::MAX,
};

/// Who owns an extent and which use of it this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentHeader {
    /// Its owner; none when it is free.
    pub owner: Option<UnitId>,
    /// Its own number.
    pub extent: u32,
    /// Which use of the extent this is.
    pub generation: u64,
    /// Grows with every header write.
    pub sequence: u64,
}

/// The disk identity that headers and records are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The disk.
    pub disk: DiskId,
    /// Its incarnation.
    pub incarnation: u64,
}

impl DiskIdentity {
    fn seed(&self) -> u32 {
        crc32fast::hash(&self.disk.0.to_le_bytes())
    }

    /// Where the checksums of an extent's records start.
    pub fn record_seed(&self, extent: u32, generation: u64) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.seed());
        hasher.update(&self.incarnation.to_le_bytes());
        hasher.update(&extent.to_le_bytes());
        hasher.update(&generation.to_le_bytes());
        hasher.finalize()
    }
}

fn crc(identity: &DiskIdentity, b: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(identity.seed());
    hasher.update(&b[8..EXTENT_HEADER_BYTES]);
    hasher.finalize()
}

impl ExtentHeader {
    /// To bytes.
    pub fn encode(&self, identity: &DiskIdentity) -> [u8; EXTENT_HEADER_BYTES] {
        let mut b = [0; EXTENT_HEADER_BYTES];
        let owner = self.owner.unwrap_or(UnitId { volume: 0, index: 0 });
        put(&mut b, 0, EXTENT_MAGIC);
        b[8] = if self.owner.is_some() { 1 } else { 2 };
        b[9] = owner.index;
        put(&mut b, 12, &self.extent.to_le_bytes());
        put(&mut b, 16, &self.generation.to_le_bytes());
        put(&mut b, 24, &self.sequence.to_le_bytes());
        put(&mut b, 32, &owner.volume.to_le_bytes());
        put(&mut b, 40, &identity.incarnation.to_le_bytes());
        put(&mut b, 48, &identity.disk.0.to_le_bytes());
        let crc = crc(identity, &b);
        put(&mut b, 4, &crc.to_le_bytes());
        b
    }

    /// From bytes: valid only on this disk, in this incarnation, for this extent.
    pub fn decode(b: &[u8], identity: &DiskIdentity, extent: u32) -> Result<Self, FormatError> {
        let b = b.get(..EXTENT_HEADER_BYTES).ok_or(FormatError::Short)?;
        if &b[..4] != EXTENT_MAGIC {
            return Err(FormatError::Magic("extent header"));
        }
        if get_u32(b, 4) != crc(identity, b) {
            return Err(FormatError::Checksum("extent header"));
        }
        if get_u64(b, 40) != identity.incarnation || get_u128(b, 48) != identity.disk.0 {
            return Err(FormatError::Content(
                "an extent header of another disk or incarnation",
            ));
        }
        if get_u32(b, 12) != extent {
            return Err(FormatError::Content("an extent header of another extent"));
        }
        if get_u64(b, 16) >= NUMBER_LIMIT || get_u64(b, 24) >= NUMBER_LIMIT {
            return Err(FormatError::Content("extent header: impossible numbers"));
        }
        let owner = match b[8] {
            1 => Some(UnitId {
                volume: get_u64(b, 32),
                index: b[9],
            }),
            2 => None,
            _ => return Err(FormatError::Content("an extent header of unknown state")),
        };
        Ok(ExtentHeader {
            owner,
            extent,
            generation: get_u64(b, 16),
            sequence: get_u64(b, 24),
        })
    }
}
