//! The journal thread: group commits, checkpoints, and the places where it can be cut off.

use shapefold::journal::{Entry, Journal};

use super::world::{Notice, Request, World};

impl World {
    /// One group commit of the journal thread: the requests that are queued, as one batch.
    pub fn journal_works(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        if process.requests.is_empty() {
            return false;
        }
        let mut batch = Vec::new();
        let mut wanted = false;
        let take = 1 + self.choices.below(process.requests.len());
        for _ in 0..take {
            let Some(process) = &mut self.process else { return true };
            match process.requests.pop_front() {
                Some(Request::Append { entries, now }) => {
                    batch.extend(entries);
                    wanted |= now;
                }
                Some(Request::Checkpoint { upto, state }) => {
                    if !self.append(&std::mem::take(&mut batch)) {
                        return true;
                    }
                    wanted = false;
                    self.checkpointings += 1;
                    if self.journal.checkpoint(upto, &state).is_err() {
                        self.stats.count("stopped by a checkpoint that failed");
                        self.dies_with_the_machine = false;
                        self.crash();
                        return true;
                    }
                    self.stats.count("checkpoints");
                    self.settled();
                    if let Some(process) = &mut self.process {
                        process.notices.push_back(Notice::Checkpointed { upto, state });
                    }
                    if self.point("after a checkpoint") {
                        return true;
                    }
                }
                Some(Request::Trim { before }) => {
                    if !self.append(&std::mem::take(&mut batch)) {
                        return true;
                    }
                    if self.journal.trim(before).is_err() {
                        self.fail("the journal cannot be trimmed");
                    }
                }
                None => {}
            }
        }
        if self.append(&batch) && wanted {
            self.journal_syncs();
        }
        true
    }

    /// False where the process died.
    fn append(&mut self, batch: &[Entry]) -> bool {
        if batch.is_empty() {
            return self.process.is_some();
        }
        if self.point("before an append") {
            return false;
        }
        self.appends += 1;
        if self.journal.append(batch).is_err() {
            self.stats.count("stopped by an append that failed");
            self.crash();
            return false;
        }
        if let Some(process) = &mut self.process {
            process.unsynced = true;
        }
        !self.point("between append and sync")
    }

    pub fn journal_syncs(&mut self) {
        if self.process.is_none() {
            return;
        }
        self.syncs += 1;
        if self.journal.sync().is_err() {
            self.stats.count("stopped by a sync of the journal that failed");
            self.crash();
            return;
        }
        self.settled();
        self.point("between sync and effects");
    }

    fn settled(&mut self) {
        self.advance_durable();
        let durable = self.journal.durable();
        if let Some(process) = &mut self.process {
            process.unsynced = false;
            process.notices.push_back(Notice::Durable(durable));
        }
    }

    /// Asks for a checkpoint of everything that the journal has been handed.
    pub fn ask_for_checkpoint(&mut self) {
        let Some(process) = &mut self.process else { return };
        if process.checkpointing || !process.entries.is_empty() {
            return;
        }
        process.checkpointing = true;
        let state = process.core.engine().state();
        let (upto, state) = (state.last, state.to_bytes());
        process.requests.push_back(Request::Checkpoint { upto, state });
    }
}
