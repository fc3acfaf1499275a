//! The write-ahead log: who holds it, how that changed, and what was acknowledged.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use crate::domain::Oid;
use crate::inspect::answers::{self, pays};
use crate::projections::forensics::{
    AckSummary, Cohort, Diff, GroupChange, Holder, Holding, Payer, Position, Series, commas, judge,
    parse_bytes, ranges, signed, span,
};
use crate::state::State;

use super::{Failure, Where};

/// Holders listed one by one without `--all`.
const LISTED_MAX: usize = 20;
/// Characters of a list of shape numbers without `--all`.
const RANGES_MAX: usize = 80;
/// Shapes named in a list of handles.
const NAMED_MAX: usize = 10;

#[derive(Debug, clap::Args)]
pub struct HoldingAt {
    #[command(flatten)]
    pub journal: Where,
    /// The place; the end if nothing is said.
    #[arg(long, default_value = "end")]
    at: Position,
    /// Every shape that owes something, not only the longest-owing.
    #[arg(long)]
    all: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl HoldingAt {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let state = source.fold(self.at);
        let holding = Holding::of(&state, &source.exits(&state));
        if self.json {
            return json(&holding, out);
        }
        header(&holding, out)?;
        for cohort in &holding.cohorts {
            self.cohort(&state, cohort, out)?;
        }
        groups(&holding, out)?;
        let listed = if self.all { holding.holders.len() } else { LISTED_MAX };
        table(&state, &holding.holders[..listed.min(holding.holders.len())], out)?;
        if holding.holders.len() > listed {
            writeln!(out, "and {} more: --all shows them", commas((holding.holders.len() - listed) as u64))?;
        }
        Ok(())
    }

    fn cohort(&self, state: &State, cohort: &Cohort, out: &mut impl Write) -> Result<(), Failure> {
        writeln!(out)?;
        writeln!(
            out,
            "COHORT: {} shapes owe the same transaction {} (commit {}, xid {}) and have no live writer",
            commas(cohort.sids.len() as u64),
            cohort.oldest,
            cohort.lsn,
            cohort.xid
        )?;
        writeln!(out, "  hold       {} bytes", commas(cohort.bytes))?;
        let mut shapes = ranges(cohort.sids.iter().copied());
        if !self.all && shapes.len() > RANGES_MAX {
            let end = shapes[..RANGES_MAX].rfind(',').unwrap_or(RANGES_MAX);
            shapes.truncate(end);
            shapes += ", ... (--all)";
        }
        writeln!(out, "  shapes     {shapes}")?;
        writeln!(out, "  created    {} to {}", cohort.created.0, cohort.created.1)?;
        writeln!(out, "  tables     {}", tables(&cohort.tables))?;
        writeln!(out, "  last exits {}", counted(&cohort.exits))?;
        if let Some(exit) = cohort.first_exit {
            writeln!(
                out,
                "  first exit event {} at {}, {} before this moment",
                exit.event,
                exit.at,
                span(state.at.since(exit.at))
            )?;
        }
        let named: Vec<String> =
            cohort.flushed_nothing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let more = if cohort.flushed_nothing.len() > NAMED_MAX { ", ..." } else { "" };
        let list = if named.is_empty() { String::new() } else { format!(": {}{more}", named.join(", ")) };
        writeln!(out, "  flushed nothing ever: {} of them{list}", cohort.flushed_nothing.len())?;
        Ok(())
    }
}

fn header(holding: &Holding, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(out, "after event {} at {}", holding.at, holding.time)?;
    writeln!(out, "received      {} ({})", holding.received, commas(holding.received.0))?;
    writeln!(out, "flushed by all {} ({})", holding.boundary, commas(holding.boundary.0))?;
    writeln!(out, "acknowledged  {} ({})", holding.acked, commas(holding.acked.0))?;
    writeln!(out, "gap           {} bytes", commas(holding.gap_bytes))?;
    writeln!(
        out,
        "owing         {} of {} shapes, {} of them without a live writer and with nobody to pay",
        commas(holding.holders.len() as u64),
        commas(holding.shapes as u64),
        commas(holding.holders.iter().filter(|holder| holder.payer == Payer::Nobody).count() as u64)
    )?;
    Ok(())
}

