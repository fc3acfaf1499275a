//! At least one of each event, and one for each of the values that an event is chosen by.

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid, SidSet,
    Timestamp, Xid,
};
use shapefold::events::{
    AckCause, ConsumerEvent, DestructionCause, DestructionResult, DestructionTarget, DrainCause, Event,
    ExitCause, FaultClass, FileKind, FlushEvent, HistoryCause, IntentId, InvalidationCause, JournalEvent,
    LossEvidence, OwnershipEvent, Part, PreviousEnd, ProcessInfo, ProjectionName, Recorded, RemovalStep,
    ShapeEvent, SnapshotFailure, Stage, StopCause, StreamEvent,
};

const FIRST: Sid = Sid(1);
const SECOND: Sid = Sid(2);
const TABLE: Oid = Oid(16_384);
const INCARNATION: Incarnation = Incarnation(1);
const GENERATION: Generation = Generation(1);

/// The samples as one history, in its order: every part of a record is there at least once.
pub fn recorded() -> Vec<Recorded> {
    numbered(events())
}

/// Values that came after the fixtures of version 1 were written.
pub fn causes_of_tables() -> Vec<Recorded> {
    let causes = [InvalidationCause::PartitionsChanged, InvalidationCause::Unpublished];
    numbered(causes.map(|cause| ShapeEvent::Invalidated { sid: FIRST, cause }.into()).into())
}

/// Values that came with the limit of shapes and the closing of idle connections.
pub fn operations() -> Vec<Recorded> {
    let stopped =
        StreamEvent::Stopped { generation: GENERATION, cause: StopCause::Idle, received: Lsn(1_400) };
    let expired = ShapeEvent::Invalidated { sid: FIRST, cause: InvalidationCause::Expired };
    numbered(vec![expired.into(), stopped.into()])
}

/// Kinds that came with servers that are promoted.
pub fn promotion() -> Vec<Recorded> {
    numbered(vec![
        StreamEvent::Queried { upto: Lsn(1_300) }.into(),
        StreamEvent::TimelineFollowed { from: 1, to: 2, fork: Lsn(1_350) }.into(),
    ])
}

/// Kinds that came with the budget and the watchdog.
pub fn liveness() -> Vec<Recorded> {
    let until = Timestamp(1_774_000_060_000_000);
    let mut events: Vec<Event> = vec![
        FlushEvent::BudgetExhausted { due: 40, spent: 2, allowed: 10 }.into(),
        FlushEvent::BudgetSpent { sid: FIRST }.into(),
        FlushEvent::BudgetRestored { frozen_ms: 61_000 }.into(),
        FlushEvent::StallsDeferred { shapes: 7, deferral: 3, until }.into(),
    ];
    for part in [Part::Driver, Part::Journal, Part::Writers(1)] {
        events.push(FlushEvent::ProgressStopped { part, still_ms: 10_250 }.into());
        events.push(FlushEvent::ProgressResumed { part, still_ms: 30_000 }.into());
    }
    numbered(events)
}

fn numbered(events: Vec<Event>) -> Vec<Recorded> {
    let event = |(index, event): (usize, Event)| {
        let id = EventId(index as u64 + 1);
        Recorded {
            id,
            at: Timestamp(1_774_000_000_000_000 + index as i64),
            epoch: Epoch(7),
            because: (index % 3 == 2).then_some(EventId(id.0 - 1)),
            event,
        }
    };
    events.into_iter().enumerate().map(event).collect()
}

/// What events of version 1 have been able to say since they were first written down.
pub fn additions() -> Vec<Recorded> {
    let stranger = DestructionTarget::Stranger(Handle { hash: 5, micros: 77 });
    let intend = |(index, (target, cause)): (u64, (DestructionTarget, DestructionCause))| Recorded {
        id: EventId(index + 1),
        at: Timestamp(1_774_000_000_000_000),
        epoch: Epoch(7),
        because: None,
        event: OwnershipEvent::DestructiveIntent { intent: IntentId(index + 1), target, cause }.into(),
    };
    let additions = [(stranger, DestructionCause::Unknown), (stranger, DestructionCause::QuarantineExpired)];
    (0..).zip(additions).map(intend).collect()
}

