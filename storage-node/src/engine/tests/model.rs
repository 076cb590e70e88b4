//! The engine against a map, with tiny extents: puts, re-puts, deletes, drops, reads, full disks, failing disks, power cuts.
//!
//! proptest draws the operations and, when a run fails, looks for fewer that fail too. The committer is a thread of its
//! own, so a run is nearly the same every time, not quite.

use super::house::{Cut, House, Operation};
use super::*;
use crate::device::simulated::{Fault, Unflushed};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// On both sides of sectors, blocks, CRC blocks, and what fits into an extent.
const LENGTHS: [usize; 20] = [
    1, 63, 64, 65, 511, 513, 4095, 4096, 4097, 8000, 20_000, 32_767, 32_768, 57_000, 65_535, 65_536, 65_537,
    131_071, 131_072, 131_073,
];

fn shard_key() -> impl Strategy<Value = ShardKey> {
    (0..24u64, 0..3u32).prop_map(|(blob, stripe)| key(blob, stripe))
}

fn put() -> impl Strategy<Value = Operation> {
    (0..house::UNITS, shard_key(), select(&LENGTHS[..])).prop_map(|(volume, key, len)| Operation::Put {
        volume,
        key,
        len,
    })
}

fn delete() -> impl Strategy<Value = Operation> {
    (0..house::UNITS, prop::collection::vec(0..24u64, 1..5))
        .prop_map(|(volume, blobs)| Operation::Delete { volume, blobs })
}

fn cut() -> impl Strategy<Value = Operation> {
    let ways = [
        Unflushed::Lost,
        Unflushed::Kept,
        Unflushed::Either,
        Unflushed::Cached,
    ];
    (0..50u64, select(ways.to_vec()), prop::option::of(0..60u64)).prop_map(|(after, unflushed, again)| {
        Operation::Cut(Cut {
            after,
            unflushed,
            again,
        })
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let read = (0..house::UNITS, shard_key(), 0..4u32, 0..4u32).prop_map(|(volume, key, first, count)| {
        Operation::Read {
            volume,
            key,
            range: BlockRange { first, count },
        }
    });
    let together = prop::collection::vec(prop_oneof![3 => put(), 1 => delete()], 2..8);
    let fill = (0..house::UNITS, select(&[8000usize, 20_000][..]));
    prop_oneof![
        30 => put(),
        8 => together.prop_map(Operation::Together),
        14 => delete(),
        2 => (0..house::UNITS).prop_map(|volume| Operation::DropUnit { volume }),
        10 => read,
        2 => Just(Operation::List),
        1 => fill.prop_map(|(volume, len)| Operation::Fill { volume, len }),
        2 => Just(Operation::Verify),
        3 => Just(Operation::Reopen),
        1 => select(&[Fault::WriteError, Fault::FlushError][..]).prop_map(Operation::Fail),
        4 => cut(),
    ]
}

#[test]
fn any_operations_match_the_model() {
    for seed in seeds(4) {
        println!("CAIRN_TEST_SEED={seed}");
        let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
        let config = ProptestConfig {
            cases: 60,
            failure_persistence: None,
            max_shrink_iters: 2_000,
            ..ProptestConfig::default()
        };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let disks = (any::<u64>().no_shrink(), 12..24u64, select(&[32u64, 64, 256][..]));
        let runs = (disks, prop::collection::vec(operation(), 1..80));
        let outcome = runner.run(&runs, |((seed, extents, kib), operations)| {
            let mut house = House::new(seed, extents, kib * 1024);
            house.run(&operations);
            Ok(())
        });
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn random_calls_match_the_model() {
    for seed in seeds(30) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 24, 64 * 1024);
        for _ in 0..400 {
            assert!(house.step());
        }
        assert!(house.check());
        assert!(house.apply(&Operation::Reopen));
        assert!(house.check());
    }
}
