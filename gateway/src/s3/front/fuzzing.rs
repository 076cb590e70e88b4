//! What must hold of any bytes that come to the front; see [`crate::fuzzing`].

use super::content;
use super::document::without_cdata;
use super::form::Form;
use super::head::Target;
use super::operation::Operation;
use super::who::{ChunkSigning, Content, Who};
use super::{acting, hoisted, normal, path_style, policy};
use crate::s3::StaticKeys;
use bytes::Bytes;
use futures::stream;
use http::request::Parts;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use s3s_sigv4::AmzDate;
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

/// 2026-01-01.
const NOW_S: u64 = 1_767_225_600;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S)
}

/// A request's method, target and headers, one a line.
fn head_of(bytes: &[u8]) -> Option<Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut first = lines.next()?.splitn(2, |byte| *byte == b' ');
    let (method, target) = (first.next()?, first.next()?);
    let mut request = http::Request::builder().method(method).uri(target);
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..at], &line[at + 1..]);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// A head passes every stage that looks at heads, also those behind a signature. What is passed on is the same target.
pub fn request(bytes: &[u8]) {
    let Some(head) = head_of(bytes) else { return };
    let Ok(target) = Target::read(&head, &["s3.example.com".to_owned()]) else {
        return;
    };
    let keys = StaticKeys {
        access_key: "AKIDEXAMPLE".into(),
        secret_key: "secret".into(),
    };
    let _ = Who::new(keys, "us-east-1").of(&head, &target, now());
    let uri = path_style(target.bucket.as_deref(), target.key.as_deref(), &target.query);
    let (passed, ()) = http::Request::builder()
        .uri(uri)
        .body(())
        .expect("a URI is made")
        .into_parts();
    let again = Target::read(&passed, &[]).expect("it is read again");
    assert_eq!((&again.bucket, &again.key), (&target.bucket, &target.key));
    let Ok(hoisted) = hoisted::headers(&target) else {
        return;
    };
    let asks_for = |name: &str| head.headers.contains_key(name) || hoisted.contains_key(name);
    let Ok(operation) = Operation::of(&head.method, &target, asks_for) else {
        return;
    };
    let mut headers = head.headers;
    if hoisted::merge(&mut headers, hoisted).is_err() || operation.check_headers(&headers).is_err() {
        return;
    }
    if acting::check(&headers).is_err() {
        return;
    }
    let content = Content::Chunked {
        length: 7,
        signing: None,
    };
    let Ok(once) = normal::headers(headers, &content) else {
        return;
    };
    let twice = normal::headers(once.clone(), &content).expect("they are normal");
    assert_eq!(once, twice);
}

/// A body that comes in pieces of this size.
fn body(
    bytes: &[u8],
    piece: usize,
) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + use<> {
    let pieces: Vec<_> = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
    StreamBody::new(stream::iter(
        pieces.into_iter().map(|piece| Ok(Frame::data(piece))),
    ))
}

/// Runs what waits for nothing but bytes that are there.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(work)
}

/// All of a body, if it ends well.
async fn whole(body: s3s::Body) -> Option<Bytes> {
    body.collect().await.ok().map(|whole| whole.to_bytes())
}

/// Framed bodies: how the bytes are cut on their way changes nothing, and no more comes out than was announced.
pub fn chunks(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let signing = (first & 0x80 != 0).then(|| ChunkSigning {
        key: [7; 32],
        date: AmzDate::parse("20260101T000000Z").expect("a date"),
        region: "us-east-1".into(),
        seed: "0".repeat(64),
    });
    let length = u64::from(first & 0x7f);
    let read = |piece: usize| {
        let content = Content::Chunked {
            length,
            signing: signing.clone(),
        };
        at_once(whole(content::read(body(bytes, piece), content).0))
    };
    let found = read(usize::MAX);
    assert!(found.as_ref().is_none_or(|found| found.len() as u64 == length));
    for piece in [1, 7] {
        assert_eq!(read(piece), found, "in pieces of {piece}");
    }
}

/// Forms: how the bytes are cut on their way changes nothing.
pub fn form(bytes: &[u8]) {
    let read = |piece: usize| {
        at_once(async {
            let form = Form::read("multipart/form-data; boundary=B", body(bytes, piece)).await;
            let form = form.ok()?;
            let _ = policy::check(form.value("policy").unwrap_or_default(), &form.fields, "b", now());
            let headers = form.headers().ok();
            let (fields, key) = (form.fields.clone(), form.key().ok().map(str::to_owned));
            let success = form.success();
            let file = whole(form.file(0..=u64::MAX)).await;
            Some((fields, key, headers, success, file))
        })
    };
    let found = read(usize::MAX);
    for piece in [1, 7] {
        assert_eq!(read(piece), found, "in pieces of {piece}");
    }
}

/// A policy, as the base64 that a form has.
pub fn form_policy(bytes: &[u8]) {
    let fields = [
        ("key".to_owned(), "k".to_owned()),
        ("x-amz-meta-a".to_owned(), "1".to_owned()),
    ];
    let text = base64_simd::STANDARD.encode_to_string(bytes);
    let _ = policy::check(&text, &fields, "b", now());
}

/// Documents: what is left of one declares nothing.
pub fn document(bytes: &[u8]) {
    if let Ok(left) = without_cdata(Bytes::copy_from_slice(bytes)) {
        let declares = left.windows(2).any(|at| at == b"<!");
        assert!(!declares, "{}", left.escape_ascii());
    }
}
