//! Random histories of the whole stack.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::acting::run;
use super::disk::PANIC;
use super::world::{Mode, Mutation, World};
use crate::choices::Choices;
use crate::summary::{setting, summarise};

const SEEDS: u64 = 400;

/// What the histories must contain.
const KINDS: [&str; 40] = [
    "checkpoints",
    "committed states compared",
    "died after a command",
    "died before a command",
    "died before a flush",
    "died before an append",
    "died before an effect",
    "died between append and sync",
    "died between sync and effects",
    "died in a call of the disk",
    "died when chance had it",
    "disconnects",
    "exited Drained owing",
    "exited Panicked owing",
    "exited Removed",
    "exited StorageFault owing",
    "exited Suspended",
    "exits in order",
    "failed reads",
    "followed chunks",
    "invalidated Backlog",
    "invalidated Deleted",
    "invalidated SnapshotFailed",
    "invalidated SnapshotInterrupted",
    "invalidated StorageDamaged",
    "invalidated Truncated",
    "kills",
    "offsets beyond the log",
    "panics asked for",
    "power losses",
    "redelivered to those who owe",
    "refetches",
    "refused NotActive",
    "refused StaleGeneration",
    "refused StaleIncarnation",
    "shapes that could not be restored",
    "stopped by a sync of the journal that failed",
    "stopped by a sync that failed",
    "stopped by an append that failed",
    "answers",
];

/// Panics that are meant say nothing; the others say where they come from.
pub fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>() != Some(&PANIC) {
                loud(info);
            }
        }));
    });
}

fn run_seed(seed: u64, mode: Mode) -> World {
    quiet_panics();
    let world = catch_unwind(AssertUnwindSafe(|| run(Choices::seeded(seed), Mutation::None, mode)));
    let world = world.unwrap_or_else(|_| panic!("a panic in {mode:?}; replay it with SHAPEFOLD_SEED={seed}"));
    if let Some(why) = &world.failure {
        panic!("{why}; in {mode:?}; replay it with SHAPEFOLD_SEED={seed} and look with SHAPEFOLD_TRACE=1");
    }
    world
}

/// Runs a range of seeds on two threads.
fn run_all(seeds: u64, mode: Mode) -> (BTreeMap<String, u64>, u64) {
    let range = |start: u64| move || {
        let mut counts = BTreeMap::<String, u64>::new();
        let mut events = 0;
        for seed in (start..seeds).step_by(2) {
            let world = run_seed(seed, mode);
            events += world.stats.events;
            for (name, count) in world.stats.counts {
                *counts.entry(name).or_default() += count;
            }
        }
        (counts, events)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(range(1));
        let (mut counts, mut events) = range(0)();
        let (others, more) = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        events += more;
        for (name, count) in others {
            *counts.entry(name).or_default() += count;
        }
        (counts, events)
    })
}

#[test]
fn every_history_of_the_whole_stack_keeps_every_promise() {
    if let Some(seed) = setting("SHAPEFOLD_SEED") {
        run_seed(seed, Mode::Everything);
        return;
    }
    let seeds = setting("SHAPEFOLD_SEEDS").unwrap_or(SEEDS);
    let (counts, events) = run_all(seeds, Mode::Everything);
    println!("{counts:#?}");
    for kind in KINDS {
        assert!(seeds < SEEDS || counts.contains_key(kind), "{kind} never happened");
    }
    summarise(&format!("simulator: {seeds} seeds, {events} events (full stack)"));
}
