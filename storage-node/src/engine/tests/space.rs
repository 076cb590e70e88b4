//! A full disk: refuses puts in time, always deletes, and comes back.

use super::*;
use crate::device::simulated::Fault;

const LEN: usize = 20_000;

fn fill(engine: &Engine, from: u64) -> u64 {
    for blob in from.. {
        let (to, key) = (unit(blob % 3), key(blob, 0));
        match put(engine, &to, key, payload(&to, key, 0, LEN)) {
            Ok(()) => {}
            Err(NodeError::NoSpace) => return blob,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

#[test]
fn a_full_disk_deletes_and_comes_back_again_and_again() {
    let disk = SimulatedDisk::new(2 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let mut engine = Engine::open(disk.device()).unwrap();
    let mut next = 0;
    let mut live: Vec<u64> = Vec::new();
    for round in 0..12 {
        let end = fill(&engine, next);
        live.extend(next..end);
        next = end + 1;
        assert!(live.len() >= 36, "round {round}: only {} fit", live.len());
        // Every third one goes, so no extent is empty by itself.
        let doomed: Vec<u64> = live
            .iter()
            .copied()
            .filter(|blob| blob % 3 == round % 3 || blob % 5 == 0)
            .collect();
        for blob in &doomed {
            delete(&engine, &unit(blob % 3), &[*blob]).unwrap();
        }
        live.retain(|blob| !doomed.contains(blob));
        if round % 3 == 2 {
            drop(engine);
            engine = Engine::open(disk.device()).unwrap();
        }
        for &blob in &live {
            let (to, key) = (unit(blob % 3), key(blob, 0));
            assert_eq!(get(&engine, &to, key).unwrap().payload, payload(&to, key, 0, LEN));
        }
    }
    for blob in live {
        delete(&engine, &unit(blob % 3), &[blob]).unwrap();
    }
    assert_eq!(engine.status().shards, 0);
    let end = fill(&engine, next);
    assert!(end - next > 40, "only {} fit on the empty disk", end - next);
}

#[test]
fn deletes_of_unknown_blobs_do_not_fill_the_disk() {
    let disk = SimulatedDisk::new(1 << 20, 1);
    format_simulated(&disk, 32 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    let full = fill(&engine, 0);
    for first in 0..200 {
        let blobs: Vec<u64> = (1_000_000 + first * 100..1_000_000 + first * 100 + 100).collect();
        delete(&engine, &unit(1), &blobs).unwrap();
    }
    for blob in 0..full {
        delete(&engine, &unit(blob % 3), &[blob]).unwrap();
    }
    fill(&engine, 10_000_000);
}

#[test]
fn tombstones_are_forgotten_when_nothing_needs_them() {
    let disk = SimulatedDisk::new(2 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    for blob in 0..3000 {
        let (to, key) = (unit(1), key(blob, 0));
        put(&engine, &to, key, payload(&to, key, 0, 3000)).unwrap();
        delete(&engine, &to, &[blob]).unwrap();
    }
    let remembered = engine.shared.index().tombstones.len();
    assert!(remembered < 2000, "{remembered} tombstones");
    drop(engine);
    assert_eq!(Engine::open(disk.device()).unwrap().status().shards, 0);
}

/// A delete that runs out of space half-way has deleted half: memory must know what the disk knows, or a later put
/// of such a blob is acknowledged and gone after a restart.
#[test]
fn a_delete_cut_short_by_a_full_disk_is_not_half_forgotten() {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    let to = unit(1);
    // Dead records beside one that lives: their tombstones are needed, so the extent they are in cannot be freed.
    let few = |blob| {
        engine.put(
            &to,
            sealed(&to, key(blob, 0), payload(&to, key(blob, 0), 0, 10)),
            DEADLINE,
        )
    };
    let stored = block_on(futures::future::join_all((2000..2130).map(few)));
    assert!(stored.iter().all(Result::is_ok));
    delete(&engine, &to, &(2001..2130).collect::<Vec<_>>()).unwrap();
    for first in [1000, 1100] {
        delete(&engine, &to, &(first..first + 100).collect::<Vec<_>>()).unwrap();
    }
    let doomed: Vec<u64> = (0..100).collect();
    // As often as it is tried.
    for _ in 0..200 {
        disk.arm(Fault::NoSpace);
    }
    let outcome = delete(&engine, &to, &doomed);
    assert!(matches!(outcome, Ok(()) | Err(NodeError::NoSpace)), "{outcome:?}");
    disk.disarm();
    let stored: Vec<u64> = doomed
        .iter()
        .copied()
        .filter(
            |&blob| match put(&engine, &to, key(blob, 0), payload(&to, key(blob, 0), 0, 10)) {
                Ok(()) => true,
                Err(NodeError::Deleted) => false,
                Err(error) => panic!("{error}"),
            },
        )
        .collect();
    drop(engine);
    let engine = Engine::open(disk.device()).unwrap();
    for blob in stored {
        assert!(
            get(&engine, &to, key(blob, 0)).is_ok(),
            "blob {blob} was acknowledged"
        );
    }
}

/// The filesystem under a disk file is full, though the disk is not.
#[test]
fn a_full_filesystem_under_a_disk_wedges_nothing() {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let mut engine = Engine::open(disk.device()).unwrap();
    put(&engine, &unit(0), key(0, 0), payload(&unit(0), key(0, 0), 0, LEN)).unwrap();
    disk.fill_filesystem();
    let mut next = 1;
    for round in 0..20 {
        if round % 3 == 2 {
            // What it was granted is still its own.
            drop(engine);
            engine = Engine::open(disk.device()).unwrap();
        }
        let end = fill(&engine, next);
        for blob in next..end {
            delete(&engine, &unit(blob % 3), &[blob]).unwrap();
            // Idempotent ones, of unknown blobs: tombstones all the same.
            delete(&engine, &unit(blob % 3), &[1_000_000 * (round + 1) + blob]).unwrap();
        }
        next = end + 1;
    }
    let key = key(0, 0);
    assert!(verifies(&unit(0), key, &get(&engine, &unit(0), key).unwrap()));
}

/// Asks for shards again and again while something is done.
fn beside_readers<T>(engine: &Engine, blobs: u64, work: impl FnOnce() -> T) -> T {
    let working = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for blob in (0..blobs).cycle() {
                    if !working.load(Ordering::Relaxed) {
                        break;
                    }
                    // Some are deleted meanwhile.
                    let _ = get(engine, &unit(blob % 3), key(blob, 0));
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        working.store(false, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Readers slow compaction down, and do not stop it.
#[test]
fn compaction_comes_to_its_end_beside_readers() {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    for blob in 0..60 {
        let (to, key) = (unit(blob % 3), key(blob, 0));
        put(&engine, &to, key, payload(&to, key, 0, LEN)).unwrap();
    }
    let left = engine.status().free_extents;
    beside_readers(&engine, 60, || {
        for blob in (0..60).filter(|blob| blob / 3 % 3 > 0) {
            delete(&engine, &unit(blob % 3), &[blob]).unwrap();
        }
        eventually("all that is wasted is won back", || {
            let metrics = engine.metrics();
            metrics.records_moved > 0 && engine.status().free_extents >= left + 8
        });
    });
}

/// However much it is read: a put that waits for room waits for no rest.
#[test]
fn a_full_disk_that_is_read_comes_back_again_and_again() {
    let disk = SimulatedDisk::new(2 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    let mut live = fill(&engine, 0);
    beside_readers(&engine, live, || {
        let (mut first, mut next) = (0, live + 1);
        for round in 0..6 {
            for blob in (first..next).filter(|blob| blob % 3 == round % 3 || blob % 2 == 0) {
                delete(&engine, &unit(blob % 3), &[blob]).unwrap();
            }
            let end = fill(&engine, next);
            assert!(end - next >= live / 3, "round {round}: only {} fit", end - next);
            (first, live, next) = (next, end - next, end + 1);
            for blob in 0..first {
                delete(&engine, &unit(blob % 3), &[blob]).unwrap();
            }
        }
    });
}
