//! Who owns the directory, and what is no reason to destroy anything.

use shapefold::domain::{Epoch, Generation, Lsn};
use shapefold::events::{
    DrainCause, FaultClass, FileKind, InvalidationCause, OwnershipEvent, PreviousEnd, ProcessInfo,
    ShapeEvent, Stage, StreamEvent,
};
use shapefold::projections::forensics::Invariant;

use super::{History, SHAPE};

fn process(format: u32) -> OwnershipEvent {
    OwnershipEvent::ProcessStarted(ProcessInfo { format, ..ProcessInfo::default() })
}

fn damaged() -> ShapeEvent {
    ShapeEvent::Invalidated { sid: SHAPE, cause: InvalidationCause::StorageDamaged }
}

pub fn ended_by_a_start() -> History {
    let mut history = History::streaming();
    history.acquire(2).then(process(1)).because(damaged());
    history
}

#[test]
fn o5_ended_by_a_start_and_an_older_layout() {
    ended_by_a_start().breaks(&[Invariant::O5]);
    let mut older = History::streaming();
    older.acquire(2).then(process(2)).acquire(3).then(process(1));
    older.breaks(&[Invariant::O5]);
    let mut newer = History::streaming();
    newer.acquire(2).then(process(1)).acquire(3).then(process(2)).acquire(4).then(process(2));
    newer.breaks(&[]);
    let mut removed = History::streaming();
    removed.invalidate().acquire(2).intend(1);
    removed.recorded.last_mut().expect("an event").because =
        Some(removed.recorded[removed.recorded.len() - 2].id);
    removed.breaks(&[Invariant::O5]);
}

pub fn removed_after_the_directory() -> History {
    let mut history = History::streaming();
    history.fault(FaultClass::Vanished, Stage::Open, FileKind::Directory, None).invalidate().intend(1);
    history
}

#[test]
fn o6_blamed_for_a_directory_that_is_gone() {
    removed_after_the_directory().breaks(&[Invariant::O6, Invariant::O6]);
    let mut given_back = History::streaming();
    given_back
        .fault(FaultClass::Vanished, Stage::Open, FileKind::Directory, None)
        .then(OwnershipEvent::Released { epoch: Epoch(1), pending: 0, acked: Lsn(0) });
    given_back.breaks(&[Invariant::O6]);
    // Alone, and while nobody is taking the directory away, it ends that shape.
    for (draining, expected) in [(false, &[][..]), (true, &[Invariant::O6][..])] {
        let mut alone = History::streaming();
        if draining {
            alone.then(OwnershipEvent::DrainStarted { cause: DrainCause::Signal });
        }
        alone.fault(FaultClass::Vanished, Stage::Read, FileKind::ShapeLog, Some(SHAPE)).because(damaged());
        alone.breaks(expected);
    }
}

pub fn written_by_one_that_waits() -> History {
    let mut history = History::streaming();
    history.epoch = Epoch(2);
    history.then(StreamEvent::RoutedNothing { generation: Generation(1), upto: Lsn(200), txns: 1 });
    history
}

#[test]
fn o7_written_by_one_that_waits() {
    written_by_one_that_waits().breaks(&[Invariant::O2, Invariant::O7]);
    let mut nobody = History::default();
    nobody.then(process(1));
    nobody.breaks(&[Invariant::O7]);
}

#[test]
fn o1_a_second_owner_beside_the_first() {
    let mut history = History::streaming();
    history.then(OwnershipEvent::Acquired {
        epoch: Epoch(2),
        previous: Epoch(1),
        previous_end: PreviousEnd::Released,
        device: 1,
        inode: 1,
        waited_ms: 0,
    });
    history.breaks(&[Invariant::O1]);
}
