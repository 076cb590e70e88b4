//! Rewrites shards that a read found missing or wrong.
//!
//! The shard counts as repaired only after it was read back from its disk and verified. A shard on a disk that is down waits: what a lost disk held is rebuilt elsewhere, not repaired in place.

use super::worker::{Step, Worker};
use crate::cluster::disks::Health;
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRef, BlobRow, SuspectRow};
use crate::ledger::{CommitBuilder, Typed, key};
use crate::object::Objects;
use crate::object::encode;
use crate::object::shard_reader::StripeSource;
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::protocol::BlockRange;

const BATCH: usize = 64;
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Repair {
    objects: Arc<Objects>,
    cursor: Mutex<Option<Bytes>>,
}

/// How a repair ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The shard is right again, or was all along.
    Repaired,
    /// Nothing needs it any more.
    Gone,
    /// Not now: its disk is down, or too few sources can be read.
    Later(String),
}

impl Repair {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> Repair {
        Repair {
            objects,
            cursor: Mutex::new(None),
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
            return Ok(Outcome::Later("its disk is not online".into()));
        };
        let source = StripeSource::new(&codec, volume.clone(), &blob, stripe)?;
        let bytes = source.shard_len as u64 * (volume.scheme.total_shards() as u64 + 1);
        let _reserved = self.objects.budget.decode.reserve_patiently(bytes).await?;
        let shard = match self.objects.reconstruct(&codec, &source, index).await? {
            Ok(shard) => shard,
            Err(why) => return Ok(Outcome::Later(why)),
        };
        let Some(client) = disk.client.clone() else {
            return Ok(Outcome::Later("no node has its disk".into()));
        };
        if let Err(error) = client
            .put(&volume.address(index, &disk), shard, WRITE_DEADLINE)
            .await
        {
            self.objects.disks.report(disk.id, &error);
            return Ok(Outcome::Later(format!("not written: {error}")));
        }
        match self.objects.read_shard(&source, index, BlockRange::ALL).await {
            Ok(_) => Ok(Outcome::Repaired),
            Err(error) => Ok(Outcome::Later(format!(
                "written, but not read back right: {error}"
            ))),
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
            let outcome = match self.repair(volume, blob, stripe, index).await {
                Err(error @ Error::Ledger(_)) => return Err(error),
                Err(error) => Outcome::Later(error.to_string()), // One bad row does not hold up the others.
                Ok(outcome) => outcome,
            };
            match outcome {
                Outcome::Later(why) => {
                    tracing::debug!(volume, blob, stripe, index, why, "repair put off");
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
