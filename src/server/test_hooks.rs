//! What tests of the running service need inside of it. Not compiled without the feature `test-hooks`.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;

use crate::domain::Relation;
use crate::filter::subquery::{Relations, TableTexts};

use super::App;
use super::definition::define;
use super::error::Failure;
use super::fields::Fields;
use super::params::{Asked, AskedDeletion};
use super::response::Reply;
use super::subset::{AskedSubset, SubsetRequest};

/// Everything that is read of a request before a shape is looked for, over that table: for tests that
/// damage requests. Whether all of it is well-formed.
#[must_use]
pub fn read_request(query: &str, body: &[u8], table: &Relation) -> bool {
    let mut fields = Fields::from_query(query);
    if fields.merge_body(body).is_err() {
        return false;
    }
    // Reads the same fields by other rules.
    let _deletion = AskedDeletion::parse(&fields);
    let Ok(asked) = Asked::parse(&fields) else { return false };
    let relation = Arc::new(table.clone());
    let defined = define(&asked.shape, &relation, &Relations::new(), &TableTexts::new()).is_ok();
    let subset = AskedSubset::parse(&fields).and_then(|subset| SubsetRequest::new(&asked, subset, table));
    defined && subset.is_ok()
}

/// `POST /test-hooks/panic?handle=…&times=1`: the writer of that shape panics in the middle of the next
/// transaction that it is handed, and so do its successors, until it was so often. Answered when the
/// driver has it in its queue, before any transaction that commits later.
pub(super) async fn panic(app: &App, fields: &Fields) -> Result<Reply, Failure> {
    let handle = fields.text("handle").and_then(|text| text.parse().ok());
    let shape = handle.and_then(|handle| app.service.shape(handle)).ok_or(Failure::NoShape)?;
    let times = fields.text("times").and_then(|text| text.parse().ok()).unwrap_or(1);
    app.service.sabotage(shape.sid, times).await;
    Ok(Reply { status: StatusCode::ACCEPTED, headers: HeaderMap::new(), body: Bytes::new() })
}

/// `POST /test-hooks/hold?part=driver&held=true`: that part of the pipeline (as the journal names it) stands
/// still at its next sign of life, until it is let go with `held=false`. Asks nothing of the driver.
pub(super) fn hold(app: &App, fields: &Fields) -> Result<Reply, Failure> {
    let held = fields.text("held").is_none_or(|text| text == "true");
    let part = fields.text("part").unwrap_or_default();
    if !app.service.hold(part, held) {
        return Err(Failure::NotFound);
    }
    Ok(Reply { status: StatusCode::ACCEPTED, headers: HeaderMap::new(), body: Bytes::new() })
}
