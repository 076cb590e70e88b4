//! The words a gateway and a storage node speak: identities, sealed shards, requests' answers and typed errors.
//!
//! Pure data, no I/O. The in-process call and the HTTP client carry exactly these types, so neither side can tell
//! which one is in use. A shard is opaque here: the node checks that its bytes match its seal, and knows no code.
//!
//! Invariant: an error keeps its type from the device to the client. `NodeError` is what crosses the wire.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Bytes of payload covered by one CRC of a seal, and the unit of partial reads.
pub const BLOCK_BYTES: u32 = 64 * 1024;

/// The largest payload of one shard, in bytes: data shard i of a stripe holds at most 1 MiB.
pub const SHARD_BYTES_MAX: u32 = 1024 * 1024;

/// The most shards one stripe can have (k + m), bounded by GF(2^8).
pub const STRIPE_SHARDS_MAX: usize = 255;

/// Volumes from this id on are system volumes: they hold the archive of the ledger, and no ledger has a row of them. What is in them is
/// found from the disks alone, and only the archive writes or deletes there.
pub const SYSTEM_VOLUME_MIN: u64 = 1 << 63;

/// Identifies a disk for as long as it lives; written in its superblock. Printed as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub u128);

/// Identifies a node: a machine that serves disks. The cluster gives it when the node joins; the node's certificate has
/// it. Printed as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u128);

/// Identifies the cluster a disk belongs to; a disk of another cluster is refused. Printed as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

/// The part of a volume that lives on one disk: shard `index` of every stripe of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnitId {
    /// The volume.
    pub volume: u64,
    /// The position in the volume, 0 ≤ index < k + m.
    pub index: u8,
}

/// Names a shard within a unit. Ordered by blob, then stripe: the order of inventories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardKey {
    /// The blob; ids are never reused in a cluster.
    pub blob: u64,
    /// The stripe of the blob, from 0.
    pub stripe: u32,
}

/// Where a request goes, and under which membership. Every request carries it, so that a disk that was replaced or
/// a volume that changed hands refuses instead of answering wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UnitAddress {
    /// The disk that holds the unit.
    pub disk: DiskId,
    /// The incarnation the caller knows; a disk that was re-initialised has a greater one.
    pub incarnation: u64,
    /// The unit.
    pub unit: UnitId,
    /// The volume's epoch the caller knows; one older than the disk's is refused.
    pub epoch: u32,
    /// The generation of the caller's ledger. A disk that was told of a generation changes nothing for another one.
    pub ledger: Generation,
}

/// Which ledger, of all that were ever copied from one or restored. Of two the greater number is newer; two of one number and
/// different nonces are copies that both went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// Grows whenever the ledger could have been copied or restored since; 0 where nobody said.
    pub number: u64,
    /// Random.
    pub nonce: u64,
}

impl Generation {
    /// Of a caller that speaks for no ledger, and of a disk that no ledger was shown to.
    pub const NONE: Generation = Generation { number: 0, nonce: 0 };
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.number, self.nonce)
    }
}

impl FromStr for Generation {
    type Err = NodeError;
    fn from_str(s: &str) -> Result<Self, NodeError> {
        let parsed = s.split_once('-').and_then(|(number, nonce)| {
            let nonce = (nonce.len() == 16).then(|| u64::from_str_radix(nonce, 16).ok())??;
            Some(Generation {
                number: number.parse().ok()?,
                nonce,
            })
        });
        parsed.ok_or_else(|| NodeError::BadRequest {
            what: format!("{s:?} is no generation of a ledger"),
        })
    }
}

/// Which ledger a disk obeys, and how far that was: a ledger that is behind these marks is an older copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerMarks {
    /// The newest generation that the disk was told of.
    pub generation: Generation,
    /// The greatest position of that generation that the disk was told of: the version of the ledger's last commit then.
    pub position: u64,
    /// No blob of this id or a greater one was handed out, as far as the disk knows, and none is on it.
    pub blob_limit: u64,
    /// The same of volumes, those of the system apart.
    pub volume_limit: u64,
    /// The greatest epoch of any volume.
    pub epoch: u32,
}

/// No ledger comes so far: it would take a commit, a blob or a start each nanosecond for years.
const PLAUSIBLE_MAX: u64 = 1 << 56;

impl LedgerMarks {
    /// Whether a ledger can be meant. A damaged or forged superblock says anything, and would have counters moved past their ends.
    pub fn is_plausible(&self) -> bool {
        let numbers = [
            self.generation.number,
            self.position,
            self.blob_limit,
            self.volume_limit,
        ];
        numbers.iter().all(|number| *number < PLAUSIBLE_MAX)
    }

