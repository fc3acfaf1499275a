//! `/v1/health`: contract 1.20; and `/v1/ready`, which is not in the contract: whether the service not only
//! runs but gets on.

use std::time::{Duration, Instant};

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;

use crate::domain::Lsn;
use crate::runtime::handle::{Service, Status};
use crate::runtime::progress::{self, Report};

use super::response::{JSON, Reply};

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    /// Beyond the contract, whose body has the status alone: what is waited for, with the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

/// `alarm`: what is wrong although the service is active. It stays 200: restarting it would not help.
pub(super) fn health(status: &Status, alarm: Option<&str>) -> Reply {
    let (code, health) = match status {
        Status::Active => (StatusCode::OK, Health { status: "active", message: alarm }),
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
    reply(code, &health)
}

fn reply(status: StatusCode, body: &impl Serialize) -> Reply {
    let mut headers = HeaderMap::with_capacity(10);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    let body = serde_json::to_vec(body).expect("strings and numbers have a JSON form");
    Reply { status, headers, body: body.into() }
}

/// The body of `/v1/ready`.
#[derive(Serialize)]
struct Readiness {
    /// New shapes can be made, and the service gets on.
    ready: bool,
    /// What is flushed moves, or there is nothing to flush. Unknown until streaming has begun.
    progressing: Option<bool>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
}

#[derive(Serialize)]
struct Progress {
    /// Postgres was told that everything before is flushed: an LSN as text.
    boundary: String,
    /// Log of Postgres after that, bytes.
    wal_gap_bytes: Option<u64>,
    still_for_ms: u64,
    wal_grown_bytes: u64,
    shapes_owing: usize,
    held_bytes: u64,
    holder: Option<Holder>,
    /// The shapes that have owed longest after it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    next_holders: Vec<Holder>,
    /// Since when more shapes make no progress than may be given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    give_up_exhausted_ms: Option<u64>,
    /// Parts of the pipeline that stand still.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    standing_still: Vec<Still>,
    slot_limit_seconds: Option<f64>,
    disk_limit_seconds: Option<f64>,
}

#[derive(Serialize)]
struct Holder {
    shape_handle: String,
    /// The oldest transaction that it owes.
    lsn: String,
    waiting_ms: u64,
}

#[derive(Serialize)]
struct Still {
    part: String,
    still_ms: u64,
}

/// 200 where a load balancer may send clients here, else 503; the body says why.
pub(super) fn readiness(service: &Service, stall_after: Duration) -> Reply {
    let report = service.progress().report(Instant::now());
    describe(&service.status(), report.as_ref(), service.is_asleep(), stall_after)
}

fn describe(status: &Status, report: Option<&Report>, asleep: bool, stall_after: Duration) -> Reply {
    let (name, waits_for) = match status {
        Status::Active => ("active", None),
        Status::Waiting { reason } => ("waiting", Some(reason.clone())),
        Status::Starting { reason } => ("starting", Some(reason.clone())),
        Status::Draining => ("draining", Some("shutting down".to_owned())),
    };
    let active = *status == Status::Active;
    // Nothing is expected to move where all connections are closed for want of work.
    let stalled = report.filter(|_| active && !asleep).and_then(|report| report.stalled(stall_after));
    let ready = active && stalled.is_none();
    let body = Readiness {
        ready,
        progressing: report.filter(|_| active).map(|_| stalled.is_none()),
        status: name,
        message: waits_for.or(stalled),
        progress: report.map(Progress::of),
    };
    reply(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}

impl Progress {
    fn of(report: &Report) -> Progress {
        let gap = |end: Lsn| end.0.saturating_sub(report.boundary.0);
        Progress {
            boundary: report.boundary.to_string(),
            wal_gap_bytes: report.wal_end.map(gap),
            still_for_ms: millis(report.still_for),
            wal_grown_bytes: report.grown,
            shapes_owing: report.owing,
            held_bytes: report.held_bytes,
            holder: report.holder.as_ref().map(Holder::of),
            next_holders: report.next_holders.iter().map(Holder::of).collect(),
            give_up_exhausted_ms: report.exhausted.map(millis),
            standing_still: report
                .still
                .iter()
                .map(|(part, still)| Still { part: part.to_string(), still_ms: millis(*still) })
                .collect(),
            slot_limit_seconds: report.slot_seconds_left,
            disk_limit_seconds: report.disk_seconds_left,
        }
    }
}

impl Holder {
    fn of(holder: &progress::Holder) -> Holder {
        Holder {
            shape_handle: holder.handle.to_string(),
            lsn: holder.lsn.to_string(),
            waiting_ms: millis(holder.waiting),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
                health(&status, None).to_string(),
                format!(
                    "{code}\ncontent-type: application/json; charset=utf-8\n\
                     cache-control: no-cache, no-store, must-revalidate\n\n{body}"
                )
            );
        }
    }

    #[test]
    fn an_alarm_is_told_and_is_no_reason_to_restart() {
        let told = health(&Status::Active, Some("driver stands still")).to_string();
        assert!(told.starts_with("200\n"), "{told}");
        assert!(told.ends_with(r#"{"status":"active","message":"driver stands still"}"#), "{told}");
    }

    #[test]
    fn active_is_not_ready_is_not_progressing() {
        let report = |still_for, grown| Report {
            boundary: Lsn(0x100),
            wal_end: Some(Lsn(0x180)),
            still_for: Duration::from_secs(still_for),
            grown,
            owing: 0,
            held_bytes: 0,
            holder: None,
            next_holders: Vec::new(),
            exhausted: None,
            still: Vec::new(),
            slot_seconds_left: None,
            disk_seconds_left: Some(60.0),
        };
        let asked = |status: &Status, report: Option<&Report>, asleep| {
            let text = describe(status, report, asleep, Duration::from_secs(30)).to_string();
            let (head, body) = text.split_once("\n\n").expect("a head and a body");
            let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
            (head[..3].to_owned(), body)
        };
        let (code, body) = asked(&Status::Active, Some(&report(31, 0)), false);
        assert_eq!((&*code, &body["ready"], &body["progressing"]), ("200", &true.into(), &true.into()));
        assert_eq!(body["progress"]["wal_gap_bytes"], 0x80);
        let stuck = report(31, 1 << 20);
        let (code, body) = asked(&Status::Active, Some(&stuck), false);
        assert_eq!((&*code, &body["ready"], &body["progressing"]), ("503", &false.into(), &false.into()));
        assert!(
            body["message"].as_str().is_some_and(|text| text.contains("has not moved for 31 s")),
            "{body}"
        );
        assert_eq!(asked(&Status::Active, Some(&stuck), true).0, "200", "asleep on purpose");
        let (code, body) = asked(&Status::Waiting { reason: "the lock".to_owned() }, None, false);
        assert_eq!((&*code, &body["message"]), ("503", &"the lock".into()));
        assert_eq!(body["progressing"], serde_json::Value::Null);
        assert_eq!(asked(&Status::Draining, Some(&report(0, 0)), false).0, "503");
    }
}
