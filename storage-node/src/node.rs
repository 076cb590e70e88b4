//! A storage node in this process: several disks behind one [`StorageClient`].
//!
//! Invariant: a disk that cannot be opened does not stop the others; it is kept, fenced, with the reason.

use crate::client::StorageClient;
use crate::device::{Backend, create_file, open_file};
use crate::engine::{Engine, Format, Trace, find_superblock, format, peek_superblock};
use crate::format::layout::extent_size_for;
use crate::metrics::DiskMetricsSnapshot;
use crate::protocol::{
    BlockRange, ClusterId, DiskId, DiskState, DiskStatus, Findings, InventoryEntry, NodeError, NodeStatus,
    SealedShard, ShardBlocks, ShardKey, UnitAddress, UnitInfo,
};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A disk that a node is to serve.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// The file or block device.
    pub path: PathBuf,
    /// The disk that should be there; another one is refused. None: whichever is.
    pub expected: Option<DiskId>,
    /// The incarnation the disk should have, where the caller knows it (also shown for a disk that is missing).
    pub incarnation: Option<u64>,
}

impl DiskSpec {
    /// Whichever disk is at this path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        DiskSpec {
            path: path.into(),
            expected: None,
            incarnation: None,
        }
    }
}

/// How a node opens its disks.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeOptions {
    /// The cluster; disks of another one are refused. None: any.
    pub cluster: Option<ClusterId>,
    /// The I/O backend.
    pub backend: Backend,
    /// How long it takes to verify a whole disk, over and over; not at all if none.
    pub verify_cycle: Option<Duration>,
}

/// How a disk is formatted.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// The cluster it will belong to.
    pub cluster: ClusterId,
    /// Its id.
    pub disk: DiskId,
    /// Its incarnation; greater than any it had. 1 for a new disk.
    pub incarnation: u64,
    /// Bytes of an extent (a power of two); chosen from the disk's size if none.
    pub extent_size: Option<u64>,
    /// Format even over a disk that already holds a Cairn superblock.
    pub overwrite: bool,
}

/// Why a disk could not be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatDiskError {
    /// There is a Cairn disk already.
    #[error("{path} already is Cairn disk {disk}")]
    AlreadyFormatted {
        /// Where.
        path: String,
        /// Which.
        disk: DiskId,
    },
    /// It did not work.
    #[error("{path}: {what}")]
    Failed {
        /// Where.
        path: String,
        /// Why.
        what: String,
    },
}

/// Formats the disk at `path`: creates a sparse file of `size` bytes (durably, with its directory entry), or takes the
/// block device that is there, whole. Blocks.
pub fn format_disk(path: &Path, size: u64, options: &FormatOptions) -> Result<(), FormatDiskError> {
    let shown = path.display().to_string();
    let failed = |what: String| FormatDiskError::Failed {
        path: shown.clone(),
        what,
    };
    if path.exists() {
        let device = open_file(path, Backend::Pread).map_err(|e| failed(e.to_string()))?;
        match find_superblock(&*device) {
            Trace::None => {}
            Trace::Damaged if options.overwrite => {}
            Trace::Damaged => return Err(failed("it holds a damaged or newer Cairn superblock".into())),
            Trace::Disk(found) if !options.overwrite => {
                return Err(FormatDiskError::AlreadyFormatted {
                    path: shown,
                    disk: found.disk,
                });
            }
            // What an earlier life of this very disk and incarnation left behind would be valid again.
            Trace::Disk(found) if found.disk == options.disk && found.incarnation >= options.incarnation => {
                return Err(failed(format!(
                    "the disk had incarnation {}: a greater one is needed",
                    found.incarnation
                )));
            }
            Trace::Disk(_) => {}
        }
    }
    create_file(path, size).map_err(|e| failed(e.to_string()))?;
    let device = open_file(path, Backend::Auto).map_err(|e| failed(e.to_string()))?;
    let extent_size = options
        .extent_size
        .unwrap_or_else(|| extent_size_for(device.info().size));
    let layout = Format {
        cluster: options.cluster,
        disk: options.disk,
        incarnation: options.incarnation,
        extent_size,
    };
    format(&*device, &layout).map_err(failed)?;
    Ok(())
}

struct Disk {
    spec: DiskSpec,
    /// The engine, or why there is none.
    engine: Result<Engine, String>,
}

impl Disk {
    fn open(spec: DiskSpec, options: &NodeOptions) -> Disk {
        let engine = open_engine(&spec, options);
        if let Err(reason) = &engine {
            tracing::error!(path = %spec.path.display(), %reason, "disk not opened");
        }
        Disk { spec, engine }
    }

    fn id(&self) -> DiskId {
        match &self.engine {
            Ok(engine) => engine.superblock().disk,
            Err(_) => self.spec.expected.unwrap_or(DiskId(0)),
        }
    }

    fn incarnation(&self) -> u64 {
        match &self.engine {
            Ok(engine) => engine.superblock().incarnation,
            Err(_) => self.spec.incarnation.unwrap_or(0),
        }
    }

    fn engine(&self) -> Result<&Engine, NodeError> {
        self.engine.as_ref().map_err(|reason| NodeError::Fenced {
            reason: reason.clone(),
        })
    }

