//! Ledger and disks are on a filesystem that something else fills, to the last byte, again and again: that costs uploads only. Reads,
//! listings and deletes go on, nothing is lost, and nobody has to restart anything.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cairn_tests::client::Client;
use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::content::Content;
use cairn_tests::loop_device::{self, Filesystem};
use cairn_tests::model::Model;
use cairn_tests::setting;
use gateway::ledger::redb::RedbStore;
use gateway::ledger::store::{Commit, Mutation, Store};

const BUCKET: &str = "full";
const MIB: u64 = 1 << 20;
/// What must happen soon has so long on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// Uploads that are tried on a full filesystem.
const TRIED: usize = 40;
/// Of these, so many are refused at least.
const REFUSED_MIN: usize = 20;

/// Rows of the ledger that is emptied on a full filesystem.
const ROWS: usize = 60_000;
/// Rows of a commit.
const ROWS_A_COMMIT: usize = 50;

/// Takes every byte of a filesystem that anybody frees, until it is told to let go of all.
struct Hog {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    taken: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Hog {
    fn start(path: PathBuf) -> Hog {
        let (stop, taken) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut file = File::create(&path).unwrap();
        let (stopped, counted) = (stop.clone(), taken.clone());
        let thread = std::thread::spawn(move || {
            let block = vec![0x5a; 1 << 20];
            while !stopped.load(Ordering::SeqCst) {
                for bytes in [1 << 20, 4096, 1] {
                    while let Ok(written) = file.write(&block[..bytes]) {
                        counted.fetch_add(written as u64, Ordering::SeqCst);
                        if written < bytes || stopped.load(Ordering::SeqCst) {
                            break;
                        }
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let hog = Hog {
            path,
            stop,
            taken,
            thread,
        };
        hog.wait_until_full();
        hog
    }

    /// Until it takes nothing more for a while.
    fn wait_until_full(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut before = u64::MAX;
        loop {
            let taken = self.taken.load(Ordering::SeqCst);
            if taken == before && taken > 0 {
                return;
            }
            assert!(Instant::now() < deadline, "it never is full");
            before = taken;
            std::thread::sleep(Duration::from_millis(700));
        }
    }

    fn let_go(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        std::fs::remove_file(self.path).unwrap();
    }
}

/// What was asked for on the full filesystem.
#[derive(Debug, Default)]
struct Counts {
    reads: usize,
    deletes: usize,
    stored: usize,
    refused: usize,
}

/// Uploads are stored or refused with 507; all else is done, whatever room there is.
fn costs_writes_only(cluster: &Cluster, model: &mut Model, counts: &mut Counts, name: &str) {
    let client = cluster.client();
    let mut refused = 0;
    for number in 0..TRIED {
        let bytes = [0, 1_000, 100_000, 2_000_000][number % 4];
        let (key, content) = (format!("{name}-{number}"), Content::random(bytes));
        match client.put(BUCKET, &key, &content.make()) {
            Ok(_) => model.acknowledged(&key, Some(content)),
            Err(failure) => {
                assert_eq!(failure.status(), Some(507), "{key}: {failure}");
                refused += 1;
            }
        }
    }
    assert!(refused >= REFUSED_MIN, "{refused} of {TRIED} uploads refused");
    counts.refused += refused;
    counts.stored += TRIED - refused;
    read_all(&client, model, counts);
    let keys: Vec<String> = model
        .contents()
        .iter()
        .map(|(key, _)| (*key).to_owned())
        .collect();
    for key in keys.iter().step_by(3) {
        if let Err(failure) = client.delete(BUCKET, key) {
            panic!("deleting {key} on a full filesystem: {failure}");
        }
        model.acknowledged(key, None);
        counts.deletes += 1;
    }
    read_all(&client, model, counts);
    let status = cluster.status();
    assert_eq!(status["ledger"]["room"]["admits_uploads"], false, "{status}");
    assert!(status["ledger"]["unavailable"].is_null(), "{status}");
    let online = status["disks"].as_array().unwrap().iter();
    assert!(online.clone().all(|disk| disk["state"] == "online"), "{status}");
    assert_eq!(cluster.admin("/health/ready").unwrap().status, 200);
}

fn read_all(client: &Client, model: &mut Model, counts: &mut Counts) {
    let violations = model.check(client, BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    counts.reads += model.contents().len();
}

/// There is room again: uploads go on by themselves.
fn goes_on(cluster: &Cluster, model: &mut Model, name: &str) -> Duration {
    let (client, began) = (cluster.client(), Instant::now());
    let content = Content::random(200_000);
    loop {
        match client.put(BUCKET, name, &content.make()) {
            Ok(_) => break,
            Err(failure) => assert!(
                failure.status() == Some(507) && began.elapsed() < PATIENCE,
                "{name}: {failure}"
            ),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    model.acknowledged(name, Some(content));
    let took = began.elapsed();
    for number in 0..60 {
        let bytes = [1, 5_000, 50_000, 500_000][number % 4];
        let (key, content) = (format!("{name}-{number}"), Content::random(bytes));
        if let Err(failure) = client.put(BUCKET, &key, &content.make()) {
            panic!("storing {key}: {failure}");
        }
        model.acknowledged(&key, Some(content));
    }
    took
}

/// Deletes what was made before the last round, so that the filesystem does not fill with objects.
fn make_room(client: &Client, model: &mut Model) {
    let keys: Vec<String> = model
        .contents()
        .iter()
        .map(|(key, _)| (*key).to_owned())
        .collect();
    for key in keys.iter().rev().skip(40) {
        client.delete(BUCKET, key).unwrap();
        model.acknowledged(key, None);
    }
}

#[test]
fn a_full_filesystem_costs_writes_only() {
    if loop_device::skip("a full filesystem under ledger and disks") {
        return;
    }
    let rounds = setting::number("CAIRN_TEST_ROUNDS", setting::scaled(2, 10));
    let filesystem = Filesystem::ext4(768 * MIB);
    let hog = |name: &str| Hog::start(filesystem.file(name));
    let mut cluster = Cluster::start_with(Options {
        disk_size: "512MiB".into(),
        data: Some(filesystem.file("data")),
        ..Options::default()
    });
    cluster.allow("the filesystem of the ledger is nearly full");
    cluster.allow("the filesystem under the disk is full");
    cluster.client().create_bucket(BUCKET);
    let (mut model, mut counts) = (Model::default(), Counts::default());
    goes_on(&cluster, &mut model, "first");
    for round in 0..rounds {
        let filled = hog("hog");
        costs_writes_only(&cluster, &mut model, &mut counts, &format!("{round}-full"));
        filled.let_go();
        let soon = goes_on(&cluster, &mut model, &format!("{round}-freed"));

        let filled = hog("hog");
        costs_writes_only(&cluster, &mut model, &mut counts, &format!("{round}-again"));
        cluster.kill();
        filled.wait_until_full();
        cluster.restart();
        costs_writes_only(&cluster, &mut model, &mut counts, &format!("{round}-killed"));
        let (status, _) = cluster.terminate();
        assert!(status.success(), "{status}");
        cluster.restart();
        costs_writes_only(&cluster, &mut model, &mut counts, &format!("{round}-stopped"));
        filled.let_go();
        let later = goes_on(&cluster, &mut model, &format!("{round}-last"));
        make_room(&cluster.client(), &mut model);
        println!("round {round}: uploads went on after {soon:?} and {later:?}; until now {counts:?}");
    }
    read_all(&cluster.client(), &mut model, &mut counts);
    let log = cluster.log();
    assert!(
        log.contains("the filesystem of the ledger is nearly full"),
        "{log}"
    );
    assert!(
        log.contains("the filesystem of the ledger has room again"),
        "{log}"
    );
    assert_exists(&filesystem.file("data").join("ledger.redb-reserve"));
}

fn assert_exists(path: &Path) {
    let bytes = path.metadata().unwrap().len();
    assert!(bytes >= 16 * MIB, "{bytes}");
}

fn row(number: usize) -> bytes::Bytes {
    // All over the tree, in another order than they are removed in.
    format!("row {:016x}", (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).into()
}

async fn change(store: &RedbStore, numbers: &[usize], change: impl Fn(usize) -> Vec<Mutation>) {
    let commit = Commit {
        preconditions: Vec::new(),
        mutations: numbers.iter().flat_map(|number| change(*number)).collect(),
    };
    store.commit(commit).await.unwrap();
}

fn put(key: impl Into<bytes::Bytes>, bytes: usize) -> Mutation {
    Mutation::Put {
        key: key.into(),
        value: vec![0x17; bytes].into(),
    }
}

/// A ledger whose tree has to copy pages all over, on a filesystem on which somebody takes every byte as soon as it is free: each row
/// becomes another, as that of an object becomes garbage, and that is removed.
#[test]
fn a_ledger_on_a_full_filesystem_can_be_emptied() {
    if loop_device::skip("a ledger on a full filesystem") {
        return;
    }
    let filesystem = Filesystem::ext4(256 * MIB);
    let path = filesystem.file("ledger.redb");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = RedbStore::create(&path, 16 << 20).unwrap();
        let numbers: Vec<usize> = (0..ROWS).collect();
        for some in numbers.chunks(ROWS_A_COMMIT) {
            change(&store, some, |number| vec![put(row(number), 300)]).await;
        }
        let hog = Hog::start(filesystem.file("hog"));
        assert!(!store.state().room.unwrap().admits_uploads);
        let garbage = |number: usize| format!("garbage {number:08}");
        let remove = |key: bytes::Bytes| Mutation::Delete { key };
        let mut store = store;
        let quarters = numbers.chunks(ROWS / 4);
        for (round, quarter) in quarters.enumerate() {
            for some in quarter.chunks(ROWS_A_COMMIT) {
                change(&store, some, |number| {
                    vec![remove(row(number)), put(garbage(number), 40)]
                })
                .await;
                let found = store.get(vec![row(some[0]), row(ROWS - 1)]).await.unwrap();
                assert!(found[0].is_none() && (found[1].is_some() || round == 3));
            }
            for some in quarter.chunks(ROWS_A_COMMIT) {
                change(&store, some, |number| vec![remove(garbage(number).into())]).await;
            }
            println!("after a quarter more: {:?}", store.state());
            assert_eq!(store.state().unavailable, None);
            if round % 2 == 0 {
                drop(store);
                store = RedbStore::open(&path, 16 << 20).unwrap();
            }
        }
        let everything = gateway::ledger::store::KeyRange {
            start: bytes::Bytes::new(),
            end: None,
        };
        let forward = gateway::ledger::store::Direction::Forward;
        assert_eq!(store.scan(everything, 1, forward).await.unwrap(), []);
        hog.let_go();
        let deadline = Instant::now() + PATIENCE;
        while !store.state().room.unwrap().admits_uploads {
            assert!(Instant::now() < deadline, "{:?}", store.state());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}
