//! The gateway as a whole: the only place that wires its parts, serves its two addresses, and ends it in order.
//!
//! Order of the end: no new connections; requests in progress get six seconds; then what is left is cut; commits in
//! progress finish; abandoned blobs are queued; the lease is given back. Then the caller stops nodes and ledger.

use crate::admin;
use crate::admin::status::Status;
use crate::admin::verdict::Since;
use crate::archive::shipper::{Retiring, Shipper, Shipping};
use crate::archive::{Archive, SyncStore};
use crate::budget::Budget;
use crate::clock::Clock;
use crate::cluster::adopt::Adopting;
use crate::cluster::disks::Disks;
use crate::cluster::generation::{Generations, Identity};
use crate::cluster::join::{Invitation, Joining};
use crate::cluster::join_server;
use crate::cluster::lease::Lease;
use crate::cluster::nodes::Nodes;
use crate::connections::{ClientStream, Connection, Connections};
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use crate::maintenance::absence::Absence;
use crate::maintenance::adding::Adding;
use crate::maintenance::census::{self, Census};
use crate::maintenance::garbage::Garbage;
use crate::maintenance::holds::Holds;
use crate::maintenance::ledger_check::LedgerCheck;
use crate::maintenance::leftovers::Leftovers;
use crate::maintenance::orphans::Orphans;
use crate::maintenance::polling::Polling;
use crate::maintenance::rebalance::Rebalance;
use crate::maintenance::rebuild::{Moving, Rebuild, Shared as Rebuilding};
use crate::maintenance::repair::Repair;
use crate::maintenance::scrub::Scrub;
use crate::maintenance::sealing::Sealing;
use crate::maintenance::settling::Settling;
use crate::maintenance::telling::Telling;
use crate::maintenance::unnamed::Unnamed;
use crate::maintenance::worker::{Running, Step, Worker, WorkerStatus};
use crate::metrics::Metrics;
use crate::object::block_cache::BlockCache;
use crate::object::hashing::Hashing;
use crate::object::tokens::Tokens;
use crate::object::{Codecs, Objects};
use crate::placement::volumes::Volumes;
use crate::s3::{Front, S3Settings};
use ec_core::{Kernel, Scheme};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};

/// Connections at once; more wait, or get the places of idle ones.
const CONNECTIONS_MAX: usize = 4_096;
/// Of the files that this process may open, so many are for disks, nodes and the admin address.
const FILES_KEPT: usize = 512;
/// Connections at once to the admin address.
const ADMIN_CONNECTIONS_MAX: usize = 64;
/// A connection that finds no place waits so long before an idle one gives its own.
const PLACE_PATIENCE: Duration = Duration::from_millis(20);
/// Heads that are not complete may hold one byte in so many of the budget.
const HEADS_SHARE: u64 = 16;
/// Headers of a request: 2 KiB of metadata is less, one byte a name and none a value.
const HEADERS_MAX: usize = 256;
/// A connection on which nothing moves for this long is cut: idle, stalled in sending, or not reading. A request's head has as long,
/// however it comes.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Requests in progress get this long at shutdown.
pub const DRAIN_MAX: Duration = Duration::from_secs(6);
/// What comes after (commits, the lease) gets this long.
const SETTLE_MAX: Duration = Duration::from_millis(1_500);

/// What a gateway is made of.
pub struct GatewayConfig {
    /// For people, in the lease.
    pub name: String,
    /// The default scheme.
    pub scheme: Scheme,
    /// What codes.
    pub kernel: Kernel,
    /// Bytes that may be in flight.
    pub memory_bytes: u64,
    /// Bytes of hot blocks to keep in memory.
    pub cache_bytes: u64,
    /// How long a disk may be away before what it held is rebuilt elsewhere.
    pub grace: Duration,
    /// Bytes a second that rebuilding has, however busy clients are.
    pub rebuild_floor: u64,
    /// How long a census takes.
    pub census_cycle: Duration,
    /// Whether a request is answered only when its commit is in the ledger's archive.
    pub sync_archive: bool,
    /// Who this is to nodes.
    pub identity: Identity,
}

impl GatewayConfig {
    /// How long a census takes unless somebody says otherwise.
    pub const CENSUS_CYCLE: Duration = census::CYCLE;
}

