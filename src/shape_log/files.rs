//! The directory of a shape, its definition, and its end.
//!
//! ```text
//! <data>/shapes/<2 hex>/<handle>/definition   what the shape is; durable at the latest with the snapshot
//!                                snapshot     initial rows, see snapshot.rs
//!                                log          changes, see frame.rs; made at the first change
//!                                log.idx      marks, see index.rs; derived
//! <data>/trash/<handle>/                      removed shapes until they are purged
//! <data>/quarantine/<micros>-<handle>/        what is no shape's or is evidence of damage, and since when
//! ```
//!
//! `definition`, little endian: magic `SFDF`, version u16 (1), zero u16, length u32, crc32c u32 of the
//! bytes before it and of the body, then the body: the MessagePack map of a
//! [`ShapeDefinition`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::domain::{Handle, ShapeDefinition, Timestamp};

use super::disk::{Disk, DiskFile, FileSlot, read_full, write_all};
use super::error::{FileKind, Named, ShapeLogError, Stage, StorageFault};

const MAGIC: &[u8; 4] = b"SFDF";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 16;
/// A definition with the largest possible table (1,600 columns) is far below.
const DEFINITION_BYTES_MAX: usize = 4 << 20;

/// The files of one shape.
#[derive(Clone, Debug)]
pub struct ShapeFiles {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: Arc<Path>,
    handle: Handle,
}

impl ShapeFiles {
    /// Makes the directory of a new shape; it and its definition are durable on return.
    ///
    /// # Errors
    /// A [`StorageFault`]; what was made is then left for [`list_shapes`] to find.
    pub fn create(
        disk: Arc<dyn Disk>,
        data: &Path,
        handle: Handle,
        definition: &ShapeDefinition,
    ) -> Result<ShapeFiles, ShapeLogError> {
        let (files, unsynced) = ShapeFiles::lay_out(disk, data, handle, definition)?;
        unsynced.sync(files.disk.as_ref())?;
        Ok(files)
    }

    /// Makes the directory of a new shape. Nothing of it is durable: it becomes so together with the
    /// snapshot, before which nobody relies on it.
    ///
    /// # Errors
    /// As [`ShapeFiles::create`].
    pub fn lay_out(
        disk: Arc<dyn Disk>,
        data: &Path,
        handle: Handle,
        definition: &ShapeDefinition,
    ) -> Result<(ShapeFiles, Unsynced), ShapeLogError> {
        let files = ShapeFiles::open(disk, data, handle);
        let shard = files.shard();
        let new_shard = files.disk.create_dir(shard).named(Stage::Create, FileKind::Directory)?;
        files.disk.create_dir(&files.dir).named(Stage::Create, FileKind::Directory)?;
        let file = files.disk.create(&files.path("definition")).named(Stage::Create, FileKind::Definition)?;
        write_all(file.as_ref(), &encode_definition(definition), 0, FileKind::Definition)?;
        let unsynced = Unsynced::of(&files, file, new_shard.then_some(data));
        Ok((files, unsynced))
    }

    /// The same for a directory that an earlier attempt has made and perhaps not synced.
    ///
    /// # Errors
    /// `Vanished` where there is none.
    pub fn laid_out(&self, data: &Path) -> Result<Unsynced, ShapeLogError> {
        let file = self.disk.open(&self.path("definition")).named(Stage::Open, FileKind::Definition)?;
        Ok(Unsynced::of(self, file, Some(data)))
    }

