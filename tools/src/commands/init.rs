//! `cairn init`: makes a cluster.

use crate::CommandResult;
use crate::home::Home;
use crate::output::say;
use clap::Args;
use ec_core::Scheme;
use gateway::clock::{Clock, SystemClock};
use std::path::PathBuf;
use storage_node::join::check_label;

#[derive(Args)]
pub struct InitArgs {
    /// Where the gateway keeps its ledger, the cluster's authority and the keys; a new directory
    #[arg(long, value_name = "DIR", env = "CAIRN_DATA")]
    data: PathBuf,
    /// The scheme: `rs(k,m)`, `lrc(k,l,g)` or `replica(n)`
    #[arg(long, value_name = "SCHEME", default_value = "rs(4,2)")]
    scheme: Scheme,
    /// The cluster's name
    #[arg(long, value_name = "NAME", default_value = "cairn", value_parser = parse_label)]
    name: String,
}

fn parse_label(text: &str) -> Result<String, String> {
    check_label(text).map(|()| text.to_owned())
}

pub async fn run(args: InitArgs) -> CommandResult {
    let home = Home::at(&args.data);
    let (cluster, keys) = home.create(args.scheme, &args.name, SystemClock.now_ms()).await?;
    let directory = args.data.display();
    say!(
        "\
Cluster {name} is made: {cluster}, {scheme}.

  access key  {access}
  secret key  {secret}
              kept in {directory}/credentials; they are not shown again

{directory}/recovery-kit.txt and the disks are all that an empty machine needs to be this gateway again. Put a copy
where none of the cluster's machines is, and show it to nobody: `cairn kit` checks it, and encrypts it.

{directory}/authority.key signs the certificates of all gateways and nodes: keep it, and a copy of it, to yourself.

Next:

  cairn gateway --config {directory}/cairn.toml
  cairn node token              prints what a node needs to join
  cairn node --config node.toml --join TOKEN
  cairn disk add --all",
        name = args.name,
        scheme = args.scheme,
        access = keys.access_key,
        secret = keys.secret_key,
    );
    Ok(())
}
