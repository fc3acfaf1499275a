//! Answers as data: status, headers, body. The headers of contract 1.9 and 1.12.

use std::fmt;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;

use crate::domain::{Handle, Lsn, Offset};

use super::error::ascii;
use super::params::Requested;
use super::settings::Settings;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
pub(super) const ELECTRIC_HANDLE: HeaderName = HeaderName::from_static("electric-handle");
pub(super) const ELECTRIC_HAS_DATA: HeaderName = HeaderName::from_static("electric-has-data");
const ELECTRIC_OFFSET: HeaderName = HeaderName::from_static("electric-offset");
const ELECTRIC_SCHEMA: HeaderName = HeaderName::from_static("electric-schema");
const ELECTRIC_UP_TO_DATE: HeaderName = HeaderName::from_static("electric-up-to-date");
const ELECTRIC_CURSOR: HeaderName = HeaderName::from_static("electric-cursor");

/// The first chunk of a shape never changes, but new clients should get a newer shape one day.
const CACHE_INITIAL: &str = "public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746";
const CACHE_LIVE: &str = "public, max-age=5, stale-while-revalidate=5";

/// An answer whose body is known.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub(super) fn into_response(self) -> Response {
        let body = if self.body.is_empty() { Body::empty() } else { Body::from(self.body) };
        respond(self.status, self.headers, body)
    }
}

/// As text, for tests: the status, the headers in order of insertion, an empty line, the body.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status.as_u16())?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        write!(f, "\n{}", String::from_utf8_lossy(&self.body))
    }
}

pub(super) fn respond(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// What the headers of a log response say.
#[derive(Clone, Debug)]
pub(super) struct LogHead {
    pub handle: Handle,
    pub requested: Requested,
    /// The offset of the last row that is really in the body (P1).
    pub end: Offset,
    /// The body ends with `up-to-date`.
    pub up_to_date: bool,
    pub has_data: bool,
    /// Sent unless the request is live.
    pub schema: Option<String>,
    /// Sent where the request is live.
    pub cursor: Option<u64>,
    /// Makes the tag of an answer without news one that never matches.
    pub unique: Option<u64>,
}

impl LogHead {
    /// `"<handle>:<requested>:<response offset>"`, with a suffix where there was no news.
    pub(super) fn etag(&self) -> String {
        match self.unique {
            Some(unique) => format!("\"{}:{}:{}:{unique}\"", self.handle, self.requested, self.end),
            None => format!("\"{}:{}:{}\"", self.handle, self.requested, self.end),
        }
    }

    pub(super) fn headers(&self, method: &Method, settings: &Settings) -> HeaderMap {
        // The ones added for every response included.
        let mut headers = HeaderMap::with_capacity(18);
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(CACHE_CONTROL, self.cache_control(method, settings));
        headers.insert(ETAG, ascii(&self.etag()));
        headers.insert(ELECTRIC_HANDLE, ascii(&self.handle.to_string()));
        headers.insert(ELECTRIC_OFFSET, ascii(&self.end.to_string()));
        headers.insert(
            ELECTRIC_HAS_DATA,
            HeaderValue::from_static(if self.has_data { "true" } else { "false" }),
        );
        if self.up_to_date {
            headers.insert(ELECTRIC_UP_TO_DATE, HeaderValue::from_static(""));
        }
        if let Some(schema) = &self.schema {
            headers.insert(ELECTRIC_SCHEMA, ascii(schema));
        }
        if let Some(cursor) = self.cursor {
            headers.insert(ELECTRIC_CURSOR, HeaderValue::from(cursor));
        }
        headers
    }

    fn cache_control(&self, method: &Method, settings: &Settings) -> HeaderValue {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return HeaderValue::from_static("no-cache");
        }
        if self.requested == Requested::After(Offset::BeforeAll) {
            return HeaderValue::from_static(CACHE_INITIAL);
        }
        if self.cursor.is_some() {
            return HeaderValue::from_static(CACHE_LIVE);
        }
        ascii(&format!(
            "public, max-age={}, stale-while-revalidate={}",
            settings.cache_max_age, settings.cache_stale_age
        ))
    }
}

/// Whether `if-none-match` names this tag: a comma list, quotes stripped, weak tags not understood.
#[must_use]
pub(super) fn matches_etag(if_none_match: &str, etag: &str) -> bool {
    let wanted = etag.trim_matches('"');
    if_none_match.split(',').any(|tag| tag.trim().trim_matches('"') == wanted)
}

