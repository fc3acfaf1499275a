//! What a benchmark found. Every figure is a [`Point`] that stands beside the limit of the machine, measured in
//! the same run; a [`Run`] prints them as a table, keeps them as lines of JSON, and `./dev bench report` makes
//! docs/benchmarks.md and its plots of those.
//!
//! The absolute figures move with the machine and with what else runs on it: quote ratios.

mod head;
pub mod latency;
pub mod load;
pub mod plot;
pub mod reader;
pub mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::directory::dev_directory;

pub use head::Head;
pub use latency::{Latencies, Percentiles};

/// Where the runs are that docs/benchmarks.md is made of.
const KEPT: &str = "docs/benchmarks";

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// What was measured, such as `created` or `commit to the last client`.
    pub name: String,
    /// With how much of what: `shapes` 10,000.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, u64>,
    pub value: f64,
    /// `ms`, `1/s`, `MB`, `bytes`, `s`.
    pub unit: String,
    /// The same by something that does no more than the physics ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
    /// What is asked of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentiles: Option<Percentiles>,
    /// Seconds of processor time while it was measured, by whom: a disturbed point shows in `rest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<load::CpuSeconds>,
}

/// What the same machine does without us, in the same run and unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub value: f64,
}

/// What is asked of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Limit {
    ValueMax(f64),
    ValueMin(f64),
    /// Figure divided by reference.
    RatioMin(f64),
    RatioMax(f64),
    /// Figure less reference.
    ExtraMax(f64),
}

impl Point {
    #[must_use]
    pub fn new(name: &str, value: f64, unit: &str) -> Point {
        Point {
            name: name.to_owned(),
            with: BTreeMap::new(),
            value,
            unit: unit.to_owned(),
            reference: None,
            limit: None,
            percentiles: None,
            cpu: None,
        }
    }

    /// The median of latencies in milliseconds, with the others behind it.
    #[must_use]
    pub fn latency(name: &str, latencies: &Latencies) -> Point {
        let percentiles = latencies.percentiles();
        Point { percentiles: Some(percentiles), ..Point::new(name, percentiles.p50_ms, "ms") }
    }

    #[must_use]
    pub fn with(mut self, what: &str, how_many: u64) -> Point {
        self.with.insert(what.to_owned(), how_many);
        self
    }

    #[must_use]
    pub fn beside(mut self, name: &str, value: f64) -> Point {
        self.reference = Some(Reference { name: name.to_owned(), value });
        self
    }

    #[must_use]
    pub fn at_most(self, limit: f64) -> Point {
        self.limited(Limit::ValueMax(limit))
    }

    #[must_use]
    pub fn limited(mut self, limit: Limit) -> Point {
        self.limit = Some(limit);
        self
    }

    #[must_use]
    pub fn costing(mut self, cpu: load::CpuSeconds) -> Point {
        self.cpu = Some(cpu);
        self
    }

    /// Figure divided by reference.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.reference
            .as_ref()
            .filter(|reference| reference.value != 0.0)
            .map(|reference| self.value / reference.value)
    }

    /// Whether it is what is asked of it; nothing is asked of most.
    #[must_use]
    pub fn is_kept(&self) -> Option<bool> {
        let ratio = self.ratio().unwrap_or(f64::NAN);
        let reference = self.reference.as_ref().map_or(f64::NAN, |reference| reference.value);
        Some(match self.limit? {
            Limit::ValueMax(most) => self.value <= most,
            Limit::ValueMin(least) => self.value >= least,
            Limit::RatioMin(least) => ratio >= least,
            Limit::RatioMax(most) => ratio <= most,
            Limit::ExtraMax(most) => self.value - reference <= most,
        })
    }

    /// `1,000 shapes, 50 clients`
    #[must_use]
    pub fn with_text(&self) -> String {
        let parts: Vec<String> = self
            .with
            .iter()
            .map(|(what, how_many)| format!("{} {what}", grouped(*how_many as f64)))
            .collect();
        parts.join(", ")
    }

    /// What is asked of it, in words.
    #[must_use]
    pub fn limit_text(&self) -> String {
        let unit = &self.unit;
        match self.limit {
            None => String::new(),
            Some(Limit::ValueMax(most)) => format!("at most {} {unit}", shown(most)),
            Some(Limit::ValueMin(least)) => format!("at least {} {unit}", shown(least)),
            Some(Limit::RatioMin(least)) => format!("ratio at least {least}"),
            Some(Limit::RatioMax(most)) => format!("ratio at most {most}"),
            Some(Limit::ExtraMax(most)) => format!("at most {} {unit} more", shown(most)),
        }
    }
}

/// One run of one benchmark.
#[derive(Debug)]
pub struct Run {
    head: Head,
    points: Vec<Point>,
    target: PathBuf,
}

