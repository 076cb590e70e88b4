//! `cairn disk`: looks at a disk that nobody serves. Reading and deciding is in `storage_node::offline`; this prints. The
//! disks of a cluster that runs are in [`disk_online`].
//!
//! Exit codes, for scripts: 0 all is well, 1 `verify` found damage, 2 the disk cannot be read.

use super::{decide, disk_online};
use crate::CommandResult;
use crate::output::{say, show};
use crate::size::format_size;
use clap::{Args, Subcommand};
use gateway::admin::operations::Action;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use storage_node::offline::{
    self, Disk, ExtentUse, Finding, Inspection, Probe, Progress, RecordFilter, RecordLine, Severity,
    Verification,
};
use storage_node::protocol::UnitId;

/// Findings that are printed for people; `--json` has more.
const FINDINGS_PRINTED_MAX: usize = 100;

#[derive(Args)]
pub struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Subcommand)]
enum DiskCommand {
    /// List the disks of a cluster, and blank ones that could be added
    List(disk_online::ListArgs),
    /// Make blank disks of nodes the cluster's
    Add(disk_online::AddArgs),
    /// Copy what a disk holds elsewhere while it serves; nothing new goes there
    Drain(decide::DecideArgs),
    /// Give a disk up now: what it holds is rebuilt from the others
    Retire(decide::DecideArgs),
    /// Put a blank disk in a disk's place: add the one, retire the other
    Replace(decide::ReplaceArgs),
    /// Undo a drain, or a retirement before everything was rebuilt
    Activate(decide::DecideArgs),
    /// Forget a disk that was drained or retired, and holds nothing
    Remove(decide::DecideArgs),
    /// What a file or block device and the kernel offer, and what Cairn would use
    Probe(ProbeArgs),
    /// What a disk holds: superblocks, extents, units, records
    Inspect(InspectArgs),
    /// Check everything that has a checksum. Exit code 0: clean, 1: damage, 2: cannot be read
    Verify(VerifyArgs),
}

