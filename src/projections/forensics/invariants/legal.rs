//! Whether an event was legal, asked of the state before it.

use crate::domain::{Epoch, Generation, Lsn, Sid, SidSet};
use crate::events::{
    AckCause, ConsumerEvent, DestructionCause, DestructionTarget, Event, ExitCause, OwnershipEvent,
    PreviousEnd, Recorded, RemovalStep, ShapeEvent, StreamEvent,
};
use crate::projections::forensics::Invariant;
use crate::state::{Life, OwnerPhase, Shape, State, StreamPhase, Writer};

pub(super) type Findings = Vec<(Invariant, String)>;

pub(super) fn illegal(state: &State, recorded: &Recorded) -> Findings {
    let mut findings = Vec::new();
    check_epoch(state, recorded, &mut findings);
    match &recorded.event {
        Event::Ownership(event) => check_ownership(state, event, &mut findings),
        Event::Stream(event) => check_stream(state, event, &mut findings),
        Event::Shape(event) => check_shape(state, event, &mut findings),
        Event::Consumer(event) => check_consumer(state, event, &mut findings),
        // A flush of what was never sent changes nothing; the journal's own facts decide nothing.
        Event::Flush(_) | Event::Journal(_) => {}
    }
    findings
}

fn check_epoch(state: &State, recorded: &Recorded, findings: &mut Findings) {
    let acquires = matches!(recorded.event, Event::Ownership(OwnershipEvent::Acquired { .. }));
    let held = state.owner.epoch;
    if !acquires && recorded.epoch != held {
        findings.push((Invariant::O2, format!("epoch {} while {held} is held", recorded.epoch)));
    }
    // A former owner is late (O2); one that is to own it some time must not have a journal at all.
    let early = recorded.epoch > held || held == Epoch(0);
    let over = matches!(state.owner.phase, OwnerPhase::Released | OwnerPhase::Lost | OwnerPhase::Unowned);
    let journal = matches!(recorded.event, Event::Journal(_));
    if !acquires && early && !journal {
        let detail = format!("{} of one that does not own the directory yet", recorded.event.name());
        findings.push((Invariant::O7, detail));
    } else if !acquires && over && !journal {
        findings.push((Invariant::O4, format!("{} without ownership", recorded.event.name())));
    }
}

fn check_ownership(state: &State, event: &OwnershipEvent, findings: &mut Findings) {
    match event {
        OwnershipEvent::Acquired { epoch, previous_end, .. } => {
            if *epoch <= state.owner.epoch {
                findings.push((Invariant::O1, format!("epoch {epoch} after {}", state.owner.epoch)));
            }
            let at_work = matches!(state.owner.phase, OwnerPhase::Active | OwnerPhase::Draining);
            if at_work && *previous_end == PreviousEnd::Released {
                let detail = format!("epoch {epoch} begins while {} has not ended", state.owner.epoch);
                findings.push((Invariant::O1, detail));
            }
        }
        OwnershipEvent::Released { .. } => {
            let writers = state.shapes.values().filter(|shape| shape.writer != Writer::Absent).count();
            if writers > 0 || !state.owner.open_intents.is_empty() {
                findings.push((Invariant::O4, format!("released with {writers} writers left")));
            }
        }
        OwnershipEvent::DestructiveIntent { target: DestructionTarget::ShapeFiles(sid), cause, .. } => {
            if state.shape(*sid).is_none_or(|shape| shape.life != Life::Invalidated) {
                findings.push((Invariant::O3, format!("files of shape {sid}, which is not invalidated")));
            }
            if *cause != DestructionCause::ShapeInvalidated {
                findings.push((Invariant::O3, format!("files of shape {sid} for another reason")));
            }
        }
        OwnershipEvent::DestructiveIntent { target: DestructionTarget::ShapeLog(sid), cause, .. } => {
            if state.shape(*sid).is_none_or(|shape| shape.life != Life::Live) {
                findings.push((Invariant::O3, format!("the log of shape {sid}, which is not live")));
            }
            if *cause != DestructionCause::Compacted {
                findings.push((Invariant::O3, format!("the log of shape {sid} for another reason")));
            }
        }
        OwnershipEvent::DestructiveIntent { target: DestructionTarget::Stranger(handle), cause, .. } => {
            if state.shapes.values().any(|shape| shape.handle == *handle) {
                findings.push((Invariant::O3, format!("files under {handle}, which a shape has")));
            }
            if matches!(cause, DestructionCause::ShapeInvalidated | DestructionCause::Compacted) {
                findings.push((Invariant::O3, format!("files under {handle} as if they were a shape's")));
            }
        }
        OwnershipEvent::DestructiveDone { intent, .. } => {
            if !state.owner.open_intents.contains(*intent) {
                findings.push((Invariant::O3, format!("intent {} was not announced", intent.0)));
            }
        }
        OwnershipEvent::ProcessStarted(_)
        | OwnershipEvent::DrainStarted { .. }
        | OwnershipEvent::Lost { .. }
        | OwnershipEvent::StorageFault { .. } => {}
    }
}

