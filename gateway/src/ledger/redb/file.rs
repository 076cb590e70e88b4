//! The file that redb keeps the tree in, with a checksum of each of its 4 KiB blocks beside it (`ledger.redb-sums`).
//!
//! ```text
//! unit 0      0 "cairnsum"   8 format version, 4   12 nothing, 4   16 blocks, 8   24 checksum of the header before this one, 8
//!            32 redb's header as written last, 320   352 nothing   504 checksum of all before, 8
//! unit n ≥ 1  63 checksums of 8 bytes, of the blocks from 63 (n − 1) on; 0: none since the file grew · checksum of them, 8
//! ```
//! A unit is 512 bytes, integers are little-endian, checksums are CRC-64/NVME (a block's is never 0, but 1).
//!
//! redb has checksums of its own in its branches, and looks at them after a crash only. A bit that flips in a key or in a branch later
//! leads a lookup astray, to an answer that says "absent". So every block is checked when it is read from the file, and redb never gets
//! to see one that is not what was written: the read unwinds ([`DamagedPage`]), through redb, to whoever asked, and takes along nothing
//! but that question. (An error would be remembered by redb, which then refuses everything.) A block with one wrong bit is set right.
//!
//! When sums are durable. redb writes pages where none are in use (copy on write), flushes, writes the header that names them, flushes.
//! A flush here makes the sums durable before the file. So sums are durable before anything names their pages, and sums of pages that
//! are named do not change. After a crash in the middle of
//! - writing pages, or sums, or the first flush: torn pages, and sums of pages that are not there. No header names them.
//! - the second flush: the header is the one of before, or the new one. Both trees are whole, the sums are of both.
//! - growing or shrinking the file: sums past its end are nothing; blocks past the sums were never written.
//!
//! A unit of sums is written as one sector: it is the one of before or the new one. The header is checked against the copy in unit 0,
//! which is of the last flush or of the one that a crash broke off: one that is neither, and differs in a few bits, is set right from it.
//! If it differs in more, the sums are those of another file, an older one that was put back, say. Then, as when they are missing,
//! redb's own checksums are verified once, all of them, and the sums made anew.
//!
//! Invariants:
//! - redb gets bytes that are what was written last, or an unwinding. A block that cannot be read is as one
//!   that is not what was written: a disk that lost one sector has the others.
//! - The lock over the sums is held for work in memory only.

use super::reserve::{Reserve, Unflushed, WithReserve};
use crate::ledger::damage::Damage;
use ::redb::backends::FileBackend;
use ::redb::{BackendError, StorageBackend};
use crc_fast::CrcAlgorithm;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
const UNIT_BYTES: usize = 512;
const SUM_BYTES: usize = size_of::<u64>();
const UNIT_SUMS: usize = UNIT_BYTES / SUM_BYTES - 1;
const UNIT_BODY: usize = UNIT_BYTES - SUM_BYTES;
const MAGIC: &[u8; 8] = b"cairnsum";
const FORMAT_VERSION: u32 = 1;
const BLOCKS_AT: usize = 16;
const BEFORE_AT: usize = 24;
const HEADER_AT: usize = 32;
/// Bytes of redb's header: what it says of the file, and two roots.
const HEADER_BYTES: usize = 320;
/// A header that differs from its copy in more bits is another file's.
const HEADER_BITS_MAX: u32 = 8;

const _: () = assert!(HEADER_AT + HEADER_BYTES <= UNIT_BODY);

/// What unwinds out of a read of a block that is not what was written.
#[derive(Debug)]
pub struct DamagedPage(pub u64);

/// Whether an error says that a disk lost what was to be read, and not that the file cannot be reached.
pub(super) fn is_lost(error: &io::Error) -> bool {
    const LOST: [Errno; 6] = [
        Errno::IO,
        Errno::NODATA,
        Errno::ILSEQ,
        Errno::REMOTEIO,
        Errno::BADMSG,
        Errno::UCLEAN,
    ];
    Errno::from_io_error(error).is_some_and(|error| LOST.contains(&error))
}

/// Whether this file is the one that is at a path now.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (file, found) = (file.metadata()?, path.metadata()?);
    Ok((file.dev(), file.ino()) == (found.dev(), found.ino()))
}

/// Fills these bytes from a file. All files of a ledger are read so.
pub(super) fn read_at(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    #[cfg(test)]
    super::faulty::Lost::check(file, at, out.len())?;
    file.read_exact_at(out, at)
}

