//! Every fault of the simulated device, while puts, gets, deletes and drops go on: what the calls answer, and what is
//! there afterwards. Power cuts are in `crash`, too.

use super::house::{Cut, House, Operation};
use super::*;
use crate::device::simulated::{Fault, Unflushed};
use rand::Rng;
use rand::seq::IndexedRandom;

/// A house with something in it.
fn at_work(seed: u64) -> House {
    at_work_on(seed, 24)
}

fn at_work_on(seed: u64, extents: u64) -> House {
    println!("CAIRN_TEST_SEED={seed}");
    let mut house = House::new(seed, extents, 32 * 1024);
    for _ in 0..60 {
        assert!(house.step());
    }
    house
}

fn is_online(house: &House) -> bool {
    house.engine().status().state == DiskState::Online
}

fn is_fenced<T>(result: Result<T, NodeError>, why: &str) -> bool {
    matches!(result, Err(NodeError::Fenced { reason }) if reason.contains(why))
}

#[test]
fn a_failed_write_or_flush_fences_and_what_was_acknowledged_is_there_when_the_disk_is_opened_again() {
    for (fault, why) in [
        (Fault::WriteError, "a write failed: injected write error"),
        (Fault::FlushError, "a flush failed: injected flush error"),
    ] {
        for seed in seeds(12) {
            let mut house = at_work(seed);
            for _ in 0..3 {
                house.apply(&Operation::Fail(fault));
                assert!((0..300).any(|_| !house.step()), "{fault:?} never hit");
                let (engine, to) = (house.engine(), unit(1));
                assert!(is_fenced(get(engine, &to, key(1, 0)), why));
                assert!(is_fenced(
                    put(engine, &to, key(1, 0), Bytes::from_static(b"x")),
                    why
                ));
                assert!(is_fenced(delete(engine, &to, &[1]), why));
                assert!(is_fenced(engine.inventory(&to, None, 1), why));
                // Opens it, and compares.
                house.recover();
                assert!((0..30).all(|_| house.step()));
            }
            house.power_cut(None);
            assert!(house.check());
        }
    }
}

#[test]
fn a_refused_allocation_is_no_space_for_puts_and_nothing_to_anybody_else() {
    for seed in seeds(12) {
        // Large enough for all of it: the last put must find room.
        let mut house = at_work_on(seed, 128);
        // The house takes NoSpace from a put only.
        for _ in 0..120 {
            if house.disk.armed() == 0 {
                house.disk.arm(Fault::NoSpace);
            }
            assert!(house.step());
        }
        house.disk.disarm();
        assert!(house.check() && is_online(&house));
        let (to, key) = (unit(1), key(900_000, 0));
        put(house.engine(), &to, key, payload(&to, key, 0, 100)).unwrap();
    }
}

/// Not once, but for as long as nobody makes room on the filesystem under the disk.
#[test]
fn a_full_filesystem_refuses_puts_and_nothing_else() {
    for seed in seeds(12) {
        let mut house = at_work(seed);
        house.disk.fill_filesystem();
        for _ in 0..4 {
            assert!((0..100).all(|_| house.step()));
            assert!(house.apply(&Operation::Fill { volume: 1, len: 8000 }));
        }
        assert!(house.check() && is_online(&house));
    }
}

/// Reads that fail, come from elsewhere, or are stale: the next one is right, and nothing that was decided by a bad one stays.
#[test]
fn a_bad_read_is_a_typed_error_once_and_changes_nothing() {
    for fault in [Fault::ReadError, Fault::MisdirectedRead, Fault::StaleRead] {
        for seed in seeds(12) {
            let mut house = at_work(seed);
            house.misreads = true;
            let mut hits = 0;
            for _ in 0..200 {
                if house.disk.armed() == 0 && house.rng.random_ratio(1, 4) {
                    house.disk.arm(fault);
                    hits += 1;
                }
                assert!(house.step(), "{fault:?} fenced the disk");
            }
            assert!(hits > 5, "{fault:?} hit {hits} times");
            house.disk.disarm();
            house.misreads = false;
            assert!(house.check() && is_online(&house));
            assert!(house.apply(&Operation::Reopen));
            assert!(house.check());
        }
    }
}

