//! Journals synthesised from the figures of incident reports; see `docs/forensics.md`.
//!
//! They are what an engine without our rules would have written: shapes that owe and whose writers are
//! gone, an owner that goes on beside another. Kept as exported files under `tests/data/forensics/`, and
//! compared with what this code makes.

use std::fs;
use std::path::{Path, PathBuf};

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid, SidSet,
    Timestamp, Xid,
};
use shapefold::events::{
    AckCause, ConsumerEvent, DrainCause, Event, ExitCause, FaultClass, FileKind, FlushEvent, OwnershipEvent,
    PreviousEnd, ProcessInfo, Recorded, ShapeEvent, Stage, StopCause, StreamEvent, encode,
};
use shapefold::journal::{Entry, ExportFile, ExportWriter, Reading};

const WRITE_VARIABLE: &str = "SHAPEFOLD_WRITE_FIXTURES";

pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/forensics")
}

/// A history in the making.
pub struct Story {
    pub events: Vec<Recorded>,
    now: Timestamp,
    epoch: Epoch,
    seq: Seq,
    sids: u32,
}

impl Story {
    pub fn new(at: &str) -> Story {
        let now = at.parse().expect("a time");
        Story { events: Vec::new(), now, epoch: Epoch(0), seq: Seq(0), sids: 0 }
    }

    pub fn at(&mut self, at: &str) {
        let at: Timestamp = at.parse().expect("a time");
        assert!(at >= self.now, "time goes forward: {at} after {}", self.now);
        self.now = at;
    }

    pub fn later(&mut self, micros: i64) {
        self.now = Timestamp(self.now.0 + micros);
    }

    pub fn put(&mut self, because: Option<EventId>, event: impl Into<Event>) -> EventId {
        let id = EventId(self.events.len() as u64 + 1);
        let event = event.into();
        self.events.push(Recorded { id, at: self.now, epoch: self.epoch, because, event });
        id
    }

