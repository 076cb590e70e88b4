//! A disk as bytes to read: a file is mapped, a block device is read directly; nothing can be written.
//!
//! Invariants: the disk is locked against whoever writes it for as long as the image is there. A read is answered or
//! fails; it does not end the process: pages are faulted in by a call that reports errors before they are touched.
#![allow(unsafe_code)]

use crate::device::{
    self, AlignedBuf, AlignedBytes, Backend, Completion, Device, DeviceError, DeviceErrorKind, DeviceInfo,
    DiskFile,
};
use memmap2::{Advice, Mmap};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Opens what is at `path` to read only, locked; refuses what is no disk, and a disk that is in use.
pub fn open(path: &Path) -> Result<Arc<dyn Device>, DeviceError> {
    let file = open_locked(path)?;
    if file.is_block_device() {
        return device::start(file, Backend::Auto);
    }
    match Mapped::of(file.clone()) {
        Ok(mapped) => Ok(Arc::new(mapped)),
        // An old kernel, or a filesystem that cannot map.
        Err(error) => {
            tracing::debug!(%error, "not mapped: reading instead");
            device::start(file, Backend::Auto)
        }
    }
}

/// The file alone, locked.
pub fn open_locked(path: &Path) -> Result<Arc<DiskFile>, DeviceError> {
    let gone = |what: String| DeviceError::new(DeviceErrorKind::Gone, format!("{}: {what}", path.display()));
    let metadata = path.metadata().map_err(|e| gone(e.to_string()))?;
    // Opening a pipe would wait for a writer, so look first.
    if !(metadata.is_file() || is_block_device(&metadata)) {
        return Err(gone("neither a file nor a block device".into()));
    }
    Ok(Arc::new(DiskFile::open_to_read(path)?))
}

fn is_block_device(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type())
}

/// A file in memory, as the kernel keeps it.
struct Mapped {
    info: DeviceInfo,
    file: Arc<DiskFile>,
    map: Mmap,
}

impl Mapped {
    fn of(file: Arc<DiskFile>) -> io::Result<Self> {
        // What the page cache kept from before says nothing about the disk.
        rustix::fs::fadvise(file.file(), 0, None, rustix::fs::Advice::DontNeed)?;
        // SAFETY: the bytes of a mapping must not change under a reader that holds a slice of them, and pages behind
        // the end of a file that was truncated are a SIGBUS. The file is locked (`DiskFile::open_to_read`) against every
        // process of ours that writes or truncates disks; no slice outlives one copy out of it (`read`); and each range
        // is faulted in with MADV_POPULATE_READ first, which answers EFAULT where a touch would be a SIGBUS.
        let map = unsafe { Mmap::map(file.file())? };
        map.advise_range(Advice::PopulateRead, 0, map.len().min(device::BLOCK))?;
        let info = DeviceInfo {
            size: file.size(),
            backend: "memory map".into(),
        };
        Ok(Mapped { info, file, map })
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let failed = |what: String| DeviceError::new(DeviceErrorKind::Read, what);
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.map.get(start..start.checked_add(buf.len())?))
            .ok_or_else(|| failed("past the end of the disk".into()))?;
        self.map
            .advise_range(Advice::PopulateRead, offset as usize, buf.len())
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EFAULT | libc::EIO) => failed("the sectors cannot be read".into()),
                _ => failed(error.to_string()),
            })?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

impl Device for Mapped {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buf: AlignedBuf) -> Completion<AlignedBuf> {
        let filled = self.fill(offset, &mut buf);
        Completion::ready(filled.map(|()| buf))
    }

    fn write_parts(&self, _offset: u64, _parts: Vec<AlignedBytes>) -> Completion<()> {
        Completion::ready(Err(read_only(DeviceErrorKind::Write)))
    }

    fn flush(&self) -> Completion<()> {
        Completion::ready(Err(read_only(DeviceErrorKind::Flush)))
    }

    fn allocate(&self, _offset: u64, _len: u64) -> Result<(), DeviceError> {
        Err(read_only(DeviceErrorKind::Write))
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.file.check()
    }
}

fn read_only(kind: DeviceErrorKind) -> DeviceError {
    DeviceError::new(kind, "it was opened to be read only")
}
