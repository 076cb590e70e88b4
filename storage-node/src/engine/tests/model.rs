//! The engine against a map, with tiny extents: puts, re-puts, deletes, reads, drops, reopening.

use super::house::House;
use super::*;

#[test]
fn random_calls_match_the_model() {
    for seed in seeds(30) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 24, 64 * 1024);
        for _ in 0..400 {
            assert!(house.step());
        }
        assert!(house.check());
        assert!(house.apply(&house::Operation::Reopen));
        assert!(house.check());
    }
}