    /// What a disk remembers that was told `told` and knew `self`: limits never shrink, and a position is one of its generation.
    pub fn told(&self, told: &LedgerMarks) -> LedgerMarks {
        LedgerMarks {
            generation: told.generation,
            position: match told.generation == self.generation {
                true => told.position.max(self.position),
                false => told.position,
            },
            blob_limit: told.blob_limit.max(self.blob_limit),
            volume_limit: told.volume_limit.max(self.volume_limit),
            epoch: told.epoch.max(self.epoch),
        }
    }

    /// Whether a disk with these marks may be told of another generation: of a newer one, and of its own.
    pub fn obeys(&self, other: Generation) -> bool {
        other == self.generation || other.number > self.generation.number
    }
}

/// That a disk is to change nothing for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Still {
    /// For this ledger, if it is the one that the disk obeys: a request that comes late stops nobody else.
    pub ledger: Generation,
    /// For so long, in milliseconds; zero ends it.
    pub lasts_ms: u64,
}

/// A gateway says that it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Which gateway, for people: its name and where it runs.
    pub gateway: String,
    /// Which process over which ledger file; another one each time it could be another's.
    pub instance: String,
    /// The generation of its ledger.
    pub generation: Generation,
}

/// The gateway that a node heard last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// What it said.
    pub beat: Beat,
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
}

/// What lets every later reader tell right bytes from wrong ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// CRC-32 of each 64 KiB block of the payload, each seeded with the shard's identity and the block's number
    /// (see [`seal_seed`] and [`block_crc`]), so a stale or misdirected block never verifies.
    /// Length: payload bytes ÷ 64 KiB, rounded up.
    pub block_crcs: Vec<u32>,
    /// BLAKE3 of each shard of the stripe, in index order; every record of a stripe carries the whole table.
    /// Length: k + m.
    pub digests: Vec<[u8; 32]>,
}

/// One shard with its seal: what travels, and what a record stores. 1 to [`SHARD_BYTES_MAX`] bytes of payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedShard {
    /// Which shard of the unit this is.
    pub key: ShardKey,
    /// Its checksums.
    pub seal: Seal,
    /// Its bytes.
    pub payload: Bytes,
}

/// Consecutive 64 KiB blocks of a shard; the last one may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// The first block wanted, from 0.
    pub first: u32,
    /// How many; blocks past the end of the shard are not an error, they are just not returned.
    pub count: u32,
}

impl UnitId {
    /// Whether it is part of a system volume, of which no ledger knows.
    pub fn is_system(&self) -> bool {
        self.volume >= SYSTEM_VOLUME_MIN
    }
}

impl BlockRange {
    /// Every block of any shard.
    pub const ALL: BlockRange = BlockRange {
        first: 0,
        count: SHARD_BYTES_MAX / BLOCK_BYTES,
    };
}

/// The answer to a read: whole blocks, with what is needed to check them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardBlocks {
    /// Length of the whole shard in bytes.
    pub shard_len: u32,
    /// The first block in `payload`.
    pub first_block: u32,
    /// The CRCs of the blocks in `payload`, in order.
    pub block_crcs: Vec<u32>,
    /// The digests of all shards of the stripe, in index order.
    pub digests: Vec<[u8; 32]>,
    /// The bytes of the blocks.
    pub payload: Bytes,
}

/// One shard that a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryEntry {
    /// Which.
    pub key: ShardKey,
    /// Payload length in bytes.
    pub len: u32,
}

/// One unit that a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitInfo {
    /// Which.
    pub unit: UnitId,
    /// The newest epoch the disk has seen for it.
    pub epoch: u32,
    /// Live shards.
    pub shards: u64,
    /// Payload bytes of the live shards.
    pub live_bytes: u64,
}

/// Whether a disk serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum DiskState {
    /// It reads and writes.
    Online,
    /// It failed and was taken out of service, whole, until an operator replaces it.
    Fenced {
        /// What happened, for people.
        reason: String,
    },
}