fn events() -> Vec<Event> {
    let mut events = beginning();
    events.extend(streaming());
    events.extend(writing());
    events.extend(about_the_journal());
    events.extend(endings());
    events.extend(inner_queries());
    events.extend(compactions());
    events
}

fn beginning() -> Vec<Event> {
    let process = ProcessInfo {
        boot_id: "4bd9a6a7-6d8c-4cf4-b7a4-9e7c4e2b1a55".to_owned(),
        version: "0.1.0".to_owned(),
        format: 1,
        host: "example".to_owned(),
        pid: 4_321,
        config_hash: u64::MAX,
    };
    let acquired = |previous_end| OwnershipEvent::Acquired {
        epoch: Epoch(7),
        previous: Epoch(6),
        previous_end,
        device: 2_049,
        inode: 1_234_567,
        waited_ms: 12,
    };
    let mut events: Vec<Event> = [PreviousEnd::None, PreviousEnd::Released, PreviousEnd::Crashed]
        .map(|end| acquired(end).into())
        .into();
    events.extend([
        OwnershipEvent::ProcessStarted(process).into(),
        StreamEvent::Identified {
            system_id: 7_300_000_000_000_000_001,
            timeline: 1,
            server_version: 170_002,
            database: Oid(5),
        }
        .into(),
        StreamEvent::LockAcquired { backend_pid: 99, generation: GENERATION }.into(),
        StreamEvent::SlotObserved {
            name: "electric_slot_default".to_owned(),
            confirmed: Lsn(1_000),
            restart: Lsn(900),
            created: true,
        }
        .into(),
    ]);
    // Before the others have built anything up: it empties that.
    let causes = [
        HistoryCause::NewSlot,
        HistoryCause::NewPublication,
        HistoryCause::Timeline,
        HistoryCause::SystemId,
        HistoryCause::SlotLost,
    ];
    events.extend(causes.map(|cause| StreamEvent::HistoryBroken { cause }.into()));
    events.push(StreamEvent::Started { generation: GENERATION, from: Lsn(1_000) }.into());
    events
}

fn streaming() -> Vec<Event> {
    let created = |sid, micros| ShapeEvent::Created {
        sid,
        handle: Handle { hash: 9_007_199_254_740_993, micros },
        definition: DefinitionHash(9_007_199_254_740_993),
        oid: TABLE,
    };
    let set: SidSet = [FIRST, SECOND].into_iter().collect();
    let routed = |seq, lsn, set: &SidSet| StreamEvent::TxnRouted {
        seq: Seq(seq),
        generation: GENERATION,
        lsn: Lsn(lsn),
        xid: Xid(744),
        committed_at: Timestamp(-1),
        changes: 3,
        bytes: 360,
        set: set.clone(),
    };
    vec![
        created(FIRST, 1_774_000_000_000_001).into(),
        ShapeEvent::Routed { sid: FIRST, after: Seq(0), after_lsn: Lsn(0) }.into(),
        created(SECOND, 1_774_000_000_000_002).into(),
        ShapeEvent::Routed { sid: SECOND, after: Seq(0), after_lsn: Lsn(0) }.into(),
        ShapeEvent::PublicationReady { sid: FIRST, oid: TABLE, waited_ms: 3 }.into(),
        ShapeEvent::SnapshotStarted { sid: FIRST, attempt: 1 }.into(),
        StreamEvent::RelationChanged { oid: TABLE, old: 0, new: 0xfeed_beef_0000_0001 }.into(),
        StreamEvent::RoutedNothing { generation: GENERATION, upto: Lsn(1_100), txns: 2 }.into(),
        routed(1, 1_200, &set).into(),
        routed(2, 1_300, &set).into(),
        routed(3, 1_400, &[SECOND].into_iter().collect()).into(),
        ShapeEvent::SnapshotVisible {
            sid: FIRST,
            snapshot: PgSnapshot { xmin: 740, xmax: (1 << 32) + 750, xip: vec![741, (1 << 32) + 3] },
            lsn: Lsn(1_150),
        }
        .into(),
        ShapeEvent::SnapshotCompleted { sid: FIRST, rows: 10, bytes: 1_000 }.into(),
        StreamEvent::TxnRedelivered { seq: Seq(2), generation: GENERATION, set }.into(),
    ]
}

