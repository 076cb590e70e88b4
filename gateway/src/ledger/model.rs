//! The ledger's rows. Protocol-buffer encoding by field number: fields are added, never re-used, and an older
//! gateway keeps working on rows that a newer one wrote.

use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;

/// What the cluster is; one row, written when it is made.
#[derive(Clone, PartialEq, Message)]
pub struct SettingsRow {
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: Bytes,
    /// The default scheme, as `rs(4,2)`.
    #[prost(string, tag = "2")]
    pub scheme: String,
    /// Disks the cluster was made with.
    #[prost(uint32, tag = "3")]
    pub disks: u32,
    /// Version of the rows' format: 1.
    #[prost(uint32, tag = "4")]
    pub format: u32,
    /// Its name for people; empty if nobody said.
    #[prost(string, tag = "5")]
    pub name: String,
}

/// Which ledger this is, of all that were ever copied from it or restored; one row. See `cluster/generation`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GenerationRow {
    /// Grows whenever the ledger could have been copied or restored since.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Random.
    #[prost(uint64, tag = "2")]
    pub nonce: u64,
    /// Blobs with a smaller id that nothing names may belong to a ledger that was given up: they are kept until an operator
    /// decides. 0 if no ledger was.
    #[prost(uint64, tag = "3")]
    pub kept_below_blob: u64,
    /// It was restored, and units may have moved after its last commit: they are looked for before anything else.
    #[prost(bool, tag = "4")]
    pub is_restored: bool,
    /// The number of the generation that the ledger had before this one; with the nonce it says of which history this one is.
    #[prost(uint64, tag = "5")]
    pub before_number: u64,
    /// And its nonce.
    #[prost(uint64, tag = "6")]
    pub before_nonce: u64,
}

/// That disks are to be made equally full.
#[derive(Clone, PartialEq, Message)]
pub struct RebalanceRow {
    /// How far from the mean a disk may be, in thousandths of a disk.
    #[prost(uint32, tag = "1")]
    pub within_permille: u32,
}

/// How fast background work goes, if an operator said so; one row. Neither: as clients allow.
#[derive(Clone, PartialEq, Message)]
pub struct PaceRow {
    /// Bytes a second for rebuilding; 0 if it is not that.
    #[prost(uint64, tag = "1")]
    pub rebuild_bandwidth: u64,
    /// When rebuilding has to be done, in milliseconds since 1970; 0 if it is not that.
    #[prost(uint64, tag = "2")]
    pub rebuild_deadline_ms: u64,
}

/// A counter's next id.
#[derive(Clone, PartialEq, Message)]
pub struct CounterRow {
    /// The next id to hand out.
    #[prost(uint64, tag = "1")]
    pub next: u64,
}

/// A bucket.
#[derive(Clone, PartialEq, Message)]
pub struct BucketRow {
    /// Its id; never reused, so a bucket made anew under an old name sees none of the old rows.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub created_ms: u64,
    /// Set first when the bucket is being deleted: puts stop before emptiness is judged.
    #[prost(bool, tag = "3")]
    pub deleting: bool,
    /// A [`CorsRow`], encoded: few requests look at it. Empty for none.
    #[prost(bytes = "bytes", tag = "4")]
    pub cors: Bytes,
}

/// The CORS rules of a bucket.
#[derive(Clone, PartialEq, Message)]
pub struct CorsRow {
    /// The first one that applies counts.
    #[prost(message, repeated, tag = "1")]
    pub rules: Vec<CorsRuleRow>,
}

/// One of them.
#[derive(Clone, PartialEq, Message)]
pub struct CorsRuleRow {
    /// For people; may be empty.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Origins, each with at most one `*`.
    #[prost(string, repeated, tag = "2")]
    pub origins: Vec<String>,
    /// Methods.
    #[prost(string, repeated, tag = "3")]
    pub methods: Vec<String>,
    /// Headers of requests, each with at most one `*`.
    #[prost(string, repeated, tag = "4")]
    pub headers: Vec<String>,
    /// Headers of answers that the page may read.
    #[prost(string, repeated, tag = "5")]
    pub expose: Vec<String>,
    /// Seconds for which a browser may remember a preflight.
    #[prost(uint32, optional, tag = "6")]
    pub max_age_s: Option<u32>,
}

