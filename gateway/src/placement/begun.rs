//! Volumes whose row was begun, until it is known what became of it.
//!
//! Whoever waits for a commit may leave in the middle of it, and then the ledger has a volume that nobody here knows of: its disks
//! could be removed as if nothing was on them. So the row is kept here first.
//!
//! Bounded: one volume is created at a time, and what is left here is settled every two seconds.

use crate::ledger::model::VolumeRow;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// See the module.
#[derive(Default)]
pub(super) struct Begun(Mutex<BTreeMap<u64, VolumeRow>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, VolumeRow>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn add(&self, id: u64, row: VolumeRow) {
        self.lock().insert(id, row);
    }

    pub(super) fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn all(&self) -> Vec<(u64, VolumeRow)> {
        self.lock().iter().map(|(id, row)| (*id, row.clone())).collect()
    }
}
