//! The gateway as a whole: the only place that wires its parts, serves its two addresses, and ends it in order.
//!
//! Order of the end: no new connections; requests in progress get six seconds; then what is left is cut; commits in
//! progress finish; abandoned blobs are queued; the lease is given back. Then the caller stops nodes and ledger.

use crate::admin;
use crate::admin::status::Status;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::cluster::adopt::Adopting;
use crate::cluster::disks::{Disks, POLL_PERIOD};
use crate::cluster::join::{Invitation, Joining};
use crate::cluster::join_server;
use crate::cluster::lease::Lease;
use crate::cluster::nodes::Nodes;
use crate::error::{Error, Result};
use crate::idle::IdleLimit;
use crate::ledger::Ledger;
use crate::maintenance::absence::Absence;
use crate::maintenance::census::{self, Census};
use crate::maintenance::garbage::Garbage;
use crate::maintenance::leftovers::Leftovers;
use crate::maintenance::orphans::Orphans;
use crate::maintenance::rebalance::Rebalance;
use crate::maintenance::rebuild::{Moving, Rebuild, Shared as Rebuilding};
use crate::maintenance::repair::Repair;
use crate::maintenance::scrub::Scrub;
use crate::maintenance::sealing::Sealing;
use crate::maintenance::worker::Running;
use crate::metrics::Metrics;
use crate::object::block_cache::BlockCache;
use crate::object::hashing::Hashing;
use crate::object::tokens::Tokens;
use crate::object::{Codecs, Objects};
use crate::placement::volumes::Volumes;
use crate::s3::{S3Gateway, StaticKeys, answer};
use ec_core::{Kernel, Scheme};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};

/// Connections at once; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 4_096;
/// A client has this long to send a request's head.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// A connection on which nothing moves for this long is cut: idle, stalled in sending, or not reading.
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

/// How often adding disks is tried again that an earlier attempt left unfinished.
const RESUME_PERIOD: Duration = Duration::from_secs(5);

/// A running gateway.
pub struct Gateway {
    /// The object path.
    pub objects: Arc<Objects>,
    /// Nodes that join; none in a cluster of one process.
    pub membership: Option<Arc<Membership>>,
    workers: Mutex<Vec<Running>>,
    rebuild: Arc<Rebuilding>,
    /// Has the census look at what is wanted of it.
    pub census: Arc<Notify>,
    stop: watch::Sender<bool>,
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
        let lease = Arc::new(Lease::take_over(ledger.clone(), &config.name).await?);
        let disks = Arc::new(Disks::load(&ledger, lease.clone(), nodes).await?);
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
        let objects = Arc::new(Objects {
            ledger,
            lease,
            disks,
            volumes,
            budget: Budget::new(config.memory_bytes),
            cache: Arc::new(BlockCache::new(config.cache_bytes)),
            readers: Default::default(),
            abandoned: Default::default(),
            latencies: Default::default(),
            metrics: Arc::new(metrics),
            clock,
            scheme: config.scheme,
            hedges: Tokens::hedges(),
            retries: Tokens::retries(),
            suspects: Default::default(),
            relocations: Default::default(),
            gate: Default::default(),
            codecs: Codecs::new(config.kernel),
            hashing: Hashing::start(config.kernel)?,
        });
        take_in_usage(&objects).await;
        objects.finish_bucket_deletions().await?;
        let (stop, stopped) = watch::channel(false);
        let moving = Moving::default();
        let rebuild = Arc::new(Rebuilding::new(&objects, config.rebuild_floor));
        let census = Arc::new(Notify::new());
        let rebuilding = Rebuild::new(objects.clone(), moving.clone(), rebuild.clone(), stopped.clone());
        let workers = vec![
            Running::start(Absence::new(objects.clone(), config.grace), stopped.clone()),
            Running::start(rebuilding, stopped.clone()),
            Running::start(Rebalance::new(objects.clone()), stopped.clone()),
            Running::start(Leftovers::new(objects.clone(), moving.clone()), stopped.clone()),
            Running::start(
                Census::new(
                    objects.clone(),
                    moving,
                    config.census_cycle,
                    census.clone(),
                    stopped.clone(),
                ),
                stopped.clone(),
            ),
            Running::start(Garbage::new(objects.clone()), stopped.clone()),
            Running::start(
                Orphans {
                    objects: objects.clone(),
                },
                stopped.clone(),
            ),
            Running::start(Repair::new(objects.clone()), stopped.clone()),
            Running::start(Scrub::new(objects.clone()), stopped.clone()),
            Running::start(
                Sealing {
                    objects: objects.clone(),
                },
                stopped.clone(),
            ),
        ];
        tokio::spawn(poll_disks(objects.disks.clone(), stopped.clone()));
        if let Some(membership) = &membership {
            tokio::spawn(resume_adding(membership.clone(), stopped));
        }
        Ok(Arc::new(Gateway {
            objects,
            membership,
            workers: Mutex::new(workers),
            rebuild,
            census,
            stop,
        }))
    }

    /// The state of the cluster.
    pub async fn status(&self) -> Result<Status> {
        let workers = self.lock_workers().iter().map(Running::status).collect();
        admin::status::status(&self.objects, workers, self.rebuild.status()).await
    }

    /// Serves S3 and admin requests, and nodes that join, until `shutdown` resolves, then ends in order.
    pub async fn serve(
        self: Arc<Self>,
        keys: StaticKeys,
        listeners: Listeners,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let service = {
            let mut builder = S3ServiceBuilder::new(S3Gateway::new(self.objects.clone()));
            builder.set_auth(keys);
            builder.build()
        };
        let (stop, stopped) = watch::channel(false);
        let s3 = tokio::spawn(serve_s3(listeners.s3, service, stopped));
        let admin = tokio::spawn(serve_admin(listeners.admin, self.clone()));
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
        shutdown.await;
        tracing::info!("shutting down");
        // The admin address answers "not ready" while requests drain.
        self.objects.gate.close();
        let _ = stop.send(true); // Both servers hold a receiver until they end.
        let _ = s3.await; // A panic there was reported by the panic hook; the rest must still be ended in order.
        admin.abort();
        if let Some(join) = join {
            join.abort();
        }
        self.end().await
    }

    async fn end(&self) -> Result<()> {
        let _ = self.stop.send(true); // Workers that ended already need no word.
        let workers = std::mem::take(&mut *self.lock_workers());
        let settle = async {
            self.objects.gate.empty().await;
            futures::future::join_all(workers.into_iter().map(Running::ended)).await;
            while Garbage::queue_abandoned(&self.objects).await? > 0 {}
            self.objects.lease.give_back().await
        };
        match tokio::time::timeout(SETTLE_MAX, settle).await {
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

async fn poll_disks(disks: Arc<Disks>, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        disks.begin_poll();
        tokio::select! {
            _ = tokio::time::sleep(POLL_PERIOD) => {}
            changed = stop.changed() => if changed.is_err() { return },
        }
    }
}

/// Goes on with what was begun and not ended, before this start or since: an answer may have been lost.
async fn resume_adding(membership: Arc<Membership>, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if let Err(error) = membership.adopting.resume().await {
            tracing::warn!(%error, "adding disks cannot be resumed");
        }
        tokio::select! {
            _ = tokio::time::sleep(RESUME_PERIOD) => {}
            changed = stop.changed() => if changed.is_err() { return },
        }
    }
}

