//! Random histories of the real engine.
//!
//! The model takes over what the design relies on: an append to the journal is all or nothing, so a
//! crash cuts between steps; every snapshot waits for the transactions that had written to its table
//! before it was published. A commit that is decoded before it is visible becomes visible within the
//! time that the ring of recent commits covers, and before a process that is started after it takes a
//! snapshot: the ring is not journaled.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shapefold::events::encode;
use shapefold::testing::model::{self, Choices, Mutation, World};

use crate::summary::{setting, summarise};

const SEEDS: u64 = 1_000;

/// What the histories must contain.
const KINDS: [&str; 36] = [
    "AckSent",
    "ConsumerExited Ended owing",
    "ConsumerExited Panicked owing",
    "ConsumerExited StorageFault owing",
    "ConsumerExited Suspended even",
    "ConsumerExited Suspended owing",
    "ConsumerExited Vanished owing",
    "ConsumerExited Drained owing",
    "FlushWatermark",
    "HistoryBroken NewSlot",
    "HistoryBroken NewPublication",
    "HistoryBroken SlotLost",
    "HistoryBroken SystemId",
    "HistoryBroken Timeline",
    "JournalTornTail",
    "OwnershipLost",
    "OwnershipReleased",
    "PgLockLost",
    "RestartScheduled",
    "RoutedNothing",
    "ShapeGone",
    "ShapeInvalidated Backlog",
    "ShapeInvalidated Deleted",
    "ShapeInvalidated HistoryBroken",
    "ShapeInvalidated OldRowMissing",
    "ShapeInvalidated SchemaChanged",
    "ShapeInvalidated SnapshotFailed",
    "ShapeInvalidated SnapshotInterrupted",
    "ShapeInvalidated Stalled",
    "ShapeInvalidated StorageDamaged",
    "ShapeInvalidated Truncated",
    "ShapeInvalidated WriterFailed",
    "ShapesFlushed",
    "SnapshotFailed NotYetVisible",
    "StallSuspected",
    "TxnRedelivered",
];
const REFUSALS: [&str; 7] = [
    "AlreadyInvalidated",
    "HandleNotNew",
    "NotActive",
    "Pending",
    "StaleGeneration",
    "StaleIncarnation",
    "UnknownShape",
];

fn run(choices: Choices, mutation: Mutation) -> World {
    model::run(choices, mutation, std::env::var_os("SHAPEFOLD_TRACE").is_some())
}

fn run_seed(seed: u64) -> World {
    let world = catch_unwind(AssertUnwindSafe(|| run(Choices::seeded(seed), Mutation::None)));
    let world = world.unwrap_or_else(|_| panic!("the engine panicked; replay it with SHAPEFOLD_SEED={seed}"));
    if let Some(why) = &world.failure {
        if world.trace {
            for committed in &world.postgres.wal {
                eprintln!("{committed:?}");
            }
        }
        for recorded in &world.disk.history[world.disk.history.len().saturating_sub(60)..] {
            eprintln!("{} e{} {:?}", recorded.id, recorded.epoch, recorded.event);
        }
        panic!("{why}; replay it with SHAPEFOLD_SEED={seed}");
    }
    world
}

#[test]
fn every_history_keeps_every_promise() {
    if let Some(seed) = setting("SHAPEFOLD_SEED") {
        run_seed(seed);
        return;
    }
    let seeds = setting("SHAPEFOLD_SEEDS").unwrap_or(SEEDS);
    let (mut events, mut crashes, mut shapes, mut txns) = (0, 0, 0, 0);
    let mut names = std::collections::BTreeMap::<String, u64>::new();
    let mut refusals = std::collections::BTreeMap::<String, u64>::new();
    for seed in 0..seeds {
        let world = run_seed(seed);
        events += world.stats.events;
        crashes += world.stats.crashes;
        shapes += world.stats.compared_shapes;
        txns += world.stats.compared_txns;
        for (name, count) in world.stats.names {
            *names.entry(name).or_default() += count;
        }
        for (name, count) in world.stats.refusals {
            *refusals.entry(name).or_default() += count;
        }
    }
    // A history in which something never happens says nothing about it.
    for kind in KINDS {
        assert!(seeds < SEEDS || names.keys().any(|name| name.starts_with(kind)), "{kind} never happened");
    }
    for kind in REFUSALS {
        assert!(seeds < SEEDS || refusals.contains_key(kind), "{kind} was never refused");
    }
    assert!(seeds < SEEDS || (crashes > seeds && txns > 5 * seeds && shapes > seeds));
    println!("{crashes} crashes; at the end {shapes} shapes with {txns} transactions were compared");
    println!("events: {names:?}");
    println!("refusals: {refusals:?}");
    summarise(&format!("simulator: {seeds} seeds, {events} events"));
}

/// The same seed gives the same bytes, or a failure could not be looked into.
#[test]
fn a_seed_determines_the_history() {
    for seed in 0..10 {
        let bytes = |world: World| world.disk.history.iter().flat_map(encode).collect::<Vec<u8>>();
        let (once, again) = (bytes(run_seed(seed)), bytes(run_seed(seed)));
        assert!(!once.is_empty() && once == again, "seed {seed}");
    }
    let other = run_seed(11).disk.history;
    assert_ne!(run_seed(12).disk.history, other);
}

/// The same, from bytes that shrink.
#[test]
fn histories_from_bytes_keep_every_promise() {
    let cases = u32::try_from(setting("SHAPEFOLD_CASES").unwrap_or(256)).expect("a number of cases");
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&prop::collection::vec(any::<u8>(), 0..1_500), |bytes| {
        let world = run(Choices::bytes(bytes), Mutation::None);
        prop_assert!(world.failure.is_none(), "{}", world.failure.unwrap_or_default());
        Ok(())
    });
    if let Err(failed) = result {
        panic!("{failed}");
    }
    summarise(&format!("properties: {cases} cases"));
}

/// A world that breaks a rule is caught, or the checks check nothing.
#[test]
fn worlds_that_break_a_rule_are_caught() {
    const SEEDS_MAX: u64 = 300;
    for mutation in Mutation::CAUGHT {
        let caught = (0..SEEDS_MAX).find_map(|seed| {
            let ran = catch_unwind(AssertUnwindSafe(|| run(Choices::seeded(seed), mutation)));
            let why = ran.map_or_else(|_| Some("a panic".to_owned()), |world| world.failure)?;
            Some((seed, why))
        });
        let (seed, why) = caught.unwrap_or_else(|| panic!("{mutation:?} went unnoticed"));
        println!("{mutation:?}: caught by seed {seed}: {why}");
    }
}

/// R5: what no supervisor tells, the audit finds.
#[test]
fn the_audit_makes_up_for_a_silent_supervisor() {
    for seed in 0..100 {
        let world = run(Choices::seeded(seed), Mutation::SwallowExits);
        assert_eq!(world.failure, None, "seed {seed}");
    }
}
