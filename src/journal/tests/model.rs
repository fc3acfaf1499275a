//! Random calls against a model: what is durable, what may be lost, in which order.

use proptest::prelude::*;

use super::*;
use crate::journal::{FailPoint, JournalError, MemoryJournal, SledJournal, Stage};

#[derive(Clone, Debug)]
enum Call {
    Append(u64, usize),
    Sync,
    Checkpoint(u64),
    Trim(u64),
    /// Keeps up to so many entries that were not synced.
    Crash(usize),
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => (0u64..20, 0usize..200).prop_map(|(count, size)| Call::Append(count, size)),
        1 => Just(Call::Append(2, 9000)),
        2 => Just(Call::Sync),
        1 => (0u64..150).prop_map(Call::Checkpoint),
        1 => (0u64..150).prop_map(Call::Trim),
        1 => (0usize..40).prop_map(Call::Crash),
    ]
}

#[derive(Default)]
struct Model {
    last: u64,
    durable: u64,
    /// Last ids of the batches that are not durable.
    batches: Vec<u64>,
    checkpoints: Vec<u64>,
}

impl Model {
    fn may_stand(&self, upto: u64) -> bool {
        upto <= self.last && self.checkpoints.last().is_none_or(|newest| *newest <= upto)
    }

    fn synced(&mut self) {
        self.durable = self.last;
        self.batches.clear();
    }

    /// Performs one call on both, up to a failure by a fail point.
    fn perform(&mut self, journal: &mut dyn Journal, call: &Call) -> Result<(), JournalError> {
        match *call {
            Call::Append(count, size) => {
                journal.append(&entries(self.last + 1, count, size))?;
                if count > 0 {
                    self.last += count;
                    self.batches.push(self.last);
                }
            }
            Call::Sync => {
                assert_eq!(journal.sync()?, EventId(self.last));
                self.synced();
            }
            Call::Checkpoint(upto) => match journal.checkpoint(EventId(upto), &upto.to_le_bytes()) {
                Err(JournalError::CheckpointOutOfRange { .. }) => assert!(!self.may_stand(upto)),
                Err(JournalError::Poisoned) => return Err(JournalError::Poisoned),
                Err(error) => {
                    assert!(self.may_stand(upto));
                    self.synced();
                    return Err(error);
                }
                Ok(()) => {
                    assert!(self.may_stand(upto));
                    self.synced();
                    self.checkpoints.push(upto);
                }
            },
            Call::Trim(before) => {
                let first = journal.trim(EventId(before))?.0;
                if let [.., older, _] = self.checkpoints[..] {
                    assert!(first <= older + 1, "{first} with a checkpoint at {older}");
                }
            }
            Call::Crash(_) => {}
        }
        Ok(())
    }

    fn check(&self, journal: &dyn Journal) {
        assert_eq!(journal.last(), EventId(self.last));
        let read = read_all(journal);
        let ids: Vec<u64> = read.iter().map(|entry| entry.id.0).collect();
        let first = ids.first().copied().unwrap_or(self.last + 1);
        assert_eq!(ids, (first..=self.last).collect::<Vec<_>>());
        let mut newest = self.checkpoints.clone();
        newest.reverse();
        newest.truncate(2);
        let kept: Vec<u64> = journal.checkpoints().unwrap().iter().map(|saved| saved.upto.0).collect();
        assert_eq!(kept, newest);
        let needed = if newest.len() == 2 { newest[1] + 1 } else { 1 };
        assert!(first <= needed, "{needed} is needed, {first} is the first");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn memory_journal_keeps_what_it_promised(
        calls in prop::collection::vec(call(), 1..60),
        fail_stage in prop::sample::select(vec![Stage::Append, Stage::Sync, Stage::Checkpoint]),
        fail_nth in 1u64..20,
    ) {
        let mut journal = MemoryJournal::new();
        journal.fail_at(FailPoint { stage: fail_stage, nth: fail_nth });
        let mut model = Model::default();
        let mut failed = false;
        for call in &calls {
            if let Call::Crash(keep) = call {
                journal.crash(*keep);
                let limit = model.durable + *keep as u64;
                let kept = model.batches.iter().copied().filter(|end| *end <= limit).max();
                model.last = kept.unwrap_or(model.durable);
                model.synced();
                failed = false;
            } else {
                match model.perform(&mut journal, call) {
                    Ok(()) => prop_assert!(!failed, "alive after a failure"),
                    Err(JournalError::Injected { stage }) => {
                        prop_assert_eq!(stage, fail_stage);
                        failed = true;
                    }
                    Err(JournalError::Poisoned) => prop_assert!(failed),
                    Err(other) => prop_assert!(false, "{other}"),
                }
            }
            model.check(&journal);
            prop_assert_eq!(journal.durable(), EventId(model.durable));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn sled_journal_does_the_same(calls in prop::collection::vec(call(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = SledJournal::open(dir.path(), EventId(0)).unwrap().0;
        let mut model = Model::default();
        for call in &calls {
            if let Call::Crash(_) = call {
                // A clean end keeps everything; kills are tested with a process of their own.
                drop(journal);
                let (again, report) = SledJournal::open(dir.path(), EventId(0)).unwrap();
                prop_assert_eq!(report.findings, Vec::new());
                journal = again;
                model.synced();
            } else if let Err(error) = model.perform(&mut journal, call) {
                prop_assert!(false, "{error}");
            }
            model.check(&journal);
        }
    }
}
