//! What a question may say.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::rejection::QueryRejection;
use axum::http::request::Parts;
use serde::Deserialize;

use crate::inspect::Position;

use super::answer::Refusal;

/// Rows in one answer if nothing is said, and at most.
const LIMIT_DEFAULT: usize = 100;
pub const LIMIT_MAX: usize = 1_000;
/// Anomalies with less than this between them are one story: as the command line's default.
const WINDOW_DEFAULT: Duration = Duration::from_secs(300);

/// The query of any question. What is not known is refused: a filter that is ignored looks like an answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Question {
    /// Which journal: the service's own, or the number of one that was handed in.
    pub journal: Option<String>,
    pub at: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub before: Option<String>,
    pub after: Option<u64>,
    pub offset: usize,
    limit: Option<usize>,
    /// A width of the gap in bytes, to say when it is reached.
    pub bytes: Option<u64>,
    window_seconds: Option<u64>,
    pub shape: Option<String>,
    pub kind: Option<String>,
    pub life: Option<String>,
    pub table: Option<u32>,
    pub dead: bool,
    pub owing: bool,
    pub broken: bool,
}

impl Question {
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MAX)
    }

    pub(super) fn window(&self) -> Duration {
        self.window_seconds.map_or(WINDOW_DEFAULT, Duration::from_secs)
    }

    /// A place, or the end.
    ///
    /// # Errors
    /// [`Refusal::Wrong`].
    pub(super) fn at(&self) -> Result<Position, Refusal> {
        place(self.at.as_deref(), Position::End)
    }
}

/// # Errors
/// [`Refusal::Wrong`].
pub(super) fn place(text: Option<&str>, otherwise: Position) -> Result<Position, Refusal> {
    text.map_or(Ok(otherwise), |text| {
        text.parse().map_err(|error| Refusal::Wrong(format!("{text:?}: {error}")))
    })
}

/// The query of a request, refused in our own form.
pub(super) struct Asked(pub Question);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let query = axum::extract::Query::<Question>::from_request_parts(parts, state).await;
        query.map(|query| Asked(query.0)).map_err(|error: QueryRejection| Refusal::Wrong(error.body_text()))
    }
}
