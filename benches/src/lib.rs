//! Benchmarks of Cairn: see `benches/`. Each is small by default, so that running them all is a test that they have not
//! rotted, and large on request (`-- --full`).

pub mod amplification;
pub mod clients;
pub mod cluster;
pub mod disk;
pub mod fio;
#[cfg(isal)]
pub mod isal;
pub mod latency;
pub mod loads;
pub mod peers;
pub mod report;
pub mod sample;
pub mod shards;
pub mod watched;

/// What goes wrong in a benchmark.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// Or what comes out of it.
pub type Result<T> = std::result::Result<T, Error>;
