//! Failures that really happened in other disk engines and stores, each a test by its name.
//!
//! | what happened | tests |
//! | --- | --- |
//! | a reused generation resurrects deleted records | [`a_generation_is_used_once_whatever_crashes`] |
//! | a relocation is recorded, its data is not durable yet | [`a_move_is_indexed_only_when_its_copy_is_durable`] |
//! | recovery decides in memory only; after a second crash a deleted record returns | [`what_recovery_saw_in_a_cache_is_durable_before_it_serves`], [`a_record_that_was_cut_stays_cut`], `crash::a_power_cut_during_recovery_changes_nothing` |
//! | the write position is derived in two places | [`no_write_touches_a_live_record_whatever_was_torn_before`] |
//! | compaction races reads or deletes | [`a_copy_of_what_was_deleted_or_put_again_meanwhile_is_dead`], `concurrency::readers_never_see_wrong_bytes_while_extents_are_recycled` |
//! | a crash in the middle of compaction | [`a_crash_in_the_middle_of_compaction_loses_and_revives_nothing`] |
//! | compaction on a full disk destroys data | `space::a_full_disk_deletes_and_comes_back_again_and_again` |
//! | a full disk cannot delete | the same, [`a_full_disk_deletes_after_crashes_in_the_middle_of_compaction`], `space::deletes_of_unknown_blobs_do_not_fill_the_disk`, `space::a_full_filesystem_under_a_disk_wedges_nothing` |
//! | a misdirected write | [`a_misdirected_write_is_never_served`] |
//! | a write to a stale location | [`what_a_lost_write_leaves_of_an_earlier_use_is_never_served`] |
//! | a direct read returns zeros once | [`a_read_of_zeros_costs_nothing`], `damage::compaction_does_not_trust_one_bad_read` |
//! | scrubbing reads the page cache and misses rot | [`each_pass_reads_every_live_byte_from_the_device`], [`a_disk_behind_the_page_cache_says_so`] |
//! | a device acknowledges a flush that it did not do | [`a_flush_that_lied_costs_what_it_covered_and_no_more`] |
//! | one bad bit in the middle of a log loses everything after it | `damage::one_flipped_bit_costs_at_most_one_shard` |
//! | a tombstone is purged too early (in the engine: while a record that it kills is on the disk) | [`a_tombstone_stays_while_a_record_it_kills_is_on_the_disk`], `damage::tombstones_outlive_an_extent_whose_headers_cannot_be_read` |
//! | wall clocks used for garbage age | no test: `clippy.toml` forbids `SystemTime::now`, and a clippy warning fails the build |
//! | a typed corruption error is lost over the wire | `corruption_keeps_its_type_over_http` in `storage-node/tests/clients.rs` |
//! | one sick disk stalls everything | [`a_disk_that_hangs_stalls_no_other`] |
//!
//! Of clusters, and not tested here: a returning peer resurrects deletes, "healed" is reported while shards are short,
//! gateways must restart after a node rejoins, a background scan eats the CPU.

use super::house::{Cut, House, Operation};
use super::*;
use crate::device::simulated::{Fault, Unflushed};
use rand::Rng;
use std::collections::{BTreeSet, HashSet};

const LEN: usize = 12_000;
const WAYS: [Unflushed; 4] = [
    Unflushed::Either,
    Unflushed::Kept,
    Unflushed::Lost,
    Unflushed::Cached,
];

