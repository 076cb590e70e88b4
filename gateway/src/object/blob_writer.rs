//! Writes the bytes of one upload as blobs: cuts chunks into stripes, codes and seals them, sends every stripe's k+m
//! shards at once, and when a disk fails in the middle sends the stripe again, whole, to a healthy volume.

use super::abandoned::PendingBlobs;
use super::deadline::{Deadline, STRIPE_TIME};
use super::encode;
use super::seals;
use super::{Objects, SMALL_BYTES_MAX, off_reactor};
use crate::cluster::disks::no_node;
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRef, VolumeState};
use crate::placement::volumes::Volume;
use bytes::{Buf, Bytes};
use ec_core::Scheme;
use ec_core::stripe::{BLOB_BYTES_MAX, SHARD_BYTES_MAX};
use futures::future::join_all;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{DiskId, NodeError, SealedShard, ShardKey};
use tokio::time::Instant;

/// How many volumes a stripe is offered to before the upload fails.
const ATTEMPTS_MAX: usize = 5;
/// So many small blobs in a row go to one volume: those that come at the same time share the batches of its disks.
const SMALL_RUN: u64 = 64;
/// Up to this many bytes are coded and sealed where they are: it takes microseconds, less than handing them to another thread.
const INLINE_CODE_BYTES: usize = SMALL_BYTES_MAX;

struct OpenBlob {
    volume: Arc<Volume>,
    id: u64,
    stripes: u32,
    length: u64,
    seals: Vec<u8>,
}

/// Writes the blobs of one upload, in order.
pub struct BlobWriter<'a> {
    objects: &'a Objects,
    scheme: Scheme,
    open: Option<OpenBlob>,
    done: Vec<BlobRef>,
    pending: PendingBlobs,
    failed_disks: HashSet<DiskId>,
}

/// Bytes of a full stripe. A scheme of more than 64 data shards gets shorter shards: a blob has at least one stripe.
pub fn stripe_bytes(scheme: Scheme) -> usize {
    (scheme.data_shards() * SHARD_BYTES_MAX as usize).min(BLOB_BYTES_MAX as usize)
}

