//! Checkpoints inside sled: chunks first, the manifest last, the last two intact ones kept.

use sled::Tree;

use crate::domain::EventId;

use super::error::{Finding, JournalError, Position, Stage};
use super::value::{self, CHUNK_BYTES_MAX, MANIFEST_CHUNK, Manifest, VALUE_VERSION, Value, ValueFault};
use super::walk::guarded;
use super::{CHECKPOINT_BYTES_MAX, Checkpoint};

/// Intact checkpoints that are kept. Invariant: the journal holds every entry after the older of the two.
pub(super) const CHECKPOINTS_KEPT: usize = 2;
/// Chunks per atomic write: one large batch would hold all of it in memory twice.
const CHUNKS_PER_BATCH_MAX: usize = 256;

/// A checkpoint that has been verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub serial: u64,
    pub upto: EventId,
}

/// Everything the tree says about its checkpoints, oldest first.
pub(super) struct Inventory {
    pub intact: Vec<Saved>,
    pub findings: Vec<Finding>,
    /// Intact, but of a history whose end is lost.
    pub beyond: Vec<Saved>,
    pub next_serial: u64,
}

/// Verifies every checkpoint. One beyond `last` is kept apart: events up to it were durable and are lost.
pub(super) fn inventory(tree: &Tree, last: EventId) -> Result<Inventory, JournalError> {
    let mut found =
        Inventory { intact: Vec::new(), findings: Vec::new(), beyond: Vec::new(), next_serial: 1 };
    for serial in serials(tree)? {
        found.next_serial = serial + 1;
        match load(tree, serial) {
            Ok(None) => {} // No manifest: the process ended while writing it.
            Ok(Some(checkpoint)) if checkpoint.upto > last => {
                found.beyond.push(Saved { serial, upto: checkpoint.upto });
            }
            Ok(Some(checkpoint)) => found.intact.push(Saved { serial, upto: checkpoint.upto }),
            Err(error @ (JournalError::Damaged { .. } | JournalError::TooLarge { .. })) => {
                found.findings.push(Finding::from(&error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Distinct serial numbers, ascending, by one seek each.
fn serials(tree: &Tree) -> Result<Vec<u64>, JournalError> {
    let mut serials = Vec::new();
    let mut from = Some(0);
    while let Some(start) = from {
        let next =
            guarded(Stage::Checkpoint, || tree.range(value::checkpoint_key(start, 0)..).next().transpose())?;
        from = match next.and_then(|(key, _)| value::parse_checkpoint_key(&key)) {
            Some((serial, _)) => {
                serials.push(serial);
                serial.checked_add(1)
            }
            None => None,
        };
    }
    Ok(serials)
}

/// The state saved at `upto`; `None` if there is none (any more). One manifest is read for each that is there.
pub(super) fn find(tree: &Tree, upto: EventId) -> Result<Option<Checkpoint>, JournalError> {
    for serial in serials(tree)? {
        let key = value::checkpoint_key(serial, MANIFEST_CHUNK);
        let Some(bytes) = guarded(Stage::Checkpoint, || tree.get(key))? else { continue };
        match value::decode(&key, &bytes) {
            Ok(Value::Manifest(manifest)) if manifest.upto == upto => return load(tree, serial),
            Ok(_) | Err(_) => {} // Damage is told by whoever opens the store.
        }
    }
    Ok(None)
}

/// Reads one checkpoint; `None` without a manifest.
pub(super) fn load(tree: &Tree, serial: u64) -> Result<Option<Checkpoint>, JournalError> {
    let key = value::checkpoint_key(serial, MANIFEST_CHUNK);
    let Some(bytes) = guarded(Stage::Checkpoint, || tree.get(key))? else { return Ok(None) };
    let manifest = match value::decode(&key, &bytes) {
        Ok(Value::Manifest(manifest)) => manifest,
        Ok(_) => return Err(damaged("manifest of a checkpoint")),
        Err(fault) => return Err(refuse(fault)),
    };
    let length = usize::try_from(manifest.state_bytes).unwrap_or(usize::MAX);
    JournalError::check_size("checkpoint", length, CHECKPOINT_BYTES_MAX)?;
    let mut state = Vec::with_capacity(length);
    let range = value::checkpoint_key(serial, 0)..key;
    let mut chunks = tree.range(range);
    let mut count = 0;
    while let Some((key, bytes)) = guarded(Stage::Checkpoint, || chunks.next().transpose())? {
        match value::decode(&key, &bytes) {
            Ok(Value::Chunk(chunk))
                if value::parse_checkpoint_key(&key) == Some((serial, count))
                    && state.len() + chunk.len() <= length =>
            {
                state.extend_from_slice(chunk);
            }
            Ok(_) => return Err(damaged("chunks of a checkpoint")),
            Err(fault) => return Err(refuse(fault)),
        }
        count += 1;
    }
    if count != manifest.chunks || state.len() != length || crc32c::crc32c(&state) != manifest.state_crc {
        return Err(damaged("state of a checkpoint"));
    }
    Ok(Some(Checkpoint { upto: manifest.upto, state }))
}

/// Writes chunks, then the manifest. Not durable before the caller's flush.
pub(super) fn write(tree: &Tree, serial: u64, upto: EventId, state: &[u8]) -> Result<(), JournalError> {
    let mut count = 0;
    for group in state.chunks(CHUNK_BYTES_MAX * CHUNKS_PER_BATCH_MAX) {
        let mut batch = sled::Batch::default();
        for chunk in group.chunks(CHUNK_BYTES_MAX) {
            let key = value::checkpoint_key(serial, count);
            batch.insert(&key, value::encode_chunk(&key, chunk));
            count += 1;
        }
        guarded(Stage::Checkpoint, || tree.apply_batch(batch))?;
    }
    let key = value::checkpoint_key(serial, MANIFEST_CHUNK);
    let state_crc = crc32c::crc32c(state);
    let manifest = Manifest { upto, state_bytes: state.len() as u64, chunks: count, state_crc };
    guarded(Stage::Checkpoint, || tree.insert(key, value::encode_manifest(&key, &manifest)))?;
    Ok(())
}

/// Removes every checkpoint but those in `kept`.
pub(super) fn remove_others(tree: &Tree, kept: &[Saved]) -> Result<(), JournalError> {
    for serial in serials(tree)? {
        if kept.iter().any(|saved| saved.serial == serial) {
            continue;
        }
        // The manifest goes first: half a removal must not look like damage.
        guarded(Stage::Checkpoint, || tree.remove(value::checkpoint_key(serial, MANIFEST_CHUNK)))?;
        let range = value::checkpoint_key(serial, 0)..value::checkpoint_key(serial, MANIFEST_CHUNK);
        remove_keys(tree, Stage::Checkpoint, tree.range(range).keys())?;
    }
    Ok(())
}

/// Removes keys in ascending order by bounded atomic writes.
pub(super) fn remove_keys(
    tree: &Tree,
    stage: Stage,
    keys: impl Iterator<Item = Result<sled::IVec, sled::Error>>,
) -> Result<(), JournalError> {
    let mut batch = sled::Batch::default();
    let mut size = 0;
    for key in keys {
        batch.remove(key.map_err(JournalError::store(stage))?);
        size += 1;
        if size == CHUNKS_PER_BATCH_MAX {
            guarded(stage, || tree.apply_batch(std::mem::take(&mut batch)))?;
            size = 0;
        }
    }
    guarded(stage, || tree.apply_batch(batch))
}

fn damaged(what: &'static str) -> JournalError {
    JournalError::Damaged { at: Position::File { name: "sled/checkpoints".to_owned(), offset: 0 }, what }
}

fn refuse(fault: ValueFault) -> JournalError {
    match fault {
        ValueFault::Newer { found } => JournalError::NewerFormat {
            what: "a checkpoint",
            found: u32::from(found),
            supported: u32::from(VALUE_VERSION),
        },
        ValueFault::Damaged(what) => damaged(what),
    }
}
