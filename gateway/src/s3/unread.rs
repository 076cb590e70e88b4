//! What is left of a request's body when its answer is ready.
//!
//! A request can be refused before its body was read. Then the connection cannot carry another request: hyper closes it, and a
//! client that was not told so sends its next request into the close, and sees it fail. So what is short is read to its end
//! first, and otherwise the answer says `Connection: close`.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// A rest of up to this many bytes is read, so that the connection can be used again.
const REST_BYTES_MAX: u64 = 64 * 1024;
/// It is on its way, or the client is too slow to be worth it.
const REST_PATIENCE: Duration = Duration::from_millis(50);

/// A body that can be looked at while, and after, somebody else reads it.
pub struct Watched<B>(Arc<Mutex<State<B>>>);

struct State<B> {
    body: B,
    begun: bool,
    ended: bool,
}

impl<B> Clone for Watched<B> {
    fn clone(&self) -> Self {
        Watched(self.0.clone())
    }
}

impl<B> Watched<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Watched<B> {
    /// Of which nothing was read yet.
    pub fn new(body: B) -> Self {
        let ended = body.is_end_stream();
        Watched(Arc::new(Mutex::new(State {
            body,
            begun: false,
            ended,
        })))
    }

    /// Whether the body was read to its end, now that the answer is ready; reads a short rest. `awaits_continue` says that the
    /// client sends nothing before it is asked to, which reading does.
    pub async fn finish(&mut self, awaits_continue: bool) -> bool {
        let (ended, begun, left) = {
            let state = self.lock();
            (state.ended, state.begun, state.body.size_hint().lower())
        };
        if ended {
            return true;
        }
        if awaits_continue && !begun || left > REST_BYTES_MAX {
            return false;
        }
        let rest = async {
            let mut read = 0;
            while let Some(frame) = self.frame().await {
                let Ok(frame) = frame else { return false };
                read += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
                if read > REST_BYTES_MAX {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(REST_PATIENCE, rest).await.unwrap_or(false)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut state = self.lock();
        state.begun = true;
        let polled = Pin::new(&mut state.body).poll_frame(cx);
        state.ended |= matches!(polled, Poll::Ready(None)) || state.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    fn body(bytes: usize) -> Watched<Full<Bytes>> {
        Watched::new(Full::new(vec![7; bytes].into()))
    }

    #[tokio::test]
    async fn what_is_left_is_read_if_it_is_short_and_on_its_way() {
        assert!(body(0).finish(true).await);
        assert!(body(100).finish(false).await);
        assert!(!body(100).finish(true).await, "nobody asked for it");
        assert!(!body(REST_BYTES_MAX as usize + 1).finish(false).await);
        let mut whole = body(1 << 20);
        whole.clone().collect().await.expect("reads");
        assert!(whole.finish(true).await);
    }
}
