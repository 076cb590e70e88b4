//! How long a disk's answers took of late, and what follows: when one is late, and when it is given up.
//!
//! Invariant: pure, of fixed size. What was counted long ago fades: every so many answers all counts are halved.

use std::time::Duration;

/// With fewer answers than this nothing is concluded.
const SAMPLES_MIN: u32 = 32;
/// Counts are halved at so many.
const SAMPLES_MAX: u32 = 1_024;
/// A bucket ends at 1/4 ms times the square root of two to the power of its number.
const BUCKETS: usize = 34;
const FIRST_EDGE_US: f64 = 250.0;

/// See the module.
#[derive(Debug)]
pub struct Latency {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            counts: [0; BUCKETS],
            total: 0,
        }
    }
}

impl Latency {
    /// Takes in how long an answer took, or how long it was waited for in vain.
    pub fn record(&mut self, took: Duration) {
        self.counts[bucket_of(took)] += 1;
        self.total += 1;
        if self.total >= SAMPLES_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
    }

    /// What 99 of 100 answers took at most; none if too little is known.
    pub fn p99(&self) -> Option<Duration> {
        if self.total < SAMPLES_MIN {
            return None;
        }
        // The worst one says nothing by itself.
        let mut beyond = self.total.div_ceil(100);
        for (bucket, count) in self.counts.iter().enumerate().rev() {
            if *count > beyond {
                return Some(edge_of(bucket));
            }
            beyond -= count;
        }
        None
    }

    /// So many times that, within these bounds; the upper one if too little is known.
    pub fn p99_times(&self, factor: u32, min: Duration, max: Duration) -> Duration {
        self.p99().map_or(max, |p99| (p99 * factor).clamp(min, max))
    }
}

fn bucket_of(took: Duration) -> usize {
    let times = took.as_micros() as f64 / FIRST_EDGE_US;
    let number = (times.log2() * 2.0).ceil();
    (number.max(0.0) as usize).min(BUCKETS - 1)
}

fn edge_of(bucket: usize) -> Duration {
    let us = FIRST_EDGE_US * 2f64.powf(bucket as f64 / 2.0);
    Duration::from_micros(us as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn every_time_is_in_a_bucket_that_ends_at_most_half_as_much_again_after_it() {
        for us in (0..20_000_000).step_by(997) {
            let (took, edge) = (
                Duration::from_micros(us),
                edge_of(bucket_of(Duration::from_micros(us))),
            );
            assert!(edge + Duration::from_micros(1) >= took, "{took:?} after {edge:?}");
            assert!(
                edge <= took * 3 / 2 || us <= FIRST_EDGE_US as u64,
                "{took:?} before {edge:?}"
            );
        }
        assert!(edge_of(BUCKETS - 1) > Duration::from_secs(20));
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_p99_leaves_out_one_in_a_hundred() {
        let mut latency = Latency::default();
        (1..SAMPLES_MIN).for_each(|_| latency.record(ms(1)));
        assert_eq!(latency.p99(), None);
        assert_eq!(latency.p99_times(4, ms(1), ms(400)), ms(400));
        (SAMPLES_MIN..=200).for_each(|_| latency.record(ms(1)));
        (0..3).for_each(|_| latency.record(ms(900)));
        assert_eq!(latency.p99(), Some(ms(1)));
        latency.record(ms(900));
        assert!(latency.p99().is_some_and(|p99| p99 >= ms(900)));
        assert_eq!(latency.p99_times(4, ms(1), ms(400)), ms(400));
    }

    #[test]
    fn it_follows_what_changes() {
        let mut latency = Latency::default();
        (0..5_000).for_each(|_| latency.record(ms(500)));
        (0..8_000).for_each(|_| latency.record(ms(2)));
        assert_eq!(latency.p99_times(1, ms(1), ms(400)), edge_of(bucket_of(ms(2))));
    }
}
