use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ::redb::backends::InMemoryBackend;
use ::redb::{Builder, Database, StorageBackend, TableDefinition};
use rand::Rng;
use std::sync::atomic::{AtomicBool, Ordering};

use super::log::Medium;
use super::tree::{FORMAT_KEY, FORMAT_MAGIC, FORMAT_VERSION, META, ROWS, initialise};
use super::*;
use crate::ledger::conformance;
use crate::ledger::store::Mutation;
use std::path::PathBuf;

const CACHE_BYTES: usize = 16 << 20;

/// Stores in files of one temporary directory; knows which store is in which file, to open it again.
struct Files {
    directory: tempfile::TempDir,
    paths: Mutex<HashMap<usize, PathBuf>>,
}

impl Files {
    fn open(&self, path: PathBuf) -> Arc<dyn Store> {
        let store = Arc::new(RedbStore::open(&path, CACHE_BYTES).unwrap());
        self.paths
            .lock()
            .unwrap()
            .insert(Arc::as_ptr(&store) as usize, path);
        store
    }
}

#[async_trait]
impl conformance::Engine for Files {
    async fn empty(&self) -> Arc<dyn Store> {
        let path = self
            .directory
            .path()
            .join(format!("ledger-{}", rand::rng().random::<u64>()));
        self.open(path)
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        let path = self
            .paths
            .lock()
            .unwrap()
            .remove(&(Arc::as_ptr(&store).cast::<()>() as usize))
            .unwrap();
        assert_eq!(Arc::strong_count(&store), 1);
        drop(store);
        self.open(path)
    }
}

#[test]
fn conforms() {
    let directory = tempfile::tempdir().unwrap();
    conformance::run(&Files {
        directory,
        paths: Mutex::default(),
    });
}

fn ledger_path() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    (directory, path)
}

fn open(path: &Path) -> Result<RedbStore, LedgerError> {
    RedbStore::open(path, CACHE_BYTES)
}

fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Commit {
    let mutation = Mutation::Put {
        key: Bytes::copy_from_slice(key.as_ref()),
        value: Bytes::copy_from_slice(value.as_ref()),
    };
    Commit {
        preconditions: Vec::new(),
        mutations: vec![mutation],
    }
}

async fn get(store: &RedbStore, key: impl AsRef<[u8]>) -> Result<Option<Versioned>, LedgerError> {
    Ok(store
        .get(vec![Bytes::copy_from_slice(key.as_ref())])
        .await?
        .remove(0))
}

#[tokio::test]
async fn shutdown_closes_the_file_and_refuses_what_comes_after() {
    let (_directory, path) = ledger_path();
    let store = Arc::new(open(&path).unwrap());
    store.commit(put("k", "v")).await.unwrap();
    store.shutdown().await;
    assert_eq!(get(&store, "k").await, Err(shut_down()));
    assert_eq!(store.commit(put("k", "w")).await, Err(shut_down()));
    store.shutdown().await;
    let reopened = open(&path).unwrap();
    assert_eq!(get(&reopened, "k").await.unwrap().unwrap().value, "v");
}

#[tokio::test]
async fn one_process_at_a_time() {
    let (_directory, path) = ledger_path();
    let store = open(&path).unwrap();
    let refusal = open(&path).unwrap_err().to_string();
    assert!(refusal.contains("is open in another process"), "{refusal}");
    store.commit(put("k", "v")).await.unwrap();
}

#[test]
fn foreign_files_are_refused_and_left_alone() {
    let (_directory, path) = ledger_path();
    std::fs::write(&path, [b'x'; 100_000]).unwrap();
    let before = std::fs::read(&path).unwrap();
    refused(&path, "not a Cairn ledger");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    for table in ["rows", "meta"] {
        std::fs::remove_file(&path).unwrap();
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction
            .open_table(TableDefinition::<u64, u64>::new(table))
            .unwrap()
            .insert(1, 2)
            .unwrap();
        transaction.commit().unwrap();
        drop(database);
        refused(&path, "not a Cairn ledger: it has no format row");
    }
}

#[test]
fn a_newer_format_is_refused() {
    let (_directory, path) = ledger_path();
    drop(open(&path).unwrap());
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let newer = [FORMAT_MAGIC, &3_u32.to_le_bytes()].concat();
    transaction
        .open_table(META)
        .unwrap()
        .insert(FORMAT_KEY, &newer[..])
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    refused(
        &path,
        "a ledger of format 3; this program understands formats 1 to 2",
    );
}

fn refused(path: &Path, why: &str) {
    let refusal = open(path).unwrap_err();
    assert!(matches!(refusal, LedgerError::Damaged { .. }), "{refusal:?}");
    let message = refusal.to_string();
    assert!(
        message.contains(why) && message.contains(&path.display().to_string()),
        "{message}"
    );
}

