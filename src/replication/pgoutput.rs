//! The messages of the `pgoutput` plugin, protocol version 1:
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.
//!
//! | tag | message | fields after the tag |
//! |---|---|---|
//! | `B` | Begin | final LSN u64, commit time i64 (µs since 2000), xid u32 |
//! | `C` | Commit | flags u8, commit LSN u64, end LSN u64, commit time i64 |
//! | `R` | Relation | oid u32, schema str, name str, identity u8, count u16, columns (flags u8, name str, type u32, modifier i32) |
//! | `I` | Insert | oid u32, `N` tuple |
//! | `U` | Update | oid u32, [`K` or `O` tuple], `N` tuple |
//! | `D` | Delete | oid u32, `K` or `O` tuple |
//! | `T` | Truncate | count u32, flags u8, oids u32 |
//! | `Y` `O` `M` | Type, Origin, Message | skipped |
//!
//! A tuple is a count u16 and per column `n` (NULL), `u` (TOASTed and unchanged) or `t` with length
//! u32 and text. Integers are big-endian, strings end with a zero byte.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::{Change, Lsn, Oid, RelationName, Timestamp, Tuple, WireColumn, WireRelation, Xid};

/// Most columns that a table can have (`MaxTupleAttributeNumber` is 1664; tables end at 1600).
const COLUMNS_MAX: usize = 1664;

/// Microseconds from the Unix epoch to 2000-01-01, where Postgres begins to count.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Bytes that are no message of the protocol. Says what was expected, never what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed pgoutput message: {0}")]
pub struct Malformed(pub(crate) &'static str);

/// A message as far as its receiver must know it at once; the rows stay encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    Begin {
        final_lsn: Lsn,
        committed_at: Timestamp,
        xid: Xid,
    },
    Commit {
        commit_lsn: Lsn,
        end_lsn: Lsn,
    },
    Relation(WireRelation),
    /// Insert, update or delete.
    Row {
        relation: Oid,
    },
    Truncate {
        relations: Vec<Oid>,
    },
    /// Type, Origin and Message: nothing that a shape needs.
    Skipped,
}

/// Reads the head of one message.
///
/// # Errors
/// Where the bytes are not one whole message of the protocol; the tuples of a row message are checked
/// by [`change`].
pub fn head(message: &[u8]) -> Result<Head, Malformed> {
    let mut reader = Reader { bytes: message, at: 0 };
    let head = match reader.u8()? {
        // The frequent ones first; tuples follow, so the end is not checked here.
        b'I' | b'U' | b'D' => return Ok(Head::Row { relation: Oid(reader.u32()?) }),
        b'B' => Head::Begin {
            final_lsn: Lsn(reader.u64()?),
            committed_at: timestamp(reader.u64()?),
            xid: Xid(reader.u32()?),
        },
        b'C' => {
            reader.u8()?;
            let (commit_lsn, end_lsn) = (Lsn(reader.u64()?), Lsn(reader.u64()?));
            reader.u64()?;
            Head::Commit { commit_lsn, end_lsn }
        }
        b'R' => Head::Relation(relation(&mut reader)?),
        b'T' => Head::Truncate { relations: truncated(&mut reader)? },
        b'Y' | b'O' | b'M' => return Ok(Head::Skipped),
        _ => return Err(Malformed("unknown message type")),
    };
    reader.end()?;
    Ok(head)
}

