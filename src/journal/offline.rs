//! Reading the history of a data directory that somebody else may own, or of a copy of it.
//!
//! No lock is taken and nothing under the directory is written. sled locks its files and writes to them
//! when it opens, so its directory is first copied to a temporary place, and the copy is opened. A copy
//! taken while the owner writes may be inconsistent: then it is taken again, a few times, and the one that
//! reaches furthest counts. Sealed segments are read in place. What was just written may be missing; the
//! running owner itself knows better.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sled::Tree;
use tempfile::TempDir;

use crate::domain::EventId;

use super::archive::{self, ArchiveReader, ArchiveSegment, ArchivedState};
use super::checkpoint;
use super::configuration;
use super::error::{Finding, JournalError, Position, Stage};
use super::export::ExportFile;
use super::files::JournalPaths;
use super::mark;
use super::sled_journal::{JournalReader, open_sled, read_floor};
use super::walk::{Entries, guarded};
use super::{Checkpoint, Entry, unfinished};

const COPIES_MAX: u32 = 3;
/// An imported export in a directory of its own.
pub const IMPORTED_NAME: &str = "journal.sfx";

/// One step of reading a history that may be damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    Entry(Entry),
    Finding(Finding),
}

/// The archive and a private copy of the recent entries; or an exported file.
pub struct OfflineJournal {
    segments: Vec<ArchiveSegment>,
    states: Vec<ArchivedState>,
    store: Option<StoreCopy>,
    export: Option<ExportFile>,
    configuration: Option<String>,
    findings: Vec<Finding>,
}

impl OfflineJournal {
    /// Opens what `path` is: a data directory, its journal directory, an archive directory, one sealed
    /// segment, or an exported file. Damage is not an error here: see [`OfflineJournal::findings`] and the
    /// findings among the readings.
    ///
    /// # Errors
    /// There is no journal, its container format is newer, or the disk (of the directory or of the copy)
    /// refuses.
    pub fn open(path: &Path) -> Result<OfflineJournal, JournalError> {
        let found = fs::metadata(path).map_err(JournalError::io(Stage::Open))?;
        if found.is_file() {
            return OfflineJournal::of_file(path);
        }
        let imported = path.join(IMPORTED_NAME);
        if imported.try_exists().map_err(JournalError::io(Stage::Open))? {
            return OfflineJournal::of_file(&imported);
        }
        let paths = JournalPaths::new(path);
        if paths.root().is_dir() {
            return OfflineJournal::of_directory(&paths);
        }
        let paths = JournalPaths::at(path);
        if paths.sled().is_dir() || paths.archive().is_dir() {
            return OfflineJournal::of_directory(&paths);
        }
        let segments = archive::list(path).map_err(JournalError::io(Stage::Open))?;
        if segments.is_empty() {
            return Err(JournalError::io(Stage::Open)(io::Error::from(io::ErrorKind::NotFound)));
        }
        let (states, findings) = archive::list_states(path).map_err(JournalError::io(Stage::Open))?;
        Ok(OfflineJournal { segments, states, store: None, export: None, configuration: None, findings })
    }

    fn of_file(path: &Path) -> Result<OfflineJournal, JournalError> {
        if let Some(segment) = archive::segment(path).map_err(JournalError::io(Stage::Open))? {
            return Ok(OfflineJournal {
                segments: vec![segment],
                states: Vec::new(),
                store: None,
                export: None,
                configuration: None,
                findings: Vec::new(),
            });
        }
        let export = ExportFile::open(path)?;
        let findings = export.findings().to_vec();
        let (segments, states) = (Vec::new(), Vec::new());
        let (store, export, configuration) = (None, Some(export), None);
        Ok(OfflineJournal { segments, states, store, export, configuration, findings })
    }

    fn of_directory(paths: &JournalPaths) -> Result<OfflineJournal, JournalError> {
        let mut findings = Vec::new();
        match paths.check_stamp() {
            Ok(true) => {}
            Ok(false) => findings
                .push(Finding::Unreadable { what: "FORMAT".to_owned(), reason: "there is none".to_owned() }),
            Err(error @ JournalError::Damaged { .. }) => findings.push(Finding::from(&error)),
            Err(error) => return Err(error),
        }
        let segments = archive::list(&paths.archive()).map_err(JournalError::io(Stage::Open))?;
        let (states, damaged) =
            archive::list_states(&paths.archive()).map_err(JournalError::io(Stage::Open))?;
        findings.extend(damaged);
        let archived = segments.iter().map(|segment| segment.last).max().unwrap_or(EventId(0));
        // Read before the copy is taken, so that no owner at work gets ahead of the copy.
        let marked = mark::read(paths).map_err(JournalError::io(Stage::Open))?;
        let durable_upto = marked.unwrap_or(EventId(0)).max(archived);
        let store = StoreCopy::best_of(&paths.sled(), durable_upto, &mut findings)?;
        let last = store.as_ref().map_or(archived, |store| store.last);
        if last < durable_upto {
            findings.push(Finding::EndMissing { last, durable_upto });
        }
        let configuration = configuration::read(paths, &mut findings);
        Ok(OfflineJournal { segments, states, store, export: None, configuration, findings })
    }