/// Nine shards in three extents. Once the first two are deleted, compaction moves the third and the fourth.
fn before_compaction(seed: u64) -> (SimulatedDisk, Engine) {
    let disk = SimulatedDisk::new(4 << 20, seed);
    format_simulated(&disk, 64 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    (0..9).for_each(|blob| put_one(&engine, blob));
    (disk, engine)
}

fn put_one(engine: &Engine, blob: u64) {
    put(
        engine,
        &unit(1),
        key(blob, 0),
        payload(&unit(1), key(blob, 0), 0, LEN),
    )
    .unwrap();
}

/// Whether a shard is there; what is there must be right.
fn is_there(engine: &Engine, blob: u64) -> bool {
    match get(engine, &unit(1), key(blob, 0)) {
        Ok(blocks) => {
            assert_eq!(blocks.payload, payload(&unit(1), key(blob, 0), 0, LEN));
            true
        }
        Err(NodeError::NotFound) => false,
        Err(error) => panic!("blob {blob}: {error}"),
    }
}

fn generations(engine: &Engine) -> BTreeSet<u64> {
    let index = engine.shared.index();
    index.extents.iter().map(|extent| extent.generation).collect()
}

/// Every put opens an extent and every delete frees one, so that crashes fall between the use and the end of generations.
#[test]
fn a_generation_is_used_once_whatever_crashes() {
    for seed in seeds(10) {
        println!("CAIRN_TEST_SEED={seed}");
        let disk = SimulatedDisk::new(2 << 20, seed);
        format_simulated(&disk, 32 * 1024);
        let (mut used, mut next) = (BTreeSet::new(), 0);
        for round in 0..40 {
            let engine = Engine::open(disk.device()).unwrap();
            let (there, _) = (generations(&engine), disk.crash_after(seed + round % 23));
            for _ in 0..20 {
                next += 1;
                let (to, key) = (unit(1), key(next, 0));
                let stored = put(&engine, &to, key, payload(&to, key, 0, 20_000));
                // Generations of what a crash has cut off are used too.
                let new: Vec<u64> = generations(&engine).difference(&there).copied().collect();
                used.extend(new);
                if stored.is_err() || delete(&engine, &to, &[next]).is_err() {
                    break;
                }
            }
            drop(engine);
            disk.reboot_with(WAYS[round as usize % 3]);
            let newest = used.last().copied().unwrap_or(0);
            let engine = Engine::open(disk.device()).unwrap();
            // What a crash left behind would fill the disk.
            for left in engine.inventory(&unit(1), None, 100).unwrap() {
                delete(&engine, &unit(1), &[left.key.blob]).unwrap();
            }
            let there = generations(&engine);
            next += 1;
            let (to, key) = (unit(2), key(next, 0));
            put(&engine, &to, key, payload(&to, key, 0, 20_000)).unwrap();
            let new: Vec<u64> = generations(&engine).difference(&there).copied().collect();
            assert!(
                !new.is_empty() && new.iter().all(|new| *new > newest),
                "{new:?} after {newest}"
            );
            delete(&engine, &unit(2), &[next]).unwrap();
            used.extend(new);
        }
        assert!(used.len() > 20, "seed {seed}: {} uses", used.len());
    }
}

#[test]
fn a_move_is_indexed_only_when_its_copy_is_durable() {
    let mut moved = 0;
    for seed in seeds(6) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 16, 32 * 1024);
        for _ in 0..300 {
            let operation = house.draw();
            if operation != Operation::Reopen {
                house.apply(&operation);
            }
        }
        // The house watches, whenever the engine flushes, that all that the index names is durable.
        assert!(house.check());
        moved += house.engine().metrics().records_moved;
    }
    assert!(moved > 20, "{moved} records moved");
}

/// A process dies and the machine does not: what the next one reads is in the drive's cache, and the power may fail later.
#[test]
fn what_recovery_saw_in_a_cache_is_durable_before_it_serves() {
    let mut crashes = 0;
    for at in 0..12 {
        for deletes in [false, true] {
            let (disk, engine) = before_compaction(at);
            disk.crash_after(at);
            let _ = match deletes {
                true => delete(&engine, &unit(1), &[4]),
                false => put(
                    &engine,
                    &unit(1),
                    key(20, 0),
                    payload(&unit(1), key(20, 0), 0, LEN),
                ),
            };
            crashes += u64::from(disk.is_crashed());
            drop(engine);
            disk.reboot_with(Unflushed::Cached);
            let seen = {
                let engine = Engine::open(disk.device()).unwrap();
                disk.crash_after(0);
                [4, 20].map(|blob| engine.shared.index().find(unit(1).unit, key(blob, 0)).is_some())
            };
            disk.reboot_with(Unflushed::Lost);
            let engine = Engine::open(disk.device()).unwrap();
            assert_eq!([4, 20].map(|blob| is_there(&engine, blob)), seen, "crash at {at}");
        }
    }
    assert!(crashes > 6, "{crashes} crashes");
}