    fn shard(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    /// The files of a shape that exists; touches nothing.
    #[must_use]
    pub fn open(disk: Arc<dyn Disk>, data: &Path, handle: Handle) -> ShapeFiles {
        let dir = data.join("shapes").join(shard(handle)).join(handle.to_string());
        ShapeFiles { disk, dir: dir.into(), handle }
    }

    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// # Errors
    /// `Vanished` where there is none, `Corrupt` where it is damaged, and
    /// [`ShapeLogError::DefinitionVersion`] where a newer release wrote it.
    pub fn read_definition(&self) -> Result<ShapeDefinition, ShapeLogError> {
        let kind = FileKind::Definition;
        let file = self.disk.open(&self.path("definition")).named(Stage::Open, kind)?;
        let len = usize::try_from(file.size().named(Stage::Read, kind)?).unwrap_or(usize::MAX);
        if len > HEADER_LEN + DEFINITION_BYTES_MAX {
            return Err(StorageFault::corrupt(kind, 0).into());
        }
        let mut bytes = vec![0; len];
        let read = read_full(file.as_ref(), &mut bytes, 0, kind)?;
        bytes.truncate(read);
        decode_definition(&bytes)
    }

    /// Moves the shape into the trash: from here on nothing finds it by its handle, while who reads
    /// from open files can finish.
    ///
    /// # Errors
    /// `Vanished` where there is no such directory.
    pub fn trash(&self, data: &Path) -> Result<(), ShapeLogError> {
        let trash = data.join("trash");
        self.disk.create_dir(&trash).named(Stage::Create, FileKind::Directory)?;
        let to = trash.join(self.handle.to_string());
        Ok(self.disk.rename(&self.dir, &to).named(Stage::Remove, FileKind::Directory)?)
    }

    /// Sets the directory aside, named after the time: nothing finds it by its handle, and nothing in it is
    /// changed.
    ///
    /// # Errors
    /// `Vanished` where there is no such directory.
    pub fn quarantine(&self, data: &Path, at: Timestamp) -> Result<(), ShapeLogError> {
        let quarantine = data.join("quarantine");
        let new = self.disk.create_dir(&quarantine).named(Stage::Create, FileKind::Directory)?;
        let entry = Quarantined { handle: self.handle, since: at };
        self.disk
            .rename(&self.dir, &quarantine.join(entry.name()))
            .named(Stage::Remove, FileKind::Directory)?;
        self.disk.sync_dir(&quarantine).named(Stage::Sync, FileKind::Directory)?;
        if new {
            self.disk.sync_dir(data).named(Stage::Sync, FileKind::Directory)?;
        }
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn slot(&self, kind: FileKind) -> FileSlot {
        FileSlot::new(Arc::clone(&self.disk), Arc::clone(&self.dir), kind)
    }
}

/// The directory and the definition of a new shape, as long as they are not durable.
#[derive(Debug)]
pub struct Unsynced {
    definition: Arc<dyn DiskFile>,
    /// Innermost first.
    directories: Vec<PathBuf>,
}

impl Unsynced {
    /// `new_below`: the data directory, where what is above the directory of the shape may be new, too.
    fn of(files: &ShapeFiles, definition: Arc<dyn DiskFile>, new_below: Option<&Path>) -> Unsynced {
        let shard = files.shard();
        let mut directories = vec![files.dir.to_path_buf(), shard.to_path_buf()];
        // Whoever has made it may not have come to sync its entry.
        directories.extend(shard.parent().map(Path::to_path_buf));
        directories.extend(new_below.map(Path::to_path_buf));
        Unsynced { definition, directories }
    }

    /// Makes them durable, one by one.
    ///
    /// # Errors
    /// A [`StorageFault`]: nothing of it counts as durable.
    pub(crate) fn sync(&self, disk: &dyn Disk) -> Result<(), StorageFault> {
        self.definition.sync_data().named(Stage::Sync, FileKind::Definition)?;
        if self.definition.packed_upto().is_some() {
            return Ok(());
        }
        for directory in &self.directories {
            disk.sync_dir(directory).named(Stage::Sync, FileKind::Directory)?;
        }
        Ok(())
    }
}

/// The handles of all shape directories, ascending. Names that are no handles, and handles that are not
/// where they belong, are passed over: nothing would find them.
///
/// # Errors
/// A [`StorageFault`] other than that there are no shapes yet.
pub fn list_shapes(disk: &dyn Disk, data: &Path) -> Result<Vec<Handle>, ShapeLogError> {
    let shapes = data.join("shapes");
    let mut handles = Vec::new();
    for found in list_or_none(disk, &shapes)? {
        let names = list_or_none(disk, &shapes.join(&found))?;
        let named = names.iter().filter_map(|name| name.parse::<Handle>().ok());
        handles.extend(named.filter(|handle| shard(*handle) == found));
    }
    handles.extend(disk.packed_shapes());
    handles.sort_unstable();
    handles.dedup();
    Ok(handles)
}

/// Names in the trash, for [`purge`].
///
/// # Errors
/// A [`StorageFault`] other than that there is no trash.
pub fn list_trash(disk: &dyn Disk, data: &Path) -> Result<Vec<String>, ShapeLogError> {
    list_or_none(disk, &data.join("trash"))
}

/// Deletes one entry of the trash for good.
///
/// # Errors
/// `Vanished` where it is not there.
pub fn purge(disk: &dyn Disk, data: &Path, name: &str) -> Result<(), ShapeLogError> {
    let path = data.join("trash").join(name);
    Ok(disk.remove_dir_all(&path).named(Stage::Remove, FileKind::Directory)?)
}

/// A directory that was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantined {
    pub handle: Handle,
    pub since: Timestamp,
}

impl Quarantined {
    fn name(self) -> String {
        format!("{}-{}", self.since.0, self.handle)
    }

