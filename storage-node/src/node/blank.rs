//! Whether a place for a disk is blank, and what is there that formatting would destroy.
//!
//! Invariant: what cannot be read is not blank. A superblock may be on it.

use crate::device::{AlignedBuf, BLOCK, Device};
use crate::engine::{Trace, trace_superblock};
use crate::format::extent::EXTENT_MAGIC;

/// Bytes at the beginning that must be zeros, or be named before they are overwritten.
const LOOKED_AT: u64 = 128 * 1024;

/// What filesystems and others write at the beginning of a device: where, what, and its name.
const SIGNATURES: [(usize, &[u8], &str); 10] = [
    (1_080, &[0x53, 0xEF], "an ext4 filesystem"),
    (0, b"XFSB", "an XFS filesystem"),
    (0x1_0040, b"_BHRfS_M", "a btrfs filesystem"),
    (0, b"LUKS\xba\xbe", "an encrypted volume"),
    (512, b"LABELONE", "an LVM volume"),
    (4_096, &[0xFC, 0x4E, 0x2B, 0xA9], "a member of a RAID"),
    (4_086, b"SWAPSPACE2", "swap space"),
    (512, b"EFI PART", "a partition table"),
    (3, b"NTFS", "an NTFS filesystem"),
    (510, &[0x55, 0xAA], "a partition table"),
];

/// Whether there is no trace of a Cairn disk, and every place where one would be was read. Blocks.
pub fn is_blank(device: &dyn Device) -> Result<bool, String> {
    Ok(trace_superblock(device)? == Trace::None)
}

/// What is at the beginning of a blank disk, if it is not all zeros. Blocks.
pub fn holds(device: &dyn Device) -> Result<Option<String>, String> {
    let len = LOOKED_AT.min(device.info().size) as usize / BLOCK * BLOCK;
    let beginning = device
        .read(0, AlignedBuf::zeroed(len))
        .wait()
        .map_err(|e| e.to_string())?;
    Ok(named(&beginning).map(str::to_owned))
}

fn named(beginning: &[u8]) -> Option<&'static str> {
    if is_begun(beginning) {
        return None;
    }
    let is_at = |at: usize, magic: &[u8]| beginning.get(at..at + magic.len()) == Some(magic);
    let known = SIGNATURES.iter().find(|(at, magic, _)| is_at(*at, magic));
    match known {
        Some((_, _, name)) => Some(name),
        None => beginning.iter().any(|byte| *byte != 0).then_some("data"),
    }
}

/// Whether there is nothing but the header of the first extent: formatting was cut short before the disk had an id.
fn is_begun(beginning: &[u8]) -> bool {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    match (
        beginning.get(..BLOCK),
        beginning.get(BLOCK..2 * BLOCK),
        beginning.get(2 * BLOCK..),
    ) {
        (Some(superblock), Some(header), Some(rest)) => {
            header.starts_with(EXTENT_MAGIC) && is_zero(superblock) && is_zero(rest)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_named() {
        let mut beginning = vec![0; LOOKED_AT as usize];
        assert_eq!(named(&beginning), None);
        beginning[100_000] = 1;
        assert_eq!(named(&beginning), Some("data"));
        for (at, magic, name) in SIGNATURES {
            let mut beginning = vec![0; LOOKED_AT as usize];
            beginning[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(named(&beginning), Some(name));
        }
        assert_eq!(named(&[0; 100]), None);
        let mut begun = vec![0; LOOKED_AT as usize];
        begun[BLOCK..BLOCK + 4].copy_from_slice(EXTENT_MAGIC);
        assert_eq!(named(&begun), None);
        begun[100_000] = 1;
        assert_eq!(named(&begun), Some("data"));
    }
}
