//! What a ledger engine offers: `get`, `scan`, `commit`, and how far it is. Everything else is built on these.
//!
//! Keys and values are bytes; keys are ordered as bytes. Every value has a version, a number that grows with every
//! commit that writes the key and is never reused for it, even after a delete. A commit applies all its mutations,
//! durably and atomically, if every precondition still holds, and otherwise changes nothing and says which failed.
//!
//! Invariant: requests ask an engine for nothing else. This maps one to one onto an embedded B-tree, PostgreSQL
//! or any ordered transactional key-value engine; one conformance suite runs against each.

use super::changes::Changes;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

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

/// A part of a range that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first key that may be in it.
    pub start: Bytes,
    /// The first key after it; none if it goes on to the last key.
    pub end: Option<Bytes>,
    /// Whether it is one row, whose key is `start`.
    pub is_one_row: bool,
}

/// What of a range can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// The rows, in key order.
    pub rows: Vec<Row>,
    /// What is damaged among them and before the last one, or, if there are fewer rows than were asked for, in the whole range.
    pub gaps: Vec<Gap>,
}

/// What was found of some blocks of an engine's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlocksChecked {
    /// How many were looked at.
    pub blocks: u64,
    /// How many of them are not what was written.
    pub wrong: u64,
    /// Where it goes on; none at the end.
    pub next: Option<u64>,
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
    /// it has taken itself up again.
    #[error("ledger unavailable: {what}")]
    Unavailable {
        /// What happened.
        what: String,
    },
    /// There is no room where the engine keeps its rows; nothing changed.
    #[error("the filesystem of the ledger is full: free space on it, or delete objects")]
    Full,
    /// Disks know a newer ledger than this one, which is only read.
    #[error("the ledger is only read: {why}")]
    Frozen {
        /// How that is known, and what to do.
        why: String,
    },
    /// What was asked for is damaged, or the way to it: it is neither absent nor known. Everything else goes on.
    #[error("ledger row damaged: {what}")]
    Damaged {
        /// Which, and how.
        what: String,
    },
}

/// How an engine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineState {
    /// Why it refuses everything, and for how long it has.
    pub unavailable: Option<(String, Duration)>,
    /// The room it has; none if it keeps its rows where that is not its business.
    pub room: Option<Room>,
}

/// The room of an engine on its filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that anybody may still take of the filesystem.
    pub free_bytes: u64,
    /// Bytes that are kept for the ledger.
    pub reserve_bytes: u64,
    /// Bytes that should be.
    pub reserve_wanted_bytes: u64,
    /// Whether there is room for uploads; deletes go on in any case.
    pub admits_uploads: bool,
}

/// What is damaged of an engine, to be mended by rows that somebody else has.
#[async_trait]
pub trait Mending: Send + Sync {
    /// The commit whose rows are wanted.
    fn position(&self) -> u64;

    /// The parts that cannot be read, in the order of their keys.
    fn parts(&self) -> &[Gap];

    /// Has these parts be what they were at that commit; what was committed since stays. Nothing is changed if it fails.
    async fn mend(self: Box<Self>, rows: Vec<Row>) -> Result<(), LedgerError>;
}

/// A transactional, ordered, durable store of rows.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The values of the keys, in their order, all from one moment.
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Versioned>>, LedgerError>;

    /// At most `limit` rows of the range, in key order (or the reverse), all from one moment; an error if one of them cannot be read.
    async fn scan(
        &self,
        range: KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Row>, LedgerError>;

    /// As `scan` from the smallest key up, and goes on beside what is damaged. For those who show rows; who decides by them scans,
    /// and stops.
    async fn scan_beside(&self, range: KeyRange, limit: usize) -> Result<Scanned, LedgerError> {
        let rows = self.scan(range, limit, Direction::Forward).await?;
        let gaps = Vec::new();
        Ok(Scanned { rows, gaps })
    }

    /// Looks at so many blocks of its file, from this one on.
    async fn check_blocks(&self, _from: u64, _most: u64) -> Result<BlocksChecked, LedgerError> {
        Ok(BlocksChecked::default())
    }

    /// Looks for all that cannot be read, to have it mended; none if there is nothing, or the engine does not look.
    async fn find_damage(&self) -> Result<Option<Box<dyn Mending>>, LedgerError> {
        Ok(None)
    }

    /// What is known to be damaged; none of an engine that does not look.
    fn damage(&self) -> Option<std::sync::Arc<super::damage::Damage>> {
        None
    }

    /// Applies the commit, durably, and answers its version: the version of every key it wrote.
    async fn commit(&self, commit: Commit) -> Result<u64, LedgerError>;

    /// How it is: whether it can be asked, and how much room it has. Costs nothing.
    fn state(&self) -> EngineState {
        EngineState::default()
    }

    /// How far it is: the version of the last commit, 0 before the first. Of two copies of one ledger, the one that is further has
    /// all commits of the other, unless both went on.
    fn position(&self) -> u64;

    /// Where to follow what is committed, if the engine says so.
    fn changes(&self) -> Option<Arc<Changes>> {
        None
    }
}