impl<'a> BlobWriter<'a> {
    /// For an upload that wants this scheme.
    pub fn new(objects: &'a Objects, scheme: Scheme) -> BlobWriter<'a> {
        let pending = objects.abandoned.guard();
        BlobWriter {
            objects,
            scheme,
            open: None,
            done: Vec::new(),
            pending,
            failed_disks: HashSet::new(),
        }
    }

    /// Bytes of a full stripe where the next chunk will go: the chunk size that wastes nothing.
    pub fn chunk_bytes(&self) -> usize {
        stripe_bytes(self.open.as_ref().map_or(self.scheme, |open| open.volume.scheme))
    }

    /// Writes a chunk; when this returns, all its shards are durable. `last` says that no more comes.
    pub async fn write(&mut self, mut chunk: Bytes, last: bool) -> Result<()> {
        let mut failed: Option<Error> = None;
        let mut failures = 0;
        let (mut deadline, mut began) = (Deadline::after(STRIPE_TIME), Instant::now());
        while !chunk.is_empty() {
            // When no place is left after a failure, the failure says more than the lack of places.
            let capacity = match (self.prepare().await, failed.take()) {
                (Ok(capacity), _) => capacity,
                (Err(Error::TooFewDomains { .. }), Some(failure)) => return Err(failure),
                (Err(error), _) => return Err(error),
            };
            let stripe = chunk.slice(..chunk.len().min(capacity));
            match self.write_stripe(&stripe, deadline).await {
                Ok(()) => {
                    chunk.advance(stripe.len());
                    (deadline, began) = (Deadline::after(STRIPE_TIME), Instant::now());
                }
                // The time that this process stood still was nobody's.
                Err(_) if failures + 1 < ATTEMPTS_MAX && self.objects.disks.pauses().touched(began) => {
                    failures += 1;
                    self.close();
                    (deadline, began) = (Deadline::after(STRIPE_TIME), Instant::now());
                }
                Err(error) if failures + 1 < ATTEMPTS_MAX && !deadline.left().is_zero() => {
                    self.objects.pay_for_retry()?;
                    tracing::warn!(%error, "stripe not stored, trying another volume");
                    failures += 1;
                    self.objects.metrics.rewritten_stripes.inc();
                    self.close();
                    failed = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            }
            if stripe.len() < capacity && !(last && chunk.is_empty()) {
                self.close(); // Only the last stripe of a blob may be short.
            }
        }
        Ok(())
    }

    /// What was written, and the guard that still holds it.
    pub fn finish(mut self) -> (Vec<BlobRef>, PendingBlobs) {
        self.close();
        (self.done, self.pending)
    }

    /// Codes, seals and sends one stripe to the open blob.
    async fn write_stripe(&mut self, stripe: &Bytes, deadline: Deadline) -> Result<()> {
        self.objects.retries.earn();
        let Some(open) = &self.open else {
            return Err(Error::Internal("no open blob".into()));
        };
        let (volume, key) = (
            open.volume.clone(),
            ShardKey {
                blob: open.id,
                stripe: open.stripes,
            },
        );
        let codec = self.objects.codecs.get(volume.scheme)?;
        let (bytes, volume_id) = (stripe.clone(), volume.id);
        let work = move || encode::encode(&codec, &bytes, volume_id, key);
        let shards = match stripe.len() {
            ..=INLINE_CODE_BYTES => work()?,
            _ => off_reactor(work).await??,
        };
        let shard_len = shards.first().map_or(0, |s| s.payload.len() as u64);
        let mut seals = Vec::new();
        seals::append(&mut seals, &shards);
        self.send(&volume, shards, deadline).await?;
        volume.add_used(shard_len);
        if let Some(open) = &mut self.open {
            open.seals.extend(seals);
            open.stripes += 1;
            open.length += stripe.len() as u64;
        }
        Ok(())
    }

    /// Makes sure a blob is open that has room for one more stripe, on disks that can be written. Answers the
    /// capacity of that stripe in bytes.
    async fn prepare(&mut self) -> Result<usize> {
        let usable = |open: &OpenBlob| {
            let volumes = &self.objects.volumes;
            open.length + stripe_bytes(open.volume.scheme) as u64 <= BLOB_BYTES_MAX
                && volumes.takes(&open.volume, self.scheme, &self.failed_disks)
        };
        if self.open.as_ref().is_some_and(|open| !usable(open)) {
            self.close();
        }
        while self.open.is_none() {
            // Held until the guard has it, so that its range is not retired meanwhile.
            let fresh = self.objects.lease.next_blob().await?;
            let id = fresh.id;
            let is_small = self.scheme == self.objects.scheme.small();
            let salt = if is_small { id / SMALL_RUN } else { id };
            let volume = self
                .objects
                .volumes
                .pick(self.scheme, &self.failed_disks, salt)
                .await?;
            self.pending.add((volume.id, id));
            drop(fresh);
            // Whoever moves a unit seals its volume first, then asks who is writing to it: one of the two sees the other.
            let now = self.objects.volumes.get(volume.id).await?;
            if now.state != VolumeState::Open || now.epoch != volume.epoch {
                self.pending.abandon((volume.id, id)); // It is not picked again.
                continue;
            }
            self.open = Some(OpenBlob {
                volume,
                id,
                stripes: 0,
                length: 0,
                seals: Vec::new(),
            });
        }
        Ok(self.chunk_bytes())
    }

    /// Ends the open blob: it becomes part of the upload, or garbage if nothing of it is durable.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            match open.length {
                0 => self.pending.abandon((open.volume.id, open.id)),
                length => {
                    self.pending.seal((open.volume.id, open.id), open.seals.into());
                    self.done.push(BlobRef {
                        volume: open.volume.id,
                        blob: open.id,
                        length,
                    });
                }
            }
        }
    }

    /// Does not choose this disk again in this upload, nor others of its node if it is the node that cannot be reached.
    fn avoid(&mut self, disk: DiskId, error: &NodeError) {
        self.failed_disks.insert(disk);
        let is_away = matches!(error, NodeError::Timeout | NodeError::Unreachable { .. });
        let Some(node) = self.objects.disks.get(disk).and_then(|disk| disk.node.clone()) else {
            return;
        };
        if is_away {
            let all = self.objects.disks.all();
            let of_node = all
                .iter()
                .filter(|other| other.node.as_ref().is_some_and(|of| of.id == node.id));
            self.failed_disks.extend(of_node.map(|other| other.id));
        }
    }

    /// Sends the shards of a stripe all at once; good only if every one is durable.
    async fn send(&mut self, volume: &Volume, shards: Vec<SealedShard>, deadline: Deadline) -> Result<()> {
        let shard_len = shards.first().map_or(0, |shard| shard.payload.len());
        let disks = &self.objects.disks;
        let sent = shards.into_iter().enumerate().map(|(index, shard)| async move {
            let disk = disks.get(volume.disks[index]).ok_or_else(no_node)?;
            let address = volume.address(index as u8, &disk);
            disks.put_shard(&disk, &address, shard, deadline.left()).await
        });
        let began = Instant::now();
        let sent = join_all(sent).await;
        let is_ours = disks.pauses().touched(began);
        self.objects.latencies.written(shard_len, began.elapsed());
        let mut failure: Option<NodeError> = None;
        for (index, outcome) in sent.into_iter().enumerate() {
            let Err(error) = outcome else { continue };
            let disk = volume.disks[index];
            // Busy is not broken: the same disk will do a moment later. Any other failure weighs more.
            if error != NodeError::Overloaded {
                if !is_ours {
                    self.avoid(disk, &error);
                }
                failure = Some(error);
            } else if failure.is_none() {
                failure = Some(error);
            }
        }
        match failure {
            None => Ok(()),
            Some(NodeError::Overloaded) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(Error::SlowDown)
            }
            Some(NodeError::NoSpace) => Err(Error::StorageFull),
            Some(NodeError::StaleEpoch { .. }) => {
                self.objects.volumes.refresh(volume.id).await?;
                Err(Error::WriteFailed(format!(
                    "volume {} changed its disks",
                    volume.id
                )))
            }
            Some(error) => Err(Error::WriteFailed(error.to_string())),
        }
    }
}
