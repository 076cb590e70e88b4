//! Why the arithmetic refused. Every variant is a caller's mistake or too great a loss; none is transient.

use crate::scheme::Scheme;

/// What a fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a scheme, a geometry, an encode or a reconstruct was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text or the numbers are no scheme.
    #[error("{scheme:?} is not a scheme: {why}")]
    BadScheme {
        /// What was given.
        scheme: String,
        /// What is wrong with it.
        why: String,
    },
    /// A kernel that does not exist, or that this processor cannot run.
    #[error("no kernel {kernel:?} here; there are {supported}")]
    BadKernel {
        /// The name given.
        kernel: String,
        /// Those that run here.
        supported: String,
    },
    /// A stripe geometry with no data shards, or more than GF(2^8) allows.
    #[error("a stripe has 1 to 255 data shards, not {0}")]
    BadDataShards(usize),
    /// A blob longer than [`BLOB_BYTES_MAX`](crate::stripe::BLOB_BYTES_MAX).
    #[error("a blob has at most {max} bytes, not {len}", max = crate::stripe::BLOB_BYTES_MAX)]
    BlobTooLong {
        /// The length asked for.
        len: u64,
    },
    /// The number of slices is not what the code has.
    #[error("expected {expected} {what} shards, got {got}")]
    WrongShardCount {
        /// Which slices: data, parity, source or output.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there were.
        got: usize,
    },
    /// The slices of one call differ in length.
    #[error("shard {index} has {got} bytes where the others have {expected}")]
    WrongShardLength {
        /// The shard, counted as the code does: data, then parity.
        index: usize,
        /// The length of the first one.
        expected: usize,
        /// The length of this one.
        got: usize,
    },
    /// The code has no such shard.
    #[error("there is no shard {index}: the stripe has {total}")]
    NoSuchShard {
        /// The index given.
        index: usize,
        /// Shards in the stripe.
        total: usize,
    },
    /// A shard was named twice.
    #[error("shard {index} is named twice")]
    DuplicateShard {
        /// The index.
        index: usize,
    },
    /// Encoding and updating parity take data shards only.
    #[error("shard {index} is no data shard: there are {data_shards}")]
    NotADataShard {
        /// The index given.
        index: usize,
        /// Data shards in the stripe.
        data_shards: usize,
    },
    /// More is lost than the code can compute from what is left.
    #[error("{scheme}: shards {wanted:?} cannot be computed from {available:?}")]
    Undecodable {
        /// The scheme.
        scheme: Scheme,
        /// The shards that were wanted.
        wanted: Vec<usize>,
        /// The shards that were there.
        available: Vec<usize>,
    },
}
