//! Cairn's storage node: devices, the disk engine, the node server and its client.
pub mod client;
pub mod protocol;
