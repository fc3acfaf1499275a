//! Worlds that break a rule: each must be caught, or the checks check nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::acting::run;
use super::histories::quiet_panics;
use super::world::{Mode, Mutation};
use shapefold::testing::model::Choices;

const SEEDS_MAX: u64 = 200;

fn is_caught(mutation: Mutation) {
    quiet_panics();
    let caught = (0..SEEDS_MAX).find_map(|seed| {
        let ran = catch_unwind(AssertUnwindSafe(|| run(Choices::seeded(seed), mutation, Mode::Everything)));
        let why = ran.map_or_else(|_| Some("a panic".to_owned()), |world| world.failure)?;
        Some((seed, why))
    });
    let (seed, why) = caught.unwrap_or_else(|| panic!("{mutation:?} went unnoticed"));
    println!("{mutation:?}: caught by seed {seed}: {why}");
}

#[test]
fn effects_before_persist_are_caught() {
    is_caught(Mutation::EffectsBeforePersist);
}

#[test]
fn acknowledging_what_is_received_is_caught() {
    is_caught(Mutation::AckOfReceived);
}

#[test]
fn skipping_duplicates_for_all_shapes_alike_is_caught() {
    is_caught(Mutation::GlobalDuplicateSkipping);
}

#[test]
fn syncs_that_lie_are_caught() {
    is_caught(Mutation::SyncsThatLie);
}

#[test]
fn a_view_taken_before_the_mark_is_caught() {
    is_caught(Mutation::ViewBeforeMark);
}

#[test]
fn a_mark_before_its_deliveries_is_caught() {
    is_caught(Mutation::MarkBeforeDelivery);
}
