//! `cairn node`: a storage node as a process of its own, and what operators ask of nodes.

use super::{VerifyArgs, decide};
use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::config::{self, NODE_LISTEN, NodeSection, Wanted, reachable};
use crate::duration::parse_duration;
use crate::output::{greet, say, show};
use crate::process::make_file_private;
use clap::{Args, Subcommand};
use gateway::admin::nodes::{NodeList, TokenAnswer, TokenRequest};
use gateway::admin::operations::Action;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage_node::join::{self, Announcement, JoinError, Token, check_label};
use storage_node::membership::{self, Membership};
use storage_node::node::{DiskSpec, Node, NodeOptions};
use storage_node::protocol::ClusterId;
use storage_node::server;
use tokio::net::TcpListener;

/// A gateway that was not reached is tried again after this long at first.
const ANNOUNCE_PAUSE_MIN: Duration = Duration::from_secs(1);
/// And this long at last.
const ANNOUNCE_PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: Option<NodeCommand>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum NodeCommand {
    /// Print a token with which one node may join, once
    Token(TokenArgs),
    /// List the nodes
    List(ListArgs),
    /// Copy what a node's disks hold elsewhere while they serve; nothing new goes there
    Drain(decide::DecideArgs),
    /// Give up all disks of a node now: what they hold is rebuilt from the others
    Retire(decide::DecideArgs),
    /// Undo a drain
    Activate(decide::DecideArgs),
    /// Forget a node that was drained, retired or given up, and whose disks hold nothing
    Remove(decide::DecideArgs),
}

#[derive(Args)]
struct TokenArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long it is good
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct RunArgs {
    /// The configuration of a node that belongs to a cluster
    #[arg(
        long,
        value_name = "FILE",
        env = "CAIRN_CONFIG",
        required_unless_present = "disk"
    )]
    config: Option<PathBuf>,
    /// Join with this token; not needed again
    #[arg(
        long,
        value_name = "TOKEN",
        env = "CAIRN_JOIN",
        hide_env_values = true,
        requires = "config"
    )]
    join: Option<Token>,
    /// The node's name
    #[arg(long, value_name = "NAME", env = "CAIRN_NAME", value_parser = parse_label)]
    name: Option<String>,
    /// Where it keeps its key and its certificate
    #[arg(long, value_name = "DIR", env = "CAIRN_DATA")]
    data: Option<PathBuf>,
    /// How gateways reach it
    #[arg(long, value_name = "HOST:PORT", env = "CAIRN_ADDRESS",
        value_parser = super::gateway::parse_address)]
    address: Option<String>,
    /// Its rack
    #[arg(long, value_name = "NAME", env = "CAIRN_RACK", value_parser = parse_label)]
    rack: Option<String>,
    /// Its zone
    #[arg(long, value_name = "NAME", env = "CAIRN_ZONE", value_parser = parse_label)]
    zone: Option<String>,
    /// A disk to serve: a file or block device (repeat for more). Without --config, one that was formatted for a cluster
    #[arg(long, value_name = "PATH")]
    disk: Vec<PathBuf>,
    /// The cluster, 32 hex digits: disks of another one are refused. Any disk is served if it is not given
    #[arg(long, value_name = "ID", value_parser = parse_cluster, conflicts_with = "config")]
    cluster: Option<ClusterId>,
    /// Where to serve. Without --config it is plain HTTP, and on loopback only
    #[arg(long, value_name = "ADDR", env = "CAIRN_LISTEN")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    verify: VerifyArgs,
}

fn parse_label(text: &str) -> Result<String, String> {
    check_label(text).map(|()| text.to_owned())
}

fn parse_cluster(text: &str) -> Result<ClusterId, String> {
    let bad = |_| {
        "a cluster is named by 32 hex digits; `cairn disk inspect PATH` shows those of a disk".to_string()
    };
    text.parse().map_err(bad)
}

