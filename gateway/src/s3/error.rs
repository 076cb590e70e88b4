//! The one map from what went wrong to S3's error codes.

use super::convert::{etag, timestamp};
use crate::error::Error;
use crate::ledger::store::LedgerError;
use http::{HeaderMap, HeaderValue, StatusCode};
use s3s::{S3Error, S3ErrorCode};

/// S3's error for one of ours.
pub fn s3_error(error: Error) -> S3Error {
    let message = error.to_string();
    let with = |code| S3Error::with_message(code, message.clone());
    match error {
        Error::NoSuchBucket => with(S3ErrorCode::NoSuchBucket),
        Error::BucketAlreadyOwnedByYou => with(S3ErrorCode::BucketAlreadyOwnedByYou),
        Error::BucketNotEmpty => with(S3ErrorCode::BucketNotEmpty),
        Error::TooManyBuckets => with(S3ErrorCode::TooManyBuckets),
        Error::NoSuchKey => with(S3ErrorCode::NoSuchKey),
        Error::NoSuchUpload => with(S3ErrorCode::NoSuchUpload),
        Error::Absent { code, .. } => custom(code, StatusCode::NOT_FOUND, message),
        Error::OtherRegion(_) => with(S3ErrorCode::IllegalLocationConstraintException),
        Error::PreconditionFailed => with(S3ErrorCode::PreconditionFailed),
        Error::NotModified {
            etag: tag,
            modified_ms,
        } => not_modified(&tag, modified_ms),
        Error::Conflict => with(S3ErrorCode::OperationAborted),
        Error::RangeNotSatisfiable { size } => {
            let mut error = with(S3ErrorCode::InvalidRange);
            error.set_headers(header(http::header::CONTENT_RANGE, format!("bytes */{size}")));
            error
        }
        Error::InvalidArgument(_) => with(S3ErrorCode::InvalidArgument),
        Error::InvalidRequest(_) => with(S3ErrorCode::InvalidRequest),
        Error::NotImplemented(_) => with(S3ErrorCode::NotImplemented),
        Error::MalformedXml(_) => with(S3ErrorCode::MalformedXML),
        Error::KeyTooLong => with(S3ErrorCode::KeyTooLongError),
        Error::MetadataTooLarge { .. } => with(S3ErrorCode::MetadataTooLarge),
        Error::InvalidDigest => with(S3ErrorCode::InvalidDigest),
        Error::BadDigest { .. } => with(S3ErrorCode::BadDigest),
        Error::IncompleteBody => with(S3ErrorCode::IncompleteBody),
        Error::RequestTimeout => with(S3ErrorCode::RequestTimeout),
        Error::ContentSha256Mismatch => custom("XAmzContentSHA256Mismatch", StatusCode::BAD_REQUEST, message),
        Error::ChunkSignature => with(S3ErrorCode::SignatureDoesNotMatch),
        Error::EntityTooLarge => with(S3ErrorCode::EntityTooLarge),
        Error::EntityTooSmall { .. } | Error::ContentTooSmall => with(S3ErrorCode::EntityTooSmall),
        Error::InvalidPart { .. } => with(S3ErrorCode::InvalidPart),
        Error::InvalidPartOrder => with(S3ErrorCode::InvalidPartOrder),
        Error::SlowDown => retry_later(with(S3ErrorCode::SlowDown)),
        Error::StorageFull | Error::Ledger(LedgerError::Full) => {
            custom("InsufficientStorage", StatusCode::INSUFFICIENT_STORAGE, message)
        }
        Error::TooFewDomains { .. }
        | Error::Unreadable { .. }
        | Error::WriteFailed(_)
        | Error::ShuttingDown
        | Error::ReadOnly(_)
        | Error::Ledger(_) => retry_later(with(S3ErrorCode::ServiceUnavailable)),
        Error::Internal(_) => with(S3ErrorCode::InternalError),
    }
}

/// Whether the fault is the server's: those are logged. That there is no room is said once, where it is seen.
pub fn is_server_fault(error: &Error) -> bool {
    if matches!(error, Error::Ledger(LedgerError::Full)) {
        return false;
    }
    matches!(
        error,
        Error::TooFewDomains { .. }
            | Error::Unreadable { .. }
            | Error::WriteFailed(_)
            | Error::Ledger(_)
            | Error::Internal(_)
    )
}

fn custom(code: &'static str, status: StatusCode, message: String) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message);
    error.set_status_code(status);
    error
}

fn not_modified(tag: &str, modified_ms: u64) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    let mut headers = HeaderMap::new();
    if let Ok(value) = etag(tag).to_http_header() {
        headers.insert(http::header::ETAG, value);
    }
    let mut date = Vec::new();
    if timestamp(modified_ms)
        .format(s3s::dto::TimestampFormat::HttpDate, &mut date)
        .is_ok()
        && let Ok(value) = HeaderValue::from_bytes(&date)
    {
        headers.insert(http::header::LAST_MODIFIED, value);
    }
    error.set_headers(headers);
    error
}

fn retry_later(mut error: S3Error) -> S3Error {
    error.set_headers(header(http::header::RETRY_AFTER, "1".into()));
    error
}

fn header(name: http::HeaderName, value: String) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(name, value);
    }
    headers
}
