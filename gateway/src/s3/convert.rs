//! Small conversions between S3's words and ours: times, ETags, ranges, conditions, checksums, headers.

use crate::error::{Error, Result};
use crate::ledger::model::{ChecksumRow, Headers};
use crate::object::condition::{ETagIs, ReadConditions, WriteConditions};
use crate::object::digest::Algorithm;
use crate::object::get::Wanted;
use crate::object::put::Expected;
use crate::s3::front::Trailers;
use base64_simd::STANDARD as BASE64;
use s3s::dto::{self, ETag, ETagCondition, Timestamp};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// The most bytes of user metadata, names and values: 2 KiB, as in S3.
const METADATA_BYTES_MAX: usize = 2 * 1024;

/// A time.
pub fn timestamp(ms: u64) -> Timestamp {
    // Listings show the milliseconds: a client that syncs compares them with the times of its files, and would upload again
    // what it uploaded within a second of writing it. A date in a header has whole seconds only.
    Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}

/// Seconds since 1970 of a time.
pub fn seconds(time: Timestamp) -> i64 {
    time::OffsetDateTime::from(time).unix_timestamp()
}

/// An ETag.
pub fn etag(tag: &str) -> ETag {
    ETag::Strong(tag.to_string())
}

fn etag_is(condition: ETagCondition) -> ETagIs {
    match condition {
        ETagCondition::Any => ETagIs::Any,
        ETagCondition::ETag(tag) => ETagIs::Tag(tag.into_value()),
    }
}

/// An ETag condition in a header.
pub fn etag_condition(headers: &http::HeaderMap, name: http::HeaderName) -> Result<Option<ETagCondition>> {
    let Some(value) = headers.get(&name) else {
        return Ok(None);
    };
    let condition = ETagCondition::parse_http_header(value.as_bytes());
    condition
        .map(Some)
        .map_err(|_| Error::InvalidArgument(format!("the header {name} is not an ETag or *")))
}

/// Conditions of a read.
pub fn read_conditions(
    matches: Option<ETagCondition>,
    none_match: Option<ETagCondition>,
    modified_since: Option<Timestamp>,
    unmodified_since: Option<Timestamp>,
) -> ReadConditions {
    ReadConditions {
        matches: matches.map(etag_is),
        none_match: none_match.map(etag_is),
        modified_since_s: modified_since.map(seconds),
        unmodified_since_s: unmodified_since.map(seconds),
        for_copy: false,
    }
}

/// Conditions of a write.
pub fn write_conditions(
    matches: Option<ETagCondition>,
    none_match: Option<ETagCondition>,
) -> WriteConditions {
    WriteConditions {
        matches: matches.map(etag_is),
        none_match: none_match.map(etag_is),
    }
}

/// Which bytes are wanted.
pub fn wanted(range: Option<dto::Range>, part: Option<i32>) -> Result<Wanted> {
    match (range, part) {
        (Some(_), Some(_)) => Err(Error::InvalidRequest(
            "a range and a part number exclude each other".into(),
        )),
        (Some(dto::Range::Int { first, last }), None) => Ok(Wanted::From { first, last }),
        (Some(dto::Range::Suffix { length }), None) => Ok(Wanted::Suffix(length)),
        (None, Some(part)) => Ok(Wanted::Part(crate::object::multipart::part_number(part)?.into())),
        (None, None) => Ok(Wanted::All),
    }
}

/// The range of a part copy, `bytes=first-last`.
pub fn copy_range(range: Option<String>) -> Result<Wanted> {
    let Some(text) = range else { return Ok(Wanted::All) };
    let bad = || Error::InvalidArgument(format!("the copy source range {text:?} is not bytes=first-last"));
    let (first, last) = text
        .strip_prefix("bytes=")
        .and_then(|r| r.split_once('-'))
        .ok_or_else(bad)?;
    let (first, last): (u64, u64) = (
        first.parse().map_err(|_| bad())?,
        last.parse().map_err(|_| bad())?,
    );
    if last < first {
        return Err(bad());
    }
    Ok(Wanted::From {
        first,
        last: Some(last),
    })
}

/// The digest in a checksum header.
pub fn decode_digest(algorithm: Algorithm, text: &str) -> Result<Vec<u8>> {
    // A composite checksum may come with its part count behind it.
    let base64 = text.split_once('-').map_or(text, |(digest, _)| digest);
    let digest = BASE64
        .decode_to_vec(base64)
        .ok()
        .filter(|d| d.len() == algorithm.digest_len());
    digest.ok_or_else(|| {
        Error::InvalidRequest(format!(
            "the value of the {} checksum is invalid",
            algorithm.name()
        ))
    })
}

/// The value of a checksum header.
pub fn encode_digest(checksum: &ChecksumRow) -> String {
    let digest = BASE64.encode_to_string(&checksum.digest);
    match checksum.composite_parts {
        0 => digest,
        parts => format!("{digest}-{parts}"),
    }
}

