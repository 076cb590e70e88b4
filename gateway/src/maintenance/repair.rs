//! Rewrites shards that a read found missing or wrong.
//!
//! The shard counts as repaired only after it was read back from its disk and verified. A shard on a disk that is down waits: what
//! a lost disk held is rebuilt elsewhere, not repaired in place. What was tried in vain is tried again, ever more seldom: a disk
//! that acknowledges and does not keep is written to a few times an hour, and shows in the status.

use super::worker::{Step, Worker};
use crate::cluster::conduct::{self, CUT_OFF_MAX, Kind, Wrong};
use crate::cluster::disks::Health;
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRef, BlobRow, SuspectRow};
use crate::ledger::{CommitBuilder, Typed, key};
use crate::object::Objects;
use crate::object::encode;
use crate::object::shard_reader::StripeSource;
use bytes::Bytes;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::protocol::{BlockRange, NodeError};

const BATCH: usize = 64;

/// See the module.
pub struct Repair {
    objects: Arc<Objects>,
    cursor: Mutex<Option<Bytes>>,
    /// Disks that served at the last step.
    online: AtomicUsize,
}

/// How a repair ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The shard is right again, or was all along.
    Repaired,
    /// Nothing needs it any more.
    Gone,
    /// Not now: its disk is down.
    Later,
    /// It was tried: too few others are readable and right.
    Unreadable(String),
    /// It was tried: the disk does not take it, or does not keep it, or something else is in the way.
    Failed(String),
}

impl Repair {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> Repair {
        Repair {
            objects,
            cursor: Mutex::new(None),
            online: AtomicUsize::new(usize::MAX),
        }
    }

    /// When more disks serve than before, what could not be read may be readable.
    fn notice_returns(&self) {
        let disks = self.objects.disks.all();
        let online = disks.iter().filter(|disk| disk.health == Health::Online).count();
        if online > self.online.swap(online, Ordering::Relaxed) {
            self.objects.suspects.hurry();
        }
    }

    async fn repair(&self, volume: u64, blob: u64, stripe: u32, index: u8) -> Result<Outcome> {
        let entering = self.objects.readers.enter();
        let Some(row) = self
            .objects
            .ledger
            .get::<BlobRow>(key::blob(volume, blob))
            .await?
        else {
            return Ok(Outcome::Gone);
        };
        // Pinned, so that the shard is not written again after its blob was collected.
        let _pins = entering.pin(vec![(volume, blob)]);
        let volume = self.objects.volumes.get(volume).await?;
        let codec = self.objects.codecs.get(volume.scheme)?;
        let blob = BlobRef {
            volume: volume.id,
            blob,
            length: row.row.length,
        };
        if stripe >= encode::geometry(&codec, blob.length)?.stripes() || index as usize >= volume.disks.len()
        {
            return Ok(Outcome::Gone);
        }
        let disk = self.objects.disks.get(volume.disks[index as usize]);
        let Some(disk) = disk.filter(|d| d.health == Health::Online) else {
            return Ok(Outcome::Later);
        };
        let seals = self.objects.seals(&blob).await?;
        let source = StripeSource::new(&codec, volume.clone(), &blob, stripe, seals.as_ref())?;
        let bytes = source.shard_len as u64 * (volume.scheme.total_shards() as u64 + 1);
        let _reserved = self.objects.budget.decode.reserve_patiently(bytes).await?;
        let shard = match self.objects.reconstruct(&codec, &source, index).await? {
            Ok(shard) => shard,
            Err(why) => return Ok(Outcome::Unreadable(why)),
        };
        let (disks, address) = (&self.objects.disks, volume.address(index, &disk));
        if let Err(error) = disks.put_shard(&disk, &address, shard, CUT_OFF_MAX).await {
            if let NodeError::StaleEpoch { current } = error {
                self.objects.note_newer_epoch(volume.id, index, current).await?;
            }
            return Ok(Outcome::Failed(format!(
                "disk {}: not written: {error}",
                disk.label
            )));
        }
        match self.objects.read_shard(&source, index, BlockRange::ALL).await {
            Ok(_) => Ok(Outcome::Repaired),
            Err(error) => {
                let what = format!("written, but not read back right: {error}");
                let outcome = conduct::Outcome::Wrong(Wrong::Unkept, what.clone());
                disk.conduct.take_in(Kind::Write, outcome);
                Ok(Outcome::Failed(format!("disk {}: {what}", disk.label)))
            }
        }
    }
}

#[async_trait::async_trait]
impl Worker for Repair {
    fn name(&self) -> &'static str {
        "repair"
    }

    fn rest(&self) -> Duration {
        Duration::from_millis(500)
    }

    async fn step(&self) -> Result<Step> {
        self.notice_returns();
        let mut range = key::table(b's');
        if let Some(cursor) = self.cursor.lock().unwrap_or_else(|e| e.into_inner()).take() {
            range.start = cursor;
        }
        let rows: Vec<(Bytes, Typed<SuspectRow>)> = self.objects.ledger.scan(range, BATCH).await?;
        let more = rows.len() == BATCH;
        if more {
            let next = rows.last().map(|(row_key, _)| key::after(row_key));
            *self.cursor.lock().unwrap_or_else(|e| e.into_inner()) = next;
        }
        let mut repaired = 0;
        for (row_key, row) in rows {
            let Some((volume, blob, stripe, index)) = key::suspect_parts(&row_key) else {
                continue;
            };
            if !self.objects.suspects.is_due(&row_key) {
                continue;
            }
            let outcome = match self.repair(volume, blob, stripe, index).await {
                Err(error @ Error::Ledger(_)) => return Err(error),
                Err(error) => Outcome::Failed(error.to_string()), // One bad row does not hold up the others.
                Ok(outcome) => outcome,
            };
            match outcome {
                Outcome::Later => continue,
                Outcome::Failed(ref why) | Outcome::Unreadable(ref why) => {
                    let is_unreadable = matches!(outcome, Outcome::Unreadable(_));
                    tracing::debug!(volume, blob, stripe, index, why, "repair put off");
                    self.objects.suspects.put_off_repair(&row_key, why, is_unreadable);
                    self.objects.metrics.failed_repairs.inc();
                    continue;
                }
                Outcome::Repaired => {
                    tracing::info!(
                        volume,
                        blob,
                        stripe,
                        index,
                        reason = row.row.reason,
                        "shard repaired"
                    );
                    self.objects.metrics.repaired_shards.inc();
                    repaired += 1;
                }
                Outcome::Gone => {}
            }
            self.objects.suspects.forget(&row_key);
            let commit = CommitBuilder::new()
                .expect(&row_key, Some(row.version))
                .delete(row_key);
            match self
                .objects
                .ledger
                .commit(self.objects.lease.fence(commit).build())
                .await
                .map_err(Error::from)
            {
                Ok(_) | Err(Error::Conflict) => {} // Found wrong again meanwhile: the row stays.
                Err(error) => return Err(error),
            }
        }
        Ok(match more {
            _ if repaired > 0 => Step::Worked,
            true => Step::Skipped,
            false => Step::Idle,
        })
    }
}
