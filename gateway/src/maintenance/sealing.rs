//! Seals volumes that are full, so that new blobs go elsewhere, and settles what became of volumes that were begun.

use super::worker::{Step, Worker};
use crate::error::Result;
use crate::object::Objects;
use std::sync::Arc;
use std::time::Duration;

/// See the module.
pub struct Sealing {
    /// The object path.
    pub objects: Arc<Objects>,
}

#[async_trait::async_trait]
impl Worker for Sealing {
    fn name(&self) -> &'static str {
        "sealing"
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn step(&self) -> Result<Step> {
        self.objects.volumes.settle_begun().await?;
        for volume in self.objects.volumes.full() {
            self.objects.volumes.seal(volume).await?;
            tracing::info!(volume, "volume sealed");
        }
        Ok(Step::Idle)
    }
}
