//! Tests of the shape log as a whole, on the simulated disk unless they say otherwise.

mod compaction;
mod crashes;
mod damage;
mod encoding;
mod faults;
mod following;
mod formats;
mod pack;
mod pieces;
mod publication;
mod reading;
mod snapshots;

use std::path::Path;
use std::sync::Arc;

use crate::domain::{
    Change, Column, Handle, Incarnation, LogMode, Lsn, Offset, Oid, Relation, RelationName, Replica,
    ShapeDefinition, Tuple, Value, WireColumn, WireRelation, Xid,
};

use super::{
    Disk, LogWriter, Op, PackedDisk, Range, Read, Recovered, ShapeFiles, ShapeLogError, ShapeReader,
    ShapeView, SimDisk, Verify, messages,
};

const DATA: &str = "/data";
const HANDLE: Handle = Handle { hash: 7, micros: 1 };
const CHUNK: u64 = 1 << 20;

/// `public.items (id int4 primary key, a text, b bool)`.
pub(super) fn definition() -> ShapeDefinition {
    table(
        RelationName { schema: "public".to_owned(), table: "items".to_owned() },
        &[("id", 23), ("a", 25), ("b", 16)],
        &["id"],
    )
}

fn table(name: RelationName, columns: &[(&str, u32)], key: &[&str]) -> ShapeDefinition {
    let column = |(name, oid): &(&str, u32)| {
        let pk_position = key.iter().position(|key| key == name).map(|position| position as u16);
        Column {
            name: (*name).to_owned(),
            type_oid: Oid(*oid),
            type_name: "text".to_owned(),
            element_oid: Oid(0),
            type_modifier: -1,
            dimensions: 0,
            not_null: pk_position.is_some(),
            pk_position,
            generated: false,
            type_kind: 'b',
            base: None,
        }
    };
    let mut selected: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    selected.sort_unstable();
    let columns = columns.iter().map(column).collect();
    ShapeDefinition {
        relation: Arc::new(Relation { oid: Oid(100), name, columns, partitioned: false, storage: None }),
        where_sql: None,
        columns: selected,
        columns_named: false,
        replica: Replica::Default,
        log: LogMode::Full,
        dependencies: Vec::new(),
        selects: Vec::new(),
    }
}

fn wire(definition: &ShapeDefinition) -> Arc<WireRelation> {
    let column = |column: &Column| WireColumn {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: -1,
        in_identity: true,
    };
    Arc::new(WireRelation {
        oid: definition.relation.oid,
        name: definition.relation.name.clone(),
        replica_identity: 'f',
        columns: definition.relation.columns.iter().map(column).collect(),
    })
}

/// `~` is NULL, `?` an unchanged TOASTed value.
fn tuple(values: &[&str]) -> Tuple {
    let value = |text: &&'static str| match *text {
        "~" => Value::Null,
        "?" => Value::Unchanged,
        text => Value::Text(text.as_bytes()),
    };
    let values: Vec<&'static str> = values.iter().map(|text| &*String::leak((*text).to_owned())).collect();
    Tuple::from_values(&values.iter().map(value).collect::<Vec<_>>())
}

fn insert(op: u64, relation: &Arc<WireRelation>, values: &[&str]) -> Change {
    Change::Insert { op, relation: Arc::clone(relation), new: tuple(values) }
}

/// A shape on a disk, with its writer.
struct Shape {
    disk: SimDisk,
    files: ShapeFiles,
    reader: Arc<ShapeReader>,
    writer: LogWriter,
    recovered: Recovered,
    relation: Arc<WireRelation>,
    chunk: u64,
    packed: Packed,
}

/// Bytes of a segment, where the shape shares files with others.
type Packed = Option<u32>;

/// What a process works with that starts on a disk.
fn started(disk: &SimDisk, packed: Packed) -> Arc<dyn Disk> {
    let disk = Arc::new(disk.clone());
    match packed {
        Some(bytes) => {
            Arc::new(PackedDisk::with_segments_of(disk, Path::new(DATA), bytes).expect("it opens"))
        }
        None => disk,
    }
}

impl Shape {
    fn new(chunk: u64) -> Shape {
        Shape::new_in(chunk, None)
    }

    fn new_in(chunk: u64, packed: Packed) -> Shape {
        let disk = SimDisk::new();
        let shared = started(&disk, packed);
        ShapeFiles::create(Arc::clone(&shared), Path::new(DATA), HANDLE, &definition())
            .expect("a shape is made");
        Shape::open_in(disk, shared, (chunk, packed), Verify::Tail).expect("an empty log opens")
    }

