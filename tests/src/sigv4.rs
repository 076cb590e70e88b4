//! AWS Signature Version 4, written from its description and not with the product's code, so that the two check each
//! other.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The payload hash of a request that does not sign its payload.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
const REGION: &str = "us-east-1";

/// Who signs.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The public half.
    pub access: String,
    /// The secret half.
    pub secret: String,
}

/// What is signed: method, path and query as they go over the wire (encoded), and the host.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// GET, PUT, …
    pub method: &'a str,
    /// Percent-encoded.
    pub path: &'a str,
    /// Names and values, not yet encoded.
    pub query: &'a [(&'a str, &'a str)],
    /// Host and port.
    pub host: &'a str,
}

/// The headers of a signed request, `authorization` among them. `headers` are signed too.
pub fn headers(
    subject: &Subject,
    headers: &[(&str, &str)],
    payload_hash: &str,
    keys: &Keys,
    at: u64,
) -> Vec<(String, String)> {
    let when = timestamp(at);
    let mut signed = vec![
        ("host".to_owned(), subject.host.to_owned()),
        ("x-amz-content-sha256".to_owned(), payload_hash.to_owned()),
        ("x-amz-date".to_owned(), when.clone()),
    ];
    signed.extend(
        headers
            .iter()
            .map(|(name, value)| (name.to_lowercase(), (*value).to_owned())),
    );
    signed.sort();
    let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let canonical = canonical_request(
        subject,
        &canonical_query(subject.query),
        &signed,
        &names,
        payload_hash,
    );
    let signature = signature(&canonical, &when, keys);
    let credential = format!("{}/{}", keys.access, scope(&when));
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}");
    signed.push(("authorization".to_owned(), authorization));
    signed
}

/// The query of a presigned request.
pub fn presigned_query(subject: &Subject, keys: &Keys, at: u64, expires_seconds: u64) -> String {
    let when = timestamp(at);
    let credential = format!("{}/{}", keys.access, scope(&when));
    let expires = expires_seconds.to_string();
    let mut query = subject.query.to_vec();
    query.extend([
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", &credential),
        ("X-Amz-Date", &when),
        ("X-Amz-Expires", &expires),
        ("X-Amz-SignedHeaders", "host"),
    ]);
    let query = canonical_query(&query);
    let host = [("host".to_owned(), subject.host.to_owned())];
    let canonical = canonical_request(subject, &query, &host, "host", UNSIGNED_PAYLOAD);
    format!("{query}&X-Amz-Signature={}", signature(&canonical, &when, keys))
}

/// The query as it goes over the wire: encoded and in order.
pub fn canonical_query(query: &[(&str, &str)]) -> String {
    let mut pairs: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{}={}", encode(name, false), encode(value, false)))
        .collect();
    pairs.sort();
    pairs.join("&")
}

/// Percent-encodes all but unreserved characters, and slashes if they are to be kept.
pub fn encode(text: &str, keep_slash: bool) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            b'/' if keep_slash => encoded.push('/'),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
        encoded
    })
}

/// Lower-case hex of the SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Seconds since 1970.
#[allow(clippy::disallowed_methods)] // A signature carries the real time, and the server compares it with its own.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn canonical_request(
    subject: &Subject,
    query: &str,
    headers: &[(String, String)],
    names: &str,
    payload_hash: &str,
) -> String {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.trim()))
        .collect();
    format!(
        "{}\n{}\n{query}\n{headers}\n{names}\n{payload_hash}",
        subject.method, subject.path
    )
}

fn scope(when: &str) -> String {
    format!("{}/{REGION}/s3/aws4_request", &when[..8])
}

fn signature(canonical_request: &str, when: &str, keys: &Keys) -> String {
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{when}\n{}\n{}",
        scope(when),
        sha256_hex(canonical_request.as_bytes())
    );
    let mut key = hmac(format!("AWS4{}", keys.secret).as_bytes(), &when[..8]);
    for part in [REGION, "s3", "aws4_request"] {
        key = hmac(&key, part);
    }
    hex(&hmac(&key, &to_sign))
}

fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `20130524T000000Z`.
fn timestamp(seconds: u64) -> String {
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, date) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{date:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(day: u64) -> (u64, u64, u64) {
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, date)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the S3 documentation ("GET Object", header-based).
    #[test]
    fn signs_as_the_documentation_does() {
        let keys = Keys {
            access: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
        };
        let host = "examplebucket.s3.amazonaws.com";
        let subject = Subject {
            method: "GET",
            path: "/test.txt",
            query: &[],
            host,
        };
        let at = 1_369_353_600;
        let signed = headers(&subject, &[("Range", "bytes=0-9")], &sha256_hex(b""), &keys, at);
        let authorization = &signed.last().unwrap().1;
        let expected = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert!(
            authorization.ends_with(&format!("Signature={expected}")),
            "{authorization}"
        );
        let query = presigned_query(&subject, &keys, at, 86_400);
        let expected = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        assert!(query.ends_with(&format!("X-Amz-Signature={expected}")), "{query}");
    }
}
