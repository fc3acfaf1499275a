//! Which journals can be asked: the service's own, and files that somebody handed in.

use std::io::Write;
use std::sync::{Arc, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use futures_util::StreamExt;
use serde_json::json;

use crate::inspect::History;

use super::answer::{Answer, Json, Refusal};
use super::{Admin, Sources};

/// Files kept at a time; the oldest goes when there is one more.
pub const HANDED_IN_MAX: usize = 4;
/// Size of a file that is handed in.
pub const HANDED_IN_BYTES_MAX: usize = 256 << 20;
/// What the service's own journal, or the one that was opened, is called.
const OWN: &str = "own";

impl Admin {
    /// The journal of that name; the own one if nothing is said.
    pub(super) fn history(&self, name: Option<&str>) -> Result<Arc<History>, Refusal> {
        match name.filter(|name| *name != OWN) {
            None => match &self.sources {
                Sources::Opened(history) => Ok(Arc::clone(history)),
                Sources::Running { .. } => {
                    self.observed().map(|observed| observed.history).ok_or(Refusal::NotYet)
                }
            },
            Some(name) => {
                let number = name.parse().ok();
                let known = number.and_then(|number: u64| self.handed_in().get(&number).cloned());
                known.ok_or_else(|| Refusal::NoJournal(name.to_owned()))
            }
        }
    }
}

/// `GET /v1/journals`
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Answer {
    let mut journals = Vec::new();
    if let Ok(own) = admin.history(None) {
        journals.push(json!({"journal": OWN, "name": own.name(), "live": own.is_live()}));
    }
    for (number, history) in admin.handed_in().iter() {
        journals.push(json!({"journal": number.to_string(), "name": history.name(), "live": false}));
    }
    let live = match admin.sources {
        Sources::Running { .. } => true,
        Sources::Opened(_) => false,
    };
    let (bytes_max, version) = (HANDED_IN_BYTES_MAX, env!("CARGO_PKG_VERSION"));
    Ok(Json(json!({"journals": journals, "live": live, "bytes_max": bytes_max, "version": version})))
}

/// `POST /v1/journals`: an exported file or a sealed segment as the body; kept until there are newer ones.
pub(super) async fn hand_in(State(admin): State<Arc<Admin>>, request: Request<Body>) -> Answer {
    let mut file = tempfile::Builder::new()
        .prefix("shapefold-handed-in-")
        .tempfile()
        .map_err(|error| Refusal::Failed(error.to_string()))?;
    let (mut body, mut bytes) = (request.into_body().into_data_stream(), 0_usize);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| Refusal::Wrong("the file did not arrive whole".to_owned()))?;
        bytes += piece.len();
        if bytes > HANDED_IN_BYTES_MAX {
            return Err(Refusal::TooLarge(HANDED_IN_BYTES_MAX));
        }
        file.write_all(&piece).map_err(|error| Refusal::Failed(error.to_string()))?;
    }
    let path = file.into_temp_path();
    let opened = admin.heavy.ask(move |_| {
        History::handed_in("handed in".to_owned(), path)
            .map_err(|error| Refusal::Wrong(format!("this is no journal that can be read: {error}")))
    });
    let history = Arc::new(opened.await?);
    let mut handed_in = admin.handed_in.write().unwrap_or_else(PoisonError::into_inner);
    let number = handed_in.keys().next_back().map_or(1, |newest| newest + 1);
    if handed_in.len() == HANDED_IN_MAX {
        handed_in.pop_first();
    }
    handed_in.insert(number, history);
    Ok(Json(json!({"journal": number.to_string()})))
}
