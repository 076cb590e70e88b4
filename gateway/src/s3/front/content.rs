//! The body of a request as operations have it: out of its `aws-chunked` frames, and checked against what was signed.
//!
//! ```text
//! body  = *( frame ) last trailers          frame = size-hex [";chunk-signature=" 64hex] CRLF data CRLF
//! last  = "0" [";chunk-signature=" 64hex] CRLF
//! trailers = *( name ":" value CRLF ) ["x-amz-trailer-signature:" 64hex CRLF] CRLF
//! ```
//!
//! Data of a frame that is not signed passes as it comes. A signed frame is held until its signature was checked, so its size is bounded.
//!
//! Invariant: no byte of a signed frame passes before its signature was found right, and an end is told only after all that was
//! announced came, and matched.

use super::who::{ChunkSigning, Content};
use crate::object::digest::hex;
use bytes::{Buf, Bytes, BytesMut};
use futures::Stream;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use s3s::StdError;
use sha2::{Digest, Sha256};
use std::sync::{Arc, OnceLock};

/// Signed frames of more than this many bytes are refused.
const SIGNED_FRAME_BYTES_MAX: u64 = 4 << 20;
/// The most bytes of a frame's head, or of a line of the trailers.
const LINE_BYTES_MAX: usize = 1_024;
/// The most lines of trailers.
const TRAILERS_MAX: usize = 16;
/// A signed frame that is longer is hashed off the reactor.
const HASH_HERE_MAX: usize = 128 * 1024;

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// It is not what was signed.
    #[error("the body does not match x-amz-content-sha256")]
    Sha256,
    /// A frame, or the trailers, are not what was signed.
    #[error("a chunk signature does not match")]
    Signature,
    /// The frames are not as they must be.
    #[error("the body is malformed: {0}")]
    Malformed(&'static str),
    /// A signed frame is too long to be held.
    #[error("a signed chunk has {0} bytes, more than {SIGNED_FRAME_BYTES_MAX}")]
    FrameTooLarge(u64),
    /// More came than is allowed.
    #[error("the body exceeds the maximum allowed size")]
    TooLarge,
    /// Less came than is asked for.
    #[error("the body is smaller than the minimum allowed size")]
    TooSmall,
    /// Less came than was announced, or more.
    #[error("the request body ended before its announced length")]
    Incomplete,
}

/// The headers behind a body; there once it was read.
#[derive(Clone, Debug, Default)]
pub struct Trailers(Arc<OnceLock<HeaderMap>>);

impl Trailers {
    /// The value of one of them.
    pub fn value(&self, name: &str) -> Option<String> {
        let value = self.0.get()?.get(name)?;
        value.to_str().ok().map(str::to_owned)
    }
}

/// The content of a body that is framed in this way, and the trailers that may follow it.
pub fn read<B>(body: B, content: Content) -> (s3s::Body, Trailers)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    let trailers = Trailers::default();
    let check = match content {
        Content::Plain => return (s3s::Body::http_body_unsync(body.map_err(Into::into)), trailers),
        Content::Sha256(expected) => Check::Sha256(Sha256::new(), expected),
        Content::Chunked { length, signing } => {
            Check::Frames(Box::new(Frames::new(length, signing, trailers.clone())))
        }
    };
    let frames = futures::stream::unfold(Some((body, check)), step);
    (
        s3s::Body::http_body_unsync(StreamBody::new(boxed(frames))),
        trailers,
    )
}

fn boxed<S: Stream<Item = Result<Frame<Bytes>, StdError>> + Send + 'static>(
    frames: S,
) -> futures::stream::BoxStream<'static, Result<Frame<Bytes>, StdError>> {
    Box::pin(frames)
}

enum Check {
    Sha256(Sha256, [u8; 32]),
    Frames(Box<Frames>),
}

async fn step<B>(state: Option<(B, Check)>) -> Option<(Result<Frame<Bytes>, StdError>, Option<(B, Check)>)>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let (mut body, mut check) = state?;
    loop {
        if let Check::Frames(frames) = &mut check {
            match frames.next().await {
                Ok(Some(bytes)) => return Some((Ok(Frame::data(bytes)), Some((body, check)))),
                Ok(None) => {}
                Err(error) => return Some((Err(error.into()), None)),
            }
        }
        let arrived = match body.frame().await {
            Some(Ok(frame)) => frame.into_data().ok(),
            Some(Err(error)) => return Some((Err(error.into()), None)),
            None => {
                let ended = match check {
                    Check::Sha256(hasher, expected) => {
                        match <[u8; 32]>::from(hasher.finalize()) == expected {
                            true => Ok(()),
                            false => Err(ContentError::Sha256),
                        }
                    }
                    Check::Frames(frames) => frames.end(),
                };
                return ended.err().map(|error| (Err(error.into()), None));
            }
        };
        let Some(bytes) = arrived else { continue };
        match &mut check {
            Check::Sha256(hasher, _) => {
                hasher.update(&bytes);
                return Some((Ok(Frame::data(bytes)), Some((body, check))));
            }
            Check::Frames(frames) => frames.arrived.push(bytes),
        }
    }
}

