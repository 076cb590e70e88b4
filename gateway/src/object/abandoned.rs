//! Blobs that were begun and will not be named: the upload failed, was cut off, or moved to another volume.
//!
//! A guard holds the blobs of an upload until the ledger names them; dropped before that, for whatever reason, it
//! hands them to the garbage worker. If the process dies first, the lease's id ranges find them (see `cluster/lease`).

use super::readers::BlobKey;
use crate::ledger::model::SealsRow;
use crate::ledger::{CommitBuilder, key};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// The blobs waiting to become garbage rows.
#[derive(Clone, Default)]
pub struct Abandoned {
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct Waiting {
    /// Blobs that uploads are writing, by volume.
    pending: HashMap<u64, usize>,
    blobs: Vec<BlobKey>,
    /// Taken, and in the ledger at any moment: they count until they are.
    taken: usize,
}

/// Blobs that are being made garbage rows; dropped without [`Taken::done`] they wait again.
pub struct Taken {
    from: Abandoned,
    /// Which.
    pub blobs: Vec<BlobKey>,
}

impl Taken {
    /// They are rows now.
    pub fn done(mut self) {
        self.from.lock().taken -= self.blobs.len();
        self.blobs.clear();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut waiting = self.from.lock();
        waiting.taken -= self.blobs.len();
        waiting.blobs.append(&mut self.blobs);
    }
}

impl Abandoned {
    /// Hands over blobs.
    pub fn add(&self, blobs: impl IntoIterator<Item = BlobKey>) {
        self.lock().blobs.extend(blobs);
        self.wake.notify_one();
    }

    /// Takes up to `most` of them.
    pub fn take(&self, most: usize) -> Taken {
        let mut waiting = self.lock();
        let at = waiting.blobs.len().saturating_sub(most);
        let blobs = waiting.blobs.split_off(at);
        waiting.taken += blobs.len();
        Taken {
            from: self.clone(),
            blobs,
        }
    }

    /// How many no row names yet.
    pub fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.blobs.len() + waiting.taken
    }

    /// Whether an upload has a blob in this volume that no row names yet, and that is not waiting to be garbage.
    pub fn is_writing(&self, volume: u64) -> bool {
        self.lock().pending.contains_key(&volume)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns when there is, or may be, work: blobs were handed over, or rows were made garbage.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Says that the garbage queue has new rows.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// A guard for the blobs of one upload.
    pub fn guard(&self) -> PendingBlobs {
        PendingBlobs {
            abandoned: self.clone(),
            blobs: Vec::new(),
            seals: Vec::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The blobs of an upload that no row names yet.
pub struct PendingBlobs {
    abandoned: Abandoned,
    blobs: Vec<BlobKey>,
    seals: Vec<(BlobKey, Bytes)>,
}

impl PendingBlobs {
    /// One more; called before its first shard is sent.
    pub fn add(&mut self, blob: BlobKey) {
        *self.abandoned.lock().pending.entry(blob.0).or_default() += 1;
        self.blobs.push(blob);
    }

    /// Hands one over early, because the upload goes on without it.
    pub fn abandon(&mut self, blob: BlobKey) {
        self.blobs.retain(|b| *b != blob);
        self.abandoned.add([blob]);
        self.forget(&[blob]);
    }

    /// One of them is complete, and these are its seals.
    pub fn seal(&mut self, blob: BlobKey, seals: Bytes) {
        self.seals.push((blob, seals));
    }

    /// Adds the rows of their seals to the commit that names them.
    pub fn name_seals(&self, commit: CommitBuilder) -> CommitBuilder {
        self.seals.iter().fold(commit, |commit, ((volume, blob), seals)| {
            let block_crcs = seals.clone();
            commit.put(key::seals(*volume, *blob), &SealsRow { block_crcs })
        })
    }

    /// The ledger names them now, or may: they are not to be collected.
    pub fn keep(mut self) {
        let blobs = std::mem::take(&mut self.blobs);
        self.forget(&blobs);
    }

    fn forget(&self, blobs: &[BlobKey]) {
        let mut waiting = self.abandoned.lock();
        for (volume, _) in blobs {
            if let Some(count) = waiting.pending.get_mut(volume) {
                *count -= 1;
                if *count == 0 {
                    waiting.pending.remove(volume);
                }
            }
        }
    }
}

impl Drop for PendingBlobs {
    fn drop(&mut self) {
        let blobs = std::mem::take(&mut self.blobs);
        if !blobs.is_empty() {
            self.forget(&blobs);
            self.abandoned.add(blobs);
        }
    }
}
