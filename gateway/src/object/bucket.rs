//! Buckets. A bucket is deleted in two steps: its row is marked, which holds up every put (each has the row's version
//! as a precondition), then it is looked through, and removed only if it is empty. Until it is removed it is there for all others.

use super::Objects;
use super::commit::back_off;
use crate::error::{Error, Result};
use crate::ledger::model::{BucketRow, ObjectRow, UploadRow};
use crate::ledger::{CONFLICT_RETRIES, CommitBuilder, Typed, key};
use std::sync::Arc;

/// Buckets that are read at a time.
const BUCKETS_AT_ONCE: usize = 1_000;

/// The most buckets there may be.
pub const BUCKETS_MAX: usize = 10_000;

/// Buckets as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// In the order of their names.
    pub found: Vec<BucketInfo>,
    /// Whether rows of the ledger among them cannot be read: what they name may be there, and is not listed.
    pub incomplete: bool,
}

/// A bucket as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    /// Its name.
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// Does something again while somebody else is at the same bucket.
async fn until_decided<T, F: Future<Output = Result<T>>>(again: impl Fn() -> F) -> Result<T> {
    for attempt in 1..CONFLICT_RETRIES {
        match again().await {
            Err(Error::Conflict) => back_off(attempt).await,
            decided => return decided,
        }
    }
    again().await
}

impl Objects {
    /// The row of a bucket that exists.
    pub async fn bucket(&self, name: &str) -> Result<Typed<BucketRow>> {
        match self.ledger.get::<BucketRow>(key::bucket(name)).await? {
            Some(bucket) => Ok(bucket),
            None => Err(Error::NoSuchBucket),
        }
    }

    /// The same, for a commit that puts something there. While the bucket may be on its way out that is a conflict: whether it goes is
    /// known soon.
    pub async fn bucket_to_change(&self, name: &str) -> Result<Typed<BucketRow>> {
        match self.bucket(name).await? {
            bucket if bucket.row.deleting => Err(Error::Conflict),
            bucket => Ok(bucket),
        }
    }

