//! Request heads: which of them are answered here, and what they say.

use axum::http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use bytes::Bytes;
use http_body_util::Empty;

/// Longest request head, bytes: long enough for a where clause of a page. The reference implementation
/// refuses more than 10,000.
pub(in crate::server) const HEAD_BYTES_MAX: usize = 64 << 10;
/// Headers of a request, at most: hyper's limit, which answers those with more.
const HEADERS_MAX: usize = 100;

/// What the input of a connection begins with.
#[derive(Debug)]
pub(super) enum Head {
    /// Nothing whole yet.
    Partial,
    Plain(Box<Plain>),
    /// A body, another version, a fault: everything that is rare is left to hyper, from its first byte.
    Other,
}

/// A request of HTTP/1.1 without a body.
#[derive(Debug)]
pub(super) struct Plain {
    pub request: Request<Empty<Bytes>>,
    /// Bytes of the head.
    pub len: usize,
    /// The client wants no other answer on this connection.
    pub close: bool,
}

/// Reads the head at the beginning of `input`.
#[must_use]
pub(super) fn read_head(input: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(input) {
        Ok(httparse::Status::Complete(len)) => plain(input, len, &parsed).map_or(Head::Other, Head::Plain),
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => Head::Partial,
        Ok(httparse::Status::Partial) | Err(_) => Head::Other,
    }
}

/// Whether a head may end in `input`, of which the first `seen` bytes were looked at before. A head that
/// comes byte by byte is not parsed as often.
#[must_use]
pub(super) fn may_be_whole(input: &[u8], seen: usize) -> bool {
    let new = &input[seen.saturating_sub(3).min(input.len())..];
    input.len() >= HEAD_BYTES_MAX
        || memchr::memmem::find(new, b"\n\r\n").is_some()
        || memchr::memmem::find(new, b"\n\n").is_some()
}

/// `None` where it is for hyper to answer.
fn plain(input: &[u8], len: usize, parsed: &httparse::Request<'_, '_>) -> Option<Box<Plain>> {
    if parsed.version != Some(1) || len > HEAD_BYTES_MAX {
        return None;
    }
    let method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    if matches!(method, Method::POST | Method::CONNECT) {
        return None;
    }
    let head = Bytes::copy_from_slice(&input[..len]);
    let part = |text: &[u8]| {
        let at = text.as_ptr().addr() - input.as_ptr().addr();
        head.slice(at..at + text.len())
    };
    let uri = Uri::from_maybe_shared(part(parsed.path?.as_bytes())).ok()?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    let mut close = false;
    for header in parsed.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        let has_body = name == CONTENT_LENGTH && header.value != b"0";
        if has_body || [TRANSFER_ENCODING, EXPECT, UPGRADE].contains(&name) {
            return None;
        }
        if name == CONNECTION {
            let mut options = header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            close |= options.any(|option| option.eq_ignore_ascii_case(b"close"));
        }
        let value = if header.value.is_empty() { Bytes::new() } else { part(header.value) };
        headers.append(name, HeaderValue::from_maybe_shared(value).ok()?);
    }
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Some(Box::new(Plain { request, len, close }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(input: &str) -> Box<Plain> {
        match read_head(input.as_bytes()) {
            Head::Plain(plain) => plain,
            other => panic!("{other:?} for {input:?}"),
        }
    }

    #[test]
    fn a_request_without_a_body() {
        let input =
            "GET /v1/shape?table=a%20b HTTP/1.1\r\nHost: x\r\nX-A:  1 \r\nx-a: 2\r\nempty:\r\n\r\nGET ";
        let plain = request(input);
        assert_eq!(plain.len, input.len() - 4, "what follows is the next one");
        assert!(!plain.close);
        assert_eq!(plain.request.method(), Method::GET);
        assert_eq!(plain.request.uri(), "/v1/shape?table=a%20b");
        let values: Vec<_> = plain.request.headers().get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(plain.request.headers()["empty"], "");
        assert_eq!(plain.request.headers().len(), 4);
        for (connection, close) in [("keep-alive", false), ("Keep-Alive, CLOSE", true), ("closed", false)] {
            assert_eq!(request(&format!("PUT / HTTP/1.1\r\nconnection: {connection}\r\n\r\n")).close, close);
        }
        assert_eq!(request("DELETE / HTTP/1.1\r\ncontent-length: 0\r\n\r\n").request.method(), "DELETE");
    }

    #[test]
    fn what_is_rare_is_left_to_hyper() {
        for input in [
            "GET / HTTP/1.0\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "POST / HTTP/1.1\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx",
            "GET / HTTP/1.1\r\ncontent-length: 0\r\ncontent-length: 5\r\n\r\n",
            "GET / HTTP/1.1\r\ncontent-length: 00\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nexpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nupgrade: h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "\x16\x03\x01\x02\x00",
        ] {
            assert!(matches!(read_head(input.as_bytes()), Head::Other), "{input:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert!(matches!(read_head(many.as_bytes()), Head::Other));
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(HEAD_BYTES_MAX));
        assert!(matches!(read_head(long.as_bytes()), Head::Other));
    }

    #[test]
    fn a_head_is_whole_at_its_empty_line() {
        let input = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        for len in 0..input.len() {
            assert!(matches!(read_head(&input[..len]), Head::Partial), "{len}");
            assert!(!may_be_whole(&input[..len], len.saturating_sub(1)), "{len}");
        }
        for seen in 0..input.len() {
            assert!(may_be_whole(input, seen), "{seen}");
        }
        assert!(may_be_whole(b"GET / HTTP/1.1\n\n", 15));
        assert!(may_be_whole(&[b'x'; HEAD_BYTES_MAX], HEAD_BYTES_MAX));
    }
}
