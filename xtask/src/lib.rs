//! The development harness of Shapefold: what `./dev` and the integration tests share.
//!
//! Nothing here is part of the service. It starts a private Postgres ([`postgres`]) and the real
//! service binary ([`service`]), speaks HTTP to it with a client of its own ([`http`],
//! [`shape_client`]), and compares what a client holds with SQL ([`compare`]). The commands on top
//! are [`demo`], [`demo_check`], [`soak`], [`oracle`], [`chaos`], [`faults`], [`dying_writers`], [`rolling`],
//! [`bench_journal`] and [`scenarios`]; what a benchmark found is noted through [`measure`].

pub mod audit;
pub mod bench_journal;
pub mod chaos;
pub mod compare;
pub mod crowd;
pub mod demo;
pub mod demo_check;
pub mod directory;
pub mod dying_writers;
pub mod faults;
pub mod http;
pub mod journal;
pub mod measure;
pub mod node;
pub mod oracle;
pub mod page;
pub mod postgres;
pub mod rolling;
pub mod scenarios;
pub mod service;
pub mod shape_client;
pub mod soak;
pub mod stage;
pub mod tagged;
pub mod workload;

/// The one error type of the harness: a sentence for the person at the terminal.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What every command and helper of the harness returns.
pub type Outcome<T> = Result<T, Failure>;
