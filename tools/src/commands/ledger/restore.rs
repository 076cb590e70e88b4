//! `cairn ledger restore`: a ledger from a backup, or from the archive on the cluster's disks.
//!
//! The ledger is made beside its place. Then come the steps after any restore (`archive::restored`): no lease stands, the generation is
//! above every one that a disk obeys, and no id is handed out again that a disk has seen.

use super::reach::{For, Reached, reach};
use crate::CommandResult;
use crate::home::Home;
use crate::kit::{Kit, read_passphrase};
use crate::output::say;
use clap::Args;
use gateway::archive::finding::{Finder, Found};
use gateway::archive::replay::{self, Restored};
use gateway::archive::restored::{self, Places};
use gateway::clock::{Clock, SystemClock, parse_rfc3339, rfc3339};
use gateway::ledger::Ledger;
use gateway::ledger::redb::RedbStore;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage_node::protocol::{ClusterId, LedgerMarks};

type Error = Box<dyn std::error::Error + Send + Sync>;

const CACHE: usize = 64 << 20;

#[derive(Args)]
pub struct RestoreArgs {
    /// The backup
    #[arg(
        value_name = "FILE",
        required_unless_present = "from_disks",
        conflicts_with = "from_disks"
    )]
    file: Option<PathBuf>,
    /// Take the archive that is on the cluster's disks
    #[arg(long)]
    from_disks: bool,
    /// The gateway's directory, without a ledger; with --kit it may be a new one
    #[arg(long, value_name = "DIR", env = "CAIRN_DATA")]
    data: PathBuf,
    /// The recovery kit, for a cluster of nodes; the one in DIR unless somebody says otherwise
    #[arg(long, value_name = "FILE")]
    kit: Option<PathBuf>,
    /// The passphrase of the kit is the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// A disk of a cluster in one process; DIR/disk-* unless somebody says otherwise
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kit", "node"])]
    disk: Vec<PathBuf>,
    /// A node of the cluster, HOST:PORT; those that the kit has unless somebody says otherwise
    #[arg(long, value_name = "HOST:PORT")]
    node: Vec<String>,
    /// As it was at this time, in seconds since 1970 or as 2026-11-30T16:00:00Z; as new as possible otherwise
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<u64>,
}

pub async fn run(args: RestoreArgs) -> CommandResult {
    let home = Home::at(&args.data);
    if home.ledger().exists() {
        return Err(format!(
            "{} is there: move it away first, and keep it until the restored one is known to be right",
            home.ledger().display()
        )
        .into());
    }
    // Its log may have the last commits of a ledger whose other file is gone.
    let log = args.data.join("ledger.redb-log");
    if log.exists() {
        return Err(format!(
            "{} is there, and may have commits of the last second that nothing else has: put back the ledger.redb that belongs to it, or move \
             it away first, and keep it",
            log.display()
        )
        .into());
    }
    let now_ms = SystemClock.now_ms();
    if let Some(at) = args.at.filter(|at| *at > now_ms.saturating_add(999)) {
        return Err(format!(
            "--at {} is yet to come: leave it out for the newest state",
            rfc3339(at)
        )
        .into());
    }
    let passphrase = args.passphrase_file.as_deref().map(read_passphrase).transpose()?;
    let kit = args
        .kit
        .as_deref()
        .map(|path| Kit::read(path, passphrase.as_deref()))
        .transpose()?;
    std::fs::create_dir_all(&args.data).map_err(|e| format!("{}: {e}", args.data.display()))?;
    // A directory that lost its ledger alone keeps its keys and its configuration.
    let is_new = kit.as_ref().is_some_and(|kit| !home.is_of(kit));
    if let Some(kit) = kit.as_ref().filter(|_| is_new) {
        home.restore(kit, SystemClock.now_ms())?;
    }
    let kit = match kit {
        None if home.kit().exists() && args.node.is_empty() => {
            Some(Kit::read(&home.kit(), passphrase.as_deref())?)
        }
        kit => kit,
    };
    let restored = restore(&args, &home, kit.as_ref(), is_new).await;
    if restored.is_err() && is_new {
        // Nothing of it was there before: it can be tried again as it was.
        home.forget_restored();
    }
    restored
}

