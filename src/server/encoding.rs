//! Compressed bodies: contract 1.3.
//!
//! Only answers that are whole and have no strong tag: errors, health, the description of the API. The
//! bytes of a log are the same for everyone, and streamed as they come; proxies compress them, once for
//! all of their clients.

use std::io::Write;

use axum::body::{Body, HttpBody};
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http_body_util::BodyExt;

use super::response::ELECTRIC_HANDLE;

/// Smaller bodies hardly get smaller.
const LEN_MIN: u64 = 64;
/// No answer of those that are meant is larger.
const LEN_MAX: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// The zlib format, RFC 9110, 8.4.1.2.
    Deflate,
    Zstd,
}

impl Encoding {
    /// The first that the client names and does not rule out. Weights other than 0 are no order here:
    /// all of them are as good for a short message.
    pub(super) fn accepted(headers: &HeaderMap) -> Option<Encoding> {
        let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).find_map(|item| {
            let (name, weight) = item.split_once(';').unwrap_or((item, "q=1"));
            let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            let encoding = match name.trim().to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => Encoding::Gzip,
                "deflate" => Encoding::Deflate,
                "zstd" => Encoding::Zstd,
                _ => return None,
            };
            weight.is_some_and(|weight| weight > 0.0).then_some(encoding)
        })
    }

    fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
            Encoding::Zstd => "zstd",
        })
    }

    fn encode(self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Encoding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Encoding::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Encoding::Zstd => zstd::bulk::compress(bytes, zstd::DEFAULT_COMPRESSION_LEVEL),
        }
    }
}

/// The response in that encoding, where that is allowed and makes it smaller.
pub(super) async fn encoded(encoding: Encoding, mut response: Response) -> Response {
    let headers = response.headers();
    let len = response.body().size_hint().exact();
    let meant = headers.contains_key(CONTENT_TYPE)
        && !headers.contains_key(ETAG)
        && !headers.contains_key(ELECTRIC_HANDLE)
        && len.is_some_and(|len| (LEN_MIN..=LEN_MAX).contains(&len));
    if !meant {
        return response;
    }
    // A body of known length is in memory: this waits for nothing.
    let Ok(body) = std::mem::take(response.body_mut()).collect().await else { return response };
    let plain = body.to_bytes();
    *response.body_mut() = match encoding.encode(&plain) {
        Ok(encoded) if encoded.len() < plain.len() => {
            let headers = response.headers_mut();
            headers.insert(CONTENT_ENCODING, encoding.name());
            headers.remove(CONTENT_LENGTH);
            Body::from(Bytes::from(encoded))
        }
        Ok(_) | Err(_) => Body::from(plain),
    };
    response
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::http::StatusCode;

    use super::*;
    use crate::server::response::{JSON, respond};

    fn check(sent: &[&'static str], expected: Option<Encoding>) {
        let mut headers = HeaderMap::new();
        for line in sent {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_static(line));
        }
        assert_eq!(Encoding::accepted(&headers), expected, "{sent:?}");
    }

    #[test]
    fn the_first_that_is_known_and_not_ruled_out() {
        check(&[], None);
        check(&["identity", "br"], None);
        check(&["br, GZIP;q=0.5, zstd"], Some(Encoding::Gzip));
        check(&["gzip;q=0, deflate"], Some(Encoding::Deflate));
        check(&["gzip; q=0.000", "zstd"], Some(Encoding::Zstd));
        check(&["gzip;level=9"], None);
        check(&["*"], None);
    }

    fn response(text: &str, more: Option<(axum::http::HeaderName, &'static str)>) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, JSON);
        if let Some((name, value)) = more {
            headers.insert(name, HeaderValue::from_static(value));
        }
        respond(StatusCode::BAD_REQUEST, headers, Body::from(text.to_owned()))
    }

    async fn sent(encoding: Encoding, response: Response) -> (Option<HeaderValue>, Vec<u8>) {
        let response = encoded(encoding, response).await;
        let name = response.headers().get(CONTENT_ENCODING).cloned();
        (name, response.into_body().collect().await.expect("a body").to_bytes().to_vec())
    }

    #[tokio::test]
    async fn whole_answers_without_a_tag_are_compressed() {
        let text = r#"{"message":"a message that says the same"}"#.repeat(20);
        for encoding in [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd] {
            let (name, bytes) = sent(encoding, response(&text, None)).await;
            assert_eq!(name, Some(encoding.name()));
            assert!(bytes.len() * 4 < text.len());
            let mut plain = String::new();
            let read = match encoding {
                Encoding::Gzip => flate2::read::GzDecoder::new(&*bytes).read_to_string(&mut plain),
                Encoding::Deflate => flate2::read::ZlibDecoder::new(&*bytes).read_to_string(&mut plain),
                Encoding::Zstd => zstd::Decoder::new(&*bytes).expect("zstd").read_to_string(&mut plain),
            };
            assert_eq!((read.expect("it decodes"), plain), (text.len(), text.clone()));
        }
        for other in [
            response("short", None),
            response(&text, Some((ETAG, "\"1\""))),
            response(&text, Some((ELECTRIC_HANDLE, "1-1"))),
        ] {
            assert_eq!(sent(Encoding::Gzip, other).await.0, None);
        }
        let (name, bytes) = sent(Encoding::Gzip, response(&text, Some((ETAG, "\"1\"")))).await;
        assert_eq!((name, bytes), (None, text.into_bytes()));
    }
}
