//! Two instances and what stands between them: the lock file, the journal's own lock, and the advisory lock
//! of Postgres. Locks of a local file system end with the process that has them, not with its patience: one
//! that is paused keeps them.

use std::collections::{BTreeMap, BTreeSet};

use shapefold::domain::{Epoch, Sid};
use shapefold::engine::Input;
use shapefold::events::{DestructionTarget, DrainCause, Event, LossEvidence, OwnershipEvent};
use shapefold::state::OwnerPhase;
use shapefold::testing::model::world::{Connection, Process};
use shapefold::testing::model::{Choices, Mutation, World};

use super::clients::Client;

/// Turns of one history.
const TURNS: usize = 900;
/// Of a hundred turns, those in which something may go wrong, and those of clients.
const STORMY_TURNS: usize = 8;
const CLIENT_TURNS: usize = 30;
/// Clients: two for one definition, and others.
const CLIENTS: u64 = 6;
/// Rounds in which two instances agree who goes on, at the end.
const ROUNDS_MAX: usize = 60;

/// What is done otherwise than it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Ours,
    /// The directory is taken without a lock.
    NoLock,
    /// The lock file is the only lock: whoever replaces it lets another one in.
    NoJournalLock,
    /// As on a network file system with leases: a pause ends the locks, and nothing the process.
    LocksEndInAPause,
    /// What a dead process was about to remove is removed all the same.
    DestroysLate,
    /// One that waits removes what it does not know.
    WaitingCleansUp,
    /// The stream is taken without the advisory lock.
    NoAdvisoryLock,
    /// An answer tells the end of the log as it is when it is sent.
    OffsetOfALaterView,
    /// An answer tells the end as it was, and has the rows of later.
    BodyOfALaterView,
    /// Up-to-date is said of all that came from Postgres, written or not.
    UpToDateOnReceipt,
    /// A client that has more than the log is sent back to its end.
    OffsetsFallBack,
    /// What a writer published goes with it.
    ReadersDieWithWriters,
    /// A reader that found nothing new waits for what comes after that, not after it looked.
    RegistersAfterTheCheck,
    /// A shape that a client was told is gone is served again.
    ServesWhatIsGone,
    /// A build starts on what a newer one has left.
    StartsOnANewerLayout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up {
    Down,
    Waiting,
    Owner,
}

pub struct Pair {
    pub world: World,
    pub protocol: Protocol,
    pub up: [Up; 2],
    /// The processes of those whose turn it is not.
    parked: [Option<Process>; 2],
    /// Turns that one misses.
    paused: [usize; 2],
    lock: LockFile,
    /// The layout that each instance's build writes: 1 or 2.
    build: [u32; 2],
    /// Something else has the directory's name.
    taken_away: bool,
    /// Only one of so many disturbances happens.
    calm: usize,
    /// Who has the journal open.
    journal_lock: Option<usize>,
    /// The backend that holds the advisory lock: whose it is, and turns until the server notices that
    /// nobody is there any more.
    backend: Option<(usize, Option<usize>)>,
    /// Files that a dead process was about to remove.
    late: Vec<Sid>,
    last_end: Option<(usize, &'static str)>,
    pub clients: Vec<Client>,
    /// Shapes of which this instance told a client that they are gone.
    pub gone: BTreeSet<(usize, Sid)>,
    pub counts: BTreeMap<&'static str, u64>,
}

/// The file at the path of the lock.
struct LockFile {
    inode: u64,
    epoch: Epoch,
    /// In it before the first byte of a newer layout is written; the journal has it, too.
    layout: u32,
    /// By instance, the file that it has locked, and under which epoch.
    held: [Option<(u64, Epoch)>; 2],
}

impl Pair {
    pub fn run(seed: u64, protocol: Protocol) -> Pair {
        let mut world = World::new(Choices::seeded(seed), Mutation::None);
        let lock = LockFile { inode: 1, epoch: Epoch(0), layout: 1, held: [None; 2] };
        let calm = [1, 3, 10][world.choices.below(3)];
        let mut pair = Pair {
            world,
            protocol,
            up: [Up::Down; 2],
            parked: [None, None],
            paused: [0; 2],
            lock,
            build: [1; 2],
            taken_away: false,
            calm,
            journal_lock: None,
            backend: None,
            late: Vec::new(),
            last_end: None,
            clients: (0..CLIENTS).map(|number| Client::new(number / 2)).collect(),
            gone: BTreeSet::new(),
            counts: BTreeMap::new(),
        };
        for _ in 0..TURNS {
            if pair.world.failure.is_some() {
                return pair;
            }
            pair.turn();
        }
        pair.rest();
        pair
    }

