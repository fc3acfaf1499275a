//! The pure engine in a model of the world: Postgres, disk, writers and crashes, all from one seed.
//!
//! `SHAPEFOLD_SEED=n` replays one seed, `SHAPEFOLD_SEEDS=n` sets how many are run, and
//! `SHAPEFOLD_TEST_SUMMARY=file` collects the counts.

mod dying_writers;
mod engine_histories;
mod fleet;
mod found;
mod full_stack;
mod illegal_histories;
mod liveness;
mod small_world;
mod summary;
mod two_instances;
