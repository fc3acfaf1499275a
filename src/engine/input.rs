//! What the world tells the engine. An input may be refused; a refusal changes nothing.

use std::time::Duration;

use crate::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lineage, Lsn, Oid, PgSnapshot, Seq, Sid,
    SidSet, Timestamp, Xid,
};
use crate::events::{
    DestructionResult, DrainCause, ExitCause, FaultClass, FileKind, IntentId, InvalidationCause,
    LossEvidence, Part, PreviousEnd, ProcessInfo, SnapshotFailure, Stage, StopCause,
};

/// One message from the world.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The file lock is held and the journal has been replayed: the first input of a process.
    Boot(Boot),
    OwnershipLost {
        evidence: LossEvidence,
    },
    Drain {
        cause: DrainCause,
    },
    StorageFault {
        class: FaultClass,
        stage: Stage,
        file: FileKind,
        sid: Option<Sid>,
    },
    /// Connected, advisory lock held, publication and slot there.
    PostgresReady(PostgresReady),
    StreamStopped {
        generation: Generation,
        cause: StopCause,
    },
    Commit(Commit),
    /// Postgres has sent everything up to here. Comes after the commits that it covers.
    Keepalive {
        generation: Generation,
        wal_end: Lsn,
    },
    /// Rows were read beside the stream that may have what was committed up to here.
    Queried {
        upto: Lsn,
    },
    RelationAnnounced {
        oid: Oid,
        schema: u64,
        affected: SidSet,
    },
    /// The relations below a partitioned table, as the catalog has them now.
    PartitionsSeen {
        oid: Oid,
        /// Ascending, with the table itself.
        members: Vec<Oid>,
        /// Hash of what they are and since when.
        tree: u64,
        /// Compared with what was seen before there are only more, and what those had when they came
        /// has been in the stream, or was nothing.
        grown: bool,
    },
    CreateShape {
        handle: Handle,
        definition: DefinitionHash,
        oid: Oid,
    },
    /// A shape with inner queries. They exist already.
    CreateDependentShape {
        handle: Handle,
        definition: DefinitionHash,
        oid: Oid,
        dependencies: Vec<Sid>,
    },
    Invalidate {
        sid: Sid,
        cause: InvalidationCause,
    },
    PublicationReady {
        sid: Sid,
        oid: Oid,
        waited_ms: u64,
    },
    SnapshotOpened {
        sid: Sid,
        attempt: u32,
        snapshot: PgSnapshot,
        lsn: Lsn,
    },
    /// Its files are synced.
    SnapshotCompleted {
        sid: Sid,
        attempt: u32,
        rows: u64,
        bytes: u64,
    },
    SnapshotFailed {
        sid: Sid,
        attempt: u32,
        failure: SnapshotFailure,
    },
    /// An aborted snapshot task has ended.
    SnapshotStopped {
        sid: Sid,
    },
    FilesTrashed {
        sid: Sid,
        intent: IntentId,
        result: DestructionResult,
    },
    /// A compacted generation of the log is there, made of what this writer had written.
    LogPrepared {
        sid: Sid,
        incarnation: Incarnation,
    },
    /// What was announced about the log has been done; nothing, where there is no outcome.
    LogSwitched {
        sid: Sid,
        intent: IntentId,
        outcome: Option<Compaction>,
    },
    /// There is a directory with the name of a handle that no shape had when it was looked for.
    StrangerFound {
        handle: Handle,
    },
    /// Files under this handle have been set aside for long enough.
    QuarantineExpired {
        handle: Handle,
    },
    /// What was announced about a stranger has been done.
    StrangerSettled {
        intent: IntentId,
        result: DestructionResult,
    },
    WriterReady {
        sid: Sid,
        incarnation: Incarnation,
        recovered: Lsn,
        trimmed_bytes: u64,
    },
    /// From the supervisor, for every incarnation, however it ended.
    WriterExited {
        sid: Sid,
        incarnation: Incarnation,
        cause: ExitCause,
    },
    /// A writer had nothing to do for a while.
    WriterIdle {
        sid: Sid,
        incarnation: Incarnation,
    },
    /// The writers that the runtime really runs. What was decided up to the event `asked` had been
    /// performed when they were asked for.
    LiveWriters {
        asked: EventId,
        live: Vec<(Sid, Incarnation)>,
    },
    /// The outcome of one group flush.
    Flushed {
        reports: Vec<FlushReport>,
    },
    /// The threads of the writers have taken in everything up to here, as far as it was handed to them.
    HandedOut {
        upto: Lsn,
    },
    /// The watchdog saw no sign of life of a part of the pipeline for so long.
    StoodStill {
        part: Part,
        still: Duration,
    },
    /// It goes on.
    WentOn {
        part: Part,
        still: Duration,
    },
    /// Time passes.
    Tick,
}

/// See [`Input::Boot`].
#[derive(Clone, Debug, PartialEq)]
pub struct Boot {
    pub process: ProcessInfo,
    pub epoch: Epoch,
    pub previous_end: PreviousEnd,
    pub device: u64,
    pub inode: u64,
    pub waited_ms: u64,
    /// Values at the journal's end that could not be read and were taken out.
    pub torn_values: u64,
    /// Events up to this one had been durable and are gone.
    pub missing_upto: Option<EventId>,
}

/// See [`Input::PostgresReady`].
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresReady {
    pub system_id: u64,
    pub timeline: u32,
    pub server_version: u32,
    pub database: Oid,
    pub backend_pid: u32,
    pub slot: String,
    pub confirmed: Lsn,
    pub restart: Lsn,
    pub slot_created: bool,
    pub slot_lost: bool,
    /// Everything whose changes the stream will bring, ascending.
    pub published: Vec<Oid>,
    /// The publication had to be created although the slot existed.
    pub publication_created: bool,
    pub lineage: Lineage,
}

/// A log that has been replaced by a compacted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Up to here it says the same with fewer messages.
    pub through: Lsn,
    /// Its bytes before and after.
    pub before: u64,
    pub after: u64,
}

/// A committed transaction, matched against the shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    pub generation: Generation,
    /// LSN of the commit record.
    pub lsn: Lsn,
    pub xid: Xid,
    pub committed_at: Timestamp,
    pub changes: u64,
    pub bytes: u64,
    /// The shapes that want something of it, before visibility and redelivery are considered.
    pub set: SidSet,
    /// The tables it touched, ascending.
    pub tables: Vec<Oid>,
    /// The tables it truncated, ascending.
    pub truncated: Vec<Oid>,
    /// The tables of which it updated a row without saying what the row was before.
    pub old_row_missing: Vec<Oid>,
}

/// Everything sent to this incarnation up to `upto` is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushReport {
    pub sid: Sid,
    pub incarnation: Incarnation,
    pub upto: Seq,
}

/// Why an input was not acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this process does not own the data directory, or is giving it up")]
    NotActive,
    #[error("the event comes from a stream that has ended")]
    StaleGeneration,
    #[error("the report comes from a writer that has been replaced")]
    StaleIncarnation,
    #[error("the report comes from a snapshot attempt that has been replaced")]
    StaleAttempt,
    #[error("there is no such shape")]
    UnknownShape,
    #[error("the shape has already been invalidated")]
    AlreadyInvalidated,
    #[error("the handle is not newer than the newest handle")]
    HandleNotNew,
    #[error("a shape has this handle, or something is being done about it already")]
    NoStranger,
    #[error("something is being done about the log of this shape already")]
    LogBusy,
    #[error("the writer still owes something")]
    Pending,
}
