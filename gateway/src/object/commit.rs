//! The one place where objects, parts and blobs change in the ledger.
//!
//! A change is decided on rows that were read, and committed with their versions as preconditions; if one moved, it
//! is decided again on the new rows. The commit runs as a task of its own: a client that leaves in the middle cannot
//! split what is named from what is collected.

use super::Objects;
use super::abandoned::PendingBlobs;
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRef, BlobRow, GarbageRow};
use crate::ledger::store::{LedgerError, Precondition};
use crate::ledger::{CONFLICT_RETRIES, CommitBuilder, key};
use crate::object::readers::BlobKey;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How the references to blobs change in one commit.
#[derive(Clone, Debug, Default)]
pub struct BlobChange {
    /// Blobs just written, named for the first time.
    pub fresh: Vec<BlobRef>,
    /// Existing blobs that gain a reference.
    pub gained: Vec<BlobRef>,
    /// Existing blobs that lose one.
    pub lost: Vec<BlobRef>,
    /// Who owns the fresh ones, for people.
    pub owner: String,
}

impl Objects {
    /// Adds the blob and garbage rows of a change to a commit.
    pub async fn change_blobs(
        &self,
        mut commit: CommitBuilder,
        change: &BlobChange,
    ) -> Result<CommitBuilder> {
        for blob in &change.fresh {
            let row = BlobRow {
                length: blob.length,
                references: 1,
                owner: change.owner.clone(),
            };
            commit = commit.put(key::blob(blob.volume, blob.blob), &row);
        }
        let mut delta: BTreeMap<(u64, u64), i64> = BTreeMap::new();
        change
            .gained
            .iter()
            .for_each(|b| *delta.entry((b.volume, b.blob)).or_default() += 1);
        change
            .lost
            .iter()
            .for_each(|b| *delta.entry((b.volume, b.blob)).or_default() -= 1);
        delta.retain(|_, by| *by != 0);
        let keys = delta
            .keys()
            .map(|(volume, blob)| key::blob(*volume, *blob))
            .collect();
        let rows = self.ledger.get_many::<BlobRow>(keys).await?;
        for (((volume, blob), by), row) in delta.into_iter().zip(rows) {
            let row_key = key::blob(volume, blob);
            let Some(row) = row else {
                if by > 0 {
                    return Err(Error::Conflict); // It was deleted since the source was read.
                }
                // So was this one, and the commit will not apply; or the ledger is damaged, which is told when it does.
                commit = commit.expect(&row_key, None);
                continue;
            };
            commit = commit.expect(&row_key, Some(row.version));
            let references = row.row.references as i64 + by;
            commit = if references <= 0 {
                commit
                    .delete(row_key)
                    .put(key::garbage(volume, blob), &GarbageRow::default())
            } else {
                commit.put(
                    row_key,
                    &BlobRow {
                        references: references as u32,
                        ..row.row
                    },
                )
            };
        }
        Ok(commit)
    }

    /// Decides and commits, again and again until it applies, fails for good, or has lost too many races. `pending`
    /// holds the fresh blobs: kept if the commit applied or may have, collected otherwise.
    pub async fn decide_and_commit<T, F, D>(
        self: &Arc<Self>,
        pending: Option<PendingBlobs>,
        decide: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        D: Future<Output = Result<(CommitBuilder, T)>> + Send,
        F: Fn(Arc<Objects>) -> D + Send + Sync + 'static,
    {
        let (objects, inside) = (self.clone(), self.gate.enter_within());
        let task = async move {
            let _inside = inside;
            let pending = pending; // Handed over, if it comes to that, before the gate sees this leave.
            let mut lost: Option<Bytes> = None;
            for attempt in 0..CONFLICT_RETRIES {
                if attempt > 0 {
                    back_off(attempt).await;
                }
                let _turn = match &lost {
                    Some(row) => Some(objects.turns.take(row).await),
                    None => None,
                };
                let (commit, answer) = match decide(objects.clone()).await {
                    Err(Error::Conflict) => continue,
                    decided => decided?,
                };
                let commit = pending
                    .iter()
                    .fold(commit, |commit, pending| pending.name_seals(commit));
                let commit = objects.lease.fence(commit).build();
                let fence = commit.preconditions.len() - 1;
                let rows: Vec<Bytes> = commit
                    .preconditions
                    .iter()
                    .map(Precondition::key)
                    .cloned()
                    .collect();
                let missing = missing_blobs(&commit.preconditions);
                match objects.ledger.commit(commit).await {
                    Ok(_) => {
                        for (volume, blob) in missing {
                            tracing::error!(volume, blob, "a named blob has no row; nothing to collect");
                        }
                        pending.into_iter().for_each(PendingBlobs::named);
                        objects.abandoned.wake();
                        return Ok(answer);
                    }
                    Err(LedgerError::Conflict { index }) if index == fence => {
                        let what = "the lease of this gateway was revoked".to_string();
                        return Err(LedgerError::Unavailable { what }.into());
                    }
                    Err(LedgerError::Conflict { index }) => lost = rows.get(index).cloned(),
                    Err(error @ (LedgerError::OutOfBounds { .. } | LedgerError::Full)) => {
                        return Err(error.into());
                    }
                    Err(error) => {
                        // Whether it applied is unknown: the sweep after the next start will know.
                        pending.into_iter().for_each(PendingBlobs::may_be_named);
                        return Err(error.into());
                    }
                }
            }
            Err(Error::Conflict)
        };
        tokio::spawn(task)
            .await
            .map_err(|e| Error::Internal(format!("a commit stopped: {e}")))?
    }
}

/// The blobs whose rows must be missing for a commit to apply: those that lose a reference they should not have had.
fn missing_blobs(preconditions: &[Precondition]) -> Vec<BlobKey> {
    let absent = |precondition: &Precondition| match precondition {
        Precondition::Absent { key } => key::blob_of_row(key),
        Precondition::Version { .. } => None,
    };
    preconditions.iter().filter_map(absent).collect()
}

/// Waits a random while that grows with the races lost, so that many writers of one key all get their turn.
pub(super) async fn back_off(attempt: usize) {
    let most_us = 1_000 << attempt.min(6);
    tokio::time::sleep(Duration::from_micros(rand::random_range(0..most_us))).await;
}