/// Bytes that arrived and were not looked at, without copying them together.
#[derive(Default)]
struct Arrived {
    bytes: Bytes,
}

impl Arrived {
    /// The next ones; all before were taken.
    fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.bytes.is_empty());
        self.bytes = bytes;
    }
}

/// Where in a body the next byte is.
enum At {
    /// In the head of a frame.
    Head,
    /// In the data of one that is not signed: bytes left of it.
    Data(u64),
    /// In the data of one that is signed: bytes of it in all, and its signature.
    Signed(u64, String),
    /// In the CRLF behind the data.
    DataEnd,
    /// Behind the last frame's head.
    Trailers,
    /// Behind everything.
    End,
}

/// Reads frames.
struct Frames {
    at: At,
    arrived: Arrived,
    /// What there is of a line, or of a signed frame.
    held: BytesMut,
    /// Bytes of content that are still to come.
    left: u64,
    signing: Option<ChunkSigning>,
    found: HeaderMap,
    /// The trailers as they are signed.
    canonical: String,
    trailer_signature: Option<String>,
    trailers: Trailers,
}

impl Frames {
    fn new(length: u64, signing: Option<ChunkSigning>, trailers: Trailers) -> Frames {
        Frames {
            at: At::Head,
            arrived: Arrived::default(),
            held: BytesMut::new(),
            left: length,
            signing,
            found: HeaderMap::new(),
            canonical: String::new(),
            trailer_signature: None,
            trailers,
        }
    }

    /// The next content of what arrived; none if there is no more in it.
    async fn next(&mut self) -> Result<Option<Bytes>, ContentError> {
        while !self.arrived.bytes.is_empty() {
            match &mut self.at {
                At::Head => {
                    if let Some(line) = self.line()? {
                        self.begin(&line).await?;
                    }
                }
                At::Data(left) => {
                    let take = self
                        .arrived
                        .bytes
                        .len()
                        .min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= take as u64;
                    if *left == 0 {
                        self.at = At::DataEnd;
                    }
                    return Ok(Some(self.arrived.bytes.split_to(take)));
                }
                At::Signed(size, signature) => {
                    let missing = *size as usize - self.held.len();
                    let take = self.arrived.bytes.len().min(missing);
                    self.held.extend_from_slice(&self.arrived.bytes.split_to(take));
                    if take == missing {
                        let (data, signature) = (self.held.split().freeze(), std::mem::take(signature));
                        self.check_frame(&data, &signature).await?;
                        self.at = At::DataEnd;
                        return Ok(Some(data));
                    }
                }
                At::DataEnd => {
                    if let Some(line) = self.line()? {
                        if !line.is_empty() {
                            return Err(ContentError::Malformed("a chunk is longer than its head says"));
                        }
                        self.at = At::Head;
                    }
                }
                At::Trailers => {
                    if let Some(line) = self.line()? {
                        self.take_in_trailer(&line)?;
                    }
                }
                At::End => return Err(ContentError::Malformed("there is more behind its end")),
            }
        }
        Ok(None)
    }

    /// The next line, without its end, once it is there.
    fn line(&mut self) -> Result<Option<Bytes>, ContentError> {
        let bytes = &mut self.arrived.bytes;
        let newline = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let take = newline.unwrap_or(bytes.len());
        if self.held.len() + take > LINE_BYTES_MAX {
            return Err(ContentError::Malformed("a line is too long"));
        }
        self.held.extend_from_slice(&bytes[..take]);
        bytes.advance(take);
        if newline.is_none() {
            return Ok(None);
        }
        let mut line = self.held.split().freeze();
        line.truncate(line.len() - 1);
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Ok(Some(line))
    }

