//! The object path against a ledger and disks in memory: what is stored, read, lost, repaired, collected and raced for.
//!
//! Nothing here knows S3's protocol or a socket. Every test ends in a census where it can: what the ledger names is on
//! the disks, whole and verified, and nothing else is.

#![allow(clippy::unwrap_used)]

mod archive;
mod begun_volumes;
mod block_cache;
mod budget;
mod census;
mod garbage;
mod ledger_failure;
mod ledger_repair;
mod listing;
mod misbehaving;
mod multipart;
mod older_ledger;
mod orphans;
mod races;
mod reads;
mod rebalance;
mod rebuild;
mod repair;
mod returning;
mod round_trips;
mod scrub;
mod support;
mod unnamed;
mod writes;
