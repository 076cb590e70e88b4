//! Bounds the chunks of `aws-chunked` request bodies before s3s sees them.
//!
//! s3s holds a chunk whole before it hands out its bytes, and some SDKs send a body of gigabytes as one chunk. So an
//! unsigned chunk that is large is cut into smaller ones here, on the fly and without copying; a signed one cannot be
//! cut, because its signature covers it whole, and is refused past a limit.
//!
//! ```text
//! body  = *( chunk ) last trailers          chunk = size-hex [";chunk-signature=" 64hex] CRLF data CRLF
//! last  = "0" … CRLF                        what follows it passes through
//! ```

use super::unread::Watched;
use bytes::{Buf, Bytes, BytesMut};
use futures::Stream;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use s3s::{Body, StdError};
use std::collections::VecDeque;

/// Unsigned chunks are cut to this many bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// Signed chunks of more than this many bytes are refused.
const SIGNED_CHUNK_BYTES_MAX: u64 = 4 << 20;
/// The most bytes of a chunk's head line.
const HEAD_BYTES_MAX: usize = 256;

/// The body of a request as s3s may have it.
pub fn bound_chunks(headers: &HeaderMap, body: Watched<Incoming>) -> Body {
    let sha256 = headers
        .get("x-amz-content-sha256")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if !sha256.starts_with("STREAMING-") {
        return Body::http_body_unsync(body);
    }
    let cut = Cutter {
        at: At::Head(BytesMut::new()),
        out: VecDeque::new(),
    };
    let frames = futures::stream::unfold(Some((body, cut)), step);
    Body::http_body_unsync(StreamBody::new(boxed(frames)))
}

fn boxed<S: Stream<Item = Result<Frame<Bytes>, StdError>> + Send + 'static>(
    frames: S,
) -> futures::stream::BoxStream<'static, Result<Frame<Bytes>, StdError>> {
    Box::pin(frames)
}

type State = Option<(Watched<Incoming>, Cutter)>;

async fn step(state: State) -> Option<(Result<Frame<Bytes>, StdError>, State)> {
    let (mut body, mut cutter) = state?;
    loop {
        if let Some(bytes) = cutter.out.pop_front() {
            return Some((Ok(Frame::data(bytes)), Some((body, cutter))));
        }
        match body.frame().await? {
            Err(error) => return Some((Err(error.into()), None)),
            Ok(frame) => {
                if let Ok(bytes) = frame.into_data()
                    && let Err(error) = cutter.take_in(bytes)
                {
                    return Some((Err(error.into()), None));
                }
            }
        }
    }
}

/// Where in a body the next byte is.
enum At {
    /// In a chunk's head; what there is of it so far.
    Head(BytesMut),
    /// In the data of a chunk: bytes left of it, and of the piece it is cut into.
    Data { left: u64, piece: usize, signed: bool },
    /// In the CRLF behind the data: bytes left of it.
    End(u8),
    /// Behind the last chunk's head.
    Trailers,
}

struct Cutter {
    at: At,
    out: VecDeque<Bytes>,
}

