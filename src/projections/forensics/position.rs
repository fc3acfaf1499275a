//! One grammar for places in a history.

use std::fmt;
use std::str::FromStr;

use crate::domain::{EventId, Lsn, MICROS_PER_DAY, Timestamp, micros_of_day};
use crate::events::{Event, Recorded, StreamEvent};
use crate::state::State;

/// Where in a history: `1234` (an event), `2026-03-20T13:41:02Z`, `13:41:02` (of the newest day that
/// has it), `16/B374D848` (an LSN), `end`.
///
/// The state *at* a position is the fold of every event that is not beyond it. An event is beyond an
/// LSN once a commit above it has been processed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Position {
    #[default]
    End,
    Event(EventId),
    Time(Timestamp),
    /// Microseconds since midnight, UTC.
    TimeOfDay(i64),
    Lsn(Lsn),
}

/// The text names no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an event (1234), a time (2026-03-20T13:41:02Z or 13:41:02), an LSN (16/B374D848) or end")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let parsed = if text == "end" {
            Some(Position::End)
        } else if digits {
            text.parse().ok().map(|id| Position::Event(EventId(id)))
        } else if text.contains('/') {
            text.parse().ok().map(Position::Lsn)
        } else if text.contains('-') {
            text.parse().ok().map(Position::Time)
        } else {
            micros_of_day(text.trim_end_matches('Z')).ok().map(Position::TimeOfDay)
        };
        parsed.ok_or(ParsePositionError)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::End => f.write_str("the end"),
            Position::Event(id) => write!(f, "event {id}"),
            Position::Time(at) => write!(f, "{at}"),
            Position::TimeOfDay(micros) => {
                let seconds = micros / 1_000_000;
                write!(f, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
            }
            Position::Lsn(lsn) => write!(f, "LSN {lsn}"),
        }
    }
}

impl Position {
    /// A time of day becomes the newest such moment that is not after `newest`.
    #[must_use]
    pub fn resolve(self, newest: Timestamp) -> Position {
        let Position::TimeOfDay(micros) = self else { return self };
        let midnight = newest.0 - newest.0.rem_euclid(MICROS_PER_DAY);
        let today = midnight + micros;
        Position::Time(Timestamp(if today > newest.0 { today - MICROS_PER_DAY } else { today }))
    }

    /// Whether the event lies behind this place. Events behind it may follow that, by themselves, do
    /// not tell (an LSN): the first one that does ends what is at or before the place.
    #[must_use]
    pub fn is_passed_by(&self, recorded: &Recorded) -> bool {
        match self {
            Position::End | Position::TimeOfDay(_) => false,
            Position::Event(id) => recorded.id > *id,
            Position::Time(at) => recorded.at > *at,
            Position::Lsn(lsn) => commit_of(&recorded.event).is_some_and(|commit| commit > *lsn),
        }
    }

    /// Whether a range that begins here begins with this event, if it did not before.
    #[must_use]
    pub fn is_reached_by(&self, recorded: &Recorded) -> bool {
        match self {
            Position::End | Position::TimeOfDay(_) => false,
            Position::Event(id) => recorded.id >= *id,
            Position::Time(at) => recorded.at >= *at,
            Position::Lsn(lsn) => commit_of(&recorded.event).is_some_and(|commit| commit >= *lsn),
        }
    }

    /// Whether a fold that has come to `state` has not gone beyond this place, and may be carried on
    /// to it.
    #[must_use]
    pub fn is_ahead_of(&self, state: &State) -> bool {
        self.is_ahead_of_fold(state.last, state.at, state.stream.routed)
    }

    /// The same, of a fold of which only the last event, the newest time and the LSN up to which it has
    /// routed are known.
    #[must_use]
    pub fn is_ahead_of_fold(&self, last: EventId, newest: Timestamp, routed: Lsn) -> bool {
        match self {
            Position::End => true,
            Position::TimeOfDay(_) => false,
            Position::Event(id) => last <= *id,
            Position::Time(at) => newest <= *at,
            Position::Lsn(lsn) => routed <= *lsn,
        }
    }
}

fn commit_of(event: &Event) -> Option<Lsn> {
    match event {
        Event::Stream(StreamEvent::TxnRouted { lsn, .. } | StreamEvent::RoutedNothing { upto: lsn, .. }) => {
            Some(*lsn)
        }
        Event::Stream(_)
        | Event::Ownership(_)
        | Event::Shape(_)
        | Event::Consumer(_)
        | Event::Flush(_)
        | Event::Journal(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_told_from_every_other() {
        let day = "2026-03-20T13:41:02Z".parse().unwrap();
        for (text, position) in [
            ("1234", Position::Event(EventId(1234))),
            ("2026-03-20T13:41:02Z", Position::Time(day)),
            ("13:41:02", Position::TimeOfDay(49_262_000_000)),
            ("13:41Z", Position::TimeOfDay(49_260_000_000)),
            ("16/B374D848", Position::Lsn(Lsn(0x16_B374_D848))),
            ("end", Position::End),
        ] {
            assert_eq!(text.parse(), Ok(position), "{text}");
        }
        for bad in ["", "x", "25:00", "1/2/3", "2026-03", "12 34", "-1"] {
            assert_eq!(bad.parse::<Position>(), Err(ParsePositionError), "{bad}");
        }
    }

    #[test]
    fn a_time_of_day_is_the_newest_one() {
        let newest: Timestamp = "2026-03-20T13:41:02Z".parse().unwrap();
        for (text, moment) in [
            ("13:41:02", "2026-03-20T13:41:02Z"),
            ("13:41:03", "2026-03-19T13:41:03Z"),
            ("00:00", "2026-03-20"),
        ] {
            let position: Position = text.parse().unwrap();
            assert_eq!(position.resolve(newest), Position::Time(moment.parse().unwrap()), "{text}");
        }
    }
}
