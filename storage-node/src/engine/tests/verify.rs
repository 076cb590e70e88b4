//! Verifying finds what is wrong, all of it, and nothing else; also while the disk is at work.

use super::house::House;
use super::*;
use crate::device::{DeviceErrorKind, align_down};
use crate::engine::stream::{GENTLE, HASTY, Stream};
use crate::engine::verify::{Pace, burst};
use crate::format::summary::{
    SUMMARY_FOOTER_BYTES, SummaryEntry, SummaryFooter, Tail, seeded_crc, summary_len, summary_start,
};
use crate::protocol::{Finding, FindingKind, VerifyOrder};
use std::sync::atomic::AtomicBool;

fn filled() -> (SimulatedDisk, Vec<ShardKey>) {
    let disk = SimulatedDisk::new(64 << 20, 1);
    format_simulated(&disk, 4 << 20);
    let engine = Engine::open(disk.device()).unwrap();
    let to = unit(1);
    let keys: Vec<ShardKey> = (0..40).map(|blob| key(blob, 0)).collect();
    for (number, key) in keys.iter().enumerate() {
        let len = [1, 500, 4096, 20_000, 70_000, 1 << 20][number % 6];
        put(&engine, &to, *key, payload(&to, *key, 0, len)).unwrap();
    }
    (disk, keys)
}

fn found(engine: &Engine) -> Vec<(FindingKind, ShardKey)> {
    let before = engine.findings(0).last;
    let verified = engine.verify_once();
    let findings = engine.findings(before);
    assert_eq!(verified.findings, findings.found.len() as u64);
    assert_eq!(findings.last, before + verified.findings);
    let what = |finding: &Finding| (finding.kind, finding.key);
    findings.found.iter().map(what).collect()
}

#[test]
fn every_flipped_bit_of_a_live_record_is_found() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    let clean = engine.verify_once();
    assert_eq!((clean.shards, clean.findings), (40, 0));
    assert!(clean.bytes > 6 << 20, "{} bytes", clean.bytes);
    for (number, key) in keys.iter().enumerate() {
        let (start, entry) = offset_of(&engine, unit(1).unit, *key);
        let last = start + entry.footprint() - 1;
        for at in [
            start,
            start + 9,
            start + 130,
            start + u64::from(entry.payload_at),
            last,
        ] {
            disk.flip_bit(at, number as u8);
            assert_eq!(
                found(&engine),
                [(FindingKind::Corrupt, *key)],
                "byte {}",
                at - start
            );
            disk.flip_bit(at, number as u8);
        }
    }
    assert_eq!(found(&engine), []);
    assert_eq!(engine.status().corrupt_shards, 200);
}

#[test]
fn only_what_is_late_or_has_no_pace_reads_in_haste() {
    let ((small, gait), (large, late)) = (burst(Duration::ZERO), burst(Duration::from_secs(60)));
    assert_eq!((gait, late), (GENTLE, HASTY));
    assert!(small < large);
    assert_eq!(Pace::unbounded().burst(), (u32::MAX, HASTY));
}

/// However it reads, it hands out the same bytes; and gently it reads no more at once than one small piece.
#[test]
fn streams_of_both_gaits_are_the_same_bytes() {
    let (disk, _) = filled();
    let largest = Arc::new(AtomicU64::new(0));
    let seen = largest.clone();
    let device = Tampered::over(&disk, move |_, buf| {
        seen.fetch_max(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    });
    let all = |gait| {
        largest.store(0, Ordering::Relaxed);
        let mut stream = Stream::new(&*device, 0, 0..120 * 1024, gait);
        let pieces = (0..30).map(|piece| stream.bytes(piece * 4000, 4000).to_vec());
        (pieces.collect::<Vec<_>>(), largest.load(Ordering::Relaxed))
    };
    let ((gentle, small), (hasty, large)) = (all(GENTLE), all(HASTY));
    assert!(gentle == hasty && gentle.iter().all(|piece| piece.len() == 4000));
    assert!(small < large, "{small} bytes at once, and {large} in haste");
}

/// With pauses it sees what it sees in one go, damage included.
#[test]
fn bursts_see_what_one_pass_sees() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    for key in [keys[5], keys[9], keys[23], keys[39]] {
        let (start, entry) = offset_of(&engine, unit(1).unit, key);
        disk.flip_bit(start + entry.footprint() / 2, 3);
    }
    let whole = engine.verify_once();
    let mut pace = Pace::new(1e12, None);
    let extents = 0..engine.shared.layout.extents();
    let parts = extents.map(|n| crate::engine::verify::verify_extent(&engine.shared, n, &mut pace).unwrap());
    let (mut shards, mut findings) = (0, 0);
    parts.for_each(|part| (shards, findings) = (shards + part.shards, findings + part.findings));
    assert_eq!((shards, findings), (whole.shards, whole.findings));
    assert_eq!((shards, findings), (40, 4));
}

