//! Filling tables from a journal: one pass over the events where events are wanted, one fold otherwise.

use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, Statement, Transaction};

use crate::domain::{EventId, Lsn, Sid, Timestamp};
use crate::events::Recorded;
use crate::projections::forensics::{
    Ack, End, Holding, LastExit, LastExits, Names, Owners, Payer, Position, Tenure, cause_of, fields, judge,
    subject,
};
use crate::state::{Life, Shape, State, Writer};

use super::super::Failure;
use super::SqlError;
use super::tables::Table;
use crate::inspect::answers::pays;
use crate::inspect::{Source, sample_exit};

/// SQLite's memory for pages, in KiB; what does not fit is in the file.
const CACHE_KIB: i64 = 64 * 1024;

/// Fills `tables` as of `at` in a new database at `path`.
pub fn write(source: &Source, at: Position, tables: &[Table], path: &Path) -> Result<u64, Failure> {
    write_from(source, at, Position::Event(EventId(1)), tables, path)
}

/// The same; of what happened only what is not before `from`. Returns how many events were written.
pub fn write_from(
    source: &Source,
    at: Position,
    from: Position,
    tables: &[Table],
    path: &Path,
) -> Result<u64, Failure> {
    let mut connection = Connection::open(path).map_err(SqlError::Write)?;
    // A file that is not finished is of no use: nothing has to survive a crash.
    let settings =
        format!("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB};");
    connection.execute_batch(&settings).map_err(SqlError::Write)?;
    for table in Table::ALL {
        connection.execute_batch(&table.create()).map_err(SqlError::Write)?;
    }
    let (at, from) = (source.resolve(at), source.resolve(from));
    let state = source.fold(at);
    let fill = connection.transaction().map_err(SqlError::Write)?;
    now(source, &state, tables, &fill)?;
    let happened = [Table::Events, Table::Acks, Table::Owners];
    let events = if happened.iter().any(|table| tables.contains(table)) {
        history(source, (from, at), state.at, tables, &fill)?
    } else {
        0
    };
    fill.commit().map_err(SqlError::Write)?;
    if tables.contains(&Table::Events) {
        let indexes = "CREATE INDEX events_kind ON events (kind); CREATE INDEX events_sid ON events (sid);";
        connection.execute_batch(indexes).map_err(SqlError::Write)?;
    }
    Ok(events)
}

/// Everything that happened from one place to another; `until` is the time from which ages count.
fn history(
    source: &Source,
    (from, to): (Position, Position),
    until: Timestamp,
    tables: &[Table],
    fill: &Transaction<'_>,
) -> Result<u64, Failure> {
    let mut insert = Insert::into(fill)?;
    let wanted = |table| tables.contains(&table);
    // Acknowledgements are judged by the state before them; the rest needs no fold.
    let folds = wanted(Table::Acks);
    let mut state = source.beginning();
    let (mut names, mut owners) = (Names::of(&state), Owners::default());
    let (mut begun, mut written) = (false, 0);
    for recorded in source.events(state.last.next()) {
        if to.is_passed_by(&recorded) {
            break;
        }
        names.learn(&recorded);
        owners.observe(&recorded);
        begun = begun || from.is_reached_by(&recorded);
        if begun && wanted(Table::Events) {
            insert.row(Table::Events, event(&recorded, &names, until))?;
            written += 1;
        }
        if folds {
            if let Some(ack) = judge(&state, &recorded).filter(|_| begun) {
                insert.row(Table::Acks, acknowledgement(&ack, until))?;
            }
            state.apply(&recorded);
        }
    }
    if wanted(Table::Owners) {
        for tenure in &owners.tenures {
            insert.row(Table::Owners, tenure_row(tenure, until))?;
        }
    }
    Ok(written)
}

