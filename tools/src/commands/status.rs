//! `cairn status`: the state of a cluster, for people or as JSON.

use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::output::{say, show};
use crate::size::format_size;
use clap::Args;
use gateway::admin::ledger::LedgerLine;
use gateway::admin::status::{DiskLine, NodeLine, Status};
use gateway::admin::verdict::{Level, Verdict, span};
use gateway::archive::ArchiveStatus;
use gateway::clock::{Clock, SystemClock};
use gateway::maintenance::rebuild::RebuildStatus;
use gateway::maintenance::rebuild::pace::Wanted;
use std::time::Duration;

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(args: StatusArgs) -> CommandResult {
    let body = match args.admin.get("/v1/status").await {
        Err(error) if !args.json => return Err(Standing::Unreachable(error.to_string()).into()),
        body => body?,
    };
    if args.json {
        say!("{body}");
        return Ok(());
    }
    let status: Status = serde_json::from_str(&body)?;
    show!("{}", render(&status));
    match status.verdict.level {
        Level::Ok => Ok(()),
        Level::Attention => Err(Standing::Attention.into()),
        Level::Risk | Level::Loss => Err(Standing::Risk.into()),
    }
}

/// What is not well, for the exit code.
#[derive(Debug, thiserror::Error)]
pub enum Standing {
    /// Somebody should look.
    #[error("attention")]
    Attention,
    /// Something is lost, or would be with the next loss.
    #[error("risk")]
    Risk,
    /// Nothing is known.
    #[error("{0}")]
    Unreachable(String),
}

impl Standing {
    /// 1: attention, 2: worse, or not known.
    pub fn code(&self) -> u8 {
        match self {
            Standing::Attention => 1,
            Standing::Risk | Standing::Unreachable(_) => 2,
        }
    }
}

/// The first lines.
fn verdict_rows(verdict: &Verdict) -> Vec<String> {
    let word = match verdict.level {
        Level::Ok => "OK",
        Level::Attention => "ATTENTION",
        Level::Risk => "AT RISK",
        Level::Loss => "LOSS",
    };
    let since = match (verdict.level, SystemClock.now_ms().checked_sub(verdict.since_ms)) {
        (Level::Ok, _) | (_, None) => String::new(),
        (_, Some(ms)) => format!(", for {}", span(ms / 1_000)),
    };
    let mut rows = vec![format!("verdict   {word}{since}: {}", verdict.words)];
    rows.extend(verdict.next.iter().map(|next| format!("next      {next}")));
    rows.extend(verdict.hints.iter().map(|hint| format!("hint      {hint}")));
    rows
}

