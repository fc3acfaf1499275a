//! Logs that are rewritten while everything else goes on, and what clients make of them afterwards.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use shapefold::domain::{Handle, Incarnation, Lsn, Offset, Sid};
use shapefold::engine::Input;
use shapefold::events::{DestructionTarget, IntentId};
use shapefold::runtime::faults;
use shapefold::runtime::writers::Command;
use shapefold::shape_log::{
    Preparation, Prepared, Read, ShapeFiles, ShapeLogError, ShapeView, messages, prepare,
};

use super::checks::by_id;
use super::clients::{Mark, apply};
use super::driver::pool_of;
use super::world::World;

/// States of clients that are remembered.
const MARKS_MAX: usize = 40;

/// As `runtime::compaction` has it, without the thread.
#[derive(Debug, Default)]
pub struct Compactor {
    pub asked: VecDeque<(Sid, Incarnation)>,
    pub busy: Option<Sid>,
    prepared: Option<Box<Prepared>>,
}

impl World {
    /// Makes a generation of the next log, if none is being replaced.
    pub fn compactor_works(&mut self) {
        let chunk_bytes = self.chunk_bytes;
        let Some(policy) = self.compaction else { return };
        let Some(disk) = self.shared_disk() else { return };
        let Some(process) = &mut self.process else { return };
        if process.compactor.busy.is_some() {
            return;
        }
        let Some((sid, incarnation)) = process.compactor.asked.pop_front() else { return };
        let Some(shape) = process.shapes.get(&sid).cloned() else { return };
        let view = shape.reader.view();
        if view.incarnation() != incarnation {
            return;
        }
        let files = ShapeFiles::open(disk, World::data(), shape.handle);
        let stop = AtomicBool::new(false);
        let made = prepare(&files, &shape.definition, &view, (policy, chunk_bytes), &stop);
        if self.died_on_disk() {
            return;
        }
        let Some(process) = &mut self.process else { return };
        match made {
            Ok(Preparation::Prepared(prepared)) => {
                process.compactor.busy = Some(sid);
                process.compactor.prepared = Some(prepared);
                process.messages.push_back(Input::LogPrepared { sid, incarnation });
            }
            Ok(Preparation::Nothing) => {}
            Ok(other) => self.fail(format!("a log is not compacted: {other:?}")),
            Err(ShapeLogError::Storage(fault)) => {
                self.stats.count("generations that could not be made");
                let whose = faults::is_damage(&fault).then_some(sid);
                process.messages.push_back(faults::input(fault, whose));
            }
            Err(error) => self.fail(format!("a log is not compacted: {error}")),
        }
    }

    pub fn compaction_refused(&mut self) {
        self.stats.count("generations of no use");
        let Some(process) = &mut self.process else { return };
        process.compactor.busy = None;
        process.compactor.prepared = None;
    }

    pub fn switch_log(&mut self, sid: Sid, incarnation: Incarnation, intent: IntentId) {
        if !self.durable.owner.open_intents.is_for(intent, DestructionTarget::ShapeLog(sid)) {
            self.fail(format!("O3: the log of shape {sid} is replaced before that is durable"));
        }
        let Some(process) = &mut self.process else { return };
        let prepared = process.compactor.prepared.take();
        let (Some(prepared), Some(shape)) = (prepared, process.shapes.get(&sid)) else {
            process.compactor.busy = None;
            self.input(Input::LogSwitched { sid, intent, outcome: None });
            return;
        };
        let files = ShapeFiles::open(Arc::clone(&process.files), World::data(), shape.handle);
        let command = Command::Switch { sid, incarnation, intent, files, prepared };
        process.pools[pool_of(sid)].commands.push_back(command);
    }

    /// From here on the log may be another, and say other things about the same offsets.
    pub fn note_rewritten(&mut self, handle: Handle, through: Lsn) {
        self.tell(|| format!("    {handle} is rewritten up to {through}"));
        self.served.remove(&handle);
        let compacted = self.compacted.entry(handle).or_default();
        *compacted = through.max(*compacted);
    }

    /// Remembers what a client has that is up to date.
    pub fn remember(&mut self, number: usize) {
        let client = &self.clients[number];
        let Some(handle) = client.handle else { return };
        let known = self.marks.iter().any(|mark| mark.handle == handle && mark.from == client.from);
        if !known && self.marks.len() < MARKS_MAX {
            self.marks.push(Mark { handle, from: client.from, rows: client.rows.clone() });
        }
    }

    /// Clients that come back with what they once had, and new ones, come to the rows of the table.
    pub fn check_from_everywhere(&mut self) {
        let Some(process) = &self.process else { return };
        let shapes: Vec<_> = process.service.values().cloned().collect();
        for shape in shapes {
            let kind = self.kind_of(shape.definition.hash());
            let expected = self.rows_of(kind, |_| true);
            let compacted = self.compacted.contains_key(&shape.handle);
            let fresh = Mark { handle: shape.handle, from: Offset::BeforeAll, rows: Default::default() };
            let marks: Vec<Mark> = std::mem::take(&mut self.marks);
            let own = marks.iter().filter(|mark| mark.handle == shape.handle).chain([&fresh]);
            for mark in own {
                self.stats.count("compared from everywhere");
                match follow(&shape.reader.view(), mark, compacted) {
                    Ok(rows) if by_id(&rows) == expected => {}
                    Ok(rows) => self.fail(format!(
                        "a client of {} that had come to {} has {:?}, not {expected:?}",
                        mark.handle,
                        mark.from,
                        by_id(&rows)
                    )),
                    Err(why) => self.fail(format!("a client of {} from {}: {why}", mark.handle, mark.from)),
                }
            }
            self.marks = marks;
        }
    }
}

type Rows = std::collections::BTreeMap<String, super::clients::Values>;

/// The rows of a client that goes on from there to the end.
fn follow(view: &ShapeView, mark: &Mark, compacted: bool) -> Result<Rows, String> {
    let (mut rows, mut from) = (mark.rows.clone(), mark.from);
    loop {
        let range = match view.read(from).map_err(|error| error.to_string())? {
            Read::Range(range) => range,
            other => return Err(format!("{other:?}")),
        };
        let (end, up_to_date) = (range.end, range.up_to_date);
        for piece in range.body {
            for message in messages(&piece.map_err(|error| error.to_string())?) {
                let message: Value = serde_json::from_slice(message).expect("a message is JSON");
                apply(&mut rows, &message, compacted)?;
            }
        }
        if up_to_date {
            return Ok(rows);
        }
        from = end;
    }
}
