//! Reads one piece of a blob right, or says that it cannot: verify, hedge, decode around, and report what was wrong.
//!
//! A client never sees a wrong byte. Every block is checked against its CRC, which is seeded with the shard's
//! identity and must be the one that the ledger has; what fails is decoded from other shards, each checked the same way, and queued for repair.

use super::deadline::{Deadline, PIECE_TIME};
use super::seals::StripeSeals;
use super::shared_reads::SharedReads;
use super::sources::{Gathering, Sources};
use super::{Objects, encode, off_reactor};
use crate::budget::Reserved;
use crate::cluster::breaker::Admission;
use crate::cluster::conduct::{CUT_OFF_MAX, Kind, LATE_MAX, Outcome, Wrong};
use crate::cluster::disks::{Disk, Health, no_node};
use crate::error::{Error, Result};
use crate::ledger::model::BlobRef;
use crate::placement::volumes::Volume;
use bytes::{Buf, Bytes};
use ec_core::stripe::Piece;
use ec_core::{Codec, seal};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{BLOCK_BYTES, BlockRange, NodeError, ShardBlocks, ShardKey, seal_seed};
use tokio::time::Instant;

/// CRCs of up to this many bytes are checked where they arrive: that takes less than handing them to another thread.
const INLINE_CHECK_BYTES: usize = 64 * 1024;

/// Where a piece is: everything a read of one stripe needs.
#[derive(Clone)]
pub struct StripeSource {
    /// The volume.
    pub volume: Arc<Volume>,
    /// The blob and stripe.
    pub key: ShardKey,
    /// Bytes of each shard of the stripe.
    pub shard_len: u32,
    /// What the ledger knows of them.
    pub seals: Option<StripeSeals>,
    /// What was read for other pieces of the stripe, where some have to be computed.
    pub shared: Option<Arc<SharedReads>>,
}

