//! Admission: a budget of memory that bounds all bytes in flight. Past it a request waits a moment, then is told to
//! slow down; the process never grows until it is killed.
//!
//! Three pools, so that no kind of work can starve another: writes, reads, decoding. Waiting goes one way only: a part
//! copy holds read bytes while it waits for write bytes, both may wait for the decode pool, and whoever holds that waits
//! for nothing. So waiting cannot form a ring, and every wait has an end.

use crate::error::{Error, Result};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a request waits for memory before it is refused.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one that is half done waits.
const PATIENCE_HALF_DONE: Duration = Duration::from_secs(60);
/// How many requests may wait in one pool.
const WAITERS_MAX: usize = 1_024;
const GRAIN: u64 = 1_024;

/// Bytes set aside; given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    _permit: OwnedSemaphorePermit,
}

/// Bytes that keep their memory reserved for as long as anybody holds them.
pub fn accounted(bytes: Bytes, reserved: Reserved) -> Bytes {
    struct Accounted {
        bytes: Bytes,
        _reserved: Reserved,
    }
    impl AsRef<[u8]> for Accounted {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Accounted {
        bytes,
        _reserved: reserved,
    })
}

/// A bounded number of bytes.
#[derive(Debug)]
pub struct Pool {
    grains: Arc<Semaphore>,
    total: u32,
    patience: Duration,
    waiting: AtomicUsize,
}

impl Pool {
    fn new(bytes: u64, patience: Duration) -> Pool {
        let total = u32::try_from(bytes / GRAIN)
            .unwrap_or(u32::MAX)
            .clamp(1, Semaphore::MAX_PERMITS as u32);
        Pool {
            grains: Arc::new(Semaphore::new(total as usize)),
            total,
            patience,
            waiting: AtomicUsize::new(0),
        }
    }

    fn grains_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(GRAIN))
            .unwrap_or(u32::MAX)
            .clamp(1, self.total)
    }

    /// Sets bytes aside, waiting a few seconds for them at the most. More than the whole pool counts as the whole.
    pub async fn reserve(&self, bytes: u64) -> Result<Reserved> {
        if let Some(reserved) = self.try_reserve(bytes) {
            return Ok(reserved);
        }
        let waiting = Waiting::enter(&self.waiting);
        if waiting.position >= WAITERS_MAX {
            return Err(Error::SlowDown);
        }
        let acquire = self.grains.clone().acquire_many_owned(self.grains_of(bytes));
        match tokio::time::timeout(self.patience, acquire).await {
            Ok(Ok(permit)) => Ok(Reserved { _permit: permit }),
            _ => Err(Error::SlowDown),
        }
    }

    /// Sets bytes aside with more patience: for a request that was admitted already and is half done.
    pub async fn reserve_patiently(&self, bytes: u64) -> Result<Reserved> {
        let acquire = self.grains.clone().acquire_many_owned(self.grains_of(bytes));
        match tokio::time::timeout(PATIENCE_HALF_DONE, acquire).await {
            Ok(Ok(permit)) => Ok(Reserved { _permit: permit }),
            _ => Err(Error::SlowDown),
        }
    }

    /// Sets bytes aside if they are free right now.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reserved> {
        let permit = self
            .grains
            .clone()
            .try_acquire_many_owned(self.grains_of(bytes))
            .ok()?;
        Some(Reserved { _permit: permit })
    }

    /// As `try_reserve`, for what is not needed yet: only while less than half of the pool is in use.
    pub fn try_reserve_ahead(&self, bytes: u64) -> Option<Reserved> {
        let free = self.grains.available_permits() as u64;
        if free < u64::from(self.total) / 2 {
            return None;
        }
        self.try_reserve(bytes)
    }

    /// Bytes there are in all.
    pub fn total_bytes(&self) -> u64 {
        u64::from(self.total) * GRAIN
    }

    /// Bytes set aside now.
    pub fn used_bytes(&self) -> u64 {
        (self.total as u64).saturating_sub(self.grains.available_permits() as u64) * GRAIN
    }
}

struct Waiting<'a> {
    count: &'a AtomicUsize,
    position: usize,
}

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Waiting<'a> {
        Waiting {
            count,
            position: count.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The pools of one gateway.
#[derive(Debug)]
pub struct Budget {
    /// Bytes of uploads: stripes being filled, coded and sent.
    pub writes: Pool,
    /// Bytes of downloads: blocks read and not yet taken by the client's socket.
    pub reads: Pool,
    /// Bytes of decoding and repair.
    pub decode: Pool,
}

impl Budget {
    /// Splits the memory: half for writes, three eighths for reads, an eighth for decoding.
    pub fn new(memory_bytes: u64) -> Budget {
        Budget {
            writes: Pool::new(memory_bytes / 2, PATIENCE),
            reads: Pool::new(memory_bytes / 8 * 3, PATIENCE),
            decode: Pool::new(memory_bytes / 8, PATIENCE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn past_the_budget_requests_wait_then_are_refused() {
        let pool = Pool::new(10 * GRAIN, Duration::from_millis(20));
        let held = pool.reserve(8 * GRAIN).await.expect("free");
        assert_eq!(pool.used_bytes(), 8 * GRAIN);
        assert!(matches!(pool.reserve(4 * GRAIN).await, Err(Error::SlowDown)));
        drop(held);
        assert!(pool.reserve(4 * GRAIN).await.is_ok());
        assert_eq!(pool.used_bytes(), 0);
    }

    #[tokio::test]
    async fn more_than_everything_counts_as_everything() {
        let pool = Pool::new(4 * GRAIN, PATIENCE);
        let all = pool.reserve(1 << 40).await.expect("clipped");
        assert!(pool.try_reserve(1).is_none());
        drop(all);
        assert!(pool.try_reserve(1).is_some());
    }
}
