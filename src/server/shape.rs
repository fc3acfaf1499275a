//! GET, HEAD and POST `/v1/shape`: find or make the shape, then read its log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use rand::Rng;
use tokio::time::{Instant, timeout};

use crate::domain::{Lsn, Offset, Oid, ShapeDefinition};
use crate::runtime::handle::{LiveShape, Phase, SnapshotProblem, Status};
use crate::runtime::standby::Standing;
use crate::shape_log::{Read, ShapeLogError, ShapeView, SnapshotFollow, SnapshotState};

use super::App;
use super::admission::{Class, Permit};
use super::body::{Rows, is_small, log_body, whole};
use super::cursor::{STEP_MAX, next_cursor};
use super::definition::resolve;
use super::error::Failure;
use super::fields::Fields;
use super::live::{News, set, wait};
use super::params::{Asked, Requested};
use super::post::read_body;
use super::response::{LogHead, matches_etag, respond, up_to_date};
use super::schema::schema_header;
use super::sse::event_stream;
use super::subset::{AskedSubset, SubsetRequest};

/// Told to a client that waited in vain for the end of a move.
const MOVING: &str = "Timeout waiting for rows that move into the shape";

/// Shapes that end while a first request waits for them are replaced this often before the client is
/// told to try again.
const REPLACED_MAX: usize = 3;
/// The text for requests that wait while the service goes away (contract 6.6).
pub(super) const RESTARTING: &str = "Timeout waiting for stack restart";
/// The text while connections that were closed for want of work are not there again.
const WAKING: &str = "Timeout waiting for replication client to be ready";

/// A request to the shape route, authenticated.
#[derive(Debug)]
pub(super) struct Call {
    pub method: Method,
    pub fields: Fields,
    pub if_none_match: Option<String>,
    /// Of a POST.
    pub body: Option<Body>,
}

/// Everything that is known when the log is read.
struct Reading<'a> {
    app: &'a App,
    shape: Arc<LiveShape>,
    asked: Asked,
    method: Method,
    if_none_match: Option<String>,
    /// The `electric-schema` header; not of live answers.
    schema: Option<String>,
}

/// Serves a request to the log of a shape: contract 1.2.
pub(super) async fn get(app: &App, call: Call) -> Result<Response, Failure> {
    let Call { method, mut fields, if_none_match, body } = call;
    let permit = app.admission.enter(class(app, &fields))?;
    if let Some(body) = body {
        let bytes = Box::pin(read_body(body)).await?;
        fields.merge_body(&bytes)?;
    }
    ready(app, |status| !matches!(status, Status::Starting { .. })).await?;
    let asked = Asked::parse(&fields)?;
    let subset = asked.subset.then(|| Box::new(AskedSubset::parse(&fields)));
    drop(fields);
    if let Some(handle) = asked.handle
        && app.service.look_for(handle).await == Standing::Unclear
    {
        return Err(not_now(app));
    }
    if subset.is_none()
        && let Some(shape) = known(app, &asked)
    {
        let permit = app.admission.settle(permit);
        return Reading { app, shape, asked, method, if_none_match, schema: None }.serve(permit).await;
    }
    let definition = resolve(&app.service, &asked.shape, asked.handle, asked.live).await?;
    if let Some(subset) = subset {
        let subset = SubsetRequest::new(&asked, (*subset)?, &definition.relation)?;
        return Box::pin(async move {
            let shape = locate(app, &asked, definition).await?;
            app.service.touch(&shape);
            subset.answer(app, &shape, app.admission.settle(permit)).await
        })
        .await;
    }
    let asked_now = (!asked.live).then(|| definition.clone());
    let shape = Box::pin(locate(app, &asked, definition)).await?;
    if asked.live && asked.handle == Some(shape.handle) {
        app.known.remember(shape.handle, &asked.shape);
    }
    let schema = asked_now.map(|now| current_schema(&shape.definition, &now));
    let permit = app.admission.settle(permit);
    Reading { app, shape, asked, method, if_none_match, schema }.serve(permit).await
}

