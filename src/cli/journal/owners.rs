//! Owners over time, and the stories of what went wrong.

use std::io::Write;
use std::time::Duration;

use crate::domain::EventId;
use crate::projections::forensics::{Holding, Incidents, Owners, Position, Story, commas, parse_span, span};

use super::shapes::show_chain;
use super::{Failure, Where};
use crate::inspect::answers::{self, end_name, kind_name};
use crate::inspect::{Source, chain, observe};

#[derive(Debug, clap::Args)]
pub struct Timeline {
    #[command(flatten)]
    pub journal: Where,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Timeline {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let mut owners = Owners::default();
        for recorded in source.events(EventId(1)) {
            owners.observe(&recorded);
        }
        let newest = owners.tenures.last().and_then(|tenure| tenure.process.as_ref());
        let configured = newest.and_then(|process| {
            super::bundle::configuration(&source, &format!("{:016x}", process.config_hash))
        });
        if self.json {
            let tenures: Vec<_> = owners.tenures.iter().map(answers::tenure).collect();
            let overlap = owners.overlap();
            let answer =
                serde_json::json!({"overlap": overlap, "owners": tenures, "configuration": configured});
            return Ok(writeln!(out, "{answer}")?);
        }
        for tenure in &owners.tenures {
            writeln!(
                out,
                "epoch {} from {} to {} ({}), events {} to {}",
                tenure.epoch,
                tenure.from,
                tenure.until,
                span(tenure.until.since(tenure.from)),
                tenure.event,
                tenure.last
            )?;
            if let Some(process) = &tenure.process {
                writeln!(
                    out,
                    "  process {} on {}, boot {}, version {}, configuration {:016x}",
                    process.pid, process.host, process.boot_id, process.version, process.config_hash
                )?;
            }
            let (device, inode) = tenure.directory;
            writeln!(
                out,
                "  directory device {device} inode {inode}, waited {} ms for it",
                tenure.waited_ms
            )?;
            if let Some(since) = tenure.draining_since {
                writeln!(out, "  draining since {since}")?;
            }
            writeln!(out, "  end: {}", end_name(tenure.end))?;
            if let Some(late) = tenure.late {
                writeln!(
                    out,
                    "  OVERLAP: it wrote {} events beside epoch {}, from event {} on",
                    late.count, late.beside, late.first
                )?;
            }
        }
        let verdict = if owners.overlap() { "two owners were at work at once" } else { "never two at once" };
        writeln!(out, "{} owners, {verdict}", owners.tenures.len())?;
        if let Some(configured) = configured {
            writeln!(out, "configuration of the newest:")?;
            super::bundle::show_configuration(&configured, out)?;
        }
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
pub struct Incident {
    #[command(flatten)]
    pub journal: Where,
    /// Anomalies with less than this between them are one story.
    #[arg(long, default_value = "5 min", value_parser = window)]
    window: Duration,
    /// Only from this place on.
    #[arg(long, default_value = "1")]
    from: Position,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn window(text: &str) -> Result<Duration, String> {
    parse_span(text).ok_or_else(|| "a span such as 60s or 5 min".to_owned())
}

impl Incident {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let from = source.resolve(self.from);
        let state = match from {
            Position::Event(id) if id.0 <= 1 => source.beginning(),
            from => source.start(from),
        };
        let next = state.last.next();
        let mut incidents = Incidents::new(state);
        let mut saved = None;
        for recorded in source.events(next) {
            observe(&mut incidents, &recorded, &source, &mut saved);
        }
        let (stories, dropped, state, names) = incidents.finish(self.window);
        if self.json {
            let stories: Vec<_> = stories
                .iter()
                .map(|story| {
                    let mut told = answers::story(story);
                    told["first_cause"] = answers::chain(&chain(&source, &names, story.first.event));
                    told
                })
                .collect();
            let answer = serde_json::json!({"incidents": stories, "anomalies_not_kept": dropped});
            return Ok(writeln!(out, "{answer}")?);
        }
        for (number, story) in (1..).zip(&stories) {
            tell(number, story, out)?;
            writeln!(out, "first cause:")?;
            show_chain(&chain(&source, &names, story.first.event), out)?;
            if story.open {
                still_open(&source, &state, out)?;
            }
            writeln!(out)?;
        }
        let more =
            if dropped > 0 { format!("; {dropped} anomalies were only counted") } else { String::new() };
        let plural = if stories.len() == 1 { "incident" } else { "incidents" };
        writeln!(out, "{} {plural}{more}", stories.len())?;
        Ok(())
    }
}

fn tell(number: usize, story: &Story, out: &mut impl Write) -> Result<(), Failure> {
    let lasted = span(story.until.since(story.from));
    let open = if story.open { ", and it goes on" } else { "" };
    writeln!(out, "INCIDENT {number}: {} to {} ({lasted}{open})", story.from, story.until)?;
    let parts: Vec<String> =
        story.kinds.iter().map(|(kind, count)| format!("{} {}", count, kind_name(*kind))).collect();
    writeln!(out, "  {}", parts.join(", "))?;
    writeln!(
        out,
        "  {} shapes concerned, {} lost for their clients{}",
        commas(story.shapes.len() as u64),
        commas(story.invalidated as u64),
        if story.gap_bytes > 0 {
            format!(", WAL gap up to {} bytes", commas(story.gap_bytes))
        } else {
            String::new()
        }
    )?;
    for anomaly in &story.examples {
        writeln!(out, "  {:>8} {} {}", anomaly.event, anomaly.at, anomaly.text)?;
    }
    Ok(())
}

fn still_open(source: &Source, state: &crate::state::State, out: &mut impl Write) -> Result<(), Failure> {
    let holding = Holding::of(state, &source.exits(state));
    for cohort in &holding.cohorts {
        writeln!(
            out,
            "still: {} shapes owe transaction {} (commit {}) without a live writer, gap {} bytes",
            commas(cohort.sids.len() as u64),
            cohort.oldest,
            cohort.lsn,
            commas(holding.gap_bytes)
        )?;
    }
    Ok(())
}
