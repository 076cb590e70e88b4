//! A disk in memory with every fault we know of, for tests. Deterministic: the same seed and calls, the same disk.
//!
//! The fault model:
//! - **Sectors of 512 B are atomic**; anything larger can be torn between sectors. Writes land in a volatile cache;
//!   a flush makes them durable. At a crash each unflushed sector is, independently: kept, or lost (the old bytes
//!   are back). That is how a torn write comes about. A test may want all kept, all lost, or that the process died
//!   and the cache did not ([`Unflushed`]).
//! - **Crash at any I/O**: operation number n and all later ones fail, until [`SimulatedDisk::reboot`]. The
//!   operation that crashes may itself have happened in part.
//! - **Read, write, flush error**: one operation fails; a failed write may have written any of its sectors; a failed
//!   flush makes nothing durable and forgets which sectors were dirty, as kernels do: readers see them, no later flush
//!   covers them, and each is lost or kept at a crash.
//! - **Out of space**: [`Device::allocate`] fails, once, or for all that was not allocated before
//!   ([`SimulatedDisk::fill_filesystem`]); nothing was written.
//! - **Lost write**: acknowledged, never done. **Lying flush**: acknowledged, nothing made durable. Of one operation, or as a habit
//!   ([`SimulatedDisk::lose_writes`], [`SimulatedDisk::lie_about_flushes`]) that outlives reboots.
//! - **Misdirected write or read**: whole, at another block. **Stale read**: the bytes before the last write.
//! - **Bit flip**: [`SimulatedDisk::flip_bit`], any bit. **Slow I/O**: answered late. **Hang**: never answered.
//!
//! Faults are armed for the next matching operation ([`SimulatedDisk::arm`]) and used up by it.

use super::{
    AlignedBuf, AlignedBytes, BLOCK, Completer, Completion, Device, DeviceError, DeviceErrorKind, DeviceInfo,
    completion,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a disk writes atomically, in bytes.
pub const SECTOR: usize = 512;

/// One armed fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next read fails.
    ReadError,
    /// The next write fails, having written any of its sectors.
    WriteError,
    /// The next flush fails and makes nothing durable.
    FlushError,
    /// The next allocation fails.
    NoSpace,
    /// The next write is acknowledged and not done.
    LostWrite,
    /// The next flush is acknowledged and not done.
    LyingFlush,
    /// The next write goes to another block.
    MisdirectedWrite,
    /// The next read comes from another block.
    MisdirectedRead,
    /// The next read returns what was there before the last write.
    StaleRead,
    /// The next operation is answered late.
    Slow(Duration),
    /// The next operation is never answered.
    Hang,
}

/// What a crash does to what was written and not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unflushed {
    /// Each sector is kept or lost, independently.
    Either,
    /// All of it is kept.
    Kept,
    /// All of it is lost.
    Lost,
    /// It stays in the cache, to be kept or lost later: the process died, and the machine did not.
    Cached,
}

