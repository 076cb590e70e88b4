//! Deletes objects. The row goes in the same commit that queues the blobs for collection.

use super::Objects;
use super::commit::BlobChange;
use super::condition::WriteConditions;
use super::put::Target;
use crate::error::{Error, Result};
use crate::ledger::{CommitBuilder, key};
use std::sync::Arc;

impl Objects {
    /// Deletes an object; one that does not exist is deleted already.
    pub async fn delete(
        self: &Arc<Self>,
        bucket: &str,
        name: &str,
        conditions: WriteConditions,
    ) -> Result<()> {
        let target = Target {
            bucket: bucket.into(),
            name: name.into(),
            conditions,
        };
        let (_, current) = self.current(&target).await?;
        if current.is_none() {
            return match target.conditions.matches {
                Some(_) => Err(Error::NoSuchKey),
                None => Ok(()),
            };
        }
        self.decide_and_commit(None, move |objects| {
            let target = target.clone();
            async move {
                let (_, current) = objects.current(&target).await?;
                target.conditions.check(current.as_ref().map(|c| &c.row))?;
                let Some(current) = current else {
                    return Ok((CommitBuilder::new(), ()));
                };
                let bucket = objects.bucket(&target.bucket).await?;
                let object_key = key::object(bucket.row.id, &target.name);
                let commit = CommitBuilder::new()
                    .expect(&object_key, Some(current.version))
                    .delete(object_key);
                let change = BlobChange {
                    lost: current.row.blobs,
                    ..Default::default()
                };
                Ok((objects.change_blobs(commit, &change).await?, ()))
            }
        })
        .await
    }
}
