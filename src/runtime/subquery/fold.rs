//! From the bytes of a shape's log back to the members of an inner query, and to the values that have
//! moved: what clients do, done once at a start.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::domain::Lsn;
use crate::filter::subquery::{Digest, Values};
use crate::runtime::subquery::members::{Flip, InnerRow, Members, RowChange, RowKey, key_text};
use crate::shape_log::{EVENT_START, ShapeLogError, ShapeView, messages};

/// A message of a log, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    value: Option<BTreeMap<String, Option<String>>>,
    headers: Headers,
}

#[derive(Deserialize)]
struct Headers {
    operation: Option<String>,
    event: Option<String>,
    #[serde(default)]
    patterns: Vec<Pattern>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    active_conditions: Vec<bool>,
}

#[derive(Deserialize)]
struct Pattern {
    pos: usize,
    value: String,
}

/// Positions and hashes, and what the last message about each has made of it.
pub type Turned = BTreeMap<(usize, Digest), bool>;

/// Why a log could not be folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    #[error(transparent)]
    ShapeLog(#[from] ShapeLogError),
    #[error("a message of the log is not what this version writes")]
    Message,
}

/// Loads an inner query from its snapshot.
///
/// # Errors
/// See [`FoldError`].
pub fn load_snapshot(view: &ShapeView, members: &mut Members) -> Result<(), FoldError> {
    read_snapshot(view, members)?;
    members.forget_keys();
    Ok(())
}

/// Loads an inner query from its snapshot and its whole log. Gives the values whose membership the log
/// turns at or after `from`, an odd number of times each.
///
/// # Errors
/// See [`FoldError`].
pub fn load(view: &ShapeView, members: &mut Members, from: Lsn) -> Result<BTreeSet<Values>, FoldError> {
    read_snapshot(view, members)?;
    let (mut turned, mut flips) = (BTreeSet::new(), Vec::new());
    let (mut failed, mut last) = (None, Lsn(0));
    view.scan_log(&mut |tx, piece| {
        last = last.max(tx);
        for message in messages(piece) {
            if failed.is_none() {
                failed = take(message, members, &mut flips).err();
            }
        }
        for flip in flips.drain(..).filter(|_| tx >= from) {
            if !turned.remove(&flip.values) {
                turned.insert(flip.values);
            }
        }
    })?;
    members.folded = last;
    members.forget_keys();
    failed.map_or(Ok(turned), Err)
}

fn read_snapshot(view: &ShapeView, members: &mut Members) -> Result<(), FoldError> {
    members.load_nothing();
    let (mut failed, mut flips) = (None, Vec::new());
    view.scan_snapshot(&mut |piece| {
        for message in messages(piece) {
            if failed.is_none() {
                failed = take(message, members, &mut flips).err();
            }
            flips.clear();
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn take(message: &[u8], members: &mut Members, flips: &mut Vec<Flip>) -> Result<(), FoldError> {
    if let Some(change) = change(message, members)? {
        members.perform(change, flips);
    }
    Ok(())
}

/// What a message does to the rows; nothing where it is no change and no move.
fn change(message: &[u8], members: &Members) -> Result<Option<RowChange>, FoldError> {
    let Message { value, headers } = serde_json::from_slice(message).map_err(|_| FoldError::Message)?;
    let Some(operation) = headers.operation else {
        let turned =
            |event: String| RowChange::Turn(patterns(&headers.patterns).collect(), event == "move-in");
        return Ok(headers.event.map(turned));
    };
    let value = value.ok_or(FoldError::Message)?;
    let text = |name: &str| value.get(name).map(|text| text.as_deref().map(str::as_bytes));
    let keys = members.definition.relation.key_columns();
    let key = keys.iter().map(|column| {
        let text = text(&column.name).ok_or(FoldError::Message)?;
        Ok(text.map(|text| key_text(text, column.type_name == "bool")))
    });
    let key = key.collect::<Result<RowKey, FoldError>>()?;
    if operation == "delete" {
        return Ok(Some(RowChange::Remove(key)));
    }
    let before = members.row(&key).map(|row| &row.values);
    let selection = members.selection();
    let values = selection.names().enumerate().map(|(index, name)| match (text(name), before) {
        (Some(text), _) => selection.value(index, text).ok_or(FoldError::Message),
        // An update tells what has changed.
        (None, Some(before)) => Ok(before[index].clone()),
        (None, None) => Err(FoldError::Message),
    });
    let values = values.collect::<Result<Values, FoldError>>()?;
    let row = InnerRow { values, slots: slots(&headers.tags), active: headers.active_conditions };
    Ok(Some(RowChange::Put(key, row)))
}

fn patterns(patterns: &[Pattern]) -> impl Iterator<Item = (usize, Digest)> {
    patterns.iter().filter_map(|pattern| Some((pattern.pos, Digest::parse(&pattern.value)?)))
}

/// The hash at each position: every position belongs to one disjunct, hence to one tag.
fn slots(tags: &[String]) -> Vec<Option<Digest>> {
    let mut slots: Vec<Option<Digest>> = Vec::new();
    for tag in tags {
        for (position, part) in tag.split('/').enumerate() {
            if slots.len() <= position {
                slots.push(None);
            }
            if let Some(digest) = Digest::parse(part) {
                slots[position] = Some(digest);
            }
        }
    }
    slots
}

/// What the messages about moves at or after `from` have left: position, hash, and whether it is true.
///
/// # Errors
/// See [`FoldError`].
pub fn moves(view: &ShapeView, from: Lsn) -> Result<(Turned, Lsn), FoldError> {
    let mut moved = BTreeMap::new();
    let mut failed = false;
    let mut last = Lsn(0);
    view.scan_log(&mut |tx, piece| {
        last = last.max(tx);
        if tx < from {
            return;
        }
        for message in messages(piece).filter(|message| message.starts_with(EVENT_START)) {
            match serde_json::from_slice::<Message>(message) {
                Ok(Message { headers, .. }) => {
                    let to = headers.event.as_deref() == Some("move-in");
                    moved.extend(patterns(&headers.patterns).map(|pattern| (pattern, to)));
                }
                Err(_) => failed = true,
            }
        }
    })?;
    if failed { Err(FoldError::Message) } else { Ok((moved, last)) }
}
