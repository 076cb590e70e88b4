//! Summaries of sealed extents: opening by them is opening by the records, in fewer reads; and what does not verify, or
//! may not be whole, is worth nothing.

use super::house::House;
use super::index::Index;
use super::recovery::Recovered;
use super::*;
use crate::format::record::RecordPlace;
use crate::format::summary::{SUMMARY_FOOTER_BYTES, SummaryFooter, Tail, summary_len, summary_start};
use rand::Rng;
use std::collections::BTreeMap;

const EXTENT: u64 = 64 * 1024;

fn open(disk: &SimulatedDisk) -> Engine {
    Engine::open(disk.device()).unwrap()
}

/// Small shards of one unit, one after the other: several extents of them.
fn fill(engine: &Engine, to: &UnitAddress, blobs: std::ops::Range<u64>, len: usize) {
    for blob in blobs {
        let key = key(blob, 0);
        put(engine, to, key, payload(to, key, 0, len)).unwrap();
    }
}

fn filled() -> SimulatedDisk {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, EXTENT);
    let engine = open(&disk);
    fill(&engine, &unit(1), 0..100, 3000);
    drop(engine);
    disk
}

/// A disk as recovery reads it, with nothing written.
struct Look {
    disk: SimulatedDisk,
    layout: Layout,
    identity: DiskIdentity,
    found: Recovered,
    /// How many reads that took.
    reads: u64,
}

impl Look {
    fn at(disk: &SimulatedDisk) -> Look {
        let device = disk.device();
        let superblock = peek_superblock(&*device).unwrap();
        let layout = Layout::new(superblock.device_size, superblock.extent_size).unwrap();
        let identity = DiskIdentity {
            disk: superblock.disk,
            incarnation: superblock.incarnation,
        };
        let before = disk.operations();
        let found = recovery::recover(&*device, &superblock, &layout, &identity).unwrap();
        Look {
            reads: disk.operations() - before,
            disk: disk.clone(),
            layout,
            identity,
            found,
        }
    }

    fn summed_up(&self) -> u64 {
        self.found.opened.summed_up
    }

    fn footer_at(&self, extent: u32) -> u64 {
        self.layout.extent_offset(extent) + u64::from(self.layout.data_end()) - SUMMARY_FOOTER_BYTES as u64
    }

    /// Where the summary of an extent starts, and how long it is.
    fn summary_at(&self, footer: &SummaryFooter) -> (u64, usize) {
        let start = summary_start(&self.layout, footer.entries.into());
        let at = self.layout.extent_offset(footer.extent) + u64::from(start);
        (at, summary_len(footer.entries.into()) as usize)
    }

    fn tail(&self, extent: u32) -> Tail {
        let generation = self.found.index.extents[extent as usize].generation;
        let bytes = self.disk.peek(self.footer_at(extent), SUMMARY_FOOTER_BYTES);
        Tail::of(&bytes, &self.identity, extent, generation, &self.layout)
    }

    /// The summaries of extents in use.
    fn footers(&self) -> Vec<SummaryFooter> {
        let extents = &self.found.index.extents;
        let owned = |number: &u32| matches!(extents[*number as usize].used, ExtentUse::Owned(_));
        let footers = (0..self.layout.extents())
            .filter(owned)
            .map(|number| self.tail(number));
        footers
            .filter_map(|tail| match tail {
                Tail::Sealed(footer) => Some(footer),
                _ => None,
            })
            .collect()
    }

    /// Every summary lists what walking its extent finds, but for what was cut.
    fn check_summaries(&self) {
        let cuts = self.found.index.cuts.iter().flat_map(|(_, places)| places);
        let cuts: Vec<_> = cuts.chain(&self.found.new_cuts).collect();
        for footer in self.footers() {
            let (device, layout) = (self.disk.device(), &self.layout);
            let Ok(listed) = tail::read_entries(&*device, layout, &self.identity, &footer) else {
                continue;
            };
            let mut records = Vec::new();
            let (extent, generation) = (footer.extent, footer.generation);
            let log = scan::walk_extent(&*device, layout, &self.identity, extent, generation, |head| {
                assert!(head.batch <= footer.batch && footer.batch <= footer.flushed);
                assert!(head.sequence <= footer.sequence && head.epoch <= footer.epoch);
                if !cuts.contains(&&head.place) {
                    records.push((head.key, head.sequence, head.place.offset, head.len));
                }
            });
            let listed: Vec<_> = listed
                .iter()
                .map(|e| (e.key, e.sequence, e.offset, e.len))
                .collect();
            assert_eq!(listed, records, "the summary of extent {extent}");
            assert_eq!((footer.end, footer.ordinal), (log.end, log.ordinal));
        }
    }
}

