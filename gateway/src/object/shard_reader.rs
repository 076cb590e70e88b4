//! Reads one piece of a blob right, or says that it cannot: verify, hedge, decode around, and report what was wrong.
//!
//! A client never sees a wrong byte. Every block is checked against its CRC, which is seeded with the shard's
//! identity; what fails is decoded from other shards, each checked the same way, and queued for repair.

use super::sources::{Gathering, LATE_AFTER, Sources};
use super::{Objects, encode, off_reactor};
use crate::budget::Reserved;
use crate::error::{Error, Result};
use crate::ledger::CommitBuilder;
use crate::ledger::key;
use crate::ledger::model::{BlobRef, SuspectRow};
use crate::placement::volumes::Volume;
use bytes::Bytes;
use ec_core::stripe::Piece;
use ec_core::{Codec, seal};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::protocol::{BLOCK_BYTES, BlockRange, NodeError, ShardBlocks, ShardKey, seal_seed};
use tokio::time::Instant;

const READ_DEADLINE: Duration = Duration::from_secs(10);
/// CRCs of up to this many bytes are checked where they arrive: that takes less than handing them to another thread.
const INLINE_CHECK_BYTES: usize = 64 * 1024;

/// Hedges are limited to a share of the reads, so that a slow cluster is not made slower.
#[derive(Debug)]
pub struct HedgeBudget {
    tokens: AtomicI64,
}

impl HedgeBudget {
    const PER_HEDGE: i64 = 20;
    const MOST: i64 = 64 * Self::PER_HEDGE;

    /// Full.
    pub fn new() -> HedgeBudget {
        HedgeBudget {
            tokens: AtomicI64::new(Self::MOST),
        }
    }

    fn earn(&self) {
        if self.tokens.load(Ordering::Relaxed) < Self::MOST {
            self.tokens.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn spend(&self) -> bool {
        let enough = |t: i64| (t >= Self::PER_HEDGE).then_some(t - Self::PER_HEDGE);
        self.tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough)
            .is_ok()
    }
}

impl Default for HedgeBudget {
    fn default() -> HedgeBudget {
        HedgeBudget::new()
    }
}

/// Where a piece is: everything a read of one stripe needs.
#[derive(Clone)]
pub struct StripeSource {
    /// The volume.
    pub volume: Arc<Volume>,
    /// The blob and stripe.
    pub key: ShardKey,
    /// Bytes of each shard of the stripe.
    pub shard_len: u32,
}

impl StripeSource {
    /// Of a stripe of a blob.
    pub fn new(codec: &Codec, volume: Arc<Volume>, blob: &BlobRef, stripe: u32) -> Result<StripeSource> {
        let shard_len = encode::geometry(codec, blob.length)?.shard_len(stripe);
        Ok(StripeSource {
            volume,
            key: ShardKey {
                blob: blob.blob,
                stripe,
            },
            shard_len,
        })
    }

    /// That too few of the stripe's shards can be read.
    pub fn unreadable(&self, readable: usize) -> Error {
        Error::Unreadable {
            volume: self.volume.id,
            blob: self.key.blob,
            stripe: self.key.stripe,
            readable,
            scheme: self.volume.scheme,
        }
    }
}

impl Objects {
    /// The bytes of a piece, verified.
    pub async fn read_piece(&self, source: &StripeSource, piece: &Piece) -> Result<Bytes> {
        self.hedges.earn();
        let first = piece.offset / BLOCK_BYTES;
        let blocks = BlockRange {
            first,
            count: (piece.offset + piece.len).div_ceil(BLOCK_BYTES) - first,
        };
        if !self.is_prompt(source, piece.shard) {
            // Not worth waiting for; asked all the same if the others do not suffice.
            return match self.decode(source, piece.shard, blocks).await {
                Ok(bytes) => Ok(trim(bytes, piece, blocks)),
                Err(error) => match self.read_shard(source, piece.shard, blocks).await {
                    Ok(read) => Ok(trim(read.payload, piece, blocks)),
                    Err(_) => Err(error),
                },
            };
        }
        let began = Instant::now();
        let direct = self.read_shard(source, piece.shard, blocks);
        tokio::pin!(direct);
        let found = tokio::time::timeout(LATE_AFTER, &mut direct).await;
        self.latencies.read(piece.len as usize, began.elapsed());
        let found = match found {
            Ok(found) => found,
            Err(_) if self.hedges.spend() => {
                self.metrics.hedged_reads.inc();
                return self.race(source, piece, blocks, direct).await;
            }
            Err(_) => direct.await,
        };
        match found {
            Ok(read) => Ok(trim(read.payload, piece, blocks)),
            Err(_) => Ok(trim(
                self.decode(source, piece.shard, blocks).await?,
                piece,
                blocks,
            )),
        }
    }

