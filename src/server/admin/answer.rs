//! Answers and refusals.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::Value;

use crate::inspect::AskError;

/// An answer, or why there is none.
pub(super) type Answer = Result<Json, Refusal>;

/// A JSON answer. Nobody may keep it.
#[derive(Debug)]
pub(super) struct Json(pub Value);

#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Wrong(String),
    #[error("the admin API wants its token: Authorization: Bearer ...")]
    Token,
    #[error("there is nothing at this path")]
    NoRoute,
    #[error("{0}")]
    NotFound(String),
    #[error("no journal is called {0:?} here")]
    NoJournal(String),
    #[error("the service does not own its directory yet")]
    NotYet,
    #[error("this is a journal, not a running service")]
    NotRunning,
    #[error("too many questions are being answered: ask again")]
    Busy,
    #[error("the file is larger than {0} bytes")]
    TooLarge(usize),
    #[error("this needs another method")]
    Method,
    #[error("the question could not be answered: {0}")]
    Failed(String),
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Refusal {
        match error {
            AskError::UnknownShape(_) => Refusal::NotFound(error.to_string()),
            AskError::Closed => Refusal::NotYet,
            AskError::Journal(_) | AskError::Thread(_) => Refusal::Failed(error.to_string()),
        }
    }
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Refusal::Wrong(_) => StatusCode::BAD_REQUEST,
            Refusal::Token => StatusCode::UNAUTHORIZED,
            Refusal::NoRoute | Refusal::NotFound(_) | Refusal::NoJournal(_) | Refusal::NotRunning => {
                StatusCode::NOT_FOUND
            }
            Refusal::NotYet | Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let body = serde_json::json!({ "error": self.to_string() });
        let mut response = respond(self.status(), "application/json", Body::from(body.to_string()));
        match self {
            Refusal::Busy | Refusal::NotYet => {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Refusal::Token => {
                let challenge = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, challenge);
            }
            Refusal::Wrong(_)
            | Refusal::NoRoute
            | Refusal::NotFound(_)
            | Refusal::NoJournal(_)
            | Refusal::NotRunning
            | Refusal::TooLarge(_)
            | Refusal::Method
            | Refusal::Failed(_) => {}
        }
        response
    }
}

impl IntoResponse for Json {
    fn into_response(self) -> Response<Body> {
        respond(StatusCode::OK, "application/json", Body::from(self.0.to_string()))
    }
}

/// A response with the headers that all of them have: nothing is kept, guessed, framed or sent on.
pub(super) fn respond(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