    pub fn own(&mut self, epoch: u64, end: PreviousEnd, host: &str, pid: u32, version: &str) {
        let previous = self.epoch;
        self.epoch = Epoch(epoch);
        let acquired = self.put(
            None,
            OwnershipEvent::Acquired {
                epoch: Epoch(epoch),
                previous,
                previous_end: end,
                device: 2049,
                inode: 131_073,
                waited_ms: 12,
            },
        );
        let process = ProcessInfo {
            boot_id: format!("0d5bd4f4-0000-4000-8000-{pid:012}"),
            version: version.to_owned(),
            format: 1,
            host: host.to_owned(),
            pid,
            config_hash: 0x5ee1_0ff5_e77e_0001,
        };
        self.put(Some(acquired), OwnershipEvent::ProcessStarted(process));
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn in_micros(&self, micros: i64) -> Timestamp {
        Timestamp(self.now.0 + micros)
    }

    /// A connection that has the advisory lock.
    pub fn locked(&mut self, generation: u32) {
        let generation = Generation(generation);
        self.put(
            None,
            StreamEvent::Identified {
                system_id: 7_300_000_000_000_000_001,
                timeline: 1,
                server_version: 170_000,
                database: Oid(16_384),
            },
        );
        self.put(None, StreamEvent::LockAcquired { backend_pid: 4_242, generation });
    }

    pub fn stream(&mut self, generation: u32, from: u64) {
        self.locked(generation);
        let generation = Generation(generation);
        let name = "electric_slot_default".to_owned();
        let (confirmed, restart) = (Lsn(from), Lsn(from));
        self.put(None, StreamEvent::SlotObserved { name, confirmed, restart, created: false });
        self.put(None, StreamEvent::Started { generation, from: Lsn(from) });
    }

    /// A shape that waits for its snapshot.
    pub fn registered(&mut self, hash: u64, micros: u64, oid: u32, after_lsn: u64) -> Sid {
        self.sids += 1;
        let (sid, oid) = (Sid(self.sids), Oid(oid));
        let handle = Handle { hash, micros };
        let created =
            self.put(None, ShapeEvent::Created { sid, handle, definition: DefinitionHash(hash), oid });
        let after = self.seq;
        self.put(Some(created), ShapeEvent::Routed { sid, after, after_lsn: Lsn(after_lsn) });
        self.put(None, ShapeEvent::PublicationReady { sid, oid, waited_ms: 3 });
        sid
    }

    /// A shape with its snapshot.
    pub fn shape(&mut self, hash: u64, micros: u64, oid: u32, after_lsn: u64) -> Sid {
        let sid = self.registered(hash, micros, oid, after_lsn);
        self.put(None, ShapeEvent::SnapshotStarted { sid, attempt: 1 });
        let snapshot = PgSnapshot { xmin: 700, xmax: 700, xip: Vec::new() };
        self.put(None, ShapeEvent::SnapshotVisible { sid, snapshot, lsn: Lsn(after_lsn) });
        self.put(None, ShapeEvent::SnapshotCompleted { sid, rows: 120, bytes: 24_000 });
        sid
    }

    pub fn start_writer(&mut self, sid: Sid, incarnation: u32) {
        let incarnation = Incarnation(incarnation);
        let started = self.put(None, ConsumerEvent::Started { sid, incarnation });
        let ready = ConsumerEvent::Ready { sid, incarnation, recovered: Lsn(0), trimmed_bytes: 0 };
        self.put(Some(started), ready);
    }

    pub fn route(&mut self, generation: u32, lsn: u64, changes: u64, sids: &[Sid]) -> Seq {
        self.route_committed(generation, lsn, changes, sids, 0)
    }

    /// A transaction that was committed so long ago.
    pub fn route_committed(
        &mut self,
        generation: u32,
        lsn: u64,
        changes: u64,
        sids: &[Sid],
        micros_ago: i64,
    ) -> Seq {
        self.seq = self.seq.next();
        let routed = StreamEvent::TxnRouted {
            seq: self.seq,
            generation: Generation(generation),
            lsn: Lsn(lsn),
            xid: Xid(800 + self.seq.0 as u32),
            committed_at: Timestamp(self.now.0 - micros_ago),
            changes,
            bytes: changes * 96,
            set: sids.iter().copied().collect::<SidSet>(),
        };
        self.put(None, routed);
        self.seq
    }

    pub fn nothing(&mut self, generation: u32, upto: u64, txns: u64) {
        self.put(
            None,
            StreamEvent::RoutedNothing { generation: Generation(generation), upto: Lsn(upto), txns },
        );
    }

    pub fn flushed(&mut self, sids: &[Sid], upto: Seq) {
        let shapes = sids.iter().map(|sid| (*sid, upto)).collect();
        self.put(None, FlushEvent::Flushed { shapes });
    }

    pub fn ack(&mut self, lsn: u64) {
        self.put(None, StreamEvent::AckSent { lsn: Lsn(lsn), cause: AckCause::Commit });
    }

    pub fn exit(&mut self, sid: Sid, incarnation: u32, cause: ExitCause, owing: Option<Seq>) -> EventId {
        let (incarnation, pending) = (Incarnation(incarnation), u64::from(owing.is_some()));
        self.put(None, ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest: owing, pending })
    }
}

/// `94359551-1773923988150221` and so on: created between the two moments that the report names.
const EDISON_FIRST: u64 = 1_773_922_140_000_000; // 2026-03-19 12:09
const EDISON_LAST: u64 = 1_773_972_420_000_000; // 2026-03-20 02:07