#[test]
fn a_crash_while_creating_leaves_nothing_in_the_way() {
    let (directory, path) = ledger_path();
    std::fs::write(path.with_extension("unfinished"), b"half").unwrap();
    drop(open(&path).unwrap());
    let mut names: Vec<_> = directory
        .path()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["ledger", "ledger-log"]);
}

#[tokio::test]
async fn a_row_without_a_version_is_damaged() {
    let (_directory, path) = ledger_path();
    drop(open(&path).unwrap());
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(ROWS)
        .unwrap()
        .insert(&b"k"[..], &b"short"[..])
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let store = open(&path).unwrap();
    assert!(matches!(get(&store, "k").await, Err(LedgerError::Damaged { .. })));
    assert_eq!(get(&store, "other").await, Ok(None));
}

/// A disk in memory that fails to flush, or to read, when told.
#[derive(Debug, Default)]
struct FaultyDisk {
    disk: InMemoryBackend,
    fail: Arc<AtomicBool>,
}

impl FaultyDisk {
    fn check(&self) -> std::io::Result<()> {
        if self.fail.load(Ordering::SeqCst) {
            Err(std::io::Error::other("injected EIO"))
        } else {
            Ok(())
        }
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.disk.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.disk.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.check()?;
        self.disk.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.disk.write(offset, data)
    }
}

#[derive(Debug)]
struct FaultyLog(Arc<AtomicBool>);

impl Medium for FaultyLog {
    fn write(&mut self, _at: u64, _bytes: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(std::io::Error::other("injected EIO")),
            false => Ok(()),
        }
    }
}

/// A store in memory, and what makes its tree and its log fail.
fn faulty() -> (RedbStore, Arc<AtomicBool>, Arc<AtomicBool>) {
    let disk = FaultyDisk::default();
    let (tree_fails, log_fails) = (disk.fail.clone(), Arc::<AtomicBool>::default());
    let database = Builder::new().create_with_backend(disk).unwrap();
    initialise(&database, &[1; 16]).unwrap();
    let log = Log::new([1; 16], Box::new(FaultyLog(log_fails.clone())));
    let store = RedbStore::start(Tree::of(database), 0, log, 1 << 20, Path::new("in memory")).unwrap();
    (store, tree_fails, log_fails)
}

async fn assert_latched(store: &RedbStore, failure: LedgerError) {
    assert!(failure.to_string().contains("injected EIO"), "{failure}");
    assert_eq!(store.commit(put("c", "3")).await, Err(failure.clone()));
    assert_eq!(get(store, "a").await, Err(failure.clone()));
    let everything = KeyRange {
        start: Bytes::new(),
        end: None,
    };
    assert_eq!(store.scan(everything, 1, Direction::Forward).await, Err(failure));
}

#[tokio::test]
async fn a_failed_flush_of_the_log_latches() {
    let (store, _, fail) = faulty();
    store.commit(put("a", "1")).await.unwrap();
    fail.store(true, Ordering::SeqCst);
    let failure = store.commit(put("b", "2")).await.unwrap_err();
    fail.store(false, Ordering::SeqCst);
    assert_latched(&store, failure).await;
}

/// A commit that is answered is in the log; that it does not come into the tree is known soon, and whoever comes then is told.
#[tokio::test]
async fn a_failed_flush_of_the_tree_latches() {
    let (store, fail, _) = faulty();
    fail.store(true, Ordering::SeqCst);
    store.commit(put("a", "1")).await.unwrap();
    let failure = loop {
        match get(&store, "a").await {
            Ok(row) => assert_eq!(row.unwrap().value, "1"),
            Err(failure) => break failure,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    fail.store(false, Ordering::SeqCst);
    assert_latched(&store, failure).await;
}

/// Waits for a commit while the tree takes no more, and is told that, rather than waiting for ever.
#[tokio::test]
async fn a_writer_that_waits_for_the_tree_learns_that_it_failed() {
    let (store, fail, _) = faulty();
    fail.store(true, Ordering::SeqCst);
    let failure = loop {
        if let Err(failure) = store.commit(put("k", [7; 10_000])).await {
            break failure;
        }
    };
    assert_latched(&store, failure).await;
}

#[test]
fn a_ledger_of_the_format_before_is_taken_up() {
    let (_directory, path) = ledger_path();
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(META).unwrap();
        let format = [FORMAT_MAGIC, &1_u32.to_le_bytes()].concat();
        meta.insert(FORMAT_KEY, &format[..]).unwrap();
        meta.insert("sequence", &7_u64.to_le_bytes()[..]).unwrap();
        let row = [&7_u64.to_le_bytes()[..], b"v"].concat();
        transaction
            .open_table(ROWS)
            .unwrap()
            .insert(&b"k"[..], &row[..])
            .unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(&path).unwrap();
        let row = get(&store, "k").await.unwrap().unwrap();
        assert_eq!((row.version, &row.value[..]), (7, &b"v"[..]));
        assert_eq!(store.commit(put("k", "w")).await, Ok(8));
    });
    let database = Database::open(&path).unwrap();
    let described = Tree::of(database).describe().unwrap();
    assert!(described.log.is_some() && described.sequence == 8);
    assert_eq!(FORMAT_VERSION, 2);
}