/// A blob as an object or part refers to it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BlobRef {
    /// The volume it is in.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Its id.
    #[prost(uint64, tag = "2")]
    pub blob: u64,
    /// Bytes.
    #[prost(uint64, tag = "3")]
    pub length: u64,
}

/// Headers that a client stored with an object and gets back unchanged.
#[derive(Clone, PartialEq, Message)]
pub struct Headers {
    /// Content-Type.
    #[prost(string, optional, tag = "1")]
    pub content_type: Option<String>,
    /// Content-Encoding.
    #[prost(string, optional, tag = "2")]
    pub content_encoding: Option<String>,
    /// Content-Disposition.
    #[prost(string, optional, tag = "3")]
    pub content_disposition: Option<String>,
    /// Content-Language.
    #[prost(string, optional, tag = "4")]
    pub content_language: Option<String>,
    /// Cache-Control.
    #[prost(string, optional, tag = "5")]
    pub cache_control: Option<String>,
    /// Expires of objects of before it was kept as it was sent, in seconds since 1970.
    #[prost(int64, optional, tag = "6")]
    pub expires_s: Option<i64>,
    /// x-amz-meta-*, names without the prefix.
    #[prost(btree_map = "string, string", tag = "7")]
    pub metadata: BTreeMap<String, String>,
    /// x-amz-website-redirect-location.
    #[prost(string, optional, tag = "8")]
    pub website_redirect_location: Option<String>,
    /// Expires, as it was sent.
    #[prost(string, optional, tag = "9")]
    pub expires: Option<String>,
}

/// A checksum that the client asked for, kept with the object and verified on arrival.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ChecksumRow {
    /// S3's name: CRC32, CRC32C, CRC64NVME, SHA1, SHA256.
    #[prost(string, tag = "1")]
    pub algorithm: String,
    /// The digest, raw.
    #[prost(bytes = "bytes", tag = "2")]
    pub digest: Bytes,
    /// For a checksum of checksums (COMPOSITE), the number of parts; 0 for FULL_OBJECT.
    #[prost(uint32, tag = "3")]
    pub composite_parts: u32,
}

/// One part of a completed multipart object.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PartSize {
    /// The number the client gave it.
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

/// An object version.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectRow {
    /// Bytes.
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// Without quotes: MD5 in hex, or `MD5-of-MD5s-N`.
    #[prost(string, tag = "2")]
    pub etag: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub modified_ms: u64,
    /// The content, in order.
    #[prost(message, repeated, tag = "4")]
    pub blobs: Vec<BlobRef>,
    /// What the client stored with it.
    #[prost(message, optional, tag = "5")]
    pub headers: Option<Headers>,
    /// The checksum the client asked for.
    #[prost(message, optional, tag = "6")]
    pub checksum: Option<ChecksumRow>,
    /// The parts, if it was a multipart upload.
    #[prost(message, repeated, tag = "7")]
    pub parts: Vec<PartSize>,
    /// The upload it came from (16 bytes), so that completing twice answers the same.
    #[prost(bytes = "bytes", tag = "8")]
    pub upload: Bytes,
}

/// A multipart upload in progress.
#[derive(Clone, PartialEq, Message)]
pub struct UploadRow {
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "1")]
    pub initiated_ms: u64,
    /// What the object will carry.
    #[prost(message, optional, tag = "2")]
    pub headers: Option<Headers>,
    /// The checksum algorithm of its parts; empty for none.
    #[prost(string, tag = "3")]
    pub checksum_algorithm: String,
    /// Whether the object's checksum covers the whole (FULL_OBJECT) rather than the parts' checksums.
    #[prost(bool, tag = "4")]
    pub checksum_full_object: bool,
}

/// A part of an upload.
#[derive(Clone, PartialEq, Message)]
pub struct PartRow {
    /// Bytes.
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// MD5, 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub md5: Bytes,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub modified_ms: u64,
    /// The content, in order.
    #[prost(message, repeated, tag = "4")]
    pub blobs: Vec<BlobRef>,
    /// Its checksum.
    #[prost(message, optional, tag = "5")]
    pub checksum: Option<ChecksumRow>,
}

