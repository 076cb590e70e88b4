//! Room that is kept for the tree: a file beside it whose blocks the filesystem has granted, and that nobody reads. When the
//! filesystem refuses the tree a block, a piece of the file is given up for it; when there is room, the file is made long again.
//!
//! Invariants:
//! - A write for which a piece was given up is tried again at once, under one lock: nobody of this process takes that piece.
//! - Nothing here is needed to open a ledger. A reserve that is missing, or cannot be made, is a reserve of zero bytes.

use crate::ledger::room::{Measured, PIECE_BYTES};
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a reserve is made of: a file on a filesystem, or a test's.
pub trait Ground: Send + std::fmt::Debug {
    /// Makes the reserve so long, with granted blocks; may fail, and leaves it then at least as long as it was.
    fn set_len(&mut self, bytes: u64) -> io::Result<()>;
    /// Bytes in all, and those that anybody may take.
    fn space(&self) -> io::Result<(u64, u64)>;
}

/// The reserve of a ledger.
#[derive(Debug)]
pub struct Reserve {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ground: Box<dyn Ground>,
    bytes: u64,
}

/// Whether an error says that the filesystem has no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl Reserve {
    /// Beside a ledger, with what is there of it.
    pub fn beside(ledger: &Path) -> Reserve {
        let path = path_of(ledger);
        // What has no blocks is no reserve.
        let bytes = path.metadata().map_or(0, |found| {
            let granted = std::os::unix::fs::MetadataExt::blocks(&found) * 512;
            granted.min(found.len())
        });
        Reserve::on(Box::new(FileGround { path, file: None }), bytes)
    }

    /// On ground of which so many bytes are granted.
    pub fn on(ground: Box<dyn Ground>, bytes: u64) -> Reserve {
        Reserve {
            state: Mutex::new(State { ground, bytes }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks how much room there is, and makes the reserve as long as there is room for. Blocks.
    pub fn refill(&self) -> io::Result<Measured> {
        let mut state = self.lock();
        let mut measured = state.measure()?;
        let wanted = measured.reserve_wanted();
        while state.bytes < wanted {
            let longer = (state.bytes + PIECE_BYTES).min(wanted);
            match state.ground.set_len(longer) {
                Ok(()) => state.bytes = longer,
                Err(error) if is_full(&error) => break,
                Err(error) => return Err(error),
            }
        }
        if measured.reserve_bytes != state.bytes {
            measured = state.measure()?;
        }
        Ok(measured)
    }

    /// Looks how much room there is. Blocks.
    pub fn measure(&self) -> io::Result<Measured> {
        self.lock().measure()
    }

    /// Does something that may need room. While the filesystem refuses it, pieces of the reserve are given up.
    pub fn with_room<T>(&self, work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        self.giving_up(work, || {})
    }

    /// The same, for a write to a file from here on: what is given up and not needed now is taken for what comes behind, before others
    /// take it.
    pub fn with_room_in<T>(
        &self,
        file: &File,
        at: u64,
        work: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        self.giving_up(work, || take_holes(file, at))
    }

    fn giving_up<T>(&self, mut work: impl FnMut() -> io::Result<T>, mut then: impl FnMut()) -> io::Result<T> {
        match work() {
            Err(error) if is_full(&error) => {}
            done => return done,
        }
        let mut state = self.lock();
        loop {
            match work() {
                Err(error) if is_full(&error) && state.bytes > 0 => {
                    let shorter = state.bytes.saturating_sub(PIECE_BYTES);
                    state.ground.set_len(shorter)?;
                    state.bytes = shorter;
                }
                done => {
                    then();
                    return done;
                }
            }
        }
    }
}

impl State {
    fn measure(&self) -> io::Result<Measured> {
        let (total_bytes, free_bytes) = self.ground.space()?;
        Ok(Measured {
            total_bytes,
            free_bytes,
            reserve_bytes: self.bytes,
        })
    }
}

/// Writes zeros into the holes of a file from `at` on, as many as were given up at once: that changes nothing of what it reads as. By
/// writing, because a filesystem grants that at once; freed blocks are allocated by name only after its journal was written.
fn take_holes(file: &File, at: u64) {
    use rustix::fs::{SeekFrom, seek};
    const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
    let end = file.metadata().map_or(0, |found| found.len());
    let (mut at, mut left) = (at, PIECE_BYTES);
    while left > 0
        && let Ok(hole) = seek(file, SeekFrom::Hole(at))
        && hole < end
    {
        let data = seek(file, SeekFrom::Data(hole)).unwrap_or(end).min(end);
        let bytes = (data - hole).min(left).min(ZEROS.len() as u64);
        if bytes == 0 || file.write_all_at(&ZEROS[..bytes as usize], hole).is_err() {
            return;
        }
        left -= bytes;
        at = hole + bytes;
    }
}

/// Where the reserve of the ledger in this file is.
pub fn path_of(ledger: &Path) -> PathBuf {
    let mut path = ledger.as_os_str().to_owned();
    path.push("-reserve");
    path.into()
}

#[derive(Debug)]
struct FileGround {
    path: PathBuf,
    file: Option<File>,
}

impl Ground for FileGround {
    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                let file = options
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&self.path)?;
                self.file.insert(file)
            }
        };
        let length = file.metadata()?.len();
        if bytes > length {
            use rustix::fs::{FallocateFlags, fallocate};
            fallocate(file, FallocateFlags::empty(), 0, bytes)?;
        } else {
            file.set_len(bytes)?;
        }
        Ok(())
    }

    fn space(&self) -> io::Result<(u64, u64)> {
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let found = rustix::fs::statvfs(directory)?;
        Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
    }
}

