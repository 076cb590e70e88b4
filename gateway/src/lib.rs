//! Cairn's gateway: S3, object pipelines, placement, the ledger, maintenance, admin.
//!
//! ```text
//! s3 ──► object ──► placement ──► ledger
//!          │            │
//!          └── storage-node's client, ec-core
//! cluster (disks, lease, setup)   maintenance (garbage, orphans, repair)   admin (status, metrics, health)
//! connections and budget: what clients hold
//! ```
//! `server` is the only place that wires these together.

pub mod admin;
pub mod archive;
pub mod budget;
pub mod clock;
pub mod cluster;
pub mod connections;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod gate;
pub mod ledger;
pub mod maintenance;
pub mod metrics;
pub mod object;
pub mod placement;
pub mod s3;
pub mod server;
