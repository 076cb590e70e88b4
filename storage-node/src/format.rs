//! The bytes on a disk and the structs they mean. No I/O and no state, so the engine, tests and offline tools share it.
//!
//! A disk is cut into four zones; each starts with a superblock copy, then whole extents ([`layout`]):
//! ```text
//! | superblock 0 | extent 0 | … | extent z-1 | superblock 1 | extent z | … | superblock 2 | … | superblock 3 | …
//! ```
//! An extent starts and ends with a copy of its header; between them is a log of records ([`record`]):
//! ```text
//! | header A 4 KiB | record | record | … | batch padding to 4 KiB | record | … | header B 4 KiB |
//! ```
//! When an extent of a unit is left for a new one it is sealed, and what its records say is summed up at its tail
//! ([`summary`]); nothing is appended behind a summary.
//!
//! Invariants: every decoder is bounded and total: any bytes give a struct or a [`FormatError`], never a panic, and no
//! number that it returns is so large that counting on from it overflows ([`NUMBER_LIMIT`]). Every
//! checksum of a record starts from a seed made of disk, incarnation, extent and generation, so bytes that were
//! written elsewhere or for an earlier use of the extent never verify.

mod bytes;
pub mod extent;
pub mod layout;
pub mod record;
pub mod summary;
pub mod superblock;
#[cfg(test)]
mod tests;

/// Sequences, generations and batches are smaller: so much may be added to what was read without a check.
pub const NUMBER_LIMIT: u64 = 1 << 62;

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Too few bytes.
    #[error("cut short")]
    Short,
    /// Another magic number.
    #[error("no {0} here")]
    Magic(&'static str),
    /// A version this program does not read.
    #[error("format version {0} is not one this program reads")]
    Version(u32),
    /// The checksum does not match.
    #[error("{0}: checksum mismatch")]
    Checksum(&'static str),
    /// The checksum matches and the content makes no sense.
    #[error("{0}")]
    Content(&'static str),
}
