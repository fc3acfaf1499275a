//! Clients: each follows one shape as an HTTP client does, and keeps its rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use shapefold::domain::{Handle, Lsn, Offset};
use shapefold::runtime::handle::{LiveShape, Phase};
use shapefold::shape_log::{Read, ShapeLogError, ShapeView, SnapshotFollow, messages};

use super::postgres::KINDS;
use super::tasks::poll_now;
use super::world::{Mode, Mutation, World};

pub type Values = BTreeMap<String, String>;

pub struct Client {
    pub kind: usize,
    pub handle: Option<Handle>,
    pub from: Offset,
    /// By the key on the wire.
    pub rows: BTreeMap<String, Values>,
    pub refetches: u64,
    /// The last answer reached the end of the log.
    pub up_to_date: bool,
    /// A request in the making: what was looked at first, and what was not looked at yet.
    looking: Option<Looking>,
    following: Option<(Arc<LiveShape>, SnapshotFollow, Vec<u8>)>,
}

/// What a client of a shape had at an offset.
pub struct Mark {
    pub handle: Handle,
    pub from: Offset,
    pub rows: BTreeMap<String, Values>,
}

struct Looking {
    shape: Arc<LiveShape>,
    mark: Option<Lsn>,
    view: Option<Arc<ShapeView>>,
}

/// What was answered for a handle: two bodies for one question must never exist.
#[derive(Default)]
pub struct Served {
    /// By where they begin: where they ended, whether that was the end of a chunk, and their bytes.
    ranges: BTreeMap<Offset, (Offset, bool, Vec<u8>)>,
    messages: BTreeMap<Offset, Vec<u8>>,
    upto: Option<Offset>,
}

impl Client {
    pub fn new(kind: usize) -> Client {
        Client {
            kind,
            handle: None,
            from: Offset::BeforeAll,
            rows: BTreeMap::new(),
            refetches: 0,
            up_to_date: false,
            looking: None,
            following: None,
        }
    }

    /// The connection to a process that died.
    pub fn disconnect(&mut self) {
        self.looking = None;
        self.following = None;
        self.up_to_date = false;
    }

    fn refetch(&mut self) {
        self.disconnect();
        self.handle = None;
        self.from = Offset::BeforeAll;
        self.rows.clear();
        self.refetches += 1;
    }
}

impl World {
    /// A client does the next thing.
    pub fn client_works(&mut self, number: usize) {
        if !self.process.as_ref().is_some_and(|process| process.ready) {
            return;
        }
        if self.clients[number].following.is_some() {
            return self.client_follows(number);
        }
        if self.clients[number].looking.is_none() {
            self.client_asks(number);
            if self.choices.chance(30) {
                return;
            }
        }
        self.client_reads(number);
    }

    /// A client forgets what it has, or becomes interested in something else.
    pub fn client_starts_over(&mut self, number: usize) {
        let kind = self.choices.below(KINDS.len());
        self.clients[number] = Client::new(kind);
    }

    fn client_asks(&mut self, number: usize) {
        let (kind, handle) = (self.clients[number].kind, self.clients[number].handle);
        let hash = self.definitions[kind].hash();
        let Some(process) = &self.process else { return };
        let successor = process.service.values().any(|shape| shape.definition.hash() == hash);
        let found = match handle {
            Some(handle) => process.service.get(&handle).cloned(),
            None => process.service.values().find(|shape| shape.definition.hash() == hash).cloned(),
        };
        let found = found.filter(|shape| shape.phase() != Phase::Ended);
        match (found, handle) {
            (Some(shape), _) => {
                let early = self.mutation == Mutation::ViewBeforeMark;
                let view = early.then(|| shape.reader.view());
                let mark = (!early).then(|| shape.published());
                self.clients[number].looking = Some(Looking { shape, mark, view });
            }
            // It is told of the shape that it is to fetch instead: there has to be one, first.
            (None, Some(handle)) if successor => self.client_is_refused(number, handle),
            (None, _) => self.create(kind),
        }
    }

    /// 409: it must be in the journal why.
    fn client_is_refused(&mut self, number: usize, handle: Handle) {
        self.clients[number].refetch();
        self.gone.insert(handle);
        match self.explained(handle) {
            Some(_) => self.stats.count("refetches"),
            None => self.fail(format!("a client is refused {handle}, and the journal does not say why")),
        }
    }

