//! Deletes what a gateway that died left on disks: shards of blobs in its id ranges that no row names.
//!
//! Its lease is revoked, so nothing can name them any more. Every disk is swept, those that are away when they come
//! back; a range is forgotten when all disks have been. (`cluster/lease.rs` says why this needs no clock.)

use super::worker::{Step, Worker};
use crate::cluster::disks::{Disk, Health};
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRow, GarbageRow, IdRangeRow, LeaseRow};
use crate::ledger::{CommitBuilder, key};
use crate::object::Objects;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::{DELETE_BLOBS_MAX, INVENTORY_LIMIT_MAX, StorageClient};
use storage_node::protocol::{ShardKey, UnitAddress};

const DEADLINE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Orphans {
    /// The object path.
    pub objects: Arc<Objects>,
}

impl Orphans {
    async fn sweep_disk(&self, disk: &Disk, client: &Arc<dyn StorageClient>, ids: &Range<u64>) -> Result<()> {
        let failed = |e| Error::Internal(format!("sweeping {}: {e}", disk.label));
        for info in client
            .units(disk.id, disk.incarnation, DEADLINE)
            .await
            .map_err(failed)?
        {
            let address = UnitAddress {
                disk: disk.id,
                incarnation: disk.incarnation,
                unit: info.unit,
                epoch: info.epoch,
            };
            let found = self.blobs_of(client, &address, ids).await?;
            let unnamed = self.unnamed(info.unit.volume, found).await?;
            for batch in unnamed.chunks(DELETE_BLOBS_MAX) {
                client.delete(&address, batch, DEADLINE).await.map_err(failed)?;
                tracing::info!(disk = %disk.label, volume = info.unit.volume, blobs = batch.len(), "orphans deleted");
                self.objects.metrics.orphan_blobs.inc_by(batch.len() as u64);
            }
        }
        Ok(())
    }

    /// Ids of the range's blobs that a unit holds.
    async fn blobs_of(
        &self,
        client: &Arc<dyn StorageClient>,
        unit: &UnitAddress,
        ids: &Range<u64>,
    ) -> Result<BTreeSet<u64>> {
        let mut found = BTreeSet::new();
        let mut after = ids.start.checked_sub(1).map(|blob| ShardKey {
            blob,
            stripe: u32::MAX,
        });
        loop {
            let page = client.inventory(unit, after, INVENTORY_LIMIT_MAX, DEADLINE).await;
            let page = page.map_err(|e| Error::Internal(format!("inventory: {e}")))?;
            found.extend(page.iter().map(|e| e.key.blob).filter(|blob| ids.contains(blob)));
            match page.last() {
                Some(last) if last.key.blob < ids.end && page.len() == INVENTORY_LIMIT_MAX => {
                    after = Some(last.key)
                }
                _ => return Ok(found),
            }
        }
    }

    /// Those that neither a blob row nor a garbage row names.
    async fn unnamed(&self, volume: u64, blobs: BTreeSet<u64>) -> Result<Vec<u64>> {
        let blobs: Vec<u64> = blobs.into_iter().collect();
        let ledger = &self.objects.ledger;
        let named = ledger
            .get_many::<BlobRow>(blobs.iter().map(|b| key::blob(volume, *b)).collect())
            .await?;
        let garbage = ledger
            .get_many::<GarbageRow>(blobs.iter().map(|b| key::garbage(volume, *b)).collect())
            .await?;
        let unnamed = blobs.into_iter().zip(named).zip(garbage);
        Ok(unnamed
            .filter(|((_, named), garbage)| named.is_none() && garbage.is_none())
            .map(|((b, _), _)| b)
            .collect())
    }
}

#[async_trait::async_trait]
impl Worker for Orphans {
    fn name(&self) -> &'static str {
        "orphans"
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn step(&self) -> Result<Step> {
        let ledger = &self.objects.ledger;
        let ranges = ledger.scan::<IdRangeRow>(key::table(b'r'), 1_000).await?;
        let mut failed = None;
        for (row_key, mut range) in ranges {
            let Some((lease, start)) = key::id_range_parts(&row_key) else {
                continue;
            };
            if ledger.get::<LeaseRow>(key::lease(lease)).await?.is_some() {
                continue;
            }
            let mut waiting = false;
            let before = range.row.swept.len();
            for disk in self.objects.disks.all().iter() {
                let id = Bytes::copy_from_slice(&disk.id.0.to_be_bytes());
                if range.row.swept.contains(&id) {
                    continue;
                }
                match (&disk.client, &disk.health) {
                    (Some(client), Health::Online) => {
                        match self.sweep_disk(disk, client, &(start..range.row.end)).await {
                            Ok(()) => range.row.swept.push(id),
                            // One disk that fails does not keep the others waiting.
                            Err(error) => (waiting, failed) = (true, Some(error)),
                        }
                    }
                    _ => waiting = true,
                }
            }
            let commit = CommitBuilder::new().expect(&row_key, Some(range.version));
            let commit = match waiting {
                false => commit.delete(row_key),
                true if range.row.swept.len() > before => commit.put(row_key, &range.row),
                true => continue,
            };
            ledger.commit(self.objects.lease.fence(commit).build()).await?;
        }
        failed.map_or(Ok(Step::Idle), Err)
    }
}