    fn parse(name: &str) -> Option<Quarantined> {
        let (since, handle) = name.split_once('-')?;
        Some(Quarantined { handle: handle.parse().ok()?, since: Timestamp(since.parse().ok()?) })
    }
}

/// What was set aside. Other names are passed over.
///
/// # Errors
/// A [`StorageFault`] other than that there is no quarantine.
pub fn list_quarantined(disk: &dyn Disk, data: &Path) -> Result<Vec<Quarantined>, ShapeLogError> {
    let names = list_or_none(disk, &data.join("quarantine"))?;
    Ok(names.iter().filter_map(|name| Quarantined::parse(name)).collect())
}

/// Deletes what was set aside for good.
///
/// # Errors
/// `Vanished` where it is not there.
pub fn purge_quarantined(disk: &dyn Disk, data: &Path, entry: Quarantined) -> Result<(), ShapeLogError> {
    let path = data.join("quarantine").join(entry.name());
    Ok(disk.remove_dir_all(&path).named(Stage::Remove, FileKind::Directory)?)
}

/// A directory that was never made is empty; it is not one that vanished.
fn list_or_none(disk: &dyn Disk, path: &Path) -> Result<Vec<String>, ShapeLogError> {
    match disk.list(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        names => Ok(names.named(Stage::Read, FileKind::Directory)?),
    }
}

/// Two hex digits that spread handles of one definition and of one moment alike.
pub(crate) fn shard(handle: Handle) -> String {
    let mixed = (handle.hash ^ handle.micros).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!("{:02x}", mixed >> 56)
}

fn encode_definition(definition: &ShapeDefinition) -> Vec<u8> {
    let body = rmp_serde::to_vec_named(definition).expect("a definition is plain data");
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&u32::try_from(body.len()).expect("a definition is small").to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), &body);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&body);
    out
}

fn decode_definition(bytes: &[u8]) -> Result<ShapeDefinition, ShapeLogError> {
    let corrupt = |at: u64| ShapeLogError::from(StorageFault::corrupt(FileKind::Definition, at));
    let (header, body) = bytes.split_at_checked(HEADER_LEN).ok_or_else(|| corrupt(0))?;
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if header[..4] != *MAGIC {
        return Err(corrupt(0));
    }
    if number(8) as usize != body.len()
        || crc32c::crc32c_append(crc32c::crc32c(&header[..12]), body) != number(12)
    {
        return Err(corrupt(8));
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION {
        return Err(ShapeLogError::DefinitionVersion { found: version, known: VERSION });
    }
    rmp_serde::from_slice(body).map_err(|_| corrupt(HEADER_LEN as u64))
}
