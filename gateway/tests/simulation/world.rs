//! A cluster in one process: machines, the ledger's rows, and the gateway of the moment with all its workers.

use crate::machine::{CLUSTER, DISK_BYTES, Machine};
use crate::network::{Life, Link, Way, Weather};
use crate::store::{LedgerFile, LivingStore};
use crate::trace::Trace;
use bytes::Bytes;
use ec_core::{Kernel, Scheme};
use gateway::clock::Clock;
use gateway::cluster::adopt::Adopting;
use gateway::cluster::disks::Health;
use gateway::cluster::generation::Identity;
use gateway::cluster::nodes::Nodes;
use gateway::cluster::setup;
use gateway::error::{Error, Result};
use gateway::ledger::model::{DiskRow, KeepRow, NodeRow};
use gateway::ledger::{CommitBuilder, Ledger, Typed, key};
use gateway::object::Objects;
use gateway::server::{Gateway, GatewayConfig};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{DiskId, LedgerMarks, NodeId};

pub const BUCKET: &str = "cairn";
/// How long a disk may be away.
pub const GRACE: Duration = Duration::from_secs(20);
/// How long what nothing names is kept.
const KEEP: Duration = Duration::from_secs(120);
const MEMORY_BYTES: u64 = 256 << 20;
/// How often a process looks whether it stood still.
const LOOK_PERIOD: Duration = Duration::from_millis(100);
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
    pub gateway: Arc<Gateway>,
    pub objects: Arc<Objects>,
    pub store: Arc<LivingStore>,
    pub life: Arc<Life>,
}

impl Serving {
    /// Whether its ledger is behind the disks, as far as it knows: it only reads.
    pub fn is_safe(&self) -> bool {
        self.objects.ledger.check_writable().is_err()
    }

    /// Where its ledger was when it took its generation.
    pub fn base(&self) -> u64 {
        self.objects.disks.generations().base().position
    }
}

pub struct World {
    pub shape: Shape,
    pub ways: Vec<Arc<Way>>,
    pub trace: Trace,
    rng: Mutex<StdRng>,
    /// The ledger that counts.
    file: Mutex<Arc<LedgerFile>>,
    /// Whether a copy of it ever acted.
    copy_acted: AtomicBool,
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
        let ways = ways.collect();
        // Short enough that the log sometimes ends after where the archive does.
        let log_commits = [30, 300, 10_000][rng.random_range(0..3)];
        let world = World {
            ways,
            file: Mutex::new(LedgerFile::new("ledger", log_commits)),
            copy_acted: AtomicBool::new(false),
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
        let keep = KeepRow {
            keep_s: Some(KEEP.as_secs()),
            censuses: Some(2),
            ..KeepRow::default()
        };
        let mut commit = CommitBuilder::new().put(key::keep(), &keep);
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

    /// Starts a gateway on the ledger that counts: whoever was the gateway before is dead.
    pub async fn start_gateway(&self) {
        let serving = self.start_on(self.file()).await;
        self.set_serving(serving);
    }

    /// Starts a gateway on a file, while no other lives. What a dead one said may arrive late, and is waited for.
    pub async fn start_on(&self, file: Arc<LedgerFile>) -> Serving {
        for _ in 0..120 {
            match self.begin(file.clone(), false).await {
                Ok(serving) => return serving,
                Err(Error::InvalidRequest(why)) => self.trace.note(format!("not started: {why}")),
                Err(error) => panic!("nothing keeps a gateway from starting: {error}"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("a gateway does not start, and no other lives")
    }

    /// Starts a gateway on a file, whoever else lives.
    pub async fn begin(&self, file: Arc<LedgerFile>, takes_over: bool) -> Result<Serving> {
        let life = Arc::new(Life::default());
        let identity = Identity {
            name: format!("simulated, on {}", file.name),
            instance: file.name.clone(),
            takes_over,
        };
        let store = Arc::new(LivingStore::open(file, life.clone(), self.random()));
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
            sync_archive: false,
            identity,
        };
        let clock = Arc::new(SimulatedClock(tokio::time::Instant::now()));
        let gateway = Gateway::start(&config, ledger, nodes, clock).await?;
        let serving = Serving {
            objects: gateway.objects.clone(),
            gateway,
            store,
            life,
        };
        let (file, is_safe) = (&serving.store.file, serving.is_safe());
        self.trace.note(format!(
            "gateway started on {} at {}{}",
            file.name,
            file.position(),
            if is_safe { ", and only reads" } else { "" }
        ));
        notice_pauses(&serving);
        Ok(serving)
    }

    pub fn set_serving(&self, serving: Serving) {
        *self.lock() = Some(serving);
    }

    /// The ledger that counts.
    pub fn file(&self) -> Arc<LedgerFile> {
        self.file.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub fn set_file(&self, file: Arc<LedgerFile>) {
        *self.file.lock().unwrap_or_else(|e| e.into_inner()) = file;
    }

    /// The gateway is gone without a word, if it is not already.
    pub fn kill_gateway(&self) {
        if let Some(serving) = self.lock().take() {
            serving.life.end();
            self.trace.note("gateway dead");
        }
    }

    /// The gateway ends in order, if it still lives.
    pub async fn stop_gateway(&self) {
        let Some(serving) = self.lock().take() else { return };
        let ended = async {
            let ended = serving.gateway.end().await;
            self.trace.note(format!("gateway stopped: {ended:?}"));
        };
        tokio::select! {
            () = ended => {}
            () = serving.life.over() => {}
        }
        serving.life.end();
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
        Ledger::new(self.file().rows.clone())
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

    pub fn note_copy_acted(&self) {
        self.copy_acted.store(true, Ordering::Relaxed);
    }

    /// Whether a copy of the ledger ever acted: there may be what no row of this one names.
    pub fn has_copy_acted(&self) -> bool {
        self.copy_acted.load(Ordering::Relaxed)
    }

    /// What disks know of the ledger that a gateway reaches for certain.
    pub fn marks_within_reach(&self) -> Vec<LedgerMarks> {
        let clear = self.ways.iter().filter(|way| way.weather() == Weather::default());
        let engines = clear.flat_map(|way| way.machine.engines());
        engines.map(|(_, engine)| engine.ledger()).collect()
    }

    /// Whether all disks of a machine were compared with the ledger since they were opened.
    pub fn has_compared(&self, machine: NodeId) -> bool {
        let Some(serving) = self.living() else {
            return false;
        };
        let disks = serving.objects.disks.all();
        let mut own = disks
            .iter()
            .filter(|disk| disk.node.as_ref().is_some_and(|node| node.id == machine));
        own.all(|disk| disk.in_doubt().is_none())
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

/// Looks at the clock as long as a gateway lives, as a thread of its process does.
fn notice_pauses(serving: &Serving) {
    let (pauses, life) = (
        Arc::downgrade(serving.objects.disks.pauses()),
        serving.life.clone(),
    );
    tokio::spawn(async move {
        while let (Some(pauses), false) = (pauses.upgrade(), life.is_over()) {
            life.go_on().await;
            pauses.look(tokio::time::Instant::now());
            drop(pauses);
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    });
}

pub fn disk_id(bytes: &[u8]) -> DiskId {
    DiskId(u128::from_be_bytes(bytes.try_into().expect("16 bytes")))
}
