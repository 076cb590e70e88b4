//! Who sends a request: the signature in its header or query, checked. Pure, but for a cache of signing keys.
//!
//! | where | which | good for |
//! | --- | --- | --- |
//! | `Authorization` | version 4 | 15 minutes around its date |
//! | query (presigned) | version 4 | `X-Amz-Expires`, at most a week |
//! | query (presigned) | version 2 | until `Expires`, at most a week ahead: what boto3 and `aws s3 presign` make unless told otherwise |
//! | form | version 4, version 2 | as its policy says (`form`) |
//!
//! Version 2 in the `Authorization` header is refused: nothing bounds how long such a request is good.
//!
//! Invariant: whatever acts is signed. Every `x-amz-` header of a signed request is among its signed headers, and so is `Host`;
//! version 2 signs all of them by itself.

use super::head::Target;
use super::refusal::Refusal;
use crate::object::digest::hex;
use crate::s3::StaticKeys;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use quick_cache::sync::Cache;
use s3s_sigv4::{AmzContentSha256, AmzDate, AuthorizationV4, CredentialV4, Payload, PresignedUrlV4};
use std::time::{Duration, SystemTime};

/// A signed date is so far from the time at most.
const SKEW_MAX: Duration = Duration::from_secs(15 * 60);
/// The longest that a presigned URL is good.
pub const PRESIGNED_MAX_S: u32 = 604_800;
/// The services that a scope may name: `s3` only.
const SERVICE: &str = "s3";
/// Signing keys that are kept: one a key, day and region.
const SIGNING_KEYS: usize = 256;

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody says.
    Anonymous,
    /// The holder of this access key.
    Key(String),
}

/// How the body of a request is framed, and what its signature says of it.
#[derive(Debug)]
pub enum Content {
    /// As it is.
    Plain,
    /// As it is, with this SHA-256.
    Sha256([u8; 32]),
    /// In `aws-chunked` frames that hold so many bytes.
    Chunked {
        /// Bytes of the content.
        length: u64,
        /// How each frame is signed, if it is.
        signing: Option<ChunkSigning>,
    },
}

/// What signs the frames of a body.
#[derive(Clone, Debug)]
pub struct ChunkSigning {
    /// The signing key.
    pub key: [u8; 32],
    /// The date of the request.
    pub date: AmzDate,
    /// The region of its scope.
    pub region: String,
    /// The signature of the request, which the first frame's goes on from.
    pub seed: String,
}

/// Checks signatures.
pub struct Who {
    keys: StaticKeys,
    region: String,
    signing_keys: Cache<(String, String), [u8; 32]>,
}

/// A scope, checked: whose key, and how to sign with it.
struct Scope {
    access_key: String,
    signing_key: [u8; 32],
    date: AmzDate,
}

impl Who {
    /// With these keys, for a server in this region.
    pub fn new(keys: StaticKeys, region: &str) -> Who {
        Who {
            keys,
            region: region.to_owned(),
            signing_keys: Cache::new(SIGNING_KEYS),
        }
    }

    /// Who sends a request, and how its body is to be read.
    pub fn of(&self, head: &Parts, target: &Target, now: SystemTime) -> Result<(Caller, Content), Refusal> {
        let in_header = head.headers.contains_key(header::AUTHORIZATION);
        let (v4, v2) = (target.has("X-Amz-Signature"), target.has("Signature"));
        if usize::from(in_header) + usize::from(v4) + usize::from(v2) > 1 {
            return Err(Refusal::invalid_argument(
                "a request is signed in its header or in its query, once",
            ));
        }
        let half = ["X-Amz-Algorithm", "X-Amz-Credential", "AWSAccessKeyId"];
        match (in_header, v4, v2) {
            (true, ..) => self.of_header(head, target, now),
            (_, true, _) => self.of_query(head, target, now),
            (.., true) => self.of_query_v2(head, target, now),
            _ if half.iter().any(|name| target.has(name)) => {
                Err(bad_query("the query is signed only in part"))
            }
            _ => Ok((Caller::Anonymous, content_of(&head.headers, None)?)),
        }
    }