/// 33 shapes stuck at one transaction: their writers ended in order while they owed it.
pub fn edison() -> Story {
    let mut story = Story::new("2026-03-19T12:00:00Z");
    story.own(4, PreviousEnd::Released, "edison-1", 17, "1.7.12");
    story.stream(9, 8_400_000_000);
    // Every shape flushes one transaction, but for the two that never flushed any.
    let silent = [(86_559_626, 1_773_922_634_786_024), (94_359_551, 1_773_923_988_150_221)];
    let mut created: Vec<(u64, u64)> = (0..31)
        .map(|n: u64| (10_000_019 + n * 1_300_021, EDISON_FIRST + n * (EDISON_LAST - EDISON_FIRST) / 30))
        .chain(silent)
        .collect();
    created.sort_by_key(|(_, micros)| *micros);
    let (mut stuck, mut lsn) = (Vec::new(), 8_400_000_000);
    for (index, (hash, micros)) in created.iter().enumerate() {
        story.at(&Timestamp(*micros as i64).to_string());
        let sid = story.shape(*hash, *micros, 16_401 + (index as u32 % 2), lsn);
        story.start_writer(sid, 1);
        stuck.push(sid);
        lsn += 1_000_000;
        if !silent.contains(&(*hash, *micros)) {
            story.later(5_000_000);
            let seq = story.route(9, lsn, 12, &[sid]);
            story.later(200_000);
            story.flushed(&[sid], seq);
            story.ack(lsn + 1);
        }
    }
    // Others, on the same tables, go on all the time.
    let healthy: Vec<Sid> = (0..7)
        .map(|n| {
            story.later(1_000_000);
            let sid =
                story.shape(700_000_001 + n, EDISON_LAST + 1_000_000 * (n + 1), 16_401 + (n as u32 % 2), lsn);
            story.start_writer(sid, 1);
            sid
        })
        .collect();
    story.at("2026-03-20T02:09:00Z");
    let seq = story.route(9, 8_458_315_974, 40, &healthy);
    story.later(150_000);
    story.flushed(&healthy, seq);
    story.ack(8_458_315_975);
    story.at("2026-03-20T02:09:30Z");
    let owed = story.route(9, 8_458_315_976, 533, &stuck);
    story.later(40_000);
    for sid in &stuck {
        story.later(1_000);
        story.exit(*sid, 1, ExitCause::Drained, Some(owed));
    }
    // The rest of the night.
    let (first, last) = (9_294_634_792, 10_032_775_168_u64);
    story.at("2026-03-20T05:30:00Z");
    let seq = story.route(9, first, 2, &healthy[..3]);
    story.later(150_000);
    story.flushed(&healthy[..3], seq);
    for step in 1..=9 {
        story.later(600_000_000);
        let seq = story.route(9, first + step * (last - 1_000_000 - first) / 9, 25, &healthy);
        story.later(150_000);
        story.flushed(&healthy, seq);
    }
    story.at("2026-03-20T07:12:44Z");
    story.nothing(9, last, 118);
    story
}

/// 518 shapes that owe: 402 stuck at one transaction, 115 at work on another, 1 on the latest; then the same
/// 52 minutes later.
pub fn faraday() -> Story {
    let mut story = Story::new("2026-03-19T22:00:00Z");
    story.own(11, PreviousEnd::Released, "faraday-2", 31, "1.7.12");
    story.stream(21, 3_470_000_000_000);
    let (first, last) = (1_773_994_014_000_000_u64, 1_774_290_517_000_000_u64); // 03-20 08:06 to 03-23 18:28
    let early = 1_773_960_000_000_000_u64; // some of the active are older than all of the stuck
    let mut created: Vec<(u64, bool)> = (0..402_u64)
        .map(|n| (first + n * (last - first) / 401, true))
        .chain((0..116_u64).map(|n| (early + n * (last - early) / 115 + 7, false)))
        .collect();
    created.sort_unstable();
    let (mut stuck, mut active) = (Vec::new(), Vec::new());
    for (index, (micros, is_stuck)) in created.iter().enumerate() {
        story.at(&Timestamp(*micros as i64).to_string());
        let hash = 20_000_003 + index as u64 * 90_001;
        let sid = story.shape(hash, *micros, 24_001 + (index as u32 % 3), 3_470_000_000_000);
        story.start_writer(sid, 1);
        if *is_stuck { &mut stuck } else { &mut active }.push(sid);
    }
    let all: Vec<Sid> = stuck.iter().chain(&active).copied().collect();
    story.at("2026-03-24T03:10:00Z");
    let seq = story.route(21, 3_471_528_106_046, 18, &all);
    story.later(400_000);
    story.flushed(&all, seq);
    story.ack(3_471_528_106_047);
    story.at("2026-03-24T03:15:00Z");
    let owed = story.route(21, 3_471_528_106_048, 440, &all);
    // Idle writers are put to sleep, whatever they owe.
    for sid in &stuck {
        story.later(500);
        story.exit(*sid, 1, ExitCause::Suspended, Some(owed));
    }
    story.later(400_000);
    story.flushed(&active, owed);
    story.at("2026-03-24T08:59:00Z");
    story.route(21, 3_487_230_289_368, 4_880, &active[..115]);
    story.later(200_000);
    story.route(21, 3_487_446_326_072, 1, &active[115..]);
    story.at("2026-03-24T09:00:00Z");
    story.at("2026-03-24T09:04:00Z");
    story.flushed(&active, Seq(4));
    // Seven shapes are deleted by their clients, all of them at work; five come anew.
    for sid in active.drain(..7) {
        story.later(20_000_000);
        let ended = story
            .put(None, ShapeEvent::Invalidated { sid, cause: shapefold::events::InvalidationCause::Deleted });
        story.put(Some(ended), ShapeEvent::Unrouted { sid });
    }
    for n in 0..5_u64 {
        story.later(60_000_000);
        let sid = story.shape(900_000_001 + n, 1_774_343_400_000_000 + n, 24_001, 3_487_446_326_072);
        story.start_writer(sid, 1);
        active.push(sid);
    }
    story.at("2026-03-24T09:51:30Z");
    story.route(21, 3_488_640_000_000, 9_760, &active[..113]);
    story.later(200_000);
    story.route(21, 3_488_740_456_624, 3, &active[113..]);
    story
}

