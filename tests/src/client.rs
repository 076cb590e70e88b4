//! A small S3 client: what the tests need, over header signatures, one connection per request.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::http::{self, Connection, Incoming, Response};
use crate::sigv4::{self, Keys, Subject, UNSIGNED_PAYLOAD};
use crate::xml;

/// Bodies of up to this size are signed, larger ones only declared.
const SIGNED_BODY_BYTES_MAX: usize = 64 * 1024;

/// Speaks to one endpoint as one user.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where.
    pub address: SocketAddr,
    /// Who.
    pub keys: Keys,
}

/// Why a request did not do what it should.
#[derive(Debug)]
pub enum Failure {
    /// No answer, or not all of it: whether the request took effect is unknown.
    Connection(io::Error),
    /// An answer that is an error.
    Answer(Response),
}

impl Failure {
    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Connection(_) => None,
            Self::Answer(response) => Some(response.status),
        }
    }

    /// Whether the server asks to come again later.
    pub fn is_slow_down(&self) -> bool {
        self.status() == Some(503)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => write!(formatter, "no answer: {error}"),
            Self::Answer(response) => write!(formatter, "{} {}", response.status, response.text()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// What a request came to.
pub type Outcome<T> = Result<T, Failure>;

/// A request before it is signed.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// GET, PUT, …
    pub method: &'a str,
    /// Empty for the service itself.
    pub bucket: &'a str,
    /// Empty for the bucket itself.
    pub key: &'a str,
    /// Names and values, not yet encoded.
    pub query: &'a [(&'a str, &'a str)],
    /// All of them are signed.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

impl Client {
    /// Sends the request, whatever the answer.
    pub fn send(&self, request: &Request) -> io::Result<Response> {
        let payload_hash = match request.body.len() {
            0..=SIGNED_BODY_BYTES_MAX => sigv4::sha256_hex(request.body),
            _ => UNSIGNED_PAYLOAD.to_owned(),
        };
        let (target, headers) = self.sign(request, &payload_hash);
        http::exchange(self.address, request.method, &target, &headers, request.body)
    }

    /// Sends the request; an answer of 300 or more is a failure.
    pub fn call(&self, request: &Request) -> Outcome<Response> {
        match self.send(request)? {
            response if response.status < 300 => Ok(response),
            response => Err(Failure::Answer(response)),
        }
    }

    /// Target and headers of the signed request.
    pub fn sign(&self, request: &Request, payload_hash: &str) -> (String, Vec<(String, String)>) {
        let (path, host) = (path(request.bucket, request.key), self.address.to_string());
        let subject = Subject {
            method: request.method,
            path: &path,
            query: request.query,
            host: &host,
        };
        let headers = sigv4::headers(&subject, request.headers, payload_hash, &self.keys, sigv4::now());
        (with_query(&path, &sigv4::canonical_query(request.query)), headers)
    }

    /// The target of a presigned request that was signed at this time.
    pub fn presign(&self, method: &str, bucket: &str, key: &str, at: u64, expires_seconds: u64) -> String {
        let (path, host) = (path(bucket, key), self.address.to_string());
        let subject = Subject {
            method,
            path: &path,
            query: &[],
            host: &host,
        };
        with_query(
            &path,
            &sigv4::presigned_query(&subject, &self.keys, at, expires_seconds),
        )
    }

    /// Makes a bucket.
    pub fn create_bucket(&self, bucket: &str) {
        self.call(&Request {
            method: "PUT",
            bucket,
            ..Request::default()
        })
        .unwrap();
    }

    /// Stores an object; answers its ETag.
    pub fn put(&self, bucket: &str, key: &str, body: &[u8]) -> Outcome<String> {
        let response = self.call(&Request {
            method: "PUT",
            bucket,
            key,
            body,
            ..Request::default()
        })?;
        Ok(response.header("etag").unwrap().to_owned())
    }

    /// Stores an object, again and again while the server says that it is busy.
    pub fn put_patiently(&self, bucket: &str, key: &str, body: &[u8], patience: Duration) -> Outcome<String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.put(bucket, key, body) {
                Err(failure) if failure.is_slow_down() && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(rand::random_range(20..200)));
                }
                outcome => return outcome,
            }
        }
    }

    /// The whole object.
    pub fn get(&self, bucket: &str, key: &str) -> Outcome<Vec<u8>> {
        Ok(self
            .call(&Request {
                method: "GET",
                bucket,
                key,
                ..Request::default()
            })?
            .body)
    }

    /// The whole object, or `None` if there is none.
    pub fn find(&self, bucket: &str, key: &str) -> Outcome<Option<Vec<u8>>> {
        match self.get(bucket, key) {
            Ok(body) => Ok(Some(body)),
            Err(failure) if failure.status() == Some(404) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// An object whose body the caller reads as slowly as it likes.
    pub fn get_slowly(&self, bucket: &str, key: &str) -> io::Result<Incoming> {
        let request = Request {
            method: "GET",
            bucket,
            key,
            ..Request::default()
        };
        let (target, headers) = self.sign(&request, &sigv4::sha256_hex(b""));
        Connection::open(self.address, "GET", &target, &headers)?.receive("GET")
    }

    /// Removes an object.
    pub fn delete(&self, bucket: &str, key: &str) -> Outcome<()> {
        self.call(&Request {
            method: "DELETE",
            bucket,
            key,
            ..Request::default()
        })
        .map(drop)
    }

    /// All keys of a bucket, through as many pages as it takes.
    pub fn list(&self, bucket: &str) -> Outcome<Vec<String>> {
        let (mut keys, mut token) = (Vec::new(), None::<String>);
        loop {
            let mut query = vec![("list-type", "2")];
            query.extend(token.as_deref().map(|token| ("continuation-token", token)));
            let page = self
                .call(&Request {
                    method: "GET",
                    bucket,
                    query: &query,
                    ..Request::default()
                })?
                .text();
            keys.extend(xml::texts(&page, "Key"));
            token = xml::text(&page, "NextContinuationToken");
            if token.is_none() {
                return Ok(keys);
            }
        }
    }

    /// Keys and ids of the first multipart uploads that are neither completed nor aborted.
    pub fn uploads(&self, bucket: &str) -> Outcome<Vec<(String, String)>> {
        let page = self.call(&Request {
            method: "GET",
            bucket,
            query: &[("uploads", "")],
            ..Request::default()
        })?;
        let uploads = xml::texts(&page.text(), "Upload");
        Ok(uploads
            .iter()
            .map(|u| (xml::text(u, "Key").unwrap(), xml::text(u, "UploadId").unwrap()))
            .collect())
    }

    /// Aborts every multipart upload of the bucket.
    pub fn abort_uploads(&self, bucket: &str) -> Outcome<()> {
        loop {
            let uploads = self.uploads(bucket)?;
            if uploads.is_empty() {
                return Ok(());
            }
            for (key, id) in &uploads {
                let query = &[("uploadId", id.as_str())];
                self.call(&Request {
                    method: "DELETE",
                    bucket,
                    key,
                    query,
                    ..Request::default()
                })?;
            }
        }
    }

    /// Begins a multipart upload.
    pub fn create_upload(&self, bucket: &str, key: &str) -> Outcome<Upload<'_>> {
        let query = &[("uploads", "")];
        let answer = self.call(&Request {
            method: "POST",
            bucket,
            key,
            query,
            ..Request::default()
        })?;
        let id = xml::text(&answer.text(), "UploadId").unwrap();
        Ok(Upload {
            client: self,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            id,
            parts: Vec::new(),
        })
    }
}

