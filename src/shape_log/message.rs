//! One change as the messages it makes: which columns they carry, and their key.

use crate::domain::{Replica, Tuple, Value};

use super::encoder::{Binding, Encoded, Encoder, Selected, TransactionHeaders};
use super::error::EncodeError;
use super::json::{decimal_into, escape_into, escape_key_into};
use super::tags::{Annotation, Half};

/// A row of which TOASTed values that did not change were left out by Postgres.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub new: &'a Tuple,
    pub old: Option<&'a Tuple>,
}

impl<'a> Row<'a> {
    fn get(self, position: usize) -> Result<Option<&'a [u8]>, EncodeError> {
        match (self.new.get(position), self.old) {
            (Value::Unchanged, Some(old)) => known(old.get(position)),
            (value, _) => known(value),
        }
    }
}

pub(super) fn known(value: Value<'_>) -> Result<Option<&[u8]>, EncodeError> {
    match value {
        Value::Null => Ok(None),
        Value::Text(text) => Ok(Some(text)),
        Value::Unchanged => Err(EncodeError::OldRowMissing),
    }
}

/// What the messages of one change are made from.
pub(super) struct Message<'a> {
    pub encoder: &'a Encoder,
    pub binding: &'a Binding,
    pub headers: &'a TransactionHeaders,
    pub note: Option<&'a Annotation>,
    /// `op_position` of the change.
    pub at: u64,
}

impl Message<'_> {
    pub fn insert(
        &self,
        row: Row<'_>,
        old_key: Option<&Tuple>,
        out: &mut Encoded,
    ) -> Result<(), EncodeError> {
        // The insert half of a key change takes the odd position after its delete half.
        let at = self.at + u64::from(old_key.is_some());
        self.begin(row, out)?;
        self.values(row, |_, _| Ok(true), &mut out.bytes)?;
        self.end(&self.encoder.headers_insert, at, out);
        if let Some(old) = old_key {
            self.key_change(b",\"key_change_from\":\"", Row { new: old, old: None }, out)?;
        }
        self.annotate(Half::Insert, out);
        out.end_message(at);
        Ok(())
    }

    pub fn delete(
        &self,
        old: &Tuple,
        new_key: Option<Row<'_>>,
        out: &mut Encoded,
    ) -> Result<(), EncodeError> {
        let row = Row { new: old, old: None };
        self.begin(row, out)?;
        let full = self.encoder.replica == Replica::Full;
        self.values(row, |_, column| Ok(full || column.in_key), &mut out.bytes)?;
        self.end(&self.encoder.headers_delete, self.at, out);
        if let Some(new) = new_key {
            self.key_change(b",\"key_change_to\":\"", new, out)?;
        }
        self.annotate(if new_key.is_some() { Half::KeyDelete } else { Half::Delete }, out);
        out.end_message(self.at);
        Ok(())
    }

    pub fn update(&self, old: &Tuple, new: &Tuple, out: &mut Encoded) -> Result<(), EncodeError> {
        let row = Row { new, old: Some(old) };
        if self.any_changed(&self.binding.keys, old, new) {
            self.delete(old, Some(row), out)?;
            return self.insert(row, Some(old), out);
        }
        let moved = self.note.is_some_and(Annotation::is_changed);
        if !moved && !self.any_changed(&self.binding.columns, old, new) {
            return Ok(());
        }
        self.begin(row, out)?;
        let changed = |position: usize, _: &Selected| Ok(is_changed(old, new, position));
        match self.encoder.replica {
            Replica::Default => self.values(
                row,
                |position, column| Ok(column.in_key || changed(position, column)?),
                &mut out.bytes,
            )?,
            Replica::Full => {
                self.values(row, |_, _| Ok(true), &mut out.bytes)?;
                out.bytes.extend_from_slice(b"},\"old_value\":{");
                self.values(Row { new: old, old: None }, changed, &mut out.bytes)?;
            }
        }
        self.end(&self.encoder.headers_update, self.at, out);
        self.annotate(Half::Update, out);
        out.end_message(self.at);
        Ok(())
    }

    fn begin(&self, row: Row<'_>, out: &mut Encoded) -> Result<(), EncodeError> {
        out.bytes.extend_from_slice(&self.encoder.start);
        self.key(row, &mut out.bytes)?;
        out.bytes.extend_from_slice(b"\",\"value\":{");
        Ok(())
    }

    /// The values of one object; it is left open, without the comma after the last.
    fn values(
        &self,
        row: Row<'_>,
        wanted: impl Fn(usize, &Selected) -> Result<bool, EncodeError>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        for (column, &position) in self.encoder.columns.iter().zip(&self.binding.columns) {
            if wanted(position, column)? {
                value_cell(out, column, row.get(position)?)?;
            }
        }
        end_object(out);
        Ok(())
    }

    fn end(&self, operation: &[u8], at: u64, out: &mut Encoded) {
        out.bytes.extend_from_slice(operation);
        out.bytes.extend_from_slice(&self.headers.bytes);
        decimal_into(&mut out.bytes, at);
    }

    fn annotate(&self, half: Half, out: &mut Encoded) {
        if let Some(note) = self.note {
            note.append(half, &mut out.bytes);
        }
    }

    fn key_change(&self, label: &[u8], row: Row<'_>, out: &mut Encoded) -> Result<(), EncodeError> {
        out.bytes.extend_from_slice(label);
        // The relation part without `{"key":"`, which is seven bytes and a quote.
        out.bytes.extend_from_slice(&self.encoder.start[b"{\"key\":\"".len()..]);
        self.key(row, &mut out.bytes)?;
        out.bytes.push(b'"');
        Ok(())
    }

    fn key(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        for (key, &position) in self.encoder.keys.iter().zip(&self.binding.keys) {
            key_cell(out, row.get(position)?, key.boolean)?;
        }
        Ok(())
    }

    fn any_changed(&self, positions: &[usize], old: &Tuple, new: &Tuple) -> bool {
        positions.iter().any(|&position| is_changed(old, new, position))
    }
}

fn is_changed(old: &Tuple, new: &Tuple, position: usize) -> bool {
    match new.get(position) {
        Value::Unchanged => false,
        value => value != old.get(position),
    }
}

pub(super) fn value_cell(
    out: &mut Vec<u8>,
    column: &Selected,
    value: Option<&[u8]>,
) -> Result<(), EncodeError> {
    out.extend_from_slice(&column.label);
    match value {
        None => out.extend_from_slice(b"null,"),
        Some(text) => {
            out.push(b'"');
            escape_into(out, text_form(text, column.boolean))?;
            out.extend_from_slice(b"\",");
        }
    }
    Ok(())
}

/// Takes back the comma after the last value; an object without values has none.
pub(super) fn end_object(out: &mut Vec<u8>) {
    if out.last() == Some(&b',') {
        out.pop();
    }
}

pub(super) fn key_cell(out: &mut Vec<u8>, value: Option<&[u8]>, boolean: bool) -> Result<(), EncodeError> {
    match value {
        None => out.extend_from_slice(b"/_"),
        Some(text) => {
            out.extend_from_slice(b"/\\\"");
            escape_key_into(out, text_form(text, boolean))?;
            out.extend_from_slice(b"\\\"");
        }
    }
    Ok(())
}

/// Postgres sends `t` and `f` over replication and COPY, `true` and `false` for `::text`: one form.
fn text_form(text: &[u8], boolean: bool) -> &[u8] {
    match (boolean, text) {
        (true, b"t") => b"true",
        (true, b"f") => b"false",
        _ => text,
    }
}
