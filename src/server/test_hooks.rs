//! What tests of the running service need inside of it. Not compiled without the feature `test-hooks`.

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;

use super::App;
use super::error::Failure;
use super::fields::Fields;
use super::response::Reply;

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
