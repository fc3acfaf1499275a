//! Peace: what everything comes to when nothing goes wrong any more.

use std::time::Duration;

use crate::domain::Timestamp;
use crate::engine::Input;

use crate::testing::model::world::World;

/// More rounds than any run has been seen to need, by far.
const QUIET_ROUNDS_MAX: usize = 400;

impl World {
    /// Nothing goes wrong any more: everything must come to an end by itself.
    pub fn quiesce(&mut self) {
        while !self.postgres.running.is_empty() {
            self.postgres.commit(0, self.now, 1);
        }
        self.postgres.reveal_before(Timestamp(i64::MAX));
        self.postgres.insert.0 += 8;
        let target = self.postgres.insert;
        for _ in 0..QUIET_ROUNDS_MAX {
            if self.failure.is_some() {
                return;
            }
            if self.unfinished(target).is_none() {
                return self.check_end();
            }
            self.quiet_round();
        }
        if let Some(why) = self.unfinished(target) {
            self.fail(format!("no end is reached: {why}"));
        }
    }

    pub fn quiet_round(&mut self) {
        if self.process.is_none() {
            return self.boot();
        }
        self.settle();
        self.connect();
        self.settle();
        while self.stream_next() {}
        self.send_keepalive();
        self.settle();
        for sid in self.snapshot_tasks() {
            self.snapshot_works(sid);
        }
        self.settle();
        for (sid, incarnation) in self.writers() {
            self.writer_works(sid, incarnation, usize::MAX);
        }
        self.flush(&self.writers());
        for (sid, incarnation) in self.writers() {
            self.writer_obeys(sid, incarnation);
        }
        self.settle();
        while self.process.as_ref().is_some_and(|process| !process.trashing.is_empty()) {
            self.trash_works(0);
        }
        self.check_registry();
        self.audit();
        self.now = self.now.plus(Duration::from_millis(300));
        self.send(Input::Tick);
        self.settle();
    }

    /// Everything that is on its way arrives.
    pub fn settle(&mut self) {
        for _ in 0..20 {
            self.perform_all();
            while self.take_message() {}
        }
    }
}