/// A blob: what the cluster must be able to read.
#[derive(Clone, PartialEq, Message)]
pub struct BlobRow {
    /// Bytes.
    #[prost(uint64, tag = "1")]
    pub length: u64,
    /// Objects and parts that refer to it; 0 never stands in the ledger.
    #[prost(uint32, tag = "2")]
    pub references: u32,
    /// Who wrote it, for people: `bucket/key`.
    #[prost(string, tag = "3")]
    pub owner: String,
}

/// The checksums of a blob's blocks: see `object/seals`. Apart from the blob's row, because that is written again whenever the
/// references change.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SealsRow {
    /// CRC-32 of every block of every shard, 4 bytes each.
    #[prost(bytes = "bytes", tag = "1")]
    pub block_crcs: Bytes,
}

/// Whether a volume takes new blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum VolumeState {
    /// It does.
    Open = 0,
    /// It is full; reads and repair only.
    Sealed = 1,
}

/// A volume.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeRow {
    /// As `rs(4,2)`.
    #[prost(string, tag = "1")]
    pub scheme: String,
    /// Grows when a unit moves.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// See [`VolumeState`].
    #[prost(enumeration = "VolumeState", tag = "3")]
    pub state: i32,
    /// The disk of each unit, 16 bytes each, in index order.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub disks: Vec<Bytes>,
    /// Units that moved to another disk and are not whole there yet.
    #[prost(uint32, repeated, tag = "5")]
    pub incomplete: Vec<u32>,
}

/// A disk.
#[derive(Clone, PartialEq, Message)]
pub struct DiskRow {
    /// The incarnation that is valid.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Its name for people, and where its node looks for it: `disk-0`.
    #[prost(string, tag = "2")]
    pub label: String,
    /// The size it was formatted with, in bytes.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// False from when the row is written until the medium is formatted.
    #[prost(bool, tag = "4")]
    pub formatted: bool,
    /// The node that has it, by its id (16 bytes); empty in a cluster of one process, where a disk is a failure domain of
    /// its own.
    #[prost(bytes = "bytes", tag = "5")]
    pub node: Bytes,
    /// See [`Membership`].
    #[prost(enumeration = "Membership", tag = "6")]
    pub membership: i32,
    /// Where it was on its node when it was added: adding it is resumed there until it is formatted.
    #[prost(string, tag = "10")]
    pub path: String,
    /// The admission that its medium has, or is being given (see `cluster/admission`).
    #[prost(message, optional, tag = "11")]
    pub admission: Option<AdmissionRow>,
    /// The number of the admission after which a census of the disk was complete.
    #[prost(uint64, tag = "12")]
    pub censused: u64,
    /// When verifying last came to the end of the disk, in milliseconds since 1970; 0 if it has not. For people.
    #[prost(uint64, tag = "13")]
    pub verified_ms: u64,
}

/// What a medium must show to be the disk, and not a copy of what it was.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct AdmissionRow {
    /// Grows with each.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Random.
    #[prost(uint64, tag = "2")]
    pub nonce: u64,
    /// The opening of the disk that it was given to.
    #[prost(uint64, tag = "3")]
    pub opening: u64,
    /// What the medium had before: it has that still, if giving was cut off.
    #[prost(uint64, tag = "4")]
    pub before_number: u64,
    /// See `before_number`.
    #[prost(uint64, tag = "5")]
    pub before_nonce: u64,
    /// Whether the medium is known to have it.
    #[prost(bool, tag = "6")]
    pub given: bool,
}

/// What the operator, or a grace period that is over, decided of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Membership {
    /// It holds units and gets new ones.
    Active = 0,
    /// It serves what it holds until that is moved away; nothing new goes there.
    Draining = 1,
    /// It is given up: what it holds is rebuilt elsewhere, and it gets nothing for ever.
    Out = 2,
    /// It was away for longer than the grace period: what it held is rebuilt elsewhere. Back in service when it returns.
    Absent = 3,
}

impl Membership {
    /// Whether what such a disk holds is to be rebuilt elsewhere.
    pub fn is_given_up(self) -> bool {
        matches!(self, Membership::Out | Membership::Absent)
    }
}

