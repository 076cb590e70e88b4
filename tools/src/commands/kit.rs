//! `cairn kit show|check|write`: the recovery kit.

use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::home::Home;
use crate::kit::{Kit, is_encrypted, read_passphrase, read_text};
use crate::output::{complain, say, show};
use clap::{Args, Subcommand};
use gateway::admin::nodes::NodeList;
use gateway::admin::status::Status;
use gateway::cluster::authority::Authority;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct KitArgs {
    #[command(subcommand)]
    command: KitCommand,
}

#[derive(Args)]
struct Passphrase {
    /// The passphrase is the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    fn read(&self) -> Result<Option<String>, String> {
        self.passphrase_file.as_deref().map(read_passphrase).transpose()
    }
}

#[derive(Subcommand)]
enum KitCommand {
    /// Show what a kit is of, without its secrets
    Show {
        /// The kit
        file: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Check that a kit is whole, can be decrypted, and is of the cluster of a gateway's directory if one is given
    Check {
        /// The kit
        file: PathBuf,
        /// A gateway's directory
        #[arg(long, value_name = "DIR", env = "CAIRN_DATA")]
        data: Option<PathBuf>,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Write the kit of a gateway's directory, with the nodes as they are now if the gateway runs
    Write {
        /// Where to
        file: PathBuf,
        /// The gateway's directory
        #[arg(long, value_name = "DIR", env = "CAIRN_DATA")]
        data: PathBuf,
        #[command(flatten)]
        admin: AdminArgs,
        /// Encrypt it with this passphrase
        #[command(flatten)]
        passphrase: Passphrase,
    },
}

pub async fn run(args: KitArgs) -> CommandResult {
    match args.command {
        KitCommand::Show { file, passphrase } => {
            let kit = Kit::read(&file, passphrase.read()?.as_deref())?;
            show!("{}", describe(&kit));
        }
        KitCommand::Check {
            file,
            data,
            passphrase,
        } => check(&file, data.as_deref(), passphrase.read()?.as_deref())?,
        KitCommand::Write {
            file,
            data,
            admin,
            passphrase,
        } => {
            let kit = of_home(&Home::at(&data), &admin).await?;
            kit.write(&file, passphrase.read()?.as_deref())?;
            show!("{}", describe(&kit));
            say!("written to {}", file.display());
        }
    }
    Ok(())
}

fn describe(kit: &Kit) -> String {
    let nodes = match &kit.nodes[..] {
        [] => "none known".to_owned(),
        nodes => nodes.join(", "),
    };
    format!(
        "  cluster     {} ({})\n  scheme      {}\n  access key  {}\n  nodes       {nodes}\n",
        kit.cluster, kit.name, kit.scheme, kit.keys.access_key
    )
}

fn check(file: &Path, data: Option<&Path>, passphrase: Option<&str>) -> CommandResult {
    let encrypted = is_encrypted(&read_text(file)?);
    let kit = Kit::read(file, passphrase)?;
    Authority::open(kit.cluster, &kit.authority)?;
    if let Some(data) = data {
        let (cluster, authority) = Home::at(data).authority_kept()?;
        Authority::open(cluster, &authority).map_err(|e| format!("{}: {e}", data.display()))?;
        if cluster != kit.cluster {
            return Err(format!(
                "the kit is of cluster {}, and the directory of {cluster}",
                kit.cluster
            )
            .into());
        }
        if authority.key.trim() != kit.authority.key.trim() {
            return Err("the kit has another authority's key than the directory".into());
        }
    }
    show!("{}", describe(&kit));
    say!(
        "the kit is whole{}",
        if encrypted {
            ", and encrypted"
        } else {
            "; it is not encrypted"
        }
    );
    Ok(())
}

/// What a directory and a running gateway know; what neither says is as in the kit that is there.
async fn of_home(home: &Home, admin: &AdminArgs) -> Result<Kit, Box<dyn std::error::Error + Send + Sync>> {
    let (cluster, authority) = home.authority_kept()?;
    Authority::open(cluster, &authority)?; // A kit with a key that signs for nobody is no help.
    let before = Kit::read(&home.kit(), None).ok();
    let before = before.filter(|kit| kit.cluster == cluster);
    let nodes = admin.get_json::<NodeList>("/v1/nodes").await;
    let scheme = match &before {
        Some(kit) => kit.scheme,
        None => admin.get_json::<Status>("/v1/status").await?.scheme.parse()?,
    };
    let nodes = match nodes {
        Ok(list) => list.nodes.into_iter().map(|node| node.address).collect(),
        Err(error) => {
            complain!("the nodes are as in the kit of before: {error}");
            before.as_ref().map(|kit| kit.nodes.clone()).unwrap_or_default()
        }
    };
    Ok(Kit {
        cluster,
        name: before.map_or_else(|| "cairn".into(), |kit| kit.name),
        scheme,
        keys: home.keys()?,
        nodes,
        authority,
    })
}
