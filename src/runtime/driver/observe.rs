//! What the driver tells about itself, and the limit of shapes. Numbers are published now and then and
//! read by others: nobody who asks holds up the loop.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::Driver;
use crate::domain::Sid;
use crate::engine::Input;
use crate::events::{Event, InvalidationCause, Recorded, ShapeEvent};
use crate::replication::Transaction;
use crate::runtime::clock;
use crate::runtime::handle::{REQUESTS_MAX, Service, Status};
use crate::runtime::progress::{DriverView, HOLDERS_MAX, Holder};
use crate::runtime::settings::{
    HELD_BYTES_MAX, INPUTS_MAX, Operation, QUEUED_DELIVERIES_MAX, STREAM_BATCHES_MAX,
};
use crate::state::{Life, Writer};
use crate::telemetry::{Metrics, Sampling, SpanKind, Value};

/// How often numbers are published that cost the same however many shapes there are.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);
/// How often shapes are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// When what was done last.
#[derive(Debug)]
pub(super) struct Observer {
    operation: Operation,
    published: Option<Instant>,
    counted: Option<Instant>,
    expired: Instant,
}

impl Observer {
    pub(super) fn new(operation: Operation) -> Observer {
        Observer { operation, published: None, counted: None, expired: Instant::now() }
    }
}

fn due(last: Option<Instant>, now: Instant, interval: Duration) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= interval)
}

impl Driver {
    /// What is due: publishing, counting, the limit of shapes.
    pub(super) fn observe(&mut self, now: Instant) {
        if due(self.observer.published, now, PUBLISH_INTERVAL) {
            self.observer.published = Some(now);
            self.publish(now);
        }
        if due(self.observer.counted, now, COUNT_INTERVAL) {
            self.observer.counted = Some(now);
            self.count();
        }
        if now.duration_since(self.observer.expired) >= self.observer.operation.expiry_interval {
            self.observer.expired = now;
            self.expire();
        }
    }

    fn publish(&self, now: Instant) {
        let engine = self.core.engine();
        let (state, tracker) = (engine.state(), &engine.projections().flush_tracker);
        let mut holders = tracker.blockers().filter_map(|(seq, sid)| {
            let shape = state.shape(sid)?;
            let lsn = state.window.get(seq)?.lsn;
            let waiting = clock::now().since(shape.progressed_at);
            Some(Holder { handle: shape.handle, lsn, waiting })
        });
        let (holder, next_holders) = (holders.next(), holders.take(HOLDERS_MAX).collect());
        let exhausted = state.owner.budget.exhausted.map(|(_, since)| clock::now().since(since));
        let view = DriverView {
            boundary: state.stream.acked.max(state.stream.confirmed),
            owing: tracker.pending_shapes(),
            held_bytes: self.executor.bodies.bytes(),
            holder,
            next_holders,
            exhausted,
        };
        let metrics = self.executor.service.metrics();
        metrics.held_bytes.set(int(view.held_bytes));
        metrics.shapes_owing.set(int(view.owing as u64));
        metrics.give_up_exhausted.set(i64::from(view.exhausted.is_some()));
        let waiting = view.holder.as_ref().map_or(Duration::ZERO, |holder| holder.waiting);
        metrics.oldest_pending_seconds.set(waiting.as_secs_f64());
        metrics.journal_last.set(int(state.last.0));
        metrics.journal_durable.set(int(self.core.durable_upto().0));
        metrics.writers.set(int(engine.projections().registry.len() as u64));
        let depth = |queue: &str, depth: usize, limit: usize| {
            metrics.queue_depth.with_label_values(&[queue]).set(int(depth as u64));
            metrics.queue_limit.with_label_values(&[queue]).set(int(limit as u64));
        };
        depth("inputs", self.queues.messages.len(), INPUTS_MAX);
        depth("requests", self.queues.requests.len(), REQUESTS_MAX);
        depth("stream_batches", self.queues.batches.len(), STREAM_BATCHES_MAX);
        depth("deliveries", self.executor.writers.queued(), QUEUED_DELIVERIES_MAX);
        let held = usize::try_from(view.held_bytes).unwrap_or(usize::MAX);
        depth("held_bytes", held, HELD_BYTES_MAX);
        self.executor.service.progress().publish(now, view);
        if let Some(report) = self.executor.service.progress().report(now) {
            let still = if report.owing > 0 { report.still_for } else { Duration::ZERO };
            metrics.boundary_age_seconds.set(still.as_secs_f64());
        }
    }

