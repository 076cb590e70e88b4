//! A ledger, a node and, as often as wanted, a gateway on them.

use super::content::drain;
use super::memory_node::{Faults, MemoryNode};
use super::store::GatedStore;
use bytes::Bytes;
use ec_core::{Kernel, Scheme};
use gateway::budget::Budget;
use gateway::clock::SystemClock;
use gateway::cluster::disks::Disks;
use gateway::cluster::generation::{Generations, Identity};
use gateway::cluster::lease::Lease;
use gateway::cluster::nodes::Nodes;
use gateway::cluster::setup::{Wanted as WantedCluster, mark_formatted, open_or_plan};
use gateway::error::Result;
use gateway::ledger::memory::MemoryStore;
use gateway::ledger::model::{Headers, UnnamedRow};
use gateway::ledger::{Ledger, Typed, key};
use gateway::maintenance::garbage::Garbage;
use gateway::maintenance::holds::Holds;
use gateway::maintenance::orphans::Orphans;
use gateway::maintenance::repair::Repair;
use gateway::maintenance::unnamed::Unnamed;
use gateway::maintenance::unnamed::keep::Keep;
use gateway::maintenance::worker::{Step, Worker};
use gateway::metrics::Metrics;
use gateway::object::block_cache::BlockCache;
use gateway::object::condition::{ReadConditions, WriteConditions};
use gateway::object::copy::Source;
use gateway::object::get::Wanted;
use gateway::object::hashing::Hashing;
use gateway::object::put::{Expected, Stored};
use gateway::object::tokens::Tokens;
use gateway::object::{Body, Codecs, Objects};
use gateway::placement::volumes::Volumes;
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::DiskId;

pub const BUCKET: &str = "cairn";
/// More than any test needs, unless it is about memory.
pub const MEMORY_BYTES: u64 = 1 << 30;

/// What outlives a gateway.
#[derive(Clone)]
pub struct Cluster {
    pub store: Arc<GatedStore>,
    pub node: Arc<MemoryNode>,
    pub disks: Vec<DiskId>,
    pub scheme: Scheme,
}

/// A cluster with a gateway whose workers run when the test says so.
pub struct World {
    pub cluster: Cluster,
    pub objects: Arc<Objects>,
    garbage: Garbage,
    repair: Repair,
    unnamed: Unnamed,
}

impl Cluster {
    /// Plans and formats a cluster.
    pub async fn new(scheme: &str, disks: u32) -> Cluster {
        let scheme: Scheme = scheme.parse().unwrap();
        let store = Arc::new(GatedStore::default());
        let disks = set_up(&Ledger::new(store.clone()), scheme, disks).await;
        Cluster {
            store,
            node: Arc::new(MemoryNode::new(disks.clone())),
            disks,
            scheme,
        }
    }

    /// The same disks, and another ledger.
    pub fn with_ledger(&self, rows: MemoryStore) -> Cluster {
        Cluster {
            store: Arc::new(GatedStore::of(rows)),
            ..self.clone()
        }
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::new(self.store.clone())
    }

    pub fn nodes(&self) -> Vec<Arc<dyn StorageClient>> {
        vec![self.node.clone()]
    }

    /// A gateway on it: whoever was the gateway before is dead.
    pub async fn gateway(&self, memory_bytes: u64) -> Result<Arc<Objects>> {
        self.caching_gateway(memory_bytes, 0).await
    }

    /// The same, and it keeps so many bytes of hot blocks.
    pub async fn caching_gateway(&self, memory_bytes: u64, cache_bytes: u64) -> Result<Arc<Objects>> {
        objects_on(
            self.ledger(),
            self.nodes(),
            self.scheme,
            memory_bytes,
            cache_bytes,
        )
        .await
    }
}

/// Makes a cluster in a ledger that is empty, with so many disks.
pub async fn set_up(ledger: &Ledger, scheme: Scheme, disks: u32) -> Vec<DiskId> {
    let wanted = WantedCluster {
        scheme: Some(scheme),
        disks: Some(disks),
        scheme_default: scheme,
        disks_default: disks,
        disk_size: 1 << 40,
    };
    let mut planned = open_or_plan(ledger, &wanted).await.unwrap();
    mark_formatted(ledger, &mut planned.disks).await.unwrap();
    planned.disks.iter().map(|d| d.id).collect()
}

