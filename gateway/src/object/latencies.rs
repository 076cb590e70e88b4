//! How long requests of clients wait for disks: counted by kind and duration, for whoever must not make them wait longer.
//!
//! Reads and stripe writes of the foreground alone are counted, as the request sees them, hedges and all; decodes are not:
//! they are slower when a disk is lost, whatever else is done. Large ones take longer than small ones, so they are of
//! another kind.
//!
//! Invariant: counting takes no lock; and counts only grow, so that a difference of two looks is what came between them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Up to this many bytes is small.
const SMALL_BYTES: usize = 64 * 1024;
/// Kinds: reads and writes, small and large.
pub const KINDS: usize = 4;
/// Eight buckets for each doubling, from a microsecond to more than a minute.
const PER_DOUBLING: u32 = 8;
const BUCKETS: usize = 27 * PER_DOUBLING as usize;

/// How often each duration was seen, by kind.
pub type Counts = [[u64; BUCKETS]; KINDS];

/// The counts of one gateway.
pub struct Latencies {
    counts: [[AtomicU64; BUCKETS]; KINDS],
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            counts: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }
}

impl Latencies {
    /// A read of so many bytes took so long.
    pub fn read(&self, bytes: usize, took: Duration) {
        self.add(usize::from(bytes > SMALL_BYTES), took);
    }

    /// A write of so many bytes took so long.
    pub fn written(&self, bytes: usize, took: Duration) {
        self.add(2 + usize::from(bytes > SMALL_BYTES), took);
    }

    fn add(&self, kind: usize, took: Duration) {
        self.counts[kind][bucket(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// All that was counted by now.
    pub fn counts(&self) -> Counts {
        std::array::from_fn(|kind| {
            std::array::from_fn(|bucket| self.counts[kind][bucket].load(Ordering::Relaxed))
        })
    }
}

fn bucket(took: Duration) -> usize {
    let doublings = (took.as_micros().max(1) as f64).log2();
    ((doublings * f64::from(PER_DOUBLING)) as usize).min(BUCKETS - 1)
}

/// Counts that fade: what was seen lately weighs more.
#[derive(Clone, Debug)]
pub struct Fading {
    weights: [f64; BUCKETS],
}

impl Default for Fading {
    fn default() -> Fading {
        Fading {
            weights: [0.0; BUCKETS],
        }
    }
}

impl Fading {
    /// Takes in what came between two looks; `kept` is how much what was there before still weighs.
    pub fn take_in(&mut self, before: &[u64; BUCKETS], now: &[u64; BUCKETS], kept: f64) {
        for ((weight, before), now) in self.weights.iter_mut().zip(before).zip(now) {
            *weight = *weight * kept + now.saturating_sub(*before) as f64;
        }
    }

    /// How much there is of it.
    pub fn weight(&self) -> f64 {
        self.weights.iter().sum()
    }

    /// The duration that this share of them stays below, in microseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut left = self.weight() * share;
        let bucket = self.weights.iter().position(|weight| {
            left -= weight;
            left <= 0.0
        });
        let doublings = (bucket.unwrap_or(BUCKETS - 1) + 1) as f64 / f64::from(PER_DOUBLING);
        doublings.exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_right_to_a_tenth_and_what_is_old_fades() {
        let latencies = Latencies::default();
        for micros in 1..=10_000 {
            latencies.read(1000, Duration::from_micros(micros));
        }
        latencies.read(1 << 20, Duration::from_secs(3600));
        let counts = latencies.counts();
        let mut fading = Fading::default();
        let none = Latencies::default().counts();
        fading.take_in(&none[0], &counts[0], 0.5);
        assert_eq!(fading.weight(), 10_000.0);
        for share in [0.01, 0.5, 0.9, 0.99] {
            let told = fading.quantile(share);
            let right = 10_000.0 * share;
            assert!(
                told >= right && told <= right * 1.1,
                "{share}: {told}, not {right}"
            );
        }
        fading.take_in(&counts[0], &counts[0], 0.5);
        assert_eq!(fading.weight(), 5_000.0);
        latencies.written(70_000, Duration::ZERO);
        let later = latencies.counts();
        let of = |kind: usize| later[kind].iter().sum::<u64>();
        assert_eq!([of(0), of(1), of(2), of(3)], [10_000, 1, 0, 1]);
    }
}
