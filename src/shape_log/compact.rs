//! What has to remain of the messages of a log so that a client at *any* offset still comes to the same
//! rows.
//!
//! A client has some of the messages, up to its offset, and takes all that remain after it. For each key
//! there remain:
//!
//! * the last delete before the last insert, and that insert. A client that had the row before learns of
//!   its end first, so that nobody is told to insert a row that is there. One that never had it is told of
//!   an end that changes nothing for it;
//! * one update, at the offset of the last: with the newest value of each column that any of those since
//!   the insert has set. A client that has some of them sets some values once more;
//! * of a row that is gone, the last delete.
//!
//! What remains stays at its offset, and an update moves only to that of a later update of the same row.
//! So a message that a client lacks is always after its offset. The message at the end of the range is the
//! last of its key: the end stays where it was.
//!
//! **Ends of chunks.** In the middle of the range the rows that a client has follow from this generation of
//! the log: of an update that was merged into one further on, nothing has come yet. An answer of the
//! generation before, out of a cache, must not continue it. So a chunk in the range ends at an offset that
//! no answer ever ended at: the odd one behind a message. See [`Ending`].

use std::collections::{BTreeMap, HashMap};

use crate::domain::Lsn;

use super::encoder::{CLOSE, Encoder};
use super::json::string_end;

/// Commit LSN and operation.
pub(super) type Place = (Lsn, u64);

/// Memory of one key beside its messages, about.
const KEY_BYTES: usize = 200;

/// A message that is not one of a plain shape: nothing can be said about what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// A message that remains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub at: Place,
    /// Whole, without a comma.
    pub message: Vec<u8>,
    pub ending: Ending,
}

/// How a chunk can end with a message, at the odd operation behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The operation behind it is taken, or may have ended a chunk before.
    None,
    /// The message may as well stand there: who gets it twice sets the same values, or removes nothing.
    Moved,
    /// An insert must not come twice. An update of the columns of its key, to what they are, follows it.
    Followed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Insert,
    Update,
    Delete,
}

/// The parts of a message.
struct Parts<'m> {
    /// Inside its quotes.
    key: &'m [u8],
    /// Inside its braces.
    values: &'m [u8],
    operation: Operation,
    /// Behind the operation.
    headers: &'m [u8],
}

/// What remains of the messages of one key.
#[derive(Debug, Default)]
struct Row {
    delete: Option<Kept>,
    insert: Option<Kept>,
    /// The update right behind it, at which a chunk ended once: it stays, so that none ends there again.
    follower: Option<Kept>,
    update: Option<Updates>,
}

#[derive(Debug)]
enum Updates {
    One(Kept),
    /// The newest value of each column that was set, by its place among the columns of the shape.
    Merged {
        at: Place,
        ending: Ending,
        cells: BTreeMap<usize, Vec<u8>>,
    },
}

/// Takes in the messages of a range, in their order, and gives back those that have to remain.
#[derive(Debug)]
pub(super) struct Fold<'e> {
    encoder: &'e Encoder,
    rows: HashMap<Vec<u8>, Row>,
    bytes: usize,
    /// Whether the operation behind it is taken is known when the next one comes.
    last: Option<(Place, Vec<u8>)>,
}