    /// The slow read against a decode: the first right answer wins.
    async fn race(
        &self,
        source: &StripeSource,
        piece: &Piece,
        blocks: BlockRange,
        direct: impl Future<Output = std::result::Result<ShardBlocks, NodeError>>,
    ) -> Result<Bytes> {
        let decode = self.decode(source, piece.shard, blocks);
        tokio::pin!(direct, decode);
        tokio::select! {
            read = &mut direct => match read {
                Ok(read) => Ok(trim(read.payload, piece, blocks)),
                Err(_) => Ok(trim(decode.await?, piece, blocks)),
            },
            decoded = &mut decode => match decoded {
                Ok(bytes) => {
                    self.disks.report_slow(source.volume.disks[piece.shard as usize]);
                    Ok(trim(bytes, piece, blocks))
                }
                Err(error) => match direct.await {
                    Ok(read) => Ok(trim(read.payload, piece, blocks)),
                    Err(_) => Err(error),
                },
            },
        }
    }

    /// Blocks of a shard computed from others.
    async fn decode(&self, source: &StripeSource, wanted: u8, blocks: BlockRange) -> Result<Bytes> {
        self.metrics.decoded_pieces.inc();
        // Slow sources may be replaced while they are still being read: at worst every shard is held, and the result.
        let shards = source.volume.scheme.total_shards() as u64 + 1;
        let bytes = blocks.count as u64 * BLOCK_BYTES as u64 * shards;
        let _reserved: Reserved = self.budget.decode.reserve_patiently(bytes).await?;
        let sources = self.read_sources(source, wanted, blocks).await?;
        off_reactor(move || sources.compute()).await?
    }

    /// What it takes to compute the `wanted` shard, verified.
    pub async fn read_sources(
        &self,
        source: &StripeSource,
        wanted: u8,
        blocks: BlockRange,
    ) -> Result<Sources> {
        let disks = &source.volume.disks;
        let codec = self.codecs.get(source.volume.scheme)?;
        let prompt = |index: usize| self.is_prompt(source, index as u8);
        let mut gathering = Gathering::new(codec, wanted, prompt);
        let read = |index: u8| async move { (index, self.read_shard(source, index, blocks).await) };
        let mut running = FuturesUnordered::new();
        loop {
            let begun = gathering.begin(Instant::now());
            running.extend(
                begun
                    .map_err(|left| source.unreadable(left))?
                    .into_iter()
                    .map(read),
            );
            if let Some(sources) = gathering.complete() {
                return Ok(sources);
            }
            let late_at = gathering.late_at();
            let late = async {
                match late_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased; // What has answered is not late.
                Some((index, read)) = running.next() => gathering.answered(index, read.ok()),
                () = late => {
                    // They had their time: the next read does not begin with them.
                    let expired = gathering.expire(Instant::now());
                    expired.into_iter().for_each(|index| self.disks.report_slow(disks[index]));
                }
            }
        }
    }

    /// Whether a read should ask this shard's disk first.
    fn is_prompt(&self, source: &StripeSource, index: u8) -> bool {
        let volume = &source.volume;
        volume.is_whole(index) && self.disks.prompt(volume.disks[usize::from(index)])
    }