/// Decodes a row message; its tuples share `message`.
///
/// An update whose old tuple holds the key only (`K`: the table is not REPLICA IDENTITY FULL) yields
/// no old row. A delete yields what there is: see [`WireRelation::replica_identity`].
///
/// # Errors
/// Where the bytes are not one whole row message for this relation.
pub fn change(message: &Bytes, op: u64, relation: &Arc<WireRelation>) -> Result<Change, Malformed> {
    let columns = relation.columns.len();
    let mut reader = Reader { bytes: message, at: 0 };
    let tag = reader.u8()?;
    if reader.u32()? != relation.oid.0 {
        return Err(Malformed("a row of another relation"));
    }
    let marker = reader.u8()?;
    let relation = Arc::clone(relation);
    let change = match (tag, marker) {
        (b'I', b'N') => Change::Insert { op, relation, new: tuple(message, &mut reader, columns)? },
        (b'U', b'N') => {
            Change::Update { op, relation, old: None, new: tuple(message, &mut reader, columns)? }
        }
        (b'U', b'O' | b'K') => {
            let old = tuple(message, &mut reader, columns)?;
            if reader.u8()? != b'N' {
                return Err(Malformed("an update without its new row"));
            }
            let new = tuple(message, &mut reader, columns)?;
            Change::Update { op, relation, old: (marker == b'O').then_some(old), new }
        }
        (b'D', b'O' | b'K') => Change::Delete { op, relation, old: tuple(message, &mut reader, columns)? },
        _ => return Err(Malformed("unknown kind of row")),
    };
    reader.end()?;
    Ok(change)
}

/// The tuple holds on to the whole message: cheaper than to find its end first.
fn tuple(message: &Bytes, reader: &mut Reader<'_>, columns: usize) -> Result<Tuple, Malformed> {
    if usize::from(reader.u16()?) != columns {
        return Err(Malformed("the row and its relation differ in columns"));
    }
    // The count equals that of a relation that was bounded when it was read.
    let mut builder = Tuple::builder(message.clone(), columns);
    for _ in 0..columns {
        match reader.u8()? {
            b't' => {
                let len = reader.u32()? as usize;
                let start = reader.at;
                reader.skip(len)?;
                builder.text(start, len);
            }
            b'n' => builder.null(),
            b'u' => builder.unchanged(),
            _ => return Err(Malformed("unknown kind of column")),
        }
    }
    Ok(builder.build())
}

fn relation(reader: &mut Reader<'_>) -> Result<WireRelation, Malformed> {
    let oid = Oid(reader.u32()?);
    let schema = match reader.string()? {
        // pgoutput leaves the name of pg_catalog empty.
        schema if schema.is_empty() => "pg_catalog".to_owned(),
        schema => schema,
    };
    let table = reader.string()?;
    let replica_identity = char::from(reader.u8()?);
    let count = usize::from(reader.u16()?);
    if count > COLUMNS_MAX {
        return Err(Malformed("more columns than a table can have"));
    }
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(WireColumn {
            in_identity: reader.u8()? & 1 != 0,
            name: reader.string()?,
            type_oid: Oid(reader.u32()?),
            type_modifier: reader.u32()? as i32,
        });
    }
    Ok(WireRelation { oid, name: RelationName { schema, table }, replica_identity, columns })
}

fn truncated(reader: &mut Reader<'_>) -> Result<Vec<Oid>, Malformed> {
    let count = reader.u32()? as usize;
    reader.u8()?;
    if reader.bytes.len() - reader.at != count.saturating_mul(4) {
        return Err(Malformed("a truncate of another length"));
    }
    (0..count).map(|_| reader.u32().map(Oid)).collect()
}

fn timestamp(micros: u64) -> Timestamp {
    Timestamp((micros as i64).saturating_add(POSTGRES_EPOCH_MICROS))
}

/// Invariant: `at <= bytes.len()`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

