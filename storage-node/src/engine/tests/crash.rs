//! Power cuts at every I/O of a mix, and again during recovery.

use super::house::House;
use super::*;
use rand::Rng;

/// The mix runs until the crash; then everything acknowledged must be there.
fn crash_once(seed: u64, at: u64, again: Option<u64>) -> bool {
    let mut house = House::new(seed, 16, 32 * 1024);
    for _ in 0..30 {
        house.step();
    }
    house.disk.crash_after(at);
    let crashed = (0..60).any(|_| !house.step());
    house.power_cut(again);
    assert!(house.check());
    for _ in 0..20 {
        assert!(house.step());
    }
    assert!(house.check());
    crashed
}

#[test]
fn a_power_cut_at_every_operation_loses_nothing_acknowledged() {
    for seed in seeds(4) {
        for at in 0.. {
            println!("CAIRN_TEST_SEED={seed} at={at}");
            if !crash_once(seed, at, None) {
                break;
            }
        }
    }
}

#[test]
fn a_power_cut_during_recovery_changes_nothing() {
    for seed in seeds(6) {
        for again in 0..90 {
            let at = seed * 7 + again % 40;
            println!("CAIRN_TEST_SEED={seed} at={at} again={again}");
            crash_once(seed, at, Some(again));
        }
    }
}

#[test]
fn many_power_cuts_in_a_row_lose_nothing_acknowledged() {
    for seed in seeds(30) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 24, 32 * 1024);
        for _ in 0..12 {
            let at = house.rng.random_range(0..120);
            house.disk.crash_after(at);
            let _ = (0..100).any(|_| !house.step());
            let again = house.rng.random_bool(0.3).then(|| house.rng.random_range(0..90));
            house.power_cut(again);
            assert!(house.check());
        }
    }
}
