//! Subset snapshots over HTTP: contract 1.14.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;

use crate::domain::{Handle, Lsn, Offset, Relation, parse_column_list};
use crate::filter::{check_params, subset_condition, subset_order};
use crate::runtime::handle::{LiveShape, Phase, Status};
use crate::runtime::subset::{SnapshotError, Subset, SubsetError, SubsetQuery};

use super::App;
use super::admission::Permit;
use super::error::{Failure, FieldErrors, ascii};
use super::fields::{Fields, Scalar, Value};
use super::params::{Asked, Requested};
use super::response::{ELECTRIC_HANDLE, ELECTRIC_OFFSET, ELECTRIC_SCHEMA, JSON, respond};
use super::schema::schema_header;
use super::shape::{RESTARTING, over, ready};

const ELECTRIC_SNAPSHOT: HeaderName = HeaderName::from_static("electric-snapshot");

/// The part of a request that names the rows; its columns are not looked up yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AskedSubset {
    condition: Option<String>,
    params: BTreeMap<String, String>,
    order_by: Option<String>,
    limit: Option<i64>,
    offset: Option<i64>,
}

impl AskedSubset {
    /// # Errors
    /// Every field that cannot be what it should be.
    pub(super) fn parse(fields: &Fields) -> Result<AskedSubset, Failure> {
        let mut errors = FieldErrors::new();
        let mut refuse = |name: &'static str, message: &str| {
            errors.entry(name).or_default().push(message.to_owned());
        };
        let mut text = |name: &'static str, key: &str| match fields.scalar(key) {
            Scalar::Absent => None,
            Scalar::Text(text) => Some(text),
            Scalar::Unusable => {
                refuse(name, "is invalid");
                None
            }
        };
        let condition = text("where", "subset__where").map(str::to_owned);
        let order_by = text("order_by", "subset__order_by").map(str::to_owned);
        let (limit, offset) = (text("limit", "subset__limit"), text("offset", "subset__offset"));
        let limit = number(limit, 1, "must be greater than 0").unwrap_or_else(|message| {
            refuse("limit", message);
            None
        });
        let offset = number(offset, 0, "must be greater than or equal to 0").unwrap_or_else(|message| {
            refuse("offset", message);
            None
        });
        let params = params(fields.get("subset__params")).unwrap_or_else(|message| {
            refuse("params", message);
            BTreeMap::new()
        });
        if errors.is_empty() && order_by.is_none() && (limit.is_some() || offset.is_some()) {
            let message = "order_by is required when limit or offset is present";
            errors.insert("order_by", vec![message.to_owned()]);
        }
        if errors.is_empty() {
            Ok(AskedSubset { condition, params, order_by, limit, offset })
        } else {
            Err(Failure::InvalidSubset(errors))
        }
    }

    /// The query over a table of which the client may use `queryable` columns.
    ///
    /// # Errors
    /// The first clause that is not allowed.
    fn resolve(self, relation: &Relation, queryable: Option<&str>) -> Result<SubsetQuery, Failure> {
        let refuse =
            |name, message: String| Failure::InvalidSubset(FieldErrors::from([(name, vec![message])]));
        let mut relation = relation.clone();
        // The list was checked with the shape.
        if let Some(queryable) = queryable.and_then(|list| parse_column_list(list).ok()) {
            relation.columns.retain(|column| queryable.contains(&column.name));
        }
        let condition = match &self.condition {
            None => None,
            Some(text) => {
                let params =
                    check_params(&self.params).map_err(|error| refuse("params", error.to_string()))?;
                let condition = subset_condition(text, &params, &relation);
                Some(condition.map_err(|error| refuse("where", error.to_string()))?)
            }
        };
        let order_by = match &self.order_by {
            None => None,
            Some(text) => {
                Some(subset_order(text, &relation).map_err(|error| refuse("order_by", error.to_string()))?)
            }
        };
        Ok(SubsetQuery { condition, order_by, limit: self.limit, offset: self.offset })
    }
}

fn number(text: Option<&str>, least: i64, too_small: &'static str) -> Result<Option<i64>, &'static str> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(number) if number >= least => Ok(Some(number)),
        Ok(_) => Err(too_small),
        Err(_) => Err("is invalid"),
    }
}

