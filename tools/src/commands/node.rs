//! `cairn node`: a storage node as a process of its own.

use super::VerifyArgs;
use crate::CommandResult;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use storage_node::node::{DiskSpec, Node, NodeOptions};
use tokio::net::TcpListener;

#[derive(Args)]
pub struct NodeArgs {
    /// A disk to serve: a file or block device that was formatted for a cluster (repeat for more)
    #[arg(long, value_name = "PATH", required = true)]
    disk: Vec<PathBuf>,
    /// Where to serve. Requests are not authenticated yet: keep it on loopback or a private network
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    #[command(flatten)]
    verify: VerifyArgs,
}

pub async fn run(args: NodeArgs) -> CommandResult {
    let stop = super::stop_signal()?;
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|e| format!("--listen {}: {e}", args.listen))?;
    let options = NodeOptions {
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
