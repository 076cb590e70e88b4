//! Disks that earlier versions wrote stay readable: an image of each format version is kept, with what is on it.
//!
//! `golden/v1.txt` is the image, as the sectors that hold something; `golden/v1.shards` lists the shards that it serves.
//! The image has what the format has: packed and aligned payloads, one and two blocks, an overwritten shard, a
//! tombstone, a dropped unit with its freed extent, and a record that recovery cut; from version 2 on also a sealed
//! extent with its summary.
//!
//! They are never made anew for a version that was released: a new version gets files of its own. To make them for a new
//! version: `cargo test --release -p storage-node --test golden -- --ignored make`.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use storage_node::device::{Backend, open_file};
use storage_node::engine::{Engine, Format, format};
use storage_node::format::superblock::FORMAT_VERSION;
use storage_node::offline::{Disk, Inspection, RecordFilter, RecordState, inspect, verify};
use storage_node::protocol::{
    BLOCK_BYTES, BlockRange, ClusterId, DiskId, Generation, LedgerMarks, NodeError, Seal, SealedShard,
    ShardKey, UnitAddress, UnitId, bad_block, block_crc, seal_seed,
};

const SECTOR: usize = 512;
const EXTENT_SIZE: u64 = 128 << 10;
/// Four superblocks and twelve extents.
const SIZE: u64 = 4 * (4096 + 3 * EXTENT_SIZE);
const DEADLINE: Duration = Duration::from_secs(20);
/// Which ledger it obeys, from version 3 on.
const MARKS: LedgerMarks = LedgerMarks {
    generation: Generation {
        number: 7,
        nonce: 0x5eed,
    },
    position: 1_234,
    blob_limit: 1_000,
    volume_limit: 40,
    epoch: 6,
};
/// No blob of the image has a greater number.
const BLOB_MAX: u64 = 20;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn unit(volume: u64, index: u8, epoch: u32) -> UnitAddress {
    UnitAddress {
        disk: DiskId(0x6f1d),
        incarnation: 4,
        unit: UnitId { volume, index },
        epoch,
        ledger: MARKS.generation,
    }
}

