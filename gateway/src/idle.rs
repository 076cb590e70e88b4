//! Cuts a connection on which nothing has moved for too long, in either direction: a client that neither sends nor
//! reads. One timer for both, because during a download a client sends nothing, and during an upload it reads nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream with a limit on silence.
pub struct IdleLimit<S> {
    io: S,
    limit: Duration,
    moved: Instant,
    /// Goes off no later than the silence is too long; looks then whether it is, so that what moves need not touch the timer.
    alarm: Pin<Box<Sleep>>,
}

impl<S> IdleLimit<S> {
    /// Around a stream; the first silence begins now.
    pub fn new(io: S, limit: Duration) -> IdleLimit<S> {
        IdleLimit {
            io,
            limit,
            moved: Instant::now(),
            alarm: Box::pin(tokio::time::sleep(limit)),
        }
    }

    /// Starts the silence anew when something moved, and ends it with an error when it has lasted too long.
    fn judge<T>(&mut self, moved: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        match moved {
            Poll::Ready(result) => {
                self.moved = Instant::now();
                Poll::Ready(result)
            }
            Poll::Pending => {
                while self.alarm.as_mut().poll(cx).is_ready() {
                    let end = self.moved + self.limit;
                    if end <= Instant::now() {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    self.alarm.as_mut().reset(end);
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for IdleLimit<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        this.judge(read, cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for IdleLimit<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.judge(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

    #[tokio::test]
    async fn either_direction_keeps_a_connection_and_silence_ends_it() {
        let limit = Duration::from_millis(150);
        let (ours, mut theirs) = duplex(64);
        let (mut reader, mut writer) = split(IdleLimit::new(ours, limit));
        // The other side only reads, for longer than the limit, while a read of ours waits.
        let waiting = tokio::spawn(async move { reader.read_u8().await });
        for _ in 0..10 {
            tokio::time::sleep(limit / 4).await;
            writer.write_all(b"x").await.expect("moves");
            theirs.read_u8().await.expect("arrives");
        }
        assert!(!waiting.is_finished());
        let ended = waiting.await.expect("joins").expect_err("silence");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }
}
