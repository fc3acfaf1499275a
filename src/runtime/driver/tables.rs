//! What is learned about tables other than from the stream.

use super::Driver;
use crate::domain::WireRelation;
use crate::engine::Input;
use crate::events::StopCause;
use crate::runtime::publishing::Below;
use crate::runtime::reconciler::CatalogLook;
use crate::state::StreamPhase;

impl Driver {
    /// From the next transaction on, changes of the partitions are changes of the table.
    pub(super) fn below(&mut self, below: Below) {
        let Below { table, members, tree, grown } = below;
        self.executor.router.set_members(table, &members);
        self.input(Input::PartitionsSeen { oid: table, members, tree, grown });
    }

    /// Of a partitioned table that is known by what is below it: its own columns are those of its
    /// partitions.
    pub(super) fn schema_of(&self, relation: &WireRelation) -> u64 {
        let seen = self.core.engine().state().relations.get(&relation.oid);
        match seen.filter(|_| self.executor.router.partitions().is_followed(relation.oid)) {
            Some(tree) => *tree,
            None => relation.schema_hash(),
        }
    }

    /// Ends the shapes that cannot go on with the tables as they are, and those only.
    pub(super) fn catalog(&mut self, look: &CatalogLook) {
        if look.publication_missing {
            let stream = &self.core.engine().state().stream;
            if stream.phase == StreamPhase::Streaming {
                tracing::error!("the publication is gone; the stream is started again");
                let generation = stream.generation;
                self.input(Input::StreamStopped { generation, cause: StopCause::Server });
            }
            return;
        }
        for sid in &look.judged {
            if let Some(cause) = self.executor.router.judge(*sid, look) {
                self.input(Input::Invalidate { sid: *sid, cause });
            }
        }
        self.executor.router.looked(look);
    }
}
