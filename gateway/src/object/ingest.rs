//! From a body to blobs: fills a chunk while the one before is hashed, coded and sent.
//!
//! Memory: one chunk (with its parity) is set aside before the first byte is read; a second, which lets receiving
//! overlap with writing, only if memory is free at that moment.

use super::abandoned::PendingBlobs;
use super::blob_writer::{BlobWriter, stripe_bytes};
use super::digest::{Algorithm, ContentDigests, ContentHasher};
use super::{Body, Objects, PUT_BYTES_MAX, SMALL_BYTES_MAX};
use crate::budget::{Reserved, accounted};
use crate::connections::{self, Connection};
use crate::error::{Error, Result};
use crate::ledger::model::BlobRef;
use bytes::{Buf, Bytes};
use futures::StreamExt;
use std::sync::Arc;
use storage_node::device::AlignedBuf;

/// An upload whose bytes are durable and which no row names yet.
pub struct Ingested {
    /// Bytes.
    pub size: u64,
    /// MD5 and checksum of the content.
    pub digests: ContentDigests,
    /// The content, in order.
    pub blobs: Vec<BlobRef>,
    /// Collects the blobs if they are never named.
    pub pending: PendingBlobs,
}

/// Reads a body to its end and makes it durable. `announced` is the length the client gave, if it did.
pub async fn ingest(
    objects: &Objects,
    body: Body,
    announced: Option<u64>,
    algorithm: Option<Algorithm>,
) -> Result<Ingested> {
    if announced.is_some_and(|n| n > PUT_BYTES_MAX) {
        return Err(Error::EntityTooLarge);
    }
    let stripe = stripe_bytes(objects.scheme);
    let first_len = announced.map_or(stripe, |n| n.min(stripe as u64) as usize);
    let reserved = objects
        .budget
        .writes
        .reserve(with_parity(objects, first_len))
        .await?;
    let mut source = Source {
        body: body.fuse(),
        rest: Bytes::new(),
        received: 0,
        announced,
        client: connections::served(),
    };
    let first = source.fill(first_len.max(1), reserved).await?;
    let small = first.len() <= SMALL_BYTES_MAX && source.at_end().await?;
    let scheme = if small {
        objects.scheme.small()
    } else {
        objects.scheme
    };
    let writer = BlobWriter::new(objects, scheme);
    pump(objects, source, first, writer, ContentHasher::new(algorithm)).await
}

/// Moves chunk after chunk from the source to the writer.
async fn pump(
    objects: &Objects,
    mut source: Source,
    first: Bytes,
    mut writer: BlobWriter<'_>,
    mut hasher: ContentHasher,
) -> Result<Ingested> {
    let mut chunk = first;
    let mut ended = source.at_end().await?;
    while !chunk.is_empty() {
        let next_len = source.next_len(writer.chunk_bytes());
        let ahead = match ended {
            true => None,
            false => objects.budget.writes.try_reserve(with_parity(objects, next_len)),
        };
        let hash = hasher.update(&objects.hashing, chunk.clone());
        let (hashed, written, filled) = tokio::join!(hash, writer.write(chunk, ended), async {
            match ahead {
                Some(reserved) => source.fill(next_len, reserved).await.map(Some),
                None => Ok(None),
            }
        });
        (hasher, _) = (hashed?, written?);
        chunk = match filled? {
            Some(filled) => filled,
            None if ended => Bytes::new(),
            None => {
                let next_len = source.next_len(writer.chunk_bytes());
                let reserved = objects
                    .budget
                    .writes
                    .reserve_patiently(with_parity(objects, next_len))
                    .await?;
                source.fill(next_len, reserved).await?
            }
        };
        ended = source.at_end().await?;
    }
    let (blobs, pending) = writer.finish();
    objects.metrics.received_bytes.inc_by(source.received);
    Ok(Ingested {
        size: source.received,
        digests: hasher.finish(),
        blobs,
        pending,
    })
}

fn with_parity(objects: &Objects, len: usize) -> u64 {
    let (data, total) = (
        objects.scheme.data_shards() as u64,
        objects.scheme.total_shards() as u64,
    );
    if len <= SMALL_BYTES_MAX {
        len as u64
    } else {
        len as u64 * total / data
    }
}

/// A body, cut into chunks.
struct Source {
    body: futures::stream::Fuse<Body>,
    rest: Bytes,
    received: u64,
    announced: Option<u64>,
    /// Who sends it.
    client: Option<Arc<Connection>>,
}

impl Source {
    /// How much to ask for next.
    fn next_len(&self, chunk: usize) -> usize {
        let left = self
            .announced
            .map_or(u64::MAX, |n| n.saturating_sub(self.received));
        left.clamp(1, chunk as u64) as usize
    }

    /// Up to `len` bytes; fewer only at the end. They keep their memory reserved for as long as anybody holds a part
    /// of them, be it a disk's queue.
    async fn fill(&mut self, len: usize, reserved: Reserved) -> Result<Bytes> {
        // Where direct I/O may begin: shards are written from where they are.
        let mut chunk = AlignedBuf::recycled(len);
        let mut filled = 0;
        while filled < len && self.more().await? {
            let take = self.rest.len().min(len - filled);
            chunk[filled..filled + take].copy_from_slice(&self.rest[..take]);
            self.rest.advance(take);
            filled += take;
        }
        self.received += filled as u64;
        if self.received > PUT_BYTES_MAX {
            return Err(Error::EntityTooLarge);
        }
        Ok(accounted(Bytes::from_owner(chunk).slice(..filled), reserved))
    }

    /// Whether the body has been read to its end, which must be where the client said it would be.
    async fn at_end(&mut self) -> Result<bool> {
        if self.more().await? {
            return match self.announced {
                Some(announced) if self.received >= announced => Err(Error::InvalidRequest(
                    "the request body is longer than its announced length".into(),
                )),
                _ => Ok(false),
            };
        }
        match self.announced {
            Some(announced) if self.received < announced => Err(Error::IncompleteBody),
            _ => Ok(true),
        }
    }

    /// Makes sure `rest` holds something, unless the body has ended.
    async fn more(&mut self) -> Result<bool> {
        while self.rest.is_empty() {
            let next = self.body.next();
            let next = match &self.client {
                Some(client) => client.awaiting(next).await,
                None => next.await,
            };
            match next {
                Some(bytes) => self.rest = bytes?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}
