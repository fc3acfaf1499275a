//! Stepping through a history, forward and back, with what each event changed.

use std::collections::VecDeque;
use std::io::{self, BufRead, IsTerminal, Write};
use std::iter::Peekable;

use crate::domain::{EventId, Sid};
use crate::events::Recorded;
use crate::projections::forensics::{
    Change, Fields, Incidents, Names, ParsePositionError, Position, sentence, touched, touched_count, touches,
};
use crate::state::State;

use super::{Failure, Where};
use crate::inspect::{Source, answers, observe};

/// Shapes told of one by one at a step.
const TOLD_MAX: usize = 4;
/// Steps kept for going back without folding anew.
const BACK_MAX: usize = 1_000;
/// Steps of a call that asks for nothing else.
const STEPS_DEFAULT: usize = 10;
const KEYS: &str = "Enter forward, b back, a next anomaly, a place (424, 02:09:30, 1/F827A8C8, end), q quit";

#[derive(Debug, clap::Args)]
pub struct Step {
    #[command(flatten)]
    pub journal: Where,
    /// The first event to step over.
    #[arg(long, default_value = "1")]
    from: Position,
    /// So many steps, without asking.
    #[arg(long)]
    count: Option<usize>,
    /// Only events that change this shape, by its number or its handle.
    #[arg(long)]
    shape: Option<String>,
    /// One line of input for each step, as on a terminal: Enter forward, b back, a to the next anomaly, a
    /// place to go there, q quit.
    #[arg(long, conflicts_with = "count")]
    interactive: bool,
    /// One JSON object for each step.
    #[arg(long, conflicts_with = "interactive")]
    json: bool,
}

impl Step {
    /// Whether it asks for a line at each step.
    pub fn asks(&self) -> bool {
        self.interactive || (self.count.is_none() && !self.json && io::stdin().is_terminal())
    }

    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let shape = self.shape.as_deref().map(|shape| source.shape(shape)).transpose()?;
        let mut stepper = Stepper::at(&source, (shape, self.json), source.resolve(self.from));
        if self.asks() {
            return stepper.converse(&mut io::stdin().lock(), out);
        }
        for _ in 0..self.count.unwrap_or(STEPS_DEFAULT) {
            let Some(shown) = stepper.forward() else { break };
            write!(out, "{}", shown.text)?;
        }
        Ok(())
    }
}

/// One step as it is shown.
#[derive(Clone)]
struct Shown {
    event: EventId,
    text: String,
}

/// A place in the history, from which one can go either way.
struct Stepper<'a> {
    source: &'a Source,
    /// Only steps that change this shape.
    shape: Option<Sid>,
    /// Told as JSON.
    json: bool,
    /// The state behind the last event that was read.
    state: State,
    /// Events were missing on the way.
    lost: bool,
    names: Names,
    events: Peekable<Box<dyn Iterator<Item = Recorded> + 'a>>,
    /// Steps without a gap between them, the newest last; and how many of them lie ahead again.
    shown: VecDeque<Shown>,
    ahead: usize,
}

