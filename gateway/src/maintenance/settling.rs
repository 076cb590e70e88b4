//! Finds out where units are for a ledger that was restored, and has the gateway start anew with it.
//!
//! Units may have moved after the last commit that was restored; nothing in the ledger says so. Disks do (`placement/found`). Until they
//! were asked the gateway only reads. It waits for all disks that the ledger knows, and after a while goes on without those that do not
//! come: a unit on one of them that the ledger has elsewhere is kept (`leftovers`).

use super::worker::{Step, Worker};
use crate::cluster::disks::Health;
use crate::error::{Error, Result};
use crate::object::Objects;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long disks have to come.
const PATIENCE: Duration = Duration::from_secs(15);

/// See the module.
pub struct Settling {
    objects: Arc<Objects>,
    /// Told when the gateway is to start anew.
    again: Arc<Notify>,
    until: Instant,
    is_done: AtomicBool,
}

impl Settling {
    /// For a gateway on a ledger that was restored.
    pub fn new(objects: Arc<Objects>, again: Arc<Notify>) -> Settling {
        Settling {
            objects,
            again,
            until: Instant::now() + PATIENCE,
            is_done: AtomicBool::new(false),
        }
    }

    fn are_all_there(&self) -> bool {
        let disks = self.objects.disks.all();
        disks
            .iter()
            .all(|disk| disk.health == Health::Online || disk.is_given_up())
    }
}

#[async_trait::async_trait]
impl Worker for Settling {
    fn name(&self) -> &'static str {
        "settling"
    }

    fn rest(&self) -> Duration {
        Duration::from_millis(200)
    }

    async fn step(&self) -> Result<Step> {
        let is_due = self.are_all_there() || Instant::now() > self.until;
        if self.is_done.load(Ordering::Relaxed) || !is_due {
            return Ok(Step::Idle);
        }
        let plan = self.objects.accept_plan().await?;
        match self.objects.accept(&plan).await {
            Ok(()) => {
                let (moved, disks) = (plan.moved_volumes, plan.unlisted.len());
                tracing::info!(moved, disks, away = ?plan.away, "units are where disks have them: the gateway starts anew");
                self.is_done.store(true, Ordering::Relaxed);
                self.again.notify_one();
                Ok(Step::Worked)
            }
            Err(Error::Conflict) => Ok(Step::Idle), // A disk came meanwhile.
            Err(error) => Err(error),
        }
    }
}
