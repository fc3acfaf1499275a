//! A journal that is long enough for reading all of it to be avoided: what is found by halving is what reading finds.

use std::collections::BTreeMap;

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, Seq, Sid, Timestamp, Xid,
};
use shapefold::events::{ConsumerEvent, Event, ExitCause, Recorded, ShapeEvent, StreamEvent};
use shapefold::inspect::{Position, Source, why_ack};
use shapefold::projections::forensics::LastExit;
use shapefold::state::State;

use crate::golden::Story;
use crate::storage::seal;

const SHAPES: u32 = 60;
const EVENTS: u64 = 90_000;
const SEGMENT: usize = 10_000;

/// Writers that come and go; from some point on each shape's stays away, and the shape is owed something.
fn story() -> Story {
    let mut events: Vec<Event> = Vec::new();
    for number in 1..=SHAPES {
        let (sid, handle) = (Sid(number), Handle { hash: 7, micros: u64::from(number) });
        let (definition, oid) = (DefinitionHash(7), Oid(16_000));
        events.push(ShapeEvent::Created { sid, handle, definition, oid }.into());
        events.push(ShapeEvent::Routed { sid, after: Seq(0), after_lsn: Lsn(0) }.into());
    }
    let mut incarnations = BTreeMap::new();
    let (mut seq, mut turn) = (0_u64, 0_u32);
    while (events.len() as u64) < EVENTS {
        turn += 1;
        let sid = Sid(turn * 7 % SHAPES + 1);
        // Shape n is given up after n/60 of the way.
        let given_up = events.len() as u64 > EVENTS * u64::from(sid.0) / u64::from(SHAPES + 1);
        if given_up {
            seq += 1;
            let routed = StreamEvent::TxnRouted {
                seq: Seq(seq),
                generation: Generation(1),
                lsn: Lsn(seq * 100),
                xid: Xid(700),
                committed_at: Timestamp(0),
                changes: 1,
                bytes: 10,
                set: [sid].into_iter().collect(),
            };
            events.push(routed.into());
            continue;
        }
        let incarnation = *incarnations.entry(sid).and_modify(|one: &mut u32| *one += 1).or_insert(1);
        let (incarnation, cause) = (Incarnation(incarnation), ExitCause::Drained);
        events.push(ConsumerEvent::Started { sid, incarnation }.into());
        let (pending_oldest, pending) = (None, 0);
        events.push(ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest, pending }.into());
    }
    let recorded = |(id, event): (u64, Event)| Recorded {
        id: EventId(id),
        at: Timestamp(i64::try_from(id).expect("small")),
        epoch: Epoch(4),
        because: None,
        event,
    };
    let mut story = Story::new("2026-01-01");
    story.events = (1..).zip(events).map(recorded).collect();
    story
}

#[test]
fn how_writers_ended_is_found_without_reading_all() {
    let story = story();
    let dir = tempfile::tempdir().expect("a directory");
    for first in (1..=story.events.len()).step_by(SEGMENT) {
        seal(dir.path(), &story, first, (first + SEGMENT - 1).min(story.events.len()));
    }
    let source = Source::open(dir.path()).expect("opens");
    assert!(source.journal().states().len() > 4, "there is something to halve");
    for upto in [20_000, 55_555, EVENTS] {
        let (mut state, mut last) = (State::default(), BTreeMap::new());
        for recorded in story.events.iter().take_while(|recorded| recorded.id.0 <= upto) {
            state.apply(recorded);
            if let Event::Consumer(ConsumerEvent::Exited { sid, incarnation, cause, pending, .. }) =
                &recorded.event
            {
                let (event, at) = (recorded.id, recorded.at);
                let exit =
                    LastExit { event, at, incarnation: *incarnation, cause: *cause, pending: *pending };
                last.insert(*sid, exit);
            }
        }
        assert_eq!(source.fold(Position::Event(EventId(upto))), state);
        let exits = source.exits(&state);
        let owing = state.shapes.iter().filter(|(_, shape)| !shape.pending.is_empty());
        let mut orphans = 0;
        for (sid, _) in owing {
            assert_eq!(exits.get(*sid), last.get(sid), "shape {sid} at event {upto}");
            orphans += usize::from(last.contains_key(sid));
        }
        assert!(orphans > 5, "{orphans} at event {upto}");
        // Where the oldest transaction was routed is found near its place, too.
        let found = why_ack(&source, &state, &exits).first.and_then(|first| first.routed).expect("found");
        let oldest = state.window.oldest().map(|(seq, _)| seq);
        let first = story.events.iter().find(
            |one| matches!(one.event, Event::Stream(StreamEvent::TxnRouted { seq, .. }) if Some(seq) == oldest),
        );
        assert_eq!(Some(found.event), first.map(|one| one.id));
    }
}
