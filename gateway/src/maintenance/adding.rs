//! Goes on with adding disks that was begun and not ended, before this start or since: an answer may have been lost.

use super::worker::{Step, Worker};
use crate::error::Result;
use crate::server::Membership;
use std::sync::Arc;
use std::time::Duration;

/// How often it is tried again.
const RESUME_PERIOD: Duration = Duration::from_secs(5);

/// See the module.
pub struct Adding {
    membership: Arc<Membership>,
}

impl Adding {
    /// For the disks of these nodes.
    pub fn new(membership: Arc<Membership>) -> Adding {
        Adding { membership }
    }
}

#[async_trait::async_trait]
impl Worker for Adding {
    fn name(&self) -> &'static str {
        "adding"
    }

    fn rest(&self) -> Duration {
        RESUME_PERIOD
    }

    async fn step(&self) -> Result<Step> {
        self.membership.adopting.resume().await?;
        Ok(Step::Idle)
    }
}
