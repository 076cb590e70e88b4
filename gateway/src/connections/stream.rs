//! Counts what moves on a connection, and cuts one on which nothing has moved for too long, in either direction: a client that neither
//! sends nor reads. One timer for both, because during a download a client sends nothing, and during an upload it reads nothing.

use super::{Awaited, Connection};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream with a limit on silence.
pub struct ClientStream<S> {
    io: S,
    connection: Arc<Connection>,
    /// What is to be sent before anything else.
    first: &'static [u8],
    limit: Duration,
    moved: Instant,
    /// Goes off no later than the silence is too long; looks then whether it is, so that what moves need not touch the timer.
    alarm: Pin<Box<Sleep>>,
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl<S> ClientStream<S> {
    /// Around a stream; the first silence begins now.
    pub fn new(io: S, connection: Arc<Connection>, limit: Duration) -> ClientStream<S> {
        ClientStream {
            io,
            connection,
            first: &[],
            limit,
            moved: Instant::now(),
            alarm: Box::pin(tokio::time::sleep(limit)),
        }
    }

    fn note_written(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.connection.note_sent(*bytes as u64);
        }
        self.connection.note_waiting(Awaited::Take, written.is_pending());
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

impl<S: AsyncWrite + Unpin> ClientStream<S> {
    /// Sends what is to be sent first.
    fn send_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.continues.swap(false, Ordering::Relaxed) {
            self.first = CONTINUE;
        }
        while !self.first.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, self.first) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => self.first = self.first.get(bytes..).unwrap_or_default(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        if bytes > 0 {
            this.connection.note_received(bytes as u64);
        }
        this.judge(read, cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match this.send_first(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut this.io).poll_write(cx, buf),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        this.note_written(&written);
        this.judge(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match this.send_first(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut this.io).poll_write_vectored(cx, bufs),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        this.note_written(&written);
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

    fn connection() -> Arc<Connection> {
        let cut = prometheus::IntCounterVec::new(prometheus::Opts::new("cut", "cut"), &["why"]);
        super::super::Connections::new(1 << 20, cut.expect("valid")).accepted([127, 0, 0, 1].into())
    }

    #[tokio::test]
    async fn who_expects_to_continue_hears_so_once_and_first() {
        let (ours, mut theirs) = duplex(7); // It takes a few writes.
        let connection = connection();
        let mut stream = ClientStream::new(ours, connection.clone(), Duration::from_secs(1));
        let reading = tokio::spawn(async move {
            let mut all = String::new();
            theirs.read_to_string(&mut all).await.expect("reads");
            all
        });
        connection.say_continue();
        stream.write_all(b"answer").await.expect("writes");
        stream.write_all(b" and another").await.expect("writes");
        drop(stream);
        let all = reading.await.expect("joins");
        assert_eq!(all, "HTTP/1.1 100 Continue\r\n\r\nanswer and another");
    }

    #[tokio::test]
    async fn either_direction_keeps_a_connection_and_silence_ends_it() {
        let limit = Duration::from_millis(150);
        let (ours, mut theirs) = duplex(64);
        let (mut reader, mut writer) = split(ClientStream::new(ours, connection(), limit));
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