fn writing() -> Vec<Event> {
    let (sid, incarnation) = (FIRST, INCARNATION);
    let mut events: Vec<Event> = vec![
        ConsumerEvent::Started { sid, incarnation }.into(),
        ConsumerEvent::Ready { sid, incarnation, recovered: Lsn(1_100), trimmed_bytes: 17 }.into(),
        FlushEvent::Flushed { shapes: vec![(FIRST, Seq(1))] }.into(),
        FlushEvent::Watermark { upto: Seq(2), except: vec![(SECOND, Seq(1))] }.into(),
        StreamEvent::AckSent { lsn: Lsn(1_201), cause: AckCause::Commit }.into(),
        StreamEvent::AckSent { lsn: Lsn(1_202), cause: AckCause::Keepalive }.into(),
        ConsumerEvent::StallSuspected { sid, oldest: Seq(1), age_ms: 60_001 }.into(),
        ConsumerEvent::Stopping { sid, incarnation, cause: ExitCause::Suspended }.into(),
    ];
    let causes = [
        ExitCause::Suspended,
        ExitCause::Drained,
        ExitCause::Removed,
        ExitCause::Panicked,
        ExitCause::StorageFault,
        ExitCause::Ended,
        ExitCause::Vanished,
    ];
    events.extend(causes.map(|cause| {
        ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest: Some(Seq(2)), pending: 1 }.into()
    }));
    events.push(
        ConsumerEvent::RestartScheduled { sid, attempt: 2, due: Timestamp(1_774_000_000_500_000) }.into(),
    );
    events
}

fn about_the_journal() -> Vec<Event> {
    let mut events: Vec<Event> = vec![
        JournalEvent::StateSnapshot { upto: EventId(20), checksum: 0xdead_beef, bytes: 4_096 }.into(),
        JournalEvent::SegmentSealed { first: EventId(1), last: EventId(20), bytes: 900 }.into(),
        JournalEvent::SegmentRetired { first: EventId(1), last: EventId(20) }.into(),
        JournalEvent::TornTail { last: EventId(20), values: 1, missing_upto: Some(EventId(25)) }.into(),
        JournalEvent::TornTail { last: EventId(20), values: 1, missing_upto: None }.into(),
    ];
    let projections = [ProjectionName::Registry, ProjectionName::FlushTracker, ProjectionName::ShapeIndex];
    events.extend(projections.map(|projection| JournalEvent::ProjectionMismatch { projection }.into()));
    let classes = [
        FaultClass::Corrupt,
        FaultClass::Vanished,
        FaultClass::Transient { errno: 5 },
        FaultClass::NoSpace,
        FaultClass::Denied,
    ];
    let stages = [Stage::Open, Stage::Read, Stage::Write, Stage::Sync, Stage::Rename];
    let files = [
        FileKind::ShapeLog,
        FileKind::Snapshot,
        FileKind::Definition,
        FileKind::Index,
        FileKind::Spill,
        FileKind::Directory,
    ];
    for (index, file) in files.into_iter().enumerate() {
        let (class, stage) = (classes[index % classes.len()], stages[index % stages.len()]);
        let sid = (index > 0).then_some(FIRST);
        events.push(OwnershipEvent::StorageFault { class, stage, file, sid, count: 1 + index as u64 }.into());
    }
    events
}