    fn of_header(
        &self,
        head: &Parts,
        target: &Target,
        now: SystemTime,
    ) -> Result<(Caller, Content), Refusal> {
        let headers = &head.headers;
        let text = only(headers, "authorization")?.unwrap_or_default();
        let authorization = AuthorizationV4::parse(text).map_err(|_| not_understood(text))?;
        if authorization.algorithm != "AWS4-HMAC-SHA256" {
            return Err(not_understood(text));
        }
        let date = self.date_of(headers)?;
        let scope = self.scope(&authorization.credential, date, &malformed)?;
        check_skew(&scope.date, now)?;
        let sha256 = only(headers, "x-amz-content-sha256")?
            .ok_or_else(|| Refusal::invalid_request("the header x-amz-content-sha256 is missing"))?;
        let kind = AmzContentSha256::parse(sha256).map_err(|_| {
            Refusal::invalid_argument("x-amz-content-sha256 is no SHA-256 and none of S3's words")
        })?;
        let payload = match kind {
            AmzContentSha256::SingleChunk(_) => Payload::SingleChunk(sha256),
            AmzContentSha256::UnsignedPayload => Payload::Unsigned,
            AmzContentSha256::StreamingAws4HmacSha256Payload => Payload::MultipleChunks,
            AmzContentSha256::StreamingAws4HmacSha256PayloadTrailer => Payload::MultipleChunksWithTrailer,
            AmzContentSha256::StreamingUnsignedPayloadTrailer => Payload::UnsignedMultipleChunksWithTrailer,
            AmzContentSha256::StreamingAws4EcdsaP256Sha256Payload
            | AmzContentSha256::StreamingAws4EcdsaP256Sha256PayloadTrailer => {
                return Err(Refusal::not_implemented("ECDSA signatures are not supported"));
            }
        };
        let signed = signed_headers(headers, &authorization.signed_headers)?;
        let method = head.method.as_str();
        let canonical = |path: &str, is_raw: bool| match is_raw {
            false => s3s_sigv4::create_canonical_request(method, path, &target.query, &signed, payload),
            true => s3s_sigv4::create_canonical_request_with_raw_uri_path(
                method,
                path,
                &target.query,
                &signed,
                payload,
            ),
        };
        let seed = self.verify(&scope, authorization.signature, head, target, canonical)?;
        let signing = ChunkSigning {
            key: scope.signing_key,
            date: scope.date,
            region: self.region.clone(),
            seed,
        };
        Ok((Caller::Key(scope.access_key), content_of(headers, Some(signing))?))
    }

    fn of_query(&self, head: &Parts, target: &Target, now: SystemTime) -> Result<(Caller, Content), Refusal> {
        let url = PresignedUrlV4::parse(&target.query, PRESIGNED_MAX_S).map_err(|_| {
            bad_query(&format!(
                "the signature in the query is not whole, or X-Amz-Expires is not 1 to {PRESIGNED_MAX_S}"
            ))
        })?;
        if url.algorithm != "AWS4-HMAC-SHA256" {
            return Err(bad_query("X-Amz-Algorithm is AWS4-HMAC-SHA256"));
        }
        let scope = self.scope(&url.credential, url.amz_date.clone(), &|message| {
            bad_query(&message)
        })?;
        let (signed_at, now_s) = (seconds(&scope.date)?, unix(now));
        if signed_at > now_s + SKEW_MAX.as_secs() as i64 {
            return Err(too_skewed());
        }
        if now_s > signed_at.saturating_add(url.expires.as_secs()) {
            return Err(Refusal::access_denied("the URL has expired"));
        }
        let signed = signed_headers(&head.headers, &url.signed_headers)?;
        let method = head.method.as_str();
        let canonical = |path: &str, is_raw: bool| match is_raw {
            false => s3s_sigv4::create_presigned_canonical_request(method, path, &target.query, &signed),
            true => s3s_sigv4::create_presigned_canonical_request_with_raw_uri_path(
                method,
                path,
                &target.query,
                &signed,
            ),
        };
        self.verify(&scope, url.signature, head, target, canonical)?;
        Ok((Caller::Key(scope.access_key), content_of(&head.headers, None)?))
    }