#[test]
fn a_sector_that_cannot_be_read_costs_its_records_only() {
    let (disk, keys) = filled();
    let at = {
        let engine = Engine::open(disk.device()).unwrap();
        offset_of(&engine, unit(1).unit, keys[11]).0 + 500_000
    };
    let broken = Arc::new(AtomicBool::new(false));
    let fails = broken.clone();
    let device = Tampered::over(&disk, move |offset, buf| {
        match (offset..offset + buf.len() as u64).contains(&at) && fails.load(Ordering::Relaxed) {
            true => Err(DeviceError::new(DeviceErrorKind::Read, "a bad sector")),
            false => Ok(()),
        }
    });
    let engine = Engine::open(device).unwrap();
    broken.store(true, Ordering::Relaxed);
    assert_eq!(found(&engine), [(FindingKind::Unreadable, keys[11])]);
    broken.store(false, Ordering::Relaxed);
    assert_eq!(found(&engine), []);
}

#[test]
fn one_bad_read_is_no_finding() {
    let (disk, keys) = filled();
    let at = {
        let engine = Engine::open(disk.device()).unwrap();
        offset_of(&engine, unit(1).unit, keys[4]).0
    };
    let armed = Arc::new(AtomicBool::new(false));
    let fires = armed.clone();
    let device = Tampered::over(&disk, move |offset, buf| {
        if (offset..offset + buf.len() as u64).contains(&at) && fires.swap(false, Ordering::Relaxed) {
            buf[(at - offset) as usize + 20] ^= 1;
        }
        Ok(())
    });
    let engine = Engine::open(device).unwrap();
    armed.store(true, Ordering::Relaxed);
    assert_eq!(found(&engine), []);
    assert!(!armed.load(Ordering::Relaxed), "the read was made");
}

#[test]
fn a_record_that_the_index_forgot_is_found() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    engine.shared.index_mut().remove(unit(1).unit, keys[7]);
    assert_eq!(found(&engine), [(FindingKind::Forgotten, keys[7])]);
}

#[test]
fn an_overwritten_extent_is_found_shard_by_shard() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    let (start, entry) = offset_of(&engine, unit(1).unit, keys[0]);
    let here: Vec<ShardKey> = keys
        .iter()
        .filter(|key| offset_of(&engine, unit(1).unit, **key).1.place.extent == entry.place.extent)
        .copied()
        .collect();
    disk.overwrite(align_down(start), &vec![0x5a; 3 << 20]);
    let mut lost: Vec<ShardKey> = found(&engine).into_iter().map(|(_, key)| key).collect();
    lost.sort();
    let within = |key: &&ShardKey| offset_of(&engine, unit(1).unit, **key).0 < align_down(start) + (3 << 20);
    let expected: Vec<ShardKey> = here.iter().filter(within).copied().collect();
    assert_eq!(lost, expected);
    assert!(lost.len() > 10);
}

/// What is superseded, deleted, dropped, moved or cut is no finding, whatever happened.
#[test]
fn a_history_of_random_calls_and_power_cuts_verifies() {
    for seed in seeds(12) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 24, 64 * 1024);
        for round in 0..6 {
            if round % 2 == 1 {
                house.disk.crash_after(round * 37 % 90);
            }
            let _ = (0..120).any(|_| !house.step());
            if round % 2 == 1 {
                house.power_cut(None);
            }
            let engine = house.engine();
            // What compaction moves meanwhile to where the pass has been already is not met, and is when compaction is done.
            eventually("a pass meets every shard", || {
                engine.verify_once().shards == engine.status().shards
            });
            assert_eq!(engine.findings(0).found, [], "round {round}");
        }
    }
}