    fn client_reads(&mut self, number: usize) {
        let Some(Looking { shape, mark, view }) = self.clients[number].looking.take() else { return };
        // A request that is under way when the shape ends may still be answered from it.
        if shape.phase() == Phase::Ended && self.choices.chance(70) {
            if self.clients[number].handle == Some(shape.handle) {
                self.client_is_refused(number, shape.handle);
            }
            return;
        }
        let view = view.unwrap_or_else(|| shape.reader.view());
        let mark = mark.unwrap_or_else(|| shape.published());
        let from = self.clients[number].from;
        match view.read(from) {
            Ok(Read::Range(range)) => {
                let (end, up_to_date) = (range.end, range.up_to_date);
                let mut body = Vec::new();
                for piece in range.body {
                    match piece {
                        Ok(piece) => body.extend_from_slice(&piece),
                        Err(error) => return self.client_meets(&shape, &error),
                    }
                }
                self.client_takes(number, shape.handle, end, !up_to_date, &body);
                if up_to_date {
                    self.check_committed_state(number, mark.max(view.last().tx()));
                }
            }
            Ok(Read::Pending { chunk }) if view.snapshot_started(chunk) => {
                let follow = SnapshotFollow::new(Arc::clone(&shape.reader), chunk);
                self.clients[number].following = Some((shape, follow, Vec::new()));
            }
            // Waits. Beyond: what it has read came from a log that has yet to get it again.
            Ok(Read::Pending { .. }) => {}
            Ok(Read::Beyond) => self.stats.count("offsets beyond the log"),
            Err(error) => self.client_meets(&shape, &error),
        }
    }

    /// A disk that fails now and then makes for answers that fail. So does the end of a shape, if its snapshot
    /// was being written: who comes again is told to fetch again.
    fn client_meets(&mut self, shape: &LiveShape, error: &ShapeLogError) {
        self.stats.count("failed reads");
        let ended = matches!(error, ShapeLogError::SnapshotFailed) && shape.is_over();
        if ended || self.died_on_disk() {
            return;
        }
        if self.mode == Mode::PanicsOnly {
            self.fail(format!("P5: only writers fail here, and a reader meets: {error}"));
        }
        if let ShapeLogError::Storage(fault) = error
            && matches!(fault.class, shapefold::shape_log::FaultClass::Corrupt { .. })
        {
            self.fail(format!("a reader meets damage: {fault}"));
        }
    }

    /// Goes on with a snapshot chunk that is being written.
    fn client_follows(&mut self, number: usize) {
        let Some((shape, mut follow, mut body)) = self.clients[number].following.take() else { return };
        loop {
            match poll_now(follow.next()) {
                Some(Ok(Some(piece))) => body.extend_from_slice(&piece),
                Some(Ok(None)) => {
                    let chunk = match self.clients[number].from {
                        Offset::At { op: shapefold::domain::Op::At(chunk), .. } => chunk + 1,
                        _ => 0,
                    };
                    self.stats.count("followed chunks");
                    let end = Offset::snapshot_chunk(chunk);
                    return self.client_takes(number, shape.handle, end, true, &body);
                }
                // What was received of an answer that breaks off is thrown away.
                Some(Err(error)) => return self.client_meets(&shape, &error),
                None => {
                    self.clients[number].following = Some((shape, follow, body));
                    return;
                }
            }
        }
    }

    fn client_takes(&mut self, number: usize, handle: Handle, end: Offset, whole: bool, body: &[u8]) {
        let from = self.clients[number].from;
        self.tell(|| format!("    client {number} of {handle} {from}..{end}: {} bytes", body.len()));
        self.stats.count("answers");
        self.check_served(handle, from, end, whole, body);
        if end < from || (whole && end == from) {
            self.fail(format!("P4: an answer leads from {from} to {end}"));
        }
        let ended = self.process.as_ref().is_some_and(|process| !process.service.contains_key(&handle));
        if self.gone.contains(&handle) && !ended {
            self.fail(format!("L6: {handle} is served, and a client was told that it is gone"));
        }
        let compacted = self.compacted.contains_key(&handle);
        let client = &mut self.clients[number];
        client.handle = Some(handle);
        client.from = end;
        client.up_to_date = !whole;
        let mut wrong = None;
        for message in messages(body) {
            let message: Value = serde_json::from_slice(message).expect("a message is JSON");
            if let Err(why) = apply(&mut client.rows, &message, compacted) {
                wrong.get_or_insert(why);
            }
        }
        if let Some(why) = wrong {
            self.fail(format!("client {number} of {handle} after {from}: {why}"));
        }
    }