/// Two instances over one directory: the new one takes over while the old one, told to end, goes on.
pub fn ampere() -> Story {
    let mut story = Story::new("2026-06-17T09:00:00Z");
    story.own(1, PreviousEnd::None, "ampere-1", 41, "1.7.7");
    story.stream(1, 90_000_000);
    let sids: Vec<Sid> = (0..6)
        .map(|n| {
            story.later(1_000_000);
            let sid = story.shape(500_000_009 + n, 1_781_686_801_000_000 + n, 16_500, 90_000_000);
            story.start_writer(sid, 1);
            sid
        })
        .collect();
    let seq = story.route(1, 90_100_000, 9, &sids);
    story.later(100_000);
    story.flushed(&sids, seq);
    story.ack(90_100_001);
    story.at("2026-06-17T13:39:58Z");
    story.own(2, PreviousEnd::Released, "ampere-2", 7, "1.7.8");
    let new = story.epoch;
    story.epoch = Epoch(1);
    // Five symptoms, one cause.
    for (seconds, sid, stage, file) in [
        (2, sids[0], Stage::Open, FileKind::ShapeLog),
        (9, sids[1], Stage::Rename, FileKind::Snapshot),
        (31, sids[2], Stage::Read, FileKind::Index),
        (64, sids[3], Stage::Write, FileKind::ShapeLog),
        (101, sids[4], Stage::Sync, FileKind::Directory),
    ] {
        story.later(seconds * 1_000_000);
        let class = FaultClass::Vanished;
        story.put(None, OwnershipEvent::StorageFault { class, stage, file, sid: Some(sid), count: 3 });
    }
    story.later(30_000_000);
    story.put(None, OwnershipEvent::DrainStarted { cause: DrainCause::Signal });
    story.at("2026-06-17T13:44:00Z");
    story.epoch = new;
    story.stream(2, 90_100_001);
    story.at("2026-06-17T14:08:33Z");
    let seq = story.route(2, 90_200_000, 4, &sids);
    for sid in &sids {
        story.start_writer(*sid, 2);
    }
    story.later(100_000);
    story.flushed(&sids, seq);
    story.ack(90_200_001);
    story
}

/// A deploy in order: the old process drains, the new one goes on.
pub fn deploy() -> Story {
    let mut story = Story::new("2026-06-18T10:00:00Z");
    story.own(1, PreviousEnd::None, "ampere-1", 41, "1.7.7");
    story.stream(1, 90_000_000);
    let sids: Vec<Sid> = (0..3)
        .map(|n| {
            story.later(1_000_000);
            let sid = story.shape(600_000_007 + n, 1_781_776_801_000_000 + n, 16_500, 90_000_000);
            story.start_writer(sid, 1);
            sid
        })
        .collect();
    story.at("2026-06-18T10:29:59Z");
    let seq = story.route(1, 90_100_000, 9, &sids);
    story.later(100_000);
    story.flushed(&sids[..1], seq);
    story.at("2026-06-18T10:30:00Z");
    let drain = story.put(None, OwnershipEvent::DrainStarted { cause: DrainCause::Signal });
    for sid in &sids {
        let (incarnation, cause) = (Incarnation(1), ExitCause::Drained);
        story.put(Some(drain), ConsumerEvent::Stopping { sid: *sid, incarnation, cause });
    }
    story.flushed(&sids[1..2], seq);
    story.exit(sids[0], 1, ExitCause::Drained, None);
    story.exit(sids[1], 1, ExitCause::Drained, None);
    story.exit(sids[2], 1, ExitCause::Drained, Some(seq));
    story.put(
        None,
        StreamEvent::Stopped {
            generation: Generation(1),
            cause: StopCause::Drain,
            received: Lsn(90_100_000),
        },
    );
    story.put(None, OwnershipEvent::Released { epoch: Epoch(1), pending: 1, acked: Lsn(0) });
    story.later(2_000_000);
    story.own(2, PreviousEnd::Released, "ampere-2", 7, "1.7.8");
    story.stream(2, 90_000_000);
    story.put(
        None,
        StreamEvent::TxnRedelivered { seq, generation: Generation(2), set: [sids[2]].into_iter().collect() },
    );
    story.start_writer(sids[2], 2);
    story.later(100_000);
    story.flushed(&sids[2..], seq);
    story.ack(90_100_001);
    story
}

