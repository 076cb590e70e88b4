//! The ledger's archive: its log and its snapshots, kept in the cluster that the ledger maps, as system blobs.
//!
//! ```text
//! engine ──► tap ──► shipper ──► entries ──► system blobs on m + 1 disks
//!                       │  scan of all rows, page by page        │ found from the disks alone
//!                       └──► pieces, end ─────────┘              ▼
//!                                              finding ──► chain ──► replay ──► a new ledger, or one that caught up
//! ```
//! An [`entry`] is a header and a body: commits as the ledger's log has them, or rows of a snapshot. Entries are numbered, and each names
//! the one before by its digest. [`chain`] decides, without any I/O, which of the entries that were found make a ledger. A backup
//! ([`backup`]) is the same entries in a file.
//!
//! A snapshot is fuzzy: its rows are scanned while commits go on. The state at any later position is its rows with the log from before the
//! scan began replayed over them, because the last change of each key in that time is in that log, and a key that was not changed was
//! scanned as it is.
//!
//! Invariants:
//! - An entry is written once the one before it is durable on all its disks, and each version of the ledger is in one of them at least,
//!   or a gap is followed by a snapshot.
//! - An entry is deleted only when two complete snapshots of the same chain are newer, and nothing holds deletes.
//! - Nothing of the archive is a row of the ledger: it can be found when there is no ledger.

pub mod backup;
pub mod chain;
pub mod entry;
pub mod finding;
pub mod mending;
pub mod recall;
pub mod replay;
pub mod restored;
mod retention;
mod scan;
pub mod shipper;
pub mod state;
mod sync;
mod system_blobs;

pub use state::{Archive, ArchiveStatus, Rotten};
pub use sync::SyncStore;
