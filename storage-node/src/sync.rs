//! What threads share and wait for, under one name: `tests/interleavings` includes the files that take theirs from here, puts
//! shuttle's in its place, and tries in which orders threads can run.
//!
//! Invariant: such a file takes nothing that blocks, and no clock, from anywhere else.

pub use std::sync::atomic;
pub use std::sync::mpsc;
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
pub use std::thread;
pub use std::time::Instant;