/// The checksum algorithm that a request names.
pub fn algorithm(name: Option<&dto::ChecksumAlgorithm>) -> Result<Option<Algorithm>> {
    let Some(name) = name.map(|name| name.as_str()) else {
        return Ok(None);
    };
    match Algorithm::parse(name) {
        Some(algorithm) => Ok(Some(algorithm)),
        None => Err(Error::InvalidRequest(format!(
            "the checksum algorithm {name:?} is not known"
        ))),
    }
}

/// The checksum headers of a request: at most one is set.
pub struct ChecksumHeaders {
    /// x-amz-sdk-checksum-algorithm.
    pub algorithm: Option<dto::ChecksumAlgorithm>,
    /// The values, in the order of [`Algorithm::ALL`].
    pub values: [Option<String>; Algorithm::ALL.len()],
    /// x-amz-trailer: the names of headers that follow the body.
    pub trailer: Option<String>,
    /// Where those are found once the body was read.
    pub trailers: Trailers,
}

impl ChecksumHeaders {
    /// What the client says of its bytes.
    pub fn expected(self, length: Option<i64>, md5: Option<String>) -> Result<Expected> {
        let mut expected = Expected {
            length: length.and_then(|n| u64::try_from(n).ok()),
            ..Expected::default()
        };
        expected.md5 = md5.map(|text| decode_md5(&text)).transpose()?;
        let named = algorithm(self.algorithm.as_ref())?;
        let check_named = |algorithm: Algorithm| match named {
            Some(named) if named != algorithm => Err(Error::InvalidRequest(format!(
                "x-amz-sdk-checksum-algorithm says {}, and the checksum is {}",
                named.name(),
                algorithm.name()
            ))),
            _ => Ok(()),
        };
        let mut given = Algorithm::ALL
            .into_iter()
            .zip(self.values)
            .filter_map(|(a, v)| Some((a, v?)));
        if let Some((algorithm, value)) = given.next() {
            if given.next().is_some() {
                return Err(Error::InvalidRequest("more than one checksum was given".into()));
            }
            check_named(algorithm)?;
            let digest = decode_digest(algorithm, &value)?;
            expected.algorithm = Some(algorithm);
            expected.checksum = Some(Box::new(move || Ok(Some(digest))));
            return Ok(expected);
        }
        let announced = self.trailer.as_deref().map(trailing_algorithm).transpose()?;
        if let Some(algorithm) = announced.flatten() {
            check_named(algorithm)?;
            let trailers = self.trailers;
            expected.algorithm = Some(algorithm);
            expected.checksum = Some(Box::new(move || read_trailer(algorithm, &trailers).map(Some)));
            return Ok(expected);
        }
        expected.algorithm = named;
        Ok(expected)
    }
}

fn trailing_algorithm(names: &str) -> Result<Option<Algorithm>> {
    let names = names.split(',').map(|name| name.trim().to_ascii_lowercase());
    let mut found = None;
    for name in names.filter(|name| !name.is_empty()) {
        let algorithm = name.strip_prefix("x-amz-checksum-").and_then(Algorithm::parse);
        let algorithm =
            algorithm.ok_or_else(|| Error::InvalidRequest(format!("the trailer {name:?} is not known")))?;
        if found.replace(algorithm).is_some() {
            return Err(Error::InvalidRequest(
                "more than one checksum was announced".into(),
            ));
        }
    }
    Ok(found)
}

fn read_trailer(algorithm: Algorithm, trailers: &Trailers) -> Result<Vec<u8>> {
    let name = format!("x-amz-checksum-{}", algorithm.name().to_ascii_lowercase());
    match trailers.value(&name) {
        Some(value) => decode_digest(algorithm, &value),
        None => Err(Error::InvalidRequest(format!(
            "the announced trailer {name} did not follow the body"
        ))),
    }
}

fn decode_md5(text: &str) -> Result<[u8; 16]> {
    BASE64
        .decode_to_vec(text)
        .ok()
        .and_then(|d| d.try_into().ok())
        .ok_or(Error::InvalidDigest)
}

/// The checksum fields that S3's answers have.
#[derive(Default)]
pub struct ChecksumFields {
    /// CRC32.
    pub crc32: Option<String>,
    /// CRC32C.
    pub crc32c: Option<String>,
    /// CRC64NVME.
    pub crc64nvme: Option<String>,
    /// SHA1.
    pub sha1: Option<String>,
    /// SHA256.
    pub sha256: Option<String>,
    /// SHA512.
    pub sha512: Option<String>,
    /// MD5.
    pub md5: Option<String>,
    /// XXHASH64.
    pub xxhash64: Option<String>,
    /// XXHASH3.
    pub xxhash3: Option<String>,
    /// XXHASH128.
    pub xxhash128: Option<String>,
    /// FULL_OBJECT or COMPOSITE.
    pub kind: Option<dto::ChecksumType>,
}

