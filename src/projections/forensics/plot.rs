//! A history as lines over time, for the terminal and as SVG.

use std::fmt::Write;

use crate::domain::{Epoch, Timestamp};
use crate::events::{Event, OwnershipEvent, Recorded, ShapeEvent};
use crate::projections::forensics::{commas, gap};
use crate::projections::{FlushTracker, Projection};
use crate::state::State;

/// Points of a finished series: between half of it and all of it are in use.
const POINTS_MAX: usize = 240;
const COLUMNS: usize = 60;
/// Owners that the terminal is told of; a service that restarts in a loop has many.
const OWNERS_MAX: usize = 12;
const FIRST_STEP_MICROS: i64 = 1_000_000;
const WIDTH: i64 = 960;
const LANE: i64 = 150;
const LEFT: i64 = 20;

/// What happened in one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Point {
    gap_bytes: u64,
    pending: u64,
    invalidated: u64,
    epoch: Epoch,
}

/// One stretch of time in a finished series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When the stretch began.
    pub at: Timestamp,
    /// How it stood at the end of the stretch.
    pub gap_bytes: u64,
    pub pending: u64,
    pub epoch: Epoch,
    /// How many shapes ended in it.
    pub invalidated: u64,
}

/// Samples of fixed number: when they run out, two become one.
#[derive(Clone, Debug)]
pub struct Series {
    from: Option<Timestamp>,
    step_micros: i64,
    points: Vec<Point>,
    tracker: FlushTracker,
    owners: Vec<(Timestamp, Epoch)>,
    last: Timestamp,
}

impl Series {
    #[must_use]
    pub fn new(state: &State) -> Series {
        Series {
            from: None,
            step_micros: FIRST_STEP_MICROS,
            points: Vec::new(),
            tracker: FlushTracker::recompute(state),
            owners: Vec::new(),
            last: Timestamp(0),
        }
    }

