//! Waiting for a shape to change: contract 1.13.

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::runtime::handle::LiveShape;
use crate::shape_log::ShapeView;

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The shape failed or is gone.
    Over,
    /// There is a view that was wanted.
    Changed,
    /// The server shuts down.
    Closing,
    TimedOut,
}

/// Waits for a view of which `wanted` holds, for the end of the shape, for shutdown, or for the
/// deadline. Each source is registered before it is looked at, so nothing is missed (P6). Costs no
/// task and no buffer: five thousand requests may be here at once.
pub(super) async fn wait(
    shape: &LiveShape,
    closing: &mut watch::Receiver<bool>,
    deadline: Instant,
    wanted: impl Fn(&ShapeView) -> bool,
) -> News {
    let _interest = shape.interest();
    tokio::select! {
        biased;
        // Rows of a shape that is gone are not news: the client has to start anew.
        () = shape.over() => News::Over,
        _ = shape.reader.wait_for(wanted) => News::Changed,
        () = set(closing) => News::Closing,
        () = sleep_until(deadline) => News::TimedOut,
    }
}

/// Waits until a flag is set. Its sender outlives all requests; were it gone, that would be shutdown too.
pub(super) async fn set(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}