/// A disk with the same bytes and no summary: every extent has to be walked.
fn without_summaries(disk: &SimulatedDisk) -> SimulatedDisk {
    let look = Look::at(disk);
    let size = disk.device().info().size;
    let other = SimulatedDisk::new(size, 1);
    other.overwrite(0, &disk.peek(0, size as usize));
    for extent in 0..look.layout.extents() {
        other.overwrite(look.footer_at(extent), &[0; SUMMARY_FOOTER_BYTES]);
    }
    other
}

/// All that an index knows but which extents it goes on with, in words that can be compared.
fn known(index: &Index) -> BTreeMap<String, String> {
    let mut known = BTreeMap::new();
    for (id, unit) in &index.units {
        known.insert(
            format!("unit {id:?}"),
            format!("{} {}", unit.epoch, unit.live_bytes),
        );
        for (key, _) in unit.shards.range(Bound::Unbounded) {
            known.insert(
                format!("shard {id:?} {key:?}"),
                format!("{:?}", index.find(*id, key)),
            );
        }
    }
    for (number, extent) in index.extents.iter().enumerate() {
        let mut dead = extent.dead_blobs.clone();
        dead.sort_unstable();
        let facts = (extent.used, extent.generation, extent.end, extent.ordinal, dead);
        let live = (extent.live, extent.live_bytes, extent.oldest);
        known.insert(format!("extent {number}"), format!("{facts:?} {live:?}"));
    }
    known.insert("tombstones".into(), format!("{:?}", index.tombstones));
    known.insert("drops".into(), format!("{:?}", index.drops));
    known.insert("cuts".into(), format!("{:?}", index.cuts));
    known
}

fn assert_served(engine: &Engine, to: &UnitAddress, blobs: impl Iterator<Item = u64>, len: usize) {
    for blob in blobs {
        let key = key(blob, 0);
        let found = get(engine, to, key).map(|blocks| blocks.payload);
        assert!(
            found == Ok(payload(to, key, 0, len)),
            "blob {blob}: {:?}",
            found.err()
        );
    }
}

#[test]
fn opening_by_summaries_is_opening_by_walking() {
    let mut summed_up = 0;
    for seed in seeds(40) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 24, 32 * 1024);
        for _ in 0..house.rng.random_range(50..400) {
            house.step();
        }
        if seed % 2 == 1 {
            house.disk.crash_after(seed);
            let _ = (0..60).any(|_| !house.step());
            house.power_cut(None);
        }
        house.engine = None;
        let look = Look::at(&house.disk);
        look.check_summaries();
        let walked = Look::at(&without_summaries(&house.disk));
        assert_eq!(walked.summed_up(), 0);
        assert_eq!(known(&look.found.index), known(&walked.found.index));
        assert_eq!(look.found.counters.sequence, walked.found.counters.sequence);
        summed_up += look.summed_up();
    }
    // One seed alone may have sealed nothing.
    assert!(
        summed_up > 0 || std::env::var("CAIRN_TEST_SEED").is_ok(),
        "no extent had a summary"
    );
}

#[test]
fn opening_by_summaries_takes_fewer_reads() {
    let disk = SimulatedDisk::new(64 << 20, 1);
    format_simulated(&disk, 1 << 20);
    let engine = open(&disk);
    fill(&engine, &unit(1), 0..600, 40_000);
    drop(engine);
    let (look, walked) = (Look::at(&disk), Look::at(&without_summaries(&disk)));
    assert!(look.summed_up() >= 20, "{:?}", look.found.opened);
    assert_eq!(look.found.opened.walked, 1, "the open one");
    let headers = 2 * u64::from(look.layout.extents());
    // One read of entries for each; the open extent is walked.
    assert!(
        look.reads <= headers + look.summed_up() + 40,
        "{} reads",
        look.reads
    );
    assert!(
        walked.reads > 3 * look.reads,
        "{} and {} reads",
        look.reads,
        walked.reads
    );
}