fn render(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let writes = match &status.write_scheme {
        Some(scheme) if *scheme == status.scheme => String::new(),
        Some(scheme) => format!(", new objects {scheme} for now"),
        None => ", writes refused: too few disks".into(),
    };
    verdict_rows(&status.verdict).into_iter().for_each(&mut line);
    line(format!("cluster   scheme {}{writes}", status.scheme));
    line(format!("kernel    {}", status.kernel));
    line(ledger_row(&status.ledger));
    line(archive_row(&status.archive));
    damage_row(&status.ledger).into_iter().for_each(&mut line);
    let capacity = &status.capacity;
    line(format!(
        "capacity  {} in all, {} free, {} of live shards",
        format_size(capacity.total_bytes),
        format_size(capacity.free_bytes),
        format_size(capacity.live_bytes)
    ));
    line(String::new());
    if !status.nodes.is_empty() {
        line(node_table(&status.nodes));
    }
    line(disk_table(&status.disks));
    status.disks.iter().filter_map(wrong_row).for_each(&mut line);
    for volumes in &status.volumes {
        line(format!(
            "volumes   {:>5} {} {}",
            volumes.count, volumes.state, volumes.scheme
        ));
    }
    let (degraded, queued) = (&status.degraded, &status.queued);
    line(format!(
        "degraded  {} disks, {} volumes, {} of them unreadable for now",
        degraded.disks, degraded.volumes, degraded.unreadable_volumes
    ));
    line(format!(
        "queued    {} blobs to delete, {} shards to repair, {} id ranges to sweep; {} requests, {} in flight",
        queued.garbage_blobs + queued.abandoned_blobs,
        queued.suspect_shards,
        queued.orphan_ranges,
        queued.requests,
        format_size(queued.in_flight_bytes.iter().sum())
    ));
    if queued.unnamed_blobs > 0 {
        let stopped = queued
            .unnamed_stopped
            .as_ref()
            .map(|why| format!("; none goes by itself: {why}"));
        line(format!(
            "unnamed   {} blobs, {}, that nothing names are set aside (`cairn unnamed list`){}",
            queued.unnamed_blobs,
            format_size(queued.unnamed_bytes),
            stopped.unwrap_or_default()
        ));
    }
    if let (count @ 1.., Some(why)) = (queued.repairs_in_vain, &queued.repair_failure) {
        line(format!(
            "repair    {count} shards tried in vain, to be tried again: {why}"
        ));
    }
    if status.rebuild.units > 0 {
        line(rebuild_row(&status.rebuild));
    }
    if let Some(rebalance) = &status.rebalance {
        line(format!(
            "rebalance {} units on their way, until all disks are within {} % of the mean",
            rebalance.units,
            f64::from(rebalance.within_permille) / 10.0
        ));
    }
    if let (blobs @ 1.., Some(first)) = (degraded.unreadable_blobs, &degraded.unreadable_first) {
        line(format!(
            "gone      too many shards of {blobs} blobs; the first one is of {first}"
        ));
    }
    for worker in &status.workers {
        let failing = worker.failing_s.map(|seconds| format!(", for {}", span(seconds)));
        let restarts = match worker.restarts {
            0 => String::new(),
            times => format!(", started again {times} times"),
        };
        let failing = failing.unwrap_or_default();
        line(format!(
            "worker    {:<9} {}{failing}{restarts}",
            worker.name, worker.state
        ));
    }
    out
}

/// The ledger's archive, in a line.
fn archive_row(archive: &ArchiveStatus) -> String {
    if !archive.on {
        return "archive   none: this ledger is not archived on the disks".into();
    }
    let snapshots = match (archive.snapshots, &archive.due) {
        (0, _) => "no snapshot yet".to_owned(),
        (1, None) => "1 snapshot".into(),
        (count, None) => format!("{count} snapshots"),
        (1, Some(why)) => format!("1 snapshot, a new one is due: {why}"),
        (count, Some(why)) => format!("{count} snapshots, a new one is due: {why}"),
    };
    let behind = match (archive.behind_s, &archive.error) {
        (0, _) => format!("{} commits behind", archive.behind_commits),
        (seconds, error) => format!(
            "{} commits and {seconds} s behind: {}",
            archive.behind_commits,
            error.as_deref().unwrap_or("it looks where it ends")
        ),
    };
    let copies = archive.copies;
    format!(
        "archive   at commit {} on {copies} disks, {behind}, {snapshots}; {} of live shards are its",
        archive.shipped,
        format_size(archive.held_bytes)
    )
}

/// The ledger, in a line.
fn ledger_row(ledger: &LedgerLine) -> String {
    if let Some(why) = &ledger.unavailable {
        let seconds = ledger.unavailable_s.unwrap_or_default();
        return format!(
            "ledger    unavailable for {seconds} s: {why}; it is tried again, and what is below is what is known without it"
        );
    }
    let Some(room) = &ledger.room else {
        return format!("ledger    at commit {}", ledger.position);
    };
    let uploads = match room.admits_uploads {
        true => "",
        false => "; uploads are refused until there is more, deletes and reads go on",
    };
    format!(
        "ledger    at commit {}, {} free on its filesystem, {} of {} kept for it{uploads}",
        ledger.position,
        format_size(room.free_bytes),
        format_size(room.reserve_bytes),
        format_size(room.reserve_wanted_bytes)
    )
}