/// Later batches say that the torn one is long flushed: only what recovery wrote down tells it from rot, or from a record.
#[test]
fn a_record_that_was_cut_stays_cut() {
    let mut cut = 0;
    for seed in seeds(120) {
        println!("CAIRN_TEST_SEED={seed}");
        let (disk, engine) = before_compaction(seed);
        disk.crash_after(seed % 8);
        let torn = put(
            &engine,
            &unit(1),
            key(20, 0),
            payload(&unit(1), key(20, 0), 0, LEN),
        );
        drop(engine);
        disk.reboot();
        let engine = Engine::open(disk.device()).unwrap();
        let there = is_there(&engine, 20);
        assert!(there || torn.is_err());
        cut += usize::from(!engine.shared.index().cuts.is_empty());
        for round in 0..4 {
            put_one(&engine, 30 + round);
        }
        disk.crash_after(0);
        drop(engine);
        disk.reboot_with(Unflushed::Lost);
        for _ in 0..2 {
            let engine = Engine::open(disk.device()).unwrap();
            assert_eq!(is_there(&engine, 20), there);
            assert_eq!(engine.status().corrupt_shards, 0);
            assert!((30..34).chain(0..9).all(|blob| is_there(&engine, blob)));
        }
    }
    assert!(
        cut > 0 || std::env::var("CAIRN_TEST_SEED").is_ok(),
        "nothing was torn"
    );
}

/// A crash may leave the header of a new extent without a record in it. Found here.
#[test]
fn an_extent_with_nothing_in_it_is_free_again_after_a_crash() {
    let disk = SimulatedDisk::new(2 << 20, 1);
    format_simulated(&disk, 32 * 1024);
    let (layout, identity) = {
        let engine = Engine::open(disk.device()).unwrap();
        (engine.shared.layout, engine.shared.identity)
    };
    for extent in 3..9 {
        let header = ExtentHeader {
            owner: Some(unit(1).unit),
            extent,
            generation: 1000 + u64::from(extent),
            sequence: 1000 + u64::from(extent),
        };
        for copy in [0, layout.data_end()] {
            disk.overwrite(
                layout.extent_offset(extent) + u64::from(copy),
                &header.encode(&identity),
            );
        }
    }
    let engine = Engine::open(disk.device()).unwrap();
    put_one(&engine, 1);
    eventually("the extents are free", || {
        let index = engine.shared.index();
        let owned = index
            .extents
            .iter()
            .filter(|e| matches!(e.used, ExtentUse::Owned(_)));
        owned.count() == 1
    });
}

#[test]
fn no_write_touches_a_live_record_whatever_was_torn_before() {
    for seed in seeds(6) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 20, 32 * 1024);
        for round in 0..12 {
            let after = house.rng.random_range(0..80);
            let (unflushed, again) = (WAYS[round % 4], None);
            house.apply(&Operation::Cut(Cut {
                after,
                unflushed,
                again,
            }));
            let _ = (0..60).any(|_| !house.step());
            // The house watches every write, and compares.
            house.recover();
        }
    }
}

#[test]
fn a_copy_of_what_was_deleted_or_put_again_meanwhile_is_dead() {
    let entry = |extent, offset| index::Entry {
        place: crate::format::record::RecordPlace {
            extent,
            generation: 5,
            offset,
        },
        payload_at: 324,
        len: 10,
        digests: 6,
    };
    for deleted in [true, false] {
        let mut index = Index::default();
        for _ in 0..2 {
            index
                .extents
                .push(index::Extent::new(ExtentUse::Owned(unit(1).unit), 5, 4096));
        }
        let (from, copy, newer) = (entry(0, 4096), entry(1, 4096), entry(1, 8192));
        index.insert(unit(1).unit, key(1, 0), from, 9, 1);
        // While the copy is on its way.
        match deleted {
            true => index.remove(unit(1).unit, key(1, 0)),
            false => index.insert(unit(1).unit, key(1, 0), newer, 10, 1),
        }
        index.relocate(unit(1).unit, key(1, 0), from.place, copy, 9);
        let expected = (!deleted).then_some(newer);
        assert_eq!(index.find(unit(1).unit, key(1, 0)), expected);
        assert_eq!(index.extents[0].live, 0);
        assert_eq!(index.extents[1].live, u64::from(!deleted));
        assert_eq!(
            index.extents[1].dead_blobs,
            [1],
            "the copy keeps its tombstone needed"
        );
    }
}

