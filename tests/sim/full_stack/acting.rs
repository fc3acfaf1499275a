//! What happens next: one action after another, then peace.

use std::time::Duration;

use shapefold::domain::{Sid, Timestamp};
use shapefold::journal::{FailPoint, Stage};
use shapefold::shape_log::SimFault;

use super::tasks::Panics;
use super::world::{Mode, Mutation, POOLS, World};
use shapefold::testing::model::Choices;

const ACTIONS: usize = 1_200;
/// More rounds than any run has been seen to need, by far.
const QUIET_ROUNDS_MAX: usize = 400;

/// One history, and after it peace.
pub fn run(choices: Choices, mutation: Mutation, mode: Mode) -> World {
    let mut world = World::new(choices, mutation, mode);
    world.trace = std::env::var_os("SHAPEFOLD_TRACE").is_some();
    for _ in 0..ACTIONS {
        if world.failure.is_some() {
            return world;
        }
        world.act();
    }
    world.quiesce();
    world
}

impl World {
    pub fn act(&mut self) {
        self.stats.actions += 1;
        self.now = self.now.plus(Duration::from_millis(self.choices.below(40) as u64));
        if self.process.is_none() {
            // The world goes on while nobody is there.
            if self.choices.chance(60) {
                self.boot();
            } else {
                self.postgres_works();
            }
            return;
        }
        match self.choices.below(100) {
            0 | 1 => self.turn_until_quiet(),
            2..=13 => self.postgres_works(),
            14..=19 => {
                self.stream_next();
            }
            20 => self.send_keepalive(),
            21..=33 => {
                self.journal_works();
            }
            34 => {
                if self.process.as_ref().is_some_and(|process| process.unsynced) {
                    self.journal_syncs();
                }
            }
            35..=42 => {
                self.take_notice();
            }
            43..=47 => {
                self.take_report();
            }
            48..=54 => {
                self.take_input();
            }
            55..=60 => {
                let count = 1 + self.choices.below(6);
                self.take_items(count);
            }
            61..=69 => {
                let number = self.choices.below(POOLS);
                self.pool_works(number);
            }
            70..=72 => {
                let number = self.choices.below(POOLS);
                self.pool_flushes(number);
            }
            73..=78 => {
                if let Some(sid) = self.choices.one(&self.snapshot_tasks()) {
                    self.snapshot_works(sid);
                }
            }
            79 => {
                let trashing = self.process.as_ref().map_or(0, |process| process.trashing.len());
                if trashing > 0 {
                    let number = self.choices.below(trashing);
                    self.trash_works(number);
                } else {
                    self.compactor_works();
                }
            }
            80..=82 => self.connect(),
            83..=94 => {
                let number = self.choices.below(self.clients.len());
                self.client_works(number);
            }
            95 | 96 => self.tick(),
            _ => self.rare(),
        }
    }

    /// What goes on inside and is not seen from the outside, and what goes wrong.
    fn rare(&mut self) {
        let wrong = self.mode == Mode::Everything;
        let breaks = wrong || self.mode == Mode::CrashesOnly;
        let what = self.choices.below(12);
        if what >= 4 && self.choices.below(self.calm) > 0 {
            return;
        }
        match what {
            0 => self.ask_for_live_writers(),
            1 => self.ask_for_checkpoint(),
            2 => {
                let number = self.choices.below(POOLS);
                self.now = self.now.plus(Duration::from_secs(1));
                self.pool_tells_idle(number);
            }
            3 => self.audit_views(),
            4 if breaks => self.disconnect(),
            5 if wrong => {
                let number = self.choices.below(self.clients.len());
                self.client_starts_over(number);
            }
            6 if breaks && self.choices.chance(30) => {
                self.dies_with_the_machine = self.choices.chance(50);
                self.stats.count("died when chance had it");
                self.crash();
            }
            7 if wrong && self.choices.chance(60) => self.drain(),
            8 if wrong => {
                if let Some(sid) = self.choices.one(&self.snapshot_tasks()) {
                    self.snapshot_fails(sid);
                }
            }
            9 if wrong => self.disk_fails(),
            10 if wrong => {
                let (stage, count) = match self.choices.below(3) {
                    0 => (Stage::Append, self.appends),
                    1 => (Stage::Checkpoint, self.checkpointings),
                    _ => (Stage::Sync, self.syncs),
                };
                if self.choices.chance(20) {
                    let nth = count + 1 + self.choices.below(20) as u64;
                    self.journal.fail_at(FailPoint { stage, nth });
                }
            }
            11 if wrong && self.choices.chance(30) => {
                let sids: Vec<_> = match &self.process {
                    Some(process) => process.shapes.keys().copied().collect(),
                    None => Vec::new(),
                };
                if let Some(sid) = self.choices.one(&sids) {
                    self.invalidate(sid);
                }
            }
            _ => {}
        }
    }

