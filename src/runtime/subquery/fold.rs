//! From the bytes of a shape's log back to the members of an inner query, and to the values that have
//! moved: what clients do, done once at a start.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::domain::Lsn;
use crate::filter::subquery::{Digest, Values};
use crate::runtime::subquery::members::{Flip, InnerRow, Members, RowChange, RowKey, key_text};
use crate::runtime::subquery::note::Note;
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
    txids: Option<Vec<u32>>,
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

/// A value whose membership the log of an inner query turns.
#[derive(Clone, Debug)]
pub struct Turning {
    pub values: Values,
    /// Where in the log, and the transactions that caused it.
    pub tx: Lsn,
    pub xids: BTreeSet<u32>,
}

/// What the log of a shape says that it was made with.
#[derive(Debug, Default)]
pub struct Told {
    /// By inner query: the values that have moved, and whether the shape was made with each in the end.
    pub made_with: Vec<BTreeMap<Digest, bool>>,
    /// Where the log ends.
    pub last: Lsn,
}

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

/// Loads an inner query from its snapshot and its whole log. Gives what the log turns at or after `from`, in
/// its order.
///
/// # Errors
/// See [`FoldError`].
pub fn load(view: &ShapeView, members: &mut Members) -> Result<Vec<Turning>, FoldError> {
    read_snapshot(view, members)?;
    let (mut turned, mut flips) = (Vec::new(), Vec::new());
    let (mut failed, mut last) = (None, Lsn(0));
    // The rows of a move have none: they come after a message that has.
    let mut xids = BTreeSet::new();
    view.scan_log(&mut |piece| {
        last = last.max(piece.tx);
        for message in messages(piece.messages) {
            if failed.is_none() {
                match take(message, members, &mut flips) {
                    Ok(by) => xids = by.unwrap_or(std::mem::take(&mut xids)),
                    Err(error) => failed = Some(error),
                }
            }
            let turning = |flip: Flip| Turning { values: flip.values, tx: piece.tx, xids: xids.clone() };
            turned.extend(flips.drain(..).map(turning));
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

/// The transactions that a message names, where it does.
fn take(
    message: &[u8],
    members: &mut Members,
    flips: &mut Vec<Flip>,
) -> Result<Option<BTreeSet<u32>>, FoldError> {
    let message: Message = serde_json::from_slice(message).map_err(|_| FoldError::Message)?;
    let xids = message.headers.txids.as_ref().map(|xids| xids.iter().copied().collect());
    if let Some(change) = change(message, members)? {
        members.perform(change, flips);
    }
    Ok(xids)
}

/// What a message does to the rows; nothing where it is no change and no move.
fn change(message: Message, members: &Members) -> Result<Option<RowChange>, FoldError> {
    let Message { value, headers } = message;
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

/// What a position says about the values of an inner query.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    pub position: usize,
    pub dependency: usize,
    pub negated: bool,
    /// The hash of NULL; that of several columns where there are several. Under NOT a message about it tells
    /// whether the query gives anything.
    pub null: Digest,
    pub width: usize,
}

/// What the messages and notes about moves in the log of a shape say that it was made with. `asking` has one
/// position for each inner query, in their order.
///
/// # Errors
/// See [`FoldError`].
pub fn moves(view: &ShapeView, asking: &[Asking]) -> Result<Told, FoldError> {
    let mut told = Told { made_with: vec![BTreeMap::new(); asking.len()], last: Lsn(0) };
    let (mut failed, mut unit) = (false, Vec::new());
    view.scan_log(&mut |piece| {
        told.last = told.last.max(piece.tx);
        for message in messages(piece.messages).filter(|message| message.starts_with(EVENT_START)) {
            match serde_json::from_slice::<Message>(message) {
                Ok(Message { headers, .. }) => {
                    let to = headers.event.as_deref() == Some("move-in");
                    unit.extend(patterns(&headers.patterns).map(|pattern| (pattern, to)));
                }
                Err(_) => failed = true,
            }
        }
        if piece.commit {
            match Note::decode(piece.note) {
                Some(note) => told.take(asking, unit.drain(..), note),
                None => failed = true,
            }
        }
    })?;
    if failed { Err(FoldError::Message) } else { Ok(told) }
}

impl Told {
    fn take(&mut self, asking: &[Asking], unit: impl Iterator<Item = ((usize, Digest), bool)>, note: Note) {
        for ((position, digest), to) in unit {
            let Some(at) = asking.iter().find(|at| at.position == position) else { continue };
            let about_rows = note.dependencies.contains(&at.dependency)
                || (at.negated && (at.width > 1 || digest == at.null));
            if !about_rows {
                self.made_with[at.dependency].insert(digest, to != at.negated);
            }
        }
        for (dependency, digest, given) in note.entries {
            if let Some(told) = self.made_with.get_mut(dependency) {
                told.insert(digest, given);
            }
        }
    }
}