/// A map, or the text of a JSON object.
fn params(sent: Option<&Value>) -> Result<BTreeMap<String, String>, &'static str> {
    const NO_OBJECT: &str = "params must be a JSON object";
    match sent {
        None => Ok(BTreeMap::new()),
        Some(Value::Map(params)) => Ok(params.clone()),
        Some(Value::Unusable) => Err(NO_OBJECT),
        Some(Value::Text(text)) if text.trim().is_empty() => Ok(BTreeMap::new()),
        Some(Value::Text(text)) => {
            let json = serde_json::from_str(text).map_err(|_| "params must be valid JSON")?;
            match Value::from_json(json) {
                Some(Value::Map(params)) => Ok(params),
                Some(Value::Text(_) | Value::Unusable) | None => Err(NO_OBJECT),
            }
        }
    }
}

/// What a client is to be answered.
pub(super) struct SubsetRequest {
    query: SubsetQuery,
    requested: Requested,
}

impl SubsetRequest {
    /// # Errors
    /// The first rule that the clauses break.
    pub(super) fn new(asked: &Asked, subset: AskedSubset, relation: &Relation) -> Result<Self, Failure> {
        let query = subset.resolve(relation, asked.shape.queryable_columns.as_deref())?;
        Ok(SubsetRequest { query, requested: asked.requested })
    }

    /// Reads the rows and begins to send them.
    ///
    /// # Errors
    /// Those of reading, before the first row is sent.
    pub(super) async fn answer(
        &self,
        app: &App,
        shape: &Arc<LiveShape>,
        permit: Permit,
    ) -> Result<Response, Failure> {
        ready(app, |status| *status == Status::Active).await?;
        // Before the snapshot is taken: what comes on the log later is after it.
        let position = self.position(shape);
        let subset = app.service.subset(shape, position.tx(), &self.query).await;
        if let Phase::Ended | Phase::Failed(_) = shape.phase() {
            return Err(over(app, shape));
        }
        let mut subset = subset.map_err(failure)?;
        let first = subset.next_piece().await.map_err(|error| failure(error.into()))?;
        let mut body = metadata(&subset).into_bytes();
        body.extend_from_slice(first.as_deref().unwrap_or_default());
        let second = match first {
            None => None,
            Some(_) => subset.next_piece().await.map_err(|error| failure(error.into()))?,
        };
        let body = match second {
            None => {
                body.extend_from_slice(b"]}");
                Body::from(body)
            }
            Some(second) => {
                let handle = shape.handle;
                let begun = vec![second, Bytes::from(body)];
                let rest = Rest { handle, begun, subset: Some(subset), _permit: permit };
                Body::from_stream(stream::unfold(rest, Rest::next))
            }
        };
        Ok(respond(StatusCode::OK, headers(shape, position), body))
    }

    /// Where on the log the client goes on. That is where it is: it has not seen more, and a snapshot
    /// of some rows is no reason to leave out changes of others.
    fn position(&self, shape: &LiveShape) -> Offset {
        match self.requested {
            Requested::Now => shape.reader.view().last(),
            Requested::After(Offset::BeforeAll) => Offset::snapshot_chunk(0),
            Requested::After(offset) => offset,
        }
    }
}

fn headers(shape: &LiveShape, position: Offset) -> HeaderMap {
    // The ones added for every response included.
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ELECTRIC_SNAPSHOT, HeaderValue::from_static("true"));
    headers.insert(ELECTRIC_HANDLE, ascii(&shape.handle.to_string()));
    headers.insert(ELECTRIC_OFFSET, ascii(&position.to_string()));
    headers.insert(ELECTRIC_SCHEMA, ascii(&schema_header(&shape.definition)));
    headers
}

#[derive(Serialize)]
struct Metadata {
    xmin: String,
    xmax: String,
    xip_list: Vec<String>,
    snapshot_mark: u32,
    database_lsn: String,
}

/// The beginning of the body, up to the first row.
fn metadata(subset: &Subset) -> String {
    let Lsn(lsn) = subset.lsn;
    let metadata = Metadata {
        xmin: subset.visible.xmin.to_string(),
        xmax: subset.visible.xmax.to_string(),
        xip_list: subset.visible.xip.iter().map(u64::to_string).collect(),
        snapshot_mark: subset.mark,
        database_lsn: lsn.to_string(),
    };
    let metadata = serde_json::to_string(&metadata).expect("strings and numbers have a JSON form");
    format!("{{\"metadata\":{metadata},\"data\":[")
}

/// The rest of a body that is not sent at once.
struct Rest {
    handle: Handle,
    /// Pieces that are there; the first is last.
    begun: Vec<Bytes>,
    /// `None` once all rows were sent.
    subset: Option<Subset>,
    _permit: Permit,
}