    fn of_query_v2(
        &self,
        head: &Parts,
        target: &Target,
        now: SystemTime,
    ) -> Result<(Caller, Content), Refusal> {
        let mut sorted = target.query.clone();
        sorted.sort();
        let url = s3s_sigv2::PresignedUrlV2::parse(&sorted)
            .map_err(|_| bad_query("the signature in the query is not whole"))?;
        let (expires, now_s) = (url.expires_time.as_second(), unix(now));
        if now_s > expires {
            return Err(Refusal::access_denied("the URL has expired"));
        }
        // Nothing says when it was signed.
        if expires - now_s > i64::from(PRESIGNED_MAX_S) {
            return Err(Refusal::access_denied(format!(
                "the URL is good for more than {PRESIGNED_MAX_S} seconds from now"
            )));
        }
        let secret = self.secret(url.access_key)?;
        let mut headers = Vec::new();
        for (name, value) in &head.headers {
            match value.to_str() {
                Ok(value) => headers.push((name.as_str(), value)),
                Err(_) if name.as_str().starts_with("x-amz-") => return Err(mismatch()),
                Err(_) => {}
            }
        }
        let bucket = target.bucket.as_deref().filter(|_| target.is_virtual);
        let (mode, path) = (s3s_sigv2::Mode::PresignedUrl, head.uri.path());
        let text = s3s_sigv2::create_string_to_sign(
            mode,
            head.method.as_str(),
            path,
            Some(&sorted),
            &headers,
            bucket,
        );
        let right = s3s_sigv2::calculate_signature(secret, &text);
        match is_same(right.as_ref(), url.signature.as_bytes()) {
            true => Ok((
                Caller::Key(url.access_key.to_owned()),
                content_of(&head.headers, None)?,
            )),
            false => Err(mismatch()),
        }
    }

    /// Who signed the policy of a form, by these fields.
    pub fn of_form(
        &self,
        field: impl Fn(&str) -> Option<String>,
        now: SystemTime,
    ) -> Result<Caller, Refusal> {
        let Some(policy) = field("policy") else {
            return Ok(Caller::Anonymous);
        };
        let need = |name: &str| {
            field(name).ok_or_else(|| {
                Refusal::invalid_argument(format!("the form has a policy, and no field {name}"))
            })
        };
        if field("x-amz-signature").is_none() && field("signature").is_some() {
            let access_key = need("awsaccesskeyid")?;
            let right = s3s_sigv2::calculate_signature(self.secret(&access_key)?, &policy);
            return match is_same(right.as_ref(), need("signature")?.as_bytes()) {
                true => Ok(Caller::Key(access_key)),
                false => Err(mismatch()),
            };
        }
        if need("x-amz-algorithm")? != "AWS4-HMAC-SHA256" {
            return Err(Refusal::invalid_argument("x-amz-algorithm is AWS4-HMAC-SHA256"));
        }
        let (credential, date, signature) = (
            need("x-amz-credential")?,
            need("x-amz-date")?,
            need("x-amz-signature")?,
        );
        let credential = CredentialV4::parse(&credential)
            .map_err(|_| Refusal::invalid_argument("x-amz-credential is no credential scope"))?;
        let date = AmzDate::parse(&date)
            .map_err(|_| Refusal::invalid_argument("x-amz-date is no date of S3's form"))?;
        let scope = self.scope(&credential, date, &malformed)?;
        // How long it is good, the policy says.
        if seconds(&scope.date)? > unix(now) + SKEW_MAX.as_secs() as i64 {
            return Err(too_skewed());
        }
        let right = hex(&s3s_sigv4::calculate_signature_with_key(
            &policy,
            &scope.signing_key,
        ));
        match is_same(right.as_bytes(), signature.as_bytes()) {
            true => Ok(Caller::Key(scope.access_key)),
            false => Err(mismatch()),
        }
    }

    fn date_of(&self, headers: &HeaderMap) -> Result<AmzDate, Refusal> {
        let text = only(headers, "x-amz-date")?
            .ok_or_else(|| Refusal::access_denied("a signed request has the header x-amz-date"))?;
        AmzDate::parse(text).map_err(|_| Refusal::access_denied("x-amz-date is no date of S3's form"))
    }

