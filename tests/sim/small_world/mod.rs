//! All that can happen in a small world, without exception: two instances, one directory, two shapes,
//! three transactions, one reader, and a crash or a fault anywhere. The engine is the real one.
//!
//! The random histories next door reach further; this search leaves nothing out. Protocols that are
//! known to be wrong run through the same search, which must refute them, or it checks nothing.

mod actions;
mod checks;
mod exhaust;
mod performing;
mod search;
mod world;

use exhaust::exhaust;
use search::{Found, explore};
use world::{Bounds, Pace, Protocol};

use crate::summary::summarise;

fn print(name: &str, found: &Found) {
    println!(
        "{name}: {} states, {} steps, {} ends, depth {}",
        found.states, found.steps, found.ends, found.depth
    );
    if let Some(failure) = &found.failure {
        println!("  {}", failure.why);
        failure.way.iter().for_each(|action| println!("    {action:?}"));
    }
}

/// The worlds of a normal run.
const SMALL: [Bounds; 6] = [
    ours(Pace::Free, 1, 1, 0, false),
    ours(Pace::JournalFirst, 1, 3, 0, false),
    ours(Pace::JournalFirst, 2, 1, 0, false),
    ours(Pace::JournalFirst, 1, 1, 1, false),
    ours(Pace::JournalFirst, 1, 1, 0, true),
    ours(Pace::JournalFirst, 0, 1, 1, true),
];
/// The worlds of `./dev worlds`: two instances, two shapes, three transactions and a crash or a fault
/// anywhere, any two or three of these together; 6.4 million states. All four at once: [`WHOLE`].
const LARGE: [Bounds; 5] = [
    ours(Pace::JournalFirst, 1, 3, 1, true),
    ours(Pace::JournalFirst, 2, 1, 1, true),
    ours(Pace::JournalFirst, 2, 2, 1, false),
    ours(Pace::JournalFirst, 2, 2, 0, true),
    ours(Pace::JournalFirst, 2, 3, 0, false),
];

/// The world of `./dev worlds whole`: two instances, two shapes, three transactions, one reader, and a crash
/// or a fault anywhere. 93,951,807 states.
const WHOLE: Bounds = ours(Pace::JournalFirst, 2, 3, 1, true);

const fn ours(pace: Pace, shapes: u64, transactions: u8, disturbances: u8, deploy: bool) -> Bounds {
    Bounds { protocol: Protocol::Ours, pace, shapes, transactions, disturbances, deploy }
}

/// What `SHAPEFOLD_WORLDS` asks for: `large`, `whole`, or shapes, transactions, disturbances and deploys, as in
/// `2,3,1,1`.
fn worlds(text: &str) -> Vec<Bounds> {
    let of = |one: &str| {
        let numbers: Vec<u8> = one.split(',').map(|number| number.parse().expect("a number")).collect();
        let [shapes, transactions, disturbances, deploys] = numbers[..] else {
            panic!("shapes, transactions, disturbances and deploys, not {one}")
        };
        ours(Pace::JournalFirst, u64::from(shapes), transactions, disturbances, deploys > 0)
    };
    match text {
        "large" => LARGE.to_vec(),
        "whole" => vec![WHOLE],
        worlds => worlds.split(' ').map(of).collect(),
    }
}

/// What we do holds in every world.
#[test]
fn small_worlds_keep_every_promise() {
    let asked = std::env::var("SHAPEFOLD_WORLDS").ok().map(|text| worlds(&text));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut states = 0;
    for bounds in asked.as_deref().unwrap_or(&SMALL) {
        let begun = std::time::Instant::now();
        let found = if asked.is_some() { exhaust(*bounds, threads) } else { explore(*bounds) };
        println!("{:.1} s", begun.elapsed().as_secs_f64());
        print(&format!("{bounds:?}"), &found);
        assert!(found.failure.is_none(), "{:?}", found.failure);
        assert!(found.ends > 0, "nothing ever comes to an end");
        states += found.states;
    }
    summarise(&format!("small worlds: {states} states"));
}

/// Two ways of searching come to the same worlds, whatever the number of threads.
#[test]
fn breadth_and_depth_find_the_same_worlds() {
    let bounds = ours(Pace::JournalFirst, 0, 1, 1, true);
    let broad = explore(bounds);
    for threads in [1, 3] {
        let deep = exhaust(bounds, threads);
        assert_eq!((deep.states, deep.steps, deep.ends), (broad.states, broad.steps, broad.ends));
        assert!(deep.depth >= broad.depth && deep.failure.is_none(), "{:?}", deep.failure);
    }
    let wrong = Bounds { protocol: Protocol::NoLock, ..ours(Pace::JournalFirst, 1, 1, 0, true) };
    assert!(exhaust(wrong, 2).failure.is_some(), "a wrong protocol is found out in depth, too");
}

/// Each protocol that was wrong fails somewhere, in a world no larger than it takes; there ours holds.
#[test]
fn a_protocol_that_was_wrong_is_refuted() {
    for (protocol, transactions, disturbances, deploy) in [
        (Protocol::WipeOnZeroShapes, 1, 0, true),
        (Protocol::NoLock, 1, 0, true),
        (Protocol::RecheckThenRead, 2, 0, false),
        (Protocol::ConsideredFlushed, 1, 1, false),
        (Protocol::UndeliverableForgotten, 2, 1, false),
    ] {
        let pace = Pace::JournalFirst;
        let bounds = Bounds { protocol, pace, shapes: 1, transactions, disturbances, deploy };
        let found = explore(bounds);
        print(&format!("{protocol:?}"), &found);
        assert!(found.failure.is_some(), "{protocol:?} went unnoticed");
        let ours = explore(Bounds { protocol: Protocol::Ours, ..bounds });
        assert!(ours.failure.is_none(), "{:?}", ours.failure);
    }
}
