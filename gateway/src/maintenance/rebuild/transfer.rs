//! Makes what a unit lacks, and writes it to its new disk: many shards at once, and one by one what did not work so.
//!
//! ```text
//! a page ─► chunks ─► [ budget ─► read each source, one call a disk ─► verify, decode, check ─► write, one call ]  × 3
//!                                     what was not right, or did not answer ─► shard by shard, from whatever is readable
//! ```
//! While one chunk is decoded another is read and another written.
//!
//! Invariants: every source is verified before use, and every result against the stripe's digests before it is written. Whoever
//! holds memory of the decode pool waits for no more of it, and not for the budget.

use super::pace::COST_MIN;
use super::{DEADLINE, Rebuild, Target};
use crate::cluster::breaker::Admission;
use crate::cluster::disks::Health;
use crate::error::{Error, Result};
use crate::maintenance::reconstruct::made_of;
use crate::object::shard_reader::{StripeSource, verified};
use crate::object::{Objects, off_reactor};
use crate::placement::volumes::Volume;
use ec_core::{Codec, seal};
use futures::StreamExt;
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use storage_node::protocol::{BlockRange, NodeError, Seal, SealedShard, ShardBlocks, ShardKey};
use tokio::time::Instant;

/// Chunks of a unit that are worked on at once: one is read, one decoded, one written.
const CHUNKS_AT_ONCE: usize = 3;
/// Shards of a chunk at the most.
const CHUNK_SHARDS: usize = 256;
/// Bytes of a chunk at the most, sources and results together; and this share of the memory for decoding.
const CHUNK_BYTES: u64 = 16 << 20;
const CHUNK_SHARE: u64 = 8;
/// Choices of sources that are tried before it goes shard by shard.
const ATTEMPTS: usize = 2;
/// Shards of a chunk that are made one by one, at once.
const SINGLES_AT_ONCE: usize = 8;
/// A disk whose queue is full is asked again after this long.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// What a source costs to read; how much they differ spreads the reads over all that could serve.
const COST: u32 = 1024;

/// A unit that is being filled.
pub(super) struct Job<'a> {
    pub(super) volume: &'a Arc<Volume>,
    pub(super) index: u8,
    pub(super) target: &'a Target,
    /// Its present disk has it, and is asked first.
    pub(super) from_itself: bool,
    /// Its volume survives no further loss.
    pub(super) is_urgent: bool,
}

impl Job<'_> {
    /// How many shards are in memory for each that is made, at the worst.
    fn width(&self) -> u64 {
        self.volume.scheme.total_shards() as u64 + 1
    }
}

impl Rebuild {
    /// Writes what is missing; how many could not be written.
    pub(super) async fn write(&self, job: &Job<'_>, missing: &[StripeSource]) -> Result<u64> {
        let codec = self.objects.codecs.get(job.volume.scheme)?;
        let failed = AtomicU64::new(0);
        let memory = self.objects.budget.decode.total_bytes() / CHUNK_SHARE;
        let bytes_max = self.shared.pace.portion(CHUNK_BYTES.min(memory) / job.width());
        let each = |(number, chunk): (usize, &[StripeSource])| {
            let (chunk, codec, failed) = (chunk.to_vec(), &codec, &failed);
            async move {
                if *self.stop.borrow() {
                    return;
                }
                let not_written = self.write_chunk(job, codec, chunk, number).await;
                failed.fetch_add(not_written, Ordering::Relaxed);
            }
        };
        let chunks = chunks(missing, bytes_max);
        futures::stream::iter(chunks.into_iter().enumerate().map(each))
            .for_each_concurrent(CHUNKS_AT_ONCE, |work| work)
            .await;
        Ok(failed.into_inner())
    }

    /// Writes some shards; how many could not be written.
    async fn write_chunk(
        &self,
        job: &Job<'_>,
        codec: &Arc<Codec>,
        mut chunk: Vec<StripeSource>,
        number: usize,
    ) -> u64 {
        let bytes: u64 = chunk.iter().map(|source| u64::from(source.shard_len)).sum();
        let cost = bytes.max(chunk.len() as u64 * COST_MIN);
        self.pace_or_stop(cost, job.is_urgent).await;
        for attempt in 0..ATTEMPTS {
            let reserved = self.objects.budget.decode.reserve_patiently(bytes * job.width());
            let Ok(_reserved) = reserved.await else { break };
            match self.write_at_once(job, codec, &chunk, number + attempt).await {
                Ok(left) => chunk = left,
                Err(error) => {
                    tracing::debug!(volume = job.volume.id, index = job.index, %error, "shards not written");
                    return chunk.len() as u64;
                }
            }
            if chunk.is_empty() {
                return 0;
            }
        }
        let each = |source: &StripeSource| {
            let source = source.clone();
            async move {
                let Err(error) = self.write_one(job, codec, &source).await else {
                    return false;
                };
                let (volume, blob, stripe) = (source.volume.id, source.key.blob, source.key.stripe);
                tracing::debug!(volume, blob, stripe, index = job.index, %error, "not rebuilt");
                true
            }
        };
        let singles = futures::stream::iter(chunk.iter().map(each)).buffer_unordered(SINGLES_AT_ONCE);
        singles.filter(|failed| std::future::ready(*failed)).count().await as u64
    }

