//! The disk of one process: it can die at a call, panic at a call, and lie about syncs.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shapefold::shape_log::{Disk, DiskFile, FileIdentity, SimDisk};

/// The payload of panics that are meant.
pub const PANIC: &str = "the simulator asked for this panic";

/// The view that one process has of the disk; clones are the same view. After its death nothing that
/// the process still does reaches the disk.
#[derive(Clone, Debug)]
pub struct ProcessDisk {
    pub disk: SimDisk,
    hooks: Arc<Hooks>,
}

#[derive(Debug, Default)]
struct Hooks {
    dead: AtomicBool,
    /// Calls until the process dies, or panics; zero for never.
    dies_in: AtomicU64,
    panics_in: AtomicU64,
    /// Syncs do nothing and say that they did.
    lies: AtomicBool,
}

impl ProcessDisk {
    pub fn new(disk: SimDisk, lies: bool) -> ProcessDisk {
        let hooks = Arc::new(Hooks { lies: AtomicBool::new(lies), ..Hooks::default() });
        ProcessDisk { disk, hooks }
    }

    pub fn die_in(&self, calls: u64) {
        self.hooks.dies_in.store(calls, Ordering::Relaxed);
    }

    pub fn panic_in(&self, calls: u64) {
        self.hooks.panics_in.store(calls, Ordering::Relaxed);
    }

    /// The process is no more.
    pub fn die(&self) {
        self.hooks.dead.store(true, Ordering::Relaxed);
    }

    pub fn is_dead(&self) -> bool {
        self.hooks.dead.load(Ordering::Relaxed)
    }

    /// Counts a call. False where the process dies in it.
    fn survives(&self) -> bool {
        if due(&self.hooks.panics_in) {
            std::panic::panic_any(PANIC);
        }
        if due(&self.hooks.dies_in) {
            self.die();
            return false;
        }
        true
    }

    fn call(&self) -> io::Result<()> {
        if !self.is_dead() && self.survives() { Ok(()) } else { Err(io::Error::from_raw_os_error(5)) }
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(ProcessFile { disk: self.clone(), file })
    }

    fn lies(&self) -> bool {
        self.hooks.lies.load(Ordering::Relaxed)
    }
}

fn due(countdown: &AtomicU64) -> bool {
    match countdown.load(Ordering::Relaxed) {
        0 => false,
        left => {
            countdown.store(left - 1, Ordering::Relaxed);
            left == 1
        }
    }
}

impl Disk for ProcessDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.call()?;
        self.disk.open(path).map(|file| self.file(file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.call()?;
        self.disk.create(path).map(|file| self.file(file))
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        self.call()?;
        self.disk.create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        self.disk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        self.disk.rename(from, to)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        self.disk.remove_dir_all(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        self.disk.remove_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call()?;
        self.disk.list(path)
    }

    fn barrier(&self) -> io::Result<()> {
        self.call()?;
        if self.lies() { Ok(()) } else { self.disk.barrier() }
    }
}

#[derive(Debug)]
struct ProcessFile {
    disk: ProcessDisk,
    file: Arc<dyn DiskFile>,
}

impl DiskFile for ProcessFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.disk.call()?;
        self.file.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let alive = !self.disk.is_dead();
        if alive && !self.disk.survives() {
            // Killed in the middle of a write: its first half is there.
            self.file.write_at(&bytes[..bytes.len() / 2], at)?;
        }
        if self.disk.is_dead() {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.write_at(bytes, at)
    }

    fn size(&self) -> io::Result<u64> {
        self.disk.call()?;
        self.file.size()
    }

    fn identity(&self) -> io::Result<FileIdentity> {
        self.file.identity()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.call()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.call()?;
        if self.disk.lies() { Ok(()) } else { self.file.sync_data() }
    }
}
