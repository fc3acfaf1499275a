//! Random histories of the whole stack.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use shapefold::events::encode;

use super::acting::run;
use super::disk::PANIC;
use super::world::{Mode, Mutation, World};
use crate::summary::{setting, summarise};
use shapefold::testing::model::Choices;

const SEEDS: u64 = 400;
const FEWER_SEEDS: u64 = 60;

/// What the histories must contain.
const KINDS: [&str; 42] = [
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
    "logs compacted",
    "compared from everywhere",
    "offsets beyond the log",
    "panics asked for",
    "power losses",
    "redelivered to those who owe",
    "refetches",
    "refused NotActive",
    "invalidated WriterFailed",
    "stopped by a checkpoint that failed",
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
    let range = |start: u64| {
        move || {
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
        }
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

/// A shape whose initial rows are complete outlives every crash and every lost connection; no client
/// of it fetches again.
#[test]
fn crashes_and_lost_connections_end_no_shape() {
    let (counts, _) = run_all(FEWER_SEEDS, Mode::CrashesOnly);
    let ended = ["WriterFailed", "Stalled", "DataMissed", "StorageDamaged", "JournalLost", "SchemaChanged"];
    for cause in ended {
        assert!(!counts.contains_key(&format!("invalidated {cause}")), "{cause}: {counts:#?}");
    }
    assert!(counts["kills"] > FEWER_SEEDS && counts["power losses"] > FEWER_SEEDS, "{counts:#?}");
    assert!(counts.contains_key("redelivered to those who owe"), "{counts:#?}");
}

/// A writer that panics as often as the policy has patience for is replaced by replay: nobody fetches
/// again.
#[test]
fn writers_that_panic_recover_by_replay() {
    let (counts, _) = run_all(FEWER_SEEDS, Mode::PanicsOnly);
    let ended = ["WriterFailed", "Stalled", "DataMissed", "StorageDamaged", "JournalLost"];
    for cause in ended {
        assert!(!counts.contains_key(&format!("invalidated {cause}")), "{cause}: {counts:#?}");
    }
    assert!(counts["exited Panicked owing"] > FEWER_SEEDS, "{counts:#?}");
}

/// The same seed gives the same bytes, or a failure could not be looked into.
#[test]
fn a_seed_determines_the_history_of_the_whole_stack() {
    for seed in 0..5 {
        let bytes = |world: World| world.history.iter().flat_map(encode).collect::<Vec<u8>>();
        let (once, again) =
            (bytes(run_seed(seed, Mode::Everything)), bytes(run_seed(seed, Mode::Everything)));
        assert!(!once.is_empty() && once == again, "seed {seed}");
    }
}
