//! What can go wrong behind the S3 protocol, once, typed. `s3/error.rs` maps it to S3's codes and nothing else does.

use crate::ledger::store::LedgerError;
use ec_core::Scheme;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such bucket.
    #[error("the bucket does not exist")]
    NoSuchBucket,
    /// The name is taken by the caller.
    #[error("the bucket exists already and is yours")]
    BucketAlreadyOwnedByYou,
    /// The bucket still holds objects.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// The limit of buckets is reached.
    #[error("too many buckets")]
    TooManyBuckets,
    /// There is no such object.
    #[error("the key does not exist")]
    NoSuchKey,
    /// There is no such upload.
    #[error("the upload does not exist; it may have been completed or aborted")]
    NoSuchUpload,
    /// A condition of the request (If-Match and its kin) does not hold.
    #[error("at least one of the preconditions did not hold")]
    PreconditionFailed,
    /// The client has it already (If-None-Match, If-Modified-Since).
    #[error("not modified")]
    NotModified {
        /// For the answer's header.
        etag: String,
        /// For the answer's header.
        modified_ms: u64,
    },
    /// A concurrent change kept winning.
    #[error("a conflicting operation is in progress; try again")]
    Conflict,
    /// The range starts past the end.
    #[error("the range is not satisfiable for {size} bytes")]
    RangeNotSatisfiable {
        /// Bytes of the object.
        size: u64,
    },
    /// The request asks for something that makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// The request as a whole makes no sense.
    #[error("{0}")]
    InvalidRequest(String),
    /// Something that S3 has and this server does not.
    #[error("{0}")]
    NotImplemented(String),
    /// A key of more than 1,024 bytes.
    #[error("the key is too long: at most 1,024 bytes of UTF-8")]
    KeyTooLong,
    /// More user metadata than fits.
    #[error("the user metadata has {bytes} bytes, and at most {most} are allowed")]
    MetadataTooLarge {
        /// Names and values.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// Content-MD5 is not 16 bytes in base64.
    #[error("the Content-MD5 is not valid")]
    InvalidDigest,
    /// The document of the request says something it may not.
    #[error("{0}")]
    MalformedXml(String),
    /// The bytes do not match Content-MD5 or a checksum header.
    #[error("the {algorithm} you specified did not match what we received")]
    BadDigest {
        /// MD5, CRC32, SHA256, …
        algorithm: &'static str,
    },
    /// Fewer bytes came than were announced.
    #[error("the request body ended before its announced length")]
    IncompleteBody,
    /// The body stopped coming.
    #[error("the request body stalled")]
    RequestTimeout,
    /// The body's SHA-256 is not the signed one.
    #[error("the body does not match x-amz-content-sha256")]
    ContentSha256Mismatch,
    /// A chunk's signature is wrong.
    #[error("a chunk signature does not match")]
    ChunkSignature,
    /// More than 5 GiB in one put or part.
    #[error("the body exceeds the maximum allowed size")]
    EntityTooLarge,
    /// Something that S3 has a code for when it is not there.
    #[error("{what}")]
    Absent {
        /// S3's code.
        code: &'static str,
        /// For people.
        what: &'static str,
    },
    /// A bucket is asked for in a region that this server is not.
    #[error("the location constraint {0:?} is not the region of this server")]
    OtherRegion(String),
    /// A form asks for more bytes than came.
    #[error("the body is smaller than the minimum allowed size")]
    ContentTooSmall,
    /// A part other than the last is under 5 MiB.
    #[error("part {number} is smaller than 5 MiB and not the last")]
    EntityTooSmall {
        /// The part.
        number: u32,
    },
    /// A listed part is not there or has another ETag.
    #[error("part {number} was not found or its ETag differs")]
    InvalidPart {
        /// The part.
        number: u32,
    },
    /// Parts are not in ascending order.
    #[error("the parts are not in ascending order")]
    InvalidPartOrder,
    /// Memory for bytes in flight is used up.
    #[error("too many bytes in flight; slow down")]
    SlowDown,
    /// Too few failure domains are healthy for any scheme with the asked parity.
    #[error("only {healthy} of the {needed} failure domains a write needs are healthy")]
    TooFewDomains {
        /// Healthy ones.
        healthy: usize,
        /// m + 1.
        needed: usize,
    },
    /// The disks are full.
    #[error("the disks are full: delete objects or add disks")]
    StorageFull,
    /// Too few shards of a stripe can be read right now.
    #[error(
        "blob {blob} of volume {volume} cannot be read: of stripe {stripe} only {readable} of {total} shards are readable, \
         too few for {scheme}", total = scheme.total_shards()
    )]
    Unreadable {
        /// The volume.
        volume: u64,
        /// The blob.
        blob: u64,
        /// The stripe.
        stripe: u32,
        /// Shards that were read right, or might be.
        readable: usize,
        /// How the stripe is coded.
        scheme: Scheme,
    },
    /// Shards could not be stored although volumes were tried.
    #[error("the data could not be stored: {0}")]
    WriteFailed(String),
    /// The gateway is stopping.
    #[error("shutting down")]
    ShuttingDown,
    /// Disks know a newer ledger than this gateway's, which is only read.
    #[error("this gateway only reads: {0}")]
    ReadOnly(String),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(LedgerError),
    /// Something that should never be; the message says what.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<LedgerError> for Error {
    fn from(error: LedgerError) -> Error {
        match error {
            LedgerError::Conflict { .. } => Error::Conflict,
            LedgerError::Frozen { why } => Error::ReadOnly(why),
            other => Error::Ledger(other),
        }
    }
}

/// What the gateway's functions answer.
pub type Result<T> = std::result::Result<T, Error>;
