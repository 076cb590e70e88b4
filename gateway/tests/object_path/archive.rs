//! The ledger's archive against a model: commits, snapshots, cuts at any moment, disks that fail, restores from what is left of them.
//!
//! The model is the state of the ledger after each of its commits. Whatever happens, what is restored is the state after one of them, and
//! of none before the last one that the archive said it had.

use super::support::cluster::{gateway_on, set_up};
use super::support::memory_node::{Faults, MemoryNode, flip_bit};
use bytes::Bytes;
use ec_core::Scheme;
use gateway::archive::finding::{Finder, Source};
use gateway::archive::replay::{self, CaughtUp};
use gateway::archive::restored::{self, Places};
use gateway::archive::shipper::{Retiring, Shipper, Shipping, sources};
use gateway::archive::{Archive, SyncStore};
use gateway::cluster::setup;
use gateway::ledger::Ledger;
use gateway::ledger::redb::RedbStore;
use gateway::ledger::store::{Commit, Direction, KeyRange, Mutation, Store};
use gateway::maintenance::scrub::Scrub;
use gateway::maintenance::worker::{Step, Worker};
use gateway::object::Objects;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{ClusterId, DiskId, Finding, FindingKind, Findings, Generation, NodeError};
use tempfile::TempDir;

const CACHE: usize = 4 << 20;

/// Rows by key, with their versions.
type Rows = BTreeMap<Bytes, (u64, Bytes)>;

struct World {
    directory: TempDir,
    number: u32,
    node: Arc<MemoryNode>,
    disks: Vec<DiskId>,
    scheme: Scheme,
    cluster: ClusterId,
    store: Arc<RedbStore>,
    objects: Arc<Objects>,
    shipping: Shipping,
    /// The rows of the model after each commit of it.
    states: BTreeMap<u64, Rows>,
    rng: StdRng,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("z{number:03}"))
}

async fn rows_of(store: &dyn Store) -> Rows {
    let (mut rows, mut start) = (Rows::new(), Bytes::from_static(b"z"));
    loop {
        let range = KeyRange {
            start: start.clone(),
            end: None,
        };
        let page = store.scan(range, 1_000, Direction::Forward).await.unwrap();
        for row in &page {
            rows.insert(
                row.key.clone(),
                (row.versioned.version, row.versioned.value.clone()),
            );
            start = gateway::ledger::key::after(&row.key);
        }
        if page.len() < 1_000 {
            return rows;
        }
    }
}

