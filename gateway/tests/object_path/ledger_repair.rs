//! A damaged ledger, with the archive of it on the disks: what is lost is had from there, while the gateway runs or before it starts, and
//! until then nothing is deleted.

use crate::support::cluster::{BUCKET, gateway_on, set_up};
use crate::support::content::{body, content, drain};
use crate::support::memory_node::{Image, MemoryNode};
use bytes::Bytes;
use ec_core::Scheme;
use gateway::archive::finding::{Finder, Source};
use gateway::archive::recall::FromArchive;
use gateway::archive::replay;
use gateway::archive::restored::{self, Places};
use gateway::archive::shipper::{Shipper, Shipping};
use gateway::cluster::setup;
use gateway::error::{Error, Result};
use gateway::ledger::redb::RedbStore;
use gateway::ledger::redb::offline::{self, Nowhere};
use gateway::ledger::store::{LedgerError, Store};
use gateway::ledger::{Ledger, key};
use gateway::maintenance::garbage::Garbage;
use gateway::maintenance::holds::Hold;
use gateway::maintenance::ledger_check::LedgerCheck;
use gateway::maintenance::orphans::Orphans;
use gateway::maintenance::unnamed::Unnamed;
use gateway::maintenance::worker::Worker;
use gateway::object::Objects;
use gateway::object::condition::{ReadConditions, WriteConditions};
use gateway::object::get::Wanted;
use gateway::object::list::Query;
use gateway::object::put::Expected;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{ClusterId, DiskId, Generation, LedgerMarks, ShardKey, UnitId};
use tempfile::TempDir;

const CACHE: usize = 4 << 20;
const BLOCK: usize = 4096;

type Model = BTreeMap<String, Bytes>;

/// Disks, and a ledger in a file.
struct World {
    directory: TempDir,
    node: Arc<MemoryNode>,
    disks: Vec<DiskId>,
    scheme: Scheme,
    cluster: ClusterId,
    model: Model,
}

/// A gateway on it, whose workers run when the test says so.
struct Running {
    store: Arc<RedbStore>,
    objects: Arc<Objects>,
    check: LedgerCheck,
    shipping: Shipping,
}

impl World {
    /// Objects whose rows fill many pages, all in the archive; closed.
    async fn with_objects(count: usize) -> World {
        let directory = tempfile::tempdir().unwrap();
        let scheme: Scheme = "rs(4,2)".parse().unwrap();
        let store = Arc::new(RedbStore::create(directory.path().join("ledger.redb"), CACHE).unwrap());
        let ledger = Ledger::new(store.clone());
        let disks = set_up(&ledger, scheme, 8).await;
        let node = Arc::new(MemoryNode::new(disks.clone()));
        let (cluster, _) = setup::find(&ledger).await.unwrap().unwrap();
        store.shutdown().await;
        drop((store, ledger));
        let mut world = World {
            directory,
            node,
            disks,
            scheme,
            cluster,
            model: Model::new(),
        };
        let running = world.start().await.unwrap();
        running.objects.create_bucket(BUCKET).await.unwrap();
        for number in 0..count {
            let (name, size) = (format!("photos/{number:04}"), [700, 3_000, 40_000][number % 3]);
            let bytes = content(number as u64, size);
            running.put(&name, &bytes).await.unwrap();
            world.model.insert(name, bytes);
        }
        running.ship().await;
        running.end().await;
        world
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ledger.redb")
    }

    async fn start(&self) -> std::result::Result<Running, LedgerError> {
        let store = Arc::new(RedbStore::open(self.path(), CACHE)?);
        let started = gateway_on(Ledger::new(store.clone()), vec![self.node.clone()], self.scheme).await;
        let objects = match started {
            Ok(objects) => objects,
            Err(Error::Ledger(error)) => return Err(error),
            Err(other) => panic!("{other}"),
        };
        let shipping = Shipping(Shipper::new(objects.clone(), false).await.unwrap().unwrap());
        Ok(Running {
            store,
            check: LedgerCheck::new(objects.clone()),
            shipping,
            objects,
        })
    }

    fn archive(&self) -> Finder {
        let source = |disk: &DiskId| Source {
            disk: *disk,
            incarnation: 1,
            ledger: Generation::NONE,
            client: self.node.clone(),
        };
        Finder::new(self.cluster, self.disks.iter().map(source))
    }

    async fn archive_to_ask(&self) -> FromArchive {
        let finder = self.archive();
        let found = finder.find(0).await.entries;
        let runtime = tokio::runtime::Handle::current();
        FromArchive {
            finder,
            found,
            runtime,
        }
    }

