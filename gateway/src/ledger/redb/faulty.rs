//! For tests: a tree, a log and a reserve in memory, which fail when told.
//!
//! The model: a full filesystem refuses to write where nothing was written before, and nothing else; a file can be as long as one
//! likes. A failing one refuses writes, flushes and new lengths. An operation that fails changes nothing. What a flush that failed was asked to make durable is in the file all the same,
//! as it is in a kernel's cache; tests of what a power failure leaves are those of files.

use super::log::{HALF_BYTES, Medium};
use super::reserve::{Ground, Reserve};
use super::tree::{Source, initialise};
use crate::ledger::store::LedgerError;
use redb::{Builder, Database, StorageBackend};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What a filesystem grants at once.
const BLOCK_BYTES: u64 = 4096;

/// When operations fail, and how.
#[derive(Debug, Default)]
pub struct Faults {
    /// So many more operations succeed.
    good: AtomicI64,
    /// Then so many fail.
    bad: AtomicI64,
    full: std::sync::atomic::AtomicBool,
    /// Operations so far.
    pub count: AtomicU64,
}

impl Faults {
    /// After `good` more operations, `bad` fail; for want of room if `full`.
    pub fn plan(&self, good: i64, bad: i64, full: bool) {
        self.full.store(full, Ordering::SeqCst);
        self.bad.store(bad, Ordering::SeqCst);
        self.good.store(good, Ordering::SeqCst);
    }

    /// From now on all fail.
    pub fn fail(&self, full: bool) {
        self.plan(0, i64::MAX, full);
    }

    /// No more do.
    pub fn end(&self) {
        self.plan(0, 0, false);
    }

    /// An operation that takes room, or not.
    fn check(&self, takes_room: bool) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) && !takes_room {
            return Ok(());
        }
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.good.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        if self.bad.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.bad.store(0, Ordering::SeqCst);
            return Ok(());
        }
        match self.full.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Err(io::Error::other("injected EIO")),
        }
    }
}

/// Where a tree is kept; each clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Blocks that were written.
    granted: Arc<Mutex<HashSet<u64>>>,
    /// Of writes, flushes and new lengths.
    pub writes: Arc<Faults>,
    /// Of reads.
    pub reads: Arc<Faults>,
}

impl Disk {
    /// With an empty ledger.
    pub fn initialised(id: &[u8; 16]) -> Disk {
        let disk = Disk::default();
        initialise(&disk.open().unwrap(), id).unwrap();
        disk
    }
}

impl Source for Disk {
    fn open(&self) -> Result<Database, LedgerError> {
        let opened = Builder::new().create_with_backend(self.clone());
        opened.map_err(|error| LedgerError::Unavailable {
            what: error.to_string(),
        })
    }

    fn bytes(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.reads.check(true)?;
        let bytes = self.bytes.lock().unwrap();
        out.copy_from_slice(&bytes[offset as usize..][..out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writes.check(false)?;
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.writes.check(false)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let blocks = offset / BLOCK_BYTES..(offset + data.len() as u64).div_ceil(BLOCK_BYTES);
        let mut granted = self.granted.lock().unwrap();
        self.writes
            .check(blocks.clone().any(|block| !granted.contains(&block)))?;
        granted.extend(blocks);
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// What a log is kept on; each clone is the same.
#[derive(Clone, Debug)]
pub struct Paper {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Of writes, flushes, and opening it again.
    pub faults: Arc<Faults>,
}

impl Paper {
    /// Blank.
    pub fn new() -> Paper {
        Paper {
            bytes: Arc::new(Mutex::new(vec![0; 2 * HALF_BYTES])),
            faults: Arc::default(),
        }
    }

    /// What is on it.
    pub fn content(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Medium for Paper {
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.faults.check(true)?;
        self.bytes.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.faults.check(true)
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.faults.check(true)
    }
}

/// Ground with so much room in all, of which others take.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that others have.
    pub others: Arc<AtomicU64>,
    /// Bytes of the reserve.
    pub own: Arc<AtomicU64>,
}

impl Plot {
    /// All of it free.
    pub fn new(total: u64) -> Plot {
        Plot {
            total,
            others: Arc::default(),
            own: Arc::default(),
        }
    }

    /// A reserve on it, of nothing yet.
    pub fn reserve(&self) -> Arc<Reserve> {
        Arc::new(Reserve::on(Box::new(self.clone()), 0))
    }
}

impl Ground for Plot {
    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.own.load(Ordering::SeqCst) && bytes + self.others.load(Ordering::SeqCst) > self.total
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.own.store(bytes, Ordering::SeqCst);
        Ok(())
    }

    fn space(&self) -> io::Result<(u64, u64)> {
        let taken = self.own.load(Ordering::SeqCst) + self.others.load(Ordering::SeqCst);
        Ok((self.total, self.total.saturating_sub(taken)))
    }
}

/// Bytes of files that cannot be read, as of a disk that lost sectors. Until it is dropped.
pub struct Lost(u64, u64);

static LOST: Mutex<Vec<(u64, u64, Range<u64>)>> = Mutex::new(Vec::new());

impl Lost {
    /// Of a file that is there.
    pub fn of(path: &Path, bytes: Range<u64>) -> Lost {
        let found = path.metadata().unwrap();
        LOST.lock().unwrap().push((found.dev(), found.ino(), bytes));
        Lost(found.dev(), found.ino())
    }

    /// Fails a read that meets them.
    pub fn check(file: &File, at: u64, bytes: usize) -> io::Result<()> {
        let end = at + bytes as u64;
        let lost = LOST.lock().unwrap();
        if lost.is_empty() {
            return Ok(());
        }
        let found = file.metadata()?;
        let is_met = |(dev, ino, lost): &(u64, u64, Range<u64>)| {
            (*dev, *ino) == (found.dev(), found.ino()) && lost.start < end && at < lost.end
        };
        match lost.iter().any(is_met) {
            true => Err(rustix::io::Errno::IO.into()),
            false => Ok(()),
        }
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        let mut lost = LOST.lock().unwrap();
        lost.retain(|(dev, ino, _)| (*dev, *ino) != (self.0, self.1));
    }
}
