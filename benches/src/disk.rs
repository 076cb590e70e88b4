//! Where a benchmark writes, and a disk with an engine on it.
//!
//! Invariant: a place in a directory leaves nothing behind, also when the benchmark fails.

use crate::Result;
use crate::watched::{Watch, Watched};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use storage_node::device::{AlignedBuf, Backend, create_file, open_file};
use storage_node::engine::{Engine, Format, format};
use storage_node::protocol::{ClusterId, DiskId, UnitAddress, UnitId};
use tempfile::TempDir;

/// The one disk's id.
const DISK: DiskId = DiskId(0xBE);
/// How a file is laid out: this much at once.
const LAYOUT_BYTES: usize = 4 << 20;

/// Where files are put: a directory of our own, or one block device for all.
#[derive(Debug)]
pub enum Place {
    /// Removed in the end, with what is in it.
    Directory(TempDir),
    /// Overwritten.
    Device(PathBuf),
}

impl Place {
    /// In a directory, or on a block device if its content may go.
    pub fn at(path: &Path, erase: bool) -> Result<Place> {
        if path.metadata()?.file_type().is_block_device() {
            return match erase {
                true => Ok(Place::Device(path.into())),
                false => Err(format!("{} will be overwritten: say --erase too", path.display()).into()),
            };
        }
        let directory = tempfile::Builder::new().prefix("cairn-bench-").tempdir_in(path)?;
        Ok(Place::Directory(directory))
    }

    /// Where the engine's disk, fio's file, … goes.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Place::Directory(directory) => directory.path().join(name),
            Place::Device(path) => path.clone(),
        }
    }

    /// Makes room: nothing is at `path` after it.
    pub fn remove(&self, path: &Path) -> Result<()> {
        match self {
            Place::Directory(_) if path.exists() => Ok(std::fs::remove_file(path)?),
            _ => Ok(()),
        }
    }

    /// Makes a file whose every block was written once, as those of a disk that is in use were: a first write into fresh space
    /// is another thing. On a device nothing is done.
    pub fn lay_out(&self, path: &Path, size: u64) -> Result<()> {
        if matches!(self, Place::Device(_)) {
            return Ok(());
        }
        create_file(path, size)?;
        let device = open_file(path, Backend::Auto)?;
        let mut buf = AlignedBuf::zeroed(LAYOUT_BYTES);
        buf.fill(0x55);
        let bytes = buf.share();
        for offset in (0..size).step_by(LAYOUT_BYTES) {
            let len = (size - offset).min(LAYOUT_BYTES as u64) as usize;
            device.write(offset, bytes.slice(0..len)).wait()?;
        }
        Ok(device.flush().wait()?)
    }
}

/// A disk and its engine.
pub struct Disk {
    /// The engine.
    pub engine: Arc<Engine>,
    /// What the device under it does.
    pub watch: Watch,
    incarnation: u64,
}

impl Disk {
    /// Formats what is at `path`, a file of `size` bytes or a whole block device. Whoever formats a disk again gives it a greater
    /// incarnation.
    pub fn format(path: &Path, size: u64, extent_bytes: u64, incarnation: u64) -> Result<Disk> {
        create_file(path, size)?;
        let device = open_file(path, Backend::Auto)?;
        let wanted = Format {
            cluster: ClusterId(0xBE),
            disk: DISK,
            incarnation,
            extent_size: extent_bytes,
        };
        format(&*device, &wanted)?;
        drop(device);
        Disk::open(path)
    }

    /// Opens what was formatted.
    pub fn open(path: &Path) -> Result<Disk> {
        let (device, watch) = Watched::new(open_file(path, Backend::Auto)?);
        let engine = Arc::new(Engine::open(Arc::new(device))?);
        watch.take();
        Ok(Disk {
            incarnation: engine.superblock().incarnation,
            engine,
            watch,
        })
    }

    /// The address of the unit that volume `volume` has here.
    pub fn unit(&self, volume: u64) -> UnitAddress {
        UnitAddress {
            disk: DISK,
            incarnation: self.incarnation,
            unit: UnitId { volume, index: 0 },
            epoch: 1,
            ledger: storage_node::protocol::Generation::NONE,
        }
    }
}
