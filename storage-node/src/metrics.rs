//! What a disk counted since it was opened: plain atomics, read as a snapshot and rendered elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of one disk.
        #[derive(Debug, Default)]
        pub struct DiskMetrics { $($(#[$doc])* pub $name: Counter,)* }

        /// The counters of one disk, at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct DiskMetricsSnapshot { $($(#[$doc])* pub $name: u64,)* }

        impl DiskMetrics {
            /// The counters now.
            pub fn snapshot(&self) -> DiskMetricsSnapshot {
                DiskMetricsSnapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

metrics! {
    /// Shards stored durably.
    puts,
    /// Shards read.
    gets,
    /// Delete calls done.
    deletes,
    /// Batches written, each with one flush.
    batches,
    /// Record bytes written, copies included.
    bytes_written,
    /// Extents freed.
    extents_freed,
    /// Records that compaction moved.
    records_moved,
    /// Reads that the device failed.
    read_errors,
    /// Bytes read to verify them.
    verified_bytes,
    /// Live shards verified.
    verified_shards,
    /// What verifying found wrong.
    verify_findings,
    /// Shards found corrupt or unreadable, by reads, by recovery and by verifying.
    corrupt_shards,
}
