//! The way of a request, in stages; each refuses or passes on.
//!
//! ```text
//! head       whom it is for: bucket, key, query; by path or by host          head
//! hoisted    the headers that a presigned URL has in its query               hoisted
//! operation  which of the operations that there are, and what it may have    operation
//! who        whose signature is on it, and is it right                       who, form
//! may        may they do that                                                may
//! acting     does it ask for something that is not done here                 acting
//! normal     what S3 ignores is taken out, what it reads in old forms is new normal
//! content    the body out of its frames, checked as it comes                 content, document
//! the operation                                                              s3s, and the operations of `s3`
//! ```
//! A preflight of a browser is answered after the head, and what browsers are to know goes with every answer (cors).
//!
//! s3s sees a request that is signed by nobody, for a path-style target, with a plain body: it makes types of it, and documents of answers.
//!
//! Invariant: [`Front::pass`] is the only way to s3s, and no request passes that a stage did not understand.

mod acting;
mod content;
mod cors;
mod document;
mod form;
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod hoisted;
mod may;
mod normal;
mod operation;
mod policy;
mod refusal;
mod who;

pub use acting::OWNER;
pub use content::{ContentError, Trailers};
pub use head::encoded;

use super::unread::Watched;
use super::{S3Gateway, StaticKeys};
use crate::connections::{self, Answering, Connection};
use crate::error::Error;
use crate::object::Objects;
use form::Form;
use futures::FutureExt;
use head::Target;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Incoming;
use operation::{BodyKind, Operation, POST_OBJECT};
use refusal::{Refusal, element};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpResponse};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use who::{Caller, Content, Who};

/// Refusals are logged so often at most; those between are counted in the next line.
const LOG_PERIOD: Duration = Duration::from_secs(1);

/// How a gateway shows itself to S3 clients.
pub struct S3Settings {
    /// Who may sign requests.
    pub keys: StaticKeys,
    /// The region that clients sign for.
    pub region: String,
    /// Host names below which buckets are hosts of their own.
    pub domains: Vec<String>,
}

impl S3Settings {
    /// The region, unless somebody says otherwise.
    pub const REGION: &str = "us-east-1";
}

/// What stands between the network and the operations.
pub struct Front {
    objects: Arc<Objects>,
    service: S3Service,
    who: Who,
    domains: Vec<String>,
    logged: Mutex<Logged>,
}

/// Refusals since the last line about one.
#[derive(Default)]
struct Logged {
    at: Option<Instant>,
    since: u64,
}

