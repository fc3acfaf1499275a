//! A journal as one file, and back.

use std::io::Write;
use std::path::PathBuf;

use crate::domain::EventId;
use crate::events::{self, Event, OwnershipEvent, Recorded};
use crate::journal::{Checkpoint, Entry, ExportFile, ExportWriter, IMPORTED_NAME, Reading};
use crate::projections::forensics::{Position, commas};
use crate::state::State;

use super::{Failure, Where};
use crate::inspect::Source;

/// The journal, or a part of it, as one compressed file with checksums.
///
/// Nothing has to be blacked out: events and states hold no row, no key, no SQL text, no parameter and no
/// secret. Host names, process numbers, table oids and handles are in it.
#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    pub journal: Where,
    /// The file to write; it must not exist.
    file: PathBuf,
    /// From this place on; the state before it goes with it.
    #[arg(long, default_value = "1")]
    from: Position,
    /// Up to this place.
    #[arg(long, default_value = "end")]
    to: Position,
}

impl Export {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let (from, to) = (source.resolve(self.from), source.resolve(self.to));
        let start = start(&source, from);
        let findings: Vec<String> = source.journal().findings().iter().map(ToString::to_string).collect();
        let manifest = serde_json::json!({
            "program": "shapefold",
            "version": env!("CARGO_PKG_VERSION"),
            "record_version": events::RECORD_VERSION,
            "state_version": crate::state::STATE_VERSION,
            "first_after": start.last,
            "findings": findings,
            "config_hash": config_hash(&source, &start),
        });
        let mut writer = ExportWriter::create(&self.file, &manifest.to_string())?;
        if start.last > EventId(0) {
            writer.checkpoint(&Checkpoint { upto: start.last, state: start.to_bytes() })?;
        }
        let mut count = 0_u64;
        for recorded in source.events(start.last.next()) {
            if to.is_passed_by(&recorded) {
                break;
            }
            count += 1;
            writer.push(&Entry { id: recorded.id, bytes: events::encode(&recorded) })?;
        }
        let bytes = writer.finish()?;
        writeln!(
            out,
            "{} events after event {} in {} bytes: {}",
            commas(count),
            start.last,
            commas(bytes),
            self.file.display()
        )?;
        Ok(())
    }
}

/// The state right before `from`.
fn start(source: &Source, from: Position) -> State {
    if matches!(from, Position::Event(id) if id <= EventId(1)) {
        return source.beginning();
    }
    let mut state = source.start(match from {
        Position::Event(id) => Position::Event(EventId(id.0 - 1)),
        other => other,
    });
    for recorded in source.events(state.last.next()) {
        if from.is_reached_by(&recorded) {
            break;
        }
        state.apply(&recorded);
    }
    state
}

/// How the newest process was configured, without what it was configured to.
fn config_hash(source: &Source, start: &State) -> String {
    let sample = Event::Ownership(OwnershipEvent::ProcessStarted(start.owner.process.clone()));
    let newest = |recorded: Recorded| match recorded.event {
        Event::Ownership(OwnershipEvent::ProcessStarted(process)) => Some(process.config_hash),
        _ => None,
    };
    let found = source.events_like(EventId(1), &sample).filter_map(newest).last();
    format!("{:016x}", found.unwrap_or(start.owner.process.config_hash))
}

#[derive(Debug, clap::Args)]
pub struct Import {
    /// The exported file.
    file: PathBuf,
    /// The directory to make of it; it must not exist. Every command reads it.
    directory: PathBuf,
}

impl Import {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let export = ExportFile::open(&self.file)?;
        let mut damage: Vec<String> = export.findings().iter().map(ToString::to_string).collect();
        let mut count = 0_u64;
        for reading in export.read(EventId(1)) {
            match reading {
                Reading::Entry(entry) => match events::decode(&entry.bytes) {
                    Ok(_) => count += 1,
                    Err(error) => damage.push(format!("event {}: {error}", entry.id)),
                },
                // A hole was a hole already when it was exported.
                Reading::Finding(crate::journal::Finding::Hole { .. }) => {}
                Reading::Finding(finding) => damage.push(finding.to_string()),
            }
        }
        if !damage.is_empty() {
            let first = damage.swap_remove(0);
            return Err(Failure::Import(format!("the file is damaged, ask for it again: {first}")));
        }
        std::fs::create_dir(&self.directory)?;
        std::fs::copy(&self.file, self.directory.join(IMPORTED_NAME))?;
        if let Some(manifest) = export.manifest() {
            writeln!(out, "{manifest}")?;
        }
        writeln!(out, "{} events, every checksum right: {}", commas(count), self.directory.display())?;
        Ok(())
    }
}