/// A machine that serves disks.
#[derive(Clone, PartialEq, Message)]
pub struct NodeRow {
    /// Its name for people; no two nodes share one.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Where gateways reach it: `host:port`.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Its rack; empty if nobody said.
    #[prost(string, tag = "3")]
    pub rack: String,
    /// Its zone; empty if nobody said.
    #[prost(string, tag = "4")]
    pub zone: String,
    /// SHA-256 of its certificate's public key: who else has the name is refused.
    #[prost(bytes = "bytes", tag = "5")]
    pub public_key: Bytes,
}

/// A token with which one node may join, once.
#[derive(Clone, PartialEq, Message)]
pub struct TokenRow {
    /// Milliseconds since 1970 from which on it is refused.
    #[prost(uint64, tag = "1")]
    pub expires_ms: u64,
    /// The name of the node that used it; empty if none did.
    #[prost(string, tag = "2")]
    pub used_by: String,
    /// SHA-256 of that node's public key: it may ask again, if the answer was lost.
    #[prost(bytes = "bytes", tag = "3")]
    pub used_key: Bytes,
}

/// Shards of a blob that are to be deleted.
#[derive(Clone, PartialEq, Message)]
pub struct GarbageRow {
    /// The units (by index) whose disks have not confirmed the delete yet; empty means all.
    #[prost(uint32, repeated, tag = "1")]
    pub pending: Vec<u32>,
}

/// A shard that a read or a census found missing or wrong.
#[derive(Clone, PartialEq, Message)]
pub struct SuspectRow {
    /// What was found, for people.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// A gateway's lease. As long as the row stands, its commits are good.
#[derive(Clone, PartialEq, Message)]
pub struct LeaseRow {
    /// Which gateway, for people.
    #[prost(string, tag = "1")]
    pub gateway: String,
}

/// A range of blob ids under a lease: `start` (in the key) to `end`.
#[derive(Clone, PartialEq, Message)]
pub struct IdRangeRow {
    /// The first id after the range.
    #[prost(uint64, tag = "1")]
    pub end: u64,
    /// Disks (16 bytes each) already swept of the range's orphans, after the lease was revoked.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub swept: Vec<Bytes>,
}

/// What operators want of scrubbing, and how far the census is; one row.
#[derive(Clone, PartialEq, Message)]
pub struct ScrubRow {
    /// Seconds in which nodes verify a whole disk; 0 if each does as it is configured.
    #[prost(uint64, tag = "1")]
    pub verify_cycle_s: u64,
    /// Whether the census goes on as fast as requests leave it, until its cycle is over.
    #[prost(bool, tag = "2")]
    pub at_once: bool,
    /// The volume that the cycle goes on with; none with a smaller id is left.
    #[prost(uint64, tag = "3")]
    pub from_volume: u64,
    /// The cycle in progress.
    #[prost(message, optional, tag = "4")]
    pub now: Option<CensusRow>,
    /// The last one that came to its end.
    #[prost(message, optional, tag = "5")]
    pub last: Option<CensusRow>,
}

/// What a cycle of the census has found.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CensusRow {
    /// Its number, from 1.
    #[prost(uint64, tag = "1")]
    pub cycle: u64,
    /// When it began, in milliseconds since 1970. For people.
    #[prost(uint64, tag = "2")]
    pub started_ms: u64,
    /// When it ended; 0 if it has not.
    #[prost(uint64, tag = "3")]
    pub ended_ms: u64,
    /// Volumes looked at.
    #[prost(uint64, tag = "4")]
    pub volumes: u64,
    /// Units compared.
    #[prost(uint64, tag = "5")]
    pub units: u64,
    /// Units that could not be: their disk is away, or they are on their way.
    #[prost(uint64, tag = "6")]
    pub skipped: u64,
    /// Shards that the ledger names and a disk lacks.
    #[prost(uint64, tag = "7")]
    pub missing: u64,
    /// Shards of another length than the ledger says.
    #[prost(uint64, tag = "8")]
    pub wrong: u64,
    /// Blobs of which a disk has shards, that nothing names, and that were not known before.
    #[prost(uint64, tag = "9")]
    pub unnamed: u64,
    /// Of these, blobs that were made garbage. Since they are set aside: 0.
    #[prost(uint64, tag = "10")]
    pub collected: u64,
    /// Shards past the end of a blob that is named: they go when it does.
    #[prost(uint64, tag = "11")]
    pub surplus: u64,
    /// Units on disks that the ledger does not name for them.
    #[prost(uint64, tag = "12")]
    pub strays: u64,
    /// Blobs waiting to be deleted when it ended.
    #[prost(uint64, tag = "13")]
    pub garbage: u64,
    /// Shards waiting to be repaired when it ended.
    #[prost(uint64, tag = "14")]
    pub suspects: u64,
    /// Disks that were not there to be asked for units that are not theirs.
    #[prost(uint64, tag = "15")]
    pub disks_away: u64,
    /// Blobs of which disks have shards and that nothing names, known from before.
    #[prost(uint64, tag = "16")]
    pub set_aside: u64,
    /// Units of volumes that the ledger does not know, kept because a ledger that was given up may have known them.
    #[prost(uint64, tag = "17")]
    pub unknown_units: u64,
}

