//! Answers on the wire: RFC 9112, sections 4 to 7.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, HttpBody};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use axum::http::{Method, StatusCode, response};
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Input;

/// What is collected before it is written; a piece of a body that is larger goes out from where it is.
const COLLECTED_BYTES_MAX: usize = 16 << 10;
/// About what a head takes.
const HEAD_BYTES: usize = 1 << 10;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// There is none, whatever the headers say about it.
    None,
    Length(u64),
    Chunked,
}

impl Framing {
    fn of(method: &Method, status: StatusCode, body: &Body) -> Framing {
        let never = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match body.size_hint().exact() {
            _ if never || *method == Method::HEAD => Framing::None,
            Some(len) => Framing::Length(len),
            None => Framing::Chunked,
        }
    }
}

/// Sends an answer to its end; `last` announces that none will follow.
///
/// # Errors
/// The client went away or takes nothing for `patience`, or the body broke. The connection is to be
/// dropped then: an unfinished body must not look like a whole one.
pub(super) async fn send(
    stream: &mut TcpStream,
    input: &mut Input,
    method: &Method,
    response: Response,
    last: bool,
    patience: Duration,
) -> io::Result<()> {
    let (head, mut body) = response.into_parts();
    let framing = Framing::of(method, head.status, &body);
    let mut out = Vec::with_capacity(HEAD_BYTES);
    write_head(&mut out, &head, framing, method, body.size_hint().exact(), last);
    // So that the headers are not in memory for as long as a stream lasts.
    drop(head);
    if framing == Framing::None {
        return write_all(stream, &out, b"", patience).await;
    }
    loop {
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                write_all(stream, &out, b"", patience).await?;
                out = Vec::new();
                tokio::select! {
                    biased;
                    frame = body.frame() => frame,
                    () = super::gone(stream, input) => return Err(io::ErrorKind::ConnectionAborted.into()),
                }
            }
        };
        let Some(frame) = frame else { break };
        let Ok(piece) = frame.map_err(io::Error::other)?.into_data() else { continue };
        if !piece.is_empty() {
            add_piece(stream, &mut out, framing, &piece, patience).await?;
        }
    }
    if framing == Framing::Chunked {
        out.extend_from_slice(b"0\r\n\r\n");
    }
    write_all(stream, &out, b"", patience).await
}

/// Collects a piece where it is small, and writes what there is where it is not.
async fn add_piece(
    stream: &TcpStream,
    out: &mut Vec<u8>,
    framing: Framing,
    piece: &Bytes,
    patience: Duration,
) -> io::Result<()> {
    let chunked = framing == Framing::Chunked;
    if chunked {
        write!(out, "{:x}\r\n", piece.len())?;
    }
    if out.len() + piece.len() <= COLLECTED_BYTES_MAX {
        out.extend_from_slice(piece);
    } else {
        write_all(stream, out, piece, patience).await?;
        out.clear();
    }
    if chunked {
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

fn write_head(
    out: &mut Vec<u8>,
    head: &response::Parts,
    framing: Framing,
    method: &Method,
    len: Option<u64>,
    last: bool,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &head.headers {
        // About these, the connection decides.
        let own = [CONTENT_LENGTH, TRANSFER_ENCODING].contains(name) || (last && name == CONNECTION);
        if !own {
            write_header(out, name.as_str(), value.as_bytes());
        }
    }
    if last {
        write_header(out, CONNECTION.as_str(), b"close");
    }
    match (framing, len) {
        (Framing::Length(len), _) => write_length(out, len),
        (Framing::Chunked, _) => write_header(out, TRANSFER_ENCODING.as_str(), b"chunked"),
        // What a GET would have been answered, as far as that is known.
        (Framing::None, Some(len)) if *method == Method::HEAD && len > 0 => write_length(out, len),
        (Framing::None, _) => {}
    }
    if !head.headers.contains_key(DATE) {
        write_date(out);
    }
    out.extend_from_slice(b"\r\n");
}

fn write_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_length(out: &mut Vec<u8>, len: u64) {
    write_header(out, CONTENT_LENGTH.as_str(), len.to_string().as_bytes());
}

fn write_date(out: &mut Vec<u8>) {
    thread_local!(static LAST: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) });
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|(at, text)| {
        if *at != second || text.is_empty() {
            *at = second;
            *text = httpdate::fmt_http_date(now);
        }
        write_header(out, DATE.as_str(), text.as_bytes());
    });
}

/// Writes both, in as few calls as the socket allows.
async fn write_all(
    stream: &TcpStream,
    mut first: &[u8],
    mut second: &[u8],
    patience: Duration,
) -> io::Result<()> {
    while !first.is_empty() || !second.is_empty() {
        let written = match (first, second) {
            (only, []) | ([], only) => stream.try_write(only),
            (first, second) => stream.try_write_vectored(&[IoSlice::new(first), IoSlice::new(second)]),
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => {
                let of_first = len.min(first.len());
                first = &first[of_first..];
                second = &second[len - of_first..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A client that stops reading would hold what it is sent for ever.
                timeout(patience, stream.writable()).await.map_err(|_| io::ErrorKind::TimedOut)??;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue};

    use super::*;

    fn head(method: Method, status: StatusCode, body: Body, last: bool) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("electric-offset", HeaderValue::from_static("0_0"));
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
        headers.insert(DATE, HeaderValue::from_static("then"));
        let len = body.size_hint().exact();
        let framing = Framing::of(&method, status, &body);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        let mut out = Vec::new();
        write_head(&mut out, &response.into_parts().0, framing, &method, len, last);
        String::from_utf8(out).expect("text")
    }

    fn stream() -> Body {
        Body::from_stream(futures_util::stream::pending::<Result<Bytes, io::Error>>())
    }

    #[test]
    fn the_end_of_a_body_is_announced() {
        let begin = "HTTP/1.1 200 OK\r\nelectric-offset: 0_0\r\nconnection: keep-alive\r\ndate: then\r\n";
        let (get, ok) = (Method::GET, StatusCode::OK);
        for (body, framing) in [
            (Body::from("abc"), "content-length: 3\r\n"),
            (Body::empty(), "content-length: 0\r\n"),
            (stream(), "transfer-encoding: chunked\r\n"),
        ] {
            assert_eq!(head(get.clone(), ok, body, false), format!("{begin}{framing}\r\n"));
        }
        let without = |method: Method, status, body| head(method, status, body, false);
        assert!(without(Method::HEAD, ok, Body::from("abc")).ends_with("content-length: 3\r\n\r\n"));
        assert_eq!(without(Method::HEAD, ok, stream()), format!("{begin}\r\n"));
        for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
            let head = without(get.clone(), status, Body::empty());
            assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        }
        let last = head(get, StatusCode::NOT_FOUND, Body::empty(), true);
        let expected =
            "HTTP/1.1 404 Not Found\r\nelectric-offset: 0_0\r\ndate: then\r\nconnection: close\r\n";
        assert_eq!(last, format!("{expected}content-length: 0\r\n\r\n"));
    }

    #[test]
    fn the_date_is_of_now() {
        let mut out = Vec::new();
        write_date(&mut out);
        let text = String::from_utf8(out).expect("text");
        let date = text.strip_prefix("date: ").and_then(|rest| rest.strip_suffix("\r\n")).expect("a header");
        let told = httpdate::parse_http_date(date).expect("a date");
        assert!(told <= SystemTime::now() && told.elapsed().expect("past") < Duration::from_secs(60));
    }
}
