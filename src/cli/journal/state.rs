//! The state at a place, and the place where something begins to hold.

use std::io::Write;

use crate::projections::forensics::{Names, Position, Predicate, Watch, commas, gap, sentence};

use super::events::human_line;
use super::{Failure, Where};
use crate::inspect::answers;

#[derive(Debug, clap::Args)]
pub struct StateAt {
    #[command(flatten)]
    pub journal: Where,
    /// The place; the end if nothing is said.
    #[arg(long, default_value = "end")]
    at: Position,
    /// Without the list of shapes.
    #[arg(long)]
    brief: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl StateAt {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let state = self.journal.open()?.fold(self.at);
        if self.json {
            serde_json::to_writer_pretty(&mut *out, &state)?;
            writeln!(out)?;
            return Ok(());
        }
        let (owner, stream) = (&state.owner, &state.stream);
        writeln!(out, "after event {} at {}", state.last, state.at)?;
        writeln!(
            out,
            "owner    {:?}, epoch {}, process {} on {}, version {}",
            owner.phase, owner.epoch, owner.process.pid, owner.process.host, owner.process.version
        )?;
        let (received, boundary, bytes) = gap(&state);
        writeln!(
            out,
            "stream   {:?}, connection {}, received {received}, routed {}, flushed by all {boundary}, acknowledged {}, gap {} bytes",
            stream.phase,
            stream.generation,
            stream.routed,
            stream.acked,
            commas(bytes)
        )?;
        let owing = state.shapes.values().filter(|shape| !shape.pending.is_empty()).count();
        writeln!(
            out,
            "window   {} transactions owed by {owing} of {} shapes",
            state.window.len(),
            state.shapes.len()
        )?;
        if self.brief {
            return Ok(());
        }
        for (sid, shape) in &state.shapes {
            let invalidated =
                shape.invalidated.map(|i| format!(", ended: {:?}", i.cause)).unwrap_or_default();
            writeln!(
                out,
                "shape    {sid} {} table {} {:?}, writer {:?}, pending {}, flushed {}{invalidated}",
                shape.handle,
                shape.oid,
                shape.life,
                shape.writer,
                shape.pending.len(),
                shape.flushed
            )?;
        }
        Ok(())
    }
}

/// The first event after which PREDICATE holds.
///
/// A predicate is `MEASURE > AMOUNT` (also >=, <, <=, =), `MEASURE stalled for SPAN`, or NAME(HANDLE), each
/// with `not` before it if one likes, joined by `and`. Measures: gap, shapes, pending, writers, window, epoch,
/// acked, boundary, received, invalidated. Names: pending, writer, exists, invalidated, suspected.
#[derive(Debug, clap::Args)]
pub struct Bisect {
    #[command(flatten)]
    pub journal: Where,
    /// Such as `gap > 1.5 GB`, `pending(HANDLE)`, `acked stalled for 60s and pending > 30`.
    predicate: String,
    /// From this place on.
    #[arg(long, default_value = "1")]
    from: Position,
    /// As JSON: the event, or null.
    #[arg(long)]
    json: bool,
}

impl Bisect {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let predicate: Predicate = self.predicate.parse()?;
        let source = self.journal.open()?;
        let from = source.resolve(self.from);
        let mut state = match from {
            Position::Event(id) if id.0 <= 1 => source.beginning(),
            from => source.start(from),
        };
        let mut names = Names::of(&state);
        let mut watch = Watch::new(predicate, &state);
        let mut begun = false;
        for recorded in source.events(state.last.next()) {
            names.learn(&recorded);
            state.apply(&recorded);
            begun = begun || from.is_reached_by(&recorded);
            if watch.holds_after(&state, &recorded) && begun {
                if self.json {
                    return Ok(writeln!(out, "{}", answers::event(&recorded, &names))?);
                }
                writeln!(out, "first holds after event {} at {}", recorded.id, recorded.at)?;
                writeln!(out, "  {}", sentence(&recorded.event, &names))?;
                writeln!(out, "{}", human_line(&recorded, &names))?;
                return Ok(());
            }
        }
        if self.json {
            return Ok(writeln!(out, "null")?);
        }
        writeln!(out, "never holds, up to event {} at {}", state.last, state.at)?;
        Ok(())
    }
}
