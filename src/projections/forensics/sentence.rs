//! Events in plain words.

use crate::domain::{EventId, Seq, Sid};
use crate::events::{
    AckCause, ConsumerEvent, DestructionCause, DestructionResult, DestructionTarget, Event, ExitCause,
    FaultClass, FlushEvent, HistoryCause, InvalidationCause, JournalEvent, OwnershipEvent, PreviousEnd,
    ShapeEvent, StreamEvent,
};
use crate::projections::forensics::{Names, commas, plural};

/// What happened, as a sentence without its subject's time and without a full stop.
#[must_use]
pub fn sentence(event: &Event, names: &Names) -> String {
    match event {
        Event::Ownership(event) => ownership(event, names),
        Event::Stream(event) => stream(event),
        Event::Shape(event) => format!("shape {}: {}", names.call(event.sid()), shape(event)),
        Event::Consumer(event) => format!("shape {}: {}", names.call(event.sid()), consumer(event)),
        Event::Flush(event) => flush(event, names),
        Event::Journal(event) => journal(event),
    }
}

fn ownership(event: &OwnershipEvent, names: &Names) -> String {
    match event {
        OwnershipEvent::ProcessStarted(process) => {
            format!("process {} on {} runs version {}", process.pid, process.host, process.version)
        }
        OwnershipEvent::Acquired { epoch, previous_end, waited_ms, .. } => {
            let before = match previous_end {
                PreviousEnd::None => "nobody had it before",
                PreviousEnd::Released => "the one before had released it",
                PreviousEnd::Crashed => "the one before had died without a word",
            };
            format!("epoch {epoch} took the directory after waiting {waited_ms} ms: {before}")
        }
        OwnershipEvent::DrainStarted { cause } => format!("the process began to drain ({cause:?})"),
        OwnershipEvent::Released { epoch, pending, acked } => format!(
            "epoch {epoch} released the directory, {} owing, acknowledged up to {acked}",
            plural(*pending, "shape")
        ),
        OwnershipEvent::Lost { epoch, evidence } => {
            format!("epoch {epoch} found that it had lost the directory ({evidence:?})")
        }
        OwnershipEvent::DestructiveIntent { intent, target, cause } => match (target, cause) {
            (DestructionTarget::ShapeFiles(sid), _) => {
                format!("the files of shape {} are to be removed (intent {})", names.call(*sid), intent.0)
            }
            (DestructionTarget::ShapeLog(sid), _) => {
                format!(
                    "the log of shape {} is to be replaced by a compacted one (intent {})",
                    names.call(*sid),
                    intent.0
                )
            }
            (DestructionTarget::Stranger(handle), DestructionCause::QuarantineExpired) => {
                format!("files set aside under {handle} are to be removed (intent {})", intent.0)
            }
            (
                DestructionTarget::Stranger(handle),
                DestructionCause::Unknown | DestructionCause::ShapeInvalidated | DestructionCause::Compacted,
            ) => {
                format!("the directory {handle}, of no known shape, is to be set aside (intent {})", intent.0)
            }
        },
        OwnershipEvent::DestructiveDone { intent, result } => match result {
            DestructionResult::Done | DestructionResult::AlreadyDone => {
                format!("files were removed (intent {})", intent.0)
            }
            DestructionResult::Abandoned => format!("nothing was removed after all (intent {})", intent.0),
        },
        OwnershipEvent::StorageFault { class, stage, file, sid, count } => {
            let whose = sid.map(|sid| format!(" of shape {}", names.call(sid))).unwrap_or_default();
            let what = fault(*class);
            format!("storage failed {count} times: {what}, at {stage:?} of {file:?}{whose}")
        }
    }
}

fn fault(class: FaultClass) -> String {
    match class {
        FaultClass::Corrupt => "the bytes are damaged".to_owned(),
        FaultClass::Vanished => "the file is not there".to_owned(),
        FaultClass::Transient { errno } => format!("error {errno} of the system"),
        FaultClass::NoSpace => "no space is left".to_owned(),
        FaultClass::Denied => "permission denied".to_owned(),
    }
}

