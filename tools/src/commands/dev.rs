//! `cairn dev`: a whole cluster in one process, on file-backed disks.
//!
//! ```text
//! DIR/ledger.redb          the ledger
//! DIR/ledger.redb-log      its last commits
//! DIR/disk-0 … disk-N      the disks, one file each
//! ```

use super::{Memory, VerifyArgs};
use crate::CommandResult;
use crate::commands::ledger::not_opened;
use crate::config::{ArchiveMode, Domains};
use crate::home::Home;
use crate::identity::identity;
use crate::output::greet;
use crate::size::parse_size;
use clap::Args;
use ec_core::{KERNEL_VARIABLE, Kernel, Scheme};
use gateway::clock::SystemClock;
use gateway::cluster::setup::{self, Cluster, PlannedDisk, Wanted};
use gateway::ledger::Ledger;
use gateway::ledger::redb::RedbStore;
use gateway::maintenance::rebuild::pace::FLOOR as REBUILD_FLOOR;
use gateway::s3::{S3Settings, StaticKeys};
use gateway::server::{Ended, Gateway, GatewayConfig, Listeners};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::http_client::HttpClient;
use storage_node::node::{DiskSpec, FormatDiskError, FormatOptions, Node, NodeOptions, format_disk};
use tokio::net::TcpListener;

/// The disks get this long to stop; all they acknowledged is durable already.
const NODE_STOP_MAX: Duration = Duration::from_millis(1_500);

#[derive(Args)]
pub struct DevArgs {
    /// Where the ledger and the disks are
    #[arg(long, value_name = "DIR", default_value = "./cairn-data")]
    data: PathBuf,
    /// How many disks; 6 for a new directory
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    disks: Option<u32>,
    /// The scheme: `rs(k,m)`, `lrc(k,l,g)` or `replica(n)`; rs(4,2) for a new directory
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<Scheme>,
    /// The size of each disk of a new directory; the files are sparse
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = parse_size)]
    disk_size: u64,
    /// Where to serve S3
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Where to serve status, metrics and health
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001")]
    admin_listen: SocketAddr,
    /// Bytes of objects in flight at most; a quarter of the machine's memory by default
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// How long a disk may be away before what it held is rebuilt on others, as 30s, 10m or 2h
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = crate::duration::parse_duration)]
    grace: Duration,
    /// Bytes of hot objects kept in memory; an eighth of the machine's memory by default, 0 for none
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache: Option<u64>,
    /// Whether what is committed is in the ledger's archive before it is answered (sync), or a second later at most (async)
    #[arg(long, value_name = "MODE", default_value = "async")]
    archive: ArchiveMode,
    /// What codes: gfni-avx512, gfni-avx2, avx512, avx2, neon or scalar; else what CAIRN_KERNEL names, or the fastest
    #[arg(long, value_name = "NAME")]
    kernel: Option<Kernel>,
    /// Reach the disks through storage nodes that run already (`cairn node`) instead of in this process
    #[arg(long, value_name = "URL")]
    node: Vec<String>,
    /// Start although a node heard another gateway of this cluster a moment ago; that one is fenced then
    #[arg(long, requires = "node")]
    take_over: bool,
    #[command(flatten)]
    verify: VerifyArgs,
    /// The region that clients sign for
    #[arg(long, value_name = "REGION", env = "CAIRN_REGION", default_value = S3Settings::REGION, value_parser = crate::config::region)]
    region: String,
    /// The name of this server, below which each bucket is a host of its own; several with commas between
    #[arg(long, value_name = "HOST", env = "CAIRN_DOMAIN")]
    domain: Option<Domains>,
    /// The access key
    #[arg(long, env = "CAIRN_ACCESS_KEY", default_value = "cairn", value_name = "KEY")]
    access_key: String,
    /// Its secret
    #[arg(
        long,
        env = "CAIRN_SECRET_KEY",
        default_value = SECRET_KEY,
        value_name = "SECRET",
        hide_env_values = true
    )]
    secret_key: String,
}

/// The secret key, unless somebody says otherwise: for this machine only.
const SECRET_KEY: &str = "cairn-secret-key";

/// Whether a directory has no disks and nothing of a ledger: where there is any of it, a ledger that is missing was there.
fn is_blank(data: &std::path::Path) -> std::io::Result<bool> {
    for entry in data.read_dir()? {
        let name = entry?.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b"disk-") || name == b"ledger.redb-log" {
            return Ok(false);
        }
    }
    Ok(true)
}

