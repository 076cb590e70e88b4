//! What is asked of an engine: durable puts, replacements and deletes, and reads whose blocks are verified, so many in flight.

use crate::Result;
use crate::disk::Disk;
use bytes::Bytes;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use storage_node::client::DELETE_BLOBS_MAX;
use storage_node::device::AlignedBuf;
use storage_node::engine::Engine;
use storage_node::protocol::{
    BLOCK_BYTES, BlockRange, NodeError, Seal, SealedShard, ShardKey, UnitAddress, UnitId, block_count,
    seal_seed,
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
    /// The first of the volumes whose units they are in.
    first_volume: u64,
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
            first_volume: 1,
            units,
            shard_bytes,
            payloads: (0..payloads as u64).map(|n| payload(n, shard_bytes)).collect(),
            digests: width,
            block_crcs: Vec::new(),
            count,
        };
        shards.seal();
        shards
    }

    /// The same shards in the units of other volumes.
    pub fn in_volumes_from(mut self, first: u64) -> Shards {
        self.first_volume = first;
        self.seal();
        self
    }

    fn seal(&mut self) {
        // Small ones are sealed in no time while they are put; and there may be millions.
        if self.shard_bytes > BLOCK_BYTES as usize {
            self.block_crcs = (0..self.count).map(|number| self.crcs(number)).collect();
        }
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
        self.first_volume + number % self.units
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
    let reader = Arc::new(Reader::of(disk, shards));
    each(count, in_flight, move |number| {
        let reader = reader.clone();
        async move { reader.read(number).await }
    })
    .await
}

/// The same, and says how long each took. Reads with other numbers are of other blocks.
pub async fn time_blocks(
    disk: &Disk,
    shards: &Arc<Shards>,
    numbers: Range<u64>,
    in_flight: usize,
) -> Result<Vec<Duration>> {
    let reader = Arc::new(Reader::of(disk, shards));
    let times = Arc::new(Mutex::new(Vec::new()));
    let kept = times.clone();
    each(numbers.end - numbers.start, in_flight, move |number| {
        let (reader, kept, number) = (reader.clone(), kept.clone(), numbers.start + number);
        async move {
            let started = Instant::now();
            reader.read(number).await?;
            let took = started.elapsed();
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(took);
            Ok(())
        }
    })
    .await?;
    Ok(std::mem::take(
        &mut *times.lock().unwrap_or_else(PoisonError::into_inner),
    ))
}

struct Reader {
    engine: Arc<Engine>,
    units: Vec<UnitAddress>,
    shards: Arc<Shards>,
}

impl Reader {
    fn of(disk: &Disk, shards: &Arc<Shards>) -> Reader {
        Reader {
            engine: disk.engine.clone(),
            units: addresses(disk, shards),
            shards: shards.clone(),
        }
    }

    async fn read(&self, number: u64) -> Result<()> {
        let (place, shards) = (scatter(number), &self.shards);
        let (shard, block) = (place % shards.count, (place >> 32) as u32);
        let first = block % block_count(shards.shard_bytes as u32);
        let from = self.units[(shard % shards.units) as usize];
        let (key, one) = (Shards::key(shard), BlockRange { first, count: 1 });
        let found = self.engine.get(&from, key, one, DEADLINE).await?;
        let seed = seal_seed(from.unit, key, found.shard_len);
        Ok(ec_core::seal::check_blocks(
            seed,
            first,
            &found.block_crcs,
            &found.payload,
        )?)
    }
}

/// Replaces shards that were put, one after the other: deletes one of those that live, anywhere, and puts a new one; `count`
/// times in all. The shards' count is how many live. A put that finds no space tries again: says how often that was.
pub async fn replace(disk: &Disk, shards: &Arc<Shards>, count: u64, in_flight: usize) -> Result<u64> {
    let (engine, units) = (disk.engine.clone(), addresses(disk, shards));
    let (shards, live) = (
        shards.clone(),
        Arc::new(Mutex::new((0..shards.count).collect::<Vec<_>>())),
    );
    let refusals = Arc::new(AtomicU64::new(0));
    let refused = refusals.clone();
    each(count, in_flight, move |number| {
        let (engine, units, shards, live) = (engine.clone(), units.clone(), shards.clone(), live.clone());
        let refused = refused.clone();
        async move {
            let locked = || live.lock().unwrap_or_else(PoisonError::into_inner);
            let old = {
                let mut live = locked();
                let at = scatter(number) as usize % live.len();
                live.swap_remove(at)
            };
            let unit = |number: u64| units[(number % shards.units) as usize];
            engine
                .delete(&unit(old), &[Shards::key(old).blob], DEADLINE)
                .await?;
            let new = shards.count + number;
            while let Err(error) = engine.put(&unit(new), shards.shard(new), DEADLINE).await {
                if error != NodeError::NoSpace || refused.fetch_add(1, Ordering::Relaxed) > count {
                    return Err(error.into());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            locked().push(new);
            Ok(())
        }
    })
    .await?;
    Ok(refusals.load(Ordering::Relaxed))
}

/// Deletes about so much of the shards that were put, here and there.
pub async fn thin_out(disk: &Disk, shards: &Shards, share: f64) -> Result<()> {
    for (volume, unit) in (0..).zip(addresses(disk, shards)) {
        let numbers = (volume..shards.count).step_by(shards.units as usize);
        let doomed = numbers.filter(|number| (scatter(*number) as f64) < share * u64::MAX as f64);
        let blobs: Vec<u64> = doomed.map(|number| Shards::key(number).blob).collect();
        for blobs in blobs.chunks(DELETE_BLOBS_MAX) {
            disk.engine.delete(&unit, blobs, DEADLINE).await?;
        }
    }
    Ok(())
}

/// Drops the units that the shards are in.
pub async fn drop_all(disk: &Disk, shards: &Shards) -> Result<()> {
    for unit in addresses(disk, shards) {
        disk.engine.drop_unit(&unit, DEADLINE).await?;
    }
    Ok(())
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
