//! Disks that know a newer epoch of a unit of theirs than the ledger has, and refuse what it asks: a copy of the ledger that was given up
//! moved a unit of the volume, and the disk was away when it was looked what disks know (`admin/accept`). Epochs only fence, and the
//! disk obeys this ledger: so the ledger's is raised past it.
//!
//! Invariant: an epoch is raised only if it stays behind: while a unit is being moved, disks may know of it a moment before the ledger.

use crate::error::Result;
use crate::ledger::model::{VolumeRow, VolumeState};
use crate::ledger::{CommitBuilder, key};
use crate::object::Objects;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long it has to stay behind.
const PATIENCE: Duration = Duration::from_secs(20);
/// No copy moves a unit so often: a disk that says so is wrong.
const AHEAD_MAX: u32 = 1 << 16;
/// More units are not watched; what is not is met again.
const WATCHED_MAX: usize = 4_096;

/// Units whose disks know a newer epoch, and since when.
#[derive(Debug, Default)]
pub struct NewerEpochs(Mutex<HashMap<(u64, u8), Seen>>);

/// The ledger's epoch, the disk's, and since when it is these two: a move that ends changes the first.
#[derive(Debug)]
struct Seen {
    epochs: (u32, u32),
    since: Instant,
}

impl NewerEpochs {
    /// Whether it was these two for long enough.
    fn stays(&self, unit: (u64, u8), epochs: (u32, u32)) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= WATCHED_MAX && !seen.contains_key(&unit) {
            seen.clear();
        }
        let now = || Seen {
            epochs,
            since: Instant::now(),
        };
        let found = seen.entry(unit).or_insert_with(now);
        if found.epochs != epochs {
            *found = now();
        }
        found.since.elapsed() >= PATIENCE
    }

    fn forget(&self, unit: (u64, u8)) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remove(&unit);
    }
}

impl Objects {
    /// Takes in that the disk of a unit refused a request because it knows this epoch of it.
    pub async fn note_newer_epoch(&self, volume: u64, index: u8, known: u32) -> Result<()> {
        let unit = (volume, index);
        let row_key = key::volume(volume);
        let Some(found) = self.ledger.get::<VolumeRow>(row_key.clone()).await? else {
            return Ok(());
        };
        let mut row = found.row;
        if known <= row.epoch || known - row.epoch > AHEAD_MAX {
            self.newer_epochs.forget(unit);
            return Ok(());
        }
        if !self.newer_epochs.stays(unit, (row.epoch, known)) {
            return Ok(());
        }
        tracing::info!(
            volume,
            index,
            epoch = row.epoch,
            known,
            "a disk knows a newer epoch of its unit than the ledger: the ledger's is raised"
        );
        row.epoch = known + 1;
        row.set_state(VolumeState::Sealed); // What a copy put there is set aside by a census; nothing new comes to it.
        let commit = CommitBuilder::new()
            .expect(&row_key, Some(found.version))
            .put(row_key, &row);
        if self.commit_unless_changed(commit).await? {
            self.volumes.refresh(volume).await?;
        }
        self.newer_epochs.forget(unit);
        Ok(())
    }
}
