//! Writes objects.

use super::commit::BlobChange;
use super::condition::WriteConditions;
use super::digest::{Algorithm, ContentDigests, hex};
use super::ingest::ingest;
use super::{Body, Objects};
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRef, BucketRow, ChecksumRow, Headers, ObjectRow};
use crate::ledger::{CommitBuilder, Typed, key};
use std::sync::Arc;

/// What the client says about the bytes it sends.
#[derive(Default)]
pub struct Expected {
    /// Their number.
    pub length: Option<u64>,
    /// Their MD5 (Content-MD5).
    pub md5: Option<[u8; 16]>,
    /// The checksum to compute and keep.
    pub algorithm: Option<Algorithm>,
    /// The checksum's value, if it was sent; asked once the body has been read, because it may come as a trailer.
    pub checksum: Option<ChecksumSource>,
}

/// Tells the announced checksum once the body was read: a digest, none, or an error if it cannot be understood.
pub type ChecksumSource = Box<dyn FnOnce() -> Result<Option<Vec<u8>>> + Send>;

impl Expected {
    /// Checks what arrived against what was announced.
    pub fn verify(self, digests: &ContentDigests) -> Result<()> {
        if self.md5.is_some_and(|md5| md5 != digests.md5) {
            return Err(Error::BadDigest {
                algorithm: "Content-MD5",
            });
        }
        let announced = self.checksum.map_or(Ok(None), |source| source())?;
        match (announced, &digests.checksum) {
            (Some(announced), Some((algorithm, digest))) if announced != *digest => Err(Error::BadDigest {
                algorithm: algorithm.name(),
            }),
            _ => Ok(()),
        }
    }
}

/// What a put answers.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Without quotes.
    pub etag: String,
    /// Milliseconds since 1970.
    pub modified_ms: u64,
    /// The checksum, if one was computed.
    pub checksum: Option<ChecksumRow>,
    /// Bytes.
    pub size: u64,
}

/// A checksum as it is kept: over the whole content.
pub fn checksum_row(digests: &ContentDigests) -> Option<ChecksumRow> {
    digests.checksum.as_ref().map(|(algorithm, digest)| ChecksumRow {
        algorithm: algorithm.name().into(),
        digest: digest.clone().into(),
        composite_parts: 0,
    })
}

/// Versions of an object that come within so many milliseconds may have the same time.
const SAME_TIME_MS: u64 = 2_000;

/// When an object was modified, if it is now, and was modified before. A later version never looks older to a client; after a clock
/// that was ahead it looks newer by the second that HTTP can tell, or caches would keep the version before.
fn later(now_ms: u64, before_ms: Option<u64>) -> u64 {
    let before_ms = before_ms.unwrap_or(0);
    match before_ms.saturating_sub(now_ms) {
        0..=SAME_TIME_MS => now_ms.max(before_ms),
        _ => (before_ms / 1_000 + 1) * 1_000,
    }
}

impl Objects {
    /// Stores an object: durable, with full redundancy, when this returns.
    pub async fn put(
        self: &Arc<Self>,
        bucket: &str,
        name: &str,
        body: Body,
        mut expected: Expected,
        headers: Headers,
        conditions: WriteConditions,
    ) -> Result<Stored> {
        self.check_write(bucket, name, &conditions).await?;
        let (length, algorithm) = (expected.length.take(), expected.algorithm);
        let ingested = ingest(self, body, length, algorithm).await?;
        expected.verify(&ingested.digests)?;
        let row = ObjectRow {
            size: ingested.size,
            etag: hex(&ingested.digests.md5),
            blobs: ingested.blobs,
            headers: Some(headers),
            checksum: checksum_row(&ingested.digests),
            ..Default::default()
        };
        let fresh = row.blobs.clone();
        let target = Target {
            bucket: bucket.into(),
            name: name.into(),
            conditions,
        };
        self.decide_and_commit(Some(ingested.pending), move |objects| {
            let (target, row, fresh) = (target.clone(), row.clone(), fresh.clone());
            async move {
                objects
                    .replace(CommitBuilder::new(), &target, row, fresh, Vec::new(), Vec::new())
                    .await
            }
        })
        .await
    }

    /// Fails early, before the body is read, where the commit would fail late.
    pub async fn check_write(&self, bucket: &str, name: &str, conditions: &WriteConditions) -> Result<()> {
        self.ledger.check_writable()?;
        let bucket = self.bucket(bucket).await?;
        if *conditions != WriteConditions::default() {
            let current = self
                .ledger
                .get::<ObjectRow>(key::object(bucket.row.id, name))
                .await?;
            conditions.check(current.as_ref().map(|c| &c.row))?;
        }
        Ok(())
    }

    /// Adds to a commit that `row` becomes the object. `fresh` are blobs just written and `gained` existing ones that
    /// the row shares; `lost` ones, and what the object had before, lose a reference.
    pub async fn replace(
        &self,
        commit: CommitBuilder,
        target: &Target,
        mut row: ObjectRow,
        fresh: Vec<BlobRef>,
        gained: Vec<BlobRef>,
        mut lost: Vec<BlobRef>,
    ) -> Result<(CommitBuilder, Stored)> {
        let (bucket, current) = self.current(target).await?;
        target.conditions.check(current.as_ref().map(|c| &c.row))?;
        let before = current.as_ref().map(|current| current.row.modified_ms);
        row.modified_ms = later(self.clock.now_ms(), before);
        let object_key = key::object(bucket.row.id, &target.name);
        let commit = commit
            .expect(&key::bucket(&target.bucket), Some(bucket.version))
            .expect(&object_key, current.as_ref().map(|c| c.version))
            .put(object_key, &row);
        lost.extend(current.map(|c| c.row.blobs).unwrap_or_default());
        let change = BlobChange {
            fresh,
            gained,
            lost,
            owner: target.owner(),
        };
        let commit = self.change_blobs(commit, &change).await?;
        let stored = Stored {
            etag: row.etag,
            modified_ms: row.modified_ms,
            checksum: row.checksum,
            size: row.size,
        };
        Ok((commit, stored))
    }

    /// The bucket and what the object is now.
    pub async fn current(&self, target: &Target) -> Result<(Typed<BucketRow>, Option<Typed<ObjectRow>>)> {
        let bucket = self.bucket_to_change(&target.bucket).await?;
        let current = self
            .ledger
            .get::<ObjectRow>(key::object(bucket.row.id, &target.name))
            .await?;
        Ok((bucket, current))
    }
}

/// The object a request writes.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub name: String,
    /// What must hold.
    pub conditions: WriteConditions,
}

impl Target {
    /// For people: `bucket/key`, shortened where it is long.
    pub fn owner(&self) -> String {
        let mut owner = format!("{}/{}", self.bucket, self.name);
        let end = (0..=owner.len().min(128))
            .rev()
            .find(|&i| owner.is_char_boundary(i))
            .unwrap_or(0);
        owner.truncate(end);
        owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_version_is_never_older_and_tells_itself_apart_after_a_clock_that_was_ahead() {
        assert_eq!(later(5_000, None), 5_000);
        assert_eq!(later(5_000, Some(4_999)), 5_000);
        assert_eq!(later(5_000, Some(5_000)), 5_000);
        assert_eq!(later(5_000, Some(6_500)), 6_500);
        assert_eq!(later(5_000, Some(3_605_250)), 3_606_000);
        assert_eq!(later(6_000, Some(3_606_000)), 3_607_000);
    }
}
