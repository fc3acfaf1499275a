//! A journal as one file, and back.

use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use crate::domain::{EventId, Lsn};
use crate::events::{self, Event, OwnershipEvent, Recorded, StreamEvent};
use crate::journal::{Checkpoint, Entry, ExportFile, ExportWriter, IMPORTED_NAME, Reading};
use crate::projections::forensics::{Position, commas, gap};
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
    #[arg(required_unless_present = "sqlite")]
    file: Option<PathBuf>,
    /// A database of SQLite instead, with the tables of `sql`: what happened from `--from` to `--to`, and the
    /// state there. It must not exist.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    sqlite: Option<PathBuf>,
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
        if let Some(path) = &self.sqlite {
            writeln!(out, "{}", super::sql::export(&source, self.to, self.from, path)?)?;
            return Ok(());
        }
        let file = self.file.as_ref().ok_or_else(|| Failure::Import("no file to write to".to_owned()))?;
        let (from, to) = (source.resolve(self.from), source.resolve(self.to));
        let start = start(&source, from);
        let end = source.fold(to);
        let findings: Vec<String> = source.journal().findings().iter().map(ToString::to_string).collect();
        let config_hash = config_hash(&source, &start);
        let mut manifest = serde_json::json!({
            "program": "shapefold",
            "version": env!("CARGO_PKG_VERSION"),
            "record_version": events::RECORD_VERSION,
            "state_version": crate::state::STATE_VERSION,
            "first_after": start.last,
            "findings": findings,
            "config_hash": config_hash,
            "process": process(&end),
            "slot": slot(&source, &end),
        });
        if let Some(configuration) = configuration(&source, &config_hash) {
            manifest["configuration"] = configuration;
        }
        let mut writer = ExportWriter::create(file, &manifest.to_string())?;
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
            file.display()
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

/// How the newest process was configured, if the journal has it: an owner writes it beside the journal, and
/// an export carries it on. That of another process is as good as none.
pub fn configuration(source: &Source, config_hash: &str) -> Option<Value> {
    let carried = manifest(source).map(|mut manifest| manifest["configuration"].take());
    let beside = source.journal().configuration().and_then(|json| serde_json::from_str::<Value>(json).ok());
    beside.or(carried).filter(|found| found["config_hash"] == config_hash)
}

/// What the exported file that is read says of itself.
fn manifest(source: &Source) -> Option<Value> {
    source.journal().manifest().and_then(|json| serde_json::from_str(json).ok())
}

/// Who ran at the end of what is exported.
fn process(end: &State) -> Value {
    let process = &end.owner.process;
    serde_json::json!({
        "version": process.version, "host": process.host, "pid": process.pid, "boot_id": process.boot_id,
        "epoch": end.owner.epoch, "phase": format!("{:?}", end.owner.phase),
    })
}

/// The slot as it was last seen, and the positions at the end of what is exported.
fn slot(source: &Source, end: &State) -> Value {
    let sample = Event::Stream(StreamEvent::SlotObserved {
        name: String::new(),
        confirmed: Lsn(0),
        restart: Lsn(0),
        created: false,
    });
    let seen = source.events_like(EventId(1), &sample).take_while(|seen| seen.id <= end.last).last();
    let seen = seen.and_then(|recorded| match recorded.event {
        Event::Stream(StreamEvent::SlotObserved { name, confirmed, restart, created }) => {
            Some(serde_json::json!({
                "name": name, "confirmed": confirmed.to_string(), "restart": restart.to_string(),
                "created": created, "event": recorded.id, "at": recorded.at.to_string(),
            }))
        }
        _ => None,
    });
    // A slice may begin after the slot was last looked at: then the slice before it knew.
    let seen = seen.or_else(|| manifest(source).map(|mut manifest| manifest["slot"]["observed"].take()));
    let (received, boundary, gap_bytes) = gap(end);
    serde_json::json!({
        "observed": seen, "received": received.to_string(), "boundary": boundary.to_string(),
        "acked": end.stream.acked.to_string(), "gap_bytes": gap_bytes,
    })
}

#[derive(Debug, clap::Args)]
pub struct Import {
    /// The exported file.
    file: PathBuf,
    /// The directory to make of it; it must not exist. Every command reads it.
    directory: PathBuf,
    /// What the file says of itself as JSON.
    #[arg(long)]
    json: bool,
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
        match export.manifest() {
            Some(manifest) if self.json => return Ok(writeln!(out, "{manifest}")?),
            Some(manifest) => introduce(&serde_json::from_str(manifest)?, out)?,
            None => {}
        }
        writeln!(out, "{} events, every checksum right: {}", commas(count), self.directory.display())?;
        Ok(())
    }
}

/// Says what an exported file says of itself. One of an older version may say less.
fn introduce(manifest: &Value, out: &mut impl Write) -> Result<(), Failure> {
    let said = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "?".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    let (process, slot) = (&manifest["process"], &manifest["slot"]);
    writeln!(
        out,
        "made by   shapefold {}, of the events after {}",
        said(&manifest["version"]),
        said(&manifest["first_after"])
    )?;
    writeln!(
        out,
        "owner     {}, epoch {}, process {} on {}, version {}",
        said(&process["phase"]),
        said(&process["epoch"]),
        said(&process["pid"]),
        said(&process["host"]),
        said(&process["version"])
    )?;
    let observed = &slot["observed"];
    if observed.is_object() {
        writeln!(
            out,
            "slot      {}, confirmed {}, restart {}, seen at {}",
            said(&observed["name"]),
            said(&observed["confirmed"]),
            said(&observed["restart"]),
            said(&observed["at"])
        )?;
    }
    writeln!(
        out,
        "positions received {}, flushed by all {}, acknowledged {}, gap {} bytes",
        said(&slot["received"]),
        said(&slot["boundary"]),
        said(&slot["acked"]),
        slot["gap_bytes"].as_u64().map_or_else(|| "?".to_owned(), commas)
    )?;
    for finding in manifest["findings"].as_array().into_iter().flatten() {
        writeln!(out, "damage    {}", said(finding))?;
    }
    writeln!(out, "settings  {}", said(&manifest["config_hash"]))?;
    show_configuration(&manifest["configuration"], out)
}

/// One setting a line.
pub fn show_configuration(configuration: &Value, out: &mut impl Write) -> Result<(), Failure> {
    let settings = configuration.as_object().into_iter().flatten();
    for (name, value) in settings.filter(|(name, _)| *name != "config_hash") {
        writeln!(out, "          {name} = {value}")?;
    }
    Ok(())
}
