//! The pure engine in a model of the world: Postgres, disk, writers and crashes, all from one sequence of
//! choices. What it does is legal by construction, since the engine decides it: the model only says what the
//! world answers, in any order, and when a process dies. Its own parts are open, so that a test can look at
//! them; they are no stable face.

pub mod actions;
pub mod checks;
pub mod choices;
pub mod disk;
pub mod meddling;
pub mod performing;
pub mod postgres;
pub mod quiet;
pub mod tasks;
pub mod world;

pub use choices::Choices;
pub use world::{Mutation, World};

/// What is done in one history, at most, before it is let come to rest.
pub const ACTIONS_MAX: usize = 400;

/// One history, and after it peace: everything that is owed is paid. [`World::failure`] says what was wrong
/// with it, if anything was.
#[must_use]
pub fn run(choices: Choices, mutation: Mutation, trace: bool) -> World {
    let mut world = World::new(choices, mutation);
    world.trace = trace;
    for _ in 0..ACTIONS_MAX {
        if world.failure.is_some() || world.choices.exhausted() {
            break;
        }
        world.act();
    }
    if world.failure.is_none() {
        world.quiesce();
    }
    world
}