/// Where a tree was written before a flush that failed, and how many bytes.
pub type Unflushed = Arc<Mutex<BTreeMap<u64, u64>>>;

/// A file that the tree is kept in, with the reserve to fall back on. While there is little room it is shortened in name only: what it
/// would give back, others would take.
#[derive(Debug)]
pub struct WithReserve<B> {
    backend: B,
    /// The file itself, if it is one.
    file: Option<File>,
    reserve: Arc<Reserve>,
    unflushed: Unflushed,
    /// Where it was written since the last flush.
    written: Mutex<BTreeMap<u64, u64>>,
    /// How long it is for who uses it, once that was said.
    len: Mutex<Option<u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: StorageBackend> WithReserve<B> {
    /// This backend, and this reserve. What was written before a flush that failed is written once more, as it reads now: the kernel may
    /// show what it never wrote, and a later flush says nothing about it.
    pub fn new(
        backend: B,
        file: Option<File>,
        reserve: Arc<Reserve>,
        unflushed: Unflushed,
    ) -> io::Result<WithReserve<B>> {
        let doubtful = locked(&unflushed).clone();
        if !doubtful.is_empty() {
            let end = backend.len()?;
            for (offset, len) in doubtful.into_iter().filter(|(offset, len)| offset + len <= end) {
                let mut bytes = vec![0; len as usize];
                backend.read(offset, &mut bytes)?;
                reserve.with_room(|| backend.write(offset, &bytes))?;
            }
            backend.sync_data()?;
            locked(&unflushed).clear();
        }
        Ok(WithReserve {
            backend,
            file,
            reserve,
            unflushed,
            written: Mutex::default(),
            len: Mutex::default(),
        })
    }
}

impl<B: StorageBackend> StorageBackend for WithReserve<B> {
    fn len(&self) -> io::Result<u64> {
        match *locked(&self.len) {
            Some(len) => Ok(len),
            None => self.backend.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let has_room = || self.reserve.measure().is_ok_and(|measured| measured.admits(true));
        let there = self.backend.len()?;
        if len > there || (len < there && has_room()) {
            self.reserve.with_room(|| self.backend.set_len(len))?;
        }
        *locked(&self.len) = Some(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // Not tried again: what a flush that failed has left is unknown.
        let written = std::mem::take(&mut *locked(&self.written));
        let flushed = self.backend.sync_data();
        if flushed.is_err() {
            locked(&self.unflushed).extend(written);
        }
        flushed
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let write = || self.backend.write(offset, data);
        match &self.file {
            Some(file) => self.reserve.with_room_in(file, offset, write)?,
            None => self.reserve.with_room(write)?,
        }
        let mut written = locked(&self.written);
        let len = written.entry(offset).or_default();
        *len = (*len).max(data.len() as u64);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), redb::BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), redb::BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), redb::BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.backend.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::redb::faulty::Plot;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_reserve_is_given_up_piece_by_piece_and_made_again() {
        let plot = Plot::new(320 * MIB);
        let (reserve, others) = (plot.reserve(), plot.others.clone());
        let measured = reserve.refill().unwrap();
        assert_eq!(measured.reserve_bytes, 10 * MIB);
        assert!(measured.admits(true));
        others.store(310 * MIB, Ordering::SeqCst);
        // Somebody needs two and a half.
        let taken = AtomicU64::new(0);
        let written = reserve.with_room(|| {
            let room = 10 * MIB - reserve_bytes(&plot);
            match room >= 5 * MIB / 2 {
                true => {
                    taken.store(room, Ordering::SeqCst);
                    Ok(())
                }
                false => Err(io::ErrorKind::StorageFull.into()),
            }
        });
        written.unwrap();
        assert_eq!(taken.load(Ordering::SeqCst), 3 * MIB);
        let measured = reserve.measure().unwrap();
        assert_eq!(measured.reserve_bytes, 7 * MIB);
        assert!(!measured.admits(true));
        others.store(200 * MIB, Ordering::SeqCst);
        assert_eq!(reserve.refill().unwrap().reserve_bytes, 10 * MIB);
    }

