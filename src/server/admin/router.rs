//! From a path to who answers.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::Response;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};

use super::answer::Refusal;
use super::{Admin, histories, live, page, past, remote};

/// The page for everybody, the answers for those with the token.
pub(super) fn router(admin: Arc<Admin>) -> Router {
    let api = Router::new()
        .route("/v1/now", get(live::now))
        .route("/v1/check", post(live::check))
        .route("/v1/events/live", get(live::events))
        .route("/v1/journals", get(histories::list).post(histories::hand_in))
        .route("/v1/progress", get(past::progress))
        .route("/v1/moment", get(past::moment))
        .route("/v1/state", get(past::state))
        .route("/v1/holding", get(past::holding))
        .route("/v1/consumers", get(past::consumers))
        .route("/v1/shapes", get(past::shapes))
        .route("/v1/shape/{called}", get(past::shape))
        .route("/v1/why/{what}", get(past::why))
        .route("/v1/chain/{event}", get(past::chain))
        .route("/v1/owners", get(past::owners))
        .route("/v1/acks", get(past::acks))
        .route("/v1/diff", get(past::diff))
        .route("/v1/events", get(past::events))
        .route("/v1/timeline", get(past::timeline))
        .route("/v1/incident", get(past::incident))
        .route("/v1/verify", get(past::verify))
        .route("/v1/stats", get(past::stats))
        .route("/v1/export", get(remote::export))
        .route("/v1/ask", post(remote::ask));
    #[cfg(feature = "test-hooks")]
    let api =
        api.route("/v1/test-hooks/meddle", post(live::meddle)).route("/v1/test-hooks/park", post(live::park));
    api.fallback(nothing)
        .method_not_allowed_fallback(another_method)
        // Each body has a limit of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&admin), with_token))
        .merge(page::files())
        .with_state(admin)
}

async fn with_token(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response<Body> {
    if admin.token.admits(request.headers()) {
        next.run(request).await
    } else {
        Refusal::Token.into_response()
    }
}

async fn nothing() -> Refusal {
    Refusal::NoRoute
}

async fn another_method() -> Refusal {
    Refusal::Method
}