impl StripeSource {
    /// Of a stripe of a blob, with what the ledger knows of the blob's bytes.
    pub fn new(
        codec: &Codec,
        volume: Arc<Volume>,
        blob: &BlobRef,
        stripe: u32,
        seals: Option<&Bytes>,
    ) -> Result<StripeSource> {
        let seals = seals.map(|seals| StripeSeals::new(codec, blob, stripe, seals));
        let shard_len = encode::geometry(codec, blob.length)?.shard_len(stripe);
        Ok(StripeSource {
            volume,
            key: ShardKey {
                blob: blob.blob,
                stripe,
            },
            shard_len,
            seals: seals.transpose()?,
            shared: None,
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
    /// The bytes of a piece, verified, in blocks or as a whole.
    pub async fn read_piece(&self, source: &StripeSource, piece: &Piece) -> Result<Vec<Bytes>> {
        if let Some(cached) = self.cached_piece(source, piece) {
            return Ok(cached);
        }
        let blocks = blocks_of(piece);
        self.metrics.cache_misses.inc_by(u64::from(blocks.count));
        let payload = self.read_blocks(source, piece.shard, blocks).await?;
        self.offer_to_cache(source, piece.shard, blocks, &payload).await?;
        Ok(vec![trim(payload, piece, blocks)])
    }

    /// The bytes of a piece, if all of it is in memory.
    pub fn cached_piece(&self, source: &StripeSource, piece: &Piece) -> Option<Vec<Bytes>> {
        let cached = self.cached_blocks(source.key, piece)?;
        self.metrics.cache_hits.inc_by(u64::from(blocks_of(piece).count));
        Some(cached)
    }

    /// The same, not counted as found.
    pub fn cached_blocks(&self, stripe: ShardKey, piece: &Piece) -> Option<Vec<Bytes>> {
        let blocks = blocks_of(piece);
        let mut cached = self.cache.get(stripe, piece.shard, blocks)?;
        let start = piece.offset - blocks.first * BLOCK_BYTES;
        let behind = cached.iter().map(Bytes::len).sum::<usize>() - (start + piece.len) as usize;
        if let Some(last) = cached.last_mut() {
            last.truncate(last.len() - behind);
        }
        if let Some(first) = cached.first_mut() {
            first.advance(start as usize);
        }
        Some(cached)
    }

    async fn offer_to_cache(
        &self,
        source: &StripeSource,
        index: u8,
        blocks: BlockRange,
        payload: &Bytes,
    ) -> Result<()> {
        let wanted = self.cache.wanted(source.key, index, blocks);
        if wanted.len() <= 1 {
            self.cache
                .take_in(source.key, index, &wanted, blocks.first, payload);
            return Ok(());
        }
        let (cache, key, payload) = (self.cache.clone(), source.key, payload.clone());
        off_reactor(move || cache.take_in(key, index, &wanted, blocks.first, &payload)).await
    }

    /// Blocks of a data shard, verified: read, or decoded from others.
    async fn read_blocks(&self, source: &StripeSource, shard: u8, blocks: BlockRange) -> Result<Bytes> {
        self.hedges.earn();
        self.retries.earn();
        let deadline = Deadline::after(PIECE_TIME);
        let admission = self.admission(source, shard);
        if admission == Admission::No && self.is_better_around(source, shard)? {
            // Not worth waiting for; asked all the same if the others do not suffice.
            return match self.decode(source, shard, blocks, deadline).await {
                Ok(bytes) => Ok(bytes),
                Err(error) => match self.read_shard_by(source, shard, blocks, deadline).await {
                    Ok(read) => Ok(read.payload),
                    Err(_) => Err(error),
                },
            };
        }
        let late_after = self.late_after(source, shard);
        let began = Instant::now();
        let direct = self.read_shard_by(source, shard, blocks, deadline);
        tokio::pin!(direct);
        let found = tokio::time::timeout(late_after, &mut direct).await;
        let bytes = blocks.count * BLOCK_BYTES;
        self.latencies
            .read(bytes.min(source.shard_len) as usize, began.elapsed());
        let found = match found {
            Ok(found) => found,
            // What a disk on trial costs is bounded already, by how many try it at once.
            Err(_) if admission == Admission::Trial || self.hedges.spend() => {
                self.metrics.hedged_reads.inc();
                return self.race(source, shard, blocks, deadline, direct).await;
            }
            Err(_) => direct.await,
        };
        match found {
            Ok(read) => Ok(read.payload),
            // Nothing was read yet.
            Err(NodeError::NotFound) => self.decode(source, shard, blocks, deadline).await,
            Err(_) => {
                self.pay_for_retry()?;
                self.decode(source, shard, blocks, deadline).await
            }
        }
    }

    /// The slow read against a decode: the first right answer wins.
    async fn race(
        &self,
        source: &StripeSource,
        shard: u8,
        blocks: BlockRange,
        deadline: Deadline,
        direct: impl Future<Output = std::result::Result<ShardBlocks, NodeError>>,
    ) -> Result<Bytes> {
        let decode = self.decode(source, shard, blocks, deadline);
        tokio::pin!(direct, decode);
        tokio::select! {
            read = &mut direct => match read {
                Ok(read) => Ok(read.payload),
                Err(_) => decode.await,
            },
            decoded = &mut decode => match decoded {
                Ok(bytes) => Ok(bytes),
                Err(error) => match direct.await {
                    Ok(read) => Ok(read.payload),
                    Err(_) => Err(error),
                },
            },
        }
    }

    /// Blocks of a shard computed from others.
    async fn decode(
        &self,
        source: &StripeSource,
        wanted: u8,
        blocks: BlockRange,
        deadline: Deadline,
    ) -> Result<Bytes> {
        self.metrics.decoded_pieces.inc();
        // Slow sources may be replaced while they are still being read: at worst every shard is held, and the result.
        let shards = source.volume.scheme.total_shards() as u64 + 1;
        let bytes = blocks.count as u64 * BLOCK_BYTES as u64 * shards;
        let reserved = self.budget.decode.reserve_patiently(bytes);
        let _reserved: Reserved = deadline.bound(reserved).await?;
        let sources = self.read_sources(source, wanted, blocks, deadline).await?;
        off_reactor(move || sources.compute()).await?
    }

    /// What it takes to compute the `wanted` shard, verified.
    pub async fn read_sources(
        &self,
        source: &StripeSource,
        wanted: u8,
        blocks: BlockRange,
        deadline: Deadline,
    ) -> Result<Sources> {
        let codec = self.codecs.get(source.volume.scheme)?;
        let late_after = |index: usize| {
            let is_prompt = self.admission(source, index as u8) != Admission::No;
            is_prompt.then(|| self.late_after(source, index as u8))
        };
        let mut gathering = Gathering::new(codec, wanted, late_after);
        let read = |index: u8| async move {
            let read = self.read_shard_by(source, index, blocks, deadline).await;
            (index, read)
        };
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
                () = late => gathering.expire(Instant::now()),
            }
        }
    }

    /// Whether the disk of a data shard is away, so that pieces of it have to be computed.
    pub fn is_degraded(&self, source: &StripeSource) -> bool {
        let is_there = |index: u8| {
            let disk = self.disk_of(source, index);
            source.volume.is_whole(index) && disk.is_some_and(|disk| disk.health == Health::Online)
        };
        let data = source.volume.scheme.data_shards();
        !(0..data).all(|index| is_there(index as u8))
    }

    fn disk_of(&self, source: &StripeSource, index: u8) -> Option<Arc<Disk>> {
        self.disks.get(source.volume.disks[usize::from(index)])
    }

    /// Whether a read should ask this shard's disk first.
    fn admission(&self, source: &StripeSource, index: u8) -> Admission {
        let disk = self.disk_of(source, index);
        match disk.filter(|disk| source.volume.is_whole(index) && disk.health == Health::Online) {
            Some(disk) => disk.conduct.may_read(),
            None => Admission::No,
        }
    }

    /// After how long a read of this shard is late.
    fn late_after(&self, source: &StripeSource, index: u8) -> Duration {
        self.disk_of(source, index)
            .map_or(LATE_MAX, |disk| disk.conduct.late_after())
    }

    /// Whether a shard whose disk should not be asked is better decoded. Where the disks of the others are no better off, all
    /// of them have too much to do, and reading several shards for one would not help.
    fn is_better_around(&self, source: &StripeSource, wanted: u8) -> Result<bool> {
        let is_there = |disk: Arc<Disk>| disk.health == Health::Online && source.volume.is_whole(wanted);
        if !self.disk_of(source, wanted).is_some_and(is_there) {
            return Ok(true);
        }
        let codec = self.codecs.get(source.volume.scheme)?;
        let others = (0..source.volume.disks.len()).filter(|&index| {
            index != usize::from(wanted) && self.admission(source, index as u8) != Admission::No
        });
        let plan = codec.plan(&[usize::from(wanted)], others.map(|index| (index, 1)));
        Ok(plan.is_ok())
    }

    /// Whole blocks of one shard, verified against their CRCs. What is wrong with the record, rather than with its
    /// disk or the way there, is queued for repair.
    pub async fn read_shard(
        &self,
        source: &StripeSource,
        index: u8,
        blocks: BlockRange,
    ) -> std::result::Result<ShardBlocks, NodeError> {
        self.read_shard_by(source, index, blocks, Deadline::after(CUT_OFF_MAX))
            .await
    }

    /// The same, with what is left of the time for a piece, unless it was read for another piece.
    async fn read_shard_by(
        &self,
        source: &StripeSource,
        index: u8,
        blocks: BlockRange,
        deadline: Deadline,
    ) -> std::result::Result<ShardBlocks, NodeError> {
        let read = self.read_shard_itself(source, index, blocks, deadline);
        match &source.shared {
            Some(shared) => shared.get(index, blocks, read).await,
            None => read.await,
        }
    }

    async fn read_shard_itself(
        &self,
        source: &StripeSource,
        index: u8,
        blocks: BlockRange,
        deadline: Deadline,
    ) -> std::result::Result<ShardBlocks, NodeError> {
        let mut read = self.fetch(source, index, blocks, deadline).await;
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
            read = self.fetch(source, index, blocks, deadline).await;
        }
        if let Err(error) = &read {
            self.take_in(source, index, error).await;
        }
        read
    }