/// The five hypotheses of incident 3 about how a shape comes to owe for ever, one shape each.
pub fn hypotheses() -> Story {
    let mut story = Story::new("2026-03-25T08:00:00Z");
    story.own(1, PreviousEnd::None, "hertz-1", 5, "1.7.12");
    story.stream(1, 50_000_000);
    let sids: Vec<Sid> = (0..6)
        .map(|n| {
            story.later(1_000_000);
            let sid = story.shape(800_000_017 + n, 1_774_425_601_000_000 + n, 16_600, 50_000_000);
            story.start_writer(sid, 1);
            sid
        })
        .collect();
    let seq = story.route(1, 50_100_000, 3, &sids);
    story.later(100_000);
    story.flushed(&sids, seq);
    story.ack(50_100_001);
    let incarnation = Incarnation(1);
    // H1: put to sleep while it owes.
    story.later(60_000_000);
    let seq = story.route(1, 50_200_000, 3, &sids[..1]);
    let cause = ExitCause::Suspended;
    let stopping = story.put(None, ConsumerEvent::Stopping { sid: sids[0], incarnation, cause });
    story.put(
        Some(stopping),
        ConsumerEvent::Exited { sid: sids[0], incarnation, cause, pending_oldest: Some(seq), pending: 1 },
    );
    // H2: ends in order before it has flushed.
    story.later(60_000_000);
    let seq = story.route(1, 50_300_000, 3, &sids[1..2]);
    story.exit(sids[1], 1, ExitCause::Drained, Some(seq));
    // H3: panics over the transaction.
    story.later(60_000_000);
    let seq = story.route(1, 50_400_000, 3, &sids[2..3]);
    story.exit(sids[2], 1, ExitCause::Panicked, Some(seq));
    // H4: a delivery and a suspension cross.
    story.later(60_000_000);
    let stopping = story.put(None, ConsumerEvent::Stopping { sid: sids[3], incarnation, cause });
    let seq = story.route(1, 50_500_000, 3, &sids[3..4]);
    story.put(
        Some(stopping),
        ConsumerEvent::Exited { sid: sids[3], incarnation, cause, pending_oldest: Some(seq), pending: 1 },
    );
    // H5: the registry hands out a writer that is gone.
    story.later(60_000_000);
    story.exit(sids[4], 1, ExitCause::Suspended, None);
    story.later(1_000_000);
    story.route(1, 50_600_000, 3, &sids[4..5]);
    story.later(120_000_000);
    story.nothing(1, 50_700_000, 20);
    story
}

pub fn all() -> Vec<(&'static str, Story)> {
    let mut all = vec![
        ("edison", edison()),
        ("faraday", faraday()),
        ("ampere", ampere()),
        ("deploy", deploy()),
        ("hypotheses", hypotheses()),
    ];
    all.extend(crate::hypotheses::all());
    all.push(("week", crate::week::week()));
    all
}

pub fn export(story: &Story, path: &Path) {
    let mut writer =
        ExportWriter::create(path, r#"{"program":"tests/forensics/golden.rs"}"#).expect("creates");
    for recorded in &story.events {
        writer.push(&Entry { id: recorded.id, bytes: encode(recorded) }).expect("writes");
    }
    writer.finish().expect("finishes");
}

/// The checked-in files hold what this code makes. Run once with SHAPEFOLD_WRITE_FIXTURES set to write them.
#[test]
fn the_checked_in_journals_are_these() {
    for (name, story) in all() {
        let path = directory().join(format!("{name}.sfx"));
        // One that is there is never changed: remove it first.
        if std::env::var_os(WRITE_VARIABLE).is_some() && !path.exists() {
            fs::create_dir_all(directory()).expect("makes the directory");
            export(&story, &path);
        }
        let file = ExportFile::open(&path).expect("opens");
        let readings: Vec<Reading> = file.read(EventId(1)).collect();
        let made = story
            .events
            .iter()
            .map(|recorded| Reading::Entry(Entry { id: recorded.id, bytes: encode(recorded) }));
        assert!(readings == made.collect::<Vec<_>>(), "{name}: write the journals anew");
    }
}
