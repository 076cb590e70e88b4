//! The parts of `engine` that threads share, as they are in `src/engine`, and as much of the rest as those name.

mod batches;
mod committer;
#[path = "../../src/engine/flusher.rs"]
#[allow(dead_code)]
mod flusher;
mod moves;
#[path = "../../src/engine/queue.rs"]
#[allow(dead_code)]
mod queue;
mod queues;

use crate::device::DeviceError;
use crate::metrics::DiskMetrics;
use crate::protocol::{NodeError, UnitAddress, UnitId};
use crate::sync::{Mutex, PoisonError};
use queue::Queue;
use shuttle::sync::{RwLock, RwLockWriteGuard};
use storage_node::engine::index::{self, Index};
use storage_node::protocol::DiskId;

const UNIT: UnitId = UnitId { volume: 3, index: 1 };
const ADDRESS: UnitAddress = UnitAddress {
    disk: DiskId(7),
    incarnation: 1,
    unit: UNIT,
    epoch: 1,
    ledger: storage_node::protocol::Generation::NONE,
};

/// As much of the engine's as the flusher needs.
struct Shared {
    queue: Queue,
    index: RwLock<Index>,
    device: batches::Disk,
    metrics: DiskMetrics,
    fence: Mutex<Option<String>>,
}

impl Shared {
    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn fence_with(&self, error: &DeviceError) -> NodeError {
        self.fence_because(&error.to_string())
    }

    fn fence_because(&self, reason: &str) -> NodeError {
        let mut fence = self.fence.lock().unwrap();
        let reason = fence.get_or_insert_with(|| reason.to_string()).clone();
        NodeError::Fenced { reason }
    }

    fn check_serving(&self) -> Result<(), NodeError> {
        match &*self.fence.lock().unwrap() {
            Some(reason) => Err(NodeError::Fenced {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }
}