impl<'e> Fold<'e> {
    pub fn new(encoder: &'e Encoder) -> Fold<'e> {
        Fold { encoder, rows: HashMap::new(), bytes: 0, last: None }
    }

    /// Memory that it holds, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes in the next message.
    pub fn push(&mut self, at: Place, message: &[u8]) -> Result<(), Unreadable> {
        match self.last.replace((at, message.to_vec())) {
            Some((before, message)) => self.take(before, message, at == (before.0, before.1 + 1)),
            None => Ok(()),
        }
    }

    fn take(&mut self, at: Place, message: Vec<u8>, behind_taken: bool) -> Result<(), Unreadable> {
        let parts = parts(&message).ok_or(Unreadable)?;
        let (operation, key) = (parts.operation, parts.key);
        let ending = ending(&parts, at, behind_taken);
        if !self.rows.contains_key(key) {
            self.rows.insert(key.to_vec(), Row::default());
            self.bytes += key.len() + KEY_BYTES;
        }
        let Some(row) = self.rows.get_mut(key) else { return Ok(()) };
        let before = row.bytes();
        match operation {
            Operation::Delete => {
                *row = Row { delete: Some(Kept { at, message, ending }), ..Row::default() };
            }
            Operation::Insert => {
                row.insert = Some(Kept { at, message, ending });
                (row.follower, row.update) = (None, None);
            }
            Operation::Update
                if row.insert.as_ref().is_some_and(|insert| at == (insert.at.0, insert.at.1 + 1)) =>
            {
                row.follower = Some(Kept { at, message, ending: Ending::None });
            }
            Operation::Update => {
                row.update = Some(match row.update.take() {
                    None => Updates::One(Kept { at, message, ending }),
                    Some(earlier) => {
                        let mut cells = earlier.cells(self.encoder)?;
                        add_cells(self.encoder, &message, &mut cells)?;
                        Updates::Merged { at, ending, cells }
                    }
                });
            }
        }
        self.bytes = (self.bytes + row.bytes()).saturating_sub(before);
        Ok(())
    }

    /// What remains, by its place. The fold is empty again.
    pub fn finish(&mut self) -> Result<Vec<Kept>, Unreadable> {
        if let Some((at, message)) = self.last.take() {
            // What comes after it is in no range yet: the operation behind it may be taken.
            self.take(at, message, true)?;
        }
        let mut kept = Vec::with_capacity(self.rows.len());
        for (key, row) in self.rows.drain() {
            kept.extend(row.delete);
            kept.extend(row.insert);
            kept.extend(row.follower);
            match row.update {
                Some(Updates::Merged { at, ending, cells }) => {
                    kept.push(Kept { at, message: update(self.encoder, &key, &cells), ending });
                }
                Some(Updates::One(update)) => kept.push(update),
                None => {}
            }
        }
        self.bytes = 0;
        kept.sort_unstable_by_key(|kept| kept.at);
        Ok(kept)
    }
}

impl Row {
    fn bytes(&self) -> usize {
        let whole = |kept: &Option<Kept>| kept.as_ref().map_or(0, |kept| kept.message.len());
        let update = match &self.update {
            None => 0,
            Some(Updates::One(kept)) => kept.message.len(),
            Some(Updates::Merged { cells, .. }) => cells.values().map(|cell| cell.len() + 48).sum(),
        };
        whole(&self.delete) + whole(&self.insert) + whole(&self.follower) + update
    }
}

impl Updates {
    fn cells(self, encoder: &Encoder) -> Result<BTreeMap<usize, Vec<u8>>, Unreadable> {
        match self {
            Updates::Merged { cells, .. } => Ok(cells),
            Updates::One(kept) => {
                let mut cells = BTreeMap::new();
                add_cells(encoder, &kept.message, &mut cells)?;
                Ok(cells)
            }
        }
    }
}

/// An update that says no more than the key of the row which this insert brings.
pub(super) fn follower(encoder: &Encoder, insert: &[u8]) -> Option<Vec<u8>> {
    let parts = parts(insert)?;
    let mut cells = BTreeMap::new();
    add_cells(encoder, insert, &mut cells).ok()?;
    cells.retain(|column, _| encoder.columns[*column].in_key);
    Some(update(encoder, parts.key, &cells))
}

/// The message as it stands at another place: without what its headers say of the one that it had.
pub(super) fn moved(encoder: &Encoder, message: &[u8]) -> Option<Vec<u8>> {
    let parts = parts(message)?;
    let headers = match parts.operation {
        Operation::Insert => &encoder.headers_insert,
        Operation::Update => &encoder.headers_update,
        Operation::Delete => &encoder.headers_delete,
    };
    Some([b"{\"key\":\"", parts.key, b"\",\"value\":{", parts.values, headers, CLOSE].concat())
}

/// Contract 1.10: a merged message keeps only `operation` and `relation` in its headers.
fn update(encoder: &Encoder, key: &[u8], cells: &BTreeMap<usize, Vec<u8>>) -> Vec<u8> {
    let mut message = [b"{\"key\":\"", key, b"\",\"value\":{"].concat();
    for (place, (column, value)) in cells.iter().enumerate() {
        if place > 0 {
            message.push(b',');
        }
        message.extend_from_slice(&encoder.columns[*column].label);
        message.extend_from_slice(value);
    }
    message.extend_from_slice(&encoder.headers_update);
    message.extend_from_slice(CLOSE);
    message
}

fn ending(parts: &Parts<'_>, at: Place, behind_taken: bool) -> Ending {
    // Odd ones are second halves of changed keys, or have ended a chunk of an earlier generation.
    if behind_taken || at.1 % 2 == 1 {
        return Ending::None;
    }
    match parts.operation {
        Operation::Update => Ending::Moved,
        Operation::Insert => Ending::Followed,
        // The other half may have been left out of the shape, and the operation is its own all the same.
        Operation::Delete if memchr::memmem::find(parts.headers, b"\"key_change_to\":").is_some() => {
            Ending::None
        }
        Operation::Delete => Ending::Moved,
    }
}

fn parts(message: &[u8]) -> Option<Parts<'_>> {
    let rest = message.strip_prefix(b"{\"key\":\"")?;
    let key_end = string_end(rest, 0);
    let key = rest.get(..key_end.checked_sub(1)?)?;
    let inside = rest.get(key_end..)?.strip_prefix(b",\"value\":{")?;
    let mut cells = Cells { rest: inside };
    while cells.next()?.is_some() {}
    let values = &inside[..inside.len() - cells.rest.len()];
    let headers = cells.rest.strip_prefix(b"},\"headers\":{\"operation\":\"")?;
    let known = [
        (&b"insert\""[..], Operation::Insert),
        (&b"update\""[..], Operation::Update),
        (&b"delete\""[..], Operation::Delete),
    ];
    let (operation, headers) =
        known.into_iter().find_map(|(word, operation)| Some((operation, headers.strip_prefix(word)?)))?;
    Some(Parts { key, values, operation, headers })
}

