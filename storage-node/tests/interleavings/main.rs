//! In which orders threads can run: the engine's queue, flusher and index, and the devices' completions and pool of memory, under
//! shuttle, which runs one thread at a time and chooses at every lock, wait and atomic which.
//!
//! The files under test are included as they are (`device.rs`, `engine.rs` here); what they take from `crate::sync` is shuttle's
//! here (`sync.rs`), so nothing is built twice. A wake that is lost is a deadlock, which shuttle reports; and time passes when
//! shuttle says so, so that deadlines come at every moment, and no test waits for one.
//!
//! A failure prints the seed that found it. To see it again, alone:
//! ```text
//! SHUTTLE_RANDOM_SEED=<seed> cargo nextest run --release -p storage-node --test interleavings <test>
//! ```
//! The schedule that is printed too replays exactly that run, with `shuttle::replay(test, "<schedule>")` in place of `explore`.
//! `CAIRN_TEST_LONG=1` tries a hundred times as many orders.
#![allow(clippy::unwrap_used)]

mod device;
mod engine;
mod sync;

// What the included files name by these paths.
use storage_node::{format, metrics, protocol};

/// Runs a test in so many orders that are chosen at random, and half as many with few switches between threads at rare places
/// (PCT: what takes one unlucky switch is found sooner so).
fn explore(orders: usize, test: fn()) {
    let long = std::env::var("CAIRN_TEST_LONG").is_ok_and(|long| long == "1");
    let orders = orders * if long { 100 } else { 1 };
    shuttle::check_random(test, orders);
    if std::env::var("SHUTTLE_RANDOM_SEED").is_err() {
        shuttle::check_pct(test, orders / 2, 3);
    }
}
