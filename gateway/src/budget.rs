//! Admission: a budget of memory that bounds all bytes in flight. Past it a request waits a moment, then is told to
//! slow down; the process never grows until it is killed.
//!
//! Three pools, so that no kind of work can starve another: writes, reads, decoding. Waiting goes one way only: a part
//! copy holds read bytes while it waits for write bytes, both may wait for the decode pool, and whoever holds that waits
//! for nothing. So waiting cannot form a ring, and every wait has an end.
//!
//! Of each pool a part is kept for those that hold little of it, and who waits has slow clients cut (`connections/shares`).

use crate::connections::{self, Connection, Held, Kind, shares};
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
/// Whoever waits looks so often for slow clients that hold what it waits for.
const RELIEF: Duration = Duration::from_millis(250);
/// How many requests may wait in one pool.
const WAITERS_MAX: usize = 1_024;
const GRAIN: u64 = 1_024;

/// Bytes set aside; given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    _permit: OwnedSemaphorePermit,
    _held: Option<Held>,
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
    kind: Kind,
    /// For everybody.
    common: Arc<Semaphore>,
    common_total: u32,
    /// For those that hold little.
    kept: Arc<Semaphore>,
    kept_total: u32,
    patience: Duration,
    waiting: AtomicUsize,
    /// Grains that those who wait want.
    wanted: AtomicUsize,
}

impl Pool {
    fn new(kind: Kind, bytes: u64, patience: Duration) -> Pool {
        let total = u32::try_from(bytes / GRAIN)
            .unwrap_or(u32::MAX)
            .clamp(1, Semaphore::MAX_PERMITS as u32);
        let common_total = u32::try_from(shares::common(total.into())).unwrap_or(total);
        let kept_total = total - common_total;
        Pool {
            kind,
            common: Arc::new(Semaphore::new(common_total as usize)),
            common_total,
            kept: Arc::new(Semaphore::new(kept_total as usize)),
            kept_total,
            patience,
            waiting: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
        }
    }

    fn grains_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(GRAIN))
            .unwrap_or(u32::MAX)
            .clamp(1, self.common_total)
    }

    /// Whether this many may come from what is kept for those that hold little: the cluster's own work always does.
    fn may_take_kept(&self, served: Option<&Arc<Connection>>, grains: u32) -> bool {
        let wanted = u64::from(grains) * GRAIN;
        grains <= self.kept_total
            && served.is_none_or(|it| it.holds_little(self.kind, wanted, self.total_bytes()))
    }

    fn reserved(&self, permit: OwnedSemaphorePermit, served: Option<&Arc<Connection>>) -> Reserved {
        let bytes = permit.num_permits() as u64 * GRAIN;
        Reserved {
            _permit: permit,
            _held: served.map(|it| it.hold(self.kind, bytes)),
        }
    }

    /// Sets bytes aside, waiting a few seconds for them at the most. More than the whole pool counts as the whole.
    pub async fn reserve(&self, bytes: u64) -> Result<Reserved> {
        if let Some(reserved) = self.try_reserve(bytes) {
            return Ok(reserved);
        }
        let waiting = Counted::new(&self.waiting, 1);
        if waiting.before >= WAITERS_MAX {
            return Err(Error::SlowDown);
        }
        self.wait(bytes, self.patience).await
    }

    /// Sets bytes aside with more patience: for a request that was admitted already and is half done.
    pub async fn reserve_patiently(&self, bytes: u64) -> Result<Reserved> {
        self.wait(bytes, PATIENCE_HALF_DONE).await
    }

    async fn wait(&self, bytes: u64, patience: Duration) -> Result<Reserved> {
        let (served, grains) = (connections::served(), self.grains_of(bytes));
        let may_take_kept = self.may_take_kept(served.as_ref(), grains);
        let _wanting = Counted::new(&self.wanted, grains as usize);
        let kept = async {
            match may_take_kept {
                true => self.kept.clone().acquire_many_owned(grains).await,
                false => std::future::pending().await,
            }
        };
        let acquire = async {
            tokio::select! {
                biased;
                permit = self.common.clone().acquire_many_owned(grains) => permit,
                permit = kept => permit,
            }
        };
        let relieve = async {
            let Some(connection) = &served else {
                return std::future::pending::<()>().await;
            };
            loop {
                let wanted = self.wanted.load(Ordering::Relaxed) as u64 * GRAIN;
                connection.relieve(self.kind, wanted);
                tokio::time::sleep(RELIEF).await;
            }
        };
        tokio::select! {
            biased;
            acquired = tokio::time::timeout(patience, acquire) => match acquired {
                Ok(Ok(permit)) => Ok(self.reserved(permit, served.as_ref())),
                _ => Err(Error::SlowDown),
            },
            () = relieve => Err(Error::SlowDown), // It never ends.
        }
    }

    /// Sets bytes aside if they are free right now.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reserved> {
        let (served, grains) = (connections::served(), self.grains_of(bytes));
        let permit = match self.common.clone().try_acquire_many_owned(grains) {
            Ok(permit) => permit,
            Err(_) if self.may_take_kept(served.as_ref(), grains) => {
                self.kept.clone().try_acquire_many_owned(grains).ok()?
            }
            Err(_) => return None,
        };
        Some(self.reserved(permit, served.as_ref()))
    }

    /// As `try_reserve`, for what is not needed yet: only while less than half of the pool is in use.
    pub fn try_reserve_ahead(&self, bytes: u64) -> Option<Reserved> {
        if self.used_bytes() > self.total_bytes() / 2 {
            return None;
        }
        self.try_reserve(bytes)
    }

    /// Bytes there are in all.
    pub fn total_bytes(&self) -> u64 {
        (u64::from(self.common_total) + u64::from(self.kept_total)) * GRAIN
    }

    /// Bytes set aside now.
    pub fn used_bytes(&self) -> u64 {
        let free = self.common.available_permits() + self.kept.available_permits();
        self.total_bytes().saturating_sub(free as u64 * GRAIN)
    }
}