/// Why a blob was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum UnnamedWhy {
    /// A census found shards of it, and no row that names it.
    Census = 0,
    /// Its id is of a gateway that died, and no row names it.
    DeadLease = 1,
}

/// A blob that disks have shards of and no row names. See `maintenance/unnamed`.
#[derive(Clone, PartialEq, Message)]
pub struct UnnamedRow {
    /// When it was first seen, in milliseconds since 1970. For people.
    #[prost(uint64, tag = "1")]
    pub seen_ms: u64,
    /// Seconds that gateways had run by then.
    #[prost(uint64, tag = "2")]
    pub seen_run_s: u64,
    /// Complete censuses that found it.
    #[prost(uint32, tag = "3")]
    pub censuses: u32,
    /// See [`UnnamedWhy`].
    #[prost(enumeration = "UnnamedWhy", tag = "4")]
    pub why: i32,
    /// The census in progress when it was first seen, or the last one before.
    #[prost(uint64, tag = "5")]
    pub since_cycle: u64,
    /// The last census that found it.
    #[prost(uint64, tag = "6")]
    pub found_cycle: u64,
    /// The last census that was counted.
    #[prost(uint64, tag = "7")]
    pub counted_cycle: u64,
    /// The units (by index) that had shards of it when they were last looked at.
    #[prost(uint32, repeated, tag = "8")]
    pub units: Vec<u32>,
    /// How many shards these were.
    #[prost(uint64, tag = "9")]
    pub shards: u64,
    /// Their bytes.
    #[prost(uint64, tag = "10")]
    pub bytes: u64,
    /// The object or part that names it although it has no row, for people: such a blob is kept. Empty if there is none, or nobody
    /// looked yet.
    #[prost(string, tag = "11")]
    pub named_by: String,
}

/// How long what nothing names is kept, and how long gateways have run; one row.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct KeepRow {
    /// Seconds that gateways run before it goes, if an operator said so.
    #[prost(uint64, optional, tag = "1")]
    pub keep_s: Option<u64>,
    /// Complete censuses that have to find it before it goes, if an operator said so.
    #[prost(uint32, optional, tag = "2")]
    pub censuses: Option<u32>,
    /// Seconds that gateways have run, as they counted.
    #[prost(uint64, tag = "3")]
    pub ran_s: u64,
}

/// The last census of a volume.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeCensusRow {
    /// The cycle it was part of.
    #[prost(uint64, tag = "1")]
    pub cycle: u64,
    /// Its units, in index order.
    #[prost(message, repeated, tag = "2")]
    pub units: Vec<UnitCensusRow>,
}

/// The last census of a unit.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UnitCensusRow {
    /// The disk that was asked, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub disk: Bytes,
    /// When, in milliseconds since 1970; 0 if it could not be asked. For people.
    #[prost(uint64, tag = "2")]
    pub at_ms: u64,
    /// Shards that were missing, or of another length.
    #[prost(uint64, tag = "3")]
    pub missing: u64,
    /// Blobs of which it had shards, and that nothing named.
    #[prost(uint64, tag = "4")]
    pub unnamed: u64,
}
