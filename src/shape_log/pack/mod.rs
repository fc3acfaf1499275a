//! Small shapes, many to a file: a [`Disk`] that keeps what looks like `shapes/<2 hex>/<handle>/` elsewhere.
//!
//! A shape with few rows and few changes costs a directory and three files, of which the file system makes
//! twelve kilobytes and as many syncs. Here it costs a few hundred bytes at the end of a file that all of them
//! share, `shapes/pack/<number>`, and one sync makes all of them durable that came before it.
//!
//! * **Records.** Each write to a file of a shape is one (record.rs): which file, at which position, the bytes.
//!   So what was synced is there, in the order in which it was written. Nothing is ever written over.
//! * **Small.** A shape whose log or snapshot grows beyond a bound moves into files of its own (moving.rs), and
//!   everything else that is done to it is done there. A directory with a definition is complete, and then it
//!   is what counts.
//! * **In memory** is where the content of each file is: about a hundred bytes for a shape (store.rs).
//! * **At a start** the segments are read, one after the other (scan.rs). A process never appends to a segment
//!   of another one; it begins its own, whose head says how far the one before is valid.
//! * **Room** is won back by writing again what is of use in the oldest segments, once less than half of all is.

mod moving;
mod record;
mod scan;
mod store;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::domain::Handle;

use super::disk::{Disk, DiskFile, FileIdentity, read_whole};
use super::error::{FileKind, Named, Stage, StorageFault};
use super::open_files::OpenFiles;

use record::Kind;
use store::{Place, Shape, State, Store, lock};

pub use store::SEGMENT_BYTES_MAX;

/// A log moves into a file of its own before it becomes larger.
pub const PACKED_LOG_BYTES_MAX: u64 = 64 << 10;
/// A snapshot moves into a file of its own before it becomes larger: one block, with its table.
pub const PACKED_SNAPSHOT_BYTES_MAX: u64 = 320 << 10;

/// A disk that packs small shapes. What is no shape's goes to the disk below.
#[derive(Debug)]
pub struct PackedDisk {
    store: Arc<Store>,
    /// New shapes are packed.
    packs: bool,
    /// Another process writes.
    follows: bool,
}

impl PackedDisk {
    /// Over the directory that this process owns: reads what is there.
    ///
    /// # Errors
    /// A [`StorageFault`] of reading.
    pub fn open(inner: Arc<dyn Disk>, data: &Path) -> Result<PackedDisk, StorageFault> {
        PackedDisk::with_segments_of(inner, data, SEGMENT_BYTES_MAX)
    }

    /// As [`PackedDisk::open`], with another bound of a segment.
    ///
    /// # Errors
    /// As [`PackedDisk::open`].
    pub fn with_segments_of(
        inner: Arc<dyn Disk>,
        data: &Path,
        segment_bytes_max: u32,
    ) -> Result<PackedDisk, StorageFault> {
        let store = Store::new(inner, data, segment_bytes_max);
        let opened = store.scan(false).and_then(|()| {
            store.sync_found()?;
            store.settle_moved()
        });
        opened.named(Stage::Open, FileKind::Directory)?;
        Ok(PackedDisk { store: Arc::new(store), packs: true, follows: false })
    }

    /// New shapes get files of their own at once; those that are packed stay so.
    #[must_use]
    pub fn without_new_ones(self) -> PackedDisk {
        PackedDisk { packs: false, ..self }
    }

    /// Over the directory of another process: read as files are asked for, and again each time.
    #[must_use]
    pub fn follow(inner: Arc<dyn Disk>, data: &Path) -> PackedDisk {
        PackedDisk {
            store: Arc::new(Store::new(inner, data, SEGMENT_BYTES_MAX)),
            packs: false,
            follows: true,
        }
    }

