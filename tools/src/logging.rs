//! Logs: structured lines on standard error.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

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

impl LoggingArgs {
    /// Starts logging for this process.
    pub fn start(&self) {
        // s3s logs every client error as its own; the gateway logs what is the server's fault, once.
        let filter = EnvFilter::try_new(format!("{},s3s=off", self.log)).unwrap_or_else(|error| {
            eprintln!("cairn: --log {:?}: {error}; logging at info", self.log);
            EnvFilter::new("info,s3s=off")
        });
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => lines
                .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .init(),
            LogFormat::Json => lines.json().flatten_event(true).init(),
        }
    }
}
