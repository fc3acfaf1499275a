//! How many requests are served at once: contract 6.4.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge};
use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::Metrics;

use super::error::Failure;
use super::settings::Settings;

/// What a request is, by the handle in its query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It may make a shape.
    Initial,
    /// It names a shape that is known here.
    Existing,
}

/// The places of both classes.
#[derive(Debug)]
pub(super) struct Admission {
    initial: Places,
    existing: Places,
}

#[derive(Debug)]
struct Places {
    free: Arc<Semaphore>,
    limit: usize,
    class: &'static str,
    taken: IntGauge,
    rejected: IntCounter,
}

/// A place, held until the body was written or the client went away.
#[derive(Debug)]
pub(super) struct Permit {
    _place: OwnedSemaphorePermit,
    class: Class,
    taken: IntGauge,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.dec();
    }
}

impl Admission {
    pub(super) fn new(settings: &Settings, metrics: &Metrics) -> Admission {
        let places = |limit: usize, class| {
            let limit = limit.min(Semaphore::MAX_PERMITS);
            metrics.admission_limit.with_label_values(&[class]).set(i64::try_from(limit).unwrap_or(i64::MAX));
            Places {
                free: Arc::new(Semaphore::new(limit)),
                limit,
                class,
                taken: metrics.admission.with_label_values(&[class]),
                rejected: metrics.admission_rejected.with_label_values(&[class]),
            }
        };
        Admission {
            initial: places(settings.initial_requests_max, "initial"),
            existing: places(settings.existing_requests_max, "existing"),
        }
    }

    /// A place of this class, at once.
    ///
    /// # Errors
    /// [`Failure::Overloaded`]: there is no queue, clients come back later.
    pub(super) fn enter(&self, class: Class) -> Result<Permit, Failure> {
        let places = match class {
            Class::Initial => &self.initial,
            Class::Existing => &self.existing,
        };
        match Arc::clone(&places.free).try_acquire_owned() {
            Ok(place) => {
                places.taken.inc();
                Ok(Permit { _place: place, class, taken: places.taken.clone() })
            }
            Err(_) => {
                places.rejected.inc();
                Err(Failure::Overloaded {
                    class: places.class,
                    limit: places.limit,
                    retry_after: 5 + rand::rng().random_range(1..=5),
                })
            }
        }
    }

    /// A request whose shape exists by now leaves room for others that make shapes; where all places
    /// for existing ones are taken it keeps its own.
    pub(super) fn settle(&self, permit: Permit) -> Permit {
        match permit.class {
            Class::Existing => permit,
            // Not `enter`: where there is no room nobody is sent away.
            Class::Initial if self.existing.free.available_permits() == 0 => permit,
            Class::Initial => self.enter(Class::Existing).unwrap_or(permit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_class_and_come_back() {
        let settings = Settings { initial_requests_max: 1, existing_requests_max: 1, ..Settings::default() };
        let metrics = Metrics::new();
        let admission = Admission::new(&settings, &metrics);
        let taken = |class: &str| metrics.admission.with_label_values(&[class]).get();
        let first = admission.enter(Class::Initial).expect("the first place");
        match admission.enter(Class::Initial) {
            Err(Failure::Overloaded { class: "initial", limit: 1, retry_after }) => {
                assert!((6..=10).contains(&retry_after));
            }
            other => panic!("{other:?}"),
        }
        let settled = admission.settle(first);
        assert_eq!(settled.class, Class::Existing);
        assert!(admission.enter(Class::Existing).is_err());
        let second = admission.settle(admission.enter(Class::Initial).expect("the place is free again"));
        assert_eq!(second.class, Class::Initial, "kept, since the other class is full");
        assert_eq!((taken("initial"), taken("existing")), (1, 1));
        drop(settled);
        assert!(admission.enter(Class::Existing).is_ok());
        drop(second);
        assert_eq!((taken("initial"), taken("existing")), (0, 0), "every place comes back");
        assert_eq!(metrics.admission_rejected.with_label_values(&["initial"]).get(), 1);
    }
}
