//! All that can happen in a small world, without exception: two instances, one directory, two shapes,
//! three transactions, one reader, and a crash or a fault anywhere. The engine is the real one.
//!
//! The random histories next door reach further; this search leaves nothing out. Protocols that are
//! known to be wrong run through the same search, which must refute them, or it checks nothing.

mod actions;
mod checks;
mod performing;
mod search;
mod world;

use search::{Found, explore};
use world::{Bounds, Pace, Protocol};

use crate::summary::{setting, summarise};

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

/// The worlds of a normal run, and the one that has everything: some millions of states, searched by
/// `./dev worlds` in a release build.
const SMALL: [Bounds; 6] = [
    ours(Pace::Free, 1, 1, 0, false),
    ours(Pace::JournalFirst, 1, 3, 0, false),
    ours(Pace::JournalFirst, 2, 1, 0, false),
    ours(Pace::JournalFirst, 1, 1, 1, false),
    ours(Pace::JournalFirst, 1, 1, 0, true),
    ours(Pace::JournalFirst, 0, 1, 1, true),
];
const WHOLE: Bounds = ours(Pace::JournalFirst, 2, 3, 1, true);

const fn ours(pace: Pace, shapes: u64, transactions: u8, disturbances: u8, deploy: bool) -> Bounds {
    Bounds { protocol: Protocol::Ours, pace, shapes, transactions, disturbances, deploy }
}

/// What we do holds in every world.
#[test]
fn small_worlds_keep_every_promise() {
    let worlds: &[Bounds] = if setting("SHAPEFOLD_WORLDS").is_some() { &[WHOLE] } else { &SMALL };
    let mut states = 0;
    for bounds in worlds {
        let found = explore(*bounds);
        print(&format!("{bounds:?}"), &found);
        assert!(found.failure.is_none(), "{:?}", found.failure);
        assert!(found.ends > 0, "nothing ever comes to an end");
        states += found.states;
    }
    summarise(&format!("small worlds: {states} states"));
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