    pub fn failure(&self) -> Option<String> {
        self.world.failure.clone()
    }

    pub fn events(&self) -> u64 {
        self.world.stats.events
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn tell_the_end(&self) {
        let history = &self.world.disk.history;
        for recorded in &history[history.len().saturating_sub(40)..] {
            eprintln!("{} e{} {:?}", recorded.id, recorded.epoch, recorded.event);
        }
    }

    pub fn process(&self, who: usize) -> Option<&Process> {
        self.parked[who].as_ref()
    }

    fn turn(&mut self) {
        let who = self.world.choices.below(2);
        match self.world.choices.below(100) {
            turn if turn < STORMY_TURNS => {
                if self.world.choices.below(self.calm) == 0 {
                    self.disturb(who);
                }
            }
            turn if turn < STORMY_TURNS + CLIENT_TURNS => {
                for _ in 0..3 {
                    let number = self.world.choices.below(self.clients.len());
                    // A load balancer leaves out who does not answer.
                    let asked = if self.up[who] == Up::Down { 1 - who } else { who };
                    self.client_works(number, asked);
                }
            }
            _ => self.works(who),
        }
        if self.taken_away && self.world.choices.chance(5) {
            self.directory_moves();
        }
        self.server_notices();
        self.effects_of_the_dead();
        self.check_owners();
    }

    fn disturb(&mut self, who: usize) {
        match self.world.choices.below(20) {
            0..3 => self.pause(who),
            3 => self.replace_lock(),
            4 => self.lock.epoch = Epoch(self.lock.epoch.0 + 1),
            5..13 => self.drain(who),
            13..17 => self.kill(who),
            17 => self.power_goes(),
            _ => self.directory_moves(),
        }
    }

    /// One instance does the next thing, unless it is paused.
    fn works(&mut self, who: usize) {
        if self.paused[who] > 0 {
            self.paused[who] -= 1;
            return;
        }
        match self.up[who] {
            Up::Down => {
                if self.world.choices.chance(20) {
                    self.up[who] = Up::Waiting;
                    self.build[who] = 1 + self.world.choices.below(2) as u32;
                }
            }
            Up::Waiting => self.tries(who),
            Up::Owner => {
                if self.world.choices.chance(10) {
                    self.looks_at_lock(who);
                }
                for _ in 0..=self.world.choices.below(3) {
                    self.as_process(who, |world| world.act());
                }
            }
        }
    }

    /// What one process does; then who is connected, and whether it lives.
    pub fn as_process(&mut self, who: usize, act: impl FnOnce(&mut World)) {
        self.world.process = self.parked[who].take();
        if self.world.process.is_none() {
            return;
        }
        let theirs = self.backend.is_some_and(|(holder, dead)| holder != who || dead.is_some());
        self.world.locked_elsewhere = theirs && self.protocol != Protocol::NoAdvisoryLock;
        let files: BTreeSet<Sid> = self.world.disk.shapes.keys().copied().collect();
        let trashing: Vec<Sid> = self.trashing();
        act(&mut self.world);
        self.check_removed(who, &files);
        match &self.world.process {
            Some(process) => {
                let connected =
                    matches!(process.connection, Connection::Ready { .. } | Connection::Streaming { .. });
                match (connected, self.backend) {
                    (true, Some((holder, _))) if holder != who || self.world.locked_elsewhere => {
                        self.world.fail("O8: two streams at once");
                    }
                    (true, before) => {
                        if before.is_none() {
                            self.count("O8: streams begun");
                        }
                        // A lock that stayed behind is somebody's, even if it was one's own.
                        if self.backend.is_some_and(|(_, dead)| dead.is_some()) {
                            self.world.fail("O8: a stream beside one that the server has not ended");
                        }
                        self.backend = Some((who, None));
                    }
                    (false, Some((holder, None))) if holder == who => self.backend = None,
                    (false, _) => {}
                }
                self.parked[who] = self.world.process.take();
            }
            None => self.ended(who, trashing),
        }
    }

    fn trashing(&self) -> Vec<Sid> {
        self.world.process.iter().flat_map(|process| process.trashing.iter().map(|(sid, _)| *sid)).collect()
    }

    /// The process is gone: the kernel drops its locks, the server takes a while.
    fn ended(&mut self, who: usize, trashing: Vec<Sid>) {
        self.up[who] = Up::Down;
        self.paused[who] = 0;
        self.lock.held[who] = None;
        if self.journal_lock == Some(who) {
            self.journal_lock = None;
        }
        if self.protocol == Protocol::DestroysLate {
            self.late.extend(trashing);
        }
        let last = self.world.disk.history.last();
        let released =
            last.is_some_and(|last| matches!(last.event, Event::Ownership(OwnershipEvent::Released { .. })));
        self.count(if released { "orderly ends" } else { "kills" });
        self.last_end = Some(if released {
            (who, "takeovers from one that ended in order")
        } else {
            (who, "takeovers from one that was killed")
        });
        if self.backend.is_some_and(|(holder, _)| holder == who) {
            self.backend = None;
            if !released && self.world.choices.chance(50) {
                self.count("locks that stayed with a dead connection");
                self.backend = Some((who, Some(1 + self.world.choices.below(40))));
            }
        }
    }

    fn server_notices(&mut self) {
        if let Some((_, Some(turns))) = &mut self.backend {
            *turns = turns.saturating_sub(1);
            if *turns == 0 {
                self.backend = None;
            }
        }
    }

    /// A second instance tries the locks in their order and gives back what it has if it cannot have all.
    fn tries(&mut self, who: usize) {
        if self.protocol == Protocol::WaitingCleansUp && self.world.choices.chance(10) {
            let unknown = self.world.disk.shapes.keys().next_back().copied();
            if let Some(sid) = unknown {
                let files: BTreeSet<Sid> = self.world.disk.shapes.keys().copied().collect();
                self.world.disk.shapes.remove(&sid);
                return self.check_removed(who, &files);
            }
        }
        if self.taken_away {
            return self.count("turned away by a directory that is not there");
        }
        let other = 1 - who;
        let locked = self.lock.held[other].is_some_and(|(inode, _)| inode == self.lock.inode);
        if locked && self.protocol != Protocol::NoLock {
            return self.count("turned away by the lock");
        }
        let open = self.journal_lock.is_some_and(|holder| holder == other);
        if open && !matches!(self.protocol, Protocol::NoJournalLock | Protocol::NoLock) {
            return self.count("turned away by the journal's lock");
        }
        // The lock file says it before the first newer byte is written; where it was replaced, the journal does.
        let layout = self.lock.layout.max(self.world.disk.state.owner.process.format);
        if layout > self.build[who] && self.protocol != Protocol::StartsOnANewerLayout {
            self.up[who] = Up::Down;
            return self.count("O5: turned away by a newer layout");
        }
        if (1..self.build[who]).contains(&self.world.disk.state.owner.process.format) {
            self.count("O5: brought to a newer layout");
        }
        self.lock.layout = self.build[who];
        self.world.layout = self.build[who];
        self.journal_lock = Some(who);
        // One more than the lock file and the journal have ever seen.
        self.world.epoch = self.lock.epoch.max(self.world.disk.state.owner.epoch);
        self.up[who] = Up::Owner;
        self.world.locked_elsewhere = true;
        self.world.boot();
        self.lock.epoch = self.world.epoch;
        self.lock.held[who] = Some((self.lock.inode, self.lock.epoch));
        self.parked[who] = self.world.process.take();
        if let Some((before, end)) = self.last_end.take() {
            self.count(end);
            if before != who {
                self.count(["handed over to the first", "handed over to the second"][who]);
            }
        }
    }

    /// Is the directory still ours? Asked now and then, as the driver does.
    fn looks_at_lock(&mut self, who: usize) {
        let Some((inode, epoch)) = self.lock.held[who] else { return };
        let (evidence, what) = if self.taken_away {
            (LossEvidence::DirectoryVanished, "O6: stopped by a directory that is not there")
        } else if inode != self.lock.inode {
            (LossEvidence::InodeChanged, "stopped by another lock file")
        } else if self.lock.epoch > epoch {
            (LossEvidence::EpochHigher, "stopped by a higher epoch")
        } else {
            return;
        };
        self.count(what);
        self.as_process(who, |world| {
            world.input(Input::OwnershipLost { evidence });
            // It overtakes everything and waits for nothing.
            world.crash();
        });
    }

    fn pause(&mut self, who: usize) {
        self.paused[who] = 1 + self.world.choices.below(150);
        if self.up[who] == Up::Owner {
            self.count("pauses of the owner");
            if self.protocol == Protocol::LocksEndInAPause {
                self.lock.held[who] = None;
                self.journal_lock = None;
            }
        }
    }

    fn replace_lock(&mut self) {
        self.lock.inode += 1;
        self.lock.epoch = Epoch(0);
        self.lock.layout = 1;
        self.count("lock files replaced");
    }

    fn drain(&mut self, who: usize) {
        let other_waits = self.up[1 - who] == Up::Waiting;
        if other_waits && self.paused[who] == 0 {
            self.as_process(who, |world| {
                world.input(Input::Drain { cause: DrainCause::Signal });
            });
        }
    }

    fn kill(&mut self, who: usize) {
        self.as_process(who, World::crash);
        if self.up[who] == Up::Waiting {
            self.up[who] = Up::Down;
        }
    }

    /// Both processes are gone at once, and what was not synced with them. Postgres may have run elsewhere.
    fn power_goes(&mut self) {
        self.count("power cuts");
        for who in 0..2 {
            self.kill(who);
            self.paused[who] = 0;
        }
        if self.world.choices.chance(30) {
            self.world.postgres.crash();
            self.backend = None;
        }
    }

    /// The directory is renamed, or comes back. Who has it open goes on reaching it, and must notice.
    fn directory_moves(&mut self) {
        self.taken_away = !self.taken_away;
        self.count(if self.taken_away { "directories taken away" } else { "directories put back" });
    }

    /// O1: of two that run, one has the directory.
    fn check_owners(&mut self) {
        if self.up.contains(&Up::Owner) {
            self.count("O1: turns with an owner");
        }
        let owners = self.up.iter().filter(|up| **up == Up::Owner).count();
        if owners > 1 {
            self.world.fail("O1: two processes write to one directory");
        }
    }

    /// What an unlink needs: the directory, and an intent that is durable.
    fn check_removed(&mut self, who: usize, before: &BTreeSet<Sid>) {
        let removed = before.iter().find(|sid| !self.world.disk.shapes.contains_key(sid)).copied();
        let Some(sid) = removed else { return };
        self.count("O3, O7: removals looked at");
        if self.up[who] != Up::Owner || self.journal_lock != Some(who) {
            self.world.fail(format!("O7: the files of shape {sid} are removed by one that only waits"));
        }
        let target = DestructionTarget::ShapeFiles(sid);
        let durable = &self.world.disk.history[..self.world.disk.durable];
        let announced = durable.iter().any(|recorded| {
            let Event::Ownership(OwnershipEvent::DestructiveIntent { target: own, .. }) = &recorded.event
            else {
                return false;
            };
            *own == target
        });
        if !announced {
            self.world
                .fail(format!("O3: the files of shape {sid} are removed, and the journal does not know"));
        }
    }

    /// Something is done for a process that is no more: only what its successor has announced, too.
    fn check_announced_anew(&mut self, sid: Sid) {
        let state = &self.world.disk.state;
        let target = DestructionTarget::ShapeFiles(sid);
        let announced = state.owner.open_intents.is_announced(target);
        let owned = matches!(state.owner.phase, OwnerPhase::Active | OwnerPhase::Draining);
        if !announced || !owned || self.journal_lock.is_none() {
            self.world
                .fail(format!("O3: the files of shape {sid} go with one that is dead, and no owner says so"));
        }
    }

    fn effects_of_the_dead(&mut self) {
        if self.late.is_empty() || !self.world.choices.chance(20) {
            return;
        }
        let sid = self.late.remove(0);
        if self.world.disk.shapes.remove(&sid).is_some() {
            self.check_announced_anew(sid);
        }
    }

    /// The end of a client that has nothing is to have something.
    fn make_what_it_wants(&mut self, number: usize, owner: usize) {
        for _ in 0..3 {
            self.client_works(number, owner);
        }
        self.world.process = self.parked[owner].take();
        self.world.quiesce();
        self.parked[owner] = self.world.process.take();
    }

    /// Nothing goes wrong any more: one of the two has the directory, and everything comes to an end.
    fn rest(&mut self) {
        self.paused = [0; 2];
        self.taken_away = false;
        self.backend = self.backend.filter(|(_, dead)| dead.is_none());
        for _ in 0..ROUNDS_MAX {
            for who in 0..2 {
                match self.up[who] {
                    Up::Down => {
                        self.up[who] = Up::Waiting;
                        self.build[who] = 2;
                    }
                    Up::Waiting => self.tries(who),
                    Up::Owner => self.looks_at_lock(who),
                }
                self.backend = self.backend.filter(|(_, dead)| dead.is_none());
                self.check_owners();
            }
        }
        let owner = (0..2).find(|who| self.up[*who] == Up::Owner);
        let Some(owner) = owner else { return self.world.fail("O1: in the end nobody has the directory") };
        if self.world.failure.is_some() {
            return;
        }
        // Who was on its way to end does, and begins again: the locks are its own.
        self.world.process = self.parked[owner].take();
        self.world.locked_elsewhere = false;
        self.world.quiesce();
        self.parked[owner] = self.world.process.take();
        for number in 0..self.clients.len() {
            for _ in 0..5 {
                self.client_works(number, 1 - owner);
            }
            if self.clients[number].shape().is_none() {
                self.make_what_it_wants(number, owner);
            }
            for _ in 0..10 {
                self.client_works(number, owner);
            }
            self.check_client_at_the_end(number, owner);
        }
    }
}
