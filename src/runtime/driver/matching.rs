//! Transactions on their way through the router, and the pause where Postgres has to say something
//! about their rows.
//!
//! While it does, no batch of the stream is read and no shape is made: the transaction is matched against
//! the shapes that there were when it came. Everything else goes on. What the queue of the stream does not
//! take, Postgres keeps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::mpsc;

use super::{Driver, observe};
use crate::domain::Generation;
use crate::engine::{Commit, Input, Refusal};
use crate::events::{Event, InvalidationCause, StopCause, StreamEvent};
use crate::filter::{Question, Verdicts};
use crate::replication::{ReplicationError, StreamItem, Transaction};
use crate::runtime::clock;
use crate::runtime::evaluation::Answers;
use crate::runtime::handle::{REQUESTS_MAX, Request};
use crate::runtime::router::{Matching, Routing};
use crate::state::{OwnerPhase, StreamPhase};

/// Verdicts that are kept while a transaction is matched; above, they are forgotten as soon as they have
/// served.
const VERDICTS_MAX: usize = 65_536;

/// What is left of a batch, and the transaction at hand.
#[derive(Debug)]
pub(super) struct Held {
    generation: Generation,
    items: VecDeque<StreamItem>,
    current: Option<Current>,
    verdicts: Verdicts,
    /// Requests for shapes that wait for the transaction at hand: at most [`REQUESTS_MAX`].
    requests: VecDeque<Request>,
    /// At most one answer is on its way.
    tell: mpsc::Sender<Option<Answers>>,
    answers: mpsc::Receiver<Option<Answers>>,
}

/// A transaction that waits for Postgres.
#[derive(Debug)]
struct Current {
    matching: Matching,
    /// How far it was when verdicts were last forgotten.
    forgotten_at: u32,
    asked: Instant,
}

impl Held {
    pub(super) fn new() -> Held {
        let (tell, answers) = mpsc::channel(1);
        Held {
            generation: Generation::default(),
            items: VecDeque::new(),
            current: None,
            verdicts: Verdicts::new(),
            requests: VecDeque::new(),
            tell,
            answers,
        }
    }

    /// Whether a transaction waits for Postgres.
    pub(super) fn is_waiting(&self) -> bool {
        self.current.is_some()
    }

    pub(super) fn takes_requests(&self) -> bool {
        self.requests.len() < REQUESTS_MAX
    }

    pub(super) fn defer(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    /// What Postgres said, None inside where it could not be asked; waits for ever where nothing is.
    pub(super) async fn answered(&mut self) -> Option<Option<Answers>> {
        self.answers.recv().await
    }
}

impl Driver {
    /// Takes a batch of the stream: all of it, or up to a transaction that needs Postgres.
    pub(super) fn items(&mut self, generation: Generation, items: Vec<StreamItem>) {
        self.held.generation = generation;
        self.held.items.extend(items);
        self.go_on();
    }

    fn go_on(&mut self) {
        while let Some(item) = self.held.items.pop_front() {
            // Between two transactions: under load there is always one that waits.
            self.take_deferred();
            let generation = self.held.generation;
            match item {
                StreamItem::Transaction(txn) => {
                    let matching = self.executor.router.begin(txn);
                    self.held.current = Some(Current { matching, forgotten_at: 0, asked: Instant::now() });
                    self.match_on();
                    if self.held.is_waiting() {
                        return;
                    }
                }
                StreamItem::Relation(relation) => self.relation(&relation),
                StreamItem::Keepalive { wal_end, .. } => {
                    self.executor.router.subqueries.reach(wal_end);
                    self.input(Input::Keepalive { generation, wal_end });
                }
            }
        }
    }

    /// Matches the transaction at hand on, to its end or until Postgres has to be asked.
    fn match_on(&mut self) {
        let Some(mut current) = self.held.current.take() else { return };
        match self.executor.router.proceed(&mut current.matching, &self.held.verdicts) {
            Ok(true) => {
                self.held.verdicts.clear();
                self.matched(current.matching);
            }
            Ok(false) => {
                let questions = self.held.verdicts.take_questions();
                let position = current.matching.position();
                if self.held.verdicts.len() > VERDICTS_MAX && position > current.forgotten_at {
                    self.held.verdicts.clear();
                    current.forgotten_at = position;
                }
                self.ask(questions);
                current.asked = Instant::now();
                self.held.current = Some(current);
            }
            Err(error) => self.unreadable(&error),
        }
    }