impl Cutter {
    /// Takes in bytes of the body and puts out bytes of one whose chunks are bounded.
    fn take_in(&mut self, mut bytes: Bytes) -> Result<(), String> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Trailers => self.out.push_back(std::mem::take(&mut bytes)),
                At::End(left) => {
                    let take = bytes.len().min(*left as usize);
                    self.out.push_back(bytes.split_to(take));
                    *left -= take as u8;
                    if *left == 0 {
                        self.at = At::Head(BytesMut::new());
                    }
                }
                At::Data { left, piece, signed } => {
                    let take = bytes.len().min(*piece);
                    self.out.push_back(bytes.split_to(take));
                    *piece -= take;
                    *left -= take as u64;
                    if *left == 0 {
                        self.at = At::End(2);
                    } else if *piece == 0 {
                        self.out.push_back(Bytes::from_static(b"\r\n"));
                        let (left, signed) = (*left, *signed);
                        self.begin_piece(left, signed);
                    }
                }
                At::Head(head) => {
                    let newline = bytes.iter().position(|b| *b == b'\n').map(|at| at + 1);
                    let take = newline.unwrap_or(bytes.len());
                    if head.len() + take > HEAD_BYTES_MAX {
                        return Err("aws-chunked FormatError: the head of a chunk is too long".into());
                    }
                    head.extend_from_slice(&bytes[..take]);
                    bytes.advance(take);
                    if newline.is_some() {
                        let head = std::mem::take(head).freeze();
                        self.begin_chunk(head)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_chunk(&mut self, head: Bytes) -> Result<(), String> {
        let digits = head
            .split(|b| matches!(b, b';' | b'\r' | b'\n'))
            .next()
            .unwrap_or_default();
        let text = std::str::from_utf8(digits).unwrap_or_default();
        let bad = || "aws-chunked FormatError: the size of a chunk is not a number".to_string();
        let size = u64::from_str_radix(text, 16).map_err(|_| bad())?;
        let signed = head.contains(&b';');
        if signed && size > SIGNED_CHUNK_BYTES_MAX {
            return Err(format!(
                "aws-chunked TooLarge: a signed chunk has {size} bytes, more than {SIGNED_CHUNK_BYTES_MAX}"
            ));
        }
        if size == 0 {
            self.out.push_back(head);
            self.at = At::Trailers;
        } else if signed {
            self.out.push_back(head);
            self.at = At::Data {
                left: size,
                piece: size as usize,
                signed,
            };
        } else {
            self.begin_piece(size, signed);
        }
        Ok(())
    }

    fn begin_piece(&mut self, left: u64, signed: bool) {
        let piece = left.min(CHUNK_BYTES as u64) as usize;
        self.out.push_back(Bytes::from(format!("{piece:x}\r\n")));
        self.at = At::Data { left, piece, signed };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(body: &[u8], step: usize) -> Result<Vec<u8>, String> {
        let mut cutter = Cutter {
            at: At::Head(BytesMut::new()),
            out: VecDeque::new(),
        };
        for bytes in body.chunks(step) {
            cutter.take_in(Bytes::copy_from_slice(bytes))?;
        }
        Ok(cutter.out.iter().flat_map(|b| b.to_vec()).collect())
    }

    /// The data and the longest chunk of a body.
    fn decode(mut body: &[u8]) -> (Vec<u8>, usize) {
        let (mut data, mut longest) = (Vec::new(), 0);
        loop {
            let end = body.windows(2).position(|w| w == b"\r\n").expect("a head");
            let size =
                usize::from_str_radix(std::str::from_utf8(&body[..end]).expect("hex"), 16).expect("hex");
            body = &body[end + 2..];
            if size == 0 {
                return (data, longest);
            }
            longest = longest.max(size);
            data.extend_from_slice(&body[..size]);
            assert_eq!(&body[size..size + 2], b"\r\n");
            body = &body[size + 2..];
        }
    }

    #[test]
    fn one_large_chunk_becomes_many() {
        let data: Vec<u8> = (0..1_000_000u32).map(|i| (i / 3) as u8).collect();
        let mut body = format!("{:X}\r\n", data.len()).into_bytes();
        body.extend_from_slice(&data);
        body.extend_from_slice(b"\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        for step in [1, 7, 1_000, 65_536, usize::MAX] {
            let out = cut(&body, step).expect("well formed");
            assert!(out.ends_with(b"\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"));
            let (decoded, longest) = decode(&out);
            assert!(decoded == data && longest == CHUNK_BYTES);
        }
    }

    #[test]
    fn signed_chunks_pass_or_are_refused() {
        let signature = "a".repeat(64);
        let body = format!("3;chunk-signature={signature}\r\nabc\r\n0;chunk-signature={signature}\r\n\r\n");
        assert_eq!(cut(body.as_bytes(), 5), Ok(body.clone().into_bytes()));
        assert!(cut(format!("500000;chunk-signature={signature}\r\n").as_bytes(), 9).is_err());
        assert!(cut(b"xyz\r\n", 2).is_err());
        assert!(cut(&[b'1'; 300], 100).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(body: Vec<u8>, step in 1usize..50) {
            let _ = cut(&body, step); // Never panics.
        }
    }
}
