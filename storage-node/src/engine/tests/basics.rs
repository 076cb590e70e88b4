//! What each call does, one at a time.

use super::*;
use crate::device::simulated::Fault;

const MIB: usize = 1 << 20;

fn disk() -> (SimulatedDisk, Engine) {
    let disk = SimulatedDisk::new(64 << 20, 1);
    format_simulated(&disk, 4 << 20);
    let engine = Engine::open(disk.device()).unwrap();
    (disk, engine)
}

#[test]
fn shards_of_every_size_come_back_also_after_reopening() {
    let (disk, engine) = disk();
    let to = unit(1);
    let sizes = [
        1,
        511,
        4096,
        32767,
        32768,
        65535,
        65536,
        65537,
        131072,
        MIB - 1,
        MIB,
    ];
    for (blob, &len) in sizes.iter().enumerate() {
        let key = key(blob as u64, 0);
        put(&engine, &to, key, payload(&to, key, 0, len)).unwrap();
    }
    let check = |engine: &Engine| {
        for (blob, &len) in sizes.iter().enumerate() {
            let key = key(blob as u64, 0);
            let blocks = get(engine, &to, key).unwrap();
            assert!(verifies(&to, key, &blocks));
            assert_eq!(blocks.payload, payload(&to, key, 0, len));
            assert_eq!(blocks.shard_len as usize, len);
        }
        assert_eq!(engine.inventory(&to, None, 100).unwrap().len(), sizes.len());
        assert_eq!(
            engine.inventory(&to, Some(key(2, 0)), 3).unwrap()[0].key,
            key(3, 0)
        );
    };
    check(&engine);
    drop(engine);
    check(&Engine::open(disk.device()).unwrap());
}

#[test]
fn a_range_of_blocks_is_read_alone() {
    let (_disk, engine) = disk();
    let (to, key) = (unit(1), key(1, 0));
    let whole = payload(&to, key, 0, MIB - 100);
    put(&engine, &to, key, whole.clone()).unwrap();
    for (first, count) in [
        (0, 1),
        (1, 1),
        (3, 5),
        (15, 1),
        (15, 9),
        (16, 1),
        (40, 2),
        (0, 0),
        (2, u32::MAX),
    ] {
        let blocks = block_on(engine.get(&to, key, BlockRange { first, count }, DEADLINE)).unwrap();
        assert!(verifies(&to, key, &blocks));
        let start = (first as usize * 65536).min(whole.len());
        let end = start
            .saturating_add((count as usize).saturating_mul(65536))
            .min(whole.len());
        assert_eq!(blocks.payload, whole.slice(start..end), "{first} {count}");
    }
}

#[test]
fn a_deleted_blob_stays_deleted_and_late_puts_are_refused() {
    let (disk, engine) = disk();
    let to = unit(1);
    for stripe in 0..3 {
        put(&engine, &to, key(5, stripe), payload(&to, key(5, stripe), 0, 100)).unwrap();
    }
    put(&engine, &to, key(6, 0), payload(&to, key(6, 0), 0, 100)).unwrap();
    delete(&engine, &to, &[5, 77]).unwrap();
    delete(&engine, &to, &[5]).unwrap();
    let check = |engine: &Engine| {
        assert_eq!(get(engine, &to, key(5, 1)), Err(NodeError::NotFound));
        assert_eq!(engine.inventory(&to, None, 10).unwrap().len(), 1);
        for blob in [5, 77] {
            let late = put(engine, &to, key(blob, 9), payload(&to, key(blob, 9), 0, 10));
            assert_eq!(late, Err(NodeError::Deleted));
        }
    };
    check(&engine);
    drop(engine);
    check(&Engine::open(disk.device()).unwrap());
}