    fn status(&self) -> DiskStatus {
        let mut status = DiskStatus {
            disk: self.id(),
            incarnation: self.incarnation(),
            path: self.spec.path.display().to_string(),
            state: DiskState::Online,
            backend: String::new(),
            capacity_bytes: 0,
            free_bytes: 0,
            live_bytes: 0,
            shards: 0,
            corrupt_shards: 0,
        };
        match &self.engine {
            Err(reason) => {
                status.state = DiskState::Fenced {
                    reason: reason.clone(),
                }
            }
            Ok(engine) => {
                let engine = engine.status();
                status.state = engine.state;
                status.backend = engine.backend;
                status.capacity_bytes = engine.capacity_bytes;
                status.free_bytes = engine.free_bytes;
                status.live_bytes = engine.live_bytes;
                status.shards = engine.shards;
                status.corrupt_shards = engine.corrupt_shards;
            }
        }
        status
    }
}

fn open_engine(spec: &DiskSpec, options: &NodeOptions) -> Result<Engine, String> {
    let device = open_file(&spec.path, options.backend).map_err(|e| e.what)?;
    let found = peek_superblock(&*device)?;
    if let Some(cluster) = options.cluster
        && cluster != found.cluster
    {
        return Err(format!("the disk belongs to cluster {}", found.cluster));
    }
    if let Some(expected) = spec.expected
        && expected != found.disk
    {
        return Err(format!("another disk is there: {}", found.disk));
    }
    if let Some(incarnation) = spec.incarnation
        && incarnation != found.incarnation
    {
        return Err(format!(
            "the disk has incarnation {}, not {incarnation}",
            found.incarnation
        ));
    }
    let engine = Engine::open(device)?;
    if let Some(cycle) = options.verify_cycle {
        engine.start_verifying(cycle)?;
    }
    Ok(engine)
}

/// A storage node in this process.
pub struct Node {
    disks: Vec<Disk>,
}

impl Node {
    /// Opens disks, all at once. Blocks while they recover: call it from a blocking thread.
    pub fn open(specs: Vec<DiskSpec>, options: NodeOptions) -> Node {
        let opened = std::thread::scope(|scope| {
            let open = |spec: DiskSpec| (spec.clone(), scope.spawn(move || Disk::open(spec, &options)));
            let opening: Vec<_> = specs.into_iter().map(open).collect();
            let join = |(spec, thread): (DiskSpec, std::thread::ScopedJoinHandle<'_, Disk>)| {
                thread.join().unwrap_or_else(|_| Disk {
                    spec,
                    engine: Err("opening it panicked".into()),
                })
            };
            opening.into_iter().map(join).collect()
        });
        Node { disks: opened }
    }

    /// What each disk counted, in the order of the specs; none for a disk that is not open.
    pub fn metrics(&self) -> Vec<(DiskId, Option<DiskMetricsSnapshot>)> {
        self.disks
            .iter()
            .map(|d| (d.id(), d.engine.as_ref().ok().map(Engine::metrics)))
            .collect()
    }

    /// Finishes queued work, flushes, stops the threads, of all disks at once: one that hangs delays nobody's flush.
    /// Later calls fail at once. Blocks.
    pub fn shutdown(&self) {
        std::thread::scope(|scope| {
            for engine in self.disks.iter().filter_map(|disk| disk.engine.as_ref().ok()) {
                scope.spawn(|| engine.shutdown());
            }
        });
    }

    fn engine(&self, disk: DiskId, incarnation: u64) -> Result<&Engine, NodeError> {
        let disk = self
            .disks
            .iter()
            .find(|d| d.id() == disk)
            .ok_or(NodeError::WrongDisk)?;
        let engine = disk.engine()?;
        if engine.superblock().incarnation == incarnation {
            Ok(engine)
        } else {
            Err(NodeError::WrongDisk)
        }
    }

    fn engine_of(&self, address: &UnitAddress) -> Result<&Engine, NodeError> {
        self.engine(address.disk, address.incarnation)
    }
}

#[async_trait]
impl StorageClient for Node {
    async fn put(&self, to: &UnitAddress, shard: SealedShard, deadline: Duration) -> Result<(), NodeError> {
        self.engine_of(to)?.put(to, shard, deadline).await
    }

    async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        deadline: Duration,
    ) -> Result<ShardBlocks, NodeError> {
        self.engine_of(from)?.get(from, key, blocks, deadline).await
    }

    async fn delete(&self, from: &UnitAddress, blobs: &[u64], deadline: Duration) -> Result<(), NodeError> {
        self.engine_of(from)?.delete(from, blobs, deadline).await
    }

    async fn inventory(
        &self,
        from: &UnitAddress,
        after: Option<ShardKey>,
        limit: usize,
        _deadline: Duration,
    ) -> Result<Vec<InventoryEntry>, NodeError> {
        self.engine_of(from)?.inventory(from, after, limit)
    }

    async fn units(
        &self,
        disk: DiskId,
        incarnation: u64,
        _deadline: Duration,
    ) -> Result<Vec<UnitInfo>, NodeError> {
        self.engine(disk, incarnation)?.units()
    }

    async fn findings(
        &self,
        disk: DiskId,
        incarnation: u64,
        after: u64,
        _deadline: Duration,
    ) -> Result<Findings, NodeError> {
        Ok(self.engine(disk, incarnation)?.findings(after))
    }

    async fn drop_unit(&self, unit: &UnitAddress, deadline: Duration) -> Result<(), NodeError> {
        self.engine_of(unit)?.drop_unit(unit, deadline).await
    }

    async fn status(&self, _deadline: Duration) -> Result<NodeStatus, NodeError> {
        Ok(NodeStatus {
            disks: self.disks.iter().map(Disk::status).collect(),
        })
    }
}