#[test]
fn a_read_error_says_what_failed_and_the_next_read_is_right() {
    for seed in seeds(12) {
        let house = at_work(seed);
        for (volume, key) in house.certain().into_iter().take(10) {
            house.disk.arm(Fault::ReadError);
            let failed = get(house.engine(), &unit(volume), key);
            // Unless compaction took it.
            assert!(
                matches!(&failed, Err(NodeError::Io { what }) if what == "injected read error")
                    || failed.is_ok(),
                "{failed:?}"
            );
            house.disk.disarm();
            assert!(verifies(
                &unit(volume),
                key,
                &get(house.engine(), &unit(volume), key).unwrap()
            ));
        }
    }
}

/// What a device lost or put elsewhere is found missing or corrupt, never other bytes; and it stays in service.
#[test]
fn a_write_or_flush_that_lied_never_makes_wrong_bytes() {
    for fault in [Fault::LostWrite, Fault::MisdirectedWrite, Fault::LyingFlush] {
        for seed in seeds(12) {
            println!("CAIRN_TEST_SEED={seed}");
            let mut house = House::new(seed, 24, 32 * 1024);
            house.lossy = true;
            for _ in 0..200 {
                if house.disk.armed() == 0 && house.rng.random_ratio(1, 10) {
                    house.disk.arm(fault);
                }
                assert!(house.step(), "{fault:?} fenced the disk");
            }
            house.disk.disarm();
            assert!(house.check() && is_online(&house));
            house.engine().verify_once();
            house.engine = None;
            house.disk.reboot_with(Unflushed::Lost);
            house.engine = Some(house.open().unwrap());
            assert!(house.check());
            // It goes on as a disk that lost something.
            for blob in 0..10 {
                let (to, key) = (unit(1), key(900_000 + blob, 0));
                match put(house.engine(), &to, key, payload(&to, key, 0, 1000)) {
                    Ok(()) => assert_eq!(
                        get(house.engine(), &to, key).unwrap().payload,
                        payload(&to, key, 0, 1000)
                    ),
                    Err(error) => assert_eq!(error, NodeError::NoSpace),
                }
            }
        }
    }
}

/// A gateway that reads it notices, and puts it again; nobody else notices anything.
#[test]
fn a_flipped_bit_costs_its_shard_until_it_is_put_again() {
    let mut noticed = 0;
    for seed in seeds(12) {
        // With room to spare: compaction that moves records while bits are flipped makes the flips another record's.
        let mut house = at_work_on(seed, 256);
        for _ in 0..40 {
            assert!((0..4).all(|_| house.step()));
            let Some(&(volume, key)) = house.certain().choose(&mut house.rng) else {
                continue;
            };
            let (start, entry) = offset_of(house.engine(), unit(volume).unit, key);
            let at = start + house.rng.random_range(0..entry.footprint());
            house.disk.flip_bit(at, seed as u8);
            let flipped = house.disk.peek(at, 1);
            if offset_of(house.engine(), unit(volume).unit, key).0 != start {
                // Compaction moved it meanwhile: the bit may be another record's by now, or that may have been written over it.
                if house.disk.peek(at, 1) == flipped {
                    house.disk.flip_bit(at, seed as u8);
                }
                continue;
            }
            match get(house.engine(), &unit(volume), key) {
                Ok(blocks) if verifies(&unit(volume), key, &blocks) => {}
                Ok(_) | Err(NodeError::Corrupt { .. }) => noticed += 1,
                other => panic!("{volume} {key:?}: {other:?}"),
            }
            let len = entry.len as usize;
            assert!(house.apply(&Operation::Put { volume, key, len }));
            if offset_of(house.engine(), unit(volume).unit, key).0 == start {
                // It found no space.
                house.disk.flip_bit(at, seed as u8);
            }
            assert!(house.check());
        }
        assert!(house.apply(&Operation::Reopen));
        assert!(house.check());
    }
    assert!(
        noticed > 100 || std::env::var("CAIRN_TEST_SEED").is_ok(),
        "noticed {noticed}"
    );
}

#[test]
fn a_slow_device_answers_all_of_it_late() {
    for seed in seeds(3) {
        let mut house = at_work(seed);
        for _ in 0..60 {
            house.disk.arm(Fault::Slow(Duration::from_millis(1)));
            assert!(house.step());
        }
        assert!(house.check() && is_online(&house));
    }
}

