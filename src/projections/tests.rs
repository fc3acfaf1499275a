//! Comparing views with the fold a part at a time finds what comparing them at once finds.

use super::{FlushTracker, Projections};
use crate::domain::{DefinitionHash, EventId, Handle, Oid, Sid, Timestamp};
use crate::events::{Event, ProjectionName, Recorded, ShapeEvent};
use crate::state::State;

fn with_shapes(count: u32) -> (State, Projections) {
    let (mut state, mut projections) = (State::default(), Projections::default());
    for number in 1..=count {
        let recorded = Recorded {
            id: EventId(u64::from(number)),
            at: Timestamp(1_000),
            epoch: crate::domain::Epoch(1),
            because: None,
            event: Event::Shape(ShapeEvent::Created {
                sid: Sid(number),
                handle: Handle { hash: u64::from(number % 7), micros: u64::from(number) },
                definition: DefinitionHash(u64::from(number % 7)),
                oid: Oid(number % 3),
            }),
        };
        state.apply(&recorded);
        projections.apply(&state, &recorded);
    }
    (state, projections)
}

/// What a whole round of parts finds, and how many parts it had.
fn round(state: &State, projections: &Projections, count: usize) -> (Vec<ProjectionName>, usize) {
    let (mut found, mut after, mut parts) = (Vec::new(), None, 0);
    loop {
        let (drifted, last) = projections.drifted_among(state, after, count);
        parts += 1;
        found.extend(drifted);
        match last {
            Some(_) => after = last,
            None => break,
        }
    }
    found.dedup();
    (found, parts)
}

#[test]
fn parts_cover_everything_once() {
    for (shapes, count, parts) in
        [(0, 4, 1), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, 4, 3), (9, 1, 9)]
    {
        let (state, projections) = with_shapes(shapes);
        assert_eq!(round(&state, &projections, count), (vec![], parts), "{shapes} shapes, {count} a part");
    }
}

#[test]
fn every_view_is_compared() {
    let names = [ProjectionName::Registry, ProjectionName::FlushTracker, ProjectionName::ShapeIndex];
    for name in names {
        let (state, mut projections) = with_shapes(10);
        projections.meddle(name);
        assert!(round(&state, &projections, 3).0.contains(&name), "{name:?}");
        assert_eq!(projections.drifted(&state), [name], "and at once");
    }
    let (state, mut projections) = with_shapes(10);
    projections.flush_tracker = FlushTracker::default();
    assert_eq!(projections.drifted(&state), round(&state, &projections, 3).0, "nothing is owed in both");
}

/// A shape that a view has and the state has not, and the other way round.
#[test]
fn what_one_side_lacks_is_found() {
    let (state, _) = with_shapes(10);
    let (more, projections_of_more) = with_shapes(11);
    let (_, projections) = with_shapes(10);
    assert_eq!(round(&state, &projections_of_more, 4).0, [ProjectionName::ShapeIndex]);
    assert_eq!(round(&more, &projections, 4).0, [ProjectionName::ShapeIndex]);
}