#[test]
fn a_disk_at_work_verifies() {
    let disk = SimulatedDisk::new(16 << 20, 3);
    format_simulated(&disk, 128 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    let working = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            for round in 0..3_000u64 {
                let to = unit(round % 3);
                let key = key(round * 7 % 60, 0);
                let len = 100 + (round * 997 % 9_000) as usize;
                match put(&engine, &to, key, payload(&to, key, round, len)) {
                    Ok(()) | Err(NodeError::Deleted) => {}
                    Err(error) => panic!("{error}"),
                }
                if round % 11 == 0 {
                    delete(&engine, &to, &[1_000 + round]).unwrap();
                }
            }
            working.store(false, Ordering::Relaxed);
        });
        let mut passes = 0;
        while working.load(Ordering::Relaxed) && !work.is_finished() {
            engine.verify_once();
            assert_eq!(engine.findings(0).found, []);
            passes += 1;
        }
        assert!(passes > 1, "{passes} passes");
    });
    assert!(engine.metrics().extents_freed > 10, "compaction was at work");
}

#[test]
fn the_cursor_survives_and_the_pace_stops_at_once() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    // A cycle that takes a day: it reads a little, then waits.
    engine.start_verifying(Duration::from_secs(86_400)).unwrap();
    engine.shutdown();
    drop(engine);
    let engine = Engine::open(disk.device()).unwrap();
    assert_eq!(engine.shared.verify_cursor.load(Ordering::Relaxed), 0);
    engine.shared.verify_cursor.store(1, Ordering::Relaxed);
    engine.start_verifying(Duration::from_millis(1)).unwrap();
    eventually("it went around", || {
        engine.metrics().verified_shards >= keys.len() as u64
    });
    engine.shutdown();
    let cursor = engine.shared.verify_cursor.load(Ordering::Relaxed);
    drop(engine);
    let engine = Engine::open(disk.device()).unwrap();
    assert_eq!(engine.shared.verify_cursor.load(Ordering::Relaxed), cursor);
}

/// A pass that is asked for does not wait for the one on its way, which would take days, and begins at the first extent.
#[test]
fn a_pass_that_is_asked_for_is_made_at_once_whatever_the_cycle() {
    let now = VerifyOrder {
        now: true,
        ..VerifyOrder::default()
    };
    for cycle in [None, Some(Duration::from_secs(864_000))] {
        let (disk, keys) = filled();
        let engine = Engine::open(disk.device()).unwrap();
        if let Some(cycle) = cycle {
            engine.shared.verify_cursor.store(1, Ordering::Relaxed);
            engine.start_verifying(cycle).unwrap();
        }
        for pass in 1..3 {
            engine.order_verifying(&now).unwrap();
            eventually("the pass is over", || engine.verify_status().passes == pass);
            assert!(engine.metrics().verified_shards >= pass * keys.len() as u64);
            let status = engine.verify_status();
            assert_eq!((status.at_once, status.ended_s_ago.is_some()), (false, true));
            assert_eq!(status.cycle_s, cycle.map(|cycle| cycle.as_secs()));
        }
    }
}

/// In the middle of an extent that would take hours, too.
#[test]
fn another_pace_counts_at_once() {
    let (disk, keys) = filled();
    let engine = Engine::open(disk.device()).unwrap();
    engine.shared.verify_cursor.store(1, Ordering::Relaxed);
    engine.start_verifying(Duration::from_secs(864_000)).unwrap();
    eventually("it has begun", || engine.metrics().verified_bytes > 0);
    let before = engine.metrics().verified_shards;
    let faster = VerifyOrder {
        cycle_s: Some(1),
        now: false,
    };
    engine.order_verifying(&faster).unwrap();
    eventually("it went around", || {
        engine.metrics().verified_shards >= before + 2 * keys.len() as u64
    });
    assert!(engine.verify_status().passes > 0);
}

/// A disk that is gone, or was overwritten as a whole, is fenced once and not reported shard by shard.
#[test]
fn a_disk_that_is_gone_is_no_list_of_findings() {
    for overwritten in [false, true] {
        let (disk, _) = filled();
        let engine = Engine::open(disk.device()).unwrap();
        match overwritten {
            true => disk.overwrite(0, &vec![0x5a; 64 << 20]),
            false => disk.remove(),
        }
        assert_eq!(found(&engine), []);
        assert!(engine.shared.fence.get().is_some());
        assert_eq!(engine.shared.metrics.corrupt_shards.get(), 0);
    }
}

