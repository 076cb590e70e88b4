//! Who is reading what, so that a blob is never taken from under a download.
//!
//! A reader enters before it reads the ledger and pins the blobs it found after. Garbage is collected in the order:
//! see the garbage row, take a barrier, wait until every reader that had entered by then has pinned (or left), skip
//! what is pinned. A reader that enters later cannot find the blob any more, because its row is gone. No clock.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

/// A blob: volume and id.
pub type BlobKey = (u64, u64);

#[derive(Default)]
struct State {
    next: u64,
    entering: BTreeSet<u64>,
    pinned: HashMap<BlobKey, u32>,
}

/// All readers of one gateway.
#[derive(Clone, Default)]
pub struct Readers {
    state: Arc<Mutex<State>>,
}

/// A reader that has not pinned yet.
pub struct Entering {
    readers: Readers,
    ticket: u64,
}

/// Blobs that are being read; let go when dropped.
pub struct Pins {
    readers: Readers,
    blobs: Vec<BlobKey>,
}

impl Readers {
    /// Call this before the ledger read that finds the blobs.
    pub fn enter(&self) -> Entering {
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        state.entering.insert(ticket);
        Entering {
            readers: self.clone(),
            ticket,
        }
    }

    /// A moment that [`Readers::settled`] can ask about.
    pub fn barrier(&self) -> u64 {
        self.lock().next
    }

    /// Whether every reader that entered before the barrier has pinned what it reads.
    pub fn settled(&self, barrier: u64) -> bool {
        self.lock()
            .entering
            .first()
            .is_none_or(|&oldest| oldest >= barrier)
    }

    /// Whether a blob is being read.
    pub fn pinned(&self, blob: BlobKey) -> bool {
        self.lock().pinned.contains_key(&blob)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Entering {
    /// Says which blobs will be read.
    pub fn pin(self, blobs: Vec<BlobKey>) -> Pins {
        let mut state = self.readers.lock();
        for blob in &blobs {
            *state.pinned.entry(*blob).or_default() += 1;
        }
        drop(state);
        Pins {
            readers: self.readers.clone(),
            blobs,
        }
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        self.readers.lock().entering.remove(&self.ticket);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.readers.lock();
        for blob in &self.blobs {
            if let Some(count) = state.pinned.get_mut(blob) {
                *count -= 1;
                if *count == 0 {
                    state.pinned.remove(blob);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_free_only_when_nobody_can_be_reading_it() {
        let readers = Readers::default();
        let entering = readers.enter();
        let barrier = readers.barrier();
        let late = readers.enter();
        assert!(!readers.settled(barrier));
        let pins = entering.pin(vec![(1, 2)]);
        assert!(readers.settled(barrier));
        assert!(readers.pinned((1, 2)));
        let again = late.pin(vec![(1, 2)]);
        drop(pins);
        assert!(readers.pinned((1, 2)));
        drop(again);
        assert!(!readers.pinned((1, 2)));
        assert!(readers.settled(readers.barrier()));
    }
}