    fn count(&self) {
        let state = self.core.engine().state();
        let (mut opening, mut snapshotting, mut live, mut ended, mut active) = (0, 0, 0, 0, 0);
        for shape in state.shapes.values() {
            match shape.life {
                Life::Registered => opening += 1,
                Life::Snapshotting => snapshotting += 1,
                Life::Live => live += 1,
                Life::Invalidated => ended += 1,
            }
            active += i64::from(shape.writer != Writer::Absent);
        }
        let metrics = self.executor.service.metrics();
        for (phase, count) in
            [("opening", opening), ("snapshotting", snapshotting), ("live", live), ("ended", ended)]
        {
            metrics.shapes.with_label_values(&[phase]).set(count);
        }
        metrics.shapes_total.set(int(self.executor.service.shapes_count() as u64));
        metrics.shapes_active.set(active);
    }

    /// Ends the shapes above the limit that nobody has asked for longest (contract 6.5). Only while all
    /// is well: a client whose shape is ended has to be able to get another.
    fn expire(&mut self) {
        let Some(max) = self.observer.operation.shapes_max else { return };
        if self.executor.service.status() != Status::Active {
            return;
        }
        let mut used: Vec<(u64, Sid)> = self
            .executor
            .shapes
            .values()
            .filter(|shape| !shape.is_over())
            .map(|shape| (shape.last_used.load(Ordering::Relaxed), shape.sid))
            .collect();
        let above = used.len().saturating_sub(max);
        if above == 0 {
            return;
        }
        // Equally old ones by their age, so that the outcome does not depend on anything else.
        used.sort_unstable();
        tracing::info!(shapes = used.len(), max, "more shapes than may be: those used least recently end");
        for (_, sid) in used.into_iter().take(above) {
            self.input(Input::Invalidate { sid, cause: InvalidationCause::Expired });
        }
    }
}

/// Counts what has happened.
pub(super) fn note(metrics: &Metrics, recorded: &Recorded) {
    if let Event::Shape(ShapeEvent::Invalidated { cause, .. }) = &recorded.event {
        metrics.invalidations.with_label_values(&[cause_name(*cause)]).inc();
    }
    if let Event::Shape(ShapeEvent::Compacted { before, after, .. }) = &recorded.event {
        metrics.compactions.inc();
        metrics.compacted_bytes.inc_by(before.saturating_sub(*after));
    }
}

/// Counts a transaction that came from Postgres.
pub(super) fn received(service: &Service, txn: &Transaction) {
    let lag = clock::now().since(txn.committed_at);
    let metrics = service.metrics();
    metrics.receive_lag_millis.observe(lag.as_secs_f64() * 1_000.0);
    metrics.transactions.inc();
    metrics.transaction_changes.inc_by(txn.changes);
    metrics.transaction_bytes.inc_by(txn.bytes);
    let span = service.tracer().begin("pg_txn.received", SpanKind::Consumer, Sampling::Ratio, None);
    if let Some(mut span) = span {
        let number = |number: u64| Value::Int(int(number));
        span.begun(SystemTime::now() - lag);
        span.set("num_changes", number(txn.changes));
        span.set("bytes", number(txn.bytes));
        span.set("xid", number(u64::from(txn.xid.0)));
        span.end(false);
    }
}

fn cause_name(cause: InvalidationCause) -> &'static str {
    match cause {
        InvalidationCause::Deleted => "deleted",
        InvalidationCause::SchemaChanged => "schema_changed",
        InvalidationCause::Truncated => "truncated",
        InvalidationCause::SnapshotFailed => "snapshot_failed",
        InvalidationCause::SnapshotInterrupted => "snapshot_interrupted",
        InvalidationCause::WriterFailed { .. } => "writer_failed",
        InvalidationCause::Stalled => "stalled",
        InvalidationCause::HistoryBroken => "history_broken",
        InvalidationCause::DataMissed => "data_missed",
        InvalidationCause::Backlog => "backlog",
        InvalidationCause::OldRowMissing => "old_row_missing",
        InvalidationCause::JournalLost => "journal_lost",
        InvalidationCause::StorageDamaged => "storage_damaged",
        InvalidationCause::PartitionsChanged => "partitions_changed",
        InvalidationCause::Unpublished => "unpublished",
        InvalidationCause::Expired => "expired",
        InvalidationCause::DependencyGone => "dependency_gone",
        InvalidationCause::NotNeeded => "not_needed",
        InvalidationCause::MoveBacklog => "move_backlog",
        InvalidationCause::MoveFailed => "move_failed",
    }
}

/// Metrics are signed.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
