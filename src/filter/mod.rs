//! Where clauses: which rows belong to a shape. Pure.
//!
//! A clause goes through four forms, each in a file of its own:
//!
//! 1. `syntax`: the text, read by Postgres' own grammar, with everything but one `WHERE` refused;
//! 2. `check`: the tree with types, resolved as Postgres resolves operators and untyped literals;
//! 3. `print`: its canonical SQL, which is the identity of the shape and what snapshots run;
//! 4. `program`: the form that decides about rows of the replication stream.
//!
//! The promise is that 3 and 4 agree on every row. So what is not certain is left to Postgres, part by
//! part ([`Delegated`]), or refused with the messages of the wire contract, section 2; nothing is
//! approximated. What follows from it:
//!
//! - What collations do with texts is found out for each table ([`Texts`]). Ordered by bytes, or folded as
//!   the letters of Unicode or of ASCII one by one, they are evaluated here, and the canonical SQL says so
//!   where there is a choice (`COLLATE "C"`); what is otherwise is left to Postgres, and so is all about
//!   texts of a collation that is not deterministic.
//! - Postgres reads dates, times and (from version 16) numbers in more spellings than this module.
//!   Literals in them are not native. A text column cast to such a type may hold them: its row counts as
//!   not decodable, hence not in the shape.
//! - Case is folded by `lower` and `upper` as by `ILIKE`. GREATEST and LEAST of texts order by
//!   bytes, and their result has the collation "C".
//! - `AT TIME ZONE` knows the names of UTC only.
//! - Intervals may be infinite, and the difference of two timestamps that does not fit is an error, as
//!   from version 17 on. Where older versions have an error instead, no snapshot exists.
//!
//! [`ShapeIndex`] holds the predicates of all shapes and finds those that a row change concerns.

mod access;
mod array;
mod calendar;
mod calls;
mod cast;
mod check;
mod compile;
mod composite;
mod constructs;
mod datum;
mod decimal;
mod decode;
mod delegated;
mod error;
mod expr;
mod function;
mod functions;
mod index;
mod interval;
mod json;
mod keys;
mod like;
mod math;
mod moment;
mod numeric;
mod operations;
mod operators;
mod predicate;
mod print;
mod program;
mod ranges;
mod resolve;
mod structure;
pub mod subquery;
mod subset;
mod syntax;
mod table;
mod types;

#[cfg(test)]
mod tests;

pub use delegated::{Delegated, Question, ROWS_WANTED_MAX, RowValues, Verdict, Verdicts};
pub use error::{ParamsError, WhereError, check_params};
pub use index::{RouteError, RowMove, ShapeIndex};
pub use like::letters_with_case;
pub use operations::native_operations;
pub use predicate::{CaseFolding, Predicate, TextOrder, Texts};
pub use subset::{subset_condition, subset_order};
