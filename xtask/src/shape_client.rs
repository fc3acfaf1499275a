//! A client of `GET /v1/shape` that keeps the rows of one shape and distrusts the server.
//!
//! Beyond applying messages it checks what the contract promises: offsets only grow, no operation
//! comes twice, an update or delete hits a row that exists. What contradicts that is recorded as an
//! anomaly, never repaired silently: a test that only compared the final rows would miss a lost
//! delete followed by a refetch.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use serde::Deserialize;

use crate::http::{HttpClient, Response, encode};
use crate::tagged::{Pattern, Tagged};

/// At most this many anomalies are kept in words; all are counted.
const ANOMALIES_KEPT_MAX: usize = 20;

/// One row: column name to its text, `None` for SQL NULL.
pub type Row = BTreeMap<String, Option<String>>;
/// All rows of a shape by message key.
pub type Rows = BTreeMap<String, Row>;

/// What is asked for: the shape part of the query string.
#[derive(Clone, Debug, Default)]
pub struct ShapeRequest {
    pub table: String,
    pub where_clause: Option<String>,
    /// Values of `$1`, `$2`, … in the where clause.
    pub params: Vec<String>,
    pub columns: Option<Vec<String>>,
}

impl ShapeRequest {
    #[must_use]
    pub fn table(table: &str) -> Self {
        Self { table: table.to_owned(), ..Self::default() }
    }

    #[must_use]
    pub fn filtered(mut self, where_clause: &str, params: &[&str]) -> Self {
        self.where_clause = Some(where_clause.to_owned());
        self.params = params.iter().map(|param| (*param).to_owned()).collect();
        self
    }

    #[must_use]
    pub fn columns(mut self, columns: &[&str]) -> Self {
        self.columns = Some(columns.iter().map(|column| (*column).to_owned()).collect());
        self
    }

    /// The query string without offset, handle and live.
    #[must_use]
    pub fn query(&self) -> String {
        let mut query = format!("table={}", encode(&self.table));
        if let Some(columns) = &self.columns {
            query.push_str(&format!("&columns={}", encode(&columns.join(","))));
        }
        if let Some(clause) = &self.where_clause {
            query.push_str(&format!("&where={}", encode(clause)));
        }
        for (index, param) in self.params.iter().enumerate() {
            query.push_str(&format!("&params%5B{}%5D={}", index + 1, encode(param)));
        }
        query
    }
}

/// A 409 that the client was given.
#[derive(Clone, Debug)]
pub struct Refetch {
    pub old_handle: String,
    pub new_handle: Option<String>,
}

