//! What the product says about itself, in the words of `/metrics` and `/v1/status`. All names are here.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;

/// Shards that reads met and found corrupt.
pub fn corrupt_shards(cluster: &Cluster) -> f64 {
    cluster.metric("cairn_bad_shards_total", "kind=\"corrupt\"")
}

/// Shards that were rewritten and verified.
pub fn repaired_shards(cluster: &Cluster) -> f64 {
    cluster.metric("cairn_repaired_shards_total", "")
}

/// Shards that wait for repair.
pub fn suspect_shards(cluster: &Cluster) -> u64 {
    number(&cluster.status()["queued"], "suspect_shards")
}

/// What a cluster with all its disks and nothing to do would not say.
pub fn unexplained(cluster: &Cluster) -> Vec<String> {
    let status = cluster.status();
    let mut unexplained = Vec::new();
    for (part, names) in [
        (
            "queued",
            &[
                "garbage_blobs",
                "abandoned_blobs",
                "suspect_shards",
                "orphan_ranges",
                "requests",
            ][..],
        ),
        ("degraded", &["disks", "volumes", "unreadable_volumes"]),
    ] {
        let found = names
            .iter()
            .map(|name| (name, number(&status[part], name)))
            .filter(|(_, number)| *number > 0);
        unexplained.extend(found.map(|(name, number)| format!("{part}.{name} = {number}")));
    }
    for disk in status["disks"].as_array().unwrap() {
        if disk["state"] != "online" {
            unexplained.push(format!(
                "disk {} is {}: {}",
                disk["label"], disk["state"], disk["reason"]
            ));
        }
    }
    if status["healthy"] != true {
        unexplained.push("it is not healthy".to_owned());
    }
    unexplained
}

/// Waits until no request is in progress, and no garbage, no repair and no sweep is queued.
pub fn wait_until_settled(cluster: &Cluster, time_max: Duration) {
    let names = [
        "requests",
        "garbage_blobs",
        "abandoned_blobs",
        "suspect_shards",
        "orphan_ranges",
    ];
    let queued = || -> u64 {
        let status = cluster.status();
        names.iter().map(|name| number(&status["queued"], name)).sum()
    };
    let seen = || cluster.status()["queued"].to_string();
    wait_until("nothing is queued", time_max, || queued() == 0, seen);
}

/// Waits until `holds`; fails with what `seen` says if it takes too long.
pub fn wait_until(what: &str, time_max: Duration, holds: impl Fn() -> bool, seen: impl Fn() -> String) {
    let deadline = Instant::now() + time_max;
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "waited {time_max:?} until {what}: {}",
            seen()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn number(object: &Value, name: &str) -> u64 {
    object[name]
        .as_u64()
        .unwrap_or_else(|| panic!("the status has no number {name}: {object}"))
}
