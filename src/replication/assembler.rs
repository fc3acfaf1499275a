//! From messages to transactions, with bounded memory.
//!
//! The messages of a transaction are copied, encoded as they are, into one compact buffer. So a
//! transaction keeps alive exactly its own bytes, never a read buffer that others share, and a large
//! one goes to disk by writing that buffer out. Rows are decoded once, at the commit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::domain::{Change, Lsn, Oid, Timestamp, WireRelation, Xid};
use crate::replication::pgoutput::{self, Head, Malformed};
use crate::replication::spill::{Body, SpillFile, Transaction, append_record, decode_records};
use crate::replication::{Frame, ReplicationError};

/// Bytes of one transaction that are held in memory; above, it goes to a file.
pub const SPILL_BYTES_DEFAULT: usize = 8 << 20;

/// The buffer for the messages of a transaction is given back above this capacity.
const SCRATCH_KEEP_MAX: usize = 1 << 20;

/// What the stream yields, in the order in which it came.
#[derive(Clone, Debug)]
pub enum StreamItem {
    Transaction(Arc<Transaction>),
    /// How rows of a table look from here on. Comes before the transaction whose rows it describes;
    /// where a transaction alters a table between its own rows, the rows before the change carry the
    /// earlier relation themselves.
    Relation(Arc<WireRelation>),
    /// Everything before `wal_end` has been sent.
    Keepalive {
        wal_end: Lsn,
        reply_requested: bool,
    },
}

/// Collects frames into [`Transaction`]s.
#[derive(Debug)]
pub struct Assembler {
    spill_dir: PathBuf,
    spill_bytes: usize,
    /// The last announcement of each relation.
    relations: BTreeMap<Oid, Arc<WireRelation>>,
    open: Option<Open>,
    /// Buffer of the open transaction, kept for the next one.
    scratch: Vec<u8>,
}

/// The transaction between its Begin and its Commit.
#[derive(Debug)]
struct Open {
    xid: Xid,
    lsn: Lsn,
    committed_at: Timestamp,
    changes: u64,
    bytes: u64,
    /// Each announcement that a row refers to; rows name it by position.
    wire: Vec<Arc<WireRelation>>,
    /// Position in `wire` of the current announcement of each relation.
    wire_of: BTreeMap<Oid, u32>,
    /// The relation of the last row: rows come in runs.
    last: Option<(Oid, u32)>,
    truncated: Vec<Oid>,
    spill: Option<SpillFile>,
}

impl Assembler {
    /// Transactions above `spill_bytes` go to unnamed files in `spill_dir`, which must exist by then.
    #[must_use]
    pub fn new(spill_dir: PathBuf, spill_bytes: usize) -> Assembler {
        Assembler { spill_dir, spill_bytes, relations: BTreeMap::new(), open: None, scratch: Vec::new() }
    }

    /// Takes in one frame and appends what it completes to `items`.
    ///
    /// # Errors
    /// After an error the stream is of no more use: connect again.
    pub fn accept(&mut self, frame: Frame<'_>, items: &mut Vec<StreamItem>) -> Result<(), ReplicationError> {
        match frame {
            Frame::Keepalive { wal_end, reply_requested } => {
                // Nothing at or beyond the commit of a transaction that is still coming may be taken
                // for sent, whatever the server counts as such.
                let wal_end = self.open.as_ref().map_or(wal_end, |open| wal_end.min(open.lsn));
                items.push(StreamItem::Keepalive { wal_end, reply_requested });
                Ok(())
            }
            Frame::XLogData { data, .. } => self.message(data, items),
        }
    }

