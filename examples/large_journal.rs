//! Writes a large journal, to measure the reading of it:
//! `cargo run --release --example large_journal -- DIRECTORY EVENTS [DEAD]`, then
//! `shapefold journal state DIRECTORY --brief`. In its last tenth so many writers die and nobody does anything.
//!
//! As a service leaves it: sealed segments with states, and in the store the newest events with a checkpoint.
//! Without the store and the states (remove `journal/sled` and `journal/archive/*.sfs`) everything has to be
//! folded from the first event.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid,
    Timestamp, Xid,
};
use shapefold::events::{
    AckCause, ConsumerEvent, Event, ExitCause, FlushEvent, OwnershipEvent, PreviousEnd, ProcessInfo,
    Recorded, ShapeEvent, StreamEvent, encode,
};
use shapefold::journal::{Archive, Entry, Journal, JournalPaths, SealSpan, SledJournal, StateMark};
use shapefold::state::State;

const SHAPES: u32 = 1_000;
const DEAD_MAX: u32 = SHAPES / 2;
/// As the archiver seals: with a state at the end of each.
const SEGMENT_EVENTS: u64 = 200_000;
/// Newest events, which are in the store.
const STORED_EVENTS: u64 = 60_000;
const STORED_BATCH: usize = 1_000;
const FAN_OUT: u32 = 10;
const START: i64 = 1_781_700_000_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "large_journal DIRECTORY EVENTS [DEAD]";
    let directory: PathBuf = arguments.next().ok_or(usage)?.into();
    let events: u64 = arguments.next().ok_or(usage)?.parse()?;
    let dead: u32 = arguments.next().map_or(Ok(0), |text| text.parse())?;
    std::fs::create_dir_all(&directory)?;
    let paths = JournalPaths::new(&directory);
    std::fs::create_dir_all(paths.root())?;
    let archive = Archive::open(&paths)?;
    let at = |id: u64| Timestamp(START + id as i64 * 500);
    let folded = RefCell::new(State::default());
    let mut history = (1..=events).zip(history(events, dead.min(DEAD_MAX))).map(|(id, event)| {
        let mut state = folded.borrow_mut();
        let recorded = Recorded { id: EventId(id), at: at(id), epoch: Epoch(1), because: None, event };
        state.apply(&recorded);
        Entry { id: recorded.id, bytes: encode(&recorded) }
    });
    let archived = events.saturating_sub(STORED_EVENTS);
    let mut first = 1;
    while first <= archived {
        let last = (first + SEGMENT_EVENTS - 1).min(archived);
        let span = SealSpan {
            epoch: Epoch(1),
            first: EventId(first),
            last: EventId(last),
            oldest_at: at(first),
            newest_at: at(last),
        };
        let entries = history.by_ref().take((last - first + 1) as usize).map(Ok);
        archive.seal(&span, entries)?;
        let state = folded.borrow();
        let mark = StateMark { epoch: Epoch(1), upto: state.last, at: state.at, routed: state.stream.routed };
        archive.save_state(&mark, &state.to_bytes())?;
        drop(state);
        first = last + 1;
    }
    let stored: Vec<Entry> = history.collect();
    let (mut journal, _) = SledJournal::open(&directory, EventId(archived))?;
    for batch in stored.chunks(STORED_BATCH) {
        journal.append(batch)?;
    }
    journal.checkpoint(EventId(events), &folded.borrow().to_bytes())?;
    Ok(())
}