    /// Checks a scope but for its time.
    fn scope(
        &self,
        credential: &CredentialV4<'_>,
        date: AmzDate,
        bad: &dyn Fn(String) -> Refusal,
    ) -> Result<Scope, Refusal> {
        if credential.aws_service != SERVICE {
            return Err(bad(format!(
                "the service of the credential is {SERVICE}, not {:?}",
                credential.aws_service
            )));
        }
        if credential.aws_region != self.region {
            let message = format!(
                "the region {:?} of the credential is wrong; expecting {:?}",
                credential.aws_region, self.region
            );
            return Err(bad(message).with("Region", self.region.clone()));
        }
        let day = date.fmt_date();
        if credential.date != day.as_str() {
            return Err(bad(
                "the date of the credential is not the date of the request".to_owned()
            ));
        }
        let secret = self.secret(credential.access_key_id)?;
        let cached = (credential.access_key_id.to_owned(), day.as_str().to_owned());
        let signing_key = self.signing_keys.get(&cached).unwrap_or_else(|| {
            let key = s3s_sigv4::derive_signing_key(secret, &date, &self.region, SERVICE);
            self.signing_keys.insert(cached, key);
            key
        });
        Ok(Scope {
            access_key: credential.access_key_id.to_owned(),
            signing_key,
            date,
        })
    }

    fn secret(&self, access_key: &str) -> Result<&str, Refusal> {
        match access_key == self.keys.access_key {
            true => Ok(&self.keys.secret_key),
            false => Err(Refusal::new(
                "InvalidAccessKeyId",
                StatusCode::FORBIDDEN,
                "the access key is not known here",
            )
            .with("AWSAccessKeyId", access_key)),
        }
    }

    /// Compares a signature with the right one; answers it. Clients encode what is reserved in a path, or send and sign it as it is.
    fn verify(
        &self,
        scope: &Scope,
        signature: &str,
        head: &Parts,
        target: &Target,
        canonical: impl Fn(&str, bool) -> String,
    ) -> Result<String, Refusal> {
        let mut first = None;
        for (path, is_raw) in [(target.path.as_str(), false), (head.uri.path(), true)] {
            let request = canonical(path, is_raw);
            let text = s3s_sigv4::create_string_to_sign(&request, &scope.date, &self.region, SERVICE);
            let right = hex(&s3s_sigv4::calculate_signature_with_key(
                &text,
                &scope.signing_key,
            ));
            if is_same(right.as_bytes(), signature.as_bytes()) {
                return Ok(right);
            }
            first.get_or_insert((request, text));
        }
        let (request, text) = first.unwrap_or_default();
        Err(mismatch()
            .with("AWSAccessKeyId", scope.access_key.clone())
            .with("StringToSign", text)
            .with("SignatureProvided", signature)
            .with("CanonicalRequest", request))
    }
}

/// How the body is framed, by its headers. What is framed is signed in the header of the request, or not at all.
fn content_of(headers: &HeaderMap, signing: Option<ChunkSigning>) -> Result<Content, Refusal> {
    let Some(sha256) = only(headers, "x-amz-content-sha256")? else {
        return Ok(Content::Plain);
    };
    let kind = AmzContentSha256::parse(sha256).map_err(|_| {
        Refusal::invalid_argument("x-amz-content-sha256 is no SHA-256 and none of S3's words")
    })?;
    let length = || -> Result<u64, Refusal> {
        let length = only(headers, "x-amz-decoded-content-length")?.and_then(|text| text.parse().ok());
        length.ok_or_else(|| {
            Refusal::new(
                "MissingContentLength",
                StatusCode::LENGTH_REQUIRED,
                "the header x-amz-decoded-content-length is missing or no number",
            )
        })
    };
    match kind {
        AmzContentSha256::SingleChunk(sha256) => Ok(Content::Sha256(sha256)),
        AmzContentSha256::UnsignedPayload => Ok(Content::Plain),
        AmzContentSha256::StreamingUnsignedPayloadTrailer => Ok(Content::Chunked {
            length: length()?,
            signing: None,
        }),
        _ if signing.is_none() => Err(Refusal::not_implemented(
            "frames can be signed only where the header of the request is",
        )),
        _ => Ok(Content::Chunked {
            length: length()?,
            signing,
        }),
    }
}

