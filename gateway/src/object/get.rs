//! Reads objects: finds the row, plans the pieces of the range, and hands them out in order, a few ahead.
//!
//! Memory: every piece is set aside in the read pool until the client's socket has taken its bytes. The first piece is
//! read before the answer begins, so that an object that cannot be read is an error and not a broken download; of a large
//! object it is one block, so that the first byte waits for no more.

use super::condition::ReadConditions;
use super::readers::Pins;
use super::shard_reader::{StripeSource, blocks_of};
use super::shared_reads::SharedReads;
use super::{Objects, encode};
use crate::budget::{Reserved, accounted};
use crate::cluster::disks::Health;
use crate::connections::serving_the_same;
use crate::error::{Error, Result};
use crate::ledger::key;
use crate::ledger::model::{BlobRef, ObjectRow};
use bytes::Bytes;
use ec_core::stripe::Piece;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use storage_node::protocol::{BLOCK_BYTES, DiskId, ShardKey};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Pieces that are read ahead of the client, memory permitting.
const AHEAD_MAX: usize = 8;
/// An answer of at most so many bytes is given at once if all of it is in memory.
const AT_ONCE_BYTES: u64 = 1 << 20;
/// The first piece of a download of more than so many bytes is a single block.
const LARGE_BYTES: u64 = 4 << 20;

/// Which bytes of an object are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them.
    All,
    /// From `first` to `last`, or to the end.
    From {
        /// The first byte.
        first: u64,
        /// The last byte, if given; past the end means the end.
        last: Option<u64>,
    },
    /// The last so many.
    Suffix(u64),
    /// One part of a multipart object, by number; part 1 of any other is all of it.
    Part(u32),
}

/// An object, or the part of it that was asked for.
pub struct Found {
    /// Its row.
    pub row: ObjectRow,
    /// The bytes of it that are wanted.
    pub range: Range<u64>,
    /// Whether that is a part of it, by request.
    pub partial: bool,
}

/// The range of an object of `size` bytes that is wanted.
pub fn resolve(wanted: Wanted, row: &ObjectRow) -> Result<Range<u64>> {
    let size = row.size;
    let unsatisfiable = Error::RangeNotSatisfiable { size };
    match wanted {
        Wanted::All => Ok(0..size),
        Wanted::From { first, last } if first < size && last.is_none_or(|last| last >= first) => {
            Ok(first..last.map_or(size, |last| last.saturating_add(1).min(size)))
        }
        Wanted::Suffix(n) if n > 0 && size > 0 => Ok(size.saturating_sub(n)..size),
        Wanted::From { .. } | Wanted::Suffix(_) => Err(unsatisfiable),
        Wanted::Part(1) if row.parts.is_empty() => Ok(0..size),
        Wanted::Part(number) => {
            let at = row
                .parts
                .iter()
                .position(|p| p.number == number)
                .ok_or(unsatisfiable)?;
            let start: u64 = row.parts[..at].iter().map(|p| p.size).sum();
            Ok(start..start + row.parts[at].size)
        }
    }
}

/// A piece and where to read it.
struct Fetch {
    source: StripeSource,
    piece: Piece,
}

/// Bytes that a piece keeps in memory: whole blocks are read and checked.
fn held_bytes(piece: &Piece, shard_len: u32) -> u64 {
    let bytes = blocks_of(piece).count * BLOCK_BYTES;
    u64::from(bytes.min(shard_len))
}

fn total_len(parts: &[(BlobRef, Range<u64>)]) -> u64 {
    parts.iter().map(|(_, range)| range.end - range.start).sum()
}

impl Fetch {
    fn held_bytes(&self) -> u64 {
        held_bytes(&self.piece, self.source.shard_len)
    }

    /// Cuts off what is behind its first block, if there is anything.
    fn split_behind_block(&mut self) -> Option<Fetch> {
        let end = (self.piece.offset / BLOCK_BYTES + 1) * BLOCK_BYTES;
        let len = end - self.piece.offset;
        if self.piece.len <= len {
            return None;
        }
        let rest = Piece {
            offset: end,
            len: self.piece.len - len,
            ..self.piece
        };
        self.piece.len = len;
        Some(Fetch {
            source: self.source.clone(),
            piece: rest,
        })
    }
}

