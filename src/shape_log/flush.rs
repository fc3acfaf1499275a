//! Making many logs durable at once.

use crate::domain::Offset;

use super::disk::Disk;
use super::error::{FileKind, Named, Stage, StorageFault};
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
    let dirty = writers.iter().filter(|writer| writer.is_dirty()).count();
    let barrier = (dirty > SYNC_EACH_MAX).then(|| disk.barrier().named(Stage::Sync, FileKind::Log));
    for (writer, result) in writers.iter_mut().zip(&mut results) {
        if result.is_err() || !writer.is_dirty() {
            continue;
        }
        *result = match barrier {
            Some(outcome) => outcome.inspect_err(|fault| writer.fail(*fault)),
            None => writer.sync_file(),
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
