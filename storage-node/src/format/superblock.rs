//! The superblock: whose disk this is and how it is laid out. Four copies, spread over the disk.
//!
//! ```text
//!   0  magic          8   "CAIRNDSK"
//!   8  crc            4   CRC-32 of bytes 12..176, or 12..128 before version 3
//!  12  version        4   3; 2 before disks knew a ledger, 1 before there were summaries
//!  16  disk id       16
//!  32  cluster id    16
//!  48  incarnation    8
//!  56  sequence       8   grows with every write; the greatest valid one wins
//!  64  device size    8
//!  72  extent size    8
//!  80  generation     8   no extent has this generation or a greater one yet
//!  88  flushed        8   every batch up to this one was flushed
//!  96  verified       4   the extent that verifying goes on with
//! 100  zero           4
//! 104  headers        8   every extent header of a smaller sequence was flushed
//! 112  admission      8   number of the last admission that a gateway gave it; 0 before the first
//! 120  nonce          8   of that admission
//! 128  ledger         8   number of the generation of the ledger that the disk obeys; 0 before it was told
//! 136  ledger nonce   8   of that generation
//! 144  position       8   of that ledger, when the disk was last told
//! 152  blob limit     8   no blob of this id or a greater one was handed out by then
//! 160  volume limit   8   the same of volumes
//! 168  epoch          4   the greatest epoch of a volume by then
//! 172  zero           4
//! ```
//! It changes to reserve generations, so that a generation is never used twice, even when the newest extent header is
//! lost; and when a disk falls idle or stops, to say that its last batch was flushed, so that later damage there is not
//! taken for a torn write; and when a gateway admits the disk, or tells it how far the ledger is. It is of version 2 before the first summary is written: a program of version 1 would append
//! behind one, so it must refuse the disk; one of version 2 would obey any ledger. Copies 0 and 2 are written and flushed before 1 and 3, so a crash leaves either the old or the new one.

use super::bytes::{get_u32, get_u64, get_u128, put};
use super::{FormatError, NUMBER_LIMIT};
use crate::protocol::{Admission, ClusterId, DiskId, Generation, LedgerMarks};

/// The bytes of an encoded superblock.
pub const SUPERBLOCK_BYTES: usize = 176;
/// The bytes of one of before version 3.
pub(crate) const SUPERBLOCK_BYTES_V2: usize = 128;

/// How many copies a disk has.
pub const SUPERBLOCK_COPIES: usize = 4;

/// The version this program writes. It reads those before it, too.
pub const FORMAT_VERSION: u32 = 3;
const FORMAT_VERSION_MIN: u32 = 1;

const MAGIC: &[u8; 8] = b"CAIRNDSK";
const _: () = assert!(SUPERBLOCK_BYTES <= 512, "a superblock is written atomically");

/// Whose disk this is and how it is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The format of the disk.
    pub version: u32,
    /// The disk.
    pub disk: DiskId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Which life of the disk this is.
    pub incarnation: u64,
    /// Grows with every write.
    pub sequence: u64,
    /// The device's size in bytes.
    pub device_size: u64,
    /// Bytes of one extent.
    pub extent_size: u64,
    /// No extent has this generation or a greater one yet.
    pub generation_limit: u64,
    /// Every batch up to this one was flushed.
    pub flushed: u64,
    /// The extent that verifying goes on with.
    pub verified: u32,
    /// Every extent header of a smaller sequence was flushed.
    pub headers: u64,
    /// The last admission that a gateway gave the disk.
    pub admission: Admission,
    /// Which ledger the disk obeys.
    pub ledger: LedgerMarks,
}

/// The bytes of a superblock of this version.
pub(crate) fn encoded_len(version: u32) -> usize {
    match version < 3 {
        true => SUPERBLOCK_BYTES_V2,
        false => SUPERBLOCK_BYTES,
    }
}

impl Superblock {
    /// To bytes.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut b = [0; SUPERBLOCK_BYTES];
        put(&mut b, 0, MAGIC);
        put(&mut b, 12, &self.version.to_le_bytes());
        put(&mut b, 16, &self.disk.0.to_le_bytes());
        put(&mut b, 32, &self.cluster.0.to_le_bytes());
        put(&mut b, 48, &self.incarnation.to_le_bytes());
        put(&mut b, 56, &self.sequence.to_le_bytes());
        put(&mut b, 64, &self.device_size.to_le_bytes());
        put(&mut b, 72, &self.extent_size.to_le_bytes());
        put(&mut b, 80, &self.generation_limit.to_le_bytes());
        put(&mut b, 88, &self.flushed.to_le_bytes());
        put(&mut b, 96, &self.verified.to_le_bytes());
        put(&mut b, 104, &self.headers.to_le_bytes());
        put(&mut b, 112, &self.admission.number.to_le_bytes());
        put(&mut b, 120, &self.admission.nonce.to_le_bytes());
        if encoded_len(self.version) == SUPERBLOCK_BYTES {
            put(&mut b, 128, &self.ledger.generation.number.to_le_bytes());
            put(&mut b, 136, &self.ledger.generation.nonce.to_le_bytes());
            put(&mut b, 144, &self.ledger.position.to_le_bytes());
            put(&mut b, 152, &self.ledger.blob_limit.to_le_bytes());
            put(&mut b, 160, &self.ledger.volume_limit.to_le_bytes());
            put(&mut b, 168, &self.ledger.epoch.to_le_bytes());
        }
        let crc = crc32fast::hash(&b[12..encoded_len(self.version)]);
        put(&mut b, 8, &crc.to_le_bytes());
        b
    }

    /// From bytes.
    pub fn decode(b: &[u8]) -> Result<Self, FormatError> {
        let head = b.get(..SUPERBLOCK_BYTES_V2).ok_or(FormatError::Short)?;
        if &head[..8] != MAGIC {
            return Err(FormatError::Magic("superblock"));
        }
        let len = encoded_len(get_u32(head, 12));
        let is_short = len == SUPERBLOCK_BYTES_V2;
        let b = b.get(..len).ok_or(FormatError::Short)?;
        if get_u32(b, 8) != crc32fast::hash(&b[12..]) {
            return Err(FormatError::Checksum("superblock"));
        }
        let version = get_u32(b, 12);
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version) {
            return Err(FormatError::Version(version));
        }
        if [56, 80, 88, 104, 112]
            .iter()
            .any(|at| get_u64(b, *at) >= NUMBER_LIMIT)
        {
            return Err(FormatError::Content("superblock: impossible numbers"));
        }
        let ledger = match is_short {
            true => LedgerMarks::default(),
            false => LedgerMarks {
                generation: Generation {
                    number: get_u64(b, 128),
                    nonce: get_u64(b, 136),
                },
                position: get_u64(b, 144),
                blob_limit: get_u64(b, 152),
                volume_limit: get_u64(b, 160),
                epoch: get_u32(b, 168),
            },
        };
        Ok(Superblock {
            version,
            disk: DiskId(get_u128(b, 16)),
            cluster: ClusterId(get_u128(b, 32)),
            incarnation: get_u64(b, 48),
            sequence: get_u64(b, 56),
            device_size: get_u64(b, 64),
            extent_size: get_u64(b, 72),
            generation_limit: get_u64(b, 80),
            flushed: get_u64(b, 88),
            verified: get_u32(b, 96),
            headers: get_u64(b, 104),
            admission: Admission {
                number: get_u64(b, 112),
                nonce: get_u64(b, 120),
            },
            ledger,
        })
    }
}
