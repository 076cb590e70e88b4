//! A request's document, whole: within the budget, and checked against what its sender says of it before anybody believes a word.

use super::content::Trailers;
use super::refusal::Refusal;
use crate::budget::{Budget, accounted};
use crate::error::Error;
use crate::object::digest::{Algorithm, Hasher};
use base64_simd::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use md5::{Digest, Md5};
use s3s::Body;
use std::time::Duration;

/// The longest document: the longest DeleteObjects (1,000 keys of 1,024 bytes, each written as six) does not fit, and nobody sends it.
pub const DOCUMENT_BYTES_MAX: usize = 2 << 20;
/// What it takes in memory, with what is made of it.
const FACTOR: u64 = 4;
/// A client that sends nothing for this long is cut off.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Reads the document of a request with these headers.
pub async fn read(
    budget: &Budget,
    mut body: Body,
    trailers: &Trailers,
    headers: &HeaderMap,
) -> Result<Bytes, Refusal> {
    let announced = headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let too_long = || {
        Refusal::new(
            "MaxMessageLengthExceeded",
            StatusCode::BAD_REQUEST,
            format!("the document is longer than {DOCUMENT_BYTES_MAX} bytes"),
        )
    };
    let most = announced
        .or(body.size_hint().upper())
        .unwrap_or(DOCUMENT_BYTES_MAX as u64);
    if most > DOCUMENT_BYTES_MAX as u64 {
        return Err(too_long());
    }
    let reserved = budget.writes.reserve(most * FACTOR).await.map_err(refused)?;
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, body.frame()).await;
        let piece = match frame.map_err(|_| refused(Error::RequestTimeout))? {
            None => break,
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return Err(of_content(&error)),
        };
        if bytes.len() + piece.len() > most as usize {
            return Err(too_long());
        }
        bytes.extend_from_slice(&piece);
    }
    let bytes = bytes.freeze();
    check(&bytes, trailers, headers)?;
    // What is made of it is dropped with it.
    Ok(accounted(without_cdata(bytes)?, reserved))
}

/// The document with its CDATA sections as text, which s3s drops; one that declares a type, as none of S3's does, is refused.
pub(super) fn without_cdata(document: Bytes) -> Result<Bytes, Refusal> {
    const OPEN: &[u8] = b"<![CDATA[";
    let find = |from: usize, what: &[u8]| {
        let rest = document.get(from..)?;
        rest.windows(what.len())
            .position(|at| at == what)
            .map(|at| from + at)
    };
    let malformed = |what: &str| refused(Error::MalformedXml(what.to_owned()));
    if find(0, b"<!").is_none() {
        return Ok(document);
    }
    let (mut out, mut from) = (BytesMut::new(), 0);
    while let Some(at) = find(from, b"<!") {
        out.extend_from_slice(&document[from..at]);
        let rest = &document[at..];
        if rest.starts_with(b"<!--") {
            let end = find(at + 4, b"-->").ok_or_else(|| malformed("a comment has no end"))?;
            from = end + 3;
        } else if rest.starts_with(OPEN) {
            let end = find(at + OPEN.len(), b"]]>").ok_or_else(|| malformed("a CDATA section has no end"))?;
            for byte in &document[at + OPEN.len()..end] {
                match byte {
                    b'<' => out.extend_from_slice(b"&lt;"),
                    b'>' => out.extend_from_slice(b"&gt;"),
                    b'&' => out.extend_from_slice(b"&amp;"),
                    byte => out.extend_from_slice(&[*byte]),
                }
            }
            from = end + 3;
        } else {
            return Err(malformed("the document declares something"));
        }
    }
    out.extend_from_slice(&document[from..]);
    // Around a section that is gone, what is left can make another one: `<<![CDATA[![CDATA[`.
    if out.windows(2).any(|at| at == b"<!") {
        return Err(malformed("a CDATA section is inside of a tag"));
    }
    Ok(out.freeze())
}

