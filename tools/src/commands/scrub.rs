//! `cairn scrub status|start|pace`: looking for what has rotted, is missing, or is too much.

use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::duration::parse_duration;
use crate::output::{say, show};
use clap::{Args, Subcommand};
use gateway::admin::scrub::{DiskScrub, PaceRequest, ScrubStatus, StartAnswer, StartRequest};
use gateway::clock::{Clock, SystemClock};
use gateway::maintenance::census::record::CensusReport;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
/// How often progress is asked for.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

#[derive(Args)]
pub struct ScrubArgs {
    #[command(subcommand)]
    command: ScrubCommand,
}

#[derive(Subcommand)]
enum ScrubCommand {
    /// Show when each disk was verified, what was found, and the last census
    Status {
        #[command(flatten)]
        admin: AdminArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Verify disks and take a census now
    Start {
        #[command(flatten)]
        admin: AdminArgs,
        /// Verify this disk only, by its name or its id
        #[arg(long, value_name = "DISK")]
        disk: Option<String>,
        /// Show progress until both are over; succeeds if nothing was found
        #[arg(long)]
        wait: bool,
    },
    /// Set in how much time every disk is read once, on all nodes
    Pace {
        #[command(flatten)]
        admin: AdminArgs,
        /// How long: 12h, 7d, 30d
        #[arg(value_name = "CYCLE", value_parser = parse_duration)]
        cycle: Duration,
    },
}

pub async fn run(args: ScrubArgs) -> CommandResult {
    match args.command {
        ScrubCommand::Status { admin, json: true } => say!("{}", admin.get("/v1/scrub").await?),
        ScrubCommand::Status { admin, json: false } => {
            let status: ScrubStatus = admin.get_json("/v1/scrub").await?;
            show!("{}", render(&status, SystemClock.now_ms()));
        }
        ScrubCommand::Pace { admin, cycle } => {
            let wanted = PaceRequest {
                cycle_s: cycle.as_secs(),
            };
            let set: PaceRequest = admin.post("/v1/scrub/pace", &wanted, PATIENCE).await?;
            say!("every disk is read once in {}", span(set.cycle_s));
        }
        ScrubCommand::Start { admin, disk, wait } => return start(&admin, disk, wait).await,
    }
    Ok(())
}

async fn start(admin: &AdminArgs, disk: Option<String>, wait: bool) -> CommandResult {
    let begun: StartAnswer = admin
        .post("/v1/scrub/start", &StartRequest { disk }, PATIENCE)
        .await?;
    for (label, why) in &begun.not {
        say!("{label} is not verified: {why}");
    }
    say!(
        "census {} has begun, and {} disks are verified",
        begun.cycle,
        begun.disks.len()
    );
    if !wait {
        return Ok(());
    }
    let bar = ProgressBar::new(100).with_style(
        ProgressStyle::with_template("{bar:40} {pos} %  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let status = loop {
        let status: ScrubStatus = admin.get_json("/v1/scrub").await?;
        let (percent, message) = progress(&begun, &status);
        bar.set_position(percent);
        bar.set_message(message);
        if is_over(&begun, &status) {
            break status;
        }
        tokio::time::sleep(WATCH_PERIOD).await;
    };
    bar.finish_and_clear();
    show!("{}", render(&status, SystemClock.now_ms()));
    match findings(&begun, &status) {
        found if found.is_empty() => {
            say!("clean");
            Ok(())
        }
        found => Err(format!("not clean: {}", found.join("; ")).into()),
    }
}

/// The disk as it is now, if it is still open as it was.
fn now<'a>(before: &DiskScrub, status: &'a ScrubStatus) -> Option<&'a DiskScrub> {
    let found = status.disks.iter().find(|disk| disk.label == before.label);
    found.filter(|now| now.online && now.opening == before.opening)
}

/// Whether its pass is over, or never will be.
fn is_verified(before: &DiskScrub, status: &ScrubStatus) -> bool {
    let passes = |disk: &DiskScrub| disk.verify.map_or(0, |verify| verify.passes);
    now(before, status).is_none_or(|now| passes(now) > passes(before))
}

