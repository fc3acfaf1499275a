//! One shape's life, told in sentences.

use crate::domain::{EventId, Seq, Sid, Timestamp};
use crate::events::{Event, FlushEvent, Recorded, StreamEvent};
use crate::projections::forensics::{Names, commas, concerns, sentence};
use crate::state::State;

/// One sentence, with the event that it begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub event: EventId,
    pub at: Timestamp,
    pub because: Option<EventId>,
    pub text: String,
}

/// Runs of transactions and of flushes become one sentence each; everything else is told event by
/// event.
#[derive(Clone, Debug)]
pub struct LifeStory {
    sid: Sid,
    /// Transactions that it owed after the event before.
    owed: usize,
    run: Option<Run>,
}

#[derive(Clone, Debug)]
struct Run {
    first: (EventId, Timestamp),
    last: Timestamp,
    routed: u64,
    bytes: u64,
    seqs: Option<(Seq, Seq)>,
    flushed: Option<Seq>,
}

impl LifeStory {
    #[must_use]
    pub fn of(sid: Sid) -> LifeStory {
        LifeStory { sid, owed: 0, run: None }
    }

    /// Hears the next event; all of them, in order. `state` is the state after it.
    pub fn hear(&mut self, state: &State, recorded: &Recorded, names: &Names) -> Vec<Line> {
        if self.extends_run(state, recorded) {
            return Vec::new();
        }
        if !concerns(&recorded.event, self.sid) || is_flow(&recorded.event) {
            return Vec::new();
        }
        let mut lines: Vec<Line> = self.finish().into_iter().collect();
        let text = sentence(&recorded.event, names);
        let own = format!("shape {}: ", names.call(self.sid));
        let text = text.strip_prefix(&own).unwrap_or(&text).to_owned();
        lines.push(Line { event: recorded.id, at: recorded.at, because: recorded.because, text });
        lines
    }

    /// The sentence about the transactions since the last one.
    pub fn finish(&mut self) -> Option<Line> {
        let run = self.run.take()?;
        let mut parts = Vec::new();
        if let Some((first, last)) = run.seqs {
            let numbers =
                if first == last { format!("number {first}") } else { format!("{first} to {last}") };
            let plural = if run.routed == 1 { "transaction" } else { "transactions" };
            parts.push(format!(
                "was sent {} {plural} ({numbers}, {} bytes)",
                commas(run.routed),
                commas(run.bytes)
            ));
        }
        if let Some(upto) = run.flushed {
            parts.push(format!("flushed up to transaction {upto}"));
        }
        let until = if run.last == run.first.1 { String::new() } else { format!(", until {}", run.last) };
        Some(Line {
            event: run.first.0,
            at: run.first.1,
            because: None,
            text: format!("{}{until}", parts.join(" and ")),
        })
    }

    /// Whether the event is a transaction for this shape or moved its flushed position.
    fn extends_run(&mut self, state: &State, recorded: &Recorded) -> bool {
        let shape = state.shape(self.sid);
        let owes = shape.map_or(0, |shape| shape.pending.len());
        let owed = std::mem::replace(&mut self.owed, owes);
        let routed = match &recorded.event {
            Event::Stream(StreamEvent::TxnRouted { seq, set, bytes, .. }) if set.contains(self.sid) => {
                Some((*seq, *bytes))
            }
            Event::Stream(_)
            | Event::Flush(_)
            | Event::Shape(_)
            | Event::Consumer(_)
            | Event::Ownership(_)
            | Event::Journal(_) => None,
        };
        let moved = matches!(recorded.event, Event::Flush(_)) && owes < owed;
        if routed.is_none() && !moved {
            return false;
        }
        let run = self.run.get_or_insert(Run {
            first: (recorded.id, recorded.at),
            last: recorded.at,
            routed: 0,
            bytes: 0,
            seqs: None,
            flushed: None,
        });
        run.last = recorded.at;
        if let Some((seq, bytes)) = routed {
            run.routed += 1;
            run.bytes += bytes;
            run.seqs = Some((run.seqs.map_or(seq, |(first, _)| first), seq));
        }
        if moved {
            run.flushed = shape.map(|shape| shape.flushed);
        }
        true
    }
}

/// Transactions and flushes are told in runs.
fn is_flow(event: &Event) -> bool {
    match event {
        Event::Stream(StreamEvent::TxnRouted { .. })
        | Event::Flush(FlushEvent::Watermark { .. } | FlushEvent::Flushed { .. }) => true,
        Event::Stream(_)
        | Event::Flush(_)
        | Event::Consumer(_)
        | Event::Ownership(_)
        | Event::Shape(_)
        | Event::Journal(_) => false,
    }
}
