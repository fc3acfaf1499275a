//! Questions to a state that are true or false: what `bisect` looks for.
//!
//! ```text
//! predicate := term { "and" term }
//! term      := [ "not" ] ( shape | measure )
//! shape     := NAME "(" HANDLE ")"                NAME: pending, writer, exists, invalidated, suspected
//! measure   := MEASURE ( ">" | ">=" | "<" | "<=" | "=" ) AMOUNT
//!            | MEASURE "stalled for" SPAN
//! MEASURE   := gap | shapes | pending | writers | window | epoch | acked | boundary | received | invalidated
//! AMOUNT    := 1574459193 | 1,574,459,193 | 1.5 GB | 16/B374D848
//! SPAN      := 250 ms | 60s | 5 min | 2 h
//! ```
//!
//! `gap` is in bytes, `pending` counts shapes that owe something, `invalidated` counts how many ended so
//! far. `stalled` measures how long a number has not changed while the gap was not 0.

use std::time::Duration;

use crate::domain::{Handle, Lsn, Sid, Timestamp};
use crate::events::{Event, Recorded, ShapeEvent};
use crate::projections::forensics::{gap, parse_bytes, parse_span};
use crate::projections::{FlushTracker, Projection, Registry};
use crate::state::{Life, State};

/// The text is not of the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot read the predicate at {0:?}: say for example `gap > 1.5 GB`, `pending(HANDLE)`, `not writer(HANDLE)`, `acked stalled for 60s`, `shapes > 500`"
)]
pub struct PredicateError(String);

/// A parsed predicate.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate(Vec<Term>);

#[derive(Clone, Debug, PartialEq)]
struct Term {
    negated: bool,
    atom: Atom,
}

