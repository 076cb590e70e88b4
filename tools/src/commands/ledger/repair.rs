//! `cairn ledger repair`: has what is lost of a ledger from its archive where that can be reached, and goes on without the rest, once it was
//! said what that is.

use super::reach::{For, Reached, reach};
use crate::CommandResult;
use crate::commands::disk::CannotRead;
use crate::home::Home;
use crate::kit::{Kit, read_passphrase};
use crate::output::{say, show};
use clap::Args;
use gateway::archive::finding::Finder;
use gateway::archive::recall::FromArchive;
use gateway::archive::restored::{self, Places};
use gateway::cluster::setup;
use gateway::ledger::Ledger;
use gateway::ledger::redb::RedbStore;
use gateway::ledger::redb::offline::{self, LostRows, Nowhere, Plan};
use gateway::ledger::store::LedgerError;
use std::path::PathBuf;
use std::sync::Arc;
use storage_node::protocol::LedgerMarks;

const CACHE: usize = 64 << 20;

#[derive(Args)]
pub struct RepairArgs {
    /// The directory of the gateway, which must not run
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// A disk of a cluster in one process; DIR/disk-* unless somebody says otherwise
    #[arg(long, value_name = "PATH", conflicts_with = "node")]
    disk: Vec<PathBuf>,
    /// A node of the cluster, HOST:PORT; those that the recovery kit in DIR has unless somebody says otherwise
    #[arg(long, value_name = "HOST:PORT")]
    node: Vec<String>,
    /// The passphrase of that kit is the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Do not ask the archive on the disks
    #[arg(long)]
    without_archive: bool,
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

pub async fn run(args: RepairArgs) -> CommandResult {
    let path = args.data.join("ledger.redb");
    // What a ledger that is whole needs nobody for.
    let planning = path.clone();
    let planned = tokio::task::spawn_blocking(move || offline::plan(&planning, &Nowhere)).await?;
    let mut plan = planned.map_err(|error| cannot_repair(&error, &args))?;
    let (mut elsewhere, mut reached): (Arc<dyn LostRows + Send + Sync>, _) = (Arc::new(Nowhere), None);
    let is_lost = !plan.given_up.is_empty() || !plan.recovered.is_empty();
    if is_lost && !args.without_archive {
        match archive(&args).await {
            Ok((found, disks)) => (elsewhere, reached) = (Arc::new(found), Some(disks)),
            Err(error) => plan.not_fetched = Some(error.to_string()),
        }
    }
    if reached.is_some() {
        let (planning, asked) = (path.clone(), elsewhere.clone());
        let planned = tokio::task::spawn_blocking(move || offline::plan(&planning, &*asked)).await?;
        plan = planned.map_err(|error| cannot_repair(&error, &args))?;
    }
    let marks = reached.as_ref().map(|reached| plausible(&reached.marks));
    let marks = marks.unwrap_or_default();
    let repaired = ask_and_repair(&args, path, plan, elsewhere, &marks).await;
    if let Some(reached) = reached {
        reached.release().await?;
    }
    repaired
}

/// What a repair cannot begin with, a restore may.
fn cannot_repair(error: &LedgerError, args: &RepairArgs) -> CannotRead {
    let data = args.data.display();
    CannotRead(match error {
        LedgerError::Damaged { .. } => format!(
            "{error}\n  too much of it is damaged for a repair: move the files of the ledger away, keep them, and have it restored: \
             `cairn ledger restore --from-disks --data {data}`"
        ),
        _ => error.to_string(),
    })
}

/// The archive on the disks of the cluster.
async fn archive(
    args: &RepairArgs,
) -> Result<(FromArchive, Reached), Box<dyn std::error::Error + Send + Sync>> {
    let home = Home::at(&args.data);
    let mut nodes = args.node.clone();
    if nodes.is_empty() && home.is_inhabited() {
        let passphrase = args.passphrase_file.as_deref().map(read_passphrase).transpose()?;
        nodes = Kit::read(&home.kit(), passphrase.as_deref())?.nodes;
        if nodes.is_empty() {
            return Err("no node is known: give --node HOST:PORT for each".into());
        }
    }
    let reached = reach(&home, &args.data, &nodes, &args.disk, For::Reading).await?;
    let (cluster, reached) = reached.ok_or("there are no disks to ask")?;
    let finder = Finder::new(cluster, reached.sources.iter().cloned());
    let found = finder.find(0).await.entries;
    let runtime = tokio::runtime::Handle::current();
    Ok((
        FromArchive {
            finder,
            found,
            runtime,
        },
        reached,
    ))
}

async fn ask_and_repair(
    args: &RepairArgs,
    path: PathBuf,
    plan: Plan,
    elsewhere: Arc<dyn LostRows + Send + Sync>,
    marks: &[LedgerMarks],
) -> CommandResult {
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&plan)?),
        false => say!("{}", render(&plan)),
    }
    if args.dry_run {
        return Ok(());
    }
    if !(args.yes || is_wanted().await?) {
        return Err("nothing was done".into());
    }
    let repairing = path.clone();
    let plan = tokio::task::spawn_blocking(move || offline::repair(&repairing, &*elsewhere)).await??;
    if !plan.given_up.is_empty() {
        settle(path, marks).await?;
    }
    for aside in &plan.aside {
        say!("copied     {}", aside.display());
    }
    for unread in &plan.not_copied {
        say!("not copied {unread}");
    }
    say!(
        "done       the ledger is at commit {}; start the gateway, and have it look: `cairn scrub start`",
        plan.position
    );
    Ok(())
}

