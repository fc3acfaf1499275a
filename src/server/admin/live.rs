//! What is happening now, and events as they come.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::domain::EventId;
use crate::inspect::{Live, answers};
use crate::runtime::handle::{Service, Status};

use super::answer::{Answer, Json, Refusal, respond};
use super::question::Asked;
use super::{Admin, Sources};

/// Those who follow the events, at most.
pub const STREAMS_MAX: usize = 64;
/// Holders that are shown with what is now: the longest-owing.
const HOLDERS_MAX: usize = 10;
/// Events in one message; of more, the newest are sent and the others counted.
const BATCH_MAX: usize = 200;
/// Messages are at least so far apart.
const BATCH_EVERY: Duration = Duration::from_millis(100);
/// How long nothing is sent before a sign of life is.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);
/// How long the fold may take to arrive where the engine was asked.
const ARRIVE_WAIT_MAX: Duration = Duration::from_secs(5);

impl Admin {
    fn service(&self) -> Result<&Service, Refusal> {
        match &self.sources {
            Sources::Running { service, .. } => Ok(service),
            Sources::Opened(_) => Err(Refusal::NotRunning),
        }
    }

    fn live(&self) -> Result<Live, Refusal> {
        self.service()?;
        Ok(self.observed().ok_or(Refusal::NotYet)?.live)
    }
}

fn status(status: &Status) -> Value {
    let (word, reason) = match status {
        Status::Starting { reason } => ("starting", Some(reason)),
        Status::Waiting { reason } => ("waiting", Some(reason)),
        Status::Active => ("active", None),
        Status::Draining => ("draining", None),
    };
    json!({"is": word, "reason": reason})
}

/// `GET /v1/now`: in time that depends on what is shown, not on how many shapes there are.
pub(super) async fn now(State(admin): State<Arc<Admin>>, Asked(_): Asked) -> Answer {
    let service = status(&admin.service()?.status());
    let Ok(live) = admin.live() else {
        return Ok(Json(json!({"status": service, "now": Value::Null})));
    };
    let durable = live.durable();
    let view = live.view();
    let behind = durable.0.saturating_sub(view.state.last.0);
    Ok(Json(json!({
        "status": service, "now": answers::now(&view, HOLDERS_MAX), "durable": durable, "behind": behind,
    })))
}

/// `POST /v1/check`: the engine's views against the fold, and its figures against those of the journal's
/// own fold after the same event.
pub(super) async fn check(State(admin): State<Arc<Admin>>) -> Answer {
    let live = admin.live()?;
    let report = admin.service()?.check().await.ok_or(Refusal::Busy)?;
    let mut newest = live.newest();
    let event = report.engine.event;
    let arrived = tokio::time::timeout(ARRIVE_WAIT_MAX, newest.wait_for(|newest| *newest >= event)).await;
    let journal = live.view().figures(event);
    let drifted: Vec<String> = report.drifted.iter().map(|name| format!("{name:?}")).collect();
    let equal = journal.map(|journal| journal == report.engine);
    Ok(Json(json!({
        "shapes": report.shapes, "drifted": drifted, "engine": report.engine, "journal": journal,
        // Not known where the journal is slower than we wait for it, or the event is long gone by.
        "equal": if arrived.is_ok() { equal } else { None },
        "well": drifted.is_empty() && equal != Some(false),
    })))
}

/// `GET /v1/events/live?after=`: server-sent events, each a JSON object with `events` and how many were
/// `missed`. Without `after` it begins with what comes next.
pub(super) async fn events(
    State(admin): State<Arc<Admin>>,
    Asked(question): Asked,
) -> Result<Response<Body>, Refusal> {
    let live = admin.live()?;
    let permit = Arc::clone(&admin.streams).try_acquire_owned().map_err(|_| Refusal::Busy)?;
    let mut newest = live.newest();
    let at = question.after.map_or_else(|| *newest.borrow_and_update(), EventId);
    let tail = Tail { live, newest, at, first: true, _permit: permit };
    let body = Body::from_stream(stream::unfold(tail, Tail::next));
    Ok(respond(StatusCode::OK, "text/event-stream", body))
}

struct Tail {
    live: Live,
    newest: watch::Receiver<EventId>,
    /// Everything up to here was sent, or counted as missed.
    at: EventId,
    first: bool,
    _permit: OwnedSemaphorePermit,
}

impl Tail {
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Tail)> {
        if std::mem::take(&mut self.first) {
            // So that the client knows at once that it is connected.
            return Some((Ok(Bytes::from_static(b": connected\n\n")), self));
        }
        tokio::time::sleep(BATCH_EVERY).await;
        let at = self.at;
        let more = self.newest.wait_for(|newest| *newest > at);
        let waited = tokio::time::timeout(KEEP_ALIVE_AFTER, more).await.map(|more| more.is_ok());
        match waited {
            Ok(true) => {}
            // The follower has ended, and the service with it.
            Ok(false) => return None,
            Err(_) => return Some((Ok(Bytes::from_static(b": still here\n\n")), self)),
        }
        let message = self.batch();
        Some((Ok(Bytes::from(format!("data: {message}\n\n"))), self))
    }

    fn batch(&mut self) -> Value {
        let view = self.live.view();
        let (mut missed, events) = view.recent(self.at);
        let mut told: Vec<_> = events.collect();
        if told.len() > BATCH_MAX {
            missed += (told.len() - BATCH_MAX) as u64;
            told.drain(..told.len() - BATCH_MAX);
        }
        self.at = view.state.last;
        json!({"missed": missed, "events": told.into_iter().map(answers::told).collect::<Vec<_>>()})
    }
}

/// `POST /v1/test-hooks/meddle`: makes a view of the engine wrong.
#[cfg(feature = "test-hooks")]
pub(super) async fn meddle(State(admin): State<Arc<Admin>>) -> Answer {
    admin.service()?.meddle().await;
    Ok(Json(json!({})))
}

/// `POST /v1/test-hooks/park`: takes all turns of heavy questions and a look at the live view, and keeps
/// them until the client goes.
#[cfg(feature = "test-hooks")]
pub(super) async fn park(State(admin): State<Arc<Admin>>) -> Answer {
    let live = admin.live()?;
    let mut turns = Vec::new();
    for _ in 0..super::heavy::HEAVY_MAX {
        turns.push(admin.heavy.turn().await?);
    }
    let (flag, _gone) = super::heavy::flag();
    tokio::task::spawn_blocking(move || {
        let _look = live.view();
        while !flag.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    });
    std::future::pending::<()>().await;
    drop(turns);
    Ok(Json(Value::Null))
}
