//! The bytes of objects: known from the key alone, and free to make.
//!
//! All bodies are windows on one pattern of random bytes that repeats; where the window starts depends on the key. Nothing
//! is generated or copied while measuring. The pattern's length is prime, so that no block, shard or stripe of a power of two ever
//! sees the same bytes at the same place twice in an object: `--verify` notices swapped blocks as well as wrong ones.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The first prime above 4 MiB.
const PATTERN_BYTES: usize = 4_194_319;

/// The longest piece handed to the connection at once.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The pattern that all bodies are windows on. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Content {
    pattern: Bytes,
}

impl Content {
    /// The same pattern for the same seed.
    pub fn new(seed: u64) -> Content {
        let mut pattern = vec![0; PATTERN_BYTES];
        StdRng::seed_from_u64(seed).fill_bytes(&mut pattern);
        Content {
            pattern: pattern.into(),
        }
    }

    /// The body of the object with this number.
    pub fn body(&self, object: u32, len: u64) -> Window {
        let spread = u64::from(object).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24;
        Window {
            pattern: self.pattern.clone(),
            at: spread as usize % PATTERN_BYTES,
            left: len,
        }
    }
}

/// The rest of one object's bytes: a request body to send, or what a response is compared with.
#[derive(Debug)]
pub struct Window {
    pattern: Bytes,
    at: usize,
    left: u64,
}

impl Window {
    /// No bytes.
    pub fn empty() -> Window {
        Window {
            pattern: Bytes::new(),
            at: 0,
            left: 0,
        }
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes as many bytes as `got` has, and says whether they are the same. More than are left never are.
    pub fn matches(&mut self, mut got: &[u8]) -> bool {
        while !got.is_empty() {
            let Some(expected) = self.take(got.len()) else {
                return false;
            };
            let (head, tail) = got.split_at(expected.len());
            if head != expected {
                return false;
            }
            got = tail;
        }
        true
    }

    /// Passes over `len` bytes without a look at them; false if there are not so many.
    pub fn skip(&mut self, len: usize) -> bool {
        let enough = self.left >= len as u64;
        self.left = self.left.saturating_sub(len as u64);
        enough
    }

    fn take(&mut self, len_max: usize) -> Option<Bytes> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let len = left.min(len_max).min(self.pattern.len() - self.at);
        if len == 0 {
            return None;
        }
        let bytes = self.pattern.slice(self.at..self.at + len);
        self.at = (self.at + len) % self.pattern.len();
        self.left -= len as u64;
        Some(bytes)
    }
}

impl Body for Window {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.take(FRAME_BYTES_MAX).map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn whole(window: Window) -> Bytes {
        window.collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn bodies_are_deterministic_and_differ() {
        let (content, same) = (Content::new(1), Content::new(1));
        for len in [0, 1, 5, 100_000, 2 * PATTERN_BYTES as u64 + 3] {
            let body = whole(content.body(7, len)).await;
            assert_eq!(body.len() as u64, len);
            assert_eq!(body, whole(same.body(7, len)).await);
            let mut expected = content.body(7, len);
            assert!(body.chunks(60_001).all(|chunk| expected.matches(chunk)));
            assert_eq!(expected.left(), 0);
            assert!(!expected.matches(b"x"), "longer than it should be");
        }
        assert_ne!(whole(content.body(1, 16)).await, whole(content.body(2, 16)).await);
        assert_ne!(
            whole(content.body(1, 16)).await,
            whole(Content::new(2).body(1, 16)).await
        );
    }

    #[tokio::test]
    async fn wrong_and_moved_bytes_are_noticed() {
        let content = Content::new(1);
        let mut body = whole(content.body(3, 9 << 20)).await.to_vec();
        body[1 << 20] ^= 1;
        assert!(!content.body(3, 9 << 20).matches(&body));
        body[1 << 20] ^= 1;
        // The same megabyte of two stripes of 4 MiB, swapped.
        let (first, second) = body.split_at_mut(4 << 20);
        first[..1 << 20].swap_with_slice(&mut second[..1 << 20]);
        assert!(!content.body(3, 9 << 20).matches(&body));
    }

    #[test]
    fn skipping_counts() {
        let mut window = Content::new(1).body(0, 10);
        assert!(window.skip(10));
        assert!(!window.skip(1));
    }
}