    fn disk_fails(&mut self) {
        let calls = self.disk.calls() + 1 + self.choices.below(20) as u64;
        let fault = match self.choices.below(3) {
            0 => SimFault::Errno(5),
            1 => SimFault::Errno(28),
            _ => SimFault::Short(self.choices.below(30)),
        };
        self.disk.fail_call(calls, fault);
    }

    /// Whether the writer of this shape panics when it is handed the next thing, and where.
    pub fn panics(&mut self, sid: Sid) -> Option<Panics> {
        let spent = self.panics.get(&sid).copied().unwrap_or_default();
        let panics = match self.mode {
            // As often as it is replaced, and no more.
            Mode::PanicsOnly => spent < self.policy.writer_attempts_max && self.choices.chance(20),
            Mode::Everything => {
                (self.cursed && sid.0.is_multiple_of(3)) || self.choices.below(30 * self.calm) == 0
            }
            Mode::CrashesOnly | Mode::Nothing => false,
        };
        if !panics {
            return None;
        }
        *self.panics.entry(sid).or_default() += 1;
        self.stats.count("panics asked for");
        Some(match self.choices.below(2) {
            0 => Panics::WhenShown,
            _ => Panics::OnDisk(1 + self.choices.below(4) as u64),
        })
    }

    fn postgres_works(&mut self) {
        let running = self.postgres.running.len();
        match self.choices.below(8) {
            0..=2 => self.postgres.begin(),
            3..=5 if running > 0 => {
                let index = self.choices.below(running);
                let truncates = self.mode == Mode::Everything;
                self.postgres.commit(index, self.now, truncates, &mut self.choices);
            }
            6 if running > 0 && self.choices.chance(30) => self.postgres.abort(self.choices.below(running)),
            7 => {
                let invisible = self.postgres.invisible();
                if let Some(index) = self.choices.one(&invisible) {
                    self.postgres.reveal(index);
                }
            }
            _ => {
                let before = self.now.0 - 20_000_000;
                self.postgres.reveal_before(Timestamp(before));
            }
        }
    }

    /// Nothing goes wrong any more: a last restart, and everything must come to an end by itself.
    pub fn quiesce(&mut self) {
        while !self.postgres.running.is_empty() {
            self.postgres.commit(0, self.now, false, &mut self.choices);
        }
        self.postgres.reveal_before(Timestamp(i64::MAX));
        if matches!(self.mode, Mode::Everything | Mode::CrashesOnly) {
            self.crash();
        }
        self.tell(|| "=== peace".to_owned());
        let mode = std::mem::replace(&mut self.mode, Mode::Nothing);
        self.disk.fail_call(0, SimFault::Errno(5));
        for _ in 0..QUIET_ROUNDS_MAX {
            if self.failure.is_some() {
                return;
            }
            self.quiet_round();
            if self.unfinished().is_none() && self.clients.iter().all(|client| client.up_to_date) {
                // The last ones may have been up to date with less.
                for number in 0..self.clients.len() {
                    for _ in 0..4 {
                        self.client_works(number);
                    }
                }
                if self.unfinished().is_none() {
                    self.mode = mode;
                    return self.check_end();
                }
            }
        }
        let why = self.unfinished().unwrap_or_else(|| {
            let behind: Vec<_> = self.clients.iter().filter(|client| !client.up_to_date).collect();
            format!("{} clients wait, the first at {}", behind.len(), behind[0].from)
        });
        self.fail(format!("no end is reached: {why}"));
    }

    fn quiet_round(&mut self) {
        if self.process.is_none() {
            return self.boot();
        }
        self.turn_until_quiet();
        self.connect();
        self.turn_until_quiet();
        while self.stream_next() {}
        self.send_keepalive();
        self.turn_until_quiet();
        for sid in self.snapshot_tasks() {
            self.snapshot_works(sid);
        }
        for number in 0..POOLS {
            self.pool_flushes(number);
        }
        while self.process.as_ref().is_some_and(|process| !process.trashing.is_empty()) {
            self.trash_works(0);
        }
        self.compactor_works();
        for number in 0..self.clients.len() {
            self.client_works(number);
        }
        self.ask_for_live_writers();
        self.now = self.now.plus(Duration::from_millis(300));
        self.tick();
        self.turn_until_quiet();
    }

    /// Everything that is on its way arrives.
    fn turn_until_quiet(&mut self) {
        for _ in 0..200 {
            let mut any = self.journal_works();
            if self.process.as_ref().is_some_and(|process| process.unsynced) {
                self.journal_syncs();
            }
            any |= self.take_notice() | self.take_report() | self.take_input() | self.take_items(64);
            for number in 0..POOLS {
                any |= self.pool_works(number);
            }
            if !any {
                return;
            }
        }
    }
}
