//! Deletes the shards of blobs that nothing names any more.
//!
//! A garbage row stands until every unit's disk has confirmed a durable delete, so a disk that is away gets its
//! deletes when it is back. A blob that a download still reads waits (see `object/readers`).
//! Invariant: nothing is deleted while there is a hold (`holds`).

use super::worker::{Step, Worker};
use crate::cluster::disks::Health;
use crate::error::Result;
use crate::ledger::model::GarbageRow;
use crate::ledger::{CONFLICT_RETRIES, CommitBuilder, Typed, key};
use crate::object::Objects;
use crate::object::readers::BlobKey;
use bytes::Bytes;
use futures::future::join_all;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::protocol::{DiskId, NodeError};

const BATCH: usize = 512;
const DELETE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the readers of a moment get to say what they read, before the batch is put off.
const SETTLE: Duration = Duration::from_secs(2);

/// See the module.
pub struct Garbage {
    objects: Arc<Objects>,
    /// Where the next scan goes on, so that rows that wait for a disk do not hide the others.
    cursor: Mutex<Option<Bytes>>,
}

struct Row {
    key: Bytes,
    version: u64,
    blob: BlobKey,
    pending: Vec<u8>,
}

impl Garbage {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> Garbage {
        Garbage {
            objects,
            cursor: Mutex::new(None),
        }
    }

    /// Writes garbage rows for blobs that were begun and not named. Answers how many.
    pub async fn queue_abandoned(objects: &Objects) -> Result<usize> {
        let taken = objects.abandoned.take(BATCH);
        let count = taken.blobs.len();
        if count == 0 {
            return Ok(0);
        }
        let mut commit = CommitBuilder::new();
        for (volume, blob) in &taken.blobs {
            commit = commit.put(key::garbage(*volume, *blob), &GarbageRow::default());
        }
        objects.ledger.commit(objects.lease.fence(commit).build()).await?;
        taken.done();
        Ok(count)
    }

    /// The next rows whose blobs nobody reads.
    async fn next_rows(&self) -> Result<Vec<Row>> {
        let mut range = key::table(b'g');
        let cursor = self.cursor.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(cursor) = &cursor {
            range.start = cursor.clone();
        }
        let rows: Vec<(Bytes, Typed<GarbageRow>)> = self.objects.ledger.scan(range, BATCH).await?;
        if rows.len() == BATCH {
            let next = rows.last().map(|(row_key, _)| key::after(row_key));
            *self.cursor.lock().unwrap_or_else(|e| e.into_inner()) = next;
        }
        if !self.settled().await {
            return Ok(Vec::new());
        }
        let mut free = Vec::new();
        for (row_key, row) in rows {
            let Some(blob) = key::volume_and_blob(&row_key) else {
                continue;
            };
            // What a ledger restored from the archive would still name must be there.
            if self.objects.readers.pinned(blob) || !self.objects.archive.may_collect(row.version) {
                continue;
            }
            let total = self.objects.volumes.get(blob.0).await?.scheme.total_shards() as u8;
            let pending = match row.row.pending.is_empty() {
                true => (0..total).collect(),
                false => row
                    .row
                    .pending
                    .iter()
                    .map(|i| *i as u8)
                    .filter(|i| *i < total)
                    .collect(),
            };
            free.push(Row {
                key: row_key,
                version: row.version,
                blob,
                pending,
            });
        }
        Ok(free)
    }

