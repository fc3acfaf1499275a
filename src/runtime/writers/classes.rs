//! Which of the shapes of a thread get the same messages for the same changes.

use std::collections::BTreeMap;

use crate::domain::ShapeDefinition;
use crate::replication::Transaction;
use crate::shape_log::SharedEncoder;

/// A class that some writer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClassId(usize);

/// The classes of the writers of a thread. As many as there are writers, at most.
#[derive(Debug, Default)]
pub(super) struct Classes {
    by_key: BTreeMap<Vec<u8>, ClassId>,
    /// `None`: free for another.
    classes: Vec<Option<Class>>,
    free: Vec<ClassId>,
}

#[derive(Debug)]
struct Class {
    key: Vec<u8>,
    encoder: SharedEncoder,
    /// Never 0.
    writers: usize,
}

impl Classes {
    /// The class of a new writer.
    pub fn enter(&mut self, definition: &ShapeDefinition) -> ClassId {
        let key = SharedEncoder::class(definition);
        if let Some(id) = self.by_key.get(&key) {
            if let Some(class) = &mut self.classes[id.0] {
                class.writers += 1;
            }
            return *id;
        }
        let class = Class { key: key.clone(), encoder: SharedEncoder::new(definition), writers: 1 };
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.classes.push(None);
                ClassId(self.classes.len() - 1)
            }
        };
        self.classes[id.0] = Some(class);
        self.by_key.insert(key, id);
        id
    }

    /// A writer has ended.
    pub fn leave(&mut self, id: ClassId) {
        let Some(class) = &mut self.classes[id.0] else { return };
        class.writers -= 1;
        if class.writers == 0 {
            self.by_key.remove(&class.key);
            self.classes[id.0] = None;
            self.free.push(id);
        }
    }

    /// The encoder of a class, at this transaction. Panics where no writer is in the class.
    pub fn encoder(&mut self, id: ClassId, txn: &Transaction) -> &mut SharedEncoder {
        let class = self.classes[id.0].as_mut().expect("a class lives as long as its writers");
        class.encoder.begin(txn.lsn, txn.xid);
        &mut class.encoder
    }
}
