//! Benchmarks of Cairn: see `benches/`. Each is small by default, so that running them all is a test that they have not
//! rotted, and large on request (`-- --full`).

use std::error::Error;

pub mod disk;
pub mod fio;
#[cfg(isal)]
pub mod isal;
pub mod loads;
pub mod peers;
pub mod report;
pub mod sample;
pub mod shards;
pub mod watched;

/// What goes wrong in a benchmark.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