/// Added after the others: those keep their places in the fixture.
fn inner_queries() -> Vec<Event> {
    let causes = [
        InvalidationCause::DependencyGone,
        InvalidationCause::NotNeeded,
        InvalidationCause::MoveBacklog,
        InvalidationCause::MoveFailed,
    ];
    let mut events = vec![ShapeEvent::Depends { sid: SECOND, on: vec![FIRST] }.into()];
    events.extend(causes.map(|cause| ShapeEvent::Invalidated { sid: SECOND, cause }.into()));
    events
}

fn compactions() -> Vec<Event> {
    let (target, cause) = (DestructionTarget::ShapeLog(SECOND), DestructionCause::Compacted);
    let done = |result| OwnershipEvent::DestructiveDone { intent: IntentId(2), result }.into();
    vec![
        OwnershipEvent::DestructiveIntent { intent: IntentId(2), target, cause }.into(),
        ShapeEvent::Compacted { sid: SECOND, through: Lsn(1_400), before: 1 << 30, after: 4_096 }.into(),
        done(DestructionResult::Done),
        done(DestructionResult::Abandoned),
    ]
}

fn endings() -> Vec<Event> {
    let sid = FIRST;
    let failures = [
        SnapshotFailure::Connection,
        SnapshotFailure::Permission,
        SnapshotFailure::Publication,
        SnapshotFailure::Vanished,
        SnapshotFailure::Timeout,
        SnapshotFailure::Query,
        SnapshotFailure::Storage,
        SnapshotFailure::NotYetVisible,
    ];
    let causes = [
        InvalidationCause::Deleted,
        InvalidationCause::SchemaChanged,
        InvalidationCause::Truncated,
        InvalidationCause::SnapshotFailed,
        InvalidationCause::SnapshotInterrupted,
        InvalidationCause::WriterFailed { attempts: 3 },
        InvalidationCause::Stalled,
        InvalidationCause::HistoryBroken,
        InvalidationCause::DataMissed,
        InvalidationCause::Backlog,
        InvalidationCause::OldRowMissing,
        InvalidationCause::JournalLost,
        InvalidationCause::StorageDamaged,
    ];
    let mut events: Vec<Event> =
        failures.map(|failure| ShapeEvent::SnapshotFailed { sid: SECOND, attempt: 1, failure }.into()).into();
    events.extend(causes.map(|cause| ShapeEvent::Invalidated { sid, cause }.into()));
    events.push(ShapeEvent::Unrouted { sid }.into());
    let steps = [RemovalStep::WriterStopped, RemovalStep::SnapshotStopped, RemovalStep::FilesTrashed];
    events.extend(steps.map(|step| ShapeEvent::StepDone { sid, step }.into()));
    events.push(
        OwnershipEvent::DestructiveIntent {
            intent: IntentId(1),
            target: DestructionTarget::ShapeFiles(sid),
            cause: DestructionCause::ShapeInvalidated,
        }
        .into(),
    );
    for result in [DestructionResult::Done, DestructionResult::AlreadyDone] {
        events.push(OwnershipEvent::DestructiveDone { intent: IntentId(1), result }.into());
    }
    events.push(ShapeEvent::Gone { sid }.into());
    for cause in
        [StopCause::Connection, StopCause::Server, StopCause::Protocol, StopCause::Spill, StopCause::Drain]
    {
        events.push(StreamEvent::Stopped { generation: GENERATION, cause, received: Lsn(1_400) }.into());
    }
    events.push(StreamEvent::LockLost { generation: GENERATION }.into());
    for cause in [DrainCause::Signal, DrainCause::Operator, DrainCause::Fatal] {
        events.push(OwnershipEvent::DrainStarted { cause }.into());
    }
    for evidence in [LossEvidence::InodeChanged, LossEvidence::EpochHigher, LossEvidence::DirectoryVanished] {
        events.push(OwnershipEvent::Lost { epoch: Epoch(7), evidence }.into());
    }
    events.push(OwnershipEvent::Released { epoch: Epoch(7), pending: 1, acked: Lsn(1_202) }.into());
    events
}
