//! What a ledger engine offers: `get`, `scan`, `commit`. Everything else is built on these three.
//!
//! Keys and values are bytes; keys are ordered as bytes. Every value has a version, a number that grows with every
//! commit that writes the key and is never reused for it, even after a delete. A commit applies all its mutations,
//! durably and atomically, if every precondition still holds, and otherwise changes nothing and says which failed.
//!
//! Invariant: an engine is never asked for anything else. This maps one to one onto an embedded B-tree, PostgreSQL
//! or any ordered transactional key-value engine; one conformance suite runs against each.

use async_trait::async_trait;
use bytes::Bytes;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most keys of one `get`, and the most preconditions or mutations of one `commit`. An object of 5 TiB in 10,000
/// parts has up to 100,000 blobs, each of which a delete moves from one table to another.
pub const BATCH_MAX: usize = 250_000;
/// The most rows one `scan` answers, whatever its limit says.
pub const SCAN_LIMIT_MAX: usize = 10_000;

/// A value and the version it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Grows with every write of this key; usable as a precondition.
    pub version: u64,
    /// The bytes.
    pub value: Bytes,
}

/// A row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: Bytes,
    /// Its value and version.
    pub versioned: Versioned,
}

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the smallest key up.
    Forward,
    /// From the greatest key down.
    Backward,
}

/// The keys `start ≤ key < end`; no `end` means to the last key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key that may be in it.
    pub start: Bytes,
    /// The first key after it.
    pub end: Option<Bytes>,
}

/// What must hold for a commit to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key exists and has this version.
    Version {
        /// The key.
        key: Bytes,
        /// The version it must have.
        version: u64,
    },
    /// The key does not exist.
    Absent {
        /// The key.
        key: Bytes,
    },
}

/// A change to one key. A key appears at most once among the mutations of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Writes the value, whatever was there.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Removes the key; no error if there is none.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// All or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// What must hold.
    pub preconditions: Vec<Precondition>,
    /// What changes then.
    pub mutations: Vec<Mutation>,
}

/// Why a ledger call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A precondition did not hold; nothing changed. `index` is its position in the commit (the first that failed).
    #[error("ledger conflict on precondition {index}")]
    Conflict {
        /// Position in `Commit::preconditions`.
        index: usize,
    },
    /// The request breaks a bound of this module; nothing changed.
    #[error("ledger request out of bounds: {what}")]
    OutOfBounds {
        /// Which.
        what: String,
    },
    /// The engine failed. Whether a commit took effect is unknown; after this the engine refuses everything until
    /// it is opened again.
    #[error("ledger unavailable: {what}")]
    Unavailable {
        /// What happened.
        what: String,
    },
    /// A stored row cannot be understood.
    #[error("ledger row damaged: {what}")]
    Damaged {
        /// Which, and how.
        what: String,
    },
}

/// A transactional, ordered, durable store of rows.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The values of the keys, in their order, all from one moment.
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError>;

    /// At most `limit` rows of the range, in key order (or the reverse), all from one moment.
    async fn scan(
        &self,
        range: KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Row>, LedgerError>;

    /// Applies the commit, durably, and answers its version: the version of every key it wrote.
    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError>;
}