    /// The journal of this very process, beside its writer: nothing is copied. Entries that are not
    /// durable yet may be among them.
    ///
    /// # Errors
    /// The store or the archive cannot be read.
    pub fn of_owner(paths: &JournalPaths, reader: &JournalReader) -> Result<OfflineJournal, JournalError> {
        // The archive first: what is sealed meanwhile is looked for again once the store's turn has come.
        let folder = paths.archive();
        let segments = archive::list(&folder).map_err(JournalError::io(Stage::Open))?;
        let (states, mut findings) = archive::list_states(&folder).map_err(JournalError::io(Stage::Open))?;
        let store = StoreCopy::beside(reader, folder)?;
        let configuration = configuration::read(paths, &mut findings);
        Ok(OfflineJournal { segments, states, store: Some(store), export: None, configuration, findings })
    }

    /// What was noticed while opening.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Sealed segments, by first id.
    #[must_use]
    pub fn segments(&self) -> &[ArchiveSegment] {
        &self.segments
    }

    /// States in the archive, oldest first: where a fold may begin.
    #[must_use]
    pub fn states(&self) -> &[ArchivedState] {
        &self.states
    }

    /// Intact checkpoints of the copied store, newest first, and what is wrong with others.
    #[must_use]
    pub fn checkpoints(&self) -> (Vec<Checkpoint>, Vec<Finding>) {
        match &self.export {
            Some(export) => (export.checkpoints().to_vec(), Vec::new()),
            None => self.store.as_ref().map_or_else(Default::default, StoreCopy::checkpoints),
        }
    }

    /// The newest event there is, as far as opening could tell.
    #[must_use]
    pub fn last(&self) -> EventId {
        let sealed = self.segments.iter().map(|segment| segment.last).max();
        let stored = self.store.as_ref().map(|store| store.last);
        let exported = self.export.as_ref().map(ExportFile::last);
        sealed.max(stored).max(exported).unwrap_or(EventId(0))
    }

    /// What an exported file says of itself.
    #[must_use]
    pub fn manifest(&self) -> Option<&str> {
        self.export.as_ref().and_then(ExportFile::manifest)
    }

    /// How the newest owner of a directory is configured, as the JSON object that it wrote.
    #[must_use]
    pub fn configuration(&self) -> Option<&str> {
        self.configuration.as_deref()
    }

    /// Every entry from `from` on, once and in order, from the archive, then from the store; findings where
    /// something is missing or damaged. If `from` is older than everything kept, it starts with the oldest.
    pub fn read(&self, from: EventId) -> Box<dyn Iterator<Item = Reading> + '_> {
        if let Some(export) = &self.export {
            return Box::new(export.read(from));
        }
        Box::new(Merge {
            from,
            expected: None,
            segments: self.segments.iter().filter(|segment| segment.last >= from).cloned().collect(),
            listed_again: false,
            store: self.store.as_ref(),
            current: None,
            starts_at: EventId(0),
            ended_at: None,
            queue: VecDeque::new(),
            torn: false,
        })
    }
}

/// sled's files, copied and opened, and removed when dropped; or the owner's own, beside its writer.
struct StoreCopy {
    // Before the directory, so that sled is closed when the directory goes.
    entries: Tree,
    checkpoints: Tree,
    floor: EventId,
    /// Last intact entry.
    last: EventId,
    faults: usize,
    /// Where the owner seals what it lets go of; `None` for a copy, which nobody changes.
    sealed_into: Option<PathBuf>,
    _copy: Option<(sled::Db, TempDir)>,
}

