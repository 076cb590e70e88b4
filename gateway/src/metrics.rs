//! What the gateway counts, for `/metrics`.

use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// The counters of one gateway.
pub struct Metrics {
    registry: Registry,
    /// Requests by operation and status class.
    pub requests: IntCounterVec,
    /// Requests refused before any operation ran, by code.
    pub refused_requests: IntCounterVec,
    /// Connections that were cut for others, by what was short.
    pub cut_connections: IntCounterVec,
    /// Requests that ended in a panic.
    pub request_panics: IntCounter,
    /// Seconds to the answer's head, by operation.
    pub request_seconds: HistogramVec,
    /// Requests in progress.
    pub requests_in_flight: IntGauge,
    /// Object bytes received.
    pub received_bytes: IntCounter,
    /// Object bytes sent.
    pub sent_bytes: IntCounter,
    /// Blocks of downloads that were in memory.
    pub cache_hits: IntCounter,
    /// Blocks of downloads that were not.
    pub cache_misses: IntCounter,
    /// Bytes of blocks in memory.
    pub cache_bytes: IntGauge,
    /// Shards that a read met and found wrong, by kind: corrupt, missing, unreadable.
    pub bad_shards: IntCounterVec,
    /// Pieces that were decoded from other shards instead of read.
    pub decoded_pieces: IntCounter,
    /// Reads that were raced by a decode because the disk was slow.
    pub hedged_reads: IntCounter,
    /// Stripes sent again and pieces decoded because a disk failed.
    pub retries: IntCounter,
    /// Retries that were refused: too many failed.
    pub refused_retries: IntCounter,
    /// Wrong answers by disk and kind.
    pub wrong_answers: IntCounterVec,
    /// How often each background worker panicked and was started again.
    pub worker_restarts: IntCounterVec,
    /// Times that this process stood still.
    pub pauses: IntCounter,
    /// The verdict: 0 ok, 1 attention, 2 risk, 3 loss.
    pub verdict: IntGauge,
    /// Blobs of which too many shards are gone.
    pub unreadable_blobs: IntGauge,
    /// Shards that repair rewrote and verified.
    pub repaired_shards: IntCounter,
    /// Bytes of shards that were written to the new disks of units.
    pub rebuilt_bytes: IntCounter,
    /// Units that are whole on another disk.
    pub rebuilt_units: IntCounter,
    /// Repairs that could not be done (yet).
    pub failed_repairs: IntCounter,
    /// Stripes that were sent again to another volume after a disk failed.
    pub rewritten_stripes: IntCounter,
    /// Blobs whose shards were deleted everywhere.
    pub collected_blobs: IntCounter,
    /// Entries of the ledger's archive that were written.
    pub archive_entries: IntCounter,
    /// Their bytes, of one copy.
    pub archive_bytes: IntCounter,
    /// Seconds for which commits have waited to be in the archive.
    pub archive_behind_seconds: IntGauge,
    /// Commits that are not in the archive.
    pub archive_behind_commits: IntGauge,
    /// Blobs of interrupted uploads of gateways that died, set aside.
    pub orphan_blobs: IntCounter,
    /// Requests refused for lack of memory.
    pub slow_downs: IntCounter,
    /// Bytes in flight by pool.
    pub budget_used_bytes: IntGaugeVec,
    /// Disks by state.
    pub disks: IntGaugeVec,
    /// Per disk: capacity, free and live bytes.
    pub disk_bytes: IntGaugeVec,
    /// Rows waiting in the garbage queue.
    pub garbage_blobs: IntGauge,
    /// Shards waiting for repair.
    pub suspect_shards: IntGauge,
    /// Blobs that nothing names, set aside.
    pub unnamed_blobs: IntGauge,
    /// Bytes of their shards.
    pub unnamed_bytes: IntGauge,
    /// 1 while the ledger can be asked.
    pub ledger_available: IntGauge,
    /// Bytes that are free on the ledger's filesystem.
    pub ledger_free_bytes: IntGauge,
    /// Bytes that are kept there for the ledger.
    pub ledger_reserve_bytes: IntGauge,
    /// Rows of the ledger that are known to be damaged.
    pub ledger_damaged_rows: IntGauge,
    /// Pages of the ledger that are.
    pub ledger_damaged_pages: IntGauge,
    /// Rows of the ledger that were had from its archive.
    pub ledger_repaired_rows: IntCounter,
    /// Wrong bits of the ledger that were set right.
    pub ledger_corrected_bits: IntGauge,
    cpu_seconds: Gauge,
    resident_bytes: IntGauge,
}

