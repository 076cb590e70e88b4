//! Listings: buckets, objects (v1 and v2), uploads.

use super::convert::{etag, timestamp};
use super::front::{OWNER, encoded};
use super::service::S3Gateway;
use crate::error::{Error, Result};
use crate::object::list::{Entry, ObjectEntry, PAGE_MAX, Page, Query, UploadEntry};
use crate::object::multipart::{parse_upload_id, upload_id};
use http::{HeaderName, HeaderValue};
use s3s::dto::*;
use s3s::{S3Request, S3Response};

/// Of a page that lacks what damaged rows of the ledger name.
const INCOMPLETE: HeaderName = HeaderName::from_static("x-cairn-incomplete");

type Answer<T> = Result<S3Response<T>>;

/// A page limit from a client.
pub fn limit(asked: Option<i32>, name: &str) -> Result<usize> {
    match asked {
        None => Ok(PAGE_MAX),
        Some(n) => match usize::try_from(n) {
            Ok(n) => Ok(n.min(PAGE_MAX)),
            Err(_) => Err(Error::InvalidArgument(format!("{name} is not negative"))),
        },
    }
}

/// Names in an answer: as they are, or percent-encoded if the client asked for it.
struct Names {
    url: bool,
}

impl Names {
    fn new(encoding: Option<&EncodingType>) -> Result<Names> {
        match encoding.map(|e| e.as_str()) {
            None => Ok(Names { url: false }),
            Some(EncodingType::URL) => Ok(Names { url: true }),
            Some(other) => Err(Error::InvalidArgument(format!(
                "encoding-type is url, not {other:?}"
            ))),
        }
    }

    fn show(&self, name: &str) -> String {
        if self.url { encoded(name) } else { name.to_string() }
    }
}

/// Splits a page into S3's two lists.
fn split<T, O>(page: Page<T>, names: &Names, item: impl Fn(String, T) -> O) -> (Vec<O>, Vec<CommonPrefix>) {
    let (mut items, mut prefixes) = (Vec::new(), Vec::new());
    for entry in page.entries {
        match entry {
            Entry::Item(name, value) => items.push(item(names.show(&name), value)),
            Entry::Prefix(name) => prefixes.push(CommonPrefix {
                prefix: Some(names.show(&name)),
            }),
        }
    }
    (items, prefixes)
}

fn object(key: String, row: ObjectEntry) -> Object {
    let algorithm = row
        .checksum_algorithm
        .map(|name| vec![ChecksumAlgorithm::from(name)]);
    Object {
        key: Some(key),
        e_tag: Some(etag(&row.etag)),
        last_modified: Some(timestamp(row.modified_ms)),
        size: Some(row.size as i64),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
        checksum_algorithm: algorithm,
        ..Default::default()
    }
}

/// The one owner there is.
pub fn owner() -> Owner {
    Owner {
        display_name: Some(OWNER.into()),
        id: Some(OWNER.into()),
    }
}