/// A gateway on any engine and nodes.
pub async fn gateway_on(
    ledger: Ledger,
    nodes: Vec<Arc<dyn StorageClient>>,
    scheme: Scheme,
) -> Result<Arc<Objects>> {
    objects_on(ledger, nodes, scheme, MEMORY_BYTES, 0).await
}

async fn objects_on(
    ledger: Ledger,
    nodes: Vec<Arc<dyn StorageClient>>,
    scheme: Scheme,
    memory_bytes: u64,
    cache_bytes: u64,
) -> Result<Arc<Objects>> {
    let (nodes, holds) = (Arc::new(Nodes::from(nodes)), Holds::default());
    let begun = Generations::begin(&ledger, &nodes, Identity::default(), holds.clone());
    let generations = Arc::new(begun.await?);
    let acts = generations.own().is_some();
    let lease = Arc::new(match acts {
        true => Lease::take_over(ledger.clone(), "test").await?,
        false => Lease::none(ledger.clone()),
    });
    let disks = Arc::new(Disks::load(&ledger, lease.clone(), nodes, generations).await?);
    disks.poll().await;
    let volumes = Arc::new(Volumes::load(ledger.clone(), lease.clone(), disks.clone()).await?);
    let objects = Arc::new(Objects {
        ledger,
        lease,
        disks,
        volumes,
        budget: Budget::new(memory_bytes),
        cache: Arc::new(BlockCache::new(cache_bytes)),
        readers: Default::default(),
        abandoned: Default::default(),
        holds,
        unnamed: Default::default(),
        archive: Default::default(),
        latencies: Default::default(),
        metrics: Arc::new(Metrics::new().unwrap()),
        clock: Arc::new(SystemClock),
        scheme,
        hedges: Tokens::hedges(),
        retries: Tokens::retries(),
        suspects: Default::default(),
        newer_epochs: Default::default(),
        relocations: Default::default(),
        turns: Default::default(),
        gate: Default::default(),
        codecs: Codecs::new(Kernel::from_environment().unwrap()),
        hashing: Hashing::start(Kernel::from_environment().unwrap())?,
    });
    if acts {
        objects.finish_bucket_deletions().await?;
    }
    Ok(objects)
}

impl World {
    /// A new cluster with one bucket.
    pub async fn new(scheme: &str, disks: u32) -> World {
        World::with_memory(scheme, disks, MEMORY_BYTES).await
    }

    pub async fn with_memory(scheme: &str, disks: u32, memory_bytes: u64) -> World {
        let world = World::on(Cluster::new(scheme, disks).await, memory_bytes).await;
        world.objects.create_bucket(BUCKET).await.unwrap();
        world
    }

    /// A new cluster whose gateway keeps so many bytes of hot blocks.
    pub async fn caching(scheme: &str, disks: u32, cache_bytes: u64) -> World {
        let cluster = Cluster::new(scheme, disks).await;
        let objects = cluster.caching_gateway(MEMORY_BYTES, cache_bytes).await;
        let world = World::of_objects(cluster, objects.unwrap());
        world.objects.create_bucket(BUCKET).await.unwrap();
        world
    }

    /// A gateway on a cluster that exists.
    pub async fn on(cluster: Cluster, memory_bytes: u64) -> World {
        let objects = cluster.gateway(memory_bytes).await.unwrap();
        World::of_objects(cluster, objects)
    }

    /// With a gateway that is there.
    pub fn of_objects(cluster: Cluster, objects: Arc<Objects>) -> World {
        World {
            cluster,
            garbage: Garbage::new(objects.clone()),
            repair: Repair::new(objects.clone()),
            unnamed: Unnamed::new(objects.clone()),
            objects,
        }
    }

