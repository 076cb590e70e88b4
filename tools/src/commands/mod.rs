//! One file per command.

pub mod dev;
pub mod node;
pub mod status;

use tokio::signal::unix::{SignalKind, signal};

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
