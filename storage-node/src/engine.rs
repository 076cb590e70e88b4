//! One disk: append-only extents of records, one committer thread, an index in memory.
//!
//! ```text
//!   put, delete ──▶ queue ──▶ committer ──▶ one batch, one flush ──▶ index ──▶ answer
//!   get ──▶ index ──▶ heads, device ──▶ head checked ──▶ blocks
//! ```
//! Invariants:
//! - A put or delete is answered `Ok` only when it is durable. Nothing but the record is written for it.
//! - The extents alone are the truth; the index is rebuilt from them ([`recovery`]).
//! - A write or flush error fences the disk with its reason, for good. A read error does not.
//! - Every call is bounded by its deadline, and refused at once when the queue is full.

mod admit;
mod batch;
mod committer;
mod compaction;
mod flusher;
pub(crate) mod headers;
mod heads;
#[doc(hidden)] // Pure, and for tests/interleavings.
pub mod index;
mod loose;
mod many;
mod queue;
mod reader;
pub(crate) mod recovery;
mod rests;
mod room;
pub(crate) mod scan;
mod stream;
mod summaries;
mod superblocks;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
mod verify;

use crate::client::{DELETE_BLOBS_MAX, INVENTORY_LIMIT_MAX};
use crate::device::{AlignedBuf, BLOCK, Device, DeviceError, Latched};
use crate::format::extent::{DiskIdentity, ExtentHeader, SYSTEM_UNIT};
use crate::format::layout::Layout;
use crate::format::superblock::{FORMAT_VERSION, Superblock};
use crate::metrics::{DiskMetrics, DiskMetricsSnapshot};
use crate::protocol::{
    Admission, AdmitRequest, BlockRange, DiskState, Findings, Generation, InventoryEntry, LedgerMarks,
    NodeError, Opening, SHARD_BYTES_MAX, STRIPE_SHARDS_MAX, SYSTEM_VOLUME_MIN, SealedShard, ShardBlocks,
    ShardKey, Still, UnitAddress, UnitId, UnitInfo, VerifyOrder, VerifyStatus, block_count,
};
use committer::Committer;
use flusher::Flusher;
use heads::{HEADS_BYTES, Heads};
use index::{ExtentUse, Index};
use queue::{Change, Queue, Request};
pub use recovery::Opened;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc,
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};
pub use verify::Verified;
use verify::{Found, Verifying};

/// Reads in progress on one disk, those that a hung device never answers included; more are refused.
const READS_MAX: usize = 1024;
/// How long a shutdown waits for a disk.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(8);
/// How long a caller whose reply was lost waits for the reason.
const REASON_PATIENCE: Duration = Duration::from_millis(100);
/// A disk's presence is looked at no more often than this.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Before a batch is written the disk is looked at no more often than this.
const WRITE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// What the committer, readers and callers share.
struct Shared {
    device: Arc<dyn Device>,
    layout: Layout,
    identity: DiskIdentity,
    reserve: usize,
    index: RwLock<Index>,
    heads: Heads,
    queue: Queue,
    fence: OnceLock<String>,
    metrics: DiskMetrics,
    free_extents: AtomicU64,
    checked: Mutex<Option<Instant>>,
    found: Found,
    /// Extents, and in which use, whose summary is to be written again.
    bad_summaries: Mutex<Vec<(u32, u64)>>,
    /// The extent that verifying goes on with.
    verify_cursor: AtomicU32,
    /// What verifying was told, and what it did.
    verifying: Verifying,
    /// What the medium remembers, and whether a gateway admitted it as it was opened.
    admission: Mutex<(Admission, bool)>,
    /// Whether a gateway admitted it for reads alone.
    is_read: AtomicBool,
    /// Which ledger the disk obeys, as the superblock says it.
    ledger: Mutex<LedgerMarks>,
    /// What came to the disk.
    seen: Seen,
}