/// The message that ends a body which reaches the end of the log.
#[must_use]
pub(super) fn up_to_date(last_seen: Lsn) -> String {
    format!(r#"{{"headers":{{"control":"up-to-date","global_last_seen_lsn":"{}"}}}}"#, last_seen.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> LogHead {
        LogHead {
            handle: Handle { hash: 12, micros: 34 },
            requested: Requested::After(Offset::snapshot_chunk(0)),
            end: Offset::new(Lsn(900), 2),
            up_to_date: true,
            has_data: true,
            schema: Some(r#"{"id":{"type":"int4"}}"#.to_owned()),
            cursor: None,
            unique: None,
        }
    }

    fn check(head: &LogHead, method: Method, expected: &str) {
        let headers = head.headers(&method, &Settings::default());
        let reply = Reply { status: StatusCode::OK, headers, body: Bytes::new() };
        assert_eq!(reply.to_string().trim_end(), expected);
    }

    #[test]
    fn a_catch_up_that_reaches_the_end() {
        check(
            &head(),
            Method::GET,
            "200\n\
             content-type: application/json; charset=utf-8\n\
             cache-control: public, max-age=60, stale-while-revalidate=300\n\
             etag: \"12-34:0_0:900_2\"\n\
             electric-handle: 12-34\n\
             electric-offset: 900_2\n\
             electric-has-data: true\n\
             electric-up-to-date: \n\
             electric-schema: {\"id\":{\"type\":\"int4\"}}",
        );
    }

    #[test]
    fn the_first_chunk_is_cached_for_long() {
        let first = LogHead {
            requested: Requested::After(Offset::BeforeAll),
            end: Offset::snapshot_chunk(0),
            up_to_date: false,
            schema: None,
            ..head()
        };
        check(
            &first,
            Method::HEAD,
            "200\n\
             content-type: application/json; charset=utf-8\n\
             cache-control: public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746\n\
             etag: \"12-34:-1:0_0\"\n\
             electric-handle: 12-34\n\
             electric-offset: 0_0\n\
             electric-has-data: true",
        );
    }

    #[test]
    fn a_live_timeout_never_revalidates() {
        let end = Offset::SNAPSHOT_END;
        let timeout = LogHead {
            requested: Requested::After(end),
            end,
            has_data: false,
            schema: None,
            cursor: Some(40),
            unique: Some(7),
            ..head()
        };
        check(
            &timeout,
            Method::GET,
            "200\n\
             content-type: application/json; charset=utf-8\n\
             cache-control: public, max-age=5, stale-while-revalidate=5\n\
             etag: \"12-34:0_inf:0_inf:7\"\n\
             electric-handle: 12-34\n\
             electric-offset: 0_inf\n\
             electric-has-data: false\n\
             electric-up-to-date: \n\
             electric-cursor: 40",
        );
    }

    #[test]
    fn a_post_is_not_cached() {
        let cache = head().cache_control(&Method::POST, &Settings::default());
        assert_eq!(cache, "no-cache");
        let now = LogHead { requested: Requested::Now, ..head() };
        assert_eq!(
            now.cache_control(
                &Method::GET,
                &Settings { cache_max_age: 5, cache_stale_age: 6, ..Settings::default() }
            ),
            "public, max-age=5, stale-while-revalidate=6"
        );
        assert_eq!(now.etag(), "\"12-34:now:900_2\"");
    }

    #[test]
    fn if_none_match_is_a_list_of_strong_tags() {
        let etag = "\"12-34:-1:0_0\"";
        for matching in [etag, "12-34:-1:0_0", "\"x\", \"12-34:-1:0_0\""] {
            assert!(matches_etag(matching, etag), "{matching}");
        }
        for other in ["", "*", "W/\"12-34:-1:0_0\"", "\"12-34:-1:0_1\""] {
            assert!(!matches_etag(other, etag), "{other}");
        }
    }

    #[test]
    fn up_to_date_has_decimal_lsns() {
        assert_eq!(
            up_to_date(Lsn(u64::MAX)),
            r#"{"headers":{"control":"up-to-date","global_last_seen_lsn":"18446744073709551615"}}"#
        );
    }
}