#[test]
fn a_second_put_supersedes_the_first() {
    let (disk, engine) = disk();
    let (to, key) = (unit(1), key(1, 0));
    for version in 0..3 {
        put(&engine, &to, key, payload(&to, key, version, 5000)).unwrap();
    }
    assert_eq!(
        get(&engine, &to, key).unwrap().payload,
        payload(&to, key, 2, 5000)
    );
    drop(engine);
    let engine = Engine::open(disk.device()).unwrap();
    assert_eq!(
        get(&engine, &to, key).unwrap().payload,
        payload(&to, key, 2, 5000)
    );
    assert_eq!(engine.units().unwrap()[0].live_bytes, 5000);
}

#[test]
fn wrong_seals_disks_and_epochs_are_refused() {
    let (disk, engine) = disk();
    let (to, key) = (unit(1), key(1, 0));
    let mut bad = sealed(&to, key, payload(&to, key, 0, 70000));
    bad.seal.block_crcs[1] ^= 1;
    assert!(matches!(
        block_on(engine.put(&to, bad, DEADLINE)),
        Err(NodeError::SealMismatch { .. })
    ));
    let mut bad = sealed(&to, key, payload(&to, key, 0, 70000));
    bad.seal.block_crcs.pop();
    assert!(matches!(
        block_on(engine.put(&to, bad, DEADLINE)),
        Err(NodeError::BadRequest { .. })
    ));
    let other = UnitAddress { incarnation: 2, ..to };
    assert_eq!(get(&engine, &other, key), Err(NodeError::WrongDisk));
    let newer = UnitAddress { epoch: 5, ..to };
    put(&engine, &newer, key, payload(&to, key, 0, 10)).unwrap();
    assert_eq!(get(&engine, &to, key), Err(NodeError::StaleEpoch { current: 5 }));
    drop(engine);
    let engine = Engine::open(disk.device()).unwrap();
    assert_eq!(get(&engine, &to, key), Err(NodeError::StaleEpoch { current: 5 }));
}

#[test]
fn a_dropped_unit_is_gone_and_gives_its_space_back() {
    let (disk, engine) = disk();
    let to = unit(1);
    let free = engine.status().free_extents;
    for blob in 0..20 {
        put(&engine, &to, key(blob, 0), payload(&to, key(blob, 0), 0, MIB)).unwrap();
    }
    put(&engine, &unit(2), key(1, 0), payload(&unit(2), key(1, 0), 0, 10)).unwrap();
    block_on(engine.drop_unit(&to, DEADLINE)).unwrap();
    assert_eq!(get(&engine, &to, key(3, 0)), Err(NodeError::NotFound));
    assert_eq!(engine.units().unwrap().len(), 1);
    engine.shutdown();
    let engine = Engine::open(disk.device()).unwrap();
    assert_eq!(engine.units().unwrap().len(), 1);
    // One extent for unit 2, one for the drop.
    assert!(
        engine.status().free_extents >= free - 2,
        "{} of {free}",
        engine.status().free_extents
    );
    put(&engine, &to, key(3, 0), payload(&to, key(3, 0), 1, 10)).unwrap();
    assert_eq!(
        get(&engine, &to, key(3, 0)).unwrap().payload,
        payload(&to, key(3, 0), 1, 10)
    );
}

#[test]
fn a_write_or_flush_error_fences_for_good_and_a_read_error_does_not() {
    for fault in [Fault::WriteError, Fault::FlushError] {
        let (disk, engine) = disk();
        let to = unit(1);
        put(&engine, &to, key(1, 0), payload(&to, key(1, 0), 0, 10)).unwrap();
        disk.arm(fault);
        let failed = put(&engine, &to, key(2, 0), payload(&to, key(2, 0), 0, 10));
        assert!(
            matches!(&failed, Err(NodeError::Fenced { reason }) if reason.contains("injected")),
            "{failed:?}"
        );
        assert!(matches!(
            get(&engine, &to, key(1, 0)),
            Err(NodeError::Fenced { .. })
        ));
        assert!(matches!(
            delete(&engine, &to, &[1]),
            Err(NodeError::Fenced { .. })
        ));
        assert!(matches!(engine.status().state, DiskState::Fenced { .. }));
    }
    let (disk, engine) = disk();
    let to = unit(1);
    put(&engine, &to, key(1, 0), payload(&to, key(1, 0), 0, 10)).unwrap();
    disk.arm(Fault::ReadError);
    assert!(matches!(get(&engine, &to, key(1, 0)), Err(NodeError::Io { .. })));
    assert!(get(&engine, &to, key(1, 0)).is_ok());
}

