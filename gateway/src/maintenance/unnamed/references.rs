//! The objects and parts that name blobs which have no row of their own: such a row was lost, and its blob was not.
//!
//! All of them are read, in pages: there is no other way from a blob to what names it. It happens when the time of something is
//! over, and when an operator restores a blob, so hardly ever.

use super::PAGE;
use crate::error::Result;
use crate::ledger::model::{BlobRef, BucketRow, ObjectRow, PartRow, UnnamedRow};
use crate::ledger::{CommitBuilder, Typed, key};
use crate::object::Objects;
use crate::object::readers::BlobKey;
use std::collections::{HashMap, HashSet};

/// What names a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// The first object or part that does, for people.
    pub by: String,
    /// How many times it is named.
    pub times: u32,
    /// The length that it is named with.
    pub length: u64,
}

impl Objects {
    /// What names these blobs.
    pub async fn references(&self, blobs: &HashSet<BlobKey>) -> Result<HashMap<BlobKey, Reference>> {
        let mut found: HashMap<BlobKey, Reference> = HashMap::new();
        let mut note = |named: &[BlobRef], by: &dyn Fn() -> String| {
            for blob in named {
                let blob_key = (blob.volume, blob.blob);
                if !blobs.contains(&blob_key) {
                    continue;
                }
                let reference = found.entry(blob_key).or_insert_with(|| Reference {
                    by: by(),
                    times: 0,
                    length: blob.length,
                });
                reference.times = reference.times.saturating_add(1);
            }
        };
        let mut buckets: HashMap<u64, String> = HashMap::new();
        let bucket = |row_key: bytes::Bytes, row: Typed<BucketRow>| {
            buckets.extend(key::bucket_name(&row_key).map(|name| (row.row.id, name)));
        };
        self.ledger.for_each(key::buckets(""), bucket).await?;
        let object = |row_key: bytes::Bytes, row: Typed<ObjectRow>| {
            note(&row.row.blobs, &|| {
                let bucket = key::bucket_of_row(&row_key).and_then(|id| buckets.get(&id));
                let name = key::object_name(&row_key).unwrap_or_default();
                format!("{}/{name}", bucket.map_or("?", String::as_str))
            })
        };
        self.ledger.for_each(key::table(b'o'), object).await?;
        let part = |row_key: bytes::Bytes, row: Typed<PartRow>| {
            let number = key::part_number(&row_key).unwrap_or_default();
            note(&row.row.blobs, &|| format!("part {number} of an upload"))
        };
        self.ledger.for_each(key::table(b'p'), part).await?;
        Ok(found)
    }

    /// Of blobs that were set aside, with the versions of their rows, those that no object and no part names. The others are kept, and
    /// their rows say why.
    pub(super) async fn keep_referenced(&self, due: Vec<(BlobKey, u64)>) -> Result<Vec<(BlobKey, u64)>> {
        let named = self
            .references(&due.iter().map(|(blob, _)| *blob).collect())
            .await?;
        let (kept, free): (Vec<_>, Vec<_>) = due.into_iter().partition(|(blob, _)| named.contains_key(blob));
        for page in kept.chunks(PAGE) {
            let keys = page
                .iter()
                .map(|((volume, blob), _)| key::unnamed(*volume, *blob));
            let rows = self.ledger.get_many::<UnnamedRow>(keys.collect()).await?;
            let mut commit = CommitBuilder::new();
            for ((blob, version), found) in page.iter().zip(rows) {
                let (Some(found), Some(reference)) = (found, named.get(blob)) else {
                    continue;
                };
                let (row_key, named_by) = (key::unnamed(blob.0, blob.1), reference.by.clone());
                tracing::error!(
                    volume = blob.0,
                    blob = blob.1,
                    named_by,
                    "a named blob has no row; it is kept"
                );
                let row = UnnamedRow {
                    named_by,
                    ..found.row
                };
                commit = commit.expect(&row_key, Some(*version)).put(row_key, &row);
            }
            self.commit_unless_changed(commit).await?;
        }
        Ok(free)
    }
}