impl<'a> Stepper<'a> {
    /// Right before the first event that is not before `place`.
    fn at(source: &'a Source, told: (Option<Sid>, bool), place: Position) -> Stepper<'a> {
        let state = match place {
            Position::Event(id) if id <= EventId(1) => source.beginning(),
            Position::Event(id) => source.start(Position::Event(EventId(id.0 - 1))),
            Position::End => source.start(Position::Event(EventId(source.journal().last().0.max(1) - 1))),
            place => source.start(place),
        };
        let place = if place == Position::End { Position::Event(source.journal().last()) } else { place };
        let mut stepper = Stepper::on(source, told, state);
        while stepper.events.peek().is_some_and(|recorded| !place.is_reached_by(recorded)) {
            stepper.read();
        }
        stepper
    }

    fn on(source: &'a Source, (shape, json): (Option<Sid>, bool), state: State) -> Stepper<'a> {
        let events: Box<dyn Iterator<Item = Recorded> + 'a> = Box::new(source.events(state.last.next()));
        let (names, shown) = (Names::of(&state), VecDeque::new());
        Stepper { source, shape, json, state, lost: false, names, events: events.peekable(), shown, ahead: 0 }
    }

    /// Folds in the next event.
    fn read(&mut self) -> Option<EventId> {
        let recorded = self.events.next()?;
        self.lost |= self.state.last != EventId(0) && recorded.id > self.state.last.next();
        self.names.learn(&recorded);
        self.state.apply(&recorded);
        Some(recorded.id)
    }

    /// Folds in the next event and tells what it changed, if that is of interest.
    fn tell(&mut self) -> Option<Option<Shown>> {
        let recorded = self.events.peek()?;
        if self.shape.is_some_and(|shape| !touches(&self.state, &recorded.event, shape)) {
            self.read();
            return Some(None);
        }
        let told: Vec<Sid> = match self.shape {
            Some(shape) => vec![shape],
            None => touched(&self.state, &recorded.event).into_iter().take(TOLD_MAX).collect(),
        };
        let recorded = recorded.clone();
        let others = touched_count(&self.state, &recorded.event).saturating_sub(told.len());
        let before = Fields::of(&self.state, &told);
        self.read();
        let changes = before.changes(&Fields::of(&self.state, &told));
        let text = if self.json {
            json_line(&recorded, &self.names, &changes, others)
        } else {
            text(&recorded, &self.names, &changes, others)
        };
        Some(Some(Shown { event: recorded.id, text }))
    }

    fn forward(&mut self) -> Option<Shown> {
        if self.ahead > 0 {
            self.ahead -= 1;
            return self.current();
        }
        loop {
            if let Some(shown) = self.tell()? {
                self.shown.push_back(shown.clone());
                if self.shown.len() > BACK_MAX {
                    self.shown.pop_front();
                }
                return Some(shown);
            }
        }
    }

    fn current(&self) -> Option<Shown> {
        self.shown.get(self.shown.len().checked_sub(1 + self.ahead)?).cloned()
    }

    /// The step before the current one: from memory, or folded anew.
    fn back(&mut self) -> Option<Shown> {
        let current = self.current()?;
        if self.ahead + 1 < self.shown.len() {
            self.ahead += 1;
            return self.current();
        }
        let mut beyond = current.event;
        loop {
            let before = EventId(beyond.0.checked_sub(1)?);
            let start = match before.0 {
                0 => return None,
                _ => self.source.start(Position::Event(EventId(before.0 - 1))),
            };
            let from = start.last;
            let mut earlier = Stepper::on(self.source, (self.shape, self.json), start);
            while earlier.events.peek().is_some_and(|next| next.id < current.event) {
                if let Some(Some(shown)) = earlier.tell() {
                    earlier.shown.push_back(shown);
                    if earlier.shown.len() > BACK_MAX {
                        earlier.shown.pop_front();
                    }
                }
            }
            if !earlier.shown.is_empty() {
                *self = earlier;
                return self.current();
            }
            if from == EventId(0) {
                return None;
            }
            beyond = from;
        }
    }

    /// The next event that something is wrong with, and what that is.
    fn next_anomaly(&mut self) -> Option<(Shown, Vec<String>)> {
        // What lies ahead only because one has gone back counts, too.
        let mut here = match self.current() {
            Some(current) if self.ahead > 0 => {
                Stepper::at(self.source, (self.shape, self.json), Position::Event(current.event.next()))
            }
            Some(_) | None => {
                let state = std::mem::take(&mut self.state);
                Stepper::on(self.source, (self.shape, self.json), state)
            }
        };
        let mut incidents = Incidents::new(here.state.clone());
        here.lost |= self.lost;
        if here.lost {
            incidents.lose_way();
        }
        let (mut found, mut saved) = (None, None);
        for recorded in here.source.events(here.state.last.next()) {
            observe(&mut incidents, &recorded, here.source, &mut saved);
            // One more: that nothing was decided upon an exit shows in what comes next.
            if found.is_some() {
                break;
            }
            found = (!incidents.anomalies().is_empty()).then_some(recorded.id);
        }
        let Some(event) = found else {
            *self = here;
            return None;
        };
        let here_or_before = incidents.anomalies().iter().filter(|anomaly| anomaly.event <= event);
        let texts = here_or_before.map(|anomaly| anomaly.text.clone()).collect();
        while here.events.peek().is_some_and(|next| next.id < event) {
            here.read();
        }
        // An anomaly is shown also where it changes nothing of the shape that is followed.
        let shape = here.shape.take();
        let shown = here.forward();
        here.shape = shape;
        *self = here;
        Some((shown?, texts))
    }

    /// Reads lines until there are no more.
    fn converse(&mut self, input: &mut impl BufRead, out: &mut impl Write) -> Result<(), Failure> {
        match self.forward() {
            Some(first) => write!(out, "{}", first.text)?,
            None => writeln!(out, "there is no event from there on")?,
        }
        loop {
            write!(out, "[{KEYS}] ")?;
            out.flush()?;
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 {
                return Ok(writeln!(out)?);
            }
            match line.trim() {
                "q" => return Ok(()),
                "" | "n" => match self.forward() {
                    Some(shown) => write!(out, "{}", shown.text)?,
                    None => writeln!(out, "this is the end")?,
                },
                "b" => match self.back() {
                    Some(shown) => write!(out, "{}", shown.text)?,
                    None => writeln!(out, "this is the beginning")?,
                },
                "a" => match self.next_anomaly() {
                    Some((shown, anomalies)) => {
                        write!(out, "{}", shown.text)?;
                        for anomaly in anomalies {
                            writeln!(out, "  ANOMALY: {anomaly}")?;
                        }
                    }
                    None => writeln!(out, "no anomaly from here to the end")?,
                },
                place => self.jump(place, out)?,
            }
        }
    }

    fn jump(&mut self, place: &str, out: &mut impl Write) -> Result<(), Failure> {
        let place: Result<Position, ParsePositionError> = place.parse();
        let place = match place {
            Ok(place) => self.source.resolve(place),
            Err(error) => return Ok(writeln!(out, "{error}")?),
        };
        let mut there = Stepper::at(self.source, (self.shape, self.json), place);
        match there.forward() {
            Some(shown) => {
                write!(out, "{}", shown.text)?;
                *self = there;
            }
            None => writeln!(out, "there is no event from there on")?,
        }
        Ok(())
    }
}

fn json_line(recorded: &Recorded, names: &Names, changes: &[Change], others: usize) -> String {
    let changes: Vec<_> = changes
        .iter()
        .map(|one| serde_json::json!({"field": one.field, "before": one.before, "after": one.after}))
        .collect();
    let mut told = answers::event(recorded, names);
    told["changes"] = changes.into();
    told["other_shapes"] = others.into();
    format!("{told}\n")
}

fn text(recorded: &Recorded, names: &Names, changes: &[Change], others: usize) -> String {
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
    if others > 0 {
        text += &format!("    and {others} more shapes\n");
    }
    text
}