pub async fn run(mut args: DevArgs) -> CommandResult {
    let mut stop = std::pin::pin!(super::stop_signal()?);
    // An operator who accepts the ledger as it is has everything opened anew.
    while serve(&args, stop.as_mut()).await? == Ended::Again {
        args.take_over = false; // It was said of the first start.
    }
    tracing::info!("stopped");
    Ok(())
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Opens everything and serves, until `stop` resolves or everything is to be opened anew.
async fn serve(args: &DevArgs, stop: impl Future<Output = ()>) -> Result<Ended, Error> {
    let kernel = match args.kernel {
        Some(kernel) => kernel,
        None => Kernel::from_environment().map_err(|e| format!("{KERNEL_VARIABLE}: {e}"))?,
    };
    if Home::at(&args.data).is_inhabited() {
        return Err(format!(
            "{} holds a cluster that `cairn init` made: `cairn gateway` runs it",
            args.data.display()
        )
        .into());
    }
    if args.secret_key == SECRET_KEY && !args.listen.ip().is_loopback() {
        return Err(format!(
            "--listen {}: the secret key that everybody knows is for this machine only; choose one with --access-key and \
             --secret-key, or CAIRN_ACCESS_KEY and CAIRN_SECRET_KEY",
            args.listen
        )
        .into());
    }
    // Bind first: a port that is taken is found out before anything is written.
    let s3 = bind(args.listen, "--listen").await?;
    let admin = bind(args.admin_listen, "--admin-listen").await?;
    let memory = Memory::of(args.memory, args.cache);
    std::fs::create_dir_all(&args.data).map_err(|e| format!("{}: {e}", args.data.display()))?;
    crate::process::make_private(&args.data);

    let path = args.data.join("ledger.redb");
    let cache = memory.ledger;
    let is_blank = !path.exists() && is_blank(&args.data)?;
    let opening = tokio::task::spawn_blocking(move || match is_blank {
        true => RedbStore::create(path, cache),
        false => RedbStore::open(path, cache),
    });
    let store = opening.await?.map_err(|error| not_opened(&error, &args.data))?;
    let store = Arc::new(store);
    let ledger = Ledger::new(store.clone());
    let cluster = open_cluster(&ledger, args).await?;
    let (nodes, local) = open_nodes(args, &cluster).await?;

    let settings = S3Settings {
        keys: StaticKeys {
            access_key: args.access_key.clone(),
            secret_key: args.secret_key.clone(),
        },
        region: args.region.clone(),
        domains: args.domain.clone().unwrap_or_default().0,
    };
    let ledger_path = args.data.join("ledger.redb");
    let identity = identity("dev", s3.local_addr()?, &ledger_path, args.take_over)?;
    let config = GatewayConfig {
        name: "dev".into(),
        scheme: cluster.scheme,
        kernel,
        memory_bytes: memory.in_flight,
        cache_bytes: memory.cache,
        grace: args.grace,
        rebuild_floor: REBUILD_FLOOR,
        census_cycle: GatewayConfig::CENSUS_CYCLE,
        sync_archive: args.archive == ArchiveMode::Sync,
        identity,
    };
    let gateway = Gateway::start(&config, ledger, nodes, Arc::new(SystemClock)).await?;
    let listeners = Listeners {
        s3,
        admin,
        join: None,
    };
    print_welcome(
        args,
        &cluster,
        listeners.s3.local_addr()?,
        listeners.admin.local_addr()?,
        &memory,
    );
    let served = gateway.serve(settings, listeners, stop).await;

    if let Some(node) = local {
        let ended = tokio::task::spawn_blocking(move || node.shutdown());
        if tokio::time::timeout(NODE_STOP_MAX, ended).await.is_err() {
            tracing::warn!("a disk hangs and was left behind; nothing that was acknowledged depends on it");
        }
    }
    store.shutdown().await;
    Ok(served?)
}

async fn bind(addr: SocketAddr, flag: &str) -> Result<TcpListener, String> {
    TcpListener::bind(addr)
        .await
        .map_err(|e| format!("{flag} {addr}: {e}"))
}

/// The cluster the directory holds, or a new one with its disks formatted.
async fn open_cluster(
    ledger: &Ledger,
    args: &DevArgs,
) -> Result<Cluster, Box<dyn std::error::Error + Send + Sync>> {
    let wanted = Wanted {
        scheme: args.scheme,
        disks: args.disks,
        scheme_default: Scheme::rs(4, 2)?,
        disks_default: 6,
        disk_size: args.disk_size,
    };
    let mut cluster = setup::open_or_plan(ledger, &wanted).await?;
    let mut unformatted: Vec<PlannedDisk> = cluster
        .disks
        .iter()
        .filter(|d| !d.row.formatted)
        .cloned()
        .collect();
    if !unformatted.is_empty() {
        let (data, id, disks) = (args.data.clone(), cluster.id, unformatted.clone());
        tokio::task::spawn_blocking(move || format_all(&data, id, &disks)).await??;
        setup::mark_formatted(ledger, &mut unformatted).await?;
        cluster.disks.iter_mut().for_each(|d| d.row.formatted = true);
    }
    Ok(cluster)
}

fn format_all(
    data: &Path,
    cluster: storage_node::protocol::ClusterId,
    disks: &[PlannedDisk],
) -> Result<(), String> {
    for disk in disks {
        let options = FormatOptions {
            cluster,
            disk: disk.id,
            incarnation: disk.row.incarnation,
            extent_size: None,
            overwrite: false,
        };
        match format_disk(&data.join(&disk.row.label), disk.row.size, &options) {
            Ok(()) => {}
            // A first start that was cut short between formatting and saying so.
            Err(FormatDiskError::AlreadyFormatted { disk: found, .. }) if found == disk.id => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

type Nodes = (Vec<Arc<dyn StorageClient>>, Option<Arc<Node>>);

async fn open_nodes(
    args: &DevArgs,
    cluster: &Cluster,
) -> Result<Nodes, Box<dyn std::error::Error + Send + Sync>> {
    if !args.node.is_empty() {
        let mut nodes: Vec<Arc<dyn StorageClient>> = Vec::new();
        for url in &args.node {
            nodes.push(Arc::new(
                HttpClient::new(url).map_err(|e| format!("--node {url}: {e}"))?,
            ));
        }
        return Ok((nodes, None));
    }
    let spec = |disk: &PlannedDisk| DiskSpec {
        path: args.data.join(&disk.row.label),
        expected: Some(disk.id),
        incarnation: Some(disk.row.incarnation),
    };
    let specs = cluster.disks.iter().map(spec).collect();
    let options = NodeOptions {
        cluster: Some(cluster.id),
        verify_cycle: args.verify.cycle()?,
        ..NodeOptions::default()
    };
    let node = Arc::new(tokio::task::spawn_blocking(move || Node::open(specs, options)).await?);
    Ok((vec![node.clone()], Some(node)))
}

fn print_welcome(args: &DevArgs, cluster: &Cluster, s3: SocketAddr, admin: SocketAddr, memory: &Memory) {
    let endpoint = format!("http://{s3}");
    let presigned = presigned_url(&endpoint, args).unwrap_or_else(|| "(no URL for this address)".into());
    greet!(
        "\
Cairn is ready.

  endpoint    {endpoint}
  access key  {access}
  secret key  {secret}
  disks       {disks} of {scheme} under {data}
  memory      {memory}
  admin       http://{admin}   (cairn status --admin http://{admin})

With the AWS CLI:

  export AWS_ACCESS_KEY_ID={access} AWS_SECRET_ACCESS_KEY={secret} AWS_DEFAULT_REGION=us-east-1
  aws --endpoint-url {endpoint} s3 mb s3://first
  aws --endpoint-url {endpoint} s3 cp README.md s3://first/README.md

With curl, for the next hour, by a presigned URL (make the bucket first):

  curl '{presigned}'
",
        access = args.access_key,
        secret = args.secret_key,
        disks = cluster.disks.len(),
        scheme = cluster.scheme,
        data = args.data.display(),
    );
}

fn presigned_url(endpoint: &str, args: &DevArgs) -> Option<String> {
    use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle, actions::GetObject};
    let bucket = Bucket::new(endpoint.parse().ok()?, UrlStyle::Path, "first", "us-east-1").ok()?;
    let credentials = Credentials::new(args.access_key.clone(), args.secret_key.clone());
    let url = GetObject::new(&bucket, Some(&credentials), "README.md").sign(Duration::from_secs(3_600));
    Some(url.to_string())
}