impl Fault {
    fn concerns(self, operation: Kind) -> bool {
        match self {
            Fault::ReadError | Fault::MisdirectedRead | Fault::StaleRead => operation == Kind::Read,
            Fault::WriteError | Fault::LostWrite | Fault::MisdirectedWrite => operation == Kind::Write,
            Fault::FlushError | Fault::LyingFlush => operation == Kind::Flush,
            Fault::NoSpace => operation == Kind::Allocate,
            Fault::Slow(_) | Fault::Hang => operation != Kind::Allocate,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Allocate,
}

/// A sector that a crash may lose.
struct Sector {
    /// What is durable there.
    durable: [u8; SECTOR],
    /// The next flush covers it: no flush has failed since it was written.
    dirty: bool,
}

struct Media {
    /// What a reader sees.
    current: Vec<u8>,
    /// The sectors that are not durable as readers see them.
    unflushed: BTreeMap<usize, Sector>,
    /// What each sector held before its last write.
    before: BTreeMap<usize, [u8; SECTOR]>,
    rng: StdRng,
    armed: Vec<Fault>,
    operations: u64,
    crash_at: Option<u64>,
    /// Completers of hung operations: kept so that they are never answered.
    hung: Vec<Box<dyn Send>>,
    gone: Option<String>,
    /// Ranges that were allocated, by where they start.
    allocated: BTreeSet<u64>,
    filesystem_full: bool,
    /// So many of a thousand writes are acknowledged and not done.
    writes_lost: u32,
    /// Flushes are acknowledged and not done.
    flushes_lie: bool,
    lies: u64,
}

/// The disk itself: outlives crashes and reboots, and is where tests arm faults.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<Media>>);

impl SimulatedDisk {
    /// A zeroed disk.
    pub fn new(size: u64, seed: u64) -> Self {
        SimulatedDisk(Arc::new(Mutex::new(Media {
            current: vec![0; size as usize],
            unflushed: BTreeMap::new(),
            before: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed),
            armed: Vec::new(),
            operations: 0,
            crash_at: None,
            hung: Vec::new(),
            gone: None,
            allocated: BTreeSet::new(),
            filesystem_full: false,
            writes_lost: 0,
            flushes_lie: false,
            lies: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Media> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device, as an engine opens it.
    pub fn device(&self) -> Arc<dyn Device> {
        let info = DeviceInfo {
            size: self.lock().current.len() as u64,
            backend: "simulated".into(),
        };
        Arc::new(SimulatedDevice {
            info,
            disk: self.clone(),
        })
    }

    /// Arms a fault for the next operation that it concerns.
    pub fn arm(&self, fault: Fault) {
        self.lock().armed.push(fault);
    }

    /// Lets the operation that is `after` operations from now crash (0 is the next one).
    pub fn crash_after(&self, after: u64) {
        let mut media = self.lock();
        media.crash_at = Some(media.operations + after);
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Whether the crash has happened.
    pub fn is_crashed(&self) -> bool {
        let media = self.lock();
        media.crash_at.is_some_and(|at| media.operations > at)
    }

    /// Cuts the power: each unflushed sector is kept or lost, independently; then the disk works again, with no
    /// fault armed.
    pub fn reboot(&self) {
        self.reboot_with(Unflushed::Either);
    }

    /// As [`SimulatedDisk::reboot`], where the test says what becomes of what was not flushed.
    pub fn reboot_with(&self, unflushed: Unflushed) {
        let media = &mut *self.lock();
        if unflushed != Unflushed::Cached {
            for (sector, Sector { durable, .. }) in std::mem::take(&mut media.unflushed) {
                let lost = match unflushed {
                    Unflushed::Either => media.rng.random::<bool>(),
                    other => other == Unflushed::Lost,
                };
                if lost {
                    media.current[sector * SECTOR..][..SECTOR].copy_from_slice(&durable);
                }
            }
        }
        media.crash_at = None;
        media.armed.clear();
        media.hung.clear();
    }

    /// Flips one bit of what is stored.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        self.lock().current[offset as usize] ^= 1 << (bit % 8);
    }

    /// Overwrites bytes, durably, behind the engine's back.
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) {
        self.lock().current[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Copies bytes out, without counting as an operation.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        self.lock().current[offset as usize..][..len].to_vec()
    }

    /// Whether nothing in this range would be lost with the power.
    pub fn is_durable(&self, offset: u64, len: u64) -> bool {
        let sectors = offset as usize / SECTOR..((offset + len) as usize).div_ceil(SECTOR);
        self.lock().unflushed.range(sectors).next().is_none()
    }

    /// How many faults are armed and not used up.
    pub fn armed(&self) -> usize {
        self.lock().armed.len()
    }

    /// Forgets the faults that are armed.
    pub fn disarm(&self) {
        self.lock().armed.clear();
    }

    /// From now on so many of a thousand writes are acknowledged and not done.
    pub fn lose_writes(&self, share: u32) {
        self.lock().writes_lost = share;
    }

    /// From now on flushes are acknowledged and not done, or done again.
    pub fn lie_about_flushes(&self, lie: bool) {
        self.lock().flushes_lie = lie;
    }

    /// How many operations were acknowledged and not done.
    pub fn lies(&self) -> u64 {
        self.lock().lies
    }

    /// Fills the filesystem under the disk: from now on only what was allocated once can be allocated again.
    pub fn fill_filesystem(&self) {
        self.lock().filesystem_full = true;
    }

    /// Makes presence checks fail, as when a disk file was removed.
    pub fn remove(&self) {
        self.lock().gone = Some("the file was removed".into());
    }
}

impl Media {
    /// Counts an operation; says which fault it meets, or that the machine is down.
    fn begin(&mut self, kind: Kind) -> Result<Option<Fault>, DeviceError> {
        let number = self.operations;
        self.operations += 1;
        if self.crash_at.is_some_and(|at| number > at) {
            return Err(DeviceError::new(DeviceErrorKind::Gone, "crashed"));
        }
        if self.crash_at == Some(number) {
            return Ok(None);
        }
        let position = self.armed.iter().position(|fault| fault.concerns(kind));
        let fault = position
            .map(|at| self.armed.remove(at))
            .or_else(|| self.habit(kind));
        self.lies += u64::from(matches!(fault, Some(Fault::LostWrite | Fault::LyingFlush)));
        Ok(fault)
    }

    /// What it always does to such an operation.
    fn habit(&mut self, kind: Kind) -> Option<Fault> {
        match kind {
            Kind::Write if self.writes_lost > 0 && self.rng.random_range(0..1_000) < self.writes_lost => {
                Some(Fault::LostWrite)
            }
            Kind::Flush if self.flushes_lie => Some(Fault::LyingFlush),
            _ => None,
        }
    }

    fn crashing(&self) -> bool {
        self.crash_at.is_some_and(|at| self.operations > at)
    }

    fn elsewhere(&mut self, offset: u64, len: usize) -> usize {
        let blocks = (self.current.len() - len) / BLOCK + 1;
        let block = self.rng.random_range(0..blocks);
        if block * BLOCK == offset as usize {
            (block + 1) % blocks * BLOCK
        } else {
            block * BLOCK
        }
    }

    /// Writes sectors into the cache; when `partly`, each with even odds.
    fn put(&mut self, offset: usize, bytes: &[u8], partly: bool) {
        for (i, chunk) in bytes.chunks_exact(SECTOR).enumerate() {
            if partly && self.rng.random::<bool>() {
                continue;
            }
            let sector = offset / SECTOR + i;
            let place = &mut self.current[sector * SECTOR..][..SECTOR];
            let mut old = [0; SECTOR];
            old.copy_from_slice(place);
            place.copy_from_slice(chunk);
            let clean = Sector {
                durable: old,
                dirty: false,
            };
            self.unflushed.entry(sector).or_insert(clean).dirty = true;
            self.before.insert(sector, old);
        }
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<Option<Fault>, DeviceError> {
        let fault = self.begin(Kind::Read)?;
        let failed = |what: &str| Err(DeviceError::new(DeviceErrorKind::Read, what));
        if self.crashing() {
            return failed("crashed");
        }
        if offset as usize + buf.len() > self.current.len() {
            return failed("end of device");
        }
        let start = match fault {
            Some(Fault::ReadError) => return failed("injected read error"),
            Some(Fault::MisdirectedRead) => self.elsewhere(offset, buf.len()),
            _ => offset as usize,
        };
        buf.copy_from_slice(&self.current[start..][..buf.len()]);
        if fault == Some(Fault::StaleRead) {
            for (i, chunk) in buf.chunks_exact_mut(SECTOR).enumerate() {
                if let Some(before) = self.before.get(&(start / SECTOR + i)) {
                    chunk.copy_from_slice(before);
                }
            }
        }
        Ok(fault)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Option<Fault>, DeviceError> {
        let fault = self.begin(Kind::Write)?;
        let failed = |what: &str| Err(DeviceError::new(DeviceErrorKind::Write, what));
        if offset as usize + bytes.len() > self.current.len() {
            return failed("end of device");
        }
        if self.crashing() {
            self.put(offset as usize, bytes, true);
            return failed("crashed");
        }
        match fault {
            Some(Fault::WriteError) => {
                self.put(offset as usize, bytes, true);
                return failed("injected write error");
            }
            Some(Fault::LostWrite) => {}
            Some(Fault::MisdirectedWrite) => {
                let elsewhere = self.elsewhere(offset, bytes.len());
                self.put(elsewhere, bytes, false);
            }
            _ => self.put(offset as usize, bytes, false),
        }
        Ok(fault)
    }

    fn flush(&mut self) -> Result<Option<Fault>, DeviceError> {
        let fault = self.begin(Kind::Flush)?;
        let failed = |what: &str| Err(DeviceError::new(DeviceErrorKind::Flush, what));
        if self.crashing() {
            return failed("crashed");
        }
        match fault {
            Some(Fault::FlushError) => {
                self.unflushed
                    .values_mut()
                    .for_each(|sector| sector.dirty = false);
                return failed("injected flush error");
            }
            Some(Fault::LyingFlush) => {}
            _ => self.unflushed.retain(|_, sector| !sector.dirty),
        }
        Ok(fault)
    }
}

struct SimulatedDevice {
    info: DeviceInfo,
    disk: SimulatedDisk,
}

impl SimulatedDevice {
    fn answer<T: Send + 'static>(
        &self,
        result: Result<Option<Fault>, DeviceError>,
        completer: Completer<T>,
        value: T,
    ) {
        match result {
            Ok(Some(Fault::Hang)) => self.disk.lock().hung.push(Box::new((completer, value))),
            Ok(Some(Fault::Slow(delay))) => {
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    completer.complete(Ok(value));
                });
            }
            Ok(_) => completer.complete(Ok(value)),
            Err(error) => completer.complete(Err(error)),
        }
    }
}

impl Device for SimulatedDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buf: AlignedBuf) -> Completion<AlignedBuf> {
        let (completer, completion) = completion();
        let result = self.disk.lock().read(offset, &mut buf);
        self.answer(result, completer, buf);
        completion
    }

    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()> {
        let (completer, completion) = completion();
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let result = self.disk.lock().write(offset, &bytes);
        self.answer(result, completer, ());
        completion
    }

    fn flush(&self) -> Completion<()> {
        let (completer, completion) = completion();
        let result = self.disk.lock().flush();
        self.answer(result, completer, ());
        completion
    }

    fn allocate(&self, offset: u64, _len: u64) -> Result<(), DeviceError> {
        let mut media = self.disk.lock();
        let fault = media.begin(Kind::Allocate)?;
        let full = media.filesystem_full && !media.allocated.contains(&offset);
        if full || fault == Some(Fault::NoSpace) {
            return Err(DeviceError::new(
                DeviceErrorKind::NoSpace,
                "injected: no space left",
            ));
        }
        media.allocated.insert(offset);
        Ok(())
    }

    fn check(&self) -> Result<(), DeviceError> {
        match &self.disk.lock().gone {
            Some(why) => Err(DeviceError::new(DeviceErrorKind::Gone, why.clone())),
            None => Ok(()),
        }
    }
}
