//! Multipart uploads.

use super::body::request_body;
use super::convert::{self, ChecksumHeaders, checksum_fields, decode_digest, etag, timestamp};
use super::fields::{checksum_values, kept_headers, with_checksums};
use super::object::copy_source;
use super::service::S3Gateway;
use crate::error::{Error, Result};
use crate::object::copy::Source;
use crate::object::digest::Algorithm;
use crate::object::multipart::{
    Completion, ListedPart, UploadTarget, parse_upload_id, part_number, upload_id,
};
use s3s::dto::*;
use s3s::{S3Request, S3Response};

type Answer<T> = Result<S3Response<T>>;

fn target(bucket: String, name: String, upload: &str) -> Result<UploadTarget> {
    Ok(UploadTarget {
        bucket,
        name,
        upload: parse_upload_id(upload)?,
    })
}

/// Whether a type of checksum is that of an object's content.
fn is_full_object(kind: Option<&ChecksumType>) -> Result<Option<bool>> {
    match kind.map(|kind| kind.as_str()) {
        None => Ok(None),
        Some(ChecksumType::FULL_OBJECT) => Ok(Some(true)),
        Some(ChecksumType::COMPOSITE) => Ok(Some(false)),
        Some(other) => Err(Error::InvalidArgument(format!(
            "the checksum type {other:?} is not known"
        ))),
    }
}

/// Whether a whole object's checksum covers its content: what was asked for, else what S3 does for the algorithm.
fn full_object(algorithm: Option<Algorithm>, asked: Option<&ChecksumType>) -> Result<bool> {
    let asked = is_full_object(asked)?;
    let Some(algorithm) = algorithm else {
        return Ok(false);
    };
    let full = asked.unwrap_or(algorithm == Algorithm::Crc64Nvme);
    match (full, algorithm) {
        (true, a) if !a.combines() => Err(Error::InvalidRequest(format!(
            "checksum type FULL_OBJECT cannot be used with {}",
            a.name()
        ))),
        (false, Algorithm::Crc64Nvme) => Err(Error::InvalidRequest(
            "checksum type COMPOSITE cannot be used with CRC64NVME".into(),
        )),
        _ => Ok(full),
    }
}