impl World {
    async fn new(scheme: &str, disks: u32, seed: u64) -> World {
        let directory = tempfile::tempdir().unwrap();
        let scheme: Scheme = scheme.parse().unwrap();
        let path = directory.path().join("ledger-0.redb");
        let store = Arc::new(RedbStore::create(path, CACHE).unwrap());
        let ledger = Ledger::new(store.clone());
        let disks = set_up(&ledger, scheme, disks).await;
        let node = Arc::new(MemoryNode::new(disks.clone()));
        let (cluster, _) = setup::find(&ledger).await.unwrap().unwrap();
        let (objects, shipping) = gateway(&store, &node, scheme).await;
        World {
            directory,
            number: 0,
            node,
            disks,
            scheme,
            cluster,
            store,
            objects,
            shipping,
            states: BTreeMap::from([(0, Rows::new())]),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(format!("ledger-{}.redb", self.number))
    }

    fn archive(&self) -> &Archive {
        &self.objects.archive
    }

    /// What the archive says it has.
    fn shipped(&self) -> u64 {
        self.archive().status(0).shipped
    }

    async fn commit(&mut self) {
        let count = self.rng.random_range(1..6);
        let mut mutations = BTreeMap::new();
        for _ in 0..count {
            let key = key(self.rng.random_range(0..60));
            let most = [100, 100, 1_000, 70_000][self.rng.random_range(0..4)];
            let value = vec![self.rng.random(); self.rng.random_range(0..most)];
            let mutation = match self.rng.random_bool(0.3) {
                true => Mutation::Delete { key: key.clone() },
                false => Mutation::Put {
                    key: key.clone(),
                    value: value.into(),
                },
            };
            mutations.insert(key, mutation);
        }
        self.commit_these(mutations.into_values().collect()).await;
    }

    async fn commit_these(&mut self, mutations: Vec<Mutation>) {
        let mut rows = self.states.values().next_back().unwrap().clone();
        let commit = Commit {
            preconditions: Vec::new(),
            mutations: mutations.clone(),
        };
        let version = self.store.commit(commit).await.unwrap();
        for mutation in mutations {
            match mutation {
                Mutation::Put { key, value } => rows.insert(key, (version, value)),
                Mutation::Delete { key } => rows.remove(&key),
            };
        }
        self.states.insert(version, rows);
    }

    async fn step(&self) -> Step {
        let stepped = self.shipping.step().await.unwrap();
        Retiring(self.shipping.0.clone()).step().await.unwrap();
        stepped
    }

    /// Steps until nothing is left to do.
    async fn settle(&self) {
        // Disks that failed are left alone for a while after they are well again.
        for _ in 0..6_000 {
            let stepped = self.step().await;
            if stepped == Step::Idle {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let status = self.archive().status(self.store.position());
            if status.due.is_none()
                && status.error.is_none()
                && status.behind_commits == 0
                && status.making_rows.is_none()
            {
                return;
            }
        }
        panic!(
            "the archive does not come to rest: {:?}",
            self.archive().status(self.store.position())
        );
    }

    /// A step that is cut off in the middle.
    async fn cut_step(&mut self) {
        let polls = self.rng.random_range(0..12);
        let step = self.shipping.step();
        let mut step = std::pin::pin!(step);
        for _ in 0..polls {
            if futures::poll!(step.as_mut()).is_ready() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The process ends and another begins.
    async fn restart(&mut self) {
        self.reopen(|_| {}).await;
    }

    async fn reopen(&mut self, between: impl FnOnce(&mut World)) {
        self.close().await;
        between(self);
        self.store = Arc::new(RedbStore::open(self.path(), CACHE).unwrap());
        (self.objects, self.shipping) = gateway(&self.store, &self.node, self.scheme).await;
    }

    async fn close(&mut self) {
        // Whoever holds the store lets go of it, as when a process ends.
        let store = self.store.clone();
        store.shutdown().await;
    }

    fn sources(&self, without: &[DiskId]) -> Vec<Source> {
        let disks = self.disks.iter().filter(|disk| !without.contains(disk));
        let source = |disk: &DiskId| Source {
            disk: *disk,
            incarnation: 1,
            ledger: Generation::NONE,
            client: self.node.clone(),
        };
        disks.map(source).collect()
    }

    /// So many disks, at random.
    fn some_disks(&mut self, count: usize) -> Vec<DiskId> {
        let mut disks = self.disks.clone();
        (0..count)
            .map(|_| disks.swap_remove(self.rng.random_range(0..disks.len())))
            .collect()
    }

    /// Restores from the disks without some of them, and compares with the model. The position.
    async fn restore(&self, to: &Path, without: &[DiskId]) -> u64 {
        let finder = Finder::new(self.cluster, self.sources(without));
        let found = finder.find(0).await;
        let restored = replay::build(to, &found.entries, None, &finder).await.unwrap();
        let store = RedbStore::open(to, CACHE).unwrap();
        assert_eq!(store.position(), restored.position);
        let rows = rows_of(&store).await;
        let (_, wanted) = self.states.range(..=restored.position).next_back().unwrap();
        assert!(
            rows == *wanted,
            "what is restored is not the ledger at commit {}",
            restored.position
        );
        restored.position
    }

    /// The gateway's machine is lost, and another goes on with what is restored.
    async fn lose_ledger(&mut self, without: &[DiskId]) {
        let shipped = self.shipped();
        self.close().await;
        self.number += 1;
        let path = self.path();
        let position = self.restore(&path, without).await;
        assert!(
            position >= shipped,
            "commit {shipped} was in the archive, and is not in what is restored: {position}"
        );
        let store = Arc::new(RedbStore::open(&path, CACHE).unwrap());
        restored::settle(
            &Ledger::new(store.clone()),
            self.cluster,
            &[],
            Places::Known,
            Default::default(),
        )
        .await
        .unwrap();
        store.shutdown().await;
        drop(store);
        // What was not shipped is lost, and its versions mean other commits from now on.
        self.states.split_off(&(position + 1));
        self.store = Arc::new(RedbStore::open(&path, CACHE).unwrap());
        (self.objects, self.shipping) = gateway(&self.store, &self.node, self.scheme).await;
    }
}

async fn gateway(store: &Arc<RedbStore>, node: &Arc<MemoryNode>, scheme: Scheme) -> (Arc<Objects>, Shipping) {
    let objects = gateway_on(Ledger::new(store.clone()), vec![node.clone()], scheme)
        .await
        .unwrap();
    let shipper = Shipper::new(objects.clone(), false).await.unwrap();
    (objects, Shipping(shipper.unwrap()))
}

fn seeds(few: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("CAIRN_TEST_SEED") {
        Some(seed) => vec![seed],
        None if std::env::var("CAIRN_TEST_LONG").is_ok() => (0..few * 20).collect(),
        None => (0..few).collect(),
    }
}

#[tokio::test]
async fn what_is_restored_is_what_the_ledger_was() {
    for seed in seeds(12) {
        eprintln!("CAIRN_TEST_SEED={seed}");
        let mut world = World::new("rs(2,2)", 6, seed).await;
        let mut down: Vec<DiskId> = Vec::new();
        for _ in 0..120 {
            match world.rng.random_range(0..100) {
                0..40 => world.commit().await,
                40..70 => {
                    world.step().await;
                }
                70..78 => world.cut_step().await,
                78..82 => world.archive().want_snapshot(),
                82..86 => {
                    // One at a time: with two more lost, more would be away than the archive survives.
                    for disk in down.drain(..) {
                        world.node.fault(disk, Faults::default());
                    }
                    let failing = world.some_disks(1);
                    let fault = world.rng.random_range(0..3);
                    for disk in &failing {
                        let put = [Some(NodeError::NoSpace), Some(NodeError::Timeout), None][fault].clone();
                        let puts_before = world.rng.random_range(0..3);
                        let missing = put.is_none();
                        let faults = Faults {
                            put,
                            puts_before,
                            missing,
                            ..Faults::default()
                        };
                        world.node.fault(*disk, faults);
                    }
                    down = failing;
                    world.objects.disks.poll().await;
                }
                86..92 => {
                    for disk in down.drain(..) {
                        world.node.fault(disk, Faults::default());
                    }
                    world.objects.disks.poll().await;
                }
                92..96 => world.restart().await,
                _ => {
                    for disk in down.drain(..) {
                        world.node.fault(disk, Faults::default());
                    }
                    world.objects.disks.poll().await;
                    if world.archive().status(0).snapshots == 0 {
                        continue;
                    }
                    let lost = world.some_disks(2);
                    world.lose_ledger(&lost).await;
                }
            }
        }
        for disk in down {
            world.node.fault(disk, Faults::default());
        }
        world.objects.disks.poll().await;
        world.settle().await;
        assert_eq!(world.shipped(), world.store.position());
        for round in 0..4 {
            let lost = world.some_disks(round % 3);
            let path = world.directory.path().join(format!("last-{round}.redb"));
            assert_eq!(world.restore(&path, &lost).await, world.store.position());
        }
    }
}

/// A commit larger than an entry, and rows larger than one.
#[tokio::test]
async fn what_is_larger_than_an_entry_is_in_several() {
    let mut world = World::new("rs(2,1)", 4, 1).await;
    world.settle().await;
    let large = |number: u64, bytes: usize| Mutation::Put {
        key: key(number),
        value: vec![number as u8; bytes].into(),
    };
    world
        .commit_these(vec![large(1, 9 << 20), large(2, 5), large(3, 5 << 20)])
        .await;
    world.commit().await;
    world.settle().await;
    let path = world.directory.path().join("from-the-log.redb");
    assert_eq!(world.restore(&path, &[]).await, world.store.position());
    world.archive().want_snapshot();
    world.step().await;
    world.settle().await;
    let path = world.directory.path().join("from-a-snapshot.redb");
    let lost = world.some_disks(1);
    assert_eq!(world.restore(&path, &lost).await, world.store.position());
}

/// An older copy of the ledger is put back: it catches up from the archive, with the versions that its commits had.
#[tokio::test]
async fn an_old_copy_catches_up() {
    let mut world = World::new("rs(2,1)", 4, 2).await;
    for _ in 0..30 {
        world.commit().await;
    }
    world.settle().await;
    world.close().await;
    let copy = world.directory.path().join("copy.redb");
    std::fs::copy(world.path(), &copy).unwrap();
    world.restart().await;
    for _ in 0..700 {
        world.commit().await;
        if world.rng.random_bool(0.05) {
            world.step().await;
        }
    }
    world.settle().await;
    let wanted = world.store.position();
    let finder = Finder::new(world.cluster, sources(&world.objects));
    let found = finder.find(0).await;
    let old = Arc::new(RedbStore::open(&copy, CACHE).unwrap());
    let behind = old.position();
    assert!(behind < wanted);
    let ledger = Ledger::new(old.clone());
    // More than the archive has is more than it can give: nothing is changed then.
    let more = replay::catch_up(&ledger, &finder, &found.entries, wanted + 1)
        .await
        .unwrap();
    assert_eq!((more, old.position()), (CaughtUp::Broken, behind));
    let caught_up = replay::catch_up(&ledger, &finder, &found.entries, wanted)
        .await
        .unwrap();
    let commits = wanted - behind;
    assert_eq!(
        caught_up,
        CaughtUp::By {
            commits,
            position: wanted
        }
    );
    assert!(rows_of(&*old).await == *world.states.values().next_back().unwrap());
    let again = replay::catch_up(&ledger, &finder, &found.entries, wanted)
        .await
        .unwrap();
    assert_eq!(again, CaughtUp::NothingNewer);
}

/// More was committed than waits to be shipped: the log goes on after a gap. What came after it is not taken for archived before a
/// snapshot has it, nor by a process that did not see the gap.
#[tokio::test]
async fn a_gap_in_the_log_is_not_forgotten() {
    let mut world = World::new("rs(2,1)", 4, 9).await;
    world.commit().await;
    world.settle().await;
    let before = world.shipped();
    assert_eq!(before, world.store.position());
    for number in 0..40 {
        let put = Mutation::Put {
            key: key(number),
            value: vec![number as u8; 900 << 10].into(),
        };
        world.commit_these(vec![put]).await;
    }
    for _ in 0..3 {
        world.commit().await;
        world.step().await;
        assert_eq!(world.shipped(), before, "a restore has no more yet");
        assert!(!world.archive().may_collect(world.store.position()));
    }
    assert!(world.archive().status(0).due.is_some());
    let finder = Finder::new(world.cluster, world.sources(&[]));
    let newest = finder.newest().await.unwrap();
    assert!(newest.position > before, "the log goes on: {newest:?}");
    world.restart().await;
    world.step().await;
    assert_eq!(world.shipped(), before);
    assert!(world.archive().status(0).due.is_some());
    let path = world.directory.path().join("early.redb");
    assert_eq!(world.restore(&path, &[]).await, before);
    world.settle().await;
    let path = world.directory.path().join("restored.redb");
    assert_eq!(world.restore(&path, &[]).await, world.store.position());
}

/// The process died in the middle of an entry of several stripes: the archive goes on without it.
#[tokio::test]
async fn an_entry_that_was_never_whole_stops_nothing() {
    let mut world = World::new("rs(2,1)", 4, 11).await;
    world.commit().await;
    world.settle().await;
    for number in 0..3 {
        let put = Mutation::Put {
            key: key(number),
            value: vec![number as u8; 900 << 10].into(),
        };
        world.commit_these(vec![put]).await;
    }
    world.step().await;
    let finder = Finder::new(world.cluster, world.sources(&[]));
    let found = finder.find(0).await;
    let (newest, _) = found.entries.last().unwrap();
    assert!(newest.total_bytes() > 2 << 20, "it has several stripes");
    let last = newest.total_bytes().div_ceil(1 << 20) as u32 - 1;
    world.node.each(|_, disk| {
        for (unit, held) in &mut disk.units {
            if unit.is_system() {
                held.shards
                    .retain(|key, _| (key.blob, key.stripe) != (newest.number, last));
            }
        }
    });
    world.restart().await;
    world.commit().await;
    world.settle().await;
    let path = world.directory.path().join("restored.redb");
    assert_eq!(world.restore(&path, &[]).await, world.store.position());
}

/// Two snapshots and the log since the older one are kept, and no more.
#[tokio::test]
async fn what_is_older_than_two_snapshots_goes() {
    let mut world = World::new("rs(2,1)", 4, 3).await;
    let mut counts = Vec::new();
    for _ in 0..12 {
        for _ in 0..5 {
            world.commit().await;
            world.step().await;
        }
        world.archive().want_snapshot();
        world.step().await;
        world.settle().await;
        let finder = Finder::new(world.cluster, sources(&world.objects));
        counts.push(finder.find(0).await.entries.len());
        assert!(world.archive().status(0).snapshots <= 2);
    }
    assert!(counts[11] <= counts[3] + 3, "{counts:?}");
    let path = world.directory.path().join("restored.redb");
    assert_eq!(world.restore(&path, &[]).await, world.store.position());
}

/// With `sync` nobody is told of a commit before it is in the archive.
#[tokio::test]
async fn a_commit_waits_for_the_archive() {
    let world = World::new("rs(2,1)", 4, 4).await;
    world.settle().await;
    let store = SyncStore::new(world.store.clone(), world.objects.archive.clone());
    let put = Mutation::Put {
        key: key(1),
        value: Bytes::from_static(b"value"),
    };
    let commit = store.commit(Commit {
        preconditions: Vec::new(),
        mutations: vec![put],
    });
    let mut commit = std::pin::pin!(commit);
    let early = tokio::time::timeout(Duration::from_millis(300), commit.as_mut()).await;
    assert!(early.is_err(), "{early:?}");
    world.step().await;
    let version = commit.await.unwrap();
    assert!(world.shipped() >= version);
    let path = world.directory.path().join("restored.redb");
    let finder = Finder::new(world.cluster, world.sources(&[]));
    let found = finder.find(0).await;
    let restored = replay::build(&path, &found.entries, None, &finder).await.unwrap();
    assert_eq!(restored.position, version);
}

/// Garbage waits for the archive: a ledger restored from it would still name what it was.
#[tokio::test]
async fn garbage_waits_for_the_archive() {
    let mut world = World::new("rs(2,1)", 4, 5).await;
    world.settle().await;
    assert!(world.archive().may_collect(world.store.position()));
    world.commit().await;
    assert!(!world.archive().may_collect(world.store.position()));
    world.step().await;
    assert!(world.archive().may_collect(world.store.position()));
}

impl World {
    /// Copies the ledger's files as they are. Nobody may be committing.
    async fn copy_ledger(&self) -> PathBuf {
        // What is at rest for a second is in the tree.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let copy = self.directory.path().join(format!("copy-{}.redb", self.number));
        for end in ["", "-sums", "-log"] {
            let of = |path: &Path| PathBuf::from(format!("{}{end}", path.display()));
            std::fs::copy(of(&self.path()), of(&copy)).unwrap();
        }
        copy
    }

    /// Starts another gateway, on a copy of the ledger that lacks what was shipped after the disks were told.
    async fn start_on(&self, copy: &Path) -> (Arc<RedbStore>, Arc<Objects>) {
        let store = Arc::new(RedbStore::open(copy, CACHE).unwrap());
        let (objects, _) = gateway_and_shipper(&store, &self.node, self.scheme).await;
        (store, objects)
    }

    /// Twenty commits that are shipped, and of which no disk is told.
    async fn commit_and_ship(&mut self) {
        for _ in 0..20 {
            self.commit().await;
            self.step().await;
        }
        while self.shipped() < self.store.position() {
            self.step().await;
        }
    }
}

async fn gateway_and_shipper(
    store: &Arc<RedbStore>,
    node: &Arc<MemoryNode>,
    scheme: Scheme,
) -> (Arc<Objects>, Option<Arc<Shipper>>) {
    let ledger = Ledger::new(store.clone());
    let objects = gateway_on(ledger, vec![node.clone()], scheme).await.unwrap();
    let acts = objects.holds.may_delete();
    let shipper = match acts {
        true => Shipper::new(objects.clone(), false).await.unwrap(),
        false => None,
    };
    (objects, shipper)
}

/// A copy of the ledger that disks take for the newest, because they were not told of more, is behind its archive, and catches up.
#[tokio::test]
async fn what_was_shipped_a_moment_ago_is_there_after_a_start_with_an_older_copy() {
    let mut world = World::new("rs(2,1)", 4, 11).await;
    for _ in 0..20 {
        world.commit().await;
    }
    world.settle().await;
    let copy = world.copy_ledger().await;
    world.objects.disks.tell_all(world.store.position()).await;
    world.commit_and_ship().await;
    let shipped = world.shipped();
    world.close().await;
    let (store, objects) = world.start_on(&copy).await;
    assert!(objects.holds.may_delete(), "{:?}", objects.holds.all());
    assert!(store.position() > shipped);
    assert!(rows_of(&*store).await == *world.states.values().next_back().unwrap());
    store.shutdown().await;
}

/// If the archive is known to go on, and cannot be read up to there, nothing is written.
#[tokio::test]
async fn an_older_copy_whose_archive_has_a_gap_only_reads() {
    let mut world = World::new("rs(2,1)", 4, 12).await;
    for _ in 0..20 {
        world.commit().await;
    }
    world.settle().await;
    let copy = world.copy_ledger().await;
    world.commit_and_ship().await;
    world.close().await;
    let finder = Finder::new(world.cluster, world.sources(&[]));
    let found = finder.find(0).await;
    let lost = found.entries[found.entries.len() - 5].0.number;
    world.node.each(|_, disk| {
        for unit in disk.units.values_mut() {
            unit.shards.retain(|key, _| key.blob != lost);
        }
    });
    let (store, objects) = world.start_on(&copy).await;
    let holds = objects.holds.all();
    assert!(
        holds
            .iter()
            .any(|(_, why)| why.contains("the ledger's archive goes on")),
        "{holds:?}"
    );
    let refused = objects.create_bucket("another").await;
    assert!(refused.is_err());
    store.shutdown().await;
}

/// Disks that do not answer cost a start no more than a moment, and it goes on with what the others say, or with what it has.
#[tokio::test]
async fn a_start_waits_a_moment_for_slow_disks_and_no_longer() {
    for slow in [2, 4] {
        let mut world = World::new("rs(2,1)", 4, 13).await;
        for _ in 0..20 {
            world.commit().await;
        }
        world.settle().await;
        let copy = world.copy_ledger().await;
        world.commit_and_ship().await;
        let newest = world.store.position();
        world.close().await;
        for disk in world.some_disks(slow) {
            let faults = Faults {
                get_delay: Duration::from_secs(60),
                ..Faults::default()
            };
            world.node.fault(disk, faults);
        }
        let began = std::time::Instant::now();
        let started = tokio::time::timeout(Duration::from_secs(30), world.start_on(&copy)).await;
        if slow == 4 {
            // All of them: nothing is known of the archive.
            let (store, _) = started.unwrap();
            assert!(
                began.elapsed() < Duration::from_millis(2_500),
                "{:?}",
                began.elapsed()
            );
            assert!(store.position() < newest);
            store.shutdown().await;
        }
    }
}

/// The newest ledger itself is not behind its archive after a crash, whatever was shipped.
#[tokio::test]
async fn the_newest_ledger_is_not_behind_its_archive() {
    let mut world = World::new("rs(2,1)", 4, 14).await;
    for _ in 0..6 {
        world.commit_and_ship().await;
        let position = world.store.position();
        world.restart().await;
        assert!(world.objects.holds.may_delete());
        assert!(world.store.position() >= position && world.store.position() < position + 20);
        assert!(rows_of(&*world.store).await == *world.states.values().next_back().unwrap());
    }
}

/// Copies of entries that rot are written anew from the others when verifying a disk finds them.
#[tokio::test]
async fn rotten_copies_of_entries_are_written_anew() {
    let mut world = World::new("rs(2,1)", 4, 15).await;
    for _ in 0..30 {
        world.commit().await;
        world.step().await;
    }
    world.settle().await;
    let archived = |world: &World| {
        let mut all = Vec::new();
        world.node.each(|id, disk| {
            let shards = disk.shards().filter(|(unit, _)| unit.is_system());
            all.extend(shards.map(|(unit, shard)| (id, unit, shard.key, shard.payload.clone())));
        });
        all
    };
    let right = archived(&world);
    let mut findings = BTreeMap::<DiskId, Findings>::new();
    let mut disks = 0..;
    // Of each entry one copy at most.
    let mut hit = HashSet::new();
    world.node.each(|id, disk| {
        let first = disks.next().unwrap();
        let shards = disk.shards_mut().filter(|(unit, _)| unit.is_system());
        for (number, (unit, shard)) in shards.enumerate().skip(first).step_by(7) {
            if !hit.insert((unit.volume, shard.key)) {
                continue;
            }
            flip_bit(shard, 31 * number);
            let of_disk = findings.entry(id).or_default();
            of_disk.last += 1;
            of_disk.found.push(Finding {
                kind: FindingKind::Corrupt,
                unit,
                key: shard.key,
                extent: 0,
                offset: 0,
                what: "a test".into(),
            });
        }
    });
    for (id, of_disk) in findings {
        world.node.with(id, |disk| disk.findings = of_disk);
    }
    let rotten = archived(&world);
    let wrong = rotten
        .iter()
        .zip(&right)
        .filter(|(now, right)| now != right)
        .count();
    assert!(wrong > 5);
    let scrub = Scrub::new(world.objects.clone());
    let lacking = |world: &World| {
        let all = archived(world);
        right.iter().filter(|shard| !all.contains(shard)).count()
    };
    for _ in 0..100 {
        scrub.step().await.unwrap();
        world.step().await;
        if lacking(&world) == 0 {
            break;
        }
    }
    assert_eq!(lacking(&world), 0, "of {wrong}");
}
