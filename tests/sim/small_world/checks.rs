//! What must hold in every world, and at every end.

use shapefold::domain::{Lsn, Sid};
use shapefold::state::{Life, OwnerPhase, State};

use super::world::{Files, Instance, Protocol, Reader, World, concerns, lsn};

impl World {
    pub fn check(&mut self) {
        let owners = self.instances.iter().filter(|one| matches!(one, Instance::Owner(_))).count();
        if owners > 1 {
            self.fail("O1: two processes write to one directory");
        }
        let living: Vec<(Sid, Option<&Files>)> =
            living(&self.disk.state).map(|sid| (sid, self.disk.shapes.get(&sid))).collect();
        let confirmed = self.postgres.slot.unwrap_or_default();
        let mut why = None;
        for (sid, files) in living {
            let Some(files) = files else {
                why = Some(format!("shape {sid} lives in the journal and has no files"));
                break;
            };
            why = why.or_else(|| self.check_files(sid, files, confirmed));
        }
        if let Some(why) = why {
            self.fail(why);
        }
    }

    fn check_files(&self, sid: Sid, files: &Files, confirmed: Lsn) -> Option<String> {
        if !files.complete {
            return Some(format!("N6: shape {sid} lives, and its initial rows are not all there"));
        }
        let expected = self.expected(files)?;
        if !expected.starts_with(&files.log) {
            return Some(format!("S2: the log of shape {sid} holds {:?} of {expected:?}", files.log));
        }
        // Before the first connection is recorded every shape is of a history that has yet to begin.
        self.disk.state.stream.system_id?;
        let missing = expected.iter().find(|txn| lsn(**txn) < confirmed && !files.log.contains(txn));
        missing.map(|txn| format!("F1: transaction {txn} is acknowledged, and shape {sid} has not synced it"))
    }

    /// The transactions that the log must hold in the end.
    fn expected(&self, files: &Files) -> Option<Vec<u8>> {
        let initial = files.initial?;
        Some((initial..self.postgres.committed).filter(|txn| concerns(*txn, files.definition)).collect())
    }

    /// Whether the reader will look at the watermark next: only in a wrong protocol.
    pub fn looks(&self, who: usize) -> bool {
        self.bounds.protocol == Protocol::RecheckThenRead
            && !self.reader.decided
            && self.read(who, false).is_some_and(|next| {
                let on_disk =
                    next.shape.and_then(|sid| self.disk.shapes.get(&sid)).map_or(0, |files| files.log.len());
                next.seen.len() > self.reader.seen.len() && self.reader.offset >= on_disk
            })
    }

    /// What the reader is after it has asked this instance; `None` where it learns nothing new. With
    /// `check`, what it must not be told is noted as a failure in the reader: see [`World::check_end`].
    pub fn read(&self, who: usize, _check: bool) -> Option<Reader> {
        let mut next = self.reader.clone();
        let served = self.served(who);
        match (self.reader.shape, served) {
            (Some(sid), Some(answers)) if answers.iter().any(|answer| answer.sid == sid) => {
                let answer = answers.into_iter().find(|answer| answer.sid == sid)?;
                if self.reader.decided {
                    // It had decided for the tail: what was flushed meanwhile is not there any more.
                    let base = answer.rows.len() - answer.tail;
                    next.seen.extend_from_slice(&answer.rows[base.max(next.offset).min(answer.rows.len())..]);
                    next.offset = answer.rows.len();
                    next.decided = false;
                } else if answer.rows.len() > next.offset {
                    next.seen.extend_from_slice(&answer.rows[next.offset..]);
                    next.offset = answer.rows.len();
                }
            }
            (Some(sid), Some(_)) if self.is_gone(who, sid) => {
                next = Reader { gone: self.reader.gone.clone(), ..Reader::default() };
                next.gone.push(sid);
            }
            (None, Some(answers)) => {
                let answer = answers.into_iter().find(|answer| answer.definition == 0)?;
                next.shape = Some(answer.sid);
                next.initial = answer.initial;
                next.offset = answer.rows.len();
                next.seen = answer.rows;
            }
            (_, _) => return None,
        }
        (next != self.reader).then_some(next)
    }

