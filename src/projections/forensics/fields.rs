//! The fields of an event by their full names, as JSON: the form on disk has short ones.

use std::fmt::Debug;

use serde_json::{Value, json};

use crate::domain::{Seq, Sid, SidSet};
use crate::events::{
    ConsumerEvent, DestructionTarget, Event, FlushEvent, JournalEvent, OwnershipEvent, ShapeEvent,
    StreamEvent,
};

/// An object of the event's own fields. LSNs and times are text as people write them, sets of shapes
/// are arrays of their numbers, closed lists are their words.
#[must_use]
pub fn fields(event: &Event) -> Value {
    match event {
        Event::Ownership(event) => ownership(event),
        Event::Stream(event) => stream(event),
        Event::Shape(event) => shape(event),
        Event::Consumer(event) => consumer(event),
        Event::Flush(event) => flush(event),
        Event::Journal(event) => journal(event),
    }
}

/// `Transient { errno: 5 }` is said as it is: the lists are closed and hold no user data.
fn word(value: &impl Debug) -> String {
    format!("{value:?}")
}

fn sids(set: &SidSet) -> Vec<Sid> {
    set.iter().collect()
}

fn pairs(shapes: &[(Sid, Seq)]) -> Vec<Value> {
    shapes.iter().map(|(sid, seq)| json!({"sid": sid, "seq": seq})).collect()
}

fn ownership(event: &OwnershipEvent) -> Value {
    match event {
        OwnershipEvent::ProcessStarted(process) => json!({
            "boot_id": process.boot_id, "version": process.version, "format": process.format,
            "host": process.host, "pid": process.pid,
            "config_hash": format!("{:016x}", process.config_hash),
        }),
        OwnershipEvent::Acquired { epoch, previous, previous_end, device, inode, waited_ms } => json!({
            "epoch": epoch, "previous": previous, "previous_end": word(previous_end),
            "device": device, "inode": inode, "waited_ms": waited_ms,
        }),
        OwnershipEvent::DrainStarted { cause } => json!({"cause": word(cause)}),
        OwnershipEvent::Released { epoch, pending, acked } => {
            json!({"epoch": epoch, "pending": pending, "acked": acked.to_string()})
        }
        OwnershipEvent::Lost { epoch, evidence } => json!({"epoch": epoch, "evidence": word(evidence)}),
        OwnershipEvent::DestructiveIntent { intent, target, cause } => {
            let cause = word(cause);
            match target {
                DestructionTarget::ShapeFiles(sid) => {
                    json!({"intent": intent, "target": "ShapeFiles", "sid": sid, "cause": cause})
                }
                DestructionTarget::ShapeLog(sid) => {
                    json!({"intent": intent, "target": "ShapeLog", "sid": sid, "cause": cause})
                }
                DestructionTarget::Stranger(handle) => {
                    let handle = handle.to_string();
                    json!({"intent": intent, "target": "Stranger", "handle": handle, "cause": cause})
                }
            }
        }
        OwnershipEvent::DestructiveDone { intent, result } => {
            json!({"intent": intent, "result": word(result)})
        }
        OwnershipEvent::StorageFault { class, stage, file, sid, count } => json!({
            "class": word(class), "stage": word(stage), "file": word(file), "sid": sid, "count": count,
        }),
    }
}

fn stream(event: &StreamEvent) -> Value {
    match event {
        StreamEvent::Identified { system_id, timeline, server_version, database } => json!({
            "system_id": system_id.to_string(), "timeline": timeline, "server_version": server_version,
            "database": database,
        }),
        StreamEvent::LockAcquired { backend_pid, generation } => {
            json!({"backend_pid": backend_pid, "generation": generation})
        }
        StreamEvent::LockLost { generation } => json!({"generation": generation}),
        StreamEvent::SlotObserved { name, confirmed, restart, created } => json!({
            "name": name, "confirmed": confirmed.to_string(), "restart": restart.to_string(),
            "created": created,
        }),
        StreamEvent::HistoryBroken { cause } => json!({"cause": word(cause)}),
        StreamEvent::TimelineFollowed { from, to, fork } => {
            json!({"from": from, "to": to, "fork": fork.to_string()})
        }
        StreamEvent::Queried { upto } => json!({"upto": upto.to_string()}),
        StreamEvent::Started { generation, from } => {
            json!({"generation": generation, "from": from.to_string()})
        }
        StreamEvent::Stopped { generation, cause, received } => {
            json!({"generation": generation, "cause": word(cause), "received": received.to_string()})
        }
        StreamEvent::RelationChanged { oid, old, new } => {
            json!({"oid": oid, "old": format!("{old:016x}"), "new": format!("{new:016x}")})
        }
        StreamEvent::TxnRouted { seq, generation, lsn, xid, committed_at, changes, bytes, set } => json!({
            "seq": seq, "generation": generation, "lsn": lsn.to_string(), "xid": xid,
            "committed_at": committed_at.to_string(), "changes": changes, "bytes": bytes,
            "set": sids(set),
        }),
        StreamEvent::RoutedNothing { generation, upto, txns } => {
            json!({"generation": generation, "upto": upto.to_string(), "txns": txns})
        }
        StreamEvent::TxnRedelivered { seq, generation, set } => {
            json!({"seq": seq, "generation": generation, "set": sids(set)})
        }
        StreamEvent::AckSent { lsn, cause } => json!({"lsn": lsn.to_string(), "cause": word(cause)}),
    }
}

