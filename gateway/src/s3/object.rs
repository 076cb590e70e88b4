//! Objects: put, get, head, delete, copy.

use super::body::{request_body, response_body};
use super::convert::{self, ChecksumHeaders, checksum_fields, etag, timestamp};
use super::fields::{checksum_values, found_object, kept_headers, with_checksums};
use super::service::S3Gateway;
use crate::error::{Error, Result};
use crate::ledger::model::{Headers, ObjectRow};
use crate::object::condition::{ETagIs, WriteConditions};
use crate::object::copy::Source;
use crate::object::get::{Found, Wanted};
use futures::StreamExt;
use s3s::dto::*;
use s3s::{S3Request, S3Response};

type Answer<T> = Result<S3Response<T>>;

/// The most keys of one DeleteObjects.
const DELETE_KEYS_MAX: usize = 1_000;
/// Of these, how many are deleted at a time.
const DELETES_AT_ONCE: usize = 32;
/// The longest key, in bytes. s3s checks those in paths, not those in documents.
const KEY_BYTES_MAX: usize = 1_024;

/// Refuses a version other than the only one.
pub fn no_versions(version: Option<&str>) -> Result<()> {
    match version {
        None | Some("null") | Some("") => Ok(()),
        Some(id) => Err(Error::InvalidArgument(format!(
            "there is no version {id:?}: versioning is not supported"
        ))),
    }
}

/// The source of a copy.
pub fn copy_source(source: CopySource) -> Result<(String, String)> {
    match source {
        CopySource::Bucket {
            bucket,
            key,
            version_id,
        } => {
            no_versions(version_id.as_deref())?;
            Ok((bucket.into(), key.into()))
        }
        _ => Err(Error::InvalidArgument("the copy source is not BUCKET/KEY".into())),
    }
}

impl S3Gateway {
    pub(super) async fn put(&self, req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        let trailer = req
            .headers
            .get("x-amz-trailer")
            .and_then(|v| v.to_str().ok())
            .map(str::to_string);
        let trailers = req.extensions.get().cloned().unwrap_or_default();
        let i = req.input;
        let checksums = ChecksumHeaders {
            algorithm: i.checksum_algorithm,
            values: checksum_values!(i),
            trailer,
            trailers,
        };
        let expected = checksums.expected(i.content_length, i.content_md5)?;
        let headers = kept_headers!(i)?;
        let conditions = convert::write_conditions(i.if_match, i.if_none_match);
        let body = request_body(i.body);
        let stored = self
            .objects
            .put(&i.bucket, &i.key, body, expected, headers, conditions)
            .await?;
        let sums = checksum_fields(stored.checksum.as_ref());
        Ok(S3Response::new(with_checksums!(PutObjectOutput, sums, {
            e_tag: Some(etag(&stored.etag)),
            checksum_type: sums.kind,
        })))
    }

    pub(super) async fn get(&self, req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let if_range = req.headers.get(http::header::IF_RANGE).cloned();
        let i = req.input;
        no_versions(i.version_id.as_deref())?;
        let mut wanted = convert::wanted(i.range, i.part_number)?;
        if let Some(if_range) = if_range.filter(|_| wanted != Wanted::All) {
            // The rest of a download is only asked for if the object is still the same.
            let now = self
                .objects
                .head(&i.bucket, &i.key, Wanted::All, &Default::default())
                .await?;
            if if_range.as_bytes() != format!("\"{}\"", now.row.etag).as_bytes() {
                wanted = Wanted::All;
            }
        }
        let conditions = convert::read_conditions(
            i.if_match,
            i.if_none_match,
            i.if_modified_since,
            i.if_unmodified_since,
        );
        let (found, pieces) = self.objects.get(&i.bucket, &i.key, wanted, &conditions).await?;
        Ok(S3Response::new(
            found_object!(GetObjectOutput, found, wanted, i.checksum_mode, {
                body: Some(response_body(pieces, self.objects.metrics.clone())),
            }),
        ))
    }

    pub(super) async fn head(&self, req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let i = req.input;
        no_versions(i.version_id.as_deref())?;
        let wanted = convert::wanted(i.range, i.part_number)?;
        let conditions = convert::read_conditions(
            i.if_match,
            i.if_none_match,
            i.if_modified_since,
            i.if_unmodified_since,
        );
        let found = self.objects.head(&i.bucket, &i.key, wanted, &conditions).await?;
        let mut answer = found_object!(HeadObjectOutput, found, wanted, i.checksum_mode, {});
        // s3s does so for GET.
        for (kept, asked) in [
            (&mut answer.cache_control, i.response_cache_control),
            (&mut answer.content_disposition, i.response_content_disposition),
            (&mut answer.content_encoding, i.response_content_encoding),
            (&mut answer.content_language, i.response_content_language),
            (&mut answer.content_type, i.response_content_type),
        ] {
            if let Some(asked) = asked {
                if http::HeaderValue::from_str(&asked).is_err() {
                    return Err(Error::InvalidArgument(
                        "a response header has characters of no header".into(),
                    ));
                }
                *kept = Some(asked);
            }
        }
        Ok(S3Response::new(answer))
    }

