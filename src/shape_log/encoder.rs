//! Changes and rows as the JSON messages of the wire contract (1.10, 3.1 to 3.4).
//!
//! A message is built *open*: without its last two braces, so that `"last":true` can still be added
//! once it is known that the transaction has nothing more for the shape.
//!
//! ```text
//! {"key":"…","value":{…},"old_value":{…},"headers":{"operation":"…","relation":[…],
//!  "txids":[n],"lsn":"n","op_position":n,"key_change_to":"…"   then   }}   or   ,"last":true}}
//! ```

use std::sync::Arc;

use crate::domain::{
    Change, Lsn, Oid, PgSnapshot, Replica, ShapeDefinition, Tuple, Value, WireRelation, Xid,
};

use super::error::EncodeError;
use super::json::{decimal_into, escape_into, escape_key_into, quoted};

/// What a change means to the shape; decided by the shape's filter. It matters for updates only: an
/// insert always enters, a delete always leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The row enters the shape.
    Insert,
    /// The row was in the shape and stays.
    Update,
    /// The row leaves the shape.
    Delete,
}

/// The open messages of one change: none, one, or two (the halves of a key change). Reused from
/// change to change; may be appended to every shape with the same [`Encoder::class`].
#[derive(Debug, Default)]
pub struct Encoded {
    bytes: Vec<u8>,
    ends: [(u64, usize); 2],
    count: usize,
}

impl Encoded {
    /// `op_position` and the open message, in log order.
    pub fn messages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut start = 0;
        self.ends[..self.count].iter().map(move |&(op, end)| {
            let message = &self.bytes[start..end];
            start = end;
            (op, message)
        })
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    fn end_message(&mut self, op: u64) {
        self.ends[self.count] = (op, self.bytes.len());
        self.count += 1;
    }
}

/// The headers that all messages of a transaction share.
#[derive(Clone, Debug)]
pub struct TransactionHeaders {
    /// `,"txids":[x],"lsn":"n","op_position":`
    bytes: Vec<u8>,
}

impl TransactionHeaders {
    #[must_use]
    pub fn new(tx: Lsn, xid: Xid) -> TransactionHeaders {
        let mut bytes = b",\"txids\":[".to_vec();
        decimal_into(&mut bytes, u64::from(xid.0));
        bytes.extend_from_slice(b"],\"lsn\":\"");
        decimal_into(&mut bytes, tx.0);
        bytes.extend_from_slice(b"\",\"op_position\":");
        TransactionHeaders { bytes }
    }
}

/// Closes an open message.
pub(crate) const CLOSE: &[u8] = b"}}";
/// Closes the last message that a shape has of a transaction.
pub(crate) const CLOSE_LAST: &[u8] = b",\"last\":true}}";

const BOOL_OID: Oid = Oid(16);
/// Relations a shape is bound to at one time: its own, or the leaves of a partitioned table. More
/// only costs binding again.
const BINDINGS_MAX: usize = 64;

/// Encodes the changes and rows of one shape.
#[derive(Clone, Debug)]
pub struct Encoder {
    replica: Replica,
    /// In the order of `definition.columns`.
    columns: Vec<Selected>,
    /// In key order (contract 3.4).
    keys: Vec<KeyColumn>,
    /// Values that a snapshot row has: the columns, then the key columns that are not selected.
    row_width: usize,
    /// `{"key":"` and the escaped relation part of every key.
    start: Vec<u8>,
    /// `},"headers":{"operation":"…","relation":[…]` per operation.
    headers_insert: Vec<u8>,
    headers_update: Vec<u8>,
    headers_delete: Vec<u8>,
    bindings: Vec<Binding>,
}

#[derive(Clone, Debug)]
struct Selected {
    name: String,
    /// `"name":`
    label: Vec<u8>,
    boolean: bool,
    /// A column of the key, or of a table whose key is the whole row.
    in_key: bool,
}

#[derive(Clone, Debug)]
struct KeyColumn {
    name: String,
    boolean: bool,
    /// Place in a snapshot row.
    row_index: usize,
}

/// Where the columns are in the tuples of one replicated relation.
#[derive(Clone, Debug)]
struct Binding {
    relation: Arc<WireRelation>,
    columns: Vec<usize>,
    keys: Vec<usize>,
}

/// The names of the values that a snapshot row must have, in order: the selected columns, then, for
/// a table without primary key of which not all columns are selected, those that the key needs.
#[must_use]
pub fn snapshot_columns(definition: &ShapeDefinition) -> Vec<String> {
    let mut names = definition.columns.clone();
    for key in definition.key_columns() {
        if !definition.columns.iter().any(|name| name == key) {
            names.push(key.to_owned());
        }
    }
    names
}

