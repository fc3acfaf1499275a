//! What the engine asks of the world: values, performed by `runtime::executor` strictly in order.
//! Each is idempotent, or derived again by `engine::resume` after a crash.

use crate::domain::{Generation, Handle, Incarnation, Lsn, Oid, Seq, Sid};
use crate::events::{ExitCause, IntentId, InvalidationCause};

/// One request to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect, take the advisory lock, see to publication and slot; answer with `PostgresReady`.
    /// Retries on its own for as long as it takes.
    ConnectPostgres,
    StartStream {
        generation: Generation,
    },
    StopStream,
    /// Tell Postgres that everything before `lsn` is flushed: on the stream of this generation only.
    /// The next may come from another server, where the position means something else.
    SendStatus {
        generation: Generation,
        lsn: Lsn,
    },
    /// Load a shape's definition and files, so that it can be routed to and read. At boot.
    RestoreShape {
        sid: Sid,
        handle: Handle,
    },
    /// The shape is durable in the journal: make its directory, answer those who asked for it.
    OpenShape {
        sid: Sid,
        handle: Handle,
    },
    /// Publish the table and open a snapshot; ends an earlier attempt.
    StartSnapshot {
        sid: Sid,
        attempt: u32,
    },
    /// The snapshot that this attempt opened is good: copy its rows.
    CopyRows {
        sid: Sid,
        attempt: u32,
    },
    /// Answer with `SnapshotStopped` once its task has ended.
    AbortSnapshot {
        sid: Sid,
    },
    /// Recover the log, then apply these transactions.
    StartWriter {
        sid: Sid,
        incarnation: Incarnation,
        replay: Vec<Seq>,
        /// They are all that the shape owes. Where not, the stream has yet to bring the others again.
        complete: bool,
    },
    StopWriter {
        sid: Sid,
        incarnation: Incarnation,
        cause: ExitCause,
    },
    /// Hand a transaction to live writers.
    Deliver {
        seq: Seq,
        to: Vec<(Sid, Incarnation)>,
    },
    /// Nobody owes a transaction below this number any more.
    ForgetBefore {
        seq: Seq,
    },
    /// Tell the readers of a shape that it is gone.
    RotateReaders {
        sid: Sid,
        cause: InvalidationCause,
    },
    /// Move the shape's files to the trash and remove them.
    TrashFiles {
        sid: Sid,
        handle: Handle,
        intent: IntentId,
        /// They are evidence of damage: set aside, not removed.
        keep: bool,
    },
    /// Put the generation of the log that has been prepared in the place of the present one.
    SwitchLog {
        sid: Sid,
        incarnation: Incarnation,
        intent: IntentId,
    },
    /// Set a directory aside that belongs to no shape.
    QuarantineFiles {
        handle: Handle,
        intent: IntentId,
    },
    /// Remove what has been set aside for long enough.
    PurgeQuarantined {
        handle: Handle,
        intent: IntentId,
    },
    /// No shape is on this table any more.
    ReleasePublication {
        oid: Oid,
    },
    /// Nothing is left to do: close the journal, release the lock, exit.
    Exit,
    /// Ownership is lost: stop at once, touch nothing.
    Abort,
}
