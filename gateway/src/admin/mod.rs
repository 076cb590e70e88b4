//! What operators see: status, metrics, health; on an address of its own.

pub mod operations;
pub mod server;
pub mod status;