/// Why a request led to nothing. `Unavailable` is worth another try, `Refused` is not.
#[derive(Debug)]
pub enum ClientError {
    /// No answer, a broken answer, or 5xx: the service is down or starting.
    Unavailable(String),
    /// A 4xx other than 409, or an answer that breaks the contract.
    Refused(String),
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable(reason) => write!(f, "service unavailable: {reason}"),
            Self::Refused(reason) => write!(f, "request refused: {reason}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

#[derive(Debug, Deserialize)]
struct Message {
    key: Option<String>,
    value: Option<Row>,
    headers: MessageHeaders,
}

#[derive(Debug, Deserialize)]
struct MessageHeaders {
    operation: Option<String>,
    control: Option<String>,
    lsn: Option<String>,
    op_position: Option<u64>,
    global_last_seen_lsn: Option<String>,
    event: Option<String>,
    #[serde(default)]
    patterns: Vec<Pattern>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    active_conditions: Vec<bool>,
}

/// Follows one shape: initial rows, then the log, then live.
#[derive(Debug)]
pub struct ShapeClient {
    request: ShapeRequest,
    query: String,
    http: HttpClient,
    handle: Option<String>,
    offset: String,
    cursor: Option<String>,
    up_to_date: bool,
    rows: Rows,
    refetches: Vec<Refetch>,
    messages: u64,
    anomalies: Vec<String>,
    anomaly_count: u64,
    /// Position of the last log message; invariant: strictly increases under one handle.
    position: Option<(u64, u64)>,
    seen_lsn: u64,
    /// The newest of them, from the process that answers now.
    told_lsn: u64,
    /// See [`ShapeClient::expect_failing_writers`].
    writers_fail: bool,
    /// For shapes with subqueries.
    tagged: Tagged,
}

impl ShapeClient {
    #[must_use]
    pub fn new(address: SocketAddr, request: ShapeRequest) -> Self {
        Self {
            query: request.query(),
            request,
            http: HttpClient::new(address),
            handle: None,
            offset: "-1".to_owned(),
            cursor: None,
            up_to_date: false,
            rows: Rows::new(),
            refetches: Vec::new(),
            messages: 0,
            anomalies: Vec::new(),
            anomaly_count: 0,
            position: None,
            seen_lsn: 0,
            told_lsn: 0,
            writers_fail: false,
            tagged: Tagged::default(),
        }
    }

    /// The service moved to another address; rows, handle and offset stay.
    pub fn redirect(&mut self, address: SocketAddr) {
        self.http = HttpClient::new(address);
        self.told_lsn = 0;
    }

    /// From now on writers of the shape fail. What they had in memory only is lost, and comes again; until then
    /// the service does not know how far the log is (`global_last_seen_lsn`), and may say less than before.
    pub fn expect_failing_writers(&mut self) {
        self.writers_fail = true;
    }

    /// One request: without `live` until up to date, a long-poll afterwards.
    pub async fn step(&mut self) -> Result<(), ClientError> {
        self.step_with(self.up_to_date).await
    }

    /// Follows the shape, without long-polls, until the service says that this is the tail.
    pub async fn sync(&mut self) -> Result<(), ClientError> {
        self.up_to_date = false;
        while !self.up_to_date {
            self.step_with(false).await?;
        }
        Ok(())
    }

    async fn step_with(&mut self, live: bool) -> Result<(), ClientError> {
        let mut path = format!("/v1/shape?{}&offset={}", self.query, self.offset);
        if let Some(handle) = &self.handle {
            path.push_str(&format!("&handle={}", encode(handle)));
        }
        if live {
            path.push_str("&live=true");
            if let Some(cursor) = &self.cursor {
                path.push_str(&format!("&cursor={}", encode(cursor)));
            }
        }
        let connections = self.http.connections();
        let response = self.http.get(&path).await;
        if response.is_err() || self.http.connections() != connections {
            // This answer, or the next one, may be that of another process, which has yet to hear from Postgres.
            self.told_lsn = 0;
        }
        let response = response?;
        match response.status {
            200 => self.accept(&response),
            409 => {
                self.refetch(&response);
                Ok(())
            }
            status @ (429 | 500..=599) => {
                Err(ClientError::Unavailable(format!("status {status}: {}", response.text())))
            }
            status => Err(ClientError::Refused(format!("status {status}: {}", response.text()))),
        }
    }

    fn refetch(&mut self, response: &Response) {
        let new_handle = response.header("electric-handle").map(str::to_owned);
        let old_handle = self.handle.take().unwrap_or_default();
        self.refetches.push(Refetch { old_handle, new_handle });
        self.offset = "-1".to_owned();
        self.cursor = None;
        self.up_to_date = false;
        self.position = None;
        self.rows.clear();
        self.tagged.clear();
    }

    fn accept(&mut self, response: &Response) -> Result<(), ClientError> {
        let required = |name: &str| {
            response
                .header(name)
                .map(str::to_owned)
                .ok_or_else(|| ClientError::Refused(format!("a 200 without {name}")))
        };
        let handle = required("electric-handle")?;
        let offset = required("electric-offset")?;
        let messages: Vec<Message> = serde_json::from_slice(&response.body)
            .map_err(|error| ClientError::Refused(format!("body is no array of messages: {error}")))?;
        if let Some(known) = &self.handle
            && *known != handle
        {
            self.anomaly(format!("handle changed without a 409: {known} to {handle}"));
        }
        if offset_key(&offset) < offset_key(&self.offset) {
            self.anomaly(format!("offset went back: {} to {offset}", self.offset));
        }
        self.up_to_date = false;
        for message in messages {
            self.apply(message);
        }
        self.cursor = response.header("electric-cursor").map(str::to_owned);
        self.handle = Some(handle);
        self.offset = offset;
        Ok(())
    }

    fn apply(&mut self, message: Message) {
        let headers = &message.headers;
        if headers.control.as_deref() == Some("up-to-date") {
            self.up_to_date = true;
            if let Some(lsn) = headers.global_last_seen_lsn.as_deref().and_then(|lsn| lsn.parse().ok()) {
                if lsn < self.told_lsn && self.refetches.is_empty() && !self.writers_fail {
                    self.anomaly(format!("global_last_seen_lsn went back: {} to {lsn}", self.told_lsn));
                }
                self.told_lsn = lsn;
                self.seen_lsn = self.seen_lsn.max(lsn);
            }
            return;
        }
        if let Some(event) = headers.event.as_deref() {
            for key in self.tagged.turn(&headers.patterns, event == "move-in") {
                self.rows.remove(&key);
            }
            return;
        }
        let (Some(operation), Some(key), Some(value)) =
            (headers.operation.as_deref(), message.key, message.value)
        else {
            return;
        };
        self.messages += 1;
        if let Some(lsn) = headers.lsn.as_deref().and_then(|lsn| lsn.parse::<u64>().ok()) {
            let position = (lsn, headers.op_position.unwrap_or(0));
            if self.position.is_some_and(|last| position <= last) {
                self.anomaly(format!("message at {position:?} after {:?}", self.position));
            }
            self.position = Some(position);
        }
        let tagged = !headers.active_conditions.is_empty();
        match operation {
            "delete" => self.tagged.remove(&key),
            _ if tagged && !self.tagged.set(&key, &headers.tags, headers.active_conditions.clone()) => {
                self.anomaly(format!("a row none of whose disjuncts holds: {key}"));
            }
            _ => {}
        }
        match operation {
            "insert" => {
                if self.rows.insert(key.clone(), value).is_some() {
                    self.anomaly(format!("insert of a row that is there: {key}"));
                }
            }
            "update" => match self.rows.get_mut(&key) {
                Some(row) => row.extend(value),
                None => {
                    self.anomaly(format!("update of a row that is not there: {key}"));
                    self.rows.insert(key, value);
                }
            },
            "delete" => {
                if self.rows.remove(&key).is_none() {
                    self.anomaly(format!("delete of a row that is not there: {key}"));
                }
            }
            other => self.anomaly(format!("unknown operation {other}")),
        }
    }

    fn anomaly(&mut self, what: String) {
        self.anomaly_count += 1;
        if self.anomalies.len() < ANOMALIES_KEPT_MAX {
            self.anomalies.push(what);
        }
    }

    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    #[must_use]
    pub fn request(&self) -> &ShapeRequest {
        &self.request
    }

    #[must_use]
    pub fn handle(&self) -> Option<&str> {
        self.handle.as_deref()
    }

    #[must_use]
    pub fn offset(&self) -> &str {
        &self.offset
    }

    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        self.up_to_date
    }

    /// Highest `global_last_seen_lsn` that an up-to-date message named.
    #[must_use]
    pub fn seen_lsn(&self) -> u64 {
        self.seen_lsn
    }

    /// Every 409 so far, in order.
    #[must_use]
    pub fn refetches(&self) -> &[Refetch] {
        &self.refetches
    }

    /// Number of change messages applied.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// What contradicted the contract, the first [`ANOMALIES_KEPT_MAX`] of it in words.
    #[must_use]
    pub fn anomalies(&self) -> &[String] {
        &self.anomalies
    }

    #[must_use]
    pub fn anomaly_count(&self) -> u64 {
        self.anomaly_count
    }
}

/// Orders offsets as the contract does: `-1`, then by transaction, then by operation, `inf` last.
fn offset_key(offset: &str) -> (u64, u64, u64) {
    match offset.split_once('_') {
        None => (0, 0, 0),
        Some((tx, op)) => (1, tx.parse().unwrap_or(0), op.parse().unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> ShapeClient {
        ShapeClient::new(([127, 0, 0, 1], 1).into(), ShapeRequest::table("t"))
    }

    fn respond(client: &mut ShapeClient, offset: &str, body: &str) {
        let headers = vec![
            ("electric-handle".to_owned(), "1-2".to_owned()),
            ("electric-offset".to_owned(), offset.to_owned()),
        ];
        client.accept(&Response { status: 200, headers, body: body.as_bytes().to_vec() }).unwrap();
    }

    #[test]
    fn applies_operations_and_names_what_cannot_be() {
        let mut client = client();
        respond(
            &mut client,
            "0_0",
            r#"[{"key":"k/\"1\"","value":{"id":"1","a":null},"headers":{"operation":"insert"}}]"#,
        );
        assert!(!client.is_up_to_date());
        let update = r#"[{"key":"k/\"1\"","value":{"a":"x"},"headers":{"operation":"update","lsn":"7","op_position":0}},
            {"headers":{"control":"up-to-date","global_last_seen_lsn":"9"}}]"#;
        respond(&mut client, "7_0", update);
        assert!(client.is_up_to_date());
        assert_eq!(client.seen_lsn(), 9);
        assert_eq!(client.rows()["k/\"1\""]["a"].as_deref(), Some("x"));
        assert_eq!(client.anomaly_count(), 0);
        respond(&mut client, "7_0", update);
        assert_eq!(client.anomaly_count(), 1, "the same position twice: {:?}", client.anomalies());
        respond(&mut client, "0_inf", "[]");
        assert_eq!(client.anomaly_count(), 2, "an offset that goes back: {:?}", client.anomalies());
    }

    #[test]
    fn a_refetch_is_remembered_and_starts_over() {
        let mut client = client();
        respond(&mut client, "0_0", r#"[{"key":"k","value":{"id":"1"},"headers":{"operation":"insert"}}]"#);
        let headers = vec![("electric-handle".to_owned(), "3-4".to_owned())];
        client.refetch(&Response { status: 409, headers, body: Vec::new() });
        assert!(client.rows().is_empty());
        assert_eq!(client.offset(), "-1");
        assert_eq!(client.refetches()[0].old_handle, "1-2");
        assert_eq!(client.refetches()[0].new_handle.as_deref(), Some("3-4"));
    }

    #[test]
    fn offsets_are_ordered() {
        let mut offsets = ["7_inf", "0_inf", "-1", "7_2", "0_1", "10_0", "0_0"];
        offsets.sort_by_key(|offset| offset_key(offset));
        assert_eq!(offsets, ["-1", "0_0", "0_1", "0_inf", "7_2", "7_inf", "10_0"]);
    }
}