/// `is_new`: the directory was made of the kit.
async fn restore(args: &RestoreArgs, home: &Home, kit: Option<&Kit>, is_new: bool) -> CommandResult {
    let began = Instant::now();
    let nodes: Vec<String> = match (&args.node[..], kit) {
        ([], Some(kit)) => kit.nodes.clone(),
        (nodes, _) => nodes.to_vec(),
    };
    if home.is_inhabited() && nodes.is_empty() && args.from_disks {
        return Err("no node is known: give --node HOST:PORT for each".into());
    }
    let reached = reach(home, &args.data, &nodes, &args.disk, For::Restoring).await?;
    let (cluster, reached) = match reached {
        Some((cluster, reached)) => (Some(cluster), Some(reached)),
        None => (None, None),
    };
    let (cluster, restored) = match &args.file {
        Some(file) => {
            let backup = super::backup::open(file).await?;
            if cluster.is_some_and(|cluster| cluster != backup.cluster) {
                return Err(format!("the backup is of cluster {}", backup.cluster).into());
            }
            let restored = replay::build(&home.ledger(), &backup.entries, args.at, &backup).await?;
            (backup.cluster, restored)
        }
        None => {
            let (cluster, reached) = cluster
                .zip(reached.as_ref())
                .ok_or("there are no disks to restore from: give --kit FILE for a cluster of nodes, or --disk PATH for each disk")?;
            let finder = Finder::new(cluster, reached.sources.iter().cloned());
            let found = finder.find(0).await;
            report_found(&found, reached);
            let restored = replay::build(&home.ledger(), &found.entries, args.at, &finder).await?;
            (cluster, restored)
        }
    };
    let marks = reached
        .as_ref()
        .map(|reached| reached.marks.clone())
        .unwrap_or_default();
    let marks: Vec<LedgerMarks> = marks.into_iter().filter(LedgerMarks::is_plausible).collect();
    // A backup is put back as it is: the gateway takes what it lacks from the archive when it starts, or only reads.
    let generation = match &args.file {
        None => Some(settle(home, cluster, &marks).await?),
        Some(_) => None,
    };
    if let Some(reached) = reached {
        reached.release().await?;
    }
    if let Some(kit) = kit.filter(|_| is_new) {
        home.complete(&kit.name)?;
    }
    report(&restored, &marks, generation, began.elapsed());
    if is_new {
        say!(
            "Its configuration is the first one again, which listens on this machine alone: look at {}",
            home.config().display()
        );
    }
    Ok(())
}

/// The steps after any restore.
async fn settle(home: &Home, cluster: ClusterId, marks: &[LedgerMarks]) -> Result<u64, Error> {
    let path = home.ledger();
    let store = Arc::new(tokio::task::spawn_blocking(move || RedbStore::open(path, CACHE)).await??);
    let taken = restored::settle(
        &Ledger::new(store.clone()),
        cluster,
        marks,
        Places::ToBeFound,
        Default::default(),
    )
    .await;
    store.shutdown().await;
    Ok(taken?.number)
}

fn report_found(found: &Found, reached: &Reached) {
    say!(
        "{} disks answer, with {} entries of the ledger's archive.",
        reached.sources.len(),
        found.entries.len()
    );
    for away in &reached.away {
        say!("  not there  {away}");
    }
    for (disk, error) in &found.silent {
        say!("  not there  disk {disk}: {error}");
    }
    if !found.unreadable.is_empty() {
        say!("  {} entries cannot be read on any disk", found.unreadable.len());
    }
}

fn report(restored: &Restored, marks: &[LedgerMarks], generation: Option<u64>, took: Duration) {
    let generation = generation.map_or_else(String::new, |number| format!(", generation {number}"));
    say!(
        "The ledger is restored: commit {}, of {}{generation}.\n  \
         from a snapshot of commit {} with {} rows, and {} entries of the log after it, in {:.1} s",
        restored.position,
        rfc3339(restored.at_ms),
        restored.snapshot,
        restored.rows,
        restored.log_entries,
        took.as_secs_f64(),
    );
    for loss in &restored.losses {
        say!("  {loss}");
    }
    let furthest = marks
        .iter()
        .max_by_key(|marks| (marks.generation.number, marks.position));
    if let Some(marks) = furthest.filter(|marks| marks.position > 0) {
        match marks
            .position
            .checked_sub(restored.position)
            .filter(|lost| *lost > 0)
        {
            Some(lost) => say!(
                "  {lost} commits at least came after it{}: disks heard of commit {}",
                if generation.is_empty() {
                    ""
                } else {
                    " and are lost"
                },
                marks.position
            ),
            None => say!(
                "  no disk heard of a later commit; what was acknowledged in the last second may be missing all the same"
            ),
        }
    }
    match generation.is_empty() {
        true => say!(
            "When the gateway starts, it takes what came after it from the archive on the disks; if it cannot, it only reads."
        ),
        false => say!("What the ledger does not name is kept on the disks until somebody decides."),
    }
}

/// Seconds since 1970, or a time as `rfc3339` writes it, in milliseconds since 1970: to its end.
fn parse_time(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return seconds
            .checked_mul(1_000)
            .and_then(|ms| ms.checked_add(999))
            .ok_or_else(|| "too late".into());
    }
    let at = parse_rfc3339(text).ok_or_else(|| {
        format!("{text:?} is neither seconds since 1970 nor a time as 2026-11-30T16:00:00Z")
    })?;
    Ok(at / 1_000 * 1_000 + 999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_796_000_000_000), "2026-11-30T00:53:20Z");
        assert_eq!(rfc3339(951_827_696_000), "2000-02-29T12:34:56Z");
        for seconds in (0..4_000_000_000_u64).step_by(123_456_789) {
            let ms = seconds * 1_000;
            assert_eq!(parse_time(&rfc3339(ms)), Ok(ms + 999), "{seconds}");
            assert_eq!(parse_time(&seconds.to_string()), Ok(ms + 999));
        }
        for wrong in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-11-30 16:00"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
