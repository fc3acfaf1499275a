//! Questions that read a journal: on threads of their own, few at a time, cut short when nobody waits for
//! the answer any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::Refusal;

/// Such questions answered at the same time.
pub const HEAVY_MAX: usize = 2;
/// Such questions that wait for their turn; more are refused with 503.
pub const HEAVY_WAITING_MAX: usize = 16;

/// Who may ask.
pub(super) struct Heavy {
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Default for Heavy {
    fn default() -> Heavy {
        Heavy {
            places: Arc::new(Semaphore::new(HEAVY_MAX + HEAVY_WAITING_MAX)),
            turns: Arc::new(Semaphore::new(HEAVY_MAX)),
        }
    }
}

/// The right to ask one question. Whoever drops it before the answer has gone.
pub(super) struct Turn {
    _place: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

/// Set when it is dropped: reading ends early.
pub(super) struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Heavy {
    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Refusal::Busy`] where too many wait already.
    pub(super) async fn turn(&self) -> Result<Turn, Refusal> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refusal::Busy)?;
        // The semaphore is never closed.
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Refusal::Busy)?;
        Ok(Turn { _place: place, _turn: turn })
    }

    /// Answers on a thread of its own. The question is told when nobody waits for it any more; its turn
    /// ends when it does, not before.
    ///
    /// # Errors
    /// Those of [`Heavy::turn`] and of the question.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(Arc<AtomicBool>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = self.turn().await?;
        let flag = Arc::new(AtomicBool::new(false));
        let _gone = Gone(Arc::clone(&flag));
        let answered = tokio::task::spawn_blocking(move || {
            let answer = question(flag);
            drop(turn);
            answer
        });
        answered.await.map_err(|_| Refusal::Failed("a bug: see the log".to_owned()))?
    }
}

/// A flag and what sets it: for answers that are sent while they are found.
pub(super) fn flag() -> (Arc<AtomicBool>, Gone) {
    let flag = Arc::new(AtomicBool::new(false));
    (Arc::clone(&flag), Gone(flag))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_few_are_answered_some_wait_and_the_others_are_refused() {
        let heavy = Heavy::default();
        let mut answering = Vec::new();
        for _ in 0..HEAVY_MAX {
            answering.push(heavy.turn().await.expect("a turn"));
        }
        let mut waiting: Vec<_> = (0..HEAVY_WAITING_MAX).map(|_| Box::pin(heavy.turn())).collect();
        for turn in &mut waiting {
            assert!(turn.as_mut().now_or_never().is_none(), "it waits for its turn");
        }
        assert!(matches!(heavy.turn().await, Err(Refusal::Busy)));
        // Whoever waited longest is next, and one more may wait.
        answering.pop();
        assert!(waiting.remove(0).await.is_ok());
        drop(waiting);
        drop(answering);
        assert!(heavy.turn().await.is_ok());
    }

    #[tokio::test]
    async fn who_goes_away_ends_the_question_and_the_turn_ends_with_it() {
        let heavy = Heavy::default();
        let (told, hears) = tokio::sync::oneshot::channel();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let mut asked = Box::pin(heavy.ask(move |gone| {
            begun.send(()).expect("the test waits");
            while !gone.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            told.send(()).expect("the test waits");
            Ok(())
        }));
        assert!(asked.as_mut().now_or_never().is_none());
        begins.await.expect("the question is being answered");
        assert!(asked.as_mut().now_or_never().is_none());
        drop(asked);
        hears.await.expect("it was told");
        for _ in 0..HEAVY_MAX {
            // Not before the question has ended.
            assert!(heavy.turn().await.is_ok());
        }
    }
}
