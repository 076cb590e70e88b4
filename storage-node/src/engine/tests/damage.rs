//! Damage to what was acknowledged: found, confined to what it touches, never passed on as right bytes.

use super::house::House;
use super::*;
use crate::device::simulated::Fault;
use rand::Rng;

fn filled() -> (SimulatedDisk, Vec<ShardKey>) {
    let disk = SimulatedDisk::new(16 << 20, 1);
    format_simulated(&disk, 1 << 20);
    let engine = Engine::open(disk.device()).unwrap();
    let keys: Vec<ShardKey> = (0..40).map(|blob| key(blob, 0)).collect();
    for &key in &keys {
        put(
            &engine,
            &unit(1),
            key,
            payload(&unit(1), key, 0, 1000 + 997 * key.blob as usize),
        )
        .unwrap();
    }
    (disk, keys)
}

/// The shards that are not served rightly; wrong bytes that verify are a failure.
fn damaged(engine: &Engine, keys: &[ShardKey]) -> Vec<u64> {
    let to = unit(1);
    let is_right = |key: &ShardKey| match get(engine, &to, *key) {
        Ok(blocks) if verifies(&to, *key, &blocks) => {
            assert_eq!(
                blocks.payload,
                payload(&to, *key, 0, 1000 + 997 * key.blob as usize)
            );
            true
        }
        _ => false,
    };
    keys.iter()
        .filter(|key| !is_right(key))
        .map(|key| key.blob)
        .collect()
}

#[test]
fn one_flipped_bit_costs_at_most_one_shard() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    let places: Vec<_> = {
        let index = engine.shared.index();
        keys.iter()
            .map(|key| index.find(unit(1).unit, *key).unwrap())
            .collect()
    };
    let start = |entry: &super::index::Entry| {
        engine.shared.layout.extent_offset(entry.place.extent) + u64::from(entry.place.offset)
    };
    for (number, entry) in places.iter().enumerate() {
        for at in [
            start(entry) + 9,
            start(entry) + 130,
            start(entry) + u64::from(entry.payload_at),
        ] {
            disk.flip_bit(at, number as u8);
            assert_eq!(damaged(&engine, &keys), [number as u64]);
            let reopened = Engine::open(disk.device()).unwrap();
            assert_eq!(damaged(&reopened, &keys), [number as u64], "after reopening");
            drop(reopened);
            disk.flip_bit(at, number as u8);
        }
    }
    assert!(engine.status().corrupt_shards > 0);
}

#[test]
fn rot_in_a_head_is_counted_by_recovery() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    let entry = engine.shared.index().find(unit(1).unit, key(7, 0)).unwrap();
    let at = engine.shared.layout.extent_offset(entry.place.extent) + u64::from(entry.place.offset);
    drop(engine);
    disk.flip_bit(at + 20, 3);
    for _ in 0..2 {
        let engine = Engine::open(disk.device()).unwrap();
        assert_eq!(engine.status().corrupt_shards, 1);
        assert_eq!(damaged(&engine, &keys), [7]);
    }
    // Repair puts it again.
    let engine = Engine::open(disk.device()).unwrap();
    put(
        &engine,
        &unit(1),
        key(7, 0),
        payload(&unit(1), key(7, 0), 0, 1000 + 997 * 7),
    )
    .unwrap();
    assert!(damaged(&engine, &keys).is_empty());
}

#[test]
fn an_extent_header_copy_or_superblock_copy_may_rot() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    let layout = engine.shared.layout;
    drop(engine);
    for extent in 0..layout.extents() {
        let end = if extent % 2 == 0 {
            0
        } else {
            u64::from(layout.data_end())
        };
        disk.flip_bit(layout.extent_offset(extent) + end + 17, 2);
    }
    for copy in [0, 1, 3] {
        disk.flip_bit(crate::format::layout::superblock_offset(16 << 20, copy) + 40, 1);
    }
    for _ in 0..2 {
        assert!(damaged(&Engine::open(disk.device()).unwrap(), &keys).is_empty());
    }
}

#[test]
fn an_unreadable_block_during_recovery_hides_only_itself() {
    let (disk, keys) = filled();
    // The scan of the first extent: its big read and one of its blocks fail.
    let before = disk.operations();
    drop(Engine::open(disk.device()).unwrap());
    assert!(disk.operations() > before);
    for _ in 0..3 {
        disk.arm(Fault::ReadError);
    }
    let Ok(engine) = Engine::open(disk.device()) else {
        return;
    };
    let first = damaged(&engine, &keys);
    drop(engine);
    let engine = Engine::open(disk.device()).unwrap();
    assert!(damaged(&engine, &keys).is_empty(), "hidden for good: {first:?}");
}