    /// Spoils every place of the file where an object's row has its key; true if there is one.
    fn spoil(&self, name: &str) -> bool {
        let path = self.path();
        let mut content = std::fs::read(&path).unwrap();
        let wanted = key::object(1, name);
        let places: Vec<usize> = memchr::memmem::find_iter(&content, &wanted[..]).collect();
        places
            .iter()
            .for_each(|at| content[*at..at + wanted.len()].fill(b'?'));
        std::fs::write(&path, content).unwrap();
        !places.is_empty()
    }

    /// Every shard on the disks, but those of the archive.
    fn shards(&self) -> Vec<(DiskId, UnitId, ShardKey)> {
        let mut all = Vec::new();
        self.node.each(|id, disk| {
            let shards = disk.shards().filter(|(unit, _)| !unit.is_system());
            all.extend(shards.map(|(unit, shard)| (id, unit, shard.key)));
        });
        all
    }
}

impl Running {
    async fn put(&self, name: &str, bytes: &Bytes) -> Result<()> {
        let (expected, conditions) = (Expected::default(), WriteConditions::default());
        let put = self.objects.put(
            BUCKET,
            name,
            body(bytes),
            expected,
            Default::default(),
            conditions,
        );
        put.await.map(|_| ())
    }

    async fn get(&self, name: &str) -> Result<Vec<u8>> {
        let (_, bytes) = self
            .objects
            .get(BUCKET, name, Wanted::All, &ReadConditions::default())
            .await?;
        drain(bytes).await
    }

    /// The names, and whether some may be missing.
    async fn list(&self) -> (Vec<String>, bool) {
        let query = Query {
            limit: 1_000,
            ..Query::default()
        };
        let page = self.objects.list(BUCKET, &query).await.unwrap();
        let names = page.entries.iter().map(|entry| entry.name().to_owned());
        (names.collect(), page.incomplete)
    }