fn check_stream(state: &State, event: &StreamEvent, findings: &mut Findings) {
    match event {
        StreamEvent::Started { .. } => {
            if !state.stream.lock_held {
                findings.push((Invariant::O8, "streaming without the advisory lock".to_owned()));
            }
        }
        StreamEvent::TxnRouted { seq, generation, lsn, set, xid, .. } => {
            check_present(state, *generation, findings);
            if *seq != state.stream.last_seq.next() || *lsn <= state.stream.routed {
                let (last, routed) = (state.stream.last_seq, state.stream.routed);
                findings.push((Invariant::S1, format!("{seq} at {lsn} after {last} at {routed}")));
            }
            check_set(state, set, findings);
            for sid in set.iter() {
                if state.shape(sid).is_some_and(|shape| shape.snapshot_contains(*lsn, *xid)) {
                    findings.push((Invariant::N1, format!("shape {sid} has it in its snapshot")));
                }
            }
        }
        StreamEvent::TxnRedelivered { seq, generation, .. } => {
            check_present(state, *generation, findings);
            if state.window.get(*seq).is_none() {
                findings.push((Invariant::S1, format!("{seq} is owed by nobody")));
            }
        }
        StreamEvent::TimelineFollowed { fork, .. } => {
            if state.stream.routed >= *fork {
                let routed = state.stream.routed;
                findings.push((Invariant::S1, format!("followed from {fork}, behind {routed}")));
            }
        }
        StreamEvent::AckSent { lsn, cause } => check_ack(state, *lsn, *cause, findings),
        StreamEvent::Identified { .. }
        | StreamEvent::LockAcquired { .. }
        | StreamEvent::LockLost { .. }
        | StreamEvent::SlotObserved { .. }
        | StreamEvent::HistoryBroken { .. }
        | StreamEvent::Queried { .. }
        | StreamEvent::Stopped { .. }
        | StreamEvent::RelationChanged { .. }
        | StreamEvent::RoutedNothing { .. } => {}
    }
}

/// What comes from a stream comes from the one that runs, and under the lock.
fn check_present(state: &State, generation: Generation, findings: &mut Findings) {
    let stream = &state.stream;
    if !stream.lock_held {
        findings.push((Invariant::O8, "routed without the advisory lock".to_owned()));
    }
    if stream.phase != StreamPhase::Streaming || generation != stream.generation {
        let present = stream.generation;
        findings.push((Invariant::S3, format!("of stream {generation}, the present one is {present}")));
    }
}

fn check_set(state: &State, set: &SidSet, findings: &mut Findings) {
    for sid in set.iter() {
        if !state.shape(sid).is_some_and(Shape::is_routed) {
            findings.push((Invariant::L4, format!("shape {sid} is not routed")));
        }
    }
}

fn check_ack(state: &State, lsn: Lsn, cause: AckCause, findings: &mut Findings) {
    if !state.stream.lock_held {
        findings.push((Invariant::O8, "acknowledged without the advisory lock".to_owned()));
    }
    if lsn <= state.stream.acked {
        findings.push((Invariant::F6, format!("{lsn} after {}", state.stream.acked)));
    }
    if let Some((seq, txn)) = state.window.oldest()
        && lsn > txn.lsn
    {
        findings.push((Invariant::F1, format!("{lsn} although transaction {seq} at {} is owed", txn.lsn)));
    }
    match cause {
        AckCause::Keepalive => {
            if !state.window.is_empty() {
                findings.push((Invariant::S5, "a keepalive acknowledged while something is owed".to_owned()));
            }
        }
        AckCause::Commit => {
            let boundary = if state.window.is_empty() {
                Lsn(state.stream.routed.0.saturating_add(1))
            } else {
                state.window.boundary()
            };
            if lsn != boundary {
                findings.push((Invariant::F9, format!("{lsn}, the fold says {boundary}")));
            }
        }
    }
}