    /// What is left when all was given up is the filesystem's answer.
    #[test]
    fn a_reserve_that_is_gone_helps_nobody() {
        let plot = Plot::new(320 * MIB);
        let reserve = plot.reserve();
        reserve.refill().unwrap();
        let refused = reserve.with_room(|| -> io::Result<()> { Err(io::ErrorKind::StorageFull.into()) });
        assert!(is_full(&refused.unwrap_err()));
        assert_eq!(reserve.measure().unwrap().reserve_bytes, 0);
        // Another error gives nothing up.
        reserve.refill().unwrap();
        let failed = reserve.with_room(|| -> io::Result<()> { Err(io::Error::other("EIO")) });
        assert!(!is_full(&failed.unwrap_err()));
        assert_eq!(reserve.measure().unwrap().reserve_bytes, 10 * MIB);
    }

    #[test]
    fn a_reserve_in_a_file_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger");
        let measured = Reserve::beside(&ledger).refill().unwrap();
        let again = Reserve::beside(&ledger).measure().unwrap();
        assert_eq!(again.reserve_bytes, measured.reserve_wanted());
        let shorter = Reserve::beside(&ledger).with_room({
            let mut refused = false;
            move || match std::mem::replace(&mut refused, true) {
                true => Ok(()),
                false => Err(io::ErrorKind::StorageFull.into()),
            }
        });
        shorter.unwrap();
        assert!(Reserve::beside(&ledger).measure().unwrap().reserve_bytes <= measured.reserve_bytes);
        // Holes are no reserve.
        let path = path_of(&ledger);
        std::fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(64 * MIB).unwrap();
        assert_eq!(Reserve::beside(&ledger).measure().unwrap().reserve_bytes, 0);
    }

    fn reserve_bytes(plot: &Plot) -> u64 {
        plot.own.load(Ordering::SeqCst)
    }

    type Writes = Vec<(u64, Vec<u8>)>;

    /// Shows what was written, and keeps of it what was flushed: a flush that fails forgets what it had to do.
    #[derive(Clone, Debug, Default)]
    struct Kernel {
        shown: Arc<Mutex<Vec<u8>>>,
        dirty: Arc<Mutex<Writes>>,
        durable: Arc<Mutex<Vec<u8>>>,
        fails: Arc<AtomicBool>,
    }

    impl StorageBackend for Kernel {
        fn len(&self) -> io::Result<u64> {
            Ok(self.shown.lock().unwrap().len() as u64)
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            out.copy_from_slice(&self.shown.lock().unwrap()[offset as usize..][..out.len()]);
            Ok(())
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.shown.lock().unwrap().resize(len as usize, 0);
            self.durable.lock().unwrap().resize(len as usize, 0);
            Ok(())
        }
        fn sync_data(&self) -> io::Result<()> {
            let dirty = std::mem::take(&mut *self.dirty.lock().unwrap());
            if self.fails.swap(false, Ordering::SeqCst) {
                return Err(io::Error::other("EIO"));
            }
            for (offset, bytes) in dirty {
                self.durable.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            Ok(())
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.shown.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
            self.dirty.lock().unwrap().push((offset, data.to_vec()));
            Ok(())
        }
    }

    #[test]
    fn what_a_failed_flush_left_is_written_again_before_it_is_believed() {
        let (kernel, unflushed) = (Kernel::default(), Unflushed::default());
        let reserve = Plot::new(0).reserve();
        let open = || WithReserve::new(kernel.clone(), None, reserve.clone(), unflushed.clone());
        let file = open().unwrap();
        file.set_len(100).unwrap();
        file.write(0, &[1; 10]).unwrap();
        file.sync_data().unwrap();
        file.write(20, &[2; 10]).unwrap();
        file.write(5, &[3; 2]).unwrap();
        kernel.fails.store(true, Ordering::SeqCst);
        file.sync_data().unwrap_err();
        drop(file);
        assert_ne!(*kernel.shown.lock().unwrap(), *kernel.durable.lock().unwrap());
        // It fails once more, and is not forgotten.
        kernel.fails.store(true, Ordering::SeqCst);
        open().unwrap_err();
        open().unwrap();
        assert_eq!(*kernel.shown.lock().unwrap(), *kernel.durable.lock().unwrap());
        assert!(unflushed.lock().unwrap().is_empty());
    }
}