/// The tables of the state.
fn now(source: &Source, state: &State, tables: &[Table], fill: &Transaction<'_>) -> Result<(), Failure> {
    let wanted = |table| tables.contains(&table);
    let mut insert = Insert::into(fill)?;
    if wanted(Table::Moment) || wanted(Table::Flush) {
        let holding = Holding::of(state, &source.exits(state));
        insert.row(Table::Moment, moment(state, &holding))?;
        for row in holding.holders.iter().map(|holder| flush(state, holder)) {
            insert.row(Table::Flush, row)?;
        }
    }
    if wanted(Table::Shapes) {
        for (sid, shape) in &state.shapes {
            insert.row(Table::Shapes, shape_row(state, *sid, shape))?;
        }
    }
    if wanted(Table::Consumers) {
        let mut exits = LastExits::default();
        let all = source.events_like(EventId(1), &sample_exit());
        all.take_while(|exit| exit.id <= state.last).for_each(|exit| exits.observe(&exit));
        for (sid, shape) in &state.shapes {
            insert.row(Table::Consumers, consumer(state, *sid, shape, exits.get(*sid)))?;
        }
    }
    if wanted(Table::Transactions) {
        for (seq, txn) in state.window.iter() {
            let row = vec![
                number(seq.0),
                lsn(txn.lsn),
                number(txn.lsn.0),
                number(txn.xid.0),
                number(txn.set.len() as u64),
                number(txn.owed),
            ];
            insert.row(Table::Transactions, row)?;
        }
    }
    Ok(())
}

/// One prepared statement for each table.
struct Insert<'a>(Vec<(Table, Statement<'a>)>);

impl<'a> Insert<'a> {
    fn into(fill: &'a Transaction<'_>) -> Result<Insert<'a>, SqlError> {
        let prepare = |table: Table| Ok((table, fill.prepare(&table.insert()).map_err(SqlError::Write)?));
        Ok(Insert(Table::ALL.into_iter().map(prepare).collect::<Result<_, SqlError>>()?))
    }

    fn row(&mut self, table: Table, row: Vec<Value>) -> Result<(), SqlError> {
        for (_, statement) in self.0.iter_mut().filter(|(own, _)| *own == table) {
            statement.execute(rusqlite::params_from_iter(row.iter())).map_err(SqlError::Write)?;
        }
        Ok(())
    }
}

/// SQLite has signed numbers only; nothing here comes near the upper half.
fn number(number: impl Into<u64>) -> Value {
    Value::Integer(i64::try_from(number.into()).unwrap_or(i64::MAX))
}

fn maybe(value: Option<impl Into<u64>>) -> Value {
    value.map_or(Value::Null, number)
}

fn text(text: impl ToString) -> Value {
    Value::Text(text.to_string())
}

fn text_of(value: Option<impl ToString>) -> Value {
    value.map_or(Value::Null, text)
}

fn word(value: impl std::fmt::Debug) -> Value {
    Value::Text(format!("{value:?}"))
}

fn lsn(lsn: Lsn) -> Value {
    text(lsn)
}

fn flag(flag: bool) -> Value {
    Value::Integer(i64::from(flag))
}

/// Seconds from one time to another.
fn age(at: Timestamp, until: Timestamp) -> Value {
    Value::Real(until.since(at).as_secs_f64())
}

fn moment(state: &State, holding: &Holding) -> Vec<Value> {
    vec![
        number(state.last.0),
        text(state.at),
        Value::Integer(state.at.0),
        number(state.owner.epoch.0),
        word(state.owner.phase),
        word(state.stream.phase),
        lsn(holding.received),
        lsn(holding.boundary),
        lsn(holding.acked),
        number(holding.received.0),
        number(holding.boundary.0),
        number(holding.gap_bytes),
        number(holding.shapes as u64),
        number(holding.holders.len() as u64),
    ]
}

fn exit_columns(exit: Option<&LastExit>) -> [Value; 3] {
    match exit {
        None => [Value::Null, Value::Null, Value::Null],
        Some(exit) => [number(exit.event.0), text(exit.at), word(exit.cause)],
    }
}

fn flush(state: &State, holder: &crate::projections::forensics::Holder) -> Vec<Value> {
    let mut row = vec![
        number(holder.sid.0),
        text(holder.handle),
        number(holder.oid.0),
        number(holder.oldest.0),
        lsn(holder.lsn),
        number(holder.xid.0),
        number(holder.bytes),
        number(holder.pending as u64),
        text(holder.since),
        age(holder.since, state.at),
        text(pays(holder.payer)),
        flag(holder.payer == Payer::Nobody),
        flag(holder.suspected),
        flag(holder.flushed_nothing),
    ];
    row.extend(exit_columns(holder.last_exit.as_ref()));
    row
}

