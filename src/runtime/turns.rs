//! Taking turns where the locks of the data directory's file system are not to be relied upon.
//!
//! The advisory lock in Postgres is then the only thing that instances share. It is taken after the directory
//! and not before, so this is no more than a look: two that start in the same moment both get in. That is why
//! such a directory is refused unless somebody asks for it.

use std::time::Duration;

use crate::postgres::PgError;
use crate::replication::is_lock_held;
use crate::runtime::connections::Connections;
use crate::runtime::handle::{Service, Status};

/// Between two looks at the lock.
const POLL: Duration = Duration::from_millis(500);

/// Waits until nobody holds the advisory lock of the slot; for as long as Postgres cannot be asked, too.
pub(super) async fn wait_for_turn(admin: &Connections, slot: &str, service: &Service) {
    let mut told: Option<String> = None;
    loop {
        let (reason, status) = match held(admin, slot).await {
            Ok(false) => return,
            Ok(true) => {
                let reason = "Timeout waiting for Postgres lock acquisition".to_owned();
                (reason.clone(), Status::Waiting { reason })
            }
            Err(error) => {
                let reason = error.to_string();
                (reason.clone(), Status::Starting { reason })
            }
        };
        service.set_status(status);
        if told.as_ref() != Some(&reason) {
            tracing::info!(%reason, "file locks are not relied upon: waiting for the lock in Postgres");
            told = Some(reason);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn held(admin: &Connections, slot: &str) -> Result<bool, PgError> {
    let loan = admin.get().await?;
    is_lock_held(loan.client(), slot).await
}