#[test]
fn no_space_under_the_disk_is_an_answer_and_wedges_nothing() {
    let (disk, engine) = disk();
    let to = unit(1);
    disk.arm(Fault::NoSpace);
    disk.arm(Fault::NoSpace);
    assert_eq!(
        put(&engine, &to, key(1, 0), payload(&to, key(1, 0), 0, 10)),
        Err(NodeError::NoSpace)
    );
    put(&engine, &to, key(1, 0), payload(&to, key(1, 0), 0, 10)).unwrap();
}

#[test]
fn a_hanging_disk_times_out() {
    let (disk, engine) = disk();
    let (to, key) = (unit(1), key(1, 0));
    put(&engine, &to, key, payload(&to, key, 0, 10)).unwrap();
    disk.arm(Fault::Hang);
    let read = block_on(engine.get(&to, key, BlockRange::ALL, Duration::from_millis(20)));
    assert_eq!(read, Err(NodeError::Timeout));
    disk.arm(Fault::Slow(Duration::from_millis(100)));
    let shard = sealed(&to, key, payload(&to, key, 1, 10));
    assert_eq!(
        block_on(engine.put(&to, shard, Duration::from_millis(20))),
        Err(NodeError::Timeout)
    );
}

#[test]
fn an_overwritten_or_removed_disk_is_fenced() {
    let (disk, engine) = disk();
    let (to, key) = (unit(1), key(1, 0));
    put(&engine, &to, key, payload(&to, key, 0, 10)).unwrap();
    disk.overwrite(0, &vec![0x5a; 64 << 20]);
    let read = get(&engine, &to, key);
    assert!(
        matches!(&read, Err(NodeError::Fenced { reason }) if reason.contains("overwritten")),
        "{read:?}"
    );
    assert!(Engine::open(disk.device()).is_err());

    let (disk, engine) = self::disk();
    disk.remove();
    assert!(matches!(engine.status().state, DiskState::Fenced { reason } if reason.contains("removed")));
}

#[test]
fn a_put_to_a_removed_or_overwritten_disk_is_refused_within_a_second() {
    for overwrite in [true, false] {
        let (disk, engine) = disk();
        let (to, key) = (unit(1), key(1, 0));
        put(&engine, &to, key, payload(&to, key, 0, 10)).unwrap();
        if overwrite {
            disk.overwrite(0, &vec![0x5a; 64 << 20]);
        } else {
            disk.remove();
        }
        std::thread::sleep(CHECK_INTERVAL);
        let late = put(&engine, &to, key, payload(&to, key, 0, 10));
        assert!(matches!(late, Err(NodeError::Fenced { .. })), "{late:?}");
    }
}

/// A copy may land in an extent that was opened before the one it leaves.
#[test]
fn the_index_follows_a_copy_into_an_older_extent() {
    let mut index = Index::default();
    for generation in [5, 4] {
        let used = ExtentUse::Owned(unit(1).unit);
        index.extents.push(index::Extent::new(used, generation, 4096));
    }
    let entry = |extent, generation| index::Entry {
        place: crate::format::record::RecordPlace {
            extent,
            generation,
            offset: 4096,
        },
        payload_at: 324,
        len: 10,
        digests: 6,
    };
    let (from, copy) = (entry(0, 5), entry(1, 4));
    index.insert(unit(1).unit, key(1, 0), from, 9, 1);
    index.relocate(unit(1).unit, key(1, 0), from.place, copy, 9);
    assert_eq!(index.find(unit(1).unit, key(1, 0)), Some(copy));
    assert_eq!((index.extents[0].live, index.extents[1].live), (0, 1));
    assert_eq!(index.units[&unit(1).unit].live_bytes, 10);
}