#[test]
fn a_flipped_bit_in_a_summary_costs_nothing_and_is_mended() {
    let disk = filled();
    let before = Look::at(&disk);
    let footer = before.footers()[0];
    let (start, len) = before.summary_at(&footer);
    let entries = footer.entries as usize * 24;
    let places = [
        0,
        7,
        15,
        16,
        entries - 1,
        len - SUMMARY_FOOTER_BYTES,
        len - 121,
        len - 80,
        len - 1,
    ];
    for (number, at) in places.into_iter().enumerate() {
        disk.flip_bit(start + at as u64, number as u8);
        let look = Look::at(&disk);
        assert_eq!(look.summed_up(), before.summed_up() - 1, "byte {at}");
        assert_eq!(known(&look.found.index), known(&before.found.index), "byte {at}");
        let engine = open(&disk);
        assert_served(&engine, &unit(1), 0..100, 3000);
        assert_eq!(engine.status().corrupt_shards, 0);
        drop(engine);
        assert_eq!(
            Look::at(&disk).summed_up(),
            before.summed_up(),
            "byte {at} is not mended"
        );
    }
}

#[test]
fn a_summary_that_was_torn_in_its_middle_is_worth_nothing() {
    let disk = filled();
    let before = Look::at(&disk);
    let footer = before.footers()[0];
    let (start, _) = before.summary_at(&footer);
    disk.overwrite(start, &[0; 24]);
    let look = Look::at(&disk);
    assert_eq!(known(&look.found.index), known(&before.found.index));
    assert_eq!(look.summed_up(), before.summed_up() - 1);
}

#[test]
fn a_power_cut_at_every_operation_leaves_no_summary_that_lies() {
    let mut summed_up = 0;
    for seed in seeds(3) {
        for at in 0..400 {
            println!("CAIRN_TEST_SEED={seed} at={at}");
            let mut house = House::new(seed, 16, 32 * 1024);
            for _ in 0..30 {
                house.step();
            }
            house.disk.crash_after(at);
            let crashed = (0..60).any(|_| !house.step());
            house.engine = None;
            house.disk.reboot();
            let look = Look::at(&house.disk);
            look.check_summaries();
            summed_up += look.summed_up();
            house.power_cut(None);
            assert!(house.check());
            if !crashed {
                break;
            }
        }
    }
    // One seed alone may have sealed nothing.
    assert!(
        summed_up > 0 || std::env::var("CAIRN_TEST_SEED").is_ok(),
        "no extent had a summary"
    );
}

/// A program of version 1 would append behind a summary.
#[test]
fn a_disk_of_version_1_is_of_version_2_before_it_has_a_summary() {
    let size = 4 << 20;
    let old = without_summaries(&filled());
    let of_version_1 = Superblock {
        version: 1,
        ..peek_superblock(&*old.device()).unwrap()
    };
    superblocks::write(&*old.device(), &of_version_1).unwrap();
    for at in 0..200 {
        let disk = SimulatedDisk::new(size, at);
        disk.overwrite(0, &old.peek(0, size as usize));
        let engine = open(&disk);
        assert_eq!(engine.superblock().version, 1);
        disk.crash_after(at);
        // Whatever its extents have room for is written now.
        drop(engine);
        let crashed = disk.is_crashed();
        disk.reboot();
        let copies = superblocks::read(&*disk.device());
        let of_version_2 = copies
            .iter()
            .filter(|copy| copy.as_ref().is_ok_and(|s| s.version == FORMAT_VERSION));
        let (of_version_2, summaries) = (of_version_2.count(), Look::at(&disk).footers().len());
        assert!(
            of_version_2 == 4 || summaries == 0,
            "{summaries} summaries at {at}"
        );
        if !crashed {
            assert!(summaries > 0);
            return;
        }
    }
    panic!("it never got to the end");
}