/// A shard of mostly zeros, so that the image stays small.
fn sealed(to: &UnitAddress, key: ShardKey, len: u32, shards: u8) -> SealedShard {
    let mut payload = vec![0; len as usize];
    for piece in payload.chunks_mut(16 << 10) {
        for (at, byte) in piece.iter_mut().take(40).enumerate() {
            *byte = (key.blob * 16 + u64::from(key.stripe)) as u8 ^ (at as u8).wrapping_mul(37) | 1;
        }
    }
    let seed = seal_seed(to.unit, key, len);
    let blocks = (0..).zip(payload.chunks(BLOCK_BYTES as usize));
    SealedShard {
        key,
        seal: Seal {
            block_crcs: blocks.map(|(n, block)| block_crc(seed, n, block)).collect(),
            digests: (0..shards).map(|n| [n + 1; 32]).collect(),
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

fn put(engine: &Engine, to: &UnitAddress, blob: u64, stripe: u32, len: u32, shards: u8) {
    let shard = sealed(to, ShardKey { blob, stripe }, len, shards);
    block_on(engine.put(to, shard, DEADLINE)).unwrap();
}

fn open(path: &Path) -> Engine {
    Engine::open(open_file(path, Backend::Pread).unwrap()).unwrap()
}

fn look(path: &Path, blob: u64) -> Inspection {
    let filter = RecordFilter { blob, stripe: None };
    inspect(&Disk::open(path).unwrap(), Some(filter), &mut |_, _| {})
}

/// Makes an image in this directory, by what the engine of today writes.
fn make(directory: &Path) -> PathBuf {
    let attempt = |number: u32| {
        let directory = directory.join(number.to_string());
        std::fs::create_dir(&directory).unwrap();
        try_make(&directory)
    };
    (0..10)
        .find_map(attempt)
        .expect("a machine that is not this busy")
}

/// None if the disk fell idle, and said that its last batch was flushed, before it was copied.
fn try_make(directory: &Path) -> Option<PathBuf> {
    let (whole, torn) = (directory.join("whole"), directory.join("torn"));
    File::create(&whole).unwrap().set_len(SIZE).unwrap();
    let layout = Format {
        cluster: ClusterId(0xca1),
        disk: DiskId(0x6f1d),
        incarnation: 4,
        extent_size: EXTENT_SIZE,
    };
    format(&*open_file(&whole, Backend::Pread).unwrap(), &layout).unwrap();
    let (one, two, dropped) = (unit(10, 0, 1), unit(11, 5, 2), unit(12, 1, 1));
    let sealed = unit(13, 2, 1);

    let engine = open(&whole);
    put(&engine, &dropped, 6, 0, 900, 6);
    block_on(engine.drop_unit(&dropped, DEADLINE)).unwrap();
    let started = Instant::now();
    while engine.metrics().extents_freed == 0 {
        assert!(
            started.elapsed() < DEADLINE,
            "the dropped unit's extent was not freed"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    for (blob, stripe, len) in [
        (1, 0, 1),
        (1, 1, 100),
        (2, 0, 5000),
        (3, 0, 700),
        (4, 0, 32 << 10),
    ] {
        put(&engine, &one, blob, stripe, len, 6);
    }
    for (blob, stripe, len) in [(7, 0, 70_000), (7, 1, 65_536 / 4), (9, 0, 300)] {
        put(&engine, &two, blob, stripe, len, 16);
    }
    // The third does not fit into the extent of the first two, which is sealed.
    for blob in 10..13 {
        put(&engine, &sealed, blob, 0, 50_000, 6);
    }
    put(&engine, &one, 2, 0, 5100, 6);
    block_on(engine.delete(&one, &[3], DEADLINE)).unwrap();
    put(&engine, &two, 9, 0, 400, 16);
    // Before the disk falls idle, so that no superblock calls the last batch flushed.
    std::fs::copy(&whole, &torn).unwrap();
    drop(engine);

    let found = look(&torn, 9);
    let records = found.records.unwrap();
    let last = records.iter().find(|r| r.state == RecordState::Live).unwrap();
    if last.batch <= found.flushed {
        return None;
    }
    let payload = last.device_offset + u64::from(last.payload_at);
    let file = File::options().write(true).open(&torn).unwrap();
    file.write_all_at(&[0; 8], payload).unwrap();
    drop(file);
    let engine = open(&torn);
    put(&engine, &one, BLOB_MAX, 3, 64, 6);
    block_on(engine.obey(&MARKS, DEADLINE)).unwrap();
    drop(engine);
    Some(torn)
}

/// The sectors that hold something: offset and bytes in hex, zeros at the end left out.
fn dump(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    let mut text = format!(
        "# A disk of format version {FORMAT_VERSION}; see golden.rs.\nsize {}\n",
        bytes.len()
    );
    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
        if let Some(last) = sector.iter().rposition(|byte| *byte != 0) {
            write!(text, "{:x} ", number * SECTOR).unwrap();
            sector[..=last]
                .iter()
                .for_each(|byte| write!(text, "{byte:02x}").unwrap());
            text.push('\n');
        }
    }
    text
}

fn restore(text: &str, path: &Path) {
    let file = File::create(path).unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (place, bytes) = line.split_once(' ').unwrap();
        if place == "size" {
            file.set_len(bytes.parse().unwrap()).unwrap();
            continue;
        }
        let digits = bytes.as_bytes().chunks(2);
        let bytes: Vec<u8> = digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let offset = u64::from_str_radix(place, 16).unwrap();
        file.write_all_at(&bytes, offset).unwrap();
    }
}

/// Every shard that the engine serves, checked: unit, epoch, key, length, digests, checksum of the bytes.
fn shards(path: &Path) -> String {
    let engine = open(path);
    let mut text = String::from("# volume/index epoch blob/stripe length digests crc32\n");
    for info in engine.units().unwrap() {
        let superblock = engine.superblock();
        let from = UnitAddress {
            disk: superblock.disk,
            incarnation: superblock.incarnation,
            unit: info.unit,
            epoch: info.epoch,
            ledger: MARKS.generation,
        };
        for entry in engine.inventory(&from, None, 1000).unwrap() {
            let blocks = block_on(engine.get(&from, entry.key, BlockRange::ALL, DEADLINE)).unwrap();
            let seed = seal_seed(info.unit, entry.key, blocks.shard_len);
            assert_eq!(bad_block(seed, &blocks.payload, &blocks.block_crcs), None);
            assert_eq!(blocks.payload.len(), entry.len as usize);
            writeln!(
                text,
                "{}/{} {} {}/{} {} {} {:08x}",
                info.unit.volume,
                info.unit.index,
                info.epoch,
                entry.key.blob,
                entry.key.stripe,
                entry.len,
                blocks.digests.len(),
                crc32fast::hash(&blocks.payload)
            )
            .unwrap();
        }
    }
    text
}

/// All that an image decodes to, but for how often its superblock was written.
fn decoded(path: &Path) -> Vec<serde_json::Value> {
    let look = |blob| {
        let mut found = look(path, blob);
        found.superblocks.iter_mut().for_each(|copy| copy.sequence = None);
        serde_json::to_value(found).unwrap()
    };
    (0..=BLOB_MAX).map(look).collect()
}

fn read(name: &str) -> String {
    std::fs::read_to_string(golden(name)).unwrap()
}

fn assert_served_whole(version: u32, summed_up: u64) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    restore(&read(&format!("v{version}.txt")), &path);
    let found = verify(&Disk::open(&path).unwrap(), &mut |_, _| {});
    assert!(found.clean && found.findings.is_empty(), "{found:#?}");
    let before = look(&path, 9);
    assert_eq!(before.format, version);
    assert_eq!(
        before.extents.iter().filter(|e| e.sealed).count() as u64,
        summed_up
    );
    assert_eq!((before.tombstones, before.drops, before.cuts), (1, 1, 1));
    assert!(
        before
            .records
            .unwrap()
            .iter()
            .any(|r| r.state == RecordState::Cut)
    );
    assert_eq!(open(&path).opened().summed_up, summed_up);
    for _ in 0..2 {
        assert_eq!(shards(&path), read(&format!("v{version}.shards")));
    }
    // It can be written on, too.
    let (engine, to) = (open(&path), unit(10, 0, 1));
    put(&engine, &to, 21, 0, 3000, 6);
    block_on(engine.delete(&to, &[1], DEADLINE)).unwrap();
    drop(engine);
    let served = shards(&path);
    assert!(
        served.contains(" 21/0 3000 ") && !served.contains(" 1/0 "),
        "{served}"
    );
}

#[test]
fn a_disk_of_version_1_is_served_whole() {
    assert_served_whole(1, 0);
}

#[test]
fn a_disk_of_version_2_is_served_whole() {
    assert_served_whole(2, 1);
}

#[test]
fn a_disk_of_version_3_is_served_whole_and_obeys_its_ledger() {
    assert_served_whole(3, 1);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    restore(&read("v3.txt"), &path);
    let engine = open(&path);
    assert_eq!(engine.ledger(), MARKS);
    let other = UnitAddress {
        ledger: Generation::NONE,
        ..unit(10, 0, 1)
    };
    let current = MARKS.generation;
    let refused = block_on(engine.delete(&other, &[1], DEADLINE));
    assert_eq!(refused, Err(NodeError::OtherLedger { current }));
}

#[test]
fn what_is_written_today_decodes_as_version_3() {
    let directory = tempfile::tempdir().unwrap();
    let old = directory.path().join("old");
    restore(&read("v3.txt"), &old);
    let new = make(directory.path());
    for (old, new) in decoded(&old).iter().zip(decoded(&new)) {
        assert_eq!(*old, new);
    }
    assert_eq!(shards(&new), read("v3.shards"));
}

#[test]
fn a_dump_is_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let (image, again) = (make(directory.path()), directory.path().join("again"));
    restore(&dump(&image), &again);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&again).unwrap());
}

#[test]
#[ignore = "writes the files of the current format version; a released version's stay as they are"]
fn make_files_of_this_version() {
    let directory = tempfile::tempdir().unwrap();
    let image = make(directory.path());
    std::fs::write(golden(&format!("v{FORMAT_VERSION}.txt")), dump(&image)).unwrap();
    std::fs::write(golden(&format!("v{FORMAT_VERSION}.shards")), shards(&image)).unwrap();
}
