//! Tells disks how far the ledger is, so that an older copy of it is known for one (`cluster/generation`). A gateway whose ledger is
//! behind tells them nothing, and asks them where units are.

use super::worker::{Step, Worker};
use crate::error::Result;
use crate::object::Objects;
use std::sync::Arc;
use std::time::Duration;

/// See the module.
pub struct Telling {
    /// The object path.
    pub objects: Arc<Objects>,
}

#[async_trait::async_trait]
impl Worker for Telling {
    fn name(&self) -> &'static str {
        "telling"
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn step(&self) -> Result<Step> {
        match self.objects.disks.generations().own() {
            Some(_) => self.objects.disks.tell_all(self.objects.ledger.position()).await,
            None => self.objects.find_units().await,
        }
        Ok(Step::Idle)
    }
}