impl Front {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>, settings: S3Settings) -> Arc<Front> {
        let mut config = S3Config::default();
        config.xml_max_body_size = document::DOCUMENT_BYTES_MAX;
        // Which operation it is, is decided here.
        config.operation_id_routing = false;
        let mut builder = S3ServiceBuilder::new(S3Gateway::new(objects.clone(), settings.region.clone()));
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        Arc::new(Front {
            objects,
            service: builder.build(),
            who: Who::new(settings.keys, &settings.region),
            domains: settings
                .domains
                .iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
            logged: Mutex::default(),
        })
    }

    /// Answers one request.
    pub async fn answer(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Answering<Body>>, Infallible> {
        let begun = connection.begin();
        let answer = connection.serve(self.answer_one(request)).await;
        Ok(answer.map(|body| begun.with(body)))
    }

    async fn answer_one(self: Arc<Self>, request: http::Request<Incoming>) -> HttpResponse {
        let (head, body) = request.into_parts();
        let (method, resource, id) = (head.method.clone(), head.uri.path().to_owned(), request_id());
        let expects_to_send = head.headers.contains_key(header::EXPECT);
        let is_empty = head
            .headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length.as_bytes() == b"0");
        let asked = cors::Asked::by(&head, &self.domains).filter(|_| method != Method::OPTIONS);
        if expects_to_send
            && is_empty
            && let Some(connection) = connections::served()
        {
            connection.say_continue();
        }
        let mut unread = Watched::new(body);
        let passing = AssertUnwindSafe(self.pass(head, unread.clone())).catch_unwind();
        let mut response = match passing.await {
            Ok(Ok(response)) => response,
            Ok(Err(refusal)) => {
                self.note(&refusal, &method);
                refusal.answer(&method, &resource, &id)
            }
            Err(panic) => {
                let what = crate::ledger::group_commit::panic_message(&*panic);
                tracing::error!(%method, what, request = id, "a request ended in a panic");
                self.objects.metrics.request_panics.inc();
                let refusal = Refusal::new(
                    "InternalError",
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "we encountered an internal error; please try again",
                );
                refusal.answer(&method, &resource, &id)
            }
        };
        if method == Method::HEAD
            && response.status() == StatusCode::OK
            && response.headers().contains_key(header::CONTENT_RANGE)
        {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        if response.status().is_client_error() || response.status().is_server_error() {
            explain(&mut response, &resource, &id);
        }
        if let Some(asked) = asked {
            cors::headers(&self.objects, &asked, response.headers_mut()).await;
        }
        if !unread.finish(expects_to_send).await {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            if let Some(connection) = connections::served() {
                connection.linger();
            }
        }
        let id = HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("0"));
        response.headers_mut().insert("x-amz-request-id", id);
        response
    }

    async fn pass(&self, head: Parts, body: Watched<Incoming>) -> Result<HttpResponse, Refusal> {
        let target = Target::read(&head, &self.domains)?;
        self.check_host(&head, &target).await?;
        if head.method == Method::OPTIONS {
            return cors::preflight(&self.objects, &head, &target).await;
        }
        if let Some(media_type) = media_type_of_form(&head, &target) {
            return self.post(head, target, &media_type, body).await;
        }
        let (is_presigned, hoisted) = (hoisted::is_presigned(&target), hoisted::headers(&target)?);
        let asks_for = |name: &str| head.headers.contains_key(name) || hoisted.contains_key(name);
        let operation = Operation::of(&head.method, &target, asks_for)?;
        let now = self.now();
        let (caller, content) = self.who.of(&head, &target, now)?;
        note_key(&caller);
        may::check(&caller, operation)?;
        let mut headers = head.headers;
        hoisted::merge(&mut headers, hoisted)?;
        operation.check_headers(&headers)?;
        acting::check(&headers)?;
        let headers = normal::headers(headers, &content)?;
        let (body, trailers) = match operation.body {
            BodyKind::Document => {
                let (body, trailers) = content::read(body, content);
                let bytes = document::read(&self.objects.budget, body, &trailers, &headers).await?;
                (Body::from(bytes), trailers)
            }
            BodyKind::None | BodyKind::Data => content::read(body, content),
        };
        let bucket = target.bucket.as_deref();
        // S3 gives back any text; s3s reads a date.
        let mut query = target.query;
        query.retain(|(name, _)| !(is_presigned && hoisted::is_hoisted(name)));
        let (expires, query): (Vec<_>, Vec<_>) = query
            .into_iter()
            .partition(|(name, _)| name == "response-expires");
        let uri = path_style(bucket, target.key.as_deref(), &query);
        let mut response = self.call(head.method, uri, headers, body, trailers).await?;
        if let Some((_, expires)) = expires.first()
            && response.status().is_success()
        {
            let expires = HeaderValue::from_str(expires)
                .map_err(|_| Refusal::invalid_argument("response-expires is no header"))?;
            response.headers_mut().insert(header::EXPIRES, expires);
        }
        Ok(response)
    }

    /// An upload by a form.
    async fn post(
        &self,
        head: Parts,
        target: Target,
        media_type: &str,
        body: Watched<Incoming>,
    ) -> Result<HttpResponse, Refusal> {
        if let Some((name, _)) = target.query.first() {
            return Err(Refusal::not_implemented(format!(
                "a form has no {name:?} in its query"
            )));
        }
        let bucket = target.bucket.as_deref().unwrap_or_default();
        // Before anything of the file is read.
        let form = Form::read(media_type, body).await?;
        let now = self.now();
        let field = |name: &str| form.value(name).map(str::to_owned);
        let caller = self.who.of_form(field, now)?;
        note_key(&caller);
        may::check(&caller, &POST_OBJECT)?;
        let policy = form.value("policy").unwrap_or_default();
        let length = policy::check(policy, &form.fields, bucket, now)?;
        let key = form.key()?.to_owned();
        let mut headers = form.headers()?;
        POST_OBJECT.check_headers(&headers)?;
        acting::check(&headers)?;
        headers.extend(
            head.headers
                .get(header::HOST)
                .map(|host| (header::HOST, host.clone())),
        );
        let headers = normal::headers(headers, &Content::Plain)?;
        let uri = path_style(Some(bucket), Some(&key), &[]);
        let success = form.success();
        let stored = self
            .call(Method::PUT, uri, headers, form.file(length), Trailers::default())
            .await?;
        match (stored.status(), stored.headers().get(header::ETAG)) {
            (StatusCode::OK, Some(etag)) => Ok(success.answer(bucket, &key, etag)),
            _ => Ok(stored),
        }
    }

    async fn call(
        &self,
        method: Method,
        uri: String,
        headers: HeaderMap,
        body: Body,
        trailers: Trailers,
    ) -> Result<HttpResponse, Refusal> {
        let mut request = http::Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::try_from(uri).map_err(|_| Refusal::invalid_uri("the target is no URI"))?;
        *request.headers_mut() = headers;
        request.extensions_mut().insert(trailers);
        self.service.call(request).await.map_err(|error| {
            tracing::error!(?error, "a request got no answer");
            Refusal::new(
                "InternalError",
                StatusCode::INTERNAL_SERVER_ERROR,
                "we encountered an internal error; please try again",
            )
        })
    }

    /// A bucket in the host where no domain says so would be lost, and the request be one for something else.
    async fn check_host(&self, head: &Parts, target: &Target) -> Result<(), Refusal> {
        let Some(host) = head::host(&head.headers)?.filter(|host| !self.domains.contains(host)) else {
            return Ok(());
        };
        let Some(first) = head::may_mean_bucket(&host).filter(|_| !target.is_virtual) else {
            return Ok(());
        };
        match self.objects.bucket(first).await {
            Err(Error::NoSuchBucket) => Ok(()),
            Ok(_) => Err(Refusal::invalid_request(format!(
                "the host names the bucket {first:?}, and this server has no domain for that: \
                 start it with --domain, or use path-style requests"
            ))),
            Err(error) => Err(document::refused(error)), // Nobody knows whether it is one.
        }
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.objects.clock.now_ms())
    }

    /// Counts a refusal, and logs one a second.
    fn note(&self, refusal: &Refusal, method: &Method) {
        let metrics = &self.objects.metrics;
        metrics.refused_requests.with_label_values(&[refusal.code]).inc();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.at.is_some_and(|at| at.elapsed() < LOG_PERIOD) {
            logged.since += 1;
            return;
        }
        let others = std::mem::take(&mut logged.since);
        logged.at = Some(Instant::now());
        drop(logged);
        let message = refusal.message.as_str();
        tracing::info!(code = refusal.code, %method, message, others, "request refused");
    }
}