/// A multipart upload in progress.
#[derive(Debug)]
pub struct Upload<'a> {
    client: &'a Client,
    bucket: String,
    key: String,
    /// The upload's id.
    pub id: String,
    /// Numbers and ETags of the parts so far, in the order of upload.
    pub parts: Vec<(u32, String)>,
}

impl Upload<'_> {
    /// Uploads a part.
    pub fn part(&mut self, number: u32, body: &[u8]) -> Outcome<()> {
        let number_text = number.to_string();
        let query = &[("partNumber", number_text.as_str()), ("uploadId", &self.id)];
        let request = Request {
            method: "PUT",
            bucket: &self.bucket,
            key: &self.key,
            query,
            body,
            ..Request::default()
        };
        let etag = self.client.call(&request)?.header("etag").unwrap().to_owned();
        self.parts.push((number, etag));
        Ok(())
    }

    /// Makes the parts, in the order of `parts`, the object.
    pub fn complete(&self) -> Outcome<()> {
        let part = |(number, etag): &(u32, String)| {
            format!(
                "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>",
                xml::escape(etag)
            )
        };
        let parts: String = self.parts.iter().map(part).collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let response = self.call("POST", body.as_bytes())?;
        // S3 may begin to answer before it knows the outcome, and then says in the body that it failed.
        if response.text().contains("<Error>") {
            Err(Failure::Answer(response))
        } else {
            Ok(())
        }
    }

    /// Gives it up.
    pub fn abort(&self) -> Outcome<()> {
        self.call("DELETE", &[]).map(drop)
    }

    fn call(&self, method: &str, body: &[u8]) -> Outcome<Response> {
        let query = &[("uploadId", self.id.as_str())];
        let (bucket, key) = (self.bucket.as_str(), self.key.as_str());
        self.client.call(&Request {
            method,
            bucket,
            key,
            query,
            body,
            ..Request::default()
        })
    }
}

fn path(bucket: &str, key: &str) -> String {
    match (bucket, key) {
        ("", _) => "/".to_owned(),
        (bucket, "") => format!("/{}", sigv4::encode(bucket, false)),
        (bucket, key) => format!("/{}/{}", sigv4::encode(bucket, false), sigv4::encode(key, true)),
    }
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    }
}
