//! Logs: structured lines on standard error, and what panics say.

mod lines;

use self::lines::Lines;
use crate::output::complain;
use clap::{Args, ValueEnum};
use gateway::ledger::redb::expects_panic;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// At the end of the process what waits is written, for so long.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// And when a thread panics.
const PANIC_FLUSH_MAX: Duration = Duration::from_millis(100);

/// Flags that every command has.
#[derive(Args)]
pub struct LoggingArgs {
    /// What to log: a level, or filters such as `info,gateway=debug`
    #[arg(
        long,
        global = true,
        env = "CAIRN_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
    /// How to log
    #[arg(
        long,
        global = true,
        env = "CAIRN_LOG_FORMAT",
        default_value = "text",
        value_enum
    )]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// Writes what waits when it is dropped.
pub struct Logging(Lines);

impl Drop for Logging {
    fn drop(&mut self) {
        self.0.flush(FLUSH_MAX);
    }
}

impl LoggingArgs {
    /// Starts logging for this process.
    pub fn start(&self) -> std::io::Result<Logging> {
        // s3s logs every client error as its own; the gateway logs what is the server's fault, once.
        let filter = EnvFilter::try_new(format!("{},s3s=off", self.log)).unwrap_or_else(|error| {
            complain!("cairn: --log {:?}: {error}; logging at info", self.log);
            EnvFilter::new("info,s3s=off")
        });
        let lines = Lines::start(std::io::stderr())?;
        log_panics(lines.clone());
        let format = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(lines.clone());
        match self.log_format {
            LogFormat::Text => format
                .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .init(),
            LogFormat::Json => format.json().flatten_event(true).init(),
        }
        Ok(Logging(lines))
    }
}

/// What a panic says takes the same way, so that it does not wait for a reader that sleeps. The thread may be the process's last.
fn log_panics(lines: Lines) {
    std::panic::set_hook(Box::new(move |panic| {
        if expects_panic() {
            return; // Its caller tells it as an error.
        }
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let backtrace = match std::backtrace::Backtrace::capture() {
            taken if taken.status() == std::backtrace::BacktraceStatus::Captured => format!("{taken}"),
            _ => String::new(),
        };
        lines.push(format!("thread '{name}' {panic}\n{backtrace}").into());
        lines.flush(PANIC_FLUSH_MAX);
    }));
}
