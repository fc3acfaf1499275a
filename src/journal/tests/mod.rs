//! Tests over more than one file of the journal.

mod fixtures;
mod kill;
mod model;
mod offline;
mod power;
mod store;

use crate::domain::EventId;

use super::{Entry, Journal};

/// The record of an id: any reader can tell whether it is the right one.
fn entry(id: u64, size: usize) -> Entry {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend((0..size).map(|at| (id as usize).wrapping_mul(31).wrapping_add(at) as u8));
    Entry { id: EventId(id), bytes }
}

fn entries(first: u64, count: u64, size: usize) -> Vec<Entry> {
    (first..first + count).map(|id| entry(id, size)).collect()
}

fn read_all(journal: &dyn Journal) -> Vec<Entry> {
    journal.read(EventId(0)).collect::<Result<_, _>>().expect("an intact journal reads")
}
