//! A `cairn node` on real disks: files on ext4 and raw block devices, both on loop devices. It is killed under load and
//! loses nothing that it acknowledged; a disk that is cut off, or full, harms nothing but itself.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_tests::content::Content;
use cairn_tests::loop_device::{self, Filesystem, LoopDevice};
use cairn_tests::node::{self, NodeProcess};
use cairn_tests::setting;
use cairn_tests::shard_load::{Load, random_bytes};
use cairn_tests::shards::{BYTES_MAX, Book, DEADLINE, ReadError, ShardName, UNITS, address, read, sealed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_node::client::StorageClient;
use storage_node::device::{Backend, DeviceErrorKind, open_file};
use storage_node::http_client::HttpClient;
use storage_node::protocol::{DiskId, DiskState, NodeError, ShardKey};

const MIB: u64 = 1 << 20;
const DISK: DiskId = DiskId(0xd15c);
const OTHER: DiskId = DiskId(0x07e8);
/// What must happen soon has so long on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(test)
}

fn seed() -> u64 {
    let seed = setting::number("CAIRN_TEST_SEED", rand::random());
    println!("CAIRN_TEST_SEED={seed}");
    seed
}

#[test]
fn a_killed_node_loses_nothing_acknowledged_on_a_file_on_ext4() {
    if loop_device::skip("a killed node on a file on ext4") {
        return;
    }
    let filesystem = Filesystem::ext4(512 * MIB);
    let disk = filesystem.file("disk");
    node::format(&disk, 384 * MIB, DISK);
    run(kill_under_load(&disk));
}

#[test]
fn a_killed_node_loses_nothing_acknowledged_on_a_raw_block_device() {
    if loop_device::skip("a killed node on a raw block device") {
        return;
    }
    let device = LoopDevice::new(384 * MIB);
    node::format(device.path(), 0, DISK);
    run(kill_under_load(device.path()));
}

async fn kill_under_load(disk: &Path) {
    let rounds = setting::number("CAIRN_TEST_ROUNDS", setting::scaled(3, 50));
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let load = Load {
        disk: DISK,
        writers: 8,
        writer_bytes_max: 16 << 20,
    };
    let mut node = NodeProcess::start(&[disk]);
    let mut book = Book::default();
    let mut requests = 0;
    for round in 0..rounds {
        let client = Arc::new(node.client());
        let running = load.start(&client, &book, random.random());
        tokio::time::sleep(Duration::from_millis(random.random_range(300..3000))).await;
        node.kill();
        let ended = running.stop().await;
        expect_killed(&ended.refused);
        book = ended.book;
        requests += ended.acknowledged.requests();
        let left = verify_undamaged(disk);
        if random.random_range(0..3) == 0 {
            // Recovery is cut off too, anywhere.
            node.spawn();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
            node.kill();
        }
        node.restart();
        let checked = book.check(&node.client(), DISK).await;
        let (round, done) = (format!("round {round}"), ended.acknowledged);
        assert!(
            checked.violations.is_empty(),
            "{round}:\n{}",
            checked.violations.join("\n")
        );
        println!(
            "{round}: {} puts, {} deletes, {} reads acknowledged; {} shards right, {} stay deleted; of those in \
             flight {} done and {} not; {left} unfinished writes",
            done.puts,
            done.deletes,
            done.reads,
            checked.right,
            checked.deleted,
            checked.in_flight_done,
            checked.in_flight_undone,
        );
    }
    assert!(
        requests > rounds * 50,
        "{requests} requests in {rounds} rounds are no load"
    );
    assert!(node.terminate().success());
    let (code, found) = node::verify(disk);
    assert_eq!((code, found["clean"].as_bool()), (0, Some(true)), "{found}");
    assert_eq!(found["unfinished"], 0, "{found}");
    assert_eq!(found["live_shards"], book.present().len(), "{found}");
}

