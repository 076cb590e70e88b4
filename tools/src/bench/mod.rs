//! `cairn bench`: a load generator over real S3 requests.
//!
//! Every combination of mix, size and concurrency is a cell, measured for the same time. Results go to standard
//! output, progress to standard error. Objects are this run's own, under a prefix of its own, and are removed at the end.
//!
//! ```text
//! plan      what to measure                     signer   where requests go, presigned
//! content   the bytes of objects                client   one connection
//! objects   sets of objects, their requests     load     the loop that is measured
//! side      one of the servers                  cpu      processor time of client and server
//! session   one cell after the other            report   table and JSON
//! ```

mod client;
mod content;
mod cpu;
mod load;
mod objects;
mod plan;
mod report;
mod session;
mod side;
mod signer;

#[cfg(test)]
mod tests;

use crate::size::parse_size;
use plan::{Mix, Op, parse_duration};
use session::Session;
use signer::Endpoint;
use std::io::Write;
use std::time::Duration;

/// The largest object one PutObject takes.
const OBJECT_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// Measure an S3 endpoint: throughput, request rate, latency and processor time
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// The S3 endpoint
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000", value_parser = Endpoint::parse)]
    endpoint: Endpoint,
    /// The admin address, for the server's processor time; left out of the results when it does not answer
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9001", value_parser = Endpoint::parse)]
    admin: Endpoint,
    /// The access key
    #[arg(long, env = "CAIRN_ACCESS_KEY", default_value = "cairn")]
    access_key: String,
    /// The secret key
    #[arg(
        long,
        env = "CAIRN_SECRET_KEY",
        default_value = "cairn-secret-key",
        hide_env_values = true
    )]
    secret_key: String,
    /// Another S3 endpoint to compare with: every cell is measured at both, in turn
    #[arg(long, value_name = "URL", value_parser = Endpoint::parse)]
    against: Option<Endpoint>,
    /// Its access key, if it is another one
    #[arg(long, env = "CAIRN_AGAINST_ACCESS_KEY", requires = "against")]
    against_access_key: Option<String>,
    /// Its secret key
    #[arg(
        long,
        env = "CAIRN_AGAINST_SECRET_KEY",
        requires = "against_access_key",
        hide_env_values = true
    )]
    against_secret_key: Option<String>,
    /// In how many turns each cell is measured: a noisy neighbour then meets both endpoints alike
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The region requests are signed for
    #[arg(long, default_value = "us-east-1")]
    region: String,
    /// The bucket; made when there is none, and then removed at the end
    #[arg(long, default_value = "cairn-bench")]
    bucket: String,
    /// Object sizes
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', default_value = "4KiB,64KiB,1MiB,16MiB", value_parser = object_size)]
    sizes: Vec<u64>,
    /// Numbers of connections, each with one request at a time
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,16", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Vec<u16>,
    /// Operations, each measured alone: put, get, head, delete, list, list-dirs
    #[arg(long, value_name = "OP,…", value_delimiter = ',', default_value = "put,get")]
    ops: Vec<Op>,
    /// Operations measured together, with weights: put=30,get=70
    #[arg(long, value_name = "OP=N,…", conflicts_with = "ops")]
    mix: Option<Mix>,
    /// How long each turn of a cell lasts (deletes alone: until the objects are gone)
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Objects of each size: read from one such set, written over another
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    objects: u32,
    /// The most bytes of one set: fewer objects are used when they are large
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = parse_size)]
    working_set: u64,
    /// What the keys of this run start with; otherwise a prefix of its own
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Read the objects that a run with the same --prefix, --sizes and --objects left by --keep, and leave them
    #[arg(long, requires = "prefix", conflicts_with = "keep")]
    reuse: bool,
    /// Check every byte of every object that is read (costs the client processor time)
    #[arg(long)]
    verify: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Leave objects and bucket in place
    #[arg(long)]
    keep: bool,
}

/// Why a benchmark did not go right. What was measured until then has been printed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server could not be reached, or refused to have objects prepared or removed.
    #[error("{0}")]
    Server(String),
    /// Requests failed while measuring.
    #[error("{errors} requests failed; the first: {first}")]
    Requests {
        /// How many.
        errors: u64,
        /// The first one's error.
        first: String,
    },
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The results could not be printed.
    #[error("cannot print: {0}")]
    Output(#[from] std::io::Error),
}

impl BenchArgs {
    /// What is measured together, one after the other.
    fn mixes(&self) -> Vec<Mix> {
        match &self.mix {
            Some(mix) => vec![mix.clone()],
            None => self.ops.iter().copied().map(Mix::only).collect(),
        }
    }
}

fn object_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size <= OBJECT_BYTES_MAX => Ok(size),
        _ => Err("one request uploads at most 5 GiB".to_owned()),
    }
}

/// Measures, prints the results, and fails if any request did.
pub async fn run(args: BenchArgs) -> Result<(), BenchError> {
    let json = args.json;
    let session = Session::new(args).map_err(BenchError::Server)?;
    session.stop_on_ctrl_c();
    let (report, result) = session.run().await;
    let mut out = std::io::stdout().lock();
    match json {
        true => writeln!(out, "{:#}", report.json())?,
        false => write!(out, "{}", report.text())?,
    }
    result
}
