//! Whole-system tests of Cairn: real processes, real clients, real faults.
//!
//! A test in `tests/*.rs` is one acceptance line. It starts a [`cluster::Cluster`] (the release binary, on free ports,
//! in a directory of its own), talks to it through a [`client::Client`] or an S3 client of somebody else's
//! (`clients/`), does harm with [`faults`], and compares what it reads with a [`model::Model`] of what was
//! acknowledged. A test of the disks alone starts a [`node::NodeProcess`] instead, on [`loop_device`]s if it wants real
//! ones, and loads it with [`shard_load`]. The command that runs everything is `tests/run`.
//!
//! Invariants: a test knows the product only by its command line, its sockets and its files (a node's disks are
//! formatted, and its socket is spoken to, with the library that does it for a gateway); every wait ends; a process is
//! ended by its id; a WARN or an ERROR that a test did not expect fails it.

// Everything here is test code, where a failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

pub mod client;
pub mod cluster;
pub mod content;
mod daemon;
pub mod faults;
pub mod http;
pub mod ledger_files;
pub mod liar;
pub mod load;
pub mod loop_device;
pub mod mixed_load;
pub mod model;
pub mod network;
pub mod node;
pub mod processes;
pub mod setting;
pub mod shard_load;
pub mod shards;
pub mod sigv4;
pub mod status;
pub mod tools;
pub mod xml;
