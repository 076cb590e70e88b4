//! The longest test there is time for: seed after seed on all cores, and what was counted.
//!
//! By itself a few seeds, for seconds. `tests/engine-long [SECONDS] [SEED]` sets `CAIRN_ENGINE_SECONDS`: then from
//! `CAIRN_TEST_SEED` on, until the time is over or both [`OPERATIONS`] and [`CRASHES`] are met. A seed that fails is
//! printed, and `CAIRN_TEST_SEED` alone runs it again.

use super::house::{Counts, Cut, House, Operation};
use super::*;
use crate::device::simulated::{Fault, Unflushed};
use rand::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};

const OPERATIONS: u64 = 1_000_000;
const CRASHES: u64 = 100_000;
const SHORT_SEEDS: u64 = 120;
/// Engines that stop sleep a little: more threads than cores keep the cores busy.
const THREADS_PER_CORE: usize = 4;

/// Twenty-five crashes at random operations of the device, each recovered twice and compared, with whatever comes between.
fn run(seed: u64, counts: &Arc<Counts>) {
    let extent_size = if seed.is_multiple_of(4) { 64 } else { 32 } * 1024;
    let mut house = House::new(seed, 14 + seed % 11, extent_size);
    house.counts = counts.clone();
    for round in 0..25 {
        let operation = match house.rng.random_range(0..40) {
            0 => Operation::Fill {
                volume: round % 3,
                len: 8000,
            },
            1 => Operation::Verify,
            2 => Operation::Fail([Fault::WriteError, Fault::FlushError][seed as usize % 2]),
            _ => house.draw(),
        };
        if !house.apply(&operation) {
            house.recover();
        }
        let after = house.rng.random_range(0..70);
        let ways = [
            Unflushed::Either,
            Unflushed::Either,
            Unflushed::Lost,
            Unflushed::Kept,
            Unflushed::Cached,
        ];
        let unflushed = ways[house.rng.random_range(0..ways.len())];
        let again = house.rng.random_bool(0.25).then(|| house.rng.random_range(0..90));
        house.apply(&Operation::Cut(Cut {
            after,
            unflushed,
            again,
        }));
        let _ = (0..50).any(|_| !house.step());
        house.recover();
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn many_crashes_of_many_seeds_lose_nothing_acknowledged() {
    let seconds = number("CAIRN_ENGINE_SECONDS");
    let first = number("CAIRN_TEST_SEED");
    let until = match (seconds, first) {
        (Some(_), _) => u64::MAX,
        (None, Some(seed)) => seed + 1,
        (None, None) => SHORT_SEEDS,
    };
    let (counts, started) = (Arc::new(Counts::default()), Instant::now());
    let next = AtomicU64::new(first.unwrap_or(0));
    let failed: Mutex<Vec<u64>> = Mutex::default();
    let is_over = || {
        let met = counts.operations.load(Ordering::Relaxed) >= OPERATIONS
            && counts.crashes.load(Ordering::Relaxed) >= CRASHES;
        met || seconds.is_some_and(|seconds| started.elapsed() > Duration::from_secs(seconds))
    };
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get()) * THREADS_PER_CORE;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= until {
                        break;
                    }
                    if catch_unwind(AssertUnwindSafe(|| run(seed, &counts))).is_err() {
                        println!("failed: CAIRN_TEST_SEED={seed}");
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    println!(
        "{counts}, in {} s on {threads} threads",
        started.elapsed().as_secs()
    );
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failing seeds: {failed:?}");
}