impl Rest {
    async fn next(mut self) -> Option<(Result<Bytes, SnapshotError>, Rest)> {
        if let Some(piece) = self.begun.pop() {
            return Some((Ok(piece), self));
        }
        match self.subset.as_mut()?.next_piece().await {
            Ok(Some(piece)) => Some((Ok(piece), self)),
            Ok(None) => {
                self.subset = None;
                Some((Ok(Bytes::from_static(b"]}")), self))
            }
            // Then the connection is cut: a beginning is not to be taken for all.
            Err(error) => {
                tracing::warn!(shape_handle = %self.handle, "a subset was cut off: its rows cannot be read");
                self.subset = None;
                Some((Err(error), self))
            }
        }
    }
}

fn failure(error: SubsetError) -> Failure {
    let error = match error {
        SubsetError::Snapshot(error) => error,
        SubsetError::NotVisible => return Failure::SnapshotKnown(error.to_string()),
        SubsetError::Closing => return Failure::NotReady(RESTARTING.to_owned()),
    };
    match error {
        SnapshotError::InvalidLiteral(message) => Failure::SubsetLiteral(message),
        SnapshotError::MustRefetch => Failure::MustRefetch(None),
        SnapshotError::PermissionDenied(_)
        | SnapshotError::LockTimeout
        | SnapshotError::FirstDataTimeout(_)
        | SnapshotError::StartTimeout
        | SnapshotError::Unavailable
        | SnapshotError::PoolQueueTimeout => Failure::SnapshotKnown(error.to_string()),
        SnapshotError::Cancelled | SnapshotError::Unexpected(_) | SnapshotError::Malformed => {
            Failure::SnapshotUnexpected(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::relation;

    fn check(query: &str, queryable: Option<&str>, expected: &str) {
        let query = AskedSubset::parse(&Fields::from_query(query))
            .and_then(|asked| asked.resolve(&relation(), queryable));
        let shown = match query {
            Ok(SubsetQuery { condition, order_by, limit, offset }) => {
                format!("{condition:?} {order_by:?} {limit:?} {offset:?}")
            }
            Err(Failure::InvalidSubset(errors)) => serde_json::to_string(&errors).expect("plain data"),
            Err(other) => format!("{other:?}"),
        };
        assert_eq!(shown, expected, "{query:?}", query = expected);
    }

    #[test]
    fn numbers_and_order() {
        for (query, expected) in [
            ("", "None None None None"),
            ("subset__limit=+&subset__where=", "None None None None"),
            (
                "subset__order_by=id&subset__limit=2&subset__offset=0",
                r#"None Some("\"id\"") Some(2) Some(0)"#,
            ),
            ("subset__limit=1", r#"{"order_by":["order_by is required when limit or offset is present"]}"#),
            ("subset__offset=1", r#"{"order_by":["order_by is required when limit or offset is present"]}"#),
            (
                "subset__limit=0&subset__offset=-1",
                r#"{"limit":["must be greater than 0"],"offset":["must be greater than or equal to 0"]}"#,
            ),
            (
                "subset__limit=x&subset__order_by[a]=b",
                r#"{"limit":["is invalid"],"order_by":["is invalid"]}"#,
            ),
            ("subset__order_by=id+limit+1", r#"{"order_by":["malformed query ending with SQL clauses"]}"#),
        ] {
            check(query, None, expected);
        }
    }

    #[test]
    fn parameters_are_a_map_or_the_text_of_one() {
        let value = r#"Some("(\"value\" = 'a'::text)") None None None"#;
        for params in ["subset__params={%221%22:%22a%22}", "subset__params[1]=a"] {
            check(&format!("subset__where=value=$1&{params}"), None, value);
        }
        check(
            "subset__where=id=$1&subset__params={%221%22:5}",
            None,
            r#"Some("(\"id\" = '5'::int4)") None None None"#,
        );
        for (params, message) in [
            ("[]", "params must be a JSON object"),
            ("5", "params must be a JSON object"),
            ("{%221%22:[]}", "params must be a JSON object"),
            ("x", "params must be valid JSON"),
            ("{%22a%22:%221%22}", "Parameters can only use numbers as keys"),
        ] {
            let query = format!("subset__where=value=$1&subset__params={params}");
            check(&query, None, &format!(r#"{{"params":["{message}"]}}"#));
        }
    }

    #[test]
    fn only_what_is_queryable_can_be_used() {
        check("subset__where=value='a'", Some("id,k,value"), r#"Some("(\"value\" = 'a')") None None None"#);
        check(
            "subset__where=value='a'",
            Some("id,k"),
            r#"{"where":["At location 0: unknown reference value"]}"#,
        );
        check(
            "subset__order_by=value",
            Some("id,k"),
            r#"{"order_by":["At location 18: unknown reference value"]}"#,
        );
    }
}
