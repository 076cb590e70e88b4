//! Reading a disk that nobody serves: what it is ([`probe`]), what it holds ([`inspect`]), whether all of it is sound ([`verify`]).
//!
//! ```text
//!   path ──▶ image (mapped or read, locked) ──▶ disk (superblocks, layout)
//!                                                 └─▶ survey (headers, marks) ──▶ walk, unit by unit ──▶ inspect, verify
//! ```
//! The decoders and the scan are the engine's own; what a record is worth is decided here a second time, in few lines,
//! so that a fault of recovery's does not hide itself from the tool that looks for it.
//!
//! Invariants: nothing is written. A disk that is in use is refused, and nobody can start to use it meanwhile. Memory
//! holds the marks (tombstones, drops, cuts) and the heads of one unit at a time, whatever the disk's size.

mod disk;
mod image;
mod inspect;
mod probe;
mod summary;
mod survey;
#[cfg(test)]
mod tests;
mod verify;
mod walk;

pub use disk::{Disk, OpenError, SuperblockCopy};
pub use inspect::{ExtentLine, ExtentUse, Inspection, RecordFilter, RecordLine, UnitLine, inspect};
pub use probe::{BlockFacts, Filesystem, Limit, Probe, Trial, probe};
pub use verify::{FINDINGS_KEPT_MAX, Finding, FindingKind, Severity, Verification, verify};
pub use walk::RecordState;

/// How far a tool is: steps done, steps in all. A step is one extent read once.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);
