//! `cairn unnamed`: what disks hold and no row of the ledger names. The list, letting go of it, and making an object of it again.

use super::disk_online::agreed;
use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::duration::parse_duration;
use crate::output::{say, show};
use crate::size::format_size;
use clap::{Args, Subcommand};
use gateway::admin::strays::{DropPlan, DropRequest, StrayUnits, UnitName, Why};
use gateway::admin::unnamed::{
    ObjectName, PurgePlan, PurgeRequest, RestoreRequest, Restored, UnnamedLine, UnnamedPage,
};
use gateway::clock::{Clock, SystemClock};
use gateway::maintenance::unnamed::keep::Keep;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
/// All objects are read, to see what names a blob.
const PLAN_PATIENCE: Duration = Duration::from_secs(1_800);
/// So many lines are printed, unless all are asked for.
const LINES_MAX: usize = 1_000;

#[derive(Args)]
pub struct UnnamedArgs {
    #[command(subcommand)]
    command: UnnamedCommand,
}

#[derive(Subcommand)]
enum UnnamedCommand {
    /// Show what is set aside, since when, and when it goes
    List {
        #[command(flatten)]
        admin: AdminArgs,
        /// Show all of it, however much
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make an object of a blob that is set aside, or give back its row to objects that name it
    Restore {
        #[command(flatten)]
        admin: AdminArgs,
        /// The blob
        #[arg(value_name = "VOLUME/BLOB", value_parser = parse_blob)]
        blob: (u64, u64),
        /// The name that it gets; not for a blob that objects name
        #[arg(value_name = "BUCKET/KEY", value_parser = parse_object)]
        object: Option<ObjectName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let go of blobs now
    Purge {
        #[command(flatten)]
        admin: AdminArgs,
        /// Which
        #[arg(value_name = "VOLUME/BLOB", value_parser = parse_blob, required_unless_present = "all")]
        blobs: Vec<(u64, u64)>,
        /// All that are set aside and that no object names
        #[arg(long, conflicts_with = "blobs")]
        all: bool,
        /// Show the plan, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show units on disks for which the ledger does not name them
    Units {
        #[command(flatten)]
        admin: AdminArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let go of such units, and of all that is in them
    DropUnits {
        #[command(flatten)]
        admin: AdminArgs,
        /// Which
        #[arg(value_name = "DISK/VOLUME.INDEX", value_parser = parse_unit, required_unless_present = "all")]
        units: Vec<UnitName>,
        /// All but those with shards that are lacking where the ledger has them
        #[arg(long, conflicts_with = "units")]
        all: bool,
        /// Show the plan, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set how long it is kept
    Keep {
        #[command(flatten)]
        admin: AdminArgs,
        /// For how long gateways run before it goes: 24h, 7d
        #[arg(value_name = "TIME", value_parser = parse_duration)]
        time: Duration,
        /// How many complete censuses have to find it
        #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1_000))]
        censuses: u32,
    },
}

fn parse_blob(text: &str) -> Result<(u64, u64), String> {
    let parsed = text
        .split_once('/')
        .and_then(|(volume, blob)| Some((volume.parse().ok()?, blob.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is not VOLUME/BLOB, as 12/3456"))
}

fn parse_object(text: &str) -> Result<ObjectName, String> {
    let named = text
        .split_once('/')
        .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty());
    let (bucket, key) = named.ok_or_else(|| format!("{text:?} is not BUCKET/KEY"))?;
    Ok(ObjectName {
        bucket: bucket.into(),
        key: key.into(),
    })
}

fn parse_unit(text: &str) -> Result<UnitName, String> {
    let parsed = text.rsplit_once('/').and_then(|(disk, unit)| {
        let (volume, index) = unit.split_once('.')?;
        Some(UnitName {
            disk: disk.into(),
            volume: volume.parse().ok()?,
            index: index.parse().ok()?,
        })
    });
    parsed.ok_or_else(|| format!("{text:?} is not DISK/VOLUME.INDEX, as disk-1/12.3"))
}

pub async fn run(args: UnnamedArgs) -> CommandResult {
    match args.command {
        UnnamedCommand::List { admin, all, json } => list(&admin, all, json).await,
        UnnamedCommand::Restore {
            admin,
            blob: (volume, blob),
            object,
            json,
        } => {
            let request = RestoreRequest { volume, blob, object };
            let restored: Restored = admin.post("/v1/unnamed/restore", &request, PLAN_PATIENCE).await?;
            match json {
                true => say!("{}", serde_json::to_string(&restored)?),
                false => show!("{}", render_restored(&restored)),
            }
            Ok(())
        }
        UnnamedCommand::Purge {
            admin,
            blobs,
            all: _,
            dry_run,
            yes,
            json,
        } => {
            let mut request = PurgeRequest { blobs, plan: None };
            let plan: PurgePlan = admin.post("/v1/unnamed/purge", &request, PLAN_PATIENCE).await?;
            if !json {
                show!("{}", render_plan(&plan));
            }
            if !dry_run && plan.blobs > 0 {
                if let Some(why) = &plan.refused {
                    return Err(why.as_str().into());
                }
                if !yes && !agreed()? {
                    return Err("nothing was done".into());
                }
                request.plan = Some(plan.plan.clone());
                let _: PurgePlan = admin.post("/v1/unnamed/purge", &request, PLAN_PATIENCE).await?;
                if !json {
                    say!("they are being deleted: `cairn status` says how many are left");
                }
            }
            if json {
                say!("{}", serde_json::to_string(&plan)?);
            }
            Ok(())
        }
        UnnamedCommand::Units { admin, json } => {
            let units: StrayUnits = admin.get_json("/v1/unnamed/units").await?;
            match json {
                true => say!("{}", serde_json::to_string(&units)?),
                false => show!("{}", render_units(&units)),
            }
            Ok(())
        }
        UnnamedCommand::DropUnits {
            admin,
            units,
            all: _,
            dry_run,
            yes,
            json,
        } => {
            let mut request = DropRequest { units, plan: None };
            let path = "/v1/unnamed/units/drop";
            let plan: DropPlan = admin.post(path, &request, PLAN_PATIENCE).await?;
            if !json {
                show!("{}", render_drop(&plan));
            }
            if !dry_run && plan.units > 0 {
                if let Some(why) = &plan.refused {
                    return Err(why.as_str().into());
                }
                if !yes && !agreed()? {
                    return Err("nothing was done".into());
                }
                request.plan = Some(plan.plan.clone());
                let _: DropPlan = admin.post(path, &request, PLAN_PATIENCE).await?;
                if !json {
                    say!("they are gone");
                }
            }
            if json {
                say!("{}", serde_json::to_string(&plan)?);
            }
            Ok(())
        }
        UnnamedCommand::Keep {
            admin,
            time,
            censuses,
        } => {
            let keep = Keep {
                keep_s: time.as_secs(),
                censuses,
            };
            let keep: Keep = admin.post("/v1/unnamed/keep", &keep, PATIENCE).await?;
            say!("{}", render_keep(&keep));
            Ok(())
        }
    }
}

async fn list(admin: &AdminArgs, all: bool, json: bool) -> CommandResult {
    let mut page: UnnamedPage = admin.get_json("/v1/unnamed").await?;
    while let Some(next) = page.next.clone().filter(|_| all || page.lines.len() < LINES_MAX) {
        let more: UnnamedPage = admin.get_json(&format!("/v1/unnamed?after={next}")).await?;
        page.lines.extend(more.lines);
        page.next = more.next;
    }
    match json {
        true => say!("{}", serde_json::to_string(&page)?),
        false => show!("{}", render(&page, SystemClock.now_ms())),
    }
    Ok(())
}

/// A span of time in its largest whole units.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn render_keep(keep: &Keep) -> String {
    format!(
        "what nothing names is kept until gateways have run {} more, and {} complete censuses have found it",
        span(keep.keep_s),
        keep.censuses
    )
}

fn render(page: &UnnamedPage, now_ms: u64) -> String {
    let mut out = format!("{}\n", render_keep(&page.keep));
    if page.unknown_units > 0 {
        out.push_str(&format!(
            "{} units of volumes that the ledger does not know: `cairn unnamed units`\n",
            page.unknown_units
        ));
    }
    if page.lines.is_empty() {
        return out + "nothing is set aside\n";
    }
    let blobs = page.blobs.max(page.lines.len() as u64);
    out.push_str(&format!("{blobs} blobs, {}\n", format_size(page.bytes)));
    if let Some(why) = &page.stopped {
        out.push_str(&format!("NOTHING GOES BY ITSELF: {why}\n"));
    }
    out.push_str(&format!(
        "{:<16} {:>10} {:>6}  {:<14} {:<13} {:>8}  GOES\n",
        "VOLUME/BLOB", "BYTES", "UNITS", "SEEN", "FOUND BY", "CENSUSES"
    ));
    for line in &page.lines {
        let seen = span(now_ms.saturating_sub(line.seen_ms) / 1_000);
        out.push_str(&format!(
            "{:<16} {:>10} {:>6}  {:<14} {:<13} {:>8}  {}\n",
            format!("{}/{}", line.volume, line.blob),
            format_size(line.bytes),
            line.units.len(),
            format!("{seen} ago"),
            line.found_by,
            line.censuses,
            goes(line)
        ));
    }
    if page.next.is_some() {
        out.push_str("and more: `--all` shows them\n");
    }
    out
}

/// When a blob goes, in words.
fn goes(line: &UnnamedLine) -> String {
    if let Some(why) = &line.kept {
        return format!("kept: {why}");
    }
    let censuses = match line.censuses_left {
        0 => None,
        1 => Some("one more census".to_owned()),
        more => Some(format!("{more} more censuses")),
    };
    let time = (line.run_s_left > 0).then(|| span(line.run_s_left));
    match (time, censuses) {
        (None, None) => "now".into(),
        (Some(time), None) => format!("in {time}"),
        (None, Some(censuses)) => format!("after {censuses}"),
        (Some(time), Some(censuses)) => format!("in {time}, after {censuses}"),
    }
}

fn render_plan(plan: &PurgePlan) -> String {
    let mut out = format!(
        "plan       purge {} blobs, {}, for good\n",
        plan.blobs,
        format_size(plan.bytes)
    );
    let mut line = |name: &str, text: String| out.push_str(&format!("{name:<10} {text}\n"));
    if plan.of_another_ledger > 0 {
        line(
            "among them",
            format!(
                "{} that may be of a ledger that was given up",
                plan.of_another_ledger
            ),
        );
    }
    for named in &plan.named {
        line("LOSES", named.clone());
    }
    if plan.left > 0 {
        line(
            "stay",
            format!(
                "{} that objects name: `cairn unnamed restore` gives them back their rows",
                plan.left
            ),
        );
    }
    if let Some(why) = &plan.refused {
        line("refused", why.clone());
    }
    out
}

fn render_units(found: &StrayUnits) -> String {
    let mut out = String::new();
    if found.units.is_empty() {
        out += "every unit is where the ledger has it\n";
    } else {
        out += &format!(
            "{:<24} {:>8} {:>10}  WHY\n",
            "DISK/VOLUME.INDEX", "SHARDS", "BYTES"
        );
    }
    for unit in &found.units {
        let why = match unit.why {
            Why::UnknownVolume => {
                "the ledger does not know its volume: kept until `cairn unnamed drop-units`"
            }
            Why::Moved => "it moved, and all of it is where the ledger has it: goes by itself",
            Why::Needed => "not all of it is where the ledger has it: kept",
        };
        out += &format!(
            "{:<24} {:>8} {:>10}  {why}\n",
            format!("{}/{}.{}", unit.disk, unit.volume, unit.index),
            unit.shards,
            format_size(unit.bytes)
        );
    }
    if found.found > found.units.len() as u64 {
        out += &format!("and {} more\n", found.found - found.units.len() as u64);
    }
    if !found.away.is_empty() {
        out += &format!("not asked, because they are away: {}\n", found.away.join(", "));
    }
    out
}

fn render_drop(plan: &DropPlan) -> String {
    let mut out = format!(
        "plan       drop {} units, {} shards, {}, for good\n",
        plan.units,
        plan.shards,
        format_size(plan.bytes)
    );
    let mut line = |name: &str, text: String| out.push_str(&format!("{name:<10} {text}\n"));
    if plan.unknown > 0 {
        line(
            "among them",
            format!(
                "{} of volumes that only a ledger that was given up may know",
                plan.unknown
            ),
        );
    }
    for needed in &plan.needed {
        line(
            "LOSES",
            format!("{needed}: shards that are lacking where the ledger has them"),
        );
    }
    if plan.left > 0 {
        line(
            "stay",
            format!("{} with shards that are lacking elsewhere", plan.left),
        );
    }
    if !plan.away.is_empty() {
        line("not asked", plan.away.join(", "));
    }
    if let Some(why) = &plan.refused {
        line("refused", why.clone());
    }
    out
}

fn render_restored(restored: &Restored) -> String {
    let mut out = format!("{} is there again, {} bytes\n", restored.object, restored.length);
    restored
        .notes
        .iter()
        .for_each(|note| out.push_str(&format!("note       {note}\n")));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway::admin::strays::StrayUnit;

    fn line() -> UnnamedLine {
        UnnamedLine {
            volume: 3,
            blob: 77,
            bytes: 6 << 20,
            shards: 6,
            units: vec![0, 1, 2, 3, 4, 5],
            seen_ms: 1_000,
            censuses: 2,
            found_by: "census".into(),
            censuses_left: 1,
            run_s_left: 7_200,
            kept: None,
        }
    }

    #[test]
    fn the_list_says_when_it_goes_or_why_not() {
        let mut page = UnnamedPage {
            keep: Keep {
                keep_s: 86_400,
                censuses: 3,
            },
            blobs: 1,
            bytes: 6 << 20,
            stopped: None,
            unknown_units: 0,
            lines: vec![line()],
            next: None,
        };
        let text = render(&page, 3_601_000);
        for part in [
            "run 24 h more, and 3",
            "3/77",
            "6 MiB",
            "60 min ago",
            "in 2 h, after one more census",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        page.stopped = Some("too much".into());
        page.lines[0].kept = Some("a/b names it".into());
        let text = render(&page, 3_601_000);
        assert!(text.contains("NOTHING GOES BY ITSELF: too much"), "{text}");
        assert!(text.contains("kept: a/b names it"), "{text}");
        page.lines.clear();
        page.unknown_units = 7;
        let text = render(&page, 0);
        assert!(text.contains("nothing is set aside"), "{text}");
        assert!(
            text.contains("7 units of volumes that the ledger does not know"),
            "{text}"
        );
    }

    #[test]
    fn a_plan_says_what_it_costs() {
        let plan = PurgePlan {
            plan: "00".into(),
            blobs: 3,
            bytes: 3 << 20,
            of_another_ledger: 1,
            named: vec!["3/77: a/b".into()],
            left: 2,
            refused: None,
        };
        let text = render_plan(&plan);
        for part in [
            "purge 3 blobs, 3 MiB",
            "1 that may be",
            "LOSES      3/77: a/b",
            "2 that objects name",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn units_are_listed_with_why_and_what_dropping_them_costs() {
        let unit = |index, why| StrayUnit {
            disk: "disk-1".into(),
            volume: 12,
            index,
            shards: 3,
            bytes: 3 << 20,
            why,
        };
        let mut units = StrayUnits {
            units: vec![
                unit(0, Why::UnknownVolume),
                unit(1, Why::Moved),
                unit(2, Why::Needed),
            ],
            found: 5,
            away: vec!["disk-9".into()],
        };
        let text = render_units(&units);
        for part in [
            "disk-1/12.0",
            "3 MiB",
            "goes by itself",
            "12.2 ",
            "and 2 more",
            "disk-9",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        units.units.clear();
        units.found = 0;
        assert!(render_units(&units).contains("every unit is where the ledger has it"));
        let plan = DropPlan {
            plan: "00".into(),
            units: 3,
            shards: 9,
            bytes: 9 << 20,
            unknown: 1,
            needed: vec!["disk-1/12.2".into()],
            left: 2,
            away: vec!["disk-9".into()],
            refused: Some("the ledger is behind".into()),
        };
        let text = render_drop(&plan);
        for part in [
            "drop 3 units, 9 shards, 9 MiB",
            "1 of volumes",
            "LOSES      disk-1/12.2",
            "stay       2",
            "refused    the ledger is behind",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn blobs_and_objects_are_parsed() {
        assert_eq!(parse_blob("3/77"), Ok((3, 77)));
        assert!(parse_blob("3").is_err() && parse_blob("a/b").is_err());
        let object = parse_object("b/a/c").map(|name| (name.bucket, name.key));
        assert_eq!(object, Ok(("b".into(), "a/c".into())));
        assert!(parse_object("b/").is_err() && parse_object("b").is_err());
        let unit = parse_unit("rack/node-1/12.3").map(|unit| (unit.disk, unit.volume, unit.index));
        assert_eq!(unit, Ok(("rack/node-1".into(), 12, 3)));
        assert!(
            parse_unit("disk-1/12").is_err() && parse_unit("12.3").is_err() && parse_unit("a/1.256").is_err()
        );
    }
}
