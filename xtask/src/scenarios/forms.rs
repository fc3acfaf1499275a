//! Kinds of where clauses, and shapes of them: shape number `k` wants the rows of `k`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Outcome;
use crate::http::encode;
use crate::measure::load::{insist, over_connections};

/// Connections that make shapes.
const MAKERS: u64 = 24;

/// A kind of clause.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub name: &'static str,
    pub table: &'static str,
    /// The clause of shape number `k`; empty for the whole table.
    pub clause: fn(u64) -> String,
    /// Above so many nothing is asked of this kind.
    pub shapes_max: u64,
}

/// The query string of a shape.
#[must_use]
pub fn query(table: &str, clause: &str) -> String {
    match clause {
        "" => format!("table={table}"),
        clause => format!("table={table}&where={}", encode(clause)),
    }
}

/// Makes shapes `from..to`; how long that took.
///
/// # Errors
/// The service refuses one.
pub async fn make(address: SocketAddr, form: &Form, from: u64, to: u64) -> Outcome<Duration> {
    let Form { table, clause, .. } = *form;
    over_connections(address, MAKERS, (from, to), move |mut http, number| async move {
        let path = format!("/v1/shape?{}&offset=-1", query(table, &clause(number)));
        insist(&mut http, "GET", &path).await?;
        Ok(http)
    })
    .await
}
