//! An upload by a form of a web page: its fields first, then its file as it comes.
//!
//! The fields are judged before a byte of the file is asked for. What is left is the same as a PutObject with the fields as headers, so
//! that is what it becomes.
//!
//! Invariant: in memory are the fields, which are bounded, and the piece of the file that is being passed on.

use super::content::ContentError;
use super::head::{check_key, encoded};
use super::refusal::{Refusal, element};
use bytes::Bytes;
use futures::Stream as _;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use multer::{Field, Multipart};
use s3s::{HttpResponse, StdError};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// The most bytes of one field, beside the policy.
const FIELD_BYTES_MAX: usize = 32 * 1024;
/// The most of all of them.
const FIELDS_BYTES_MAX: usize = 128 * 1024;
/// The most bytes that are read before the file is met: the fields, what frames them, and a piece with the beginning of the file.
const BEFORE_FILE_MAX: usize = 1 << 20;
/// The most fields.
const FIELDS_MAX: usize = 100;

/// Fields that are headers of the object under the same name.
const HEADERS: &[&str] = &[
    "cache-control",
    "content-type",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
];
/// Fields that are about the form.
const OF_FORM: &[&str] = &[
    "key",
    "bucket",
    "policy",
    "signature",
    "awsaccesskeyid",
    "x-amz-signature",
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-security-token",
    "success_action_redirect",
    "success_action_status",
    "redirect",
    "submit",
];

/// A form up to its file.
pub struct Form {
    /// Its fields, names in lower case.
    pub fields: Vec<(String, String)>,
    file: Field<'static>,
    rest: Multipart<'static>,
}

/// What the answer to a form is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Success {
    /// This status.
    Status(StatusCode),
    /// A redirect.
    Redirect(http::Uri),
}

impl Form {
    /// Reads the fields of a form of this media type.
    pub async fn read<B>(content_type: &str, body: B) -> Result<Form, Refusal>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<StdError>,
    {
        let boundary = multer::parse_boundary(content_type).map_err(|_| malformed("it has no boundary"))?;
        let at_file = Arc::new(AtomicBool::new(false));
        let mut rest = Multipart::new(paced(body, at_file.clone()), boundary);
        let (mut fields, mut bytes) = (Vec::new(), 0);
        loop {
            let next = rest
                .next_field()
                .await
                .map_err(|error| malformed(&error.to_string()))?;
            let Some(mut field) = next else {
                return Err(Refusal::invalid_argument("the form has no field file"));
            };
            let name = field.name().unwrap_or_default().to_ascii_lowercase();
            if name == "file" {
                at_file.store(true, Ordering::Relaxed);
                let file_name = field.file_name().map(base_name).unwrap_or_default().to_owned();
                put_file_name(&mut fields, &file_name);
                return Ok(Form {
                    fields,
                    file: field,
                    rest,
                });
            }
            let mut value = Vec::new();
            while let Some(piece) = field
                .chunk()
                .await
                .map_err(|error| malformed(&error.to_string()))?
            {
                bytes += piece.len();
                if value.len() + piece.len() > FIELD_BYTES_MAX || bytes > FIELDS_BYTES_MAX {
                    return Err(too_large("the fields of the form are too long"));
                }
                value.extend_from_slice(&piece);
            }
            let value = String::from_utf8(value).map_err(|_| malformed("a field is not UTF-8"))?;
            if fields.len() == FIELDS_MAX {
                return Err(too_large("the form has too many fields"));
            }
            if fields.iter().any(|(other, _)| *other == name) {
                return Err(Refusal::invalid_argument(format!(
                    "the form has the field {name} more than once"
                )));
            }
            fields.push((name, value));
        }
    }

    /// The value of a field.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    /// The key that it uploads.
    pub fn key(&self) -> Result<&str, Refusal> {
        let key = self.value("key").filter(|key| !key.is_empty());
        let key =
            key.ok_or_else(|| Refusal::invalid_argument("the form has no field key, or an empty one"))?;
        check_key(key).map(|()| key)
    }