    /// Bytes of all segments, and of what is of use in them.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.store.total(), self.store.live.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// The shape and the file in it that a path leads to.
    fn locate<'p>(&self, path: &'p Path) -> Option<(Handle, &'p str)> {
        let mut parts = path.strip_prefix(&self.store.shapes_dir).ok()?.iter().map(|part| part.to_str());
        let (_shard, handle) = (parts.next()??, parts.next()??.parse().ok()?);
        let file = parts.next().map_or(Some(""), |name| name)?;
        parts.next().is_none().then_some((handle, file))
    }

    /// The shape that a path leads to, where it is packed, and the name of the file.
    fn packed<'p>(&self, path: &'p Path) -> Option<(Handle, Arc<Shape>, &'p str)> {
        let (handle, name) = self.locate(path)?;
        Some((handle, self.store.shape(handle)?, name))
    }

    fn file(&self, handle: Handle, shape: Arc<Shape>, kind: Kind) -> Arc<dyn DiskFile> {
        Arc::new(PackedFile { store: Arc::clone(&self.store), handle, shape, kind, moved: Mutex::default() })
    }

    /// A directory of the owner counts once it has a definition.
    fn is_moved(&self, handle: Handle) -> io::Result<bool> {
        match self.store.inner.open(&self.store.shape_dir(handle).join(Kind::Definition.name())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            opened => opened.map(|_| true),
        }
    }

    /// A shape is moved for whatever cannot be done to it here.
    fn unpacked(&self, path: &Path) -> io::Result<()> {
        if let Some((handle, shape, _)) = self.packed(path) {
            let mut state = shape.state();
            if state.place == Place::Here {
                self.store.unpack(handle, &mut state)?;
            }
        }
        Ok(())
    }
}

