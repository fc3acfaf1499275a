//! The fold of shape events.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::domain::{
    DefinitionHash, EventId, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid, Timestamp, Xid,
};
use crate::events::{InvalidationCause, Recorded, RemovalStep, ShapeEvent};
use crate::state::{Retry, State, Writer};

/// A shape from its creation until nothing of it is left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    pub handle: Handle,
    pub definition: DefinitionHash,
    pub oid: Oid,
    pub created: EventId,
    pub created_at: Timestamp,
    pub life: Life,
    /// Routed from the transaction after this one on, which was the last when it was created.
    pub routed_after: Option<(Seq, Lsn)>,
    pub snapshot_attempt: u32,
    /// What the initial rows contain, and the LSN at and above which they contain nothing.
    pub visible: Option<(PgSnapshot, Lsn)>,
    pub writer: Writer,
    pub last_incarnation: Incarnation,
    pub retry: Option<Retry>,
    /// Transactions routed to it that are not durable in its log, ascending. Empty once invalidated.
    pub pending: VecDeque<Seq>,
    /// Everything up to here is durable in its log, or was no business of its.
    pub flushed: Seq,
    /// When it last flushed, started, or began to owe.
    pub progressed_at: Timestamp,
    /// It has made no progress for the grace period.
    pub suspected: bool,
    pub invalidated: Option<Invalidation>,
    pub steps: Steps,
    /// The shapes of its inner queries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Sid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Life {
    /// Created; its initial rows are not yet determined.
    Registered,
    /// The snapshot is open; rows are being copied.
    Snapshotting,
    /// The initial rows are durable.
    Live,
    /// Ended; being taken apart.
    Invalidated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidation {
    pub cause: InvalidationCause,
    pub event: EventId,
    pub at: Timestamp,
}

/// What of the removal is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    pub writer_stopped: bool,
    pub snapshot_stopped: bool,
    pub files_trashed: bool,
}

/// A shape that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub handle: Handle,
    pub sid: Sid,
    pub invalidation: Option<Invalidation>,
}

/// The newest tombstones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tombstones(VecDeque<Tombstone>);

/// Tombstones answer why a handle is gone; that none comes again is guarded by
/// [`State::last_handle_micros`].
const TOMBSTONES_MAX: usize = 16_384;

impl Tombstones {
    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Tombstone> {
        self.0.iter()
    }

    fn push(&mut self, tombstone: Tombstone) {
        if self.0.len() == TOMBSTONES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(tombstone);
    }
}

impl Shape {
    /// Whether transactions are routed to it.
    #[must_use]
    pub fn is_routed(&self) -> bool {
        self.routed_after.is_some() && self.life < Life::Invalidated
    }

    /// Whether its initial rows contain what the transaction did (N1).
    #[must_use]
    pub fn snapshot_contains(&self, lsn: Lsn, xid: Xid) -> bool {
        self.visible.as_ref().is_some_and(|(snapshot, bound)| lsn < *bound && snapshot.sees(xid))
    }

    fn new(recorded: &Recorded, handle: Handle, definition: DefinitionHash, oid: Oid) -> Shape {
        Shape {
            handle,
            definition,
            oid,
            created: recorded.id,
            created_at: recorded.at,
            life: Life::Registered,
            routed_after: None,
            snapshot_attempt: 0,
            visible: None,
            writer: Writer::Absent,
            last_incarnation: Incarnation(0),
            retry: None,
            pending: VecDeque::new(),
            flushed: Seq(0),
            progressed_at: recorded.at,
            suspected: false,
            invalidated: None,
            steps: Steps::default(),
            dependencies: Vec::new(),
        }
    }
}

impl State {
    pub(super) fn apply_shape(&mut self, recorded: &Recorded, event: &ShapeEvent) {
        if let ShapeEvent::Created { sid, handle, definition, oid } = event {
            self.last_sid = self.last_sid.max(*sid);
            self.last_handle_micros = self.last_handle_micros.max(handle.micros);
            self.shapes.insert(*sid, Shape::new(recorded, *handle, *definition, *oid));
            return;
        }
        let Some(shape) = self.shapes.get_mut(&event.sid()) else { return };
        match event {
            ShapeEvent::Created { .. } => {}
            ShapeEvent::Depends { on, .. } => shape.dependencies = on.clone(),
            ShapeEvent::Routed { after, after_lsn, .. } => {
                shape.routed_after = Some((*after, *after_lsn));
                shape.flushed = *after;
            }
            ShapeEvent::Unrouted { .. } => shape.routed_after = None,
            ShapeEvent::PublicationReady { .. }
            | ShapeEvent::SnapshotFailed { .. }
            // Its files say by themselves what they are.
            | ShapeEvent::Compacted { .. } => {}
            ShapeEvent::SnapshotStarted { attempt, .. } => shape.snapshot_attempt = *attempt,
            ShapeEvent::SnapshotVisible { sid, snapshot, lsn } => {
                shape.visible = Some((snapshot.clone(), *lsn));
                shape.life = shape.life.max(Life::Snapshotting);
                self.discharge_visible(*sid);
            }
            ShapeEvent::SnapshotCompleted { .. } => shape.life = shape.life.max(Life::Live),
            ShapeEvent::Invalidated { sid, cause } => {
                shape.life = Life::Invalidated;
                shape.invalidated = Some(Invalidation { cause: *cause, event: recorded.id, at: recorded.at });
                shape.retry = None;
                shape.steps.writer_stopped = shape.writer == Writer::Absent;
                self.discharge_all(*sid);
            }
            ShapeEvent::StepDone { step, .. } => match step {
                RemovalStep::WriterStopped => shape.steps.writer_stopped = true,
                RemovalStep::SnapshotStopped => shape.steps.snapshot_stopped = true,
                RemovalStep::FilesTrashed => shape.steps.files_trashed = true,
            },
            ShapeEvent::Gone { sid } => {
                let (sid, handle, invalidation) = (*sid, shape.handle, shape.invalidated);
                self.shapes.remove(&sid);
                self.tombstones.push(Tombstone { handle, sid, invalidation });
            }
        }
    }

    /// What the snapshot contains need not be applied from the stream.
    fn discharge_visible(&mut self, sid: Sid) {
        let Some(shape) = self.shapes.get(&sid) else { return };
        let (contained, owed): (Vec<Seq>, Vec<Seq>) = shape.pending.iter().partition(|seq| {
            self.window.get(**seq).is_some_and(|txn| shape.snapshot_contains(txn.lsn, txn.xid))
        });
        self.settle(sid, contained, owed);
    }

    fn discharge_all(&mut self, sid: Sid) {
        let Some(shape) = self.shapes.get(&sid) else { return };
        let all = shape.pending.iter().copied().collect();
        self.settle(sid, all, Vec::new());
    }

    fn settle(&mut self, sid: Sid, discharged: Vec<Seq>, owed: Vec<Seq>) {
        if let Some(shape) = self.shapes.get_mut(&sid) {
            shape.pending = owed.into();
        }
        for seq in discharged {
            self.window.discharge(seq);
        }
        self.window.trim();
    }
}
