//! A page of the acknowledgements, judged.

use crate::projections::forensics::{Ack, AckSummary, Position, judge};
use crate::state::State;

use super::Source;

/// The acknowledgements from one place to another, judged against the fold that begins with `state`: all of
/// them in short, and `limit` of them behind the first `offset`. With `broken` only those that passed
/// something owed are counted off and kept.
#[must_use]
pub fn acks(
    source: &Source,
    mut state: State,
    (from, to): (Position, Position),
    broken: bool,
    (offset, limit): (usize, usize),
) -> (AckSummary, Vec<Ack>) {
    let (mut summary, mut kept, mut begun, mut passed) = (AckSummary::default(), Vec::new(), false, 0);
    for recorded in source.events(state.last.next()) {
        if to.is_passed_by(&recorded) {
            break;
        }
        begun = begun || from.is_reached_by(&recorded);
        if let Some(ack) = judge(&state, &recorded).filter(|_| begun) {
            summary.add(&ack);
            if !broken || !ack.safe {
                passed += 1;
                if passed > offset && kept.len() < limit {
                    kept.push(ack);
                }
            }
        }
        state.apply(&recorded);
    }
    (summary, kept)
}
