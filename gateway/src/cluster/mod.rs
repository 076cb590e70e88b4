//! Who is in the cluster and how they are: nodes and how they join, disks and their health, this gateway's lease, the
//! first start.

pub mod admission;
pub mod adopt;
pub mod answering;
pub mod authority;
pub mod breaker;
pub mod conduct;
pub mod disks;
pub mod generation;
pub mod join;
pub mod join_server;
pub mod latency;
pub mod lease;
pub mod nodes;
pub mod pauses;
pub mod setup;