#[derive(Clone, Debug, PartialEq)]
enum Atom {
    Shape(ShapeFact, Handle),
    Compare(Measure, Comparison, u64),
    Stalled(Measure, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShapeFact {
    Pending,
    Writer,
    Exists,
    Invalidated,
    Suspected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Measure {
    Gap,
    Shapes,
    Pending,
    Writers,
    Window,
    Epoch,
    Acked,
    Boundary,
    Received,
    Invalidated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    More,
    AtLeast,
    Less,
    AtMost,
    Equal,
}

impl std::str::FromStr for Predicate {
    type Err = PredicateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let terms = text.split(" and ").map(str::trim);
        terms
            .map(|term| {
                let rest = term.strip_prefix("not ").map(str::trim_start);
                let atom = atom(rest.unwrap_or(term)).ok_or_else(|| PredicateError(term.to_owned()))?;
                Ok(Term { negated: rest.is_some(), atom })
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Predicate)
    }
}

fn atom(text: &str) -> Option<Atom> {
    if let Some((name, rest)) = text.split_once('(') {
        let fact = match name.trim() {
            "pending" => ShapeFact::Pending,
            "writer" => ShapeFact::Writer,
            "exists" => ShapeFact::Exists,
            "invalidated" => ShapeFact::Invalidated,
            "suspected" => ShapeFact::Suspected,
            _ => return None,
        };
        return Some(Atom::Shape(fact, rest.strip_suffix(')')?.trim().parse().ok()?));
    }
    if let Some((measure, span)) = text.split_once("stalled for") {
        return Some(Atom::Stalled(self::measure(measure)?, parse_span(span)?));
    }
    let at = text.find(['>', '<', '='])?;
    let (name, rest) = text.split_at(at);
    let signs = [
        (">=", Comparison::AtLeast),
        ("<=", Comparison::AtMost),
        (">", Comparison::More),
        ("<", Comparison::Less),
        ("=", Comparison::Equal),
    ];
    let (comparison, amount) =
        signs.iter().find_map(|(sign, comparison)| Some((*comparison, rest.strip_prefix(sign)?)))?;
    let amount = match amount.trim().parse::<Lsn>() {
        Ok(lsn) => lsn.0,
        Err(_) => parse_bytes(amount)?,
    };
    Some(Atom::Compare(measure(name)?, comparison, amount))
}

fn measure(name: &str) -> Option<Measure> {
    Some(match name.trim() {
        "gap" => Measure::Gap,
        "shapes" => Measure::Shapes,
        "pending" => Measure::Pending,
        "writers" => Measure::Writers,
        "window" => Measure::Window,
        "epoch" => Measure::Epoch,
        "acked" => Measure::Acked,
        "boundary" => Measure::Boundary,
        "received" => Measure::Received,
        "invalidated" => Measure::Invalidated,
        _ => return None,
    })
}

/// Follows a history and answers a predicate after each event.
#[derive(Clone, Debug)]
pub struct Watch {
    predicate: Predicate,
    tracker: FlushTracker,
    registry: Registry,
    invalidated: u64,
    /// Per term: the shape meant, and whether it has been seen to exist and to end.
    shapes: Vec<Option<Sid>>,
    /// Per term: the number when it last changed, and since when it stands.
    standing: Vec<Option<(u64, Timestamp)>>,
}

impl Watch {
    /// From a state on; what it says already is not asked again.
    #[must_use]
    pub fn new(predicate: Predicate, state: &State) -> Watch {
        let find = |term: &Term| match term.atom {
            Atom::Shape(_, handle) => {
                state.shapes.iter().find(|(_, shape)| shape.handle == handle).map(|(sid, _)| *sid)
            }
            Atom::Compare(..) | Atom::Stalled(..) => None,
        };
        let shapes = predicate.0.iter().map(find).collect();
        let standing = vec![None; predicate.0.len()];
        let (tracker, registry) = (FlushTracker::recompute(state), Registry::recompute(state));
        Watch { predicate, tracker, registry, invalidated: 0, shapes, standing }
    }

    /// Whether the predicate holds after this event; `state` is the state after it.
    pub fn holds_after(&mut self, state: &State, recorded: &Recorded) -> bool {
        self.tracker.apply(state, recorded);
        self.registry.apply(state, recorded);
        match &recorded.event {
            Event::Shape(ShapeEvent::Created { sid, handle, .. }) => {
                for (term, slot) in self.predicate.0.iter().zip(&mut self.shapes) {
                    if matches!(term.atom, Atom::Shape(_, wanted) if wanted == *handle) {
                        *slot = Some(*sid);
                    }
                }
            }
            Event::Shape(ShapeEvent::Invalidated { .. }) => self.invalidated += 1,
            Event::Shape(_)
            | Event::Ownership(_)
            | Event::Stream(_)
            | Event::Consumer(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
        // Every term sees every event, also where an earlier one is false already.
        let answers: Vec<bool> =
            (0..self.predicate.0.len()).map(|index| self.answer(index, state, recorded.at)).collect();
        answers.into_iter().all(|answer| answer)
    }

    fn answer(&mut self, index: usize, state: &State, now: Timestamp) -> bool {
        let term = &self.predicate.0[index];
        let (negated, atom) = (term.negated, term.atom.clone());
        let holds = match atom {
            Atom::Shape(fact, _) => self.shape_fact(index, fact, state),
            Atom::Compare(measure, comparison, amount) => {
                let value = self.value(measure, state);
                match comparison {
                    Comparison::More => value > amount,
                    Comparison::AtLeast => value >= amount,
                    Comparison::Less => value < amount,
                    Comparison::AtMost => value <= amount,
                    Comparison::Equal => value == amount,
                }
            }
            Atom::Stalled(measure, span) => {
                let value = self.value(measure, state);
                let idle = gap(state).2 == 0;
                match self.standing[index] {
                    _ if idle => {
                        self.standing[index] = None;
                        false
                    }
                    Some((standing, since)) if standing == value => now.since(since) >= span,
                    Some(_) | None => {
                        self.standing[index] = Some((value, now));
                        false
                    }
                }
            }
        };
        holds != negated
    }

    fn shape_fact(&self, index: usize, fact: ShapeFact, state: &State) -> bool {
        let Some(sid) = self.shapes[index] else { return false };
        let shape = state.shape(sid);
        match fact {
            ShapeFact::Pending => shape.is_some_and(|shape| !shape.pending.is_empty()),
            ShapeFact::Writer => shape.is_some_and(|shape| shape.writer.incarnation().is_some()),
            ShapeFact::Exists => shape.is_some_and(|shape| shape.life != Life::Invalidated),
            ShapeFact::Invalidated => shape.is_none_or(|shape| shape.life == Life::Invalidated),
            ShapeFact::Suspected => shape.is_some_and(|shape| shape.suspected),
        }
    }

    fn value(&self, measure: Measure, state: &State) -> u64 {
        let (received, boundary, bytes) = gap(state);
        match measure {
            Measure::Gap => bytes,
            Measure::Shapes => state.shapes.len() as u64,
            Measure::Pending => self.tracker.pending_shapes() as u64,
            Measure::Writers => self.registry.len() as u64,
            Measure::Window => state.window.len() as u64,
            Measure::Epoch => state.owner.epoch.0,
            Measure::Acked => state.stream.acked.0,
            Measure::Boundary => boundary.0,
            Measure::Received => received.0,
            Measure::Invalidated => self.invalidated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_read_and_nothing_else() {
        for good in [
            "gap > 1.5 GB",
            "gap>=1,574,459,193",
            "pending(94359551-1773923988150221)",
            "not writer(1-2) and pending(1-2)",
            "acked stalled for 60s",
            "shapes > 500 and boundary < 1/F8282607",
            "epoch = 2",
        ] {
            assert!(good.parse::<Predicate>().is_ok(), "{good}");
        }
        for bad in
            ["", "gap", "gap > ", "gap ~ 5", "pending()", "size > 5", "acked stalled for 60", "gap > 1 and"]
        {
            assert!(bad.parse::<Predicate>().is_err(), "{bad}");
        }
    }
}