/// The shape of a live request that asks for it in words that were understood before. Live requests are
/// not compared with the catalog: see [`resolve`].
fn known(app: &App, asked: &Asked) -> Option<Arc<LiveShape>> {
    let handle = asked.handle.filter(|handle| asked.live && app.known.is(*handle, &asked.shape))?;
    app.service.shape(handle).filter(|shape| shape.phase() == Phase::Readable)
}

/// What may change while a shape goes on, such as NOT NULL, is told as it is now; a type only as the
/// rows have it.
fn current_schema(shape: &ShapeDefinition, now: &ShapeDefinition) -> String {
    let types = |definition: &ShapeDefinition| -> Vec<Option<Oid>> {
        let column = |name: &String| definition.relation.column(name).map(|column| column.type_oid);
        definition.columns.iter().map(column).collect()
    };
    schema_header(if types(shape) == types(now) { now } else { shape })
}

fn class(app: &App, fields: &Fields) -> Class {
    let handle = fields.text("handle").and_then(|text| text.parse().ok());
    match handle.and_then(|handle| app.service.shape(handle)) {
        Some(_) => Class::Existing,
        None => Class::Initial,
    }
}

/// Waits for a status that is good enough.
///
/// # Errors
/// [`Failure::NotReady`] with what is waited for.
pub(super) async fn ready(app: &App, enough: impl Fn(&Status) -> bool) -> Result<(), Failure> {
    let mut status = app.service.watch_status();
    if !app.service.is_asleep() && enough(&status.borrow_and_update()) {
        return Ok(());
    }
    let mut closing = app.closing.subscribe();
    let waited = async {
        let enough = async {
            app.service.awake().await;
            status.wait_for(&enough).await.is_ok()
        };
        tokio::select! {
            ready = enough => ready,
            () = set(&mut closing) => false,
        }
    };
    match Box::pin(timeout(app.settings.readiness_timeout, waited)).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Failure::NotReady(match app.service.status() {
            Status::Starting { reason } | Status::Waiting { reason } => reason,
            Status::Active if app.service.is_asleep() => WAKING.to_owned(),
            Status::Active | Status::Draining => RESTARTING.to_owned(),
        })),
    }
}

/// The shape to read from, once its rows may come. A handle that does not belong to the definition is
/// answered with the handle of the shape that does.
async fn locate(app: &App, asked: &Asked, definition: ShapeDefinition) -> Result<Arc<LiveShape>, Failure> {
    let initial = matches!(asked.requested, Requested::Now | Requested::After(Offset::BeforeAll));
    if !initial {
        let named = asked.handle.and_then(|handle| app.service.shape(handle));
        let Some(shape) = named.filter(|shape| shape.definition.same_shape(&definition)) else {
            let successor = find_or_create(app, definition).await?;
            // A shape that could not be read while another instance owned it, and now can.
            if Some(successor.handle) == asked.handle {
                started(app, &successor).await?;
                return Ok(successor);
            }
            return Err(Failure::MustRefetch(Some(successor.handle)));
        };
        started(app, &shape).await?;
        return Ok(shape);
    }
    for _ in 0..REPLACED_MAX {
        let shape = find_or_create(app, definition.clone()).await?;
        match started(app, &shape).await {
            // It ended while we waited: the client asked for whatever shape there is.
            Err(Failure::MustRefetch(_)) if shape.phase() == Phase::Ended => {}
            other => return other.map(|()| shape),
        }
    }
    Err(Failure::NotCreated)
}

async fn find_or_create(app: &App, definition: ShapeDefinition) -> Result<Arc<LiveShape>, Failure> {
    app.service.look_for_definition(&definition).await;
    if let Some(shape) = app.service.find(&definition) {
        return Ok(shape);
    }
    ready(app, |status| *status == Status::Active).await?;
    match app.service.find_or_create(definition).await {
        Ok(shape) => Ok(shape),
        Err(crate::runtime::handle::CreateError::NotActive) => Err(Failure::NotCreated),
    }
}

