//! A gateway and a node in this process, with files as disks: everything between an object and its disks, but no sockets.
//!
//! Invariant: bytes of objects do not repeat, and are not compressible.

use crate::Result;
use bytes::Bytes;
use ec_core::{Kernel, Scheme};
use futures::StreamExt;
use gateway::clock::SystemClock;
use gateway::cluster::setup::{Wanted, mark_formatted, open_or_plan};
use gateway::ledger::Ledger;
use gateway::ledger::model::{Headers, Membership};
use gateway::ledger::redb::RedbStore;
use gateway::maintenance::rebuild::RebuildStatus;
use gateway::maintenance::rebuild::pace::FLOOR;
use gateway::object::condition::{ReadConditions, WriteConditions};
use gateway::object::get::Wanted as Part;
use gateway::object::put::Expected;
use gateway::server::{Gateway, GatewayConfig};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage_node::client::StorageClient;
use storage_node::node::{DiskSpec, FormatOptions, Node, NodeOptions, format_disk};
use storage_node::protocol::DiskId;
use tokio::runtime::Runtime;

const BUCKET: &str = "bench";
/// Bytes that may be in flight.
const MEMORY_BYTES: u64 = 1 << 30;
/// How long a disk's rebuild may take.
const PATIENCE: Duration = Duration::from_secs(900);
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The scheme of large objects.
    pub scheme: (usize, usize),
    /// How many disks.
    pub disks: u32,
    /// The size of each.
    pub disk_bytes: u64,
}

/// A running cluster.
pub struct Cluster {
    runtime: Runtime,
    gateway: Arc<Gateway>,
    node: Arc<Node>,
    disks: Vec<DiskId>,
}

/// How a disk's rebuild went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rebuilt {
    /// Shards and bytes that were written.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the decision until the last census said so.
    pub elapsed: Duration,
    /// How far the time left was from what it turned out to be, after a tenth and after half of the bytes.
    pub eta_errors: [Option<f64>; 2],
}

impl Cluster {
    /// A new one on files in a directory, whose names these are: those that are there are overwritten.
    pub fn start(directory: &Path, shape: &Shape, name: impl Fn(usize) -> String) -> Result<Cluster> {
        let runtime = Runtime::new()?;
        let store = {
            let _context = runtime.enter();
            let path = directory.join("ledger.redb");
            match path.exists() {
                true => RedbStore::open(path, 64 << 20)?,
                false => RedbStore::create(path, 64 << 20)?,
            }
        };
        let ledger = Ledger::new(Arc::new(store));
        let scheme = Scheme::rs(shape.scheme.0, shape.scheme.1)?;
        let wanted = Wanted {
            scheme: Some(scheme),
            disks: Some(shape.disks),
            scheme_default: scheme,
            disks_default: shape.disks,
            disk_size: shape.disk_bytes,
        };
        let mut planned = runtime.block_on(open_or_plan(&ledger, &wanted))?;
        let mut specs = Vec::new();
        for (number, disk) in planned.disks.iter().enumerate() {
            let path = directory.join(name(number));
            let options = FormatOptions {
                cluster: planned.id,
                disk: disk.id,
                incarnation: disk.row.incarnation,
                extent_size: None,
                overwrite: true,
            };
            format_disk(&path, shape.disk_bytes, &options)?;
            specs.push(DiskSpec::at(path));
        }
        runtime.block_on(mark_formatted(&ledger, &mut planned.disks))?;
        let options = NodeOptions {
            cluster: Some(planned.id),
            ..NodeOptions::default()
        };
        let node = Arc::new(Node::open(specs, options));
        let config = GatewayConfig {
            name: "bench".into(),
            scheme,
            kernel: Kernel::from_environment()?,
            memory_bytes: MEMORY_BYTES,
            cache_bytes: 0, // The disks are measured.
            grace: Duration::from_secs(3600),
            rebuild_floor: FLOOR,
            census_cycle: GatewayConfig::CENSUS_CYCLE,
            sync_archive: false,
            identity: Default::default(),
        };
        let nodes: Vec<Arc<dyn StorageClient>> = vec![node.clone()];
        let started = Gateway::start(&config, ledger, nodes, Arc::new(SystemClock));
        let gateway = runtime.block_on(started)?;
        runtime.block_on(gateway.objects.create_bucket(BUCKET))?;
        Ok(Cluster {
            runtime,
            gateway,
            node,
            disks: planned.disks.iter().map(|disk| disk.id).collect(),
        })
    }

