//! The head of a request: whom it is for, as bucket, key and query. Pure.
//!
//! ```text
//! Host: s3.example.com          GET /bucket/a%20key?uploadId=7   bucket "bucket", key "a key"
//! Host: bucket.s3.example.com   GET /a%20key?uploadId=7          the same, where s3.example.com is a domain of this server
//! ```
//!
//! Invariant: a host below none of the domains is never taken for a bucket, and one that looks like it is refused where it would be
//! taken for something else (`front`).

use super::refusal::Refusal;
use http::request::Parts;
use http::{HeaderMap, header};
use std::net::IpAddr;

/// The most bytes of a query.
const QUERY_BYTES_MAX: usize = 16 * 1024;
/// The most names in one.
const QUERY_NAMES_MAX: usize = 100;
/// The longest key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1_024;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The bucket, by host or path; none for the service itself.
    pub bucket: Option<String>,
    /// The key; none for the bucket itself.
    pub key: Option<String>,
    /// The query, decoded, in its order.
    pub query: Vec<(String, String)>,
    /// The path of the request, decoded, as clients sign it.
    pub path: String,
    /// Whether the bucket is in the host.
    pub is_virtual: bool,
}

impl Target {
    /// Reads it off a request to a server with these domains.
    pub fn read(head: &Parts, domains: &[String]) -> Result<Target, Refusal> {
        let host = host(&head.headers)?;
        let path = decoded(head.uri.path())
            .ok_or_else(|| Refusal::invalid_uri("the path is not percent-encoded UTF-8"))?;
        let query = query(head.uri.query().unwrap_or_default())?;
        let in_host = host.as_deref().and_then(|host| bucket_of(host, domains));
        let rest = path
            .strip_prefix('/')
            .ok_or_else(|| Refusal::invalid_uri("the target is not a path"))?;
        let is_virtual = in_host.is_some();
        let (bucket, key) = match in_host {
            Some(bucket) => (Some(bucket), rest),
            None => match rest.split_once('/') {
                Some((bucket, key)) => (Some(bucket.to_owned()), key),
                None => (Some(rest.to_owned()), ""),
            },
        };
        let bucket = bucket.filter(|bucket| !bucket.is_empty() || !key.is_empty());
        if bucket.as_deref() == Some("") {
            return Err(Refusal::invalid_uri("the path begins with an empty bucket name"));
        }
        let key = Some(key.to_owned()).filter(|key| !key.is_empty());
        check_key(key.as_deref().unwrap_or_default())?;
        Ok(Target {
            bucket,
            key,
            query,
            path,
            is_virtual,
        })
    }

    /// Whether a name is in the query.
    pub fn has(&self, name: &str) -> bool {
        self.query.iter().any(|(other, _)| other == name)
    }

    /// The value of a name in the query.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Whether a key can be one.
pub fn check_key(key: &str) -> Result<(), Refusal> {
    if key.len() > KEY_BYTES_MAX {
        let message = format!("the key is too long: at most {KEY_BYTES_MAX} bytes of UTF-8");
        return Err(Refusal::new(
            "KeyTooLongError",
            http::StatusCode::BAD_REQUEST,
            message,
        ));
    }
    match key.contains('\0') {
        true => Err(Refusal::invalid_argument("a key has no NUL")),
        false => Ok(()),
    }
}

/// The host that a request names, without its port, in lower case.
pub fn host(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return Ok(None) };
    if hosts.next().is_some() {
        return Err(Refusal::invalid_request("more than one Host header"));
    }
    let bad = || Refusal::invalid_request("the Host header is not a host");
    let host = host.to_str().map_err(|_| bad())?.trim();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    Ok(Some(name.trim_end_matches('.').to_ascii_lowercase()))
}

/// The bucket in a host name below one of these domains.
fn bucket_of(host: &str, domains: &[String]) -> Option<String> {
    let below = |domain: &String| host.strip_suffix(domain.as_str())?.strip_suffix('.');
    domains
        .iter()
        .find_map(below)
        .filter(|bucket| !bucket.is_empty())
        .map(str::to_owned)
}

/// The first label of a host that may be meant as a bucket: of a name of several labels, and no address.
pub fn may_mean_bucket(host: &str) -> Option<&str> {
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return None;
    }
    host.split_once('.').map(|(first, _)| first)
}

