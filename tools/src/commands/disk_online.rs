//! `cairn disk list` and `cairn disk add`: the disks of a cluster that runs.

use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::output::{complain, say, show};
use crate::size::format_size;
use clap::Args;
use gateway::admin::nodes::{AddAnswer, AddRequest, AddedLine, BlankLine, BlankName, DiskList};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// The gateway answers before that, even if formatting goes on.
const ADD_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Args)]
pub struct ListArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct AddArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Blank disks, by their paths on their nodes
    #[arg(value_name = "PATH", required_unless_present = "all")]
    path: Vec<String>,
    /// Every blank disk, of this node or of all
    #[arg(long, conflicts_with = "path")]
    all: bool,
    /// Disks of this node alone
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Also disks on which something is that is not Cairn's; it is destroyed. Only with their paths
    #[arg(long, conflicts_with = "all", requires = "path")]
    overwrite: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn list(args: ListArgs) -> CommandResult {
    if args.json {
        say!("{}", args.admin.get("/v1/disks").await?);
        return Ok(());
    }
    let list: DiskList = args.admin.get_json("/v1/disks").await?;
    show!("{}", super::status::disk_table(&list.disks));
    if !list.blank.is_empty() {
        say!("");
        show!("{}", blank_table(&list.blank));
    }
    if !list.strange.is_empty() {
        say!("\n{:<16} not used", "node");
    }
    for line in &list.strange {
        say!("{:<16} {}: {}", line.node, line.path, line.reason);
    }
    Ok(())
}

fn blank_table(blank: &[BlankLine]) -> String {
    let mut out = format!("{:<16} {:>10}  blank disk\n", "node", "size");
    for line in blank {
        let holds = line.holds.as_ref().map(|holds| format!("  holds {holds}"));
        out.push_str(&format!(
            "{:<16} {:>10}  {}{}\n",
            line.node,
            format_size(line.size),
            line.path,
            holds.unwrap_or_default()
        ));
    }
    out
}

pub async fn add(args: AddArgs) -> CommandResult {
    let list: DiskList = args.admin.get_json("/v1/disks").await?;
    let chosen = choose(&list.blank, &args)?;
    if chosen.is_empty() {
        match args.json {
            true => say!("{}", serde_json::to_string(&AddAnswer { disks: Vec::new() })?),
            false => say!("There is no blank disk to add."),
        }
        return Ok(());
    }
    if !args.json {
        let total: u64 = chosen.iter().map(|blank| blank.size).sum();
        show!("{}", blank_table(&chosen));
        say!(
            "\n{} disks, {} in all, will be formatted for the cluster.",
            chosen.len(),
            format_size(total)
        );
    }
    if args.dry_run {
        if args.json {
            say!(
                "{}",
                serde_json::to_string(&serde_json::json!({ "plan": chosen }))?
            );
        }
        return Ok(());
    }
    if !args.yes && !agreed()? {
        return Err("nothing was done".into());
    }
    let name = |blank: &BlankLine| BlankName {
        node: blank.node.clone(),
        path: blank.path.clone(),
    };
    let request = AddRequest {
        disks: chosen.iter().map(name).collect(),
        overwrite: args.overwrite,
    };
    let answer: AddAnswer = args.admin.post("/v1/disks", &request, ADD_PATIENCE).await?;
    match args.json {
        true => say!("{}", serde_json::to_string(&answer)?),
        false => answer.disks.iter().for_each(|added| say!("{}", render(added))),
    }
    let failed = answer.disks.iter().filter(|added| added.error.is_some()).count();
    match failed {
        0 => Ok(()),
        failed => Err(format!("{failed} of {} disks were not added", answer.disks.len()).into()),
    }
}

fn render(added: &AddedLine) -> String {
    match &added.error {
        None => format!("added  {:<10} {} of {}", added.label, added.path, added.node),
        Some(error) => format!(
            "failed {:<10} {} of {}: {error}",
            added.label, added.path, added.node
        ),
    }
}

/// The blank disks that the operator means; refuses what is not there, and what is not blank enough.
fn choose(blank: &[BlankLine], args: &AddArgs) -> Result<Vec<BlankLine>, String> {
    let of_node = |line: &&BlankLine| args.node.as_ref().is_none_or(|node| *node == line.node);
    let blank: Vec<&BlankLine> = blank.iter().filter(of_node).collect();
    let mut chosen: Vec<BlankLine> = Vec::new();
    if args.all {
        chosen.extend(
            blank
                .iter()
                .filter(|line| line.holds.is_none())
                .map(|line| (*line).clone()),
        );
        for line in blank.iter().filter(|line| line.holds.is_some()) {
            let holds = line.holds.as_deref().unwrap_or_default();
            complain!("left out: {} of {} holds {holds}", line.path, line.node);
        }
    }
    for path in &args.path {
        let found: Vec<&&BlankLine> = blank.iter().filter(|line| line.path == *path).collect();
        match found[..] {
            [] => {
                return Err(format!(
                    "no node has a blank disk {path}; `cairn disk list` shows those there are"
                ));
            }
            [line] => match &line.holds {
                Some(holds) if !args.overwrite => {
                    return Err(format!(
                        "{path} of {} holds {holds}; --overwrite destroys that",
                        line.node
                    ));
                }
                _ => chosen.push((*line).clone()),
            },
            _ => {
                return Err(format!(
                    "several nodes have a blank disk {path}; say which with --node"
                ));
            }
        }
    }
    Ok(chosen)
}

/// Asks, where somebody is to answer.
pub fn agreed() -> Result<bool, String> {
    if !std::io::stdin().is_terminal() {
        return Err("nobody is there to ask: say --yes".into());
    }
    crate::output::err(format_args!("Go on? [y/N] "));
    std::io::stderr().flush().map_err(|e| e.to_string())?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| e.to_string())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
