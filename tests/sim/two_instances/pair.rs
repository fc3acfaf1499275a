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
    /// Who has the journal open.
    journal_lock: Option<usize>,
    /// The backend that holds the advisory lock: whose it is, and turns until the server notices that
    /// nobody is there any more.
    backend: Option<(usize, Option<usize>)>,
    /// Files that a dead process was about to remove.
    late: Vec<Sid>,
    last_end: Option<&'static str>,
    pub clients: Vec<Client>,
    /// Shapes of which this instance told a client that they are gone.
    pub gone: BTreeSet<(usize, Sid)>,
    pub counts: BTreeMap<&'static str, u64>,
}

/// The file at the path of the lock.
struct LockFile {
    inode: u64,
    epoch: Epoch,
    /// By instance, the file that it has locked, and under which epoch.
    held: [Option<(u64, Epoch)>; 2],
}

impl Pair {
    pub fn run(seed: u64, protocol: Protocol) -> Pair {
        let world = World::new(Choices::seeded(seed), Mutation::None);
        let lock = LockFile { inode: 1, epoch: Epoch(0), held: [None; 2] };
        let mut pair = Pair {
            world,
            protocol,
            up: [Up::Down; 2],
            parked: [None, None],
            paused: [0; 2],
            lock,
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
            0 => self.pause(who),
            1 => self.replace_lock(),
            2 if self.world.choices.chance(30) => self.lock.epoch = Epoch(self.lock.epoch.0 + 1),
            3 => self.drain(who),
            4 if self.world.choices.chance(40) => self.kill(who),
            5..=24 => {
                let number = self.world.choices.below(self.clients.len());
                self.client_works(number, who);
            }
            _ => self.works(who),
        }
        self.server_notices();
        self.effects_of_the_dead();
        self.check_owners();
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
                }
            }
            Up::Waiting => self.tries(who),
            Up::Owner => {
                if self.world.choices.chance(10) {
                    self.looks_at_lock(who);
                }
                self.as_process(who, |world| world.act());
            }
        }
    }

    /// What one process does; then who is connected, and whether it lives.
    fn as_process(&mut self, who: usize, act: impl FnOnce(&mut World)) {
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
                    (true, _) => {
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
            "takeovers from one that ended in order"
        } else {
            "takeovers from one that was killed"
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
        let other = 1 - who;
        let locked = self.lock.held[other].is_some_and(|(inode, _)| inode == self.lock.inode);
        if locked && self.protocol != Protocol::NoLock {
            return self.count("turned away by the lock");
        }
        let open = self.journal_lock.is_some_and(|holder| holder == other);
        if open && !matches!(self.protocol, Protocol::NoJournalLock | Protocol::NoLock) {
            return self.count("turned away by the journal's lock");
        }
        self.journal_lock = Some(who);
        // One more than the lock file and the journal have ever seen.
        self.world.epoch = self.lock.epoch.max(self.world.disk.state.owner.epoch);
        self.up[who] = Up::Owner;
        self.world.locked_elsewhere = true;
        self.world.boot();
        self.lock.epoch = self.world.epoch;
        self.lock.held[who] = Some((self.lock.inode, self.lock.epoch));
        self.parked[who] = self.world.process.take();
        if let Some(end) = self.last_end.take() {
            self.count(end);
        }
    }

    /// Is the directory still ours? Asked now and then, as the driver does.
    fn looks_at_lock(&mut self, who: usize) {
        let Some((inode, epoch)) = self.lock.held[who] else { return };
        let (evidence, what) = if inode != self.lock.inode {
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

    /// O1: of two that run, one has the directory.
    fn check_owners(&mut self) {
        let owners = self.up.iter().filter(|up| **up == Up::Owner).count();
        if owners > 1 {
            self.world.fail("O1: two processes write to one directory");
        }
    }

    /// What an unlink needs: the directory, and an intent that is durable.
    fn check_removed(&mut self, who: usize, before: &BTreeSet<Sid>) {
        let removed = before.iter().find(|sid| !self.world.disk.shapes.contains_key(sid)).copied();
        let Some(sid) = removed else { return };
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

    /// Nothing goes wrong any more: one of the two has the directory, and everything comes to an end.
    fn rest(&mut self) {
        self.paused = [0; 2];
        self.backend = self.backend.filter(|(_, dead)| dead.is_none());
        for _ in 0..ROUNDS_MAX {
            for who in 0..2 {
                match self.up[who] {
                    Up::Down => self.up[who] = Up::Waiting,
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
            for _ in 0..10 {
                self.client_works(number, owner);
            }
            self.check_client_at_the_end(number, owner);
        }
    }
}