impl S3Gateway {
    pub(super) async fn list_all_buckets(
        &self,
        req: S3Request<ListBucketsInput>,
    ) -> Answer<ListBucketsOutput> {
        let i = req.input;
        let most = i
            .max_buckets
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n > 0)
            .unwrap_or(10_000);
        let prefix = i.prefix.unwrap_or_default();
        let from = i.continuation_token.unwrap_or_default();
        if i.bucket_region.is_some_and(|region| region != self.region) {
            let region = &self.region;
            return Err(Error::InvalidArgument(format!(
                "buckets of {region} are listed here, of no other region"
            )));
        }
        let buckets = self.objects.list_buckets(&prefix, &from, most + 1).await?;
        let (mut found, incomplete) = (buckets.found, buckets.incomplete);
        let next = (found.len() > most).then(|| found.split_off(most).swap_remove(0).name);
        let bucket = |b: crate::object::bucket::BucketInfo| Bucket {
            name: Some(b.name),
            creation_date: Some(timestamp(b.created_ms)),
            bucket_region: None,
            bucket_arn: None,
        };
        Ok(listed(
            ListBucketsOutput {
                buckets: Some(found.into_iter().map(bucket).collect()),
                owner: Some(owner()),
                continuation_token: next,
                prefix: (!prefix.is_empty()).then_some(prefix),
            },
            incomplete,
        ))
    }

    pub(super) async fn list_v1(&self, req: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        let i = req.input;
        let names = Names::new(i.encoding_type.as_ref())?;
        let query = Query {
            prefix: i.prefix.clone().unwrap_or_default(),
            delimiter: i.delimiter.clone().unwrap_or_default(),
            after: i.marker.clone().filter(|m| !m.is_empty()),
            limit: limit(i.max_keys, "max-keys")?,
        };
        let page = self.objects.list(&i.bucket, &query).await?;
        let (truncated, incomplete) = (page.truncated, page.incomplete);
        let last = page.entries.last().map(|e| names.show(e.name()));
        let (contents, prefixes) = split(page, &names, |name, row| Object {
            owner: Some(owner()),
            ..object(name, row)
        });
        Ok(listed(
            ListObjectsOutput {
                name: Some(i.bucket),
                prefix: Some(names.show(&query.prefix)),
                marker: Some(names.show(&i.marker.unwrap_or_default())),
                max_keys: Some(query.limit as i32),
                is_truncated: Some(truncated),
                contents: Some(contents),
                common_prefixes: Some(prefixes),
                delimiter: i.delimiter.map(|d| names.show(&d)),
                // S3 gives NextMarker only with a delimiter; given always it helps, and clients take it.
                next_marker: last.filter(|_| truncated),
                encoding_type: i.encoding_type,
                ..Default::default()
            },
            incomplete,
        ))
    }

    pub(super) async fn list_v2(&self, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        let i = req.input;
        let names = Names::new(i.encoding_type.as_ref())?;
        let resumed = i.continuation_token.as_deref().map(decode_token).transpose()?;
        let query = Query {
            prefix: i.prefix.clone().unwrap_or_default(),
            delimiter: i.delimiter.clone().unwrap_or_default(),
            after: resumed.or(i.start_after.clone()).filter(|m| !m.is_empty()),
            limit: limit(i.max_keys, "max-keys")?,
        };
        let page = self.objects.list(&i.bucket, &query).await?;
        let (truncated, incomplete, count) = (page.truncated, page.incomplete, page.entries.len());
        let next = page
            .entries
            .last()
            .map(|e| encode_token(e.name()))
            .filter(|_| truncated);
        let with_owner = i.fetch_owner.unwrap_or(false);
        let (contents, prefixes) = split(page, &names, |name, row| Object {
            owner: with_owner.then(owner),
            ..object(name, row)
        });
        Ok(listed(
            ListObjectsV2Output {
                name: Some(i.bucket),
                prefix: Some(names.show(&query.prefix)),
                max_keys: Some(query.limit as i32),
                key_count: Some(count as i32),
                continuation_token: i.continuation_token,
                is_truncated: Some(truncated),
                next_continuation_token: next,
                contents: Some(contents),
                common_prefixes: Some(prefixes),
                delimiter: i.delimiter.map(|d| names.show(&d)),
                encoding_type: i.encoding_type,
                start_after: i.start_after.map(|s| names.show(&s)),
                ..Default::default()
            },
            incomplete,
        ))
    }

    /// Every object is the only version of itself: without versioning S3 lists it as version `null`.
    pub(super) async fn list_versions(
        &self,
        req: S3Request<ListObjectVersionsInput>,
    ) -> Answer<ListObjectVersionsOutput> {
        let i = req.input;
        let names = Names::new(i.encoding_type.as_ref())?;
        let key_marker = i.key_marker.unwrap_or_default();
        let version_marker = i.version_id_marker.unwrap_or_default();
        if !version_marker.is_empty() && key_marker.is_empty() {
            return Err(Error::InvalidArgument(
                "a version-id-marker comes with a key-marker".into(),
            ));
        }
        let query = Query {
            prefix: i.prefix.clone().unwrap_or_default(),
            delimiter: i.delimiter.clone().unwrap_or_default(),
            after: Some(key_marker.clone()).filter(|m| !m.is_empty()),
            limit: limit(i.max_keys, "max-keys")?,
        };
        let page = self.objects.list(&i.bucket, &query).await?;
        let (truncated, incomplete) = (page.truncated, page.incomplete);
        let (next_key, next_version) = match page.entries.last().filter(|_| truncated) {
            None => (None, None),
            Some(Entry::Prefix(name)) => (Some(names.show(name)), None),
            Some(Entry::Item(name, _)) => (Some(names.show(name)), Some("null".to_owned())),
        };
        let (versions, prefixes) = split(page, &names, |key, row: ObjectEntry| {
            let object = object(key, row);
            ObjectVersion {
                checksum_algorithm: object.checksum_algorithm,
                e_tag: object.e_tag,
                is_latest: Some(true),
                key: object.key,
                last_modified: object.last_modified,
                owner: Some(owner()),
                size: object.size,
                storage_class: Some(ObjectVersionStorageClass::from_static(
                    ObjectVersionStorageClass::STANDARD,
                )),
                version_id: Some("null".to_owned()),
                ..Default::default()
            }
        });
        Ok(listed(
            ListObjectVersionsOutput {
                name: Some(i.bucket),
                prefix: Some(names.show(&query.prefix)),
                key_marker: Some(names.show(&key_marker)),
                version_id_marker: Some(version_marker),
                next_key_marker: next_key,
                next_version_id_marker: next_version,
                max_keys: Some(query.limit as i32),
                delimiter: i.delimiter.map(|d| names.show(&d)),
                encoding_type: i.encoding_type,
                is_truncated: Some(truncated),
                versions: Some(versions),
                common_prefixes: Some(prefixes),
                ..Default::default()
            },
            incomplete,
        ))
    }

    pub(super) async fn list_uploads_page(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        let i = req.input;
        let names = Names::new(i.encoding_type.as_ref())?;
        let query = Query {
            prefix: i.prefix.clone().unwrap_or_default(),
            delimiter: i.delimiter.clone().unwrap_or_default(),
            after: i.key_marker.clone().filter(|m| !m.is_empty()),
            limit: limit(i.max_uploads, "max-uploads")?,
        };
        let after_upload = match &i.upload_id_marker {
            Some(id) if query.after.is_some() && !id.is_empty() => {
                let parsed = parse_upload_id(id);
                Some(parsed.map_err(|_| Error::InvalidArgument("upload-id-marker is no upload id".into()))?)
            }
            _ => None,
        };
        let page = self.objects.list_uploads(&i.bucket, &query, after_upload).await?;
        let (truncated, incomplete) = (page.truncated, page.incomplete);
        let (next_key, next_upload) = match page.entries.last().filter(|_| truncated) {
            None => (None, None),
            Some(Entry::Prefix(name)) => (Some(names.show(name)), None),
            Some(Entry::Item(name, entry)) => (Some(names.show(name)), Some(upload_id(entry.upload))),
        };
        let (uploads, prefixes) = split(page, &names, upload);
        Ok(listed(
            ListMultipartUploadsOutput {
                bucket: Some(i.bucket),
                key_marker: Some(i.key_marker.map(|m| names.show(&m)).unwrap_or_default()),
                upload_id_marker: Some(i.upload_id_marker.unwrap_or_default()),
                next_key_marker: next_key,
                next_upload_id_marker: next_upload,
                prefix: Some(names.show(&query.prefix)),
                delimiter: i.delimiter.map(|d| names.show(&d)),
                encoding_type: i.encoding_type,
                max_uploads: Some(query.limit as i32),
                is_truncated: Some(truncated),
                uploads: Some(uploads),
                common_prefixes: Some(prefixes),
                ..Default::default()
            },
            incomplete,
        ))
    }
}