impl Encoder {
    #[must_use]
    pub fn new(definition: &ShapeDefinition) -> Encoder {
        let relation = &definition.relation;
        let boolean = |name: &str| relation.column(name).is_some_and(|column| column.type_oid == BOOL_OID);
        let key_names = definition.key_columns();
        let row = snapshot_columns(definition);
        let columns = definition.columns.iter().map(|name| Selected {
            name: name.clone(),
            label: [quoted(name), b":".to_vec()].concat(),
            boolean: boolean(name),
            in_key: key_names.contains(&name.as_str()),
        });
        let keys = key_names.iter().map(|name| KeyColumn {
            name: (*name).to_owned(),
            boolean: boolean(name),
            row_index: row.iter().position(|column| column == name).expect("a row has every key column"),
        });
        let headers = |operation: &str| {
            let (schema, table) = (quoted(&relation.name.schema), quoted(&relation.name.table));
            let head = format!("}},\"headers\":{{\"operation\":\"{operation}\",\"relation\":[");
            [head.as_bytes(), &schema, b",", &table, b"]"].concat()
        };
        Encoder {
            replica: definition.replica,
            columns: columns.collect(),
            keys: keys.collect(),
            row_width: row.len(),
            start: [b"{\"key\":\"".to_vec(), relation_part(definition)].concat(),
            headers_insert: headers("insert"),
            headers_update: headers("update"),
            headers_delete: headers("delete"),
            bindings: Vec::new(),
        }
    }

    /// Encodes one change. `out` is empty afterwards where the change has no message for the shape:
    /// an update that changes none of its columns.
    ///
    /// # Errors
    /// An [`EncodeError`]; `out` is then of no use.
    pub fn encode(
        &mut self,
        change: &Change,
        op: Op,
        headers: &TransactionHeaders,
        out: &mut Encoded,
    ) -> Result<(), EncodeError> {
        out.clear();
        let relation = change.relation().ok_or(EncodeError::Truncate)?;
        let index = self.bind(relation)?;
        let message = Message { encoder: self, binding: &self.bindings[index], headers, at: change.op() };
        match (change, op) {
            (Change::Insert { new, .. }, _) => message.insert(Row { new, old: None }, None, out),
            (Change::Delete { old, .. }, _) => message.delete(old, None, out),
            (Change::Update { old, new, .. }, Op::Insert) => {
                message.insert(Row { new, old: old.as_ref() }, None, out)
            }
            (Change::Update { old, .. }, Op::Delete) => {
                message.delete(old.as_ref().ok_or(EncodeError::OldRowMissing)?, None, out)
            }
            (Change::Update { old, new, .. }, Op::Update) => {
                message.update(old.as_ref().ok_or(EncodeError::OldRowMissing)?, new, out)
            }
            (Change::Truncate { .. }, _) => Err(EncodeError::Truncate),
        }
    }

    /// Appends a whole snapshot row message, without comma. `row` is in the order of
    /// [`snapshot_columns`].
    ///
    /// # Errors
    /// An [`EncodeError`]; a partial message may then have been appended.
    pub fn encode_row(&self, row: &[Value<'_>], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if row.len() != self.row_width {
            return Err(EncodeError::RowWidth { found: row.len(), expected: self.row_width });
        }
        out.extend_from_slice(&self.start);
        for key in &self.keys {
            key_cell(out, known(row[key.row_index])?, key.boolean)?;
        }
        out.extend_from_slice(b"\",\"value\":{");
        for (column, value) in self.columns.iter().zip(row) {
            value_cell(out, column, known(*value)?)?;
        }
        end_object(out);
        out.extend_from_slice(&self.headers_insert);
        out.extend_from_slice(CLOSE);
        Ok(())
    }

    /// Two shapes of one class get the same messages for the same change: their rows can be encoded
    /// once and appended to both.
    #[must_use]
    pub fn same_class(&self, other: &Encoder) -> bool {
        self.replica == other.replica
            && self.start == other.start
            && self.headers_insert == other.headers_insert
            && self.columns.len() == other.columns.len()
            && self
                .columns
                .iter()
                .zip(&other.columns)
                .all(|(a, b)| a.label == b.label && a.in_key == b.in_key)
            && self.keys.len() == other.keys.len()
            && self.keys.iter().zip(&other.keys).all(|(a, b)| a.name == b.name)
    }

