//! Why a shape ended or owes, and why the acknowledgement stands where it stands.

use std::time::Duration;

use crate::domain::{EventId, Generation, Handle, Lsn, Seq, Sid, SidSet, Timestamp, Xid};
use crate::events::{Event, InvalidationCause, Recorded, ShapeEvent, StreamEvent};
use crate::projections::forensics::{Holding, LastExits, Names, Payer, Position, payer, sentence};
use crate::state::State;

use super::{AskError, Source};

/// Links of a causal chain; a damaged journal might hold a longer one.
const CHAIN_MAX: usize = 64;

/// One event of a chain, in plain words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub event: EventId,
    pub at: Timestamp,
    pub text: String,
}

/// An event, and what it was decided upon, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// From the effect to the cause.
    pub links: Vec<Link>,
    pub end: ChainEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainEnd {
    /// The world told us.
    World,
    /// This event is not in the journal any more.
    Missing(EventId),
    /// It goes on for longer than anybody reads.
    Cut,
}

/// Why a shape stands as it stands.
#[derive(Clone, Debug)]
pub enum Reason {
    /// It lives and owes nothing.
    Settled(Handle),
    Owing(Box<Owing>),
    Ended(Chain),
    /// The journal does not say how it ended.
    Unknown,
}

/// A shape that owes something.
#[derive(Clone, Debug)]
pub struct Owing {
    pub sid: Sid,
    pub handle: Handle,
    pub pending: usize,
    pub oldest: Seq,
    /// Without flush progress for so long.
    pub idle: Duration,
    pub payer: Payer,
    /// Where the oldest transaction that it owes was sent to it.
    pub routed: Option<Link>,
    /// How its last writer ended, where it has none.
    pub exit: Option<Chain>,
}

/// Who holds the acknowledgement, and why.
#[derive(Clone, Debug)]
pub struct WhyAck {
    pub holding: Holding,
    /// The longest-owing shape.
    pub first: Option<Owing>,
}

/// An event and what it was decided upon, back to what the world told us.
#[must_use]
pub fn chain(source: &Source, names: &Names, event: EventId) -> Chain {
    let mut links = Vec::new();
    let mut next = event;
    while links.len() < CHAIN_MAX {
        let Some(recorded) = source.event(next) else {
            return Chain { links, end: ChainEnd::Missing(next) };
        };
        links.push(link(&recorded, names));
        match recorded.because {
            Some(because) => next = because,
            None => return Chain { links, end: ChainEnd::World },
        }
    }
    Chain { links, end: ChainEnd::Cut }
}

fn link(recorded: &Recorded, names: &Names) -> Link {
    Link { event: recorded.id, at: recorded.at, text: sentence(&recorded.event, names) }
}

/// Why the shape that somebody calls so stands as it stands in `state`.
///
/// # Errors
/// [`AskError::UnknownShape`].
pub fn why(source: &Source, state: &State, exits: &LastExits, called: &str) -> Result<Reason, AskError> {
    let sid = source.shape(called)?;
    if let Some(shape) = state.shape(sid)
        && shape.invalidated.is_none()
    {
        return Ok(match owing(source, state, exits, sid) {
            Some(owing) => Reason::Owing(Box::new(owing)),
            None => Reason::Settled(shape.handle),
        });
    }
    let ended = state.shape(sid).and_then(|shape| shape.invalidated).map(|ended| ended.event);
    let buried = || {
        let tombstone = state.tombstones.iter().find(|tombstone| tombstone.sid == sid)?;
        tombstone.invalidation.map(|ended| ended.event)
    };
    let event = ended.or_else(buried).or_else(|| find_end(source, sid, state));
    Ok(event.map_or(Reason::Unknown, |event| Reason::Ended(chain(source, &Names::of(state), event))))
}

/// Why the acknowledgement stands where it stands in `state`.
#[must_use]
pub fn why_ack(source: &Source, state: &State, exits: &LastExits) -> WhyAck {
    let holding = Holding::of(state, exits);
    let first = holding.holders.first().and_then(|first| owing(source, state, exits, first.sid));
    WhyAck { holding, first }
}

fn owing(source: &Source, state: &State, exits: &LastExits, sid: Sid) -> Option<Owing> {
    let shape = state.shape(sid)?;
    let oldest = shape.pending.front().copied()?;
    let names = Names::of(state);
    Some(Owing {
        sid,
        handle: shape.handle,
        pending: shape.pending.len(),
        oldest,
        idle: state.at.since(shape.progressed_at),
        payer: payer(state, shape, oldest),
        routed: find_routed(source, state, shape.created, oldest).map(|routed| link(&routed, &names)),
        exit: exits.get(sid).map(|exit| chain(source, &names, exit.event)),
    })
}

/// Where a shape ended, for one that even the tombstones have forgotten.
fn find_end(source: &Source, sid: Sid, state: &State) -> Option<EventId> {
    let sample = Event::Shape(ShapeEvent::Invalidated { sid, cause: InvalidationCause::Deleted });
    source
        .events_like(EventId(1), &sample)
        .take_while(|recorded| recorded.id <= state.last)
        .find(|recorded| matches!(recorded.event, Event::Shape(ShapeEvent::Invalidated { sid: own, .. }) if own == sid))
        .map(|recorded| recorded.id)
}

/// Where a transaction was routed that is still owed.
fn find_routed(source: &Source, state: &State, created: EventId, wanted: Seq) -> Option<Recorded> {
    let sample = Event::Stream(StreamEvent::TxnRouted {
        seq: wanted,
        generation: Generation(0),
        lsn: Lsn(0),
        xid: Xid(0),
        committed_at: Timestamp(0),
        changes: 0,
        bytes: 0,
        set: SidSet::new(),
    });
    let is_it = |recorded: &Recorded| matches!(recorded.event, Event::Stream(StreamEvent::TxnRouted { seq, .. }) if seq == wanted);
    let find = |from: EventId| {
        let events = source.events_like(from, &sample).take_while(|recorded| recorded.id <= state.last);
        events.into_iter().find(is_it)
    };
    // Right behind the newest state that had not come so far. Where the history of Postgres broke in between, LSNs
    // began anew, and it may lie further back.
    let near = state.window.get(wanted).map(|txn| {
        let before = Position::Lsn(Lsn(txn.lsn.0.saturating_sub(1)));
        source.start(before).last.next().max(created)
    });
    near.and_then(find).or_else(|| find(created))
}
