//! A small blocking HTTP/1.1 client that can also misbehave: send less than it promised, read slowly, go away.
//!
//! One request per connection. Every read and write has a deadline.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The longest that one read or write may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A connection on which a request is being sent.
#[derive(Debug)]
pub struct Connection(TcpStream);

/// An answer whose body has not been read yet.
pub struct Incoming {
    /// 200, 404, …
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    body: Box<dyn Read + Send>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// 200, 404, …
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects and sends the head of a request; `target` is path and query.
    pub fn open(
        address: SocketAddr,
        method: &str,
        target: &str,
        headers: &[(String, String)],
    ) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let mut head = format!("{method} {target} HTTP/1.1\r\nconnection: close\r\n");
        headers
            .iter()
            .for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        let mut connection = Self(stream);
        connection.send(format!("{head}\r\n").as_bytes())?;
        Ok(connection)
    }

    /// Sends bytes of the body.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Promises that nothing more will be sent.
    pub fn finish_sending(&self) -> io::Result<()> {
        self.0.shutdown(std::net::Shutdown::Write)
    }

    /// Waits for the head of the answer.
    pub fn receive(self, method: &str) -> io::Result<Incoming> {
        let mut reader = BufReader::new(self.0);
        loop {
            let (status, headers) = read_head(&mut reader)?;
            if status >= 200 {
                let body = body(reader, status, method, &headers)?;
                return Ok(Incoming {
                    status,
                    headers,
                    body,
                });
            }
        }
    }
}

/// Sends a whole request and reads the whole answer. A server may answer before it has read the body, and close.
pub fn exchange(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> io::Result<Response> {
    let mut headers = headers.to_vec();
    if !body.is_empty() || matches!(method, "PUT" | "POST") {
        headers.push(("content-length".to_owned(), body.len().to_string()));
    }
    let mut connection = Connection::open(address, method, target, &headers)?;
    let sent = connection.send(body);
    match (connection.receive(method), sent) {
        (Ok(incoming), _) => incoming.read_all(),
        (Err(_), Err(sending)) => Err(sending),
        (Err(receiving), Ok(())) => Err(receiving),
    }
}

impl Incoming {
    /// Reads the rest; fails if the connection ends too early.
    pub fn read_all(mut self) -> io::Result<Response> {
        let mut body = Vec::new();
        self.body.read_to_end(&mut body)?;
        Ok(Response {
            status: self.status,
            headers: self.headers,
            body,
        })
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.body.read(buffer)
    }
}

impl Response {
    /// The value of a header, if there is one.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    let status_line = read_line(reader)?;
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| invalid(format!("status line {status_line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| invalid(format!("header {line:?}")))?;
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection ended before the answer",
        ));
    }
    Ok(line.trim_end().to_owned())
}

fn body(
    reader: BufReader<TcpStream>,
    status: u16,
    method: &str,
    headers: &[(String, String)],
) -> io::Result<Box<dyn Read + Send>> {
    let header = |name: &str| {
        headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    };
    if method == "HEAD" || status == 204 || status == 304 {
        return Ok(Box::new(io::empty()));
    }
    if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return Ok(Box::new(Chunked {
            reader,
            left: 0,
            ended: false,
        }));
    }
    match header("content-length").map(str::parse) {
        Some(Ok(left)) => Ok(Box::new(Sized { reader, left })),
        Some(Err(_)) => Err(invalid("content-length".to_owned())),
        None => Ok(Box::new(reader)),
    }
}

/// A body of known length.
struct Sized {
    reader: BufReader<TcpStream>,
    left: u64,
}

impl Read for Sized {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.reader.read(&mut buffer[..want])?;
        if read == 0 && want > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} bytes are missing", self.left),
            ));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// A body of chunks.
struct Chunked {
    reader: BufReader<TcpStream>,
    left: usize,
    ended: bool,
}

impl Read for Chunked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let size = read_line(&mut self.reader)?;
            self.left =
                usize::from_str_radix(&size, 16).map_err(|_| invalid(format!("chunk size {size:?}")))?;
            self.ended = self.left == 0;
        }
        let want = buffer.len().min(self.left);
        if want == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..want])?;
        self.left -= read;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a chunk is cut"));
        }
        if self.left == 0 {
            read_line(&mut self.reader)?;
        }
        Ok(read)
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
