//! An append that is larger than one atomic write of sled: all of it or nothing all the same.
//!
//! A step may record an event for each of very many shapes (a truncate, a new slot). Its events belong
//! together: with only the first of them recovered, shapes would live on in a history that has ended. So
//! before the first of several writes a note is left with the last event before them, and it is taken away
//! after the last. sled recovers its writes in the order in which they were made, up to some point: with the
//! note still there, what follows is a part of an append that nobody was told is durable, and is dropped.

use sled::Tree;

use crate::domain::EventId;

use super::Entry;
use super::checkpoint;
use super::error::{JournalError, Stage};
use super::value::{self, UNFINISHED_KEY, VALUE_VERSION, Value, ValueFault};
use super::walk::guarded;

/// Cuts a batch into runs of at most `bytes_max` record bytes, or of one record that is larger.
pub(super) fn groups(batch: &[Entry], bytes_max: usize) -> Vec<&[Entry]> {
    let (mut groups, mut rest) = (Vec::new(), batch);
    while !rest.is_empty() {
        let mut room = bytes_max;
        let fitting = rest.iter().take_while(|entry| {
            let left = room.checked_sub(entry.bytes.len());
            room = left.unwrap_or(0);
            left.is_some()
        });
        let (group, later) = rest.split_at(fitting.count().max(1));
        groups.push(group);
        rest = later;
    }
    groups
}

/// Before the first of several writes that follow event `before`.
pub(super) fn begin(meta: &Tree, before: EventId) -> Result<(), JournalError> {
    let note = value::encode_unfinished(before);
    guarded(Stage::Append, || meta.insert(UNFINISHED_KEY, note)).map(drop)
}

/// After the last of them.
pub(super) fn end(meta: &Tree) -> Result<(), JournalError> {
    guarded(Stage::Append, || meta.remove(UNFINISHED_KEY)).map(drop)
}

/// Drops what is there of an append that did not come to its end. Says behind which event that was.
///
/// # Errors
/// The note is damaged or of a newer version, or the store fails.
pub(super) fn drop_unfinished(entries: &Tree, meta: &Tree) -> Result<Option<EventId>, JournalError> {
    let Some(before) = read(meta)? else { return Ok(None) };
    let part = entries.range(value::entry_key(before.next().0, 0)..).keys();
    // Were this interrupted, the note would still be there.
    checkpoint::remove_keys(entries, Stage::Open, part)?;
    guarded(Stage::Open, || meta.remove(UNFINISHED_KEY))?;
    Ok(Some(before))
}

fn read(meta: &Tree) -> Result<Option<EventId>, JournalError> {
    let Some(bytes) = guarded(Stage::Read, || meta.get(UNFINISHED_KEY))? else { return Ok(None) };
    match value::decode(UNFINISHED_KEY, &bytes) {
        Ok(Value::Unfinished(before)) => Ok(Some(before)),
        Ok(_) => Err(JournalError::damaged_event(0, "note of an unfinished append")),
        Err(ValueFault::Damaged(what)) => Err(JournalError::damaged_event(0, what)),
        Err(ValueFault::Newer { found }) => Err(JournalError::NewerFormat {
            what: "the note of an unfinished append",
            found: u32::from(found),
            supported: u32::from(VALUE_VERSION),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn groups_are_the_batch_and_bounded(sizes in prop::collection::vec(0usize..50, 0..60), bytes_max in 1usize..120) {
            let batch: Vec<Entry> =
                (1..).zip(&sizes).map(|(id, size)| Entry { id: EventId(id), bytes: vec![7; *size] }).collect();
            let groups = groups(&batch, bytes_max);
            prop_assert_eq!(groups.concat(), batch.clone());
            for (at, group) in groups.iter().enumerate() {
                let bytes = |group: &[Entry]| group.iter().map(|entry| entry.bytes.len()).sum::<usize>();
                prop_assert!(bytes(group) <= bytes_max || group.len() == 1);
                if let Some(next) = groups.get(at + 1) {
                    prop_assert!(bytes(group) + next[0].bytes.len() > bytes_max, "no group is cut short");
                }
            }
        }
    }
}