    /// Waits for the budget, or until it is told to stop.
    async fn pace_or_stop(&self, bytes: u64, is_urgent: bool) {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = self.shared.pace.take(bytes, is_urgent) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    /// Reads, makes and writes shards with one call for each disk. What did not work is left; an error is the target's.
    async fn write_at_once(
        &self,
        job: &Job<'_>,
        codec: &Arc<Codec>,
        chunk: &[StripeSource],
        number: usize,
    ) -> std::result::Result<Vec<StripeSource>, NodeError> {
        let Some(sources) = self.sources(job, codec, number) else {
            return Ok(chunk.to_vec());
        };
        let keys: Vec<ShardKey> = chunk.iter().map(|source| source.key).collect();
        let reads = sources
            .iter()
            .map(|index| self.objects.read_many(job.volume, *index, &keys));
        let mut columns = Vec::new();
        for read in join_all(reads).await {
            match read {
                Some(column) => columns.push(column.into_iter()),
                None => return Ok(chunk.to_vec()),
            }
        }
        let (mut left, mut shards, mut made) = (Vec::new(), Vec::new(), Vec::new());
        let rows = chunk.iter().map(|source| {
            let blocks = columns.iter_mut().map(|column| column.next());
            (source.clone(), blocks.collect::<Option<Vec<_>>>())
        });
        let rows: Vec<_> = rows.collect();
        let (codec, index) = (codec.clone(), job.index);
        let makes = off_reactor(move || {
            let make = |(source, blocks): (StripeSource, Option<Vec<Option<ShardBlocks>>>)| {
                let blocks = blocks.unwrap_or_default();
                let wrong = wrong(&source, &sources, &blocks);
                let blocks = blocks.into_iter().collect::<Option<Vec<_>>>();
                let shard = blocks.and_then(|blocks| make(&codec, &source, index, &sources, blocks));
                (source, shard, wrong)
            };
            rows.into_iter().map(make).collect::<Vec<_>>()
        });
        let Ok(makes) = makes.await else {
            return Ok(chunk.to_vec());
        };
        for (source, shard, wrong) in makes {
            for from in wrong {
                // Read as anybody reads it: what is wrong with it is queued for repair.
                let _ = self.objects.read_shard(&source, from, BlockRange::ALL).await;
            }
            match shard {
                Some(shard) => {
                    shards.push(shard);
                    made.push(source);
                }
                None => left.push(source),
            }
        }
        let answers = self.put_many(job.target, shards).await?;
        let mut bytes = 0;
        for (source, answer) in made.into_iter().zip(answers) {
            match answer {
                Ok(()) => bytes += u64::from(source.shard_len),
                Err(error) => {
                    self.objects.disks.report(job.target.disk.id, &error);
                    left.push(source);
                }
            }
        }
        self.note_written(job, bytes);
        Ok(left)
    }

    /// Whose shards make up the wanted ones; none if that takes some that are slow or away.
    fn sources(&self, job: &Job<'_>, codec: &Codec, number: usize) -> Option<Vec<u8>> {
        if job.from_itself {
            return Some(vec![job.index]);
        }
        let total = job.volume.disks.len();
        let is_prompt = |index: &usize| {
            let disk = self.objects.disks.get(job.volume.disks[*index]);
            let is_prompt = disk.is_some_and(|disk| {
                disk.health == Health::Online && disk.conduct.may_read() == Admission::Yes
            });
            job.volume.is_whole(*index as u8) && is_prompt
        };
        let costs = (0..total)
            .filter(|index| *index != usize::from(job.index) && is_prompt(index))
            .map(|index| (index, COST + ((index + number) % total) as u32));
        let plan = codec.plan(&[usize::from(job.index)], costs).ok()?;
        Some(plan.sources().iter().map(|index| *index as u8).collect())
    }

    /// Writes shards, waiting while the disk is busy.
    async fn put_many(
        &self,
        target: &Target,
        shards: Vec<SealedShard>,
    ) -> std::result::Result<Vec<std::result::Result<(), NodeError>>, NodeError> {
        if shards.is_empty() {
            return Ok(Vec::new());
        }
        let until = Instant::now() + DEADLINE;
        loop {
            let put = target.client.put_many(&target.address, shards.clone(), DEADLINE);
            match put.await {
                Err(NodeError::Overloaded) if Instant::now() < until => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(error) => {
                    self.objects.disks.report(target.disk.id, &error);
                    return Err(error);
                }
                answers => return answers,
            }
        }
    }

    /// Makes one shard of whatever can be read, and writes it durably.
    async fn write_one(&self, job: &Job<'_>, codec: &Arc<Codec>, source: &StripeSource) -> Result<()> {
        let bytes = u64::from(source.shard_len);
        let _reserved = self
            .objects
            .budget
            .decode
            .reserve_patiently(bytes * job.width())
            .await?;
        let made = self.objects.reconstruct(codec, source, job.index).await?;
        let shard = made.map_err(Error::Internal)?;
        let target = job.target;
        let disks = &self.objects.disks;
        let written = disks.put_shard(&target.disk, &target.address, shard, DEADLINE);
        written
            .await
            .map_err(|error| Error::WriteFailed(error.to_string()))?;
        self.note_written(job, bytes);
        Ok(())
    }

    fn note_written(&self, job: &Job<'_>, bytes: u64) {
        self.objects.metrics.rebuilt_bytes.inc_by(bytes);
        let unit = job.volume.unit(job.index);
        self.progress().written(unit, bytes, Instant::now());
    }
}

impl Objects {
    /// Shards of one unit; none where there is one that is not right. Nothing at all if the disk does not answer.
    async fn read_many(
        &self,
        volume: &Volume,
        index: u8,
        keys: &[ShardKey],
    ) -> Option<Vec<Option<ShardBlocks>>> {
        let disk = self.disks.get(volume.disks[usize::from(index)])?;
        let client = disk.client.clone()?;
        let until = Instant::now() + DEADLINE;
        loop {
            match client
                .get_many(&volume.address(index, &disk), keys, DEADLINE)
                .await
            {
                Ok(read) => return Some(read.into_iter().map(std::result::Result::ok).collect()),
                Err(NodeError::Overloaded) if Instant::now() < until => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(error) => {
                    self.disks.report(disk.id, &error);
                    return None;
                }
            }
        }
    }
}

/// Cuts what is missing into chunks of so many bytes of the unit, one shard at the least.
fn chunks(missing: &[StripeSource], bytes_max: u64) -> Vec<&[StripeSource]> {
    let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, source) in missing.iter().enumerate() {
        let next = u64::from(source.shard_len);
        if at > start && (bytes + next > bytes_max || at - start == CHUNK_SHARDS) {
            chunks.push(&missing[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += next;
    }
    if start < missing.len() {
        chunks.push(&missing[start..]);
    }
    chunks
}

/// Whose shards were not read, or are not right.
fn wrong(source: &StripeSource, sources: &[u8], blocks: &[Option<ShardBlocks>]) -> Vec<u8> {
    let is_right = |from: u8, blocks: &Option<ShardBlocks>| {
        let blocks = blocks.clone();
        blocks.is_some_and(|blocks| verified(source, from, BlockRange::ALL, blocks).is_ok())
    };
    let wrong = sources
        .iter()
        .zip(blocks)
        .filter(|(from, blocks)| !is_right(**from, blocks));
    wrong.map(|(from, _)| *from).collect()
}

/// One shard made of sources as they were read, sealed; none if anything is not right.
fn make(
    codec: &Codec,
    source: &StripeSource,
    index: u8,
    sources: &[u8],
    blocks: Vec<ShardBlocks>,
) -> Option<SealedShard> {
    let checked = sources
        .iter()
        .zip(blocks)
        .map(|(from, blocks)| verified(source, *from, BlockRange::ALL, blocks).ok());
    let mut checked = checked.collect::<Option<Vec<ShardBlocks>>>()?;
    let digests = checked.first()?.digests.clone();
    if sources == [index] {
        let read = checked.pop()?;
        let is_right = digests.get(usize::from(index)) == Some(&seal::digest(&read.payload));
        return is_right.then_some(SealedShard {
            key: source.key,
            seal: Seal {
                block_crcs: read.block_crcs,
                digests,
            },
            payload: read.payload,
        });
    }
    if checked.iter().any(|shard| shard.digests != digests) {
        return None;
    }
    let group = sources.iter().map(|from| usize::from(*from));
    let group = group
        .zip(checked.into_iter().map(|shard| shard.payload))
        .collect();
    made_of(codec, source, index, digests, group).ok()?
}
