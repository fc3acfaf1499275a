//! One answer for all who ask for the same thing at the same time.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::Shared;
use tokio::sync::oneshot;

/// What is being worked on, by name. As many as there are requests, at most.
pub struct SingleFlight<K, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

type Flight<V> = Shared<oneshot::Receiver<V>>;

impl<K, V> Clone for SingleFlight<K, V> {
    fn clone(&self) -> Self {
        SingleFlight { running: Arc::clone(&self.running) }
    }
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        SingleFlight { running: Arc::default() }
    }
}

impl<K, V> std::fmt::Debug for SingleFlight<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SingleFlight").finish_non_exhaustive()
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The outcome of the work on `key` that runs, or of `work`, which then runs in a task of its own:
    /// one who asks and goes away takes nothing from the others. `None` where it panicked.
    pub async fn run(&self, key: K, work: impl Future<Output = V> + Send + 'static) -> Option<V> {
        self.join(key, |landing| async move {
            let outcome = work.await;
            // Whoever comes from now on asks anew.
            drop(landing);
            outcome
        })
        .await
    }

    /// As [`Self::run`], with work that says itself from when on those who come ask anew: once it has
    /// dropped what it is given. Where it must not look at anything before the last who shares its outcome
    /// has come, it does so first.
    pub async fn join<W>(&self, key: K, work: impl FnOnce(Landing<K, V>) -> W) -> Option<V>
    where
        W: Future<Output = V> + Send + 'static,
    {
        let flight = {
            let mut running = lock(&self.running);
            match running.get(&key) {
                Some(flight) => flight.clone(),
                None => {
                    let (done, outcome) = oneshot::channel();
                    let flight = outcome.shared();
                    running.insert(key.clone(), flight.clone());
                    let work = work(Landing { running: Arc::clone(&self.running), key });
                    tokio::spawn(async move {
                        let _nobody_waits = done.send(work.await);
                    });
                    flight
                }
            }
        };
        flight.await.ok()
    }
}

/// Ends a flight, also where the work panics.
pub struct Landing<K: Eq + Hash, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

fn lock<K, V>(running: &Mutex<HashMap<K, Flight<V>>>) -> MutexGuard<'_, HashMap<K, Flight<V>>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_meanwhile_share_the_outcome_and_later_ones_do_not() {
        let flights = SingleFlight::<&str, u32>::default();
        let (calls, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let ask = |key| {
            let (calls, go) = (Arc::clone(&calls), Arc::clone(&go));
            flights.run(key, async move {
                let call = calls.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                call
            })
        };
        let release = async {
            tokio::task::yield_now().await;
            go.notify_one();
        };
        let (one, other, ()) = tokio::join!(ask("a"), ask("a"), release);
        assert_eq!((one, other), (Some(0), Some(0)));
        let (later, beside, ()) = tokio::join!(ask("a"), ask("b"), async {
            tokio::task::yield_now().await;
            go.notify_waiters();
        });
        assert_eq!(later.max(beside), Some(2));
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }

    /// What is looked at after the last has joined is true for all of them.
    #[tokio::test]
    async fn who_comes_once_the_work_has_begun_waits_for_the_next() {
        let flights = SingleFlight::<&str, u32>::default();
        let (calls, turn) = (Arc::new(AtomicU32::new(0)), Arc::new(tokio::sync::Mutex::new(())));
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let ask = || {
            let (calls, turn) = (Arc::clone(&calls), Arc::clone(&turn));
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            flights.join("a", |landing| async move {
                let _turn = turn.lock().await;
                drop(landing);
                begun.notify_one();
                go.notified().await;
                calls.fetch_add(1, Ordering::Relaxed)
            })
        };
        let late = async {
            begun.notified().await;
            go.notify_one();
            let next = async {
                begun.notified().await;
                go.notify_one();
            };
            tokio::join!(ask(), ask(), next)
        };
        let (first, (second, third, ())) = tokio::join!(ask(), late);
        assert_eq!((first, second, third), (Some(0), Some(1), Some(1)));
    }

    #[tokio::test]
    async fn one_who_goes_away_and_one_that_panics_hold_up_nobody() {
        let flights = SingleFlight::<&str, u32>::default();
        let go = Arc::new(Notify::new());
        let waits = Arc::clone(&go);
        let first = flights.run("a", async move {
            waits.notified().await;
            7
        });
        assert!(first.now_or_never().is_none(), "it waits");
        go.notify_one();
        assert_eq!(flights.run("a", async { 8 }).await, Some(7), "the work went on");
        assert_eq!(flights.run("b", async { panic!("a bug") }).await, None);
        assert_eq!(flights.run("b", async { 9 }).await, Some(9));
    }
}
