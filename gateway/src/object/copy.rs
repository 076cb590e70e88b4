//! Copies objects without copying data: the copy names the same blobs, whose reference counts grow.

use super::Body;
use super::Objects;
use super::condition::{ReadConditions, WriteConditions};
use super::get::{Wanted, overlapping, resolve};
use super::put::{Stored, Target};
use crate::error::{Error, Result};
use crate::ledger::model::{Headers, ObjectRow};
use crate::ledger::{CommitBuilder, key};
use std::sync::Arc;

/// Where a copy comes from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub name: String,
    /// What must hold of it.
    pub conditions: ReadConditions,
}

impl Objects {
    /// Copies an object. `headers` replace the source's if given.
    pub async fn copy(
        self: &Arc<Self>,
        source: Source,
        bucket: &str,
        name: &str,
        headers: Option<Headers>,
        conditions: WriteConditions,
    ) -> Result<Stored> {
        if headers.is_none() && source.bucket == bucket && source.name == name {
            return Err(Error::InvalidRequest(
                "this copy request is illegal because it copies an object to itself without changing its metadata"
                    .into(),
            ));
        }
        let target = Target {
            bucket: bucket.into(),
            name: name.into(),
            conditions,
        };
        self.decide_and_commit(None, move |objects| {
            let (source, target, headers) = (source.clone(), target.clone(), headers.clone());
            async move {
                let mut row = objects.source_row(&source).await?;
                if let Some(headers) = headers {
                    row.headers = Some(headers);
                }
                row.upload = Default::default();
                let shared = row.blobs.clone();
                objects
                    .replace(CommitBuilder::new(), &target, row, Vec::new(), shared, Vec::new())
                    .await
            }
        })
        .await
    }

    /// The row of a copy's source, if its conditions hold.
    pub async fn source_row(&self, source: &Source) -> Result<ObjectRow> {
        let bucket = self.bucket(&source.bucket).await?;
        let row = self
            .ledger
            .get::<ObjectRow>(key::object(bucket.row.id, &source.name))
            .await?;
        let row = row.ok_or(Error::NoSuchKey)?.row;
        source.conditions.check(&row)?;
        Ok(row)
    }

    /// A range of an object as a body, for a part copy. Answers the number of bytes too.
    pub async fn source_body(self: &Arc<Self>, source: &Source, wanted: Wanted) -> Result<(u64, Body)> {
        let entering = self.readers.enter();
        let row = self.source_row(source).await?;
        let range = resolve(wanted, &row)?;
        if let Wanted::From { last: Some(last), .. } = wanted
            && last >= row.size
        {
            return Err(Error::RangeNotSatisfiable { size: row.size }); // S3 does not clip the range of a part copy.
        }
        let parts = overlapping(&row.blobs, range.clone());
        let pins = entering.pin(parts.iter().map(|(blob, _)| (blob.volume, blob.blob)).collect());
        let bytes = self.stream(parts, pins).await?;
        let body = futures::stream::unfold(
            bytes,
            |mut bytes| async move { Some((bytes.next().await?, bytes)) },
        );
        Ok((range.end - range.start, Box::pin(body)))
    }
}
