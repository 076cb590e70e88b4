//! What the flusher names of `src/engine/committer.rs`.

use super::Shared;
use crate::sync::Arc;

/// Here a panic ends the test.
#[allow(dead_code)]
pub struct FenceOnPanic(pub Arc<Shared>, pub &'static str);
