//! The lines of a benchmark that has a yardstick beside it.

use crate::sample::{Sample, median};
use crate::watched::Counts;
use std::time::Duration;

/// Which figure a line shows.
#[derive(Clone, Copy, Debug)]
pub enum Figure {
    /// Payload, and CPU by payload.
    Throughput,
    /// Operations, and CPU by operation.
    Operations,
}

impl Figure {
    fn rate(self, samples: &[Sample]) -> (f64, &'static str) {
        match self {
            Figure::Throughput => (median(samples, Sample::mib_per_second), "MiB/s"),
            Figure::Operations => (median(samples, Sample::operations_per_second), "ops/s"),
        }
    }

    fn cpu(self, samples: &[Sample]) -> (f64, &'static str) {
        match self {
            Figure::Throughput => (median(samples, Sample::cpu_seconds_per_gib), "s/GiB"),
            Figure::Operations => (median(samples, Sample::cpu_micros_per_operation), "µs/op"),
        }
    }
}

/// Says what the columns are.
pub fn head() {
    println!(
        "{:<36}{:>14}{:>15}{:>9}{:>9}{:>14}{:>14}",
        "load", "engine", "fio", "ratio", "target", "engine CPU", "fio CPU"
    );
}

/// One load: the engine's rounds, and the yardstick's, if it has any.
pub fn line(name: &str, figure: Figure, engine: &[Sample], fio: &[Sample], target: Option<f64>) {
    let ((rate, unit), (cpu, cpu_unit)) = (figure.rate(engine), figure.cpu(engine));
    print!("{name:<36}{:>14}", format!("{rate:.0} {unit}"));
    if fio.is_empty() {
        println!(
            "{:>15}{:>9}{:>9}{:>14}",
            "",
            "",
            "",
            format!("{cpu:.2} {cpu_unit}")
        );
        return;
    }
    let (yardstick, _) = figure.rate(fio);
    println!(
        "{:>15}{:>9}{:>9}{:>14}{:>14}",
        format!("{yardstick:.0} {unit}"),
        format!("{:.2}×", rate / yardstick),
        target.map_or(String::new(), |target| format!("{target}×")),
        format!("{cpu:.2} {cpu_unit}"),
        format!("{:.2} {cpu_unit}", figure.cpu(fio).0),
    );
}

/// What the device saw of puts that took so long and brought so many bytes.
pub fn writes(counts: &Counts, samples: &[Sample]) {
    let bytes: u64 = samples.iter().map(|sample| sample.bytes).sum();
    let puts: u64 = samples.iter().map(|sample| sample.operations).sum();
    let elapsed: Duration = samples.iter().map(|sample| sample.elapsed).sum();
    let share = |busy: Duration| 100.0 * busy.as_secs_f64() / elapsed.as_secs_f64();
    let batches = counts.flushes.max(1) as f64;
    println!(
        "    written {:.4} × payload; {:.0} flushes/s, {:.1} puts and {:.1} writes of {:.0} KiB each; device writes {:.0} %, flushes {:.0} % of the time",
        counts.bytes_written as f64 / bytes as f64,
        batches / elapsed.as_secs_f64(),
        puts as f64 / batches,
        counts.writes as f64 / batches,
        counts.bytes_written as f64 / counts.writes.max(1) as f64 / 1024.0,
        share(counts.writing),
        share(counts.flushing),
    );
}

/// What the device saw of reads.
pub fn reads(counts: &Counts, samples: &[Sample]) {
    let bytes: u64 = samples.iter().map(|sample| sample.bytes).sum();
    let gets: u64 = samples.iter().map(|sample| sample.operations).sum();
    println!(
        "    read {:.3} × payload, in {:.2} reads for a block",
        counts.bytes_read as f64 / bytes as f64,
        counts.reads as f64 / gets as f64,
    );
}
