//! From an HTTP request to an HTTP answer: s3s in the middle, and around it what it leaves to its surroundings.
//!
//! Chunk sizes are bounded before, a message is added to errors that s3s raises without one, every answer gets a request
//! id, a HEAD of a part or range says 206, and an answer before the end of the request's body says that it ends the connection.

use super::rechunk::bound_chunks;
use super::unread::Watched;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use s3s::service::S3Service;
use s3s::{Body, HttpError, HttpResponse};
use std::sync::atomic::{AtomicU64, Ordering};

/// Answers one S3 request.
pub fn answer(
    service: S3Service,
    request: http::Request<Incoming>,
) -> BoxFuture<'static, Result<HttpResponse, HttpError>> {
    Box::pin(async move {
        let (mut head, body) = request.into_parts();
        drop_bad_range(&mut head.headers);
        let mut unread = Watched::new(body);
        let (body, method) = (bound_chunks(&head.headers, unread.clone()), head.method.clone());
        let expects_to_send = head.headers.contains_key(header::EXPECT);
        let empty = body_is_empty(&head.headers);
        let mut response = service.call(http::Request::from_parts(head, body)).await?;
        if method == Method::HEAD
            && response.status() == StatusCode::OK
            && response.headers().contains_key(header::CONTENT_RANGE)
        {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        if response.status().is_client_error() {
            explain(&mut response);
        }
        // No "100 Continue" is sent for a body of no bytes, and botocore then misreads the next answer on the connection (aws s3
        // sync of a tree with empty files hung for ever).
        if expects_to_send && empty || !unread.finish(expects_to_send).await {
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.headers_mut().insert("x-amz-request-id", request_id());
        Ok(response)
    })
}

/// A Range that makes no sense is to be ignored (RFC 9110 §14.2), and several ranges are answered with the whole
/// object, as S3 does; s3s refuses both. One that was signed must stay, or the signature would not match.
fn drop_bad_range(headers: &mut HeaderMap) {
    let parses = |v: &HeaderValue| v.to_str().is_ok_and(|text| s3s::dto::Range::parse(text).is_ok());
    let signed = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|authorization| {
            let names = authorization.split("SignedHeaders=").nth(1).unwrap_or_default();
            names
                .split([',', ' '])
                .next()
                .unwrap_or_default()
                .split(';')
                .any(|name| name == "range")
        });
    if headers.get(header::RANGE).is_some_and(|v| !parses(v)) && !signed {
        headers.remove(header::RANGE);
    }
}

fn body_is_empty(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_LENGTH)
        .is_some_and(|length| length.as_bytes() == b"0")
}

/// A number for each request of this process, so that a client's report and a trace can be brought together.
fn request_id() -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = format!("{:016X}", NEXT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("0"))
}

/// Adds a message to an error that has none.
fn explain(response: &mut HttpResponse) {
    let Some(xml) = response.body().bytes() else {
        return;
    };
    let Some(text) = std::str::from_utf8(&xml).ok().and_then(with_message) else {
        return;
    };
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(text);
}

/// An error document with a message for its code, if it has none and the code is one that s3s raises bare.
fn with_message(xml: &str) -> Option<String> {
    if xml.contains("<Message>") {
        return None;
    }
    let (before, rest) = xml.split_once("<Code>")?;
    let (code, after) = rest.split_once("</Code>")?;
    let message = match code {
        "SignatureDoesNotMatch" => {
            "The signature we calculated does not match the one you sent. Check the secret key and the signing method."
        }
        "InvalidBucketName" => {
            "The bucket name is not valid: 3 to 63 lower-case letters, digits, dots and hyphens, not an IP address."
        }
        "KeyTooLongError" => "The key is too long: at most 1,024 bytes of UTF-8.",
        "InvalidURI" => "The request URI could not be parsed.",
        "IncompleteBody" => "The request body ended before its announced length.",
        "MissingContentLength" => "The Content-Length header is missing.",
        "MalformedXML" => "The XML of the request is not well-formed or not what the operation expects.",
        _ => return None,
    };
    Some(format!(
        "{before}<Code>{code}</Code><Message>{message}</Message>{after}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_errors_get_a_message() {
        let bare = "<Error><Code>KeyTooLongError</Code></Error>";
        let text = with_message(bare).expect("a message");
        assert!(
            text.starts_with("<Error><Code>KeyTooLongError</Code><Message>The key is too long"),
            "{text}"
        );
        assert!(text.ends_with("</Message></Error>"), "{text}");
        assert_eq!(with_message(&text), None);
        assert_eq!(with_message("<Error><Code>Whatever</Code></Error>"), None);
        assert_eq!(with_message("no xml"), None);
    }

    #[test]
    fn only_ranges_that_can_be_answered_are_kept() {
        let kept = |range: &'static str, authorization: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_static(range));
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(authorization));
            drop_bad_range(&mut headers);
            headers.contains_key(header::RANGE)
        };
        assert!(kept("bytes=0-4", "") && kept("bytes=-5", "") && kept("bytes=7-", ""));
        assert!(!kept("bytes=abc", "") && !kept("bytes=5-2", "") && !kept("bytes=0-1,4-5", ""));
        assert!(kept(
            "bytes=abc",
            "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host;range, Signature=1"
        ));
    }

    #[test]
    fn request_ids_differ() {
        assert_ne!(request_id(), request_id());
    }
}
