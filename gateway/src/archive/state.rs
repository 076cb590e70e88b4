//! How the archive is doing: what others of the gateway, and operators, want to know of it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use storage_node::protocol::{DiskId, UnitId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Garbage waits for the archive, but not for one that has been behind for so long: a full disk must be able to delete.
const COLLECT_AFTER: Duration = Duration::from_secs(60);
/// An archive that has been behind for so long is worth a warning.
const WARN_AFTER: Duration = Duration::from_secs(30);

/// The most copies that are remembered to be wrong: the others are found again.
const ROTTEN_MAX: usize = 1_000;

/// A copy of an entry that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rotten {
    /// The disk it is on.
    pub disk: DiskId,
    /// Its unit there.
    pub unit: UnitId,
    /// The number of the entry.
    pub number: u64,
}

/// What operators see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveStatus {
    /// Whether there is one: the ledger's engine says what it commits.
    pub on: bool,
    /// Whether commits wait until they are in it.
    pub sync: bool,
    /// The version of the last commit in it.
    pub shipped: u64,
    /// Commits that are not.
    pub behind_commits: u64,
    /// For how many seconds something has waited.
    pub behind_s: u64,
    /// Entries written by this process, and their bytes, of one copy.
    pub entries: u64,
    /// See `entries`.
    pub bytes: u64,
    /// Copies of each.
    pub copies: usize,
    /// Shards of it on the disks, all copies: they are among what disks say they hold.
    #[serde(default)]
    pub held_shards: u64,
    /// Their bytes.
    #[serde(default)]
    pub held_bytes: u64,
    /// Complete snapshots that it has.
    pub snapshots: usize,
    /// The newest of them.
    pub snapshot: Option<SnapshotStatus>,
    /// Rows of the snapshot that is being made.
    pub making_rows: Option<u64>,
    /// Why a new snapshot is due, if one is.
    pub due: Option<String>,
    /// Why entries cannot be written.
    pub error: Option<String>,
}

/// A complete snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// A ledger restored from it has this position at least.
    pub position: u64,
    /// When it was complete, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its bytes, of one copy.
    pub bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Archive {
    status: Mutex<ArchiveStatus>,
    behind_since: Mutex<Option<Instant>>,
    warned: AtomicBool,
    shipped: watch::Sender<u64>,
    snapshot_wanted: AtomicBool,
    rotten: Mutex<BTreeSet<Rotten>>,
    /// Wakes the shipper.
    pub(super) wake: Notify,
}

impl Default for Archive {
    fn default() -> Archive {
        Archive {
            status: Mutex::default(),
            behind_since: Mutex::default(),
            warned: AtomicBool::new(false),
            shipped: watch::Sender::new(0),
            snapshot_wanted: AtomicBool::new(false),
            rotten: Mutex::default(),
            wake: Notify::new(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Archive {
    /// How it is, of a ledger at this position.
    pub fn status(&self, position: u64) -> ArchiveStatus {
        let mut status = lock(&self.status).clone();
        if status.on {
            status.behind_commits = position.saturating_sub(status.shipped);
        }
        status.behind_s = self.behind().as_secs();
        status
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut ArchiveStatus)) {
        change(&mut lock(&self.status));
    }

    /// For how long something has waited to be written.
    pub fn behind(&self) -> Duration {
        lock(&self.behind_since).map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Takes in whether something waits.
    pub(super) fn note_waiting(&self, waits: bool) {
        let mut since = lock(&self.behind_since);
        *since = match (waits, *since) {
            (false, _) => None,
            (true, since) => since.or_else(|| Some(Instant::now())),
        };
        let behind = since.map_or(Duration::ZERO, |since| since.elapsed());
        drop(since);
        if behind > WARN_AFTER && !self.warned.swap(true, Ordering::Relaxed) {
            let why = lock(&self.status).error.clone().unwrap_or_default();
            tracing::warn!(
                why,
                behind_s = behind.as_secs(),
                "the archive of the ledger is behind: what is committed now is on the gateway's machine alone"
            );
        }
        if behind.is_zero() && self.warned.swap(false, Ordering::Relaxed) {
            tracing::info!("the archive of the ledger has caught up");
        }
    }

    /// Takes in that all commits up to this version are in the archive.
    pub(super) fn note_shipped(&self, version: u64) {
        self.change(|status| status.shipped = version);
        self.shipped
            .send_if_modified(|shipped| std::mem::replace(shipped, version) != version);
    }

    /// Returns when the commit of this version is in the archive.
    pub async fn shipped(&self, version: u64) {
        let mut shipped = self.shipped.subscribe();
        // The sender lives as long as `self`.
        let _ = shipped.wait_for(|shipped| *shipped >= version).await;
    }

    /// Whether shards may be deleted that a commit of this version made garbage. Before it is in the archive they are needed: a ledger
    /// restored from there would still name them.
    pub fn may_collect(&self, version: u64) -> bool {
        let status = lock(&self.status);
        let known = !status.on || version <= status.shipped;
        drop(status);
        known || self.behind() > COLLECT_AFTER
    }

    /// Takes in that copies were found wrong: they are written anew.
    pub fn note_rotten(&self, copies: impl IntoIterator<Item = Rotten>) {
        let mut rotten = lock(&self.rotten);
        for copy in copies {
            if rotten.len() < ROTTEN_MAX {
                rotten.insert(copy);
            }
        }
    }

    pub(super) fn take_rotten(&self, most: usize) -> Vec<Rotten> {
        let mut rotten = lock(&self.rotten);
        (0..most).map_while(|_| rotten.pop_first()).collect()
    }

    /// Has a new snapshot made.
    pub fn want_snapshot(&self) {
        self.snapshot_wanted.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn take_wanted(&self) -> bool {
        self.snapshot_wanted.swap(false, Ordering::Relaxed)
    }
}