/// The files of a ledger as a crash would leave them, with these commits in the log alone, one a frame.
async fn crashed_with(path: &Path, commits: &[&str]) -> Vec<u8> {
    let store = open(path).unwrap();
    store.commit(put("first", "1")).await.unwrap();
    while store.shared.recent.sequence().1 || store.shared.recent.settling().is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await; // Into the tree.
    }
    let (tree, log_path) = (std::fs::read(path).unwrap(), log::path_of(path));
    for key in commits {
        store.commit(put(key, vec![9; 10_000])).await.unwrap();
    }
    let log = std::fs::read(&log_path).unwrap();
    drop(store);
    std::fs::write(path, tree).unwrap();
    std::fs::write(log_path, &log).unwrap();
    log
}

/// Where the frames of a log are.
fn frames(log: &[u8]) -> Vec<usize> {
    let starts = (0..log.len()).step_by(4096);
    starts.filter(|&at| log[at..].starts_with(b"cairnlog")).collect()
}

#[tokio::test]
async fn a_torn_last_frame_is_forgotten_and_any_other_loss_is_loud() {
    let (_directory, path) = ledger_path();
    let log = crashed_with(&path, &["a", "b", "c"]).await;
    let (tree, log_path) = (std::fs::read(&path).unwrap(), log::path_of(&path));
    let at = frames(&log);
    let last_three = &at[at.len() - 3..];
    for (number, &start) in last_three.iter().enumerate() {
        // Each page of the frame may be the one that was lost; a flipped bit is as bad.
        for page in [start, start + 4096, start + 8192] {
            for torn in [true, false] {
                let mut log = log.clone();
                match torn {
                    true => log[page..page + 4096].fill(0),
                    false => log[page + 100] ^= 4,
                }
                std::fs::write(&path, &tree).unwrap();
                std::fs::write(&log_path, log).unwrap();
                if number < 2 {
                    refused(&path, "is lost");
                    continue;
                }
                let store = open(&path).unwrap();
                for (key, there) in [("first", true), ("a", true), ("b", true), ("c", false)] {
                    assert_eq!(get(&store, key).await.unwrap().is_some(), there, "{key}");
                }
                // The version of what was torn is used again; what is left of it must not come back.
                assert_eq!(store.commit(put("d", "4")).await, Ok(4));
                drop(store);
                let store = open(&path).unwrap();
                assert!(
                    get(&store, "c").await.unwrap().is_none() && get(&store, "d").await.unwrap().is_some()
                );
            }
        }
    }
}

#[tokio::test]
async fn a_log_that_is_needed_must_be_there_and_whole() {
    let (_directory, path) = ledger_path();
    let log = crashed_with(&path, &["a"]).await;
    let (tree, log_path) = (std::fs::read(&path).unwrap(), log::path_of(&path));
    std::fs::remove_file(&log_path).unwrap();
    let refusal = open(&path).unwrap_err().to_string();
    assert!(refusal.contains(&log_path.display().to_string()), "{refusal}");
    std::fs::write(&log_path, &log[..log.len() - 1]).unwrap();
    for _ in 0..2 {
        refused(&path, "cut short");
        assert!(
            std::fs::read(&log_path).unwrap() == log[..log.len() - 1],
            "what is left of it"
        );
    }
    std::fs::write(&log_path, &log).unwrap();
    std::fs::write(&path, &tree).unwrap();
    let store = open(&path).unwrap();
    assert!(get(&store, "a").await.unwrap().is_some());
    drop(store);
    // After a clean end the tree has everything: a log that is missing, or another ledger's, is none.
    std::fs::remove_file(&log_path).unwrap();
    assert!(get(&open(&path).unwrap(), "a").await.unwrap().is_some());
}