/// What a gateway of a cluster of several machines has: how nodes join, and how their disks are added.
pub struct Membership {
    /// Lets nodes in.
    pub joining: Arc<Joining>,
    /// Adds disks.
    pub adopting: Adopting,
}

/// The addresses of a gateway.
pub struct Listeners {
    /// S3.
    pub s3: TcpListener,
    /// Status, metrics, health, operations.
    pub admin: TcpListener,
    /// Where nodes join, if any can.
    pub join: Option<TcpListener>,
}

/// A running gateway.
pub struct Gateway {
    /// The object path.
    pub objects: Arc<Objects>,
    /// Nodes that join; none in a cluster of one process.
    pub membership: Option<Arc<Membership>>,
    workers: Mutex<Vec<Running>>,
    rebuild: Arc<Rebuilding>,
    /// Units on their way from one disk to another.
    pub moving: Moving,
    shipper: Option<Arc<Shipper>>,
    /// Has the census look at what is wanted of it.
    pub census: Arc<Notify>,
    since: Since,
    stop: watch::Sender<bool>,
    /// Has [`Gateway::serve`] end, for the gateway to be started anew.
    again: Arc<Notify>,
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The process is to end.
    Stopped,
    /// The gateway is to be started anew: an operator accepted the ledger as it is.
    Again,
}