#[test]
fn a_crash_in_the_middle_of_compaction_loses_and_revives_nothing() {
    let mut points = 0;
    for unflushed in WAYS {
        for at in 0.. {
            let (disk, engine) = before_compaction(at);
            disk.crash_after(at);
            let deleted = delete(&engine, &unit(1), &[0, 1]);
            eventually("compaction is done or crashed", || {
                disk.is_crashed() || engine.metrics().extents_freed > 0
            });
            let crashed = disk.is_crashed();
            drop(engine);
            disk.reboot_with(unflushed);
            let mut gone = deleted.is_ok();
            for _ in 0..2 {
                let engine = Engine::open(disk.device()).unwrap();
                assert!((2..9).all(|blob| is_there(&engine, blob)), "{unflushed:?} {at}");
                let there = [0, 1].map(|blob| is_there(&engine, blob));
                // Both tombstones are in one block, which is written or not.
                assert!(!gone || there == [false, false], "{unflushed:?} {at}: {there:?}");
                gone = there == [false, false];
                drop(engine);
                disk.reboot();
            }
            points += 1;
            if !crashed {
                break;
            }
        }
    }
    assert!(points > 40, "{points} crash points");
}

/// A crash in the middle of a move leaves both its extents in use. Found by `long`.
#[test]
fn a_full_disk_deletes_after_crashes_in_the_middle_of_compaction() {
    for seed in seeds(40) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 14 + seed % 11, 64 * 1024);
        let (volume, len) = (1, 8000);
        for round in 0..30 {
            let after = house.rng.random_range(0..70);
            house.apply(&Operation::Cut(Cut {
                after,
                unflushed: WAYS[round % 4],
                again: None,
            }));
            let _ = house.apply(&Operation::Fill { volume, len }) && (0..50).any(|_| !house.step());
            // The house takes no refusal from a delete.
            house.recover();
        }
    }
}

/// Wherever it landed, it hurts what it overwrote, and nobody gets it instead of something else.
#[test]
fn a_misdirected_write_is_never_served() {
    let mut unharmed = 0;
    for seed in seeds(40) {
        println!("CAIRN_TEST_SEED={seed}");
        let (disk, engine) = before_compaction(seed);
        // Opens an extent, so that the next write is of a record.
        put_one(&engine, 20);
        disk.arm(Fault::MisdirectedWrite);
        put_one(&engine, 21);
        assert_eq!(disk.armed(), 0);
        let look = |engine: &Engine, blob| match get(engine, &unit(1), key(blob, 0)) {
            Ok(blocks) if verifies(&unit(1), key(blob, 0), &blocks) => {
                assert_eq!(blocks.payload, payload(&unit(1), key(blob, 0), 0, LEN));
                true
            }
            // A gateway sees a block that does not match its CRC.
            Ok(_) | Err(NodeError::Corrupt { .. } | NodeError::NotFound) => false,
            Err(error) => panic!("blob {blob}: {error}"),
        };
        let right = (0..9).filter(|blob| look(&engine, *blob)).count();
        assert!(!look(&engine, 21));
        assert!(
            right >= 7,
            "one write of {LEN} bytes touches two shards at most: {right} of 9"
        );
        unharmed += usize::from(right == 9);
        drop(engine);
        if let Ok(engine) = Engine::open(disk.device()) {
            let then = (0..9).filter(|blob| look(&engine, *blob)).count();
            assert!(then == right && !look(&engine, 21), "{then} of {right}");
        }
    }
    assert!(unharmed < 40, "none hit anything");
}

/// The same key, length and place, one use of the extent later: only the generation tells that it is old.
#[test]
fn what_a_lost_write_leaves_of_an_earlier_use_is_never_served() {
    let disk = SimulatedDisk::new(2 << 20, 1);
    format_simulated(&disk, 32 * 1024);
    let device = Tampered::over(&disk, |_, _| Ok(()));
    let engine = Engine::open(device.clone()).unwrap();
    let to = unit(1);
    let write = |version| {
        put(&engine, &to, key(1, 0), payload(&to, key(1, 0), version, 20_000)).unwrap();
        offset_of(&engine, to.unit, key(1, 0)).0
    };
    let drop_all = || {
        block_on(engine.drop_unit(&to, DEADLINE)).unwrap();
        eventually("its extent is free", || {
            let index = engine.shared.index();
            index.extents.iter().all(|e| {
                !matches!(e.used, ExtentUse::Owned(unit) if unit == to.unit) && e.used != ExtentUse::Draining
            })
        });
    };
    let (mut places, mut version) = (HashSet::new(), 0);
    // A dropped unit takes the key again.
    while places.insert(write(version)) {
        drop_all();
        version += 1;
        assert!(version < 60, "no extent was used twice");
    }
    drop_all();
    device.loses.store(true, Ordering::Relaxed);
    assert!(
        places.contains(&write(version + 1)),
        "a place that was used before"
    );
    for _ in 0..2 {
        let read = get(&engine, &to, key(1, 0));
        assert!(matches!(read, Err(NodeError::Corrupt { .. })));
    }
    drop(engine);
    let engine = Engine::open(disk.device()).unwrap();
    assert_eq!(get(&engine, &to, key(1, 0)), Err(NodeError::NotFound));
}

