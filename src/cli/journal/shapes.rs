//! Shapes and their writers: lives, reasons, who is alive.

use std::io::Write;

use crate::domain::{EventId, Sid};
use crate::events::{Event, Recorded, ShapeEvent};
use crate::projections::forensics::{
    Holding, LastExits, LifeStory, Line, Names, Payer, Position, commas, payer, sentence, span,
};
use crate::state::{State, Writer};

use super::source::Source;
use super::wal::pays;
use super::{Failure, Where};

/// Links of a causal chain; a damaged journal might hold a longer one.
const CHAIN_MAX: usize = 64;

#[derive(Debug, clap::Args)]
pub struct Life {
    #[command(flatten)]
    journal: Where,
    /// Its handle or its number.
    shape: String,
}

impl Life {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let sid = source.shape(&self.shape)?;
        let mut state = source.beginning();
        let mut names = Names::of(&state);
        let mut story = LifeStory::of(sid);
        let mut told = false;
        for recorded in source.events(state.last.next()) {
            names.learn(&recorded);
            state.apply(&recorded);
            for line in story.hear(&state, &recorded, &names) {
                told = true;
                show(&line, out)?;
            }
        }
        if let Some(line) = story.finish() {
            told = true;
            show(&line, out)?;
        }
        if !told {
            return Err(Failure::UnknownShape(self.shape.clone()));
        }
        match state.shape(sid) {
            None => writeln!(out, "today: nothing is left of it")?,
            Some(shape) => {
                let owes = match shape.pending.front() {
                    None => "owes nothing".to_owned(),
                    Some(oldest) => format!(
                        "owes {} transactions since number {oldest}, no progress for {}, next step by {}",
                        shape.pending.len(),
                        span(state.at.since(shape.progressed_at)),
                        pays(payer(&state, shape, *oldest))
                    ),
                };
                writeln!(out, "today: {:?}, writer {:?}, {owes}", shape.life, shape.writer)?;
            }
        }
        Ok(())
    }
}

fn show(line: &Line, out: &mut impl Write) -> Result<(), Failure> {
    let because = line.because.map(|id| format!(" (because of event {id})")).unwrap_or_default();
    writeln!(out, "{:>8} {} {}{because}", line.event, line.at, line.text)?;
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct Why {
    #[command(flatten)]
    journal: Where,
    /// A shape's handle or number; or `ack`.
    what: String,
    /// The place; the end if nothing is said.
    #[arg(long, default_value = "end")]
    at: Position,
}

impl Why {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let state = source.fold(self.at);
        if self.what == "ack" {
            return why_ack(&source, &state, out);
        }
        let sid = source.shape(&self.what)?;
        let names = Names::of(&state);
        let exits = source.exits(&state);
        if let Some(shape) = state.shape(sid)
            && shape.invalidated.is_none()
        {
            let Some(oldest) = shape.pending.front() else {
                writeln!(out, "shape {} lives and owes nothing", shape.handle)?;
                return Ok(());
            };
            return why_owing(&source, &state, &exits, sid, *oldest, out);
        }
        let ended = state.shape(sid).and_then(|shape| shape.invalidated).map(|ended| ended.event);
        let buried = || {
            let tombstone = state.tombstones.iter().find(|tombstone| tombstone.sid == sid)?;
            tombstone.invalidation.map(|ended| ended.event)
        };
        let event = match ended.or_else(buried) {
            Some(event) => Some(event),
            None => find_end(&source, sid, &state),
        };
        let Some(event) = event else {
            writeln!(out, "the journal does not say how shape {} ended", self.what)?;
            return Ok(());
        };
        chain(&source, &names, event, out)
    }
}

/// Where a shape ended, for one that even the tombstones have forgotten.
fn find_end(source: &Source, sid: Sid, state: &State) -> Option<EventId> {
    let sample =
        Event::Shape(ShapeEvent::Invalidated { sid, cause: crate::events::InvalidationCause::Deleted });
    source
        .events_like(EventId(1), &sample)
        .take_while(|recorded| recorded.id <= state.last)
        .find(|recorded| matches!(recorded.event, Event::Shape(ShapeEvent::Invalidated { sid: own, .. }) if own == sid))
        .map(|recorded| recorded.id)
}

fn why_ack(source: &Source, state: &State, out: &mut impl Write) -> Result<(), Failure> {
    let exits = source.exits(state);
    let holding = Holding::of(state, &exits);
    writeln!(
        out,
        "after event {} at {}: received {}, acknowledged {}, gap {} bytes",
        state.last,
        state.at,
        holding.received,
        holding.acked,
        commas(holding.gap_bytes)
    )?;
    let Some(first) = holding.holders.first() else {
        writeln!(out, "nobody owes anything: the acknowledgement follows what Postgres sends")?;
        return Ok(());
    };
    let together = holding.debts.first().map_or(1, |debt| debt.shapes);
    writeln!(
        out,
        "everything before {} is flushed by all; the acknowledgement cannot pass transaction {} (commit {}), which {} shapes owe",
        holding.boundary,
        first.oldest,
        first.lsn,
        commas(together as u64)
    )?;
    if let Some(cohort) = holding.cohorts.first() {
        writeln!(
            out,
            "{} of them have no live writer and nobody will pay: a cohort, see `holding`",
            commas(cohort.sids.len() as u64)
        )?;
    }
    writeln!(out, "the first of them:")?;
    let (sid, oldest) = (first.sid, first.oldest);
    why_owing(source, state, &exits, sid, oldest, out)
}