/// A process that takes the directory, creates its shapes, and then routes: two transactions of ten shapes, a
/// flush, an acknowledgement. In the last tenth writers die, one after the other, and nobody pays what their
/// shapes owe: nothing more is acknowledged.
fn history(events: u64, dead: u32) -> impl Iterator<Item = Event> {
    let acquired = OwnershipEvent::Acquired {
        epoch: Epoch(1),
        previous: Epoch(0),
        previous_end: PreviousEnd::None,
        device: 1,
        inode: 2,
        waited_ms: 0,
    };
    let process = ProcessInfo {
        boot_id: "0d5bd4f4-0000-4000-8000-000000000001".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        format: 1,
        host: "example".to_owned(),
        pid: 1,
        config_hash: 1,
    };
    let locked = StreamEvent::LockAcquired { backend_pid: 1, generation: Generation(1) };
    let started = StreamEvent::Started { generation: Generation(1), from: Lsn(1) };
    let boot =
        [acquired.into(), OwnershipEvent::ProcessStarted(process).into(), locked.into(), started.into()];
    // A death for every so many rounds of the last tenth.
    let (birth_events, calm_events, rough_events) = (u64::from(SHAPES) * 8, events / 10 * 9, events / 10);
    let (calm, rough) = match dead {
        0 => (events, 0),
        _ => (calm_events.saturating_sub(birth_events) / 4, rough_events / 3),
    };
    let every = rough.checked_div(u64::from(dead)).unwrap_or(u64::MAX).max(1);
    let born = (1..=SHAPES).flat_map(birth);
    let calmly = (1..=calm).flat_map(move |number| round(number, dead));
    let roughly = (calm + 1..).flat_map(move |number| {
        let passed = number - calm;
        let dies =
            (passed % every == 1 || every == 1).then(|| passed / every).filter(|n| *n < u64::from(dead));
        rough_round(number, dead, dies.map(|n| Sid(SHAPES - dead + 1 + n as u32)))
    });
    boot.into_iter().chain(born).chain(calmly).chain(roughly)
}

fn birth(number: u32) -> [Event; 8] {
    let (sid, handle) = (Sid(number), Handle { hash: 77, micros: START as u64 + u64::from(number) });
    let (snapshot, oid) = (PgSnapshot { xmin: 700, xmax: 700, xip: Vec::new() }, Oid(16_400 + number % 7));
    let incarnation = Incarnation(1);
    [
        ShapeEvent::Created { sid, handle, definition: DefinitionHash(77), oid }.into(),
        ShapeEvent::Routed { sid, after: Seq(0), after_lsn: Lsn(1) }.into(),
        ShapeEvent::PublicationReady { sid, oid, waited_ms: 1 }.into(),
        ShapeEvent::SnapshotStarted { sid, attempt: 1 }.into(),
        ShapeEvent::SnapshotVisible { sid, snapshot, lsn: Lsn(1) }.into(),
        ShapeEvent::SnapshotCompleted { sid, rows: 10, bytes: 1_000 }.into(),
        ConsumerEvent::Started { sid, incarnation }.into(),
        ConsumerEvent::Ready { sid, incarnation, recovered: Lsn(0), trimmed_bytes: 0 }.into(),
    ]
}

/// Ten of the shapes that live to the end, and one more perhaps.
fn routed(seq: Seq, dead: u32, also: Option<Sid>) -> Event {
    let wants = |n: u32| Sid(1 + (seq.0 as u32).wrapping_mul(7).wrapping_add(n * 97) % (SHAPES - dead));
    let event = StreamEvent::TxnRouted {
        seq,
        generation: Generation(1),
        lsn: Lsn(1_000 * seq.0),
        xid: Xid((701 + seq.0 % 4_000_000_000) as u32),
        committed_at: Timestamp(START),
        changes: 3,
        bytes: 600,
        set: (0..FAN_OUT).map(wants).chain(also).collect(),
    };
    event.into()
}

fn round(number: u64, dead: u32) -> [Event; 4] {
    let seq = Seq(2 * number);
    [
        routed(Seq(seq.0 - 1), dead, None),
        routed(seq, dead, None),
        FlushEvent::Watermark { upto: seq, except: Vec::new() }.into(),
        StreamEvent::AckSent { lsn: Lsn(1_000 * seq.0 + 1), cause: AckCause::Commit }.into(),
    ]
}

fn rough_round(number: u64, dead: u32, dies: Option<Sid>) -> impl Iterator<Item = Event> {
    let seq = Seq(2 * number);
    let pair = [routed(Seq(seq.0 - 1), dead, dies), routed(seq, dead, None)];
    let shapes = pair.iter().flat_map(|event| match event {
        Event::Stream(StreamEvent::TxnRouted { set, .. }) => set.iter().collect::<Vec<Sid>>(),
        _ => Vec::new(),
    });
    let alive: BTreeSet<Sid> = shapes.filter(|sid| Some(*sid) != dies).collect();
    let exit = dies.map(|sid| ConsumerEvent::Exited {
        sid,
        incarnation: Incarnation(1),
        cause: ExitCause::Panicked,
        pending_oldest: Some(Seq(seq.0 - 1)),
        pending: 1,
    });
    let flushed = FlushEvent::Flushed { shapes: alive.into_iter().map(|sid| (sid, seq)).collect() };
    pair.into_iter().chain(exit.map(Event::from)).chain([flushed.into()])
}
