//! Reads of a part of a shard: how often they ask the disk, and that what is kept of a record never outlives it.

use super::*;
use crate::protocol::FindingKind;
use std::sync::Mutex;

const LEN: usize = 16 * BLOCK_BYTES as usize;

/// Where the device was read, and how much.
type Reads = Arc<Mutex<Vec<std::ops::Range<u64>>>>;

struct House {
    disk: SimulatedDisk,
    engine: Engine,
    reads: Reads,
}

fn house() -> House {
    let disk = SimulatedDisk::new(64 << 20, 1);
    format_simulated(&disk, 4 << 20);
    let reads = Reads::default();
    let seen = reads.clone();
    let device = Tampered::over(&disk, move |offset, buf| {
        seen.lock().unwrap().push(offset..offset + buf.len() as u64);
        Ok(())
    });
    House {
        engine: Engine::open(device).unwrap(),
        disk,
        reads,
    }
}

fn blocks(first: u32, count: u32) -> BlockRange {
    BlockRange { first, count }
}

impl House {
    fn put(&self, blob: u64, version: u64) {
        let (to, key) = (unit(1), key(blob, 0));
        put(&self.engine, &to, key, payload(&to, key, version, LEN)).unwrap();
    }

    fn get(&self, blob: u64, range: BlockRange) -> Result<ShardBlocks, NodeError> {
        block_on(self.engine.get(&unit(1), key(blob, 0), range, DEADLINE))
    }

    /// Reads a part and checks it; says how many reads of the shard's record that took.
    fn check(&self, blob: u64, version: u64, range: BlockRange) -> usize {
        let (start, entry) = offset_of(&self.engine, unit(1).unit, key(blob, 0));
        self.reads.lock().unwrap().clear();
        let found = self.get(blob, range).unwrap();
        let end = start + entry.footprint();
        let here = |read: &&std::ops::Range<u64>| read.start < end && start < read.end;
        let reads = self.reads.lock().unwrap().iter().filter(here).count();
        assert!(verifies(&unit(1), key(blob, 0), &found));
        let whole = payload(&unit(1), key(blob, 0), version, LEN);
        let from = (range.first * BLOCK_BYTES) as usize;
        let until = LEN.min(from + (range.count * BLOCK_BYTES) as usize);
        assert_eq!(found.payload, whole.slice(from..until));
        assert_eq!(
            found.block_crcs.len(),
            (until - from).div_ceil(BLOCK_BYTES as usize)
        );
        assert_eq!(found.digests, [[9; 32]; 6]);
        reads
    }

    /// The place of a shard's record.
    fn place(&self, blob: u64) -> crate::format::record::RecordPlace {
        offset_of(&self.engine, unit(1).unit, key(blob, 0)).1.place
    }
}

#[test]
fn a_second_read_of_a_part_takes_one_read_of_the_disk() {
    let house = house();
    house.put(1, 0);
    assert_eq!(house.check(1, 0, blocks(9, 1)), 2, "head and block");
    for (first, count) in [(9, 1), (15, 1), (2, 14), (1, 3), (0, 2), (14, 9)] {
        assert_eq!(
            house.check(1, 0, blocks(first, count)),
            1,
            "{count} blocks from {first}"
        );
    }
}

#[test]
fn a_part_close_to_the_head_leaves_the_head_for_those_behind() {
    let house = house();
    house.put(1, 0);
    assert_eq!(house.check(1, 0, blocks(1, 1)), 1, "both in one go");
    assert_eq!(house.check(1, 0, blocks(12, 1)), 1);
}

#[test]
fn every_block_can_be_read_alone_in_any_order() {
    let house = house();
    (0..4).for_each(|blob| house.put(blob, 0));
    for number in 0..64 {
        house.check(number % 4, 0, blocks((number * 7 % 16) as u32, 1));
    }
}

#[test]
fn a_shard_that_was_put_again_is_never_answered_from_its_old_head() {
    let house = house();
    for version in 0..5 {
        house.put(1, version);
        assert_eq!(house.check(1, version, blocks(8, 2)), 2, "version {version}");
        assert_eq!(house.check(1, version, blocks(8, 2)), 1, "version {version}");
    }
}

#[test]
fn a_shard_that_was_moved_is_never_answered_from_its_old_head() {
    let house = house();
    (0..12).for_each(|blob| house.put(blob, 0));
    (0..12).for_each(|blob| assert_eq!(house.check(blob, 0, blocks(8, 2)), 2));
    let before: Vec<_> = (0..12).map(|blob| house.place(blob)).collect();
    // Of each extent one shard stays: compaction moves it.
    let kept = [0, 3, 6, 9];
    let dead: Vec<u64> = (0..12).filter(|blob| !kept.contains(blob)).collect();
    delete(&house.engine, &unit(1), &dead).unwrap();
    let has_moved = |blob: &u64| house.place(*blob) != before[*blob as usize];
    eventually("a shard is moved", || kept.iter().any(has_moved));
    eventually("compaction is done", || {
        let moved = house.engine.metrics().records_moved;
        std::thread::sleep(Duration::from_millis(20));
        house.engine.metrics().records_moved == moved
    });
    for blob in kept.iter().filter(|blob| has_moved(blob)) {
        assert_eq!(house.check(*blob, 0, blocks(8, 2)), 2, "blob {blob}");
        assert_eq!(house.check(*blob, 0, blocks(8, 2)), 1, "blob {blob}");
    }
    assert_eq!(house.get(1, blocks(8, 2)), Err(NodeError::NotFound));
}