/// The bytes of an answer, in order.
#[derive(Default)]
pub struct Pieces {
    here: VecDeque<Bytes>,
    /// What is read later; none if all is here.
    later: Option<mpsc::Receiver<Result<Vec<Bytes>>>>,
}

impl Pieces {
    /// What comes next, until the end or an error.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        loop {
            if let Some(bytes) = self.here.pop_front() {
                return Some(Ok(bytes));
            }
            match self.later.as_mut()?.recv().await? {
                Ok(piece) => self.here.extend(piece),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Blocks that keep memory reserved until the last of them is let go; they are sent in order.
fn accounted_blocks(mut blocks: Vec<Bytes>, reserved: Reserved) -> Vec<Bytes> {
    if let Some(last) = blocks.last_mut() {
        *last = accounted(std::mem::take(last), reserved);
    }
    blocks
}

impl Objects {
    /// What HEAD answers: the row and the range, no bytes.
    pub async fn head(
        &self,
        bucket: &str,
        name: &str,
        wanted: Wanted,
        conditions: &ReadConditions,
    ) -> Result<Found> {
        let bucket = self.bucket(bucket).await?;
        let row = self
            .ledger
            .get::<ObjectRow>(key::object(bucket.row.id, name))
            .await?;
        let row = row.ok_or(Error::NoSuchKey)?.row;
        conditions.check(&row)?;
        Ok(Found {
            range: resolve(wanted, &row)?,
            partial: wanted != Wanted::All,
            row,
        })
    }

    /// What GET answers: the row, the range, and its bytes in order. Bytes that cannot be read right are an error,
    /// at once if they are the first.
    pub async fn get(
        self: &Arc<Self>,
        bucket: &str,
        name: &str,
        wanted: Wanted,
        conditions: &ReadConditions,
    ) -> Result<(Found, Pieces)> {
        let entering = self.readers.enter();
        let found = self.head(bucket, name, wanted, conditions).await?;
        let parts = overlapping(&found.row.blobs, found.range.clone());
        let pins = entering.pin(parts.iter().map(|(blob, _)| (blob.volume, blob.blob)).collect());
        if let Some(bytes) = self.all_cached(&parts).await? {
            return Ok((found, bytes));
        }
        self.check_readable(&parts).await?;
        let bytes = self.stream(parts, pins).await?;
        Ok((found, bytes))
    }

    /// A short answer, if all of it is in memory: it needs no disk, and nothing that the ledger knows of what is on them.
    async fn all_cached(&self, parts: &[(BlobRef, Range<u64>)]) -> Result<Option<Pieces>> {
        if total_len(parts) > AT_ONCE_BYTES {
            return Ok(None);
        }
        let (mut here, mut held) = (Vec::new(), 0);
        for (blob, range) in parts {
            let volume = self.volumes.get(blob.volume).await?;
            let codec = self.codecs.get(volume.scheme)?;
            let geometry = encode::geometry(&codec, blob.length)?;
            for piece in geometry.pieces(range.clone()) {
                let stripe = ShardKey {
                    blob: blob.blob,
                    stripe: piece.stripe,
                };
                let Some(blocks) = self.cached_blocks(stripe, &piece) else {
                    return Ok(None);
                };
                held += held_bytes(&piece, geometry.shard_len(piece.stripe));
                here.extend(blocks);
            }
        }
        self.metrics.cache_hits.inc_by(here.len() as u64);
        let reserved = self.budget.reads.reserve(held).await?;
        Ok(Some(Pieces {
            here: accounted_blocks(here, reserved).into(),
            later: None,
        }))
    }

    /// Fails where a download would have to be cut off later: a piece is on a disk that is down, and the shards that are
    /// left do not make it up.
    async fn check_readable(&self, parts: &[(BlobRef, Range<u64>)]) -> Result<()> {
        for (blob, range) in parts {
            let volume = self.volumes.get(blob.volume).await?;
            let up = |id: &DiskId| {
                self.disks
                    .get(*id)
                    .is_some_and(|d| d.client.is_some() && !matches!(d.health, Health::Down(_)))
            };
            let up: Vec<usize> = (0..volume.disks.len())
                .filter(|&i| up(&volume.disks[i]))
                .collect();
            if volume.disks.len() - up.len() <= volume.scheme.losses_survived() {
                continue;
            }
            let codec = self.codecs.get(volume.scheme)?;
            for piece in encode::geometry(&codec, blob.length)?.pieces(range.clone()) {
                let shard = usize::from(piece.shard);
                if !up.contains(&shard) && codec.plan(&[shard], up.iter().map(|&i| (i, 1))).is_err() {
                    return Err(
                        StripeSource::new(&codec, volume, blob, piece.stripe, None)?.unreadable(up.len())
                    );
                }
            }
        }
        Ok(())
    }

    /// The bytes of parts of blobs, in order. Returns once the first piece has been read.
    pub async fn stream(self: &Arc<Self>, parts: Vec<(BlobRef, Range<u64>)>, pins: Pins) -> Result<Pieces> {
        let is_large = total_len(&parts) > LARGE_BYTES;
        let mut plan = Plan {
            objects: self.clone(),
            parts: parts.into(),
            pieces: VecDeque::new(),
        };
        let Some(mut first) = plan.next().await? else {
            return Ok(Pieces::default());
        };
        if is_large
            && first.source.shared.is_none() // What is computed is computed from whole shards, which others need too.
            && let Some(rest) = first.split_behind_block()
        {
            plan.pieces.push_front(rest);
        }
        let reserved = self.budget.reads.reserve(first.held_bytes()).await?;
        let blocks = self.read_piece(&first.source, &first.piece).await?;
        let mut pieces = Pieces {
            here: accounted_blocks(blocks, reserved).into(),
            later: None,
        };
        if plan.is_done() {
            return Ok(pieces); // All is in memory: nothing needs a pin any more.
        }
        // A client that leaves ends this through the channel.
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(serving_the_same(async move {
            let _pins = pins;
            produce(plan, send).await;
        }));
        pieces.later = Some(receive);
        Ok(pieces)
    }
}

/// Reads the pieces of a plan, several at once, and sends them in order.
async fn produce(mut plan: Plan, send: mpsc::Sender<Result<Vec<Bytes>>>) {
    let mut ahead: VecDeque<Reading> = VecDeque::new();
    let mut ended = false;
    loop {
        while !ended && ahead.len() < AHEAD_MAX {
            match plan.start_next(ahead.is_empty()).await {
                Ok(Started::Reading(reading)) => ahead.push_back(reading),
                Ok(Started::NoMemory) => break,
                Ok(Started::End) => ended = true,
                Err(error) => {
                    let _ = send.send(Err(error)).await; // A client that left needs no error.
                    return;
                }
            }
        }
        let Some(reading) = ahead.pop_front() else { return };
        let read = reading.finish().await;
        let failed = read.is_err();
        if send.send(read).await.is_err() || failed {
            return;
        }
    }
}

/// A read that has ended, or is in progress; that one stops when dropped.
enum Reading {
    Here(Vec<Bytes>),
    Task(ReadTask),
}

struct ReadTask(JoinHandle<Result<Vec<Bytes>>>);

impl Reading {
    async fn finish(self) -> Result<Vec<Bytes>> {
        match self {
            Reading::Here(blocks) => Ok(blocks),
            Reading::Task(mut task) => (&mut task.0)
                .await
                .map_err(|e| Error::Internal(format!("a read stopped: {e}")))?,
        }
    }
}

impl Drop for ReadTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Started {
    Reading(Reading),
    NoMemory,
    End,
}

/// What is left to read.
struct Plan {
    objects: Arc<Objects>,
    parts: VecDeque<(BlobRef, Range<u64>)>,
    pieces: VecDeque<Fetch>,
}

impl Plan {
    fn is_done(&self) -> bool {
        self.parts.is_empty() && self.pieces.is_empty()
    }

    /// The next piece, planning one blob at a time.
    async fn next(&mut self) -> Result<Option<Fetch>> {
        while self.pieces.is_empty() {
            let Some((blob, range)) = self.parts.pop_front() else {
                return Ok(None);
            };
            let volume = self.objects.volumes.get(blob.volume).await?;
            let codec = self.objects.codecs.get(volume.scheme)?;
            let seals = self.objects.seals(&blob).await?;
            let mut shared: Option<(u32, Arc<SharedReads>)> = None;
            for piece in encode::geometry(&codec, blob.length)?.pieces(range) {
                let mut source =
                    StripeSource::new(&codec, volume.clone(), &blob, piece.stripe, seals.as_ref())?;
                if shared.as_ref().is_none_or(|(stripe, _)| *stripe != piece.stripe) {
                    let is_degraded = self.objects.is_degraded(&source);
                    shared = is_degraded.then(|| (piece.stripe, Arc::default()));
                }
                source.shared = shared.as_ref().map(|(_, reads)| reads.clone());
                self.pieces.push_back(Fetch { source, piece });
            }
        }
        Ok(self.pieces.pop_front())
    }

    /// Starts the next read; waits for memory only if nothing else is being read for this client.
    async fn start_next(&mut self, patient: bool) -> Result<Started> {
        let Some(fetch) = self.next().await? else {
            return Ok(Started::End);
        };
        let len = fetch.held_bytes();
        let reads = &self.objects.budget.reads;
        let free = match patient {
            true => reads.try_reserve(len),
            false => reads.try_reserve_ahead(len),
        };
        let reserved = match free {
            Some(reserved) => reserved,
            None if patient => reads.reserve_patiently(len).await?,
            None => {
                self.pieces.push_front(fetch);
                return Ok(Started::NoMemory);
            }
        };
        if let Some(blocks) = self.objects.cached_piece(&fetch.source, &fetch.piece) {
            let blocks = accounted_blocks(blocks, reserved);
            return Ok(Started::Reading(Reading::Here(blocks)));
        }
        let objects = self.objects.clone();
        let task = tokio::spawn(serving_the_same(async move {
            let blocks = objects.read_piece(&fetch.source, &fetch.piece).await?;
            Ok(accounted_blocks(blocks, reserved))
        }));
        Ok(Started::Reading(Reading::Task(ReadTask(task))))
    }
}

/// The blobs that hold a range of an object, each with its own range.
pub fn overlapping(blobs: &[BlobRef], range: Range<u64>) -> Vec<(BlobRef, Range<u64>)> {
    let mut start = 0;
    let mut parts = Vec::new();
    for blob in blobs {
        let end = start + blob.length;
        if end > range.start && start < range.end {
            let within = range.start.max(start) - start..range.end.min(end) - start;
            parts.push((*blob, within));
        }
        start = end;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::model::PartSize;

    fn row(size: u64, parts: &[u64]) -> ObjectRow {
        let part = |(i, &size): (usize, &u64)| PartSize {
            number: i as u32 + 1,
            size,
        };
        ObjectRow {
            size,
            parts: parts.iter().enumerate().map(part).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn ranges_resolve_as_http_has_them() {
        let from = |first, last| Wanted::From { first, last };
        let ten = row(10, &[]);
        assert_eq!(resolve(from(0, None), &ten).ok(), Some(0..10));
        assert_eq!(resolve(from(3, Some(5)), &ten).ok(), Some(3..6));
        assert_eq!(resolve(from(3, Some(u64::MAX)), &ten).ok(), Some(3..10));
        assert_eq!(resolve(Wanted::Suffix(4), &ten).ok(), Some(6..10));
        assert_eq!(resolve(Wanted::Suffix(40), &ten).ok(), Some(0..10));
        for bad in [from(10, None), from(5, Some(4)), Wanted::Suffix(0)] {
            assert!(matches!(
                resolve(bad, &ten),
                Err(Error::RangeNotSatisfiable { size: 10 })
            ));
        }
        assert!(resolve(from(0, None), &row(0, &[])).is_err());
        assert_eq!(resolve(Wanted::All, &row(0, &[])).ok(), Some(0..0));
        assert_eq!(resolve(Wanted::Part(2), &row(10, &[4, 6])).ok(), Some(4..10));
        assert!(resolve(Wanted::Part(3), &row(10, &[4, 6])).is_err());
    }

    #[test]
    fn a_range_finds_its_blobs() {
        let blob = |id, length| BlobRef {
            volume: 1,
            blob: id,
            length,
        };
        let blobs = [blob(1, 10), blob(2, 5), blob(3, 10)];
        let parts = |range| {
            overlapping(&blobs, range)
                .into_iter()
                .map(|(b, r)| (b.blob, r))
                .collect::<Vec<_>>()
        };
        assert_eq!(parts(0..25), [(1, 0..10), (2, 0..5), (3, 0..10)]);
        assert_eq!(parts(9..11), [(1, 9..10), (2, 0..1)]);
        assert_eq!(parts(10..15), [(2, 0..5)]);
        assert_eq!(parts(24..25), [(3, 9..10)]);
        assert_eq!(parts(0..0), []);
    }
}
