//! Asks the nodes how their disks are, again and again.

use super::worker::{Step, Worker};
use crate::cluster::disks::{Disks, POLL_PERIOD};
use crate::error::Result;
use std::sync::Arc;
use std::time::Duration;

/// See the module.
pub struct Polling {
    disks: Arc<Disks>,
}

impl Polling {
    /// For these.
    pub fn new(disks: Arc<Disks>) -> Polling {
        Polling { disks }
    }
}

#[async_trait::async_trait]
impl Worker for Polling {
    fn name(&self) -> &'static str {
        "polling"
    }

    fn rest(&self) -> Duration {
        POLL_PERIOD
    }

    async fn step(&self) -> Result<Step> {
        self.disks.begin_poll();
        Ok(Step::Idle)
    }
}