    fn open(disk: SimDisk, chunk: u64, verify: Verify) -> Result<Shape, ShapeLogError> {
        let shared = started(&disk, None);
        Shape::open_in(disk, shared, (chunk, None), verify)
    }

    fn open_in(
        disk: SimDisk,
        shared: Arc<dyn Disk>,
        (chunk, packed): (u64, Packed),
        verify: Verify,
    ) -> Result<Shape, ShapeLogError> {
        let files = ShapeFiles::open(shared, Path::new(DATA), HANDLE);
        let definition = definition();
        let reader = ShapeReader::open(&files)?;
        let (writer, recovered) =
            LogWriter::recover(&files, &definition, Arc::clone(&reader), Incarnation(1), chunk, verify)?;
        Ok(Shape { disk, files, reader, writer, recovered, relation: wire(&definition), chunk, packed })
    }

    /// Starts again on the same disk. Whether all or only the tail is verified makes no difference.
    fn reopen(&self) -> Shape {
        let shared = started(&self.disk, self.packed);
        let files = ShapeFiles::open(Arc::clone(&shared), Path::new(DATA), HANDLE);
        let look = |verify| {
            let reader = ShapeReader::new(&files);
            super::open_read_only(&files, &reader, verify).expect("a log that was not damaged opens");
            walk(&reader.view(), Offset::SNAPSHOT_END)
        };
        let looked = look(Verify::Everything);
        assert_eq!(look(Verify::Tail), looked);
        let shape = Shape::open_in(self.disk.clone(), shared, (self.chunk, self.packed), Verify::Tail)
            .expect("a log that was not damaged opens");
        assert_eq!(walk(&shape.reader.view(), Offset::SNAPSHOT_END), looked);
        shape
    }

    /// One transaction of inserts; the row of position `n` has id `n` and the text.
    fn transaction(&mut self, tx: u64, texts: &[String]) {
        self.try_transaction(tx, texts).expect("a transaction is appended");
    }

    fn try_transaction(&mut self, tx: u64, texts: &[String]) -> Result<(), ShapeLogError> {
        self.writer.begin(Lsn(tx), Xid(tx as u32))?;
        for (index, text) in texts.iter().enumerate() {
            let op = index as u64 * 2;
            self.writer.push(&insert(op, &self.relation, &[&op.to_string(), text, "t"]), Op::Insert)?;
        }
        self.writer.commit().map(|_| ())
    }

    fn flush(&mut self) -> Offset {
        let disk = Arc::clone(&self.files.disk);
        super::flush_all(disk.as_ref(), [&mut self.writer]).remove(0).expect("the disk works")
    }
}

fn range(view: &ShapeView, from: Offset) -> Range {
    match view.read(from).expect("the log is sound") {
        Read::Range(range) => range,
        other => panic!("no range after {from}: {other:?}"),
    }
}

/// The messages after `from` to the end of their chunk.
fn body(view: &ShapeView, from: Offset) -> (Offset, String) {
    let range = range(view, from);
    let mut body = Vec::new();
    for piece in range.body {
        body.extend_from_slice(&piece.expect("the log is sound"));
    }
    (range.end, String::from_utf8(body).expect("JSON is UTF-8"))
}

/// `tx_op` of every message from `from` on, following the offsets as a client does, and the bodies.
fn walk(view: &ShapeView, mut from: Offset) -> (Vec<String>, Vec<(Offset, String)>) {
    let (mut seen, mut bodies) = (Vec::new(), Vec::new());
    loop {
        let up_to_date = range(view, from).up_to_date;
        let (end, text) = body(view, from);
        seen.extend(messages(text.as_bytes()).map(position));
        assert!(serde_json::from_str::<serde_json::Value>(&format!("[{text}]")).is_ok(), "{text}");
        bodies.push((from, text));
        if up_to_date {
            assert_eq!(end, view.last());
            return (seen, bodies);
        }
        assert!(end > from, "an offset that does not move: {end}");
        from = end;
    }
}

fn position(message: &[u8]) -> String {
    let message: serde_json::Value = serde_json::from_slice(message).expect("a message is JSON");
    let headers = &message["headers"];
    match headers["lsn"].as_str() {
        Some(lsn) => format!("{lsn}_{}", headers["op_position"]),
        None => headers["operation"].as_str().or(headers["control"].as_str()).unwrap_or("?").to_owned(),
    }
}

fn text(len: usize) -> String {
    "x".repeat(len)
}