/// A node that is gone gives no answers, and none but that are allowed to end a writer.
fn expect_killed(refused: &[NodeError]) {
    let killed = |error: &&NodeError| !matches!(error, NodeError::Unreachable { .. });
    let others: Vec<_> = refused.iter().filter(killed).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// What a kill leaves is unfinished at worst; answers how much of that there is.
fn verify_undamaged(disk: &Path) -> u64 {
    let (code, found) = node::verify(disk);
    assert_eq!((code, found["damaged"].as_u64()), (0, Some(0)), "{found}");
    found["unfinished"].as_u64().unwrap()
}

#[test]
fn a_disk_file_that_is_truncated_harms_no_other_disk() {
    if loop_device::skip("a truncated disk file on ext4") {
        return;
    }
    let filesystem = Filesystem::ext4(512 * MIB);
    let disk = filesystem.file("disk");
    node::format(&disk, 256 * MIB, DISK);
    let truncate = || {
        std::fs::File::options()
            .write(true)
            .open(&disk)
            .unwrap()
            .set_len(100 * MIB)
            .unwrap()
    };
    // A write past the new end that comes before somebody looks makes the file longer again.
    run(lose_a_disk(&disk, truncate, "truncated from 268435456 to "));
}

#[test]
fn a_block_device_that_loses_all_its_bytes_harms_no_other_disk() {
    if loop_device::skip("a block device that loses all its bytes") {
        return;
    }
    let device = LoopDevice::new(256 * MIB);
    node::format(device.path(), 0, DISK);
    let lose = || {
        device.truncate_backing(0);
        device.truncate_backing(256 * MIB);
    };
    run(lose_a_disk(device.path(), lose, "the disk was overwritten"));
}

/// What lies past the end of the file can be written, and not be read before that.
#[test]
fn a_block_device_whose_file_is_truncated_harms_no_other_disk() {
    if loop_device::skip("a block device with a truncated file under it") {
        return;
    }
    let device = LoopDevice::new(256 * MIB);
    node::format(device.path(), 0, DISK);
    run(lose_a_disk(
        device.path(),
        || device.truncate_backing(0),
        "the disk was overwritten",
    ));
}

#[test]
fn a_block_device_that_shrinks_harms_no_other_disk() {
    if loop_device::skip("a block device that shrinks") {
        return;
    }
    let device = LoopDevice::new(256 * MIB);
    node::format(device.path(), 0, DISK);
    let shrink = || {
        device.truncate_backing(MIB);
        device.take_size_of_backing();
    };
    // Looking finds it, or a write fails before that; a write in between makes the backing file longer again.
    run(lose_a_disk_for(device.path(), shrink, |reason| {
        reason.contains("truncated from 268435456 to ") || reason.contains("a write failed")
    }));
}

/// Nobody has to write to it.
#[test]
fn a_block_device_that_shrinks_is_noticed_by_looking() {
    if loop_device::skip("looking at a block device that shrinks") {
        return;
    }
    let device = LoopDevice::new(4 * MIB);
    for backend in [Backend::Auto, Backend::Pread] {
        let open = open_file(device.path(), backend).unwrap();
        open.check().unwrap();
        device.truncate_backing(MIB);
        open.check().unwrap();
        device.take_size_of_backing();
        let error = open.check().unwrap_err();
        assert_eq!(error.kind, DeviceErrorKind::Gone);
        assert_eq!(
            error.what,
            "the block device was truncated from 4194304 to 1048576 bytes"
        );
        device.truncate_backing(8 * MIB);
        device.take_size_of_backing();
        open.check().unwrap();
        device.truncate_backing(4 * MIB);
        device.take_size_of_backing();
    }
}

async fn lose_a_disk(disk: &Path, harm: impl FnOnce(), reason: &str) {
    lose_a_disk_for(disk, harm, |why| why.contains(reason)).await;
}

/// Serves `disk` and a healthy one under load, does harm to `disk`, and expects it, and it alone, to be fenced for such a
/// reason.
async fn lose_a_disk_for(disk: &Path, harm: impl FnOnce(), is_expected: impl Fn(&str) -> bool) {
    let seed = seed();
    let directory = tempfile::tempdir().unwrap();
    let healthy = directory.path().join("healthy");
    node::format(&healthy, 256 * MIB, OTHER);
    let mut node = NodeProcess::start(&[disk, &healthy]);
    for expected in [
        "disk fenced",
        "corrupt record",
        "read failed",
        "a record cannot be moved",
    ] {
        node.allow(expected);
    }
    let client = Arc::new(node.client());
    let load = |disk| Load {
        disk,
        writers: 3,
        writer_bytes_max: 8 << 20,
    };
    let on_healthy = load(OTHER).start(&client, &Book::default(), seed);
    let on_disk = load(DISK).start(&client, &Book::default(), seed + 1);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let before = on_disk.stop().await;
    assert_eq!(before.refused, []);
    let book = before.book;

    harm();
    let fenced = wait_until_fenced(&client, &book).await;
    assert!(is_expected(&fenced), "{fenced}");
    // For good, and in the same words for every request.
    let expected = NodeError::Fenced { reason: fenced };
    for (name, content) in book.present().into_iter().take(20) {
        let to = address(DISK, UNITS[name.unit].0);
        let gone = read(&client, DISK, name, book.possible(name)).await;
        assert_eq!(gone, Err(ReadError::Refused(expected.clone())));
        assert_eq!(
            client.put(&to, sealed(name, content), DEADLINE).await,
            Err(expected.clone())
        );
        assert_eq!(
            client.delete(&to, &[name.key.blob], DEADLINE).await,
            Err(expected.clone())
        );
    }

    // The other disk was under load all the time, and goes on.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(500) {
        assert_eq!(state(&client, OTHER).await, DiskState::Online);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut served = on_healthy.stop().await;
    assert_eq!(served.refused, []);
    let checked = served.book.check(&client, OTHER).await;
    assert!(checked.violations.is_empty(), "{}", checked.violations.join("\n"));
    println!(
        "{:?} on the healthy disk; {} shards right",
        served.acknowledged, checked.right
    );
    assert!(checked.right > 0);
}

/// Reads and writes until the disk is fenced; answers why. Until then an answer is right, or refused with a reason.
async fn wait_until_fenced(client: &HttpClient, book: &Book) -> String {
    let deadline = Instant::now() + PATIENCE;
    let present = book.present();
    assert!(!present.is_empty());
    for (name, content) in present.iter().cycle() {
        let wrote = client
            .put(
                &address(DISK, UNITS[name.unit].0),
                sealed(*name, *content),
                DEADLINE,
            )
            .await;
        assert!(
            matches!(wrote, Ok(()) | Err(NodeError::Fenced { .. })),
            "{wrote:?}"
        );
        match read(client, DISK, *name, book.possible(*name)).await {
            Ok(_) => {}
            // The disk lost it: nobody may be given other bytes, and nobody may be told that it was never there.
            Err(ReadError::Refused(
                NodeError::Fenced { .. } | NodeError::Corrupt { .. } | NodeError::Io { .. },
            )) => {}
            // Blocks go out with their CRCs and the caller checks them.
            Err(ReadError::Wrong(wrong)) if wrong.contains("does not verify") => {}
            Err(error) => panic!("{name:?}: {error}"),
        }
        if let DiskState::Fenced { reason } = state(client, DISK).await {
            return reason;
        }
        assert!(Instant::now() < deadline, "never fenced");
    }
    unreachable!("a cycle ends in the loop")
}

async fn state(client: &HttpClient, disk: DiskId) -> DiskState {
    let status = client.status(DEADLINE).await.unwrap();
    status
        .disks
        .into_iter()
        .find(|found| found.disk == disk)
        .unwrap()
        .state
}

#[test]
fn a_full_filesystem_refuses_puts_and_nothing_else() {
    if loop_device::skip("a full filesystem") {
        return;
    }
    let filesystem = Filesystem::ext4(128 * MIB);
    let disk = filesystem.file("disk");
    node::format(&disk, 512 * MIB, DISK);
    run(fill_up(&disk));
}

async fn fill_up(disk: &Path) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut node = NodeProcess::start(&[disk]);
    node.allow("the filesystem under the disk is full");
    let mut book = Book::default();
    let mut next_blob = 1;
    for round in 0..setting::scaled(3, 10) {
        let client = node.client();
        let stored = fill(&client, &mut book, &mut next_blob, &mut random).await;
        println!("round {round}: {stored} bytes until it was full");
        assert!(stored > 4 * MIB && stored < 128 * MIB, "{stored} bytes");
        expect_right(&mut book, &client).await;
        if round % 2 == 1 {
            // Recovery needs no space either.
            node.kill();
            verify_undamaged(disk);
            node.restart();
        }
        let client = node.client();
        expect_right(&mut book, &client).await;
        let present = book.present();
        for (name, _) in present.iter().filter(|_| random.random_range(0..3) > 0) {
            let from = address(DISK, UNITS[name.unit].0);
            client.delete(&from, &[name.key.blob], DEADLINE).await.unwrap();
            book.acknowledged(*name, None);
        }
        assert_eq!(state(&client, DISK).await, DiskState::Online);
    }
    expect_right(&mut book, &node.client()).await;
    assert!(node.terminate().success());
    verify_undamaged(disk);
}