/// Puts that arrive together, so that most are in one batch; which were acknowledged.
fn put_together(engine: &Engine, blobs: std::ops::Range<u64>, len: usize) -> Vec<u64> {
    let to = unit(1);
    let put = |blob| {
        let key = key(blob, 0);
        let shard = sealed(&to, key, payload(&to, key, 0, len));
        async move { engine.put(&to, shard, DEADLINE).await.is_ok().then_some(blob) }
    };
    let acknowledged = block_on(futures::future::join_all(blobs.map(put)));
    acknowledged.into_iter().flatten().collect()
}

#[test]
fn extents_filled_in_one_batch_are_summed_up_after_it() {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, EXTENT);
    let engine = open(&disk);
    assert_eq!(put_together(&engine, 0..60, 10_000).len(), 60);
    drop(engine);
    let look = Look::at(&disk);
    assert_eq!(look.found.opened.walked, 1, "the open one");
    assert!(look.summed_up() > 8);
    look.check_summaries();
}

#[test]
fn a_power_cut_while_several_extents_are_filled_leaves_no_summary_that_lies() {
    for seed in seeds(4) {
        for at in 0..80 {
            println!("CAIRN_TEST_SEED={seed} at={at}");
            let disk = SimulatedDisk::new(4 << 20, seed);
            format_simulated(&disk, EXTENT);
            let engine = open(&disk);
            disk.crash_after(at);
            let mut acknowledged = put_together(&engine, 0..20, 10_000);
            acknowledged.extend(put_together(&engine, 20..40, 10_000));
            drop(engine);
            let crashed = disk.is_crashed();
            disk.reboot();
            Look::at(&disk).check_summaries();
            let engine = open(&disk);
            assert_served(&engine, &unit(1), acknowledged.iter().copied(), 10_000);
            drop(engine);
            Look::at(&disk).check_summaries();
            if !crashed {
                break;
            }
        }
    }
}

/// A record that was never acknowledged, and that recovery cuts for its payload: none if the disk fell idle before.
fn with_a_torn_record() -> Option<(SimulatedDisk, RecordPlace)> {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, EXTENT);
    let engine = open(&disk);
    fill(&engine, &unit(1), 0..3, 3000);
    disk.crash_after(0);
    let (at, entry) = offset_of(&engine, unit(1).unit, key(2, 0));
    drop(engine);
    disk.reboot();
    disk.overwrite(at + u64::from(entry.payload_at) + 100, &[0; 50]);
    let torn = Look::at(&disk).found.new_cuts.contains(&entry.place);
    torn.then_some((disk, entry.place))
}

#[test]
fn what_recovery_cut_is_in_no_summary() {
    for reopened in [false, true] {
        let (disk, place) = (0..20)
            .find_map(|_| with_a_torn_record())
            .expect("a less busy machine");
        let mut engine = open(&disk);
        if reopened {
            drop(engine);
            engine = open(&disk);
        }
        fill(&engine, &unit(1), 10..40, 3000);
        drop(engine);
        let look = Look::at(&disk);
        let footers = look.footers();
        assert!(footers.iter().any(|footer| footer.extent == place.extent));
        look.check_summaries();
        let walked = Look::at(&without_summaries(&disk));
        assert_eq!(known(&look.found.index), known(&walked.found.index));
        assert_eq!(get(&open(&disk), &unit(1), key(2, 0)), Err(NodeError::NotFound));
    }
}

#[test]
fn a_summary_of_another_use_or_another_extent_is_not_believed() {
    let disk = filled();
    let before = Look::at(&disk);
    let footers = before.footers();
    let (start, len) = before.summary_at(&footers[0]);
    let summary = disk.peek(start, len);
    // The same extent in a later use.
    let engine = open(&disk);
    let first: Vec<u64> = (0..100).collect();
    delete(&engine, &unit(1), &first).unwrap();
    eventually("they are freed", || engine.status().free_extents > 55);
    fill(&engine, &unit(2), 200..300, 3000);
    drop(engine);
    let after = Look::at(&disk);
    for footer in after.footers() {
        let extent = footer.extent;
        let (there, same_len) = after.summary_at(&footer);
        assert_eq!(len, same_len);
        let right = disk.peek(there, len);
        disk.overwrite(there, &summary);
        let look = Look::at(&disk);
        assert_eq!(look.tail(extent), Tail::Open, "extent {extent}");
        assert_eq!(known(&look.found.index), known(&after.found.index));
        disk.overwrite(there, &right);
    }
    assert!(after.footers().iter().any(|f| f.extent == footers[0].extent));
}

