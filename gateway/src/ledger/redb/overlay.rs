//! A tree's file as offline tools see it: nothing of it is changed. What redb writes stays in memory, over the file; wrong bits are set
//! right in what is read. A block that a disk lost is damaged, and the others are read.
//!
//! Invariants:
//! - The files are never written.
//! - A file is absent if it is not found, and not because it cannot be read.

use super::file::{
    BLOCK_BYTES, DamagedPage, State, block_sum, correct, is_at, read_beside, read_sums, sum, sums_path_of,
};
use super::tree::{Failure, Source, guarded, open_error, unavailable};
use crate::ledger::store::LedgerError;
use ::redb::backends::{FileBackend, InMemoryBackend};
use ::redb::{BackendError, Builder, Database, StorageBackend};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
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
    /// More is, or it cannot be read.
    Damaged,
}

impl Still {
    /// Opens the files; nothing is read but the sums.
    pub fn open(path: &Path) -> io::Result<Still> {
        // A lock is taken by those who may write.
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut header = [0; 320];
        let is_header_lost = !read_beside(&file, &mut header, 0)?.is_empty();
        // Sums that a disk lost a part of are as none: redb has checksums of its own.
        let sums = read_whole(&sums_path_of(path))?.filter(|(_, lost)| lost.is_empty());
        let sums = sums.and_then(|(content, _)| read_sums(&content)).filter(|sums| {
            let pairs = header.iter().zip(&sums.header);
            let bits: u32 = pairs.map(|(one, other)| (one ^ other).count_ones()).sum();
            // All blocks are checked against sums of another file, should they be that: no block would hold.
            is_header_lost || bits <= HEADER_BITS_MAX || sum(&header) == sums.header_sum_before
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

    /// Whether this file has the same sums as another one: nothing was written between their openings.
    pub fn has_sums_of(&self, other: &Still) -> bool {
        let known = |still: &Still| {
            still
                .sums
                .as_ref()
                .map(|state| (state.header, state.header_sum_before))
        };
        known(self) == known(other)
    }

    /// Whether this file is what is at its path now.
    pub fn is_in_place(&self) -> io::Result<bool> {
        is_at(&self.file, &self.path)
    }

    /// Bytes of the file from a block on, at most so many, with wrong bits set right where they can be, and
    /// whether all hold. Those of a block that cannot be read are zeros.
    pub fn read(&self, block: u64, bytes: usize) -> io::Result<(Vec<u8>, bool)> {
        let at = block * BLOCK_BYTES as u64;
        let left = self.file.metadata()?.len().saturating_sub(at);
        let mut out = vec![0; bytes.min(usize::try_from(left).unwrap_or(bytes))];
        let lost = read_beside(&self.file, &mut out, at)?;
        let mut all_hold = true;
        for (block, bytes) in (block..).zip(out.chunks_mut(BLOCK_BYTES)) {
            // The header is known from the sums.
            let is_lost = lost.contains(&block) && (block > 0 || self.sums.is_none());
            all_hold &= !is_lost && self.check(block, bytes) != Found::Damaged;
        }
        Ok((out, all_hold))
    }

    /// What is found of a block, and whether it can be read at all.
    pub fn look_at(&self, block: u64) -> io::Result<(Found, bool)> {
        let at = block * BLOCK_BYTES as u64;
        let left = self.file.metadata()?.len().saturating_sub(at);
        let mut bytes = vec![0; BLOCK_BYTES.min(usize::try_from(left).unwrap_or(BLOCK_BYTES))];
        match read_beside(&self.file, &mut bytes, at)?.is_empty() {
            true => Ok((self.check(block, &mut bytes), true)),
            false => Ok((Found::Damaged, false)),
        }
    }

    /// Looks at a block, and sets one wrong bit right in it.
    fn check(&self, block: u64, bytes: &mut [u8]) -> Found {
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

    /// redb on it, whose writes are forgotten. It has the file locked as a gateway has.
    pub fn database(&self) -> Result<Database, LedgerError> {
        let failed = |error: io::Error| unavailable(&self.path, &error);
        let locks = FileBackend::new(self.file.try_clone().map_err(failed)?);
        let locks = locks.map_err(|error| open_error(&self.path, error))?;
        self.database_under(Box::new(locks))
    }

    /// The same for who has the file locked already.
    pub fn another_database(&self) -> Result<Database, LedgerError> {
        self.database_under(Box::new(InMemoryBackend::new()))
    }

    fn database_under(&self, locks: Box<dyn StorageBackend>) -> Result<Database, LedgerError> {
        let failed = |error: io::Error| unavailable(&self.path, &error);
        let overlay = Overlay {
            still: Still::open(&self.path).map_err(failed)?,
            locks,
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

/// All of a file, with zeros in blocks that a disk lost, and which these are; none if there is no such file.
pub(super) fn read_whole(path: &Path) -> io::Result<Option<(Vec<u8>, Vec<u64>)>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut content = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
    let lost = read_beside(&file, &mut content, 0)?;
    Ok(Some((content, lost)))
}

struct Over {
    blocks: HashMap<u64, Vec<u8>>,
    len: u64,
}

struct Overlay {
    still: Still,
    /// A file's, or nobody's.
    locks: Box<dyn StorageBackend>,
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
        self.locks.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.query_lock_range(start, end)
    }
}
