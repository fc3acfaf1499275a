//! What a request is refused with: the statuses and bodies of contract 1.6.

use std::collections::BTreeMap;

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;

use crate::domain::Handle;

use super::response::{ELECTRIC_HANDLE, JSON, Reply};

const KNOWN_ERROR: HeaderName = HeaderName::from_static("electric-internal-known-error");
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");
/// What the reference implementation's web framework sets where nothing else does.
pub(super) const CACHE_DEFAULT: HeaderValue = HeaderValue::from_static("max-age=0, private, must-revalidate");

/// Messages by field, several at once.
pub(super) type FieldErrors = BTreeMap<&'static str, Vec<String>>;

/// Why there is no answer. Texts may quote the request: they go to its sender, never into a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Invalid(FieldErrors),
    /// DELETE: the handle belongs to another definition.
    Mismatch,
    BodyNotJson(String),
    BodyNotObject,
    BodyUnreadable,
    BodyTooLarge,
    Unauthorized,
    NotFound,
    NoShape,
    DeleteDisabled,
    /// The shape is gone; the one in its place, if known.
    MustRefetch(Option<Handle>),
    /// The text says what is waited for.
    NotReady(String),
    Unreachable,
    NotCreated,
    SnapshotKnown(String),
    SnapshotUnexpected(String),
    LogUnreadable(String),
    Overloaded {
        class: &'static str,
        limit: usize,
        /// Seconds: 5 plus a random 1 to 5.
        retry_after: u64,
    },
    /// A bug. What it is stays in the log.
    Internal,
}

#[derive(Serialize)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<&'a FieldErrors>,
}

#[derive(Serialize)]
struct BodyError<'a> {
    error: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a str>,
}

