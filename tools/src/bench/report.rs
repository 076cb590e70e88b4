//! Results: one row for each operation of each cell, as a table for people and as JSON for the rest.

use super::cpu::CpuSeconds;
use super::load::{Outcome, Tally};
use super::plan::Mix;
use crate::size::format_size;
use serde_json::{Value, json};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const MIB: f64 = 1024.0 * 1024.0;
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// What was measured of one operation, or of all operations of a mix together.
#[derive(Debug)]
pub struct Row {
    endpoint: String,
    mix: String,
    op: String,
    size: u64,
    concurrency: usize,
    elapsed_s: f64,
    requests: u64,
    errors: u64,
    bytes: u64,
    /// Of [`QUANTILES`], then the maximum. `None` without a request that succeeded.
    latency_us: Option<[u64; QUANTILES.len() + 1]>,
    /// For the whole cell only: processor time cannot be told apart by operation.
    cpu: Option<CpuSeconds>,
}

/// The rows of one cell: one for its operation, or for a mix one each and one for all together.
pub fn rows(
    endpoint: &str,
    mix: &Mix,
    size: u64,
    concurrency: usize,
    outcome: &Outcome,
    cpu: CpuSeconds,
) -> Vec<Row> {
    let row = |op: &str, tally: &Tally, cpu: Option<CpuSeconds>| Row {
        endpoint: endpoint.to_owned(),
        mix: mix.to_string(),
        op: op.to_owned(),
        size,
        concurrency,
        elapsed_s: outcome.elapsed.as_secs_f64(),
        requests: tally.requests,
        errors: tally.errors,
        bytes: tally.bytes,
        latency_us: (tally.requests > 0).then(|| {
            let value = |i: usize| match QUANTILES.get(i) {
                Some((_, quantile)) => tally.latency_us.value_at_quantile(*quantile),
                None => tally.latency_us.max(),
            };
            std::array::from_fn(value)
        }),
        cpu,
    };
    if mix.ops().count() == 1 {
        return outcome
            .tallies
            .iter()
            .map(|tally| row(tally.op.name(), tally, Some(cpu)))
            .collect();
    }
    let mut rows: Vec<Row> = outcome
        .tallies
        .iter()
        .map(|tally| row(tally.op.name(), tally, None))
        .collect();
    if let Some((first, rest)) = outcome.tallies.split_first() {
        let mut all = first.clone();
        rest.iter().for_each(|tally| all.merge(tally));
        rows.push(row("all", &all, Some(cpu)));
    }
    rows
}

impl Row {
    fn requests_per_s(&self) -> f64 {
        self.requests as f64 / self.elapsed_s.max(1e-9)
    }

    fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / MIB / self.elapsed_s.max(1e-9)
    }

    /// Processor seconds per GiB moved, if any was.
    fn per_gib(&self, of: impl Fn(CpuSeconds) -> Option<f64>) -> Option<f64> {
        let seconds = of(self.cpu?)?;
        (self.bytes > 0).then(|| seconds / (self.bytes as f64 / GIB))
    }

    /// Everything, with numbers as numbers.
    pub fn json(&self) -> Value {
        let latency = self
            .latency_us
            .map(|us| json!({ "p50": us[0], "p90": us[1], "p99": us[2], "p99_9": us[3], "max": us[4] }));
        json!({
            "endpoint": self.endpoint,
            "mix": self.mix,
            "op": self.op,
            "size_bytes": self.size,
            "concurrency": self.concurrency,
            "elapsed_s": self.elapsed_s,
            "requests": self.requests,
            "errors": self.errors,
            "bytes": self.bytes,
            "requests_per_s": self.requests_per_s(),
            "mib_per_s": self.mib_per_s(),
            "latency_us": latency,
            "server_cpu_s": self.cpu.and_then(|cpu| cpu.server),
            "client_cpu_s": self.cpu.and_then(|cpu| cpu.client),
            "server_cpu_s_per_gib": self.per_gib(|cpu| cpu.server),
            "client_cpu_s_per_gib": self.per_gib(|cpu| cpu.client),
        })
    }

    fn is_of_same_cell(&self, other: &Row) -> bool {
        (&self.mix, &self.op, self.size, self.concurrency)
            == (&other.mix, &other.op, other.size, other.concurrency)
    }

    /// What each figure is of the other's, as cells.
    fn as_share_of(&self, other: &Row) -> Vec<String> {
        let share = |mine: Option<f64>, its: Option<f64>| match (mine, its) {
            (Some(mine), Some(its)) if its > 0.0 => three_digits(mine / its, "×"),
            _ => "-".to_owned(),
        };
        let mut cells = vec![
            "of it".to_owned(),
            self.op.clone(),
            format_size(self.size),
            self.concurrency.to_string(),
        ];
        cells.extend(vec![String::new(); 3]);
        cells.push(share(Some(self.requests_per_s()), Some(other.requests_per_s())));
        cells.push(share(Some(self.mib_per_s()), Some(other.mib_per_s())));
        for i in 0..=QUANTILES.len() {
            let latency = |row: &Row| Some(row.latency_us?[i] as f64);
            cells.push(share(latency(self), latency(other)));
        }
        cells.push(share(
            self.per_gib(|cpu| cpu.server),
            other.per_gib(|cpu| cpu.server),
        ));
        cells.push(share(
            self.per_gib(|cpu| cpu.client),
            other.per_gib(|cpu| cpu.client),
        ));
        cells
    }

    fn cells(&self) -> Vec<String> {
        let cpu = |value: Option<f64>| value.map_or("-".to_owned(), |value| three_digits(value, ""));
        let mut cells = vec![
            self.endpoint.clone(),
            self.op.clone(),
            format_size(self.size),
            self.concurrency.to_string(),
            format!("{:.1} s", self.elapsed_s),
            self.requests.to_string(),
            self.errors.to_string(),
            three_digits(self.requests_per_s(), ""),
            three_digits(self.mib_per_s(), ""),
        ];
        match self.latency_us {
            Some(latency_us) => cells.extend(latency_us.map(micros)),
            None => cells.extend(vec!["-".to_owned(); QUANTILES.len() + 1]),
        }
        cells.push(cpu(self.per_gib(|cpu| cpu.server)));
        cells.push(cpu(self.per_gib(|cpu| cpu.client)));
        cells
    }
}

/// The table, its columns as wide as they have to be. Rows of a second server are followed by what the first is of it.
pub fn table(rows: &[Row]) -> String {
    let mut header: Vec<String> = [
        "endpoint", "op", "size", "conc", "time", "requests", "errors", "req/s", "MiB/s",
    ]
    .map(str::to_owned)
    .to_vec();
    header.extend(QUANTILES.map(|(name, _)| name.to_owned()));
    header.extend(["max", "server s/GiB", "client s/GiB"].map(str::to_owned));
    let mut lines = vec![header];
    for (at, row) in rows.iter().enumerate() {
        lines.push(row.cells());
        let same_cell = |first: &&Row| first.is_of_same_cell(row) && first.endpoint != row.endpoint;
        lines.extend(
            rows[..at]
                .iter()
                .rfind(same_cell)
                .map(|first| first.as_share_of(row)),
        );
    }
    if rows.iter().all(|row| row.endpoint == rows[0].endpoint) {
        lines.iter_mut().for_each(|line| drop(line.remove(0)));
    }
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut padded = format!("{:<width$}", line[0], width = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            padded.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

/// `812 µs`, `1.23 ms`, `2.10 s`.
fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => three_digits(us as f64 / 1e3, " ms"),
        _ => three_digits(us as f64 / 1e6, " s"),
    }
}

