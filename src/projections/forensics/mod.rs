//! Answers about the past, for people on call and for checkers. Pure: events and states in, typed
//! answers out; printing is the command line's.

mod acks;
mod diff;
mod fields;
mod filter;
mod holding;
mod incident;
mod invariants;
mod life;
mod names;
mod numbers;
mod owners;
mod plot;
mod position;
mod predicate;
mod sentence;
mod stats;
mod step;
mod whatif;

pub use acks::{Ack, AckSummary, judge};
pub use diff::{Diff, GroupChange, Moment, Standing};
pub use fields::fields;
pub use filter::{Choice, Filter, cause_of, causes, concerns, subject};
pub use holding::{
    COHORT_MIN, Cohort, Debt, Holder, Holding, LastExit, LastExits, Payer, gap, holder, payer,
};
pub use incident::{Anomaly, Incidents, Kind, Story};
pub use invariants::{Checker, Invariant, Violation};
pub use life::{LifeStory, Line};
pub use names::Names;
pub use numbers::{commas, parse_bytes, parse_span, plural, ranges, signed, span};
pub use owners::{End, Late, Owners, Tenure};
pub use plot::{Sample, Series};
pub use position::{ParsePositionError, Position};
pub use predicate::{Predicate, PredicateError, Watch};
pub use sentence::{exit, invalidation, sentence};
pub use stats::Stats;
pub use step::{Change, Fields, touched, touched_count, touches};
pub use whatif::{Alternative, Difference, Observed, WhatIf};