/// Adds to a count until it is dropped.
struct Counted<'a> {
    count: &'a AtomicUsize,
    by: usize,
    before: usize,
}

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize, by: usize) -> Counted<'a> {
        let before = count.fetch_add(by, Ordering::Relaxed);
        Counted { count, by, before }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(self.by, Ordering::Relaxed);
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
    /// Bytes of all pools.
    pub fn bytes(&self) -> u64 {
        self.writes.total_bytes() + self.reads.total_bytes() + self.decode.total_bytes()
    }

    /// Splits the memory: half for writes, three eighths for reads, an eighth for decoding.
    pub fn new(memory_bytes: u64) -> Budget {
        Budget {
            writes: Pool::new(Kind::Writes, memory_bytes / 2, PATIENCE),
            reads: Pool::new(Kind::Reads, memory_bytes / 8 * 3, PATIENCE),
            decode: Pool::new(Kind::Decode, memory_bytes / 8, PATIENCE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn past_the_budget_requests_wait_then_are_refused() {
        let pool = Pool::new(Kind::Writes, 16 * GRAIN, Duration::from_millis(20));
        let held = pool.reserve(10 * GRAIN).await.expect("free");
        assert_eq!(pool.used_bytes(), 10 * GRAIN);
        assert!(matches!(pool.reserve(5 * GRAIN).await, Err(Error::SlowDown)));
        drop(held);
        assert!(pool.reserve(5 * GRAIN).await.is_ok());
        assert_eq!(pool.used_bytes(), 0);
    }

    #[tokio::test]
    async fn more_than_everything_counts_as_everything_that_one_may_have() {
        let pool = Pool::new(Kind::Writes, 16 * GRAIN, PATIENCE);
        let all = pool.reserve(1 << 40).await.expect("clipped");
        assert_eq!(pool.used_bytes(), 12 * GRAIN);
        assert!(pool.try_reserve(5 * GRAIN).is_none());
        let kept = pool.try_reserve(4 * GRAIN).expect("kept for work of the cluster");
        assert!(pool.try_reserve(1).is_none());
        drop((all, kept));
        assert!(pool.try_reserve(1).is_some());
    }

    #[tokio::test]
    async fn who_holds_much_leaves_the_last_quarter_to_others() {
        let cut =
            prometheus::IntCounterVec::new(prometheus::Opts::new("cut", "cut"), &["why"]).expect("valid");
        let all = connections::Connections::new(1 << 20, cut);
        let (greedy, other) = (
            all.accepted([127, 0, 0, 1].into()),
            all.accepted([127, 0, 0, 2].into()),
        );
        let pool = Pool::new(Kind::Writes, 16 * GRAIN, Duration::from_millis(20));
        let held = greedy.serve(async {
            let mut held = Vec::new();
            while let Some(reserved) = pool.try_reserve(2 * GRAIN) {
                held.push(reserved);
            }
            assert!(matches!(pool.reserve(1).await, Err(Error::SlowDown)));
            held
        });
        let held = held.await;
        assert_eq!(held.len(), 6);
        let served = other.serve(async { pool.reserve(2 * GRAIN).await });
        assert!(served.await.is_ok());
    }
}
