//! What the product says about itself, in the words of `/metrics` and `/v1/status`. All names are here.

use std::time::{Duration, Instant};

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
pub fn suspect_shards(cluster: &Cluster) -> f64 {
    cluster.metric("cairn_suspect_shards", "")
}

/// Blobs that wait to be deleted from the disks.
pub fn garbage_blobs(cluster: &Cluster) -> f64 {
    cluster.metric("cairn_garbage_blobs", "")
}

/// Bytes of live shards on all disks.
pub fn live_bytes(cluster: &Cluster) -> f64 {
    cluster.metric("cairn_disk_bytes", "kind=\"live\"")
}

/// Waits until no garbage and no repair is queued.
pub fn wait_until_settled(cluster: &Cluster, time_max: Duration) {
    let queued = || (garbage_blobs(cluster), suspect_shards(cluster));
    wait_until(
        "garbage and suspect shards are gone",
        time_max,
        || queued() == (0.0, 0.0),
        || format!("{:?}", queued()),
    );
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
        std::thread::sleep(Duration::from_millis(100));
    }
}