    /// The shapes that this instance serves, with what a reader may see of each: all that is committed
    /// to the log from its owner, what is on disk from one that waits.
    fn served(&self, who: usize) -> Option<Vec<Answer>> {
        let mut answers = Vec::new();
        match &self.instances[who] {
            Instance::Down => return None,
            Instance::Waiting => {
                for sid in living(&self.disk.state) {
                    let files = self.disk.shapes.get(&sid)?;
                    answers.push(Answer::new(sid, files, &[])?);
                }
            }
            Instance::Owner(process) => {
                for sid in process.router.keys() {
                    let Some(files) = self.disk.shapes.get(sid).filter(|files| files.complete) else {
                        continue;
                    };
                    let tail = process.writers.get(sid).map_or(&[][..], |writer| &writer.tail);
                    answers.push(Answer::new(*sid, files, tail)?);
                }
            }
        }
        Some(answers)
    }

    /// Whether this instance answers that the shape is gone: what is durably decided only.
    fn is_gone(&self, who: usize, sid: Sid) -> bool {
        let ended = self.disk.state.shape(sid).is_none_or(|shape| shape.life == Life::Invalidated);
        ended && !self.process(who).is_some_and(|process| process.router.contains_key(&sid))
    }

    /// At an end: nothing more can happen by itself.
    pub fn check_end(&mut self) {
        let Some(owner) = (0..2).find(|who| self.process(*who).is_some()) else {
            return self.fail("it ends with no process that owns the directory");
        };
        let Some(process) = self.process(owner) else { return };
        let state = process.engine.state().clone();
        if state.owner.phase != OwnerPhase::Active {
            return self.fail(format!("it ends with an owner that is {:?}", state.owner.phase));
        }
        if !state.window.is_empty() {
            return self.fail("F3: it ends with transactions that are owed");
        }
        if state != *self.disk.state {
            return self.fail("it ends with a journal that folds to another state");
        }
        if self.postgres.slot.is_none_or(|confirmed| confirmed < state.stream.acked) {
            return self.fail("it ends with an acknowledgement that never arrived");
        }
        for (sid, shape) in &state.shapes {
            if shape.life != Life::Live {
                let why = format!("it ends with shape {sid} {:?}", shape.life);
                return self.fail(why);
            }
        }
        let files: Vec<_> = self.disk.shapes.iter().map(|(sid, files)| (*sid, files.clone())).collect();
        for (sid, files) in files {
            if !state.shapes.contains_key(&sid) {
                return self.fail(format!("it ends with files of shape {sid}, which is gone"));
            }
            if self.expected(&files).is_none_or(|expected| expected != files.log) {
                return self.fail(format!("S2: it ends with {:?} in the log of shape {sid}", files.log));
            }
        }
        self.check_reader();
    }

    /// P1: the reader has every row up to where it was told to be, once and in order.
    fn check_reader(&mut self) {
        let reader = &self.reader;
        let Some(sid) = reader.shape else { return };
        let Some(files) = self.disk.shapes.get(&sid) else {
            return self.fail(format!("the reader follows shape {sid}, which has no files"));
        };
        let same = files.log == reader.seen && files.initial == Some(reader.initial);
        if !same || reader.gone.contains(&sid) {
            let why = format!("P1: the reader of shape {sid} has {:?} of {:?}", reader.seen, files.log);
            self.fail(why);
        }
    }
}

/// What a reader may see of a shape.
struct Answer {
    sid: Sid,
    definition: u64,
    initial: u8,
    rows: Vec<u8>,
    /// So many of the rows are in memory only.
    tail: usize,
}

impl Answer {
    fn new(sid: Sid, files: &Files, tail: &[u8]) -> Option<Answer> {
        let rows = files.log.iter().chain(tail).copied().collect();
        Some(Answer { sid, definition: files.definition, initial: files.initial?, rows, tail: tail.len() })
    }
}

fn living(state: &State) -> impl Iterator<Item = Sid> {
    state.shapes.iter().filter(|(_, shape)| shape.life == Life::Live).map(|(sid, _)| *sid)
}