fn stream(event: &StreamEvent) -> String {
    match event {
        StreamEvent::Identified { timeline, server_version, .. } => {
            format!("Postgres {server_version} answered, timeline {timeline}")
        }
        StreamEvent::LockAcquired { generation, .. } => {
            format!("connection {generation} holds the advisory lock")
        }
        StreamEvent::LockLost { generation } => format!("connection {generation} lost the advisory lock"),
        StreamEvent::SlotObserved { confirmed, created, .. } => {
            let made = if *created { "was created" } else { "is there" };
            format!("the slot {made}, confirmed up to {confirmed}")
        }
        StreamEvent::HistoryBroken { cause } => {
            let why = match cause {
                HistoryCause::NewSlot => "the slot had to be created anew",
                HistoryCause::NewPublication => "the publication had to be created anew",
                HistoryCause::Timeline => "the timeline changed",
                HistoryCause::SystemId => "it is another server",
                HistoryCause::SlotLost => "Postgres had discarded WAL that the slot needed",
            };
            format!("the history of Postgres broke: {why}")
        }
        StreamEvent::TimelineFollowed { from, to, fork } => format!(
            "the server was promoted: timeline {to} has left {from} at {fork}, and nothing here is from beyond that"
        ),
        StreamEvent::Queried { upto } => {
            format!("clients may have rows that were read beside the stream, up to {upto}")
        }
        StreamEvent::Started { generation, from } => {
            format!("connection {generation} streams from {from}")
        }
        StreamEvent::Stopped { generation, cause, received } => {
            format!("connection {generation} ended ({cause:?}) at {received}")
        }
        StreamEvent::RelationChanged { oid, .. } => format!("table {oid} has another schema"),
        StreamEvent::TxnRouted { seq, lsn, xid, changes, set, .. } => format!(
            "transaction {seq} (xid {xid}, commit {lsn}, {}) went to {}",
            plural(*changes, "change"),
            plural(set.len() as u64, "shape")
        ),
        StreamEvent::RoutedNothing { upto, txns, .. } => {
            format!("{} up to {upto} interested no shape", plural(*txns, "transaction"))
        }
        StreamEvent::TxnRedelivered { seq, set, .. } => {
            let (shapes, owe) =
                (plural(set.len() as u64, "shape"), if set.len() == 1 { "owes" } else { "owe" });
            format!("Postgres sent transaction {seq} again, {shapes} still {owe} it")
        }
        StreamEvent::AckSent { lsn, cause } => {
            let why = match cause {
                AckCause::Commit => "everything before is flushed",
                AckCause::Keepalive => "nothing is owed and Postgres has sent all",
            };
            format!("acknowledged {lsn}: {why}")
        }
    }
}

fn shape(event: &ShapeEvent) -> String {
    match event {
        ShapeEvent::Created { sid, oid, .. } => format!("created as number {sid}, of table {oid}"),
        ShapeEvent::Depends { on, .. } => {
            let on: Vec<String> = on.iter().map(Sid::to_string).collect();
            format!("depends on the inner queries {}", on.join(", "))
        }
        ShapeEvent::Routed { after, after_lsn, .. } => {
            format!("gets what it wants from the transaction after {after} (commit {after_lsn}) on")
        }
        ShapeEvent::Unrouted { .. } => "gets no more transactions".to_owned(),
        ShapeEvent::PublicationReady { oid, waited_ms, .. } => {
            format!("table {oid} is published, older writers have ended, after {waited_ms} ms")
        }
        ShapeEvent::SnapshotStarted { attempt, .. } => format!("snapshot attempt {attempt} began"),
        ShapeEvent::SnapshotVisible { lsn, .. } => format!("the snapshot is open, at {lsn}"),
        ShapeEvent::SnapshotCompleted { rows, bytes, .. } => {
            format!("the snapshot is durable: {} rows, {} bytes", commas(*rows), commas(*bytes))
        }
        ShapeEvent::SnapshotFailed { attempt, failure, .. } => {
            format!("snapshot attempt {attempt} failed ({failure:?})")
        }
        ShapeEvent::Compacted { through, before, after, .. } => format!(
            "its log up to {through} was compacted, from {} to {} bytes",
            commas(*before),
            commas(*after)
        ),
        ShapeEvent::Invalidated { cause, .. } => format!("ended, because {}", invalidation(*cause)),
        ShapeEvent::StepDone { step, .. } => format!("removal: {step:?}"),
        ShapeEvent::Gone { .. } => "nothing of it is left".to_owned(),
    }
}

/// Why a shape ended, as the rest of a sentence.
#[must_use]
pub fn invalidation(cause: InvalidationCause) -> String {
    match cause {
        InvalidationCause::Deleted => "a client deleted it".to_owned(),
        InvalidationCause::SchemaChanged => "its table changed its schema".to_owned(),
        InvalidationCause::Truncated => "its table was truncated".to_owned(),
        InvalidationCause::SnapshotFailed => "its initial rows could not be had".to_owned(),
        InvalidationCause::SnapshotInterrupted => {
            "the process ended before its snapshot was complete".to_owned()
        }
        InvalidationCause::WriterFailed { attempts } => {
            format!("its writer failed on the same transaction after {attempts} restarts")
        }
        InvalidationCause::Stalled => "it made no flush progress within the grace period".to_owned(),
        InvalidationCause::HistoryBroken => "the history of Postgres broke".to_owned(),
        InvalidationCause::DataMissed => "Postgres will not send again what it still lacks".to_owned(),
        InvalidationCause::Backlog => "too much arrived before its snapshot was taken".to_owned(),
        InvalidationCause::OldRowMissing => "an update came without the old row".to_owned(),
        InvalidationCause::PartitionsChanged => "a partition with rows came or went".to_owned(),
        InvalidationCause::Unpublished => "its table was taken out of the publication".to_owned(),
        InvalidationCause::JournalLost => "the journal lost its end".to_owned(),
        InvalidationCause::StorageDamaged => "its files could not be read".to_owned(),
        InvalidationCause::Expired => {
            "there were too many, and nobody had asked for it the longest".to_owned()
        }
        InvalidationCause::DependencyGone => "one of its inner queries ended".to_owned(),
        InvalidationCause::NotNeeded => "no shape depends on it any more".to_owned(),
        InvalidationCause::MoveBacklog => "too much arrived while rows moved in".to_owned(),
        InvalidationCause::MoveFailed => "rows that were to move in could not be had".to_owned(),
    }
}

