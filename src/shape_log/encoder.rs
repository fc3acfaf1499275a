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
    Change, Column, Lsn, Oid, PgSnapshot, Replica, ShapeDefinition, Value, WireRelation, Xid,
};

use super::error::EncodeError;
use super::json::{decimal_into, quoted};
use super::message::{Message, Row, end_object, key_cell, known, value_cell};
use super::tags::Annotation;

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
/// change to change.
#[derive(Debug, Default)]
pub struct Encoded {
    pub(super) bytes: Vec<u8>,
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

    /// All messages, one after another.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    pub(super) fn end_message(&mut self, op: u64) {
        self.ends[self.count] = (op, self.bytes.len());
        self.count += 1;
    }
}

/// The headers that all messages of a transaction share.
#[derive(Clone, Debug)]
pub struct TransactionHeaders {
    /// `,"txids":[x],"lsn":"n","op_position":`
    pub(super) bytes: Vec<u8>,
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
    pub(super) replica: Replica,
    /// In the order of `definition.columns`.
    pub(super) columns: Vec<Selected>,
    /// In key order (contract 3.4).
    pub(super) keys: Vec<KeyColumn>,
    /// Values that a snapshot row has: the columns, then the key columns that are not selected.
    row_width: usize,
    /// `{"key":"` and the escaped relation part of every key.
    pub(super) start: Vec<u8>,
    /// `},"headers":{"operation":"…","relation":[…]` per operation.
    pub(super) headers_insert: Vec<u8>,
    pub(super) headers_update: Vec<u8>,
    pub(super) headers_delete: Vec<u8>,
    bindings: Vec<Binding>,
}

#[derive(Clone, Debug)]
pub(super) struct Selected {
    name: String,
    /// `"name":`
    pub label: Vec<u8>,
    pub boolean: bool,
    /// A column of the key, or of a table whose key is the whole row.
    pub in_key: bool,
}

#[derive(Clone, Debug)]
pub(super) struct KeyColumn {
    name: String,
    pub boolean: bool,
    /// Place in a snapshot row.
    row_index: usize,
}

/// Where the columns are in the tuples of one replicated relation.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    relation: Arc<WireRelation>,
    pub columns: Vec<usize>,
    pub keys: Vec<usize>,
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

/// Also one of a domain over booleans: it has their texts.
fn is_boolean(column: &Column) -> bool {
    let domain = column.base.as_ref().filter(|base| column.dimensions == 0 && !base.is_array);
    column.type_oid == BOOL_OID || domain.is_some_and(|base| base.type_oid == BOOL_OID)
}

impl Encoder {
    #[must_use]
    pub fn new(definition: &ShapeDefinition) -> Encoder {
        let relation = &definition.relation;
        let boolean = |name: &str| relation.column(name).is_some_and(is_boolean);
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
        self.encode_tagged(change, op, None, headers, out)
    }

    /// As [`Encoder::encode`], with the tags of the row.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode_tagged(
        &mut self,
        change: &Change,
        op: Op,
        note: Option<&Annotation>,
        headers: &TransactionHeaders,
        out: &mut Encoded,
    ) -> Result<(), EncodeError> {
        out.clear();
        let relation = change.relation().ok_or(EncodeError::Truncate)?;
        let index = self.bind(relation)?;
        let message =
            Message { encoder: self, binding: &self.bindings[index], headers, note, at: change.op() };
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
    pub(super) fn class(&self) -> Vec<u8> {
        let mut class = Vec::new();
        let mut part = |bytes: &[u8]| {
            class.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            class.extend_from_slice(bytes);
        };
        part(match self.replica {
            Replica::Default => b"default",
            Replica::Full => b"full",
        });
        part(&self.start);
        part(&self.headers_insert);
        for column in &self.columns {
            part(&column.label);
            part(&[u8::from(column.boolean), u8::from(column.in_key)]);
        }
        part(b"key");
        for key in &self.keys {
            part(key.name.as_bytes());
            part(&[u8::from(key.boolean)]);
        }
        class
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
pub fn snapshot_end(visible: &PgSnapshot) -> Vec<u8> {
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

/// `"schema"."table"` as in a key: `.` and `/` doubled inside the names, quotes not; JSON-escaped.
fn relation_part(definition: &ShapeDefinition) -> Vec<u8> {
    let name = &definition.relation.name;
    let part = |text: &str| text.replace('.', "..").replace('/', "//");
    let key = format!("\"{}\".\"{}\"", part(&name.schema), part(&name.table));
    let json = quoted(&key);
    json[1..json.len() - 1].to_vec()
}