fn groups(holding: &Holding, out: &mut impl Write) -> Result<(), Failure> {
    if holding.holders.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    writeln!(out, "by transaction      commit            bytes held  shapes  nobody to pay")?;
    for debt in holding.debts.iter().take(LISTED_MAX) {
        writeln!(
            out,
            "{:>14} {:>17} {:>18} {:>7} {:>14}",
            debt.oldest,
            debt.lsn,
            commas(debt.bytes),
            debt.shapes,
            debt.orphans
        )?;
    }
    if holding.debts.len() > LISTED_MAX {
        writeln!(out, "and {} more transactions", holding.debts.len() - LISTED_MAX)?;
    }
    let by_table: Vec<String> =
        holding.tables.iter().map(|(oid, (owing, all))| format!("{oid}: {owing} of {all}")).collect();
    writeln!(out, "by table            {}", by_table.join(", "))?;
    if !holding.exits.is_empty() {
        writeln!(out, "by last exit        {}", counted(&holding.exits))?;
    }
    Ok(())
}

fn table(state: &State, holders: &[Holder], out: &mut impl Write) -> Result<(), Failure> {
    if holders.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    writeln!(
        out,
        "shape                             table  oldest  owed  no progress for  who pays, last exit"
    )?;
    for holder in holders {
        let exit = holder.last_exit.map_or_else(String::new, |exit| {
            format!("; writer {} {:?} at event {}", exit.incarnation, exit.cause, exit.event)
        });
        writeln!(
            out,
            "{:<32} {:>6} {:>7} {:>5} {:>16}  {}{exit}",
            holder.handle.to_string(),
            holder.oid,
            holder.oldest,
            holder.pending,
            span(state.at.since(holder.since)),
            pays(holder.payer)
        )?;
    }
    Ok(())
}

pub fn counted(counts: &BTreeMap<String, usize>) -> String {
    counts.iter().map(|(word, count)| format!("{word}: {count}")).collect::<Vec<_>>().join(", ")
}

fn tables(counts: &BTreeMap<Oid, usize>) -> String {
    counts.iter().map(|(oid, count)| format!("{oid}: {count}")).collect::<Vec<_>>().join(", ")
}

fn json(holding: &Holding, out: &mut impl Write) -> Result<(), Failure> {
    let holders: Vec<_> = holding
        .holders
        .iter()
        .map(|holder| {
            serde_json::json!({
                "sid": holder.sid, "shape": holder.handle.to_string(), "table": holder.oid,
                "created_at": holder.created_at.to_string(), "oldest": holder.oldest,
                "lsn": holder.lsn.to_string(), "xid": holder.xid, "bytes": holder.bytes,
                "owed": holder.pending, "since": holder.since.to_string(),
                "suspected": holder.suspected, "flushed_nothing": holder.flushed_nothing,
                "payer": pays(holder.payer),
                "last_exit": holder.last_exit.map(|exit| serde_json::json!({
                    "event": exit.event, "at": exit.at.to_string(), "incarnation": exit.incarnation,
                    "cause": format!("{:?}", exit.cause), "pending": exit.pending,
                })),
            })
        })
        .collect();
    let cohorts: Vec<_> = holding
        .cohorts
        .iter()
        .map(|cohort| {
            serde_json::json!({
                "oldest": cohort.oldest, "lsn": cohort.lsn.to_string(), "bytes": cohort.bytes,
                "shapes": cohort.sids, "flushed_nothing":
                    cohort.flushed_nothing.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "exits": cohort.exits,
            })
        })
        .collect();
    let answer = serde_json::json!({
        "event": holding.at, "at": holding.time.to_string(), "received": holding.received.to_string(),
        "boundary": holding.boundary.to_string(), "acked": holding.acked.to_string(),
        "gap_bytes": holding.gap_bytes, "shapes": holding.shapes, "cohorts": cohorts, "holders": holders,
    });
    writeln!(out, "{answer}")?;
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct Between {
    #[command(flatten)]
    pub journal: Where,
    /// The earlier place.
    before: Position,
    /// The later place.
    after: Position,
    /// How wide the gap may become, such as 20GB (max_slot_wal_keep_size, or the space on the disk): say
    /// when it will be.
    #[arg(long, value_parser = bytes)]
    limit: Option<u64>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "a number of bytes, such as 20GB or 17212350577".to_owned())
}

