//! Shapes that leave: into files of their own, where they have grown, and segments that are mostly of no use.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::domain::Handle;
use crate::shape_log::disk::DiskFile;
use crate::shape_log::files::ShapeFiles;

use super::record::Kind;
use super::store::{Place, Position, State, Store, content_of, lock, write_whole};

/// Segments are rewritten where less than one in so many bytes is of use.
const LIVE_SHARE_MIN: u64 = 2;

impl Store {
    /// Moves a shape into files of its own. The definition is made last: a directory that has it is
    /// complete, and then nobody looks at what is here any more. Durable where the shape was.
    ///
    /// # Errors
    /// Those of making them; the shape is still here then.
    pub fn unpack(&self, handle: Handle, state: &mut State) -> io::Result<()> {
        let dir = self.shape_dir(handle);
        let shard = dir.parent().unwrap_or(&self.shapes_dir);
        self.remove_rest(&dir)?;
        self.inner.create_dir(shard)?;
        self.inner.create_dir(&dir)?;
        // Nobody relies on a shape of which nothing has been durable, and who makes it durable syncs all of it.
        let begun = state.pieces.iter().map(|piece| Position::new(piece.segment.number, piece.at)).min();
        let durable = begun.is_some_and(|begun| begun < self.synced());
        for kind in [Kind::Snapshot, Kind::Log, Kind::Index] {
            if state.has(kind) {
                let file = self.copy(&dir, state, kind, durable)?;
                if kind == Kind::Log {
                    state.log = Some(Box::new(file.identity()?));
                }
            }
        }
        if durable {
            self.inner.sync_dir(&dir)?;
            self.inner.sync_dir(shard)?;
            self.inner.sync_dir(&self.shapes_dir)?;
        }
        self.copy(&dir, state, Kind::Definition, durable)?;
        if durable {
            self.inner.sync_dir(&dir)?;
        }
        if let Err(error) = self.gone(handle, state, Place::Moved) {
            // Its directory counts all the same, and the next start says so here.
            tracing::warn!(shape_handle = %handle, %error, "that a shape has its own files now could not be noted");
            self.forget(handle);
            state.place = Place::Moved;
        }
        state.pieces = Vec::new();
        Ok(())
    }

    /// Copies a shape to a place where nobody looks for it, durably, and is done with it.
    ///
    /// # Errors
    /// Those of making the files; the shape is still here then.
    pub fn set_aside(&self, handle: Handle, state: &mut State, to: &Path) -> io::Result<()> {
        self.inner.create_dir(to)?;
        for kind in Kind::FILES {
            if state.has(kind) {
                self.copy(to, state, kind, true)?;
            }
        }
        self.inner.sync_dir(to)?;
        self.gone(handle, state, Place::Gone)?;
        self.sync(state.upto)
    }

    fn copy(
        &self,
        dir: &Path,
        state: &State,
        kind: Kind,
        durable: bool,
    ) -> io::Result<std::sync::Arc<dyn DiskFile>> {
        let content = content_of(state, kind)?;
        let file = self.inner.create(&dir.join(kind.name()))?;
        write_whole(file.as_ref(), &content, 0)?;
        if durable {
            file.sync_data()?;
        }
        Ok(file)
    }

    /// What an attempt before has left.
    fn remove_rest(&self, dir: &Path) -> io::Result<()> {
        match self.inner.remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Shapes that are here and have a directory, too: a process before has moved them and not come to say
    /// so, or has not come to the end of it.
    ///
    /// # Errors
    /// Those of reading directories.
    pub fn settle_moved(&self) -> io::Result<()> {
        let list = |path: &Path| match self.inner.list(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names,
        };
        for shard in list(&self.shapes_dir)?.iter().filter(|name| name.len() == 2) {
            for name in list(&self.shapes_dir.join(shard))? {
                let Ok(handle) = name.parse::<Handle>() else { continue };
                let Some(shape) = self.shape(handle) else { continue };
                let files = ShapeFiles::open(std::sync::Arc::clone(&self.inner), &self.data, handle);
                let mut state = shape.state();
                if files.read_definition().is_ok() {
                    self.gone(handle, &mut state, Place::Moved)?;
                } else {
                    self.remove_rest(&self.shape_dir(handle))?;
                }
            }
        }
        Ok(())
    }

    /// Whether most of the segments is of no use.
    pub fn is_untidy(&self) -> bool {
        let total = self.total();
        total > u64::from(self.segment_bytes_max)
            && self.live.load(Ordering::Relaxed) * LIVE_SHARE_MIN < total
    }

    /// Writes what is of use in the oldest segments again, and removes them. What is removed is there a second
    /// time, or was announced to go. Blocks for as long as that takes; others go on meanwhile.
    ///
    /// # Errors
    /// Those of reading and writing; nothing is lost then.
    pub fn tidy(&self) -> io::Result<()> {
        let last = lock(&self.tail).segments.last().map_or(0, |segment| segment.number);
        while self.is_untidy() {
            let given_back = lock(&self.given_back);
            if *given_back {
                return Ok(());
            }
            let oldest = lock(&self.tail).segments.first().map(std::sync::Arc::clone);
            let Some(oldest) = oldest.filter(|oldest| oldest.number < last) else { return Ok(()) };
            for (handle, shape) in self.all() {
                let mut state = shape.state();
                // Evidence is left as it is.
                if state.is_damaged() {
                    return Ok(());
                }
                for kind in Kind::FILES {
                    let old = |kind| {
                        let mut pieces = state.pieces.iter().filter(|piece| piece.kind == kind);
                        pieces.any(|piece| piece.segment.number == oldest.number)
                    };
                    if state.place == Place::Here && old(kind) {
                        let content = content_of(&state, kind)?;
                        self.append(handle, &mut state, kind, 0, &content)?;
                    }
                }
            }
            self.sync_all()?;
            self.inner.remove_file(&self.folder.join(super::store::segment_name(oldest.number)))?;
            // Before a newer one goes: that may say that something in this one is gone.
            self.inner.sync_dir(&self.folder)?;
            lock(&self.tail).segments.retain(|segment| segment.number != oldest.number);
        }
        Ok(())
    }
}
