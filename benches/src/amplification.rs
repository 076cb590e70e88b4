//! How many bytes the device writes for a byte that is put: on a disk that only fills, and on one that is kept nearly full while
//! shards anywhere on it are replaced, which is what makes compaction work hardest.
//!
//! With deletes that know no pattern there is a bound that no choice of extents gets around: when the share u of what extents hold
//! is live, the emptiest is still live to the share v, where u = (v - 1) / ln v, and each byte put costs 1 / (1 - v) written
//! (Desnoyers, "Analytic modeling of SSD write performance"). It is printed beside what was measured.

use crate::Result;
use crate::disk::Disk;
use crate::loads::{Shards, put_all, replace};
use crate::watched::Counts;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Bytes of a shard: of an object of 2 MiB under rs(6,3), about.
const SHARD_BYTES: usize = 350 << 10;
/// How full the disk is kept.
const FULL: f64 = 0.85;
const WIDTH: usize = 6;
const IN_FLIGHT: usize = 16;
/// What a disk that only fills should write at most for a byte, and one that is kept full.
const TARGETS: [f64; 2] = [1.05, 1.6];

/// What was found.
#[derive(Debug)]
pub struct Amplification {
    filling: f64,
    replacing: f64,
    /// Live records in the space that records could use.
    occupied: f64,
    records_moved: u64,
    puts: u64,
    /// Puts that found the disk full, and space a moment later.
    refused: u64,
}

/// Fills a disk and then replaces what is on it, each byte `turns` times on average. `units` are written at once.
pub fn measure(runtime: &Runtime, disk: &Disk, units: u64, turns: f64) -> Result<Amplification> {
    let status = disk.engine.status();
    let live = (FULL * status.capacity_bytes as f64 / SHARD_BYTES as f64) as u64;
    let shards = Arc::new(Shards::new(live, SHARD_BYTES, units, WIDTH));
    disk.watch.take();
    runtime.block_on(put_all(disk, &shards, IN_FLIGHT))?;
    let filled = disk.watch.take();
    let puts = (turns * live as f64) as u64;
    let refused = runtime.block_on(replace(disk, &shards, puts, IN_FLIGHT))?;
    let replaced = disk.watch.take();
    let written =
        |counts: Counts, puts: u64| counts.bytes_written as f64 / (puts * SHARD_BYTES as u64) as f64;
    let status = disk.engine.status();
    Ok(Amplification {
        filling: written(filled, live),
        replacing: written(replaced, puts),
        occupied: 1.0 - status.free_bytes as f64 / status.capacity_bytes as f64,
        records_moved: disk.engine.metrics().records_moved,
        puts,
        refused,
    })
}

/// The least that any disk of this kind can write for a byte in the long run, when so much of its space is live.
fn bound(occupied: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let v: f64 = (low + high) / 2.0;
        match (v - 1.0) / v.ln() < occupied {
            true => low = v,
            false => high = v,
        }
    }
    1.0 / (1.0 - low)
}

impl std::fmt::Display for Amplification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "350 KiB puts without deletes         {:.3} × payload written; target {}×",
            self.filling, TARGETS[0]
        )?;
        write!(
            f,
            "350 KiB replaced anywhere, {:.0} % full {:.2} × payload written; target {}×, in the long run at least {:.2}×; {} puts, {} refused at first, {} records moved",
            100.0 * self.occupied,
            self.replacing,
            TARGETS[1],
            bound(self.occupied),
            self.puts,
            self.refused,
            self.records_moved,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::bound;

    #[test]
    fn the_bound_is_one_for_an_empty_disk_and_endless_for_a_full_one() {
        assert!(bound(0.01) < 1.01);
        assert!((bound(0.85) - 3.52).abs() < 0.01, "{}", bound(0.85));
        assert!(bound(0.999) > 100.0);
    }
}