    fn bind(&mut self, relation: &Arc<WireRelation>) -> Result<usize, EncodeError> {
        if let Some(index) = self.bindings.iter().position(|b| Arc::ptr_eq(&b.relation, relation)) {
            return Ok(index);
        }
        let position =
            |name: &str, column: usize| relation.position(name).ok_or(EncodeError::ColumnMissing { column });
        let columns = self.columns.iter().enumerate().map(|(i, column)| position(&column.name, i));
        let keys = self.keys.iter().enumerate().map(|(i, key)| position(&key.name, i));
        let binding = Binding {
            relation: Arc::clone(relation),
            columns: columns.collect::<Result<_, _>>()?,
            keys: keys.collect::<Result<_, _>>()?,
        };
        // A relation that is announced again replaces what was bound for its oid.
        self.bindings.retain(|bound| bound.relation.oid != relation.oid);
        if self.bindings.len() == BINDINGS_MAX {
            self.bindings.remove(0);
        }
        self.bindings.push(binding);
        Ok(self.bindings.len() - 1)
    }
}

/// The `snapshot-end` control message.
#[must_use]
pub(crate) fn snapshot_end(visible: &PgSnapshot) -> Vec<u8> {
    let mut out = b"{\"headers\":{\"control\":\"snapshot-end\",\"xmin\":\"".to_vec();
    decimal_into(&mut out, visible.xmin);
    out.extend_from_slice(b"\",\"xmax\":\"");
    decimal_into(&mut out, visible.xmax);
    out.extend_from_slice(b"\",\"xip_list\":[");
    for (index, xid) in visible.xip.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
        decimal_into(&mut out, *xid);
        out.push(b'"');
    }
    out.extend_from_slice(b"]}}");
    out
}

/// A row of which TOASTed values that did not change were left out by Postgres.
#[derive(Clone, Copy)]
struct Row<'a> {
    new: &'a Tuple,
    old: Option<&'a Tuple>,
}

impl<'a> Row<'a> {
    fn get(self, position: usize) -> Result<Option<&'a [u8]>, EncodeError> {
        match (self.new.get(position), self.old) {
            (Value::Unchanged, Some(old)) => known(old.get(position)),
            (value, _) => known(value),
        }
    }
}

fn known(value: Value<'_>) -> Result<Option<&[u8]>, EncodeError> {
    match value {
        Value::Null => Ok(None),
        Value::Text(text) => Ok(Some(text)),
        Value::Unchanged => Err(EncodeError::OldRowMissing),
    }
}

/// What the messages of one change are made from.
struct Message<'a> {
    encoder: &'a Encoder,
    binding: &'a Binding,
    headers: &'a TransactionHeaders,
    /// `op_position` of the change.
    at: u64,
}

impl Message<'_> {
    fn insert(&self, row: Row<'_>, old_key: Option<&Tuple>, out: &mut Encoded) -> Result<(), EncodeError> {
        // The insert half of a key change takes the odd position after its delete half.
        let at = self.at + u64::from(old_key.is_some());
        self.begin(row, out)?;
        self.values(row, |_, _| Ok(true), &mut out.bytes)?;
        self.end(&self.encoder.headers_insert, at, out);
        if let Some(old) = old_key {
            self.key_change(b",\"key_change_from\":\"", Row { new: old, old: None }, out)?;
        }
        out.end_message(at);
        Ok(())
    }

    fn delete(&self, old: &Tuple, new_key: Option<Row<'_>>, out: &mut Encoded) -> Result<(), EncodeError> {
        let row = Row { new: old, old: None };
        self.begin(row, out)?;
        let full = self.encoder.replica == Replica::Full;
        self.values(row, |_, column| Ok(full || column.in_key), &mut out.bytes)?;
        self.end(&self.encoder.headers_delete, self.at, out);
        if let Some(new) = new_key {
            self.key_change(b",\"key_change_to\":\"", new, out)?;
        }
        out.end_message(self.at);
        Ok(())
    }

    fn update(&self, old: &Tuple, new: &Tuple, out: &mut Encoded) -> Result<(), EncodeError> {
        let row = Row { new, old: Some(old) };
        if self.any_changed(&self.binding.keys, old, new) {
            self.delete(old, Some(row), out)?;
            return self.insert(row, Some(old), out);
        }
        if !self.any_changed(&self.binding.columns, old, new) {
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

fn value_cell(out: &mut Vec<u8>, column: &Selected, value: Option<&[u8]>) -> Result<(), EncodeError> {
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
fn end_object(out: &mut Vec<u8>) {
    if out.last() == Some(&b',') {
        out.pop();
    }
}

fn key_cell(out: &mut Vec<u8>, value: Option<&[u8]>, boolean: bool) -> Result<(), EncodeError> {
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

/// `"schema"."table"` as in a key: `.` and `/` doubled inside the names, quotes not; JSON-escaped.
fn relation_part(definition: &ShapeDefinition) -> Vec<u8> {
    let name = &definition.relation.name;
    let part = |text: &str| text.replace('.', "..").replace('/', "//");
    let key = format!("\"{}\".\"{}\"", part(&name.schema), part(&name.table));
    let json = quoted(&key);
    json[1..json.len() - 1].to_vec()
}
