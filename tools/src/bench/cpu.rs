//! Processor time: this process's from /proc, the server's from its metrics. Both, because both share the machine.

use super::client::Connection;
use super::signer::Endpoint;
use http::{Method, Uri};
use std::time::Duration;

/// Clock ticks per second in /proc: USER_HZ, 100 on every Linux architecture in use.
const TICKS_PER_SECOND: f64 = 100.0;

/// How long the metrics may take: they are worth having, not waiting for.
const METRICS_DEADLINE: Duration = Duration::from_secs(2);

/// Processor seconds used until now, where they can be had.
#[derive(Clone, Copy, Debug)]
pub struct CpuSeconds {
    /// By the server.
    pub server: Option<f64>,
    /// By this process.
    pub client: Option<f64>,
}

impl CpuSeconds {
    /// Asks both; the server, if it is known where.
    pub async fn now(admin: Option<&Endpoint>) -> CpuSeconds {
        let metrics = tokio::time::timeout(METRICS_DEADLINE, async {
            let asked = Connection::new(admin?.clone())
                .ask(Method::GET, Uri::from_static("/metrics"))
                .await;
            asked.ok().map(|(_, text)| text)
        });
        CpuSeconds {
            server: metrics
                .await
                .ok()
                .flatten()
                .and_then(|text| metric(&text, "process_cpu_seconds_total")),
            client: std::fs::read_to_string("/proc/self/stat")
                .ok()
                .and_then(|stat| process_seconds(&stat)),
        }
    }

    /// What both have used, in two spans of time.
    pub fn plus(self, other: CpuSeconds) -> CpuSeconds {
        let sum = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
        CpuSeconds {
            server: sum(self.server, other.server),
            client: sum(self.client, other.client),
        }
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: CpuSeconds) -> CpuSeconds {
        let difference = |now: Option<f64>, then: Option<f64>| Some((now? - then?).max(0.0));
        CpuSeconds {
            server: difference(self.server, earlier.server),
            client: difference(self.client, earlier.client),
        }
    }
}

/// The value of an unlabelled metric in Prometheus' text format.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    })
}

/// utime + stime of a /proc/PID/stat line. The command's name, second, is in brackets and may contain anything.
fn process_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found() {
        let text = "# HELP process_cpu_seconds_total Total user and system CPU time.\n\
                    process_cpu_seconds_total_other 9\nprocess_cpu_seconds_total 12.5 1700000000\n";
        assert_eq!(metric(text, "process_cpu_seconds_total"), Some(12.5));
        assert_eq!(metric(text, "process"), None);
        assert_eq!(
            metric("process_cpu_seconds_total x", "process_cpu_seconds_total"),
            None
        );
    }

    #[test]
    fn the_stat_line_is_read_past_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10";
        assert_eq!(process_seconds(stat), Some(3.0));
        assert_eq!(process_seconds("7 (x) S 1"), None);
    }
}