/// The same, with zeros in blocks that a disk lost; answers which these are.
pub(super) fn read_beside(file: &File, out: &mut [u8], at: u64) -> io::Result<Vec<u64>> {
    match read_at(file, out, at) {
        Err(error) if is_lost(&error) => {}
        read => return read.map(|()| Vec::new()),
    }
    let mut lost = Vec::new();
    let mut rest = out;
    let mut at = at;
    while !rest.is_empty() {
        let within = (at % BLOCK_BYTES as u64) as usize;
        let (bytes, behind) = rest.split_at_mut(rest.len().min(BLOCK_BYTES - within));
        match read_at(file, bytes, at) {
            Err(error) if is_lost(&error) => {
                bytes.fill(0);
                lost.push(at / BLOCK_BYTES as u64);
            }
            read => read?,
        }
        at += bytes.len() as u64;
        rest = behind;
    }
    Ok(lost)
}

/// The checksum of these bytes.
pub fn sum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

pub(super) fn block_sum(block: &[u8]) -> u64 {
    sum(block).max(1)
}

/// The polynomial of the checksum, as it is computed: the lowest bit first.
const POLYNOMIAL: u64 = 0x9A6C_9329_AC4B_C9B5;

/// Which bit of so many bytes is wrong, if it is one: where their checksum is not what it should be, these are the bits in which the
/// two differ. A checksum is linear, so these bits tell it; that they do so by chance is about as likely as that a checksum holds.
fn wrong_bit(bytes: usize, difference: u64) -> Option<usize> {
    let mut of_bit = POLYNOMIAL;
    for from_end in 0..bytes * 8 {
        if of_bit == difference {
            return Some(bytes * 8 - 1 - from_end);
        }
        of_bit = (of_bit >> 1) ^ (POLYNOMIAL * (of_bit & 1));
    }
    None
}

/// Sets the one bit right that keeps these bytes from having this checksum, if it is one.
pub(super) fn correct(bytes: &mut [u8], expected: u64) -> bool {
    let Some(bit) = wrong_bit(bytes.len(), sum(bytes) ^ expected) else {
        return false;
    };
    bytes[bit / 8] ^= 1 << (bit % 8);
    true
}

/// Where the sums of the tree in this file are.
pub fn sums_path_of(tree: &Path) -> PathBuf {
    let mut path = tree.as_os_str().to_owned();
    path.push("-sums");
    path.into()
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// It is what was written, or there is no sum of it.
    Whole,
    /// One bit of it was wrong and was set right.
    Corrected,
    /// It is not what was written, or cannot be read.
    Damaged,
}

pub(super) struct State {
    /// By block; 0 where there is none.
    pub sums: Vec<u64>,
    /// Units that are not on disk yet.
    dirty: BTreeSet<usize>,
    pub header: [u8; HEADER_BYTES],
    pub header_sum_before: u64,
    head_is_dirty: bool,
}

impl State {
    fn of_blocks(blocks: usize) -> State {
        State {
            sums: vec![0; blocks],
            dirty: BTreeSet::new(),
            header: [0; HEADER_BYTES],
            header_sum_before: 0,
            head_is_dirty: true,
        }
    }

    fn set(&mut self, block: usize, sum: u64) {
        if self.sums.len() <= block {
            self.sums.resize(block + 1, 0);
        }
        self.sums[block] = sum;
        self.dirty.insert(block / UNIT_SUMS + 1);
    }

    fn unit(&self, unit: usize) -> [u8; UNIT_BYTES] {
        let mut bytes = [0; UNIT_BYTES];
        if unit == 0 {
            bytes[..8].copy_from_slice(MAGIC);
            bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            bytes[BLOCKS_AT..BEFORE_AT].copy_from_slice(&(self.sums.len() as u64).to_le_bytes());
            bytes[BEFORE_AT..HEADER_AT].copy_from_slice(&self.header_sum_before.to_le_bytes());
            bytes[HEADER_AT..HEADER_AT + HEADER_BYTES].copy_from_slice(&self.header);
        } else {
            let sums = self.sums.iter().skip((unit - 1) * UNIT_SUMS).take(UNIT_SUMS);
            for (slot, sum) in bytes.chunks_exact_mut(SUM_BYTES).zip(sums) {
                slot.copy_from_slice(&sum.to_le_bytes());
            }
        }
        let seal = unit_sum(unit, &bytes[..UNIT_BODY]);
        bytes[UNIT_BODY..].copy_from_slice(&seal.to_le_bytes());
        bytes
    }
}