impl S3Gateway {
    pub(super) async fn create_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        let i = req.input;
        let algorithm = convert::algorithm(i.checksum_algorithm.as_ref())?;
        let full = full_object(algorithm, i.checksum_type.as_ref())?;
        let headers = kept_headers!(i)?;
        let upload = self
            .objects
            .create_upload(&i.bucket, &i.key, headers, algorithm, full)
            .await?;
        let kind = if full {
            ChecksumType::FULL_OBJECT
        } else {
            ChecksumType::COMPOSITE
        };
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(i.bucket),
            key: Some(i.key),
            upload_id: Some(upload_id(upload)),
            checksum_algorithm: algorithm.map(|a| ChecksumAlgorithm::from_static(a.name())),
            checksum_type: algorithm.map(|_| ChecksumType::from_static(kind)),
            ..Default::default()
        }))
    }

    pub(super) async fn put_part(&self, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
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
        let number = part_number(i.part_number)?;
        let target = target(i.bucket, i.key, &i.upload_id)?;
        let stored = self
            .objects
            .put_part(target, number, request_body(i.body), expected)
            .await?;
        let sums = checksum_fields(stored.checksum.as_ref());
        Ok(S3Response::new(with_checksums!(UploadPartOutput, sums, {
            e_tag: Some(etag(&stored.etag)),
        })))
    }

    pub(super) async fn copy_part(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> Answer<UploadPartCopyOutput> {
        let i = req.input;
        let (bucket, name) = copy_source(i.copy_source)?;
        let mut conditions = convert::read_conditions(
            i.copy_source_if_match,
            i.copy_source_if_none_match,
            i.copy_source_if_modified_since,
            i.copy_source_if_unmodified_since,
        );
        conditions.for_copy = true;
        let number = part_number(i.part_number)?;
        let wanted = convert::copy_range(i.copy_source_range)?;
        let target = target(i.bucket, i.key, &i.upload_id)?;
        let stored = self
            .objects
            .copy_part(
                target,
                number,
                Source {
                    bucket,
                    name,
                    conditions,
                },
                wanted,
            )
            .await?;
        let sums = checksum_fields(stored.checksum.as_ref());
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(with_checksums!(CopyPartResult, sums, {
                e_tag: Some(etag(&stored.etag)),
                last_modified: Some(timestamp(stored.modified_ms)),
            })),
            ..Default::default()
        }))
    }

    pub(super) async fn complete_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        let i = req.input;
        let parts = i.multipart_upload.and_then(|u| u.parts).unwrap_or_default();
        let listed = parts.into_iter().map(listed_part).collect::<Result<Vec<_>>>()?;
        let values = checksum_values!(i);
        let completion = Completion {
            conditions: convert::write_conditions(i.if_match, i.if_none_match),
            size: i.mpu_object_size.and_then(|n| u64::try_from(n).ok()),
            checksum: only_digest(values)?,
            full_object: is_full_object(i.checksum_type.as_ref())?,
        };
        let target = target(i.bucket.clone(), i.key.clone(), &i.upload_id)?;
        let stored = self.objects.complete_upload(target, listed, completion).await?;
        let sums = checksum_fields(stored.checksum.as_ref());
        Ok(S3Response::new(
            with_checksums!(CompleteMultipartUploadOutput, sums, {
                location: Some(format!("/{}/{}", i.bucket, i.key)),
                bucket: Some(i.bucket),
                key: Some(i.key),
                e_tag: Some(etag(&stored.etag)),
                checksum_type: sums.kind,
            }),
        ))
    }

    pub(super) async fn abort_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        let i = req.input;
        self.objects
            .abort_upload(&target(i.bucket, i.key, &i.upload_id)?)
            .await?;
        Ok(S3Response::with_status(
            AbortMultipartUploadOutput::default(),
            http::StatusCode::NO_CONTENT,
        ))
    }

    pub(super) async fn list_parts_page(&self, req: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        let i = req.input;
        let after = i.part_number_marker.unwrap_or(0);
        let after = u16::try_from(after)
            .map_err(|_| Error::InvalidArgument(format!("part-number-marker {after} is out of range")))?;
        let limit = super::listing::limit(i.max_parts, "max-parts")?;
        let upload = target(i.bucket.clone(), i.key.clone(), &i.upload_id)?;
        let page = self.objects.list_parts(&upload, after, limit).await?;
        let next = page.parts.last().map(|(number, _)| i32::from(*number));
        let part = |(number, row): (u16, crate::ledger::model::PartRow)| {
            let sums = checksum_fields(row.checksum.as_ref());
            with_checksums!(Part, sums, {
                part_number: Some(number.into()),
                size: Some(row.size as i64),
                e_tag: Some(etag(&crate::object::digest::hex(&row.md5))),
                last_modified: Some(timestamp(row.modified_ms)),
            })
        };
        let algorithm = Algorithm::parse(&page.upload.checksum_algorithm);
        let kind = if page.upload.checksum_full_object {
            ChecksumType::FULL_OBJECT
        } else {
            ChecksumType::COMPOSITE
        };
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(i.bucket),
            key: Some(i.key),
            upload_id: Some(i.upload_id),
            part_number_marker: Some(after.into()),
            next_part_number_marker: next.filter(|_| page.truncated),
            max_parts: Some(limit as i32),
            is_truncated: Some(page.truncated),
            parts: Some(page.parts.into_iter().map(part).collect()),
            checksum_algorithm: algorithm.map(|a| ChecksumAlgorithm::from_static(a.name())),
            checksum_type: algorithm.map(|_| ChecksumType::from_static(kind)),
            storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
            ..Default::default()
        }))
    }
}

fn only_digest(values: [Option<String>; Algorithm::ALL.len()]) -> Result<Option<Vec<u8>>> {
    let given = Algorithm::ALL
        .into_iter()
        .zip(values)
        .find_map(|(a, v)| Some((a, v?)));
    given
        .map(|(algorithm, value)| decode_digest(algorithm, &value))
        .transpose()
}

fn listed_part(part: CompletedPart) -> Result<ListedPart> {
    let number = part
        .part_number
        .ok_or_else(|| Error::InvalidRequest("a part has no PartNumber".into()))?;
    let values = checksum_values!(part);
    Ok(ListedPart {
        number: part_number(number)?.into(),
        etag: part.e_tag.map(ETag::into_value).unwrap_or_default(),
        checksum: only_digest(values)?,
    })
}