#[test]
fn a_hang_times_out_its_caller_and_readers_go_on() {
    for seed in seeds(6) {
        let mut house = at_work(seed);
        // Only reads: the first one hangs, and the others do not.
        let certain = house.certain();
        house.disk.arm(Fault::Hang);
        let (volume, first) = certain[0];
        let patience = Duration::from_millis(20);
        while house.disk.armed() > 0 {
            let read = block_on(
                house
                    .engine()
                    .get(&unit(volume), first, BlockRange::ALL, patience),
            );
            assert!(matches!(read, Ok(_) | Err(NodeError::Timeout)), "{read:?}");
        }
        assert!(
            certain
                .iter()
                .all(|(volume, key)| get(house.engine(), &unit(*volume), *key).is_ok())
        );
        // A write: those who change something wait for it, until their deadlines.
        house.deadline = patience;
        let mut timed_out = false;
        while !timed_out {
            house.disk.arm(Fault::Hang);
            let (key, len) = (key(900_000, 0), 3000);
            timed_out = !house.apply(&Operation::Put { volume: 1, key, len });
        }
        house.disk.disarm();
        assert!(certain.iter().all(|(volume, key)| {
            matches!(
                get(house.engine(), &unit(*volume), *key),
                Ok(_) | Err(NodeError::NotFound)
            )
        }));
        assert!(is_online(&house));
        // The machine is reset: what was acknowledged is there, and what timed out may be.
        house.deadline = DEADLINE;
        house.disk.crash_after(0);
        house.disk.reboot_with(Unflushed::Cached);
        house.power_cut(None);
        assert!(house.check());
        assert!((0..30).all(|_| house.step()));
    }
}

/// In every way: what was not flushed is torn, kept, lost, or in the cache of a drive whose power did not fail yet.
#[test]
fn a_crash_in_the_middle_of_anything_loses_nothing_acknowledged() {
    let ways = [
        Unflushed::Either,
        Unflushed::Kept,
        Unflushed::Lost,
        Unflushed::Cached,
    ];
    for unflushed in ways {
        for seed in seeds(6) {
            let mut house = at_work(seed);
            for round in 0..10 {
                let after = house.rng.random_range(0..60);
                let again = (round % 3 == 0).then(|| house.rng.random_range(0..60));
                house.apply(&Operation::Cut(Cut {
                    after,
                    unflushed,
                    again,
                }));
                let _ = (0..60).any(|_| !house.step());
                house.recover();
            }
        }
    }
}

/// The kernel shows what it never wrote, and holds it for clean. What is served of it after a restart is there for good.
#[test]
fn what_a_disk_serves_after_a_failed_flush_is_durable() {
    for len in [100, 20_000] {
        let disk = SimulatedDisk::new(4 << 20, 1);
        format_simulated(&disk, 64 * 1024);
        let engine = Engine::open(disk.device()).unwrap();
        let (to, other) = (unit(1), unit(2));
        put(&engine, &to, key(1, 0), payload(&to, key(1, 0), 0, len)).unwrap();
        // The first record of an extent: its header comes with it.
        disk.arm(Fault::FlushError);
        put(&engine, &other, key(2, 0), payload(&other, key(2, 0), 0, len)).unwrap_err();
        drop(engine);
        let engine = Engine::open(disk.device()).unwrap();
        let there = |engine: &Engine, from, blob| {
            get(engine, &from, key(blob, 0))
                .is_ok_and(|blocks| blocks.payload == payload(&from, key(blob, 0), 0, len))
        };
        assert!(
            there(&engine, other, 2),
            "it was not acknowledged, and it is there"
        );
        put(&engine, &other, key(3, 0), payload(&other, key(3, 0), 0, len)).unwrap();
        disk.crash_after(0);
        drop(engine);
        disk.reboot_with(Unflushed::Lost);
        let engine = Engine::open(disk.device()).unwrap();
        for (from, blob) in [(to, 1), (other, 2), (other, 3)] {
            assert!(there(&engine, from, blob), "blob {blob}");
        }
        assert_eq!(engine.status().corrupt_shards, 0);
    }
}
