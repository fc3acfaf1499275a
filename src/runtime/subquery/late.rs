//! What a shape with inner queries makes of a transaction: decided at once, or once it is known what its
//! inner queries give.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use crate::shape_log::{Annotation, Op, Unit};

/// What one shape wants of a transaction, as soon as that is known.
#[derive(Debug, Default)]
pub struct Late {
    decided: OnceLock<Decided>,
    units: Mutex<Vec<Arc<Unit>>>,
}

/// See [`Late`].
#[derive(Debug, Default)]
pub struct Decided {
    /// By position in the transaction, ascending.
    pub changes: Vec<(u32, Op, Annotation)>,
    /// A message about values that have moved out, after the changes.
    pub event: Option<Bytes>,
}

impl Late {
    #[must_use]
    pub fn new() -> Late {
        Late::default()
    }

    #[must_use]
    pub fn of(decided: Decided) -> Late {
        Late { decided: OnceLock::from(decided), units: Mutex::default() }
    }

    #[must_use]
    pub fn decided(&self) -> Option<&Decided> {
        self.decided.get()
    }

    /// Decides; a second decision is the same as the first.
    pub fn decide(&self, decided: Decided) {
        let _same = self.decided.set(decided);
    }

    /// Messages that come after the transaction.
    pub fn add_unit(&self, unit: Arc<Unit>) {
        self.lock().push(unit);
    }

    #[must_use]
    pub fn units(&self) -> Vec<Arc<Unit>> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Unit>>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