/// What the request holds from here on counts for its key, too.
fn note_key(caller: &Caller) {
    if let (Caller::Key(key), Some(connection)) = (caller, connections::served()) {
        connection.set_key(key);
    }
}

/// The media type of a request that is a form for a bucket.
fn media_type_of_form(head: &Parts, target: &Target) -> Option<String> {
    let media_type = head.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let is_form = media_type
        .get(..19)
        .is_some_and(|start| start.eq_ignore_ascii_case("multipart/form-data"));
    let is_for_bucket = target.bucket.is_some() && target.key.is_none();
    (head.method == Method::POST && is_form && is_for_bucket).then(|| media_type.to_owned())
}

/// The target of a request with its bucket in the path and without its signature.
fn path_style(bucket: Option<&str>, key: Option<&str>, query: &[(String, String)]) -> String {
    let mut uri = String::from("/");
    uri.push_str(&encoded(bucket.unwrap_or_default()));
    if let Some(key) = key {
        uri.push('/');
        uri.push_str(&encoded(key));
    }
    let mut joint = '?';
    for (name, value) in query.iter().filter(|(name, _)| !operation::is_of_signature(name)) {
        uri.push(joint);
        uri.push_str(&encoded(name));
        uri.push('=');
        uri.push_str(&encoded(value));
        joint = '&';
    }
    uri
}

