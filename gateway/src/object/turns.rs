//! Turns for those who lost a race for a row: copies of one object, completions of one upload, writers of one key.
//!
//! Each commit tells by its preconditions what it was decided on, and of those that were decided on the same version of a row one
//! applies. With many at once most lose, again and again, and the last would never win. So whoever has lost waits for its turn: one
//! after another decides and commits, beside those that come anew.
//!
//! Invariant: nothing depends on turns but how soon a commit applies. A turn that is not given back in time is waited for no longer.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Rows share so many turns.
const TURNS: usize = 256;
/// A turn is waited for this long; then it is tried without.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Turns {
    hasher: RandomState,
    each: Vec<Semaphore>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            hasher: RandomState::new(),
            each: (0..TURNS).map(|_| Semaphore::new(1)).collect(),
        }
    }
}

/// Somebody's turn; the next one's when dropped.
pub struct Turn<'a> {
    _permit: Option<SemaphorePermit<'a>>,
}

impl Turns {
    /// Waits until it is one's turn with this row.
    pub async fn take(&self, row: &[u8]) -> Turn<'_> {
        let of = self.hasher.hash_one(row) as usize % TURNS;
        let turn = tokio::time::timeout(PATIENCE, self.each[of].acquire()).await;
        Turn {
            _permit: turn.ok().and_then(Result::ok),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_after_another_and_never_for_ever() {
        let turns = Turns::default();
        let first = turns.take(b"row").await;
        let began = tokio::time::Instant::now();
        let _without = turns.take(b"row").await;
        assert!(began.elapsed() >= PATIENCE);
        drop(first);
        let began = tokio::time::Instant::now();
        drop(turns.take(b"row").await);
        drop(turns.take(b"row").await);
        assert!(began.elapsed() < PATIENCE);
    }
}
