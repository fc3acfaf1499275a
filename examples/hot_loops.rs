//! The innermost loops, one at a time, to count their instructions: `hot_loops NAME ITERATIONS`. Without a name the
//! names. Deterministic: no clock, no random numbers, one thread. `./dev bench instructions` runs each under
//! callgrind for two numbers of iterations and compares the difference with `docs/benchmarks/instructions.json`.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shapefold::domain::{
    Change, Column, DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, LogMode, Lsn, Offset,
    Oid, Relation, RelationName, Replica, Seq, ShapeDefinition, Sid, SidSet, Timestamp, Tuple, Value,
    WireColumn, WireRelation, Xid,
};
use shapefold::events::{AckCause, Event, FlushEvent, Recorded, ShapeEvent, StreamEvent, decode, encode};
use shapefold::filter::{Predicate, ShapeIndex};
use shapefold::replication::{Assembler, Frame, SPILL_BYTES_DEFAULT};
use shapefold::shape_log::{
    Disk, Encoded, Encoder, LogWriter, Op, Read, ShapeFiles, ShapeReader, SimDisk, TransactionHeaders, Verify,
};
use shapefold::state::State;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
type Loop = fn(u64) -> Outcome<u64>;

const LOOPS: [(&str, Loop); 9] = [
    ("pgoutput decode, a row", decode_rows),
    ("match, field = k", match_equal),
    ("match, ILIKE 'k%'", match_prefix),
    ("match, a row that nobody wants", match_nothing),
    ("encode, a message", encode_messages),
    ("journal encode, an event", encode_events),
    ("journal decode, an event", decode_events),
    ("journal fold, an event", fold_events),
    ("render, an answer of ten messages", render),
];
const SHAPES: u32 = 1_000;
const COLUMNS: [(&str, u32, &str); 4] =
    [("id", 20, "int8"), ("field", 20, "int8"), ("label", 25, "text"), ("payload", 25, "text")];
/// Rows of a transaction that is decoded.
const ROWS: u64 = 100;
/// Messages of an answer.
const MESSAGES: u64 = 10;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        LOOPS.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    };
    let iterations: u64 = arguments.next().ok_or("hot_loops NAME ITERATIONS")?.parse()?;
    let (_, work) = LOOPS.iter().find(|(known, _)| *known == name).ok_or("no such loop")?;
    // Whoever drops work that is not needed would measure nothing.
    println!("{}", black_box(work(iterations)?));
    Ok(())
}

fn relation() -> Relation {
    let column = |(position, (name, oid, ty)): (u16, &(&str, u32, &str))| Column {
        name: (*name).to_owned(),
        type_oid: Oid(*oid),
        type_name: (*ty).to_owned(),
        element_oid: Oid(0),
        type_modifier: -1,
        dimensions: 0,
        not_null: true,
        pk_position: (position == 0).then_some(0),
        generated: false,
        type_kind: 'b',
        base: None,
    };
    let name = RelationName { schema: "public".to_owned(), table: "items".to_owned() };
    Relation {
        oid: Oid(1),
        name,
        columns: (0..).zip(&COLUMNS).map(column).collect(),
        partitioned: false,
        storage: None,
    }
}

fn wire() -> Arc<WireRelation> {
    let column = |(name, oid, _): &(&str, u32, &str)| WireColumn {
        name: (*name).to_owned(),
        type_oid: Oid(*oid),
        type_modifier: -1,
        in_identity: true,
    };
    let name = RelationName { schema: "public".to_owned(), table: "items".to_owned() };
    let columns = COLUMNS.iter().map(column).collect();
    Arc::new(WireRelation { oid: Oid(1), name, replica_identity: 'f', columns })
}

fn definition() -> ShapeDefinition {
    let relation = relation();
    ShapeDefinition {
        columns: relation.columns.iter().map(|column| column.name.clone()).collect(),
        relation: Arc::new(relation),
        where_sql: None,
        columns_named: false,
        replica: Replica::Default,
        log: LogMode::Full,
        dependencies: Vec::new(),
        selects: Vec::new(),
    }
}

fn texts(number: u64) -> [String; 4] {
    let payload = "The quick brown fox jumps over the lazy dog. ".repeat(4);
    [number.to_string(), (number % u64::from(SHAPES)).to_string(), format!("P{number}x"), payload]
}

