//! A cluster in one process: machines, the ledger's rows, and the gateway of the moment with all its workers.

use crate::machine::{CLUSTER, DISK_BYTES, Machine};
use crate::network::{Life, Link, Way};
use crate::store::LivingStore;
use crate::trace::Trace;
use bytes::Bytes;
use ec_core::{Kernel, Scheme};
use gateway::clock::Clock;
use gateway::cluster::adopt::Adopting;
use gateway::cluster::disks::Health;
use gateway::cluster::nodes::Nodes;
use gateway::cluster::setup;
use gateway::ledger::memory::MemoryStore;
use gateway::ledger::model::{DiskRow, NodeRow};
use gateway::ledger::{CommitBuilder, Ledger, Typed, key};
use gateway::object::Objects;
use gateway::server::{Gateway, GatewayConfig};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{DiskId, NodeId};

pub const BUCKET: &str = "cairn";
/// How long a disk may be away.
pub const GRACE: Duration = Duration::from_secs(20);
const MEMORY_BYTES: u64 = 256 << 20;
/// So little that blocks go as often as they come.
const CACHE_BYTES: u64 = 4 << 20;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub scheme: Scheme,
    pub machines: usize,
    pub disks_each: usize,
    /// Machines in a rack; none have racks if it is 0.
    pub rack: usize,
}

/// A gateway, as long as it lives.
#[derive(Clone)]
pub struct Serving {
    /// Its workers end when it is dropped.
    _gateway: Arc<Gateway>,
    pub objects: Arc<Objects>,
    pub store: Arc<LivingStore>,
    pub life: Arc<Life>,
}

pub struct World {
    pub shape: Shape,
    pub ways: Vec<Arc<Way>>,
    pub rows: Arc<MemoryStore>,
    pub trace: Trace,
    rng: Mutex<StdRng>,
    serving: Mutex<Option<Serving>>,
}

/// The simulated time, for Last-Modified.
struct SimulatedClock(tokio::time::Instant);

impl Clock for SimulatedClock {
    fn now_ms(&self) -> u64 {
        1_790_000_000_000 + self.0.elapsed().as_millis() as u64
    }
}

