//! Row changes as the replication stream delivers them.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::{Oid, WireRelation};

/// One row change of a transaction. `op` is its position in the transaction: every data change that
/// the stream delivers takes two (0, 2, 4, …), so that a key change can use both halves
/// (contract 1.10).
#[derive(Clone, Debug)]
pub enum Change {
    Insert {
        op: u64,
        relation: Arc<WireRelation>,
        new: Tuple,
    },
    /// `old` is absent only where the table lost REPLICA IDENTITY FULL.
    Update {
        op: u64,
        relation: Arc<WireRelation>,
        old: Option<Tuple>,
        new: Tuple,
    },
    Delete {
        op: u64,
        relation: Arc<WireRelation>,
        old: Tuple,
    },
    Truncate {
        op: u64,
        relations: Vec<Oid>,
    },
}

impl Change {
    #[must_use]
    pub fn op(&self) -> u64 {
        match self {
            Change::Insert { op, .. }
            | Change::Update { op, .. }
            | Change::Delete { op, .. }
            | Change::Truncate { op, .. } => *op,
        }
    }

    /// The relation of a row change; a truncate may name several and has none of its own.
    #[must_use]
    pub fn relation(&self) -> Option<&Arc<WireRelation>> {
        match self {
            Change::Insert { relation, .. }
            | Change::Update { relation, .. }
            | Change::Delete { relation, .. } => Some(relation),
            Change::Truncate { .. } => None,
        }
    }
}

/// One column of a [`Tuple`], in Postgres' text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// A TOASTed value that did not change and was not sent.
    Unchanged,
    Text(&'a [u8]),
}

/// A row as it came over the wire: one shared buffer and the place of each column in it, so that
/// decoding a row costs one allocation whatever the number of its columns.
#[derive(Clone, Debug)]
pub struct Tuple {
    bytes: Bytes,
    cells: Box<[Cell]>,
}

/// Invariant: for a text cell `start + len` lies inside the buffer.
#[derive(Clone, Copy, Debug)]
struct Cell {
    start: u32,
    len: u32,
}

const NULL: Cell = Cell { start: 0, len: u32::MAX };
const UNCHANGED: Cell = Cell { start: 1, len: u32::MAX };

impl Tuple {
    /// A tuple over `bytes`; its columns are added in order with the builder.
    #[must_use]
    pub fn builder(bytes: Bytes, columns: usize) -> TupleBuilder {
        TupleBuilder { bytes, cells: Vec::with_capacity(columns) }
    }

    /// A tuple from separate values: for tests and for rows that do not come from a wire buffer.
    #[must_use]
    pub fn from_values(values: &[Value<'_>]) -> Tuple {
        let mut bytes = Vec::new();
        let mut places = Vec::with_capacity(values.len());
        for value in values {
            places.push((*value, bytes.len()));
            if let Value::Text(text) = value {
                bytes.extend_from_slice(text);
            }
        }
        let mut builder = Tuple::builder(Bytes::from(bytes), values.len());
        for (value, start) in places {
            match value {
                Value::Null => builder.null(),
                Value::Unchanged => builder.unchanged(),
                Value::Text(text) => builder.text(start, text.len()),
            }
        }
        builder.build()
    }

    /// Number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The column at `index`, in the order of [`WireRelation::columns`]. A tuple shorter than its
    /// relation reads as NULL there: Postgres sends rows written before ADD COLUMN that way.
    #[must_use]
    pub fn get(&self, index: usize) -> Value<'_> {
        match self.cells.get(index) {
            None => Value::Null,
            Some(cell) if cell.len != u32::MAX => {
                Value::Text(&self.bytes[cell.start as usize..cell.start as usize + cell.len as usize])
            }
            Some(cell) if cell.start == NULL.start => Value::Null,
            Some(_) => Value::Unchanged,
        }
    }

    /// Bytes of the shared buffer that this tuple keeps alive.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Builds a [`Tuple`] column by column.
#[derive(Debug)]
pub struct TupleBuilder {
    bytes: Bytes,
    cells: Vec<Cell>,
}

impl TupleBuilder {
    pub fn null(&mut self) {
        self.cells.push(NULL);
    }

    pub fn unchanged(&mut self) {
        self.cells.push(UNCHANGED);
    }

    /// A text column at `start..start + len` of the buffer. Panics where that lies outside it: the
    /// decoder has checked the lengths, so it would be a bug.
    pub fn text(&mut self, start: usize, len: usize) {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.bytes.len()), "cell outside its buffer");
        let start = u32::try_from(start).expect("a tuple buffer is below 4 GiB");
        let len = u32::try_from(len).expect("a tuple buffer is below 4 GiB");
        self.cells.push(Cell { start, len });
    }

    #[must_use]
    pub fn build(self) -> Tuple {
        Tuple { bytes: self.bytes, cells: self.cells.into_boxed_slice() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in() {
        let values =
            [Value::Text(b"1"), Value::Null, Value::Unchanged, Value::Text(b""), Value::Text("é".as_bytes())];
        let tuple = Tuple::from_values(&values);
        let read: Vec<Value<'_>> = (0..tuple.len()).map(|i| tuple.get(i)).collect();
        assert_eq!(read, values);
        assert_eq!(tuple.get(99), Value::Null);
    }
}
