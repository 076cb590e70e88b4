//! Cairn's arithmetic: which shards a stripe has, how they are computed, and how wrong bytes are told from right ones.
//!
//! - [`Scheme`] names a code and its parameters: `rs(4,2)`, `replica(3)`.
//! - [`Codec`] computes parity, and any lost shard from enough others.
//! - [`stripe`] maps a byte range of a blob to stripes, shards and offsets.
//! - [`seal`] is the checksums a shard carries from the gateway to the disk and back.
//!
//! The mathematics (field, construction, why any k shards are enough, sources) are told in `matrix.rs`, beside the code.
//!
//! Invariants: pure functions of their arguments, with no I/O, no async, no clock, no randomness and no ids; nothing
//! outside this crate knows which code it is using; no input makes it panic.

mod codec;
mod error;
mod matrix;
mod scheme;
pub mod seal;
pub mod stripe;

pub use codec::Codec;
pub use error::{Error, Result};
pub use scheme::Scheme;