/// A disk as its node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// The disk.
    pub disk: DiskId,
    /// Its incarnation.
    pub incarnation: u64,
    /// Where it is on the node.
    pub path: String,
    /// Whether it serves.
    pub state: DiskState,
    /// The I/O backend in use, and why not io_uring where it is not: `io_uring`, `pread (io_uring: EPERM)`.
    pub backend: String,
    /// Bytes that records could use in all.
    pub capacity_bytes: u64,
    /// Bytes that new shards can still use, counting what compaction could free.
    pub free_bytes: u64,
    /// Payload bytes of live shards.
    pub live_bytes: u64,
    /// Live shards.
    pub shards: u64,
    /// Shards found corrupt or unreadable since start, by reads and by recovery.
    pub corrupt_shards: u64,
    /// Which opening of it this is; none from a node that does not say, or for a disk that is not open.
    #[serde(default)]
    pub opening: Option<Opening>,
    /// How far verifying it is; none from a node that does not say, or for a disk that is not open.
    #[serde(default)]
    pub verify: Option<VerifyStatus>,
    /// Which ledger it obeys; none from a node that does not say, or for a disk that is not open.
    #[serde(default)]
    pub ledger: Option<LedgerMarks>,
}

/// What a disk's medium remembers of the last gateway that took it for the disk: a copy of an earlier state has an older one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Grows with each; 0 before the first.
    pub number: u64,
    /// Random.
    pub nonce: u64,
}

/// A disk's medium since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Another number each time it is opened.
    pub id: u64,
    /// What it remembers.
    pub admission: Admission,
}

/// How far verifying a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// Seconds that a pass takes; none if there are none unless somebody asks for one.
    pub cycle_s: Option<u64>,
    /// Whether this pass was asked for, and does not take its time.
    pub at_once: bool,
    /// Passes that came to their end since the disk was opened, of which none was asked for anew on its way.
    pub passes: u64,
    /// Extents that this pass has been through.
    pub extents_done: u32,
    /// Extents of the disk.
    pub extents: u32,
    /// Seconds since a pass came to its end; none if none did since the disk was opened.
    pub ended_s_ago: Option<u64>,
    /// Findings since the disk was opened.
    pub findings: u64,
}

/// How a disk is to be verified from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOrder {
    /// Seconds that a pass takes from now on; none leaves it as it is.
    pub cycle_s: Option<u64>,
    /// Whether a pass begins now, in place of the one on its way, and does not take its time.
    pub now: bool,
}

/// A gateway takes an open disk for what the ledger knows, and says so on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmitRequest {
    /// The opening that it was shown; another one is refused.
    pub opening: u64,
    /// What the medium is to remember; its number is greater than that of what it does.
    pub admission: Admission,
    /// The generation of the gateway's ledger: a disk that obeys another one is not admitted.
    #[serde(default)]
    pub ledger: Generation,
    /// Whether only reads are asked for, by a gateway that may change nothing: the medium is left as it is.
    #[serde(default)]
    pub is_reading: bool,
}

/// A place for a disk that no cluster has formatted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlankDisk {
    /// Where it is on the node.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// What is there, for people, if its beginning is not all zeros: `an ext4 filesystem`, `data`.
    pub holds: Option<String>,
}

/// How a node is to format a blank disk of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatRequest {
    /// One of the paths that the node reports as blank.
    pub path: String,
    /// The cluster it will belong to; it must be the node's.
    pub cluster: ClusterId,
    /// The id it gets.
    pub disk: DiskId,
    /// The incarnation it gets.
    pub incarnation: u64,
    /// Bytes of an extent (a power of two); chosen from the disk's size if none.
    pub extent_size: Option<u64>,
    /// Whether it may be formatted although something is there (see [`BlankDisk::holds`]).
    pub overwrite: bool,
}

/// A node and its disks, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The disks it serves, fenced ones included.
    pub disks: Vec<DiskStatus>,
    /// Places for disks that were given to it and are not formatted.
    #[serde(default)]
    pub blank: Vec<BlankDisk>,
    /// The gateway that it heard last.
    #[serde(default)]
    pub heard: Option<Heard>,
}

