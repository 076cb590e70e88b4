//! `cairn gateway`: S3 on the disks of nodes that join.

use super::Memory;
use crate::CommandResult;
use crate::commands::ledger::not_opened;
use crate::config::{
    self, ADMIN_LISTEN, ArchiveMode, Domains, GatewaySection, JOIN_LISTEN, LISTEN, Wanted, reachable,
};
use crate::duration::parse_duration;
use crate::home::Home;
use crate::identity::identity;
use crate::output::greet;
use crate::size::parse_size;
use clap::Args;
use ec_core::Kernel;
use gateway::clock::SystemClock;
use gateway::cluster::join::Invitation;
use gateway::cluster::nodes::{Connect, Nodes};
use gateway::cluster::setup;
use gateway::ledger::Ledger;
use gateway::ledger::model::NodeRow;
use gateway::ledger::redb::RedbStore;
use gateway::maintenance::rebuild::pace::FLOOR as REBUILD_FLOOR;
use gateway::s3::{S3Settings, StaticKeys};
use gateway::server::{Ended, Gateway, GatewayConfig, Listeners};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::http_client::HttpClient;
use storage_node::join::check_address;
use storage_node::protocol::NodeId;
use storage_node::tls::{Credentials, Peer};
use tokio::net::TcpListener;

#[derive(Args)]
pub struct GatewayArgs {
    /// The configuration, as `cairn init` made it
    #[arg(long, value_name = "FILE", env = "CAIRN_CONFIG", default_value = "cairn.toml")]
    config: PathBuf,
    /// Where `cairn init` put the ledger, the authority and the keys
    #[arg(long, value_name = "DIR", env = "CAIRN_DATA")]
    data: Option<PathBuf>,
    /// Where to serve S3
    #[arg(long, value_name = "ADDR", env = "CAIRN_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where to serve operators; it asks for no key
    #[arg(long, value_name = "ADDR", env = "CAIRN_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// Where nodes join
    #[arg(long, value_name = "ADDR", env = "CAIRN_JOIN_LISTEN")]
    join_listen: Option<SocketAddr>,
    /// How nodes reach that
    #[arg(long, value_name = "HOST:PORT", env = "CAIRN_JOIN_ADDRESS", value_parser = parse_address)]
    join_address: Option<String>,
    /// Bytes of objects in flight at most
    #[arg(long, value_name = "SIZE", env = "CAIRN_MEMORY", value_parser = parse_size)]
    memory: Option<u64>,
    /// Bytes of hot objects kept in memory; 0 for none
    #[arg(long, value_name = "SIZE", env = "CAIRN_CACHE", value_parser = parse_size)]
    cache: Option<u64>,
    /// What codes: gfni-avx512, gfni-avx2, avx512, avx2, neon or scalar
    #[arg(long, value_name = "NAME", env = "CAIRN_KERNEL")]
    kernel: Option<Kernel>,
    /// How long a disk may be away before what it held is rebuilt on others
    #[arg(long, value_name = "DURATION", env = "CAIRN_GRACE", value_parser = parse_duration)]
    grace: Option<Duration>,
    /// Bytes a second that rebuilding has, however busy clients are
    #[arg(long, value_name = "SIZE", env = "CAIRN_REBUILD_FLOOR", value_parser = parse_size)]
    rebuild_floor: Option<u64>,
    /// Whether what is committed is in the ledger's archive before it is answered (sync), or a second later at most (async)
    #[arg(long, value_name = "MODE", env = "CAIRN_ARCHIVE")]
    archive: Option<ArchiveMode>,
    /// The region that clients sign for
    #[arg(long, value_name = "REGION", env = "CAIRN_REGION", value_parser = config::region)]
    region: Option<String>,
    /// The name of this server, below which each bucket is a host of its own; several with commas between
    #[arg(long, value_name = "HOST", env = "CAIRN_DOMAIN")]
    domain: Option<Domains>,
    /// The access key, instead of the one that `cairn init` made
    #[arg(long, env = "CAIRN_ACCESS_KEY", value_name = "KEY", requires = "secret_key")]
    access_key: Option<String>,
    /// Its secret
    #[arg(long, env = "CAIRN_SECRET_KEY", value_name = "SECRET", hide_env_values = true)]
    secret_key: Option<String>,
    /// Start although nodes heard another gateway of this cluster a moment ago; that one is fenced then
    #[arg(long)]
    take_over: bool,
}

/// How long a disk may be away, unless somebody says otherwise.
const GRACE: Duration = Duration::from_secs(600);

pub fn parse_address(text: &str) -> Result<String, String> {
    check_address(text).map(|()| text.to_owned())
}

