//! `cairn`: the one binary. Every command is a file under `commands`; this one only parses and reports.

// These panic where nobody reads: see `output`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod admin_client;
mod bench;
mod commands;
mod config;
mod duration;
mod home;
mod identity;
mod kit;
mod logging;
mod output;
mod process;
mod size;

use clap::{Parser, Subcommand};
use output::complain;
use std::process::ExitCode;

/// glibc's allocator keeps what large buffers used, far past `--memory`; see docs/decisions/0001-allocator.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Cairn: an erasure-coded blob store with an S3 endpoint
#[derive(Parser)]
#[command(name = "cairn", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    logging: logging::LoggingArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process: an S3 endpoint on file-backed disks
    Dev(commands::dev::DevArgs),
    /// Make a cluster: its id, its authority, its keys, the first configuration of its gateway
    Init(commands::init::InitArgs),
    /// Run a gateway: S3 on the disks of nodes that join
    Gateway(commands::gateway::GatewayArgs),
    /// Run a storage node; make a token for one; list, drain and remove them
    Node(commands::node::NodeArgs),
    /// Explain the mistakes in a configuration
    Config(commands::config::ConfigArgs),
    /// Show nodes, disks, volumes, capacity, what is degraded and what is queued
    Status(commands::status::StatusArgs),
    /// List and add the disks of a cluster; look at a disk that nobody serves
    Disk(commands::disk::DiskArgs),
    /// Show volumes, and where their units are
    Volume(commands::places::VolumeArgs),
    /// Show where objects are
    Object(commands::places::ObjectArgs),
    /// Show what is being rebuilt
    Rebuild(commands::places::RebuildArgs),
    /// Move units until all disks are about equally full
    Rebalance(commands::rebalance::RebalanceArgs),
    /// Look for what has rotted or is missing: when that was done, now, and how often
    Scrub(commands::scrub::ScrubArgs),
    /// Back up, restore the ledger
    Ledger(commands::ledger::LedgerArgs),
    /// Look at, check or write the recovery kit
    Kit(commands::kit::KitArgs),
    /// Show what disks hold and nothing names, restore it, or let go of it
    Unnamed(commands::unnamed::UnnamedArgs),
    /// Measure an S3 endpoint
    Bench(bench::BenchArgs),
}

/// What a command answers; the error is printed for people.
type CommandResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let logging = match cli.logging.start() {
        Ok(logging) => logging,
        Err(error) => {
            complain!("cairn: no thread for the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    process::make_files_private();
    process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_name("cairn")
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli.command));
            // What still runs was told to end and had its time.
            runtime.shutdown_timeout(std::time::Duration::from_millis(200));
            result
        }
        Err(error) => Err(error.into()),
    };
    drop(logging); // What waits is written.
    match result {
        Ok(()) => match output::failed() {
            None => ExitCode::SUCCESS,
            Some(error) => {
                complain!("cairn: standard output: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            use commands::status::Standing;
            let standing = error.downcast_ref::<Standing>();
            match (error.downcast_ref::<config::Mistakes>(), standing) {
                (Some(mistakes), _) => complain!("{mistakes}\ncairn: {}", mistakes.counted()),
                (None, Some(Standing::Attention | Standing::Risk)) => {} // It was said.
                _ => complain!("cairn: {error}"),
            }
            match (error.downcast_ref::<commands::disk::CannotRead>(), standing) {
                (_, Some(standing)) => ExitCode::from(standing.code()),
                (Some(_), None) => ExitCode::from(2),
                (None, None) => ExitCode::FAILURE,
            }
        }
    }
}

async fn run(command: Command) -> CommandResult {
    match command {
        Command::Dev(args) => commands::dev::run(args).await,
        Command::Init(args) => commands::init::run(args).await,
        Command::Gateway(args) => commands::gateway::run(args).await,
        Command::Node(args) => commands::node::run(args).await,
        Command::Config(args) => commands::config::run(&args),
        Command::Status(args) => commands::status::run(args).await,
        Command::Disk(args) => commands::disk::run(args).await,
        Command::Volume(args) => commands::places::volume(args).await,
        Command::Object(args) => commands::places::object(args).await,
        Command::Rebuild(args) => commands::places::rebuild(args).await,
        Command::Rebalance(args) => commands::rebalance::run(args).await,
        Command::Scrub(args) => commands::scrub::run(args).await,
        Command::Ledger(args) => commands::ledger::run(args).await,
        Command::Kit(args) => commands::kit::run(args).await,
        Command::Unnamed(args) => commands::unnamed::run(args).await,
        Command::Bench(args) => bench::run(args).await.map_err(Into::into),
    }
}
