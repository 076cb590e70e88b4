//! One file per command.

pub mod config;
mod decide;
pub mod dev;
pub mod disk;
mod disk_online;
pub mod gateway;
pub mod init;
pub mod kit;
pub mod ledger;
pub mod node;
pub mod places;
pub mod rebalance;
pub mod scrub;
pub mod status;
pub mod unnamed;

use crate::size::format_size;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How disks are verified; for every command that serves some.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Days in which every disk is read once, to find what has rotted; 0 to leave it. 7 unless somebody says otherwise
    #[arg(long, value_name = "DAYS")]
    verify_days: Option<f64>,
}

const VERIFY_DAYS: f64 = 7.0;

impl VerifyArgs {
    /// The cycle, if there is to be one.
    fn cycle(&self) -> Result<Option<Duration>, String> {
        self.cycle_or(None)
    }

    /// The cycle, if there is to be one; `configured` where no flag says.
    fn cycle_or(&self, configured: Option<Option<Duration>>) -> Result<Option<Duration>, String> {
        let days = match (self.verify_days, configured) {
            (None, Some(configured)) => return Ok(configured),
            (days, _) => days.unwrap_or(VERIFY_DAYS),
        };
        let cycle = Duration::try_from_secs_f64(days * 86_400.0);
        let cycle = cycle.map_err(|e| format!("--verify-days {days}: {e}"))?;
        Ok((!cycle.is_zero()).then_some(cycle))
    }
}

/// Resolves when the process is asked to stop (SIGTERM or SIGINT). A hangup (SIGHUP), which ends a process that does not say
/// otherwise, ends nothing: there is no configuration that could be read again while it runs.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => tracing::info!("SIGHUP ignored: the configuration is read at the start; SIGTERM stops"),
            }
        }
    })
}

/// What is cached of the ledger gets at most this much.
const LEDGER_CACHE_MAX: u64 = 256 << 20;

/// Memory of a gateway.
pub struct Memory {
    /// For bytes in flight.
    pub in_flight: u64,
    /// For hot blocks.
    pub cache: u64,
    /// For the ledger's pages and rows.
    pub ledger: usize,
}

impl Memory {
    /// As somebody said, or a quarter of the machine's for bytes in flight, and an eighth for hot blocks.
    pub fn of(in_flight: Option<u64>, cache: Option<u64>) -> Memory {
        let in_flight = in_flight.unwrap_or_else(|| machine_memory() / 4).max(64 << 20);
        Memory {
            in_flight,
            cache: cache.unwrap_or_else(|| machine_memory() / 8),
            ledger: (in_flight / 8).min(LEDGER_CACHE_MAX) as usize,
        }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (in_flight, cache) = (format_size(self.in_flight), format_size(self.cache));
        write!(f, "{in_flight} for bytes in flight, {cache} for hot blocks")
    }
}

/// Bytes of memory of this machine; 4 GiB if it will not say.
fn machine_memory() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo.lines().find_map(|l| {
        l.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    kib.map_or(4 << 30, |kib| kib * 1_024)
}
