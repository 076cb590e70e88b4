//! One S3 connection over raw hyper, so that what is measured is the server and not a client library.
//!
//! A connection does one request at a time and is opened again after an error. Requests are presigned before the measurement:
//! the measured loop clones a URI, sends, drains the answer and checks its length.

use super::content::Window;
use super::plan::Op;
use super::signer::Endpoint;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// A request that takes longer has failed.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// A server that does not accept a connection for longer is not there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The most of an error's or a metrics page's text that is kept.
const TEXT_BYTES_MAX: usize = 1024 * 1024;

/// A request to measure.
#[derive(Debug)]
pub struct Job {
    /// What kind.
    pub op: Op,
    /// Its presigned URI.
    pub uri: Uri,
    /// The bytes to send with a put and to expect from a get; empty otherwise.
    pub content: Window,
}

/// A connection to one server, opened when it is needed.
#[derive(Debug)]
pub struct Connection {
    endpoint: Endpoint,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    sender: SendRequest<Window>,
    driver: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// A connection that is not open yet.
    pub fn new(endpoint: Endpoint) -> Connection {
        Connection { endpoint, open: None }
    }

    /// Opens it if it is not.
    pub async fn open(&mut self) -> Result<&mut SendRequest<Window>, String> {
        let usable = match &mut self.open {
            // An idle connection that the server has closed shows here, before anything is sent.
            Some(open) => open.sender.ready().await.is_ok(),
            None => false,
        };
        let open = match self.open.take().filter(|_| usable) {
            Some(open) => open,
            None => connect(&self.endpoint.address).await?,
        };
        Ok(&mut self.open.insert(open).sender)
    }

    /// Does a request, whole: sends, drains the answer, checks status and length, and with `verify` each byte. Says how
    /// many bytes of content went over the wire.
    pub async fn run(&mut self, job: Job, verify: bool) -> Result<u64, String> {
        let name = job.op.name();
        let result = in_time(self.attempt(job, verify)).await;
        if result.is_err() {
            // What state it is in is unknown.
            self.open = None;
        }
        result.map_err(|e| format!("{name}: {e}"))
    }

    /// Does a request without a body, and gives status and text of the answer.
    pub async fn ask(&mut self, method: Method, uri: Uri) -> Result<(StatusCode, String), String> {
        let asked = in_time(async {
            let mut response = self.send(method, uri, Window::empty()).await?;
            Ok((response.status(), text(&mut response).await))
        });
        let answer = asked.await;
        // Its text may have been cut short.
        self.open = None;
        answer
    }

    async fn attempt(&mut self, job: Job, verify: bool) -> Result<u64, String> {
        let Job { op, uri, content } = job;
        let len = content.left();
        let (method, status) = match op {
            Op::Put => (Method::PUT, StatusCode::OK),
            Op::Get | Op::List | Op::ListDirs => (Method::GET, StatusCode::OK),
            Op::Head => (Method::HEAD, StatusCode::OK),
            Op::Delete => (Method::DELETE, StatusCode::NO_CONTENT),
        };
        let (sent, expected) = match op {
            Op::Put => (content, None),
            Op::Get => (Window::empty(), Some((content, verify))),
            _ => (Window::empty(), None),
        };
        let mut response = self.send(method, uri, sent).await?;
        if response.status() != status {
            return Err(refusal(response.status(), &text(&mut response).await));
        }
        drain(&mut response, expected).await?;
        Ok(len)
    }

    async fn send(&mut self, method: Method, uri: Uri, body: Window) -> Result<Response<Incoming>, String> {
        let host = self.endpoint.host.clone();
        let sender = self.open().await?;
        let mut request = Request::builder()
            .method(&method)
            .uri(uri)
            .header(header::HOST, host);
        if method == Method::PUT {
            // hyper leaves it out for an empty body.
            request = request.header(header::CONTENT_LENGTH, body.left());
        }
        let request = request.body(body).map_err(|e| e.to_string())?;
        sender.send_request(request).await.map_err(|e| describe(&e))
    }
}

async fn connect(address: &str) -> Result<Open, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot connect to {address}: {e}");
    let connected = timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await;
    let stream = connected
        .map_err(|_| failed(&"no answer"))?
        .map_err(|e| failed(&e))?;
    stream.set_nodelay(true).map_err(|e| failed(&e))?;
    let (sender, driver) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    // What goes wrong on the connection is told to the request in hand.
    let driver = tokio::spawn(async move { drop(driver.await) }).abort_handle();
    Ok(Open { sender, driver })
}

async fn in_time<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = |_| Err(format!("no answer in {} s", REQUEST_DEADLINE.as_secs()));
    timeout(REQUEST_DEADLINE, work).await.unwrap_or_else(late)
}

/// An answer that was not wanted, in words: S3's code and message where it has them.
pub fn refusal(status: StatusCode, text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inner, _)| inner)
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{status}: {code}: {message}"),
        (Some(code), None) => format!("{status}: {code}"),
        _ => format!("{status} {}", text.chars().take(200).collect::<String>())
            .trim()
            .to_owned(),
    }
}

/// Reads a body to its end and keeps nothing. With an expected content, its length must be right, and its bytes if wanted.
async fn drain(
    response: &mut Response<Incoming>,
    mut expected: Option<(Window, bool)>,
) -> Result<(), String> {
    while let Some(bytes) = chunk(response).await? {
        let Some((content, verify)) = &mut expected else {
            continue;
        };
        if *verify && !content.matches(&bytes) {
            return Err(format!(
                "wrong bytes, {} before the end at the latest",
                content.left()
            ));
        }
        if !*verify && !content.skip(bytes.len()) {
            return Err("more bytes than the object has".to_owned());
        }
    }
    match expected {
        Some((content, _)) if content.left() > 0 => Err(format!("{} bytes too few", content.left())),
        _ => Ok(()),
    }
}

/// The start of a body, as text.
async fn text(response: &mut Response<Incoming>) -> String {
    let mut text = Vec::new();
    while let Ok(Some(bytes)) = chunk(response).await {
        text.extend_from_slice(&bytes[..bytes.len().min(TEXT_BYTES_MAX - text.len())]);
        if text.len() == TEXT_BYTES_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn chunk(response: &mut Response<Incoming>) -> Result<Option<Bytes>, String> {
    while let Some(frame) = response.body_mut().frame().await {
        if let Ok(bytes) = frame.map_err(|e| describe(&e))?.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// An error with its causes: hyper's own words are seldom the reason.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_words() {
        let status = StatusCode::FORBIDDEN;
        let text = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
        assert_eq!(
            refusal(status, text),
            "403 Forbidden: AccessDenied: Request has expired"
        );
        assert_eq!(refusal(status, "<Code>X</Code>"), "403 Forbidden: X");
        assert_eq!(refusal(status, "no"), "403 Forbidden no");
        assert_eq!(refusal(status, ""), "403 Forbidden");
    }
}
