//! Making many logs durable at once.

use crate::domain::Offset;

use super::disk::{Disk, write_all};
use super::error::{FileKind, Named, Stage, StorageFault};
use super::index::{Mark, RECORD_LEN};
use super::writer::LogWriter;

/// Up to this many logs are synced one by one; above it one barrier over the file system is cheaper,
/// although it also waits for what others have written.
pub const SYNC_EACH_MAX: usize = 32;

/// Makes all that the writers have committed durable. One result per writer, in order: its last
/// durable offset, or the fault after which nothing of it counts as durable that did not before.
///
/// Blocks for as long as the disk takes. A writer with an open transaction keeps it open.
pub fn flush_all<'w>(
    disk: &dyn Disk,
    writers: impl IntoIterator<Item = &'w mut LogWriter>,
) -> Vec<Result<Offset, StorageFault>> {
    let mut writers: Vec<&mut LogWriter> = writers.into_iter().collect();
    let mut results: Vec<Result<(), StorageFault>> =
        writers.iter_mut().map(|writer| writer.write_out()).collect();
    let dirty = writers.iter().filter(|writer| writer.is_dirty() && !writer.is_packed()).count();
    let barrier = (dirty > SYNC_EACH_MAX).then(|| disk.barrier().named(Stage::Sync, FileKind::Log));
    for (writer, result) in writers.iter_mut().zip(&mut results) {
        if result.is_err() || !writer.is_dirty() {
            continue;
        }
        *result = match barrier {
            Some(outcome) if !writer.is_packed() => outcome.inspect_err(|fault| writer.fail(*fault)),
            // The first sync of a packed log is that of all.
            Some(_) | None => writer.sync_file(),
        };
    }
    writers
        .into_iter()
        .zip(results)
        .map(|(writer, result)| {
            result.map(|()| if writer.is_dirty() { writer.synced() } else { writer.durable() })
        })
        .collect()
}

impl LogWriter {
    /// What it has written is kept with others in one file.
    fn is_packed(&self) -> bool {
        self.unsynced.as_ref().is_some_and(|file| file.packed_upto().is_some())
    }

    /// Syncs the file, and its entry where it is new.
    pub(super) fn sync_file(&mut self) -> Result<(), StorageFault> {
        self.check()?;
        let file = self.unsynced.clone().map_or_else(|| self.log.open(), Ok);
        let synced = file.and_then(|file| file.sync_data().named(Stage::Sync, FileKind::Log));
        self.noted(synced)?;
        if self.entry_unsynced {
            let synced = self.log.sync_directory();
            self.noted(synced)?;
        }
        Ok(())
    }

    /// Records a fault of a barrier that this writer took part in.
    fn fail(&mut self, fault: StorageFault) {
        self.fault.get_or_insert(fault);
    }

    /// Moves the durable end to what was written out: call after a sync that succeeded and covers
    /// it. Then stores the marks, which may say so from now on.
    fn synced(&mut self) -> Offset {
        assert!(self.unwritten.is_empty(), "a flush writes out first");
        self.entry_unsynced = false;
        self.sync_wanted = false;
        self.unsynced = None;
        self.durable = self.end;
        self.durable_last = self.last;
        self.publish_durable();
        if self.store_marks().is_err() {
            // The index is derived: without it recovery reads more, and nothing is lost.
            self.index_broken = true;
        }
        self.durable_last
    }

    pub(super) fn store_marks(&mut self) -> Result<(), StorageFault> {
        if self.index_broken || self.marks_stored == self.marks.len() {
            return Ok(());
        }
        let marks = self.marks.iter_from(self.marks_stored).take_while(|mark| mark.end <= self.durable);
        let records: Vec<u8> = marks.flat_map(Mark::encode).collect();
        let (file, _) = self.index.open_or_create()?;
        write_all(file.as_ref(), &records, (self.marks_stored * RECORD_LEN) as u64, FileKind::Index)?;
        self.marks_stored += records.len() / RECORD_LEN;
        Ok(())
    }
}