fn check_shape(state: &State, event: &ShapeEvent, findings: &mut Findings) {
    if let ShapeEvent::Created { sid, handle, .. } = event {
        if *sid <= state.last_sid {
            findings.push((Invariant::L1, format!("shape {sid} is not new")));
        }
        if handle.micros <= state.last_handle_micros {
            findings.push((Invariant::L2, format!("handle {handle} is not newer than all before")));
        }
        return;
    }
    let Some(shape) = state.shape(event.sid()) else {
        findings.push((Invariant::L1, format!("{} of an unknown shape", event.name())));
        return;
    };
    let legal = match event {
        ShapeEvent::Created { .. } => true,
        ShapeEvent::Depends { sid, on } => {
            check_dependencies(state, *sid, on, findings);
            shape.life == Life::Registered && shape.routed_after.is_none()
        }
        ShapeEvent::Routed { .. } => shape.life == Life::Registered && shape.routed_after.is_none(),
        ShapeEvent::Unrouted { .. } => shape.life == Life::Invalidated,
        ShapeEvent::PublicationReady { .. } => shape.life < Life::Invalidated,
        ShapeEvent::SnapshotStarted { attempt, .. } => {
            shape.life == Life::Registered && *attempt == shape.snapshot_attempt + 1
        }
        ShapeEvent::SnapshotVisible { .. } => shape.life == Life::Registered,
        ShapeEvent::SnapshotCompleted { .. } => shape.life == Life::Snapshotting,
        ShapeEvent::SnapshotFailed { .. } => shape.life < Life::Live,
        ShapeEvent::Compacted { .. } => {
            if !state.owner.open_intents.is_announced(DestructionTarget::ShapeLog(event.sid())) {
                let detail = format!("the log of shape {} was replaced unannounced", event.sid());
                findings.push((Invariant::O3, detail));
            }
            // It may have ended meanwhile.
            shape.life >= Life::Live
        }
        ShapeEvent::Invalidated { .. } => shape.life < Life::Invalidated,
        ShapeEvent::StepDone { step, .. } => {
            shape.life == Life::Invalidated
                && match step {
                    RemovalStep::WriterStopped => shape.writer == Writer::Absent,
                    RemovalStep::SnapshotStopped => true,
                    RemovalStep::FilesTrashed => shape.steps.writer_stopped && shape.steps.snapshot_stopped,
                }
        }
        ShapeEvent::Gone { .. } => shape.steps.files_trashed,
    };
    if !legal {
        findings.push((Invariant::L1, format!("{} of a shape that is {:?}", event.name(), shape.life)));
    }
    if matches!(event, ShapeEvent::SnapshotVisible { .. }) && shape.routed_after.is_none() {
        findings.push((Invariant::N2, format!("shape {} is not routed yet", event.sid())));
    }
}

fn check_dependencies(state: &State, sid: Sid, on: &[Sid], findings: &mut Findings) {
    let over = |sid: &&Sid| state.shape(**sid).is_none_or(|inner| inner.life == Life::Invalidated);
    if let Some(ended) = on.iter().find(over) {
        findings.push((Invariant::L5, format!("shape {sid} depends on {ended}, which has ended")));
    }
}

fn check_consumer(state: &State, event: &ConsumerEvent, findings: &mut Findings) {
    let Some(shape) = state.shape(event.sid()) else {
        findings.push((Invariant::R1, format!("{} of an unknown shape", event.name())));
        return;
    };
    match event {
        ConsumerEvent::Started { incarnation, .. } => {
            let last = shape.last_incarnation;
            if shape.writer != Writer::Absent || *incarnation <= last {
                let detail =
                    format!("incarnation {incarnation} after {last} starts beside {:?}", shape.writer);
                findings.push((Invariant::R2, detail));
            } else if *incarnation != last.next() {
                findings.push((Invariant::R1, format!("incarnation {incarnation} follows {last}")));
            }
        }
        ConsumerEvent::Stopping { incarnation, cause, .. } => {
            if shape.writer.incarnation() != Some(*incarnation) {
                findings.push((Invariant::R1, format!("incarnation {incarnation} is not the living one")));
            }
            if *cause == ExitCause::Suspended && !shape.pending.is_empty() {
                findings.push((Invariant::R4, format!("suspended with {} pending", shape.pending.len())));
            }
        }
        ConsumerEvent::Ready { incarnation, .. } | ConsumerEvent::Exited { incarnation, .. } => {
            if shape.writer.incarnation() != Some(*incarnation) {
                findings.push((Invariant::R1, format!("incarnation {incarnation} is not the living one")));
            }
        }
        ConsumerEvent::RestartScheduled { .. } => {
            if shape.pending.is_empty() {
                findings.push((Invariant::R1, "a restart with nothing to replay".to_owned()));
            }
        }
        ConsumerEvent::StallSuspected { .. } => {}
    }
}