#[test]
fn a_dropped_unit_remembers_its_epoch() {
    let (disk, engine) = disk();
    let (to, key) = (unit(1), key(1, 0));
    put(&engine, &to, key, payload(&to, key, 0, 10)).unwrap();
    block_on(engine.drop_unit(&UnitAddress { epoch: 5, ..to }, DEADLINE)).unwrap();
    let stale = Err(NodeError::StaleEpoch { current: 5 });
    assert_eq!(put(&engine, &to, key, payload(&to, key, 0, 10)), stale);
    drop(engine);
    let engine = Engine::open(disk.device()).unwrap();
    assert_eq!(put(&engine, &to, key, payload(&to, key, 0, 10)), stale);
}

#[test]
fn a_panic_of_the_committer_or_the_flusher_fences_the_disk_and_says_which() {
    for in_flush in [false, true] {
        let disk = SimulatedDisk::new(64 << 20, 1);
        format_simulated(&disk, 4 << 20);
        let device = Tampered::over(&disk, |_, _| Ok(()));
        let engine = Engine::open(device.clone()).unwrap();
        let to = unit(1);
        put(&engine, &to, key(1, 0), payload(&to, key(1, 0), 0, 10)).unwrap();
        // A small batch that is alone is flushed by the committer.
        let (panics, reason, len) = match in_flush {
            true => (&device.panics_in_flush, "the flusher panicked", 40_000),
            false => (&device.panics, "the committer panicked", 10),
        };
        panics.store(true, Ordering::Relaxed);
        let fenced = NodeError::Fenced {
            reason: reason.into(),
        };
        for blob in 2..4 {
            let failed = put(&engine, &to, key(blob, 0), payload(&to, key(blob, 0), 0, len));
            assert_eq!(failed, Err(fenced.clone()));
        }
        assert!(matches!(engine.status().state, DiskState::Fenced { .. }));
    }
}

#[test]
fn reasons_of_fences_are_sentences() {
    let (disk, engine) = disk();
    let to = unit(1);
    disk.arm(Fault::WriteError);
    put(&engine, &to, key(1, 0), payload(&to, key(1, 0), 0, 10)).unwrap_err();
    let reason = |engine: &Engine| match engine.status().state {
        DiskState::Fenced { reason } => reason,
        DiskState::Online => "online".into(),
    };
    assert_eq!(reason(&engine), "a write failed: injected write error");
    let (disk, engine) = self::disk();
    disk.remove();
    assert_eq!(reason(&engine), "the file was removed");
    let (disk, engine) = self::disk();
    put(&engine, &to, key(1, 0), payload(&to, key(1, 0), 0, 10)).unwrap();
    disk.overwrite(0, &vec![0x5a; 64 << 20]);
    get(&engine, &to, key(1, 0)).unwrap_err();
    assert_eq!(
        reason(&engine),
        "the disk was overwritten: no valid superblock is left"
    );
}

#[test]
fn a_hung_read_keeps_its_place_in_the_bound() {
    let (disk, engine) = disk();
    let (to, key) = (unit(1), key(1, 0));
    put(&engine, &to, key, payload(&to, key, 0, 10)).unwrap();
    for _ in 0..3 {
        disk.arm(Fault::Hang);
        let read = block_on(engine.get(&to, key, BlockRange::ALL, Duration::from_millis(5)));
        assert_eq!(read, Err(NodeError::Timeout));
    }
    // The device still holds three buffers: they count, or a hung disk would eat the memory.
    assert_eq!(engine.reads.available_permits(), READS_MAX - 3);
    assert!(get(&engine, &to, key).is_ok());
    disk.reboot();
    assert_eq!(engine.reads.available_permits(), READS_MAX);
}
