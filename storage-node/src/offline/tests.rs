//! Images made by the engine, damaged in known ways: each damage is found, named, and nothing else is.

use super::*;
use crate::device::{Backend, open_file};
use crate::engine::{Engine, Format, format};
use crate::format::extent::DiskIdentity;
use crate::format::layout::{Layout, superblock_offset};
use crate::format::summary::{SUMMARY_FOOTER_BYTES, SummaryFooter, seeded_crc};
use crate::protocol::{
    BLOCK_BYTES, ClusterId, DiskId, Seal, SealedShard, ShardKey, UnitAddress, UnitId, block_crc, seal_seed,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SIZE: u64 = 8 << 20;
const EXTENT_SIZE: u64 = 256 << 10;
const DEADLINE: Duration = Duration::from_secs(20);

fn unit(volume: u64) -> UnitAddress {
    UnitAddress {
        disk: DiskId(7),
        incarnation: 1,
        unit: UnitId { volume, index: 2 },
        epoch: 3,
        ledger: crate::protocol::Generation::NONE,
    }
}

fn sealed(to: &UnitAddress, key: ShardKey, len: usize) -> SealedShard {
    let payload: Vec<u8> = (0..len).map(|n| (n as u64 * 31 + key.blob * 7) as u8).collect();
    let seed = seal_seed(to.unit, key, len as u32);
    let blocks = (0..).zip(payload.chunks(BLOCK_BYTES as usize));
    SealedShard {
        key,
        seal: Seal {
            block_crcs: blocks.map(|(n, block)| block_crc(seed, n, block)).collect(),
            digests: vec![[5; 32]; 6],
        },
        payload: payload.into(),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(future)
}

/// A disk in a directory of its own.
struct Image {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Image {
    fn new() -> Image {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let layout = Format {
            cluster: ClusterId(1),
            disk: DiskId(7),
            incarnation: 1,
            extent_size: EXTENT_SIZE,
        };
        format(&*open_file(&path, Backend::Pread).unwrap(), &layout).unwrap();
        Image {
            path,
            _directory: directory,
        }
    }

    /// Two units of ten shards each, blob 3 deleted from the first and blob 4 put twice.
    fn filled() -> Image {
        let image = Image::new();
        image.serve(|engine| {
            for volume in [1, 2] {
                for blob in 0..10 {
                    put(engine, volume, blob, 1000 + 9000 * blob as usize);
                }
            }
            put(engine, 1, 4, 37_000);
            block_on(engine.delete(&unit(1), &[3], DEADLINE)).unwrap();
        });
        image
    }

    fn serve(&self, work: impl FnOnce(&Engine)) {
        let engine = Engine::open(open_file(&self.path, Backend::Pread).unwrap()).unwrap();
        work(&engine);
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    fn flip(&self, at: u64) {
        let (file, mut byte) = (self.file(), [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }

    fn wipe_block(&self, at: u64) {
        self.file().write_all_at(&[0; 4096], at).unwrap();
    }

    fn verify(&self) -> Verification {
        verify(&Disk::open(&self.path).unwrap(), &mut |_, _| {})
    }

    fn inspect(&self, blob: u64) -> Inspection {
        let filter = RecordFilter { blob, stripe: None };
        inspect(&Disk::open(&self.path).unwrap(), Some(filter), &mut |_, _| {})
    }

    /// The live record of a blob.
    fn record(&self, volume: u64, blob: u64) -> RecordLine {
        let records = self.inspect(blob).records.unwrap();
        let is_it = |r: &RecordLine| r.unit.volume == volume && r.state == RecordState::Live;
        records.into_iter().find(is_it).unwrap()
    }

    /// The only finding.
    fn finding(&self) -> Finding {
        let found = self.verify();
        assert_eq!(found.findings.len(), 1, "{found:#?}");
        assert_eq!(found.clean, found.findings[0].severity == Severity::Unfinished);
        found.findings[0].clone()
    }
}

fn put(engine: &Engine, volume: u64, blob: u64, len: usize) {
    let (to, key) = (unit(volume), ShardKey { blob, stripe: 0 });
    block_on(engine.put(&to, sealed(&to, key, len), DEADLINE)).unwrap();
}

fn layout() -> Layout {
    Layout::new(SIZE, EXTENT_SIZE).unwrap()
}

#[test]
fn a_fresh_and_a_used_disk_are_clean() {
    let found = Image::new().verify();
    assert!(found.clean && found.findings.is_empty(), "{found:#?}");
    assert_eq!((found.extents, found.records), (layout().extents().into(), 0));
    let found = Image::filled().verify();
    assert!(found.clean && found.findings.is_empty(), "{found:#?}");
    assert_eq!((found.records, found.live_shards), (22, 19));
}

#[test]
fn an_inspection_counts_what_the_engine_serves() {
    let image = Image::filled();
    let mut served = None;
    image.serve(|engine| served = Some((engine.status(), engine.units().unwrap())));
    let (status, units) = served.unwrap();
    let found = image.inspect(4);
    assert_eq!((found.live_shards, found.shards), (status.shards, 21));
    assert_eq!((found.tombstones, found.drops, found.cuts), (1, 0, 0));
    let payload: u64 = found.units.iter().map(|unit| unit.payload_bytes).sum();
    assert_eq!(payload, status.live_bytes);
    let lines = found
        .units
        .iter()
        .filter_map(|unit| Some((unit.unit?, unit.live_records, unit.epoch)));
    assert!(lines.eq(units.iter().map(|unit| (unit.unit, unit.shards, unit.epoch))));
    assert_eq!(found.extents_free, status.free_extents);
    let extents = found.extents_free + found.extents_of_units + found.extents_of_system;
    assert_eq!((extents, found.extents_bad), (layout().extents().into(), 0));
    assert!(found.superblocks.iter().all(|copy| copy.problem.is_none()));
    assert!(found.live_bytes < found.written_bytes);
}

#[test]
fn every_record_of_a_blob_is_listed_with_its_worth() {
    let image = Image::filled();
    let states = |blob| {
        let records = image.inspect(blob).records.unwrap();
        let mut states: Vec<_> = records.iter().map(|r| (r.unit.volume, r.kind, r.state)).collect();
        states.sort_by_key(|(volume, kind, state)| (*volume, *kind, *state as u8));
        states
    };
    assert_eq!(
        states(3),
        [
            (1, "shard", RecordState::Deleted),
            (1, "tombstone", RecordState::Mark),
            (2, "shard", RecordState::Live)
        ]
    );
    assert_eq!(
        states(4),
        [
            (1, "shard", RecordState::Live),
            (1, "shard", RecordState::Superseded),
            (2, "shard", RecordState::Live)
        ]
    );
    assert_eq!(states(99), []);
}

#[test]
fn a_flipped_payload_byte_is_that_finding() {
    let image = Image::filled();
    for blob in [0, 5, 9] {
        let record = image.record(1, blob);
        let at = record.device_offset + u64::from(record.payload_at) + u64::from(record.len) / 2;
        image.flip(at);
        let finding = image.finding();
        assert_eq!(
            (finding.kind, finding.severity),
            (FindingKind::Payload, Severity::Damage)
        );
        assert_eq!((finding.unit, finding.blob), (Some(unit(1).unit), Some(blob)));
        assert_eq!(
            (finding.stripe, finding.state),
            (Some(0), Some(RecordState::Live))
        );
        assert_eq!(finding.offset, Some(record.device_offset));
        assert_eq!(image.verify().live_shards_damaged, 1);
        assert!(image.record(1, blob).payload.contains("checksum mismatch"));
        image.flip(at);
    }
    assert!(image.verify().clean);
}

/// The last record of an extent too, behind which nothing valid tells that something was lost.
#[test]
fn a_flipped_head_byte_is_that_finding() {
    let image = Image::filled();
    for (volume, blob) in [(1, 0), (1, 5), (2, 9)] {
        let record = image.record(volume, blob);
        for byte in [5, 45, 140] {
            let at = record.device_offset + byte;
            image.flip(at);
            let finding = image.finding();
            assert_eq!(
                (finding.kind, finding.severity),
                (FindingKind::Head, Severity::Damage)
            );
            assert_eq!(
                (finding.unit, finding.blob),
                (Some(unit(volume).unit), Some(blob))
            );
            assert_eq!(
                (finding.offset, finding.state),
                (Some(record.device_offset), None)
            );
            image.flip(at);
        }
    }
}

#[test]
fn a_bad_superblock_copy_is_that_finding_and_the_others_count() {
    let image = Image::filled();
    for copy in 0..4 {
        let image = Image::filled();
        image.wipe_block(superblock_offset(SIZE, copy));
        let finding = image.finding();
        assert_eq!(
            (finding.kind, finding.severity),
            (FindingKind::Superblock, Severity::Damage)
        );
        assert_eq!(finding.offset, Some(superblock_offset(SIZE, copy)));
    }
    for copy in 0..4 {
        image.wipe_block(superblock_offset(SIZE, copy));
    }
    assert!(matches!(
        Disk::open(&image.path),
        Err(OpenError::NoSuperblock { .. })
    ));
    assert_eq!(probe(&image.path).unwrap().superblock, "none");
}

#[test]
fn bad_headers_are_found_and_what_they_hide_is_not_guessed() {
    let image = Image::filled();
    let record = image.record(1, 5);
    let headers = [0, layout().data_end()].map(|at| layout().extent_offset(record.extent) + u64::from(at));
    image.flip(headers[1] + 30);
    let finding = image.finding();
    assert_eq!(
        (finding.kind, finding.offset),
        (FindingKind::Header, Some(headers[1]))
    );
    image.wipe_block(headers[0]);
    let finding = image.finding();
    assert_eq!(
        (finding.kind, finding.extent),
        (FindingKind::Header, Some(record.extent))
    );
    assert!(finding.what.starts_with("both headers"), "{finding:?}");
    let found = image.inspect(5);
    assert_eq!(found.extents_bad, 1);
    assert!((10..19).contains(&found.live_shards), "{}", found.live_shards);
}

#[test]
fn a_header_or_superblock_that_was_being_written_is_unfinished_not_damage() {
    let image = Image::filled();
    let extent = image.record(1, 5).extent;
    let identity = DiskIdentity {
        disk: DiskId(7),
        incarnation: 1,
    };
    let mut block = [0; 80];
    let at = layout().extent_offset(extent);
    image.file().read_exact_at(&mut block, at).unwrap();
    let mut header = crate::format::extent::ExtentHeader::decode(&block, &identity, extent).unwrap();
    header.sequence += 1;
    image.file().write_all_at(&header.encode(&identity), at).unwrap();
    let finding = image.finding();
    assert_eq!(
        (finding.kind, finding.severity),
        (FindingKind::Header, Severity::Unfinished)
    );
    assert!(finding.what.contains("header B is older"), "{finding:?}");
    // The next start repairs it.
    image.serve(|_| {});
    assert!(image.verify().findings.is_empty());
}

/// A stop between a write and its flush: the record was never acknowledged, and an older one of its key counts.
#[test]
fn a_torn_record_is_unfinished_and_cut_by_the_next_start() {
    let image = Image::filled();
    let torn = Image::new();
    image.serve(|engine| {
        // Copied before the disk falls idle, so that no superblock calls the last batch flushed.
        let is_torn = |_| {
            put(engine, 1, 7, 50_000);
            std::fs::copy(&image.path, &torn.path).unwrap();
            torn.record(1, 7).batch > torn.inspect(7).flushed
        };
        assert!((0..10).any(is_torn));
    });
    assert!(torn.verify().findings.is_empty());
    let record = torn.record(1, 7);
    torn.flip(record.device_offset + u64::from(record.payload_at) + 5);
    let finding = torn.finding();
    assert_eq!(
        (finding.kind, finding.severity),
        (FindingKind::Payload, Severity::Unfinished)
    );
    assert_eq!(finding.state, Some(RecordState::Torn));
    let before = torn.record(1, 7);
    assert!(before.sequence < record.sequence, "the record of before counts");
    let live = torn.inspect(7).live_shards;
    torn.serve(|engine| assert_eq!(engine.status().shards, live));
    let found = torn.inspect(7);
    assert_eq!((found.live_shards, found.cuts), (live, 1));
    assert!(found.records.unwrap().iter().any(|r| r.state == RecordState::Cut));
    assert!(torn.verify().findings.is_empty());
}

#[test]
fn a_truncated_disk_is_read_as_far_as_it_goes() {
    let image = Image::filled();
    image.file().set_len(SIZE / 2).unwrap();
    let found = image.verify();
    let of_kind = |kind| found.findings.iter().filter(|f| f.kind == kind).count();
    assert!(!found.clean);
    // The disk itself, and each extent of its second half; two superblock copies with them.
    assert_eq!(of_kind(FindingKind::Size), 1 + layout().extents() as usize / 2);
    assert_eq!(of_kind(FindingKind::Superblock), 2);
    let inspection = image.inspect(4);
    assert_eq!(inspection.extents_missing, u64::from(layout().extents()) / 2);
    assert_eq!(probe(&image.path).unwrap().formatted_bytes, Some(SIZE));
}

#[test]
fn what_is_no_disk_of_ours_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("noise");
    let noise: Vec<u8> = (0..1 << 20)
        .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    std::fs::write(&path, noise).unwrap();
    let refused = |path: &Path| Disk::open(path).err().unwrap().to_string();
    assert!(
        refused(&path).contains("no valid superblock"),
        "{}",
        refused(&path)
    );
    assert!(refused(directory.path()).contains("neither a file nor a block device"));
    assert!(refused(&directory.path().join("none")).contains("No such file"));
    std::fs::write(&path, b"").unwrap();
    assert!(
        refused(&path).contains("no valid superblock"),
        "{}",
        refused(&path)
    );
    assert_eq!(probe(&path).unwrap().superblock, "none");
}

#[test]
fn a_disk_in_use_is_refused_and_readers_keep_it_from_being_used() {
    let image = Image::filled();
    image.serve(|_| {
        let error = Disk::open(&image.path).err().unwrap().to_string();
        assert!(error.contains("in use"), "{error}");
        assert!(probe(&image.path).unwrap_err().to_string().contains("in use"));
    });
    let (one, two) = (Disk::open(&image.path).unwrap(), Disk::open(&image.path).unwrap());
    assert!(open_file(&image.path, Backend::Pread).is_err());
    drop((one, two));
    assert!(open_file(&image.path, Backend::Pread).is_ok());
}

#[test]
fn nothing_is_written() {
    let image = Image::filled();
    image.flip(image.record(1, 5).device_offset + 20);
    image.wipe_block(superblock_offset(SIZE, 1));
    let before = std::fs::read(&image.path).unwrap();
    image.verify();
    image.inspect(5);
    probe(&image.path).unwrap();
    assert!(std::fs::read(&image.path).unwrap() == before);
}

#[test]
fn findings_are_bounded_and_all_counted() {
    let image = Image::filled();
    for extent in 0..layout().extents() {
        image.wipe_block(layout().extent_offset(extent));
    }
    let found = image.verify();
    assert_eq!(found.damaged, u64::from(layout().extents()));
    let mut many = found.clone();
    many.findings.clear();
    for _ in 0..2 * FINDINGS_KEPT_MAX {
        many.add(found.findings[0].clone());
    }
    assert_eq!(many.findings.len(), FINDINGS_KEPT_MAX);
    assert_eq!(many.damaged, found.damaged + 2 * FINDINGS_KEPT_MAX as u64);
}

/// Ten shards of 60 KB: four of them fill an extent, and what was filled is sealed.
fn sealed_image() -> Image {
    let image = Image::new();
    image.serve(|engine| {
        for blob in 0..10 {
            put(engine, 1, blob, 60_000);
        }
    });
    image
}

/// Where the footer of the extent of a record is.
fn footer_of(record: &RecordLine) -> u64 {
    layout().extent_offset(record.extent) + u64::from(layout().data_end()) - SUMMARY_FOOTER_BYTES as u64
}

#[test]
fn a_summary_that_does_not_verify_is_that_finding() {
    let image = sealed_image();
    let found = image.verify();
    assert!(found.clean && found.findings.is_empty(), "{found:#?}");
    let footer = footer_of(&image.record(1, 0));
    // A footer's field, and an entry.
    for at in [footer + 70, footer + 128 - 4096 + 8] {
        image.flip(at);
        let finding = image.finding();
        assert_eq!(
            (finding.kind, finding.severity),
            (FindingKind::Summary, Severity::Damage)
        );
        assert_eq!(finding.offset, Some(footer + 128 - 4096));
        assert!(finding.what.contains("checksum mismatch"), "{finding:?}");
        image.flip(at);
    }
    // Serving it mends it.
    image.flip(footer + 70);
    image.serve(|_| {});
    assert!(image.verify().clean);
}

#[test]
fn a_summary_that_says_otherwise_than_the_records_is_that_finding() {
    let image = sealed_image();
    let record = image.record(1, 1);
    let footer = footer_of(&record);
    let identity = DiskIdentity {
        disk: DiskId(7),
        incarnation: 1,
    };
    let (mut block, file) = ([0; 4096], image.file());
    file.read_exact_at(&mut block, footer + 128 - 4096).unwrap();
    let decoded = SummaryFooter::decode(
        &block[3968..],
        &identity,
        record.extent,
        record.generation,
        &layout(),
    );
    let mut rewritten = decoded.unwrap();
    // Another blob in the second entry, with all checksums right.
    block[24] ^= 64;
    let entries = &block[..rewritten.entries as usize * 24];
    rewritten.entries_crc = seeded_crc(&identity, record.extent, record.generation, entries);
    block[3968..].copy_from_slice(&rewritten.encode(&identity));
    file.write_all_at(&block, footer + 128 - 4096).unwrap();
    let finding = image.finding();
    assert_eq!(
        (finding.kind, finding.severity, finding.unit),
        (FindingKind::Summary, Severity::Damage, Some(unit(1).unit))
    );
    let place = format!("first at {} in", record.offset);
    assert!(finding.what.contains(&place), "{finding:?}");
}