#[test]
fn lying_disks_never_make_wrong_bytes_right() {
    let faults = [
        Fault::LostWrite,
        Fault::MisdirectedWrite,
        Fault::LyingFlush,
        Fault::MisdirectedRead,
        Fault::StaleRead,
        Fault::ReadError,
    ];
    for seed in seeds(60) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 24, 32 * 1024);
        house.lossy = true;
        for _ in 0..200 {
            if house.rng.random_ratio(1, 10) {
                let fault = faults[house.rng.random_range(0..faults.len())];
                house.disk.arm(fault);
            }
            if !house.step() {
                break;
            }
        }
        if house.engine.is_some() {
            house.check();
        }
        house.engine = None;
        house.disk.reboot();
        if let Ok(engine) = Engine::open(house.disk.device()) {
            house.engine = Some(engine);
            house.check();
        }
    }
}

/// Rot in the last batch of an idle disk is not a torn write: the record was acknowledged, and must not be cut.
#[test]
fn rot_in_the_last_batch_of_a_stopped_or_idle_disk_is_not_cut() {
    for clean in [true, false] {
        let disk = SimulatedDisk::new(16 << 20, 1);
        format_simulated(&disk, 1 << 20);
        let engine = Engine::open(disk.device()).unwrap();
        let (to, key) = (unit(1), key(1, 0));
        put(&engine, &to, key, payload(&to, key, 0, 5000)).unwrap();
        let (at, entry) = offset_of(&engine, to.unit, key);
        if !clean {
            let idle = disk.operations();
            eventually("marked as flushed", || disk.operations() > idle + 4);
            std::thread::sleep(Duration::from_millis(50));
            disk.crash_after(0);
        }
        drop(engine);
        disk.reboot();
        disk.flip_bit(at + u64::from(entry.payload_at) + 77, 3);
        for _ in 0..2 {
            let engine = Engine::open(disk.device()).unwrap();
            let read = get(&engine, &to, key).map(|blocks| verifies(&to, key, &blocks));
            assert_eq!(read, Ok(false), "clean: {clean}");
        }
    }
}

#[test]
fn rot_of_one_head_in_the_last_batch_is_counted_as_rot() {
    let disk = SimulatedDisk::new(16 << 20, 1);
    format_simulated(&disk, 1 << 20);
    let engine = Engine::open(disk.device()).unwrap();
    delete(&engine, &unit(1), &[1, 2, 3]).unwrap();
    let place = engine.shared.index().tombstones[&(unit(1).unit, 2)].place;
    let at = engine.shared.layout.extent_offset(place.extent) + u64::from(place.offset);
    drop(engine);
    disk.flip_bit(at + 30, 3);
    for _ in 0..2 {
        let engine = Engine::open(disk.device()).unwrap();
        assert_eq!(engine.status().corrupt_shards, 1);
        assert_eq!(engine.shared.index().tombstones.len(), 2);
        assert!(engine.shared.index().cuts.is_empty());
    }
}

/// A direct read that returns wrong bytes once (ceph #23273) must not become the only copy.
#[test]
fn compaction_does_not_trust_one_bad_read() {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let fires = armed.clone();
    let device = Tampered::over(&disk, move |_, buf| {
        // Superblock copies are one block; records here are larger.
        if buf.len() > BLOCK && fires.swap(false, Ordering::Relaxed) {
            let middle = buf.len() / 2;
            buf[middle] ^= 4;
        }
        Ok(())
    });
    let engine = Engine::open(device).unwrap();
    let to = unit(1);
    for blob in 0..9 {
        put(&engine, &to, key(blob, 0), payload(&to, key(blob, 0), 0, 12_000)).unwrap();
    }
    armed.store(true, Ordering::Relaxed);
    delete(&engine, &to, &[0, 1]).unwrap();
    eventually("compaction moved it", || engine.metrics().extents_freed > 0);
    assert!(!armed.load(Ordering::Relaxed));
    for blob in 2..9 {
        let blocks = get(&engine, &to, key(blob, 0)).unwrap();
        assert!(verifies(&to, key(blob, 0), &blocks), "blob {blob}");
    }
}

#[test]
fn recovery_does_not_trust_one_bad_read() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    let (at, _) = offset_of(&engine, unit(1).unit, key(7, 0));
    drop(engine);
    let armed = std::sync::atomic::AtomicBool::new(true);
    let device = Tampered::over(&disk, move |offset, buf| {
        if (offset..offset + buf.len() as u64).contains(&at) && armed.swap(false, Ordering::Relaxed) {
            buf[(at - offset) as usize + 20] ^= 1;
        }
        Ok(())
    });
    let engine = Engine::open(device).unwrap();
    assert_eq!(engine.status().corrupt_shards, 0);
    assert!(damaged(&engine, &keys).is_empty());
}