    /// The headers of the PutObject that it is.
    pub fn headers(&self) -> Result<HeaderMap, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.fields {
            let name = match name.as_str() {
                "acl" => "x-amz-acl",
                "tagging" => "x-amz-tagging",
                name if OF_FORM.contains(&name) || name.starts_with("x-ignore-") => continue,
                name if HEADERS.contains(&name) || name.starts_with("x-amz-") => name,
                name => {
                    return Err(Refusal::not_implemented(format!(
                        "a form does not have the field {name} here"
                    )));
                }
            };
            let bad = || Refusal::invalid_argument(format!("the field {name} of the form is no header"));
            let name = HeaderName::try_from(name).map_err(|_| bad())?;
            headers.insert(
                name,
                HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad())?,
            );
        }
        if !headers.contains_key(header::CONTENT_TYPE)
            && let Some(of_file) = self.file.content_type()
            && let Ok(value) = HeaderValue::from_str(of_file.as_ref())
        {
            headers.insert(header::CONTENT_TYPE, value);
        }
        Ok(headers)
    }

    /// What the answer is, once the object is stored.
    pub fn success(&self) -> Success {
        let redirect = self.value("success_action_redirect").or(self.value("redirect"));
        if let Some(uri) = redirect.and_then(|text| text.parse::<http::Uri>().ok())
            && matches!(uri.scheme_str(), Some("http" | "https"))
        {
            return Success::Redirect(uri);
        }
        Success::Status(match self.value("success_action_status") {
            Some("200") => StatusCode::OK,
            Some("201") => StatusCode::CREATED,
            _ => StatusCode::NO_CONTENT,
        })
    }

    /// The file, which may have so many bytes. It ends well only if the form does.
    pub fn file(self, length: RangeInclusive<u64>) -> s3s::Body {
        let state = Some((self.file, self.rest, 0_u64, length));
        let frames = futures::stream::unfold(state, |state| async move {
            let (mut file, mut rest, mut bytes, length) = state?;
            match file.chunk().await {
                Ok(Some(piece)) => {
                    bytes += piece.len() as u64;
                    match bytes > *length.end() {
                        true => Some((Err(StdError::from(ContentError::TooLarge)), None)),
                        false => Some((Ok(Frame::data(piece)), Some((file, rest, bytes, length)))),
                    }
                }
                Ok(None) if bytes < *length.start() => Some((Err(ContentError::TooSmall.into()), None)),
                Ok(None) => {
                    drop(file);
                    // Fields behind the file are ignored, as S3 does; the end of the form is not.
                    match rest.next_field().await {
                        Ok(_) => None,
                        Err(_) => Some((Err(ContentError::Incomplete.into()), None)),
                    }
                }
                Err(_) => Some((Err(ContentError::Incomplete.into()), None)),
            }
        });
        s3s::Body::http_body_unsync(StreamBody::new(boxed(frames)))
    }
}

impl Success {
    /// The answer to a form that was stored as `bucket`/`key` with this ETag.
    pub fn answer(&self, bucket: &str, key: &str, etag: &HeaderValue) -> HttpResponse {
        let location = format!("/{}/{}", encoded(bucket), encoded(key));
        let mut response = HttpResponse::new(s3s::Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::ETAG, etag.clone());
        let tag = etag.to_str().unwrap_or_default();
        match self {
            Success::Redirect(uri) => {
                let more = format!("bucket={}&key={}&etag={}", query(bucket), query(key), query(tag));
                let joint = if uri.query().is_some() { '&' } else { '?' };
                if let Ok(value) = HeaderValue::from_str(&format!("{uri}{joint}{more}")) {
                    headers.insert(header::LOCATION, value);
                }
                *response.status_mut() = StatusCode::SEE_OTHER;
            }
            Success::Status(status) => {
                if let Ok(value) = HeaderValue::from_str(&location) {
                    headers.insert(header::LOCATION, value);
                }
                if *status == StatusCode::CREATED {
                    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
                    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<PostResponse>");
                    for (name, text) in [
                        ("Location", location.as_str()),
                        ("Bucket", bucket),
                        ("Key", key),
                        ("ETag", tag),
                    ] {
                        element(&mut xml, name, text);
                    }
                    xml.push_str("</PostResponse>");
                    *response.body_mut() = s3s::Body::from(Bytes::from(xml));
                }
                *response.status_mut() = *status;
            }
        }
        response
    }
}

