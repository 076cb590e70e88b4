//! Cairn's storage node: devices, the disk engine, the node server and its client.
//!
//! From the bottom up: [`device`] moves aligned bytes, [`format`] says what they mean, [`engine`] keeps one disk,
//! [`node`] keeps several, [`server`] and [`http_client`] carry [`client::StorageClient`] over HTTP. [`offline`] reads a
//! disk that nobody serves, without the engine.
pub mod client;
pub mod device;
pub mod engine;
pub mod format;
#[doc(hidden)]
pub mod fuzzing;
pub mod http_client;
pub mod join;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod offline;
pub mod protocol;
pub mod server;
mod sync;
pub mod tls;
mod wire;