/// What is damaged of the ledger, in a line, if anything is or was.
fn damage_row(ledger: &LedgerLine) -> Option<String> {
    let damage = ledger.damage.as_ref()?;
    if damage.is_any() {
        let waits = damage.repair.waits.as_ref();
        let waits = waits.map(|why| format!("\nledger    not repaired yet: {why}"));
        return Some(format!(
            "ledger    DAMAGED: {} rows, {} pages ({}); nothing is deleted until it is repaired from the archive{}",
            damage.rows,
            damage.pages,
            damage.words.join("; "),
            waits.unwrap_or_default()
        ));
    }
    (damage.corrected > 0).then(|| {
        format!(
            "ledger    {} wrong bits of its file were set right since the start: look at its disk and memory",
            damage.corrected
        )
    })
}

/// What is being rebuilt, in a line.
pub fn rebuild_row(rebuild: &RebuildStatus) -> String {
    let eta = match rebuild.eta_s {
        Some(seconds) => format!("about {} s", seconds.max(1)),
        None => "not known yet".into(),
    };
    let waiting = match rebuild.waiting {
        0 => String::new(),
        waiting => format!(", {waiting} of them wait for a disk or for sources"),
    };
    format!(
        "rebuild   {} units{waiting}; {} to write, {} written; ready in {eta}; {}{}",
        rebuild.units,
        format_size(rebuild.left_bytes),
        format_size(rebuild.done_bytes),
        rebuild
            .rate
            .map(|rate| format!("{}/s, ", format_size(rate)))
            .unwrap_or_default(),
        pace(rebuild.wanted, rebuild.limit)
    )
}

/// What a disk has answered wrongly, if anything.
fn wrong_row(disk: &DiskLine) -> Option<String> {
    let what = disk.last_wrong.as_ref()?;
    let kinds: Vec<String> = disk
        .wrong_answers
        .iter()
        .map(|(kind, n)| format!("{n} {kind}"))
        .collect();
    let node = disk.node.as_ref().map(|node| format!(" of node {node}"));
    Some(format!(
        "wrong     disk {}{}: {} wrong answers since start ({}), the last {} s ago: {what}",
        disk.label,
        node.unwrap_or_default(),
        disk.wrong_answers.values().sum::<u64>(),
        kinds.join(", "),
        disk.last_wrong_s.unwrap_or_default()
    ))
}

/// How fast rebuilding may go, and at the most for now.
pub fn pace(wanted: Wanted, limit: Option<u64>) -> String {
    let limit = match limit {
        Some(limit) => format!(", {}/s for now", format_size(limit)),
        None => String::new(),
    };
    match wanted {
        Wanted::Auto => format!("as fast as clients do not feel it{limit}"),
        Wanted::Bandwidth(bytes) => format!("at {}/s", format_size(bytes)),
        Wanted::Deadline(at_ms) => {
            let left = Duration::from_millis(at_ms.saturating_sub(SystemClock.now_ms()));
            format!(
                "as fast as it takes to be done in {} min{limit}",
                left.as_secs().div_ceil(60)
            )
        }
    }
}

/// Disks for people.
pub fn disk_table(disks: &[DiskLine]) -> String {
    let mut out = format!(
        "{:<10} {:<8} {:>10} {:>10} {:>10} {:>9} {:>8}  backend\n",
        "disk", "state", "capacity", "free", "live", "shards", "corrupt"
    );
    disks
        .iter()
        .for_each(|disk| out.push_str(&format!("{}\n", disk_row(disk))));
    out
}