impl Between {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let before = source.fold(self.before);
        let after = source.fold(self.after);
        let diff = Diff::between(&before, &after);
        if self.json {
            return Ok(writeln!(out, "{}", answers::diff(&diff, self.limit))?);
        }
        let (a, b) = (&diff.before, &diff.after);
        writeln!(out, "from event {} at {}", a.at, a.time)?;
        writeln!(out, "to   event {} at {}, {} later", b.at, b.time, span(diff.elapsed))?;
        let row = |out: &mut dyn Write, name: &str, a: u64, b: u64| {
            let delta = i128::from(b) - i128::from(a);
            let delta = if delta == 0 { "unchanged".to_owned() } else { signed(delta) };
            writeln!(out, "{name:<14} {:>20} {:>20}   {delta}", commas(a), commas(b))
        };
        row(out, "received", a.received.0, b.received.0)?;
        row(out, "flushed by all", a.boundary.0, b.boundary.0)?;
        row(out, "acknowledged", a.acked.0, b.acked.0)?;
        row(out, "gap, bytes", a.gap_bytes, b.gap_bytes)?;
        row(out, "shapes", a.shapes as u64, b.shapes as u64)?;
        row(out, "owing", a.owing as u64, b.owing as u64)?;
        row(out, "epoch", a.epoch, b.epoch)?;
        self.outlook(&diff, out)?;
        for (seq, (lsn, change)) in &diff.stuck {
            let name = format!("stuck at transaction {seq} ({lsn}), no live writer");
            group(&name, change, out)?;
        }
        group("owing, somebody works on it", &diff.owing, out)?;
        group("owing nothing", &diff.settled, out)?;
        for (word, handles) in [("removed", &diff.removed), ("created", &diff.created)] {
            if handles.is_empty() {
                continue;
            }
            let named: Vec<String> = handles.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let more = if handles.len() > NAMED_MAX { ", ..." } else { "" };
            writeln!(out, "{word:<9} {}: {}{more}", handles.len(), named.join(", "))?;
        }
        Ok(())
    }

    fn outlook(&self, diff: &Diff, out: &mut impl Write) -> Result<(), Failure> {
        let Some(rate) = diff.gap_rate() else { return Ok(()) };
        if diff.gap_delta() == 0 {
            return Ok(());
        }
        let word = if rate > 0.0 { "grows" } else { "shrinks" };
        writeln!(out, "the gap {word} by {} bytes a second", commas(rate.abs() as u64))?;
        if let Some(limit) = self.limit {
            let answer = match diff.time_to(limit) {
                Some(left) => format!("it reaches {} bytes in {}", commas(limit), span(left)),
                None => format!("it does not come nearer to {} bytes", commas(limit)),
            };
            writeln!(out, "{answer}")?;
        }
        Ok(())
    }
}