/// What disks know of the ledger. A disk that knows what no ledger could have told it counts for nothing.
fn plausible(marks: &[LedgerMarks]) -> Vec<LedgerMarks> {
    marks.iter().copied().filter(LedgerMarks::is_plausible).collect()
}

/// A ledger without something that was given up is as one that was restored: what it does not name is not
/// deleted, no id is handed out again that a disk has seen, and its archive is another one's from then on.
async fn settle(path: PathBuf, marks: &[LedgerMarks]) -> CommandResult {
    let store = Arc::new(tokio::task::spawn_blocking(move || RedbStore::open(path, CACHE)).await??);
    let ledger = Ledger::new(store.clone());
    let settled = match setup::find(&ledger).await {
        Ok(Some((cluster, _))) => {
            restored::settle(&ledger, cluster, marks, Places::ToBeFound, Default::default())
                .await
                .map(drop)
        }
        Ok(None) => Err(gateway::error::Error::Internal(
            "it lost the row of its cluster: restore it from the disks".into(),
        )),
        Err(error) => Err(error),
    };
    store.shutdown().await;
    settled?;
    say!("kept       what the ledger does not name any more, until somebody decides: `cairn unnamed list`");
    Ok(())
}

async fn is_wanted() -> std::io::Result<bool> {
    show!("Build the ledger anew from this, without what is given up? [y/N] ");
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await.map_err(std::io::Error::other)??;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn render(plan: &Plan) -> String {
    let mut lines = vec![
        format!(
            "kept       {} rows that verify, and {} commits of the log",
            plan.rows, plan.commits
        ),
        format!(
            "recovered  {} rows of damaged pages, which verify",
            plan.recovered.len()
        ),
    ];
    if plan.fetched_parts > 0 {
        lines.push(format!(
            "archive    {} rows of {} damaged parts, as they were written",
            plan.fetched, plan.fetched_parts
        ));
    }
    if plan.fetched_commits > 0 {
        lines.push(format!(
            "archive    {} commits that the log lost, as they were written",
            plan.fetched_commits
        ));
    }
    if let Some(why) = &plan.not_fetched {
        lines.push(format!("archive    not used: {why}"));
    }
    lines.extend(plan.recovered.iter().map(|row| format!("recovered  {row}")));
    lines.extend(plan.given_up.iter().map(|lost| format!("given up   {lost}")));
    if plan.given_up.is_empty() {
        lines.push("given up   nothing".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway::ledger::key::{self, Counter};
    use gateway::ledger::model::{CounterRow, GenerationRow};
    use storage_node::protocol::Generation;

    /// No id is handed out again that a disk has seen, and disks obey what comes after a repair with losses.
    #[tokio::test]
    async fn a_repair_with_losses_goes_on_above_what_disks_know() {
        let directory = std::env::temp_dir().join(format!("cairn-repair-{:x}", rand::random::<u64>()));
        let home = Home::at(&directory);
        let made = home.create("rs(4,2)".parse().unwrap(), "here", 1);
        made.await.unwrap();
        let marks = |number, blob_limit| LedgerMarks {
            generation: Generation { number, nonce: 7 },
            blob_limit,
            volume_limit: 300,
            ..LedgerMarks::default()
        };
        let known = [marks(40, 5_000), marks(u64::MAX, u64::MAX), marks(41, 4_000)];
        settle(home.ledger(), &plausible(&known)).await.unwrap();
        let store = RedbStore::open(home.ledger(), CACHE).unwrap();
        let ledger = Ledger::new(Arc::new(store));
        let generation = ledger
            .get::<GenerationRow>(key::generation())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(generation.row.number, 42);
        for (counter, next) in [(Counter::Blob, 5_000), (Counter::Volume, 300)] {
            let row = ledger
                .get::<CounterRow>(key::counter(counter))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(row.row.next, next, "{counter:?}");
        }
        drop(ledger);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
