//! Where things are on a disk, from its size and extent size alone.
//!
//! Invariants: superblock places depend on the device's size only, so they are found without a superblock; no two
//! regions overlap, and all start on a 4 KiB boundary.

use super::FormatError;
use super::superblock::SUPERBLOCK_COPIES;
use crate::device::{BLOCK, align_down};

/// The smallest extent (tests); a disk formatted for use has at least [`EXTENT_SIZE_USUAL_MIN`].
pub const EXTENT_SIZE_MIN: u64 = 32 * 1024;
/// The smallest extent that is chosen by itself, for disks of less than 256 MiB: it must hold shards of 1 MiB.
pub const EXTENT_SIZE_USUAL_MIN: u64 = 4 * 1024 * 1024;
/// The largest extent.
pub const EXTENT_SIZE_MAX: u64 = 256 * 1024 * 1024;
/// A disk has at least this many extents, so that the reserve leaves something to use.
pub const EXTENTS_MIN: u32 = 8;

const ZONES: u64 = SUPERBLOCK_COPIES as u64;

/// The extent size for a disk of this size: a power of two, so that a disk has 128 to 256 extents where it can. A small
/// disk has fewer (64, then 32), because 4 MiB hold only three shards of 1 MiB, 8 MiB seven and 16 MiB fifteen.
pub fn extent_size_for(device_size: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    let wanted = (device_size / 256).max(1).next_power_of_two();
    let for_large_shards = match device_size / MIB {
        1024.. => 16 * MIB,
        256.. => 8 * MIB,
        _ => EXTENT_SIZE_USUAL_MIN,
    };
    wanted.max(for_large_shards).min(EXTENT_SIZE_MAX)
}

/// Where superblock copy `copy` is on a device of this size.
pub fn superblock_offset(device_size: u64, copy: usize) -> u64 {
    align_down(device_size / ZONES) * copy as u64
}

/// Where extents are on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    device_size: u64,
    extent_size: u64,
    zone_extents: u64,
}

impl Layout {
    /// The layout of a disk, if these sizes make one.
    pub fn new(device_size: u64, extent_size: u64) -> Result<Self, FormatError> {
        if !extent_size.is_power_of_two() || !(EXTENT_SIZE_MIN..=EXTENT_SIZE_MAX).contains(&extent_size) {
            return Err(FormatError::Content("extent size out of bounds"));
        }
        let zone = align_down(device_size / ZONES);
        let zone_extents = zone.saturating_sub(BLOCK as u64) / extent_size;
        let total = zone_extents * ZONES;
        if total < u64::from(EXTENTS_MIN) || total > u64::from(u32::MAX) {
            return Err(FormatError::Content(
                "the device is too small for its extents (8 at least)",
            ));
        }
        Ok(Layout {
            device_size,
            extent_size,
            zone_extents,
        })
    }

    /// How many extents there are.
    pub fn extents(&self) -> u32 {
        (self.zone_extents * ZONES) as u32
    }

    /// Bytes of one extent, headers included.
    pub fn extent_size(&self) -> u64 {
        self.extent_size
    }

    /// Where an extent starts on the device.
    pub fn extent_offset(&self, extent: u32) -> u64 {
        let (zone, place) = (
            u64::from(extent) / self.zone_extents,
            u64::from(extent) % self.zone_extents,
        );
        superblock_offset(self.device_size, zone as usize) + BLOCK as u64 + place * self.extent_size
    }

    /// Where records start, from the extent's start.
    pub fn data_start(&self) -> u32 {
        BLOCK as u32
    }

    /// Where records end, from the extent's start: header B is there.
    pub fn data_end(&self) -> u32 {
        (self.extent_size - BLOCK as u64) as u32
    }

    /// Bytes that records can use in one extent.
    pub fn extent_capacity(&self) -> u32 {
        self.data_end() - self.data_start()
    }
}