    /// Bytes of the open transaction that are in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.scratch.len()
    }

    fn message(&mut self, message: &[u8], items: &mut Vec<StreamItem>) -> Result<(), ReplicationError> {
        match pgoutput::head(message)? {
            Head::Row { relation } => self.row(relation, message),
            Head::Begin { final_lsn, committed_at, xid } => self.begin(final_lsn, committed_at, xid),
            Head::Commit { commit_lsn, end_lsn } => self.commit(commit_lsn, end_lsn, items),
            Head::Relation(relation) => {
                let relation = Arc::new(relation);
                self.relations.insert(relation.oid, Arc::clone(&relation));
                if let Some(open) = &mut self.open {
                    // Rows that follow refer to the new announcement.
                    open.wire_of.remove(&relation.oid);
                    open.last = None;
                }
                items.push(StreamItem::Relation(relation));
                Ok(())
            }
            Head::Truncate { relations } => self.truncate(&relations, message),
            Head::Skipped => Ok(()),
        }
    }

    fn begin(&mut self, lsn: Lsn, committed_at: Timestamp, xid: Xid) -> Result<(), ReplicationError> {
        if self.open.is_some() {
            return Err(Malformed("a transaction inside another").into());
        }
        self.scratch.clear();
        self.open = Some(Open {
            xid,
            lsn,
            committed_at,
            changes: 0,
            bytes: 0,
            wire: Vec::new(),
            wire_of: BTreeMap::new(),
            last: None,
            truncated: Vec::new(),
            spill: None,
        });
        Ok(())
    }

    fn row(&mut self, oid: Oid, message: &[u8]) -> Result<(), ReplicationError> {
        let open = self.open.as_mut().ok_or(OUTSIDE)?;
        let wire = match open.last {
            Some((last, wire)) if last == oid => wire,
            _ => open.wire_of(oid, &self.relations)?,
        };
        open.changes += 1;
        append_record(&mut self.scratch, Some(wire), message);
        self.spill_if_large()
    }

    fn truncate(&mut self, relations: &[Oid], message: &[u8]) -> Result<(), ReplicationError> {
        let open = self.open.as_mut().ok_or(OUTSIDE)?;
        open.changes += 1;
        open.truncated.extend_from_slice(relations);
        open.truncated.sort_unstable();
        open.truncated.dedup();
        append_record(&mut self.scratch, None, message);
        self.spill_if_large()
    }

    fn spill_if_large(&mut self) -> Result<(), ReplicationError> {
        let open = self.open.as_mut().ok_or(OUTSIDE)?;
        let limit = match open.spill {
            // Once on disk, it goes on in pieces of the size in which it is read again.
            Some(_) => self.spill_bytes.min(SpillFile::CHUNK_BYTES_MAX),
            None => self.spill_bytes,
        };
        if self.scratch.len() <= limit {
            return Ok(());
        }
        let spill = match &mut open.spill {
            Some(spill) => spill,
            none => none.insert(SpillFile::create(&self.spill_dir).map_err(ReplicationError::Spill)?),
        };
        open.bytes += self.scratch.len() as u64;
        spill.append(&self.scratch, &open.wire)?;
        self.scratch.clear();
        self.scratch.shrink_to(SCRATCH_KEEP_MAX);
        Ok(())
    }

    fn commit(
        &mut self,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        items: &mut Vec<StreamItem>,
    ) -> Result<(), ReplicationError> {
        let mut open = self.open.take().ok_or(OUTSIDE)?;
        if commit_lsn != open.lsn {
            return Err(Malformed("a commit of another transaction").into());
        }
        open.bytes += self.scratch.len() as u64;
        let mut relations: Vec<Oid> = open.wire.iter().map(|relation| relation.oid).collect();
        relations.extend_from_slice(&open.truncated);
        relations.sort_unstable();
        relations.dedup();
        let body = match open.spill {
            Some(mut spill) => {
                spill.append(&self.scratch, &open.wire)?;
                self.scratch.clear();
                Body::Spilled { file: spill, wire: open.wire }
            }
            None => Body::Memory(self.decode(&open.wire, open.changes)?),
        };
        items.push(StreamItem::Transaction(Arc::new(Transaction {
            xid: open.xid,
            lsn: open.lsn,
            end_lsn,
            committed_at: open.committed_at,
            changes: open.changes,
            bytes: open.bytes,
            relations,
            truncated: open.truncated,
            body,
        })));
        Ok(())
    }

    /// Decodes the buffer into rows that share one allocation of exactly its size.
    fn decode(&mut self, wire: &[Arc<WireRelation>], changes: u64) -> Result<Vec<Change>, ReplicationError> {
        let records = if self.scratch.capacity() > SCRATCH_KEEP_MAX {
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.shrink_to_fit();
            Bytes::from(scratch)
        } else {
            Bytes::copy_from_slice(&self.scratch)
        };
        self.scratch.clear();
        let mut decoded = Vec::with_capacity(usize::try_from(changes).unwrap_or(0));
        decode_records(&records, 0, wire, &mut decoded)?;
        Ok(decoded)
    }
}