/// Waits until rows can be read.
async fn started(app: &App, shape: &LiveShape) -> Result<(), Failure> {
    let mut closing = app.closing.subscribe();
    let waited = async {
        tokio::select! {
            phase = shape.started() => Ok(phase),
            () = set(&mut closing) => Err(Failure::NotReady(RESTARTING.to_owned())),
        }
    };
    let phase = match shape.phase() {
        Phase::Opening => {
            timeout(app.settings.snapshot_start_timeout, waited).await.unwrap_or(Err(Failure::NotCreated))?
        }
        phase => phase,
    };
    match phase {
        Phase::Opening | Phase::Readable => Ok(()),
        Phase::Failed(_) | Phase::Ended => Err(over(app, shape)),
    }
}

/// What a client is told that cannot be served before something changes.
fn not_now(app: &App) -> Failure {
    Failure::NotReady(match app.service.status() {
        Status::Starting { reason } | Status::Waiting { reason } => reason,
        Status::Active => "Timeout waiting for shape data to be loaded".to_owned(),
        Status::Draining => RESTARTING.to_owned(),
    })
}

/// What a client is told about a shape that failed or ended.
pub(super) fn over(app: &App, shape: &LiveShape) -> Failure {
    let successor = || {
        let next = app.service.find(&shape.definition)?;
        (next.handle != shape.handle).then_some(next.handle)
    };
    match shape.phase() {
        Phase::Failed(SnapshotProblem::Known(cause)) => Failure::SnapshotKnown(cause),
        Phase::Failed(SnapshotProblem::Unexpected(cause)) => Failure::SnapshotUnexpected(cause),
        Phase::Failed(SnapshotProblem::MustRefetch) | Phase::Ended => Failure::MustRefetch(successor()),
        // The rows failed, and nobody said why.
        Phase::Opening | Phase::Readable => Failure::NotCreated,
    }
}

