//! How many requests are served at once: contract 6.4.

use std::sync::Arc;

use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
}

/// A place, held until the body was written or the client went away.
#[derive(Debug)]
pub(super) struct Permit {
    _place: OwnedSemaphorePermit,
    class: Class,
}

impl Admission {
    pub(super) fn new(settings: &Settings) -> Admission {
        let places = |limit: usize, class| {
            let limit = limit.min(Semaphore::MAX_PERMITS);
            Places { free: Arc::new(Semaphore::new(limit)), limit, class }
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
            Ok(place) => Ok(Permit { _place: place, class }),
            Err(_) => Err(Failure::Overloaded {
                class: places.class,
                limit: places.limit,
                retry_after: 5 + rand::rng().random_range(1..=5),
            }),
        }
    }

    /// A request whose shape exists by now leaves room for others that make shapes; where all places
    /// for existing ones are taken it keeps its own.
    pub(super) fn settle(&self, permit: Permit) -> Permit {
        match permit.class {
            Class::Existing => permit,
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
        let admission = Admission::new(&settings);
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
        drop(settled);
        assert!(admission.enter(Class::Existing).is_ok());
    }
}