fn add_cells(
    encoder: &Encoder,
    message: &[u8],
    into: &mut BTreeMap<usize, Vec<u8>>,
) -> Result<(), Unreadable> {
    let parts = parts(message).ok_or(Unreadable)?;
    let mut cells = Cells { rest: parts.values };
    while let Some((label, value)) = cells.next().ok_or(Unreadable)? {
        let column = encoder.columns.iter().position(|column| column.label == label).ok_or(Unreadable)?;
        into.insert(column, value.to_vec());
    }
    Ok(())
}

/// The members of an object as the encoder writes them: texts and nulls, no blanks.
struct Cells<'m> {
    rest: &'m [u8],
}

impl<'m> Cells<'m> {
    /// The label with its colon, and the value; the inner `None` behind the last one. `None` where this is
    /// no such object.
    fn next(&mut self) -> Option<Option<(&'m [u8], &'m [u8])>> {
        let rest = self.rest.strip_prefix(b",").unwrap_or(self.rest);
        if !rest.starts_with(b"\"") {
            return (self.rest.is_empty() || self.rest.starts_with(b"}")).then_some(None);
        }
        let label_end = string_end(rest, 1) + 1;
        let label = rest.get(..label_end).filter(|label| label.ends_with(b"\":"))?;
        let value = rest.get(label_end..)?;
        let len = match value.first()? {
            b'"' => string_end(value, 1),
            _ if value.starts_with(b"null") => 4,
            _ => return None,
        };
        self.rest = &value[len..];
        Some(Some((label, &value[..len])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape_log::tests::definition;

    fn fold(messages: &[(u64, u64, String)]) -> Vec<Kept> {
        let encoder = Encoder::new(&definition());
        let mut fold = Fold::new(&encoder);
        for (tx, op, message) in messages {
            fold.push((Lsn(*tx), *op), message.as_bytes()).expect("a message of a plain shape");
        }
        let kept = fold.finish().expect("messages of a plain shape");
        assert_eq!(fold.bytes(), 0);
        kept
    }

    fn message(operation: &str, id: u32, values: &str) -> String {
        let separator = if values.is_empty() { "" } else { "," };
        format!(
            r#"{{"key":"k/\"{id}\"","value":{{"id":"{id}"{separator}{values}}},"headers":{{"operation":"{operation}","relation":["public","items"],"lsn":"5"}}}}"#
        )
    }

    fn texts(kept: &[Kept]) -> Vec<(u64, u64, String)> {
        let text = |kept: &Kept| String::from_utf8(kept.message.clone()).expect("JSON is text");
        kept.iter().map(|kept| (kept.at.0.0, kept.at.1, text(kept))).collect()
    }

    #[test]
    fn updates_become_one_at_the_place_of_the_last() {
        let kept = fold(&[
            (10, 0, message("insert", 1, r#""a":"x","b":null"#)),
            (11, 0, message("update", 1, r#""a":"y","b":"t""#)),
            (12, 0, message("update", 2, r#""a":"other""#)),
            (13, 4, message("update", 1, r#""a":"\"},{:,""#)),
        ]);
        let merged = r#"{"key":"k/\"1\"","value":{"a":"\"},{:,","b":"t","id":"1"},"headers":{"operation":"update","relation":["public","items"]}}"#;
        assert_eq!(
            texts(&kept),
            [
                (10, 0, message("insert", 1, r#""a":"x","b":null"#)),
                (12, 0, message("update", 2, r#""a":"other""#)),
                (13, 4, merged.to_owned()),
            ]
        );
    }

    #[test]
    fn of_rows_that_come_and_go_the_last_coming_and_going_remain() {
        let (insert, delete) = (|id| message("insert", id, r#""a":"x""#), |id| message("delete", id, ""));
        let kept = fold(&[
            (10, 0, insert(1)),
            (11, 0, delete(1)),
            (12, 0, insert(1)),
            (13, 0, delete(2)),
            (14, 0, delete(1)),
            (15, 0, insert(2)),
            (16, 0, insert(3)),
            (17, 0, delete(3)),
        ]);
        let places: Vec<(u64, String)> = texts(&kept).into_iter().map(|(tx, _, text)| (tx, text)).collect();
        assert_eq!(places, [(13, delete(2)), (14, delete(1)), (15, insert(2)), (17, delete(3))]);
    }

    #[test]
    fn a_chunk_may_end_where_nothing_stands_or_ever_ended() {
        let changed = message("delete", 4, "").replace(r#","lsn""#, r#","key_change_to":"k","lsn""#);
        let kept = fold(&[
            (10, 0, message("update", 1, "")),
            (11, 2, message("insert", 2, "")),
            (11, 4, message("delete", 3, "")),
            (11, 6, changed),
            (12, 6, message("update", 5, "")),
            (12, 7, message("update", 6, "")),
            (13, 0, message("update", 7, "")),
        ]);
        let endings: Vec<Ending> = kept.iter().map(|kept| kept.ending).collect();
        let expected = [
            Ending::Moved,
            Ending::Followed,
            Ending::Moved,
            Ending::None,
            Ending::None,
            Ending::None,
            Ending::None,
        ];
        assert_eq!(endings, expected);
        let encoder = Encoder::new(&definition());
        let follower = follower(&encoder, message("insert", 2, r#""a":"x""#).as_bytes()).expect("a message");
        let expected = r#"{"key":"k/\"2\"","value":{"id":"2"},"headers":{"operation":"update","relation":["public","items"]}}"#;
        assert_eq!(String::from_utf8(follower).expect("JSON is text"), expected);
    }

    #[test]
    fn what_is_not_understood_is_said_to_be() {
        let encoder = Encoder::new(&definition());
        for strange in [
            "",
            "{}",
            r#"{"headers":{"control":"up-to-date"}}"#,
            r#"{"key":"k","value":{"id":1},"headers":{"operation":"insert"}}"#,
            r#"{"key":"k","value":{"id":"1"},"old_value":{},"headers":{"operation":"update"}}"#,
            r#"{"key":"k","value":{"id":"1"},"headers":{"operation":"upsert"}}"#,
            r#"{"key":"k","value":{"id":"1"#,
        ] {
            let mut fold = Fold::new(&encoder);
            let pushed = fold.push((Lsn(1), 0), strange.as_bytes()).and_then(|()| fold.finish());
            assert_eq!(pushed, Err(Unreadable), "{strange}");
        }
        let unknown = r#"{"key":"k","value":{"zz":"1"},"headers":{"operation":"update"}}"#;
        let mut fold = Fold::new(&encoder);
        fold.push((Lsn(1), 0), unknown.as_bytes()).expect("one update is taken as it is");
        fold.push((Lsn(2), 0), unknown.as_bytes()).expect("it is looked at with the next");
        assert_eq!(fold.finish(), Err(Unreadable), "a column that the shape does not have");
    }
}
