//! How many files of shapes are open at once. Shapes need not be bounded in number; descriptors are.
//!
//! A file that nobody uses is closed once more than the limit are open: the one that was opened first
//! and not used since it was last looked at (second chance). The next use opens it again. What somebody
//! holds, such as a writer what it has written and not synced, or a body that is being sent, is passed
//! over: closing it here would free nothing, and a file that is opened again after a failed write-back
//! might not tell of it.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use rustix::process::{Resource, getrlimit};

use super::disk::DiskFile;

/// Of the descriptors that the process may have, one in this many is for files of shapes that are kept
/// open; the others are for clients, for files in use, and for the journal.
const SHARE: u64 = 4;
/// Bounds of the limit that follows from it. More would save nothing that could be measured.
const OPEN_FILES_MIN: u64 = 32;
const OPEN_FILES_MAX: u64 = 8_192;
/// Files that are looked at for one that is opened, so that many in use do not make each dear.
const LOOKS_MAX: usize = 16;

/// A file that is open until it is closed for want of descriptors.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: Mutex<Option<Arc<dyn DiskFile>>>,
    /// Since it was last looked at by who wanted to close it.
    used: AtomicBool,
}

impl OpenFile {
    /// The file, unless it has been closed meanwhile.
    pub fn get(&self) -> Option<Arc<dyn DiskFile>> {
        let file = lock(&self.file).clone();
        if file.is_some() && !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        file
    }

    /// Closes it where nobody uses it; whether it is closed now.
    fn close(&self, also_used: bool) -> bool {
        let used = self.used.swap(false, Ordering::Relaxed) && !also_used;
        let mut file = lock(&self.file);
        match file.as_ref() {
            None => true,
            Some(open) if used || Arc::strong_count(open) > 1 => false,
            Some(_) => {
                *file = None;
                true
            }
        }
    }
}

/// The open files of all shapes of a process.
#[derive(Debug)]
pub struct OpenFiles {
    max: usize,
    /// In the order in which they were opened or last spared. Those that are gone are dropped when their
    /// turn comes.
    queue: Mutex<VecDeque<Weak<OpenFile>>>,
}

impl OpenFiles {
    /// At most `max` files that nobody uses are kept open.
    #[must_use]
    pub fn new(max: usize) -> OpenFiles {
        OpenFiles { max, queue: Mutex::default() }
    }

    /// Those of this process, as many as its limit of descriptors leaves room for: asked for once.
    #[must_use]
    pub fn of_process() -> &'static OpenFiles {
        static FILES: OnceLock<OpenFiles> = OnceLock::new();
        FILES.get_or_init(|| {
            let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            let max = (limit / SHARE).clamp(OPEN_FILES_MIN, OPEN_FILES_MAX);
            OpenFiles::new(usize::try_from(max).unwrap_or(usize::MAX))
        })
    }

    /// How many may be open without being used.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Opens a file by `open`, which is tried once more after closing what can be closed where the
    /// process or the system has no descriptor left.
    pub(super) fn open(
        &self,
        open: impl Fn() -> io::Result<Arc<dyn DiskFile>>,
    ) -> io::Result<(Arc<OpenFile>, Arc<dyn DiskFile>)> {
        let file = match open() {
            Err(error) if lacks_descriptors(&error) && self.close_unused() => open()?,
            opened => opened?,
        };
        Ok((self.keep(&file), file))
    }

    /// Keeps a file open for later, and closes others above the limit.
    pub(super) fn keep(&self, file: &Arc<dyn DiskFile>) -> Arc<OpenFile> {
        let kept =
            Arc::new(OpenFile { file: Mutex::new(Some(Arc::clone(file))), used: AtomicBool::new(false) });
        let mut queue = lock(&self.queue);
        queue.push_back(Arc::downgrade(&kept));
        // Each at most once: all of them may be in use.
        let mut looks = queue.len().min(LOOKS_MAX);
        while queue.len() > self.max && looks > 0 {
            looks -= 1;
            if let Some(spared) = queue.pop_front()
                && spared.upgrade().is_some_and(|file| !file.close(false))
            {
                queue.push_back(spared);
            }
        }
        kept
    }

    /// Closes everything that nobody uses at this moment; whether that was anything.
    fn close_unused(&self) -> bool {
        let mut queue = lock(&self.queue);
        let before = queue.len();
        queue.retain(|file| file.upgrade().is_some_and(|file| !file.close(true)));
        queue.len() < before
    }
}

fn lacks_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    errno == Some(Errno::MFILE.raw_os_error()) || errno == Some(Errno::NFILE.raw_os_error())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::path::Path;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::shape_log::{Disk, SimDisk};

    struct Rig {
        disk: SimDisk,
        files: OpenFiles,
    }

    impl Rig {
        fn new(max: usize) -> Rig {
            let disk = SimDisk::new();
            disk.create_dir(Path::new("/d")).expect("made");
            Rig { disk, files: OpenFiles::new(max) }
        }

        fn open(&self, name: &str) -> (Arc<OpenFile>, Arc<dyn DiskFile>) {
            self.files.open(|| self.disk.create(&Path::new("/d").join(name))).expect("opens")
        }
    }

    #[test]
    fn what_was_used_least_recently_is_closed_and_what_is_held_is_not() {
        let rig = Rig::new(2);
        let (held, in_use) = rig.open("held");
        let (idle, _) = rig.open("idle");
        let (used, _) = rig.open("used");
        assert!(idle.get().is_none(), "above the limit, and unused");
        assert!(held.get().is_some(), "somebody writes to it");
        drop(in_use);
        assert!(used.get().is_some(), "it is used");
        let (new, _) = rig.open("new");
        // Both were used since: each is spared once.
        let open = [&held, &used, &new].into_iter().filter(|file| file.get().is_some()).count();
        assert!((2..=3).contains(&open), "{open} open");
        let all: Vec<Arc<OpenFile>> = (0..100).map(|number| rig.open(&format!("f{number}")).0).collect();
        let open = all.iter().filter(|file| lock(&file.file).is_some()).count();
        assert!(open <= 2, "{open} of 100 stay open");
        assert!(lock(&rig.files.queue).len() <= 3);
    }

    #[test]
    fn without_descriptors_everything_unused_is_closed_and_the_call_tried_again() {
        let rig = Rig::new(10);
        let (idle, _) = rig.open("idle");
        assert!(idle.get().is_some(), "used just now");
        let tries = AtomicUsize::new(0);
        let exhausted_once = || {
            if tries.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()));
            }
            rig.disk.create(Path::new("/d/second"))
        };
        assert!(rig.files.open(exhausted_once).is_ok());
        assert!(idle.get().is_none());
        let denied = rig.files.open(|| Err(io::Error::from(ErrorKind::PermissionDenied)));
        assert_eq!(denied.err().map(|error| error.kind()), Some(ErrorKind::PermissionDenied));
    }
}