fn shape(event: &ShapeEvent) -> Value {
    match event {
        ShapeEvent::Created { sid, handle, definition, oid } => json!({
            "sid": sid, "handle": handle.to_string(), "definition": format!("{:016x}", definition.0),
            "oid": oid,
        }),
        ShapeEvent::Depends { sid, on } => json!({"sid": sid, "on": on}),
        ShapeEvent::Routed { sid, after, after_lsn } => {
            json!({"sid": sid, "after": after, "after_lsn": after_lsn.to_string()})
        }
        ShapeEvent::Unrouted { sid } | ShapeEvent::Gone { sid } => json!({"sid": sid}),
        ShapeEvent::PublicationReady { sid, oid, waited_ms } => {
            json!({"sid": sid, "oid": oid, "waited_ms": waited_ms})
        }
        ShapeEvent::SnapshotStarted { sid, attempt } => json!({"sid": sid, "attempt": attempt}),
        ShapeEvent::SnapshotVisible { sid, snapshot, lsn } => json!({
            "sid": sid, "xmin": snapshot.xmin, "xmax": snapshot.xmax, "xip": snapshot.xip,
            "lsn": lsn.to_string(),
        }),
        ShapeEvent::SnapshotCompleted { sid, rows, bytes } => {
            json!({"sid": sid, "rows": rows, "bytes": bytes})
        }
        ShapeEvent::SnapshotFailed { sid, attempt, failure } => {
            json!({"sid": sid, "attempt": attempt, "failure": word(failure)})
        }
        ShapeEvent::Compacted { sid, through, before, after } => {
            json!({"sid": sid, "through": through.to_string(), "before": before, "after": after})
        }
        ShapeEvent::Invalidated { sid, cause } => json!({"sid": sid, "cause": word(cause)}),
        ShapeEvent::StepDone { sid, step } => json!({"sid": sid, "step": word(step)}),
    }
}

fn consumer(event: &ConsumerEvent) -> Value {
    match event {
        ConsumerEvent::Started { sid, incarnation } => json!({"sid": sid, "incarnation": incarnation}),
        ConsumerEvent::Ready { sid, incarnation, recovered, trimmed_bytes } => json!({
            "sid": sid, "incarnation": incarnation, "recovered": recovered.to_string(),
            "trimmed_bytes": trimmed_bytes,
        }),
        ConsumerEvent::Stopping { sid, incarnation, cause } => {
            json!({"sid": sid, "incarnation": incarnation, "cause": word(cause)})
        }
        ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest, pending } => json!({
            "sid": sid, "incarnation": incarnation, "cause": word(cause),
            "pending_oldest": pending_oldest, "pending": pending,
        }),
        ConsumerEvent::RestartScheduled { sid, attempt, due } => {
            json!({"sid": sid, "attempt": attempt, "due": due.to_string()})
        }
        ConsumerEvent::StallSuspected { sid, oldest, age_ms } => {
            json!({"sid": sid, "oldest": oldest, "age_ms": age_ms})
        }
    }
}

fn flush(event: &FlushEvent) -> Value {
    match event {
        FlushEvent::Watermark { upto, except } => json!({"upto": upto, "except": pairs(except)}),
        FlushEvent::Flushed { shapes } => json!({"shapes": pairs(shapes)}),
        FlushEvent::BudgetExhausted { due, spent, allowed } => {
            json!({"due": due, "spent": spent, "allowed": allowed})
        }
        FlushEvent::BudgetSpent { sid } => json!({"sid": sid}),
        FlushEvent::BudgetRestored { frozen_ms } => json!({"frozen_ms": frozen_ms}),
        FlushEvent::StallsDeferred { shapes, deferral, until } => {
            json!({"shapes": shapes, "deferral": deferral, "until": until.to_string()})
        }
        FlushEvent::ProgressStopped { part, still_ms } | FlushEvent::ProgressResumed { part, still_ms } => {
            json!({"part": part.to_string(), "still_ms": still_ms})
        }
    }
}

fn journal(event: &JournalEvent) -> Value {
    match event {
        JournalEvent::StateSnapshot { upto, checksum, bytes } => {
            json!({"upto": upto, "checksum": format!("{checksum:08x}"), "bytes": bytes})
        }
        JournalEvent::SegmentSealed { first, last, bytes } => {
            json!({"first": first, "last": last, "bytes": bytes})
        }
        JournalEvent::SegmentRetired { first, last } => json!({"first": first, "last": last}),
        JournalEvent::ProjectionMismatch { projection } => json!({"projection": word(projection)}),
        JournalEvent::TornTail { last, values, missing_upto } => {
            json!({"last": last, "values": values, "missing_upto": missing_upto})
        }
    }
}