impl Failure {
    /// One message about one field.
    pub(super) fn field(name: &'static str, message: impl Into<String>) -> Failure {
        Failure::Invalid(BTreeMap::from([(name, vec![message.into()])]))
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Failure::Invalid(_)
            | Failure::Mismatch
            | Failure::BodyNotJson(_)
            | Failure::BodyNotObject
            | Failure::BodyUnreadable => StatusCode::BAD_REQUEST,
            Failure::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Failure::Unauthorized => StatusCode::UNAUTHORIZED,
            Failure::NotFound | Failure::NoShape => StatusCode::NOT_FOUND,
            Failure::DeleteDisabled => StatusCode::METHOD_NOT_ALLOWED,
            Failure::MustRefetch(_) => StatusCode::CONFLICT,
            Failure::NotReady(_)
            | Failure::Unreachable
            | Failure::NotCreated
            | Failure::SnapshotKnown(_)
            | Failure::Overloaded { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Failure::SnapshotUnexpected(_) | Failure::LogUnreadable(_) | Failure::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn body(&self) -> String {
        match self {
            Failure::Invalid(errors) => {
                json(&Message { code: None, message: "Invalid request", errors: Some(errors) })
            }
            Failure::Mismatch => message(
                "The specified shape definition and handle do not match. Please ensure the shape definition \
                 is correct or omit the shape handle from the request to obtain a new one.",
            ),
            Failure::BodyNotJson(details) => {
                json(&BodyError { error: "Invalid JSON in request body", details: Some(details) })
            }
            Failure::BodyNotObject => body_error("Request body must be a JSON object"),
            Failure::BodyUnreadable => body_error("Failed to read request body"),
            Failure::BodyTooLarge => body_error("Request body too large"),
            Failure::Internal => body_error("Internal server error"),
            Failure::Unauthorized => message("Unauthorized - Invalid API secret"),
            Failure::NotFound => "Not found".to_owned(),
            Failure::NoShape => message("No existing shape found"),
            Failure::DeleteDisabled => message("DELETE not allowed"),
            Failure::MustRefetch(_) => r#"[{"headers":{"control":"must-refetch"}}]"#.to_owned(),
            Failure::NotReady(reason) => message(reason),
            Failure::Unreachable => {
                message("Cannot connect to the database to verify the shape. Please try again later.")
            }
            Failure::NotCreated => message("Failed to create shape, please retry"),
            Failure::SnapshotKnown(cause) => message(cause),
            Failure::SnapshotUnexpected(cause) => {
                message(&format!("Unexpected error while creating snapshot: {cause}"))
            }
            Failure::LogUnreadable(cause) => message(&format!("Unable to retrieve shape log: {cause}")),
            Failure::Overloaded { class, limit, .. } => json(&Message {
                code: Some("concurrent_request_limit_exceeded"),
                message: &format!("Concurrent {class} request limit exceeded (limit: {limit}), please retry"),
                errors: None,
            }),
        }
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Failure::NotReady(_) => Some(5),
            Failure::Unreachable | Failure::NotCreated => Some(1),
            Failure::SnapshotKnown(_) => Some(10),
            Failure::Overloaded { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// The answer, as contract 1.6 and 1.12 want it for this method.
    pub(super) fn reply(&self, method: &Method) -> Reply {
        let mut headers = HeaderMap::with_capacity(12);
        match self {
            Failure::NotFound => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                headers.insert(CACHE_CONTROL, CACHE_DEFAULT);
            }
            Failure::Unauthorized => {
                headers.insert(CACHE_CONTROL, CACHE_DEFAULT);
            }
            Failure::BodyNotJson(_)
            | Failure::BodyNotObject
            | Failure::BodyUnreadable
            | Failure::BodyTooLarge
            | Failure::Internal => {
                headers.insert(CONTENT_TYPE, JSON);
                headers.insert(CACHE_CONTROL, CACHE_DEFAULT);
            }
            _ => {
                headers.insert(CONTENT_TYPE, JSON);
                self.insert_cache(method, &mut headers);
            }
        }
        if let Failure::MustRefetch(Some(handle)) = self {
            let text = handle.to_string();
            headers.insert(ETAG, ascii(&format!("\"{text}::\"")));
            headers.insert(ELECTRIC_HANDLE, ascii(&text));
        }
        if let Failure::SnapshotKnown(_) | Failure::Overloaded { .. } = self {
            headers.insert(KNOWN_ERROR, HeaderValue::from_static("true"));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        Reply { status: self.status(), headers, body: self.body().into_bytes().into() }
    }

    fn insert_cache(&self, method: &Method, headers: &mut HeaderMap) {
        let cacheable = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        let rule = match self {
            _ if !cacheable => "no-cache",
            Failure::MustRefetch(Some(_)) => "public, max-age=60, must-revalidate",
            Failure::MustRefetch(None) => "public, max-age=1, must-revalidate",
            _ => {
                headers.insert(SURROGATE_CONTROL, HeaderValue::from_static("no-store"));
                "no-store"
            }
        };
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(rule));
    }
}

/// A header value of text that is ASCII by construction.
pub(super) fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("visible ASCII by construction")
}

fn message(text: &str) -> String {
    json(&Message { code: None, message: text, errors: None })
}

fn body_error(error: &'static str) -> String {
    json(&BodyError { error, details: None })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and maps of strings have a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(failure: &Failure, method: Method, expected: &str) {
        assert_eq!(failure.reply(&method).to_string(), expected);
    }

    const JSON_NO_STORE: &str =
        "content-type: application/json; charset=utf-8\nsurrogate-control: no-store\ncache-control: no-store";

    #[test]
    fn refusals_of_a_get() {
        let checks = [
            (
                Failure::field("offset", "has invalid format"),
                400,
                "",
                r#"{"message":"Invalid request","errors":{"offset":["has invalid format"]}}"#,
            ),
            (Failure::NoShape, 404, "", r#"{"message":"No existing shape found"}"#),
            (
                Failure::NotReady("Timeout waiting for Postgres lock acquisition".to_owned()),
                503,
                "\nretry-after: 5",
                r#"{"message":"Timeout waiting for Postgres lock acquisition"}"#,
            ),
            (
                Failure::Unreachable,
                503,
                "\nretry-after: 1",
                r#"{"message":"Cannot connect to the database to verify the shape. Please try again later."}"#,
            ),
            (
                Failure::NotCreated,
                503,
                "\nretry-after: 1",
                r#"{"message":"Failed to create shape, please retry"}"#,
            ),
            (
                Failure::SnapshotKnown("Database connection not available".to_owned()),
                503,
                "\nelectric-internal-known-error: true\nretry-after: 10",
                r#"{"message":"Database connection not available"}"#,
            ),
            (
                Failure::SnapshotUnexpected("division by zero".to_owned()),
                500,
                "",
                r#"{"message":"Unexpected error while creating snapshot: division by zero"}"#,
            ),
            (
                Failure::LogUnreadable("read of the log file: vanished".to_owned()),
                500,
                "",
                r#"{"message":"Unable to retrieve shape log: read of the log file: vanished"}"#,
            ),
            (
                Failure::Overloaded { class: "initial", limit: 300, retry_after: 7 },
                503,
                "\nelectric-internal-known-error: true\nretry-after: 7",
                r#"{"code":"concurrent_request_limit_exceeded","message":"Concurrent initial request limit exceeded (limit: 300), please retry"}"#,
            ),
        ];
        for (failure, status, more, body) in checks {
            check(&failure, Method::GET, &format!("{status}\n{JSON_NO_STORE}{more}\n\n{body}"));
        }
    }

    #[test]
    fn must_refetch_names_the_successor() {
        let handle = Handle { hash: 12, micros: 34 };
        check(
            &Failure::MustRefetch(Some(handle)),
            Method::GET,
            "409\ncontent-type: application/json; charset=utf-8\ncache-control: public, max-age=60, must-revalidate\n\
             etag: \"12-34::\"\nelectric-handle: 12-34\n\n[{\"headers\":{\"control\":\"must-refetch\"}}]",
        );
        check(
            &Failure::MustRefetch(None),
            Method::HEAD,
            "409\ncontent-type: application/json; charset=utf-8\ncache-control: public, max-age=1, must-revalidate\n\n\
             [{\"headers\":{\"control\":\"must-refetch\"}}]",
        );
        check(
            &Failure::MustRefetch(None),
            Method::POST,
            "409\ncontent-type: application/json; charset=utf-8\ncache-control: no-cache\n\n\
             [{\"headers\":{\"control\":\"must-refetch\"}}]",
        );
    }

    #[test]
    fn the_method_comes_first_and_the_framework_last() {
        let json = "content-type: application/json; charset=utf-8";
        check(
            &Failure::DeleteDisabled,
            Method::DELETE,
            &format!("405\n{json}\ncache-control: no-cache\n\n{{\"message\":\"DELETE not allowed\"}}"),
        );
        let default = "cache-control: max-age=0, private, must-revalidate";
        check(
            &Failure::Unauthorized,
            Method::GET,
            &format!("401\n{default}\n\n{{\"message\":\"Unauthorized - Invalid API secret\"}}"),
        );
        check(
            &Failure::NotFound,
            Method::GET,
            &format!("404\ncontent-type: text/plain; charset=utf-8\n{default}\n\nNot found"),
        );
        for (failure, status, body) in [
            (
                Failure::BodyNotJson("unexpected end".to_owned()),
                400,
                r#"{"error":"Invalid JSON in request body","details":"unexpected end"}"#,
            ),
            (Failure::BodyNotObject, 400, r#"{"error":"Request body must be a JSON object"}"#),
            (Failure::BodyUnreadable, 400, r#"{"error":"Failed to read request body"}"#),
            (Failure::BodyTooLarge, 413, r#"{"error":"Request body too large"}"#),
            (Failure::Internal, 500, r#"{"error":"Internal server error"}"#),
        ] {
            check(&failure, Method::POST, &format!("{status}\n{json}\n{default}\n\n{body}"));
        }
    }
}