    /// Whole blocks of one shard, verified against their CRCs. What is wrong with the record, rather than with its
    /// disk or the way there, is queued for repair.
    pub async fn read_shard(
        &self,
        source: &StripeSource,
        index: u8,
        blocks: BlockRange,
    ) -> std::result::Result<ShardBlocks, NodeError> {
        let mut read = self.fetch(source, index, blocks).await;
        let moved;
        let mut source = source;
        if let Err(error @ (NodeError::StaleEpoch { .. } | NodeError::NotFound)) = &read
            && let Some(volume) = self.newer(&source.volume, error).await
        {
            // A unit of it moved meanwhile, this one or another.
            moved = StripeSource {
                volume,
                ..source.clone()
            };
            source = &moved;
            read = self.fetch(source, index, blocks).await;
        }
        let checked = match read {
            Ok(shard) => check(source, index, blocks, shard).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &checked {
            self.disks.report(source.volume.disks[index as usize], error);
            let expected = *error == NodeError::NotFound && !source.volume.is_whole(index);
            if let Some(kind) = suspect_kind(error).filter(|_| !expected) {
                self.metrics.bad_shards.with_label_values(&[kind]).inc();
                self.suspect(source, index, error).await;
            }
        }
        checked
    }

    /// The volume of a later epoch, if there is one: as it is known here, or, when a node knows better, in the ledger.
    async fn newer(&self, volume: &Volume, error: &NodeError) -> Option<Arc<Volume>> {
        let known = self.volumes.get(volume.id).await.ok();
        if let Some(known) = known.filter(|known| known.epoch > volume.epoch) {
            return Some(known);
        }
        if *error == NodeError::NotFound {
            return None;
        }
        match self.volumes.refresh(volume.id).await {
            Ok(now) => (now.epoch > volume.epoch).then_some(now),
            Err(error) => {
                tracing::warn!(volume = volume.id, %error, "a volume's row could not be read again");
                None
            }
        }
    }

    async fn fetch(
        &self,
        source: &StripeSource,
        index: u8,
        blocks: BlockRange,
    ) -> std::result::Result<ShardBlocks, NodeError> {
        let unreachable = || NodeError::Unreachable {
            what: "no node has the disk".into(),
        };
        let disk = self
            .disks
            .get(source.volume.disks[index as usize])
            .ok_or_else(unreachable)?;
        let client = disk.client.clone().ok_or_else(unreachable)?;
        client
            .get(
                &source.volume.address(index, &disk),
                source.key,
                blocks,
                READ_DEADLINE,
            )
            .await
    }

    /// Queues a shard for repair, once.
    pub async fn suspect(&self, source: &StripeSource, index: u8, error: &NodeError) {
        let reason = error.to_string();
        let queued = self.queue_for_repair(source.volume.id, source.key, index, reason);
        if let Err(error) = queued.await {
            tracing::warn!(%error, "the shard could not be queued; the next read of it will try again");
        }
    }

    /// The same for whoever has a reason of its own.
    pub async fn queue_for_repair(
        &self,
        volume: u64,
        shard: ShardKey,
        index: u8,
        reason: String,
    ) -> Result<()> {
        let key = key::suspect(volume, shard.blob, shard.stripe, index);
        if !self.suspects.remember(&key) {
            return Ok(());
        }
        tracing::warn!(volume, blob = shard.blob, stripe = shard.stripe, index, error = %reason, "shard queued for repair");
        let row = SuspectRow { reason };
        let commit = self
            .lease
            .fence(CommitBuilder::new().put(key.clone(), &row))
            .build();
        if let Err(error) = self.ledger.commit(commit).await {
            self.suspects.forget(&key);
            return Err(error.into());
        }
        Ok(())
    }
}

/// Shards that are queued for repair already, so that every further read of them costs no commit.
#[derive(Default)]
pub struct Suspects {
    queued: Mutex<HashSet<Bytes>>,
}

impl Suspects {
    /// Past this many it forgets them all: a commit too many does no harm.
    const MOST: usize = 65_536;

    /// Whether this one was not queued yet.
    fn remember(&self, key: &Bytes) -> bool {
        let mut queued = self.queued.lock().unwrap_or_else(|e| e.into_inner());
        if queued.len() >= Suspects::MOST {
            queued.clear();
        }
        queued.insert(key.clone())
    }

    /// Repair is done with it.
    pub fn forget(&self, key: &Bytes) {
        self.queued.lock().unwrap_or_else(|e| e.into_inner()).remove(key);
    }
}

/// Which errors are about the record, and what to call them.
fn suspect_kind(error: &NodeError) -> Option<&'static str> {
    match error {
        NodeError::Corrupt { .. } => Some("corrupt"),
        NodeError::NotFound => Some("missing"),
        NodeError::Io { .. } => Some("unreadable"),
        _ => None,
    }
}

/// Checks what a node sent: the shape first, then every block.
async fn check(
    source: &StripeSource,
    index: u8,
    blocks: BlockRange,
    shard: ShardBlocks,
) -> std::result::Result<ShardBlocks, NodeError> {
    if shard.payload.len() <= INLINE_CHECK_BYTES {
        return verified(source, index, blocks, shard);
    }
    let source = source.clone();
    off_reactor(move || verified(&source, index, blocks, shard))
        .await
        .map_err(|e| NodeError::Corrupt { what: e.to_string() })?
}

/// The same, here and now.
pub fn verified(
    source: &StripeSource,
    index: u8,
    blocks: BlockRange,
    shard: ShardBlocks,
) -> std::result::Result<ShardBlocks, NodeError> {
    let corrupt = |what: String| NodeError::Corrupt { what };
    let end = source
        .shard_len
        .min((blocks.first + blocks.count).saturating_mul(BLOCK_BYTES));
    let expected = end.saturating_sub(blocks.first * BLOCK_BYTES) as usize;
    if shard.shard_len != source.shard_len
        || shard.first_block != blocks.first
        || shard.payload.len() != expected
    {
        return Err(corrupt(format!(
            "{} bytes from block {} of a shard of {}, not {expected} from {} of {}",
            shard.payload.len(),
            shard.first_block,
            shard.shard_len,
            blocks.first,
            source.shard_len
        )));
    }
    let seed = seal_seed(source.volume.unit(index), source.key, source.shard_len);
    match seal::check_blocks(seed, shard.first_block, &shard.block_crcs, &shard.payload) {
        Ok(()) => Ok(shard),
        Err(error) => Err(corrupt(error.to_string())),
    }
}

/// Cuts the piece out of the blocks that hold it.
fn trim(payload: Bytes, piece: &Piece, blocks: BlockRange) -> Bytes {
    let start = (piece.offset - blocks.first * BLOCK_BYTES) as usize;
    payload.slice(start..start + piece.len as usize)
}