/// Nodes for people.
pub fn node_table(nodes: &[NodeLine]) -> String {
    let mut out = format!(
        "{:<10} {:<8} {:<21} {:<16} disks\n",
        "node", "state", "address", "rack, zone"
    );
    for node in nodes {
        let place: Vec<&str> = [node.rack.as_str(), node.zone.as_str()]
            .into_iter()
            .filter(|l| !l.is_empty())
            .collect();
        let blank = match node.disks_blank {
            0 => String::new(),
            blank => format!(", {blank} blank"),
        };
        let reason = node.reason.as_ref().map(|why| format!("  {why}"));
        let row = format!(
            "{:<10} {:<8} {:<21} {:<16} {} of {} online{blank}{}",
            node.name,
            node.state,
            node.address,
            place.join(", "),
            node.disks_online,
            node.disks,
            reason.unwrap_or_default()
        );
        out.push_str(&row);
        out.push('\n');
    }
    out
}

fn disk_row(disk: &DiskLine) -> String {
    let state = match disk.membership.as_str() {
        "" | "active" => disk.state.as_str(),
        decided if disk.state == "online" => decided,
        "draining" => disk.state.as_str(),
        decided => decided,
    };
    let reason = disk
        .reason
        .as_deref()
        .or(disk.backend.as_deref())
        .unwrap_or_default();
    format!(
        "{:<10} {:<8} {:>10} {:>10} {:>10} {:>9} {:>8}  {reason}",
        disk.label,
        state,
        format_size(disk.capacity_bytes),
        format_size(disk.free_bytes),
        format_size(disk.live_bytes),
        disk.shards,
        disk.corrupt_shards
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_readable() {
        let json = r#"{"scheme":"rs(4,2)","write_scheme":"rs(3,2)","kernel":"avx2","healthy":false,
            "disks":[{"label":"disk-0","id":"00","state":"down","reason":"file was removed","path":null,"backend":null,
                "capacity_bytes":1073741824,"free_bytes":0,"live_bytes":0,"shards":7,"corrupt_shards":1,"node":"n1",
                "wrong_answers":{"bytes":3,"missing":1},"last_wrong":"bytes: block 2","last_wrong_s":4}],
            "volumes":[{"scheme":"rs(4,2)","state":"open","count":2}],
            "capacity":{"total_bytes":1073741824,"free_bytes":5,"live_bytes":0},
            "degraded":{"disks":1,"volumes":2,"unreadable_volumes":0},
            "queued":{"garbage_blobs":3,"abandoned_blobs":1,"suspect_shards":2,"orphan_ranges":0,"requests":1,
                "unnamed_blobs":5,"unnamed_bytes":2048,"unnamed_stopped":"too many","in_flight_bytes":[1024,0,0]},
            "workers":[{"name":"repair","state":"idle","steps":4}]}"#;
        let mut status: Status = serde_json::from_str(json).expect("a status");
        assert!(
            render(&status).starts_with("verdict   OK: "),
            "one of before has no verdict"
        );
        status.verdict = Verdict {
            level: Level::Risk,
            words: "2 volumes survive no further loss".into(),
            since_ms: SystemClock.now_ms() - 720_500,
            next: Some("wait".into()),
            hints: vec!["disk-9 is empty".into()],
            ..Verdict::default()
        };
        status.workers[0].failing_s = Some(300);
        status.workers[0].restarts = 3;
        let text = render(&status);
        let first = "verdict   AT RISK, for 12 min: 2 volumes survive no further loss\nnext      wait\nhint      disk-9 is empty\n";
        assert!(text.starts_with(first), "{text}");
        assert!(
            text.contains("worker    repair    idle, for 5 min, started again 3 times"),
            "{text}"
        );
        assert!(text.contains("new objects rs(3,2) for now"), "{text}");
        assert!(text.contains("file was removed"), "{text}");
        assert!(text.contains("4 blobs to delete, 2 shards to repair"), "{text}");
        let unnamed = "5 blobs, 2 KiB, that nothing names are set aside (`cairn unnamed list`); none goes by itself: too many";
        assert!(text.contains(unnamed), "{text}");
        let wrong = "disk disk-0 of node n1: 4 wrong answers since start (3 bytes, 1 missing), the last 4 s ago: bytes: block 2";
        assert!(text.contains(wrong), "{text}");
    }
}
