use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ::redb::{Database, TableDefinition};
use rand::Rng;
use std::sync::atomic::{AtomicBool, Ordering};

use super::faulty::{Disk, Paper, Plot};
use super::tree::{FORMAT_KEY, FORMAT_MAGIC, FORMAT_VERSION, META, ROWS, UNSEALED};
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
        let store = Arc::new(open(&path).unwrap());
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
    match path.exists() {
        true => RedbStore::open(path, CACHE_BYTES),
        false => RedbStore::create(path, CACHE_BYTES),
    }
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
    let newer = [FORMAT_MAGIC, &4_u32.to_le_bytes()].concat();
    transaction
        .open_table(META)
        .unwrap()
        .insert(FORMAT_KEY, &newer[..])
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    refused(
        &path,
        "a ledger of format 4; this program understands formats 1 to 3",
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
    assert_eq!(names, ["ledger", "ledger-log", "ledger-reserve", "ledger-sums"]);
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

/// A store in memory, and what makes its tree and its log fail.
struct Faulty {
    store: RedbStore,
    disk: Disk,
    paper: Paper,
    plot: Plot,
}

impl Faulty {
    fn new() -> Faulty {
        let (disk, paper) = (Disk::initialised(&[1; 16]), Paper::new());
        Faulty::on(disk, paper, Plot::new(1 << 30))
    }

    /// Opens what is there.
    fn on(disk: Disk, paper: Paper, plot: Plot) -> Faulty {
        let tree = Tree::of(Box::new(disk.clone())).unwrap();
        let (described, reserve) = (tree.describe().unwrap(), plot.reserve());
        let medium = Box::new(paper.clone());
        let (log, sequence) = take_up(&tree, &reserve, described, &paper.content(), medium).unwrap();
        let changes = Changes::new(Vec::new());
        let path = Path::new("in memory");
        let store = RedbStore::start(tree, sequence, log, changes, 1 << 20, reserve, path).unwrap();
        Faulty {
            store,
            disk,
            paper,
            plot,
        }
    }

    /// Closes it and opens what it left.
    fn reopened(self) -> Faulty {
        let Faulty {
            store,
            disk,
            paper,
            plot,
        } = self;
        drop(store);
        Faulty::on(disk, paper, plot)
    }

    async fn commits_again(&self) -> u64 {
        for _ in 0..2_000 {
            match self.store.commit(put("again", "1")).await {
                Ok(version) => return version,
                Err(LedgerError::Unavailable { .. } | LedgerError::Full) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never commits again");
    }

    /// Waits until the tree has everything.
    async fn settled(&self) {
        for _ in 0..2_000 {
            let recent = &self.store.shared.recent;
            if !recent.sequence().1 && recent.settling().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never comes into the tree");
    }
}

fn delete(key: impl AsRef<[u8]>) -> Commit {
    Commit {
        preconditions: Vec::new(),
        mutations: vec![Mutation::Delete {
            key: Bytes::copy_from_slice(key.as_ref()),
        }],
    }
}

/// While the log fails it is unknown what is durable, and everything is refused. Then it goes on by itself, and what was unknown is so.
#[tokio::test]
async fn a_failed_flush_of_the_log_latches_until_it_is_taken_up_again() {
    let faulty = Faulty::new();
    let store = &faulty.store;
    assert_eq!(store.commit(put("a", "1")).await, Ok(1));
    faulty.paper.faults.fail(false);
    let failure = store.commit(put("b", "2")).await.unwrap_err();
    assert!(failure.to_string().contains("injected EIO"), "{failure}");
    assert_eq!(store.commit(put("c", "3")).await, Err(failure.clone()));
    assert_eq!(get(store, "a").await, Err(failure.clone()));
    let (start, end) = (Bytes::new(), None);
    let scanned = store.scan(KeyRange { start, end }, 1, Direction::Forward).await;
    assert_eq!(scanned, Err(failure.clone()));
    let (what, _since) = store.state().unavailable.unwrap();
    assert!(failure.to_string().contains(&what), "{what}");
    faulty.paper.faults.end();
    assert_eq!(faulty.commits_again().await, 3);
    assert_eq!(store.state().unavailable, None);
    let faulty = faulty.reopened();
    for (key, value) in [
        ("a", Some("1")),
        ("b", Some("2")),
        ("c", None),
        ("again", Some("1")),
    ] {
        let found = get(&faulty.store, key).await.unwrap();
        assert_eq!(
            found.as_ref().map(|row| &row.value[..]),
            value.map(str::as_bytes),
            "{key}"
        );
    }
}

/// Opened while it is unknown what became of a commit: it is there or not, and what was acknowledged is.
#[tokio::test]
async fn a_failed_log_loses_nothing_acknowledged_when_it_is_opened_again() {
    let faulty = Faulty::new();
    faulty.store.commit(put("a", "1")).await.unwrap();
    faulty.paper.faults.fail(false);
    faulty.disk.writes.fail(false);
    faulty.store.commit(put("b", "2")).await.unwrap_err();
    let (disk, paper, plot) = (faulty.disk.clone(), faulty.paper.clone(), faulty.plot.clone());
    drop(faulty);
    disk.writes.end();
    paper.faults.end();
    let faulty = Faulty::on(disk, paper, plot);
    assert_eq!(get(&faulty.store, "a").await.unwrap().unwrap().value, "1");
    assert!(faulty.store.commit(put("c", "3")).await.unwrap() > 1);
}

/// The tree takes nothing for want of room: reads and commits go on, and all comes into it later.
#[tokio::test]
async fn a_tree_without_room_stops_neither_reads_nor_commits() {
    let faulty = Faulty::new();
    let store = &faulty.store;
    for n in 0..50 {
        store.commit(put(format!("k{n}"), [7; 3_000])).await.unwrap();
    }
    faulty.settled().await;
    faulty.disk.writes.fail(true);
    store.commit(put("a", [8; 50_000])).await.unwrap();
    for n in 0..12 {
        let found = get(store, format!("k{n}")).await.unwrap();
        assert!(found.is_some());
        store.commit(delete(format!("k{n}"))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert_eq!(get(store, "a").await.unwrap().unwrap().value.len(), 50_000);
    assert!(store.shared.recent.sequence().1 || store.shared.recent.settling().is_some());
    faulty.disk.writes.end();
    faulty.settled().await;
    let (start, end) = (Bytes::new(), None);
    let faulty = faulty.reopened();
    let rows = faulty
        .store
        .scan(KeyRange { start, end }, 100, Direction::Forward)
        .await;
    let keys: Vec<_> = rows.unwrap().into_iter().map(|row| row.key).collect();
    assert_eq!((keys.len(), &keys[0][..]), (1 + 50 - 12, &b"a"[..]));
}

/// A tree on a disk that takes no write: nothing is lost, and it goes on by itself when the disk does.
#[tokio::test]
async fn a_tree_on_a_failing_disk_goes_on_by_itself() {
    let faulty = Faulty::new();
    let store = &faulty.store;
    store.commit(put("a", "1")).await.unwrap();
    faulty.settled().await;
    faulty.disk.writes.fail(false);
    for n in 0..5 {
        store.commit(put(format!("k{n}"), "2")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(get(store, "k0").await.unwrap().unwrap().value, "2");
    faulty.disk.writes.end();
    faulty.commits_again().await;
    assert_eq!(get(store, "a").await.unwrap().unwrap().value, "1");
    faulty.settled().await;
    let faulty = faulty.reopened();
    assert_eq!(get(&faulty.store, "k4").await.unwrap().unwrap().value, "2");
}

/// Once the log is full too, commits are refused, and nothing of them happened; reads go on.
#[tokio::test]
async fn a_full_log_before_a_tree_without_room_refuses_commits_and_nothing_else() {
    let faulty = Faulty::new();
    let store = &faulty.store;
    faulty.disk.writes.fail(true);
    let mut committed = 0;
    let refusal = loop {
        match store.commit(put(format!("k{committed:04}"), [7; 10_000])).await {
            Ok(_) => committed += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, LedgerError::Full);
    assert!(committed > 8, "{committed}");
    for n in 0..committed {
        assert!(get(store, format!("k{n:04}")).await.unwrap().is_some());
    }
    assert_eq!(get(store, format!("k{committed:04}")).await, Ok(None));
    assert_eq!(store.state().unavailable, None);
    faulty.disk.writes.end();
    faulty.commits_again().await;
    let faulty = faulty.reopened();
    for n in 0..committed {
        assert!(get(&faulty.store, format!("k{n:04}")).await.unwrap().is_some());
    }
    assert_eq!(get(&faulty.store, format!("k{committed:04}")).await, Ok(None));
}

/// The tree fails for a while from each of its operations on: reads are right throughout, and nothing is lost.
#[tokio::test]
async fn a_tree_that_fails_anywhere_for_a_while_costs_nothing() {
    let mut injected = 0;
    for good in 0..36 {
        let faulty = Faulty::new();
        let store = &faulty.store;
        for n in 0..40 {
            store.commit(put(format!("k{n:02}"), [1; 700])).await.unwrap();
        }
        faulty.settled().await;
        let before = faulty.disk.writes.count.load(Ordering::SeqCst);
        faulty.disk.writes.plan(good, 1 + good % 5, good % 2 == 0);
        for n in 0..40 {
            match n % 3 {
                0 => store.commit(delete(format!("k{n:02}"))).await.unwrap(),
                _ => store.commit(put(format!("k{n:02}"), [2; 900])).await.unwrap(),
            };
            let found = get(store, format!("k{n:02}")).await.unwrap();
            assert_eq!(found.map(|row| row.value[0]), (n % 3 != 0).then_some(2));
        }
        faulty.settled().await;
        injected += u64::from(faulty.disk.writes.count.load(Ordering::SeqCst) > before + good as u64);
        faulty.disk.writes.end();
        let faulty = faulty.reopened();
        for n in 0..40 {
            let found = get(&faulty.store, format!("k{n:02}")).await.unwrap();
            assert_eq!(
                found.map(|row| row.value[0]),
                (n % 3 != 0).then_some(2),
                "{good} {n}"
            );
        }
    }
    assert!(injected > 10, "{injected}");
}

/// A read that failed makes redb refuse all later ones; who reads waits until the tree is opened again.
#[tokio::test]
async fn a_failed_read_costs_no_other() {
    let faulty = Faulty::new();
    for n in 0..200 {
        faulty
            .store
            .commit(put(format!("k{n:03}"), [1; 3_000]))
            .await
            .unwrap();
    }
    let faulty = faulty.reopened(); // Nothing is in memory.
    for n in 0..200 {
        if n % 20 == 0 {
            faulty.disk.reads.plan(0, 1, false);
        }
        assert!(
            get(&faulty.store, format!("k{n:03}")).await.unwrap().is_some(),
            "{n}"
        );
    }
    assert_eq!(faulty.store.state().unavailable, None);
}

/// With little room a settle comes in pieces, and a crash between them loses nothing.
#[tokio::test]
async fn what_there_is_little_room_for_comes_in_pieces() {
    let faulty = Faulty::new();
    faulty.plot.others.store(1 << 30, Ordering::SeqCst);
    let store = &faulty.store;
    for round in 0..3u8 {
        let mutations = |n: usize| Mutation::Put {
            key: format!("k{n:04}").into(),
            value: vec![round; 20].into(),
        };
        let commit = Commit {
            preconditions: Vec::new(),
            mutations: (0..1_000).map(mutations).collect(),
        };
        store.commit(commit).await.unwrap();
        assert_eq!(get(store, "k0500").await.unwrap().unwrap().value[0], round);
        faulty.settled().await;
    }
    let faulty = faulty.reopened();
    assert_eq!(get(&faulty.store, "k0999").await.unwrap().unwrap().value[0], 2);
}

fn tree_of(path: &Path) -> Tree {
    let reserve = Arc::new(Reserve::beside(path));
    Tree::open(path, CACHE_BYTES, reserve, Arc::default()).unwrap()
}

/// A file of format 1 or 2 with this many rows.
fn ledger_of_before(path: &Path, format: u32, rows: u64) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(META).unwrap();
        let format_row = [FORMAT_MAGIC, &format.to_le_bytes()].concat();
        meta.insert(FORMAT_KEY, &format_row[..]).unwrap();
        meta.insert("sequence", &7_u64.to_le_bytes()[..]).unwrap();
        if format == 2 {
            meta.insert("log", &[&[1; 16][..], &[0]].concat()[..]).unwrap();
        }
        let mut table = transaction.open_table(UNSEALED).unwrap();
        for n in 0..rows {
            let row = [&7_u64.to_le_bytes()[..], &n.to_le_bytes()].concat();
            table.insert(format!("k{n}").as_bytes(), &row[..]).unwrap();
        }
    }
    transaction.commit().unwrap();
}

#[test]
fn a_ledger_of_the_formats_before_is_taken_up() {
    for (format, rows) in [(1, 0), (1, 1), (2, 49), (2, 50), (2, 51), (2, 333)] {
        let (_directory, path) = ledger_path();
        ledger_of_before(&path, format, rows);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = open(&path).unwrap();
            for n in 0..rows {
                let row = get(&store, format!("k{n}")).await.unwrap().unwrap();
                assert_eq!((row.version, &row.value[..]), (7, &n.to_le_bytes()[..]));
            }
            assert_eq!(store.commit(put("k0", "w")).await, Ok(8));
        });
        let described = tree_of(&path).describe().unwrap();
        assert!(
            described.log.is_some() && described.sequence == 8,
            "{described:?}"
        );
    }
    assert_eq!(FORMAT_VERSION, 3);
}

/// Part of the rows are sealed already: a kill came in between.
#[tokio::test]
async fn a_migration_goes_on_where_it_was_stopped() {
    let (_directory, path) = ledger_path();
    ledger_of_before(&path, 2, 120);
    let (first, others) = ((0..30_u64), 30..120_u64);
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(UNSEALED).unwrap();
        first
            .clone()
            .for_each(|n| drop(table.remove(format!("k{n}").as_bytes()).unwrap()));
    }
    transaction.commit().unwrap();
    let rows: recent::Rows = first
        .map(|n| {
            let (version, value) = (7, Bytes::copy_from_slice(&n.to_le_bytes()));
            (Bytes::from(format!("k{n}")), Some(Versioned { version, value }))
        })
        .collect();
    drop(database);
    let tree = tree_of(&path);
    tree.apply_and_mark(&rows, 7, &[1; 16], false).unwrap();
    tree.close();
    let store = open(&path).unwrap();
    for n in (0..30).chain(others) {
        let row = get(&store, format!("k{n}")).await.unwrap().unwrap();
        assert_eq!((row.version, &row.value[..]), (7, &n.to_le_bytes()[..]));
    }
}

#[test]
fn a_ledger_that_is_missing_is_not_made_and_one_that_is_there_not_made_anew() {
    let (_directory, path) = ledger_path();
    let refusal = RedbStore::open(&path, CACHE_BYTES).unwrap_err().to_string();
    assert!(refusal.contains("is not there") && !path.exists(), "{refusal}");
    drop(RedbStore::create(&path, CACHE_BYTES).unwrap());
    let before = std::fs::read(&path).unwrap();
    let refusal = RedbStore::create(&path, CACHE_BYTES).unwrap_err().to_string();
    assert!(refusal.contains("there is a ledger already"), "{refusal}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::write(&path, b"").unwrap();
    refused(&path, "it is empty");
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
    let store = Arc::new(RedbStore::create(&path, 256 << 20).unwrap());
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

/// Those who follow get every commit, in order, also those that were made durable before the ledger was opened again.
#[tokio::test]
async fn a_follower_misses_no_commit_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let mut seen: Vec<u64> = Vec::new();
    for round in 0..4_u64 {
        let store = Arc::new(open(&path).unwrap());
        let tap = store.changes().unwrap().take_first().unwrap();
        for number in 0..20_u64 {
            let key = Bytes::from(format!("{round} {number}"));
            let value = Bytes::from(vec![number as u8; 100]);
            let mutations = vec![Mutation::Put { key, value }];
            let preconditions = Vec::new();
            let version = store
                .commit(Commit {
                    preconditions,
                    mutations,
                })
                .await
                .unwrap();
            assert_eq!(version, round * 20 + number + 1);
        }
        let taken = tap.take(usize::MAX);
        assert_eq!(taken.lost_up_to, None);
        for batch in &taken.batches {
            let commits = parse_commits(batch.body.clone(), batch.commits).unwrap();
            for (version, mutations) in (batch.first..).zip(commits) {
                let is_known = seen.contains(&version);
                assert!(
                    is_known || version == seen.len() as u64 + 1,
                    "{version} after {seen:?}"
                );
                assert_eq!(mutations.len(), 1);
                if !is_known {
                    seen.push(version);
                }
            }
        }
        // What was committed before is there once more after a stop, as after a crash.
        assert!(round == 0 || taken.batches[0].first <= round * 20);
        assert_eq!(seen.len() as u64, (round + 1) * 20);
        if round % 2 == 0 {
            store.shutdown().await;
        }
    }
}

/// A log that is gone or cut is no empty one: what was in it is lost, and a check and a repair say so.
#[tokio::test]
async fn a_log_that_is_gone_is_told_of() {
    let (_directory, path) = ledger_path();
    let log = crashed_with(&path, &["a", "b"]).await;
    let log_path = log::path_of(&path);
    assert!(offline::check(&path).unwrap().log_damage.is_empty());
    for left in [None, Some(0), Some(4096), Some(log.len() - 1)] {
        match left {
            None => std::fs::remove_file(&log_path).unwrap(),
            Some(left) => std::fs::write(&log_path, &log[..left]).unwrap(),
        }
        let report = offline::check(&path).unwrap();
        assert!(
            !report.is_clean() && report.log_damage[0].contains("cut short"),
            "{left:?}: {report:?}"
        );
        let plan = offline::plan(&path, &offline::Nowhere).unwrap();
        assert!(
            plan.given_up.iter().any(|what| what.contains("cut short")),
            "{left:?}: {plan:?}"
        );
    }
}