/// A number for each request of this process, so that a client's report and a trace can be brought together.
fn request_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{:016X}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Completes the document of an error.
fn explain(response: &mut HttpResponse, resource: &str, id: &str) {
    let Some(xml) = response.body().bytes() else {
        return;
    };
    let Some(text) = std::str::from_utf8(&xml)
        .ok()
        .and_then(|xml| explained(xml, resource, id))
    else {
        return;
    };
    response.headers_mut().remove(header::CONTENT_LENGTH);
    // s3s leaves it out where an error has headers of its own.
    let xml = HeaderValue::from_static("application/xml");
    response.headers_mut().insert(header::CONTENT_TYPE, xml);
    *response.body_mut() = Body::from(text);
}

/// An error document with a message for its code if it has none, and with the resource and the number of its request.
fn explained(xml: &str, resource: &str, id: &str) -> Option<String> {
    if xml.contains("<RequestId>") {
        return None;
    }
    let before = xml.trim_end().strip_suffix("</Error>")?;
    let (_, rest) = xml.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let mut text = before.to_owned();
    if !xml.contains("<Message>") {
        let message = match code {
            "InvalidBucketName" => {
                "The bucket name is not valid: 3 to 63 lower-case letters, digits, dots and hyphens, not an IP address."
            }
            "KeyTooLongError" => "The key is too long: at most 1,024 bytes of UTF-8.",
            "InvalidURI" => "The request URI could not be parsed.",
            "IncompleteBody" => "The request body ended before its announced length.",
            "MissingContentLength" => "The Content-Length header is missing.",
            "MalformedXML" => "The XML of the request is not well-formed or not what the operation expects.",
            "EntityTooLarge" => "The body exceeds the maximum allowed size.",
            _ => "The request could not be done.",
        };
        element(&mut text, "Message", message);
    }
    element(&mut text, "Resource", resource);
    element(&mut text, "RequestId", id);
    text.push_str("</Error>");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_says_what_of_what_and_in_which_request() {
        let bare = "<Error><Code>KeyTooLongError</Code></Error>";
        let text = explained(bare, "/b/k", "7").expect("a document");
        assert!(
            text.starts_with("<Error><Code>KeyTooLongError</Code><Message>The key is too long"),
            "{text}"
        );
        assert!(
            text.ends_with("</Message><Resource>/b/k</Resource><RequestId>7</RequestId></Error>"),
            "{text}"
        );
        assert_eq!(explained(&text, "/b/k", "7"), None);
        assert_eq!(explained("no xml", "/", "7"), None);
    }

    #[test]
    fn what_is_passed_on_has_its_bucket_in_the_path_and_no_signature() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let query = [
            pair("uploadId", "a/b c"),
            pair("X-Amz-Signature", "1"),
            pair("partNumber", "7"),
        ];
        assert_eq!(
            path_style(Some("b"), Some("a key/ü?"), &query),
            "/b/a%20key/%C3%BC%3F?uploadId=a/b%20c&partNumber=7"
        );
        assert_eq!(path_style(None, None, &[]), "/");
    }

    #[test]
    fn request_ids_differ() {
        assert_ne!(request_id(), request_id());
    }
}