/// Compares a document with every digest that came with it.
fn check(bytes: &Bytes, trailers: &Trailers, headers: &HeaderMap) -> Result<(), Refusal> {
    if let Some(given) = headers.get("content-md5") {
        let given = BASE64
            .decode_to_vec(given.as_bytes())
            .ok()
            .filter(|md5| md5.len() == 16);
        let given = given.ok_or_else(|| refused(Error::InvalidDigest))?;
        if given[..] != Md5::digest(bytes)[..] {
            return Err(bad_digest("Content-MD5"));
        }
    }
    for algorithm in Algorithm::ALL {
        let name = format!("x-amz-checksum-{}", algorithm.name().to_ascii_lowercase());
        let in_header = headers
            .get(&name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let Some(given) = in_header.or_else(|| trailers.value(&name)) else {
            continue;
        };
        let given = crate::s3::convert::decode_digest(algorithm, &given).map_err(refused)?;
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        if hasher.finish() != given {
            return Err(bad_digest(algorithm.name()));
        }
    }
    Ok(())
}

fn bad_digest(algorithm: &'static str) -> Refusal {
    refused(Error::BadDigest { algorithm })
}

/// What is wrong with a body, as a refusal.
fn of_content(error: &s3s::StdError) -> Refusal {
    refused(crate::s3::body::body_error(error))
}

/// The same as operations answer.
pub fn refused(error: Error) -> Refusal {
    let error = crate::s3::error::s3_error(error);
    let status = error.status_code().unwrap_or(StatusCode::BAD_REQUEST);
    let code = match error.code().as_str() {
        "SlowDown" => "SlowDown",
        "RequestTimeout" => "RequestTimeout",
        "InvalidDigest" => "InvalidDigest",
        "BadDigest" => "BadDigest",
        "InvalidRequest" => "InvalidRequest",
        "EntityTooLarge" => "EntityTooLarge",
        "MalformedXML" => "MalformedXML",
        "SignatureDoesNotMatch" => "SignatureDoesNotMatch",
        "XAmzContentSHA256Mismatch" => "XAmzContentSHA256Mismatch",
        "IncompleteBody" => "IncompleteBody",
        _ => "ServiceUnavailable",
    };
    Refusal::new(code, status, error.message().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cdata_is_text_and_comments_are_nothing() {
        let read = |text: &'static str| {
            let read = without_cdata(Bytes::from_static(text.as_bytes()));
            read.map(|bytes| String::from_utf8(bytes.to_vec()).expect("text"))
                .map_err(|refusal| refusal.code)
        };
        for (document, expected) in [
            ("<a>b</a>", Ok("<a>b</a>")),
            ("<a>x<![CDATA[a&b]]></a>", Ok("<a>xa&amp;b</a>")),
            (
                "<a><![CDATA[<c>]]]]><![CDATA[>]]></a>",
                Ok("<a>&lt;c&gt;]]&gt;</a>"),
            ),
            ("<a><!-- <![CDATA[ -->b</a>", Ok("<a>b</a>")),
            ("<a><![CDATA[b</a>", Err("MalformedXML")),
            ("<a><!-- b</a>", Err("MalformedXML")),
            ("<!DOCTYPE a [<!ENTITY e \"x\">]><a>&e;</a>", Err("MalformedXML")),
        ] {
            assert_eq!(
                read(document).as_deref(),
                expected.as_ref().map(|text| *text),
                "{document}"
            );
        }
    }

    #[test]
    fn a_document_is_what_its_sender_says() {
        let document = Bytes::from_static(b"<Delete/>");
        let checked = |name: &'static str, value: String| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a value"));
            check(&document, &Trailers::default(), &headers).map_err(|refusal| refusal.code)
        };
        for algorithm in Algorithm::ALL {
            let name = format!("x-amz-checksum-{}", algorithm.name().to_ascii_lowercase());
            let name: &'static str = name.leak();
            let right = BASE64.encode_to_string(algorithm.digest(&document));
            let wrong = BASE64.encode_to_string(vec![0; algorithm.digest_len()]);
            assert_eq!(checked(name, right), Ok(()), "{name}");
            assert_eq!(checked(name, wrong), Err("BadDigest"), "{name}");
            assert_eq!(checked(name, "no base64".into()), Err("InvalidRequest"), "{name}");
        }
        let md5 = BASE64.encode_to_string(Md5::digest(&document));
        assert_eq!(checked("content-md5", md5), Ok(()));
        assert_eq!(
            checked("content-md5", BASE64.encode_to_string([0; 16])),
            Err("BadDigest")
        );
        assert_eq!(checked("content-md5", "x".into()), Err("InvalidDigest"));
    }
}
