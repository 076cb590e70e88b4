//! Queues for repair what the storage nodes found wrong while they verified their disks; tells them the pace that operators want,
//! and remembers when they came to the end.
//!
//! The nodes do the reading, each at its own pace; this asks them now and then. A finding counts as heard when it is queued, and
//! may be told twice, after either of the two restarted: repair then finds the shard right.

use super::worker::{Step, Worker};
use crate::archive::Rotten;
use crate::cluster::disks::{Disk, Health};
use crate::error::Result;
use crate::ledger::key;
use crate::ledger::model::VolumeRow;
use crate::object::Objects;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::protocol::{DiskId, Finding, FindingKind, Findings, VerifyOrder, VerifyStatus};

const DEADLINE: Duration = Duration::from_secs(5);
/// Two times of one end of a pass, told twice, are no further apart than this.
const SAME_MS: u64 = 60_000;

/// See the module.
pub struct Scrub {
    objects: Arc<Objects>,
    /// For each disk, which opening of it was asked last, and the newest finding heard of.
    heard: Mutex<HashMap<DiskId, (u64, u64)>>,
}

impl Scrub {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> Scrub {
        Scrub {
            objects,
            heard: Mutex::default(),
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, HashMap<DiskId, (u64, u64)>> {
        self.heard.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What is new on one disk. One that does not answer is asked again next time.
    async fn ask(&self, disk: &Disk) -> Option<Findings> {
        let client = disk.client.as_ref()?;
        let (opened, last) = self.heard().get(&disk.id).copied().unwrap_or_default();
        let ask = |after| client.findings(disk.id, disk.incarnation, after, DEADLINE);
        let mut answer = ask(last).await;
        if answer.as_ref().is_ok_and(|findings| findings.opened != opened) && last > 0 {
            answer = ask(0).await; // The numbers began anew.
        }
        answer
            .inspect_err(|error| tracing::debug!(disk = disk.label, %error, "no findings"))
            .ok()
    }

    /// Tells a disk's node the pace, if it is another one.
    async fn set_pace(&self, disk: &Disk, verify: &VerifyStatus, cycle_s: u64) {
        let Some(client) = disk.client.as_ref().filter(|_| verify.cycle_s != Some(cycle_s)) else {
            return;
        };
        let order = VerifyOrder {
            cycle_s: Some(cycle_s),
            now: false,
        };
        if let Err(error) = client.verify(disk.id, disk.incarnation, &order, DEADLINE).await {
            tracing::debug!(disk = disk.label, %error, "the pace of verifying was not taken");
        }
    }

    /// Remembers when a pass came to its end, for people.
    async fn note_end(&self, disk: &Disk, verify: &VerifyStatus) -> Result<()> {
        let Some(ago) = verify.ended_s_ago else {
            return Ok(());
        };
        let at_ms = self.objects.clock.now_ms().saturating_sub(ago * 1_000);
        if disk.verified_ms + SAME_MS < at_ms {
            self.objects.disks.note_verified(disk.id, at_ms).await?;
        }
        Ok(())
    }

    /// Queues a finding if it is about a shard that the disk should have.
    async fn queue(&self, disk: &Disk, finding: Finding) -> Result<bool> {
        if finding.unit.is_system() {
            // A copy of an entry of the ledger's archive, which writes it anew. The ledger knows nothing of it.
            let is_lost = !matches!(finding.kind, FindingKind::Forgotten | FindingKind::Summary);
            self.objects.archive.note_rotten(is_lost.then_some(Rotten {
                disk: disk.id,
                unit: finding.unit,
                number: finding.key.blob,
            }));
            return Ok(false);
        }
        let row_key = key::volume(finding.unit.volume);
        if matches!(finding.kind, FindingKind::Forgotten | FindingKind::Summary)
            || self.objects.ledger.get::<VolumeRow>(row_key).await?.is_none()
        {
            return Ok(false);
        }
        let volume = self.objects.volumes.get(finding.unit.volume).await?;
        let index = finding.unit.index;
        if volume.disks.get(usize::from(index)) != Some(&disk.id) {
            return Ok(false);
        }
        let reason = format!("found by verifying: {}", finding.what);
        self.objects
            .queue_for_repair(volume.id, finding.key, index, reason)
            .await?;
        Ok(true)
    }
}

#[async_trait::async_trait]
impl Worker for Scrub {
    fn name(&self) -> &'static str {
        "scrub"
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn step(&self) -> Result<Step> {
        let mut queued = false;
        let cycle_s = self.objects.scrub_row().await?.verify_cycle_s;
        let disks = self.objects.disks.all();
        for disk in disks.iter().filter(|disk| disk.health == Health::Online) {
            let Some(findings) = self.ask(disk).await else {
                continue;
            };
            for finding in findings.found {
                queued |= self.queue(disk, finding).await?;
            }
            self.heard().insert(disk.id, (findings.opened, findings.last));
            if let Some(verify) = disk.status.as_ref().and_then(|status| status.verify) {
                if cycle_s > 0 {
                    self.set_pace(disk, &verify, cycle_s).await;
                }
                self.note_end(disk, &verify).await?;
            }
        }
        Ok(if queued { Step::Worked } else { Step::Idle })
    }
}
