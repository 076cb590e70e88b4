//! Aligned bytes to and from a disk: one trait, three backends (io_uring, pread/pwrite, simulated) and a latch.
//!
//! Invariants:
//! - Offsets, lengths and memory are multiples of [`BLOCK`]; the engine never asks for anything else.
//! - A buffer moves into the device and comes back through a [`Completion`]. Dropping the completion abandons the
//!   answer, never the memory: the device owns the buffer until the kernel is done with it.
//! - A completed write is not durable. It is after a later [`Device::flush`] completes. A flush covers the writes
//!   that completed before it was asked for; the caller does the ordering.
//! - The backend is a property of an open device, chosen by [`open_file`]; there is no global switch.

mod buffer;
mod completion;
mod fallback;
mod file;
mod latched;
mod pool;
pub mod simulated;
#[cfg(test)]
mod tests;
mod uring;

pub use buffer::{AlignedBuf, AlignedBytes};
pub use completion::{Completer, Completion, completion};
pub use file::{DiskFile, create_file};
pub use latched::Latched;
pub(crate) use uring::check as check_uring;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The alignment of offsets, lengths and memory, in bytes.
pub const BLOCK: usize = 4096;

/// The most parts of one write.
pub const PARTS_MAX: usize = 1024;
const _: () = assert!(PARTS_MAX <= libc::UIO_MAXIOV as usize);

/// What kind of operation failed: the engine decides on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceErrorKind {
    /// A read failed. Other places of the disk may still be readable.
    Read,
    /// A write failed: what is on the disk there is unknown.
    Write,
    /// A flush failed: nothing since the last good flush is known to be durable. Never retried.
    Flush,
    /// No space could be allocated; nothing was written.
    NoSpace,
    /// The disk went away: removed, truncated, or the device was stopped.
    Gone,
}

impl std::fmt::Display for DeviceErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DeviceErrorKind::Read => "a read failed: ",
            DeviceErrorKind::Write => "a write failed: ",
            DeviceErrorKind::Flush => "a flush failed: ",
            DeviceErrorKind::NoSpace => "no space could be reserved: ",
            // Its words are a sentence already.
            DeviceErrorKind::Gone => "",
        })
    }
}

/// A device failure, with the system's words. Operators read it as the reason of a fence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}{what}")]
pub struct DeviceError {
    /// What kind of operation failed.
    pub kind: DeviceErrorKind,
    /// The system's words.
    pub what: String,
}

impl DeviceError {
    /// An error of this kind.
    pub fn new(kind: DeviceErrorKind, what: impl Into<String>) -> Self {
        DeviceError {
            kind,
            what: what.into(),
        }
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its size in bytes.
    pub size: u64,
    /// The backend in use, and why not io_uring where it is not.
    pub backend: String,
}

/// Somewhere to keep blocks. Object safe; every method may be called from any thread.
pub trait Device: Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;
    /// Fills the whole buffer from `offset`.
    fn read(&self, offset: u64, buf: AlignedBuf) -> Completion<AlignedBuf>;
    /// Writes all the bytes at `offset`.
    fn write(&self, offset: u64, bytes: AlignedBytes) -> Completion<()> {
        self.write_parts(offset, vec![bytes])
    }
    /// Writes all the parts, one behind the other from `offset` on: at most [`PARTS_MAX`].
    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()>;
    /// Makes every completed write durable.
    fn flush(&self) -> Completion<()>;
    /// As [`Device::write_parts`], for who would wait for it: on the caller's thread where the backend can. Blocks.
    fn write_now(&self, offset: u64, parts: Vec<AlignedBytes>) -> Result<(), DeviceError> {
        self.write_parts(offset, parts).wait()
    }
    /// As [`Device::flush`], for who would wait for it: on the caller's thread where the backend can. Blocks.
    fn flush_now(&self) -> Result<(), DeviceError> {
        self.flush().wait()
    }
    /// Reserves space for a range, so that running out of it is known before anything is written. Blocks.
    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError>;
    /// Whether the disk is still there and as large as it was.
    fn check(&self) -> Result<(), DeviceError>;
}

/// Which backend to open a file or block device with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where the kernel allows it, else pread/pwrite.
    #[default]
    Auto,
    /// io_uring, or fail.
    Uring,
    /// pread/pwrite.
    Pread,
}

/// Opens a file or block device, locked against any other opener.
pub fn open_file(path: &Path, backend: Backend) -> Result<Arc<dyn Device>, DeviceError> {
    start(Arc::new(DiskFile::open(path)?), backend)
}

/// Starts a backend on an open file: the one place that chooses.
pub(crate) fn start(file: Arc<DiskFile>, backend: Backend) -> Result<Arc<dyn Device>, DeviceError> {
    let buffered = if file.is_direct() { "" } else { ", page cache" };
    if backend == Backend::Pread {
        return Ok(Arc::new(fallback::Fallback::start(
            file,
            format!("pread (forced{buffered})"),
        )?));
    }
    match uring::Uring::start(file.clone(), format!("io_uring{buffered}")) {
        Ok(device) => Ok(Arc::new(device)),
        Err(why) if backend == Backend::Uring => Err(DeviceError::new(
            DeviceErrorKind::Gone,
            format!("io_uring: {why}"),
        )),
        Err(why) => Ok(Arc::new(fallback::Fallback::start(
            file,
            format!("pread (io_uring: {why}{buffered})"),
        )?)),
    }
}

/// How long dropping a device waits for its threads. One that hangs keeps them, and they keep what the kernel uses.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Waits for a device's threads, but not for ever.
fn join_patiently(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    let started = Instant::now();
    for thread in threads {
        while !thread.is_finished() && started.elapsed() < STOP_PATIENCE {
            std::thread::sleep(Duration::from_micros(200));
        }
        if !thread.is_finished() {
            tracing::error!("a device hangs: its thread is left to itself");
        } else if thread.join().is_err() {
            tracing::error!("a device's thread panicked");
        }
    }
}

/// The block that holds `offset`.
pub fn align_down(offset: u64) -> u64 {
    offset & !(BLOCK as u64 - 1)
}

/// The first block boundary at or after `offset`.
pub fn align_up(offset: u64) -> u64 {
    align_down(offset + BLOCK as u64 - 1)
}
