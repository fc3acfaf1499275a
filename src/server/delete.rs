//! DELETE `/v1/shape`: contract 1.18.

use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use bytes::Bytes;

use crate::runtime::handle::Status;

use super::App;
use super::definition::resolve;
use super::error::Failure;
use super::fields::Fields;
use super::params::AskedDeletion;
use super::response::{ELECTRIC_HAS_DATA, Reply};
use super::shape::ready;

/// Ends the shape that is named by its definition, by its handle, or by both.
pub(super) async fn delete(app: &App, fields: &Fields) -> Result<Reply, Failure> {
    ready(app, |status| *status == Status::Active).await?;
    if !app.settings.allow_delete {
        return Err(Failure::DeleteDisabled);
    }
    let asked = AskedDeletion::parse(fields)?;
    let shape = match &asked.shape {
        None => asked.handle.and_then(|handle| app.service.shape(handle)),
        Some(shape) => {
            let definition = resolve(&app.service, shape, asked.handle, false).await?;
            app.service.find(&definition)
        }
    };
    let shape = shape.ok_or(Failure::NoShape)?;
    if asked.handle_given && asked.handle != Some(shape.handle) {
        return Err(Failure::Mismatch);
    }
    if !app.service.delete(&shape).await {
        return Err(Failure::NoShape);
    }
    let mut headers = HeaderMap::with_capacity(10);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ELECTRIC_HAS_DATA, HeaderValue::from_static("true"));
    Ok(Reply { status: StatusCode::ACCEPTED, headers, body: Bytes::new() })
}
