//! What a fresh process must do to carry on from the state that it found.

use crate::engine::{Decision, Effect};
use crate::state::Life;

impl Decision<'_> {
    /// Asks for everything that the living state needs and that died with the process before:
    /// shapes in memory, a connection. Removals carry on by themselves, see
    /// [`Decision::settle_removal`]; writers start when something comes for them.
    pub(super) fn resume(&mut self) {
        let living: Vec<_> = self
            .state()
            .shapes
            .iter()
            .filter(|(_, shape)| shape.life == Life::Live)
            .map(|(sid, shape)| (*sid, shape.handle))
            .collect();
        for (sid, handle) in living {
            self.ask(Effect::RestoreShape { sid, handle });
        }
        self.ask(Effect::ConnectPostgres);
    }
}
