//! What operators see and do: status, metrics, health, nodes, disks and where things are; on an address of its own.

pub mod accept;
pub mod archive;
pub mod ledger;
pub mod nodes;
pub mod operations;
pub mod places;
pub mod rebalance;
pub mod scrub;
pub mod server;
pub mod status;
pub mod strays;
pub mod unnamed;
pub mod verdict;
