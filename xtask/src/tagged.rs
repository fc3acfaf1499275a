//! What a client keeps of the rows of a shape with subqueries besides their values: tags and active
//! conditions (contract 1.16).

use std::collections::BTreeMap;

use serde::Deserialize;

/// One value at one position of the tags.
#[derive(Clone, Debug, Deserialize)]
pub struct Pattern {
    pub pos: usize,
    pub value: String,
}

/// Tags and conditions of all rows, by message key.
#[derive(Debug, Default)]
pub struct Tagged {
    rows: BTreeMap<String, Conditions>,
}

#[derive(Debug)]
struct Conditions {
    /// One for each disjunct, in slots.
    tags: Vec<Vec<String>>,
    active: Vec<bool>,
}

impl Tagged {
    /// Takes the headers of an insert or update; tells whether the row is in by them.
    pub fn set(&mut self, key: &str, tags: &[String], active: Vec<bool>) -> bool {
        let tags = tags.iter().map(|tag| tag.split('/').map(str::to_owned).collect()).collect();
        let conditions = Conditions { tags, active };
        let holds = conditions.hold();
        self.rows.insert(key.to_owned(), conditions);
        holds
    }

    pub fn remove(&mut self, key: &str) {
        self.rows.remove(key);
    }

    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// Takes a message about values; gives the keys of the rows that are out by it.
    pub fn turn(&mut self, patterns: &[Pattern], to: bool) -> Vec<String> {
        for conditions in self.rows.values_mut() {
            for pattern in patterns {
                let slot =
                    |tag: &Vec<String>| tag.get(pattern.pos).is_some_and(|slot| *slot == pattern.value);
                if conditions.tags.iter().any(slot)
                    && let Some(active) = conditions.active.get_mut(pattern.pos)
                {
                    *active = to;
                }
            }
        }
        let out: Vec<String> =
            self.rows.iter().filter(|(_, row)| !row.hold()).map(|(key, _)| key.clone()).collect();
        out.iter().for_each(|key| self.remove(key));
        out
    }
}

impl Conditions {
    /// Some disjunct has all of its positions true: those that are not empty in its tag.
    fn hold(&self) -> bool {
        self.tags.iter().any(|tag| {
            tag.iter().enumerate().all(|(position, slot)| {
                slot.is_empty() || self.active.get(position).copied().unwrap_or(false)
            })
        })
    }
}