/// The pairs of the headers that are signed, in the order in which they are said to be.
fn signed_headers<'a>(headers: &'a HeaderMap, names: &[&'a str]) -> Result<Vec<(&'a str, &'a str)>, Refusal> {
    let is_signed = |name: &str| names.iter().any(|signed| signed.eq_ignore_ascii_case(name));
    if !is_signed("host") {
        return Err(Refusal::access_denied("the header host is not signed"));
    }
    for name in headers.keys() {
        // The hash of the body is signed in a place of its own.
        let acts = name.as_str().starts_with("x-amz-") && name != "x-amz-content-sha256";
        if acts && !is_signed(name.as_str()) {
            return Err(
                Refusal::access_denied("there are headers in the request that are not signed")
                    .with("HeadersNotSigned", name.as_str()),
            );
        }
    }
    let mut pairs = Vec::new();
    for name in names {
        let before = pairs.len();
        for value in headers.get_all(*name) {
            // Its bytes are signed, whatever they are.
            pairs.push((
                *name,
                std::str::from_utf8(value.as_bytes()).map_err(|_| mismatch())?,
            ));
        }
        if pairs.len() == before {
            return Err(mismatch().with("HeadersNotSent", *name));
        }
    }
    Ok(pairs)
}

/// The value of a header that comes once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Refusal::invalid_request(format!("more than one header {name}")));
    }
    let text = value.to_str().map(Some);
    text.map_err(|_| Refusal::invalid_request(format!("the header {name} is not text")))
}

fn check_skew(date: &AmzDate, now: SystemTime) -> Result<(), Refusal> {
    match seconds(date)?.abs_diff(unix(now)) > SKEW_MAX.as_secs() {
        true => Err(too_skewed()),
        false => Ok(()),
    }
}

fn seconds(date: &AmzDate) -> Result<i64, Refusal> {
    let time = date.to_time().map(|time| time.as_second());
    time.ok_or_else(|| Refusal::access_denied("the date of the request is none"))
}

fn unix(now: SystemTime) -> i64 {
    now.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}

fn too_skewed() -> Refusal {
    Refusal::new(
        "RequestTimeTooSkewed",
        StatusCode::FORBIDDEN,
        "the date of the request is too far from the time of this server",
    )
}

fn mismatch() -> Refusal {
    Refusal::new(
        "SignatureDoesNotMatch",
        StatusCode::FORBIDDEN,
        "the signature we calculated does not match the one you sent; check the secret key and the signing method",
    )
}

fn malformed(message: String) -> Refusal {
    Refusal::new("AuthorizationHeaderMalformed", StatusCode::BAD_REQUEST, message)
}

fn bad_query(message: &str) -> Refusal {
    Refusal::new(
        "AuthorizationQueryParametersError",
        StatusCode::BAD_REQUEST,
        message,
    )
}

fn not_understood(authorization: &str) -> Refusal {
    match authorization.split_whitespace().next() {
        Some("AWS") => Refusal::invalid_request(
            "signatures of version 2 in the header are not accepted; please use AWS4-HMAC-SHA256",
        ),
        Some("AWS4-HMAC-SHA256") => malformed("the Authorization header is malformed".to_owned()),
        _ => Refusal::invalid_argument(
            "the type of the Authorization header is not supported; it is AWS4-HMAC-SHA256",
        ),
    }
}