#[test]
fn what_a_tombstone_killed_in_a_sealed_extent_does_not_come_back() {
    let disk = filled();
    let engine = open(&disk);
    let doomed: Vec<u64> = (0..100).filter(|blob| blob % 4 == 1).collect();
    delete(&engine, &unit(1), &doomed).unwrap();
    drop(engine);
    let look = Look::at(&disk);
    assert!(look.summed_up() >= 5);
    let needed = |look: &Look| {
        look.found
            .index
            .tombstones
            .values()
            .filter(|mark| mark.is_needed())
            .count()
    };
    assert_eq!(needed(&look), doomed.len());
    // Most of the rest goes too, so that what is left is moved, and put again elsewhere.
    let engine = open(&disk);
    assert!(engine.opened().summed_up >= 5);
    let more: Vec<u64> = (0..100).filter(|blob| blob % 4 == 2 || blob % 4 == 3).collect();
    delete(&engine, &unit(1), &more).unwrap();
    eventually("what is left is moved", || engine.metrics().records_moved > 0);
    drop(engine);
    for _ in 0..2 {
        let engine = open(&disk);
        assert_served(&engine, &unit(1), (0..100).filter(|blob| blob % 4 == 0), 3000);
        for blob in doomed.iter().chain(&more) {
            assert_eq!(get(&engine, &unit(1), key(*blob, 0)), Err(NodeError::NotFound));
        }
    }
}

/// A unit whose newest extent is sealed, with room for more: the one that was opened after it is free again.
fn newest_is_sealed() -> (SimulatedDisk, SummaryFooter) {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, EXTENT);
    let engine = open(&disk);
    fill(&engine, &unit(1), 0..2, 10_000);
    // It does not fit behind them.
    fill(&engine, &unit(1), 2..3, 40_000);
    drop(engine);
    let look = Look::at(&disk);
    let opened = look.found.index.open_extent(unit(1).unit).unwrap();
    let header = ExtentHeader {
        owner: None,
        extent: opened,
        generation: look.found.index.extents[opened as usize].generation,
        sequence: 1000,
    };
    let start = look.layout.extent_offset(opened);
    for at in [start, start + u64::from(look.layout.data_end())] {
        disk.overwrite(at, &header.encode(&look.identity));
    }
    let footers = look.footers();
    assert_eq!(footers.len(), 1);
    (disk, footers[0])
}

#[test]
fn a_sealed_extent_is_not_appended_to_after_one_bad_read_of_its_tail() {
    let (disk, footer) = newest_is_sealed();
    let at = Look::at(&disk).footer_at(footer.extent);
    for fails in [false, true] {
        let armed = std::sync::atomic::AtomicBool::new(true);
        let device = Tampered::over(&disk, move |offset, buf| {
            let here = (offset..offset + buf.len() as u64).contains(&at);
            if !here || !armed.swap(false, Ordering::Relaxed) {
                return Ok(());
            }
            if fails {
                return Err(DeviceError::new(DeviceErrorKind::Read, "once"));
            }
            // As if the summary had never been written.
            buf[(at - offset) as usize..][..SUMMARY_FOOTER_BYTES].fill(0);
            Ok(())
        });
        let engine = Engine::open(device).unwrap();
        assert_eq!((engine.opened().summed_up, engine.opened().walked), (1, 0));
        assert_eq!(engine.shared.index().open_extent(unit(1).unit), None);
    }
}

