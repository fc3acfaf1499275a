//! Integration tests: the real service, a real Postgres, real clients. Run by `./dev test`.

mod admin;
mod architecture;
mod client;
mod docs;
mod filter_differential;
mod forensics;
mod formats;
mod http_contract;
mod operations;
mod postgres;
mod service;
mod subqueries;
mod support;
