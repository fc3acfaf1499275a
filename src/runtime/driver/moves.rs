//! What the driver does for shapes with inner queries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::{Lsn, Sid};
use crate::engine::Input;
use crate::events::{Event, InvalidationCause, Recorded, ShapeEvent, StreamEvent};
use crate::postgres::PgError;
use crate::runtime::clock;
use crate::runtime::driver::{Driver, Message};
use crate::runtime::executor::HandOut;
use crate::runtime::subquery::{AGAIN_AFTER, Action, fetch};

/// How long the stream may stay behind a snapshot before it is helped on.
const NUDGE_AFTER: Duration = Duration::from_millis(200);

impl Driver {
    /// Lets the router follow what has happened to a shape.
    pub(super) fn follow_shape(&mut self, recorded: &Recorded) {
        let event = match &recorded.event {
            Event::Shape(event) => event,
            // Positions above these are given anew.
            Event::Stream(StreamEvent::HistoryBroken { .. }) => {
                return self.executor.router.subqueries.rewind(Lsn(0));
            }
            Event::Stream(StreamEvent::TimelineFollowed { fork, .. }) => {
                return self.executor.router.subqueries.rewind(*fork);
            }
            _ => return,
        };
        match event {
            ShapeEvent::Routed { sid, .. } => self.executor.router.subqueries.begin(*sid),
            ShapeEvent::Unrouted { sid } => {
                self.state.given.remove(sid);
                self.executor.unroute(*sid);
            }
            ShapeEvent::SnapshotVisible { sid, snapshot, lsn } => {
                let subqueries = &mut self.executor.router.subqueries;
                subqueries.visible(*sid, snapshot, *lsn);
                if let Some(given) = self.state.given.remove(sid) {
                    subqueries.opened(*sid, *lsn, &given);
                }
            }
            ShapeEvent::Created { .. }
            | ShapeEvent::Depends { .. }
            | ShapeEvent::PublicationReady { .. }
            | ShapeEvent::SnapshotStarted { .. }
            | ShapeEvent::SnapshotCompleted { .. }
            | ShapeEvent::SnapshotFailed { .. }
            | ShapeEvent::Compacted { .. }
            | ShapeEvent::Invalidated { .. }
            | ShapeEvent::StepDone { .. }
            | ShapeEvent::Gone { .. } => {}
        }
    }

    /// What is durable in the log of a shape may have been what its readers wait for.
    pub(super) fn follow_flush(&mut self, sid: Sid) {
        let flushed = self.core.engine().state().shape(sid).map(|shape| shape.flushed);
        if let Some(upto) = flushed {
            self.executor.router.subqueries.flushed(sid, upto);
        }
    }

    /// Does what the moves of shapes need. Whatever was decided before has been performed where the core
    /// is settled; only then are transactions handed out, so that none overtakes another.
    pub(super) fn follow_moves(&mut self) {
        for action in self.executor.router.subqueries.take_actions() {
            match action {
                Action::Query { sid, id, condition, again } => {
                    self.executor.router.subqueries.asked(sid, clock::now());
                    self.ask_rows(sid, id, condition, again);
                }
                Action::Run { sid, run, owes_from } => {
                    let shape = self.core.engine().state().shape(sid);
                    // A writer that is yet to start finds them among what the shape owes.
                    if let Some(incarnation) = shape.and_then(|shape| shape.writer.incarnation()) {
                        let hand_out = HandOut { incarnation, run, owes_from };
                        self.executor.runs.entry(sid).or_default().push(hand_out);
                    }
                }
                Action::HoldBack { sid, held_back } => {
                    if let Some(shape) = self.executor.shapes.get(&sid) {
                        shape.reader.hold_back(held_back);
                    }
                }
                Action::End { sid, cause } => self.input(Input::Invalidate { sid, cause }),
                Action::Ask => self.executor.acknowledgements.ask(),
            }
        }
        if self.core.is_settled() {
            let sids: Vec<Sid> = self.executor.runs.keys().copied().collect();
            sids.into_iter().for_each(|sid| self.executor.hand_out(sid, None));
        }
    }

    fn ask_rows(&self, sid: Sid, id: u64, condition: Option<String>, again: bool) {
        let Some(shape) = self.executor.shapes.get(&sid) else { return };
        let Some(tagger) = shape.tagger.clone() else { return };
        let (context, definition) = (Arc::clone(&self.executor.context), Arc::clone(&shape.definition));
        let service = self.executor.service.clone();
        self.executor.runtime.spawn(async move {
            if again {
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            let moved = fetch(&context.query, &definition, &tagger, condition.as_deref()).await;
            if let Some(moved) = &moved {
                service.progress().note_query(moved.lsn);
            }
            let _closed = context.driver.send(Message::Moved { sid, id, moved }).await;
        });
    }

    /// Asks Postgres where it is, where a shape waits for that and nothing more may come by itself.
    pub(super) fn ask_position(&mut self) {
        if !self.executor.router.subqueries.waits_for_stream() {
            self.state.nudged = Instant::now();
            return;
        }
        self.executor.acknowledgements.ask();
        if self.state.nudged.elapsed() >= NUDGE_AFTER {
            self.state.nudged = Instant::now();
            self.nudge();
        }
    }

    /// The insert position of a snapshot may lie behind log that nobody has any reason to flush, such as
    /// the end of a transaction that was rolled back. A commit has it flushed, and then sent.
    fn nudge(&self) {
        let context = Arc::clone(&self.executor.context);
        self.executor.runtime.spawn(async move {
            let Ok(loan) = context.query.get().await else { return };
            match loan.client().batch_execute("SELECT txid_current()").await {
                Ok(()) => loan.give_back(),
                Err(error) => {
                    let error = PgError::from(error);
                    tracing::warn!(%error, "the log of Postgres could not be moved on");
                }
            }
        });
    }

    /// Where too much is held and the oldest of it is for a shape that rows move into, ends that shape.
    pub(super) fn relieve_moves(&mut self) {
        let engine = self.core.engine();
        let oldest = engine.projections().flush_tracker.blockers().next().map(|(_, sid)| sid);
        if let Some(sid) = oldest.filter(|sid| self.executor.router.subqueries.is_moving(*sid)) {
            self.input(Input::Invalidate { sid, cause: InvalidationCause::MoveBacklog });
        }
    }
}
