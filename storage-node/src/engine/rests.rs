//! How compaction makes way for clients: while any read or write it takes small steps, and rests after each.
//!
//! A rest is so many times as long as the step before it, so that a slow disk rests longer, and the share of the requests that meet a
//! step stays small. The fewer extents are spare the shorter it is: writers that are faster than compaction end its rests. Steps stay large enough to be worth their flush: a flush delays
//! every request of that moment, whatever it flushes.
//!
//! Invariant: nothing rests when space runs low, nor when a put waits for room; and nothing but the pace depends on a clock.

use std::time::{Duration, Instant};

/// Bytes moved in one step, so that a waiting put is never far away.
pub const STEP_BYTES: u64 = 4 << 20;
/// Bytes of a step beside clients.
const STEP_BYTES_BESIDE_CLIENTS: u64 = if cfg!(test) { 16 << 10 } else { 2 << 20 };
/// With room to spare, a rest is so many times as long as its step.
const REST_STEPS: u32 = 48;
/// How long it is not looked for work again when there was none: that takes a look at every extent.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 100 });
/// The longest rest: after a step that met a disk that stalled.
const REST_MAX: Duration = Duration::from_secs(1);

/// Free extents that nobody needs soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// So many; none when space runs low.
    pub extents: usize,
    /// Of so many in all. With a quarter of them spare there is no hurry.
    pub of: usize,
}

impl Spare {
    /// From 0.0, none, to 1.0, plenty.
    fn share(self) -> f64 {
        let plenty = (self.of / 4).max(1);
        self.extents.min(plenty) as f64 / plenty as f64
    }
}

/// How long to rest after a step that took so long. Pure.
fn rest_after(took: Duration, busy: bool, spare: Spare) -> Duration {
    if !busy {
        return Duration::ZERO;
    }
    // Clamped first: no time is too long to be multiplied.
    (took.min(REST_MAX) * REST_STEPS)
        .mul_f64(spare.share())
        .min(REST_MAX)
}

/// The rests of one disk's compaction. A disk is busy if its count of answered requests has changed.
#[derive(Debug, Default)]
pub struct Rests {
    answered: u64,
    until: Option<Instant>,
}

impl Rests {
    /// How large the next step may be.
    pub fn step_bytes(&self, answered: u64, spare: Spare) -> u64 {
        match answered != self.answered && spare.extents > 0 {
            true => STEP_BYTES_BESIDE_CLIENTS,
            false => STEP_BYTES,
        }
    }

    /// A step is done, which took so long. It rests if somebody was answered since the end of the step before.
    pub fn begin(&mut self, now: Instant, took: Duration, answered: u64, spare: Spare) {
        let rest = rest_after(took, answered != self.answered, spare);
        (self.answered, self.until) = (answered, Some(now + rest));
    }

    /// There was nothing to do.
    pub fn found_nothing(&mut self, now: Instant) {
        self.until = Some(now + LOOK_EVERY);
    }

    /// How long to rest yet. None at all as soon as space runs low.
    pub fn left(&self, now: Instant, spare: Spare) -> Duration {
        match self.until {
            Some(until) if spare.extents > 0 => until.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Spare = Spare { extents: 40, of: 100 };
    const LOW: Spare = Spare { extents: 0, of: 100 };
    const TOOK: Duration = Duration::from_millis(3);

    #[test]
    fn it_rests_for_clients_only() {
        assert_eq!(rest_after(TOOK, false, PLENTY), Duration::ZERO);
        assert_eq!(rest_after(TOOK, true, PLENTY), TOOK * REST_STEPS);
    }

    #[test]
    fn the_less_is_spare_the_shorter_it_rests_and_not_at_all_when_space_is_low() {
        let rests = (0..=100).map(|extents| rest_after(TOOK, true, Spare { extents, of: 100 }));
        let rests: Vec<_> = rests.collect();
        assert!(rests.is_sorted() && rests[0].is_zero() && !rests[1].is_zero());
        assert_eq!(rests[25..], vec![TOOK * REST_STEPS; 76]);
        // Whatever the disk: one with few extents too.
        for of in 0..10 {
            assert!(rest_after(TOOK, true, Spare { extents: 0, of }).is_zero());
        }
    }

    #[test]
    fn a_rest_is_bounded_whatever_the_step_took() {
        for took in [Duration::from_secs(1), Duration::from_secs(3600), Duration::MAX] {
            assert_eq!(rest_after(took, true, PLENTY), REST_MAX);
        }
    }

    /// A rest that has begun ends when space runs low, and the step after it is a large one.
    #[test]
    fn a_disk_that_runs_low_neither_rests_nor_takes_small_steps() {
        let (mut rests, now) = (Rests::default(), Instant::now());
        rests.begin(now, TOOK, 1, PLENTY);
        assert_eq!(rests.left(now, PLENTY), TOOK * REST_STEPS);
        assert!(rests.left(now, LOW).is_zero() && rests.left(now + REST_MAX, PLENTY).is_zero());
        assert_eq!(rests.step_bytes(2, PLENTY), STEP_BYTES_BESIDE_CLIENTS);
        assert_eq!(rests.step_bytes(2, LOW), STEP_BYTES);
        // Nobody asked meanwhile.
        assert_eq!(rests.step_bytes(1, PLENTY), STEP_BYTES);
        rests.begin(now, TOOK, 1, PLENTY);
        assert!(rests.left(now, PLENTY).is_zero());
    }
}