/// A disk with sealed extents of small shards, and the summary of one: where it starts, its footer and its entries.
fn sealed_up() -> (SimulatedDisk, Engine, u64, SummaryFooter, Vec<SummaryEntry>) {
    let disk = SimulatedDisk::new(4 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let fill = |engine: &Engine| {
        for blob in 0..100 {
            let key = key(blob, 0);
            put(engine, &unit(1), key, payload(&unit(1), key, 0, 3000)).unwrap();
        }
    };
    fill(&Engine::open(disk.device()).unwrap());
    let engine = Engine::open(disk.device()).unwrap();
    let shared = &engine.shared;
    let (number, generation) = {
        let entry = offset_of(&engine, unit(1).unit, key(3, 0)).1;
        (entry.place.extent, entry.place.generation)
    };
    let (device, layout, identity) = (&*shared.device, &shared.layout, &shared.identity);
    let Tail::Sealed(footer) = tail::look_at_tail(device, layout, identity, (number, generation), None)
    else {
        panic!("it is sealed");
    };
    let entries = tail::read_entries(device, layout, identity, &footer).unwrap();
    let start = layout.extent_offset(number) + u64::from(summary_start(layout, footer.entries.into()));
    (disk, engine, start, footer, entries)
}

const NOBODY: ShardKey = ShardKey { blob: 0, stripe: 0 };

#[test]
fn a_flipped_bit_in_a_summary_is_found_and_the_summary_written_again() {
    let (disk, engine, start, footer, _) = sealed_up();
    assert_eq!(found(&engine), []);
    let len = summary_len(footer.entries.into());
    let before = disk.peek(start, len as usize);
    let entries = u64::from(footer.entries) * 24;
    for (number, at) in [0, 16, entries - 1, len - 121, len - 80].into_iter().enumerate() {
        disk.flip_bit(start + at, number as u8);
        assert_eq!(found(&engine), [(FindingKind::Summary, NOBODY)], "byte {at}");
        eventually("it is written again", || {
            let now = disk.peek(start, len as usize);
            now[..entries as usize] == before[..entries as usize] && engine.verify_once().findings == 0
        });
    }
    assert_eq!(engine.status().corrupt_shards, 0);
    assert!(engine.metrics().verify_findings >= 5);
    drop(engine);
    let opened = Engine::open(disk.device()).unwrap().opened();
    assert_eq!(opened.walked, 1, "{opened:?}: the open one");
}

/// It verifies, and would be believed.
#[test]
fn a_summary_that_says_otherwise_than_the_records_is_found_before_it_is_believed() {
    for lie in 0..3 {
        let (disk, engine, start, footer, mut entries) = sealed_up();
        match lie {
            0 => drop(entries.remove(2)),
            1 => entries[2].sequence += 1,
            _ => entries[2].key.blob = 1 << 30,
        }
        let encoded: Vec<u8> = entries
            .iter()
            .flat_map(|e| e.encode(footer.base).unwrap())
            .collect();
        let identity = &engine.shared.identity;
        let lying = SummaryFooter {
            entries: entries.len() as u32,
            entries_crc: seeded_crc(identity, footer.extent, footer.generation, &encoded),
            ..footer
        };
        let end = start + summary_len(footer.entries.into());
        disk.overwrite(start, &encoded);
        disk.overwrite(end - SUMMARY_FOOTER_BYTES as u64, &lying.encode(identity));
        assert_eq!(found(&engine), [(FindingKind::Summary, NOBODY)]);
        eventually("it is written again", || engine.verify_once().findings == 0);
        drop(engine);
        let engine = Engine::open(disk.device()).unwrap();
        for blob in 0..100 {
            let (to, key) = (unit(1), key(blob, 0));
            assert_eq!(
                get(&engine, &to, key).unwrap().payload,
                payload(&to, key, 0, 3000)
            );
        }
        assert_eq!(found(&engine), []);
    }
}

#[test]
fn one_bad_read_of_a_summary_is_no_finding() {
    let (disk, engine, start, footer, _) = sealed_up();
    drop(engine);
    let last = start + summary_len(footer.entries.into()) - 80;
    for at in [start + 5, last] {
        let armed = Arc::new(AtomicBool::new(false));
        let fires = armed.clone();
        let device = Tampered::over(&disk, move |offset, buf| {
            if (offset..offset + buf.len() as u64).contains(&at) && fires.swap(false, Ordering::Relaxed) {
                buf[(at - offset) as usize] ^= 1;
            }
            Ok(())
        });
        let engine = Engine::open(device).unwrap();
        armed.store(true, Ordering::Relaxed);
        assert_eq!(found(&engine), []);
        assert!(!armed.load(Ordering::Relaxed), "the read was made");
    }
}