impl Gateway {
    /// Starts a gateway on a ledger and nodes: takes the lease, looks at the disks, starts the workers.
    pub async fn start(
        config: &GatewayConfig,
        ledger: Ledger,
        nodes: impl Into<Nodes>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Gateway>> {
        Gateway::start_inviting(config, ledger, nodes, None, clock).await
    }

    /// As [`Gateway::start`], and nodes may join.
    pub async fn start_inviting(
        config: &GatewayConfig,
        ledger: Ledger,
        nodes: impl Into<Nodes>,
        invitation: Option<Invitation>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Gateway>> {
        let (nodes, holds) = (Arc::new(nodes.into()), Holds::default());
        let generations = Generations::begin(&ledger, &nodes, config.identity.clone(), holds.clone());
        let generations = Arc::new(generations.await?);
        let lease = match generations.own() {
            Some(_) => Lease::take_over(ledger.clone(), &config.name).await?,
            None => Lease::none(ledger.clone()),
        };
        let lease = Arc::new(lease);
        let disks = Disks::load(&ledger, lease.clone(), nodes, generations.clone()).await?;
        let disks = Arc::new(disks);
        disks.poll().await;
        let membership = invitation.map(|invitation| {
            let adopting = Adopting::new(invitation.cluster, ledger.clone(), lease.clone(), disks.clone());
            let nodes = disks.nodes().clone();
            let joining = Joining::new(invitation, ledger.clone(), lease.clone(), nodes, clock.clone());
            Arc::new(Membership {
                joining: Arc::new(joining),
                adopting,
            })
        });
        let volumes = Arc::new(Volumes::load(ledger.clone(), lease.clone(), disks.clone()).await?);
        let metrics = Metrics::new().map_err(|e| Error::Internal(format!("metrics: {e}")))?;
        let archive = Arc::new(Archive::default());
        // A gateway that only reads ships nothing that a commit could wait for.
        let is_sync = config.sync_archive && generations.own().is_some();
        let ledger = match is_sync && ledger.store().changes().is_some() {
            true => ledger.over(Arc::new(SyncStore::new(ledger.store().clone(), archive.clone()))),
            false => ledger,
        };
        let objects = Arc::new(Objects {
            ledger,
            lease,
            disks,
            volumes,
            budget: Budget::new(config.memory_bytes),
            cache: Arc::new(BlockCache::new(config.cache_bytes)),
            readers: Default::default(),
            abandoned: Default::default(),
            holds,
            unnamed: Default::default(),
            archive,
            latencies: Default::default(),
            metrics: Arc::new(metrics),
            clock,
            scheme: config.scheme,
            hedges: Tokens::hedges(),
            retries: Tokens::retries(),
            suspects: Default::default(),
            newer_epochs: Default::default(),
            relocations: Default::default(),
            turns: Default::default(),
            gate: Default::default(),
            codecs: Codecs::new(config.kernel),
            hashing: Hashing::start(config.kernel)?,
        });
        if generations.own().is_some() {
            take_in_units(&objects).await;
        }
        let acts = generations.own().is_some();
        if !acts {
            objects.find_units().await;
        }
        let (stop, stopped) = watch::channel(false);
        // First: with a ledger that waits for its archive, nothing else goes on without it.
        let shipper = match acts {
            true => Shipper::new(objects.clone(), config.sync_archive).await?,
            false => None,
        };
        let shipping = shipper
            .clone()
            .map(|shipper| Running::start(Shipping(shipper), stopped.clone()));
        let retiring = shipper
            .clone()
            .map(|shipper| Running::start(Retiring(shipper), stopped.clone()));
        if acts {
            objects.finish_bucket_deletions().await?;
        }
        let again = Arc::new(Notify::new());
        let moving = Moving::default();
        let rebuild = Arc::new(Rebuilding::new(&objects, config.rebuild_floor));
        let census = Arc::new(Notify::new());
        let rebuilding = Rebuild::new(objects.clone(), moving.clone(), rebuild.clone(), stopped.clone());
        // Before any worker that deletes takes its first step.
        let checking = LedgerCheck::new(objects.clone());
        let mut workers = match acts {
            false => Vec::new(), // Each of them would change something.
            true => vec![
                Running::start(Absence::new(objects.clone(), config.grace), stopped.clone()),
                Running::start(rebuilding, stopped.clone()),
                Running::start(Rebalance::new(objects.clone()), stopped.clone()),
                Running::start(Leftovers::new(objects.clone(), moving.clone()), stopped.clone()),
                Running::start(
                    Census::new(
                        objects.clone(),
                        moving.clone(),
                        config.census_cycle,
                        census.clone(),
                        stopped.clone(),
                    ),
                    stopped.clone(),
                ),
                Running::start(Garbage::new(objects.clone()), stopped.clone()),
                Running::start(Orphans::new(objects.clone()), stopped.clone()),
                Running::start(Unnamed::new(objects.clone()), stopped.clone()),
                Running::start(Repair::new(objects.clone()), stopped.clone()),
                Running::start(Scrub::new(objects.clone()), stopped.clone()),
                Running::start(
                    Sealing {
                        objects: objects.clone(),
                    },
                    stopped.clone(),
                ),
            ],
        };
        // Reads only; and whoever only reads wants to know, too.
        workers.push(Running::start(checking, stopped.clone()));
        workers.extend(shipping);
        workers.extend(retiring);
        workers.push(Running::start(
            Polling::new(objects.disks.clone()),
            stopped.clone(),
        ));
        if !acts && generations.base().is_restored {
            let settling = Settling::new(objects.clone(), again.clone());
            workers.push(Running::start(settling, stopped.clone()));
        }
        let telling = Telling {
            objects: objects.clone(),
        };
        workers.push(Running::start(telling, stopped.clone()));
        if let Some(membership) = membership.as_ref().filter(|_| acts) {
            workers.push(Running::start(Adding::new(membership.clone()), stopped.clone()));
        }
        let gateway = Arc::new(Gateway {
            objects,
            membership,
            workers: Mutex::new(workers),
            rebuild,
            moving,
            shipper,
            census,
            since: Since::default(),
            stop,
            again,
        });
        let watching = Watching(Arc::downgrade(&gateway));
        gateway.lock_workers().push(Running::start(watching, stopped));
        Ok(gateway)
    }

    /// The state of the cluster.
    pub async fn status(&self) -> Result<Status> {
        let workers = self.workers();
        let mut status = admin::status::status(&self.objects, workers, self.rebuild.status()).await?;
        let verdict = &mut status.verdict;
        verdict.since_ms = self.since.note(verdict.level, self.objects.clock.now_ms());
        Ok(status)
    }

    /// What the background workers do.
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.lock_workers().iter().map(Running::status).collect()
    }

    /// Has the gateway end in order, and be started anew by who runs it.
    pub fn start_again(&self) {
        self.again.notify_one();
    }

    /// Serves S3 and admin requests, and nodes that join, until `shutdown` resolves or [`Gateway::start_again`] is called, then ends
    /// in order.
    pub async fn serve(
        self: Arc<Self>,
        settings: S3Settings,
        listeners: Listeners,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Ended> {
        if let Err(error) = self.objects.disks.pauses().watch() {
            tracing::warn!(%error, "no thread to notice pauses of this process: what is late through one is held against disks");
        }
        let front = Front::new(self.objects.clone(), settings);
        let (stop, stopped) = watch::channel(false);
        let s3 = Door::new(listeners.s3, places(), &self.objects);
        let mut s3 = tokio::spawn(serve_s3(s3, front, stopped));
        let admin = Door::new(listeners.admin, ADMIN_CONNECTIONS_MAX, &self.objects);
        let mut admin = tokio::spawn(serve_admin(admin, self.clone()));
        let join = match (&self.membership, listeners.join) {
            (Some(membership), Some(listener)) => {
                let (joining, disks) = (membership.joining.clone(), self.objects.disks.clone());
                Some(tokio::spawn(async move {
                    if let Err(error) = join_server::serve(listener, joining, disks).await {
                        tracing::error!(%error, "no node can join");
                    }
                }))
            }
            _ => None,
        };
        // A server that ends by itself panicked. Without it this process is of no use, and whoever started it can start it again.
        let ended = tokio::select! {
            () = shutdown => Ok(Ended::Stopped),
            () = self.again.notified() => Ok(Ended::Again),
            _ = &mut s3 => Err("S3"),
            _ = &mut admin => Err("administration"),
        };
        match ended {
            Ok(_) => tracing::info!("shutting down"),
            Err(server) => tracing::error!(server, "a server ended by itself: shutting down"),
        }
        // The admin address answers "not ready" while requests drain.
        self.objects.gate.close();
        let _ = stop.send(true); // Both servers hold a receiver until they end.
        if ended != Err("S3") {
            let _ = s3.await; // A panic there was reported by the panic hook; the rest must still be ended in order.
        }
        admin.abort();
        if let Some(join) = join {
            join.abort();
        }
        self.end().await?;
        ended.map_err(|server| Error::Internal(format!("the server of {server} ended by itself")))
    }

    /// Ends in order what is behind the servers: for who serves nothing.
    pub async fn end(&self) -> Result<()> {
        let _ = self.stop.send(true); // Workers that ended already need no word.
        let workers = std::mem::take(&mut *self.lock_workers());
        let settle = async {
            self.objects.gate.empty().await;
            futures::future::join_all(workers.into_iter().map(Running::ended)).await;
            if self.objects.disks.generations().own().is_none() {
                return Ok(()); // Nothing was begun, or nothing can be committed any more.
            }
            while Garbage::queue_abandoned(&self.objects).await? > 0 {}
            self.objects.lease.give_back(&self.objects.abandoned).await?;
            self.objects.disks.tell_all(self.objects.ledger.position()).await;
            if let Some(shipper) = &self.shipper
                && let Err(error) = shipper.ship_rest().await
            {
                tracing::info!(%error, "the archive of the ledger has the rest after the next start");
            }
            Ok(())
        };
        let shipping = async {
            match &self.shipper {
                Some(shipper) => shipper.keep_shipping().await,
                None => std::future::pending().await,
            }
        };
        let settled = tokio::select! {
            settled = tokio::time::timeout(SETTLE_MAX, settle) => settled,
            () = shipping => Ok(Ok(())), // It never ends.
        };
        match settled {
            Ok(settled) => settled,
            Err(_) => {
                tracing::warn!(
                    "commits or background work did not end in time; the next start takes them up"
                );
                Ok(())
            }
        }
    }

    fn lock_workers(&self) -> std::sync::MutexGuard<'_, Vec<Running>> {
        self.workers.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// How often it is looked at how things stand when nobody asks.
const WATCH_PERIOD: Duration = Duration::from_secs(5);

/// Notes since when things stand as they do.
struct Watching(Weak<Gateway>);

#[async_trait::async_trait]
impl Worker for Watching {
    fn name(&self) -> &'static str {
        "verdict"
    }

    fn rest(&self) -> Duration {
        WATCH_PERIOD
    }

    async fn step(&self) -> Result<Step> {
        if let Some(gateway) = self.0.upgrade() {
            let (workers, rebuild) = (gateway.workers(), gateway.rebuild.status());
            let verdict = admin::status::verdict_now(&gateway.objects, &workers, &rebuild);
            gateway.since.note(verdict.level, gateway.objects.clock.now_ms());
        }
        Ok(Step::Idle)
    }
}

/// What disks say of units: how much each volume's fullest holds, so that volumes are sealed in time, and whether the ledger knows of all
/// that became of them.
async fn take_in_units(objects: &Objects) {
    let mut used: HashMap<u64, u64> = HashMap::new();
    let volumes = objects.volumes.all();
    let volumes: HashMap<u64, _> = volumes.iter().map(|volume| (volume.id, volume)).collect();
    for disk in objects.disks.all().iter() {
        let Some(client) = &disk.client else { continue };
        let units = client.units(disk.id, disk.incarnation, Duration::from_secs(5));
        for info in units.await.unwrap_or_default() {
            let most = used.entry(info.unit.volume).or_default();
            *most = info.live_bytes.max(*most);
            if let Some(volume) = volumes.get(&info.unit.volume)
                && volume.disks.get(usize::from(info.unit.index)) == Some(&disk.id)
            {
                let generations = objects.disks.generations();
                generations.judge_epoch(volume.id, info.epoch, volume.epoch);
            }
        }
    }
    objects.volumes.set_used(&used);
}

/// Connections at once: fewer where this process may open few files.
fn places() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = files
        .current
        .map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    files
        .saturating_sub(FILES_KEPT)
        .clamp(FILES_KEPT / 8, CONNECTIONS_MAX)
}

type Stream = ClientStream<tokio::net::TcpStream>;

/// Where connections come from, and how many there may be.
struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    connections: Arc<Connections>,
}

