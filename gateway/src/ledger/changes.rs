//! What an engine has committed, as it was committed, for those who follow it: the archive, and backups that are being made.
//!
//! A follower has a [`Tap`]: a bounded queue of batches, in the order of their versions. One that does not keep up loses what it has not
//! taken, and is told so; the engine never waits.
//!
//! Invariants:
//! - What is in a tap is durable. A batch comes after all before it, and no version is left out unless the tap says so.
//! - The first tap begins with what the engine's own log still had when it was opened.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

/// The most bytes that wait in the first tap: more than the log beside the tree holds.
const FIRST_TAP_BYTES: usize = 32 << 20;

/// Commits of consecutive versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The version of the first.
    pub first: u64,
    /// How many; at least one.
    pub commits: u32,
    /// Their mutations, as the ledger's log has them.
    pub body: Bytes,
}

impl Batch {
    /// The version of the last.
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.commits.max(1)) - 1
    }
}

/// What a follower takes out of its tap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// All up to this version is lost to this follower, as far as it was not taken before.
    pub lost_up_to: Option<u64>,
    /// What there is, in order.
    pub batches: Vec<Batch>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Batch>,
    bytes: usize,
    lost_up_to: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Tap {
    state: Mutex<State>,
    bytes_max: usize,
    wake_bytes: Mutex<usize>,
    woken: Notify,
}

impl Tap {
    fn new(bytes_max: usize) -> Tap {
        Tap {
            state: Mutex::default(),
            bytes_max,
            wake_bytes: Mutex::new(usize::MAX),
            woken: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, batch: &Batch) {
        let mut state = self.lock();
        state.bytes += batch.body.len();
        state.waiting.push_back(batch.clone());
        if state.bytes > self.bytes_max {
            state.waiting = VecDeque::new();
            state.bytes = 0;
            state.lost_up_to = Some(batch.last());
        }
        let bytes = state.bytes;
        drop(state);
        if bytes >= *self.wake_bytes.lock().unwrap_or_else(PoisonError::into_inner) {
            self.woken.notify_one();
        }
    }

    /// Has [`Tap::woken`] return once so many bytes wait; 0: as soon as anything was committed.
    pub fn wake_at(&self, bytes: usize) {
        *self.wake_bytes.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Returns when enough waits.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Takes batches out, at least one if there is any, and no more once there are so many bytes.
    pub fn take(&self, bytes_max: usize) -> Taken {
        let mut state = self.lock();
        let mut taken = Taken {
            lost_up_to: state.lost_up_to.take(),
            batches: Vec::new(),
        };
        let mut bytes = 0;
        while let Some(batch) = state.waiting.front() {
            bytes += batch.body.len();
            if bytes > bytes_max && !taken.batches.is_empty() {
                break;
            }
            state.bytes -= batch.body.len();
            taken.batches.extend(state.waiting.pop_front());
        }
        taken
    }

    /// Bytes that wait, and the version of the first commit among them.
    pub fn waiting(&self) -> (usize, Option<u64>) {
        let state = self.lock();
        (state.bytes, state.waiting.front().map(|batch| batch.first))
    }
}

/// Those who follow one engine.
#[derive(Debug)]
pub struct Changes {
    taps: Mutex<Vec<Weak<Tap>>>,
    first: Mutex<Option<Arc<Tap>>>,
}

impl Changes {
    /// Of an engine that was opened with these batches in its log.
    pub fn new(earlier: Vec<Batch>) -> Changes {
        let first = Arc::new(Tap::new(FIRST_TAP_BYTES));
        earlier.iter().for_each(|batch| first.push(batch));
        Changes {
            taps: Mutex::new(vec![Arc::downgrade(&first)]),
            first: Mutex::new(Some(first)),
        }
    }

    /// The first tap, for whoever asks first.
    pub fn take_first(&self) -> Option<Arc<Tap>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Another tap, in which at most so many bytes wait. What is committed from now on is in it.
    pub fn tap(&self, bytes_max: usize) -> Arc<Tap> {
        let tap = Arc::new(Tap::new(bytes_max));
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.push(Arc::downgrade(&tap));
        tap
    }

    /// Takes in what is durable and visible. Called by the engine, in order.
    pub fn push(&self, batch: &Batch) {
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.retain(|tap| match tap.upgrade() {
            Some(tap) => {
                tap.push(batch);
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64, commits: u32, bytes: usize) -> Batch {
        let body = vec![7; bytes].into();
        Batch { first, commits, body }
    }

    #[test]
    fn a_follower_gets_all_in_order_or_is_told_what_it_lost() {
        let changes = Changes::new(vec![batch(3, 2, 10)]);
        let first = changes.take_first().unwrap();
        assert!(changes.take_first().is_none());
        let late = changes.tap(25);
        for number in 5..8 {
            changes.push(&batch(number, 1, 10));
        }
        assert_eq!(first.waiting(), (40, Some(3)));
        let taken = first.take(20);
        assert_eq!(taken.lost_up_to, None);
        assert_eq!(taken.batches, [batch(3, 2, 10), batch(5, 1, 10)]);
        // The third was too much for it.
        assert_eq!(
            late.take(100),
            Taken {
                lost_up_to: Some(7),
                batches: vec![]
            }
        );
        changes.push(&batch(8, 1, 10));
        assert_eq!(
            late.take(1),
            Taken {
                lost_up_to: None,
                batches: vec![batch(8, 1, 10)]
            }
        );
        assert_eq!(
            first.take(100).batches,
            [batch(6, 1, 10), batch(7, 1, 10), batch(8, 1, 10)]
        );
    }
}
