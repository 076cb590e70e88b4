//! A storage node in this process: several disks behind one [`StorageClient`].
//!
//! Invariants: a disk that cannot be opened does not stop the others; it is kept, fenced, with the reason. All disks
//! say what they are before the first of them is written to: of two copies of one disk neither serves ([`identity`]).
//! In a cluster nothing is asked of a disk, and nothing answered, before a gateway has admitted it as it was opened: of a disk and its
//! copy that are there one after the other, the gateway can tell which is which.

mod blank;
mod identity;

use crate::client::StorageClient;
use crate::device::{Backend, Device, create_file, open_file};
use crate::engine::{Engine, Format, Trace, find_superblock, format, peek_superblock};
use crate::format::layout::extent_size_for;
use crate::format::superblock::Superblock;
use crate::metrics::DiskMetricsSnapshot;
use crate::protocol::{
    AdmitRequest, Beat, BlankDisk, BlockRange, ClusterId, DiskId, DiskState, DiskStatus, Findings,
    FormatRequest, Heard, InventoryEntry, LedgerMarks, NodeError, NodeStatus, SealedShard, ShardBlocks,
    ShardKey, Still, UnitAddress, UnitInfo, VerifyOrder,
};
use async_trait::async_trait;
use identity::{Claim, Conflict};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

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
    /// Whether a place where no Cairn disk is counts as a blank one, to be formatted when a gateway says so. Else it is
    /// a disk that was lost.
    pub takes_blank: bool,
    /// Whether a disk serves nothing until a gateway has admitted it as it was opened: it may be a copy of an earlier state.
    pub waits_for_admission: bool,
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

/// A disk before anything of it is served: locked, and not written to.
struct Found {
    device: Arc<dyn Device>,
    superblock: Superblock,
}

/// Why a disk is not served.
enum Idle {
    /// It cannot be, or must not be.
    Refused(String),
    /// There is no disk yet.
    Blank(BlankDisk),
}

impl From<String> for Idle {
    fn from(reason: String) -> Idle {
        Idle::Refused(reason)
    }
}

impl Found {
    fn look(spec: &DiskSpec, options: &NodeOptions) -> Result<Found, Idle> {
        let device = open_file(&spec.path, options.backend).map_err(|e| e.what)?;
        match peek_superblock(&*device) {
            Ok(superblock) => Ok(Found { device, superblock }),
            Err(_) if options.takes_blank && spec.expected.is_none() && blank::is_blank(&*device)? => {
                Err(Idle::Blank(BlankDisk {
                    path: spec.path.display().to_string(),
                    size: device.info().size,
                    holds: blank::holds(&*device)?,
                }))
            }
            Err(reason) => Err(Idle::Refused(reason)),
        }
    }

    fn claim(&self, spec: &DiskSpec) -> Claim {
        Claim {
            path: spec.path.clone(),
            disk: self.superblock.disk,
            incarnation: self.superblock.incarnation,
        }
    }

    /// Opens it, if it is the one that is wanted here.
    fn open(self, spec: &DiskSpec, options: &NodeOptions) -> Result<Engine, String> {
        let found = &self.superblock;
        if let Some(cluster) = options.cluster
            && cluster != found.cluster
        {
            let theirs = found.cluster;
            return Err(format!(
                "the disk belongs to cluster {theirs}, and this node to {cluster}"
            ));
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
        let engine = Engine::open(self.device)?;
        if let Some(cycle) = options.verify_cycle {
            engine.start_verifying(cycle)?;
        }
        Ok(engine)
    }
}

struct Disk {
    spec: DiskSpec,
    /// The engine, or why there is none.
    engine: Result<Arc<Engine>, Idle>,
}

impl Disk {
    fn new(spec: DiskSpec, engine: Result<Engine, Idle>) -> Disk {
        match &engine {
            Err(Idle::Refused(reason)) => {
                tracing::error!(path = %spec.path.display(), %reason, "disk not opened");
            }
            Err(Idle::Blank(_)) => tracing::info!(path = %spec.path.display(), "blank disk"),
            Ok(_) => {}
        }
        Disk {
            spec,
            engine: engine.map(Arc::new),
        }
    }