fn why_owing(
    source: &Source,
    state: &State,
    exits: &LastExits,
    sid: Sid,
    oldest: crate::domain::Seq,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let names = Names::of(state);
    let Some(shape) = state.shape(sid) else { return Ok(()) };
    let payer = payer(state, shape, oldest);
    writeln!(
        out,
        "shape {} owes {} transactions, the oldest is {oldest}; no progress for {}; next step by {}",
        shape.handle,
        shape.pending.len(),
        span(state.at.since(shape.progressed_at)),
        pays(payer)
    )?;
    if let Some(routed) = find_routed(source, shape.created, oldest) {
        writeln!(out, "{}", link(&routed, &names))?;
    }
    let Some(exit) = exits.get(sid) else { return Ok(()) };
    chain(source, &names, exit.event, out)?;
    if payer == Payer::Nobody {
        writeln!(out, "nothing was decided upon that exit: no restart, no removal (F2)")?;
    }
    Ok(())
}

fn find_routed(source: &Source, from: EventId, wanted: crate::domain::Seq) -> Option<Recorded> {
    let sample = Event::Stream(crate::events::StreamEvent::TxnRouted {
        seq: wanted,
        generation: crate::domain::Generation(0),
        lsn: crate::domain::Lsn(0),
        xid: crate::domain::Xid(0),
        committed_at: crate::domain::Timestamp(0),
        changes: 0,
        bytes: 0,
        set: crate::domain::SidSet::new(),
    });
    source.events_like(from, &sample).find(
        |recorded| matches!(recorded.event, Event::Stream(crate::events::StreamEvent::TxnRouted { seq, .. }) if seq == wanted),
    )
}

fn link(recorded: &Recorded, names: &Names) -> String {
    format!("{:>8} {} {}", recorded.id, recorded.at, sentence(&recorded.event, names))
}

/// An event and what it was decided upon, back to what the world told us.
pub fn chain(source: &Source, names: &Names, event: EventId, out: &mut impl Write) -> Result<(), Failure> {
    let mut next = Some(event);
    for depth in 0..CHAIN_MAX {
        let Some(id) = next else { break };
        let Some(recorded) = source.event(id) else {
            writeln!(out, "{id:>8} is not in the journal any more")?;
            break;
        };
        let arrow = if depth == 0 { "" } else { "because " };
        writeln!(out, "{:>8} {} {arrow}{}", recorded.id, recorded.at, sentence(&recorded.event, names))?;
        next = recorded.because;
        if next.is_none() {
            writeln!(out, "         that is what the world told us: nothing in the journal caused it")?;
        }
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct Consumers {
    #[command(flatten)]
    journal: Where,
    /// The place; the end if nothing is said.
    #[arg(long, default_value = "end")]
    at: Position,
    /// Only shapes that owe something and have no writer.
    #[arg(long)]
    dead: bool,
}

impl Consumers {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let state = source.fold(self.at);
        let exits = source.exits(&state);
        writeln!(out, "after event {} at {}", state.last, state.at)?;
        let count =
            |wanted: fn(Writer) -> bool| state.shapes.values().filter(|shape| wanted(shape.writer)).count();
        writeln!(
            out,
            "{} writers live, {} ending, {} shapes without one",
            count(|writer| matches!(writer, Writer::Live { .. })),
            count(|writer| matches!(writer, Writer::Stopping { .. })),
            count(|writer| writer == Writer::Absent)
        )?;
        let mut shown = 0_usize;
        for (sid, shape) in &state.shapes {
            let dead = shape.writer == Writer::Absent && !shape.pending.is_empty();
            let alive = shape.writer != Writer::Absent;
            if !(dead || alive && !self.dead) {
                continue;
            }
            shown += 1;
            let exit = exits.get(*sid).map_or_else(String::new, |exit| {
                format!(
                    ", writer {} ended {:?} at {} (event {})",
                    exit.incarnation, exit.cause, exit.at, exit.event
                )
            });
            let owes = match shape.pending.front() {
                None => "owes nothing".to_owned(),
                Some(oldest) => format!(
                    "owes {} since transaction {oldest}, next step by {}",
                    shape.pending.len(),
                    pays(payer(&state, shape, *oldest))
                ),
            };
            writeln!(out, "{:<32} {:?}, {owes}{exit}", shape.handle.to_string(), shape.writer)?;
        }
        if self.dead {
            writeln!(out, "{} shapes owe something and have no writer", commas(shown as u64))?;
        }
        Ok(())
    }
}
