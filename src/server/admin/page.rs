//! The dashboard: files in the binary, with a policy that lets nothing else in.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use axum::routing::get;

use super::Admin;
use super::answer::respond;

/// Scripts, styles and answers from here, and nothing from anywhere else; in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, content type, file.
const FILES: [(&str, &str, &str); 11] = [
    ("/", "text/html; charset=utf-8", include_str!("../../../web/admin/index.html")),
    ("/admin.css", "text/css; charset=utf-8", include_str!("../../../web/admin/admin.css")),
    ("/main.js", SCRIPT, include_str!("../../../web/admin/main.js")),
    ("/api.js", SCRIPT, include_str!("../../../web/admin/api.js")),
    ("/dom.js", SCRIPT, include_str!("../../../web/admin/dom.js")),
    ("/format.js", SCRIPT, include_str!("../../../web/admin/format.js")),
    ("/chart.js", SCRIPT, include_str!("../../../web/admin/chart.js")),
    ("/list.js", SCRIPT, include_str!("../../../web/admin/list.js")),
    ("/parts.js", SCRIPT, include_str!("../../../web/admin/parts.js")),
    ("/now.js", SCRIPT, include_str!("../../../web/admin/now.js")),
    ("/machine.js", SCRIPT, include_str!("../../../web/admin/machine.js")),
];
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files. They hold nothing that anybody may not know, and ask for the token themselves.
pub(super) fn files() -> Router<Arc<Admin>> {
    FILES.iter().fold(Router::new(), |router, (path, content_type, text)| {
        router.route(path, get(move || async move { file(content_type, text) }))
    })
}

fn file(content_type: &'static str, text: &'static str) -> Response<Body> {
    let mut response = respond(StatusCode::OK, content_type, Body::from(text));
    let name = HeaderName::from_static("content-security-policy");
    response.headers_mut().insert(name, HeaderValue::from_static(POLICY));
    response
}
