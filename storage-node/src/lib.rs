//! Cairn's storage node: devices, the disk engine, the node server and its client.
//!
//! From the bottom up: [`device`] moves aligned bytes, [`format`] says what they mean, [`engine`] keeps one disk,
//! [`node`] keeps several, [`server`] and [`http_client`] carry [`client::StorageClient`] over HTTP.
pub mod client;
pub mod device;
pub mod engine;
pub mod format;
pub mod http_client;
pub mod metrics;
pub mod node;
pub mod protocol;
pub mod server;
mod wire;
