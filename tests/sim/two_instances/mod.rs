//! Two instances of the real engine on one model directory, with clients of both: they start, wait, take
//! over, are paused and killed in any order, of an older build or a newer one, while locks are lost and replaced,
//! the directory goes and comes back, the power goes and the clock jumps.
//!
//! `SHAPEFOLD_SEED=n` replays one seed, `SHAPEFOLD_SEEDS=n` sets how many are run.

mod clients;
mod pair;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pair::{Pair, Protocol};

use crate::summary::{setting, summarise};

const SEEDS: u64 = 100;
/// In which each wrong protocol is to be found out.
const WRONG_SEEDS_MAX: u64 = 400;

/// What the histories must contain, and how often at least.
const KINDS: [(&str, u64); 29] = [
    ("O1: turns with an owner", 50_000),
    ("O3, O7: removals looked at", 300),
    ("O5: brought to a newer layout", 25),
    ("O5: turned away by a newer layout", 400),
    ("O6: stopped by a directory that is not there", 25),
    ("O8: streams begun", 400),
    ("P1, P2: answers compared", 6_000),
    ("P3: up to date, compared", 2_500),
    ("P6: clients that waited", 5_000),
    ("answers of one that waits", 3_000),
    ("answers of the owner", 3_000),
    ("clients compared at the end", 400),
    ("directories put back", 150),
    ("directories taken away", 150),
    ("handed over to the first", 120),
    ("handed over to the second", 120),
    ("kills", 400),
    ("lock files replaced", 100),
    ("locks that stayed with a dead connection", 100),
    ("orderly ends", 100),
    ("pauses of the owner", 100),
    ("power cuts", 100),
    ("refetches", 150),
    ("stopped by a higher epoch", 25),
    ("stopped by another lock file", 30),
    ("takeovers from one that ended in order", 100),
    ("takeovers from one that was killed", 400),
    ("turned away by the journal's lock", 300),
    ("turned away by the lock", 10_000),
];

fn run_seed(seed: u64, protocol: Protocol) -> Pair {
    let ran = catch_unwind(AssertUnwindSafe(|| Pair::run(seed, protocol)));
    ran.unwrap_or_else(|_| panic!("a panic; replay it with SHAPEFOLD_SEED={seed}"))
}

#[test]
fn two_instances_keep_every_promise() {
    let asked = setting("SHAPEFOLD_SEED").map(|seed| seed..seed + 1);
    let seeds = asked.unwrap_or(0..setting("SHAPEFOLD_SEEDS").unwrap_or(SEEDS));
    let all = seeds.end - seeds.start >= SEEDS;
    let (count, mut counts, mut events) = (seeds.end - seeds.start, BTreeMap::<&str, u64>::new(), 0);
    for seed in seeds {
        let pair = run_seed(seed, Protocol::Ours);
        if let Some(why) = pair.failure() {
            pair.tell_the_end();
            panic!("{why}; replay it with SHAPEFOLD_SEED={seed}");
        }
        events += pair.events();
        for (name, times) in &pair.counts {
            *counts.entry(*name).or_default() += times;
        }
    }
    println!("{counts:#?}");
    for (kind, wanted) in KINDS {
        let happened = counts.get(kind).copied().unwrap_or_default();
        assert!(!all || happened >= wanted, "{kind} {happened} times, not {wanted}: {counts:#?}");
    }
    let answers = counts.get("P1, P2: answers compared").copied().unwrap_or_default();
    summarise(&format!("simulator: {count} seeds, {events} events (two instances)"));
    summarise(&format!("answers of two instances: {answers} compared with the rows of the table"));
}

#[test]
fn a_seed_determines_what_two_instances_do() {
    for seed in 0..5 {
        let (once, again) = (run_seed(seed, Protocol::Ours), run_seed(seed, Protocol::Ours));
        assert_eq!((once.events(), &once.counts), (again.events(), &again.counts), "seed {seed}");
    }
}

/// The rules that a wrong protocol breaks, over some seeds.
fn broken_by(protocol: Protocol, wanted: &str) -> BTreeSet<String> {
    let mut broken = BTreeSet::new();
    for seed in 0..WRONG_SEEDS_MAX {
        if let Some(why) = run_seed(seed, protocol).failure() {
            broken.insert(why.split([':', ' ']).next().unwrap_or_default().to_owned());
        }
        if broken.contains(wanted) {
            break;
        }
    }
    broken
}

/// Each rule that the journal alone cannot show is broken by a protocol that is wrong, and found out.
#[test]
fn every_wrong_protocol_breaks_its_rule() {
    for (protocol, rule) in [
        (Protocol::NoLock, "O1"),
        (Protocol::NoJournalLock, "O1"),
        (Protocol::LocksEndInAPause, "O1"),
        (Protocol::DestroysLate, "O3"),
        (Protocol::StartsOnANewerLayout, "O5"),
        (Protocol::WaitingCleansUp, "O7"),
        (Protocol::NoAdvisoryLock, "O8"),
        (Protocol::OffsetOfALaterView, "P1"),
        (Protocol::BodyOfALaterView, "P2"),
        (Protocol::UpToDateOnReceipt, "P3"),
        (Protocol::OffsetsFallBack, "P4"),
        (Protocol::ReadersDieWithWriters, "P5"),
        (Protocol::RegistersAfterTheCheck, "P6"),
        (Protocol::ServesWhatIsGone, "L6"),
    ] {
        let broken = broken_by(protocol, rule);
        assert!(broken.contains(rule), "{protocol:?} breaks {broken:?}, not {rule}");
        println!("{protocol:?}: {rule}");
    }
}

/// R5, and with it the two rules of the engine's model that no journal shows.
#[test]
fn a_supervisor_that_says_nothing_and_no_audit_break_r5() {
    use shapefold::testing::model::{Choices, Mutation, run};
    let mut whys = (0..WRONG_SEEDS_MAX)
        .filter_map(|seed| run(Choices::seeded(seed), Mutation::SwallowExitsAndAudits, false).failure);
    assert!(whys.any(|why| why.starts_with("R5")));
}