/// The pieces of a body, one for each time that somebody asks, so that what reads them holds no more than it was given; and up to the
/// file no more than fields may take.
fn paced<B>(body: B, at_file: Arc<AtomicBool>) -> impl futures::Stream<Item = Result<Bytes, StdError>> + Send
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    let (mut pieces, mut bytes, mut has_given) = (body.into_data_stream(), 0, false);
    futures::stream::poll_fn(move |cx| {
        if std::mem::take(&mut has_given) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = std::task::ready!(Pin::new(&mut pieces).poll_next(cx));
        has_given = true;
        Poll::Ready(next.map(|piece| {
            let piece = piece.map_err(Into::into)?;
            if !at_file.load(Ordering::Relaxed) {
                bytes += piece.len();
                if bytes > BEFORE_FILE_MAX {
                    return Err(StdError::from("too much comes before the file"));
                }
            }
            Ok(piece)
        }))
    })
}

fn boxed<S: futures::Stream<Item = Result<Frame<Bytes>, StdError>> + Send + 'static>(
    frames: S,
) -> futures::stream::BoxStream<'static, Result<Frame<Bytes>, StdError>> {
    Box::pin(frames)
}

/// Percent-encoded, as a value in a query.
fn query(text: &str) -> String {
    encoded(text).replace('/', "%2F")
}

/// A file's name without the folders that some browsers send before it.
fn base_name(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or_default()
}

/// `${filename}` in a key is the file's name.
fn put_file_name(fields: &mut [(String, String)], name: &str) {
    for (_, value) in fields.iter_mut().filter(|(field, _)| field == "key") {
        *value = value.replace("${filename}", name);
    }
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(
        "MalformedPOSTRequest",
        StatusCode::BAD_REQUEST,
        format!("the body is no well-formed multipart/form-data: {why}"),
    )
}

