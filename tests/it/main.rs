//! Integration tests: the real service, a real Postgres, real clients. Run by `./dev test`.

mod client;
mod filter_differential;
mod postgres;
mod service;
mod support;