    /// Follows every event; draws those for which `drawn` says so. `state` is the state after it.
    pub fn observe(&mut self, state: &State, recorded: &Recorded, drawn: bool) {
        self.tracker.apply(state, recorded);
        if !drawn {
            return;
        }
        if self.owners.is_empty() && state.owner.epoch > Epoch(0) {
            // Who owned it already where the drawing begins, or takes it right there.
            self.owners.push((recorded.at, state.owner.epoch));
        }
        let from = *self.from.get_or_insert(recorded.at);
        self.last = self.last.max(recorded.at);
        let index = loop {
            let passed = recorded.at.0.saturating_sub(from.0).max(0) / self.step_micros;
            match usize::try_from(passed) {
                Ok(index) if index < POINTS_MAX => break index,
                Ok(_) | Err(_) => self.halve(),
            }
        };
        // Nothing happened in between: what was, stayed.
        while self.points.len() <= index {
            let before = self.points.last().copied().unwrap_or_default();
            self.points.push(Point { invalidated: 0, ..before });
        }
        let point = &mut self.points[index];
        point.gap_bytes = gap(state).2;
        point.pending = self.tracker.pending_shapes() as u64;
        point.epoch = state.owner.epoch;
        match &recorded.event {
            Event::Shape(ShapeEvent::Invalidated { .. }) => point.invalidated += 1,
            Event::Ownership(OwnershipEvent::Acquired { epoch, .. }) => {
                if self.owners.last().is_none_or(|(_, owner)| owner != epoch) {
                    self.owners.push((recorded.at, *epoch));
                }
            }
            Event::Shape(_)
            | Event::Ownership(_)
            | Event::Stream(_)
            | Event::Consumer(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    fn halve(&mut self) {
        self.step_micros = self.step_micros.saturating_mul(2);
        self.points = self
            .points
            .chunks(2)
            .map(|pair| {
                let last = pair[pair.len() - 1];
                Point { invalidated: pair.iter().map(|point| point.invalidated).sum(), ..last }
            })
            .collect();
    }

    /// The stretches of time, oldest first; all are of equal length.
    pub fn samples(&self) -> impl Iterator<Item = Sample> + '_ {
        let from = self.from.unwrap_or_default().0;
        (0..).zip(&self.points).map(move |(index, point): (i64, &Point)| Sample {
            at: Timestamp(from.saturating_add(index.saturating_mul(self.step_micros))),
            gap_bytes: point.gap_bytes,
            pending: point.pending,
            epoch: point.epoch,
            invalidated: point.invalidated,
        })
    }

    /// The time of the newest event.
    #[must_use]
    pub fn until(&self) -> Timestamp {
        self.last
    }

    fn lanes(&self) -> [(&'static str, Vec<u64>); 3] {
        let lane = |value: fn(&Point) -> u64| self.points.iter().map(value).collect();
        [
            ("WAL gap, bytes", lane(|point| point.gap_bytes)),
            ("shapes that owe", lane(|point| point.pending)),
            ("invalidations", lane(|point| point.invalidated)),
        ]
    }

    /// A line of blocks for each, with its highest value.
    #[must_use]
    pub fn sparklines(&self) -> String {
        const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let mut text = String::new();
        let Some(from) = self.from else { return "no events in this range\n".to_owned() };
        let _ = writeln!(text, "{from} to {}", self.last);
        for (name, values) in self.lanes() {
            let per_column = values.len().div_ceil(COLUMNS).max(1);
            let columns: Vec<u64> =
                values.chunks(per_column).map(|chunk| chunk.iter().copied().max().unwrap_or(0)).collect();
            let top = columns.iter().copied().max().unwrap_or(0);
            let bar = |value: &u64| match u128::from(*value) * 8 {
                0 => BLOCKS[0],
                scaled => {
                    BLOCKS[usize::try_from(scaled.div_ceil(u128::from(top.max(1)))).unwrap_or(8).min(8)]
                }
            };
            let line: String = columns.iter().map(bar).collect();
            let _ = writeln!(text, "{name:<16}|{line:<COLUMNS$}| highest {}", commas(top));
        }
        self.owner_line(&mut text);
        text
    }

    /// Who owned the directory, in the same columns: the last figure of each epoch, and a legend.
    fn owner_line(&self, text: &mut String) {
        let per_column = self.points.len().div_ceil(COLUMNS).max(1);
        let figure = |chunk: &[Point]| match chunk.last().map_or(Epoch(0), |point| point.epoch) {
            Epoch(0) => ' ',
            epoch => char::from_digit(u32::try_from(epoch.0 % 10).unwrap_or(0), 10).unwrap_or(' '),
        };
        let line: String = self.points.chunks(per_column).map(figure).collect();
        let _ = writeln!(text, "{:<16}|{line:<COLUMNS$}| the last figure of the epoch", "owner");
        for (at, epoch) in self.owners.iter().rev().take(OWNERS_MAX).rev() {
            let _ = writeln!(text, "                 epoch {epoch} from {at}");
        }
        if self.owners.len() > OWNERS_MAX {
            let _ = writeln!(text, "                 and {} before them", self.owners.len() - OWNERS_MAX);
        }
    }

    /// A drawing of its own: no script, no font, no address in it.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        let height = 3 * LANE + 110;
        let full = WIDTH + 2 * LEFT;
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {full} {height}\" font-family=\"sans-serif\" font-size=\"13\">"
        );
        let _ = writeln!(svg, "<rect width=\"{full}\" height=\"{height}\" fill=\"#ffffff\"/>");
        let title =
            self.from.map_or_else(|| "no events".to_owned(), |from| format!("{from} to {}", self.last));
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"20\" fill=\"#222222\">{title}</text>");
        for (lane, (name, values)) in (0..).zip(self.lanes()) {
            let top = 40 + lane * LANE;
            draw_lane(&mut svg, top, name, &values);
        }
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" fill=\"#222222\">owner</text>", 52 + 3 * LANE);
        self.draw_owners(&mut svg, 60 + 3 * LANE);
        svg.push_str("</svg>\n");
        svg
    }

    fn draw_owners(&self, svg: &mut String, top: i64) {
        let span = i64::try_from(self.points.len()).unwrap_or(1).max(1) * self.step_micros;
        for (index, (at, epoch)) in self.owners.iter().enumerate() {
            let passed = at.0.saturating_sub(self.from.unwrap_or(*at).0).clamp(0, span);
            let x =
                LEFT + i64::try_from(i128::from(passed) * i128::from(WIDTH) / i128::from(span)).unwrap_or(0);
            let shade = if index % 2 == 0 { "#cfe3f7" } else { "#f7e3cf" };
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{top}\" width=\"{}\" height=\"24\" fill=\"{shade}\"/><text x=\"{}\" y=\"{}\" fill=\"#222222\">epoch {epoch}</text>",
                LEFT + WIDTH - x,
                x + 4,
                top + 17
            );
        }
    }
}

fn draw_lane(svg: &mut String, top: i64, name: &str, values: &[u64]) {
    let highest = values.iter().copied().max().unwrap_or(0);
    let (baseline, tall) = (top + LANE - 20, LANE - 50);
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\" fill=\"#222222\">{name}, highest {}</text>",
        top + 16,
        commas(highest)
    );
    let count = i64::try_from(values.len()).unwrap_or(1).max(1);
    let mut line = format!("{LEFT},{baseline}");
    for (index, value) in (0..).zip(values) {
        let x = LEFT + index * WIDTH / count;
        let next = LEFT + (index + 1) * WIDTH / count;
        let rise = u128::from(*value) * u128::try_from(tall).unwrap_or(0) / u128::from(highest.max(1));
        let y = baseline - i64::try_from(rise).unwrap_or(0);
        let _ = write!(line, " {x},{y} {next},{y}");
    }
    let _ = writeln!(
        svg,
        "<polygon points=\"{line} {},{baseline}\" fill=\"#9bbfe0\" stroke=\"#27608f\"/>",
        LEFT + WIDTH
    );
}