fn too_large(message: &str) -> Refusal {
    Refusal::new(
        "MaxPostPreDataLengthExceededError",
        StatusCode::BAD_REQUEST,
        message,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    const TYPE: &str = "multipart/form-data; boundary=B";

    fn body(fields: &[(&str, &str)], file: Option<&str>, end: &str) -> Full<Bytes> {
        let mut out = String::new();
        for (name, value) in fields {
            out.push_str(&format!(
                "--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            ));
        }
        if let Some(file) = file {
            out.push_str(&format!(
                "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"C:\\dir\\f.txt\"\r\n\
                 Content-Type: text/plain\r\n\r\n{file}\r\n--B{end}"
            ));
        }
        Full::new(Bytes::from(out))
    }

    async fn read(fields: &[(&str, &str)]) -> Result<Form, &'static str> {
        let form = Form::read(TYPE, body(fields, Some("data"), "--\r\n")).await;
        form.map_err(|refusal| refusal.code)
    }

    #[tokio::test]
    async fn a_form_is_a_put_with_its_fields_as_headers() {
        let form = read(&[
            ("Key", "u/${filename}"),
            ("acl", "private"),
            ("x-amz-meta-a", "1"),
            ("x-ignore-b", "2"),
        ])
        .await
        .expect("a form");
        assert_eq!(form.key(), Ok("u/f.txt"));
        let headers = form.headers().expect("headers");
        assert_eq!(headers["x-amz-acl"], "private");
        assert_eq!(headers["x-amz-meta-a"], "1");
        assert_eq!(headers["content-type"], "text/plain");
        assert_eq!(headers.len(), 3);
        let file = form.file(0..=4).collect().await.expect("the file");
        assert_eq!(file.to_bytes(), "data");
    }

    #[tokio::test]
    async fn a_file_that_is_cut_or_of_another_length_is_none() {
        for (end, length, expected) in [
            ("--\r\n", 0..=3, ContentError::TooLarge),
            ("--\r\n", 5..=9, ContentError::TooSmall),
            ("", 0..=9, ContentError::Incomplete),
        ] {
            let form = Form::read(TYPE, body(&[("key", "k")], Some("data"), end)).await;
            let form = form.unwrap_or_else(|refusal| panic!("{refusal:?}"));
            let error = form.file(length).collect().await.expect_err("cut");
            assert_eq!(error.downcast_ref::<ContentError>(), Some(&expected));
        }
    }

    #[tokio::test]
    async fn forms_that_make_no_sense_are_refused() {
        let long = "x".repeat(FIELD_BYTES_MAX + 1);
        let many: Vec<(String, String)> = (0..=FIELDS_MAX)
            .map(|n| (format!("f{n}"), String::new()))
            .collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let large = "MaxPostPreDataLengthExceededError";
        assert_eq!(read(&[("a", &long)]).await.err(), Some(large));
        assert_eq!(read(&many).await.err(), Some(large));
        // A part whose head has no end is not held.
        let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = taken.clone();
        let endless = (0..64).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, StdError>(Frame::data(Bytes::from(vec![b'x'; 64 << 10])))
        });
        let head = Ok(Frame::data(Bytes::from_static(b"--B\r\nContent-Disposition: ")));
        let endless = StreamBody::new(futures::stream::iter(std::iter::once(head).chain(endless)));
        let refused = Form::read(TYPE, endless)
            .await
            .map(|_| ())
            .map_err(|refusal| refusal.code);
        assert_eq!(refused, Err("MalformedPOSTRequest"));
        assert_eq!(taken.load(Ordering::Relaxed), BEFORE_FILE_MAX / (64 << 10));
        assert_eq!(
            read(&[("a", "1"), ("A", "2")]).await.err(),
            Some("InvalidArgument")
        );
        let none = Form::read(TYPE, body(&[("key", "k")], None, "")).await;
        assert!(none.is_err());
        assert!(
            Form::read("text/plain", body(&[], Some("x"), "--\r\n"))
                .await
                .is_err()
        );
        let code = |form: Form| form.key().map(str::to_owned).map_err(|refusal| refusal.code);
        assert_eq!(
            code(read(&[("key", "")]).await.expect("a form")),
            Err("InvalidArgument")
        );
        let key = "k".repeat(1_025);
        assert_eq!(
            code(read(&[("key", &key)]).await.expect("a form")),
            Err("KeyTooLongError")
        );
        let unknown = read(&[("key", "k"), ("x", "1")]).await.expect("a form");
        assert_eq!(
            unknown.headers().map_err(|refusal| refusal.code).err(),
            Some("NotImplemented")
        );
    }

    #[tokio::test]
    async fn the_answer_is_as_the_form_asks() {
        let tag = HeaderValue::from_static("\"1\"");
        let answer = |fields: Vec<(&'static str, &'static str)>| {
            let tag = tag.clone();
            async move {
                let form = read(&fields).await.expect("a form");
                form.success().answer("b", "a key", &tag)
            }
        };
        let none = answer(vec![]).await;
        assert_eq!(
            (none.status(), &none.headers()["location"]),
            (StatusCode::NO_CONTENT, &HeaderValue::from_static("/b/a%20key"))
        );
        let created = answer(vec![("success_action_status", "201")]).await;
        let document = created.body().bytes().expect("a document");
        assert!(
            document
                .ends_with(b"<Bucket>b</Bucket><Key>a key</Key><ETag>&quot;1&quot;</ETag></PostResponse>")
        );
        let moved = answer(vec![("success_action_redirect", "http://x/y?z=1")]).await;
        assert_eq!(
            moved.headers()["location"],
            "http://x/y?z=1&bucket=b&key=a%20key&etag=%221%22"
        );
        let script = answer(vec![("success_action_redirect", "javascript:alert(1)")]).await;
        assert_eq!(script.status(), StatusCode::NO_CONTENT);
    }
}