fn ended<'a>(begun: &StartAnswer, status: &'a ScrubStatus) -> Option<&'a CensusReport> {
    status
        .last_census
        .as_ref()
        .filter(|last| last.cycle >= begun.cycle)
}

fn is_over(begun: &StartAnswer, status: &ScrubStatus) -> bool {
    ended(begun, status).is_some() && begun.disks.iter().all(|disk| is_verified(disk, status))
}

fn progress(begun: &StartAnswer, status: &ScrubStatus) -> (u64, String) {
    let of_census = match (ended(begun, status), &status.census) {
        (Some(_), _) => 100,
        (None, Some(census)) => (census.volumes * 100 / (status.volumes.max(1) as u64)).min(99),
        (None, None) => 0,
    };
    let of_disk = |disk: &DiskScrub| match (
        is_verified(disk, status),
        now(disk, status).and_then(|now| now.verify),
    ) {
        (true, _) => 100,
        (false, Some(verify)) => u64::from(verify.extents_done) * 100 / u64::from(verify.extents.max(1)),
        (false, None) => 0,
    };
    let least = begun.disks.iter().map(of_disk).min().unwrap_or(100);
    let verified = begun
        .disks
        .iter()
        .filter(|disk| is_verified(disk, status))
        .count();
    let message = format!(
        "census {of_census} %, {verified} of {} disks verified",
        begun.disks.len()
    );
    (least.min(of_census), message)
}

/// What is not as it should be.
fn findings(begun: &StartAnswer, status: &ScrubStatus) -> Vec<String> {
    let mut found: Vec<String> = begun
        .not
        .iter()
        .map(|(label, _)| format!("{label} was not verified"))
        .collect();
    for before in &begun.disks {
        let count = |disk: &DiskScrub| disk.verify.map_or(0, |verify| verify.findings);
        match now(before, status) {
            None => found.push(format!("{} went away", before.label)),
            Some(now) if count(now) > count(before) => {
                found.push(format!(
                    "{} findings on {}",
                    count(now) - count(before),
                    before.label
                ));
            }
            Some(_) => {}
        }
    }
    match ended(begun, status) {
        Some(census) if !census.clean => found.push(census_words(census)),
        _ => {}
    }
    found
}

/// What a census found, in words.
fn census_words(census: &CensusReport) -> String {
    let counts = [
        (census.missing_shards, "shards missing"),
        (census.wrong_shards, "shards of a wrong length"),
        (census.unnamed_blobs, "blobs that nothing names, set aside"),
        (census.stray_units, "units on disks that are not theirs"),
        (census.skipped_units, "units that could not be compared"),
        (census.disks_away, "disks away"),
        (census.suspect_shards, "shards to repair"),
        (census.garbage_blobs, "blobs to delete"),
    ];
    let found = counts.iter().filter(|(count, _)| *count > 0);
    let found: Vec<String> = found.map(|(count, what)| format!("{count} {what}")).collect();
    let found = match found.is_empty() {
        true => "nothing missing, nothing unnamed".into(),
        false => found.join(", "),
    };
    let mut words = found;
    if census.set_aside_blobs > 0 {
        words += &format!("; {} blobs set aside before", census.set_aside_blobs);
    }
    if census.unknown_units > 0 {
        let units = census.unknown_units;
        words += &format!("; {units} units of unknown volumes kept (`cairn unnamed units`)");
    }
    words
}

