//! A tree's file as offline tools see it: nothing of it is changed. What redb writes stays in memory, over the file; wrong bits are set
//! right in what is read.
//!
//! Invariant: the files are never written.

use super::file::{BLOCK_BYTES, DamagedPage, State, block_sum, correct, read_sums, sum, sums_path_of};
use super::tree::{Failure, Source, guarded, open_error, unavailable};
use crate::ledger::store::LedgerError;
use ::redb::backends::FileBackend;
use ::redb::{BackendError, Builder, Database, StorageBackend};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const CACHE_BYTES: usize = 64 << 20;
const HEADER_BITS_MAX: u32 = 8;

/// A file of a tree, and its sums, to be looked at.
pub struct Still {
    path: PathBuf,
    file: File,
    sums: Option<State>,
}

/// What was found of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// What was written, or there is no sum of it.
    Whole,
    /// One bit is wrong.
    OneBit,
    /// More is.
    Damaged,
}

impl Still {
    /// Opens the files; nothing is read but the sums.
    pub fn open(path: &Path) -> io::Result<Still> {
        // A lock is taken by those who may write.
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut header = [0; 320];
        file.read_exact_at(&mut header, 0)?;
        let sums = std::fs::read(sums_path_of(path)).ok();
        let sums = sums.and_then(|content| read_sums(&content)).filter(|sums| {
            let pairs = header.iter().zip(&sums.header);
            let bits: u32 = pairs.map(|(one, other)| (one ^ other).count_ones()).sum();
            bits <= HEADER_BITS_MAX || sum(&header) == sums.header_sum_before
        });
        let path = path.to_owned();
        Ok(Still { path, file, sums })
    }

    /// Whether there are sums of this file.
    pub fn has_sums(&self) -> bool {
        self.sums.is_some()
    }

    /// Blocks of the file.
    pub fn blocks(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().div_ceil(BLOCK_BYTES as u64))
    }

    /// Bytes of the file from a block on, at most so many, with wrong bits set right where they can be, and whether all hold.
    pub fn read(&self, block: u64, bytes: usize) -> io::Result<(Vec<u8>, bool)> {
        let at = block * BLOCK_BYTES as u64;
        let left = self.file.metadata()?.len().saturating_sub(at);
        let mut out = vec![0; bytes.min(usize::try_from(left).unwrap_or(bytes))];
        self.file.read_exact_at(&mut out, at)?;
        let mut all_hold = true;
        for (block, bytes) in (block..).zip(out.chunks_mut(BLOCK_BYTES)) {
            all_hold &= self.check(block, bytes) != Found::Damaged;
        }
        Ok((out, all_hold))
    }

    /// A block as it is.
    pub fn read_raw(&self, block: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; BLOCK_BYTES];
        let left = self
            .file
            .metadata()?
            .len()
            .saturating_sub(block * BLOCK_BYTES as u64);
        bytes.truncate(usize::try_from(left).unwrap_or(BLOCK_BYTES));
        self.file.read_exact_at(&mut bytes, block * BLOCK_BYTES as u64)?;
        Ok(bytes)
    }

    /// Looks at a block, and sets one wrong bit right in it.
    pub fn check(&self, block: u64, bytes: &mut [u8]) -> Found {
        let Some(sums) = &self.sums else {
            return Found::Whole;
        };
        if block == 0 {
            let mut header = sums.header;
            let is_right = bytes.starts_with(&header) || bytes.len() < header.len();
            let is_before = bytes
                .get(..header.len())
                .is_some_and(|found| sum(found) == sums.header_sum_before);
            if is_right || is_before {
                return Found::Whole;
            }
            bytes[..header.len()].swap_with_slice(&mut header);
            return Found::OneBit;
        }
        let expected = sums.sums.get(block as usize).copied().unwrap_or(0);
        if expected == 0 || bytes.len() < BLOCK_BYTES || expected == block_sum(bytes) {
            return Found::Whole;
        }
        match correct(bytes, expected) {
            true => Found::OneBit,
            false => Found::Damaged,
        }
    }

    /// redb on it, whose writes are forgotten.
    pub fn database(&self) -> Result<Database, LedgerError> {
        let failed = |error: io::Error| unavailable(&self.path, &error);
        let backend = FileBackend::new(self.file.try_clone().map_err(failed)?);
        let backend = backend.map_err(|error| open_error(&self.path, error))?;
        let overlay = Overlay {
            still: Still::open(&self.path).map_err(failed)?,
            backend,
            over: Mutex::new(Over {
                blocks: HashMap::new(),
                len: self.file.metadata().map_err(failed)?.len(),
            }),
        };
        let mut builder = Builder::new();
        let opened = guarded(|| Ok(builder.set_cache_size(CACHE_BYTES).create_with_backend(overlay)));
        match opened {
            Ok(database) => database.map_err(|error| open_error(&self.path, error)),
            Err(Failure::Redb(error)) => Err(unavailable(&self.path, &error)),
            Err(failure) => Err(super::tree::damaged(&self.path, &failure)),
        }
    }
}

impl Source for Still {
    fn open(&self) -> Result<Database, LedgerError> {
        self.database()
    }

    fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.len())
    }
}

struct Over {
    blocks: HashMap<u64, Vec<u8>>,
    len: u64,
}

struct Overlay {
    still: Still,
    backend: FileBackend,
    over: Mutex<Over>,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").finish_non_exhaustive()
    }
}

impl Overlay {
    fn over(&self) -> MutexGuard<'_, Over> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self, over: &Over, block: u64) -> io::Result<Vec<u8>> {
        if let Some(bytes) = over.blocks.get(&block) {
            return Ok(bytes.clone());
        }
        let (mut bytes, holds) = self.still.read(block, BLOCK_BYTES)?;
        if !holds {
            std::panic::resume_unwind(Box::new(DamagedPage(block)));
        }
        bytes.resize(BLOCK_BYTES, 0);
        Ok(bytes)
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.over().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let over = self.over();
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let (block, within) = (at / BLOCK_BYTES as u64, (at % BLOCK_BYTES as u64) as usize);
            let bytes = self.block(&over, block)?;
            let part = (BLOCK_BYTES - within).min(out.len() - done);
            out[done..done + part].copy_from_slice(&bytes[within..within + part]);
            done += part;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut over = self.over();
        over.blocks.retain(|block, _| block * (BLOCK_BYTES as u64) < len);
        // What the file has past a new end must not come back.
        for block in len.div_ceil(BLOCK_BYTES as u64)..over.len.div_ceil(BLOCK_BYTES as u64) {
            over.blocks.insert(block, vec![0; BLOCK_BYTES]);
        }
        over.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut over = self.over();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (block, within) = (at / BLOCK_BYTES as u64, (at % BLOCK_BYTES as u64) as usize);
            let part = (BLOCK_BYTES - within).min(data.len() - done);
            let mut bytes = match part == BLOCK_BYTES {
                true => vec![0; BLOCK_BYTES],
                false => self.block(&over, block)?,
            };
            bytes[within..within + part].copy_from_slice(&data[done..done + part]);
            over.blocks.insert(block, bytes);
            done += part;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
