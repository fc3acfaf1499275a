//! Events as they are: listed, stepped through, counted.

use std::collections::VecDeque;
use std::io::{self, BufRead, IsTerminal, Write};

use crate::domain::{Epoch, EventId, Oid};
use crate::events::{self, Recorded};
use crate::journal::Reading;
use crate::projections::forensics::{
    Choice, Fields, Filter, Names, Position, Stats as Totals, causes, commas, fields, sentence, span,
    subject, touched,
};
use crate::state::State;

use super::{Failure, Where};
use crate::inspect::Source;

/// Shapes told of one by one at a step.
const TOLD_MAX: usize = 4;
/// Events kept for stepping back.
const BACK_MAX: usize = 10_000;

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
pub struct Step {
    #[command(flatten)]
    pub journal: Where,
    /// The first event to step over.
    #[arg(long, default_value = "1")]
    from: Position,
    /// So many steps; on a terminal without it, one for each key: Enter forward, b back, q quit.
    #[arg(long)]
    count: Option<usize>,
    /// Only events that change this shape, by its number or its handle.
    #[arg(long)]
    shape: Option<String>,
}

impl Step {
    /// Whether it asks for a key at each step.
    pub fn asks(&self) -> bool {
        self.count.is_none() && io::stdin().is_terminal()
    }

    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let from = source.resolve(self.from);
        let shape = self.shape.as_deref().map(|shape| source.shape(shape)).transpose()?;
        let mut state = match from {
            Position::Event(id) if id <= EventId(1) => source.beginning(),
            Position::Event(id) => source.start(Position::Event(EventId(id.0 - 1))),
            from => source.start(from),
        };
        let mut names = Names::of(&state);
        let interactive = self.asks() && self.journal.given.is_none();
        let (mut left, mut begun) = (self.count.unwrap_or(10), false);
        let mut shown: VecDeque<String> = VecDeque::new();
        for recorded in source.events(state.last.next()) {
            names.learn(&recorded);
            begun = begun || from.is_reached_by(&recorded);
            let sids = touched(&state, &recorded.event);
            if !begun || shape.is_some_and(|shape| !sids.contains(&shape)) {
                state.apply(&recorded);
                continue;
            }
            let told: Vec<_> = match shape {
                Some(shape) => vec![shape],
                None => sids.iter().copied().take(TOLD_MAX).collect(),
            };
            let before = Fields::of(&state, &told);
            state.apply(&recorded);
            let mut text = step_text(&recorded, &names, &before.changes(&Fields::of(&state, &told)));
            if sids.len() > told.len() {
                text += &format!("    and {} more shapes\n", sids.len() - told.len());
            }
            write!(out, "{text}")?;
            if interactive {
                out.flush()?;
                shown.push_back(text);
                if shown.len() > BACK_MAX {
                    shown.pop_front();
                }
                if !ask(&shown, out)? {
                    break;
                }
            } else {
                left = left.saturating_sub(1);
                if left == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn step_text(
    recorded: &Recorded,
    names: &Names,
    changes: &[crate::projections::forensics::Change],
) -> String {
    let because = recorded.because.map(|id| format!(", because of event {id}")).unwrap_or_default();
    let what = sentence(&recorded.event, names);
    let mut text =
        format!("event {} at {} {}{because}\n  {what}\n", recorded.id, recorded.at, recorded.event.name());
    for change in changes {
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "-".to_owned());
        text += &format!("    {:<28} {} -> {}\n", change.field, side(&change.before), side(&change.after));
    }
    if changes.is_empty() {
        text += "    nothing changed\n";
    }
    text
}

/// Waits for a key; `false` to stop.
fn ask(shown: &VecDeque<String>, out: &mut impl Write) -> Result<bool, Failure> {
    let mut back = 0;
    loop {
        write!(out, "[Enter forward, b back, q quit] ")?;
        out.flush()?;
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line)? == 0 || line.trim() == "q" {
            return Ok(false);
        }
        if line.trim() == "b" {
            back = (back + 1).min(shown.len() - 1);
        } else if back > 0 {
            back -= 1;
        } else {
            return Ok(true);
        }
        write!(out, "{}", shown[shown.len() - 1 - back])?;
    }
}

#[derive(Debug, clap::Args)]
pub struct Stats {
    #[command(flatten)]
    pub journal: Where,
}

impl Stats {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let mut totals = Totals::default();
        for reading in source.journal().read(EventId(1)) {
            if let Reading::Entry(entry) = reading
                && let Ok(recorded) = events::decode(&entry.bytes)
            {
                totals.add(&recorded, entry.bytes.len());
            }
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
