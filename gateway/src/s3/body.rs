//! Request bodies with typed errors and a limit on silence; response bodies from pieces.

use super::front::ContentError;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::object::Body;
use crate::object::get::Pieces;
use futures::StreamExt;
use s3s::dto::StreamingBlob;
use s3s::{BodySizeLimitExceeded, StdError};
use std::sync::Arc;
use std::time::Duration;

/// A client that sends nothing for this long is cut off.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A request's body.
pub fn request_body(blob: Option<StreamingBlob>) -> Body {
    let Some(blob) = blob else {
        return Box::pin(futures::stream::empty());
    };
    Box::pin(futures::stream::unfold(Some(blob), |blob| async move {
        let mut blob = blob?;
        match tokio::time::timeout(SILENCE_MAX, blob.next()).await {
            Err(_) => Some((Err(Error::RequestTimeout), None)),
            Ok(None) => None,
            Ok(Some(Ok(bytes))) => Some((Ok(bytes), Some(blob))),
            Ok(Some(Err(error))) => Some((Err(body_error(&error)), None)),
        }
    }))
}

/// What went wrong with a body.
pub fn body_error(error: &StdError) -> Error {
    if let Some(error) = error.downcast_ref::<ContentError>() {
        return match error {
            ContentError::Sha256 => Error::ContentSha256Mismatch,
            ContentError::Signature => Error::ChunkSignature,
            ContentError::Malformed(_) => Error::InvalidRequest(error.to_string()),
            ContentError::FrameTooLarge(_) | ContentError::TooLarge => Error::EntityTooLarge,
            ContentError::TooSmall => Error::ContentTooSmall,
            ContentError::Incomplete => Error::IncompleteBody,
        };
    }
    match error.is::<BodySizeLimitExceeded>() {
        true => Error::EntityTooLarge,
        false => Error::IncompleteBody, // Cut off, by the client or on the way.
    }
}

/// A response's body.
pub fn response_body(pieces: Pieces, metrics: Arc<Metrics>) -> StreamingBlob {
    let stream = futures::stream::unfold((pieces, metrics), |(mut pieces, metrics)| async move {
        let piece = pieces.next().await?;
        match &piece {
            Ok(bytes) => metrics.sent_bytes.inc_by(bytes.len() as u64),
            // The head is out already: the connection is cut, and the client sees that bytes are missing.
            Err(error) => tracing::error!(%error, "download cut off"),
        }
        Some((piece, (pieces, metrics)))
    });
    StreamingBlob::wrap(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_errors_keep_their_meaning() {
        let of = |error: StdError| body_error(&error);
        assert!(matches!(
            of(ContentError::Sha256.into()),
            Error::ContentSha256Mismatch
        ));
        assert!(matches!(
            of(ContentError::Signature.into()),
            Error::ChunkSignature
        ));
        assert!(matches!(
            of(ContentError::Malformed("x").into()),
            Error::InvalidRequest(_)
        ));
        assert!(matches!(of(ContentError::TooLarge.into()), Error::EntityTooLarge));
        assert!(matches!(
            of(ContentError::TooSmall.into()),
            Error::ContentTooSmall
        ));
        let cut = StdError::from("connection closed before message completed");
        for error in [ContentError::Incomplete.into(), cut] {
            assert!(matches!(of(error), Error::IncompleteBody));
        }
    }
}
