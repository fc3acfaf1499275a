//! `/v1/health`: contract 1.20.

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;

use crate::runtime::handle::Status;

use super::response::{JSON, Reply};

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    /// Beyond the contract, whose body has the status alone: what is waited for, with the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

pub(super) fn health(status: &Status) -> Reply {
    let (code, health) = match status {
        Status::Active => (StatusCode::OK, Health { status: "active", message: None }),
        Status::Waiting { reason } => {
            (StatusCode::ACCEPTED, Health { status: "waiting", message: Some(reason) })
        }
        Status::Starting { reason } => {
            (StatusCode::ACCEPTED, Health { status: "starting", message: Some(reason) })
        }
        Status::Draining => {
            (StatusCode::ACCEPTED, Health { status: "starting", message: Some("shutting down") })
        }
    };
    let mut headers = HeaderMap::with_capacity(10);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    let body = serde_json::to_vec(&health).expect("strings have a JSON form");
    Reply { status: code, headers, body: body.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_active_is_200() {
        let waiting = |text: &str| text.to_owned();
        for (status, code, body) in [
            (Status::Active, 200, r#"{"status":"active"}"#),
            (
                Status::Waiting { reason: waiting("the lock") },
                202,
                r#"{"status":"waiting","message":"the lock"}"#,
            ),
            (
                Status::Starting { reason: waiting("shapes") },
                202,
                r#"{"status":"starting","message":"shapes"}"#,
            ),
            (Status::Draining, 202, r#"{"status":"starting","message":"shutting down"}"#),
        ] {
            assert_eq!(
                health(&status).to_string(),
                format!(
                    "{code}\ncontent-type: application/json; charset=utf-8\n\
                     cache-control: no-cache, no-store, must-revalidate\n\n{body}"
                )
            );
        }
    }
}
