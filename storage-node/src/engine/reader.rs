//! Reading a shard: its head, to know that the bytes are what the index says, and the wanted blocks.
//!
//! Invariant: a reader pins the extent, so its bytes stay until it is done; and it answers only for a head that names
//! this very shard, put and place. The blocks are checked by the caller, against CRCs that the head protects. Of a shard
//! that is read in part the head is kept ([`super::heads`]).

use super::Shared;
use super::index::Entry;
use crate::device::{AlignedBuf, BLOCK, Completion, DeviceError, DeviceErrorKind, align_down, align_up};
use crate::format::FormatError;
use crate::format::extent::DiskIdentity;
use crate::format::record::{RecordHead, RecordKind, RecordPlace, head_len};
use crate::protocol::{
    BLOCK_BYTES, BlockRange, NodeError, ShardBlocks, ShardKey, UnitAddress, UnitId, block_count,
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Head and blocks are read in one go when at most this many bytes between them are not wanted.
const GAP_MAX: u32 = 64 * 1024;
/// How often a reader reads a record that moves before it calls it corrupt.
const ATTEMPTS: usize = 4;

/// One of a bounded number of reads.
pub type Permit = Arc<OwnedSemaphorePermit>;

/// A read of bytes that need not be aligned.
pub struct Span {
    completion: Completion<AlignedBuf>,
    skip: usize,
    len: usize,
}

/// The bytes of a span.
pub struct SpanBytes {
    buf: Bytes,
}

impl SpanBytes {
    /// The bytes asked for.
    pub fn bytes(&self) -> Bytes {
        self.buf.clone()
    }
}

impl Span {
    fn cut(buf: AlignedBuf, skip: usize, len: usize) -> SpanBytes {
        SpanBytes {
            buf: Bytes::from_owner(buf).slice(skip..skip + len),
        }
    }

    /// Blocks until it is read.
    pub fn wait(self) -> Result<SpanBytes, DeviceError> {
        Ok(Self::cut(self.completion.wait()?, self.skip, self.len))
    }

    /// Reads it. The device holds the permit until it answers, also when the caller has left.
    pub async fn read(self, permit: &Permit) -> Result<SpanBytes, DeviceError> {
        let completion = self.completion.holding(permit.clone());
        Ok(Self::cut(completion.await?, self.skip, self.len))
    }
}

/// Starts reading `len` bytes that start `from` bytes into the record at `place`.
pub fn read_span(shared: &Shared, place: RecordPlace, from: u32, len: u32) -> Span {
    let start = shared.layout.extent_offset(place.extent) + u64::from(place.offset) + u64::from(from);
    let (first, last) = (align_down(start), align_up(start + u64::from(len)));
    let buf = AlignedBuf::recycled((last - first).max(BLOCK as u64) as usize);
    Span {
        completion: shared.device.read(first, buf),
        skip: (start - first) as usize,
        len: len as usize,
    }
}

/// The head in `bytes`, if it is the one that the index means.
pub fn check_head(
    identity: &DiskIdentity,
    bytes: &[u8],
    unit: UnitId,
    key: ShardKey,
    entry: &Entry,
) -> Result<RecordHead, FormatError> {
    let head = RecordHead::decode(bytes, identity, entry.place)?;
    let same =
        head.kind == RecordKind::Shard && head.unit == unit && head.key == key && Entry::of(&head) == *entry;
    if same {
        Ok(head)
    } else {
        Err(FormatError::Content("the record is of another shard"))
    }
}

/// The part of a shard that is asked for.
struct Wanted {
    /// Its blocks.
    first: u32,
    last: u32,
    /// Its bytes, from the start of the payload.
    start: u32,
    end: u32,
    /// Nothing is left out. Such a read takes the head from the disk, always: that is how repair and rebuilding look at a record.
    is_whole: bool,
}

impl Wanted {
    fn of(entry: &Entry, blocks: BlockRange) -> Wanted {
        let total = block_count(entry.len);
        let first = blocks.first.min(total);
        let last = blocks.first.saturating_add(blocks.count).min(total).max(first);
        Wanted {
            first,
            last,
            start: (first * BLOCK_BYTES).min(entry.len),
            end: (last * BLOCK_BYTES).min(entry.len),
            is_whole: first == 0 && last == total,
        }
    }

    fn len(&self) -> u32 {
        self.end - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn answer(&self, head: RecordHead, payload: Bytes) -> ShardBlocks {
        ShardBlocks {
            shard_len: head.len,
            first_block: self.first,
            block_crcs: head.block_crcs[self.first as usize..self.last as usize].to_vec(),
            digests: head.digests,
            payload,
        }
    }
}

impl Shared {
    /// Reads blocks of a shard, following it when it moves meanwhile.
    pub async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        permit: Permit,
    ) -> Result<ShardBlocks, NodeError> {
        let mut failed: Option<(Entry, FormatError)> = None;
        for _ in 0..ATTEMPTS {
            let Some((entry, pin)) = self.locate(from.unit, key) else {
                return Err(NodeError::NotFound);
            };
            let result = self.read_blocks(from.unit, key, &entry, blocks, &permit).await;
            drop(pin);
            let error = match result {
                Ok(Ok(blocks)) => return Ok(blocks),
                Ok(Err(error)) => error,
                Err(error) => return Err(self.report_read_error(&error)),
            };
            let before = failed.replace((entry, error));
            // One bad read decides nothing: a second one of the same place does.
            if before.is_some_and(|(before, _)| before == entry) {
                break;
            }
        }
        let error = failed.map_or(FormatError::Short, |(_, error)| error);
        Err(self.report_corrupt(from.unit, key, &error).await)
    }

    fn locate(&self, unit: UnitId, key: ShardKey) -> Option<(Entry, Arc<()>)> {
        let index = self.index();
        let entry = index.find(unit, key)?;
        Some((entry, index.extents[entry.place.extent as usize].pin.clone()))
    }

    async fn read_blocks(
        &self,
        unit: UnitId,
        key: ShardKey,
        entry: &Entry,
        blocks: BlockRange,
        permit: &Permit,
    ) -> Result<Result<ShardBlocks, FormatError>, DeviceError> {
        let wanted = Wanted::of(entry, blocks);
        if !wanted.is_empty()
            && !wanted.is_whole
            && let Some(head) = self.kept_head(unit, key, entry)
        {
            let payload = read_span(self, entry.place, entry.payload_at + wanted.start, wanted.len());
            return Ok(Ok(wanted.answer(head, payload.read(permit).await?.bytes())));
        }
        let (head_bytes, payload) = self.read_with_head(entry, &wanted, permit).await?;
        Ok(
            check_head(&self.identity, &head_bytes, unit, key, entry).map(|head| {
                if !wanted.is_whole {
                    self.heads
                        .keep(entry.place, &head_bytes[..head.head_len() as usize]);
                }
                wanted.answer(head, payload)
            }),
        )
    }

    /// The head of a record, if it was read lately. It is checked as if it came from the disk.
    fn kept_head(&self, unit: UnitId, key: ShardKey, entry: &Entry) -> Option<RecordHead> {
        let bytes = self.heads.get(entry.place)?;
        check_head(&self.identity, &bytes, unit, key, entry).ok()
    }

    /// Reads the bytes that begin with the head, and the wanted part of the payload: at once if they are close.
    async fn read_with_head(
        &self,
        entry: &Entry,
        wanted: &Wanted,
        permit: &Permit,
    ) -> Result<(Bytes, Bytes), DeviceError> {
        let head_len = head_len(block_count(entry.len), u32::from(entry.digests));
        if wanted.is_empty() {
            let head = read_span(self, entry.place, 0, head_len).read(permit).await?;
            return Ok((head.bytes(), Bytes::new()));
        }
        if wanted.start <= GAP_MAX {
            let all = read_span(self, entry.place, 0, entry.payload_at + wanted.end);
            let all = all.read(permit).await?.bytes();
            let payload = all.slice((entry.payload_at + wanted.start) as usize..);
            return Ok((all, payload));
        }
        let head = read_span(self, entry.place, 0, head_len);
        let payload = read_span(self, entry.place, entry.payload_at + wanted.start, wanted.len());
        let (head, payload) = futures::join!(head.read(permit), payload.read(permit));
        Ok((head?.bytes(), payload?.bytes()))
    }

    /// Whether a read failed because the disk is out of service, or gone and so taken out of it.
    pub fn fence_if_gone(&self, error: &DeviceError) -> Result<(), NodeError> {
        self.check_serving()?;
        if error.kind == DeviceErrorKind::Gone {
            return Err(self.fence_with(error));
        }
        self.device.check().map_err(|gone| self.fence_with(&gone))
    }

    fn report_read_error(&self, error: &DeviceError) -> NodeError {
        if let Err(error) = self.fence_if_gone(error) {
            return error;
        }
        tracing::warn!(disk = %self.identity.disk, %error, "read failed");
        self.metrics.read_errors.add(1);
        self.metrics.corrupt_shards.add(1);
        NodeError::Io {
            what: error.what.clone(),
        }
    }

    /// Counts a corrupt record; and looks whether the disk is still ours, since somebody may have overwritten it.
    async fn report_corrupt(&self, unit: UnitId, key: ShardKey, error: &FormatError) -> NodeError {
        self.metrics.corrupt_shards.add(1);
        let what = format!(
            "unit {}/{} blob {} stripe {}: {error}",
            unit.volume, unit.index, key.blob, key.stripe
        );
        tracing::warn!(disk = %self.identity.disk, %what, "corrupt record");
        if !self.has_superblock().await {
            return self.fence_because(super::superblocks::OVERWRITTEN);
        }
        NodeError::Corrupt { what }
    }

    async fn has_superblock(&self) -> bool {
        use crate::format::layout::superblock_offset;
        use crate::format::superblock::{SUPERBLOCK_COPIES, Superblock};
        for copy in 0..SUPERBLOCK_COPIES {
            let at = superblock_offset(self.device.info().size, copy);
            match self.device.read(at, AlignedBuf::zeroed(BLOCK)).await {
                Ok(block) if Superblock::decode(&block).is_ok_and(|s| s.disk == self.identity.disk) => {
                    return true;
                }
                Ok(_) => {}
                // An unreadable copy says nothing about who wrote it.
                Err(_) => return true,
            }
        }
        false
    }
}