const SHORT: Malformed = Malformed("it ends too early");

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.bytes[self.at..].first_chunk::<N>().ok_or(SHORT)?;
        self.at += N;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_be_bytes)
    }

    fn skip(&mut self, len: usize) -> Result<(), Malformed> {
        if len > self.bytes.len() - self.at {
            return Err(SHORT);
        }
        self.at += len;
        Ok(())
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let rest: &'a [u8] = &self.bytes[self.at..];
        let len = memchr::memchr(0, rest).ok_or(SHORT)?;
        self.at += len + 1;
        String::from_utf8(rest[..len].to_vec()).map_err(|_| Malformed("a name that is not UTF-8"))
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(Malformed("it is longer than its content")) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Value;

    /// Builds messages as the plugin sends them.
    #[derive(Default)]
    pub(crate) struct Build(pub(crate) Vec<u8>);

    impl Build {
        pub(crate) fn tag(tag: u8) -> Build {
            Build(vec![tag])
        }

        pub(crate) fn put(mut self, bytes: &[u8]) -> Build {
            self.0.extend_from_slice(bytes);
            self
        }

        pub(crate) fn string(self, text: &str) -> Build {
            self.put(text.as_bytes()).put(&[0])
        }

        pub(crate) fn tuple(mut self, marker: u8, values: &[Value<'_>]) -> Build {
            self = self.put(&[marker]).put(&(values.len() as u16).to_be_bytes());
            for value in values {
                self = match value {
                    Value::Null => self.put(b"n"),
                    Value::Unchanged => self.put(b"u"),
                    Value::Text(text) => self.put(b"t").put(&(text.len() as u32).to_be_bytes()).put(text),
                };
            }
            self
        }
    }

    pub(crate) fn begin(lsn: u64, xid: u32) -> Vec<u8> {
        Build::tag(b'B').put(&lsn.to_be_bytes()).put(&1_i64.to_be_bytes()).put(&xid.to_be_bytes()).0
    }

    pub(crate) fn commit(lsn: u64) -> Vec<u8> {
        Build::tag(b'C').put(&[0]).put(&lsn.to_be_bytes()).put(&(lsn + 8).to_be_bytes()).put(&[0; 8]).0
    }

    pub(crate) fn relation(oid: u32, columns: &[&str]) -> Vec<u8> {
        let mut build = Build::tag(b'R')
            .put(&oid.to_be_bytes())
            .string("public")
            .string("items")
            .put(b"f")
            .put(&(columns.len() as u16).to_be_bytes());
        for column in columns {
            build = build.put(&[1]).string(column).put(&25_u32.to_be_bytes()).put(&(-1_i32).to_be_bytes());
        }
        build.0
    }

    pub(crate) fn insert(oid: u32, values: &[Value<'_>]) -> Vec<u8> {
        Build::tag(b'I').put(&oid.to_be_bytes()).tuple(b'N', values).0
    }

    pub(crate) fn truncate(oids: &[u32]) -> Vec<u8> {
        let build = Build::tag(b'T').put(&(oids.len() as u32).to_be_bytes()).put(&[0]);
        oids.iter().fold(build, |build, oid| build.put(&oid.to_be_bytes())).0
    }

    fn announced(columns: &[&str]) -> Arc<WireRelation> {
        match head(&relation(7, columns)) {
            Ok(Head::Relation(relation)) => Arc::new(relation),
            other => panic!("not a relation: {other:?}"),
        }
    }

    fn values(tuple: &Tuple) -> Vec<Value<'_>> {
        (0..tuple.len()).map(|index| tuple.get(index)).collect()
    }

    const ROW: [Value<'static>; 3] = [Value::Text(b"1"), Value::Null, Value::Unchanged];

    #[test]
    fn reads_transaction_bounds_and_relations() {
        assert_eq!(
            head(&begin(0x10, 9)),
            Ok(Head::Begin {
                final_lsn: Lsn(0x10),
                committed_at: Timestamp(POSTGRES_EPOCH_MICROS + 1),
                xid: Xid(9)
            })
        );
        assert_eq!(head(&commit(0x10)), Ok(Head::Commit { commit_lsn: Lsn(0x10), end_lsn: Lsn(0x18) }));
        let relation = announced(&["id", "v"]);
        assert_eq!((relation.name.to_string().as_str(), relation.replica_identity), ("public.items", 'f'));
        assert_eq!(relation.columns[1].name, "v");
        assert_eq!((relation.columns[1].type_oid, relation.columns[1].type_modifier), (Oid(25), -1));
        assert_eq!(head(&truncate(&[3, 4])), Ok(Head::Truncate { relations: vec![Oid(3), Oid(4)] }));
        for skipped in [b'Y', b'O', b'M'] {
            assert_eq!(head(&[skipped, 1, 2]), Ok(Head::Skipped));
        }
    }

    #[test]
    fn reads_rows() {
        let relation = announced(&["a", "b", "c"]);
        let read = |message: Vec<u8>| change(&Bytes::from(message), 4, &relation);
        let oid = 7_u32.to_be_bytes();
        match read(insert(7, &ROW)) {
            Ok(Change::Insert { op: 4, new, .. }) => assert_eq!(values(&new), ROW),
            other => panic!("{other:?}"),
        }
        let old = [Value::Text(b"0"), Value::Text(b""), Value::Text(b"long")];
        match read(Build::tag(b'U').put(&oid).tuple(b'O', &old).tuple(b'N', &ROW).0) {
            Ok(Change::Update { old: Some(before), new, .. }) => {
                assert_eq!((values(&before), values(&new)), (old.to_vec(), ROW.to_vec()));
            }
            other => panic!("{other:?}"),
        }
        match read(Build::tag(b'U').put(&oid).tuple(b'K', &old).tuple(b'N', &ROW).0) {
            Ok(Change::Update { old: None, .. }) => {}
            other => panic!("{other:?}"),
        }
        match read(Build::tag(b'D').put(&oid).tuple(b'O', &old).0) {
            Ok(Change::Delete { old: before, .. }) => assert_eq!(values(&before), old),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn refuses_rows_that_do_not_fit() {
        let relation = announced(&["a", "b", "c"]);
        let refused = |message: Vec<u8>| change(&Bytes::from(message), 0, &relation).is_err();
        assert!(refused(insert(8, &ROW)), "another relation");
        assert!(refused(insert(7, &ROW[..2])), "too few columns");
        assert!(refused(Build(insert(7, &ROW)).put(&[0]).0), "too long");
        assert!(refused(Build::tag(b'U').put(&7_u32.to_be_bytes()).tuple(b'O', &ROW).0), "no new row");
        assert!(refused(Build::tag(b'I').put(&7_u32.to_be_bytes()).tuple(b'O', &ROW).0), "wrong marker");
        assert!(head(&Build(truncate(&[3])).put(&[0]).0).is_err());
        assert!(head(&truncate(&[3])[..8]).is_err());
        assert!(head(b"").is_err() && head(b"Z").is_err());
        let huge_count = Build::tag(b'T').put(&u32::MAX.to_be_bytes()).put(&[0, 0, 0]).0;
        assert!(head(&huge_count).is_err());
    }

    proptest! {
        #[test]
        fn every_prefix_is_refused_without_panic(
            texts in proptest::collection::vec(proptest::option::of(".{0,9}"), 3),
            cut in 0_usize..200,
        ) {
            let row: Vec<Value<'_>> =
                texts.iter().map(|text| text.as_ref().map_or(Value::Null, |text| Value::Text(text.as_bytes()))).collect();
            let relation = announced(&["a", "b", "c"]);
            let whole = insert(7, &row);
            prop_assert!(change(&Bytes::from(whole.clone()), 0, &relation).is_ok());
            let cut = cut.min(whole.len() - 1);
            prop_assert!(change(&Bytes::copy_from_slice(&whole[..cut]), 0, &relation).is_err());
        }

        #[test]
        fn garbage_never_panics(
            tag in proptest::sample::select(b"BCRIUDTYOMx".to_vec()),
            rest in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let message = Build::tag(tag).put(&rest).0;
            let _ = head(&message);
            let message = Build::tag(tag).put(&7_u32.to_be_bytes()).put(&rest).0;
            let _ = change(&Bytes::from(message), 0, &announced(&["a", "b"]));
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0_usize..200, to in any::<u8>()) {
            let relation = announced(&["a", "b", "c"]);
            let oid = 7_u32.to_be_bytes();
            let mut message = Build::tag(b'U').put(&oid).tuple(b'O', &ROW).tuple(b'N', &ROW).0;
            let at = at % message.len();
            message[at] = to;
            let _ = change(&Bytes::from(message), 0, &relation);
        }
    }
}