    fn blank(&self) -> Option<&BlankDisk> {
        match &self.engine {
            Err(Idle::Blank(blank)) => Some(blank),
            _ => None,
        }
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

    fn engine(&self) -> Result<&Arc<Engine>, NodeError> {
        self.engine.as_ref().map_err(|idle| match idle {
            Idle::Refused(reason) => NodeError::Fenced {
                reason: reason.clone(),
            },
            Idle::Blank(_) => NodeError::WrongDisk,
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
            opening: self.engine.as_ref().ok().map(|engine| engine.opening()),
            verify: self.engine.as_ref().ok().map(|engine| engine.verify_status()),
            ledger: self.engine.as_ref().ok().map(|engine| engine.ledger()),
        };
        match &self.engine {
            Err(Idle::Refused(reason)) => {
                status.state = DiskState::Fenced {
                    reason: reason.clone(),
                }
            }
            Err(Idle::Blank(_)) => {} // It is no disk yet, and not listed as one.
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

/// Does something with every disk, all at once; one that panics does not stop the others.
fn at_once<T: Send>(
    work: impl Iterator<Item = impl FnOnce() -> Result<T, Idle> + Send>,
) -> Vec<Result<T, Idle>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = work.map(|work| scope.spawn(work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            let panicked = |_| Err(Idle::Refused("opening it panicked".into()));
            thread.join().unwrap_or_else(panicked)
        };
        threads.into_iter().map(join).collect()
    })
}

/// Lets go of the disks that must not serve beside the others.
fn refuse_conflicts(specs: &mut [DiskSpec], found: &mut [Result<Found, Idle>]) {
    let claim =
        |(spec, found): (&DiskSpec, &Result<Found, Idle>)| found.as_ref().ok().map(|found| found.claim(spec));
    let claims: Vec<Option<Claim>> = specs.iter().zip(&*found).map(claim).collect();
    for (number, claim) in claims.iter().enumerate() {
        let others = claims.iter().enumerate().filter(|(other, _)| *other != number);
        let others = others.filter_map(|(_, other)| other.as_ref());
        let Some((claim, conflict)) = claim
            .as_ref()
            .and_then(|claim| Some((claim, identity::conflict(claim, others)?)))
        else {
            continue;
        };
        if matches!(conflict, Conflict::Copies { .. }) {
            // Whoever asks for the disk learns why it is not there. Another that serves has the id for itself.
            specs[number].expected.get_or_insert(claim.disk);
            specs[number].incarnation.get_or_insert(claim.incarnation);
        }
        found[number] = Err(Idle::Refused(conflict.to_string()));
    }
}

/// A storage node in this process.
pub struct Node {
    shelf: Arc<Shelf>,
}

/// The disks of a node.
struct Shelf {
    /// One for each spec, in their order. A blank one is replaced by the disk that it becomes.
    disks: RwLock<Vec<Arc<Disk>>>,
    options: NodeOptions,
    /// Held while a disk is formatted: one at a time.
    formatting: Mutex<()>,
    /// The gateway that was heard last, and when.
    heard: Mutex<Option<(Beat, Instant)>>,
}

impl Shelf {
    fn disks(&self) -> Vec<Arc<Disk>> {
        self.disks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Formats one of the blank disks, and serves it from then on. Blocks.
    fn format_blank(&self, request: &FormatRequest) -> Result<(), NodeError> {
        let _one_at_a_time = self.formatting.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |what: String| NodeError::BadRequest { what };
        let disks = self.disks();
        let at = |disk: &&Arc<Disk>| disk.spec.path.as_os_str() == request.path.as_str();
        let Some(disk) = disks.iter().find(at) else {
            return Err(refused(format!("{} is none of this node's disks", request.path)));
        };
        if self.options.cluster != Some(request.cluster) {
            return Err(refused(format!(
                "this node is not of cluster {}",
                request.cluster
            )));
        }
        match (&disk.engine, disk.blank()) {
            (_, Some(blank)) => match &blank.holds {
                Some(holds) if !request.overwrite => {
                    return Err(refused(format!("{} holds {holds}", request.path)));
                }
                _ => {}
            },
            (Ok(engine), None)
                if engine.superblock().disk == request.disk
                    && engine.superblock().incarnation == request.incarnation =>
            {
                return Ok(());
            }
            _ => return Err(refused(format!("{} is not blank", request.path))),
        }
        let path = &disk.spec.path;
        let size = disk.blank().map_or(0, |blank| blank.size);
        let options = FormatOptions {
            cluster: request.cluster,
            disk: request.disk,
            incarnation: request.incarnation,
            extent_size: request.extent_size,
            overwrite: false, // It holds no superblock; should it hold one by now, it is somebody's disk.
        };
        format_disk(path, size, &options).map_err(|error| refused(error.to_string()))?;
        let found = Found::look(&disk.spec, &self.options);
        let engine = found.and_then(|found| Ok(found.open(&disk.spec, &self.options)?));
        let failed = match &engine {
            Err(Idle::Refused(reason)) => Some(NodeError::Fenced {
                reason: reason.clone(),
            }),
            _ => None,
        };
        tracing::info!(path = %path.display(), disk = %request.disk, "disk formatted");
        let formatted = Arc::new(Disk::new(disk.spec.clone(), engine));
        let mut disks = self.disks.write().unwrap_or_else(PoisonError::into_inner);
        let place = disks
            .iter_mut()
            .find(|disk| disk.spec.path == formatted.spec.path);
        if let Some(place) = place {
            *place = formatted;
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Node {
    /// Opens disks, all at once. Blocks while they recover: call it from a blocking thread.
    pub fn open(mut specs: Vec<DiskSpec>, options: NodeOptions) -> Node {
        let given: Vec<DiskSpec> = specs.clone();
        let looking = given.iter().enumerate().map(|(number, spec)| {
            let earlier = &given[..number];
            move || match earlier
                .iter()
                .find(|e| identity::is_same_file(&e.path, &spec.path))
            {
                Some(first) => Err(Idle::Refused(format!(
                    "it is the same disk as {}",
                    first.path.display()
                ))),
                None => Found::look(spec, &options),
            }
        });
        let mut found = at_once(looking);
        refuse_conflicts(&mut specs, &mut found);
        let opening = specs
            .iter()
            .zip(found)
            .map(|(spec, found)| move || Ok(found?.open(spec, &options)?));
        let engines = at_once(opening);
        let disks = specs.into_iter().zip(engines);
        let disks = disks.map(|(spec, engine)| Arc::new(Disk::new(spec, engine)));
        let shelf = Shelf {
            disks: RwLock::new(disks.collect()),
            options,
            formatting: Mutex::default(),
            heard: Mutex::default(),
        };
        Node {
            shelf: Arc::new(shelf),
        }
    }

    /// What each disk counted, in the order of the specs; none for a disk that is not open.
    pub fn metrics(&self) -> Vec<(DiskId, Option<DiskMetricsSnapshot>)> {
        self.shelf
            .disks()
            .iter()
            .map(|d| (d.id(), d.engine.as_ref().ok().map(|engine| engine.metrics())))
            .collect()
    }

    /// Finishes queued work, flushes, stops the threads, of all disks at once: one that hangs delays nobody's flush.
    /// Later calls fail at once. Blocks.
    pub fn shutdown(&self) {
        let disks = self.shelf.disks();
        std::thread::scope(|scope| {
            for engine in disks.iter().filter_map(|disk| disk.engine.as_ref().ok()) {
                scope.spawn(|| engine.shutdown());
            }
        });
    }

    /// A disk that serves.
    fn engine(&self, disk: DiskId, incarnation: u64) -> Result<Arc<Engine>, NodeError> {
        let engine = self.opened(disk, incarnation)?;
        match self.shelf.options.waits_for_admission && !engine.is_admitted() {
            true => Err(NodeError::WrongDisk),
            false => Ok(engine),
        }
    }

    /// A disk that answers reads.
    fn read_engine(&self, disk: DiskId, incarnation: u64) -> Result<Arc<Engine>, NodeError> {
        let engine = self.opened(disk, incarnation)?;
        match self.shelf.options.waits_for_admission && !engine.is_read() {
            true => Err(NodeError::WrongDisk),
            false => Ok(engine),
        }
    }

    /// A disk that is open, admitted or not.
    fn opened(&self, disk: DiskId, incarnation: u64) -> Result<Arc<Engine>, NodeError> {
        let disks = self.shelf.disks.read().unwrap_or_else(PoisonError::into_inner);
        let disk = disks
            .iter()
            .find(|d| d.id() == disk)
            .ok_or(NodeError::WrongDisk)?;
        let engine = disk.engine()?.clone();
        if engine.superblock().incarnation == incarnation {
            Ok(engine)
        } else {
            Err(NodeError::WrongDisk)
        }
    }

    /// The gateway that it heard last.
    fn heard(&self) -> Option<Heard> {
        let heard = self.shelf.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.as_ref().map(|(beat, at)| Heard {
            beat: beat.clone(),
            ago_ms: u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn engine_of(&self, address: &UnitAddress) -> Result<Arc<Engine>, NodeError> {
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
        let engine = self.read_engine(from.disk, from.incarnation)?;
        engine.get(from, key, blocks, deadline).await
    }

    async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        deadline: Duration,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
        let engine = self.read_engine(from.disk, from.incarnation)?;
        engine.get_many(from, keys, deadline).await
    }

    async fn put_many(
        &self,
        to: &UnitAddress,
        shards: Vec<SealedShard>,
        deadline: Duration,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        self.engine_of(to)?.put_many(to, shards, deadline).await
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
        let engine = self.read_engine(from.disk, from.incarnation)?;
        engine.inventory(from, after, limit)
    }

    async fn units(
        &self,
        disk: DiskId,
        incarnation: u64,
        _deadline: Duration,
    ) -> Result<Vec<UnitInfo>, NodeError> {
        self.read_engine(disk, incarnation)?.units()
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

    async fn verify(
        &self,
        disk: DiskId,
        incarnation: u64,
        order: &VerifyOrder,
        _deadline: Duration,
    ) -> Result<(), NodeError> {
        self.engine(disk, incarnation)?.order_verifying(order)
    }

    async fn admit(
        &self,
        disk: DiskId,
        incarnation: u64,
        request: &AdmitRequest,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.opened(disk, incarnation)?.admit(request, deadline).await
    }

    async fn obey(
        &self,
        disk: DiskId,
        incarnation: u64,
        marks: &LedgerMarks,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.opened(disk, incarnation)?.obey(marks, deadline).await
    }

    async fn still(
        &self,
        disk: DiskId,
        incarnation: u64,
        still: &Still,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.opened(disk, incarnation)?.still(still, deadline).await
    }

    async fn beat(&self, beat: &Beat, _deadline: Duration) -> Result<(), NodeError> {
        let heard = Some((beat.clone(), Instant::now()));
        *self.shelf.heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
        Ok(())
    }

    async fn format(&self, request: &FormatRequest, _deadline: Duration) -> Result<(), NodeError> {
        // It goes on when the caller leaves; the next request finds what this one did.
        let (shelf, request) = (self.shelf.clone(), request.clone());
        let formatting = tokio::task::spawn_blocking(move || shelf.format_blank(&request));
        formatting.await.unwrap_or(Err(NodeError::Overloaded))
    }

    async fn status(&self, _deadline: Duration) -> Result<NodeStatus, NodeError> {
        let disks = self.shelf.disks();
        let served = disks.iter().filter(|disk| disk.blank().is_none());
        Ok(NodeStatus {
            disks: served.map(|disk| disk.status()).collect(),
            blank: disks.iter().filter_map(|disk| disk.blank().cloned()).collect(),
            heard: self.heard(),
        })
    }
}
