//! Which superblock counts, and writing a new one so that a crash leaves the old one or the new one.

use super::Trace;
use crate::device::{AlignedBuf, BLOCK, Device, DeviceError};
use crate::format::FormatError;
use crate::format::extent::DiskIdentity;
use crate::format::layout::superblock_offset;
use crate::format::superblock::{SUPERBLOCK_COPIES, Superblock};

/// The copies as read: each a superblock, or why it is none.
pub type Copies = [Result<Superblock, FormatError>; SUPERBLOCK_COPIES];

/// Why no copy counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// No copy is valid.
    #[error("no valid superblock is on it: {0}")]
    NoneValid(FormatError),
    /// The disk is not as large as when it was formatted.
    #[error("the disk was {expected} bytes when it was formatted and is {found} bytes now")]
    Resized {
        /// Then.
        expected: u64,
        /// Now.
        found: u64,
    },
}

/// The copy with the greatest sequence. Pure.
pub fn choose(copies: &Copies, device_size: u64) -> Result<Superblock, ChoiceError> {
    let Some(newest) = copies.iter().flatten().max_by_key(|s| s.sequence) else {
        return Err(ChoiceError::NoneValid(worst(copies)));
    };
    if newest.device_size != device_size {
        return Err(ChoiceError::Resized {
            expected: newest.device_size,
            found: device_size,
        });
    }
    Ok(*newest)
}

/// What copies say about a device that somebody wants to format. Pure.
pub fn trace(copies: &Copies) -> Trace {
    let of_cairn = |error: &FormatError| !matches!(error, FormatError::Magic(_)) && *error != UNREADABLE;
    match copies.iter().flatten().max_by_key(|s| s.sequence) {
        Some(found) => Trace::Disk(*found),
        None if copies.iter().filter_map(|c| c.as_ref().err()).any(of_cairn) => Trace::Damaged,
        None => Trace::None,
    }
}

/// The most telling reason: an unknown version says more than random bytes.
fn worst(copies: &Copies) -> FormatError {
    let reasons = || copies.iter().filter_map(|c| c.as_ref().err());
    let telling = reasons().find(|e| !matches!(e, FormatError::Magic(_)));
    telling
        .or_else(|| reasons().next())
        .cloned()
        .unwrap_or(FormatError::Short)
}

/// Reads all copies. A copy that cannot be read is one that is not valid.
pub fn read(device: &dyn Device) -> Copies {
    std::array::from_fn(|copy| read_copy(device, copy))
}

fn read_copy(device: &dyn Device, copy: usize) -> Result<Superblock, FormatError> {
    let offset = superblock_offset(device.info().size, copy);
    match device.read(offset, AlignedBuf::zeroed(BLOCK)).wait() {
        Ok(block) => Superblock::decode(&block),
        Err(_) => Err(UNREADABLE),
    }
}

/// Whether the first copy is of this disk and incarnation.
pub fn first_is_ours(device: &dyn Device, ours: &Superblock) -> bool {
    read_copy(device, 0).is_ok_and(|found| (found.disk, found.incarnation) == (ours.disk, ours.incarnation))
}

/// Whether somebody overwrote the disk: of the copies that can be read, and there is one, none is of this disk and
/// incarnation. Pure.
pub fn is_overwritten(copies: &Copies, ours: &DiskIdentity) -> bool {
    let is_ours = |copy: &Superblock| (copy.disk, copy.incarnation) == (ours.disk, ours.incarnation);
    let is_read = |copy: &Result<Superblock, FormatError>| *copy != Err(UNREADABLE);
    !copies.iter().flatten().any(is_ours) && copies.iter().any(is_read)
}

/// Whether no copy failed to read. Pure.
pub fn all_read(copies: &Copies) -> bool {
    copies.iter().all(|copy| *copy != Err(UNREADABLE))
}

/// What operators read about such a disk.
pub const OVERWRITTEN: &str = "the disk was overwritten: no valid superblock is left";

const UNREADABLE: FormatError = FormatError::Content("unreadable");

/// Writes all copies, half of them durably before the other half.
pub fn write(device: &dyn Device, superblock: &Superblock) -> Result<(), DeviceError> {
    let mut block = AlignedBuf::zeroed(BLOCK);
    let bytes = superblock.encode();
    block[..bytes.len()].copy_from_slice(&bytes);
    let block = block.share();
    for half in [[0, 2], [1, 3]] {
        let writes =
            half.map(|copy| device.write(superblock_offset(superblock.device_size, copy), block.clone()));
        for write in writes {
            write.wait()?;
        }
        device.flush().wait()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Admission, ClusterId, DiskId, LedgerMarks};

    /// Every way in which each copy is old, new or bad.
    #[test]
    fn the_newest_valid_copy_counts() {
        let of = |sequence| Superblock {
            version: 1,
            disk: DiskId(1),
            cluster: ClusterId(2),
            incarnation: 1,
            sequence,
            device_size: 100,
            extent_size: 10,
            generation_limit: sequence,
            flushed: 0,
            verified: 0,
            headers: 0,
            admission: Admission::default(),
            ledger: LedgerMarks::default(),
        };
        for case in 0..81u32 {
            let kinds: [u32; SUPERBLOCK_COPIES] =
                std::array::from_fn(|copy| case / 3u32.pow(copy as u32) % 3);
            let copies = kinds.map(|kind| match kind {
                0 => Err(FormatError::Magic("superblock")),
                sequence => Ok(of(u64::from(sequence))),
            });
            let expected = u64::from(kinds.into_iter().max().unwrap());
            match choose(&copies, 100) {
                Ok(chosen) => assert_eq!((chosen.sequence, expected > 0), (expected, true)),
                Err(error) => assert_eq!((expected, matches!(error, ChoiceError::NoneValid(_))), (0, true)),
            }
            let resized = choose(&copies, 99);
            assert!(resized.is_err());
        }
    }
}
