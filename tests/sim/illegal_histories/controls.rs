//! No rule without a history that breaks it: the match below names each, so that a new one does not compile
//! without.

use std::collections::BTreeSet;

use shapefold::domain::{DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Sid};
use shapefold::events::{AckCause, ConsumerEvent, ExitCause, OwnershipEvent, ShapeEvent, StreamEvent};
use shapefold::projections::forensics::Invariant;

use super::{History, SHAPE, TABLE, duties, flushing, owning, snapshots};

/// A history that breaks the rule.
fn control(invariant: Invariant) -> History {
    let mut history = History::streaming();
    match invariant {
        Invariant::J1 => history.recorded[1].because = Some(EventId(2)),
        Invariant::J2 | Invariant::F5 => return flushing::counted_wrong(),
        Invariant::O1 => {
            history.acquire(1);
        }
        Invariant::O2 | Invariant::O7 => return owning::written_by_one_that_waits(),
        Invariant::O3 => {
            history.intend(1);
        }
        Invariant::O4 => {
            let released = OwnershipEvent::Released { epoch: Epoch(1), pending: 0, acked: Lsn(0) };
            history.start(1).then(released);
        }
        Invariant::O5 => return owning::ended_by_a_start(),
        Invariant::O6 => return owning::removed_after_the_directory(),
        Invariant::O8 => {
            let generation = Generation(1);
            history.then(StreamEvent::LockLost { generation }).route(1, 200, 20, &[]);
        }
        Invariant::S1 => {
            history.route(2, 200, 20, &[]);
        }
        Invariant::S2 => return flushing::handed_out_twice(),
        Invariant::S3 => return flushing::flushed_by_nobody(),
        Invariant::S4 => return flushing::flushed_and_never_handed_over(),
        Invariant::S5 => {
            history.route(1, 200, 20, &[SHAPE]).start(1).ack(150, AckCause::Keepalive);
        }
        Invariant::L1 => {
            history.invalidate().invalidate();
        }
        Invariant::L2 => {
            history.create(Sid(2), 1);
        }
        Invariant::L3 => return duties::lives_on_in_a_shortened_journal(),
        Invariant::L4 => {
            history.invalidate().route(1, 200, 20, &[SHAPE]);
        }
        Invariant::L5 => return duties::outlives_its_inner_query(),
        Invariant::L7 => return duties::half_a_snapshot_survives_a_start(),
        Invariant::R1 => {
            history.start(2);
        }
        Invariant::R2 => {
            history.start(1).start(2);
        }
        Invariant::R3 => return duties::nobody_takes_it(),
        Invariant::R4 => {
            let (sid, incarnation, cause) = (SHAPE, Incarnation(1), ExitCause::Suspended);
            history.route(1, 200, 20, &[SHAPE]).start(1);
            history.then(ConsumerEvent::Stopping { sid, incarnation, cause });
        }
        Invariant::N1 => {
            history.route(1, 50, 5, &[SHAPE]);
        }
        Invariant::N2 => {
            let (sid, handle) = (Sid(2), Handle { hash: 2, micros: 2 });
            history.then(ShapeEvent::Created { sid, handle, definition: DefinitionHash(2), oid: TABLE });
            history.snapshot(sid);
        }
        Invariant::N3 => return snapshots::before_it_is_published(),
        Invariant::N4 => return snapshots::lacks_what_was_decoded_before(),
        Invariant::N5 => return snapshots::waits_without_bound(100_002),
        Invariant::N6 => return snapshots::completed_in_spite_of_a_fault(),
        Invariant::F1 | Invariant::F9 => {
            history.route(1, 200, 20, &[SHAPE]).start(1).ack(201, AckCause::Commit);
        }
        Invariant::F2 => {
            history.route(1, 200, 20, &[SHAPE]);
        }
        Invariant::F3 => return flushing::suspected_for_ever(),
        Invariant::F4 => return flushing::ends_and_conceals(),
        Invariant::F6 => {
            history.ack(150, AckCause::Keepalive).ack(150, AckCause::Keepalive);
        }
        Invariant::F7 => return flushing::held_against_it(),
        Invariant::F8 => return flushing::flushed_in_spite_of_a_fault(),
        Invariant::F10 => return flushing::held_in_silence(),
    }
    history
}

#[test]
fn every_rule_is_broken_by_its_control() {
    let all: BTreeSet<Invariant> = Invariant::ALL.into_iter().collect();
    assert_eq!(all.len(), Invariant::ALL.len(), "one is there twice");
    for invariant in Invariant::ALL {
        let broken = control(invariant).broken();
        assert!(broken.contains(&invariant), "{invariant} is not broken: {broken:?}");
    }
}