/// A kept checksum as fields of an answer.
pub fn checksum_fields(checksum: Option<&ChecksumRow>) -> ChecksumFields {
    let mut fields = ChecksumFields::default();
    let Some(checksum) = checksum else { return fields };
    let value = Some(encode_digest(checksum));
    match Algorithm::parse(&checksum.algorithm) {
        Some(Algorithm::Crc32) => fields.crc32 = value,
        Some(Algorithm::Crc32c) => fields.crc32c = value,
        Some(Algorithm::Crc64Nvme) => fields.crc64nvme = value,
        Some(Algorithm::Sha1) => fields.sha1 = value,
        Some(Algorithm::Sha256) => fields.sha256 = value,
        Some(Algorithm::Sha512) => fields.sha512 = value,
        Some(Algorithm::Md5) => fields.md5 = value,
        Some(Algorithm::XxHash64) => fields.xxhash64 = value,
        Some(Algorithm::XxHash3) => fields.xxhash3 = value,
        Some(Algorithm::XxHash128) => fields.xxhash128 = value,
        None => return fields,
    }
    let composite = checksum.composite_parts > 0;
    let kind = if composite {
        dto::ChecksumType::COMPOSITE
    } else {
        dto::ChecksumType::FULL_OBJECT
    };
    fields.kind = Some(dto::ChecksumType::from_static(kind));
    fields
}

/// The headers to keep with an object.
#[allow(clippy::too_many_arguments)] // One for each header S3 keeps.
pub fn headers(
    content_type: Option<String>,
    content_encoding: Option<String>,
    content_disposition: Option<String>,
    content_language: Option<String>,
    cache_control: Option<String>,
    expires: Option<String>,
    website_redirect_location: Option<String>,
    metadata: Option<dto::Metadata>,
) -> Result<Headers> {
    let metadata: BTreeMap<String, String> = metadata.unwrap_or_default().into_iter().collect();
    let bytes: usize = metadata
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > METADATA_BYTES_MAX {
        return Err(Error::MetadataTooLarge {
            bytes,
            most: METADATA_BYTES_MAX,
        });
    }
    Ok(Headers {
        content_type,
        content_encoding: content_encoding.and_then(|e| strip_aws_chunked(&e)),
        content_disposition,
        content_language,
        cache_control,
        expires_s: None,
        expires,
        metadata,
        website_redirect_location,
    })
}

/// A Content-Encoding without `aws-chunked`, which describes the transfer and not the object.
fn strip_aws_chunked(encoding: &str) -> Option<String> {
    let kept: Vec<&str> = encoding
        .split(',')
        .map(str::trim)
        .filter(|e| !e.is_empty() && !e.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// User metadata as s3s has it.
pub fn metadata(headers: &Headers) -> Option<dto::Metadata> {
    (!headers.metadata.is_empty()).then(|| headers.metadata.clone().into_iter().collect())
}

/// Expires as s3s has it.
pub fn expires(headers: &Headers) -> Option<String> {
    let of_before = || {
        let since = Duration::from_secs(u64::try_from(headers.expires_s?).unwrap_or(0));
        Some(httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since))
    };
    headers.expires.clone().or_else(of_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_read_and_printed() {
        assert_eq!(
            decode_digest(Algorithm::Crc32, "y/Q5Jg==").ok(),
            Some(vec![0xcb, 0xf4, 0x39, 0x26])
        );
        assert!(decode_digest(Algorithm::Crc32, "y/Q5").is_err());
        assert!(decode_digest(Algorithm::Sha256, "not base64!").is_err());
        let row = ChecksumRow {
            algorithm: "CRC32".into(),
            digest: vec![0xcb, 0xf4, 0x39, 0x26].into(),
            composite_parts: 3,
        };
        assert_eq!(encode_digest(&row), "y/Q5Jg==-3");
        assert_eq!(
            trailing_algorithm("x-amz-checksum-crc64nvme").ok().flatten(),
            Some(Algorithm::Crc64Nvme)
        );
    }

    #[test]
    fn aws_chunked_is_no_encoding_of_the_object() {
        assert_eq!(strip_aws_chunked("aws-chunked"), None);
        assert_eq!(strip_aws_chunked("gzip, aws-chunked"), Some("gzip".into()));
    }

    #[test]
    fn copy_ranges() {
        assert_eq!(
            copy_range(Some("bytes=0-9".into())).ok(),
            Some(Wanted::From {
                first: 0,
                last: Some(9)
            })
        );
        for bad in ["bytes=9-0", "bytes=-5", "0-9", "bytes=0-"] {
            assert!(copy_range(Some(bad.into())).is_err());
        }
    }
}
