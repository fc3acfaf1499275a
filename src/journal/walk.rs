//! Walking the entries tree in order: values are checked, fragments joined, faults located.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sled::{IVec, Tree};

use crate::domain::EventId;

use super::error::{JournalError, Stage};
use super::value::{self, VALUE_VERSION, Value, ValueFault};
use super::{Entry, RECORD_BYTES_MAX};

/// Runs a call into sled. sled 0.34 panics on some damage; that must be an error of ours, not the end of
/// the thread.
pub(super) fn guarded<T>(
    stage: Stage,
    call: impl FnOnce() -> Result<T, sled::Error>,
) -> Result<T, JournalError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(JournalError::store(stage)),
        Err(panic) => Err(JournalError::Panicked { stage, message: panic_message(panic.as_ref()) }),
    }
}

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}

/// One value of the tree, or one record made of several.
pub(super) enum Step {
    Intact {
        first: u64,
        entries: Vec<Entry>,
    },
    /// `keys` are what has to be taken out of the way if this is the torn tail.
    Fault {
        first: u64,
        error: JournalError,
        keys: Vec<IVec>,
    },
}

pub(super) struct Walk {
    values: Peekable<sled::Iter>,
    reached: u64,
    ended: bool,
}

impl Walk {
    /// Starts with the value that holds `from`, or the next one there is.
    pub fn from(tree: &Tree, from: EventId) -> Result<Walk, JournalError> {
        let start = guarded(Stage::Read, || {
            tree.range(..=value::entry_key(from.0, u16::MAX)).next_back().transpose()
        })?
        .and_then(|(key, _)| value::parse_entry_key(&key))
        .map_or(0, |(first, _)| first);
        let values = tree.range(value::entry_key(start, 0)..).peekable();
        Ok(Walk { values, reached: start, ended: false })
    }

    fn next_pair(&mut self) -> Option<Result<(IVec, IVec), JournalError>> {
        let values = &mut self.values;
        let next = guarded(Stage::Read, || values.next().transpose());
        next.transpose()
    }

    /// Takes the next value too if it is a fragment of record `first`.
    fn next_fragment(&mut self, first: u64) -> Option<(IVec, IVec)> {
        let values = &mut self.values;
        let belongs = guarded(Stage::Read, || {
            Ok(match values.peek() {
                Some(Ok((key, _))) => value::parse_entry_key(key).is_some_and(|(id, _)| id == first),
                Some(Err(_)) | None => false,
            })
        });
        if belongs.unwrap_or(false) { self.next_pair()?.ok() } else { None }
    }

    fn fault(first: u64, fault: ValueFault, keys: Vec<IVec>) -> Step {
        let error = match fault {
            ValueFault::Newer { found } => JournalError::NewerFormat {
                what: "a journal value",
                found: u32::from(found),
                supported: u32::from(VALUE_VERSION),
            },
            ValueFault::Damaged(what) => JournalError::damaged_event(first, what),
        };
        Step::Fault { first, error, keys }
    }

    fn open(&mut self, key: IVec, bytes: &IVec) -> Step {
        let Some((first, fragment)) = value::parse_entry_key(&key) else {
            return Self::fault(self.reached, ValueFault::Damaged("key"), vec![key]);
        };
        self.reached = first;
        match value::decode(&key, bytes) {
            Ok(Value::Packed(records)) if fragment == 0 && !records.is_empty() => {
                let entries = (first..)
                    .zip(records)
                    .map(|(id, bytes)| Entry { id: EventId(id), bytes: bytes.to_vec() })
                    .collect();
                Step::Intact { first, entries }
            }
            Ok(Value::Fragment { index: 0, total, bytes }) if fragment == 0 => {
                self.join(first, total, bytes.to_vec(), key)
            }
            Ok(_) => {
                Self::fault(first, ValueFault::Damaged("value under a wrong key"), self.group(first, key))
            }
            Err(fault) => {
                let keys = self.group(first, key);
                Self::fault(first, fault, keys)
            }
        }
    }

    /// The key and those of the fragments that follow it.
    fn group(&mut self, first: u64, key: IVec) -> Vec<IVec> {
        let mut keys = vec![key];
        while let Some((key, _)) = self.next_fragment(first) {
            keys.push(key);
        }
        keys
    }

    fn join(&mut self, first: u64, total: u16, mut record: Vec<u8>, key: IVec) -> Step {
        let mut keys = vec![key];
        let mut seen = 1;
        let mut fault = None;
        while let Some((key, bytes)) = self.next_fragment(first) {
            let number = value::parse_entry_key(&key).map(|(_, fragment)| fragment);
            match value::decode(&key, &bytes) {
                Ok(Value::Fragment { index, total: again, bytes })
                    if index == seen
                        && number == Some(index)
                        && again == total
                        && record.len() + bytes.len() <= RECORD_BYTES_MAX =>
                {
                    record.extend_from_slice(bytes);
                }
                Ok(_) => fault = fault.or(Some(ValueFault::Damaged("fragment out of order"))),
                Err(error) => fault = fault.or(Some(error)),
            }
            seen = seen.saturating_add(1);
            keys.push(key);
        }
        if let Some(fault) = fault {
            return Self::fault(first, fault, keys);
        }
        if seen != total {
            return Self::fault(first, ValueFault::Damaged("missing fragment"), keys);
        }
        Step::Intact { first, entries: vec![Entry { id: EventId(first), bytes: record }] }
    }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.ended {
            return None;
        }
        match self.next_pair()? {
            Ok((key, bytes)) => Some(self.open(key, &bytes)),
            Err(error) => {
                // sled gives no promise about an iterator after an error.
                self.ended = true;
                Some(Step::Fault { first: self.reached, error, keys: Vec::new() })
            }
        }
    }
}

/// Entries one by one, dense: every hole and every fault is an item of its own.
pub(super) struct Entries {
    walk: Walk,
    from: u64,
    expected: Option<u64>,
    queue: VecDeque<Result<Entry, JournalError>>,
}

impl Entries {
    /// `floor`: the first entry kept; what lies below is the rest of an interrupted trim.
    pub fn from(tree: &Tree, from: EventId, floor: EventId) -> Result<Entries, JournalError> {
        let from = from.max(floor);
        Ok(Entries { walk: Walk::from(tree, from)?, from: from.0, expected: None, queue: VecDeque::new() })
    }

    /// The last intact entry from here on, also of a value that began earlier.
    pub fn newest(mut self) -> Option<EventId> {
        self.from = 0;
        self.filter_map(Result::ok).last().map(|entry| entry.id)
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.queue.pop_front() {
                return Some(item);
            }
            match self.walk.next()? {
                Step::Fault { error, .. } => {
                    // The damaged value says nothing about how many ids it held: the next intact one does.
                    self.expected = None;
                    return Some(Err(error));
                }
                Step::Intact { first, entries } => {
                    if let Some(expected) = self.expected.filter(|expected| *expected != first) {
                        let expected = EventId(expected);
                        self.queue.push_back(Err(JournalError::Hole { expected, found: EventId(first) }));
                    }
                    self.expected = Some(first + entries.len() as u64);
                    let from = self.from;
                    self.queue.extend(entries.into_iter().filter(|entry| entry.id.0 >= from).map(Ok));
                }
            }
        }
    }
}