/// A page, and whether it lacks what damaged rows of the ledger name. S3 has no word for that, so a header says it: clients that take
/// what is not listed for gone (mirrors, syncs) can stop there.
fn listed<T>(output: T, incomplete: bool) -> S3Response<T> {
    let mut response = S3Response::new(output);
    if incomplete {
        let why = HeaderValue::from_static("the ledger is damaged");
        response.headers.insert(INCOMPLETE, why);
    }
    response
}

fn upload(key: String, entry: UploadEntry) -> MultipartUpload {
    let algorithm = Some(entry.row.checksum_algorithm).filter(|a| !a.is_empty());
    MultipartUpload {
        key: Some(key),
        upload_id: Some(upload_id(entry.upload)),
        initiated: Some(timestamp(entry.row.initiated_ms)),
        checksum_algorithm: algorithm.map(ChecksumAlgorithm::from),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        owner: Some(owner()),
        ..Default::default()
    }
}

/// A continuation token: the last name of the page, in base64 so that nobody takes it for a key.
fn encode_token(last: &str) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(last.as_bytes())
}

fn decode_token(token: &str) -> Result<String> {
    let bytes = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(token).ok();
    bytes
        .and_then(|b| String::from_utf8(b).ok())
        .ok_or_else(|| Error::InvalidArgument("the continuation token is not one of this server's".into()))
}

/// What was read out of a token is what another one is made of; see [`crate::fuzzing`].
pub(crate) fn check_token(token: &str) {
    if let Ok(name) = decode_token(token) {
        assert_eq!(decode_token(&encode_token(&name)).ok(), Some(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_with_a_hole_says_so() {
        let has_header = |incomplete| listed((), incomplete).headers.contains_key("x-cairn-incomplete");
        assert!(has_header(true) && !has_header(false));
    }

    #[test]
    fn tokens_and_names() {
        assert_eq!(
            decode_token(&encode_token("a/ü\u{1}")).ok().as_deref(),
            Some("a/ü\u{1}")
        );
        assert!(decode_token("no token!").is_err());
        assert_eq!(encoded("a b/ü+\u{1}~"), "a%20b/%C3%BC%2B%01~");
        assert_eq!(limit(Some(5_000), "max-keys").ok(), Some(1_000));
        assert!(limit(Some(-1), "max-keys").is_err());
    }
}