    async fn ship(&self) {
        for _ in 0..2_000 {
            self.shipping.step().await.unwrap();
            let status = self.objects.archive.status(self.store.position());
            if status.due.is_none() && status.behind_commits == 0 && status.snapshots > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{:?}", self.objects.archive.status(self.store.position()));
    }

    fn is_damaged(&self) -> bool {
        self.store.damage().unwrap().counts().is_any()
    }

    fn is_held(&self) -> bool {
        let holds = self.objects.holds.all();
        holds.iter().any(|(hold, _)| *hold == Hold::LedgerDamaged)
    }

    /// A step of each worker that deletes.
    async fn work(&self) {
        let _refused = Garbage::new(self.objects.clone()).step().await;
        let _refused = Orphans::new(self.objects.clone()).step().await;
        let _refused = Unnamed::new(self.objects.clone()).step().await;
    }

    /// Looks through the ledger until this holds.
    async fn check_until(&self, what: &str, holds: impl Fn(&Running) -> bool) {
        for _ in 0..2_000 {
            self.check.step().await.unwrap();
            self.work().await;
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never {what}: {:?}", self.store.damage().unwrap().repair());
    }

    async fn end(self) {
        self.store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_is_repaired_while_the_gateway_runs() {
    let world = World::with_objects(300).await;
    let spoiled = "photos/0150";
    assert!(world.spoil(spoiled));
    let running = world.start().await.unwrap();
    let shards = world.shards();
    assert!(matches!(
        running.get(spoiled).await,
        Err(Error::Ledger(LedgerError::Damaged { .. }))
    ));
    // The archive has it, and this gateway does not know that before it has looked where the archive ends.
    running
        .check_until("tried", |running| {
            running.store.damage().unwrap().repair().waits.is_some()
        })
        .await;
    assert!(running.is_held() && running.is_damaged());
    assert!(matches!(
        running.get(spoiled).await,
        Err(Error::Ledger(LedgerError::Damaged { .. }))
    ));
    let (listed, incomplete) = running.list().await;
    assert!(incomplete, "a listing with a hole says so");
    assert!(
        !listed.iter().any(|name| name == spoiled),
        "a row that cannot be read is listed"
    );
    assert!(listed.len() > 250, "LIST goes on beside it: {}", listed.len());
    let late = content(77, 5_000);
    running.put("late", &late).await.unwrap();
    // What is deleted meanwhile stays on the disks.
    let conditions = WriteConditions::default();
    running
        .objects
        .delete(BUCKET, "photos/0001", conditions)
        .await
        .unwrap();
    running.work().await;
    assert!(running.is_held());
    let now = world.shards();
    assert!(
        shards.iter().all(|shard| now.contains(shard)),
        "something was deleted"
    );

    // No snapshot can be made; the log goes on.
    running.objects.archive.want_snapshot();
    let entries = running.objects.archive.status(0).entries;
    for _ in 0..60 {
        running.shipping.step().await.unwrap();
    }
    let status = running.objects.archive.status(running.store.position());
    assert!(
        status
            .due
            .as_ref()
            .is_some_and(|due| due.contains("tried again later")),
        "{status:?}"
    );
    assert!(
        status.error.is_none() && status.behind_commits == 0 && status.behind_s == 0,
        "{status:?}"
    );
    assert!(
        status.entries < entries + 10,
        "pieces again and again: {status:?}"
    );
    running
        .check_until("repaired", |running| !running.is_held())
        .await;
    assert!(!running.is_damaged());
    let repair = running.store.damage().unwrap().repair();
    assert!(
        repair.repairs == 1 && repair.rows > 0 && repair.waits.is_none(),
        "{repair:?}"
    );
    for (name, bytes) in &world.model {
        match running.get(name).await {
            Ok(found) => assert!(found == *bytes, "{name}"),
            Err(error) => assert!(name == "photos/0001", "{name}: {error}"),
        }
    }
    assert!(running.get("late").await.unwrap() == late);
    let (listed, incomplete) = running.list().await;
    assert_eq!((listed.len(), incomplete), (world.model.len(), false));
    running.ship().await;
    running.work().await;
    assert!(world.shards().len() < now.len(), "what was deleted goes now");
    running.end().await;
    let report = offline::check(&world.path()).unwrap();
    assert!(
        report.is_clean() && report.damaged_blocks.is_empty(),
        "{:?}",
        report.damaged
    );
}

/// Rows whose last change is not in the archive stay an error until it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_archive_does_not_have_yet_is_not_made_up() {
    let world = World::with_objects(300).await;
    let running = world.start().await.unwrap();
    running.ship().await;
    let newer = content(99, 9_000);
    running.put("photos/0150", &newer).await.unwrap();
    running.end().await; // Not shipped.
    assert!(world.spoil("photos/0150"));
    let running = world.start().await.unwrap();
    assert!(running.get("photos/0150").await.is_err());
    running
        .check_until("tried", |running| {
            running.store.damage().unwrap().repair().waits.is_some()
        })
        .await;
    assert!(running.is_held() && running.get("photos/0150").await.is_err());
    for _ in 0..20 {
        running.shipping.step().await.unwrap();
    }
    running
        .check_until("repaired", |running| !running.is_held())
        .await;
    assert!(running.get("photos/0150").await.unwrap() == newer);
    running.end().await;
}

/// What disks and the ledger's files are at one moment.
struct Saved {
    images: Vec<(DiskId, Image, LedgerMarks)>,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Saved {
    fn of(world: &World) -> Saved {
        let mut images = Vec::new();
        world
            .node
            .each(|id, disk| images.push((id, disk.image(), disk.ledger)));
        let files = std::fs::read_dir(world.directory.path()).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        let files = files.map(|path| (path.clone(), std::fs::read(path).unwrap()));
        Saved {
            images,
            files: files.collect(),
        }
    }

    fn put_back(&self, world: &World) {
        for (id, image, ledger) in &self.images {
            world.node.with(*id, |disk| {
                disk.swap(image.clone());
                disk.ledger = *ledger;
            });
        }
        for entry in std::fs::read_dir(world.directory.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (path, content) in &self.files {
            std::fs::write(path, content).unwrap();
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    rounds: usize,
    /// Nothing that is in use was hit.
    harmless: usize,
    /// Bits that sums set right.
    by_sums: usize,
    repaired_online: usize,
    rows_online: u64,
    repaired_offline: usize,
    rows_offline: u64,
    /// Nothing of it could be opened: made anew from the archive.
    restored: usize,
    wrong: usize,
    unreadable: usize,
    deleted: usize,
}

fn rounds(few: usize, all: usize) -> usize {
    match std::env::var_os("CAIRN_TEST_LONG") {
        Some(_) => all,
        None => few,
    }
}

/// Damages the tree's file: one bit, or more of a block than can be set right.
fn damage(path: &Path, round: usize, rng: &mut StdRng) {
    let mut content = std::fs::read(path).unwrap();
    match round % 2 {
        0 => {
            let at = rng.random_range(0..content.len());
            content[at] ^= 1 << rng.random_range(0..8);
        }
        _ => {
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(BLOCK..content.len());
                let until = (at + rng.random_range(2..600)).min(at / BLOCK * BLOCK + BLOCK);
                content[at..until]
                    .iter_mut()
                    .for_each(|byte| *byte = rng.random());
            }
        }
    }
    std::fs::write(path, content).unwrap();
}

async fn restore(world: &World) {
    for name in ["ledger.redb", "ledger.redb-sums", "ledger.redb-log"] {
        let _not_there = std::fs::remove_file(world.directory.path().join(name));
    }
    let finder = world.archive();
    let found = finder.find(0).await;
    replay::build(&world.path(), &found.entries, None, &finder)
        .await
        .unwrap();
    let mut marks = Vec::new();
    world.node.each(|_, disk| marks.push(disk.ledger));
    let store = Arc::new(RedbStore::open(world.path(), CACHE).unwrap());
    let ledger = Ledger::new(store.clone());
    restored::settle(&ledger, world.cluster, &marks, Places::Known, Default::default())
        .await
        .unwrap();
    store.shutdown().await;
}

/// Repairs the closed ledger with the archive; false if there is nothing that a repair could begin with.
async fn repair_closed(world: &World, counts: &mut Counts) -> bool {
    // Nodes answer reads once they were asked.
    world.node.each(|_, disk| disk.is_admitted = true);
    let (path, elsewhere) = (world.path(), world.archive_to_ask().await);
    let repaired = tokio::task::spawn_blocking(move || {
        let plan = offline::plan(&path, &elsewhere).ok()?;
        // With the root lost nothing may be left that tells whose history the archive's is: that is refused, and restored.
        plan.not_fetched
            .is_none()
            .then(|| offline::repair(&path, &elsewhere).unwrap())
    });
    let Some(plan) = repaired.await.unwrap() else {
        return false;
    };
    assert!(plan.given_up.is_empty(), "{plan:?}");
    if plan.fetched_parts > 0 {
        counts.repaired_offline += 1;
        counts.rows_offline += plan.fetched;
    }
    true
}

async fn round(world: &World, round: usize, rng: &mut StdRng, counts: &mut Counts) {
    damage(&world.path(), round, rng);
    counts.rounds += 1;
    let mut running = match round / 2 % 2 {
        0 => world.start().await.ok(),
        _ => None,
    };
    let was_open = running.is_some();
    if running.is_none() {
        if !repair_closed(world, counts).await {
            counts.restored += 1;
            restore(world).await;
        }
        running = Some(world.start().await.unwrap());
    }
    let running = running.unwrap();
    let shards = world.shards();
    running.shipping.step().await.unwrap();
    for _ in 0..4 {
        running.check.step().await.unwrap();
        running.work().await;
        running.shipping.step().await.unwrap();
    }
    // Where reads find nothing wrong, a look at all blocks would.
    running.store.check_blocks(0, u64::MAX / 2).await.unwrap();
    if running.is_damaged() {
        running
            .check_until("repaired", |running| !running.is_held())
            .await;
    }
    let known = running.store.damage().unwrap();
    let (repair, corrected) = (known.repair(), known.counts().corrected);
    match (repair.repairs, corrected) {
        (1.., _) => counts.repaired_online += 1,
        (0, 1..) => counts.by_sums += 1,
        (0, 0) if was_open => counts.harmless += 1,
        _ => {}
    }
    counts.rows_online += repair.rows;
    for (name, bytes) in &world.model {
        match running.get(name).await {
            Ok(found) => counts.wrong += usize::from(found != *bytes),
            Err(_) => counts.unreadable += 1,
        }
    }
    running.work().await;
    let now: std::collections::HashSet<_> = world.shards().into_iter().collect();
    counts.deleted += shards.iter().filter(|shard| !now.contains(shard)).count();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_anywhere_in_the_file_costs_no_object() {
    let seed = std::env::var("CAIRN_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("CAIRN_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::with_objects(120).await;
    let saved = Saved::of(&world);
    let mut counts = Counts::default();
    for number in 0..rounds(200, 2_000) {
        saved.put_back(&world);
        round(&world, number, &mut rng, &mut counts).await;
    }
    println!("{counts:?}");
    assert_eq!(
        (counts.wrong, counts.unreadable, counts.deleted),
        (0, 0, 0),
        "{counts:?}"
    );
    assert!(
        counts.by_sums > 0 && counts.rows_online > 0 && counts.rows_offline > 0,
        "{counts:?}"
    );
}

/// Without the archive, and with one of another ledger, a repair goes on as it can, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_believes_no_archive_of_another_ledger() {
    let (world, other) = (World::with_objects(200).await, World::with_objects(210).await);
    assert!(world.spoil("photos/0100"));
    let path = world.path();
    let without = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || offline::plan(&path, &Nowhere))
    };
    let without = without.await.unwrap().unwrap();
    assert!(without.fetched == 0 && !without.given_up.is_empty());
    for (of, is_own) in [(&other, false), (&world, true)] {
        of.node.each(|_, disk| disk.is_admitted = true);
        let mut elsewhere = of.archive_to_ask().await;
        if !is_own {
            // As if it were of the same cluster.
            elsewhere.finder = of.archive();
        }
        let path = path.clone();
        let plan = tokio::task::spawn_blocking(move || offline::plan(&path, &elsewhere));
        let plan = plan.await.unwrap().unwrap();
        assert_eq!(plan.given_up.is_empty(), is_own, "{plan:?}");
        assert_eq!(plan.not_fetched.is_some(), !is_own, "{plan:?}");
    }
}