/// The pairs of a query, decoded. `+` is a space in a query, as S3 has it.
fn query(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(Refusal::invalid_uri(format!(
            "the query is longer than {QUERY_BYTES_MAX} bytes"
        )));
    }
    let bad = || Refusal::invalid_uri("the query is not percent-encoded UTF-8");
    let mut pairs: Vec<(String, String)> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decoded(&name.replace('+', " ")).ok_or_else(bad)?;
        let value = decoded(&value.replace('+', " ")).ok_or_else(bad)?;
        if pairs.iter().any(|(other, _)| *other == name) {
            return Err(Refusal::invalid_argument(format!(
                "the query has {name:?} more than once"
            )));
        }
        if pairs.len() == QUERY_NAMES_MAX {
            return Err(Refusal::invalid_uri(format!(
                "the query has more than {QUERY_NAMES_MAX} names"
            )));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// Percent-decodes; none if that is not UTF-8, or a `%` is followed by no two hexadecimal digits.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digit = |byte: u8| (byte as char).to_digit(16);
        bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// Percent-encodes everything but unreserved characters and `/`.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(byte as char)
            }
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(DIGITS[usize::from(byte >> 4)] as char);
                out.push(DIGITS[usize::from(byte & 15)] as char);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(host: &str, target: &str, domains: &[&str]) -> Result<Target, Refusal> {
        let request = http::Request::builder().uri(target).header("host", host);
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let domains: Vec<String> = domains.iter().map(|domain| (*domain).to_owned()).collect();
        Target::read(&head, &domains)
    }

    fn place(host: &str, target: &str, domains: &[&str]) -> (Option<String>, Option<String>) {
        let target = read(host, target, domains).expect("a target");
        (target.bucket, target.key)
    }

    fn named(bucket: &str, key: &str) -> (Option<String>, Option<String>) {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        (some(bucket), some(key))
    }

    #[test]
    fn a_bucket_is_in_the_path_or_in_a_host_below_a_domain() {
        for (host, target, expected) in [
            ("127.0.0.1:9000", "/", named("", "")),
            ("127.0.0.1:9000", "/b", named("b", "")),
            ("127.0.0.1:9000", "/b/", named("b", "")),
            ("127.0.0.1:9000", "/b/a%20key/x", named("b", "a key/x")),
            ("127.0.0.1:9000", "/b//x", named("b", "/x")),
            ("s3.example.com", "/b/k", named("b", "k")),
            ("b.s3.example.com", "/k/x", named("b", "k/x")),
            ("B.S3.Example.Com.:80", "/k", named("b", "k")),
            ("my.dots.s3.example.com", "/", named("my.dots", "")),
            ("other.example.com", "/b/k", named("b", "k")),
            ("[::1]:9000", "/b/k", named("b", "k")),
        ] {
            assert_eq!(
                place(host, target, &["s3.example.com"]),
                expected,
                "{host} {target}"
            );
        }
        assert_eq!(place("b.localhost", "/k", &[]), named("k", ""));
    }

    #[test]
    fn names_that_may_be_buckets_are_told_from_addresses() {
        assert_eq!(may_mean_bucket("photos.localhost"), Some("photos"));
        for none in ["localhost", "127.0.0.1", "[::1]", "::1", "gateway"] {
            assert_eq!(may_mean_bucket(none), None);
        }
    }

    #[test]
    fn targets_that_make_no_sense_are_refused() {
        for target in ["/b/%zz", "/b/%f", "/b/%ff", "//k", "/b?a=%zz"] {
            assert_eq!(
                read("h", target, &[]).expect_err(target).code,
                "InvalidURI",
                "{target}"
            );
        }
        let refused = |target: &str| read("h", target, &[]).expect_err(target).code;
        assert_eq!(refused("/b/a%00b"), "InvalidArgument");
        assert_eq!(refused("/b?a=1&a=2"), "InvalidArgument");
        assert_eq!(refused(&format!("/b/{}", "k".repeat(1_025))), "KeyTooLongError");
        assert!(read("h", &format!("/b/{}", "k".repeat(1_024)), &[]).is_ok());
        let query = (0..101).map(|n| format!("n{n}=1&")).collect::<String>();
        assert_eq!(refused(&format!("/b?{query}")), "InvalidURI");
    }

    #[test]
    fn a_query_is_decoded_in_its_order() {
        let target = read("h", "/b?list-type=2&prefix=a%2Fb+c&&delimiter=", &[]).expect("a target");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            target.query,
            [
                pair("list-type", "2"),
                pair("prefix", "a/b c"),
                pair("delimiter", "")
            ]
        );
        assert!(target.has("delimiter") && target.value("prefix") == Some("a/b c"));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: String) {
            prop_assert_eq!(decoded(&encoded(&text)), Some(text));
        }

        #[test]
        fn any_target_is_read_or_refused(target in "/[ -~]{0,60}", host in "[ -~]{0,30}") {
            let request = http::Request::builder().uri(target).header("host", host).body(());
            if let Ok(request) = request {
                let _ = Target::read(&request.into_parts().0, &["example.com".to_owned()]); // Never panics.
            }
        }
    }
}
