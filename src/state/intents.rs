//! Destruction that was announced and not yet reported as done.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::events::{DestructionTarget, IntentId};

/// Found by its number and by what is to go: when very many shapes end at once, so many are open. In a
/// checkpoint it is a list of pairs, by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Intents {
    by_id: BTreeMap<IntentId, DestructionTarget>,
    by_target: BTreeSet<(DestructionTarget, IntentId)>,
}

impl Intents {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    #[must_use]
    pub fn contains(&self, intent: IntentId) -> bool {
        self.by_id.contains_key(&intent)
    }

    /// Whether this was announced by this number.
    #[must_use]
    pub fn is_for(&self, intent: IntentId, target: DestructionTarget) -> bool {
        self.by_id.get(&intent) == Some(&target)
    }

    /// Whether this was announced, by whatever number.
    #[must_use]
    pub fn is_announced(&self, target: DestructionTarget) -> bool {
        let of_target = (target, IntentId(0))..=(target, IntentId(u64::MAX));
        self.by_target.range(of_target).next().is_some()
    }

    pub(super) fn open(&mut self, intent: IntentId, target: DestructionTarget) {
        self.close(intent);
        self.by_id.insert(intent, target);
        self.by_target.insert((target, intent));
    }

    pub(super) fn close(&mut self, intent: IntentId) {
        if let Some(target) = self.by_id.remove(&intent) {
            self.by_target.remove(&(target, intent));
        }
    }

    pub(super) fn clear(&mut self) {
        self.by_id.clear();
        self.by_target.clear();
    }
}

impl Serialize for Intents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.by_id)
    }
}

impl<'de> Deserialize<'de> for Intents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Intents, D::Error> {
        let pairs = Vec::<(IntentId, DestructionTarget)>::deserialize(deserializer)?;
        let mut intents = Intents::default();
        pairs.into_iter().for_each(|(intent, target)| intents.open(intent, target));
        Ok(intents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Sid;

    #[test]
    fn it_is_found_by_number_and_by_target_until_it_is_closed() {
        let (files, log) = (DestructionTarget::ShapeFiles(Sid(1)), DestructionTarget::ShapeLog(Sid(1)));
        let mut intents = Intents::default();
        intents.open(IntentId(1), files);
        intents.open(IntentId(2), log);
        intents.open(IntentId(3), files);
        assert!(intents.is_for(IntentId(1), files) && !intents.is_for(IntentId(1), log));
        assert!(!intents.is_announced(DestructionTarget::ShapeFiles(Sid(2))));
        intents.close(IntentId(1));
        assert!(intents.is_announced(files), "it was announced twice");
        intents.close(IntentId(3));
        assert!(!intents.is_announced(files) && intents.is_announced(log));
        assert!(intents.contains(IntentId(2)) && !intents.contains(IntentId(3)));
        assert_eq!(intents.len(), 1);
        intents.clear();
        assert!(intents.is_empty() && !intents.is_announced(log));
    }

    #[test]
    fn in_a_checkpoint_it_is_the_list_that_it_was() {
        let pairs = vec![
            (IntentId(3), DestructionTarget::ShapeFiles(Sid(9))),
            (IntentId(7), DestructionTarget::ShapeLog(Sid(2))),
        ];
        let bytes = rmp_serde::to_vec(&pairs).unwrap();
        let intents: Intents = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(intents.len(), 2);
        assert_eq!(rmp_serde::to_vec(&intents).unwrap(), bytes);
    }
}
