//! The high-water mark: which event was certainly durable. sled that lost its end (or everything) opens
//! without a word; the mark, in a file of its own, is what gives it away.
//!
//! Two slots are written in turn and in place, so that a torn write leaves the other one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::domain::EventId;

use super::files::{self, JournalPaths};
use super::value::{Cursor, ValueFault};

const MAGIC: &[u8; 8] = b"SFJMARK1";
const SLOT_BYTES: usize = 28;
/// One disk sector each.
const SLOT_DISTANCE: u64 = 512;
/// A sync moves the mark when it is this far behind: one more `fdatasync` in a few thousand events.
const LAG_EVENTS_MAX: u64 = 4096;

pub(super) struct Mark {
    file: File,
    /// Writes so far; says which slot is next.
    turn: u64,
    /// As read at open; nothing if the file is new or both slots are damaged.
    found: Option<EventId>,
    /// As written since open.
    written: Option<EventId>,
}

impl Mark {
    pub fn open(paths: &JournalPaths) -> io::Result<Mark> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(paths.mark())?;
        files::sync_dir(paths.root())?;
        let newest = newest_slot(&file)?;
        let turn = newest.map_or(0, |(turn, _)| turn + 1);
        Ok(Mark { file, turn, found: newest.map(|(_, id)| id), written: None })
    }

    pub fn found(&self) -> Option<EventId> {
        self.found
    }

    /// Called after `durable` has become durable. The first call after opening always writes: from then on
    /// the history is the new one.
    pub fn follow(&mut self, durable: EventId, always: bool) -> io::Result<()> {
        let behind = self.written.is_none_or(|written| durable.0 - written.0 >= LAG_EVENTS_MAX);
        if !behind && (!always || self.written == Some(durable)) {
            return Ok(());
        }
        self.file.write_all_at(&encode(self.turn, durable), self.turn % 2 * SLOT_DISTANCE)?;
        self.file.sync_data()?;
        self.turn += 1;
        self.written = Some(durable);
        Ok(())
    }
}

/// The mark as it is, without creating anything.
pub(super) fn read(paths: &JournalPaths) -> io::Result<Option<EventId>> {
    match File::open(paths.mark()) {
        Ok(file) => Ok(newest_slot(&file)?.map(|(_, id)| id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn newest_slot(file: &File) -> io::Result<Option<(u64, EventId)>> {
    let mut newest = None;
    for slot in 0..2 {
        let mut bytes = [0; SLOT_BYTES];
        match file.read_exact_at(&mut bytes, slot * SLOT_DISTANCE) {
            Ok(()) => newest = newest.max(decode(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}

fn encode(turn: u64, id: EventId) -> Vec<u8> {
    let mut slot = MAGIC.to_vec();
    slot.extend_from_slice(&turn.to_le_bytes());
    slot.extend_from_slice(&id.0.to_le_bytes());
    slot.extend_from_slice(&crc32c::crc32c(&slot).to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Result<(u64, EventId), ValueFault> {
    let (body, checksum) = slot.split_at(SLOT_BYTES - 4);
    let mut cursor = Cursor(body);
    if cursor.take(MAGIC.len())? != MAGIC || Cursor(checksum).u32()? != crc32c::crc32c(body) {
        return Err(ValueFault::Damaged("mark"));
    }
    Ok((cursor.u64()?, EventId(cursor.u64()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_survives_the_damage_of_its_last_write() {
        let dir = tempfile::tempdir().unwrap();
        let paths = JournalPaths::new(dir.path());
        paths.write_stamp().unwrap();
        let mut mark = Mark::open(&paths).unwrap();
        assert_eq!(mark.found(), None);
        mark.follow(EventId(5), false).unwrap();
        mark.follow(EventId(6), false).unwrap();
        assert_eq!(Mark::open(&paths).unwrap().found(), Some(EventId(5)), "not far enough behind");
        mark.follow(EventId(7), true).unwrap();
        mark.follow(EventId(7 + LAG_EVENTS_MAX), false).unwrap();
        assert_eq!(Mark::open(&paths).unwrap().found(), Some(EventId(7 + LAG_EVENTS_MAX)));
        // The third write went to the first slot.
        mark.file.write_all_at(b"torn", 4).unwrap();
        let mut again = Mark::open(&paths).unwrap();
        assert_eq!(again.found(), Some(EventId(7)));
        again.follow(EventId(2), false).unwrap();
        assert_eq!(Mark::open(&paths).unwrap().found(), Some(EventId(2)), "a new history begins lower");
    }

    #[test]
    fn version_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let paths = JournalPaths::new(dir.path());
        paths.write_stamp().unwrap();
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/journal/v1/MARK");
        std::fs::copy(fixture, paths.mark()).unwrap();
        assert_eq!(Mark::open(&paths).unwrap().found(), Some(EventId(24)));
    }
}
