//! The superblocks of an image, and the layout they give; also of a disk that is not as large as it was.

use super::image;
use crate::device::{AlignedBuf, BLOCK, Device, DeviceError};
use crate::format::extent::DiskIdentity;
use crate::format::layout::{Layout, superblock_offset};
use crate::format::superblock::{SUPERBLOCK_COPIES, Superblock};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// Why a disk cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened, or is in use.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No superblock copy is valid; with the reason of each.
    #[error("{path}: no valid superblock is on it ({reasons})")]
    NoSuperblock {
        /// Where.
        path: String,
        /// What each copy has instead.
        reasons: String,
    },
    /// The superblock makes no sense.
    #[error("{path}: {what}")]
    Layout {
        /// Where.
        path: String,
        /// What is wrong.
        what: String,
    },
}

/// One copy of the superblock, as found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuperblockCopy {
    /// Which copy.
    pub copy: usize,
    /// Where it is on the device.
    pub offset: u64,
    /// Its sequence, if it is valid.
    pub sequence: Option<u64>,
    /// Why it is not valid.
    pub problem: Option<String>,
    /// What it says.
    #[serde(skip)]
    pub superblock: Option<Superblock>,
}

/// A disk that is open to be looked at.
pub struct Disk {
    pub(super) device: Arc<dyn Device>,
    pub(super) copies: Vec<SuperblockCopy>,
    pub(super) superblock: Superblock,
    pub(super) layout: Layout,
    pub(super) identity: DiskIdentity,
}

impl Disk {
    /// Opens the disk at `path`. Blocks.
    pub fn open(path: &Path) -> Result<Disk, OpenError> {
        Self::of(image::open(path)?, path)
    }

    /// What its newest superblock says.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Reads the superblocks of a device. Where they are depends on the size of the disk, so a disk that was cut short
    /// or copied to a larger device has them where the first copy says.
    pub(super) fn of(device: Arc<dyn Device>, path: &Path) -> Result<Disk, OpenError> {
        let path = path.display().to_string();
        let size = device.info().size;
        let mut copies = read_copies(&*device, size);
        if let Some(first) = copies[0].superblock
            && first.device_size != size
        {
            copies = read_copies(&*device, first.device_size);
        }
        let newest = copies
            .iter()
            .filter_map(|c| c.superblock)
            .max_by_key(|s| s.sequence);
        let Some(superblock) = newest else {
            let mut reasons: Vec<_> = copies.iter().filter_map(|c| c.problem.clone()).collect();
            reasons.dedup();
            let reasons = reasons.join("; ");
            return Err(OpenError::NoSuperblock { path, reasons });
        };
        let layout =
            Layout::new(superblock.device_size, superblock.extent_size).map_err(|e| OpenError::Layout {
                path,
                what: e.to_string(),
            })?;
        let identity = DiskIdentity {
            disk: superblock.disk,
            incarnation: superblock.incarnation,
        };
        Ok(Disk {
            device,
            copies,
            superblock,
            layout,
            identity,
        })
    }

    /// Bytes at an offset of an extent. A read that fails is tried once more.
    pub(super) fn read(&self, extent: u32, at: u32, len: u32) -> Result<AlignedBuf, DeviceError> {
        let offset = self.layout.extent_offset(extent) + u64::from(at);
        let read = || self.device.read(offset, AlignedBuf::zeroed(len as usize)).wait();
        read().or_else(|_| read())
    }

    /// Where a byte of an extent is on the device.
    pub(super) fn offset(&self, extent: u32, at: u32) -> u64 {
        self.layout.extent_offset(extent) + u64::from(at)
    }
}

fn read_copies(device: &dyn Device, size: u64) -> Vec<SuperblockCopy> {
    let read = |copy| {
        let offset = superblock_offset(size, copy);
        let block = device.read(offset, AlignedBuf::zeroed(BLOCK)).wait();
        let found = block
            .map_err(|e| e.to_string())
            .and_then(|block| Superblock::decode(&block).map_err(|e| e.to_string()));
        SuperblockCopy {
            copy,
            offset,
            sequence: found.as_ref().ok().map(|s| s.sequence),
            problem: found.as_ref().err().cloned(),
            superblock: found.ok(),
        }
    };
    (0..SUPERBLOCK_COPIES).map(read).collect()
}
