//! Units that are to be on another disk although theirs is well.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use storage_node::protocol::{DiskId, UnitId};

/// Where each of them is to be. Whoever moves units asks; whoever rebalances says.
#[derive(Default)]
pub struct Relocations(Mutex<HashMap<UnitId, DiskId>>);

impl Relocations {
    /// Where a unit is to be.
    pub fn target(&self, unit: UnitId) -> Option<DiskId> {
        self.lock().get(&unit).copied()
    }

    /// All units that are on their way.
    pub fn units(&self) -> Vec<UnitId> {
        self.lock().keys().copied().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// More of them.
    pub fn extend(&self, more: impl IntoIterator<Item = (UnitId, DiskId)>) {
        self.lock().extend(more);
    }

    /// One has arrived, or cannot go.
    pub fn remove(&self, unit: UnitId) {
        self.lock().remove(&unit);
    }

    /// None any more.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UnitId, DiskId>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