/// A unit that was written in another's place is not right.
fn unit_sum(unit: usize, body: &[u8]) -> u64 {
    sum(body) ^ (unit as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A unit as read, with one wrong bit set right; none if it is not one.
fn read_unit(unit: usize, bytes: &[u8]) -> Option<[u8; UNIT_BYTES]> {
    let mut bytes: [u8; UNIT_BYTES] = bytes.try_into().ok()?;
    let (body, seal) = bytes.split_at_mut(UNIT_BODY);
    let difference = unit_sum(unit, body) ^ number(seal);
    let is_right = difference.count_ones() <= 1 || correct(body, sum(body) ^ difference);
    is_right.then_some(bytes)
}

/// What the file of sums says, if it can be believed.
pub(super) fn read_sums(content: &[u8]) -> Option<State> {
    let mut units = content.chunks(UNIT_BYTES).enumerate();
    let (_, head) = units.next()?;
    let head = read_unit(0, head)?;
    if !head.starts_with(MAGIC) || head[8..12] != FORMAT_VERSION.to_le_bytes() {
        return None;
    }
    let blocks = usize::try_from(number(&head[BLOCKS_AT..])).ok()?;
    if blocks.div_ceil(UNIT_SUMS) > content.len() / UNIT_BYTES - 1 {
        return None; // Cut short.
    }
    let mut state = State::of_blocks(blocks);
    state
        .header
        .copy_from_slice(&head[HEADER_AT..HEADER_AT + HEADER_BYTES]);
    state.header_sum_before = number(&head[BEFORE_AT..]);
    state.head_is_dirty = false;
    let mut sums = state.sums.chunks_mut(UNIT_SUMS);
    for (unit, bytes) in units {
        let Some(sums) = sums.next() else { break };
        let bytes = read_unit(unit, bytes)?;
        for (sum, bytes) in sums.iter_mut().zip(bytes.chunks_exact(SUM_BYTES)) {
            *sum = number(bytes);
        }
    }
    Some(state)
}

/// The file. See the module.
pub struct PageFile {
    /// Locks, and what else redb wants of a file.
    backend: WithReserve<FileBackend>,
    reserve: Arc<Reserve>,
    path: PathBuf,
    file: File,
    sums_file: File,
    state: RwLock<State>,
    /// Before, nothing is known of the sums; redb locks the file first.
    is_identified: Mutex<bool>,
    /// A flush failed before: the kernel may show sums that it never wrote.
    is_doubtful: bool,
    /// The sums are those of this file.
    is_checking: AtomicBool,
    /// Whoever writes a block has it for reading; whoever corrects one, alone.
    correcting: RwLock<()>,
    damage: Arc<Damage>,
}

impl std::fmt::Debug for PageFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageFile")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PageFile {
    /// The file of a tree, which must be there; the one of its sums is made if it is not. Nothing is read or written yet.
    pub fn open(
        path: &Path,
        reserve: Arc<Reserve>,
        unflushed: Unflushed,
        damage: Arc<Damage>,
    ) -> io::Result<Arc<PageFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        let is_doubtful = !locked(&unflushed).is_empty();
        let mut sums = OpenOptions::new();
        sums.read(true).write(true).create(true).truncate(false);
        Ok(Arc::new(PageFile {
            backend: WithReserve::new(backend, Some(file.try_clone()?), reserve.clone(), unflushed)?,
            reserve,
            path: path.to_owned(),
            file,
            sums_file: sums.open(sums_path_of(path))?,
            state: RwLock::new(State::of_blocks(0)),
            is_identified: Mutex::new(false),
            is_doubtful,
            is_checking: AtomicBool::new(false),
            correcting: RwLock::new(()),
            damage,
        }))
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether blocks are checked. If not, [`PageFile::make_sums`] must be called once redb has verified the tree.
    pub fn is_checking(&self) -> bool {
        self.is_checking.load(Ordering::Acquire)
    }

    /// Blocks of the file.
    pub fn blocks(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().div_ceil(BLOCK_BYTES as u64))
    }

    /// Finds out whether the sums are those of the file, and the file is the one of its name: what a repair
    /// put in its place before this one was locked would be what the next start opens.
    fn identify(&self) -> io::Result<()> {
        let mut is_identified = locked(&self.is_identified);
        if *is_identified {
            return Ok(());
        }
        if !is_at(&self.file, &self.path)? {
            return Err(io::Error::other(
                "another file came into its place while it was opened",
            ));
        }
        let bytes = self.file.metadata()?.len();
        if bytes == 0 {
            self.sums_file.set_len(0)?;
            self.is_checking.store(true, Ordering::Release);
        } else {
            let mut content = vec![0; usize::try_from(self.sums_file.metadata()?.len()).unwrap_or(0)];
            if !read_beside(&self.sums_file, &mut content, 0)?.is_empty() {
                content.clear(); // They are made anew.
            }
            if let Some(mut state) = read_sums(&content)
                && self.has_header(&mut state)?
            {
                state.sums.truncate(bytes.div_ceil(BLOCK_BYTES as u64) as usize);
                if self.is_doubtful {
                    state.dirty.extend(1..=state.sums.len().div_ceil(UNIT_SUMS));
                }
                *self.state_mut() = state;
                self.is_checking.store(true, Ordering::Release);
            }
        }
        *is_identified = true;
        Ok(())
    }

    /// Whether the file's header is the one that the sums know; sets it right if it is but for some bits.
    fn has_header(&self, state: &mut State) -> io::Result<bool> {
        let mut header = [0; HEADER_BYTES];
        read_at(&self.file, &mut header, 0)?;
        if header == state.header {
            return Ok(true);
        }
        if sum(&header) == state.header_sum_before {
            state.header = header;
            return Ok(true);
        }
        let pairs = header.iter().zip(&state.header);
        let bits: u32 = pairs.map(|(one, other)| (one ^ other).count_ones()).sum();
        if bits > HEADER_BITS_MAX && !correct(&mut header, state.header_sum_before) {
            return Ok(false);
        }
        // Of two headers that a crash may have left, this is the one of which the bits are.
        if bits > HEADER_BITS_MAX {
            state.header = header;
        }
        self.file.write_all_at(&state.header, 0)?;
        self.file.sync_data()?;
        self.damage.note_corrected(0);
        Ok(true)
    }

    /// Makes sums of what the file holds, which redb has verified. Nobody may be writing.
    pub fn make_sums(&self) -> io::Result<()> {
        let blocks = self.blocks()? as usize;
        let mut state = State::of_blocks(blocks);
        read_at(&self.file, &mut state.header, 0)?;
        state.header_sum_before = sum(&state.header);
        let mut bytes = vec![0; 256 * BLOCK_BYTES];
        for first in (1..blocks).step_by(256) {
            let bytes = &mut bytes[..(blocks - first).min(256) * BLOCK_BYTES];
            read_at(&self.file, bytes, (first * BLOCK_BYTES) as u64)?;
            for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
                state.set(block, block_sum(bytes));
            }
        }
        *self.state_mut() = state;
        self.write_sums()?;
        self.is_checking.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the sums on disk those in memory; durable.
    fn write_sums(&self) -> io::Result<()> {
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        {
            let mut state = self.state_mut();
            let mut units = std::mem::take(&mut state.dirty);
            if std::mem::take(&mut state.head_is_dirty) || !units.is_empty() {
                units.insert(0);
            }
            for unit in units {
                let bytes = state.unit(unit);
                match runs.last_mut() {
                    Some((first, run)) if *first + run.len() / UNIT_BYTES == unit => run.extend(bytes),
                    _ => runs.push((unit, bytes.to_vec())),
                }
            }
        }
        if runs.is_empty() {
            return Ok(());
        }
        let written = runs
            .iter()
            .try_for_each(|(first, run)| {
                let at = (first * UNIT_BYTES) as u64;
                let write = || self.sums_file.write_all_at(run, at);
                self.reserve.with_room_in(&self.sums_file, at, write)
            })
            .and_then(|()| self.sums_file.sync_data());
        if written.is_err() {
            // Whoever goes on after that writes them again.
            let units = runs
                .iter()
                .flat_map(|(first, run)| *first..first + run.len() / UNIT_BYTES);
            let mut state = self.state_mut();
            state.head_is_dirty = true;
            state.dirty.extend(units.filter(|unit| *unit > 0));
        }
        written
    }

    /// Blocks of a read that are not what was written are set right in it, or the read unwinds.
    fn check(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if !offset.is_multiple_of(BLOCK_BYTES as u64) {
            return Ok(()); // Parts of the header.
        }
        let first = offset / BLOCK_BYTES as u64;
        for (block, bytes) in (first..).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
            if block == 0 || self.holds(block, bytes) {
                continue;
            }
            let is_whole = self.check_block(block)? != BlockState::Damaged;
            if !is_whole || !self.read_block(block, bytes)? || !self.holds(block, bytes) {
                self.unwind(block);
            }
        }
        Ok(())
    }

    /// What is at a place, which may be of several blocks; unwinds from the first one that is lost.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let lost = read_beside(&self.file, out, offset)?;
        if let Some(block) = lost.first() {
            self.unwind(*block);
        }
        Ok(())
    }

    /// Whether it can be read.
    fn read_block(&self, block: u64, bytes: &mut [u8]) -> io::Result<bool> {
        match read_at(&self.file, bytes, block * BLOCK_BYTES as u64) {
            Err(error) if is_lost(&error) => Ok(false),
            read => read.map(|()| true),
        }
    }

    fn unwind(&self, block: u64) -> ! {
        self.damage.note_page(block);
        std::panic::resume_unwind(Box::new(DamagedPage(block)))
    }

    fn holds(&self, block: u64, bytes: &[u8]) -> bool {
        let expected = self.state().sums.get(block as usize).copied().unwrap_or(0);
        expected == 0 || expected == block_sum(bytes)
    }

    /// Reads a block from the file and sees whether it is what was written; sets one wrong bit right.
    pub fn check_block(&self, block: u64) -> io::Result<BlockState> {
        let mut bytes = [0; BLOCK_BYTES];
        if !self.read_block(block, &mut bytes)? {
            return Ok(BlockState::Damaged);
        }
        if block == 0 || self.holds(block, &bytes) {
            return Ok(BlockState::Whole);
        }
        let _alone = self.correcting.write().unwrap_or_else(PoisonError::into_inner);
        if !self.read_block(block, &mut bytes)? {
            return Ok(BlockState::Damaged);
        }
        if self.holds(block, &bytes) {
            return Ok(BlockState::Whole);
        }
        let expected = self.state().sums.get(block as usize).copied().unwrap_or(0);
        if correct(&mut bytes, expected) && self.holds(block, &bytes) {
            self.file.write_all_at(&bytes, block * BLOCK_BYTES as u64)?;
            self.damage.note_corrected(block);
            return Ok(BlockState::Corrected);
        }
        Ok(BlockState::Damaged)
    }
}