    async fn begin(&mut self, head: &[u8]) -> Result<(), ContentError> {
        let bad = ContentError::Malformed("the head of a chunk is not its size");
        let head = std::str::from_utf8(head).map_err(|_| bad.clone())?;
        let (digits, extension) = head
            .split_once(';')
            .map_or((head, None), |(size, rest)| (size, Some(rest)));
        if digits.is_empty() || digits.len() > 16 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad);
        }
        let size = u64::from_str_radix(digits, 16).map_err(|_| bad)?;
        self.left = self.left.checked_sub(size).ok_or(ContentError::Incomplete)?;
        let signature = extension.and_then(|text| text.trim().strip_prefix("chunk-signature="));
        let signature = match (&self.signing, signature) {
            (None, _) => None,
            (Some(_), Some(signature)) => Some(signature.to_owned()),
            (Some(_), None) => return Err(ContentError::Signature),
        };
        match (size, signature) {
            (0, signature) => {
                if let Some(signature) = signature {
                    self.check_frame(&Bytes::new(), &signature).await?;
                }
                self.at = At::Trailers;
            }
            (size, Some(_)) if size > SIGNED_FRAME_BYTES_MAX => {
                return Err(ContentError::FrameTooLarge(size));
            }
            (size, Some(signature)) => self.at = At::Signed(size, signature),
            (size, None) => self.at = At::Data(size),
        }
        Ok(())
    }

    async fn check_frame(&mut self, data: &Bytes, signature: &str) -> Result<(), ContentError> {
        let Some(signing) = self.signing.take() else {
            return Ok(());
        };
        let (data, expected) = (data.clone(), signature.to_owned());
        let check = move || {
            let text = s3s_sigv4::create_chunk_string_to_sign(
                &signing.date,
                &signing.region,
                "s3",
                &signing.seed,
                &[&data],
            );
            let right = hex(&s3s_sigv4::calculate_signature_with_key(&text, &signing.key));
            match right == expected {
                true => Ok(ChunkSigning {
                    seed: right,
                    ..signing
                }),
                false => Err(ContentError::Signature),
            }
        };
        let checked = match self.at {
            At::Signed(size, _) if size as usize > HASH_HERE_MAX => tokio::task::spawn_blocking(check)
                .await
                .unwrap_or(Err(ContentError::Signature)),
            _ => check(),
        };
        self.signing = Some(checked?);
        Ok(())
    }

    fn take_in_trailer(&mut self, line: &[u8]) -> Result<(), ContentError> {
        let bad = ContentError::Malformed("a trailer is no header");
        if line.is_empty() {
            return self.end_trailers();
        }
        let text = std::str::from_utf8(line).map_err(|_| bad.clone())?;
        let (name, value) = text.split_once(':').ok_or(bad.clone())?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name == "x-amz-trailer-signature" {
            self.trailer_signature = Some(value.to_owned());
            return Ok(());
        }
        if self.found.len() == TRAILERS_MAX {
            return Err(ContentError::Malformed("there are too many trailers"));
        }
        self.canonical.push_str(&format!("{name}:{value}\n"));
        let name = HeaderName::try_from(name).map_err(|_| bad.clone())?;
        self.found
            .append(name, HeaderValue::try_from(value).map_err(|_| bad)?);
        Ok(())
    }

    fn end_trailers(&mut self) -> Result<(), ContentError> {
        self.at = At::End;
        if let (Some(signing), false) = (&self.signing, self.found.is_empty()) {
            let text = s3s_sigv4::create_trailer_string_to_sign(
                &signing.date,
                &signing.region,
                "s3",
                &signing.seed,
                self.canonical.as_bytes(),
            );
            let right = hex(&s3s_sigv4::calculate_signature_with_key(&text, &signing.key));
            if self.trailer_signature.as_deref() != Some(right.as_str()) {
                return Err(ContentError::Signature);
            }
        }
        let _first = self.trailers.0.set(std::mem::take(&mut self.found)); // Nobody else sets it.
        Ok(())
    }

    /// Nothing more comes.
    fn end(mut self: Box<Self>) -> Result<(), ContentError> {
        // Some clients leave out the empty line at the end.
        if matches!(self.at, At::Trailers) && self.held.is_empty() {
            self.end_trailers()?;
        }
        match (&self.at, self.left) {
            (At::End, 0) => Ok(()),
            _ => Err(ContentError::Incomplete),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::combinators::UnsyncBoxBody;
    use proptest::prelude::*;
    use s3s_sigv4::AmzDate;

    fn body(bytes: &[u8], step: usize) -> UnsyncBoxBody<Bytes, StdError> {
        let pieces: Vec<_> = bytes
            .chunks(step.max(1))
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        UnsyncBoxBody::new(StreamBody::new(futures::stream::iter(pieces)))
    }

    fn collect(bytes: &[u8], step: usize, content: Content) -> Result<(Vec<u8>, Trailers), ContentError> {
        let (body, trailers) = read(body(bytes, step), content);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        match runtime.block_on(body.collect()) {
            Ok(collected) => Ok((collected.to_bytes().to_vec(), trailers)),
            Err(error) => Err(error
                .downcast_ref::<ContentError>()
                .cloned()
                .expect("a typed error")),
        }
    }

    fn signing() -> ChunkSigning {
        ChunkSigning {
            key: [7; 32],
            date: AmzDate::parse("20261201T000000Z").expect("a date"),
            region: "us-east-1".to_owned(),
            seed: "5".repeat(64),
        }
    }

    /// A body of signed frames.
    fn signed(frames: &[&[u8]], trailers: &[(&str, &str)]) -> Vec<u8> {
        let (mut out, mut seed, with) = (Vec::new(), signing().seed, signing());
        for data in frames.iter().copied().chain([&b""[..]]) {
            let text = s3s_sigv4::create_chunk_string_to_sign(&with.date, &with.region, "s3", &seed, &[data]);
            seed = hex(&s3s_sigv4::calculate_signature_with_key(&text, &with.key));
            out.extend_from_slice(format!("{:x};chunk-signature={seed}\r\n", data.len()).as_bytes());
            out.extend_from_slice(data);
            if !data.is_empty() {
                out.extend_from_slice(b"\r\n");
            }
        }
        let mut canonical = String::new();
        for (name, value) in trailers {
            canonical.push_str(&format!("{name}:{value}\n"));
            out.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
        }
        if !trailers.is_empty() {
            let text = s3s_sigv4::create_trailer_string_to_sign(
                &with.date,
                &with.region,
                "s3",
                &seed,
                canonical.as_bytes(),
            );
            let right = hex(&s3s_sigv4::calculate_signature_with_key(&text, &with.key));
            out.extend_from_slice(format!("x-amz-trailer-signature:{right}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    fn chunked(length: usize, signing: Option<ChunkSigning>) -> Content {
        Content::Chunked {
            length: length as u64,
            signing,
        }
    }

    #[test]
    fn plain_content_is_hashed() {
        let sha256 = <[u8; 32]>::from(Sha256::digest(b"hello"));
        assert_eq!(
            collect(b"hello", 2, Content::Sha256(sha256)).expect("right").0,
            b"hello"
        );
        let wrong = collect(b"hellO", 2, Content::Sha256(sha256)).err();
        assert_eq!(wrong, Some(ContentError::Sha256));
    }

    #[test]
    fn frames_are_taken_off_and_trailers_are_there_after_them() {
        let bytes = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nx-amz-checksum-crc32: AAAAAA==\r\n\r\n";
        for step in 1..bytes.len() + 1 {
            let (data, trailers) = collect(bytes, step, chunked(5, None)).expect("well formed");
            assert_eq!(data, b"abcde");
            assert_eq!(
                trailers.value("x-amz-checksum-crc32").as_deref(),
                Some("AAAAAA==")
            );
        }
        for length in [4, 6] {
            let refused = collect(bytes, 7, chunked(length, None)).err();
            assert_eq!(refused, Some(ContentError::Incomplete));
        }
    }

    #[test]
    fn signed_frames_pass_only_if_each_is_right() {
        let long = vec![3; HASH_HERE_MAX + 1];
        for trailers in [&[][..], &[("x-amz-checksum-crc32", "AAAAAA==")][..]] {
            let bytes = signed(&[b"abc", b"de"], trailers);
            for step in 1..bytes.len() + 1 {
                let (data, _) = collect(&bytes, step, chunked(5, Some(signing()))).expect("right");
                assert_eq!(data, b"abcde");
            }
            for at in 0..bytes.len() {
                let mut wrong = bytes.clone();
                wrong[at] ^= 1;
                assert!(
                    collect(&wrong, 1_000, chunked(5, Some(signing()))).is_err() || is_free(&bytes, at),
                    "byte {at}"
                );
            }
        }
        let bytes = signed(&[&long], &[]);
        assert_eq!(
            collect(&bytes, 10_000, chunked(long.len(), Some(signing())))
                .expect("right")
                .0,
            long
        );
        let unsigned = collect(b"3\r\nabc\r\n0\r\n\r\n", 99, chunked(3, Some(signing()))).err();
        assert_eq!(unsigned, Some(ContentError::Signature));
        let size = SIGNED_FRAME_BYTES_MAX + 1;
        let large = format!("{size:x};chunk-signature={}\r\n", "a".repeat(64));
        let refused = collect(large.as_bytes(), 99, chunked(size as usize, Some(signing()))).err();
        assert_eq!(refused, Some(ContentError::FrameTooLarge(size)));
    }

    /// White space at the end of a line, which no signature covers: CR of a line end.
    fn is_free(bytes: &[u8], at: usize) -> bool {
        matches!(bytes[at], b'\r' | b'\n')
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>, step in 1usize..50, length in 0usize..100, is_signed: bool) {
            let _ = collect(&bytes, step, chunked(length, is_signed.then(signing))); // Never panics.
        }
    }
}
