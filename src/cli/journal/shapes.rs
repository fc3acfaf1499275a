//! Shapes and their writers: lives, reasons, who is alive.

use std::io::Write;

use crate::domain::Sid;
use crate::projections::forensics::{
    LastExits, LifeStory, Line, Names, Payer, Position, commas, payer, plural, span,
};
use crate::state::{Shape, State, Writer};

use super::{Failure, Where};
use crate::inspect::answers::{self, pays};
use crate::inspect::{AskError, Chain, ChainEnd, Owing, Reason, WhyAck, why, why_ack};

#[derive(Debug, clap::Args)]
pub struct Life {
    #[command(flatten)]
    pub journal: Where,
    /// Its handle or its number.
    shape: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Life {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let sid = source.shape(&self.shape)?;
        if self.json {
            let life = answers::life(&source, sid, usize::MAX);
            let life = life.ok_or_else(|| AskError::UnknownShape(self.shape.clone()))?;
            return Ok(writeln!(out, "{life}")?);
        }
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
            return Err(AskError::UnknownShape(self.shape.clone()).into());
        }
        match state.shape(sid) {
            None => writeln!(out, "today: nothing is left of it")?,
            Some(shape) => {
                let owes = match shape.pending.front() {
                    None => "owes nothing".to_owned(),
                    Some(oldest) => format!(
                        "owes {} since number {oldest}, no progress for {}, next step by {}",
                        plural(shape.pending.len() as u64, "transaction"),
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
    pub journal: Where,
    /// A shape's handle or number; or `ack`.
    what: String,
    /// The place; the end if nothing is said.
    #[arg(long, default_value = "end")]
    at: Position,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Why {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let state = source.fold(self.at);
        let exits = source.exits(&state);
        if self.what == "ack" {
            let found = why_ack(&source, &state, &exits);
            if self.json {
                return Ok(writeln!(out, "{}", answers::why_ack(&found))?);
            }
            return show_why_ack(&found, &state, out);
        }
        if self.json {
            let found = why(&source, &state, &exits, &self.what)?;
            return Ok(writeln!(out, "{}", answers::reason(&found))?);
        }
        match why(&source, &state, &exits, &self.what)? {
            Reason::Settled(handle) => writeln!(out, "shape {handle} lives and owes nothing")?,
            Reason::Owing(owing) => show_owing(&owing, out)?,
            Reason::Ended(chain) => show_chain(&chain, out)?,
            Reason::Unknown => writeln!(out, "the journal does not say how shape {} ended", self.what)?,
        }
        Ok(())
    }
}

fn show_why_ack(found: &WhyAck, state: &State, out: &mut impl Write) -> Result<(), Failure> {
    let WhyAck { holding, first: owing } = found;
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
    owing.as_ref().map_or(Ok(()), |owing| show_owing(owing, out))
}

fn show_owing(owing: &Owing, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(
        out,
        "shape {} owes {}, the oldest is {}; no progress for {}; next step by {}",
        owing.handle,
        plural(owing.pending as u64, "transaction"),
        owing.oldest,
        span(owing.idle),
        pays(owing.payer)
    )?;
    if let Some(routed) = &owing.routed {
        writeln!(out, "{:>8} {} {}", routed.event, routed.at, routed.text)?;
    }
    let Some(exit) = &owing.exit else { return Ok(()) };
    show_chain(exit, out)?;
    if owing.payer == Payer::Nobody {
        writeln!(out, "nothing was decided upon that exit: no restart, no removal (F2)")?;
    }
    Ok(())
}

/// An event and what it was decided upon, back to what the world told us.
pub fn show_chain(chain: &Chain, out: &mut impl Write) -> Result<(), Failure> {
    for (depth, link) in chain.links.iter().enumerate() {
        let arrow = if depth == 0 { "" } else { "because " };
        writeln!(out, "{:>8} {} {arrow}{}", link.event, link.at, link.text)?;
    }
    match chain.end {
        ChainEnd::World => {
            writeln!(out, "         that is what the world told us: nothing in the journal caused it")?;
        }
        ChainEnd::Missing(id) => writeln!(out, "{id:>8} is not in the journal any more")?,
        ChainEnd::Cut => {}
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct Consumers {
    #[command(flatten)]
    pub journal: Where,
    /// The place; the end if nothing is said.
    #[arg(long, default_value = "end")]
    at: Position,
    /// Only shapes that owe something and have no writer.
    #[arg(long)]
    dead: bool,
    /// One JSON object for each.
    #[arg(long)]
    json: bool,
}

impl Consumers {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let state = source.fold(self.at);
        let exits = source.exits(&state);
        if self.json {
            return self.json_lines(&state, &exits, out);
        }
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
        for (sid, shape) in self.chosen(&state) {
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

    fn json_lines(&self, state: &State, exits: &LastExits, out: &mut impl Write) -> Result<(), Failure> {
        for (sid, shape) in self.chosen(state) {
            writeln!(out, "{}", answers::consumer(state, exits, *sid, shape))?;
        }
        Ok(())
    }

    /// Shapes with a writer, unless only dead ones are wanted, and those that owe and have none.
    fn chosen<'a>(&self, state: &'a State) -> impl Iterator<Item = (&'a Sid, &'a Shape)> + use<'a> {
        let only_dead = self.dead;
        state.shapes.iter().filter(move |(_, shape)| match shape.writer {
            Writer::Absent => !shape.pending.is_empty(),
            Writer::Live { .. } | Writer::Stopping { .. } => !only_dead,
        })
    }
}