/// In a time that does not depend on where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differs = a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differs) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_796_083_200; // 2026-12-01T00:00:00Z
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn who() -> Who {
        let keys = StaticKeys {
            access_key: "key".into(),
            secret_key: "secret".into(),
        };
        Who::new(keys, "us-east-1")
    }

    fn head(target: &str, headers: &[(&'static str, &str)]) -> (Parts, Target) {
        let mut request = http::Request::builder()
            .method("PUT")
            .uri(target)
            .header("host", "h:9000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let target = Target::read(&head, &[]).expect("a target");
        (head, target)
    }

    /// A signed request for `/b/k`, with these headers signed and those not.
    struct Signed<'a> {
        date: &'a str,
        region: &'a str,
        signed: &'a [(&'static str, &'a str)],
        unsigned: &'a [(&'static str, &'a str)],
        host: bool,
    }

    const PLAIN: Signed = Signed {
        date: "20261201T000000Z",
        region: "us-east-1",
        signed: &[],
        unsigned: &[],
        host: true,
    };

    impl Signed<'_> {
        fn check(&self) -> Result<Caller, &'static str> {
            let mut pairs = vec![("x-amz-content-sha256", EMPTY), ("x-amz-date", self.date)];
            pairs.extend_from_slice(self.signed);
            let mut named = pairs.clone();
            if self.host {
                named.push(("host", "h:9000"));
            }
            named.sort();
            let none: &[(String, String)] = &[];
            let request =
                s3s_sigv4::create_canonical_request("PUT", "/b/k", none, &named, Payload::SingleChunk(EMPTY));
            let date = AmzDate::parse(self.date).expect("a date");
            let text = s3s_sigv4::create_string_to_sign(&request, &date, self.region, "s3");
            let signature = s3s_sigv4::calculate_signature(&text, "secret", &date, self.region, "s3");
            let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
            let authorization = format!(
                "AWS4-HMAC-SHA256 Credential=key/{}/{}/s3/aws4_request, SignedHeaders={}, Signature={signature}",
                date.fmt_date(),
                self.region,
                names.join(";")
            );
            let mut headers = pairs;
            headers.extend_from_slice(self.unsigned);
            headers.push(("authorization", &authorization));
            let (head, target) = head("/b/k", &headers);
            who()
                .of(&head, &target, now())
                .map(|(caller, _)| caller)
                .map_err(|refusal| refusal.code)
        }
    }

    #[test]
    fn whatever_acts_is_signed() {
        let key = || Ok(Caller::Key("key".into()));
        assert_eq!(PLAIN.check(), key());
        let copy = [("x-amz-copy-source", "/b/secret")];
        assert_eq!(
            Signed {
                signed: &copy,
                ..PLAIN
            }
            .check(),
            key()
        );
        assert_eq!(
            Signed {
                unsigned: &copy,
                ..PLAIN
            }
            .check(),
            Err("AccessDenied")
        );
        assert_eq!(Signed { host: false, ..PLAIN }.check(), Err("AccessDenied"));
        let plain = [("content-type", "text/plain")];
        assert_eq!(
            Signed {
                unsigned: &plain,
                ..PLAIN
            }
            .check(),
            key()
        );
    }

    #[test]
    fn a_scope_is_of_this_region_and_of_now() {
        let region = Signed {
            region: "eu-west-1",
            ..PLAIN
        };
        assert_eq!(region.check(), Err("AuthorizationHeaderMalformed"));
        for date in ["20261130T234400Z", "20261201T001600Z", "19990101T000000Z"] {
            assert_eq!(
                Signed { date, ..PLAIN }.check(),
                Err("RequestTimeTooSkewed"),
                "{date}"
            );
        }
        assert_eq!(
            Signed {
                date: "20261201T001400Z",
                ..PLAIN
            }
            .check(),
            Ok(Caller::Key("key".into()))
        );
        let refused = |authorization: &str| {
            let headers = [
                ("authorization", authorization),
                ("x-amz-date", PLAIN.date),
                ("x-amz-content-sha256", EMPTY),
            ];
            let (head, target) = head("/b/k", &headers);
            who()
                .of(&head, &target, now())
                .map(|_| ())
                .map_err(|refusal| refusal.code)
        };
        assert_eq!(refused("AWS key:c2ln"), Err("InvalidRequest"));
        assert_eq!(refused("Bearer abc"), Err("InvalidArgument"));
        assert_eq!(refused(""), Err("InvalidArgument"));
        assert_eq!(
            refused("AWS4-HMAC-SHA256 nonsense"),
            Err("AuthorizationHeaderMalformed")
        );
        let other = format!(
            "AWS4-HMAC-SHA256 Credential=other/20261201/us-east-1/s3/aws4_request, \
             SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={EMPTY}"
        );
        assert_eq!(refused(&other), Err("InvalidAccessKeyId"));
        assert_eq!(
            refused(&other.replace("other", "key")),
            Err("SignatureDoesNotMatch")
        );
    }

    fn presigned(expires: &str, date: &str, unsigned: &[(&'static str, &str)]) -> Result<(), &'static str> {
        let day = &date[..8];
        let mut query = format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=key%2F{day}%2Fus-east-1%2Fs3%2Faws4_request\
             &X-Amz-Date={date}&X-Amz-Expires={expires}&X-Amz-SignedHeaders=host"
        );
        let (_, target) = head(&format!("/b/k?{query}"), &[]);
        let request =
            s3s_sigv4::create_presigned_canonical_request("PUT", "/b/k", &target.query, [("host", "h:9000")]);
        let date = AmzDate::parse(date).expect("a date");
        let text = s3s_sigv4::create_string_to_sign(&request, &date, "us-east-1", "s3");
        let signature = s3s_sigv4::calculate_signature(&text, "secret", &date, "us-east-1", "s3");
        query.push_str(&format!("&X-Amz-Signature={signature}"));
        let (head, target) = head(&format!("/b/k?{query}"), unsigned);
        who()
            .of(&head, &target, now())
            .map(|_| ())
            .map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_presigned_url_is_good_for_as_long_as_it_says_and_a_week_at_most() {
        assert_eq!(presigned("600", "20261130T235500Z", &[]), Ok(()));
        assert_eq!(presigned("604800", "20261125T000000Z", &[]), Ok(()));
        assert_eq!(presigned("600", "20261130T234900Z", &[]), Err("AccessDenied"));
        assert_eq!(
            presigned("600", "20261201T001600Z", &[]),
            Err("RequestTimeTooSkewed")
        );
        for expires in ["604801", "-1", "x"] {
            let refused = presigned(expires, "20261130T235500Z", &[]);
            assert_eq!(refused, Err("AuthorizationQueryParametersError"), "{expires}");
        }
        for name in ["x-amz-copy-source", "x-amz-meta-evil", "x-amz-metadata-directive"] {
            assert_eq!(
                presigned("600", "20261130T235500Z", &[(name, "1")]),
                Err("AccessDenied")
            );
        }
        let (half, target) = head("/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256", &[]);
        let refused = who()
            .of(&half, &target, now())
            .map(|_| ())
            .map_err(|refusal| refusal.code);
        assert_eq!(refused, Err("AuthorizationQueryParametersError"));
    }

    #[test]
    fn a_presigned_url_of_version_2_ends_within_a_week() {
        let check = |expires: u64, unsigned: &[(&'static str, &str)]| {
            let text = format!("PUT\n\n\n{expires}\n/b/k");
            let signature = s3s_sigv2::calculate_signature("secret", &text);
            let signature = super::super::head::encoded(&signature).replace('/', "%2F");
            let query = format!("/b/k?AWSAccessKeyId=key&Expires={expires}&Signature={signature}");
            let (head, target) = head(&query, unsigned);
            who()
                .of(&head, &target, now())
                .map(|_| ())
                .map_err(|refusal| refusal.code)
        };
        assert_eq!(check(NOW + 600, &[]), Ok(()));
        assert_eq!(check(NOW - 1, &[]), Err("AccessDenied"));
        assert_eq!(check(NOW + 1_000_000_000, &[]), Err("AccessDenied"));
        assert_eq!(
            check(NOW + 600, &[("x-amz-copy-source", "/b/s")]),
            Err("SignatureDoesNotMatch")
        );
    }

    #[test]
    fn nobody_signs_twice() {
        let (head, target) = head("/b/k?Signature=a", &[("authorization", "AWS4-HMAC-SHA256 x")]);
        let refused = who()
            .of(&head, &target, now())
            .map(|_| ())
            .map_err(|refusal| refusal.code);
        assert_eq!(refused, Err("InvalidArgument"));
        let (head, target) = self::head("/b/k", &[]);
        let (caller, _) = who().of(&head, &target, now()).expect("nobody");
        assert_eq!(caller, Caller::Anonymous);
    }
}
