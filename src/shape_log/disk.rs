//! The file system as this module uses it: positioned reads and writes, and explicit durability.
//!
//! Two implementations: [`RealDisk`] here, and [`SimDisk`](super::SimDisk), which loses what was not
//! synced. Calls are made per buffer of many rows, never per row, so dynamic dispatch costs nothing.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::domain::Handle as ShapeHandle;

use super::error::{FaultClass, FileKind, Named, Stage, StorageFault};
use super::open_files::{OpenFile, OpenFiles};

/// A directory tree. Paths are whole paths below the data directory.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` where it does not exist.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a file that must not exist. Its entry is durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// `AlreadyExists` where it does.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a directory and those above it; says whether the last one is new.
    ///
    /// # Errors
    /// Those of `mkdir`.
    fn create_dir(&self, path: &Path) -> io::Result<bool>;

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// Those of `fsync`.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Renames a file or directory.
    ///
    /// # Errors
    /// `NotFound` where `from` does not exist.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a directory and everything in it.
    ///
    /// # Errors
    /// `NotFound` where it does not exist.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound` where it does not exist.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Names in a directory, ascending.
    ///
    /// # Errors
    /// `NotFound` where it does not exist.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// One barrier for everything written before the call, files and entries alike.
    ///
    /// # Errors
    /// Those of `syncfs`; since Linux 5.8 these include write-back errors of any file.
    fn barrier(&self) -> io::Result<()>;

    /// Shapes that are kept with others in one file and have no directory, ascending.
    fn packed_shapes(&self) -> Vec<ShapeHandle> {
        Vec::new()
    }

    /// Wins back room that is of no use any more. Blocks for as long as that takes.
    ///
    /// # Errors
    /// Those of reading and writing; nothing is lost.
    fn tidy(&self) -> io::Result<()> {
        Ok(())
    }

    /// From here on nothing is tidied: returns once that has ended which has begun. Before the directory is
    /// given back.
    fn leave_untidy(&self) {}

    /// Where it is counted how many files are open; `None` where nothing limits them.
    fn open_files(&self) -> Option<&OpenFiles> {
        None
    }
}

/// An open file. All positions are byte offsets; there is no cursor.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reads at most `buffer.len()` bytes; 0 at the end of the file.
    ///
    /// # Errors
    /// Those of `pread`.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes a prefix of `bytes` and says how long it was.
    ///
    /// # Errors
    /// Those of `pwrite`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;

    /// Length in bytes.
    ///
    /// # Errors
    /// Those of `fstat`.
    fn size(&self) -> io::Result<u64>;

    /// Tells files apart, also one that has the number of another which is gone.
    ///
    /// # Errors
    /// Those of `statx`.
    fn identity(&self) -> io::Result<FileIdentity>;

    /// Cuts off or fills up with zeros.
    ///
    /// # Errors
    /// Those of `ftruncate`.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// `fdatasync`: the bytes and the length.
    ///
    /// # Errors
    /// Those of `fdatasync`. What it left behind is unknown: the file must not be written again.
    fn sync_data(&self) -> io::Result<()>;

    /// Of a file that is kept with others in one: a number that grows with each change of its shape. It takes
    /// no descriptor, and a sync of one is a sync of all.
    fn packed_upto(&self) -> Option<u64> {
        None
    }
}

/// What a file is, whatever its name. The time of its birth is part of it where the file system knows it:
/// numbers of inodes are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    number: u64,
    born: Option<SystemTime>,
}

impl FileIdentity {
    #[must_use]
    pub fn of(metadata: &fs::Metadata) -> FileIdentity {
        FileIdentity { device: metadata.dev(), number: metadata.ino(), born: metadata.created().ok() }
    }

    /// Of a file that is in memory only.
    #[must_use]
    pub(crate) fn simulated(number: u64) -> FileIdentity {
        FileIdentity { device: 0, number, born: None }
    }

    /// Of a file that is kept with others.
    #[must_use]
    pub(crate) fn packed(handle: ShapeHandle) -> FileIdentity {
        FileIdentity { device: u64::MAX, number: handle.hash ^ handle.micros.rotate_left(32), born: None }
    }
}

