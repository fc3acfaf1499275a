//! The offline forensics, on journals made from the figures of real incidents. Needs no Postgres.

mod documented;
mod figures;
mod golden;
mod hypotheses;
mod sql;
mod storage;
