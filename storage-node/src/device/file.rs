//! A file or a block device, opened for direct I/O where the filesystem allows it.
//!
//! Invariants: an open disk is locked (flock), so two processes never write one disk; its size never changes while
//! it is open, and a file that was removed, or a file or device that was truncated under us, is noticed by [`DiskFile::check`].
#![allow(unsafe_code)]

use super::{AlignedBytes, DeviceError, DeviceErrorKind, align_down};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// How often a lock that is taken is asked for.
const LOCK_ATTEMPTS: u32 = 30;
/// How often by who only reads: a person waits for the answer.
const SHARED_LOCK_ATTEMPTS: u32 = 10;
/// How long lies between.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// An open disk file or block device.
pub struct DiskFile {
    file: File,
    size: u64,
    block_device: bool,
    direct: bool,
}

fn gone(path: &Path, error: io::Error) -> DeviceError {
    DeviceError::new(DeviceErrorKind::Gone, format!("{}: {error}", path.display()))
}

/// Locks a disk for this process. The kernel ends the requests of a killed process's io_uring, and with them its hold
/// on the file, a moment after the process is gone: so a lock that is taken is asked for a few times.
fn lock(attempts: u32, try_lock: impl Fn() -> Result<(), TryLockError>) -> io::Result<()> {
    for _ in 0..attempts {
        match try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_RETRY),
        }
    }
    Err(io::Error::other("the disk is in use by another process"))
}

/// Opens a file past the page cache, or through it where the filesystem cannot; and which of the two.
fn open_direct(path: &Path, options: &mut OpenOptions) -> Result<(File, bool), DeviceError> {
    let mut open = |flags| options.custom_flags(flags).open(path);
    match open(libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok((open(0).map_err(|e| gone(path, e))?, false))
        }
        Err(error) => Err(gone(path, error)),
    }
}

impl DiskFile {
    /// Opens what is at `path`, for this process alone.
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        let (file, direct) = open_direct(path, OpenOptions::new().read(true).write(true))?;
        lock(LOCK_ATTEMPTS, || file.try_lock()).map_err(|e| gone(path, e))?;
        Self::measure(path, file, direct)
    }

    /// Opens what is at `path` to read only, beside other readers and never beside a writer.
    pub fn open_to_read(path: &Path) -> Result<Self, DeviceError> {
        let (file, direct) = open_direct(path, OpenOptions::new().read(true))?;
        lock(SHARED_LOCK_ATTEMPTS, || file.try_lock_shared()).map_err(|e| gone(path, e))?;
        Self::measure(path, file, direct)
    }

    fn measure(path: &Path, mut file: File, direct: bool) -> Result<Self, DeviceError> {
        let metadata = file.metadata().map_err(|e| gone(path, e))?;
        let block_device = metadata.file_type().is_block_device();
        let size = file.seek(SeekFrom::End(0)).map_err(|e| gone(path, e))?;
        Ok(DiskFile {
            file,
            size: align_down(size),
            block_device,
            direct,
        })
    }

    /// Something that is no disk: tests read from what never answers.
    #[cfg(test)]
    pub fn of(file: File, size: u64) -> Self {
        DiskFile {
            file,
            size,
            block_device: false,
            direct: false,
        }
    }

    /// Its size in bytes, in whole blocks.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether reads and writes bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all the parts, one behind the other from `offset` on.
    pub fn write_all(&self, mut offset: u64, parts: &[AlignedBytes]) -> Result<(), DeviceError> {
        let failed = |error: io::Error| DeviceError::new(DeviceErrorKind::Write, error.to_string());
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match rustix::io::pwritev(&self.file, left, offset) {
                Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub fn flush(&self) -> Result<(), DeviceError> {
        let failed = |error: io::Error| DeviceError::new(DeviceErrorKind::Flush, error.to_string());
        self.file.sync_data().map_err(failed)
    }

    /// Reserves space for a range; a no-op on block devices and where the filesystem cannot.
    pub fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if self.block_device {
            return Ok(());
        }
        let out_of_range = |_| DeviceError::new(DeviceErrorKind::Write, "offset past what a file can hold");
        let offset = libc::off_t::try_from(offset).map_err(out_of_range)?;
        let len = libc::off_t::try_from(len).map_err(out_of_range)?;
        loop {
            // SAFETY: plain system call on a descriptor that we own; no memory is passed.
            let rc =
                unsafe { libc::fallocate(self.file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, len) };
            if rc == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(()),
                Some(libc::ENOSPC | libc::EDQUOT) => {
                    return Err(DeviceError::new(DeviceErrorKind::NoSpace, error.to_string()));
                }
                _ => {
                    return Err(DeviceError::new(
                        DeviceErrorKind::Write,
                        format!("fallocate: {error}"),
                    ));
                }
            }
        }
    }

    /// Whether the file still has a name, and it or the block device its size. A device that was pulled out has none.
    pub fn check(&self) -> Result<(), DeviceError> {
        let lost = |error: io::Error| DeviceError::new(DeviceErrorKind::Gone, error.to_string());
        let metadata = self.file.metadata().map_err(lost)?;
        if !self.block_device && metadata.nlink() == 0 {
            return Err(DeviceError::new(DeviceErrorKind::Gone, "the file was removed"));
        }
        let (len, what) = match self.block_device {
            // Nobody reads or writes where the cursor is.
            true => ((&self.file).seek(SeekFrom::End(0)).map_err(lost)?, "block device"),
            false => (metadata.len(), "file"),
        };
        if len < self.size {
            let what = format!("the {what} was truncated from {} to {len} bytes", self.size);
            return Err(DeviceError::new(DeviceErrorKind::Gone, what));
        }
        Ok(())
    }
}

/// Makes sure that a disk of `size` bytes is at `path`: creates a sparse file, durably, or checks a block device.
pub fn create_file(path: &Path, size: u64) -> io::Result<()> {
    let is_block_device = path.metadata().is_ok_and(|m| m.file_type().is_block_device());
    if is_block_device {
        return Ok(());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    file.set_len(size)?;
    file.sync_all()?;
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