impl Run {
    /// Begins a run: the lines go to `.dev/bench/`, or with `keep` to where the report takes them from.
    ///
    /// # Errors
    /// There is no folder for the results.
    pub fn begin(scenario: &str, keep: bool, postgres: Option<u32>) -> Outcome<Run> {
        let folder = if keep { PathBuf::from(KEPT) } else { dev_directory()?.join("bench") };
        fs::create_dir_all(&folder)?;
        let head = Head::of_this_run(scenario, postgres);
        println!("bench {scenario}: {}", head.machine_text());
        println!("{:<34} {:<24} {:>14} {:>14} {:>7}  asked", "figure", "with", "value", "reference", "ratio");
        Ok(Run { head, points: Vec::new(), target: folder.join(format!("{scenario}.jsonl")) })
    }

    /// Notes and prints a figure.
    pub fn note(&mut self, point: Point) {
        let mark = match point.is_kept() {
            None => "",
            Some(true) => "ok      ",
            Some(false) => "MISSED  ",
        };
        let reference = point.reference.as_ref();
        println!(
            "{:<34} {:<24} {:>14} {:>14} {:>7}  {mark}{}",
            point.name,
            point.with_text(),
            format!("{} {}", shown(point.value), point.unit),
            reference.map_or_else(String::new, |reference| shown(reference.value)),
            point.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            point.limit_text()
        );
        if let Some(percentiles) = &point.percentiles {
            println!("{:<34} {percentiles}", "");
        }
        if let Some(cpu) = &point.cpu {
            println!("{:<34} {cpu}", "");
        }
        self.points.push(point);
    }

    /// Writes the lines; whether everything that is asked for was kept.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Outcome<bool> {
        self.head.ended();
        let mut lines = serde_json::to_string(&self.head)?;
        for point in &self.points {
            lines.push('\n');
            lines += &serde_json::to_string(point)?;
        }
        lines.push('\n');
        fs::write(&self.target, lines)?;
        println!("written to {}", self.target.display());
        Ok(self.points.iter().all(|point| point.is_kept() != Some(false)))
    }
}

/// A run as it was written.
#[derive(Debug)]
pub struct Kept {
    pub head: Head,
    pub points: Vec<Point>,
}

/// Reads what [`Run::finish`] wrote.
///
/// # Errors
/// The file cannot be read, or is not one of ours.
pub fn read(path: &Path) -> Outcome<Kept> {
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines();
    let head = serde_json::from_str(lines.next().unwrap_or_default())
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let points: Result<Vec<Point>, _> = lines.map(serde_json::from_str).collect();
    Ok(Kept { head, points: points.map_err(|error| format!("{}: {error}", path.display()))? })
}

/// A figure with as many digits as it deserves.
#[must_use]
pub fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => grouped(value),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    format!("{sign}{}", groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_judged_against_value_ratio_or_difference() {
        let point = |limit| Point::new("p", 12.0, "ms").beside("plain", 10.0).limited(limit).is_kept();
        assert_eq!(point(Limit::ValueMax(12.0)), Some(true));
        assert_eq!(point(Limit::ValueMax(11.9)), Some(false));
        assert_eq!(point(Limit::ValueMin(12.1)), Some(false));
        assert_eq!(point(Limit::RatioMin(1.2)), Some(true));
        assert_eq!(point(Limit::RatioMax(1.1)), Some(false));
        assert_eq!(point(Limit::ExtraMax(2.0)), Some(true));
        assert_eq!(point(Limit::ExtraMax(1.9)), Some(false));
        assert_eq!(Point::new("p", 1.0, "ms").is_kept(), None);
        // Without a reference no ratio is kept.
        assert_eq!(Point::new("p", 1.0, "ms").limited(Limit::RatioMin(0.0)).is_kept(), Some(false));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut latencies = Latencies::default();
        (1..=100).for_each(|millis| latencies.add(std::time::Duration::from_millis(millis)));
        let point = Point::latency("to the client", &latencies).with("shapes", 10).beside("plain", 5.0);
        let line = serde_json::to_string(&point).expect("a line");
        assert_eq!(serde_json::from_str::<Point>(&line).expect("reads"), point);
        assert_eq!(point.with_text(), "10 shapes");
        assert!((point.value - 50.0).abs() < 1.0, "{}", point.value);
    }

    #[test]
    fn figures_have_as_many_digits_as_they_deserve() {
        let shown: Vec<String> =
            [0.123, 12.34, 123.4, 1_234.5, 1_234_567.0, -1_234.0].map(super::shown).to_vec();
        assert_eq!(shown, ["0.12", "12.3", "123", "1,234", "1,234,567", "-1,234"]);
    }
}