/// Three significant digits, all of those before the point.
fn three_digits(value: f64, unit: &str) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::super::plan::Op;
    use super::*;
    use std::time::Duration;

    fn tally(op: Op, latencies: impl Iterator<Item = u64>, bytes: u64) -> Tally {
        let mut tally = Tally::new(op);
        latencies.for_each(|us| tally.succeeded(bytes, Duration::from_micros(us)));
        tally
    }

    const CPU: CpuSeconds = CpuSeconds {
        server: Some(1.5),
        client: None,
    };

    #[test]
    fn quantiles_and_rates() {
        // 1 µs … 1000 µs, 1 MiB each, in 2 s.
        let tallies = vec![tally(Op::Get, 1..=1000, 1 << 20)];
        let outcome = Outcome {
            tallies,
            elapsed: Duration::from_secs(2),
            first_error: None,
        };
        let rows = rows("here:9000", &Mix::only(Op::Get), 1 << 20, 16, &outcome, CPU);
        assert_eq!(rows[0].latency_us, Some([500, 900, 990, 999, 1000]));
        let json = rows[0].json();
        assert_eq!(
            (json["requests_per_s"].as_f64(), json["mib_per_s"].as_f64()),
            (Some(500.0), Some(500.0))
        );
        assert_eq!(json["latency_us"]["p99_9"], 999);
        assert_eq!(
            json["server_cpu_s_per_gib"].as_f64(),
            Some(1.5 / (1000.0 / 1024.0))
        );
        assert!(json["client_cpu_s_per_gib"].is_null());
        let table = table(&rows);
        let expected = "get  1 MiB    16  2.0 s      1000       0    500    500  500 µs  900 µs  990 µs  999 µs  1.00 ms          1.54             -\n";
        assert_eq!(
            table.lines().nth(1).map(|line| format!("{line}\n")).as_deref(),
            Some(expected)
        );
    }

    #[test]
    fn a_mix_has_a_row_each_and_one_for_all() {
        let tallies = vec![tally(Op::Put, 1..=30, 10), tally(Op::Get, 101..=170, 10)];
        let outcome = Outcome {
            tallies,
            elapsed: Duration::from_secs(1),
            first_error: None,
        };
        let rows = rows(
            "here:9000",
            &"put=30,get=70".parse().unwrap(),
            10,
            1,
            &outcome,
            CPU,
        );
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.op.as_str(), row.requests, row.cpu.is_some()))
            .collect();
        assert_eq!(seen, [("put", 30, false), ("get", 70, false), ("all", 100, true)]);
        assert_eq!(rows[2].latency_us.map(|us| (us[0], us[4])), Some((120, 170)));
    }

    #[test]
    fn a_second_server_is_followed_by_a_comparison() {
        let outcome = |count: u64| Outcome {
            tallies: vec![tally(Op::Get, 1..=count, 1 << 20)],
            elapsed: Duration::from_secs(1),
            first_error: None,
        };
        let mix = Mix::only(Op::Get);
        let mut all = rows("here:9000", &mix, 1 << 20, 16, &outcome(1000), CPU);
        assert!(!table(&all).contains("here"), "one server needs no name");
        all.extend(rows("there:9000", &mix, 1 << 20, 16, &outcome(500), CPU));
        let table = table(&all);
        let words: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            (words[1][0], words[2][0], words.len()),
            ("here:9000", "there:9000", 4)
        );
        assert_eq!(words[3][..7], ["of", "it", "get", "1", "MiB", "16", "2.00×"]);
        assert_eq!(words[3][8..10], ["2.00×", "2.00×"], "p50 and p90");
    }

    #[test]
    fn nothing_done_is_dashes() {
        let mut failed = Tally::new(Op::Head);
        failed.errors = 3;
        let outcome = Outcome {
            tallies: vec![failed],
            elapsed: Duration::ZERO,
            first_error: None,
        };
        let rows = rows("here:9000", &Mix::only(Op::Head), 0, 1, &outcome, CPU);
        assert!(rows[0].json()["latency_us"].is_null());
        assert_eq!(rows[0].cells()[9..], ["-", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(
            [0, 999, 1_000, 12_340, 999_000, 2_100_000].map(micros),
            ["0 µs", "999 µs", "1.00 ms", "12.3 ms", "999 ms", "2.10 s"]
        );
    }
}