pub async fn run(args: NodeArgs) -> CommandResult {
    match args.command {
        Some(NodeCommand::Token(args)) => token(args).await,
        Some(NodeCommand::List(args)) => list(args).await,
        Some(NodeCommand::Drain(args)) => decide::node(args, Action::Drain).await,
        Some(NodeCommand::Retire(args)) => decide::node(args, Action::Retire).await,
        Some(NodeCommand::Activate(args)) => decide::node(args, Action::Activate).await,
        Some(NodeCommand::Remove(args)) => decide::node(args, Action::Remove).await,
        None => match args.run.config.clone() {
            Some(config) => serve_member(&config, args.run).await,
            None => serve_plainly(args.run).await,
        },
    }
}

async fn token(args: TokenArgs) -> CommandResult {
    let request = TokenRequest {
        ttl_s: args.ttl.as_secs(),
    };
    let answer: TokenAnswer = args
        .admin
        .post("/v1/tokens", &request, Duration::from_secs(10))
        .await?;
    say!("{}", answer.token);
    Ok(())
}

async fn list(args: ListArgs) -> CommandResult {
    if args.json {
        say!("{}", args.admin.get("/v1/nodes").await?);
        return Ok(());
    }
    let list: NodeList = args.admin.get_json("/v1/nodes").await?;
    show!("{}", super::status::node_table(&list.nodes));
    Ok(())
}

/// Serves disks without TLS and without a cluster, to this machine.
async fn serve_plainly(args: RunArgs) -> CommandResult {
    let stop = super::stop_signal()?;
    let listener = bind(args.listen).await?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "--listen {address}: without --config requests are not authenticated, and served on loopback only; \
             with it a node joins a cluster and speaks TLS"
        )
        .into());
    }
    let options = NodeOptions {
        cluster: args.cluster,
        verify_cycle: args.verify.cycle()?,
        ..NodeOptions::default()
    };
    let node = open(args.disk, options).await?;
    greet!("Cairn node is ready on http://{address}");
    server::serve(listener, node.clone(), stop).await;
    tokio::task::spawn_blocking(move || node.shutdown()).await?;
    Ok(())
}

async fn bind(listen: Option<SocketAddr>) -> Result<TcpListener, String> {
    let listen = match listen {
        Some(listen) => listen,
        None => NODE_LISTEN.parse().map_err(|e| format!("{NODE_LISTEN}: {e}"))?,
    };
    TcpListener::bind(listen)
        .await
        .map_err(|e| format!("--listen {listen}: {e}"))
}

async fn open(disks: Vec<PathBuf>, options: NodeOptions) -> Result<Arc<Node>, tokio::task::JoinError> {
    disks.iter().for_each(|disk| make_file_private(disk));
    // A disk is known by its path, wherever the node is started from.
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let specs = disks
        .into_iter()
        .map(|path| DiskSpec::at(absolute(path)))
        .collect();
    let node = tokio::task::spawn_blocking(move || Node::open(specs, options)).await?;
    Ok(Arc::new(node))
}

/// The file, with what flags and variables say before it.
fn read_config(path: &Path, args: &RunArgs) -> Result<NodeSection, config::Mistakes> {
    let given = [
        ("name", args.name.is_some()),
        ("data", args.data.is_some()),
        ("address", args.address.is_some()),
    ];
    let given: Vec<&str> = given.iter().filter(|(_, is)| *is).map(|(key, _)| *key).collect();
    let wanted = Wanted {
        section: Some("node"),
        given: &given,
    };
    let file = config::read(path, wanted)?.node.unwrap_or_default();
    Ok(NodeSection {
        name: args.name.clone().or(file.name),
        data: args.data.clone().or(file.data),
        listen: args.listen.or(file.listen),
        address: args.address.clone().or(file.address),
        rack: args.rack.clone().or(file.rack),
        zone: args.zone.clone().or(file.zone),
        disks: match args.disk.is_empty() {
            true => file.disks,
            false => Some(args.disk.clone()),
        },
        verify_every: file.verify_every,
    })
}