/// How a writer ended, as the rest of a sentence.
#[must_use]
pub fn exit(cause: ExitCause) -> &'static str {
    match cause {
        ExitCause::Suspended => "was put to sleep",
        ExitCause::Drained => "ended with the drain",
        ExitCause::Removed => "ended for the removal",
        ExitCause::Panicked => "panicked",
        ExitCause::StorageFault => "ended because its files failed",
        ExitCause::Ended => "returned although nobody asked it to",
        ExitCause::Vanished => "was found missing by the audit",
    }
}

fn consumer(event: &ConsumerEvent) -> String {
    match event {
        ConsumerEvent::Started { incarnation, .. } => format!("writer {incarnation} started"),
        ConsumerEvent::Ready { incarnation, recovered, trimmed_bytes, .. } => format!(
            "writer {incarnation} is ready, its log reaches {recovered}, {} bytes trimmed",
            commas(*trimmed_bytes)
        ),
        ConsumerEvent::Stopping { incarnation, cause, .. } => {
            format!("writer {incarnation} was asked to end ({cause:?})")
        }
        ConsumerEvent::Exited { incarnation, cause, pending_oldest, pending, .. } => {
            let owing = pending_oldest.map_or_else(
                || "owing nothing".to_owned(),
                |seq| format!("still owing {}, the oldest is {seq}", plural(*pending, "transaction")),
            );
            format!("writer {incarnation} {}, {owing}", exit(*cause))
        }
        ConsumerEvent::RestartScheduled { attempt, due, .. } => {
            format!("attempt {attempt} to restart the writer is due at {due}")
        }
        ConsumerEvent::StallSuspected { oldest, age_ms, .. } => {
            format!("suspected: no flush progress for {age_ms} ms, owing since transaction {oldest}")
        }
    }
}

fn flush(event: &FlushEvent, names: &Names) -> String {
    match event {
        FlushEvent::Watermark { upto, except } => {
            let but = if except.is_empty() { String::new() } else { format!(", {} excepted", except.len()) };
            format!("every shape has flushed up to transaction {upto}{but}")
        }
        FlushEvent::Flushed { shapes } => match shapes.as_slice() {
            [(sid, upto)] => format!("shape {} has flushed up to transaction {upto}", names.call(*sid)),
            shapes => format!("{} shapes have flushed, up to {}", shapes.len(), newest(shapes)),
        },
        FlushEvent::BudgetExhausted { due, spent, allowed } => format!(
            "{} shapes would have to be given up and {spent} were lately, of {allowed} allowed: none is, \
             what they owe holds the acknowledgement",
            commas(*due)
        ),
        FlushEvent::BudgetSpent { sid } => format!("shape {} counts as given up", names.call(*sid)),
        FlushEvent::BudgetRestored { frozen_ms } => {
            format!("shapes may be given up again, after {frozen_ms} ms")
        }
        FlushEvent::StallsDeferred { shapes, deferral, until } => format!(
            "{} shapes without progress wait until {until} (deferral {deferral}): a part of the pipeline \
             stands still",
            commas(*shapes)
        ),
        FlushEvent::ProgressStopped { part, still_ms } => {
            format!("the watchdog saw no sign of life of {part} for {still_ms} ms")
        }
        FlushEvent::ProgressResumed { part, still_ms } => {
            format!("{part} goes on after it stood still for {still_ms} ms")
        }
    }
}

fn newest(shapes: &[(Sid, Seq)]) -> Seq {
    shapes.iter().map(|(_, seq)| *seq).max().unwrap_or_default()
}

fn journal(event: &JournalEvent) -> String {
    match event {
        JournalEvent::StateSnapshot { upto, bytes, .. } => {
            format!("a checkpoint holds the state after event {upto} in {} bytes", commas(*bytes))
        }
        JournalEvent::SegmentSealed { first, last, .. } => format!("events {first} to {last} were archived"),
        JournalEvent::SegmentRetired { first, last } => {
            format!("the archive of events {first} to {last} is past its retention")
        }
        JournalEvent::ProjectionMismatch { projection } => {
            format!("the live view {projection:?} differs from the fold: acknowledgements stop")
        }
        JournalEvent::TornTail { last, missing_upto, .. } => torn(*last, *missing_upto),
    }
}

fn torn(last: EventId, missing_upto: Option<EventId>) -> String {
    let lost = missing_upto.map(|upto| format!(", events up to {upto} are lost")).unwrap_or_default();
    format!("the end of the journal was found torn after event {last}{lost}")
}
