//! The fold of stream events.

use serde::{Deserialize, Serialize};

use crate::domain::{Generation, Lsn, Oid, Seq};
use crate::events::{Recorded, StreamEvent};
use crate::state::{State, Txn, Window};

/// The replication stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stream {
    pub phase: StreamPhase,
    /// Of the newest connection.
    pub generation: Generation,
    pub lock_held: bool,
    pub system_id: Option<u64>,
    pub timeline: u32,
    pub database: Oid,
    /// The slot's `confirmed_flush_lsn` as last observed: the stream starts there.
    pub confirmed: Lsn,
    /// The newest commit whose fan-out is known; commits at or below it come a second time only.
    pub routed: Lsn,
    /// The newest commit seen in the present generation, redelivered ones included.
    pub received: Lsn,
    /// Number of the newest routed transaction.
    pub last_seq: Seq,
    /// What Postgres was last told: it keeps everything from here on.
    pub acked: Lsn,
    #[serde(default, skip_serializing_if = "Queried::is_nothing")]
    pub queried: Queried,
}

/// What was read of the database beside the stream, but for the initial rows of shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queried {
    /// It is from before this.
    pub upto: Lsn,
    /// The process before this one was killed, and may have read more than it had recorded.
    pub and_more: bool,
}

impl Queried {
    fn is_nothing(&self) -> bool {
        *self == Queried::default()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamPhase {
    #[default]
    Disconnected,
    Streaming,
}

impl State {
    pub(super) fn apply_stream(&mut self, recorded: &Recorded, event: &StreamEvent) {
        let stream = &mut self.stream;
        match event {
            StreamEvent::Identified { system_id, timeline, database, .. } => {
                stream.system_id = Some(*system_id);
                stream.timeline = *timeline;
                stream.database = *database;
            }
            StreamEvent::LockAcquired { generation, .. } => {
                stream.lock_held = true;
                stream.generation = *generation;
            }
            StreamEvent::LockLost { .. } => stream.lock_held = false,
            StreamEvent::SlotObserved { confirmed, .. } => stream.confirmed = *confirmed,
            StreamEvent::HistoryBroken { .. } => self.break_history(),
            // What was told to the old server beyond the fork was of a log that is no more.
            StreamEvent::TimelineFollowed { fork, .. } => stream.acked = stream.acked.min(*fork),
            StreamEvent::Queried { upto } => {
                stream.queried = Queried { upto: stream.queried.upto.max(*upto), and_more: false };
            }
            StreamEvent::Started { generation, .. } => {
                stream.generation = *generation;
                stream.phase = StreamPhase::Streaming;
                stream.received = Lsn(0);
            }
            StreamEvent::Stopped { .. } => stream.phase = StreamPhase::Disconnected,
            StreamEvent::RelationChanged { oid, new, .. } => {
                self.relations.insert(*oid, *new);
            }
            StreamEvent::TxnRouted { seq, lsn, xid, set, .. } => {
                if stream.routed > Lsn(0) {
                    self.window.passed(Lsn(stream.routed.0.saturating_add(1)));
                }
                stream.routed = stream.routed.max(*lsn);
                stream.received = stream.received.max(*lsn);
                stream.last_seq = *seq;
                self.owe(recorded, *seq, Txn { lsn: *lsn, xid: *xid, owed: 0, set: set.clone() });
            }
            StreamEvent::RoutedNothing { upto, .. } => {
                stream.routed = stream.routed.max(*upto);
                stream.received = stream.received.max(*upto);
            }
            StreamEvent::TxnRedelivered { seq, .. } => {
                if let Some(txn) = self.window.get(*seq) {
                    stream.received = stream.received.max(txn.lsn);
                }
            }
            StreamEvent::AckSent { lsn, .. } => stream.acked = stream.acked.max(*lsn),
        }
    }

    /// Positions of the old history mean nothing in the new one.
    fn break_history(&mut self) {
        self.stream.routed = Lsn(0);
        self.stream.received = Lsn(0);
        self.stream.acked = Lsn(0);
        self.stream.queried = Queried::default();
        self.relations.clear();
        // What was owed was owed of the old history; every shape is invalidated with it.
        self.window = Window::default();
    }

    /// Records that every shape of the set has to hold this transaction.
    fn owe(&mut self, recorded: &Recorded, seq: Seq, mut txn: Txn) {
        for sid in txn.set.iter() {
            if let Some(shape) = self.shapes.get_mut(&sid)
                && shape.is_routed()
            {
                if shape.pending.is_empty() {
                    shape.progressed_at = recorded.at;
                }
                shape.pending.push_back(seq);
                txn.owed += 1;
            }
        }
        self.window.push(seq, txn);
    }
}