/// Every read of a recovery, of a pass of verifying and of compaction in turn returns zeros, once.
#[test]
fn a_read_of_zeros_costs_nothing() {
    let (disk, engine) = before_compaction(1);
    drop(engine);
    let zero_at = Arc::new(AtomicU64::new(u64::MAX));
    let reads = Arc::new(AtomicU64::new(0));
    let device = {
        let (zero_at, reads) = (zero_at.clone(), reads.clone());
        Tampered::over(&disk, move |_, buf| {
            if reads.fetch_add(1, Ordering::Relaxed) == zero_at.load(Ordering::Relaxed) {
                buf.fill(0);
            }
            Ok(())
        })
    };
    for nth in 0.. {
        reads.store(0, Ordering::Relaxed);
        zero_at.store(nth, Ordering::Relaxed);
        let engine = Engine::open(device.clone()).unwrap();
        let recovery = reads.load(Ordering::Relaxed);
        assert_eq!(
            (engine.status().shards, engine.status().corrupt_shards),
            (9, 0),
            "read {nth}"
        );
        assert_eq!(engine.verify_once().findings, 0, "read {nth}");
        let all = reads.load(Ordering::Relaxed);
        zero_at.store(u64::MAX, Ordering::Relaxed);
        assert!((0..9).all(|blob| is_there(&engine, blob)), "read {nth}");
        drop(engine);
        if nth > all {
            assert!(all > recovery && recovery > 20, "{recovery} reads of {all}");
            break;
        }
    }
    // A caller gets an error or blocks that do not verify, and the next time what it wants.
    let engine = Engine::open(device).unwrap();
    zero_at.store(reads.load(Ordering::Relaxed), Ordering::Relaxed);
    match get(&engine, &unit(1), key(3, 0)) {
        Ok(blocks) => assert!(!verifies(&unit(1), key(3, 0), &blocks) || is_there(&engine, 3)),
        Err(error) => assert!(matches!(error, NodeError::Corrupt { .. }), "{error}"),
    }
    assert!(is_there(&engine, 3));
}

/// Verifying keeps nothing of what it read before, nor does the engine.
#[test]
fn each_pass_reads_every_live_byte_from_the_device() {
    let (disk, engine) = before_compaction(1);
    drop(engine);
    let read: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
    let device = {
        let read = read.clone();
        Tampered::over(&disk, move |offset, buf| {
            let blocks = (offset..offset + buf.len() as u64).step_by(BLOCK);
            read.lock().unwrap().extend(blocks);
            Ok(())
        })
    };
    let engine = Engine::open(device).unwrap();
    for _ in 0..3 {
        read.lock().unwrap().clear();
        assert_eq!(engine.verify_once().findings, 0);
        for blob in 0..9 {
            let (start, entry) = offset_of(&engine, unit(1).unit, key(blob, 0));
            let blocks = (crate::device::align_down(start)..start + entry.footprint()).step_by(BLOCK);
            let read = read.lock().unwrap();
            assert!(
                blocks.into_iter().all(|block| read.contains(&block)),
                "blob {blob}"
            );
        }
    }
}

/// Disks are opened past the page cache; where the filesystem cannot, operators can see it.
#[test]
fn a_disk_behind_the_page_cache_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    crate::device::create_file(&path, 1 << 20).unwrap();
    let direct = crate::device::DiskFile::open(&path).unwrap().is_direct();
    for backend in [crate::device::Backend::Auto, crate::device::Backend::Pread] {
        let shown = crate::device::open_file(&path, backend)
            .unwrap()
            .info()
            .backend
            .clone();
        assert_eq!(shown.contains("page cache"), !direct, "{shown}");
    }
}