    /// One body for one question, over crashes too.
    fn check_served(&mut self, handle: Handle, from: Offset, end: Offset, whole: bool, body: &[u8]) {
        // Of a generation before this one it is not known what it had.
        let compacted = self.compacted.contains_key(&handle);
        let served = self.served.entry(handle).or_default();
        let mut wrong = None;
        if let Some((before, was_whole, bytes)) = served.ranges.get(&from) {
            let (short, long) =
                if bytes.len() <= body.len() { (&bytes[..], body) } else { (body, &bytes[..]) };
            if !long.starts_with(short) || (end == *before && long.len() != short.len()) {
                wrong = Some(format!("P2: other bytes than before from {from} to {end} (before: {before})"));
            } else if *was_whole && whole && end != *before {
                wrong = Some(format!("P2: a chunk after {from} ends at {end}, and ended at {before}"));
            }
        }
        let longer = served.ranges.get(&from).is_none_or(|(before, ..)| end >= *before);
        if longer {
            served.ranges.insert(from, (end, whole, body.to_vec()));
        }
        let mut seen = 0;
        for message in messages(body) {
            let Some(at) = offset_of(message) else { continue };
            seen += 1;
            match served.messages.get(&at) {
                Some(known) if known != message => wrong = Some(format!("P2: two messages at {at}")),
                Some(_) => {}
                None if !compacted && served.upto.is_some_and(|upto| at <= upto) => {
                    wrong = Some(format!("P1: a message at {at} appears where there was none"));
                }
                None => {
                    served.messages.insert(at, message.to_vec());
                }
            }
            if at <= from || at > end {
                wrong = Some(format!("P2: a message at {at} between {from} and {end}"));
            }
        }
        let expected =
            if from < end { served.messages.range((from_bound(from), to_bound(end))).count() } else { 0 };
        if seen < expected {
            wrong = Some(format!("P1: {seen} messages of {expected} from {from} to {end}"));
        }
        served.upto = served.upto.max((!end.is_virtual()).then_some(end));
        if let Some(why) = wrong {
            self.fail(format!("{why}, of {handle}"));
        }
    }
}

fn from_bound(from: Offset) -> std::ops::Bound<Offset> {
    std::ops::Bound::Excluded(from)
}

fn to_bound(end: Offset) -> std::ops::Bound<Offset> {
    std::ops::Bound::Included(end)
}

/// Where a message of the log is; rows of the snapshot and its end have no place of their own.
fn offset_of(message: &[u8]) -> Option<Offset> {
    let message: Value = serde_json::from_slice(message).expect("a message is JSON");
    let lsn: u64 = message["headers"]["lsn"].as_str()?.parse().ok()?;
    Some(Offset::new(Lsn(lsn), message["headers"]["op_position"].as_u64()?))
}

/// Of a compacted log a client may be told of the end of a row that it never had.
pub fn apply(rows: &mut BTreeMap<String, Values>, message: &Value, compacted: bool) -> Result<(), String> {
    let Some(operation) = message["headers"]["operation"].as_str() else { return Ok(()) };
    let key = message["key"].as_str().ok_or("a message without a key")?;
    let values = message["value"].as_object().ok_or("a message without a value")?;
    let values =
        values.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap_or("NULL").to_owned()));
    match (operation, rows.get_mut(key)) {
        ("insert", None) => {
            rows.insert(key.to_owned(), values.collect());
        }
        ("update", Some(row)) => row.extend(values),
        ("delete", Some(_)) => {
            rows.remove(key);
        }
        ("delete", None) if compacted => {}
        (operation, there) => {
            return Err(format!(
                "{operation} of {key}, which is {}there",
                if there.is_some() { "" } else { "not " }
            ));
        }
    }
    Ok(())
}