/// The greatest ids and epoch of what is on the disk, and of what came since it was opened; those of the system apart.
#[derive(Debug, Default)]
struct Seen {
    blob_limit: AtomicU64,
    volume_limit: AtomicU64,
    epoch: AtomicU32,
}

impl Seen {
    /// Of all that a disk knows.
    fn of(index: &Index) -> Seen {
        let seen = Seen::default();
        for (id, unit) in &index.units {
            let last = unit.shards.last().map_or(0, |key| key.blob);
            seen.take_in(*id, last, unit.epoch);
        }
        for ((unit, blob), mark) in &index.tombstones {
            seen.take_in(*unit, *blob, mark.epoch);
        }
        for (unit, drop) in &index.drops {
            seen.take_in(*unit, 0, drop.epoch);
        }
        seen
    }

    fn take_in(&self, unit: UnitId, blob: u64, epoch: u32) {
        if unit.volume < SYSTEM_VOLUME_MIN {
            self.blob_limit
                .fetch_max(blob.saturating_add(1), Ordering::Relaxed);
            self.volume_limit.fetch_max(unit.volume + 1, Ordering::Relaxed);
            self.epoch.fetch_max(epoch, Ordering::Relaxed);
        }
    }

    fn marks(&self) -> LedgerMarks {
        LedgerMarks {
            blob_limit: self.blob_limit.load(Ordering::Relaxed),
            volume_limit: self.volume_limit.load(Ordering::Relaxed),
            epoch: self.epoch.load(Ordering::Relaxed),
            ..LedgerMarks::default()
        }
    }
}

impl Shared {
    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn bad_summaries(&self) -> MutexGuard<'_, Vec<(u32, u64)>> {
        self.bad_summaries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_admission(&self) -> MutexGuard<'_, (Admission, bool)> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_ledger(&self) -> MutexGuard<'_, LedgerMarks> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to change anything for another ledger than the one that the disk obeys, if it was told of any.
    fn check_ledger(&self, address: &UnitAddress) -> Result<(), NodeError> {
        let current = self.lock_ledger().generation;
        match current == Generation::NONE || address.ledger == current {
            true => Ok(()),
            false => Err(NodeError::OtherLedger { current }),
        }
    }

    /// Takes the disk out of service; the first reason stays.
    fn fence_with(&self, error: &DeviceError) -> NodeError {
        self.fence_because(&error.to_string())
    }

    /// Takes the disk out of service for a reason that operators read; the first one stays.
    fn fence_because(&self, reason: &str) -> NodeError {
        let reason = self.fence.get_or_init(|| {
            tracing::error!(disk = %self.identity.disk, %reason, "disk fenced");
            reason.to_string()
        });
        NodeError::Fenced {
            reason: reason.clone(),
        }
    }