impl Door {
    fn new(listener: TcpListener, places: usize, objects: &Objects) -> Door {
        let heads_max = objects.budget.bytes() / HEADS_SHARE;
        Door {
            listener,
            places: Arc::new(Semaphore::new(places)),
            connections: Connections::new(heads_max, objects.metrics.cut_connections.clone()),
        }
    }

    /// The next connection, with its place; none when told to stop. While all places are taken the longest idle connection gives its
    /// own.
    async fn next(
        &self,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<(Stream, Arc<Connection>, tokio::sync::OwnedSemaphorePermit)> {
        loop {
            // Not before somebody needs a place: it is known only then.
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = stop.changed() => return None,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    self.connections.free_a_place(); // Descriptors may be short.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let place = loop {
                let place = self.places.clone().acquire_owned();
                tokio::select! {
                    place = tokio::time::timeout(PLACE_PATIENCE, place) => match place {
                        Ok(place) => break place.ok()?,
                        Err(_) => { self.connections.free_a_place(); }
                    },
                    _ = stop.changed() => return None,
                }
            };
            let _ = stream.set_nodelay(true); // Only speed depends on it.
            let connection = self.connections.accepted(peer.ip());
            let stream = ClientStream::new(stream, connection.clone(), SILENCE_MAX);
            return Some((stream, connection, place));
        }
    }
}