/// What a disk cannot read today it may read tomorrow: the tombstones of what is there are kept.
#[test]
fn tombstones_outlive_an_extent_whose_headers_cannot_be_read() {
    let disk = SimulatedDisk::new(16 << 20, 1);
    format_simulated(&disk, 1 << 20);
    let engine = Engine::open(disk.device()).unwrap();
    let (to, one, two) = (unit(1), key(1, 0), key(2, 0));
    for key in [one, two] {
        put(&engine, &to, key, payload(&to, key, 0, 5000)).unwrap();
    }
    delete(&engine, &to, &[1]).unwrap();
    let extent = offset_of(&engine, to.unit, two).1.place.extent;
    let (start, end) = (
        engine.shared.layout.extent_offset(extent),
        engine.shared.layout.data_end(),
    );
    drop(engine);
    let device = Tampered::over(&disk, move |offset, buf| {
        let has = |at: u64| (offset..offset + buf.len() as u64).contains(&at);
        if has(start) || has(start + u64::from(end)) {
            return Err(DeviceError::new(DeviceErrorKind::Read, "a bad sector"));
        }
        Ok(())
    });
    let engine = Engine::open(device).unwrap();
    assert_eq!(get(&engine, &to, two), Err(NodeError::NotFound));
    assert!(engine.shared.index().tombstones[&(to.unit, 1)].is_needed());
}

/// Recovery reads a record again to tell which of two is newer. When it cannot, it serves neither: an old version is
/// wrong, a missing one is repaired.
#[test]
fn a_version_that_may_be_the_older_one_is_not_served() {
    for failures in [1, 100] {
        let disk = SimulatedDisk::new(64 << 20, 1);
        format_simulated(&disk, 4 << 20);
        let to = unit(1);
        let start = {
            let engine = Engine::open(disk.device()).unwrap();
            for blob in 0..8 {
                put(&engine, &to, key(blob, 0), payload(&to, key(blob, 0), 0, 20_000)).unwrap();
            }
            let (old, _) = offset_of(&engine, to.unit, key(5, 0));
            put(&engine, &to, key(5, 0), payload(&to, key(5, 0), 1, 20_000)).unwrap();
            crate::device::align_down(old)
        };
        let left = std::sync::atomic::AtomicU32::new(failures);
        let device = Tampered::over(&disk, move |offset, buf| {
            // The scan reads more at a time.
            let again = offset == start && buf.len() <= 3 * BLOCK;
            let fail = again && left.load(Ordering::Relaxed) > 0;
            if fail {
                left.fetch_sub(1, Ordering::Relaxed);
                return Err(DeviceError::new(DeviceErrorKind::Read, "a bad sector"));
            }
            Ok(())
        });
        let engine = Engine::open(device).unwrap();
        let found = get(&engine, &to, key(5, 0)).map(|blocks| blocks.payload);
        match failures {
            1 => assert_eq!(found, Ok(payload(&to, key(5, 0), 1, 20_000))),
            _ => assert_eq!(found, Err(NodeError::NotFound)),
        }
        assert_eq!(engine.status().corrupt_shards, u64::from(failures > 1));
        assert_eq!(engine.status().shards, if failures > 1 { 7 } else { 8 });
        assert!(get(&engine, &to, key(4, 0)).is_ok());
        drop(engine);
        let engine = Engine::open(disk.device()).unwrap();
        let found = get(&engine, &to, key(5, 0)).map(|blocks| blocks.payload);
        assert_eq!(
            found,
            Ok(payload(&to, key(5, 0), 1, 20_000)),
            "it can be read again"
        );
    }
}

/// The superblocks are there, and nothing else: it is not a disk with no room, but one that is gone.
#[test]
fn a_disk_of_superblocks_alone_is_refused() {
    let disk = SimulatedDisk::new(2 << 20, 1);
    format_simulated(&disk, 32 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    put(&engine, &unit(1), key(1, 0), Bytes::from_static(b"x")).unwrap();
    let layout = engine.shared.layout;
    drop(engine);
    let overwrite = |number| {
        disk.overwrite(
            layout.extent_offset(number),
            &vec![0xa5; layout.extent_size() as usize],
        )
    };
    (1..layout.extents()).for_each(overwrite);
    assert!(Engine::open(disk.device()).is_ok(), "one extent is left");
    overwrite(0);
    let refused = Engine::open(disk.device()).err().unwrap();
    assert!(refused.contains("none of its"), "{refused}");
}