fn group(name: &str, change: &GroupChange, out: &mut impl Write) -> Result<(), Failure> {
    if change.before == 0 && change.after == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "{name}: {} -> {} ({} stayed, {} removed, {} moved on, {} joined, {} created)",
        change.before,
        change.after,
        change.stayed,
        change.removed,
        change.moved,
        change.joined,
        change.created
    )?;
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct Acks {
    #[command(flatten)]
    pub journal: Where,
    /// From this place on.
    #[arg(long, default_value = "1")]
    from: Position,
    /// Up to this place.
    #[arg(long, default_value = "end")]
    to: Position,
    /// Only those that passed something owed.
    #[arg(long)]
    broken: bool,
    /// One JSON object for each, and last one with the counts.
    #[arg(long)]
    json: bool,
}

impl Acks {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let (from, to) = (source.resolve(self.from), source.resolve(self.to));
        let mut state = match from {
            Position::Event(id) if id.0 <= 1 => source.beginning(),
            from => source.start(from),
        };
        let (mut summary, mut begun) = (AckSummary::default(), false);
        for recorded in source.events(state.last.next()) {
            if to.is_passed_by(&recorded) {
                break;
            }
            begun = begun || from.is_reached_by(&recorded);
            if let Some(ack) = judge(&state, &recorded).filter(|_| begun) {
                summary.add(&ack);
                if self.json && (!self.broken || !ack.safe) {
                    writeln!(out, "{}", answers::ack(&ack))?;
                } else if !self.broken || !ack.safe {
                    let held = match (ack.owed, ack.holder) {
                        (Some((seq, lsn)), Some((_, handle, count))) => {
                            format!("held at transaction {seq} ({lsn}) by {handle} and {} more", count - 1)
                        }
                        (Some((seq, lsn)), None) => format!("held at transaction {seq} ({lsn})"),
                        (None, _) => format!("nothing owed ({:?})", ack.cause),
                    };
                    let verdict = if ack.safe { "safe" } else { "UNSAFE: passed what is owed" };
                    writeln!(
                        out,
                        "{:>8} {} {:>14} {verdict}; {held}",
                        ack.event,
                        ack.at,
                        ack.lsn.to_string()
                    )?;
                }
            }
            state.apply(&recorded);
        }
        if self.json {
            let counts = serde_json::json!({"count": summary.count, "unsafe": summary.unsafe_count});
            return Ok(writeln!(out, "{counts}")?);
        }
        writeln!(out, "{} acknowledgements, {} unsafe", commas(summary.count), commas(summary.unsafe_count))?;
        if let Some((pause, event)) = summary.longest_pause {
            writeln!(out, "longest time between two: {} before event {event}", span(pause))?;
        }
        if let Some(last) = summary.last() {
            writeln!(out, "since the newest: {}", span(state.at.since(last)))?;
        }
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
pub struct Plot {
    #[command(flatten)]
    pub journal: Where,
    /// From this place on.
    #[arg(long, default_value = "1")]
    from: Position,
    /// Up to this place.
    #[arg(long, default_value = "end")]
    to: Position,
    /// Write an SVG file.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// The lines as JSON, an array for each.
    #[arg(long)]
    json: bool,
}

impl Plot {
    /// Whether it writes a file.
    pub fn writes(&self) -> bool {
        self.svg.is_some()
    }

    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let (from, to) = (source.resolve(self.from), source.resolve(self.to));
        let mut state = match from {
            Position::Event(id) if id.0 <= 1 => source.beginning(),
            from => source.start(from),
        };
        let (mut series, mut begun) = (Series::new(&state), false);
        for recorded in source.events(state.last.next()) {
            if to.is_passed_by(&recorded) {
                break;
            }
            state.apply(&recorded);
            begun = begun || from.is_reached_by(&recorded);
            series.observe(&state, &recorded, begun);
        }
        if self.json {
            writeln!(out, "{}", answers::series(&series))?;
        } else {
            write!(out, "{}", series.sparklines())?;
        }
        if let Some(path) = &self.svg {
            std::fs::write(path, series.svg())?;
            if !self.json {
                writeln!(out, "written to {}", path.display())?;
            }
        }
        Ok(())
    }
}
