//! `cairn volume list|show`, `cairn object locate`, `cairn rebuild status|pace`: where data is, when it was last looked at, and what is
//! being made whole.

use super::scrub::ago;
use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::duration::parse_duration;
use crate::output::{say, show};
use crate::size::{format_size, parse_size};
use clap::{Args, Subcommand};
use gateway::admin::places::{Located, UnitDetail, VolumeDetail};
use gateway::admin::server::PaceRequest;
use gateway::admin::status::Status;
use gateway::clock::{Clock, SystemClock};
use gateway::maintenance::rebuild::pace::Wanted;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
/// How often progress is asked for.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Subcommand)]
enum VolumeCommand {
    /// List the volumes
    List(Asked),
    /// Show one volume: the disk of each of its units
    Show {
        #[command(flatten)]
        asked: Asked,
        /// The volume
        volume: u64,
    },
}

#[derive(Args)]
pub struct ObjectArgs {
    #[command(subcommand)]
    command: ObjectCommand,
}

#[derive(Subcommand)]
enum ObjectCommand {
    /// Show where every shard of an object is
    Locate {
        #[command(flatten)]
        asked: Asked,
        /// The bucket
        bucket: String,
        /// The object's key
        key: String,
    },
}

#[derive(Args)]
pub struct RebuildArgs {
    #[command(subcommand)]
    command: RebuildCommand,
}

