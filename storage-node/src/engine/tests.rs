//! Tests of the engine on simulated disks. Randomised ones print their seed and take it from `CAIRN_TEST_SEED`.

mod basics;
mod concurrency;
mod crash;
mod damage;
mod failures;
mod faults;
mod house;
mod long;
mod many;
mod model;
mod pipeline;
mod reads;
mod space;
mod summary;
mod verify;

use super::*;
use crate::device::simulated::SimulatedDisk;
use crate::device::{AlignedBytes, Completion, DeviceErrorKind, DeviceInfo};
use crate::protocol::{BLOCK_BYTES, ClusterId, DiskId, Seal, block_crc, seal_seed};
use bytes::Bytes;

pub const DISK: DiskId = DiskId(7);
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A unit's address.
pub fn unit(volume: u64) -> UnitAddress {
    UnitAddress {
        disk: DISK,
        incarnation: 1,
        unit: UnitId { volume, index: 2 },
        epoch: 1,
        ledger: crate::protocol::Generation::NONE,
    }
}

pub fn key(blob: u64, stripe: u32) -> ShardKey {
    ShardKey { blob, stripe }
}

/// Bytes that depend on everything, so that no two shards are alike.
pub fn payload(to: &UnitAddress, key: ShardKey, version: u64, len: usize) -> Bytes {
    let mut state =
        to.unit.volume ^ (key.blob << 20) ^ (u64::from(key.stripe) << 8) ^ (version << 50) ^ 0x9e37;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        bytes.extend((state ^ (state >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// A shard, sealed as a gateway does it.
pub fn sealed(to: &UnitAddress, key: ShardKey, payload: Bytes) -> SealedShard {
    let seed = seal_seed(to.unit, key, payload.len() as u32);
    let blocks = payload.chunks(BLOCK_BYTES as usize).enumerate();
    let block_crcs = blocks
        .map(|(number, block)| block_crc(seed, number as u32, block))
        .collect();
    SealedShard {
        key,
        seal: Seal {
            block_crcs,
            digests: vec![[9; 32]; 6],
        },
        payload,
    }
}

/// Whether blocks match their CRCs: what a gateway checks.
pub fn verifies(from: &UnitAddress, key: ShardKey, blocks: &ShardBlocks) -> bool {
    let seed = seal_seed(from.unit, key, blocks.shard_len);
    let chunks = blocks.payload.chunks(BLOCK_BYTES as usize).enumerate();
    let mut checks = chunks.zip(&blocks.block_crcs);
    checks.all(|((number, block), crc)| block_crc(seed, blocks.first_block + number as u32, block) == *crc)
}

pub fn format_simulated(disk: &SimulatedDisk, extent_size: u64) {
    let layout = Format {
        cluster: ClusterId(1),
        disk: DISK,
        incarnation: 1,
        extent_size,
    };
    format(&*disk.device(), &layout).unwrap();
}

/// Runs async calls on a plain thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

pub fn put(engine: &Engine, to: &UnitAddress, key: ShardKey, payload: Bytes) -> Result<(), NodeError> {
    block_on(engine.put(to, sealed(to, key, payload), DEADLINE))
}

pub fn get(engine: &Engine, from: &UnitAddress, key: ShardKey) -> Result<ShardBlocks, NodeError> {
    block_on(engine.get(from, key, BlockRange::ALL, DEADLINE))
}

pub fn delete(engine: &Engine, from: &UnitAddress, blobs: &[u64]) -> Result<(), NodeError> {
    block_on(engine.delete(from, blobs, DEADLINE))
}

type OnRead = Box<dyn Fn(u64, &mut [u8]) -> Result<(), DeviceError> + Send + Sync>;

/// A device between the engine and the disk: changes or fails what is read; loses writes, or panics in one or in a flush.
pub struct Tampered {
    inner: Arc<dyn Device>,
    on_read: OnRead,
    pub panics: std::sync::atomic::AtomicBool,
    pub panics_in_flush: std::sync::atomic::AtomicBool,
    pub loses: std::sync::atomic::AtomicBool,
}

impl Tampered {
    pub fn over(
        disk: &SimulatedDisk,
        on_read: impl Fn(u64, &mut [u8]) -> Result<(), DeviceError> + Send + Sync + 'static,
    ) -> Arc<Tampered> {
        Arc::new(Tampered {
            inner: disk.device(),
            on_read: Box::new(on_read),
            panics: Default::default(),
            panics_in_flush: Default::default(),
            loses: Default::default(),
        })
    }
}

impl Device for Tampered {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn read(&self, offset: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        let read = self.inner.read(offset, buf).wait();
        Completion::ready(read.and_then(|mut buf| (self.on_read)(offset, &mut buf).map(|()| buf)))
    }
    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()> {
        assert!(!self.panics.load(Ordering::Relaxed), "a test wants this panic");
        if self.loses.load(Ordering::Relaxed) {
            return Completion::ready(Ok(()));
        }
        self.inner.write_parts(offset, parts)
    }
    fn flush(&self) -> Completion<()> {
        let panics = self.panics_in_flush.load(Ordering::Relaxed);
        assert!(!panics, "a test wants this panic");
        self.inner.flush()
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.allocate(offset, len)
    }
    fn check(&self) -> Result<(), DeviceError> {
        self.inner.check()
    }
}

/// Waits until something is so, for a few seconds.
pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Where a shard's record is on the device.
pub fn offset_of(engine: &Engine, unit: UnitId, key: ShardKey) -> (u64, index::Entry) {
    let entry = engine.shared.index().find(unit, key).unwrap();
    let extent = engine.shared.layout.extent_offset(entry.place.extent);
    (extent + u64::from(entry.place.offset), entry)
}

/// The seeds to run: the one in `CAIRN_TEST_SEED`, or as many as asked for.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("CAIRN_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        Some(seed) => seed..seed + 1,
        None => 0..count,
    }
}
