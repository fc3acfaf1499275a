//! What the messages of shapes with inner queries carry besides rows: tags and active conditions, and the
//! messages about values that move in and out (contract 1.16).

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::domain::Offset;

use super::json::{decimal_into, quoted};

/// Tags of a row, and which of its positions are true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowTags {
    /// One for each disjunct. They need no escaping: hex digits, `1` and `/`.
    pub tags: Vec<String>,
    pub active: Vec<bool>,
}

/// The tags of a row before and after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotation {
    pub old: Option<RowTags>,
    pub new: Option<RowTags>,
}

/// Which message of a change is annotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Insert,
    Update,
    Delete,
    /// The delete half of a key change.
    KeyDelete,
}

impl Annotation {
    /// The client has to be told of an update that changes none of its columns.
    pub(super) fn is_changed(&self) -> bool {
        self.old != self.new
    }

    /// Adds the headers to an open message.
    pub(super) fn append(&self, half: Half, out: &mut Vec<u8>) {
        let none = RowTags::default();
        let (old, new) = (self.old.as_ref().unwrap_or(&none), self.new.as_ref().unwrap_or(&none));
        let removed = || old.tags.iter().filter(|tag| !new.tags.contains(tag));
        match half {
            Half::Insert => new.append(out),
            Half::Delete => old.append(out),
            Half::Update => {
                list(out, b",\"tags\":[", new.tags.iter());
                list(out, b",\"removed_tags\":[", removed());
                conditions(out, &new.active);
            }
            Half::KeyDelete => {
                list(out, b",\"tags\":[", new.tags.iter().chain(removed()));
                conditions(out, &old.active);
            }
        }
    }
}

impl RowTags {
    fn append(&self, out: &mut Vec<u8>) {
        list(out, b",\"tags\":[", self.tags.iter());
        conditions(out, &self.active);
    }

    /// Adds the headers to a whole row message at the end of `out`; `is_move_in` where it is a row that
    /// moves in.
    pub fn append_to_row(&self, move_in: bool, out: &mut Vec<u8>) {
        out.truncate(out.len().saturating_sub(super::encoder::CLOSE.len()));
        self.append(out);
        if move_in {
            out.extend_from_slice(b",\"is_move_in\":true");
        }
        out.extend_from_slice(super::encoder::CLOSE);
    }
}

fn list<'t>(out: &mut Vec<u8>, start: &[u8], tags: impl Iterator<Item = &'t String>) {
    out.extend_from_slice(start);
    for (index, tag) in tags.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(tag.as_bytes());
        out.push(b'"');
    }
    out.push(b']');
}

fn conditions(out: &mut Vec<u8>, active: &[bool]) {
    out.extend_from_slice(b",\"active_conditions\":[");
    for (index, active) in active.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(if *active { b"true" } else { b"false" });
    }
    out.push(b']');
}

/// Which way values move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    In,
    Out,
}

/// Every message about a move begins with this, and no other message does.
pub const EVENT_START: &[u8] = b"{\"headers\":{\"event\":";

/// The message about values that move: at each position the hash of one.
#[must_use]
pub fn move_event(to: Move, patterns: &[(usize, String)], txids: &[u64]) -> Vec<u8> {
    let mut out = EVENT_START.to_vec();
    out.extend_from_slice(match to {
        Move::In => b"\"move-in\",\"patterns\":[",
        Move::Out => b"\"move-out\",\"patterns\":[",
    });
    for (index, (position, value)) in patterns.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{\"pos\":" } else { b",{\"pos\":" });
        decimal_into(&mut out, *position as u64);
        out.extend_from_slice(b",\"value\":");
        out.extend_from_slice(&quoted(value));
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"txids\":[");
    for (index, xid) in txids.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        decimal_into(&mut out, *xid);
    }
    out.extend_from_slice(b"]}}");
    out
}

/// Messages that come after a transaction, and become visible and durable together.
#[derive(Debug)]
pub struct Unit {
    pub messages: Vec<Bytes>,
    /// What the service itself has to find again with them, and no client is sent; mostly empty.
    pub note: Vec<u8>,
    /// Where it was put: a writer that starts again knows by it whether its log has the unit.
    placed: Mutex<Option<Offset>>,
}

impl Unit {
    #[must_use]
    pub fn new(messages: Vec<Bytes>, note: Vec<u8>) -> Unit {
        Unit { messages, note, placed: Mutex::new(None) }
    }

    pub(super) fn placed(&self) -> Option<Offset> {
        *self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn place(&self, offset: Offset) {
        *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = Some(offset);
    }
}