/// How much each volume's fullest unit holds, so that volumes are sealed in time.
async fn take_in_usage(objects: &Objects) {
    let mut used: HashMap<u64, u64> = HashMap::new();
    for disk in objects.disks.all().iter() {
        let Some(client) = &disk.client else { continue };
        if let Ok(units) = client
            .units(disk.id, disk.incarnation, Duration::from_secs(5))
            .await
        {
            for info in units {
                let most = used.entry(info.unit.volume).or_default();
                *most = info.live_bytes.max(*most);
            }
        }
    }
    objects.volumes.set_used(&used);
}

type Stream = IdleLimit<tokio::net::TcpStream>;

/// Accepts connections until told to stop; each comes with a place among [`CONNECTIONS_MAX`].
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &mut watch::Receiver<bool>,
) -> Option<(Stream, tokio::sync::OwnedSemaphorePermit)> {
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.ok()?,
            _ = stop.changed() => return None,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return None,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true); // Only speed depends on it.
                return Some((IdleLimit::new(stream, SILENCE_MAX), place));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_s3(listener: TcpListener, service: S3Service, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    // Dropping the sender cuts every connection that is left.
    let (cut, uncut) = watch::channel(());
    let mut http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(256 * 1024);
    while let Some((stream, place)) = accept(&listener, &places, &mut stop).await {
        let service = service.clone();
        let s3 = hyper::service::service_fn(move |request| answer(service.clone(), request));
        let connection = http.serve_connection(TokioIo::new(stream), s3);
        let connection = graceful.watch(connection.into_owned());
        let mut uncut = uncut.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    }
                }
                _ = uncut.changed() => {}
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_MAX, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests still in progress after {DRAIN_MAX:?}: cut");
    }
    drop(cut);
}

/// Answers until the caller ends it, which is after the S3 side has drained.
async fn serve_admin(listener: TcpListener, gateway: Arc<Gateway>) {
    let places = Arc::new(Semaphore::new(64));
    let (_never, mut open) = watch::channel(false);
    while let Some((stream, place)) = accept(&listener, &places, &mut open).await {
        let gateway = gateway.clone();
        let service = hyper::service::service_fn(move |request| {
            let gateway = gateway.clone();
            async move { Ok::<_, std::convert::Infallible>(admin::server::answer(gateway, request).await) }
        });
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "admin connection ended");
            }
            drop(place);
        });
    }
}
