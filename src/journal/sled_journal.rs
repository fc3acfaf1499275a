//! The journal on sled 0.34.7, with what that version needs to be durable.
//!
//! sled's `flush()` uses `sync_file_range` on Linux: neither file metadata nor the disk's cache is
//! flushed, and a power cut may lose the whole journal. So every sync is `flush()` and then `fdatasync` on
//! a second handle of sled's `db` file, and only then may anything be acknowledged.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use sled::Tree;

use crate::domain::EventId;

use super::checkpoint::{self, CHECKPOINTS_KEPT, Saved};
use super::error::{Finding, JournalError, Stage};
use super::files::{self, JournalPaths};
use super::mark::Mark;
use super::survey::Survey;
use super::value::{self, FLOOR_KEY, MANIFEST_CHUNK, Value};
use super::walk::{Entries, guarded};
use super::{Checkpoint, Entry, Journal, WRITE_BYTES_MAX, check_batch, check_checkpoint, unfinished};

/// Cannot change after creation: sled refuses to open with another one.
const SEGMENT_BYTES: usize = 512 * 1024;
const CACHE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Left on: this thread also drives sled's garbage collection.
const FLUSH_EVERY_MS: u64 = 500;
const OPEN_ATTEMPTS_MAX: u32 = 20;
const OPEN_RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What opening found. Facts for the caller to record; none of them is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The store did not exist before.
    pub created: bool,
    /// First entry kept; `EventId(0)` in an empty journal.
    pub first: EventId,
    pub last: EventId,
    pub torn: Option<TornTail>,
    /// Events after `last` up to this one were durable (a checkpoint or the mark says so) and are gone. The
    /// caller may not trust what it acknowledged on their account. Told again until the next sync.
    pub missing_upto: Option<EventId>,
    /// Damage in what a newer intact checkpoint covers, and damaged checkpoints.
    pub findings: Vec<Finding>,
}

/// The end of the journal could not be read. It was moved to the tree `damaged`, not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The first event that is lost.
    pub at: EventId,
    /// Values (not events: their number is not known) that were moved.
    pub values: u64,
}

/// One writer, at most one per store: sled locks its file too.
pub struct SledJournal {
    db: sled::Db,
    entries: Tree,
    checkpoints: Tree,
    meta: Tree,
    mark: Mark,
    /// Second handle of sled's file: the one whose `fdatasync` really is one.
    db_file: File,
    last: EventId,
    floor: EventId,
    /// Verified checkpoints, oldest first. Invariant: at most [`CHECKPOINTS_KEPT`], each `upto <= last`.
    saved: Vec<Saved>,
    next_serial: u64,
    poisoned: bool,
    /// Record bytes of one atomic write: smaller in tests only.
    write_bytes_max: usize,
    /// After so many more writes the store fails.
    #[cfg(test)]
    writes_left: Option<usize>,
}