async fn expect_right(book: &mut Book, client: &HttpClient) {
    let checked = book.check(client, DISK).await;
    assert!(checked.violations.is_empty(), "{}", checked.violations.join("\n"));
    assert_eq!(state(client, DISK).await, DiskState::Online);
}

/// Puts until a shard of the largest size is refused. Waits for the first: compaction may have to make room for it.
async fn fill(client: &HttpClient, book: &mut Book, next_blob: &mut u64, random: &mut StdRng) -> u64 {
    let (mut stored, deadline) = (0, Instant::now() + PATIENCE);
    loop {
        let bytes = if random.random() {
            BYTES_MAX
        } else {
            random_bytes(random)
        };
        let (unit, key) = (
            random.random_range(0..UNITS.len()),
            ShardKey {
                blob: *next_blob,
                stripe: 0,
            },
        );
        let (name, content) = (ShardName { unit, key }, Content::random(bytes));
        *next_blob += 1;
        match client
            .put(&address(DISK, UNITS[unit].0), sealed(name, content), DEADLINE)
            .await
        {
            Ok(()) => {
                book.acknowledged(name, Some(content));
                stored += bytes as u64;
            }
            Err(NodeError::NoSpace) if stored < 8 * MIB && Instant::now() < deadline => {
                book.acknowledged(name, None);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(NodeError::NoSpace) if bytes == BYTES_MAX => {
                book.acknowledged(name, None);
                return stored;
            }
            Err(NodeError::NoSpace) => book.acknowledged(name, None),
            Err(error) => panic!("{name:?}: {error}"),
        }
    }
}