#[derive(Subcommand)]
enum RebuildCommand {
    /// Show what is being rebuilt
    Status {
        #[command(flatten)]
        asked: Asked,
        /// Show progress until there is nothing left that can be done
        #[arg(long, conflicts_with = "json")]
        wait: bool,
    },
    /// Say how fast rebuilding goes, of this cluster, until somebody says otherwise
    Pace {
        #[command(flatten)]
        asked: Asked,
        #[command(flatten)]
        wanted: PaceArgs,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct PaceArgs {
    /// As fast as clients do not feel it, and `rebuild_floor` at least
    #[arg(long)]
    auto: bool,
    /// So many bytes a second, whatever clients feel
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bandwidth: Option<u64>,
    /// Done in so long a time: as fast as that takes at least, whatever clients feel
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    deadline: Option<Duration>,
}

impl From<PaceArgs> for PaceRequest {
    fn from(args: PaceArgs) -> PaceRequest {
        match (args.bandwidth, args.deadline) {
            (Some(bandwidth), _) => PaceRequest::Bandwidth(bandwidth),
            (_, Some(deadline)) => PaceRequest::DeadlineS(deadline.as_secs()),
            _ => PaceRequest::Auto,
        }
    }
}

#[derive(Args)]
struct Asked {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn volume(args: VolumeArgs) -> CommandResult {
    let (asked, wanted) = match args.command {
        VolumeCommand::List(asked) => (asked, None),
        VolumeCommand::Show { asked, volume } => (asked, Some(volume)),
    };
    let mut volumes: Vec<VolumeDetail> = asked.admin.get_json("/v1/volumes").await?;
    if let Some(wanted) = wanted {
        volumes.retain(|volume| volume.id == wanted);
        if volumes.is_empty() {
            return Err(format!("there is no volume {wanted}").into());
        }
    }
    match (asked.json, wanted) {
        (true, _) => say!("{}", serde_json::to_string(&volumes)?),
        (false, None) => show!("{}", volume_table(&volumes)),
        (false, Some(_)) => {
            show!("{}", volume_table(&volumes));
            volumes.iter().for_each(|volume| show!("{}", units(volume, "  ")));
        }
    }
    Ok(())
}

fn volume_table(volumes: &[VolumeDetail]) -> String {
    let mut out = format!(
        "{:>7}  {:<12} {:<7} {:>5} {:>9}  {}\n",
        "volume", "scheme", "state", "epoch", "a unit", "survives"
    );
    for volume in volumes {
        let survives = match (volume.readable, volume.spare) {
            (false, _) => "cannot be read".into(),
            (true, spare) => format!("{} more losses", spare.max(0)),
        };
        out.push_str(&format!(
            "{:>7}  {:<12} {:<7} {:>5} {:>9}  {survives}\n",
            volume.id,
            volume.scheme,
            volume.state,
            volume.epoch,
            format_size(volume.unit_bytes)
        ));
    }
    out
}

/// The units of an object's volume: where they are, and when they were last looked at.
fn seen_units(volume: &VolumeDetail, now_ms: u64) -> String {
    let seen = |at: Option<u64>| at.map_or_else(|| "not yet".into(), |at| ago(now_ms, at));
    let line = |(line, unit): (&str, &UnitDetail)| {
        let lacked = match unit.census_missing {
            0 => String::new(),
            missing => format!(", lacked {missing} shards then"),
        };
        format!(
            "{line}; disk verified {}, compared with the ledger {}{lacked}\n",
            seen(unit.verified_ms),
            seen(unit.census_ms)
        )
    };
    units(volume, "  ").lines().zip(&volume.units).map(line).collect()
}

fn units(volume: &VolumeDetail, indent: &str) -> String {
    let line = |(index, unit): (usize, &UnitDetail)| {
        let mut notes = vec![unit.state.as_str()];
        if unit.membership != "active" {
            notes.push(&unit.membership);
        }
        if !unit.whole {
            notes.push("being rebuilt there");
        }
        format!("{indent}unit {index:<3} {:<16} {}\n", unit.disk, notes.join(", "))
    };
    volume.units.iter().enumerate().map(line).collect()
}

pub async fn object(args: ObjectArgs) -> CommandResult {
    let ObjectCommand::Locate { asked, bucket, key } = args.command;
    let wanted = serde_json::json!({ "bucket": bucket, "key": key });
    let found: Located = asked.admin.post("/v1/locate", &wanted, PATIENCE).await?;
    if asked.json {
        say!("{}", serde_json::to_string(&found)?);
        return Ok(());
    }
    say!("{}, {} blobs", format_size(found.size), found.blobs.len());
    for blob in &found.blobs {
        say!(
            "blob {} in volume {}, {}: {}, {} stripes of a shard on each",
            blob.blob,
            blob.volume.id,
            blob.volume.scheme,
            format_size(blob.length),
            blob.stripes
        );
        show!("{}", seen_units(&blob.volume, SystemClock.now_ms()));
    }
    Ok(())
}

pub async fn rebuild(args: RebuildArgs) -> CommandResult {
    match args.command {
        RebuildCommand::Status { asked, wait } => rebuild_status(&asked, wait).await,
        RebuildCommand::Pace { asked, wanted } => {
            let request = PaceRequest::from(wanted);
            let wanted: Wanted = asked.admin.post("/v1/rebuild/pace", &request, PATIENCE).await?;
            match asked.json {
                true => say!("{}", serde_json::to_string(&wanted)?),
                false => say!("rebuilding goes {}", super::status::pace(wanted, None)),
            }
            Ok(())
        }
    }
}

async fn rebuild_status(asked: &Asked, wait: bool) -> CommandResult {
    let mut status: Status = asked.admin.get_json("/v1/status").await?;
    if asked.json {
        say!("{}", serde_json::to_string(&status.rebuild)?);
        return Ok(());
    }
    if wait {
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{bar:40} {binary_bytes} of {binary_total_bytes}  {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        while status.rebuild.units > status.rebuild.waiting {
            let rebuild = &status.rebuild;
            bar.set_length(rebuild.done_bytes + rebuild.left_bytes);
            bar.set_position(rebuild.done_bytes);
            let eta = rebuild
                .eta_s
                .map(|seconds| format!(", about {} s", seconds.max(1)));
            bar.set_message(format!("{} units{}", rebuild.units, eta.unwrap_or_default()));
            tokio::time::sleep(WATCH_PERIOD).await;
            status = asked.admin.get_json("/v1/status").await?;
        }
        bar.finish_and_clear();
    }
    match status.rebuild.units {
        0 if status.rebuild.wanted == Wanted::Auto => say!("nothing is to be rebuilt"),
        0 => say!(
            "nothing is to be rebuilt; it would go {}",
            super::status::pace(status.rebuild.wanted, None)
        ),
        _ => say!("{}", super::status::rebuild_row(&status.rebuild)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_readable() {
        let json = r#"[{"id":3,"scheme":"rs(4,2)","state":"sealed","epoch":2,"spare":1,"readable":true,"unit_bytes":1048576,
            "units":[{"disk":"disk-1","state":"online","membership":"active","whole":true,
                      "verified_ms":300000,"census_ms":540000,"census_missing":2},
                     {"disk":"disk-9","state":"online","membership":"draining","whole":false}]}]"#;
        let volumes: Vec<VolumeDetail> = serde_json::from_str(json).expect("volumes");
        let text = volume_table(&volumes) + &units(&volumes[0], "  ") + &seen_units(&volumes[0], 600_000);
        assert!(text.contains("rs(4,2)      sealed      2"), "{text}");
        assert!(text.contains("1 more losses"), "{text}");
        assert!(
            text.contains("disk-9           online, draining, being rebuilt there"),
            "{text}"
        );
        for part in [
            "online; disk verified 5 min ago, compared with the ledger 60 s ago, lacked 2 shards then",
            "rebuilt there; disk verified not yet, compared with the ledger not yet",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
