//! One file per command.

pub mod dev;
pub mod disk;
pub mod node;
pub mod status;

use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How disks are verified; for every command that serves some.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Days in which every disk is read once, to find what has rotted; 0 to leave it
    #[arg(long, value_name = "DAYS", default_value_t = 7.0)]
    verify_days: f64,
}

impl VerifyArgs {
    /// The cycle, if there is to be one.
    fn cycle(&self) -> Result<Option<Duration>, String> {
        let cycle = Duration::try_from_secs_f64(self.verify_days * 86_400.0);
        let cycle = cycle.map_err(|e| format!("--verify-days {}: {e}", self.verify_days))?;
        Ok((!cycle.is_zero()).then_some(cycle))
    }
}

/// Resolves when the process is asked to stop (SIGTERM or SIGINT).
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
