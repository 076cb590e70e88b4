//! Who is in the cluster and how they are: disks and their health, this gateway's lease, the first start.

pub mod disks;
pub mod lease;
pub mod setup;