/// Readers see each row as it is now, whether it is in the log, on its way into the tree, or there, and whether or not it was
/// read before.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_never_see_an_older_row_again() {
    let (_directory, path) = ledger_path();
    let store = Arc::new(open(&path).unwrap());
    let ended = Arc::new(AtomicBool::new(false));
    let key = |n: u64| format!("key {:02}", n % 50);
    let readers: Vec<_> = (0..3u64)
        .map(|reader| {
            let (store, ended) = (store.clone(), ended.clone());
            tokio::spawn(async move {
                let (mut seen, mut n) = (HashMap::new(), reader);
                while !ended.load(Ordering::Relaxed) {
                    n += 7;
                    let version = match n % 3 {
                        0 => {
                            let start = Bytes::from(key(n));
                            let range = KeyRange { start, end: None };
                            let rows = store.scan(range, 1, Direction::Forward).await.unwrap();
                            let row = rows.into_iter().next();
                            row.filter(|row| row.key == key(n))
                                .map(|row| row.versioned.version)
                        }
                        _ => get(&store, key(n)).await.unwrap().map(|row| row.version),
                    };
                    let seen = seen.entry(n % 50).or_insert(version);
                    assert!(version >= *seen, "{version:?} after {seen:?}");
                    *seen = version;
                }
            })
        })
        .collect();
    for n in 0..3_000 {
        store.commit(put(key(n * 13), vec![3; 700])).await.unwrap();
        if n % 500 == 0 {
            tokio::time::sleep(Duration::from_millis(45)).await; // It comes to rest, and into the tree.
        }
    }
    ended.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
}

const CHILD_LEDGER: &str = "CAIRN_TEST_LEDGER";
const CHILD_TASKS: u64 = 4;

/// Not a test by itself: what `kill_9_loses_nothing_acknowledged` runs in a process of its own. Prints a line for
/// every commit once it is acknowledged.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn child_that_commits_until_killed() {
    let Some(path) = std::env::var_os(CHILD_LEDGER) else {
        return;
    };
    let store = Arc::new(open(Path::new(&path)).unwrap());
    let tasks: Vec<_> = (0..CHILD_TASKS)
        .map(|task| tokio::spawn(commit_for_ever(Arc::clone(&store), task)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn commit_for_ever(store: Arc<RedbStore>, task: u64) {
    let key = format!("task {task}");
    let mut count = match get(&store, &key).await.unwrap() {
        Some(row) => u64::from_le_bytes(row.value[..].try_into().unwrap()),
        None => 0,
    };
    loop {
        count += 1;
        let filler = put(format!("filler {task} {count:08}"), vec![7; 300]).mutations;
        let mut commit = put(&key, count.to_le_bytes());
        commit.mutations.extend(filler);
        let version = store.commit(commit).await.unwrap();
        println!("\nacknowledged {task} {count} {version}");
    }
}

#[tokio::test]
async fn kill_9_loses_nothing_acknowledged() {
    let (_directory, path) = ledger_path();
    let mut last_version = 0;
    for _round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "ledger::redb::tests::child_that_commits_until_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD_LEDGER, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || acknowledged(lines));
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(150..600)));
        child.kill().unwrap();
        child.wait().unwrap();
        let (counts, version) = reader.join().unwrap();
        assert!(
            version > last_version,
            "the child committed nothing, or used a version again"
        );
        let store = open(&path).unwrap();
        for (task, count) in counts {
            let found = get(&store, format!("task {task}")).await.unwrap().unwrap();
            let found = u64::from_le_bytes(found.value[..].try_into().unwrap());
            assert!(
                found == count || found == count + 1,
                "{count} was acknowledged, {found} is there"
            );
            for filler in 1..=found {
                assert!(
                    get(&store, format!("filler {task} {filler:08}"))
                        .await
                        .unwrap()
                        .is_some()
                );
            }
            assert!(
                get(&store, format!("filler {task} {:08}", found + 1))
                    .await
                    .unwrap()
                    .is_none()
            );
        }
        last_version = store.commit(put("round", "")).await.unwrap();
        assert!(last_version > version);
    }
}

/// The last count of each task, and the greatest version.
fn acknowledged(lines: impl Iterator<Item = std::io::Result<String>>) -> (HashMap<u64, u64>, u64) {
    let mut counts = HashMap::new();
    let mut version_max = 0;
    for line in lines {
        let line = line.unwrap();
        let fields: Vec<&str> = line.split(' ').collect();
        if let ["acknowledged", task, count, version] = fields[..] {
            counts.insert(task.parse().unwrap(), count.parse().unwrap());
            version_max = version_max.max(version.parse().unwrap());
        }
    }
    (counts, version_max)
}

/// Prints commits a second at 1 and 64 at a time: `cargo test --release -- --ignored --nocapture measures`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measures_commits() {
    let (_directory, path) = ledger_path();
    let store = Arc::new(RedbStore::open(&path, 256 << 20).unwrap());
    for concurrency in [1_u64, 64] {
        let (start, each) = (Instant::now(), 6400 / concurrency.max(4));
        let tasks = (0..concurrency).map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for i in 0..each {
                    store
                        .commit(put(format!("{i:08} {concurrency} {task}"), [7; 400]))
                        .await
                        .unwrap();
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let rate = (each * concurrency) as f64 / start.elapsed().as_secs_f64();
        println!("{concurrency} at a time: {rate:.0} durable commits/s of one row of 400 B");
    }
}
