//! Where requests go and how they are signed: presigned path-style URIs from rusty-s3. Pure, but for the clock in a signature.

use super::plan::Op;
use http::Uri;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use std::time::Duration;

/// How long presigned requests are valid: the most S3 allows.
const SIGNATURE_VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `host:port`, to connect to.
    pub address: String,
    /// The Host header, as it is signed: without the port if that is 80.
    pub host: String,
}

impl Endpoint {
    /// Takes `http://host:port`, nothing else: there is no TLS here.
    pub fn parse(url: &str) -> Result<Endpoint, String> {
        let bad = || format!("{url:?} is not like http://127.0.0.1:9000");
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let (Some("http"), Some(host), "/" | "") = (uri.scheme_str(), uri.host(), uri.path()) else {
            return Err(bad());
        };
        Ok(match uri.port_u16() {
            None | Some(80) => Endpoint {
                address: format!("{host}:80"),
                host: host.to_owned(),
            },
            Some(port) => Endpoint {
                address: format!("{host}:{port}"),
                host: format!("{host}:{port}"),
            },
        })
    }
}

/// Signs requests for one bucket.
#[derive(Debug)]
pub struct Signer {
    bucket: Bucket,
    credentials: Credentials,
}

impl Signer {
    /// A signer for path-style requests.
    pub fn new(
        endpoint: &Endpoint,
        bucket: &str,
        region: &str,
        key: &str,
        secret: &str,
    ) -> Result<Signer, String> {
        let url = format!("http://{}", endpoint.host)
            .parse()
            .map_err(|e| format!("{}: {e}", endpoint.host))?;
        let bucket = Bucket::new(url, UrlStyle::Path, bucket.to_owned(), region.to_owned());
        Ok(Signer {
            bucket: bucket.map_err(|e| format!("cannot sign for this bucket and endpoint: {e}"))?,
            credentials: Credentials::new(key, secret),
        })
    }

    /// The URI of a request for an object; for a list, of a page of all that start with `key`.
    pub fn object(&self, op: Op, key: &str) -> Uri {
        let (bucket, credentials) = (&self.bucket, Some(&self.credentials));
        match op {
            Op::Put => presign(bucket.put_object(credentials, key)),
            Op::Get => presign(bucket.get_object(credentials, key)),
            Op::Head => presign(bucket.head_object(credentials, key)),
            Op::Delete => presign(bucket.delete_object(credentials, key)),
            Op::List | Op::ListDirs => self.list(op, key, ""),
        }
    }

    /// The URI of a page of those that start with `prefix`, behind the key `after`.
    pub fn list(&self, op: Op, prefix: &str, after: &str) -> Uri {
        let mut list = self.bucket.list_objects_v2(Some(&self.credentials));
        list.with_prefix(prefix);
        if !after.is_empty() {
            list.with_start_after(after);
        }
        if op == Op::ListDirs {
            list.with_delimiter("/");
        }
        presign(list)
    }

    /// The URI that asks whether the bucket is there, with HEAD.
    pub fn head_bucket(&self) -> Uri {
        presign(self.bucket.head_bucket(Some(&self.credentials)))
    }

    /// The URI that creates the bucket, with PUT.
    pub fn create_bucket(&self) -> Uri {
        presign(self.bucket.create_bucket(&self.credentials))
    }

    /// The URI that deletes the bucket, which must be empty, with DELETE.
    pub fn delete_bucket(&self) -> Uri {
        presign(self.bucket.delete_bucket(&self.credentials))
    }
}

fn presign<'a>(action: impl S3Action<'a>) -> Uri {
    let url = action.sign(SIGNATURE_VALIDITY);
    let text = format!("{}?{}", url.path(), url.query().unwrap_or_default());
    // A URL that was percent-encoded is a URI.
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_parse() {
        let endpoint = Endpoint::parse("http://127.0.0.1:9000").unwrap();
        assert_eq!(
            (endpoint.address.as_str(), endpoint.host.as_str()),
            ("127.0.0.1:9000", "127.0.0.1:9000")
        );
        let endpoint = Endpoint::parse("http://example.org/").unwrap();
        assert_eq!(
            (endpoint.address.as_str(), endpoint.host.as_str()),
            ("example.org:80", "example.org")
        );
        let endpoint = Endpoint::parse("http://[::1]:80").unwrap();
        assert_eq!(
            (endpoint.address.as_str(), endpoint.host.as_str()),
            ("[::1]:80", "[::1]")
        );
        for bad in [
            "",
            "127.0.0.1:9000",
            "https://example.org",
            "http://example.org/path",
            "http://",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_are_presigned() {
        let endpoint = Endpoint::parse("http://127.0.0.1:9000").unwrap();
        let signer = Signer::new(&endpoint, "bench", "us-east-1", "cairn", "secret").unwrap();
        let uri = signer.object(Op::Get, "a b/c").to_string();
        assert!(
            uri.starts_with("/bench/a%20b/c?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=cairn%2F"),
            "{uri}"
        );
        assert!(uri.contains("X-Amz-SignedHeaders=host&X-Amz-Signature="), "{uri}");
        let uri = signer.object(Op::List, "a/").to_string();
        assert!(
            uri.starts_with("/bench/?") && uri.contains("prefix=a%2F") && uri.contains("list-type=2"),
            "{uri}"
        );
    }
}