async fn serve_s3(door: Door, front: Arc<Front>, mut stop: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    // Dropping the sender cuts every connection that is left.
    let (cut, uncut) = watch::channel(());
    let mut http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE_MAX) // From the request before on: it ends idle connections, too.
        .max_headers(HEADERS_MAX)
        .max_buf_size(256 * 1024);
    while let Some((stream, connection, place)) = door.next(&mut stop).await {
        let (front, served) = (front.clone(), connection.clone());
        let s3 = hyper::service::service_fn(move |request| front.clone().answer(served.clone(), request));
        let serving = http.serve_connection(TokioIo::new(stream), s3);
        let serving = graceful.watch(serving.into_owned());
        let mut uncut = uncut.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = serving => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    }
                }
                () = connection.over() => {}
                _ = uncut.changed() => {}
            }
            drop(place);
        });
    }
    drop(door);
    if tokio::time::timeout(DRAIN_MAX, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests still in progress after {DRAIN_MAX:?}: cut");
    }
    drop(cut);
}

/// Answers until the caller ends it, which is after the S3 side has drained.
async fn serve_admin(door: Door, gateway: Arc<Gateway>) {
    let (_never, mut open) = watch::channel(false);
    while let Some((stream, connection, place)) = door.next(&mut open).await {
        let (gateway, served) = (gateway.clone(), connection.clone());
        let service = hyper::service::service_fn(move |request| {
            let (gateway, begun) = (gateway.clone(), served.begin());
            async move {
                let answer = admin::server::answer(gateway, request).await;
                Ok::<_, std::convert::Infallible>(answer.map(|body| begun.with(body)))
            }
        });
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(SILENCE_MAX);
            tokio::select! {
                ended = http.serve_connection(TokioIo::new(stream), service) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "admin connection ended");
                    }
                }
                () = connection.over() => {}
            }
            drop(place);
        });
    }
}