fn shape_row(state: &State, sid: Sid, shape: &Shape) -> Vec<Value> {
    vec![
        number(sid.0),
        text(shape.handle),
        number(shape.oid.0),
        text(format!("{:016x}", shape.definition.0)),
        word(shape.life),
        number(shape.created.0),
        text(shape.created_at),
        age(shape.created_at, state.at),
        text(writer_word(shape.writer)),
        maybe(shape.writer.incarnation().map(|incarnation| incarnation.0)),
        number(shape.snapshot_attempt),
        text_of(shape.visible.as_ref().map(|(_, lsn)| *lsn)),
        number(shape.pending.len() as u64),
        maybe(shape.pending.front().map(|seq| seq.0)),
        number(shape.flushed.0),
        text(shape.progressed_at),
        age(shape.progressed_at, state.at),
        flag(shape.suspected),
        shape.invalidated.map_or(Value::Null, |ended| word(ended.cause)),
        maybe(shape.invalidated.map(|ended| ended.event.0)),
        text_of(shape.invalidated.map(|ended| ended.at)),
    ]
}

fn writer_word(writer: Writer) -> &'static str {
    match writer {
        Writer::Absent => "absent",
        Writer::Live { ready: false, .. } => "starting",
        Writer::Live { ready: true, .. } => "live",
        Writer::Stopping { .. } => "ending",
    }
}

fn consumer(state: &State, sid: Sid, shape: &Shape, exit: Option<&LastExit>) -> Vec<Value> {
    let live = shape.life != Life::Invalidated && matches!(shape.writer, Writer::Live { .. });
    let mut row = vec![
        number(sid.0),
        text(shape.handle),
        number(shape.oid.0),
        text(writer_word(shape.writer)),
        number(shape.last_incarnation.0),
        flag(live),
        number(shape.pending.len() as u64),
        text_of(shape.retry.and_then(|retry| retry.due)),
    ];
    row.extend(exit_columns(exit));
    row.push(exit.map_or(Value::Null, |exit| age(exit.at, state.at)));
    row
}

fn event(recorded: &Recorded, names: &Names, until: Timestamp) -> Vec<Value> {
    let sid = subject(&recorded.event);
    vec![
        number(recorded.id.0),
        text(recorded.at),
        Value::Integer(recorded.at.0),
        age(recorded.at, until),
        number(recorded.epoch.0),
        maybe(recorded.because.map(|because| because.0)),
        text(recorded.event.name()),
        maybe(sid.map(|sid| sid.0)),
        text_of(sid.and_then(|sid| names.handle(sid))),
        maybe(sid.and_then(|sid| names.table(sid)).map(|oid| oid.0)),
        text_of(cause_of(&recorded.event)),
        text(fields(&recorded.event)),
    ]
}

fn acknowledgement(ack: &Ack, until: Timestamp) -> Vec<Value> {
    vec![
        number(ack.event.0),
        text(ack.at),
        Value::Integer(ack.at.0),
        age(ack.at, until),
        lsn(ack.lsn),
        number(ack.lsn.0),
        word(ack.cause),
        flag(ack.safe),
        maybe(ack.owed.map(|(seq, _)| seq.0)),
        text_of(ack.owed.map(|(_, lsn)| lsn)),
        text_of(ack.holder.map(|(_, handle, _)| handle)),
        maybe(ack.holder.map(|(_, _, count)| count)),
        number(ack.gap_bytes),
    ]
}

fn tenure_row(tenure: &Tenure, until: Timestamp) -> Vec<Value> {
    let process = tenure.process.as_ref();
    let ended = match tenure.end {
        End::Open => Value::Null,
        End::Released => text("released"),
        End::Lost(evidence) => text(format!("lost: {evidence:?}")),
        End::Crashed => text("crashed"),
        End::Overlapped => text("overlapped"),
    };
    vec![
        number(tenure.epoch.0),
        text_of(process.map(|process| process.host.clone())),
        maybe(process.map(|process| process.pid)),
        text_of(process.map(|process| process.boot_id.clone())),
        text_of(process.map(|process| process.version.clone())),
        text_of(process.map(|process| format!("{:016x}", process.config_hash))),
        number(tenure.waited_ms),
        number(tenure.event.0),
        text(tenure.from),
        number(tenure.last.0),
        text(tenure.until),
        age(tenure.from, until),
        ended,
        number(tenure.late.map_or(0, |late| late.count)),
    ]
}