/// The file system of the machine, below one directory. Everything is reached from that directory as it
/// was opened, never by its path: once it is renamed or removed, nothing is written to, or made in, what
/// is at its path then.
#[derive(Debug)]
pub struct RealDisk {
    /// Opened before anything is written, since `syncfs` reports the errors since its open.
    root: File,
    path: PathBuf,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl RealDisk {
    /// `root` is the data directory; created where it does not exist.
    ///
    /// # Errors
    /// Those of creating and opening the directory.
    pub fn new(root: &Path) -> io::Result<RealDisk> {
        fs::create_dir_all(root)?;
        Ok(RealDisk { root: File::open(root)?, path: root.to_owned() })
    }

    /// The path as seen from the directory.
    fn below<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        let below =
            path.strip_prefix(&self.path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(if below.as_os_str().is_empty() { Path::new(".") } else { below })
    }

    fn open_file(&self, path: &Path, flags: OFlags) -> io::Result<Arc<dyn DiskFile>> {
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.root, self.below(path)?, flags, Mode::from_raw_mode(0o666))?;
        Ok(Arc::new(RealFile(file.into())))
    }

    fn open_directory(&self, below: &Path) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.root, below, DIRECTORY, Mode::empty())?)
    }
}

/// Everything in a directory, without following symbolic links.
fn clear(directory: &OwnedFd) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) => {}
            // Linux says EISDIR, POSIX EPERM.
            Err(Errno::ISDIR | Errno::PERM) => {
                clear(&rustix::fs::openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)?;
                rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open_file(path, OFlags::empty())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open_file(path, OFlags::CREATE | OFlags::EXCL)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        let below = self.below(path)?;
        let mode = Mode::from_raw_mode(0o777);
        match rustix::fs::mkdirat(&self.root, below, mode) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                self.open_directory(below)?;
                Ok(false)
            }
            // Those above it, but never the root: its parent is not ours.
            Err(Errno::NOENT) if below.components().count() > 1 => {
                let mut above = PathBuf::new();
                for component in below.components() {
                    above.push(component);
                    match rustix::fs::mkdirat(&self.root, &above, mode) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                Ok(true)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::from(self.open_directory(self.below(path)?)?).sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.root, self.below(from)?, &self.root, self.below(to)?)?)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let below = self.below(path)?;
        clear(&self.open_directory(below)?)?;
        Ok(rustix::fs::unlinkat(&self.root, below, AtFlags::REMOVEDIR)?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, self.below(path)?, AtFlags::empty())?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let directory = self.open_directory(self.below(path)?)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if !matches!(name.as_ref(), "." | "..") {
                names.push(name.into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn barrier(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.root).map_err(io::Error::from)
    }

    fn open_files(&self) -> Option<&OpenFiles> {
        Some(OpenFiles::of_process())
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.0.write_at(bytes, at)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn identity(&self) -> io::Result<FileIdentity> {
        self.0.metadata().map(|metadata| FileIdentity::of(&metadata))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// One file of a shape by its path, opened at first use and closed on [`FileSlot::release`], or for want
/// of descriptors, so that an idle shape holds none. Clones of the open handle stay valid after that, and
/// after the file was moved to the trash.
///
/// A log may be replaced at its path: a slot never leads from one to the other. One that knows of it is
/// pinned before ([`FileSlot::pin`]); another finds that what is there is not its file, which has vanished.
#[derive(Debug)]
pub(crate) struct FileSlot {
    disk: Arc<dyn Disk>,
    /// Of the shape: it is shared by the slots, of which there may be very many.
    dir: Arc<Path>,
    pub kind: FileKind,
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    handle: Option<Handle>,
    /// Of a log that has been open, or is held.
    log: Option<Box<LogFile>>,
}

#[derive(Debug, Default)]
struct LogFile {
    identity: Option<FileIdentity>,
    /// Held, so that it is not closed.
    pinned: Option<Arc<dyn DiskFile>>,
}

#[derive(Debug)]
enum Handle {
    Unlimited(Arc<dyn DiskFile>),
    Limited(Arc<OpenFile>),
    /// Until its shape moves into files of its own.
    Packed(Arc<dyn DiskFile>),
}

impl SlotState {
    fn open(&self) -> Option<Arc<dyn DiskFile>> {
        if let Some(pinned) = self.log.as_ref().and_then(|log| log.pinned.as_ref()) {
            return Some(Arc::clone(pinned));
        }
        match self.handle.as_ref()? {
            Handle::Unlimited(file) => Some(Arc::clone(file)),
            Handle::Limited(file) => file.get(),
            Handle::Packed(file) => file.packed_upto().map(|_| Arc::clone(file)),
        }
    }
}

impl FileSlot {
    pub fn new(disk: Arc<dyn Disk>, dir: Arc<Path>, kind: FileKind) -> FileSlot {
        FileSlot { disk, dir, kind, state: Mutex::default() }
    }

    /// A slot of a file that is open already.
    pub fn opened(disk: Arc<dyn Disk>, dir: Arc<Path>, kind: FileKind, file: Arc<dyn DiskFile>) -> FileSlot {
        let handle = match disk.open_files() {
            Some(files) => Handle::Limited(files.keep(&file)),
            None => Handle::Unlimited(Arc::clone(&file)),
        };
        // Where it cannot be told what it is, it is taken for what is found at the next use.
        let log = LogFile { identity: file.identity().ok(), pinned: None };
        let state = SlotState { handle: Some(handle), log: Some(Box::new(log)) };
        FileSlot { disk, dir, kind, state: Mutex::new(state) }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(self.kind.file_name())
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open file; `Vanished` where it does not exist, or another one has taken its place.
    pub fn open(&self) -> Result<Arc<dyn DiskFile>, StorageFault> {
        let mut state = self.state();
        if let Some(file) = state.open() {
            return Ok(file);
        }
        let (opened, file) = self.counted(|| self.disk.open(&self.path())).named(Stage::Open, self.kind)?;
        if self.kind == FileKind::Log && file.packed_upto().is_none() {
            let identity = file.identity().named(Stage::Open, self.kind)?;
            if *state.log.get_or_insert_default().identity.get_or_insert(identity) != identity {
                let class = FaultClass::Vanished;
                return Err(StorageFault { class, stage: Stage::Open, file: self.kind });
            }
        }
        state.handle = Some(opened);
        Ok(file)
    }

    fn counted(
        &self,
        open: impl Fn() -> io::Result<Arc<dyn DiskFile>>,
    ) -> io::Result<(Handle, Arc<dyn DiskFile>)> {
        let (handle, file) = match self.disk.open_files() {
            Some(files) => files.open(open).map(|(kept, file)| (Handle::Limited(kept), file))?,
            None => open().map(|file| (Handle::Unlimited(Arc::clone(&file)), file))?,
        };
        let packed = file.packed_upto().map(|_| Handle::Packed(Arc::clone(&file)));
        Ok((packed.unwrap_or(handle), file))
    }

    /// The open file, `None` where there is none yet.
    pub fn open_existing(&self) -> Result<Option<Arc<dyn DiskFile>>, StorageFault> {
        match self.open() {
            Ok(file) => Ok(Some(file)),
            Err(StorageFault { class: FaultClass::Vanished, .. }) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The open file and whether it is new: then its entry is not durable yet.
    pub fn open_or_create(&self) -> Result<(Arc<dyn DiskFile>, bool), StorageFault> {
        if let Some(file) = self.open_existing()? {
            return Ok((file, false));
        }
        let (opened, file) =
            self.counted(|| self.disk.create(&self.path())).named(Stage::Create, self.kind)?;
        let mut state = self.state();
        if self.kind == FileKind::Log && file.packed_upto().is_none() {
            let identity = file.identity().named(Stage::Create, self.kind)?;
            state.log.get_or_insert_default().identity = Some(identity);
        }
        state.handle = Some(opened);
        Ok((file, true))
    }

    /// Closes the descriptor once nobody reads through it; the next use opens the file again.
    pub fn release(&self) {
        self.state().handle = None;
    }

    /// Keeps the file open for as long as the slot exists: its path will lead to another.
    pub fn pin(&self) -> Result<(), StorageFault> {
        let file = self.open()?;
        self.state().log.get_or_insert_default().pinned = Some(file);
        Ok(())
    }

    /// Its path leads to it all the same.
    pub fn unpin(&self) {
        if let Some(log) = &mut self.state().log {
            log.pinned = None;
        }
    }

    pub fn sync_directory(&self) -> Result<(), StorageFault> {
        self.disk.sync_dir(&self.dir).named(Stage::Sync, FileKind::Directory)
    }
}

/// Writes all of `bytes`. A short write is carried on with: the next call names the reason.
pub(crate) fn write_all(
    file: &dyn DiskFile,
    mut bytes: &[u8],
    mut at: u64,
    kind: FileKind,
) -> Result<(), StorageFault> {
    while !bytes.is_empty() {
        let written = match file.write_at(bytes, at) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::WriteZero)),
            Ok(count) => Ok(count.min(bytes.len())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
        .named(Stage::Write, kind)?;
        bytes = &bytes[written..];
        at += written as u64;
    }
    Ok(())
}

/// Fills `buffer` as far as the file reaches and says how far.
pub(crate) fn read_full(
    file: &dyn DiskFile,
    buffer: &mut [u8],
    at: u64,
    kind: FileKind,
) -> Result<usize, StorageFault> {
    read_whole(file, buffer, at).named(Stage::Read, kind)
}

/// As [`read_full`], for what is no file of a shape.
pub(super) fn read_whole(file: &dyn DiskFile, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