/// What rots under a kept head is served as it is, which verifies, and is found by whoever looks at the whole record.
#[test]
fn a_head_that_rots_after_it_was_kept_is_found_past_it() {
    let house = house();
    house.put(1, 0);
    house.check(1, 0, blocks(9, 1));
    let (start, _) = offset_of(&house.engine, unit(1).unit, key(1, 0));
    house.disk.flip_bit(start + 130, 3);
    house.check(1, 0, blocks(9, 1));
    assert!(matches!(
        house.get(1, BlockRange::ALL),
        Err(NodeError::Corrupt { .. })
    ));
    assert_eq!(house.engine.verify_once().findings, 1);
    assert_eq!(house.engine.findings(0).found[0].kind, FindingKind::Corrupt);
    // Repair puts it again, and that record is whole.
    house.put(1, 1);
    house.check(1, 1, blocks(9, 1));
    house.check(1, 1, BlockRange::ALL);
}

#[test]
fn a_block_that_rots_under_a_kept_head_does_not_verify_until_it_is_right_again() {
    let house = house();
    house.put(1, 0);
    house.check(1, 0, blocks(9, 1));
    let (start, entry) = offset_of(&house.engine, unit(1).unit, key(1, 0));
    let at = start + u64::from(entry.payload_at + 9 * BLOCK_BYTES + 77);
    house.disk.flip_bit(at, 5);
    let found = house.get(1, blocks(9, 1)).unwrap();
    assert!(!verifies(&unit(1), key(1, 0), &found));
    house.check(1, 0, blocks(10, 1));
    house.disk.flip_bit(at, 5);
    assert_eq!(house.check(1, 0, blocks(9, 1)), 1);
}

#[test]
fn a_kept_head_that_is_damaged_in_memory_is_read_again() {
    let house = house();
    house.put(1, 0);
    house.put(2, 0);
    house.check(1, 0, blocks(9, 1));
    house.check(2, 0, blocks(9, 1));
    let heads = &house.engine.shared.heads;
    let mut damaged = heads.get(house.place(1)).unwrap().to_vec();
    damaged[131] ^= 1;
    let other = heads.get(house.place(2)).unwrap();
    for wrong in [&damaged[..], &other[..], &damaged[..20], &[]] {
        heads.keep(house.place(1), wrong);
        assert_eq!(house.check(1, 0, blocks(9, 1)), 2, "read again");
        assert_eq!(house.check(1, 0, blocks(9, 1)), 1, "and kept again");
    }
}

/// Repair, rebuilding and copying read whole records: they would only push out what helps others.
#[test]
fn a_read_of_a_whole_record_keeps_nothing() {
    let house = house();
    house.put(1, 0);
    for _ in 0..2 {
        assert_eq!(house.check(1, 0, BlockRange::ALL), 1);
    }
    assert!(house.engine.shared.heads.get(house.place(1)).is_none());
}

/// As of a block, which the gateway reads again: whether head and block are read in one go, or each alone.
#[test]
fn a_head_that_is_read_wrongly_once_is_read_again_before_it_counts_as_corrupt() {
    let disk = SimulatedDisk::new(64 << 20, 1);
    format_simulated(&disk, 4 << 20);
    let (to, key) = (unit(1), key(1, 0));
    let armed = Arc::new(Mutex::new((0, 0)));
    let flips = armed.clone();
    let device = Tampered::over(&disk, move |offset, buf| {
        let (at, left) = &mut *flips.lock().unwrap();
        if *left > 0 && (offset..offset + buf.len() as u64).contains(at) {
            buf[(*at - offset) as usize] ^= 1;
            *left -= 1;
        }
        Ok(())
    });
    let engine = Engine::open(device).unwrap();
    put(&engine, &to, key, payload(&to, key, 0, LEN)).unwrap();
    let (start, _) = offset_of(&engine, to.unit, key);
    for range in [BlockRange::ALL, blocks(9, 1)] {
        let get = || block_on(engine.get(&to, key, range, DEADLINE));
        *armed.lock().unwrap() = (start + 20, 2);
        assert!(matches!(get(), Err(NodeError::Corrupt { .. })));
        let counted = engine.status().corrupt_shards;
        *armed.lock().unwrap() = (start + 20, 1);
        assert!(verifies(&to, key, &get().unwrap()));
        assert_eq!(armed.lock().unwrap().1, 0, "the read was made");
        assert_eq!(engine.status().corrupt_shards, counted);
    }
    assert_eq!(engine.status().corrupt_shards, 2);
}
