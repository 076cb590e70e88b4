//! Times at which this process itself stood still: it was stopped, its machine was moved or had no processor for it.
//!
//! What was on its way meanwhile is late through no fault of anybody else. A thread looks at the clock ten times a second; a look
//! that comes a second late was a pause. Who judges a call, a poll or an absence asks whether there was a pause in it. Whoever
//! wakes first after a pause may ask before the thread has looked: then the last look is long ago, which says the same.
//!
//! Invariant: a pause excuses what it touched and nothing else. Time that was not paused counts in full.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How often the clock is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// A look that comes so late was a pause.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// All that waited comes at once after a pause: what begins in this time is excused, too.
const AFTERMATH: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Pauses(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// The last look; none while nobody looks.
    looked: Option<Instant>,
    /// When the last pause was over.
    over: Option<Instant>,
    /// How long all of them were.
    total: Duration,
    count: u64,
}

impl Seen {
    /// The pause that nobody has noted yet, if there is one right now.
    fn unnoted(&self, now: Instant) -> Option<Duration> {
        let gap = now.saturating_duration_since(self.looked?);
        (gap >= PAUSE_MIN).then_some(gap)
    }
}

impl Pauses {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to look, for as long as somebody holds it.
    pub fn watch(self: &Arc<Self>) -> std::io::Result<()> {
        self.look(Instant::now());
        let watched = Arc::downgrade(self);
        let looking = move || {
            while let Some(pauses) = watched.upgrade() {
                pauses.look(Instant::now());
                drop(pauses);
                std::thread::sleep(LOOK_PERIOD);
            }
        };
        let thread = std::thread::Builder::new().name("cairn-pauses".into());
        thread.spawn(looking).map(drop)
    }

    /// Looks at the clock.
    pub fn look(&self, now: Instant) {
        let mut seen = self.seen();
        let pause = seen.unnoted(now);
        seen.looked = Some(now);
        if let Some(pause) = pause {
            seen.over = Some(now);
            seen.total += pause;
            seen.count += 1;
            drop(seen);
            tracing::info!(
                ?pause,
                "this process stood still: what was late meanwhile is held against nobody"
            );
        }
    }

    /// Whether what began then and ends now was late through a pause.
    pub fn touched(&self, since: Instant) -> bool {
        let (seen, now) = (self.seen(), Instant::now());
        seen.unnoted(now).is_some() || seen.over.is_some_and(|over| since <= over + AFTERMATH)
    }

    /// Whether there is a pause, or was one a moment ago.
    pub fn lately(&self) -> bool {
        self.touched(Instant::now())
    }

    /// How long all pauses together were until now.
    pub fn total(&self) -> Duration {
        let (seen, now) = (self.seen(), Instant::now());
        seen.total + seen.unnoted(now).unwrap_or_default()
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.seen().count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks ten times a second for so long.
    async fn run(pauses: &Pauses, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            tokio::time::advance(LOOK_PERIOD).await;
            pauses.look(Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_excuses_what_it_touched() {
        let pauses = Pauses::default();
        assert!(!pauses.lately(), "nobody looks");
        pauses.look(Instant::now());
        let before = Instant::now();
        run(&pauses, 10 * SECOND).await;
        assert!(!pauses.touched(before) && pauses.total().is_zero());
        tokio::time::advance(12 * SECOND).await;
        // Seen by whoever wakes first, and the same once it is noted.
        for _ in 0..2 {
            assert!(pauses.touched(before) && pauses.lately());
            assert_eq!(pauses.total(), 12 * SECOND);
            pauses.look(Instant::now());
        }
        assert_eq!(pauses.count(), 1);
        let after = Instant::now();
        run(&pauses, AFTERMATH + LOOK_PERIOD).await;
        assert!(pauses.touched(after), "it had to wait for what came at once");
        assert!(!pauses.lately());
        run(&pauses, SECOND * 60).await;
        assert!(pauses.touched(before), "it began before the pause");
    }

    #[tokio::test]
    async fn a_thread_looks_until_nobody_needs_it() {
        let pauses = Arc::new(Pauses::default());
        pauses.watch().unwrap();
        let looked = pauses.seen().looked.unwrap();
        while pauses.seen().looked == Some(looked) {
            tokio::time::sleep(LOOK_PERIOD / 10).await;
        }
        let weak = Arc::downgrade(&pauses);
        drop(pauses);
        while weak.strong_count() > 0 {
            tokio::time::sleep(LOOK_PERIOD / 10).await;
        }
    }
}