impl Metrics {
    /// All at zero, registered.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let latency = HistogramOpts::new(
            "cairn_request_seconds",
            "Seconds until the head of the answer, by operation",
        )
        .buckets(prometheus::exponential_buckets(0.000_25, 2.0, 18)?);
        let metrics = Metrics {
            requests: counters(
                &registry,
                "cairn_requests_total",
                "S3 requests",
                &["operation", "status"],
            )?,
            refused_requests: counters(
                &registry,
                "cairn_refused_requests_total",
                "Requests refused before any operation ran, by code",
                &["code"],
            )?,
            cut_connections: counters(
                &registry,
                "cairn_cut_connections_total",
                "Connections cut because others needed what they held, by why: idle, head, slow",
                &["why"],
            )?,
            request_panics: counter(
                &registry,
                "cairn_request_panics_total",
                "Requests that ended in a panic, and were answered with 500",
            )?,
            request_seconds: HistogramVec::new(latency, &["operation"])?,
            requests_in_flight: gauge(&registry, "cairn_requests_in_flight", "S3 requests in progress")?,
            received_bytes: counter(&registry, "cairn_received_bytes_total", "Object bytes received")?,
            sent_bytes: counter(&registry, "cairn_sent_bytes_total", "Object bytes sent")?,
            cache_hits: counter(
                &registry,
                "cairn_cache_hits_total",
                "Blocks of downloads served from memory",
            )?,
            cache_misses: counter(
                &registry,
                "cairn_cache_misses_total",
                "Blocks of downloads read from disks",
            )?,
            cache_bytes: gauge(&registry, "cairn_cache_bytes", "Bytes of hot blocks in memory")?,
            bad_shards: counters(
                &registry,
                "cairn_bad_shards_total",
                "Shards that a read found wrong: corrupt, missing or unreadable",
                &["kind"],
            )?,
            decoded_pieces: counter(
                &registry,
                "cairn_decoded_pieces_total",
                "Pieces decoded from other shards",
            )?,
            hedged_reads: counter(&registry, "cairn_hedged_reads_total", "Reads raced by a decode")?,
            retries: counter(
                &registry,
                "cairn_retries_total",
                "Stripes sent again and pieces decoded because a disk failed",
            )?,
            refused_retries: counter(
                &registry,
                "cairn_refused_retries_total",
                "Retries refused with 503 because too many requests fail",
            )?,
            wrong_answers: counters(
                &registry,
                "cairn_wrong_answers_total",
                "Wrong answers of each disk, by kind",
                &["disk", "kind"],
            )?,
            worker_restarts: counters(
                &registry,
                "cairn_worker_restarts_total",
                "Panics after which a background worker was started again",
                &["worker"],
            )?,
            pauses: counter(
                &registry,
                "cairn_pauses_total",
                "Times that this process stood still for a second or longer",
            )?,
            verdict: gauge(
                &registry,
                "cairn_verdict",
                "What cairn status says first: 0 ok, 1 attention, 2 risk, 3 loss",
            )?,
            unreadable_blobs: gauge(
                &registry,
                "cairn_unreadable_blobs",
                "Blobs of which too many shards are gone or wrong, as far as was seen",
            )?,
            repaired_shards: counter(
                &registry,
                "cairn_repaired_shards_total",
                "Shards rewritten and verified",
            )?,
            rebuilt_bytes: counter(
                &registry,
                "cairn_rebuilt_bytes_total",
                "Bytes of shards written to the new disks of units",
            )?,
            rebuilt_units: counter(
                &registry,
                "cairn_rebuilt_units_total",
                "Units that are whole on another disk",
            )?,
            failed_repairs: counter(
                &registry,
                "cairn_failed_repairs_total",
                "Repairs that failed, to be tried again",
            )?,
            rewritten_stripes: counter(
                &registry,
                "cairn_rewritten_stripes_total",
                "Stripes sent again to another volume",
            )?,
            collected_blobs: counter(
                &registry,
                "cairn_collected_blobs_total",
                "Blobs deleted from every disk",
            )?,
            archive_entries: counter(
                &registry,
                "cairn_archive_entries_total",
                "Entries of the ledger's archive that were written",
            )?,
            archive_bytes: counter(
                &registry,
                "cairn_archive_bytes_total",
                "Bytes of entries of the ledger's archive, of one copy",
            )?,
            archive_behind_seconds: gauge(
                &registry,
                "cairn_archive_behind_seconds",
                "Seconds for which commits have waited to be in the ledger's archive",
            )?,
            archive_behind_commits: gauge(
                &registry,
                "cairn_archive_behind_commits",
                "Commits that are not in the ledger's archive",
            )?,
            orphan_blobs: counter(
                &registry,
                "cairn_orphan_blobs_total",
                "Blobs of uploads that a gateway's death cut off, found and set aside",
            )?,
            slow_downs: counter(
                &registry,
                "cairn_slow_down_total",
                "Requests refused for lack of memory",
            )?,
            budget_used_bytes: gauges(&registry, "cairn_budget_used_bytes", "Bytes in flight", &["pool"])?,
            disks: gauges(&registry, "cairn_disks", "Disks by state", &["state"])?,
            disk_bytes: gauges(
                &registry,
                "cairn_disk_bytes",
                "Bytes of each disk",
                &["disk", "kind"],
            )?,
            garbage_blobs: gauge(
                &registry,
                "cairn_garbage_blobs",
                "Blobs waiting to be deleted from disks",
            )?,
            suspect_shards: gauge(&registry, "cairn_suspect_shards", "Shards waiting for repair")?,
            unnamed_blobs: gauge(
                &registry,
                "cairn_unnamed_blobs",
                "Blobs that nothing names, set aside",
            )?,
            unnamed_bytes: gauge(
                &registry,
                "cairn_unnamed_bytes",
                "Bytes of the shards of blobs that nothing names",
            )?,
            ledger_available: gauge(
                &registry,
                "cairn_ledger_available",
                "1 while the ledger can be asked, else 0",
            )?,
            ledger_free_bytes: gauge(
                &registry,
                "cairn_ledger_free_bytes",
                "Bytes free on the filesystem of the ledger",
            )?,
            ledger_damaged_rows: gauge(
                &registry,
                "cairn_ledger_damaged_rows",
                "Rows of the ledger that are known to be damaged",
            )?,
            ledger_damaged_pages: gauge(
                &registry,
                "cairn_ledger_damaged_pages",
                "Pages of the ledger's file that are known to be damaged and were needed",
            )?,
            ledger_corrected_bits: gauge(
                &registry,
                "cairn_ledger_corrected_bits",
                "Wrong bits of the ledger's file that were set right since the start",
            )?,
            ledger_repaired_rows: counter(
                &registry,
                "cairn_ledger_repaired_rows_total",
                "Damaged rows of the ledger that were repaired from its archive",
            )?,
            ledger_reserve_bytes: gauge(
                &registry,
                "cairn_ledger_reserve_bytes",
                "Bytes kept there so that deletes always commit",
            )?,
            cpu_seconds: Gauge::new("process_cpu_seconds_total", "User and system CPU seconds")?,
            resident_bytes: gauge(&registry, "process_resident_memory_bytes", "Resident memory")?,
            registry,
        };
        metrics.registry.register(Box::new(metrics.cpu_seconds.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.request_seconds.clone()))?;
        for kind in ["corrupt", "missing", "unreadable"] {
            metrics.bad_shards.with_label_values(&[kind]);
        }
        Ok(metrics)
    }

    /// The Prometheus text format.
    pub fn render(&self) -> String {
        let (cpu_seconds, resident) = process_usage();
        self.cpu_seconds.set(cpu_seconds);
        self.resident_bytes.set(resident);
        let mut out = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// CPU seconds and resident bytes of this process, from /proc; zeros where there is none.
fn process_usage() -> (f64, i64) {
    const TICKS_PER_SECOND: f64 = 100.0; // USER_HZ, fixed in Linux's ABI.
    const PAGE_BYTES: i64 = 4_096;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let field = |n: usize| {
        after_name
            .split(' ')
            .nth(n)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (
        (field(11) + field(12)) / TICKS_PER_SECOND,
        field(21) as i64 * PAGE_BYTES,
    )
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let metric = IntCounter::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let metric = IntGauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
