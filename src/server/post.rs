//! Bodies of POST requests: contract 1.6 and 1.14.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::Failure;

/// Longest body that is read.
const BODY_BYTES_MAX: usize = 8_000_000;

/// # Errors
/// [`Failure::BodyTooLarge`], or [`Failure::BodyUnreadable`] where the connection broke.
pub(super) async fn read_body(body: Body) -> Result<Bytes, Failure> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Failure::BodyTooLarge),
        Err(_) => Err(Failure::BodyUnreadable),
    }
}
