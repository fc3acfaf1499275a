//! The offline forensics, on journals made from the figures of real incidents. Needs no Postgres.

mod damage;
mod documented;
mod figures;
mod golden;
mod hypotheses;
mod long;
mod missing;
mod programs;
mod sql;
mod stepping;
mod storage;
mod week;
