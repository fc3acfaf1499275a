//! What clients ask for: a shape, found or made, and its end.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Driver;
use crate::domain::{Handle, ShapeDefinition, Sid};
use crate::engine::Input;
use crate::events::InvalidationCause;
use crate::runtime::clock;
use crate::runtime::handle::{CreateError, LiveShape, Request};

impl Driver {
    pub(super) fn request(&mut self, request: Request) {
        match request {
            request @ Request::FindOrCreate { .. } if self.held.is_waiting() => self.held.defer(request),
            Request::FindOrCreate { definition, reply } => self.find_or_create(&definition, reply),
            Request::Delete { sid, reply } => {
                let input = Input::Invalidate { sid, cause: InvalidationCause::Deleted };
                let ends = match self.core.input(clock::now(), input) {
                    Ok(persist) => {
                        self.follow(persist);
                        true
                    }
                    Err(refusal) => {
                        tracing::debug!(%refusal, "a shape was not deleted");
                        false
                    }
                };
                let _gone = reply.send(ends);
            }
            Request::Lacks { tables, snapshot, upto, reply } => {
                let engine = self.core.engine();
                let lacks = tables.into_iter().any(|table| engine.lacks_commit(&snapshot, table, upto));
                let _gone = reply.send(lacks);
            }
            Request::Check { reply } => self.ask_for_check(Some(reply)),
            #[cfg(feature = "test-hooks")]
            Request::Meddle(projection) => self.core.meddle(projection),
            #[cfg(feature = "test-hooks")]
            Request::Sabotage { sid, times } => {
                self.executor.writers.send(sid, crate::runtime::writers::Command::Sabotage { sid, times });
            }
        }
    }

    fn find_or_create(
        &mut self,
        definition: &Arc<ShapeDefinition>,
        reply: oneshot::Sender<Result<Arc<LiveShape>, CreateError>>,
    ) {
        let hash = definition.hash();
        let found = self.core.engine().projections().shape_index.by_definition(hash).find(|sid| {
            let shape = self.executor.shapes.get(sid);
            shape.is_some_and(|shape| shape.definition.same_shape(definition) && !shape.is_over())
        });
        let (sid, shape) = match found {
            Some(sid) => (sid, self.executor.shapes.get(&sid).cloned()),
            None => match self.create(definition) {
                Some((sid, shape)) => (sid, Some(shape)),
                None => {
                    let _gone = reply.send(Err(CreateError::NotActive));
                    return;
                }
            },
        };
        // Known to readers already, or durable soon.
        match shape.filter(|shape| self.executor.service.shape(shape.handle).is_some()) {
            Some(shape) => {
                let _gone = reply.send(Ok(shape));
            }
            None => self.executor.waiting.entry(sid).or_default().push(reply),
        }
    }

    /// The shape of an inner query, shared by all that have the same.
    fn inner(&mut self, definition: &ShapeDefinition) -> Option<Sid> {
        let found =
            self.core.engine().projections().shape_index.by_definition(definition.hash()).find(|sid| {
                let shape = self.executor.shapes.get(sid);
                shape.is_some_and(|shape| shape.definition.same_shape(definition) && !shape.is_over())
            });
        found.or_else(|| self.create(&Arc::new(definition.clone())).map(|(sid, _)| sid))
    }

    fn create(&mut self, definition: &Arc<ShapeDefinition>) -> Option<(Sid, Arc<LiveShape>)> {
        let dependencies =
            definition.dependencies.iter().map(|inner| self.inner(inner)).collect::<Option<Vec<Sid>>>()?;
        let newest = self.core.engine().state().last_handle_micros;
        let micros = u64::try_from(clock::now().0).unwrap_or(0).max(newest + 1);
        let handle = Handle { hash: definition.hash().0, micros };
        let Some(filter) = self.executor.loader.filter(definition, handle) else {
            tracing::error!("a where clause was accepted that its canonical form is not");
            return None;
        };
        let (hash, oid) = (definition.hash(), definition.relation.oid);
        let input = if dependencies.is_empty() {
            Input::CreateShape { handle, definition: hash, oid }
        } else {
            let dependencies = dependencies.clone();
            Input::CreateDependentShape { handle, definition: hash, oid, dependencies }
        };
        let persist = match self.core.input(clock::now(), input) {
            Ok(persist) => persist,
            Err(refusal) => {
                tracing::debug!(%refusal, "a shape was not created");
                return None;
            }
        };
        let sid = self.core.engine().state().last_sid;
        // Before the next transaction is matched, and before the effects of the step are performed.
        let shape = self.executor.add_shape(sid, handle, definition, filter, dependencies);
        self.follow(persist);
        Some((sid, shape))
    }
}