    /// The gateway is gone without a word, and another one starts.
    pub async fn crash(self) -> World {
        World::on(self.cluster, MEMORY_BYTES).await
    }

    pub fn disk(&self, n: usize) -> DiskId {
        self.cluster.disks[n]
    }

    /// Sets what is wrong with a disk; the gateway learns of it by itself, or by `poll`.
    pub fn fault(&self, n: usize, faults: Faults) {
        self.cluster.node.fault(self.disk(n), faults);
    }

    pub async fn poll(&self) {
        self.objects.disks.poll().await;
    }

    /// Takes disks away, and has the gateway know.
    pub async fn lose(&self, disks: &[usize]) {
        for &n in disks {
            self.fault(
                n,
                Faults {
                    missing: true,
                    ..Default::default()
                },
            );
        }
        self.poll().await;
    }

    /// All disks are well again.
    pub async fn heal(&self) {
        self.cluster.node.each(|_, disk| disk.faults = Faults::default());
        self.poll().await;
    }

    pub async fn put(&self, name: &str, bytes: &Bytes) -> Result<Stored> {
        self.put_body(name, super::content::body(bytes)).await
    }

    pub async fn put_body(&self, name: &str, body: Body) -> Result<Stored> {
        self.put_if(name, body, WriteConditions::default()).await
    }

    pub async fn put_if(&self, name: &str, body: Body, conditions: WriteConditions) -> Result<Stored> {
        self.objects
            .put(
                BUCKET,
                name,
                body,
                Expected::default(),
                Headers::default(),
                conditions,
            )
            .await
    }

    pub async fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.get_range(name, Wanted::All).await
    }

    pub async fn get_range(&self, name: &str, wanted: Wanted) -> Result<Vec<u8>> {
        let (found, bytes) = self
            .objects
            .get(BUCKET, name, wanted, &ReadConditions::default())
            .await?;
        let bytes = drain(bytes).await?;
        assert_eq!(
            bytes.len() as u64,
            found.range.end - found.range.start,
            "{name}: a download of another length"
        );
        Ok(bytes)
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        self.objects
            .delete(BUCKET, name, WriteConditions::default())
            .await
    }

    pub async fn copy(&self, from: &str, to: &str) -> Result<Stored> {
        let headers = (from == to).then(Headers::default);
        self.objects
            .copy(source(from), BUCKET, to, headers, None, Default::default())
            .await
    }

    /// Runs the garbage worker until it finds nothing to do. A download ends a moment after its last byte was taken,
    /// so what is left then is looked at again for a while.
    pub async fn collect(&self) {
        for _ in 0..20 {
            while self.garbage.step().await.unwrap() != Step::Idle {}
            if self.objects.ledger.count(key::table(b'g'), 1).await.unwrap() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs one step of the repair worker.
    pub async fn repair(&self) -> Step {
        self.repair.step().await.unwrap()
    }

    /// What nothing names goes from now on as soon as this many complete censuses have found it.
    pub async fn keep_no_time(&self, censuses: u32) {
        let keep = Keep { keep_s: 0, censuses };
        self.objects.set_keep(keep).await.unwrap();
    }

    /// Runs one step of the worker that lets go of what nothing names.
    pub async fn let_go(&self) -> Step {
        self.unnamed.step().await.unwrap()
    }

    /// The rows of what is set aside.
    pub async fn set_aside(&self) -> Vec<((u64, u64), UnnamedRow)> {
        let mut rows = Vec::new();
        let each = |row_key: Bytes, row: Typed<UnnamedRow>| {
            rows.push((key::volume_and_blob(&row_key).unwrap(), row.row));
        };
        self.objects
            .ledger
            .for_each(key::table(b'U'), each)
            .await
            .unwrap();
        rows
    }

    /// Runs one step of the orphans worker.
    pub async fn sweep(&self) -> Result<Step> {
        Orphans::new(self.objects.clone()).step().await
    }
}

/// An object of the bucket as the source of a copy.
pub fn source(name: &str) -> Source {
    Source {
        bucket: BUCKET.into(),
        name: name.into(),
        conditions: ReadConditions::default(),
    }
}
