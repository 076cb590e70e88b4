//! Power cuts at every I/O of a mix, and again during recovery.

use super::house::{Cut, House, Operation};
use super::*;
use crate::device::BLOCK;
use crate::device::simulated::{Fault, Unflushed};
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

/// A killed process leaves what the kernel had in its cache; then the power goes while the next one recovers.
#[test]
fn a_power_cut_while_a_killed_process_recovers_changes_nothing() {
    for seed in seeds(60) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 24, 32 * 1024);
        for _ in 0..12 {
            let cut = Cut {
                after: house.rng.random_range(0..70),
                unflushed: Unflushed::Cached,
                again: Some(house.rng.random_range(20..70)),
            };
            house.apply(&Operation::Cut(cut));
            let _ = (0..50).any(|_| !house.step());
            house.recover();
        }
    }
}

/// A device that notes whether a range was durable whenever something was written behind it.
struct Behind {
    disk: SimulatedDisk,
    inner: Arc<dyn Device>,
    range: std::ops::Range<u64>,
    was_durable: Mutex<Vec<bool>>,
}

impl Device for Behind {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn read(&self, offset: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        self.inner.read(offset, buf)
    }
    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()> {
        if offset == self.range.end {
            let durable = self
                .disk
                .is_durable(self.range.start, self.range.end - self.range.start);
            self.was_durable.lock().unwrap().push(durable);
        }
        self.inner.write_parts(offset, parts)
    }
    fn flush(&self) -> Completion<()> {
        self.inner.flush()
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.allocate(offset, len)
    }
    fn check(&self) -> Result<(), DeviceError> {
        self.inner.check()
    }
}

/// A cut names a place by what was read before it. If that were lost with the power and the cut were not, the place could
/// be another record's, which would be lost.
#[test]
fn a_cut_is_written_when_what_it_was_judged_by_is_durable() {
    let disk = SimulatedDisk::new(512 * 1024, 1);
    format_simulated(&disk, 32 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    for blob in 1..4 {
        put(&engine, &unit(1), key(blob, 0), Bytes::from_static(b"x")).unwrap();
    }
    disk.arm(Fault::FlushError);
    assert!(delete(&engine, &unit(1), &[1, 2, 3]).is_err());
    let layout = engine.shared.layout;
    drop(engine);
    // Three tombstones, written and not flushed. Only the first one is whole.
    let starts =
        (0..layout.extents()).map(|number| layout.extent_offset(number) + u64::from(layout.data_start()));
    let is_there = |at: &u64| disk.peek(*at, 4) == b"CREC" && !disk.is_durable(*at, 128);
    let first = starts.into_iter().find(is_there).unwrap();
    disk.overwrite(first + 128, &[0; 256]);

    let device = Arc::new(Behind {
        disk: disk.clone(),
        inner: disk.device(),
        range: first..first + BLOCK as u64,
        was_durable: Mutex::default(),
    });
    let engine = Engine::open(device.clone()).unwrap();
    assert_eq!(*device.was_durable.lock().unwrap(), [true], "the cut's write");
    assert_eq!(engine.shared.index().cuts.len(), 1);
    assert_eq!(get(&engine, &unit(1), key(1, 0)), Err(NodeError::NotFound));
    assert!(get(&engine, &unit(1), key(2, 0)).is_ok());
}