#[test]
fn an_extent_whose_summary_cannot_be_read_is_walked_and_not_appended_to() {
    let (disk, footer) = newest_is_sealed();
    let at = Look::at(&disk).footer_at(footer.extent);
    let device = Tampered::over(&disk, move |offset, buf| {
        match (offset..offset + buf.len() as u64).contains(&at) && buf.len() <= 2 * BLOCK {
            true => Err(DeviceError::new(DeviceErrorKind::Read, "a bad sector")),
            false => Ok(()),
        }
    });
    let engine = Engine::open(device).unwrap();
    assert_eq!((engine.opened().summed_up, engine.opened().walked), (0, 1));
    assert_eq!(engine.shared.index().open_extent(unit(1).unit), None);
    fill(&engine, &unit(1), 5..7, 10_000);
    assert_served(&engine, &unit(1), [0, 1, 5, 6].into_iter(), 10_000);
    drop(engine);
    let engine = open(&disk);
    assert_eq!((engine.opened().summed_up, engine.opened().walked), (1, 1));
    assert_served(&engine, &unit(1), [0, 1, 5, 6].into_iter(), 10_000);
}

/// Nothing looks at the head of a record in a sealed extent: when it is rotten and a newer record of its key is met, the
/// summary says which is the newer one.
#[test]
fn rot_in_a_replaced_record_of_a_sealed_extent_hides_nothing() {
    let disk = filled();
    let engine = open(&disk);
    let (old, _) = offset_of(&engine, unit(1).unit, key(3, 0));
    put(
        &engine,
        &unit(1),
        key(3, 0),
        payload(&unit(1), key(3, 0), 1, 3000),
    )
    .unwrap();
    drop(engine);
    disk.flip_bit(old + 20, 1);
    for _ in 0..2 {
        let engine = open(&disk);
        let found = get(&engine, &unit(1), key(3, 0)).map(|blocks| blocks.payload);
        assert_eq!(found, Ok(payload(&unit(1), key(3, 0), 1, 3000)));
        assert_eq!(engine.status().shards, 100);
    }
}

/// As after a crash that came before the summaries, or on a disk of before there were any.
#[test]
fn summaries_that_are_missing_are_made_up_for() {
    let disk = without_summaries(&filled());
    let before = Look::at(&disk);
    assert_eq!(before.summed_up(), 0);
    let engine = open(&disk);
    // No request takes them along: they are written when the disk falls idle.
    let missing = before.found.opened.walked - 1;
    eventually("they are written", || Look::at(&disk).summed_up() == missing);
    drop(engine);
    let look = Look::at(&disk);
    assert_eq!(look.found.opened.walked, 1, "the open one");
    assert_eq!(look.summed_up(), missing);
    assert_eq!(known(&look.found.index), known(&before.found.index));
    look.check_summaries();
}

/// The newest extent is full to the last block, so an older one goes on: it must not be summed up too.
#[test]
fn an_extent_that_goes_on_is_not_summed_up() {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, 32 * 1024);
    let engine = open(&disk);
    fill(&engine, &unit(1), 0..1, 3000);
    fill(&engine, &unit(1), 1..2, 6 * BLOCK - 324);
    drop(engine);
    let disk = without_summaries(&disk);
    let engine = open(&disk);
    let extent = engine.shared.index().open_extent(unit(1).unit);
    assert_eq!(
        extent,
        Some(offset_of(&engine, unit(1).unit, key(0, 0)).1.place.extent)
    );
    fill(&engine, &unit(1), 2..3, 3000);
    let flushed = || peek_superblock(&*disk.device()).unwrap().flushed;
    let before = flushed();
    // Whatever waits to be summed up is, when the disk falls idle.
    eventually("the disk is idle", || flushed() > before);
    fill(&engine, &unit(1), 3..5, 3000);
    drop(engine);
    Look::at(&disk).check_summaries();
    assert_served(&open(&disk), &unit(1), [0, 2, 3, 4].into_iter(), 3000);
}

#[test]
fn a_shard_as_large_as_an_extent_still_fits() {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, 32 * 1024);
    let engine = open(&disk);
    // A head of 324 bytes, and all of the six blocks.
    let len = 6 * BLOCK - 324;
    fill(&engine, &unit(1), 0..4, len);
    drop(engine);
    let engine = open(&disk);
    assert_eq!(engine.opened().summed_up, 0);
    assert_served(&engine, &unit(1), 0..4, len);
}