/// The file, with what flags and variables say before it.
fn read_config(args: &GatewayArgs) -> Result<GatewaySection, config::Mistakes> {
    let given = [
        ("data", args.data.is_some()),
        ("join_address", args.join_address.is_some()),
    ];
    let given: Vec<&str> = given.iter().filter(|(_, is)| *is).map(|(key, _)| *key).collect();
    let wanted = Wanted {
        section: Some("gateway"),
        given: &given,
    };
    let file = config::read(&args.config, wanted)?.gateway.unwrap_or_default();
    Ok(GatewaySection {
        data: args.data.clone().or(file.data),
        listen: args.listen.or(file.listen),
        admin_listen: args.admin_listen.or(file.admin_listen),
        join_listen: args.join_listen.or(file.join_listen),
        join_address: args.join_address.clone().or(file.join_address),
        memory: args.memory.or(file.memory),
        cache: args.cache.or(file.cache),
        kernel: args.kernel.or(file.kernel),
        grace: args.grace.or(file.grace),
        rebuild_floor: args.rebuild_floor.or(file.rebuild_floor),
        archive: args.archive.or(file.archive),
        region: args.region.clone().or(file.region),
        domain: args.domain.clone().or(file.domain),
    })
}

pub async fn run(mut args: GatewayArgs) -> CommandResult {
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
async fn serve(args: &GatewayArgs, stop: impl Future<Output = ()>) -> Result<Ended, Error> {
    let config = read_config(args)?;
    let s3 = bind(config.listen, LISTEN, "listen").await?;
    let admin = bind(config.admin_listen, ADMIN_LISTEN, "admin_listen").await?;
    let join = bind(config.join_listen, JOIN_LISTEN, "join_listen").await?;
    let join_address = reachable(join.local_addr()?, config.join_address).ok_or(
        "--join-listen is every interface, which does not say how nodes reach it: give --join-address",
    )?;
    if !admin.local_addr()?.ip().is_loopback() {
        tracing::warn!(address = %admin.local_addr()?, "operators are asked for no key, and everybody who reaches this address is one");
    }
    let home = Home::at(&config.data.ok_or("no data directory")?);
    let given_keys = args.access_key.clone().zip(args.secret_key.clone());
    home.check_whole(given_keys.is_some())?;
    let memory = Memory::of(config.memory, config.cache);
    let cache = memory.ledger;
    let path = home.ledger();
    let opening = path.clone();
    let opened = tokio::task::spawn_blocking(move || RedbStore::open(opening, cache)).await?;
    let data = path.parent().unwrap_or(&path);
    crate::process::make_private(data);
    let store = Arc::new(opened.map_err(|error| not_opened(&error, data))?);
    let ledger = Ledger::new(store.clone());
    let found = setup::find(&ledger).await?;
    let (cluster, scheme) = found.ok_or("the ledger holds no cluster")?;
    let credentials = Arc::new(home.credentials(cluster)?);
    let invitation = Invitation {
        cluster,
        authority: home.authority(cluster)?,
        credentials: credentials.clone(),
        address: join_address,
    };
    let keys = match given_keys {
        Some((access_key, secret_key)) => StaticKeys {
            access_key,
            secret_key,
        },
        None => home.keys()?,
    };
    let nodes = Nodes::load(&ledger, connect(credentials)).await?;
    let kernel = match config.kernel {
        Some(kernel) => kernel,
        None => Kernel::from_environment()?,
    };
    let identity = identity("gateway", s3.local_addr()?, &home.ledger(), args.take_over)?;
    let options = GatewayConfig {
        name: "gateway".into(),
        scheme,
        kernel,
        memory_bytes: memory.in_flight,
        cache_bytes: memory.cache,
        grace: config.grace.unwrap_or(GRACE),
        rebuild_floor: config.rebuild_floor.unwrap_or(REBUILD_FLOOR),
        census_cycle: GatewayConfig::CENSUS_CYCLE,
        sync_archive: config.archive == Some(ArchiveMode::Sync),
        identity,
    };
    let gateway =
        Gateway::start_inviting(&options, ledger, nodes, Some(invitation), Arc::new(SystemClock)).await?;
    let (s3_at, admin_at, join_at) = (s3.local_addr()?, admin.local_addr()?, join.local_addr()?);
    greet!(
        "\
Cairn's gateway is ready.

  cluster     {cluster}, {scheme}
  endpoint    http://{s3_at}
  admin       http://{admin_at}   (cairn status --admin http://{admin_at})
  join        {join_at}
  memory      {memory}",
    );
    let listeners = Listeners {
        s3,
        admin,
        join: Some(join),
    };
    let settings = S3Settings {
        keys,
        region: config.region.unwrap_or_else(|| S3Settings::REGION.to_owned()),
        domains: config.domain.unwrap_or_default().0,
    };
    let served = gateway.serve(settings, listeners, stop).await;
    store.shutdown().await;
    Ok(served?)
}

async fn bind(addr: Option<SocketAddr>, otherwise: &str, key: &str) -> Result<TcpListener, String> {
    let addr = match addr {
        Some(addr) => addr,
        None => otherwise.parse().map_err(|e| format!("{otherwise}: {e}"))?,
    };
    TcpListener::bind(addr)
        .await
        .map_err(|e| format!("{key} {addr}: {e}"))
}

/// Reaches nodes over mutual TLS.
fn connect(credentials: Arc<Credentials>) -> Connect {
    Box::new(move |id: NodeId, row: &NodeRow| {
        let node = Peer::node(credentials.cluster(), id);
        let client: Arc<dyn StorageClient> =
            Arc::new(HttpClient::with_tls(&row.address, node, &credentials)?);
        Ok(client)
    })
}