fn insert(relation: &Arc<WireRelation>, number: u64) -> Change {
    let texts = texts(number);
    let cells: Vec<Value<'_>> = texts.iter().map(|text| Value::Text(text.as_bytes())).collect();
    Change::Insert { op: number * 2, relation: Arc::clone(relation), new: Tuple::from_values(&cells) }
}

/// A pgoutput message of each kind that a transaction of inserts has:
/// <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.
mod wire_format {
    use super::{COLUMNS, texts};

    pub fn relation() -> Vec<u8> {
        let mut message = b"R\0\0\0\x01public\0items\0f".to_vec();
        message.extend((COLUMNS.len() as i16).to_be_bytes());
        for (name, oid, _) in COLUMNS {
            message.push(1);
            message.extend(name.as_bytes());
            message.push(0);
            message.extend(oid.to_be_bytes());
            message.extend((-1_i32).to_be_bytes());
        }
        message
    }

    pub fn begin(lsn: u64) -> Vec<u8> {
        [b"B".as_slice(), &lsn.to_be_bytes(), &0_i64.to_be_bytes(), &700_u32.to_be_bytes()].concat()
    }

    pub fn insert(number: u64) -> Vec<u8> {
        let mut message = b"I\0\0\0\x01N".to_vec();
        message.extend((COLUMNS.len() as i16).to_be_bytes());
        for text in texts(number) {
            message.push(b't');
            message.extend((text.len() as u32).to_be_bytes());
            message.extend(text.as_bytes());
        }
        message
    }

    pub fn commit(lsn: u64) -> Vec<u8> {
        [b"C\0".as_slice(), &lsn.to_be_bytes(), &(lsn + 8).to_be_bytes(), &0_i64.to_be_bytes()].concat()
    }
}

