//! A minimal HTTP/1.1 client over one keep-alive connection, enough for a shape client.
//!
//! It exists so that a benchmark measures the service and not an HTTP library, and so that a test
//! sees every header exactly as it was sent. No TLS, no redirects, no compression.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longest accepted status line plus headers, in bytes.
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// Size of the read buffer of a connection, in bytes.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// How long a whole request may take; longer than the service's long-poll timeout of 20 s.
pub const REQUEST_DURATION_MAX: Duration = Duration::from_secs(90);

/// Status and headers of a response; header names are lower case, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of that (lower case) name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A response whose body was read completely.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that (lower case) name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, or `Null` where it is none (an assertion on it then fails by itself).
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }
}

/// One client with at most one open connection, which is opened anew when it breaks.
#[derive(Debug)]
pub struct HttpClient {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
    connections: u64,
}

impl HttpClient {
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None, connections: 0 }
    }

    /// How many connections there have been: an answer over a new one may be another process's.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// `GET` of a path with its query string.
    pub async fn get(&mut self, path_and_query: &str) -> io::Result<Response> {
        self.request("GET", path_and_query, &[], b"").await
    }

    /// Any request; the body is sent with its length when it is not empty.
    pub async fn request(
        &mut self,
        method: &str,
        path_and_query: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut bytes = Vec::new();
        let head = self
            .request_streaming(method, path_and_query, headers, body, |part| bytes.extend_from_slice(part))
            .await?;
        Ok(Response { status: head.status, headers: head.headers, body: bytes })
    }

    /// Like [`Self::request`], but hands over the body in pieces as they come.
    ///
    /// A request on a connection that the server had closed meanwhile is sent once more on a new
    /// one, as long as not a single byte of an answer was seen.
    pub async fn request_streaming(
        &mut self,
        method: &str,
        path_and_query: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        mut on_body: impl FnMut(&[u8]),
    ) -> io::Result<Head> {
        let mut message = format!("{method} {path_and_query} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            message.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            message.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        message.push_str("\r\n");
        let mut message = message.into_bytes();
        message.extend_from_slice(body);

        // Taken out, so that a request that is abandoned half-way leaves no half-read connection.
        let connection = self.connection.take();
        let exchange = async {
            let (head, mut connection) = self.send(connection, &message).await?;
            let reusable = read_body(&mut connection, method, &head, &mut on_body).await?;
            Ok::<_, io::Error>((head, reusable.then_some(connection)))
        };
        let timeout = || io::Error::new(io::ErrorKind::TimedOut, "no complete answer in time");
        let outcome = tokio::time::timeout(REQUEST_DURATION_MAX, exchange).await;
        let (head, connection) = outcome.map_err(|_| timeout())??;
        self.connection = connection;
        Ok(head)
    }

    async fn send(
        &mut self,
        connection: Option<BufReader<TcpStream>>,
        message: &[u8],
    ) -> io::Result<(Head, BufReader<TcpStream>)> {
        if let Some(mut connection) = connection
            && connection.get_mut().write_all(message).await.is_ok()
            && let Some(head) = read_head(&mut connection).await?
        {
            return Ok((head, connection));
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        self.connections += 1;
        let mut connection = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
        connection.get_mut().write_all(message).await?;
        let head = read_head(&mut connection).await?.ok_or_else(|| closed("before it answered"))?;
        Ok((head, connection))
    }
}

fn closed(when: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the server closed the connection {when}"))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed response: {what}"))
}