impl Reading<'_> {
    async fn serve(self, permit: Permit) -> Result<Response, Failure> {
        let begun = Instant::now();
        self.app.service.touch(&self.shape);
        let mut closing = self.app.closing.subscribe();
        self.refresh().await?;
        let from = match self.asked.requested {
            Requested::Now => return self.answer_now(permit),
            Requested::After(from) => from,
        };
        let deadline = begun + self.app.settings.long_poll_timeout;
        let released = |view: &ShapeView| !view.is_held_back();
        loop {
            let (mark, view) = self.look();
            // A live client would not be told before its next turn that it is up to date.
            let hold = view.is_held_back() && Instant::now() < deadline && !*self.app.closing.borrow();
            if hold && self.asked.live && !self.asked.sse {
                drop(view);
                if wait(&self.shape, &mut closing, deadline, released).await == News::Over {
                    return Err(over(self.app, &self.shape));
                }
                continue;
            }
            if self.asked.live
                && !self.asked.sse
                && let Some(rows) = self.shape.reader.recent(from, &view)
            {
                let last = Some(up_to_date(self.seen(mark, view.last())));
                return self.answer(view.last(), last, Rows::Whole(rows), permit);
            }
            let news = match view.read(from) {
                Ok(Read::Range(range)) if self.asked.sse => {
                    return Ok(self.answer_events(from, range.end == from, permit));
                }
                Ok(Read::Pending { chunk }) if self.asked.sse && view.snapshot_started(chunk) => {
                    return Ok(self.answer_events(from, false, permit));
                }
                Ok(Read::Range(range)) if self.asked.live && range.end == from => {
                    if view.is_held_back() {
                        return Err(Failure::NotReady(MOVING.to_owned()));
                    }
                    let expired = Instant::now() >= deadline || *self.app.closing.borrow();
                    if expired {
                        return self.answer_no_news(from, mark.max(from.tx()), permit);
                    }
                    drop(view);
                    match wait(&self.shape, &mut closing, deadline, |view| view.last() > from).await {
                        // One more look, which the answer is then about.
                        News::Closing | News::TimedOut => {
                            self.refresh().await?;
                            News::Changed
                        }
                        news => news,
                    }
                }
                // No news, and none may be told as the state of anything: contract 1.16.
                Ok(Read::Range(range)) if view.is_held_back() && range.end == from => {
                    drop(view);
                    match wait(&self.shape, &mut closing, deadline, released).await {
                        News::TimedOut => return Err(Failure::NotReady(MOVING.to_owned())),
                        news => news,
                    }
                }
                Ok(Read::Range(range)) => {
                    let last = range.up_to_date.then(|| up_to_date(self.seen(mark, range.end)));
                    if self.asked.live && range.up_to_date && is_small(&range.body) {
                        // The others want the same rows now.
                        let rows = Box::pin(whole(range.body)).await;
                        let rows = rows.map_err(|error| Failure::LogUnreadable(error.to_string()))?;
                        self.shape.reader.remember(from, range.end, &rows);
                        return self.answer(range.end, last, Rows::Whole(rows), permit);
                    }
                    return self.answer(range.end, last, Rows::Range(range.body), permit);
                }
                Ok(Read::Pending { chunk }) if view.snapshot_started(chunk) => {
                    let rows = SnapshotFollow::new(Arc::clone(&self.shape.reader), chunk);
                    return self.answer(Offset::snapshot_chunk(chunk), None, Rows::Follow(rows), permit);
                }
                Ok(Read::Pending { chunk }) => {
                    let deadline = begun + self.app.settings.snapshot_start_timeout;
                    wait(&self.shape, &mut closing, deadline, |view| view.snapshot_started(chunk)).await
                }
                Ok(Read::Beyond) => {
                    let active = || self.app.service.status() == Status::Active;
                    let active_before = active();
                    let deadline = begun + self.app.settings.long_poll_timeout / 2;
                    let news = wait(&self.shape, &mut closing, deadline, |view| view.last() >= from).await;
                    if news == News::TimedOut {
                        return Err(self.beyond(active_before && active()));
                    }
                    news
                }
                Err(ShapeLogError::SnapshotFailed) => {
                    // The rows ended a moment before the cause is known.
                    let deadline = begun + self.app.settings.snapshot_start_timeout;
                    let retaken = |view: &ShapeView| view.snapshot_state() != SnapshotState::Failed;
                    wait(&self.shape, &mut closing, deadline, retaken).await
                }
                Err(error) => {
                    self.refresh().await?;
                    if matches!(self.shape.phase(), Phase::Failed(_) | Phase::Ended) {
                        return Err(over(self.app, &self.shape));
                    }
                    if self.shape.is_followed() {
                        return Err(not_now(self.app));
                    }
                    self.shape.unreadable(&error);
                    tracing::error!(shape_handle = %self.shape.handle, %error, "a shape log cannot be read");
                    return Err(Failure::LogUnreadable(error.to_string()));
                }
            };
            match news {
                News::Changed => {}
                News::Over => return Err(over(self.app, &self.shape)),
                News::Closing => return Err(Failure::NotReady(RESTARTING.to_owned())),
                News::TimedOut => return Err(Failure::NotCreated),
            }
        }
    }

    /// How much of the stream an answer is about that goes to the end of the log. Live ones that bring rows have the
    /// same bytes for everybody, so they say where the rows stand. With inner queries rows may stand before
    /// what clients have been told already: what moves in follows the last transaction of the log.
    fn seen(&self, mark: Lsn, end: Offset) -> Lsn {
        let same_for_all = self.asked.live && self.shape.definition.dependencies.is_empty();
        if same_for_all { end.tx() } else { mark.max(end.tx()) }
    }

    /// The shape as it is, and how much of the stream that is about.
    fn look(&self) -> (Lsn, Arc<ShapeView>) {
        self.shape.look()
    }

    /// What a client is told that has waited for a log to get as far as it has read. Without Postgres
    /// nobody can say that it never will: what was read just before a crash may be brought again.
    fn beyond(&self, could_come: bool) -> Failure {
        if could_come {
            return Failure::field("offset", "out of bounds for this shape");
        }
        not_now(self.app)
    }

    /// Makes sure that the answer is as new as the files are, where another process writes them.
    async fn refresh(&self) -> Result<(), Failure> {
        if !self.shape.is_followed() {
            return Ok(());
        }
        // Which rows are about to move in such a shape is known to its owner alone.
        if !self.shape.definition.dependencies.is_empty() {
            return Err(not_now(self.app));
        }
        if let Err(error) = self.shape.refresh().await {
            tracing::debug!(handle = %self.shape.handle, %error, "the log of another instance cannot be read now");
            return Err(not_now(self.app));
        }
        if !self.shape.is_over() {
            return Ok(());
        }
        self.app.service.look_for_definition(&self.shape.definition).await;
        Err(over(self.app, &self.shape))
    }

    /// Rows. `last` ends a body that reaches the end of the log.
    fn answer(
        &self,
        end: Offset,
        last: Option<String>,
        rows: Rows,
        permit: Permit,
    ) -> Result<Response, Failure> {
        let head = self.head(end, last.is_some());
        let not_modified = !self.asked.live
            && self.if_none_match.as_deref().is_some_and(|tags| matches_etag(tags, &head.etag()));
        if not_modified {
            let headers = LogHead { schema: None, ..head }.headers(&self.method, &self.app.settings);
            return Ok(respond(StatusCode::NOT_MODIFIED, headers, Body::empty()));
        }
        let body = log_body(&self.shape, rows, last, permit)?;
        Ok(respond(StatusCode::OK, head.headers(&self.method, &self.app.settings), body))
    }

    /// A stream of what comes after `from`.
    fn answer_events(&self, from: Offset, at_end: bool, permit: Permit) -> Response {
        let head = LogHead { stream: true, ..self.head(from, at_end) };
        let closing = self.app.closing.subscribe();
        let body = event_stream(Arc::clone(&self.shape), closing, from, permit);
        respond(StatusCode::OK, head.headers(&self.method, &self.app.settings), body)
    }

    /// `offset=now`: no rows, the place where the log ends.
    fn answer_now(&self, permit: Permit) -> Result<Response, Failure> {
        let (mark, view) = self.look();
        let end = view.last();
        self.answer_no_news(end, mark.max(end.tx()), permit)
    }

    /// No rows, and none up to `seen`.
    fn answer_no_news(&self, end: Offset, seen: Lsn, permit: Permit) -> Result<Response, Failure> {
        let unique = Some(self.app.unique.fetch_add(1, Ordering::Relaxed));
        let head = LogHead { has_data: false, unique, ..self.head(end, true) };
        drop(permit);
        let body = Body::from(format!("[{}]", up_to_date(seen)));
        Ok(respond(StatusCode::OK, head.headers(&self.method, &self.app.settings), body))
    }

    fn head(&self, end: Offset, up_to_date: bool) -> LogHead {
        let live = self.asked.live;
        LogHead {
            handle: self.shape.handle,
            requested: self.asked.requested,
            end,
            up_to_date,
            has_data: true,
            schema: self.schema.clone(),
            cursor: live.then(|| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                let step = rand::rng().random_range(1..=STEP_MAX);
                let previous = self.asked.cursor.as_deref();
                next_cursor(now.as_secs(), self.app.settings.long_poll_timeout, previous, step)
            }),
            unique: None,
            stream: false,
        }
    }
}
