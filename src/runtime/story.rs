//! The events that are worth a line in the log.

use crate::events::{Event, JournalEvent, Recorded, ShapeEvent};

/// Lifecycle changes are worth a line each; what comes with every transaction is in the journal only.
pub(super) fn tell(recorded: &Recorded) {
    let name = recorded.event.name();
    match &recorded.event {
        Event::Ownership(event) => tracing::info!(id = %recorded.id, name, ?event),
        Event::Shape(ShapeEvent::Created { sid, handle, .. }) => {
            tracing::info!(id = %recorded.id, name, %sid, shape_handle = %handle)
        }
        Event::Shape(ShapeEvent::Invalidated { sid, cause }) => {
            tracing::info!(id = %recorded.id, name, %sid, ?cause);
        }
        Event::Journal(JournalEvent::ProjectionMismatch { projection }) => {
            tracing::error!(id = %recorded.id, ?projection, "a view differs from the fold; nothing is acknowledged");
        }
        Event::Consumer(event) => tracing::debug!(id = %recorded.id, name, ?event),
        Event::Shape(_) | Event::Stream(_) | Event::Flush(_) | Event::Journal(_) => {}
    }
}
