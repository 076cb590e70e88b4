//! What `src/sync.rs` is to the product: shuttle's threads, locks and channels, and a clock of our own.
//!
//! Shuttle's waits never time out. Here time stands still until a thread waits with a limit; then a timer runs beside the others,
//! and lets the time pass whenever shuttle chooses it.

pub use shuttle::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic, mpsc};
pub use shuttle::thread;

use atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::LockResult;
use std::time::Duration;

shuttle::lazy_static! {
    static ref NOW_NS: AtomicU64 = AtomicU64::new(0);
}

/// A moment since the test began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    pub fn now() -> Instant {
        Instant(Duration::from_nanos(NOW_NS.load(Ordering::SeqCst)))
    }

    pub fn saturating_duration_since(&self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, time: Duration) -> Instant {
        Instant(self.0 + time)
    }
}

/// A condition variable of which waits with a limit end.
#[derive(Default)]
pub struct Condvar(Arc<shuttle::sync::Condvar>);

impl Condvar {
    pub fn new() -> Condvar {
        Condvar::default()
    }

    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.0.wait(guard)
    }

    /// As the standard library's, it may return for no reason.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        let until = (Instant::now() + limit).0.as_nanos() as u64;
        let woken = Arc::new(AtomicBool::new(false));
        let (condvar, is_woken) = (self.0.clone(), woken.clone());
        thread::spawn(move || {
            NOW_NS.fetch_max(until, Ordering::SeqCst);
            // The waiter may not be waiting yet.
            while !is_woken.load(Ordering::SeqCst) {
                condvar.notify_all();
                thread::yield_now();
            }
        });
        let guard = self.0.wait(guard);
        woken.store(true, Ordering::SeqCst);
        guard
            .map(|guard| (guard, ()))
            .map_err(|error| PoisonError::new((error.into_inner(), ())))
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
