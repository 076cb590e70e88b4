//! What is asked of an engine: durable puts, and reads whose blocks are verified, so many in flight.

use crate::Result;
use crate::disk::Disk;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use storage_node::device::AlignedBuf;
use storage_node::protocol::{
    BLOCK_BYTES, BlockRange, Seal, SealedShard, ShardKey, UnitAddress, UnitId, block_count, seal_seed,
};
use tokio::task::JoinSet;

/// How long one request may take.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Payloads that a load takes in turn: more than the processor's nearest caches hold, as a gateway's buffers are.
const PAYLOAD_BYTES: usize = 64 << 20;
const PAYLOADS_MAX: usize = 1024;

/// Shards to put: their bytes, and seals made beforehand, as the gateway does before it sends them.
#[derive(Debug)]
pub struct Shards {
    units: u64,
    shard_bytes: usize,
    payloads: Vec<Bytes>,
    digests: usize,
    /// Of each shard, if there are few enough to keep them.
    block_crcs: Vec<Vec<u32>>,
    count: u64,
}

impl Shards {
    /// `count` shards of `shard_bytes` bytes, spread over so many units, of stripes of `width` shards.
    pub fn new(count: u64, shard_bytes: usize, units: u64, width: usize) -> Shards {
        let payloads = (PAYLOAD_BYTES / shard_bytes)
            .clamp(1, PAYLOADS_MAX)
            .min(count as usize);
        let mut shards = Shards {
            units,
            shard_bytes,
            payloads: (0..payloads as u64).map(|n| payload(n, shard_bytes)).collect(),
            digests: width,
            block_crcs: Vec::new(),
            count,
        };
        // Small ones are sealed in no time while they are put; and there may be millions.
        if shard_bytes > BLOCK_BYTES as usize {
            shards.block_crcs = (0..count).map(|number| shards.crcs(number)).collect();
        }
        shards
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their payload bytes.
    pub fn bytes(&self) -> u64 {
        self.count * self.shard_bytes as u64
    }

    fn volume(&self, number: u64) -> u64 {
        1 + number % self.units
    }

    fn key(number: u64) -> ShardKey {
        ShardKey {
            blob: 1 + number,
            stripe: 0,
        }
    }

    fn payload(&self, number: u64) -> &Bytes {
        &self.payloads[number as usize % self.payloads.len()]
    }

    fn crcs(&self, number: u64) -> Vec<u32> {
        let unit = UnitId {
            volume: self.volume(number),
            index: 0,
        };
        let payload = self.payload(number);
        let seed = seal_seed(unit, Self::key(number), payload.len() as u32);
        ec_core::seal::block_crcs(seed, payload)
    }

    fn shard(&self, number: u64) -> SealedShard {
        let kept = self.block_crcs.get(number as usize).cloned();
        SealedShard {
            key: Self::key(number),
            seal: Seal {
                block_crcs: kept.unwrap_or_else(|| self.crcs(number)),
                digests: vec![[number as u8; 32]; self.digests],
            },
            payload: self.payload(number).clone(),
        }
    }
}

/// Bytes that no device compresses, in aligned memory as the gateway's.
fn payload(seed: u64, len: usize) -> Bytes {
    let mut buf = AlignedBuf::zeroed(len);
    for (word, number) in buf.chunks_exact_mut(8).zip(seed << 32..) {
        word.copy_from_slice(&scatter(number).to_le_bytes());
    }
    Bytes::from_owner(buf).slice(..len)
}

/// SplitMix64: a number for each number, in no order that anybody could use.
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Puts all the shards, each durable when it is answered.
pub async fn put_all(disk: &Disk, shards: &Arc<Shards>, in_flight: usize) -> Result<()> {
    let (engine, units) = (disk.engine.clone(), addresses(disk, shards));
    let (shards, count) = (shards.clone(), shards.count);
    each(count, in_flight, move |number| {
        let (engine, shard) = (engine.clone(), shards.shard(number));
        let to = units[(number % shards.units) as usize];
        async move { Ok(engine.put(&to, shard, DEADLINE).await?) }
    })
    .await
}

/// Reads `count` blocks anywhere in shards that were put, and checks each against its CRC.
pub async fn read_blocks(disk: &Disk, shards: &Arc<Shards>, count: u64, in_flight: usize) -> Result<()> {
    let (engine, units) = (disk.engine.clone(), addresses(disk, shards));
    let shards = shards.clone();
    each(count, in_flight, move |number| {
        let place = scatter(number);
        let (shard, block) = (place % shards.count, (place >> 32) as u32);
        let first = block % block_count(shards.shard_bytes as u32);
        let (engine, from) = (engine.clone(), units[(shard % shards.units) as usize]);
        async move {
            let (key, one) = (Shards::key(shard), BlockRange { first, count: 1 });
            let found = engine.get(&from, key, one, DEADLINE).await?;
            let seed = seal_seed(from.unit, key, found.shard_len);
            Ok(ec_core::seal::check_blocks(
                seed,
                first,
                &found.block_crcs,
                &found.payload,
            )?)
        }
    })
    .await
}

fn addresses(disk: &Disk, shards: &Shards) -> Vec<UnitAddress> {
    (0..shards.units).map(|n| disk.unit(shards.volume(n))).collect()
}

/// Does `once` for every number below `count`, so many at once.
async fn each<F, Done>(count: u64, in_flight: usize, once: F) -> Result<()>
where
    F: Fn(u64) -> Done + Send + Sync + 'static,
    Done: Future<Output = Result<()>> + Send,
{
    let (once, next) = (Arc::new(once), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..in_flight {
        let (once, next) = (once.clone(), next.clone());
        tasks.spawn(async move {
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    number if number < count => once(number).await?,
                    _ => return Ok::<(), Box<dyn std::error::Error + Send + Sync>>(()),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