const OUTSIDE: Malformed = Malformed("a change outside a transaction");

impl Open {
    /// Position of a relation's current announcement in `wire`.
    fn wire_of(
        &mut self,
        oid: Oid,
        relations: &BTreeMap<Oid, Arc<WireRelation>>,
    ) -> Result<u32, ReplicationError> {
        let position = match self.wire_of.get(&oid) {
            Some(&position) => position,
            None => {
                let relation = relations.get(&oid).ok_or(Malformed("a row of an unannounced relation"))?;
                let position = u32::try_from(self.wire.len()).expect("fewer announcements than messages");
                self.wire.push(Arc::clone(relation));
                self.wire_of.insert(oid, position);
                position
            }
        };
        self.last = Some((oid, position));
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Value;
    use crate::replication::pgoutput::tests::{begin, commit, insert, relation, truncate};

    fn feed(assembler: &mut Assembler, messages: &[Vec<u8>]) -> Result<Vec<StreamItem>, ReplicationError> {
        let mut items = Vec::new();
        for data in messages {
            let frame = Frame::XLogData { wal_start: Lsn(1), wal_end: Lsn(1), data };
            assembler.accept(frame, &mut items)?;
        }
        Ok(items)
    }

    fn transactions(items: &[StreamItem]) -> Vec<Arc<Transaction>> {
        let transaction = |item: &StreamItem| match item {
            StreamItem::Transaction(transaction) => Some(Arc::clone(transaction)),
            StreamItem::Relation(_) | StreamItem::Keepalive { .. } => None,
        };
        items.iter().filter_map(transaction).collect()
    }

    /// One line per change: `op kind values`.
    fn show(transaction: &Transaction) -> Vec<String> {
        let mut lines = Vec::new();
        transaction
            .for_each_chunk(&mut |changes| {
                for change in changes {
                    lines.push(match change {
                        Change::Insert { op, relation, new } => {
                            format!("{op} insert {} {:?}", relation.columns.len(), new.get(0))
                        }
                        Change::Truncate { op, relations } => format!("{op} truncate {relations:?}"),
                        other => format!("{other:?}"),
                    });
                }
            })
            .expect("a readable transaction");
        lines
    }

    fn row(number: usize) -> Vec<u8> {
        insert(7, &[Value::Text(format!("{number:08}").as_bytes())])
    }

    #[test]
    fn assembles_a_transaction() {
        let mut assembler = Assembler::new(PathBuf::from("/nonexistent"), 1 << 20);
        let items = feed(
            &mut assembler,
            &[begin(16, 5), relation(7, &["a"]), row(1), truncate(&[9, 7]), row(2), commit(16)],
        )
        .expect("a valid stream");
        assert!(matches!(&items[0], StreamItem::Relation(relation) if relation.oid == Oid(7)));
        let transaction = &transactions(&items)[0];
        assert_eq!((transaction.xid, transaction.lsn, transaction.end_lsn), (Xid(5), Lsn(16), Lsn(24)));
        assert_eq!(transaction.relations, [Oid(7), Oid(9)]);
        assert_eq!(transaction.truncated, [Oid(7), Oid(9)]);
        assert_eq!(
            show(transaction),
            [
                format!("0 insert 1 {:?}", Value::Text(b"00000001")),
                "2 truncate [9, 7]".to_owned(),
                format!("4 insert 1 {:?}", Value::Text(b"00000002")),
            ]
        );
    }

    #[test]
    fn rows_keep_the_relation_that_preceded_them() {
        let mut assembler = Assembler::new(PathBuf::from("/nonexistent"), 1 << 20);
        let wide = insert(7, &[Value::Null, Value::Null]);
        let items = feed(
            &mut assembler,
            &[begin(16, 5), relation(7, &["a"]), row(1), relation(7, &["a", "b"]), wide, commit(16)],
        )
        .expect("a valid stream");
        let transaction = &transactions(&items)[0];
        assert_eq!(show(transaction)[1], "2 insert 2 Null");
        assert_eq!(transaction.relations, [Oid(7)]);
    }

    #[test]
    fn a_large_transaction_goes_to_a_file_that_has_no_name() {
        const ROWS: usize = 20_000;
        let dir = tempfile::tempdir().expect("a directory");
        let mut assembler = Assembler::new(dir.path().to_owned(), 64 << 10);
        let mut messages = vec![begin(16, 5), relation(7, &["a"])];
        messages.extend((0..ROWS).map(row));
        let mut largest = 0;
        for message in &messages {
            feed(&mut assembler, std::slice::from_ref(message)).expect("a valid stream");
            largest = largest.max(assembler.memory_bytes());
        }
        assert!(largest <= (64 << 10) + 64, "{largest} bytes were in memory");
        let items = feed(&mut assembler, &[commit(16)]).expect("a valid stream");
        let transaction = &transactions(&items)[0];
        assert!(transaction.is_spilled());
        assert_eq!(transaction.changes, ROWS as u64);
        for _ in 0..2 {
            let lines = show(transaction);
            assert_eq!(lines.len(), ROWS);
            assert_eq!(
                lines[ROWS - 1],
                format!("{} insert 1 {:?}", 2 * (ROWS - 1), Value::Text(b"00019999"))
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 0);
    }

    #[test]
    fn a_keepalive_inside_a_transaction_does_not_pass_its_commit() {
        let mut assembler = Assembler::new(PathBuf::from("/nonexistent"), 1 << 20);
        let keepalive = Frame::Keepalive { wal_end: Lsn(99), reply_requested: true };
        let mut items = feed(&mut assembler, &[begin(16, 5)]).expect("a valid stream");
        assembler.accept(keepalive, &mut items).expect("a valid stream");
        feed(&mut assembler, &[commit(16)]).expect("a valid stream");
        assembler.accept(keepalive, &mut items).expect("a valid stream");
        let ends: Vec<u64> = items
            .iter()
            .map(|item| match item {
                StreamItem::Keepalive { wal_end, .. } => wal_end.0,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ends, [16, 99]);
    }

    #[test]
    fn refuses_what_is_out_of_place() {
        let refused = |messages: &[Vec<u8>]| {
            feed(&mut Assembler::new(PathBuf::from("/nonexistent"), 1 << 20), messages).is_err()
        };
        assert!(refused(&[row(1)]), "a row outside a transaction");
        assert!(refused(&[begin(1, 1), row(1)]), "an unannounced relation");
        assert!(refused(&[begin(1, 1), begin(1, 1)]));
        assert!(refused(&[commit(1)]));
        assert!(refused(&[begin(1, 1), commit(2)]), "another commit");
        assert!(refused(&[begin(1, 1), relation(7, &["a", "b"]), row(1), commit(1)]), "too few columns");
    }

    proptest! {
        /// Messages in any order, one of them damaged: an error at most.
        #[test]
        fn disorder_never_panics(
            order in proptest::collection::vec(0_usize..6, 0..30),
            damaged in 0_usize..30,
            at in 0_usize..60,
            to in any::<u8>(),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let mut assembler = Assembler::new(dir.path().to_owned(), 100);
            let messages =
                [begin(16, 5), relation(7, &["a"]), row(1), truncate(&[7]), commit(16), relation(7, &["a", "b"])];
            for (number, kind) in order.into_iter().enumerate() {
                let mut message = messages[kind].clone();
                if number == damaged && at < message.len() {
                    message[at] = to;
                }
                if feed(&mut assembler, &[message]).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_directory_that_is_missing_is_an_error() {
        let mut assembler = Assembler::new(PathBuf::from("/nonexistent"), 16);
        let result = feed(&mut assembler, &[begin(16, 5), relation(7, &["a"]), row(1)]);
        assert!(matches!(result, Err(ReplicationError::Spill(_))), "{result:?}");
    }
}
