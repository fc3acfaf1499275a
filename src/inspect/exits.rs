//! How the writers ended of the shapes that owe something and have none: long ago perhaps, in a journal of millions.
//!
//! A state of the archive tells of each shape whether its last writer had ended by then. So the stretch between two
//! states in which it ended is found by halving, and only that one is read.

use std::collections::BTreeMap;

use crate::domain::{EventId, Incarnation, Sid};
use crate::events::{ConsumerEvent, Event};
use crate::journal::ArchivedState;
use crate::projections::forensics::LastExits;
use crate::state::State;

use super::Source;
use super::source::{archived_state, sample_exit};

/// Events that are read through rather than halved.
const READ_THROUGH_MAX: u64 = 20_000;

/// Shapes whose last writer is looked for, with its number.
type Wanted = BTreeMap<Sid, Incarnation>;

/// As of `state`.
pub(super) fn exits(source: &Source, state: &State) -> LastExits {
    let mut exits = LastExits::default();
    let orphans = state
        .shapes
        .iter()
        .filter(|(_, shape)| !shape.pending.is_empty() && shape.writer.incarnation().is_none());
    let wanted: Wanted = orphans.clone().map(|(sid, shape)| (*sid, shape.last_incarnation)).collect();
    let Some(from) = orphans.map(|(_, shape)| shape.created).min() else { return exits };
    let known: Vec<&ArchivedState> = source
        .journal()
        .states()
        .iter()
        .filter(|known| known.mark.upto > from && known.mark.upto < state.last)
        .collect();
    let mut missing = between(source, wanted, &known, (from, state.last), &mut exits);
    // Nobody told how it ended: a crash. How the one before it ended is looked for everywhere.
    missing.retain(|_, incarnation| *incarnation > Incarnation(0));
    if !missing.is_empty() && !known.is_empty() {
        read(source, &mut missing, (from, state.last), &mut exits);
    }
    exits
}

/// Looks in the events from `first` to `last`, between which the states are known; whose exit is not there.
fn between(
    source: &Source,
    mut wanted: Wanted,
    known: &[&ArchivedState],
    (first, last): (EventId, EventId),
    exits: &mut LastExits,
) -> Wanted {
    if wanted.is_empty() {
        return wanted;
    }
    if known.is_empty() || last.0.saturating_sub(first.0) <= READ_THROUGH_MAX {
        read(source, &mut wanted, (first, last), exits);
        return wanted;
    }
    let (earlier, rest) = known.split_at(known.len() / 2);
    let Some((middle, later)) = rest.split_first() else { return wanted };
    let Some(there) = archived_state(middle) else {
        // As if it were not there.
        let others: Vec<&ArchivedState> = earlier.iter().chain(later).copied().collect();
        return between(source, wanted, &others, (first, last), exits);
    };
    let has_ended = |sid: &Sid, incarnation: &Incarnation| {
        there.shapes.get(sid).is_some_and(|shape| {
            shape.last_incarnation == *incarnation && shape.writer.incarnation() != Some(*incarnation)
        })
    };
    let (before, after): (Wanted, Wanted) =
        wanted.into_iter().partition(|(sid, incarnation)| has_ended(sid, incarnation));
    let mut missing = between(source, before, earlier, (first, middle.mark.upto), exits);
    missing.extend(between(source, after, later, (middle.mark.upto.next(), last), exits));
    missing
}

/// Reads a stretch; what is found is no longer wanted.
fn read(source: &Source, wanted: &mut Wanted, (first, last): (EventId, EventId), exits: &mut LastExits) {
    let mut found = LastExits::default();
    for recorded in source.events_like(first, &sample_exit()).take_while(|recorded| recorded.id <= last) {
        if let Event::Consumer(ConsumerEvent::Exited { sid, .. }) = &recorded.event
            && wanted.contains_key(sid)
        {
            found.observe(&recorded);
        }
    }
    wanted.retain(|sid, _| match found.get(*sid) {
        Some(exit) => {
            exits.insert(*sid, *exit);
            false
        }
        None => true,
    });
}