#[derive(Args)]
struct ProbeArgs {
    /// A file or block device
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct InspectArgs {
    /// A file or block device
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List every record of this blob, or of one stripe of it
    #[arg(long, value_name = "BLOB[/STRIPE]", value_parser = parse_filter)]
    record: Option<RecordFilter>,
    /// List every extent in use (with --json: every extent)
    #[arg(long)]
    extents: bool,
}

#[derive(Args)]
struct VerifyArgs {
    /// A file or block device
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The disk cannot be opened, is in use, or is not Cairn's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotRead(pub String);

pub async fn run(args: DiskArgs) -> CommandResult {
    match args.command {
        DiskCommand::List(args) => disk_online::list(args).await,
        DiskCommand::Add(args) => disk_online::add(args).await,
        DiskCommand::Drain(args) => decide::disk(args, Action::Drain).await,
        DiskCommand::Retire(args) => decide::disk(args, Action::Retire).await,
        DiskCommand::Activate(args) => decide::disk(args, Action::Activate).await,
        DiskCommand::Remove(args) => decide::disk(args, Action::Remove).await,
        DiskCommand::Replace(args) => decide::replace(args).await,
        DiskCommand::Probe(args) => tokio::task::spawn_blocking(move || probe(&args)).await?,
        DiskCommand::Inspect(args) => tokio::task::spawn_blocking(move || inspect(&args)).await?,
        DiskCommand::Verify(args) => tokio::task::spawn_blocking(move || verify(&args)).await?,
    }
}

fn probe(args: &ProbeArgs) -> CommandResult {
    let probe = offline::probe(&args.path).map_err(|e| CannotRead(e.to_string()))?;
    print(args.json, &probe, render_probe)
}

fn inspect(args: &InspectArgs) -> CommandResult {
    let disk = open(&args.path)?;
    let mut inspection = with_progress(|progress| offline::inspect(&disk, args.record, progress));
    if !args.extents {
        inspection.extents.clear();
    }
    print(args.json, &inspection, render_inspection)
}

fn verify(args: &VerifyArgs) -> CommandResult {
    let disk = open(&args.path)?;
    let found = with_progress(|progress| offline::verify(&disk, progress));
    print(args.json, &found, render_verification)?;
    match found.clean {
        true => Ok(()),
        false => Err(format!("{}: damaged", args.path.display()).into()),
    }
}

fn open(path: &Path) -> Result<Disk, CannotRead> {
    Disk::open(path).map_err(|e| CannotRead(e.to_string()))
}

fn print<T: Serialize>(json: bool, thing: &T, render: impl Fn(&T) -> String) -> CommandResult {
    match json {
        true => say!("{}", serde_json::to_string_pretty(thing)?),
        false => show!("{}", render(thing)),
    }
    Ok(())
}

/// Shows how far it is; indicatif hides itself when standard error is no terminal.
fn with_progress<T>(work: impl FnOnce(Progress<'_>) -> T) -> T {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} extents read, {eta} left") {
        bar.set_style(style);
    }
    let result = work(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    result
}

fn parse_filter(text: &str) -> Result<RecordFilter, String> {
    let bad = || format!("{text:?} is not a blob's number, or BLOB/STRIPE");
    let (blob, stripe) = match text.split_once('/') {
        Some((blob, stripe)) => (blob, Some(stripe.parse().map_err(|_| bad())?)),
        None => (text, None),
    };
    let blob = blob.parse().map_err(|_| bad())?;
    Ok(RecordFilter { blob, stripe })
}

/// Lines of text; writing to a string does not fail.
macro_rules! line {
    ($out:expr, $($format:tt)*) => {{
        let _ = writeln!($out, $($format)*);
    }};
}

fn unit_name(unit: Option<UnitId>) -> String {
    unit.map_or("system".into(), |unit| format!("{}/{}", unit.volume, unit.index))
}

fn or_unknown(fact: Option<impl ToString>) -> String {
    fact.map_or("unknown".into(), |fact| fact.to_string())
}

fn render_probe(probe: &Probe) -> String {
    let mut out = String::new();
    line!(
        out,
        "kind        {}, {}",
        probe.kind,
        format_size(probe.size_bytes)
    );
    if let Some(on) = &probe.filesystem {
        let free = on.free_bytes.map_or("unknown".into(), format_size);
        line!(
            out,
            "filesystem  {} of {} at {}, {free} free; the file takes {}",
            on.kind,
            on.source,
            on.mount,
            format_size(on.taken_bytes)
        );
    }
    match &probe.block {
        None => line!(out, "device      unknown"),
        Some(block) => {
            line!(
                out,
                "device      {}: logical block {} B, physical {} B, {}, scheduler {}",
                block.name,
                or_unknown(block.logical_block_bytes),
                or_unknown(block.physical_block_bytes),
                match block.rotational {
                    Some(true) => "rotational",
                    Some(false) => "not rotational",
                    None => "rotation unknown",
                },
                or_unknown(block.scheduler.as_ref())
            );
            let fua = match block.fua {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown",
            };
            line!(
                out,
                "cache       {}, FUA {fua}",
                or_unknown(block.write_cache.as_ref())
            );
        }
    }
    line!(out, "kernel      {}", or_unknown(probe.kernel.as_ref()));
    for (name, trial) in [("O_DIRECT", &probe.direct), ("io_uring", &probe.io_uring)] {
        let result = trial
            .problem
            .as_ref()
            .map_or("works".into(), |why| format!("no: {why}"));
        line!(out, "{name:<11} {result}");
    }
    if let Some(limit) = probe.memlock {
        let text = |limit: Option<u64>| limit.map_or("unlimited".into(), format_size);
        line!(
            out,
            "memlock     {}, at most {}",
            text(limit.soft_bytes),
            text(limit.hard_bytes)
        );
    }
    line!(out, "backend     {}", probe.backend);
    match (probe.superblock, probe.disk, probe.cluster) {
        ("cairn", Some(disk), Some(cluster)) => {
            line!(
                out,
                "superblock  disk {disk} of cluster {cluster}, incarnation {}",
                or_unknown(probe.incarnation)
            );
            if probe.formatted_bytes != Some(probe.size_bytes) {
                let then = probe.formatted_bytes.unwrap_or(0);
                line!(
                    out,
                    "            it was {then} bytes when it was formatted and is {} now",
                    probe.size_bytes
                );
            }
        }
        ("damaged", ..) => line!(
            out,
            "superblock  damaged, or of a format that this program does not read"
        ),
        _ => line!(out, "superblock  none: not a Cairn disk"),
    }
    out
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".into(),
        _ => format!("{:.0} %", part as f64 * 100.0 / whole as f64),
    }
}

fn render_inspection(found: &Inspection) -> String {
    let mut out = String::new();
    line!(out, "disk        {} of cluster {}", found.disk, found.cluster);
    line!(
        out,
        "incarnation {}, format version {}",
        found.incarnation,
        found.format
    );
    line!(
        out,
        "layout      {}: {} extents of {}",
        format_size(found.size_bytes),
        found.extents_total,
        format_size(found.extent_bytes)
    );
    if found.size_bytes != found.formatted_bytes {
        let (then, now) = (found.formatted_bytes, found.size_bytes);
        line!(
            out,
            "            it was {then} bytes when it was formatted and is {now} now"
        );
    }
    for copy in &found.superblocks {
        let state = match (copy.sequence, &copy.problem) {
            (Some(sequence), _) => format!("valid, sequence {sequence}"),
            (None, problem) => or_unknown(problem.as_ref()),
        };
        line!(out, "superblock  copy {} at {}: {state}", copy.copy, copy.offset);
    }
    line!(
        out,
        "flushed     up to batch {}; generations below {}",
        found.flushed,
        found.generation_limit
    );
    line!(
        out,
        "extents     {} free, {} of units, {} of the system, {} bad, {} not all there",
        found.extents_free,
        found.extents_of_units,
        found.extents_of_system,
        found.extents_bad,
        found.extents_missing
    );
    line!(
        out,
        "records     {} shards, {} of them live; {} tombstones, {} drops, {} cuts",
        found.shards,
        found.live_shards,
        found.tombstones,
        found.drops,
        found.cuts
    );
    line!(
        out,
        "bytes       {} written, {} of live records ({})",
        format_size(found.written_bytes),
        format_size(found.live_bytes),
        percent(found.live_bytes, found.written_bytes)
    );
    render_units(&mut out, found);
    render_extents(&mut out, found);
    if let Some(records) = &found.records {
        line!(out, "");
        line!(out, "{} records", records.len());
        records.iter().for_each(|record| render_record(&mut out, record));
    }
    out
}

fn render_units(out: &mut String, found: &Inspection) {
    line!(out, "");
    line!(
        out,
        "{:<12} {:>5} {:>7} {:>8} {:>8} {:>10} {:>10} {:>6}",
        "unit",
        "epoch",
        "extents",
        "records",
        "live",
        "written",
        "live",
        "ratio"
    );
    for unit in &found.units {
        line!(
            out,
            "{:<12} {:>5} {:>7} {:>8} {:>8} {:>10} {:>10} {:>6}",
            unit_name(unit.unit),
            unit.epoch,
            unit.extents,
            unit.records,
            unit.live_records,
            format_size(unit.written_bytes),
            format_size(unit.live_bytes),
            percent(unit.live_bytes, unit.written_bytes)
        );
    }
}

fn render_extents(out: &mut String, found: &Inspection) {
    if found.extents.is_empty() {
        return;
    }
    line!(out, "");
    line!(
        out,
        "{:<7} {:>14} {:<12} {:>10} {:>8} {:>8} {:>10} {:>10} {:>6}",
        "extent",
        "offset",
        "use",
        "generation",
        "records",
        "live",
        "written",
        "live",
        "ratio"
    );
    for extent in found.extents.iter().filter(|e| e.used != ExtentUse::Free) {
        let used = match extent.used {
            ExtentUse::Free => "free".into(),
            ExtentUse::Unit | ExtentUse::System => unit_name(extent.unit),
            ExtentUse::Bad => "bad".into(),
            ExtentUse::Missing => "missing".into(),
        };
        line!(
            out,
            "{:<7} {:>14} {used:<12} {:>10} {:>8} {:>8} {:>10} {:>10} {:>6}",
            extent.extent,
            extent.offset,
            extent.generation,
            extent.records,
            extent.live_records,
            format_size(extent.written_bytes),
            format_size(extent.live_bytes),
            percent(extent.live_bytes, extent.written_bytes)
        );
    }
}

/// A word as JSON has it: `live`, `payload`.
fn word(thing: impl Serialize) -> String {
    match serde_json::to_value(thing) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => "?".into(),
    }
}

fn render_record(out: &mut String, record: &RecordLine) {
    line!(out, "");
    line!(
        out,
        "{} {}/{} of unit {}: {}, payload {}",
        record.kind,
        record.blob,
        record.stripe,
        unit_name(Some(record.unit)),
        word(record.state),
        record.payload
    );
    line!(
        out,
        "  place     byte {} of the disk: extent {} + {}, generation {}",
        record.device_offset,
        record.extent,
        record.offset,
        record.generation
    );
    line!(
        out,
        "  payload   {} bytes at +{}, {} digests; next record at +{}",
        record.len,
        record.payload_at,
        record.digests,
        record.next_at
    );
    line!(
        out,
        "  written   epoch {}, sequence {}, batch {} (flushed: {}), number {} in its extent, part at {}",
        record.epoch,
        record.sequence,
        record.batch,
        record.flushed,
        record.ordinal,
        record.part_start
    );
}

fn render_verification(found: &Verification) -> String {
    let mut out = String::new();
    for finding in found.findings.iter().take(FINDINGS_PRINTED_MAX) {
        render_finding(&mut out, finding);
    }
    let total = found.damaged + found.unfinished;
    let printed = found.findings.len().min(FINDINGS_PRINTED_MAX) as u64;
    if total > printed {
        line!(out, "… and {} more", total - printed);
    }
    line!(
        out,
        "checked     4 superblock copies, {} extents, {} of them in use, {} records, {} of payload",
        found.extents,
        found.extents_in_use,
        found.records,
        format_size(found.payload_bytes)
    );
    line!(
        out,
        "live        {} shards, {} of them damaged",
        found.live_shards,
        found.live_shards_damaged
    );
    let verdict = match found.clean {
        true => "clean".into(),
        false => format!("{} damaged", found.damaged),
    };
    match found.unfinished {
        0 => line!(out, "result      {verdict}"),
        some => line!(
            out,
            "result      {verdict}; {some} unfinished writes, which the next start repairs"
        ),
    }
    out
}

fn render_finding(out: &mut String, finding: &Finding) {
    let severity = match finding.severity {
        Severity::Damage => "damage",
        Severity::Unfinished => "unfinished",
    };
    let mut place = Vec::new();
    if let Some(offset) = finding.offset {
        place.push(format!("byte {offset}"));
    }
    if let Some(extent) = finding.extent {
        place.push(format!("extent {extent}"));
    }
    if let Some(unit) = finding.unit {
        place.push(format!("unit {}", unit_name(Some(unit))));
    }
    if let (Some(blob), Some(stripe)) = (finding.blob, finding.stripe) {
        place.push(format!("shard {blob}/{stripe}"));
    }
    if let Some(state) = finding.state {
        place.push(word(state));
    }
    let place = place.join(", ");
    line!(
        out,
        "{severity:<11} {:<10} {place}: {}",
        word(finding.kind),
        finding.what
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_a_blob_or_a_stripe() {
        let filter = |blob, stripe| Ok(RecordFilter { blob, stripe });
        assert_eq!(parse_filter("12"), filter(12, None));
        assert_eq!(parse_filter("12/3"), filter(12, Some(3)));
        for bad in ["", "/", "12/", "/3", "1/2/3", "x", "-1"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