    /// What requests go to.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Where tasks run.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Stores objects 0 to `count`, of so many bytes each, so many at once.
    pub fn fill(&self, count: u64, bytes: usize, at_once: usize) -> Result<()> {
        let puts = (0..count).map(|number| put(&self.gateway, number, bytes));
        let mut puts = futures::stream::iter(puts).buffer_unordered(at_once);
        self.runtime.block_on(async {
            while let Some(done) = puts.next().await {
                done?;
            }
            Ok(())
        })
    }

    /// Gives a disk up, and waits until all that it held is whole elsewhere.
    pub fn lose(&self, number: usize) -> Result<Rebuilt> {
        let metrics = &self.gateway.objects.metrics;
        let shards = || {
            let disks = self.node.metrics();
            disks
                .iter()
                .flat_map(|(_, disk)| disk)
                .map(|disk| disk.puts)
                .sum::<u64>()
        };
        let (began, bytes_before, shards_before) = (Instant::now(), metrics.rebuilt_bytes.get(), shards());
        let decided = self.gateway.objects.decide(self.disks[number], Membership::Out);
        self.runtime.block_on(decided)?;
        let mut looks: Vec<(Instant, RebuildStatus)> = Vec::new();
        loop {
            let status = self.runtime.block_on(self.gateway.status())?.rebuild;
            if status.units == 0 {
                break;
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("it was not rebuilt in {PATIENCE:?}: {status:?}").into());
            }
            looks.push((Instant::now(), status));
            std::thread::sleep(LOOK_PERIOD);
        }
        let ended = Instant::now();
        let bytes = metrics.rebuilt_bytes.get() - bytes_before;
        let error_after = |share: f64| {
            let is_past = |look: &&(Instant, RebuildStatus)| look.1.done_bytes as f64 >= bytes as f64 * share;
            let (at, status) = looks.iter().find(is_past)?;
            let told = status.left_bytes as f64 / status.rate.filter(|_| status.eta_s.is_some())? as f64;
            let truth = (ended - *at).as_secs_f64();
            Some(told / truth - 1.0)
        };
        Ok(Rebuilt {
            shards: shards() - shards_before,
            bytes,
            elapsed: ended - began,
            eta_errors: [error_after(0.1), error_after(0.5)],
        })
    }

    /// Ends it.
    pub fn stop(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
        self.node.shutdown();
    }
}

fn name_of(number: u64) -> String {
    format!("object-{number:09}")
}

/// Stores an object.
pub async fn put(gateway: &Arc<Gateway>, number: u64, bytes: usize) -> Result<()> {
    let body = Box::pin(futures::stream::iter([Ok(content(number, bytes))]));
    let (expected, headers) = (Expected::default(), Headers::default());
    let (name, conditions) = (name_of(number), WriteConditions::default());
    let put = gateway
        .objects
        .put(BUCKET, &name, body, expected, headers, conditions);
    put.await?;
    Ok(())
}

/// Reads some of an object.
pub async fn get(gateway: &Arc<Gateway>, number: u64, first: u64, len: u64) -> Result<u64> {
    let part = Part::From {
        first,
        last: Some(first + len - 1),
    };
    let conditions = ReadConditions::default();
    let name = name_of(number);
    let got = gateway.objects.get(BUCKET, &name, part, &conditions);
    let (_, mut bytes) = got.await?;
    let mut got = 0;
    while let Some(piece) = bytes.next().await {
        got += piece?.len() as u64;
    }
    Ok(got)
}

/// Bytes that no other object has.
fn content(number: u64, len: usize) -> Bytes {
    use rand::{RngCore, SeedableRng, rngs::StdRng};
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(number).fill_bytes(&mut bytes);
    bytes.into()
}