impl World {
    /// A new cluster, with everything running and one bucket.
    pub async fn new(shape: Shape, seed: u64, trace: Trace) -> Arc<World> {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x0001_D000);
        let ways = (0..shape.machines).map(|number| {
            let machine = Arc::new(Machine::new(number, trace.clone()));
            Arc::new(Way::new(machine, rng.random(), trace.clone()))
        });
        let world = World {
            ways: ways.collect(),
            rows: Arc::new(MemoryStore::new()),
            trace,
            serving: Mutex::default(),
            rng: Mutex::new(rng),
            shape,
        };
        world.found().await;
        world.ways.iter().for_each(|way| way.machine.start());
        let world = Arc::new(world);
        world.start_gateway().await;
        world
            .serving()
            .objects
            .create_bucket(BUCKET)
            .await
            .expect("a bucket");
        world
    }

    /// The rows and disks of a cluster that was just made.
    async fn found(&self) {
        let ledger = self.ledger();
        let made = setup::create(&ledger, CLUSTER, "simulated", self.shape.scheme);
        made.await.expect("an empty ledger");
        let mut commit = CommitBuilder::new();
        for (number, way) in self.ways.iter().enumerate() {
            let machine = &way.machine;
            let rack = number.checked_div(self.shape.rack);
            let row = NodeRow {
                name: machine.name.clone(),
                address: format!("{}:1", machine.name),
                rack: rack.map_or_else(String::new, |rack| format!("r{rack}")),
                ..NodeRow::default()
            };
            commit = commit.put(key::node(machine.id.0), &row);
            for place in 0..self.shape.disks_each {
                let slot = machine.insert_blank(self.random());
                let id = DiskId(machine.id.0 * 100 + place as u128);
                let row = DiskRow {
                    incarnation: 1,
                    label: format!("{}/{place}", machine.name),
                    size: DISK_BYTES,
                    formatted: true,
                    node: Bytes::copy_from_slice(&machine.id.0.to_be_bytes()),
                    path: machine.format_slot(slot, id),
                    ..DiskRow::default()
                };
                commit = commit.put(key::disk(id.0), &row);
            }
        }
        ledger.commit(commit.build()).await.expect("rows");
    }

    /// Starts a gateway: whoever was the gateway before is dead.
    pub async fn start_gateway(&self) {
        let life = Arc::new(Life::default());
        let store = Arc::new(LivingStore::new(self.rows.clone(), life.clone(), self.random()));
        let ledger = Ledger::new(store.clone());
        let ways = self.ways.clone();
        let living = life.clone();
        let connect = move |id: NodeId, _: &NodeRow| {
            let way = ways
                .iter()
                .find(|way| way.machine.id == id)
                .expect("a machine")
                .clone();
            let life = living.clone();
            Ok(Arc::new(Link { way, life }) as Arc<dyn StorageClient>)
        };
        let nodes = Nodes::load(&ledger, Box::new(connect)).await.expect("rows");
        let config = GatewayConfig {
            rebuild_floor: 16 << 20,
            name: "simulated".into(),
            scheme: self.shape.scheme,
            kernel: Kernel::from_environment().expect("a kernel"),
            memory_bytes: MEMORY_BYTES,
            cache_bytes: CACHE_BYTES,
            grace: GRACE,
            census_cycle: GatewayConfig::CENSUS_CYCLE,
        };
        let clock = Arc::new(SimulatedClock(tokio::time::Instant::now()));
        let started = Gateway::start(&config, ledger, nodes, clock).await;
        let gateway = started.expect("nothing keeps a gateway from starting");
        self.trace.note("gateway started");
        *self.lock() = Some(Serving {
            objects: gateway.objects.clone(),
            _gateway: gateway,
            store,
            life,
        });
    }

    /// The gateway is gone without a word, if it is not already.
    pub fn kill_gateway(&self) {
        if let Some(serving) = self.lock().take() {
            serving.life.end();
            self.trace.note("gateway dead");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Serving>> {
        self.serving.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The gateway, if there is one that lives.
    pub fn living(&self) -> Option<Serving> {
        self.lock().clone().filter(|serving| !serving.life.is_over())
    }

    /// The gateway, while nothing is killed.
    pub fn serving(&self) -> Serving {
        self.living().expect("a gateway")
    }

    /// The gateway, once there is one.
    pub async fn gateway(&self) -> Serving {
        loop {
            if let Some(serving) = self.living() {
                return serving;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn random(&self) -> u64 {
        self.rng.lock().unwrap_or_else(|e| e.into_inner()).random()
    }

    /// The rows, whoever lives.
    pub fn ledger(&self) -> Ledger {
        Ledger::new(self.rows.clone())
    }

    pub async fn table<T: Message + Default>(&self, tag: u8) -> Vec<(Bytes, T)> {
        let mut rows = Vec::new();
        let each = |row_key, row: Typed<T>| rows.push((row_key, row.row));
        let ledger = self.ledger();
        ledger.for_each(key::table(tag), each).await.expect("rows");
        rows
    }

    pub fn adopting(&self, serving: &Serving) -> Adopting {
        let objects = &serving.objects;
        Adopting::new(
            CLUSTER,
            objects.ledger.clone(),
            objects.lease.clone(),
            objects.disks.clone(),
        )
    }

    /// The machine whose disk this is.
    pub async fn owner(&self, disk: DiskId) -> Option<NodeId> {
        let row = self
            .ledger()
            .get::<DiskRow>(key::disk(disk.0))
            .await
            .expect("rows")?;
        let id: [u8; 16] = row.row.node.as_ref().try_into().ok()?;
        Some(NodeId(u128::from_be_bytes(id)))
    }

    pub fn way(&self, id: NodeId) -> Arc<Way> {
        self.ways
            .iter()
            .find(|way| way.machine.id == id)
            .expect("a machine")
            .clone()
    }

    /// Whether the gateway sees all disks of a machine that it should see, and sees them well.
    pub fn sees_well(&self, machine: NodeId) -> bool {
        let Some(serving) = self.living() else {
            return false;
        };
        let disks = serving.objects.disks.all();
        let mut own = disks
            .iter()
            .filter(|disk| disk.node.as_ref().is_some_and(|node| node.id == machine));
        own.all(|disk| disk.health == Health::Online)
    }
}

pub fn disk_id(bytes: &[u8]) -> DiskId {
    DiskId(u128::from_be_bytes(bytes.try_into().expect("16 bytes")))
}
