//! The headers of a request as operations read them, once its signature was checked. Pure.
//!
//! | header | what S3 does, and s3s does not |
//! | --- | --- |
//! | `Range` | ignores one that makes no sense, or that asks for several; takes any number for the end |
//! | `If-Modified-Since`, `If-Unmodified-Since` | ignores what is no date; reads the two older forms (RFC 9110 §5.6.7) |

use super::refusal::Refusal;
use super::who::Content;
use http::{HeaderMap, HeaderValue, header};
use std::time::SystemTime;

/// Headers that are about the signature and the framing, which are behind.
const DONE: &[&str] = &[
    "authorization",
    "x-amz-content-sha256",
    "x-amz-decoded-content-length",
    "x-amz-security-token",
    "expect",
];

/// Dates of conditions.
const DATES: &[&str] = &[
    "if-modified-since",
    "if-unmodified-since",
    "x-amz-copy-source-if-modified-since",
    "x-amz-copy-source-if-unmodified-since",
];

/// The headers, for a body that is framed in this way.
pub fn headers(mut headers: HeaderMap, content: &Content) -> Result<HeaderMap, Refusal> {
    for name in DONE {
        headers.remove(*name);
    }
    if let Content::Chunked { length, .. } = content {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(*length));
        headers.remove(header::TRANSFER_ENCODING);
    }
    if let Some(range) = headers.remove(header::RANGE)
        && let Some(range) = range.to_str().ok().and_then(range_of)
        && let Ok(range) = HeaderValue::try_from(range)
    {
        headers.insert(header::RANGE, range);
    }
    for name in DATES {
        let Some(value) = headers.remove(*name) else {
            continue;
        };
        if let Some(time) = value
            .to_str()
            .ok()
            .and_then(|text| httpdate::parse_http_date(text).ok())
            && let Ok(value) =
                HeaderValue::try_from(httpdate::fmt_http_date(time.max(SystemTime::UNIX_EPOCH)))
        {
            headers.insert(*name, value);
        }
    }
    Ok(headers)
}

/// A range of one piece, with numbers that fit.
fn range_of(text: &str) -> Option<String> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| -> Option<i64> {
        let text = text.trim();
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(i64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", last) => Some(format!("bytes=-{}", number(last)?)),
        (first, "") => Some(format!("bytes={}-", number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| format!("bytes={first}-{last}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(name: &'static str, value: &str) -> Option<String> {
        let mut before = HeaderMap::new();
        before.insert(name, HeaderValue::from_str(value).expect("a value"));
        let after = headers(before, &Content::Plain).expect("headers");
        after
            .get(name)
            .map(|value| value.to_str().expect("text").to_owned())
    }

    #[test]
    fn ranges_that_make_no_sense_are_gone_and_large_numbers_are_cut() {
        let most = i64::MAX;
        for (range, expected) in [
            ("bytes=0-4", Some("bytes=0-4".to_owned())),
            ("bytes=-5", Some("bytes=-5".to_owned())),
            ("bytes=7-", Some("bytes=7-".to_owned())),
            ("bytes=0-18446744073709551615", Some(format!("bytes=0-{most}"))),
            ("bytes=-99999999999999999999999", Some(format!("bytes=-{most}"))),
            ("bytes=abc", None),
            ("bytes=5-2", None),
            ("bytes=0-1,4-5", None),
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes=+1-2", None),
            ("items=0-1", None),
        ] {
            assert_eq!(normal("range", range), expected, "{range}");
        }
    }

    #[test]
    fn dates_are_read_in_all_three_forms_and_else_ignored() {
        let date = Some("Sat, 29 Oct 1994 19:43:31 GMT".to_owned());
        for (text, expected) in [
            ("Sat, 29 Oct 1994 19:43:31 GMT", date.clone()),
            ("Saturday, 29-Oct-94 19:43:31 GMT", date.clone()),
            ("Sat Oct 29 19:43:31 1994", date),
            ("Sat, 29 Oct 1994 19:43:31 UTC", None),
            ("2030-01-01T00:00:00Z", None),
            ("garbage", None),
        ] {
            assert_eq!(normal("if-modified-since", text), expected, "{text}");
            assert_eq!(
                normal("x-amz-copy-source-if-unmodified-since", text),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_about_signature_and_framing_is_gone() {
        let mut before = HeaderMap::new();
        for name in DONE.iter().chain(&["transfer-encoding", "content-length"]) {
            before.insert(*name, HeaderValue::from_static("1"));
        }
        let chunked = Content::Chunked {
            length: 7,
            signing: None,
        };
        let after = headers(before, &chunked).expect("headers");
        assert_eq!(after.len(), 1);
        assert_eq!(after["content-length"], "7");
    }
}
