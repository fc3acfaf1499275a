//! Writes a large journal, to measure the reading of it:
//! `cargo run --release --example large_journal -- DIRECTORY EVENTS`, then
//! `shapefold journal state DIRECTORY --brief`.
//!
//! As a service leaves it: sealed segments with states, and in the store the newest events with a checkpoint.
//! Without the store and the states (remove `journal/sled` and `journal/archive/*.sfs`) everything has to be
//! folded from the first event.

use std::cell::RefCell;
use std::path::PathBuf;

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid,
    Timestamp, Xid,
};
use shapefold::events::{
    AckCause, ConsumerEvent, Event, FlushEvent, OwnershipEvent, PreviousEnd, Recorded, ShapeEvent,
    StreamEvent, encode,
};
use shapefold::journal::{Archive, Entry, Journal, JournalPaths, SealSpan, SledJournal, StateMark};
use shapefold::state::State;

const SHAPES: u32 = 1_000;
/// As the archiver seals: with a state at the end of each.
const SEGMENT_EVENTS: u64 = 200_000;
/// Newest events, which are in the store.
const STORED_EVENTS: u64 = 60_000;
const STORED_BATCH: usize = 1_000;
const FAN_OUT: u32 = 10;
const START: i64 = 1_781_700_000_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "large_journal DIRECTORY EVENTS";
    let directory: PathBuf = arguments.next().ok_or(usage)?.into();
    let events: u64 = arguments.next().ok_or(usage)?.parse()?;
    std::fs::create_dir_all(&directory)?;
    let paths = JournalPaths::new(&directory);
    std::fs::create_dir_all(paths.root())?;
    let archive = Archive::open(&paths)?;
    let at = |id: u64| Timestamp(START + id as i64 * 500);
    let folded = RefCell::new(State::default());
    let mut history = (1..=events).zip(history()).map(|(id, event)| {
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

/// A process that takes the directory, creates its shapes, and then routes for ever: two transactions of ten
/// shapes, a flush, an acknowledgement.
fn history() -> impl Iterator<Item = Event> {
    let acquired = OwnershipEvent::Acquired {
        epoch: Epoch(1),
        previous: Epoch(0),
        previous_end: PreviousEnd::None,
        device: 1,
        inode: 2,
        waited_ms: 0,
    };
    let locked = StreamEvent::LockAcquired { backend_pid: 1, generation: Generation(1) };
    let started = StreamEvent::Started { generation: Generation(1), from: Lsn(1) };
    let boot = [Event::from(acquired), Event::from(locked), Event::from(started)];
    boot.into_iter().chain((1..=SHAPES).flat_map(birth)).chain((1_u64..).flat_map(round))
}

fn birth(number: u32) -> [Event; 5] {
    let (sid, handle) = (Sid(number), Handle { hash: 77, micros: START as u64 + u64::from(number) });
    let snapshot = PgSnapshot { xmin: 700, xmax: 700, xip: Vec::new() };
    [
        ShapeEvent::Created { sid, handle, definition: DefinitionHash(77), oid: Oid(16_400 + number % 7) }
            .into(),
        ShapeEvent::Routed { sid, after: Seq(0), after_lsn: Lsn(1) }.into(),
        ShapeEvent::SnapshotVisible { sid, snapshot, lsn: Lsn(1) }.into(),
        ShapeEvent::SnapshotCompleted { sid, rows: 10, bytes: 1_000 }.into(),
        ConsumerEvent::Started { sid, incarnation: Incarnation(1) }.into(),
    ]
}

fn round(round: u64) -> [Event; 4] {
    let routed = |seq: u64| StreamEvent::TxnRouted {
        seq: Seq(seq),
        generation: Generation(1),
        lsn: Lsn(1_000 * seq),
        xid: Xid((seq % 4_000_000_000) as u32),
        committed_at: Timestamp(START),
        changes: 3,
        bytes: 600,
        set: (0..FAN_OUT)
            .map(|n| Sid(1 + (seq as u32).wrapping_mul(7).wrapping_add(n * 97) % SHAPES))
            .collect(),
    };
    let seq = Seq(2 * round);
    [
        routed(seq.0 - 1).into(),
        routed(seq.0).into(),
        FlushEvent::Watermark { upto: seq, except: Vec::new() }.into(),
        StreamEvent::AckSent { lsn: Lsn(1_000 * seq.0 + 1), cause: AckCause::Commit }.into(),
    ]
}