/// redb owns its backend; the tree has the file too.
#[derive(Debug)]
pub struct Backend(pub Arc<PageFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.identify()?;
        if !self.0.is_checking() {
            return read_at(&self.0.file, out, offset);
        }
        match offset {
            0 => read_at(&self.0.file, out, 0)?, // Without its header there is no tree.
            _ => self.0.read(offset, out)?,
        }
        self.0.check(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.identify()?;
        self.0.backend.set_len(len)?;
        let blocks = len.div_ceil(BLOCK_BYTES as u64) as usize;
        let mut state = self.0.state_mut();
        let before = state.sums.len();
        state.sums.resize(blocks, 0);
        let changed = before.min(blocks) / UNIT_SUMS..before.max(blocks).div_ceil(UNIT_SUMS);
        state.dirty.extend(changed.map(|unit| unit + 1));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.0.is_checking() {
            self.0.write_sums()?;
        }
        self.0.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let file = &self.0;
        file.identify()?;
        let _shared = file.correcting.read().unwrap_or_else(PoisonError::into_inner);
        file.backend.write(offset, data)?;
        if offset == 0 {
            let mut state = file.state_mut();
            let bytes = data.len().min(HEADER_BYTES);
            if !state.head_is_dirty {
                state.header_sum_before = sum(&state.header);
            }
            state.header[..bytes].copy_from_slice(&data[..bytes]);
            state.head_is_dirty = true;
            return Ok(());
        }
        let first = (offset / BLOCK_BYTES as u64) as usize;
        let sums: Vec<u64> = data.chunks(BLOCK_BYTES).map(block_sum).collect();
        let is_whole = offset.is_multiple_of(BLOCK_BYTES as u64) && data.len().is_multiple_of(BLOCK_BYTES);
        let mut state = file.state_mut();
        for (block, sum) in (first..).zip(sums) {
            state.set(block, if is_whole { sum } else { 0 });
        }
        drop(state);
        for block in first..first + data.len().div_ceil(BLOCK_BYTES) {
            file.damage.forget_page(block as u64);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.0.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.backend.query_lock_range(start, end)
    }
}
