//! Counts what moves on a connection, and cuts one on which nothing has moved for too long, in either direction: a client that neither
//! sends nor reads. One timer for both, because during a download a client sends nothing, and during an upload it reads nothing.
//! While the gateway works and waits for nothing that the client does, nothing has to move. What a head may take is hyper's to time.
//!
//! A connection that is closed while its client sends a body is closed in two steps, as RFC 9112 §9.6 has it: no more is sent, what
//! comes is dropped, and then it is closed.

use super::{Awaited, Connection};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What a client sends after its last answer is dropped for so long, as long as some comes within [`LINGER_SILENCE_MAX`].
const LINGER_MAX: Duration = Duration::from_secs(30);
const LINGER_SILENCE_MAX: Duration = Duration::from_secs(2);
/// And so many bytes of it.
const LINGER_BYTES_MAX: u64 = 1 << 30;

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
    /// Since when, and how much of, what comes is dropped.
    lingering: Option<(Instant, u64)>,
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
            lingering: None,
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
                    let now = Instant::now();
                    if !self.connection.awaits_client() {
                        self.moved = now;
                    }
                    let end = self.moved + self.limit;
                    if end <= now {
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

impl<S: AsyncRead + Unpin> ClientStream<S> {
    /// Reads and drops what the client sends until it ends, or has had long enough.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let is_first = self.lingering.is_none();
        let (since, before) = self.lingering.unwrap_or((now, 0));
        let (mut place, mut dropped) = ([0; 16 * 1024], before);
        let mut waits = false;
        // It stops now and then: others have work too.
        for _ in 0..64 {
            let mut buf = ReadBuf::new(&mut place);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => dropped += buf.filled().len() as u64,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    waits = true;
                    break;
                }
            }
        }
        self.lingering = Some((since, dropped));
        let end = since + LINGER_MAX;
        if dropped > LINGER_BYTES_MAX || end <= now {
            return Poll::Ready(());
        }
        if is_first || dropped > before {
            self.alarm.as_mut().reset(end.min(now + LINGER_SILENCE_MAX));
        }
        if !waits {
            cx.waker().wake_by_ref();
        }
        self.alarm.as_mut().poll(cx)
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
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
        let this = self.get_mut();
        if this.lingering.is_none() {
            let ended = Pin::new(&mut this.io).poll_shutdown(cx);
            if !matches!(ended, Poll::Ready(Ok(()))) || !this.connection.lingers.load(Ordering::Relaxed) {
                return ended;
            }
        }
        this.poll_linger(cx).map(Ok)
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
    async fn what_a_client_still_sends_is_dropped_before_the_close() {
        let (ours, mut theirs) = duplex(64);
        let connection = connection();
        connection.linger();
        let mut stream = ClientStream::new(ours, connection, Duration::from_secs(1));
        let sending = tokio::spawn(async move {
            theirs.write_all(&[7; 100_000]).await.expect("all of it is taken");
            let mut answer = String::new();
            theirs.read_to_string(&mut answer).await.expect("reads");
            answer
        });
        stream.write_all(b"no").await.expect("writes");
        stream.shutdown().await.expect("ends when the other side does");
        drop(stream);
        assert_eq!(sending.await.expect("joins"), "no");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_lingers_for_ever() {
        let (ours, mut theirs) = duplex(64);
        let connection = connection();
        connection.linger();
        let mut stream = ClientStream::new(ours, connection, Duration::from_secs(1));
        let begun = Instant::now();
        // A byte now and then, which is not silence.
        let trickling = tokio::spawn(async move {
            while theirs.write_all(b"x").await.is_ok() {
                tokio::time::sleep(LINGER_SILENCE_MAX / 2).await;
            }
        });
        stream.shutdown().await.expect("ends");
        assert!(begun.elapsed() >= LINGER_MAX - LINGER_SILENCE_MAX && begun.elapsed() <= LINGER_MAX);
        drop(stream);
        trickling.await.expect("joins");
        let (ours, _silent) = duplex(64);
        let connection = self::connection();
        connection.linger();
        let begun = Instant::now();
        let mut stream = ClientStream::new(ours, connection, Duration::from_secs(1));
        stream.shutdown().await.expect("ends");
        assert_eq!(begun.elapsed(), LINGER_SILENCE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_longer_than_silence_and_an_idle_connection_may_not() {
        let limit = Duration::from_secs(120);
        let (ours, _silent) = duplex(64);
        let connection = connection();
        let mut stream = ClientStream::new(ours, connection.clone(), limit);
        let begun = Instant::now();
        let request = connection.begin();
        let working = tokio::time::timeout(5 * limit, stream.read_u8()).await;
        assert!(working.is_err(), "the gateway works: {working:?}");
        drop(request);
        let ended = stream.read_u8().await.expect_err("silence");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() <= 7 * limit);
        // Who does not take the answer is waited for.
        let (ours, _silent) = duplex(64);
        let mut stream = ClientStream::new(ours, connection.clone(), limit);
        let _request = connection.begin();
        let begun = Instant::now();
        let ended = stream.write_all(&[7; 65]).await.expect_err("silence");
        assert_eq!((ended.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, limit));
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
