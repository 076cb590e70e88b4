//! `cairn node`: a storage node as a process of its own.

use super::VerifyArgs;
use crate::CommandResult;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use storage_node::node::{DiskSpec, Node, NodeOptions};
use storage_node::protocol::ClusterId;
use tokio::net::TcpListener;

#[derive(Args)]
pub struct NodeArgs {
    /// A disk to serve: a file or block device that was formatted for a cluster (repeat for more)
    #[arg(long, value_name = "PATH", required = true)]
    disk: Vec<PathBuf>,
    /// The cluster, 32 hex digits: disks of another one are refused. Any disk is served if it is not given
    #[arg(long, value_name = "ID", value_parser = parse_cluster)]
    cluster: Option<ClusterId>,
    /// Where to serve. Requests are not authenticated yet: keep it on loopback or a private network
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    #[command(flatten)]
    verify: VerifyArgs,
}

fn parse_cluster(text: &str) -> Result<ClusterId, String> {
    let bad = |_| {
        "a cluster is named by 32 hex digits; `cairn disk inspect PATH` shows those of a disk".to_string()
    };
    text.parse().map_err(bad)
}

pub async fn run(args: NodeArgs) -> CommandResult {
    let stop = super::stop_signal()?;
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|e| format!("--listen {}: {e}", args.listen))?;
    let options = NodeOptions {
        cluster: args.cluster,
        verify_cycle: args.verify.cycle()?,
        ..NodeOptions::default()
    };
    let specs = args.disk.into_iter().map(DiskSpec::at).collect();
    let node = tokio::task::spawn_blocking(move || Node::open(specs, options)).await?;
    let node = Arc::new(node);
    println!("Cairn node is ready on http://{}", listener.local_addr()?);
    storage_node::server::serve(listener, node.clone(), stop).await;
    tokio::task::spawn_blocking(move || node.shutdown()).await?;
    Ok(())
}