    pub(super) async fn delete(&self, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        let i = req.input;
        no_versions(i.version_id.as_deref())?;
        self.objects
            .delete(&i.bucket, &i.key, convert::write_conditions(i.if_match, None))
            .await?;
        Ok(S3Response::with_status(
            DeleteObjectOutput::default(),
            http::StatusCode::NO_CONTENT,
        ))
    }

    pub(super) async fn delete_many(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> Answer<DeleteObjectsOutput> {
        let i = req.input;
        if i.delete.objects.is_empty() || i.delete.objects.len() > DELETE_KEYS_MAX {
            return Err(Error::MalformedXml(format!(
                "1 to {DELETE_KEYS_MAX} keys are deleted at a time"
            )));
        }
        self.objects.bucket(&i.bucket).await?;
        let quiet = i.delete.quiet.unwrap_or(false);
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        let bucket = &i.bucket;
        let each =
            |object: ObjectIdentifier| async move { (self.delete_one(bucket, &object).await, object.key) };
        // Several at once, so that they share the ledger's flushes.
        let mut outcomes = futures::stream::iter(i.delete.objects)
            .map(each)
            .buffered(DELETES_AT_ONCE)
            .boxed();
        while let Some((outcome, key)) = outcomes.next().await {
            match outcome {
                Ok(()) if quiet => {}
                Ok(()) => deleted.push(DeletedObject {
                    key: Some(key),
                    ..Default::default()
                }),
                Err(error) => {
                    let error = super::error::s3_error(error);
                    errors.push(s3s::dto::Error {
                        code: Some(error.code().as_str().to_string()),
                        key: Some(key),
                        message: error.message().map(str::to_string),
                        version_id: None,
                    });
                }
            }
        }
        drop(outcomes);
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            errors: Some(errors),
            ..Default::default()
        }))
    }

    async fn delete_one(&self, bucket: &str, object: &ObjectIdentifier) -> Result<()> {
        no_versions(object.version_id.as_deref())?;
        if object.key.len() > KEY_BYTES_MAX {
            return Err(Error::KeyTooLong);
        }
        if object.size.is_some() || object.last_modified_time.is_some() {
            return Err(Error::NotImplemented(
                "deletion on the condition of a size or a time is not supported".into(),
            ));
        }
        let matches = object.e_tag.clone().map(|tag| ETagIs::Tag(tag.into_value()));
        self.objects
            .delete(
                bucket,
                &object.key,
                WriteConditions {
                    matches,
                    none_match: None,
                },
            )
            .await
    }

    pub(super) async fn copy(&self, req: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        // s3s does not know the conditions on the copy's target yet.
        let on_target = convert::write_conditions(
            convert::etag_condition(&req.headers, http::header::IF_MATCH)?,
            convert::etag_condition(&req.headers, http::header::IF_NONE_MATCH)?,
        );
        let i = req.input;
        let (bucket, name) = copy_source(i.copy_source)?;
        let mut conditions = convert::read_conditions(
            i.copy_source_if_match,
            i.copy_source_if_none_match,
            i.copy_source_if_modified_since,
            i.copy_source_if_unmodified_since,
        );
        conditions.for_copy = true;
        let algorithm = convert::algorithm(i.checksum_algorithm.as_ref())?;
        let replace = i
            .metadata_directive
            .is_some_and(|d| d.as_str() == MetadataDirective::REPLACE);
        let headers = kept_headers!(i)?;
        let source = Source {
            bucket,
            name,
            conditions,
        };
        let headers: Option<Headers> = replace.then_some(headers);
        let stored = self
            .objects
            .copy(source, &i.bucket, &i.key, headers, algorithm, on_target)
            .await?;
        let sums = checksum_fields(stored.checksum.as_ref());
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(with_checksums!(CopyObjectResult, sums, {
                e_tag: Some(etag(&stored.etag)),
                last_modified: Some(timestamp(stored.modified_ms)),
                checksum_type: sums.kind,
            })),
            ..Default::default()
        }))
    }
}

fn partial(found: &Found) -> bool {
    found.range != (0..found.row.size)
}

fn content_range(found: &Found) -> Option<String> {
    (found.partial && found.row.size > 0).then(|| {
        format!(
            "bytes {}-{}/{}",
            found.range.start,
            found.range.end - 1,
            found.row.size
        )
    })
}

fn parts_count(row: &ObjectRow, wanted: Wanted) -> Option<i32> {
    match wanted {
        Wanted::Part(_) if !row.parts.is_empty() => Some(row.parts.len() as i32),
        _ => None,
    }
}
