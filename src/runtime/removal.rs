//! Removing the files of a shape that has ended, or setting them aside where they are evidence. Announced in the
//! journal before; tried again with growing pauses until it is done, since the end of a shape has to come.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::domain::{Handle, Sid};
use crate::engine::Input;
use crate::events::{DestructionResult, IntentId};
use crate::runtime::driver::Message;
use crate::runtime::faults;
use crate::runtime::handle::{Service, Status};
use crate::runtime::quarantine;
use crate::shape_log::{Disk, FaultClass, ShapeFiles, ShapeLogError, purge};

/// Before the second attempt; doubles with each.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Clone)]
pub(super) struct Removal {
    pub sid: Sid,
    pub handle: Handle,
    pub intent: IntentId,
    /// They are evidence of damage: set aside, not removed.
    pub keep: bool,
    pub files: ShapeFiles,
    pub disk: Arc<dyn Disk>,
    pub data_dir: PathBuf,
    pub driver: mpsc::Sender<Message>,
    pub service: Service,
}

impl Removal {
    /// Runs until it is done, or until the service drains: the next start takes up what is announced.
    pub async fn run(self) {
        let mut status = self.service.watch_status();
        let mut pause = PAUSE;
        let mut told = false;
        loop {
            let attempt = self.clone();
            match tokio::task::spawn_blocking(move || attempt.attempt()).await {
                Ok(Ok(result)) => {
                    let input = Input::FilesTrashed { sid: self.sid, intent: self.intent, result };
                    // Nobody waits for it any more where the process is ending.
                    let _closed = self.driver.send(Message::Input(input)).await;
                    return;
                }
                Ok(Err(error)) => {
                    let (sid, handle) = (self.sid, self.handle);
                    // The cause is journaled once; the log holds back what repeats.
                    tracing::error!(%sid, shape_handle = %handle, %error, "the files of a shape could not be removed");
                    if let (ShapeLogError::Storage(fault), false) = (error, told) {
                        told = true;
                        let _closed = self.driver.send(Message::Input(faults::input(fault, None))).await;
                    }
                }
                Err(_panicked) => {
                    tracing::error!(sid = %self.sid, "the removal of a shape's files panicked");
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                // From then on the directory may be given back at any time.
                _ = status.wait_for(|status| *status == Status::Draining) => return,
            }
        }
    }

    fn attempt(&self) -> Result<DestructionResult, ShapeLogError> {
        if self.keep {
            // A second attempt finds that there is nothing left to move.
            let result = quarantine::set_aside(&self.files, &self.data_dir)?;
            tracing::warn!(sid = %self.sid, handle = %self.handle, "the damaged files of a shape are kept in quarantine/");
            return Ok(result);
        }
        let vanished = |error: &ShapeLogError| matches!(error, ShapeLogError::Storage(fault) if fault.class == FaultClass::Vanished);
        let result = match self.files.trash(&self.data_dir) {
            Ok(()) => DestructionResult::Done,
            // An attempt before may have got this far, or the shape never had files.
            Err(error) if vanished(&error) => DestructionResult::AlreadyDone,
            Err(error) => return Err(error),
        };
        match purge(self.disk.as_ref(), &self.data_dir, &self.handle.to_string()) {
            Err(error) if !vanished(&error) => Err(error),
            Ok(()) | Err(_) => Ok(result),
        }
    }
}