    /// Makes a bucket.
    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        until_decided(|| self.try_create_bucket(name)).await
    }

    async fn try_create_bucket(&self, name: &str) -> Result<()> {
        let row_key = key::bucket(name);
        match self.ledger.get::<BucketRow>(row_key.clone()).await? {
            Some(bucket) if bucket.row.deleting => return Err(Error::Conflict),
            Some(_) => return Err(Error::BucketAlreadyOwnedByYou),
            None => {}
        }
        if self.ledger.count(key::buckets(""), BUCKETS_MAX).await? >= BUCKETS_MAX {
            return Err(Error::TooManyBuckets);
        }
        let id = self.ledger.take_ids(key::Counter::Bucket, 1).await?;
        let row = BucketRow {
            id,
            created_ms: self.clock.now_ms(),
            deleting: false,
            cors: Default::default(),
        };
        let commit = self
            .lease
            .fence(CommitBuilder::new().expect(&row_key, None).put(row_key, &row));
        match self.ledger.commit(commit.build()).await.map_err(Error::from) {
            Err(Error::Conflict) => Err(Error::BucketAlreadyOwnedByYou),
            other => other.map(|_| ()),
        }
    }

    /// Deletes a bucket if it holds no objects; uploads in progress are aborted. Runs to its end even if the caller
    /// leaves: a bucket is never left half deleted.
    pub async fn delete_bucket(self: &Arc<Self>, name: &str) -> Result<()> {
        let (objects, name, inside) = (self.clone(), name.to_string(), self.gate.enter_within());
        let task = tokio::spawn(async move {
            let _inside = inside;
            until_decided(|| objects.mark_and_delete(&name)).await
        });
        task.await
            .map_err(|e| Error::Internal(format!("a bucket's deletion stopped: {e}")))?
    }

    async fn mark_and_delete(self: &Arc<Self>, name: &str) -> Result<()> {
        let row_key = key::bucket(name);
        let bucket = self
            .ledger
            .get::<BucketRow>(row_key.clone())
            .await?
            .ok_or(Error::NoSuchBucket)?;
        if bucket.row.deleting {
            return Err(Error::Conflict); // Somebody else is at it.
        }
        if self.has_objects(bucket.row.id).await? {
            return Err(Error::BucketNotEmpty);
        }
        let marked = BucketRow {
            deleting: true,
            ..bucket.row.clone()
        };
        let commit = CommitBuilder::new()
            .expect(&row_key, Some(bucket.version))
            .put(row_key.clone(), &marked);
        let version = self.ledger.commit(self.lease.fence(commit).build()).await?;
        // From here no put can commit, so what is seen now is all there is.
        let emptied = match self.has_objects(bucket.row.id).await {
            Ok(true) => Err(Error::BucketNotEmpty),
            Ok(false) => self.abort_all_uploads(bucket.row.id).await,
            Err(error) => Err(error),
        };
        let commit = CommitBuilder::new().expect(&row_key, Some(version));
        let commit = match &emptied {
            Ok(()) => commit.delete(row_key),
            Err(_) => commit.put(row_key, &bucket.row),
        };
        self.ledger.commit(self.lease.fence(commit).build()).await?;
        emptied
    }

    /// Finishes deletions of buckets that a crash cut short: an empty one goes, any other comes back.
    pub async fn finish_bucket_deletions(self: &Arc<Self>) -> Result<()> {
        let mut marked = Vec::new();
        self.ledger
            .for_each(key::buckets(""), |row_key, bucket: Typed<BucketRow>| {
                if bucket.row.deleting {
                    marked.push((row_key, bucket));
                }
            })
            .await?;
        for (row_key, bucket) in marked {
            let restored = BucketRow {
                deleting: false,
                ..bucket.row
            };
            let commit = CommitBuilder::new()
                .expect(&row_key, Some(bucket.version))
                .put(row_key.clone(), &restored);
            self.ledger.commit(self.lease.fence(commit).build()).await?;
            if let Some(name) = key::bucket_name(&row_key) {
                match self.delete_bucket(&name).await {
                    Ok(()) | Err(Error::BucketNotEmpty) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// The buckets, by name.
    pub async fn list_buckets(&self, prefix: &str, from: &str, limit: usize) -> Result<Buckets> {
        let (mut found, mut incomplete) = (Vec::new(), false);
        let mut range = key::buckets(from.max(prefix));
        loop {
            let shown = self
                .ledger
                .scan_beside::<BucketRow>(range.clone(), BUCKETS_AT_ONCE)
                .await?;
            incomplete |= shown.lacks;
            for (row_key, bucket) in shown.rows {
                if let Some(name) = key::bucket_name(&row_key)
                    && name.starts_with(prefix)
                    && found.len() < limit
                {
                    let created_ms = bucket.row.created_ms;
                    found.push(BucketInfo { name, created_ms });
                }
            }
            match shown.next {
                Some(next) => range.start = next,
                None => break,
            }
        }
        Ok(Buckets { found, incomplete })
    }

    async fn has_objects(&self, bucket: u64) -> Result<bool> {
        Ok(!self
            .ledger
            .scan::<ObjectRow>(key::objects(bucket, "", b""), 1)
            .await?
            .is_empty())
    }

    async fn abort_all_uploads(self: &Arc<Self>, bucket: u64) -> Result<()> {
        loop {
            let uploads = self
                .ledger
                .scan::<UploadRow>(key::uploads(bucket, "", b""), 100)
                .await?;
            if uploads.is_empty() {
                return Ok(());
            }
            for (row_key, _) in uploads {
                if let Some((name, upload)) = key::upload_name(&row_key) {
                    match self.abort_upload_of(bucket, &name, upload).await {
                        Ok(()) | Err(Error::NoSuchUpload) => {} // Its client was faster.
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
}