    fn check_serving(&self) -> Result<(), NodeError> {
        match self.fence.get() {
            Some(reason) => Err(NodeError::Fenced {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Notices a disk that was removed or truncated under us.
    fn check_presence(&self) {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.is_some_and(|at| at.elapsed() < CHECK_INTERVAL) || self.fence.get().is_some() {
            return;
        }
        *checked = Some(Instant::now());
        if let Err(error) = self.device.check() {
            self.fence_with(&error);
        }
    }

    /// Refuses an address of another disk, incarnation or an older epoch; remembers a newer epoch.
    fn check_epoch(&self, address: &UnitAddress) -> Result<(), NodeError> {
        if address.disk != self.identity.disk || address.incarnation != self.identity.incarnation {
            return Err(NodeError::WrongDisk);
        }
        if address.unit == SYSTEM_UNIT {
            return Err(NodeError::BadRequest {
                what: "this unit id is reserved".into(),
            });
        }
        let (known, dropped) = {
            let index = self.index();
            (
                index.units.get(&address.unit).map(|unit| unit.epoch),
                index.drops.get(&address.unit).map(|drop| drop.epoch),
            )
        };
        // A unit that was dropped is not made again by a request of before.
        if let Some(current) = known.max(dropped)
            && address.epoch < current
        {
            return Err(NodeError::StaleEpoch { current });
        }
        match known {
            Some(current) if address.epoch > current => {
                self.index_mut().unit(address.unit, address.epoch);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// What a disk is formatted with.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The cluster it belongs to.
    pub cluster: crate::protocol::ClusterId,
    /// Its id.
    pub disk: crate::protocol::DiskId,
    /// Its incarnation: greater than any it had.
    pub incarnation: u64,
    /// Bytes of an extent; a power of two.
    pub extent_size: u64,
}

/// Formats a device: free extent headers everywhere, then superblocks. Blocks.
pub fn format(device: &dyn Device, format: &Format) -> Result<Superblock, String> {
    let device_size = device.info().size;
    let layout = Layout::new(device_size, format.extent_size).map_err(|e| e.to_string())?;
    let identity = DiskIdentity {
        disk: format.disk,
        incarnation: format.incarnation,
    };
    for first in (0..layout.extents()).step_by(64) {
        let mut writes = Vec::new();
        for extent in first..(first + 64).min(layout.extents()) {
            let header = ExtentHeader {
                owner: None,
                extent,
                generation: 0,
                sequence: 0,
            };
            let mut block = AlignedBuf::zeroed(BLOCK);
            let bytes = header.encode(&identity);
            block[..bytes.len()].copy_from_slice(&bytes);
            let (block, start) = (block.share(), layout.extent_offset(extent));
            writes.push(device.write(start, block.clone()));
            writes.push(device.write(start + u64::from(layout.data_end()), block));
        }
        for write in writes {
            write.wait().map_err(|e| e.to_string())?;
        }
    }
    device.flush().wait().map_err(|e| e.to_string())?;
    let superblock = Superblock {
        version: FORMAT_VERSION,
        disk: format.disk,
        cluster: format.cluster,
        incarnation: format.incarnation,
        sequence: 1,
        device_size,
        extent_size: format.extent_size,
        generation_limit: 1,
        flushed: 0,
        verified: 0,
        headers: 0,
        admission: Admission::default(),
        ledger: LedgerMarks::default(),
    };
    superblocks::write(device, &superblock).map_err(|e| e.to_string())?;
    Ok(superblock)
}

/// The superblock on a device, if any copy is valid. Blocks.
pub fn peek_superblock(device: &dyn Device) -> Result<Superblock, String> {
    superblocks::choose(&superblocks::read(device), device.info().size).map_err(|e| e.to_string())
}

/// What superblocks there are on a device that somebody wants to format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// None: it is not a Cairn disk, as far as can be read.
    None,
    /// Copies that are damaged, or of a newer format.
    Damaged,
    /// A Cairn disk, even if it has another size now.
    Disk(Superblock),
}

/// Looks for superblocks, more kindly than [`peek_superblock`]: what cannot be opened may still hold data. Blocks.
pub fn find_superblock(device: &dyn Device) -> Trace {
    superblocks::trace(&superblocks::read(device))
}

/// As [`find_superblock`], and an error if not all places could be read. Blocks.
pub fn trace_superblock(device: &dyn Device) -> Result<Trace, String> {
    let copies = superblocks::read(device);
    match superblocks::all_read(&copies) {
        true => Ok(superblocks::trace(&copies)),
        false => Err("the disk fails to read where its superblocks would be".into()),
    }
}

/// Space and counts of a disk, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// Whether it serves.
    pub state: DiskState,
    /// The I/O backend.
    pub backend: String,
    /// Bytes that records could use in all.
    pub capacity_bytes: u64,
    /// Bytes that new shards can still use, counting what compaction could free.
    pub free_bytes: u64,
    /// Payload bytes of live shards.
    pub live_bytes: u64,
    /// Live shards.
    pub shards: u64,
    /// Units with records or a known epoch.
    pub units: u64,
    /// Extents that are free now.
    pub free_extents: u64,
    /// Shards found corrupt or unreadable since the disk was opened.
    pub corrupt_shards: u64,
}

/// An open disk.
pub struct Engine {
    shared: Arc<Shared>,
    superblock: Superblock,
    opened: Opened,
    reads: Arc<Semaphore>,
    committer: Mutex<Option<JoinHandle<()>>>,
    verifier: Mutex<Option<Verifier>>,
}

/// The thread that verifies a disk. It looks at what it was told when something is sent, and ends when the sender is dropped.
struct Verifier {
    orders: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Engine {
    /// Recovers a disk and starts serving it. Blocks: it reads the summary of every extent in use, and walks those without.
    pub fn open(device: Arc<dyn Device>) -> Result<Engine, String> {
        let device: Arc<dyn Device> = Arc::new(Latched::new(device));
        let superblock = recovery::open_superblock(&*device)?;
        let layout =
            Layout::new(superblock.device_size, superblock.extent_size).map_err(|e| e.to_string())?;
        let identity = DiskIdentity {
            disk: superblock.disk,
            incarnation: superblock.incarnation,
        };
        let found =
            recovery::recover(&*device, &superblock, &layout, &identity).map_err(|e| e.to_string())?;
        let extents = layout.extents() as usize;
        let seen = Seen::of(&found.index);
        let shared = Arc::new(Shared {
            device,
            layout,
            identity,
            reserve: (extents / 16).clamp(4, 8),
            index: RwLock::new(found.index),
            heads: Heads::new(HEADS_BYTES),
            queue: Queue::default(),
            fence: OnceLock::new(),
            metrics: DiskMetrics::default(),
            free_extents: AtomicU64::new(0),
            checked: Mutex::new(None),
            // Random, as far as somebody can tell who compares it with the one before.
            found: Found::new(RandomState::new().hash_one(superblock.sequence)),
            bad_summaries: Mutex::default(),
            verify_cursor: AtomicU32::new(superblock.verified % layout.extents()),
            verifying: Verifying::default(),
            admission: Mutex::new((superblock.admission, false)),
            is_read: AtomicBool::new(false),
            ledger: Mutex::new(superblock.ledger),
            seen,
        });
        shared.metrics.corrupt_shards.add(found.rotten);
        let free: VecDeque<u32> = {
            let index = shared.index();
            let numbered = index.extents.iter().enumerate();
            let free = numbered.filter(|(_, e)| e.used == ExtentUse::Free);
            // Those that were used once have their space.
            let (used, fresh): (Vec<_>, Vec<_>) = free.partition(|(_, e)| e.generation > 0);
            used.iter()
                .chain(&fresh)
                .map(|(number, _)| *number as u32)
                .collect()
        };
        shared.free_extents.store(free.len() as u64, Ordering::Relaxed);
        let mut committer = Committer {
            shared: shared.clone(),
            superblock,
            counters: found.counters,
            free,
            job: None,
            rests: Default::default(),
            headers: found.headers,
            summaries: Default::default(),
            checked: Instant::now(),
            still: None,
            granted: Default::default(),
            starved: false,
            flusher: Flusher::start(shared.clone()).map_err(|e| e.to_string())?,
            in_flight: VecDeque::new(),
        };
        committer
            .settle(&found.new_cuts, &found.loose)
            .map_err(|error| match error {
                NodeError::Fenced { reason } => reason,
                error => error.to_string(),
            })?;
        committer.summaries = found.summaries;
        let spawned = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || committer.run());
        let thread = spawned.map_err(|e| e.to_string())?;
        let reads = Arc::new(Semaphore::new(READS_MAX));
        Ok(Engine {
            shared,
            superblock,
            opened: found.opened,
            reads,
            committer: Mutex::new(Some(thread)),
            verifier: Mutex::new(None),
        })
    }

    /// How its extents were read when it was opened.
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// What the disk said it is when it was opened.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Stores a shard durably.
    pub async fn put(
        &self,
        to: &UnitAddress,
        shard: SealedShard,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        check_shape(&shard)?;
        self.change(to, Change::Put(shard), deadline).await?;
        self.shared.metrics.puts.add(1);
        Ok(())
    }

    /// Deletes blobs durably.
    pub async fn delete(
        &self,
        from: &UnitAddress,
        blobs: &[u64],
        deadline: Duration,
    ) -> Result<(), NodeError> {
        if blobs.len() > DELETE_BLOBS_MAX {
            let what = format!("{} blobs in one delete, at most {DELETE_BLOBS_MAX}", blobs.len());
            return Err(NodeError::BadRequest { what });
        }
        self.change(from, Change::Delete(blobs.to_vec()), deadline)
            .await?;
        self.shared.metrics.deletes.add(1);
        Ok(())
    }

    /// Drops a unit durably.
    pub async fn drop_unit(&self, unit: &UnitAddress, deadline: Duration) -> Result<(), NodeError> {
        self.change(unit, Change::DropUnit, deadline).await
    }

    async fn change(
        &self,
        address: &UnitAddress,
        change: Change,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.shared.check_serving()?;
        self.shared.check_ledger(address)?;
        self.shared.check_epoch(address)?;
        check_time(deadline)?;
        self.queue(*address, change, deadline).await
    }

    async fn queue(&self, address: UnitAddress, change: Change, deadline: Duration) -> Result<(), NodeError> {
        self.shared.check_serving()?;
        let (reply, answer) = oneshot::channel();
        self.shared.queue.push(Request {
            address,
            change,
            reply,
            retried: false,
        })?;
        match tokio::time::timeout(deadline, answer).await {
            Err(_) => Err(NodeError::Timeout),
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.lost_reply().await),
        }
    }

    /// A thread that panics drops the replies it has before it can say that it does: so it is given a moment.
    async fn lost_reply(&self) -> NodeError {
        let until = Instant::now() + REASON_PATIENCE;
        while self.shared.fence.get().is_none() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.shared.fence_because("the committer or the flusher stopped")
    }

    /// Reads blocks of a shard.
    pub async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        deadline: Duration,
    ) -> Result<ShardBlocks, NodeError> {
        self.shared.check_serving()?;
        self.shared.check_epoch(from)?;
        check_time(deadline)?;
        let Ok(permit) = self.reads.clone().try_acquire_owned() else {
            return Err(NodeError::Overloaded);
        };
        let read = self.shared.get(from, key, blocks, Arc::new(permit));
        let blocks = tokio::time::timeout(deadline, read)
            .await
            .map_err(|_| NodeError::Timeout)??;
        self.shared.metrics.gets.add(1);
        Ok(blocks)
    }

    /// Lists live shards in key order.
    pub fn inventory(
        &self,
        from: &UnitAddress,
        after: Option<ShardKey>,
        limit: usize,
    ) -> Result<Vec<InventoryEntry>, NodeError> {
        self.shared.check_serving()?;
        self.shared.check_epoch(from)?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let index = self.shared.index();
        let shards = index
            .shards(from.unit, start)
            .take(limit.min(INVENTORY_LIMIT_MAX));
        let line = |(key, entry): (ShardKey, index::Entry)| InventoryEntry { key, len: entry.len };
        Ok(shards.map(line).collect())
    }

    /// Lists units by id.
    pub fn units(&self) -> Result<Vec<UnitInfo>, NodeError> {
        self.shared.check_serving()?;
        let index = self.shared.index();
        let info = |(id, unit): (&UnitId, &index::Unit)| UnitInfo {
            unit: *id,
            epoch: unit.epoch,
            shards: unit.shards.len() as u64,
            live_bytes: unit.live_bytes,
        };
        Ok(index.units.iter().map(info).collect())
    }

    /// Space and counts; also looks whether the disk is still there.
    pub fn status(&self) -> EngineStatus {
        let shared = &self.shared;
        shared.check_presence();
        let index = shared.index();
        let capacity = u64::from(shared.layout.extent_capacity());
        let usable = |e: &&index::Extent| e.used != ExtentUse::Quarantined;
        let extents = index
            .extents
            .iter()
            .filter(usable)
            .count()
            .saturating_sub(shared.reserve) as u64;
        let used: u64 = index.extents.iter().map(|extent| extent.live_bytes).sum();
        EngineStatus {
            state: match shared.fence.get() {
                Some(reason) => DiskState::Fenced {
                    reason: reason.clone(),
                },
                None => DiskState::Online,
            },
            backend: shared.device.info().backend.clone(),
            capacity_bytes: extents * capacity,
            free_bytes: (extents * capacity).saturating_sub(used),
            live_bytes: index.units.values().map(|u| u.live_bytes).sum(),
            shards: index.units.values().map(|u| u.shards.len() as u64).sum(),
            units: index.units.len() as u64,
            free_extents: shared.free_extents.load(Ordering::Relaxed),
            corrupt_shards: shared.metrics.corrupt_shards.get(),
        }
    }

    /// Starts to verify the disk, all of it once in every cycle, for as long as it is open.
    pub fn start_verifying(&self, cycle: Duration) -> Result<(), String> {
        self.shared.verifying.set_cycle(cycle);
        self.wake_verifier()
    }

    /// Verifies the disk as it is told from now on.
    pub fn order_verifying(&self, order: &VerifyOrder) -> Result<(), NodeError> {
        self.shared.check_serving()?;
        if let Some(seconds) = order.cycle_s {
            self.shared.verifying.set_cycle(Duration::from_secs(seconds));
        }
        if order.now {
            self.shared.verifying.begin_anew();
        }
        self.wake_verifier().map_err(|what| NodeError::Io { what })
    }

    /// How far verifying is.
    pub fn verify_status(&self) -> VerifyStatus {
        let done = self.shared.verify_cursor.load(Ordering::Relaxed);
        VerifyStatus {
            extents_done: done,
            extents: self.shared.layout.extents(),
            findings: self.shared.found.count(),
            ..self.shared.verifying.status()
        }
    }

    /// Tells the thread that verifies, which is started if there is none yet, to look at what it was told.
    fn wake_verifier(&self) -> Result<(), String> {
        let mut verifier = self.lock_verifier();
        if let Some(verifier) = &*verifier {
            let _ = verifier.orders.send(()); // It has ended, if the disk is out of service.
            return Ok(());
        }
        let (orders, received) = mpsc::channel();
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new()
            .name("verify".into())
            .spawn(move || verify::run(&shared, received));
        *verifier = Some(Verifier {
            orders,
            thread: spawned.map_err(|e| e.to_string())?,
        });
        Ok(())
    }

    /// Which opening of the disk this is, and what the medium remembers.
    pub fn opening(&self) -> Opening {
        Opening {
            id: self.shared.found.opened(),
            admission: self.shared.lock_admission().0,
        }
    }

    /// Whether a gateway admitted the disk since it was opened.
    pub fn is_admitted(&self) -> bool {
        self.shared.lock_admission().1
    }

    /// Whether a gateway admitted the disk since it was opened, if only for reads.
    pub fn is_read(&self) -> bool {
        self.is_admitted() || self.shared.is_read.load(Ordering::Relaxed)
    }

    /// Admits the disk, durably, if it is this opening of it that the gateway saw.
    pub async fn admit(&self, request: &AdmitRequest, deadline: Duration) -> Result<(), NodeError> {
        if request.opening != self.shared.found.opened() {
            return Err(NodeError::WrongDisk);
        }
        if request.is_reading {
            self.shared.is_read.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let change = Change::Admit(request.admission, request.ledger);
        self.queue(self.itself(), change, deadline).await
    }

    /// Tells the disk which ledger it obeys, durably.
    pub async fn obey(&self, marks: &LedgerMarks, deadline: Duration) -> Result<(), NodeError> {
        self.shared.check_serving()?;
        self.queue(self.itself(), Change::Obey(*marks), deadline).await
    }

    /// Has it refuse changes for a ledger for a while. See [`crate::client::StorageClient::still`].
    pub async fn still(&self, still: &Still, deadline: Duration) -> Result<(), NodeError> {
        self.shared.check_serving()?;
        self.queue(self.itself(), Change::Still(*still), deadline).await
    }

    /// Which ledger it obeys. The limits are those of what came to the disk, too.
    pub fn ledger(&self) -> LedgerMarks {
        let marks = *self.shared.lock_ledger();
        marks.told(&LedgerMarks {
            generation: marks.generation,
            ..self.shared.seen.marks()
        })
    }

    /// Where requests about the disk as a whole go.
    fn itself(&self) -> UnitAddress {
        UnitAddress {
            disk: self.superblock.disk,
            incarnation: self.superblock.incarnation,
            unit: SYSTEM_UNIT,
            epoch: 0,
            ledger: Generation::NONE,
        }
    }

    fn lock_verifier(&self) -> MutexGuard<'_, Option<Verifier>> {
        self.verifier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Verifies every extent now, as fast as the disk reads. On a disk that goes out of service meanwhile, what was verified by
    /// then. Blocks.
    pub fn verify_once(&self) -> Verified {
        let mut all = Verified::default();
        let mut pace = verify::Pace::unbounded();
        for number in 0..self.shared.layout.extents() {
            if let Some(one) = verify::verify_extent(&self.shared, number, &mut pace) {
                all.bytes += one.bytes;
                all.shards += one.shards;
                all.findings += one.findings;
            }
        }
        all
    }

    /// What verifying found, all that was numbered above `after`.
    pub fn findings(&self, after: u64) -> Findings {
        self.shared.found.after(after)
    }

    /// What was counted.
    pub fn metrics(&self) -> DiskMetricsSnapshot {
        self.shared.metrics.snapshot()
    }

    /// Finishes what is queued, flushes and stops. Later calls fail at once. Blocks, but not for ever: a disk that
    /// hangs is left to itself.
    pub fn shutdown(&self) {
        let until = Instant::now() + SHUTDOWN_PATIENCE;
        // First, so that the committer's last superblock has where verifying came to. Dropping the sender says stop.
        let verifier = self.lock_verifier().take();
        if let Some(Verifier { orders, thread }) = verifier {
            drop(orders);
            wait_for(&thread, until);
        }
        self.shared.queue.close();
        let thread = self
            .committer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            wait_for(&thread, until);
            if !thread.is_finished() {
                tracing::error!(disk = %self.superblock.disk, "the disk hangs: not waiting for its committer");
            } else if thread.join().is_err() {
                tracing::error!(disk = %self.superblock.disk, "the committer panicked");
            }
        }
        self.shared.fence.get_or_init(|| "the node is shut down".into());
    }
}

/// Waits for a thread to end, but not for ever: its disk may hang.
fn wait_for(thread: &JoinHandle<()>, until: Instant) {
    while !thread.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Whether a shard is one that a record can hold.
/// Nobody waits any more: nothing is begun. What is queued when its time is over is dropped by the committer, unless it is part of
/// a batch already.
fn check_time(deadline: Duration) -> Result<(), NodeError> {
    match deadline.is_zero() {
        true => Err(NodeError::Timeout),
        false => Ok(()),
    }
}

fn check_shape(shard: &SealedShard) -> Result<(), NodeError> {
    let len = shard.payload.len();
    let bad = |what: String| Err(NodeError::BadRequest { what });
    if len == 0 || len > SHARD_BYTES_MAX as usize {
        return bad(format!("a shard of {len} bytes, not 1 to {SHARD_BYTES_MAX}"));
    }
    if shard.seal.block_crcs.len() != block_count(len as u32) as usize {
        return bad(format!(
            "{} block CRCs for {len} bytes",
            shard.seal.block_crcs.len()
        ));
    }
    if shard.seal.digests.is_empty() || shard.seal.digests.len() > STRIPE_SHARDS_MAX {
        return bad(format!(
            "{} digests, not 1 to {STRIPE_SHARDS_MAX}",
            shard.seal.digests.len()
        ));
    }
    Ok(())
}