/// Serves the disks of a member of a cluster, to its gateways.
async fn serve_member(path: &Path, args: RunArgs) -> CommandResult {
    let stop = super::stop_signal()?;
    let config = read_config(path, &args)?;
    let data = config.data.ok_or("no data directory")?;
    let name = config.name.ok_or("no name")?;
    let listener = bind(config.listen).await?;
    let listen = listener.local_addr()?;
    let place = Announcement {
        address: reachable(listen, config.address)
            .ok_or("--listen is every interface, which does not say how gateways reach it: give --address")?,
        rack: config.rack.unwrap_or_default(),
        zone: config.zone.unwrap_or_default(),
    };
    let (membership, has_just_joined) = be_member(&data, &name, args.join.as_ref(), &place).await?;
    let member = &membership.member;
    let options = NodeOptions {
        cluster: Some(member.cluster),
        verify_cycle: args.verify.cycle_or(config.verify_every)?,
        takes_blank: true,
        waits_for_admission: true,
        ..NodeOptions::default()
    };
    let node = open(config.disks.unwrap_or_default(), options).await?;
    greet!(
        "Cairn node {name} of cluster {} is ready on https://{listen}",
        member.cluster
    );
    let membership = Arc::new(membership);
    if !has_just_joined {
        tokio::spawn(announce(membership.clone(), place));
    }
    server::serve_tls(listener, node.clone(), &membership.credentials, stop).await?;
    tokio::task::spawn_blocking(move || node.shutdown()).await?;
    Ok(())
}

/// What the node is, after joining if it has not yet; and whether it has only now.
async fn be_member(
    data: &Path,
    name: &str,
    token: Option<&Token>,
    place: &Announcement,
) -> Result<(Membership, bool), Box<dyn std::error::Error + Send + Sync>> {
    let shown = data.display();
    if let Some(mut membership) = Membership::load(data)? {
        let member = &membership.member;
        if member.name != name {
            return Err(format!(
                "{shown} is that of node {}, and the configuration says {name}; a node keeps its name, and another one needs another directory",
                member.name
            )
            .into());
        }
        if token.is_some_and(|token| membership.is_foreign(token)) {
            return Err(format!(
                "{shown} has the certificate of {}, and the token is of another cluster; to join that, use another directory",
                membership.credentials.peer
            )
            .into());
        }
        if let Some(token) = token {
            tracing::info!(cluster = %member.cluster, "joined already; of the token only the gateway's address is taken");
            membership.follow(data, token)?;
        }
        return Ok((membership, false));
    }
    let Some(token) = token else {
        return Err(format!(
            "{shown} has no certificate: this node has joined no cluster; `cairn node token`, at a gateway, prints what --join needs"
        )
        .into());
    };
    let key = membership::key(data)?;
    let answer = join::join(token, name, &key, place)
        .await
        .map_err(|e| format!("not joined: {e}"))?;
    let membership = Membership::store(data, name, token, &answer)?;
    tracing::info!(cluster = %answer.cluster, node = %answer.node, "joined");
    Ok((membership, true))
}

/// Says where this node is until a gateway has heard it.
async fn announce(membership: Arc<Membership>, place: Announcement) {
    let mut pause = ANNOUNCE_PAUSE_MIN;
    loop {
        match join::announce(&membership.credentials, &membership.member.gateway, &place).await {
            Ok(()) => return tracing::info!(gateway = membership.member.gateway, "announced"),
            Err(JoinError::Refused(why)) => {
                tracing::error!(why, "this node is refused");
                pause = ANNOUNCE_PAUSE_MAX;
            }
            Err(JoinError::Unreachable(why)) => {
                // The gateway may find the node by itself, where it was.
                tracing::info!(why, "not announced yet");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ANNOUNCE_PAUSE_MAX);
    }
}
