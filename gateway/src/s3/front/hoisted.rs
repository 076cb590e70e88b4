//! Headers that a presigned URL has in its query: the SDK for JavaScript puts all `x-amz-` headers there, so that whoever uses the URL
//! need not send them. The query is signed whole, and so are they. Pure.
//!
//! Invariant: a header is asked for in the query or by whoever uses the URL, never by both with different values.

use super::head::Target;
use super::operation::is_of_signature;
use super::refusal::Refusal;
use crate::object::digest::{Algorithm, Hasher};
use base64_simd::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The name beside a checksum that an SDK adds by itself.
const ALGORITHM: &str = "x-amz-sdk-checksum-algorithm";

/// Whether a request is a presigned URL.
pub fn is_presigned(target: &Target) -> bool {
    target.has("X-Amz-Signature")
}

/// Whether a name in the query of a presigned URL stands for a header.
pub fn is_hoisted(name: &str) -> bool {
    let begins = name
        .get(..6)
        .is_some_and(|start| start.eq_ignore_ascii_case("x-amz-"));
    begins && !is_of_signature(name)
}

/// The headers that stand in the query. A checksum of nothing that an SDK added is left out: the URL was made before there was a body, and
/// the algorithm is all that it says. Any other one is checked.
pub fn headers(target: &Target) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    if !is_presigned(target) {
        return Ok(headers);
    }
    let mut names = target.query.iter().map(|(name, _)| name);
    let is_by_sdk = names.any(|name| name.eq_ignore_ascii_case(ALGORITHM));
    for (name, value) in target.query.iter().filter(|(name, _)| is_hoisted(name)) {
        let bad = || Refusal::invalid_argument(format!("{name:?} in the query is no header"));
        let lower = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| bad())?;
        let value = HeaderValue::from_str(value).map_err(|_| bad())?;
        if is_by_sdk && is_of_nothing(lower.as_str(), &value) {
            continue;
        }
        if headers.insert(lower, value).is_some() {
            return Err(Refusal::invalid_argument(format!(
                "{name:?} is in the query twice"
            )));
        }
    }
    Ok(headers)
}

/// Adds them to those of the request.
pub fn merge(headers: &mut HeaderMap, hoisted: HeaderMap) -> Result<(), Refusal> {
    for (name, value) in hoisted {
        let Some(name) = name else { continue }; // None has two values.
        let mut sent = headers.get_all(&name).iter();
        if sent.any(|other| other != value) {
            return Err(Refusal::invalid_request(format!(
                "{name} has one value in the query and another one in the headers"
            )));
        }
        headers.insert(name, value);
    }
    Ok(())
}

fn is_of_nothing(name: &str, value: &HeaderValue) -> bool {
    let algorithm = name.strip_prefix("x-amz-checksum-").and_then(Algorithm::parse);
    algorithm.is_some_and(|algorithm| {
        let nothing = Hasher::new(algorithm).finish();
        BASE64.encode_to_string(nothing).as_bytes() == value.as_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Result<HeaderMap, &'static str> {
        let request = http::Request::builder().uri(format!("/b/k?{query}"));
        let (head, ()) = request.body(()).expect("a request").into_parts();
        headers(&Target::read(&head, &[]).expect("a target")).map_err(|refusal| refusal.code)
    }

    #[test]
    fn headers_in_a_signed_query_are_headers_and_the_checksum_of_nothing_is_none() {
        let signed = "X-Amz-Signature=1&X-Amz-Date=2&x-id=PutObject";
        let found = of(&format!(
            "{signed}&x-amz-meta-a=1%202&x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-sdk-checksum-algorithm=CRC32"
        ));
        let found = found.expect("headers");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found["x-amz-meta-a"], "1 2");
        assert_eq!(found["x-amz-sdk-checksum-algorithm"], "CRC32");
        let summed = of(&format!("{signed}&X-Amz-Checksum-Crc32=AAAAAQ%3D%3D")).expect("headers");
        assert_eq!(
            summed["x-amz-checksum-crc32"], "AAAAAQ==",
            "of something: it is checked"
        );
        let meant = of(&format!("{signed}&x-amz-checksum-crc32=AAAAAA%3D%3D")).expect("headers");
        assert_eq!(
            meant["x-amz-checksum-crc32"], "AAAAAA==",
            "nobody but its signer put it there"
        );
        assert!(of("x-amz-meta-a=1").expect("nothing").is_empty(), "not presigned");
        assert_eq!(
            of(&format!("{signed}&x-amz-acl=a&X-Amz-Acl=b")),
            Err("InvalidArgument")
        );
        assert_eq!(of(&format!("{signed}&x-amz-meta-a=%0A")), Err("InvalidArgument"));
    }

    #[test]
    fn a_header_has_one_value() {
        let with = |value: &'static str| {
            HeaderMap::from_iter([(
                HeaderName::from_static("x-amz-acl"),
                HeaderValue::from_static(value),
            )])
        };
        let mut headers = with("private");
        assert!(merge(&mut headers, with("public-read")).is_err());
        merge(&mut headers, with("private")).expect("the same");
        assert_eq!(headers.len(), 1);
        let mut none = HeaderMap::new();
        merge(&mut none, with("private")).expect("none before");
        assert_eq!(none["x-amz-acl"], "private");
    }
}