/// Nobody can keep what the device threw away; but what was flushed before and after is there, and nothing is wrong.
#[test]
fn a_flush_that_lied_costs_what_it_covered_and_no_more() {
    for seed in seeds(20) {
        println!("CAIRN_TEST_SEED={seed}");
        let unflushed = WAYS[seed as usize % 3];
        let (disk, engine) = before_compaction(seed);
        disk.arm(Fault::LyingFlush);
        put_one(&engine, 20);
        assert_eq!(disk.armed(), 0);
        disk.crash_after(0);
        drop(engine);
        disk.reboot_with(unflushed);
        let engine = Engine::open(disk.device()).unwrap();
        assert!((0..9).all(|blob| is_there(&engine, blob)), "{unflushed:?}");
        let there = is_there(&engine, 20);
        assert!(unflushed != Unflushed::Kept || there);
        put_one(&engine, 21);
        drop(engine);
        let engine = Engine::open(disk.device()).unwrap();
        assert!((0..9).chain([21]).all(|blob| is_there(&engine, blob)));
        assert_eq!(is_there(&engine, 20), there);
    }
}

/// Others in its extent keep a dead record on the disk: for so long its tombstone stays, through all that empties extents
/// of tombstones.
#[test]
fn a_tombstone_stays_while_a_record_it_kills_is_on_the_disk() {
    let disk = SimulatedDisk::new(2 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let mut engine = Engine::open(disk.device()).unwrap();
    let (to, other) = (unit(1), unit(2));
    for blob in [1, 2] {
        put(&engine, &to, key(blob, 0), payload(&to, key(blob, 0), 0, 10_000)).unwrap();
    }
    delete(&engine, &to, &[1]).unwrap();
    let place = engine.shared.index().tombstones[&(to.unit, 1)].place;
    let mut moved = false;
    for round in 0..400 {
        let blob = 1_000 + round;
        put(
            &engine,
            &other,
            key(blob, 0),
            payload(&other, key(blob, 0), 0, 4_000),
        )
        .unwrap();
        delete(&engine, &other, &[blob]).unwrap();
        let mark = engine.shared.index().tombstones[&(to.unit, 1)].clone();
        assert!(mark.is_needed(), "round {round}");
        moved |= mark.place != place;
        if round % 50 == 49 {
            drop(engine);
            engine = Engine::open(disk.device()).unwrap();
            assert_eq!(get(&engine, &to, key(1, 0)), Err(NodeError::NotFound));
            assert!(get(&engine, &to, key(2, 0)).is_ok());
        }
    }
    // Beside writers it rests; now nobody writes.
    let until = Instant::now() + Duration::from_secs(20);
    while !moved && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
        let mark = engine.shared.index().tombstones[&(to.unit, 1)].clone();
        assert!(mark.is_needed(), "at rest");
        moved = mark.place != place;
    }
    assert!(moved, "compaction came by");
    drop(engine);
    engine = Engine::open(disk.device()).unwrap();
    assert_eq!(get(&engine, &to, key(1, 0)), Err(NodeError::NotFound));
    assert!(get(&engine, &to, key(2, 0)).is_ok());
}

/// More readers and writers than a sick disk takes, on the only thread there is: another disk's calls end before theirs.
#[test]
fn a_disk_that_hangs_stalls_no_other() {
    let ((sick, stuck), (_disk, well)) = (before_compaction(1), before_compaction(2));
    let to = unit(1);
    for _ in 0..READS_MAX + 20 {
        sick.arm(Fault::Hang);
    }
    let shard = |blob| sealed(&to, key(blob, 0), payload(&to, key(blob, 0), 0, LEN));
    let others = async {
        let reads =
            (0..READS_MAX as u64 + 9).map(|n| stuck.get(&to, key(n % 9, 0), BlockRange::ALL, DEADLINE));
        let writes = (20..25).map(|blob| stuck.put(&to, shard(blob), DEADLINE));
        futures::join!(
            futures::future::join_all(writes),
            futures::future::join_all(reads)
        )
    };
    let served = async {
        for blob in 20..40 {
            well.put(&to, shard(blob), DEADLINE).await.unwrap();
            let blocks = well
                .get(&to, key(blob, 0), BlockRange::ALL, DEADLINE)
                .await
                .unwrap();
            assert!(verifies(&to, key(blob, 0), &blocks));
        }
        assert_eq!(stuck.status().state, DiskState::Online);
    };
    let first = futures::future::select(Box::pin(others), Box::pin(served));
    assert!(matches!(block_on(first), futures::future::Either::Right(_)));
    // Lets go of what hangs.
    sick.reboot();
}
