//! The census of one unit: what the ledger says it should hold, against what its disk's inventory says it does.
//!
//! Invariants: the ledger decides, and nothing is remembered between two looks but where the next one begins. The blobs of a
//! page are pinned as long as it lives, so that nobody collects what is being written.

use super::{DEADLINE, Rebuild, Target};
use crate::cluster::conduct::{Kind, Outcome, Wrong};
use crate::error::{Error, Result};
use crate::ledger::key;
use crate::ledger::model::{BlobRef, BlobRow, SealsRow};
use crate::object::shard_reader::StripeSource;
use crate::object::{Objects, encode};
use crate::placement::volumes::Volume;
use std::collections::HashSet;
use std::sync::Arc;
use storage_node::client::INVENTORY_LIMIT_MAX;
use storage_node::protocol::ShardKey;

/// Blobs of one page at the most, and bytes of the unit.
const PAGE_BLOBS: usize = 1024;
const PAGE_BYTES: u64 = 64 << 20;
/// Of the shards that a disk acknowledged and does not show, so many are told at once: enough to let it rest.
const UNKEPT_MAX: usize = 8;

/// Some of a volume's blobs, compared with what a unit's disk has.
pub struct Page {
    /// What the disk lacks.
    pub missing: Vec<StripeSource>,
    /// Bytes of what it has.
    pub there_bytes: u64,
    /// The blob that the next page begins with.
    pub next: Option<u64>,
    _pins: crate::object::readers::Pins,
}

impl Rebuild {
    /// Compares some of a volume's blobs, from this one on, with what the target has.
    pub(super) async fn look(&self, volume: &Arc<Volume>, target: &Target, from: u64) -> Result<Page> {
        let entering = self.objects.readers.enter();
        let (mut blobs, mut next) = self.objects.blobs_of(volume.id, from, PAGE_BLOBS).await?;
        let codec = self.objects.codecs.get(volume.scheme)?;
        let (mut wanted, mut bytes, mut kept) = (Vec::new(), 0, 0);
        let keys = blobs
            .iter()
            .map(|blob| key::seals(blob.volume, blob.blob))
            .collect();
        let seals = self.objects.ledger.get_many::<SealsRow>(keys).await?;
        for (blob, seals) in blobs.iter().zip(&seals) {
            let seals = seals.as_ref().map(|seals| &seals.row.block_crcs);
            if bytes >= PAGE_BYTES {
                next = Some(blob.blob);
                break;
            }
            kept += 1;
            for stripe in 0..encode::geometry(&codec, blob.length)?.stripes() {
                let source = StripeSource::new(&codec, volume.clone(), blob, stripe, seals)?;
                bytes += u64::from(source.shard_len);
                wanted.push(source);
            }
        }
        blobs.truncate(kept);
        let pins = entering.pin(blobs.iter().map(|blob| (blob.volume, blob.blob)).collect());
        let there = match (blobs.first(), blobs.last()) {
            (Some(first), Some(last)) => {
                self.inventory(target, first.blob, last.blob, wanted.len())
                    .await?
            }
            _ => HashSet::new(),
        };
        let is_there = |source: &StripeSource| there.contains(&source.key);
        let there_bytes = wanted.iter().filter(|source| is_there(source));
        let there_bytes = there_bytes.map(|source| u64::from(source.shard_len)).sum();
        wanted.retain(|source| !is_there(source));
        Ok(Page {
            missing: wanted,
            there_bytes,
            next,
            _pins: pins,
        })
    }

    /// Whether the ledger names nothing that the target lacks.
    pub(super) async fn is_whole(&self, volume: &Arc<Volume>, target: &Target) -> Result<bool> {
        let mut from = Some(0);
        while let Some(blob) = from {
            let page = self.look(volume, target, blob).await?;
            // All of it was there, or its writing was acknowledged. The disk rests if it goes on like this.
            for source in page.missing.iter().take(UNKEPT_MAX) {
                let what = format!(
                    "blob {} stripe {} is not in the inventory",
                    source.key.blob, source.key.stripe
                );
                let outcome = Outcome::Wrong(Wrong::Unkept, what);
                target.disk.conduct.take_in(Kind::Write, outcome);
            }
            if !page.missing.is_empty() || *self.stop.borrow() {
                return Ok(false);
            }
            from = page.next;
        }
        Ok(true)
    }

    /// What the target has of these blobs; about so many shards are expected.
    async fn inventory(
        &self,
        target: &Target,
        first: u64,
        last: u64,
        expected: usize,
    ) -> Result<HashSet<ShardKey>> {
        let mut found = HashSet::new();
        let mut after = first.checked_sub(1).map(|blob| ShardKey {
            blob,
            stripe: u32::MAX,
        });
        let limit = (expected + 1).min(INVENTORY_LIMIT_MAX);
        loop {
            let page = target
                .client
                .inventory(&target.address, after, limit, DEADLINE)
                .await;
            let page =
                page.map_err(|e| Error::Internal(format!("inventory of {}: {e}", target.disk.label)))?;
            after = page.last().map(|entry| entry.key);
            let full = page.len() == limit;
            found.extend(
                page.into_iter()
                    .map(|entry| entry.key)
                    .filter(|key| key.blob <= last),
            );
            if !full || after.is_none_or(|key| key.blob > last) {
                return Ok(found);
            }
        }
    }
}

impl Objects {
    /// Blobs of a volume from this one on, and where to go on if there are more.
    async fn blobs_of(&self, volume: u64, from: u64, limit: usize) -> Result<(Vec<BlobRef>, Option<u64>)> {
        let mut range = key::blobs(volume);
        range.start = key::blob(volume, from);
        let rows = self.ledger.scan::<BlobRow>(range, limit).await?;
        let next = match rows.last() {
            Some((last, _)) if rows.len() == limit => key::volume_and_blob(last).map(|(_, blob)| blob + 1),
            _ => None,
        };
        let blob_ref = |(row_key, row): &(bytes::Bytes, crate::ledger::Typed<BlobRow>)| {
            let (volume, blob) = key::volume_and_blob(row_key)?;
            Some(BlobRef {
                volume,
                blob,
                length: row.row.length,
            })
        };
        Ok((rows.iter().filter_map(blob_ref).collect(), next))
    }

    /// Bytes that the ledger says each unit of a volume has, of some of its blobs; and where to go on if there are more.
    pub(super) async fn unit_bytes(&self, volume: &Volume, from: u64) -> Result<(u64, Option<u64>)> {
        let (blobs, next) = self.blobs_of(volume.id, from, PAGE_BLOBS).await?;
        let codec = self.codecs.get(volume.scheme)?;
        let mut bytes = 0;
        for blob in &blobs {
            let geometry = encode::geometry(&codec, blob.length)?;
            let shards = (0..geometry.stripes()).map(|stripe| u64::from(geometry.shard_len(stripe)));
            bytes += shards.sum::<u64>();
        }
        Ok((bytes, next))
    }
}