fn render(status: &ScrubStatus, now_ms: u64) -> String {
    let mut out = match status.verify_cycle_s {
        Some(cycle_s) => format!("pace       every disk is read once in {}\n", span(cycle_s)),
        None => "pace       as each node is configured\n".into(),
    };
    if let Some(census) = &status.census {
        out.push_str(&format!(
            "census     {}, begun {}: {} of {} volumes; {}\n",
            census.cycle,
            ago(now_ms, census.started_ms),
            census.volumes,
            status.volumes,
            census_words(census)
        ));
    }
    match &status.last_census {
        Some(census) => out.push_str(&format!(
            "last       census {}, begun {}, {}: {} units compared; {}\n",
            census.cycle,
            ago(now_ms, census.started_ms),
            if census.clean { "clean" } else { "not clean" },
            census.units,
            census_words(census)
        )),
        None => out.push_str("last       no census has come to its end yet\n"),
    }
    out.push_str(&format!(
        "{:<12} {:<14} {:>8} {:>9}  {}\n",
        "disk", "verified", "pass", "findings", "cycle"
    ));
    for disk in &status.disks {
        let verify = disk.verify.unwrap_or_default();
        let verified = disk
            .verified_ms
            .map_or_else(|| "not yet".into(), |at| ago(now_ms, at));
        let mut notes = vec![match (verify.at_once, verify.cycle_s) {
            (true, _) => "now".to_owned(),
            (false, Some(cycle_s)) => span(cycle_s),
            (false, None) => "none".into(),
        }];
        if !disk.online {
            notes.push("not online".into());
        } else if disk.in_doubt {
            notes.push("opened anew, and not compared yet".into());
        }
        out.push_str(&format!(
            "{:<12} {:<14} {:>6} % {:>9}  {}\n",
            disk.label,
            verified,
            u64::from(verify.extents_done) * 100 / u64::from(verify.extents.max(1)),
            verify.findings,
            notes.join(", ")
        ));
    }
    out
}

/// How long ago, in one unit.
pub fn ago(now_ms: u64, at_ms: u64) -> String {
    format!("{} ago", span(now_ms.saturating_sub(at_ms) / 1_000))
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(passes: u64, findings: u64, census: Option<(u64, u64)>) -> ScrubStatus {
        let last = census.map(|(cycle, missing)| {
            format!(
                r#"{{"cycle":{cycle},"started_ms":1000,"ended_ms":2000,"volumes":2,"units":12,"skipped_units":0,"disks_away":0,
                "missing_shards":{missing},"wrong_shards":0,"unnamed_blobs":0,"set_aside_blobs":3,"surplus_shards":0,
                "stray_units":0,"garbage_blobs":0,"suspect_shards":0,"clean":{}}}"#,
                missing == 0
            )
        });
        let json = format!(
            r#"{{"verify_cycle_s":604800,"volumes":2,"census":null,"last_census":{},"disks":[{{"label":"n/0","online":true,
            "opening":7,"verified_ms":null,"in_doubt":true,"verify":{{"cycle_s":60,"at_once":false,"passes":{passes},
            "extents_done":5,"extents":10,"ended_s_ago":null,"findings":{findings}}}}}]}}"#,
            last.unwrap_or_else(|| "null".into())
        );
        serde_json::from_str(&json).expect("a status")
    }

    #[test]
    fn it_is_over_when_both_are_and_clean_when_nothing_was_found() {
        let begun = StartAnswer {
            cycle: 4,
            disks: status(3, 1, None).disks,
            not: Vec::new(),
        };
        for (status, over, clean) in [
            (status(3, 1, Some((3, 0))), false, true),
            (status(4, 1, Some((3, 0))), false, true),
            (status(3, 1, Some((4, 0))), false, true),
            (status(4, 1, Some((4, 0))), true, true),
            (status(4, 2, Some((4, 0))), true, false),
            (status(4, 1, Some((4, 1))), true, false),
        ] {
            assert_eq!(is_over(&begun, &status), over, "{status:?}");
            assert_eq!(findings(&begun, &status).is_empty(), clean, "{status:?}");
        }
        let gone = ScrubStatus {
            disks: Vec::new(),
            ..status(0, 0, Some((4, 0)))
        };
        assert!(is_over(&begun, &gone) && findings(&begun, &gone) == ["n/0 went away"]);
    }

    #[test]
    fn a_status_is_readable() {
        let text = render(&status(1, 0, Some((4, 2))), 10_000_000);
        for part in [
            "every disk is read once in 7 d",
            "last       census 4, begun 2 h ago, not clean: 12 units compared; 2 shards missing",
            "not yet",
            "opened anew, and not compared yet",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
