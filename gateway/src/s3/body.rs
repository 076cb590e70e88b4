//! Request bodies with typed errors and a limit on silence; response bodies from pieces.

use crate::error::Error;
use crate::metrics::Metrics;
use crate::object::Body;
use crate::object::get::Pieces;
use futures::StreamExt;
use s3s::StdError;
use s3s::dto::StreamingBlob;
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

/// What went wrong with a body. s3s keeps the types of its stream errors to itself, so their texts decide; the
/// test below and the whole-system tests notice if they change.
fn body_error(error: &StdError) -> Error {
    let text = error.to_string();
    let says = |what: &str| text.contains(what);
    if says("Sha256Mismatch") {
        Error::ContentSha256Mismatch
    } else if says("SignatureMismatch") {
        Error::ChunkSignature
    } else if says("FormatError")
        || says("TooLarge")
        || says("TooManyTrailerHeaders")
        || says("InvalidChecksum")
    {
        Error::InvalidRequest(format!("the request body is malformed: {text}"))
    } else {
        Error::IncompleteBody // Cut off, by the client or on the way.
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
        let of = |text: &str| body_error(&StdError::from(text.to_string()));
        assert!(matches!(
            of("UploadStreamError: Sha256Mismatch"),
            Error::ContentSha256Mismatch
        ));
        assert!(matches!(
            of("AwsChunkedStreamError: SignatureMismatch"),
            Error::ChunkSignature
        ));
        assert!(matches!(
            of("AwsChunkedStreamError: Incomplete"),
            Error::IncompleteBody
        ));
        assert!(matches!(
            of("UploadStreamError: LengthMismatch"),
            Error::IncompleteBody
        ));
        assert!(matches!(
            of("AwsChunkedStreamError: FormatError"),
            Error::InvalidRequest(_)
        ));
        assert!(matches!(
            of("connection closed before message completed"),
            Error::IncompleteBody
        ));
    }
}