impl SledJournal {
    /// Opens or creates the store. Only under the ownership lock. `base` is the last id of the history so
    /// far for a store that is empty (0 for a fresh directory; the archive's end if the store was lost).
    ///
    /// # Errors
    /// [`JournalError::NewerFormat`] before anything is touched; [`JournalError::Hole`] or
    /// [`JournalError::Damaged`] where events are missing that no intact checkpoint covers.
    pub fn open(data_dir: &Path, base: EventId) -> Result<(SledJournal, OpenReport), JournalError> {
        let paths = JournalPaths::new(data_dir);
        let stamped = paths.check_stamp()?;
        let created = !paths.sled().join("db").try_exists().map_err(JournalError::io(Stage::Open))?;
        if !stamped {
            if !created {
                return Err(JournalError::Damaged {
                    at: super::Position::File { name: "FORMAT".to_owned(), offset: 0 },
                    what: "a store without its format stamp",
                });
            }
            paths.write_stamp().map_err(JournalError::io(Stage::Open))?;
        }
        let dir = &paths.sled();
        let mark = Mark::open(&paths).map_err(JournalError::io(Stage::Open))?;
        let db = open_sled(dir)?;
        let tree = |name: &str| guarded(Stage::Open, || db.open_tree(name));
        let (entries, checkpoints, meta, damaged) =
            (tree("entries")?, tree("checkpoints")?, tree("meta")?, tree("damaged")?);
        let db_file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join("db"))
            .map_err(JournalError::io(Stage::Open))?;
        let mut journal = SledJournal {
            db,
            entries,
            checkpoints,
            meta,
            mark,
            db_file,
            last: base,
            floor: EventId(0),
            saved: Vec::new(),
            next_serial: 1,
            poisoned: false,
            write_bytes_max: WRITE_BYTES_MAX,
            #[cfg(test)]
            writes_left: None,
        };
        // Not only when created: an earlier process may have died between creating and this.
        journal.make_creation_durable(dir).map_err(JournalError::io(Stage::Open))?;
        let unfinished = unfinished::drop_unfinished(&journal.entries, &journal.meta)?;
        let report = journal.inspect(&damaged, created)?;
        if unfinished.is_some() || report.torn.is_some() || report.missing_upto.is_some() {
            journal.flush(Stage::Open)?;
        }
        Ok((journal, report))
    }

    /// sled fsyncs neither its `conf` nor its directory.
    fn make_creation_durable(&self, dir: &Path) -> std::io::Result<()> {
        self.db.flush().map_err(|error| std::io::Error::other(error.to_string()))?;
        File::open(dir.join("conf"))?.sync_all()?;
        self.db_file.sync_all()?;
        files::sync_dir(dir)?;
        dir.parent().map_or(Ok(()), files::sync_dir)
    }

    /// Walks everything once: density, checksums, the tail; then the checkpoints.
    fn inspect(&mut self, damaged: &Tree, created: bool) -> Result<OpenReport, JournalError> {
        self.floor = read_floor(&self.meta)?;
        let base = self.last;
        let survey = Survey::take(&self.entries, self.floor)?;
        let below_floor = EventId(self.floor.0.saturating_sub(1));
        self.last = survey.end.map_or(base.max(below_floor), |end| EventId(end - 1));
        let inventory = checkpoint::inventory(&self.checkpoints, self.last)?;
        let covered = inventory.intact.last().map_or(EventId(0), |saved| saved.upto);
        let mut findings = inventory.findings;
        for (next_intact, error) in survey.faults {
            if next_intact > covered.0 + 1 {
                return Err(error);
            }
            findings.push(Finding::from(&error));
        }
        let first = EventId(survey.first.unwrap_or(0));
        if covered > EventId(0) && first > covered.next() {
            return Err(JournalError::Hole { expected: covered.next(), found: first });
        }
        let torn = survey.torn.map(|(at, keys)| (EventId(at), keys));
        let torn = match torn {
            Some((at, keys)) => {
                let values = keys.len() as u64;
                set_aside(&self.entries, damaged, keys)?;
                Some(TornTail { at, values })
            }
            None => None,
        };
        // Else it would look valid again once new events reach its number.
        let beyond = inventory.beyond.iter().map(|lost| value::checkpoint_key(lost.serial, MANIFEST_CHUNK));
        set_aside(&self.checkpoints, damaged, beyond.map(|key| sled::IVec::from(&key)).collect())?;
        let promised = inventory.beyond.iter().map(|lost| lost.upto).max().max(self.mark.found());
        let missing_upto = promised.filter(|promised| *promised > self.last);
        let kept = inventory.intact.len().saturating_sub(CHECKPOINTS_KEPT);
        self.saved = inventory.intact[kept..].to_vec();
        self.next_serial = inventory.next_serial;
        Ok(OpenReport { created, first, last: self.last, torn, missing_upto, findings })
    }

    /// A view for reading beside the writer, also from another thread: for seals and inspection.
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        JournalReader {
            entries: self.entries.clone(),
            checkpoints: self.checkpoints.clone(),
            meta: self.meta.clone(),
        }
    }

    /// Reads every value and names every fault, without changing anything.
    ///
    /// # Errors
    /// Only if the store cannot be read at all.
    pub fn verify(&self) -> Result<Vec<Finding>, JournalError> {
        let mut findings: Vec<Finding> = self
            .reader()
            .read(EventId(0))
            .filter_map(|item| item.err().map(|error| Finding::from(&error)))
            .collect();
        findings.extend(checkpoint::inventory(&self.checkpoints, self.last)?.findings);
        Ok(findings)
    }

    /// Refuses when poisoned; poisons when `work` fails.
    fn poisoning<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        let result = work(self);
        self.poisoned = result.is_err();
        result
    }

    /// Where tests let the store fail between two writes of an append.
    #[cfg(test)]
    fn may_write(&mut self) -> Result<(), JournalError> {
        match &mut self.writes_left {
            Some(0) => Err(JournalError::Injected { stage: Stage::Append }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    #[cfg(not(test))]
    fn may_write(&mut self) -> Result<(), JournalError> {
        Ok(())
    }

    /// One atomic write of sled.
    fn write(&self, group: &[Entry]) -> Result<(), JournalError> {
        let mut writes = sled::Batch::default();
        for (key, value) in value::pack(group) {
            writes.insert(&key, value);
        }
        guarded(Stage::Append, || self.entries.apply_batch(writes))
    }

    fn flush(&self, stage: Stage) -> Result<(), JournalError> {
        guarded(stage, || self.db.flush())?;
        self.db_file.sync_data().map_err(JournalError::io(stage))
    }
}

impl Journal for SledJournal {
    fn append(&mut self, batch: &[Entry]) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        check_batch(self.last, batch)?;
        let Some(last) = batch.last() else { return Ok(()) };
        self.poisoning(|journal| {
            let groups = unfinished::groups(batch, journal.write_bytes_max);
            let several = groups.len() > 1;
            if several {
                unfinished::begin(&journal.meta, journal.last)?;
            }
            for group in groups {
                journal.may_write()?;
                journal.write(group)?;
            }
            if several {
                journal.may_write()?;
                unfinished::end(&journal.meta)?;
            }
            journal.last = last.id;
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<EventId, JournalError> {
        self.poisoning(|journal| {
            journal.flush(Stage::Sync)?;
            journal.mark.follow(journal.last, false).map_err(JournalError::io(Stage::Sync))?;
            Ok(journal.last)
        })
    }

    fn read(&self, from: EventId) -> Box<dyn Iterator<Item = Result<Entry, JournalError>> + '_> {
        self.reader().read(from)
    }

    fn last(&self) -> EventId {
        self.last
    }

    fn checkpoint(&mut self, upto: EventId, state: &[u8]) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        let newest = self.saved.last().map_or(EventId(0), |saved| saved.upto);
        check_checkpoint(newest, upto, self.last, state)?;
        self.poisoning(|journal| {
            // The entries it stands on are durable before it is.
            journal.flush(Stage::Checkpoint)?;
            let serial = journal.next_serial;
            checkpoint::write(&journal.checkpoints, serial, upto, state)?;
            journal.flush(Stage::Checkpoint)?;
            journal.mark.follow(journal.last, true).map_err(JournalError::io(Stage::Checkpoint))?;
            journal.next_serial += 1;
            journal.saved.push(Saved { serial, upto });
            if journal.saved.len() > CHECKPOINTS_KEPT {
                journal.saved.remove(0);
            }
            checkpoint::remove_others(&journal.checkpoints, &journal.saved)
        })
    }

    fn checkpoints(&self) -> Result<Vec<Checkpoint>, JournalError> {
        let mut intact = Vec::new();
        for saved in self.saved.iter().rev() {
            match checkpoint::load(&self.checkpoints, saved.serial) {
                Ok(checkpoint) => intact.extend(checkpoint),
                Err(JournalError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(intact)
    }

    fn trim(&mut self, before: EventId) -> Result<EventId, JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        if self.saved.len() < CHECKPOINTS_KEPT {
            return Ok(self.floor);
        }
        let needed = self.saved[0].upto.next();
        // Values are dropped whole: the floor is the start of the value that holds the first kept id.
        let kept = before.min(needed).min(self.last);
        self.poisoning(|journal| {
            let start = guarded(Stage::Trim, || {
                journal.entries.range(..=value::entry_key(kept.0, u16::MAX)).next_back().transpose()
            })?;
            let Some((first, _)) = start.and_then(|(key, _)| value::parse_entry_key(&key)) else {
                return Ok(journal.floor);
            };
            if EventId(first) > journal.floor {
                journal.floor = EventId(first);
                let floor = value::encode_floor(journal.floor);
                guarded(Stage::Trim, || journal.meta.insert(FLOOR_KEY, floor))?;
            }
            let below = journal.entries.range(..value::entry_key(first, 0)).keys();
            checkpoint::remove_keys(&journal.entries, Stage::Trim, below)?;
            Ok(journal.floor)
        })
    }
}

/// Moves values out of the way, keeping them as evidence.
fn set_aside(tree: &Tree, damaged: &Tree, keys: Vec<sled::IVec>) -> Result<(), JournalError> {
    for key in keys {
        guarded(Stage::Open, || {
            if let Some(bytes) = tree.get(&key)? {
                damaged.insert(&key, bytes)?;
            }
            tree.remove(&key)
        })?;
    }
    Ok(())
}

/// sled locks its file. A process that this one is just starting holds a copy of the handle until its
/// `exec`, so the lock of a store that was closed a moment ago may still be there for an instant.
pub(super) fn open_sled(dir: &Path) -> Result<sled::Db, JournalError> {
    let mut attempts_left = OPEN_ATTEMPTS_MAX;
    loop {
        attempts_left -= 1;
        let opened = guarded(Stage::Open, || {
            sled::Config::default()
                .path(dir)
                .segment_size(SEGMENT_BYTES)
                .cache_capacity(CACHE_BYTES_MAX)
                .flush_every_ms(Some(FLUSH_EVERY_MS))
                .open()
        });
        match opened {
            Err(JournalError::InUse) if attempts_left > 0 => std::thread::sleep(OPEN_RETRY_PAUSE),
            done => return done,
        }
    }
}

pub(super) fn read_floor(meta: &Tree) -> Result<EventId, JournalError> {
    let Some(bytes) = guarded(Stage::Read, || meta.get(FLOOR_KEY))? else { return Ok(EventId(0)) };
    match value::decode(FLOOR_KEY, &bytes) {
        Ok(Value::Floor(first)) => Ok(first),
        Ok(_) => Err(JournalError::damaged_event(0, "trim floor")),
        Err(value::ValueFault::Damaged(what)) => Err(JournalError::damaged_event(0, what)),
        Err(value::ValueFault::Newer { found }) => Err(JournalError::NewerFormat {
            what: "the trim floor",
            found: u32::from(found),
            supported: u32::from(value::VALUE_VERSION),
        }),
    }
}

/// Reads entries of an open store; cheap to clone, usable from any thread. Where a trim runs meanwhile, what
/// it drops may show as a hole.
#[derive(Clone)]
pub struct JournalReader {
    pub(super) entries: Tree,
    pub(super) checkpoints: Tree,
    pub(super) meta: Tree,
}

impl JournalReader {
    /// The checkpoint at `upto`, checked; `None` if newer ones have taken its place.
    ///
    /// # Errors
    /// It is damaged, or the store cannot be read.
    pub fn checkpoint(&self, upto: EventId) -> Result<Option<Checkpoint>, JournalError> {
        checkpoint::find(&self.checkpoints, upto)
    }

    /// As [`Journal::read`]. May see entries that are not durable yet.
    #[must_use]
    pub fn read(&self, from: EventId) -> Box<dyn Iterator<Item = Result<Entry, JournalError>>> {
        let entries = read_floor(&self.meta).and_then(|floor| Entries::from(&self.entries, from, floor));
        match entries {
            Ok(entries) => Box::new(entries),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(first: u64, count: u64) -> Vec<Entry> {
        (first..first + count).map(|id| Entry { id: EventId(id), bytes: id.to_le_bytes().to_vec() }).collect()
    }

    fn all(journal: &dyn Journal) -> Vec<Entry> {
        journal.read(EventId(0)).map(|item| item.expect("an intact journal reads")).collect()
    }

    /// A process may end between any two of the writes that one append takes, and whatever of them was
    /// synced meanwhile: the next one finds none of it, and no reader of a copy does.
    #[test]
    fn an_append_of_several_writes_is_all_or_nothing() {
        let writes = 10;
        for fails_after in 0..=writes {
            let dir = tempfile::tempdir().unwrap();
            let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
            journal.write_bytes_max = 80;
            journal.append(&numbered(1, 25)).unwrap();
            journal.sync().unwrap();
            journal.writes_left = Some(fails_after);
            let error = journal.append(&numbered(26, 10 * writes as u64)).unwrap_err();
            assert!(matches!(error, JournalError::Injected { .. }), "{error}");
            journal.flush(Stage::Sync).unwrap();
            let found = journal.reader().read(EventId(26)).count();
            assert_eq!(found, 10 * fails_after, "the writes were made");
            drop(journal);
            let offline = crate::journal::OfflineJournal::open(dir.path()).unwrap();
            assert_eq!((offline.last(), offline.findings()), (EventId(25), &[][..]), "{fails_after}");
            assert_eq!(offline.read(EventId(0)).count(), 25);
            let (mut journal, report) = SledJournal::open(dir.path(), EventId(0)).unwrap();
            let nothing_wrong = (report.torn, report.missing_upto, report.findings.len());
            assert_eq!((report.last, nothing_wrong), (EventId(25), (None, None, 0)), "{fails_after}");
            assert_eq!(all(&journal), numbered(1, 25));
            journal.write_bytes_max = 80;
            journal.append(&numbered(26, 30)).unwrap();
            journal.sync().unwrap();
            drop(journal);
            let (journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
            assert_eq!(all(&journal), numbered(1, 55));
        }
    }

    #[test]
    fn a_failed_sync_poisons_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
        let entry = |id| [Entry { id: EventId(id), bytes: vec![1] }];
        journal.append(&entry(1)).unwrap();
        // A pipe cannot be synced.
        let pipe = std::os::fd::OwnedFd::from(std::io::pipe().unwrap().0);
        let real = std::mem::replace(&mut journal.db_file, File::from(pipe));
        assert!(matches!(journal.sync(), Err(JournalError::Io { stage: Stage::Sync, .. })));
        journal.db_file = real;
        assert!(matches!(journal.sync(), Err(JournalError::Poisoned)), "a second sync would lie");
        assert!(matches!(journal.append(&entry(2)), Err(JournalError::Poisoned)));
        assert!(matches!(journal.checkpoint(EventId(1), b""), Err(JournalError::Poisoned)));
        assert!(matches!(journal.trim(EventId(1)), Err(JournalError::Poisoned)));
    }
}