    /// Waits until every reader of this moment has pinned what it reads.
    async fn settled(&self) -> bool {
        let barrier = self.objects.readers.barrier();
        for _ in 0..SETTLE.as_millis() / 10 {
            if self.objects.readers.settled(barrier) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// Sends the deletes, one request per unit, and answers which (blob, index) are done.
    async fn delete(&self, rows: &[Row]) -> Result<HashSet<(BlobKey, u8)>> {
        let mut by_unit: BTreeMap<(u64, u8), Vec<u64>> = BTreeMap::new();
        for row in rows {
            for index in &row.pending {
                by_unit.entry((row.blob.0, *index)).or_default().push(row.blob.1);
            }
        }
        let newest = rows.iter().map(|row| row.version).max().unwrap_or(0);
        let calls = by_unit.into_iter().map(|((volume, index), blobs)| async move {
            let done = self.delete_from_unit(volume, index, &blobs, newest).await?;
            let keys = blobs
                .into_iter()
                .filter(|_| done)
                .map(move |blob| ((volume, blob), index));
            Ok::<Vec<_>, crate::error::Error>(keys.collect())
        });
        let mut done = HashSet::new();
        for call in join_all(calls).await {
            done.extend(call?);
        }
        Ok(done)
    }

    /// `newest` is the commit that made the last of them garbage: the disk has to know it first.
    async fn delete_from_unit(&self, volume: u64, index: u8, blobs: &[u64], newest: u64) -> Result<bool> {
        let volume = self.objects.volumes.get(volume).await?;
        let disk_id: DiskId = volume.disks[index as usize];
        // A disk that the ledger no longer names has nothing that counts.
        let Some(disk) = self.objects.disks.get(disk_id) else {
            return Ok(true);
        };
        let (Some(client), deadline) = (disk.client.clone(), deadline(&disk.standing())) else {
            return Ok(false);
        };
        let Some(deadline) = deadline else {
            return Ok(false);
        };
        if !self.objects.disks.tell(&disk, newest).await {
            return Ok(false);
        }
        match client
            .delete(&volume.address(index, &disk), blobs, deadline)
            .await
        {
            Ok(()) | Err(NodeError::NotFound) => Ok(true),
            Err(NodeError::StaleEpoch { current }) => {
                self.objects.note_newer_epoch(volume.id, index, current).await?;
                Ok(false)
            }
            Err(error) => {
                // Of one that is suspect too little was asked to hold it against it.
                if error != NodeError::Timeout || deadline >= DELETE_DEADLINE {
                    self.objects.disks.report(disk_id, &error);
                }
                tracing::debug!(disk = %disk.label, %error, "delete put off");
                Ok(false)
            }
        }
    }
}

impl Objects {
    /// A unit has shards of these blobs. Where its disk had confirmed that it deleted them, it is asked again: it lied about a flush,
    /// or is a copy of an earlier state of itself.
    pub async fn delete_again(&self, volume: u64, index: u8, blobs: &[u64]) -> Result<()> {
        let keys: Vec<Bytes> = blobs.iter().map(|blob| key::garbage(volume, *blob)).collect();
        for _ in 0..CONFLICT_RETRIES {
            let rows = self.ledger.get_many::<GarbageRow>(keys.clone()).await?;
            let (mut commit, mut count) = (CommitBuilder::new(), 0);
            for (row_key, row) in keys.iter().zip(rows) {
                let Some(Typed { mut row, version }) = row else {
                    continue;
                };
                // None pending: all are.
                if row.pending.is_empty() || row.pending.contains(&u32::from(index)) {
                    continue;
                }
                row.pending.push(u32::from(index));
                commit = commit.expect(row_key, Some(version)).put(row_key.clone(), &row);
                count += 1;
            }
            if count == 0 {
                return Ok(());
            }
            if self.commit_unless_changed(commit).await? {
                tracing::info!(
                    volume,
                    index,
                    blobs = count,
                    "a disk still has blobs that it had deleted: it is asked again"
                );
                return Ok(());
            }
        }
        Ok(()) // What stays is set aside by a later census.
    }
}

/// How long a disk in this state gets for a delete; none if it is not asked. One that may hang must not hold up the
/// others for long, and one that is full needs its deletes more than any.
fn deadline(health: &Health) -> Option<Duration> {
    match health {
        Health::Online => Some(DELETE_DEADLINE),
        Health::Suspect(_) => Some(DELETE_DEADLINE / 5),
        Health::Down(_) => None,
    }
}

#[async_trait::async_trait]
impl Worker for Garbage {
    fn name(&self) -> &'static str {
        "garbage"
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn woken(&self) {
        self.objects.abandoned.woken().await;
        // Let a few more arrive: deletes are cheaper together.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    async fn step(&self) -> Result<Step> {
        let queued = Garbage::queue_abandoned(&self.objects).await?;
        if !self.objects.holds.may_delete() {
            return Ok(Step::Idle);
        }
        let rows = self.next_rows().await?;
        if !self.objects.holds.may_delete() {
            return Ok(Step::Idle);
        }
        let done = self.delete(&rows).await?;
        let mut commit = CommitBuilder::new();
        let (mut collected, mut changed) = (0, false);
        for row in rows {
            let left: Vec<u32> = row
                .pending
                .iter()
                .filter(|i| !done.contains(&(row.blob, **i)))
                .map(|i| u32::from(*i))
                .collect();
            if left.is_empty() {
                let (volume, blob) = row.blob;
                commit = commit.expect(&row.key, Some(row.version)).delete(row.key);
                commit = commit.delete(key::seals(volume, blob));
                (collected, changed) = (collected + 1, true);
            } else if left.len() < row.pending.len() {
                commit = commit
                    .expect(&row.key, Some(row.version))
                    .put(row.key, &GarbageRow { pending: left });
                changed = true;
            }
        }
        if changed {
            self.objects
                .ledger
                .commit(self.objects.lease.fence(commit).build())
                .await?;
            self.objects.metrics.collected_blobs.inc_by(collected);
        }
        let more = self.cursor.lock().unwrap_or_else(|e| e.into_inner()).is_some();
        Ok(match more {
            _ if queued > 0 || collected > 0 => Step::Worked,
            true => Step::Skipped,
            false => Step::Idle,
        })
    }
}
