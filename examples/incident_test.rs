//! An incident as a regression test, and properties of generated histories: `shapefold::testing` at work.
//!
//! `cargo test --example incident_test` runs it; so does `./dev test`. `cargo run --example incident_test --
//! FILE` shows what is wrong with a journal of your own, and the smallest history that still shows it.

use shapefold::testing::{History, HistoryError};

fn main() -> Result<(), HistoryError> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "tests/data/forensics/edison.sfx".to_owned());
    let incident = History::open(&file)?;
    println!("{file}: {} events, {} shapes", incident.events().len(), incident.shapes().len());
    let Some(first) = incident.first_violation() else {
        println!("every invariant holds");
        return Ok(());
    };
    println!("{first}");
    let small = incident
        .shrink(|history| history.first_violation().is_some_and(|found| found.invariant == first.invariant));
    println!("the smallest history that shows it: {small:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shapefold::events::{ConsumerEvent, Event};
    use shapefold::projections::forensics::{Invariant, gap};
    use shapefold::testing::{History, histories};

    const EDISON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/forensics/edison.sfx");
    const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/forensics/deploy.sfx");

    /// The three lines: what was exported that night folds to what was seen that night, in every later version.
    #[test]
    fn the_night_of_20_march() {
        let incident = History::open(EDISON).unwrap();
        assert_eq!(gap(&incident.fold()).2, 1_574_459_193);
        assert_eq!(incident.violations().iter().filter(|found| found.invariant == Invariant::F2).count(), 33);
    }

    #[test]
    fn the_deploy_of_18_june_was_in_order() {
        assert_eq!(History::open(DEPLOY).unwrap().violations(), []);
    }

    /// 477 events of 40 shapes come down to one shape, its life, and the exit that nobody answered.
    #[test]
    fn the_smallest_history_that_shows_it() {
        let stuck =
            |history: &History| history.violations().iter().any(|found| found.invariant == Invariant::F2);
        let small = History::open(EDISON).unwrap().shrink(stuck);
        assert_eq!(small.shapes().len(), 1, "{small:?}");
        assert!(small.events().len() < 150, "{small:?}");
        let last = small.events().last().map(|recorded| &recorded.event);
        assert!(matches!(last, Some(Event::Consumer(ConsumerEvent::Exited { .. }))), "{small:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
        /// A property of your own, over histories that the real engine decided.
        #[test]
        fn what_is_acknowledged_never_goes_back(history in histories()) {
            let (mut acked, mut state) = (shapefold::domain::Lsn(0), shapefold::state::State::default());
            for recorded in history.events() {
                state.apply(recorded);
                if recorded.event.name() == "AckSent" {
                    prop_assert!(state.stream.acked >= acked, "{history:?}");
                }
                acked = state.stream.acked;
            }
        }
    }
}
