//! Cairn's arithmetic: which shards a stripe has, how they are computed, and how wrong bytes are told from right ones.
//!
//! - [`Scheme`] names a code and its parameters: `rs(4,2)`, `replica(3)`, `lrc(12,2,2)`.
//! - [`LinearCode`] is that code as a generator matrix: which losses it survives.
//! - [`Codec`] computes: parity from data, at once ([`Codec::encode`]), as shards arrive ([`Codec::encoder`]) or from what
//!   changed ([`Codec::update`]); and lost shards by a [`RepairPlan`], which says what to read.
//! - [`Kernel`] is the machine code that does it: chosen when the process runs, or forced.
//! - [`stripe`] maps a byte range of a blob to stripes, shards and offsets.
//! - [`md5`] is the digest that clients know, of many uploads at once.
//! - [`seal`] is the checksums a shard carries from the gateway to the disk and back.
//!
//! ```text
//! scheme ─► code (reed_solomon, lrc: a generator matrix) ─► plan (what to read, which coefficients)
//!                              └──────────► codec ◄──────────┘
//!                                             └─► gf256 (product: matrix × data, cut into passes; a kernel runs each)
//! ```
//!
//! The mathematics (fields, constructions, why any k shards are enough, sources) are told in `gf256.rs`, `reed_solomon.rs` and
//! `lrc.rs`, beside the code.
//!
//! Invariants: pure functions of their arguments, with no I/O, no async, no clock, no randomness and no ids
//! ([`Kernel::from_environment`] reads a variable, for whoever wires a process, and nothing here calls it); nothing outside this crate knows which code it is using; no input
//! makes it panic.

mod code;
mod codec;
mod error;
mod gf256;
mod lrc;
mod matrix;
pub mod md5;
mod plan;
mod reed_solomon;
mod scheme;
pub mod seal;
pub mod stripe;

pub use code::LinearCode;
pub use codec::{Codec, Encoder};
pub use error::{Error, Result};
pub use gf256::{KERNEL_VARIABLE, Kernel};
pub use plan::RepairPlan;
pub use scheme::Scheme;
