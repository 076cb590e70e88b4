//! Copies objects without copying data: the copy names the same blobs, whose reference counts grow.
//!
//! A copy is not made of parts, so its ETag is the MD5 of all of it, as clients expect of one, and its checksum that of the whole: where
//! the source was uploaded in parts, or another checksum is asked for, they are computed from what is read, up to the size that S3
//! copies.

use super::Body;
use super::Objects;
use super::condition::{ReadConditions, WriteConditions};
use super::digest::{Algorithm, ContentDigests, ContentHasher, hex};
use super::get::{Wanted, overlapping, resolve};
use super::put::{Stored, Target, checksum_row};
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRef, Headers, ObjectRow};
use crate::ledger::{CommitBuilder, key};
use futures::StreamExt;
use std::sync::Arc;

/// S3 copies up to this many bytes at once; a larger copy keeps the ETag of its parts.
const READ_MAX: u64 = 5 << 30;

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

/// What is read of an object.
struct Whole {
    size: u64,
    blobs: Vec<BlobRef>,
    digests: ContentDigests,
}

impl Whole {
    /// Whether a copy with a checksum of this algorithm, or the source's, has to be read to be described.
    fn is_unknown(row: &ObjectRow, wanted: Option<Algorithm>) -> bool {
        (!row.parts.is_empty() || !has_checksum(row, wanted)) && row.size <= READ_MAX
    }

    fn describe(&self, row: &mut ObjectRow) {
        row.parts.clear();
        row.etag = hex(&self.digests.md5);
        row.checksum = checksum_row(&self.digests);
    }
}

/// Whether the checksum that is wanted is there, if one is.
fn has_checksum(row: &ObjectRow, wanted: Option<Algorithm>) -> bool {
    wanted.is_none_or(|wanted| {
        let checksum = row.checksum.as_ref();
        checksum.is_some_and(|it| it.composite_parts == 0 && it.algorithm == wanted.name())
    })
}

impl Objects {
    /// Copies an object. `headers` replace the source's if given, and a checksum of `algorithm` its checksum.
    pub async fn copy(
        self: &Arc<Self>,
        source: Source,
        bucket: &str,
        name: &str,
        headers: Option<Headers>,
        algorithm: Option<Algorithm>,
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
        let whole = match Whole::is_unknown(&self.source_row(&source).await?, algorithm) {
            true => Some(Arc::new(self.read_whole(&source, algorithm).await?)),
            false => None,
        };
        self.decide_and_commit(None, move |objects| {
            let (source, target, headers) = (source.clone(), target.clone(), headers.clone());
            let whole = whole.clone();
            async move {
                let mut row = objects.source_row(&source).await?;
                match &whole {
                    Some(whole) if whole.blobs == row.blobs && whole.size == row.size => {
                        whole.describe(&mut row)
                    }
                    // It was replaced meanwhile: whoever asks again has it read anew.
                    _ if Whole::is_unknown(&row, algorithm) => return Err(Error::SlowDown),
                    _ if !has_checksum(&row, algorithm) => {
                        return Err(Error::InvalidRequest(
                            "a copy of more than 5 GiB does not get another checksum".into(),
                        ));
                    }
                    _ => {}
                }
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

    /// Reads all of an object whose digests are wanted.
    async fn read_whole(self: &Arc<Self>, source: &Source, wanted: Option<Algorithm>) -> Result<Whole> {
        let (row, length, mut body) = self.source_body(source, Wanted::All).await?;
        let of_source = row.checksum.as_ref();
        let of_source = || of_source.and_then(|checksum| Algorithm::parse(&checksum.algorithm));
        let algorithm = wanted.or_else(of_source);
        let mut hasher = ContentHasher::new(algorithm);
        let mut read = 0;
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            read += bytes.len() as u64;
            hasher = hasher.update(&self.hashing, bytes).await?;
        }
        if read != length {
            return Err(Error::Internal(format!(
                "of {length} bytes to copy {read} were read"
            )));
        }
        Ok(Whole {
            size: row.size,
            blobs: row.blobs,
            digests: hasher.finish(),
        })
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

    /// A range of an object as a body, with its number of bytes and the row that it was read by.
    pub async fn source_body(
        self: &Arc<Self>,
        source: &Source,
        wanted: Wanted,
    ) -> Result<(ObjectRow, u64, Body)> {
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
        Ok((row, range.end - range.start, Box::pin(body)))
    }
}