fn decode_rows(iterations: u64) -> Outcome<u64> {
    let mut assembler = Assembler::new(PathBuf::from("."), SPILL_BYTES_DEFAULT);
    let (mut items, mut count) = (Vec::new(), 0);
    let mut accept = |assembler: &mut Assembler, at: u64, data: &[u8]| {
        let (wal_start, wal_end) = (Lsn(at), Lsn(at));
        assembler.accept(Frame::XLogData { wal_start, wal_end, data }, &mut items)?;
        count += items.drain(..).count() as u64;
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    let rows: Vec<Vec<u8>> = (0..ROWS).map(wire_format::insert).collect();
    accept(&mut assembler, 1, &wire_format::begin(1))?;
    accept(&mut assembler, 1, &wire_format::relation())?;
    accept(&mut assembler, 1, &wire_format::commit(1))?;
    for transaction in 1..=iterations / ROWS {
        let at = transaction * 1_000;
        accept(&mut assembler, at, &wire_format::begin(at))?;
        for row in &rows {
            accept(&mut assembler, at, row)?;
        }
        accept(&mut assembler, at, &wire_format::commit(at))?;
    }
    Ok(count)
}

fn route(iterations: u64, clause: impl Fn(u32) -> String, wanted: impl Fn(u64) -> u64) -> Outcome<u64> {
    let (relation, params, wire) = (relation(), BTreeMap::new(), wire());
    let mut index = ShapeIndex::new();
    index.announce(&wire);
    for number in 0..SHAPES {
        let predicate = Predicate::parse(&clause(number), &params, &relation)?;
        index.insert(Sid(number + 1), Oid(1), Some(predicate));
    }
    let changes: Vec<Change> = (0..ROWS).map(|number| insert(&wire, wanted(number))).collect();
    let (mut moves, mut found) = (Vec::new(), 0);
    for number in 0..iterations {
        moves.clear();
        let change = &changes[usize::try_from(number % ROWS)?];
        index.route(change, &mut moves).map_err(|error| format!("{error:?}"))?;
        found += moves.len() as u64;
    }
    Ok(found)
}

fn match_equal(iterations: u64) -> Outcome<u64> {
    route(iterations, |k| format!("field = {k}"), |number| number * 7)
}

fn match_prefix(iterations: u64) -> Outcome<u64> {
    route(iterations, |k| format!("label ILIKE 'p{k}x%'"), |number| number * 7)
}

fn match_nothing(iterations: u64) -> Outcome<u64> {
    route(iterations, |k| format!("field = {}", u64::from(k) + 1_000_000), |number| number * 7)
}

fn encode_messages(iterations: u64) -> Outcome<u64> {
    let (mut encoder, wire) = (Encoder::new(&definition()), wire());
    let headers = TransactionHeaders::new(Lsn(1_000), Xid(700));
    let changes: Vec<Change> = (0..ROWS).map(|number| insert(&wire, number)).collect();
    let (mut out, mut bytes) = (Encoded::default(), 0);
    for number in 0..iterations {
        encoder.encode(&changes[usize::try_from(number % ROWS)?], Op::Insert, &headers, &mut out)?;
        bytes += out.messages().map(|(_, message)| message.len() as u64).sum::<u64>();
    }
    Ok(bytes)
}

/// Two transactions of ten shapes, a flush, an acknowledgement, and so on.
fn recorded(number: u64) -> Recorded {
    let seq = Seq(number / 4 * 2 + (number % 4).min(1) + 1);
    let event: Event = match number % 4 {
        0 | 1 => StreamEvent::TxnRouted {
            seq,
            generation: Generation(1),
            lsn: Lsn(1_000 * seq.0),
            xid: Xid(700),
            committed_at: Timestamp(number as i64),
            changes: 3,
            bytes: 600,
            set: (0..10).map(|n| Sid(1 + (seq.0 as u32 * 7 + n * 97) % SHAPES)).collect::<SidSet>(),
        }
        .into(),
        2 => FlushEvent::Watermark { upto: seq, except: Vec::new() }.into(),
        _ => StreamEvent::AckSent { lsn: Lsn(1_000 * seq.0 + 1), cause: AckCause::Commit }.into(),
    };
    Recorded { id: EventId(number + 1), at: Timestamp(number as i64), epoch: Epoch(1), because: None, event }
}

fn encode_events(iterations: u64) -> Outcome<u64> {
    let events: Vec<Recorded> = (0..ROWS).map(recorded).collect();
    let encoded = (0..iterations).map(|number| encode(&events[(number % ROWS) as usize]).len() as u64);
    Ok(encoded.sum())
}

fn decode_events(iterations: u64) -> Outcome<u64> {
    let records: Vec<Vec<u8>> = (0..ROWS).map(|number| encode(&recorded(number))).collect();
    let mut ids = 0;
    for number in 0..iterations {
        ids += decode(&records[usize::try_from(number % ROWS)?])?.id.0;
    }
    Ok(ids)
}

fn fold_events(iterations: u64) -> Outcome<u64> {
    let mut state = State::default();
    for number in 1..=SHAPES {
        let handle = Handle { hash: 1, micros: u64::from(number) };
        let (sid, definition) = (Sid(number), DefinitionHash(1));
        let created = ShapeEvent::Created { sid, handle, definition, oid: Oid(1) };
        let routed = ShapeEvent::Routed { sid, after: Seq(0), after_lsn: Lsn(0) };
        for event in [Event::from(created), Event::from(routed)] {
            let (id, at, epoch) = (EventId(u64::from(number)), Timestamp(0), Epoch(1));
            state.apply(&Recorded { id, at, epoch, because: None, event });
        }
    }
    for number in 0..iterations {
        state.apply(&recorded(number));
    }
    Ok(state.stream.last_seq.0 + state.window.len() as u64)
}

fn render(iterations: u64) -> Outcome<u64> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let (handle, definition) = (Handle { hash: 1, micros: 1 }, definition());
    let files = ShapeFiles::create(disk, Path::new("/data"), handle, &definition)?;
    let reader = ShapeReader::new(&files);
    let chunk = shapefold::shape_log::CHUNK_BYTES_THRESHOLD_DEFAULT;
    let (mut writer, _) =
        LogWriter::recover(&files, &definition, Arc::clone(&reader), Incarnation(1), chunk, Verify::Tail)?;
    let wire = wire();
    writer.begin(Lsn(1_000), Xid(700))?;
    for number in 0..MESSAGES {
        writer.push(&insert(&wire, number), Op::Insert)?;
    }
    writer.commit()?;
    let (view, mut bytes) = (reader.view(), 0);
    // As a live client asks: for everything behind the end of the snapshot.
    let from: Offset = "0_inf".parse().map_err(|_| "an offset")?;
    for _ in 0..iterations {
        let Read::Range(range) = view.read(from)? else { return Err("nothing to read".into()) };
        for piece in range.body {
            bytes += piece?.len() as u64;
        }
    }
    Ok(bytes)
}
