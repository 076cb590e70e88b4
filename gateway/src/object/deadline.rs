//! Until when a step of a request must be done. A request has no deadline as a whole, because a long upload is no fault: each
//! of its steps has one, and whatever a step asks of nodes gets what is left of it.

use crate::error::{Error, Result};
use std::time::Duration;
use tokio::time::Instant;

/// A piece of a download is read by then, in whatever way, or the download fails.
pub const PIECE_TIME: Duration = Duration::from_secs(20);
/// A stripe of an upload is durable by then, on whatever volume, or the upload fails.
pub const STRIPE_TIME: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// So much from now.
    pub fn after(time: Duration) -> Deadline {
        Deadline(Instant::now() + time)
    }

    /// What is left; zero when it is over.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Waits for something no longer than this: who still waits then is told to slow down.
    pub async fn bound<T>(self, wait: impl Future<Output = Result<T>>) -> Result<T> {
        let waited = tokio::time::timeout_at(self.0, wait).await;
        waited.unwrap_or(Err(Error::SlowDown))
    }
}
