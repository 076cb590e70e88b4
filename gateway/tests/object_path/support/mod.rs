//! A cluster in memory: disks that fail on request, a ledger that can be stopped, and a census of what is where.

pub mod census;
pub mod cluster;
pub mod content;
pub mod log;
pub mod memory_node;
pub mod store;