/// Why a node did not do what it was asked. The type survives the wire: repair and reads decide on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "error")]
pub enum NodeError {
    /// The disk holds no such shard.
    #[error("no such shard")]
    NotFound,
    /// The blob was deleted; a late write of it is refused.
    #[error("the blob was deleted")]
    Deleted,
    /// The stored bytes do not match their seal or identity.
    #[error("corrupt shard: {what}")]
    Corrupt {
        /// What did not match.
        what: String,
    },
    /// The bytes that arrived do not match the seal that arrived with them.
    #[error("the shard does not match its seal on arrival: {what}")]
    SealMismatch {
        /// What did not match.
        what: String,
    },
    /// The device failed to read.
    #[error("device read error: {what}")]
    Io {
        /// The system's words.
        what: String,
    },
    /// The disk is out of service.
    #[error("disk fenced: {reason}")]
    Fenced {
        /// Why.
        reason: String,
    },
    /// The disk has no room for another shard (deletes still work).
    #[error("disk full")]
    NoSpace,
    /// The caller's epoch is older than the disk's.
    #[error("stale epoch, the disk knows {current}")]
    StaleEpoch {
        /// The newest epoch the disk has seen.
        current: u32,
    },
    /// The disk obeys another generation of the ledger than the caller's.
    #[error("the disk obeys generation {current} of the ledger")]
    OtherLedger {
        /// The one that it obeys.
        current: Generation,
    },
    /// This node has no such disk, or it has another incarnation.
    #[error("no such disk here")]
    WrongDisk,
    /// The request makes no sense; never retried.
    #[error("bad request: {what}")]
    BadRequest {
        /// What was wrong.
        what: String,
    },
    /// The disk's queue is full; try again later.
    #[error("disk overloaded")]
    Overloaded,
    /// No answer within the deadline.
    #[error("timed out")]
    Timeout,
    /// The node could not be reached or hung up.
    #[error("node unreachable: {what}")]
    Unreachable {
        /// What happened.
        what: String,
    },
    /// What came is no answer of this protocol. Made by the caller, not by a node.
    #[error("no answer that makes sense: {what}")]
    Garbled {
        /// What came.
        what: String,
    },
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The live record is not there, or its head or payload does not match its checksums.
    Corrupt,
    /// The disk fails to read it.
    Unreadable,
    /// A valid record is on the disk, and the index neither has it nor knows why it is dead.
    Forgotten,
    /// The summary of an extent does not verify, or says otherwise than its records. No shard is the worse for it, and it is
    /// written again.
    Summary,
}

/// Something that verifying a disk found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// Whose shard.
    pub unit: UnitId,
    /// Which shard.
    pub key: ShardKey,
    /// The extent it is in.
    pub extent: u32,
    /// Where its head is, from the extent's start.
    pub offset: u32,
    /// In words.
    pub what: String,
}

/// What verifying a disk found since some other time; numbered from 1 each time the disk is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Another number each time the disk is opened.
    pub opened: u64,
    /// The number of the newest finding.
    pub last: u64,
    /// The findings, oldest first; of very many only the newest are kept.
    pub found: Vec<Finding>,
}

/// The seed of a shard's block CRCs: CRC-32 of volume, blob (u64 LE), stripe (u32 LE), index (u8), shard length (u32 LE).
pub fn seal_seed(unit: UnitId, key: ShardKey, shard_len: u32) -> u32 {
    let mut identity = [0u8; 25];
    identity[0..8].copy_from_slice(&unit.volume.to_le_bytes());
    identity[8..16].copy_from_slice(&key.blob.to_le_bytes());
    identity[16..20].copy_from_slice(&key.stripe.to_le_bytes());
    identity[20] = unit.index;
    identity[21..25].copy_from_slice(&shard_len.to_le_bytes());
    crc32fast::hash(&identity)
}

/// CRC-32 of block number `block` of a shard whose seal has this seed: the CRC starts from `seed + block` (wrapping).
/// Two states that differ never meet on equal data, so the same bytes elsewhere have another CRC.
pub fn block_crc(seed: u32, block: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed.wrapping_add(block));
    hasher.update(bytes);
    hasher.finalize()
}

/// The first block of a payload that does not match its CRC. `crcs` has one for each block.
pub fn bad_block(seed: u32, payload: &[u8], crcs: &[u32]) -> Option<u32> {
    let mut blocks = (0..).zip(payload.chunks(BLOCK_BYTES as usize)).zip(crcs);
    let bad = blocks.find(|((number, block), crc)| block_crc(seed, *number, block) != **crc);
    bad.map(|((number, _), _)| number)
}

/// The number of seal blocks of a payload of `len` bytes.
pub fn block_count(len: u32) -> u32 {
    len.div_ceil(BLOCK_BYTES)
}

macro_rules! hex_id {
    ($name:ident, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }
        impl FromStr for $name {
            type Err = NodeError;
            fn from_str(s: &str) -> Result<Self, NodeError> {
                let bad = || NodeError::BadRequest {
                    what: format!(concat!($what, " is 32 hex digits, not {:?}"), s),
                };
                if s.len() != 32 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(bad());
                }
                u128::from_str_radix(s, 16).map($name).map_err(|_| bad())
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}
hex_id!(DiskId, "a disk id");
hex_id!(ClusterId, "a cluster id");
hex_id!(NodeId, "a node id");
