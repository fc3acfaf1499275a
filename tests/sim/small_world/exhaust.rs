//! Every world that can be reached, depth first and by several threads: what is kept of a world is its digest,
//! so that hundreds of millions of them fit into memory. A failure found here is not one of the shortest.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;

use super::actions::Action;
use super::search::{Failure, Found};
use super::world::{Bounds, World};

const SHARDS: usize = 1_024;
/// A line for so many worlds.
const TOLD_EVERY: usize = 10_000_000;

/// A digest is as good a hash as any.
#[derive(Default)]
struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, digest: u128) {
        self.0 = (digest >> 64) as u64;
    }
}

type Shard = HashSet<u128, BuildHasherDefault<Folded>>;

/// A world that nobody has looked at, and what led there.
struct Item {
    world: World,
    way: Vec<Action>,
}

/// A world on the way of one thread, and what is to be tried in it still.
struct Frame {
    world: World,
    digest: u128,
    left: Vec<Action>,
    at_an_end: bool,
}

#[derive(Default)]
struct Work {
    items: Vec<Item>,
    idle: usize,
}

struct Shared {
    threads: usize,
    known: Vec<Mutex<Shard>>,
    work: Mutex<Work>,
    more: Condvar,
    /// Threads that have nothing to do.
    hungry: AtomicUsize,
    over: AtomicBool,
    states: AtomicUsize,
    steps: AtomicUsize,
    ends: AtomicUsize,
    depth: AtomicUsize,
    failure: Mutex<Option<Failure>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread of the search panics")
}

/// Explores until everything is known, or something fails.
pub fn exhaust(bounds: Bounds, threads: usize) -> Found {
    let first = World::new(bounds);
    let shared = Shared {
        threads,
        known: (0..SHARDS).map(|_| Mutex::default()).collect(),
        work: Mutex::default(),
        more: Condvar::new(),
        hungry: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        states: AtomicUsize::new(0),
        steps: AtomicUsize::new(0),
        ends: AtomicUsize::new(0),
        depth: AtomicUsize::new(0),
        failure: Mutex::default(),
    };
    shared.is_new(first.digest());
    lock(&shared.work).items.push(Item { world: first, way: Vec::new() });
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = shared.next() {
                    shared.explore(item);
                }
            });
        }
    });
    let count = |number: &AtomicUsize| number.load(Ordering::Relaxed);
    Found {
        states: count(&shared.states),
        steps: count(&shared.steps),
        ends: count(&shared.ends),
        depth: count(&shared.depth),
        failure: lock(&shared.failure).take(),
    }
}

impl Shared {
    fn is_new(&self, digest: u128) -> bool {
        lock(&self.known[digest as usize % SHARDS]).insert(digest)
    }

    /// Something to look at; `None` when all has been looked at.
    fn next(&self) -> Option<Item> {
        let mut work = lock(&self.work);
        loop {
            if self.over.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(item) = work.items.pop() {
                return Some(item);
            }
            work.idle += 1;
            if work.idle == self.threads {
                self.over.store(true, Ordering::Relaxed);
                self.more.notify_all();
                return None;
            }
            self.hungry.fetch_add(1, Ordering::Relaxed);
            work = self.more.wait(work).expect("no thread of the search panics");
            self.hungry.fetch_sub(1, Ordering::Relaxed);
            work.idle -= 1;
        }
    }

    fn give(&self, item: Item) {
        lock(&self.work).items.push(item);
        self.more.notify_one();
    }

    fn fail(&self, why: String, way: Vec<Action>) {
        lock(&self.failure).get_or_insert(Failure { why, way });
        self.over.store(true, Ordering::Relaxed);
        self.more.notify_all();
    }

    fn enter(&self, world: World, depth: usize) -> Frame {
        let states = self.states.fetch_add(1, Ordering::Relaxed) + 1;
        self.depth.fetch_max(depth, Ordering::Relaxed);
        if states.is_multiple_of(TOLD_EVERY) {
            println!("  {} million states, depth {depth}", states / 1_000_000);
        }
        let (digest, left) = (world.digest(), world.chosen());
        Frame { world, digest, left, at_an_end: true }
    }

    /// Goes everywhere from here, as far as nobody has been there.
    fn explore(&self, item: Item) {
        let mut way = item.way;
        let before = way.len();
        let mut frames = vec![self.enter(item.world, before)];
        while let Some(frame) = frames.last_mut() {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let Some(action) = frame.left.pop() else {
                let frame = frames.pop().expect("it is the last");
                if frame.at_an_end && !self.ends_well(frame.world, &way) {
                    return;
                }
                way.truncate((before + frames.len()).saturating_sub(1));
                continue;
            };
            let mut next = frame.world.clone();
            next.act(action);
            self.steps.fetch_add(1, Ordering::Relaxed);
            if let Some(why) = next.failure.take() {
                way.push(action);
                return self.fail(why, way);
            }
            let reached = next.digest();
            frame.at_an_end &= action.is_disturbance() || reached == frame.digest;
            if !self.is_new(reached) {
                continue;
            }
            way.push(action);
            if self.hungry.load(Ordering::Relaxed) > 0 {
                self.give(Item { world: next, way: way.clone() });
                way.pop();
            } else {
                frames.push(self.enter(next, way.len()));
            }
        }
    }

    fn ends_well(&self, mut end: World, way: &[Action]) -> bool {
        self.ends.fetch_add(1, Ordering::Relaxed);
        end.check_end();
        match end.failure {
            Some(why) => {
                self.fail(why, way.to_vec());
                false
            }
            None => true,
        }
    }
}