impl Disk for PackedDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if self.follows
            && let Some((handle, _)) = self.locate(path)
        {
            if self.is_moved(handle)? {
                return self.store.inner.open(path);
            }
            self.store.scan(true)?;
        }
        let Some((handle, shape, name)) = self.packed(path) else { return self.store.inner.open(path) };
        let state = shape.state();
        intact(&state)?;
        match Kind::of_name(name).filter(|kind| state.has(*kind)) {
            Some(kind) => {
                drop(state);
                Ok(self.file(handle, shape, kind))
            }
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let Some((handle, shape, name)) = self.packed(path) else { return self.store.inner.create(path) };
        let Some(kind) = Kind::of_name(name) else {
            self.unpacked(path)?;
            return self.store.inner.create(path);
        };
        let mut state = shape.state();
        if state.has(kind) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.make(kind);
        drop(state);
        Ok(self.file(handle, shape, kind))
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        match self.locate(path) {
            Some((handle, "")) if self.packs => {
                match self.store.inner.list(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    there => return there.map(|_| false),
                }
                Ok(self.store.shape_or_new(handle).1)
            }
            // Made when a shape moves there.
            None if self.packs && path.parent() == Some(&self.store.shapes_dir) => Ok(false),
            Some(_) | None => self.store.inner.create_dir(path),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if let Some((_, shape, _)) = self.packed(path) {
            let upto = shape.state().upto;
            return self.store.sync(upto);
        }
        self.store.inner.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self.packed(from) {
            Some((handle, shape, "")) => {
                let mut state = shape.state();
                if to.starts_with(self.store.data.join("trash")) {
                    return self.store.gone(handle, &mut state, Place::Gone);
                }
                self.store.set_aside(handle, &mut state, to)
            }
            Some(_) => {
                self.unpacked(from)?;
                self.store.inner.rename(from, to)
            }
            None => {
                // That it has moved away from here is durable before its directory is gone.
                if self.locate(from).is_some_and(|(_, name)| name.is_empty()) {
                    self.store.sync_all()?;
                }
                self.store.inner.rename(from, to)
            }
        }
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match self.packed(path) {
            Some((handle, shape, "")) => self.store.gone(handle, &mut shape.state(), Place::Gone),
            Some(_) | None => self.store.inner.remove_dir_all(path),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let Some((handle, shape, name)) = self.packed(path) else {
            return self.store.inner.remove_file(path);
        };
        let mut state = shape.state();
        match Kind::of_name(name).filter(|kind| state.has(*kind)) {
            Some(kind) => self.store.append(handle, &mut state, kind, 0, &[]),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        match self.packed(path) {
            Some((_, shape, "")) => {
                let state = shape.state();
                let there = Kind::FILES.into_iter().filter(|kind| state.has(*kind));
                Ok(there.map(|kind| kind.name().to_owned()).collect())
            }
            Some(_) | None => self.store.inner.list(path),
        }
    }

    fn barrier(&self) -> io::Result<()> {
        self.store.sync_all()?;
        self.store.inner.barrier()
    }

    fn open_files(&self) -> Option<&OpenFiles> {
        self.store.inner.open_files()
    }

    fn packed_shapes(&self) -> Vec<Handle> {
        self.store.handles()
    }

    fn tidy(&self) -> io::Result<()> {
        self.store.tidy()
    }

    fn leave_untidy(&self) {
        *lock(&self.store.given_back) = true;
    }
}

/// What was durable of the shape and cannot be found any more is damage.
fn intact(state: &State) -> io::Result<()> {
    if state.is_damaged() { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
}

/// A file of a packed shape; of its directory, once the shape has moved there.
#[derive(Debug)]
struct PackedFile {
    store: Arc<Store>,
    handle: Handle,
    shape: Arc<Shape>,
    kind: Kind,
    moved: Mutex<Option<Arc<dyn DiskFile>>>,
}

impl PackedFile {
    /// The file that it is now. A log may have been replaced at its place since, and that is another file.
    fn moved(&self, state: &State) -> io::Result<Arc<dyn DiskFile>> {
        let mut moved = lock(&self.moved);
        if let Some(file) = &*moved {
            return Ok(Arc::clone(file));
        }
        let file = self.store.inner.open(&self.store.shape_dir(self.handle).join(self.kind.name()))?;
        if let (Kind::Log, Some(log)) = (self.kind, &state.log)
            && file.identity()? != **log
        {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::clone(moved.insert(file)))
    }

    fn bytes_max(&self) -> u64 {
        match self.kind {
            Kind::Snapshot => PACKED_SNAPSHOT_BYTES_MAX,
            Kind::Definition | Kind::Log | Kind::Index | Kind::Gone => PACKED_LOG_BYTES_MAX,
        }
    }

    /// Changes the content, here or where the shape has moved to.
    fn change(
        &self,
        end: u64,
        here: impl FnOnce(&Store, &mut State) -> io::Result<()>,
        there: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.shape.state();
        if state.place == Place::Here && end > self.bytes_max() {
            self.store.unpack(self.handle, &mut state)?;
        }
        match state.place {
            Place::Here => {
                intact(&state)?;
                here(&self.store, &mut state)
            }
            Place::Moved => {
                let file = self.moved(&state)?;
                drop(state);
                there(file.as_ref())
            }
            Place::Gone => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl DiskFile for PackedFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.shape.state();
        if state.place == Place::Moved {
            let file = self.moved(&state)?;
            drop(state);
            return file.read_at(buffer, at);
        }
        intact(&state)?;
        let Some((segment, place, len)) = state.find(self.kind, at) else { return Ok(0) };
        drop(state);
        let len = len.min(buffer.len());
        let read = read_whole(segment.file.as_ref(), &mut buffer[..len], place)?;
        if read < len { Err(io::ErrorKind::InvalidData.into()) } else { Ok(read) }
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut written = bytes.len();
        let position = u32::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge);
        self.change(
            at + bytes.len() as u64,
            |store, state| store.write(self.handle, state, self.kind, position?, bytes),
            |file| {
                written = file.write_at(bytes, at)?;
                Ok(())
            },
        )?;
        Ok(written)
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.shape.state();
        match state.place {
            Place::Moved => self.moved(&state)?.size(),
            Place::Here | Place::Gone => Ok(state.len(self.kind)),
        }
    }

    fn identity(&self) -> io::Result<FileIdentity> {
        let state = self.shape.state();
        match state.place {
            Place::Moved => self.moved(&state)?.identity(),
            Place::Here | Place::Gone => Ok(FileIdentity::packed(self.handle)),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(
            len,
            |store, state| {
                let size = state.len(self.kind);
                let at =
                    |at: u64| u32::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
                if len == size {
                    return Ok(());
                }
                if len < size {
                    return store.append(self.handle, state, self.kind, at(len)?, &[]);
                }
                let zeros = vec![0; (len - size) as usize];
                store.write(self.handle, state, self.kind, at(size)?, &zeros)
            },
            |file| file.set_len(len),
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = self.shape.state();
        match state.place {
            Place::Moved => {
                let file = self.moved(&state)?;
                drop(state);
                file.sync_data()
            }
            Place::Here => {
                let upto = state.upto;
                drop(state);
                self.store.sync(upto)
            }
            Place::Gone => Ok(()),
        }
    }

    fn packed_upto(&self) -> Option<u64> {
        let state = self.shape.state();
        (state.place != Place::Moved).then(|| state.upto.number())
    }
}