impl StoreCopy {
    /// Copies until a copy is sound, or was taken while nothing changed; otherwise the furthest one.
    fn best_of(
        source: &Path,
        durable_upto: EventId,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<StoreCopy>, JournalError> {
        if !source.join("db").try_exists().map_err(JournalError::io(Stage::Open))? {
            return Ok(None);
        }
        let mut best: Option<StoreCopy> = None;
        let mut failure = None;
        for _ in 0..COPIES_MAX {
            let before = fingerprint(source);
            let dir = copy_store(source).map_err(JournalError::io(Stage::Copy))?;
            let still = before.is_some() && fingerprint(source) == before;
            match StoreCopy::open(dir) {
                Ok(copy) => {
                    let sound = copy.faults == 0 && copy.last >= durable_upto;
                    if best.as_ref().is_none_or(|best| copy.last > best.last) {
                        best = Some(copy);
                    }
                    if sound {
                        break;
                    }
                }
                Err(error) => failure = Some(error),
            }
            if still {
                break;
            }
        }
        if let (None, Some(error)) = (&best, failure) {
            findings.push(Finding::Unreadable { what: "sled".to_owned(), reason: error.to_string() });
        }
        Ok(best)
    }

    fn open(dir: TempDir) -> Result<StoreCopy, JournalError> {
        let db = open_sled(dir.path())?;
        let tree = |name: &str| guarded(Stage::Open, || db.open_tree(name));
        let (entries, checkpoints, meta) = (tree("entries")?, tree("checkpoints")?, tree("meta")?);
        let floor = read_floor(&meta).unwrap_or(EventId(0));
        // Of a copy: the owner's store still has it.
        unfinished::drop_unfinished(&entries, &meta)?;
        let (last, faults, sealed_into) = (EventId(0), 0, None);
        let mut copy =
            StoreCopy { entries, checkpoints, floor, last, faults, sealed_into, _copy: Some((db, dir)) };
        for item in Entries::from(&copy.entries, EventId(0), floor)? {
            match item {
                Ok(entry) => copy.last = entry.id,
                Err(_) => copy.faults += 1,
            }
        }
        Ok(copy)
    }

    fn beside(reader: &JournalReader, sealed_into: PathBuf) -> Result<StoreCopy, JournalError> {
        let (entries, checkpoints) = (reader.entries.clone(), reader.checkpoints.clone());
        let floor = read_floor(&reader.meta)?;
        let newest = Entries::from(&entries, EventId(u64::MAX >> 1), floor)?.newest();
        let last = newest.unwrap_or(EventId(floor.0.saturating_sub(1)));
        let sealed_into = Some(sealed_into);
        Ok(StoreCopy { entries, checkpoints, floor, last, faults: 0, sealed_into, _copy: None })
    }

    /// What its owner has sealed and let go of since the segments were listed: from `from` on, if the
    /// store no longer begins there.
    fn sealed_since(&self, from: EventId) -> Vec<ArchiveSegment> {
        let Some(folder) = &self.sealed_into else { return Vec::new() };
        let first =
            Entries::from(&self.entries, from, self.floor).ok().and_then(|mut entries| entries.next());
        if first.and_then(Result::ok).is_none_or(|entry| entry.id <= from) {
            return Vec::new();
        }
        // What cannot be listed now shows as events that are not kept.
        let segments = archive::list(folder).unwrap_or_default();
        segments.into_iter().filter(|segment| segment.last >= from).collect()
    }

    fn checkpoints(&self) -> (Vec<Checkpoint>, Vec<Finding>) {
        let inventory = match checkpoint::inventory(&self.checkpoints, EventId(u64::MAX)) {
            Ok(inventory) => inventory,
            Err(error) => return (Vec::new(), vec![Finding::from(&error)]),
        };
        let newest_first = inventory.intact.iter().rev();
        let load = |saved: &checkpoint::Saved| checkpoint::load(&self.checkpoints, saved.serial).ok()?;
        (newest_first.filter_map(load).collect(), inventory.findings)
    }
}

/// Length and time of change of sled's file: equal before and after a copy if nobody wrote meanwhile.
fn fingerprint(source: &Path) -> Option<(u64, SystemTime)> {
    let found = fs::metadata(source.join("db")).ok()?;
    Some((found.len(), found.modified().ok()?))
}

fn copy_store(source: &Path) -> io::Result<TempDir> {
    let target = tempfile::Builder::new().prefix("shapefold-offline-").tempdir()?;
    copy_files(source, target.path())?;
    let blobs = source.join("blobs");
    if blobs.is_dir() {
        fs::create_dir(target.path().join("blobs"))?;
        copy_files(&blobs, &target.path().join("blobs"))?;
    }
    Ok(target)
}

fn copy_files(source: &Path, target: &Path) -> io::Result<()> {
    for found in fs::read_dir(source)? {
        let found = found?;
        if !found.file_type()?.is_file() {
            continue;
        }
        match fs::copy(found.path(), target.join(found.file_name())) {
            Ok(_) => {}
            // The owner replaces its snapshot files; the next copy sees the new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Segments in order, then the store; drops what came before, names what is missing.
struct Merge<'a> {
    from: EventId,
    /// The next id, once the first entry was seen.
    expected: Option<EventId>,
    segments: VecDeque<ArchiveSegment>,
    listed_again: bool,
    store: Option<&'a StoreCopy>,
    current: Option<Source>,
    /// With which event the current source begins by its own account.
    starts_at: EventId,
    /// With which event the segment before it ended by its own account.
    ended_at: Option<EventId>,
    queue: VecDeque<Reading>,
    /// The last thing the store said was a fault.
    torn: bool,
}

enum Source {
    /// And with which event it ends by its own account.
    Segment(Box<ArchiveReader>, EventId),
    Store(Box<Entries>),
}

impl Merge<'_> {
    /// Opens the next source; `false` if there is none.
    fn open_next(&mut self) -> bool {
        if let Some(segment) = self.segments.pop_front() {
            self.starts_at = segment.first;
            match ArchiveReader::open(&segment.path) {
                Ok(reader) => {
                    let reader = Box::new(reader.starting_at(self.from));
                    self.current = Some(Source::Segment(reader, segment.last));
                }
                Err(error) => self.queue.push_back(Reading::Finding(name_file(&error, &segment.path))),
            }
            return true;
        }
        if let (Some(store), Some(expected), false) = (self.store, self.expected, self.listed_again) {
            self.listed_again = true;
            self.segments.extend(store.sealed_since(expected));
            if !self.segments.is_empty() {
                return true;
            }
        }
        let Some(store) = self.store.take() else { return false };
        self.starts_at = store.floor;
        let from = self.expected.unwrap_or(self.from).max(self.from);
        match Entries::from(&store.entries, from, store.floor) {
            Ok(entries) => self.current = Some(Source::Store(Box::new(entries))),
            Err(error) => self.queue.push_back(Reading::Finding(Finding::from(&error))),
        }
        true
    }

    fn take(&mut self, entry: Entry) {
        if entry.id < self.from || self.expected.is_some_and(|expected| entry.id < expected) {
            return;
        }
        if let Some(expected) = self.expected.filter(|expected| entry.id > *expected) {
            let (from, to) = (expected, EventId(entry.id.0 - 1));
            let between_files = self.ended_at == Some(EventId(from.0 - 1)) && entry.id == self.starts_at;
            let finding =
                if between_files { Finding::NotKept { from, to } } else { Finding::Hole { from, to } };
            self.queue.push_back(Reading::Finding(finding));
        }
        self.expected = Some(entry.id.next());
        self.queue.push_back(Reading::Entry(entry));
    }

    fn advance(&mut self) -> bool {
        match &mut self.current {
            None => self.open_next(),
            Some(Source::Segment(reader, last)) => {
                match reader.next() {
                    Some(Reading::Entry(entry)) => self.take(entry),
                    Some(finding @ Reading::Finding(_)) => self.queue.push_back(finding),
                    None => {
                        self.ended_at = Some(*last);
                        self.current = None;
                    }
                }
                true
            }
            Some(Source::Store(entries)) => {
                match entries.next() {
                    Some(Ok(entry)) => {
                        self.torn = false;
                        self.take(entry);
                    }
                    // A hole shows in the ids themselves.
                    Some(Err(JournalError::Hole { .. })) => {}
                    Some(Err(error)) => {
                        self.torn = true;
                        self.queue.push_back(Reading::Finding(Finding::from(&error)));
                    }
                    None => {
                        self.current = None;
                        if self.torn {
                            let at = Position::Event(self.expected.unwrap_or(self.from));
                            self.queue.push_back(Reading::Finding(Finding::TornTail { at }));
                        }
                    }
                }
                true
            }
        }
    }
}

impl Iterator for Merge<'_> {
    type Item = Reading;

    fn next(&mut self) -> Option<Reading> {
        loop {
            if let Some(reading) = self.queue.pop_front() {
                return Some(reading);
            }
            if !self.advance() {
                return None;
            }
        }
    }
}

fn name_file(error: &JournalError, path: &Path) -> Finding {
    match error {
        JournalError::Damaged { .. } | JournalError::NewerFormat { .. } => Finding::from(error),
        other => Finding::Unreadable {
            what: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            reason: other.to_string(),
        },
    }
}