    /// Takes in how a read failed: what it says of the disk, and of the record.
    async fn take_in(&self, source: &StripeSource, index: u8, error: &NodeError) {
        let is_whole = source.volume.is_whole(index);
        // Only now is it known that the unit has not moved.
        let wrong = match error {
            NodeError::NotFound if is_whole => Some(Wrong::Missing),
            NodeError::StaleEpoch { .. } => Some(Wrong::Refused),
            _ => None,
        };
        if let (Some(wrong), Some(disk)) = (wrong, self.disk_of(source, index)) {
            let outcome = Outcome::Wrong(wrong, error.to_string());
            disk.conduct.take_in(Kind::Read, outcome);
        }
        self.disks.met(source.volume.disks[usize::from(index)], error);
        let expected = *error == NodeError::NotFound && !is_whole;
        if let Some(kind) = suspect_kind(error).filter(|_| !expected) {
            self.metrics.bad_shards.with_label_values(&[kind]).inc();
            self.suspect(source, index, error).await;
        }
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

    /// Asks the disk, checks its answer, and judges it by that.
    async fn fetch(
        &self,
        source: &StripeSource,
        index: u8,
        blocks: BlockRange,
        deadline: Deadline,
    ) -> std::result::Result<ShardBlocks, NodeError> {
        let disk = self.disk_of(source, index).ok_or_else(no_node)?;
        let client = disk.client.as_ref().ok_or_else(no_node)?;
        let (cut_off, left) = (disk.conduct.cut_off(Kind::Read), deadline.left());
        if left.is_zero() {
            return Err(NodeError::Timeout);
        }
        let address = source.volume.address(index, &disk);
        let call = disk.conduct.begin(Kind::Read);
        let read = client.get(&address, source.key, blocks, cut_off.min(left)).await;
        let checked = match read {
            Ok(shard) => check(source, index, blocks, shard).await,
            Err(NodeError::Timeout) if left < cut_off => return Err(NodeError::Timeout), // Late, if it was: `call` knows.
            Err(error) => {
                call.end(Outcome::of_error(&error));
                return Err(error);
            }
        };
        match checked {
            Ok(shard) => {
                call.end(Outcome::Good);
                Ok(shard)
            }
            Err((wrong, what)) => {
                call.end(Outcome::Wrong(wrong, what.clone()));
                Err(NodeError::Corrupt { what })
            }
        }
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

/// Checks what a node sent: the shape, the checksums, then every block. Else what is wrong with it.
async fn check(
    source: &StripeSource,
    index: u8,
    blocks: BlockRange,
    shard: ShardBlocks,
) -> std::result::Result<ShardBlocks, (Wrong, String)> {
    if shard.payload.len() <= INLINE_CHECK_BYTES {
        return verified(source, index, blocks, shard);
    }
    let source = source.clone();
    off_reactor(move || verified(&source, index, blocks, shard))
        .await
        .unwrap_or_else(|error| Err((Wrong::Bytes, error.to_string())))
}

/// The same, here and now.
pub fn verified(
    source: &StripeSource,
    index: u8,
    blocks: BlockRange,
    shard: ShardBlocks,
) -> std::result::Result<ShardBlocks, (Wrong, String)> {
    let end = source
        .shard_len
        .min((blocks.first + blocks.count).saturating_mul(BLOCK_BYTES));
    let expected = end.saturating_sub(blocks.first * BLOCK_BYTES) as usize;
    if shard.shard_len != source.shard_len
        || shard.first_block != blocks.first
        || shard.payload.len() != expected
    {
        let what = format!(
            "{} bytes from block {} of a shard of {}, not {expected} from {} of {}",
            shard.payload.len(),
            shard.first_block,
            shard.shard_len,
            blocks.first,
            source.shard_len
        );
        return Err((Wrong::Shape, what));
    }
    if source
        .seals
        .as_ref()
        .is_some_and(|seals| !seals.agree(index, &shard))
    {
        let what = "its checksums are not those it was written with".into();
        return Err((Wrong::Forged, what));
    }
    let seed = seal_seed(source.volume.unit(index), source.key, source.shard_len);
    match seal::check_blocks(seed, shard.first_block, &shard.block_crcs, &shard.payload) {
        Ok(()) => Ok(shard),
        Err(error) => Err((Wrong::Bytes, error.to_string())),
    }
}

/// The blocks that hold a piece.
pub fn blocks_of(piece: &Piece) -> BlockRange {
    let first = piece.offset / BLOCK_BYTES;
    let count = (piece.offset + piece.len).div_ceil(BLOCK_BYTES) - first;
    BlockRange { first, count }
}

/// Cuts the piece out of the blocks that hold it.
fn trim(payload: Bytes, piece: &Piece, blocks: BlockRange) -> Bytes {
    let start = (piece.offset - blocks.first * BLOCK_BYTES) as usize;
    payload.slice(start..start + piece.len as usize)
}
