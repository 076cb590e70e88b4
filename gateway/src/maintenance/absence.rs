//! Gives up on disks that stay away: after a grace period what they held is rebuilt elsewhere.
//!
//! How long a disk has been away is measured by this process, from when it noticed; a gateway that starts begins anew, and
//! time that the process stood still does not count. Nothing is decided about data: the disk's units are moved one by one, each by
//! a commit of its own, and what it still has when it returns is still good.
//! Invariant: when many of the disks that are still counted on are away at once, it is taken for a network that is split, and nobody
//! is given up. Who is still away when it is no longer split is waited for anew: machines do not come back in the same moment.
//! Invariant: while there is a hold (`holds`) nobody is given up, and who is away is waited for anew when it is over.

use super::worker::{Step, Worker};
use crate::cluster::disks::{Disk, Health};
use crate::error::{Error, Result};
use crate::ledger::model::{DiskRow, Membership};
use crate::ledger::{CommitBuilder, key};
use crate::object::Objects;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::protocol::DiskId;
use tokio::time::Instant;

/// At most one in so many disks is away for it to be given up.
const AWAY_SHARE: usize = 3;

/// See the module.
pub struct Absence {
    objects: Arc<Objects>,
    grace: Duration,
    since: Mutex<HashMap<DiskId, Since>>,
}

/// When a disk was first missed.
#[derive(Clone, Copy)]
struct Since {
    at: Instant,
    /// How long this process had stood still until then.
    paused: Duration,
}

impl Absence {
    /// Gives up on disks that were away for this long.
    pub fn new(objects: Arc<Objects>, grace: Duration) -> Absence {
        Absence {
            objects,
            grace,
            since: Mutex::default(),
        }
    }

    /// The disks that were away for too long.
    fn overdue(&self) -> Vec<Arc<Disk>> {
        let now = Since {
            at: Instant::now(),
            paused: self.objects.disks.pauses().total(),
        };
        let mut since = self.since.lock().unwrap_or_else(|e| e.into_inner());
        let disks = self.objects.disks.all();
        let counted = || disks.iter().filter(|disk| !disk.is_given_up());
        let is_away = |disk: &&Arc<Disk>| matches!(disk.health, Health::Down(_));
        let away: Vec<&Arc<Disk>> = counted().filter(is_away).collect();
        if away.len() * AWAY_SHARE > counted().count().max(AWAY_SHARE) {
            since.clear();
            return Vec::new();
        }
        since.retain(|id, _| away.iter().any(|disk| disk.id == *id));
        let too_long = |disk: &&Arc<Disk>| {
            let since = *since.entry(disk.id).or_insert(now);
            now.at >= since.at + self.grace + now.paused.saturating_sub(since.paused)
        };
        away.into_iter().filter(too_long).cloned().collect()
    }
}

impl Objects {
    /// Records what is decided of a disk.
    pub async fn decide(&self, disk: DiskId, membership: Membership) -> Result<()> {
        self.decide_all(&[disk], membership).await
    }

    /// Records what is decided of several disks, of all or of none.
    pub async fn decide_all(&self, disks: &[DiskId], membership: Membership) -> Result<()> {
        let mut commit = CommitBuilder::new();
        for disk in disks {
            let row_key = key::disk(disk.0);
            let Some(mut found) = self.ledger.get::<DiskRow>(row_key.clone()).await? else {
                return Err(Error::Internal(format!("the ledger has no disk {disk}")));
            };
            found.row.set_membership(membership);
            commit = commit
                .expect(&row_key, Some(found.version))
                .put(row_key, &found.row);
        }
        self.ledger.commit(self.lease.fence(commit).build()).await?;
        disks
            .iter()
            .for_each(|disk| self.disks.set_membership(*disk, membership));
        Ok(())
    }
}

#[async_trait::async_trait]
impl Worker for Absence {
    fn name(&self) -> &'static str {
        "absence"
    }

    fn rest(&self) -> Duration {
        (self.grace / 4).clamp(Duration::from_millis(100), Duration::from_secs(5))
    }

    async fn step(&self) -> Result<Step> {
        if !self.objects.holds.may_delete() {
            self.since.lock().unwrap_or_else(|e| e.into_inner()).clear();
            return Ok(Step::Idle);
        }
        let overdue = self.overdue();
        if overdue.is_empty() {
            return Ok(Step::Idle);
        }
        for disk in overdue {
            self.objects.decide(disk.id, Membership::Absent).await?;
            tracing::warn!(disk = %disk.label, grace_s = self.grace.as_secs(), "disk given up: what it held is rebuilt elsewhere");
        }
        Ok(Step::Worked)
    }
}