    fn ask(&mut self, questions: Vec<Question>) {
        let (evaluation, tell) = (self.executor.service.evaluation().clone(), self.held.tell.clone());
        self.executor.runtime.spawn(async move {
            let answers = evaluation.answer(&questions).await;
            // The driver has ended: the transaction comes again.
            let _closed = tell.send(answers).await;
        });
    }

    /// Goes on where Postgres was asked. Where that was in vain the stream is started again, at what was
    /// acknowledged: everything that is held here comes with it.
    pub(super) fn answers(&mut self, answers: Option<Answers>) {
        let Some(answers) = answers else {
            self.held.current = None;
            self.held.items.clear();
            self.held.verdicts.clear();
            let generation = self.held.generation;
            self.input(Input::StreamStopped { generation, cause: StopCause::Connection });
            self.take_deferred();
            return;
        };
        if let Some(current) = &self.held.current {
            let waited = u64::try_from(current.asked.elapsed().as_micros()).unwrap_or(u64::MAX);
            let counters = self.executor.service.evaluation().counters();
            counters.waited_us.fetch_add(waited, Ordering::Relaxed);
        }
        for (part, values, verdict) in answers.verdicts {
            self.held.verdicts.learn(&part, values, verdict);
        }
        for part in answers.broken {
            for sid in self.executor.router.delegating(&part) {
                tracing::warn!(%sid, "Postgres does not take the where clause of a shape any more");
                self.input(Input::Invalidate { sid, cause: InvalidationCause::SchemaChanged });
                // Whatever came of it: what cannot be matched is not matched.
                self.executor.unroute(sid);
            }
        }
        self.match_on();
        if !self.held.is_waiting() {
            self.go_on();
        }
        self.take_deferred();
    }

    fn take_deferred(&mut self) {
        while !self.held.is_waiting()
            && let Some(request) = self.held.requests.pop_front()
        {
            self.request(request);
        }
    }

    fn unreadable(&mut self, error: &ReplicationError) {
        tracing::error!(%error, "a transaction could not be read back; the stream is started again");
        self.held.verdicts.clear();
        let generation = self.held.generation;
        self.input(Input::StreamStopped { generation, cause: StopCause::Spill });
    }

    /// What the shapes with inner queries want is decided last, and once: a transaction of a stream that
    /// has been ended comes again, and is decided then.
    fn matched(&mut self, matching: Matching) {
        let generation = self.held.generation;
        let state = self.core.engine().state();
        let streaming = state.stream.generation == generation && state.stream.phase == StreamPhase::Streaming;
        if !streaming || state.owner.phase != OwnerPhase::Active {
            return;
        }
        match self.executor.router.finish(matching) {
            Ok(routing) => self.transaction(generation, routing),
            Err(error) => self.unreadable(&error),
        }
    }

    fn transaction(&mut self, generation: Generation, routing: Routing) {
        let txn: &Transaction = &routing.routed.txn;
        observe::received(&self.executor.service, txn);
        let partitions = self.executor.router.partitions();
        let commit = Commit {
            generation,
            lsn: txn.lsn,
            xid: txn.xid,
            committed_at: txn.committed_at,
            changes: txn.changes,
            bytes: txn.bytes,
            set: routing.set,
            tables: partitions.with_above(&txn.relations),
            truncated: partitions.with_above(&txn.truncated),
            old_row_missing: partitions.with_above(&routing.old_row_missing),
        };
        match self.core.input(clock::now(), Input::Commit(commit)) {
            Ok(persist) => {
                // The body is in place before the delivery that refers to it is performed.
                let body = Arc::new(routing.routed);
                let mut noted = None;
                for recorded in &persist.events {
                    if let Event::Stream(
                        StreamEvent::TxnRouted { seq, set, .. } | StreamEvent::TxnRedelivered { seq, set, .. },
                    ) = &recorded.event
                        // On a new connection: what it was decided to be is still here.
                        && self.executor.bodies.get(*seq).is_none()
                    {
                        self.executor.bodies.insert(*seq, Arc::clone(&body));
                        noted = Some((*seq, set.clone()));
                    }
                }
                self.follow(persist);
                if let Some((seq, set)) = noted {
                    self.executor.router.subqueries.note(seq, &body, &set);
                }
            }
            // The rest of a batch of a stream that has been ended.
            Err(refusal @ (Refusal::StaleGeneration | Refusal::NotActive)) => {
                tracing::debug!(%refusal, "a transaction was not taken");
            }
            Err(refusal) => tracing::error!(%refusal, "a transaction was refused"),
        }
    }
}
