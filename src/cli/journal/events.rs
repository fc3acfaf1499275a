//! Events as they are: listed and counted.

use std::collections::VecDeque;
use std::io::Write;

use crate::domain::{Epoch, EventId, Oid};
use crate::events::{self, Recorded};
use crate::projections::forensics::{
    Choice, Filter, Names, Position, Stats as Totals, causes, commas, fields, sentence, span, subject,
};
use crate::state::State;

use super::{Failure, Where};
use crate::inspect::{Source, answers};

#[derive(Debug, clap::Args)]
pub struct Tail {
    #[command(flatten)]
    pub journal: Where,
    /// Only the newest so many.
    #[arg(short = 'n', long)]
    lines: Option<usize>,
    /// Only from this place on.
    #[arg(long)]
    from: Option<Position>,
    /// Only up to this place.
    #[arg(long, default_value = "end")]
    to: Position,
    /// Only events about this shape: its number or its handle.
    #[arg(long)]
    shape: Option<String>,
    /// Only events about shapes of this table, by its oid.
    #[arg(long)]
    table: Option<u32>,
    /// Only events of this name, such as ShapeInvalidated; may be given several times.
    #[arg(long)]
    kind: Vec<String>,
    /// Only events that name this cause, such as Panicked or Stalled; may be given several times.
    #[arg(long)]
    cause: Vec<String>,
    /// Only events of this epoch.
    #[arg(long)]
    epoch: Option<u64>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Sentences instead of fields.
    #[arg(long, conflicts_with = "json")]
    plain: bool,
}

impl Tail {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        // A filter that can match nothing would look like an answer.
        if let Some(kind) = self.kind.iter().find(|kind| !events::names().contains(&kind.as_str())) {
            return Err(Failure::UnknownKind(kind.clone()));
        }
        if let Some(cause) = self.cause.iter().find(|cause| !causes().contains(&cause.as_str())) {
            return Err(Failure::UnknownCause(cause.clone()));
        }
        let source = self.journal.open()?;
        let from = self.from.map(|from| source.resolve(from));
        let mut filter = Filter::default();
        filter.from = from;
        filter.to = source.resolve(self.to);
        filter.shape = self.shape.as_deref().map(|shape| source.shape(shape)).transpose()?;
        filter.table = self.table.map(Oid);
        filter.epoch = self.epoch.map(Epoch);
        filter.kinds.clone_from(&self.kind);
        filter.causes.clone_from(&self.cause);
        // A checkpoint knows what shapes are called, so that nothing older need be read.
        let start = from.map_or_else(State::default, |from| source.start(from));
        let mut names = Names::of(&start);
        filter.start(&start);
        let mut newest = VecDeque::new();
        for recorded in source.events(start.last.next()) {
            names.learn(&recorded);
            match filter.choose(&recorded, &names) {
                Choice::Stop => break,
                Choice::Pass => {}
                Choice::Show => match self.lines {
                    None => self.show(&recorded, &names, out)?,
                    Some(lines) => {
                        newest.push_back(recorded);
                        if newest.len() > lines {
                            newest.pop_front();
                        }
                    }
                },
            }
        }
        newest.iter().try_for_each(|recorded| self.show(recorded, &names, out))
    }

    fn show(&self, recorded: &Recorded, names: &Names, out: &mut impl Write) -> Result<(), Failure> {
        if self.json {
            let line = json_line(recorded, names);
            writeln!(out, "{line}")?;
        } else if self.plain {
            writeln!(out, "{:>8} {} {}", recorded.id, recorded.at, sentence(&recorded.event, names))?;
        } else {
            writeln!(out, "{}", human_line(recorded, names))?;
        }
        Ok(())
    }
}

pub fn json_line(recorded: &Recorded, names: &Names) -> serde_json::Value {
    let shape = subject(&recorded.event).and_then(|sid| names.handle(sid)).map(|handle| handle.to_string());
    serde_json::json!({
        "id": recorded.id,
        "at": recorded.at.to_string(),
        "epoch": recorded.epoch,
        "because": recorded.because,
        "kind": recorded.event.name(),
        "shape": shape,
        "event": fields(&recorded.event),
    })
}

pub fn human_line(recorded: &Recorded, names: &Names) -> String {
    let because = recorded.because.map(|id| format!(" because {id}")).unwrap_or_default();
    let handle = subject(&recorded.event).and_then(|sid| names.handle(sid));
    let shape = handle.map(|handle| format!(" [{handle}]")).unwrap_or_default();
    let mut parts = Vec::new();
    if let serde_json::Value::Object(fields) = fields(&recorded.event) {
        for (name, value) in fields {
            parts.push(match value {
                serde_json::Value::String(text) => format!("{name}: {text}"),
                other => format!("{name}: {other}"),
            });
        }
    }
    let text = parts.join(", ");
    let (id, at, epoch, kind) = (recorded.id, recorded.at, recorded.epoch, recorded.event.name());
    format!("{id:>8} {at} epoch {epoch} {kind}{shape}{because} {text}")
}

#[derive(Debug, clap::Args)]
pub struct Stats {
    #[command(flatten)]
    pub journal: Where,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let mut totals = Totals::default();
        source.sized_events(EventId(1)).for_each(|(recorded, bytes)| totals.add(&recorded, bytes));
        if self.json {
            return Ok(writeln!(out, "{}", answers::stats(&totals))?);
        }
        self.show(&source, &totals, out)
    }

    fn show(&self, source: &Source, totals: &Totals, out: &mut impl Write) -> Result<(), Failure> {
        if let (Some((first, from)), Some((last, to))) = (totals.first, totals.last) {
            writeln!(out, "events {first} to {last}, {from} to {to}: {}", span(totals.elapsed()))?;
        }
        let seconds = totals.elapsed().as_secs_f64();
        let rate = if seconds > 0.0 { totals.events as f64 / seconds } else { 0.0 };
        writeln!(
            out,
            "{} events, {} bytes, {rate:.1} events/s on average, at most {} in one second ({})",
            commas(totals.events),
            commas(totals.bytes),
            commas(totals.peak.0),
            totals.peak.1
        )?;
        writeln!(
            out,
            "{} transactions, {} changes, {} deliveries to shapes",
            commas(totals.transactions),
            commas(totals.changes),
            commas(totals.deliveries)
        )?;
        let segments = source.journal().segments();
        if !segments.is_empty() {
            let bytes = segments.iter().map(|segment| segment.bytes).sum();
            writeln!(out, "{} sealed segments, {} bytes", segments.len(), commas(bytes))?;
        }
        let states = source.journal().states();
        if !states.is_empty() {
            let bytes = states.iter().map(|state| state.bytes).sum();
            writeln!(out, "{} states in the archive, {} bytes", states.len(), commas(bytes))?;
        }
        let (checkpoints, _) = source.journal().checkpoints();
        for checkpoint in &checkpoints {
            let bytes = commas(checkpoint.state.len() as u64);
            writeln!(out, "a checkpoint after event {}, {bytes} bytes", checkpoint.upto)?;
        }
        writeln!(out, "{:<20} {:>14} {:>16}  bytes each", "kind", "events", "bytes")?;
        let mut kinds: Vec<_> = totals.kinds.iter().collect();
        kinds.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
        for (kind, (events, bytes)) in kinds {
            writeln!(out, "{kind:<20} {:>14} {:>16}  {}", commas(*events), commas(*bytes), bytes / events)?;
        }
        Ok(())
    }
}
