//! `cairn status`: the state of a cluster, for people or as JSON.

use crate::CommandResult;
use crate::size::format_size;
use clap::Args;
use gateway::admin::status::{DiskLine, Status};
use gateway::maintenance::rebuild::RebuildStatus;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// The most bytes of an answer.
const ANSWER_MAX: usize = 16 << 20;

#[derive(Args)]
pub struct StatusArgs {
    /// The admin address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9001")]
    admin: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(args: StatusArgs) -> CommandResult {
    let url = format!("{}/v1/status", args.admin.trim_end_matches('/'));
    let answer = tokio::time::timeout(Duration::from_secs(10), fetch(&url));
    let body = answer
        .await
        .map_err(|_| format!("{url}: no answer within 10 s"))??;
    if args.json {
        println!("{body}");
        return Ok(());
    }
    print!("{}", render(&serde_json::from_str(&body)?));
    Ok(())
}

async fn fetch(url: &str) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let client: Client<_, Empty<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = client
        .get(url.parse()?)
        .await
        .map_err(|e| format!("{url}: {e} (is Cairn running?)"))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await?
        .to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        return Err(format!("{url}: {status}: {}", body.trim()).into());
    }
    Ok(body)
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
    let health = if status.healthy { "healthy" } else { "attention" };
    line(format!("cluster   {health}   scheme {}{writes}", status.scheme));
    line(format!("kernel    {}", status.kernel));
    let capacity = &status.capacity;
    line(format!(
        "capacity  {} in all, {} free, {} of live shards",
        format_size(capacity.total_bytes),
        format_size(capacity.free_bytes),
        format_size(capacity.live_bytes)
    ));
    line(String::new());
    line(format!(
        "{:<10} {:<8} {:>10} {:>10} {:>10} {:>9} {:>8}  backend",
        "disk", "state", "capacity", "free", "live", "shards", "corrupt"
    ));
    status.disks.iter().for_each(|disk| line(disk_row(disk)));
    line(String::new());
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
    if status.rebuild.units > 0 {
        line(rebuild_row(&status.rebuild));
    }
    for worker in &status.workers {
        line(format!("worker    {:<9} {}", worker.name, worker.state));
    }
    out
}

fn rebuild_row(rebuild: &RebuildStatus) -> String {
    let eta = match rebuild.eta_s {
        Some(seconds) => format!("about {} s", seconds.max(1)),
        None => "not known yet".into(),
    };
    let waiting = match rebuild.waiting {
        0 => String::new(),
        waiting => format!(", {waiting} of them wait for a disk or for sources"),
    };
    format!(
        "rebuild   {} units{waiting}; {} to write, {} written; ready in {eta}",
        rebuild.units,
        format_size(rebuild.left_bytes),
        format_size(rebuild.done_bytes)
    )
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
                "capacity_bytes":1073741824,"free_bytes":0,"live_bytes":0,"shards":7,"corrupt_shards":1}],
            "volumes":[{"scheme":"rs(4,2)","state":"open","count":2}],
            "capacity":{"total_bytes":1073741824,"free_bytes":5,"live_bytes":0},
            "degraded":{"disks":1,"volumes":2,"unreadable_volumes":0},
            "queued":{"garbage_blobs":3,"abandoned_blobs":1,"suspect_shards":2,"orphan_ranges":0,"requests":1,
                "in_flight_bytes":[1024,0,0]},
            "workers":[{"name":"repair","state":"idle","steps":4}]}"#;
        let text = render(&serde_json::from_str(json).expect("a status"));
        assert!(text.contains("new objects rs(3,2) for now"), "{text}");
        assert!(text.contains("file was removed"), "{text}");
        assert!(text.contains("4 blobs to delete, 2 shards to repair"), "{text}");
    }
}
