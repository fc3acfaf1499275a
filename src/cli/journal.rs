//! `shapefold journal`: what happened, what is, and whether all is well. Reads, never writes.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::domain::{EventId, Handle, Seq, Sid};
use crate::events::{self, Event, Recorded};
use crate::journal::{OfflineJournal, Reading};
use crate::projections::forensics::Checker;
use crate::state::State;

/// Exit code where the journal is readable and something in it is wrong.
const FOUND: u8 = 2;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The events, oldest first.
    Tail {
        /// The data directory (ELECTRIC_STORAGE_DIR), or a copy of one.
        data_dir: PathBuf,
        /// Only the newest so many.
        #[arg(short = 'n', long)]
        lines: Option<usize>,
        /// Only from this event on.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Only events about this shape: its number or its handle.
        #[arg(long)]
        shape: Option<String>,
        /// Only events of this name, such as ShapeInvalidated; may be given several times.
        #[arg(long)]
        kind: Vec<String>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// The state that the journal folds to.
    State {
        /// The data directory (ELECTRIC_STORAGE_DIR), or a copy of one.
        data_dir: PathBuf,
        /// The state after this event instead of the newest.
        #[arg(long)]
        at: Option<u64>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check every invariant over the whole history. Exit code 2 where one is broken or bytes are damaged.
    Verify {
        /// The data directory (ELECTRIC_STORAGE_DIR), or a copy of one.
        data_dir: PathBuf,
    },
}

/// Runs one of the journal's commands.
pub fn run(arguments: &Arguments) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = match &arguments.command {
        Command::Tail { data_dir, lines, from, shape, kind, json } => open(data_dir).and_then(|journal| {
            let filter = Filter::new(&journal, shape.as_deref(), kind)?;
            tail(&journal, EventId(*from), *lines, filter, *json, &mut out)
        }),
        Command::State { data_dir, at, json } => {
            open(data_dir).and_then(|journal| state(&journal, at.map(EventId), *json, &mut out))
        }
        Command::Verify { data_dir } => open(data_dir).and_then(|journal| verify(&journal, &mut out)),
    };
    let flushed = out.flush();
    match (result, flushed) {
        (Ok(code), Ok(())) => code,
        // Whoever reads us has read enough.
        (_, Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        (Err(Failure::Output(error)), _) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        (Err(error), _) => {
            eprintln!("shapefold journal: {error}");
            ExitCode::FAILURE
        }
        (Ok(_), Err(error)) => {
            eprintln!("shapefold journal: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("no event is called {0:?}")]
    UnknownKind(String),
    #[error("no shape of the journal is called {0:?}")]
    UnknownShape(String),
    #[error("the state cannot be shown: {0}")]
    Json(#[from] serde_json::Error),
}

fn open(data_dir: &std::path::Path) -> Result<OfflineJournal, Failure> {
    Ok(OfflineJournal::open(data_dir)?)
}

/// The events of a journal; what is damaged is reported on stderr and passed over.
fn events(journal: &OfflineJournal, from: EventId) -> impl Iterator<Item = Recorded> + '_ {
    for finding in journal.findings() {
        eprintln!("finding: {finding:?}");
    }
    journal.read(from).filter_map(|reading| match reading {
        Reading::Entry(entry) => match events::decode(&entry.bytes) {
            Ok(recorded) => Some(recorded),
            Err(error) => {
                eprintln!("finding: event {}: {error}", entry.id);
                None
            }
        },
        Reading::Finding(finding) => {
            eprintln!("finding: {finding:?}");
            None
        }
    })
}

struct Filter {
    shape: Option<Sid>,
    kinds: Vec<String>,
    /// What the shape still owes: a watermark that covers some of it is about the shape.
    owed: Vec<Seq>,
}

impl Filter {
    fn new(journal: &OfflineJournal, shape: Option<&str>, kinds: &[String]) -> Result<Filter, Failure> {
        // A filter that can match nothing would look like an answer.
        for kind in kinds {
            if !events::names().contains(&kind.as_str()) {
                return Err(Failure::UnknownKind(kind.clone()));
            }
        }
        let shape = shape.map(|shape| find_shape(journal, shape)).transpose()?;
        Ok(Filter { shape, kinds: kinds.to_vec(), owed: Vec::new() })
    }

    /// To be asked about every event, in order.
    fn accepts(&mut self, recorded: &Recorded) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == recorded.event.name());
        let shape = self.shape.is_none_or(|sid| {
            let flushes = self.flushes(&recorded.event, sid);
            flushes || concerns(&recorded.event, sid)
        });
        kind && shape
    }

    /// Whether a watermark makes something durable that the shape owes.
    fn flushes(&mut self, event: &Event, wanted: Sid) -> bool {
        use crate::events::FlushEvent;
        let durable = match event {
            Event::Stream(events::StreamEvent::TxnRouted { seq, set, .. }) => {
                if set.contains(wanted) {
                    self.owed.push(*seq);
                }
                return false;
            }
            Event::Flush(FlushEvent::Watermark { upto, except }) => {
                except.iter().find(|(sid, _)| *sid == wanted).map_or(*upto, |(_, own)| *own)
            }
            Event::Flush(FlushEvent::Flushed { shapes }) => {
                let Some((_, own)) = shapes.iter().find(|(sid, _)| *sid == wanted) else { return false };
                *own
            }
            Event::Ownership(_)
            | Event::Stream(_)
            | Event::Shape(_)
            | Event::Consumer(_)
            | Event::Journal(_) => return false,
        };
        let before = self.owed.len();
        self.owed.retain(|seq| *seq > durable);
        self.owed.len() < before
    }
}

fn find_shape(journal: &OfflineJournal, shape: &str) -> Result<Sid, Failure> {
    if let Ok(number) = shape.parse() {
        return Ok(Sid(number));
    }
    let unknown = || Failure::UnknownShape(shape.to_owned());
    let handle = shape.parse().map_err(|_| unknown())?;
    events(journal, EventId(1))
        .find_map(|recorded| match recorded.event {
            Event::Shape(events::ShapeEvent::Created { sid, handle: found, .. }) if found == handle => {
                Some(sid)
            }
            _ => None,
        })
        .ok_or_else(unknown)
}

fn concerns(event: &Event, wanted: Sid) -> bool {
    use crate::events::{FlushEvent, OwnershipEvent, StreamEvent};
    match event {
        Event::Shape(event) => event.sid() == wanted,
        Event::Consumer(event) => event.sid() == wanted,
        Event::Stream(StreamEvent::TxnRouted { set, .. } | StreamEvent::TxnRedelivered { set, .. }) => {
            set.contains(wanted)
        }
        Event::Flush(FlushEvent::Flushed { shapes } | FlushEvent::Watermark { except: shapes, .. }) => {
            shapes.iter().any(|(sid, _)| *sid == wanted)
        }
        Event::Ownership(OwnershipEvent::StorageFault { sid, .. }) => *sid == Some(wanted),
        Event::Ownership(OwnershipEvent::DestructiveIntent { target, .. }) => {
            *target == events::DestructionTarget::ShapeFiles(wanted)
        }
        Event::Ownership(_) | Event::Stream(_) | Event::Journal(_) => false,
    }
}

fn tail(
    journal: &OfflineJournal,
    from: EventId,
    lines: Option<usize>,
    mut filter: Filter,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    // From the beginning, whatever is wanted: what is shown names shapes by their handles.
    let mut names = Names::default();
    let mut newest = VecDeque::new();
    for recorded in events(journal, EventId(1)) {
        names.learn(&recorded);
        if !filter.accepts(&recorded) || recorded.id < from {
            continue;
        }
        match lines {
            None => show(&recorded, &names, json, out)?,
            Some(lines) => {
                newest.push_back(recorded);
                if newest.len() > lines {
                    newest.pop_front();
                }
            }
        }
    }
    newest.iter().try_for_each(|recorded| show(recorded, &names, json, out))?;
    Ok(ExitCode::SUCCESS)
}

/// Handles of shapes by their numbers.
#[derive(Default)]
struct Names(BTreeMap<Sid, Handle>);

impl Names {
    fn learn(&mut self, recorded: &Recorded) {
        if let Event::Shape(events::ShapeEvent::Created { sid, handle, .. }) = &recorded.event {
            self.0.insert(*sid, *handle);
        }
    }

    /// The handle of the shape that an event is about.
    fn of(&self, event: &Event) -> Option<Handle> {
        match event {
            Event::Shape(event) => self.0.get(&event.sid()).copied(),
            Event::Consumer(event) => self.0.get(&event.sid()).copied(),
            Event::Ownership(_) | Event::Stream(_) | Event::Flush(_) | Event::Journal(_) => None,
        }
    }
}

fn show(recorded: &Recorded, names: &Names, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    if json {
        let line = serde_json::json!({
            "id": recorded.id,
            "at": recorded.at.to_string(),
            "epoch": recorded.epoch,
            "because": recorded.because,
            "kind": recorded.event.name(),
            "shape": names.of(&recorded.event).map(|handle| handle.to_string()),
            "event": details(&recorded.event),
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    let because = recorded.because.map(|id| format!(" because {id}")).unwrap_or_default();
    let shape = names.of(&recorded.event).map(|handle| format!(" [{handle}]")).unwrap_or_default();
    let (id, at, epoch) = (recorded.id, recorded.at, recorded.epoch);
    writeln!(out, "{id:>8} {at} epoch {epoch} {}{shape}{because}", details(&recorded.event))?;
    Ok(())
}

/// The event with its fields by name: the form on disk has short ones.
fn details(event: &Event) -> String {
    match event {
        Event::Ownership(event) => format!("{}: {event:?}", event.name()),
        Event::Stream(events::StreamEvent::TxnRouted { seq, lsn, xid, changes, bytes, set, .. }) => {
            format!("TxnRouted: seq {seq} lsn {lsn} xid {xid} changes {changes} bytes {bytes} to {set}")
        }
        Event::Stream(event) => format!("{}: {event:?}", event.name()),
        Event::Shape(event) => format!("{}: {event:?}", event.name()),
        Event::Consumer(event) => format!("{}: {event:?}", event.name()),
        Event::Flush(event) => format!("{}: {event:?}", event.name()),
        Event::Journal(event) => format!("{}: {event:?}", event.name()),
    }
}

/// The state at an event, from the newest checkpoint before it.
fn fold(journal: &OfflineJournal, at: Option<EventId>) -> State {
    let upto = at.unwrap_or(EventId(u64::MAX));
    let (checkpoints, _) = journal.checkpoints();
    let mut state = checkpoints
        .iter()
        .filter(|checkpoint| checkpoint.upto <= upto)
        .find_map(|checkpoint| State::from_bytes(&checkpoint.state))
        .unwrap_or_default();
    for recorded in events(journal, state.last.next()).take_while(|recorded| recorded.id <= upto) {
        state.apply(&recorded);
    }
    state
}

fn state(
    journal: &OfflineJournal,
    at: Option<EventId>,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let state = fold(journal, at);
    if json {
        serde_json::to_writer_pretty(&mut *out, &state)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (owner, stream) = (&state.owner, &state.stream);
    writeln!(out, "after event {} at {}", state.last, state.at)?;
    writeln!(
        out,
        "owner    {:?}, epoch {}, process {} on {}, version {}",
        owner.phase, owner.epoch, owner.process.pid, owner.process.host, owner.process.version
    )?;
    writeln!(
        out,
        "stream   {:?}, connection {}, received {}, routed {}, acknowledged {}",
        stream.phase, stream.generation, stream.received, stream.routed, stream.acked
    )?;
    let owing = state.shapes.values().filter(|shape| !shape.pending.is_empty()).count();
    writeln!(
        out,
        "window   {} transactions owed by {owing} of {} shapes",
        state.window.len(),
        state.shapes.len()
    )?;
    for (sid, shape) in &state.shapes {
        let invalidated = shape.invalidated.map(|i| format!(", ended: {:?}", i.cause)).unwrap_or_default();
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
    Ok(ExitCode::SUCCESS)
}

fn verify(journal: &OfflineJournal, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let mut damage = 0_u64;
    for finding in journal.findings() {
        damage += 1;
        writeln!(out, "damage: {finding:?}")?;
    }
    let mut checker: Option<Checker> = None;
    let mut first = EventId(0);
    let mut count = 0_u64;
    for reading in journal.read(EventId(1)) {
        let recorded = match reading {
            Reading::Entry(entry) => match events::decode(&entry.bytes) {
                Ok(recorded) => recorded,
                Err(error) => {
                    damage += 1;
                    writeln!(out, "damage: event {}: {error}", entry.id)?;
                    continue;
                }
            },
            Reading::Finding(finding) => {
                damage += 1;
                writeln!(out, "damage: {finding:?}")?;
                continue;
            }
        };
        count += 1;
        let checker = checker.get_or_insert_with(|| {
            first = recorded.id;
            Checker::new()
        });
        checker.observe(&recorded);
    }
    let violations = checker.map(|checker| checker.finish().1).unwrap_or_default();
    // Where the beginning has been retired, what refers to it cannot be checked.
    let whole = first <= EventId(1);
    for violation in violations.iter().filter(|_| whole) {
        writeln!(out, "violated: {violation}")?;
    }
    let broken = if whole { violations.len() } else { 0 };
    writeln!(out, "{count} events from event {first}, {damage} damaged places, {broken} broken invariants")?;
    if !whole {
        writeln!(
            out,
            "the journal begins at event {first}: invariants over its retired beginning were not checked"
        )?;
    }
    Ok(if damage == 0 && broken == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}