/// Reads status line and headers; `None` when the connection ended before the first byte.
async fn read_head(connection: &mut BufReader<TcpStream>) -> io::Result<Option<Head>> {
    let mut line = String::new();
    match connection.read_line(&mut line).await {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && line.is_empty() => return Ok(None),
        Err(error) => return Err(error),
    }
    let status = line.split(' ').nth(1).and_then(|code| code.trim().parse().ok());
    let mut head = Head { status: status.ok_or_else(|| malformed("status line"))?, headers: Vec::new() };
    let mut head_bytes = line.len();
    loop {
        line.clear();
        if connection.read_line(&mut line).await? == 0 {
            return Err(closed("within the headers"));
        }
        head_bytes += line.len();
        if head_bytes > HEAD_BYTES_MAX {
            return Err(malformed("headers too long"));
        }
        let text = line.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Ok(Some(head));
        }
        let (name, value) = text.split_once(':').ok_or_else(|| malformed("header line"))?;
        head.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Reads the body; true when the connection can carry another request.
async fn read_body(
    connection: &mut BufReader<TcpStream>,
    method: &str,
    head: &Head,
    on_body: &mut impl FnMut(&[u8]),
) -> io::Result<bool> {
    let reusable = !head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    if method == "HEAD" || head.status == 204 || head.status == 304 {
        return Ok(reusable);
    }
    if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        let mut line = String::new();
        loop {
            line.clear();
            if connection.read_line(&mut line).await? == 0 {
                return Err(closed("within a chunked body"));
            }
            let digits = line.trim().split(';').next().unwrap_or_default();
            let length = u64::from_str_radix(digits, 16).map_err(|_| malformed("chunk length"))?;
            copy_exactly(connection, length, on_body).await?;
            line.clear();
            connection.read_line(&mut line).await?;
            if length == 0 {
                return Ok(reusable);
            }
        }
    }
    if let Some(length) = head.header("content-length") {
        let length = length.parse().map_err(|_| malformed("content-length"))?;
        copy_exactly(connection, length, on_body).await?;
        return Ok(reusable);
    }
    loop {
        let part = connection.fill_buf().await?;
        if part.is_empty() {
            return Ok(false);
        }
        on_body(part);
        let length = part.len();
        connection.consume(length);
    }
}

async fn copy_exactly(
    connection: &mut BufReader<TcpStream>,
    length: u64,
    on_body: &mut impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut rest = length;
    let mut limited = connection.take(length);
    while rest > 0 {
        let part = limited.fill_buf().await?;
        if part.is_empty() {
            return Err(closed("within a body"));
        }
        on_body(part);
        let taken = part.len();
        limited.consume(taken);
        rest -= taken as u64;
    }
    Ok(())
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Answers each accepted request with the next of the canned answers; a new connection each
    /// time when `close` is set.
    async fn canned(answers: Vec<&'static str>, close: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            'connections: loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                loop {
                    let mut line = String::new();
                    loop {
                        line.clear();
                        if stream.read_line(&mut line).await.unwrap() == 0 {
                            continue 'connections;
                        }
                        if line == "\r\n" {
                            break;
                        }
                    }
                    let Some(answer) = answers.next() else { return };
                    stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
                    if close {
                        continue 'connections;
                    }
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn reads_chunked_and_counted_bodies_over_one_connection() {
        let address = canned(
            vec![
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nElectric-Offset: 0_0\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
                "HTTP/1.1 409 Conflict\r\ncontent-length: 2\r\n\r\n[]",
                "HTTP/1.1 204 No Content\r\n\r\n",
            ],
            false,
        )
        .await;
        let mut client = HttpClient::new(address);
        let first = client.get("/a").await.unwrap();
        assert_eq!((first.status, first.text().as_str()), (200, "abcde"));
        assert_eq!(first.header("electric-offset"), Some("0_0"));
        let second = client.get("/b").await.unwrap();
        assert_eq!((second.status, second.json()), (409, serde_json::json!([])));
        assert_eq!(client.get("/c").await.unwrap().status, 204);
    }

    #[tokio::test]
    async fn a_connection_closed_between_requests_is_opened_again() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
        let address = canned(vec![answer, answer], true).await;
        let mut client = HttpClient::new(address);
        assert_eq!(client.get("/").await.unwrap().text(), "x");
        assert_eq!(client.get("/").await.unwrap().text(), "x");
    }

    #[tokio::test]
    async fn a_body_cut_short_is_an_error() {
        let address = canned(vec!["HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc"], true).await;
        let error = HttpClient::new(address).get("/").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn encodes_what_a_where_clause_contains() {
        assert_eq!(encode("a = 'ü' & 1"), "a%20%3D%20%27%C3%BC%27%20%26%201");
    }
}
