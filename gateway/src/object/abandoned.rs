//! Blobs that were begun and will not be named: the upload failed, was cut off, or moved to another volume.
//!
//! A guard holds the blobs of an upload until the ledger names them; dropped before that, for whatever reason, it
//! hands them to the garbage worker. If the process dies first, the lease's id ranges find them (see `cluster/lease`).

use super::readers::BlobKey;
use crate::ledger::model::SealsRow;
use crate::ledger::{CommitBuilder, key};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap, HashSet};
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
    pending: HashMap<u64, HashSet<u64>>,
    blobs: Vec<BlobKey>,
    /// Taken, and in the ledger at any moment: they count until they are.
    taken: HashSet<BlobKey>,
    /// Blobs of commits whose outcome nobody told: the ledger may name them at any time, until this gateway's lease ends.
    /// There is one commit of them, or few: a ledger that fails like that is not asked for long.
    unknown: HashSet<BlobKey>,
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
        let mut waiting = self.from.lock();
        self.blobs.drain(..).for_each(|blob| {
            waiting.taken.remove(&blob);
        });
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut waiting = self.from.lock();
        for blob in self.blobs.drain(..) {
            waiting.taken.remove(&blob);
            waiting.blobs.push(blob);
        }
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
        waiting.taken.extend(&blobs);
        Taken {
            from: self.clone(),
            blobs,
        }
    }

    /// How many no row names yet.
    pub fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.blobs.len() + waiting.taken.len()
    }

    /// Whether an upload has a blob in this volume that no row names yet, and that is not waiting to be garbage.
    pub fn is_writing(&self, volume: u64) -> bool {
        self.lock().pending.contains_key(&volume)
    }

    /// Takes out of these blobs of a volume those that this gateway may still name, or make garbage, by itself.
    pub fn retain_settled(&self, volume: u64, blobs: &mut BTreeSet<u64>) {
        let waiting = self.lock();
        if let Some(pending) = waiting.pending.get(&volume) {
            blobs.retain(|blob| !pending.contains(blob));
        }
        let others = waiting.blobs.iter().chain(&waiting.taken).chain(&waiting.unknown);
        for (_, blob) in others.filter(|(of, _)| *of == volume) {
            blobs.remove(blob);
        }
    }

    /// Adds the ids of all blobs that this gateway may still name, or make garbage, by itself.
    pub fn extend_unsettled(&self, ids: &mut BTreeSet<u64>) {
        let waiting = self.lock();
        waiting.pending.values().for_each(|blobs| ids.extend(blobs));
        let others = waiting.blobs.iter().chain(&waiting.taken).chain(&waiting.unknown);
        ids.extend(others.map(|(_, blob)| *blob));
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
        let mut waiting = self.abandoned.lock();
        waiting.pending.entry(blob.0).or_default().insert(blob.1);
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

    /// The ledger names them now.
    pub fn named(mut self) {
        let blobs = std::mem::take(&mut self.blobs);
        self.forget(&blobs);
    }

    /// The ledger may name them now, or later: they are not to be collected.
    pub fn may_be_named(mut self) {
        let blobs = std::mem::take(&mut self.blobs);
        self.abandoned.lock().unknown.extend(&blobs);
        self.forget(&blobs);
    }

    fn forget(&self, blobs: &[BlobKey]) {
        let mut waiting = self.abandoned.lock();
        for (volume, blob) in blobs {
            if let Some(pending) = waiting.pending.get_mut(volume) {
                pending.remove(blob);
                if pending.is_empty() {
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
            self.abandoned.add(blobs.iter().copied());
            self.forget(&blobs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever a blob is on its way from being written to a row, it is not settled.
    #[test]
    fn a_blob_is_settled_only_when_this_process_is_done_with_it() {
        let abandoned = Abandoned::default();
        let is_settled = |blob: u64| {
            let mut blobs = BTreeSet::from([blob]);
            abandoned.retain_settled(7, &mut blobs);
            !blobs.is_empty()
        };
        let mut named = abandoned.guard();
        let mut unknown = abandoned.guard();
        let mut dropped = abandoned.guard();
        for (guard, blob) in [(&mut named, 1), (&mut unknown, 2), (&mut dropped, 3)] {
            guard.add((7, blob));
            assert!(!is_settled(blob));
        }
        named.named();
        unknown.may_be_named();
        drop(dropped);
        assert!(is_settled(1) && !is_settled(2) && !is_settled(3));
        assert!(!abandoned.is_writing(7));
        drop(abandoned.take(10)); // Not committed: it waits again.
        assert!(!is_settled(3));
        let taken = abandoned.take(10);
        assert!(!is_settled(3));
        taken.done();
        assert!(is_settled(3) && !is_settled(2));
        assert!(abandoned.is_empty());
    }
}
