//! A disk in memory for simulations and tests: it forgets at a crash what was not synced.
//!
//! Each file has its content as the process sees it, and the writes since its last sync. A crash keeps
//! each of these whole, in part, or not at all, and keeps or loses each change to a directory that
//! was not synced. Deterministic: the same calls and the same seed give the same disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, DiskFile, FileIdentity};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimFault {
    /// With this errno, without effect.
    Errno(i32),
    /// A write takes only this many bytes and says so; another call fails with EIO.
    Short(usize),
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    /// Entries as the process sees them: a directory or the number of a file.
    entries: BTreeMap<PathBuf, Entry>,
    /// Entries as they are after a crash.
    durable: BTreeMap<PathBuf, Entry>,
    calls: u64,
    /// Number of the call that fails, from 1, and how.
    failing: Option<(u64, SimFault)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    File(usize),
}

#[derive(Debug, Default)]
struct Inode {
    content: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Debug)]
enum Unsynced {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Unsynced {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Unsynced::Write { at, bytes } => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
            Unsynced::SetLen(len) => content.resize(*len, 0),
        }
    }
}

impl SimDisk {
    #[must_use]
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// Calls made so far: every call counts that a real disk could fail.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Makes the call with this number fail.
    pub fn fail_call(&self, number: u64, fault: SimFault) {
        self.state().failing = Some((number, fault));
    }

    /// The machine stops and starts again. Open files go on reading what they saw; only files that
    /// are opened from here on show the disk after the crash.
    pub fn crash(&self, seed: u64) {
        let mut random = Random(seed);
        let mut state = self.state();
        let State { inodes, entries, durable, .. } = &mut *state;
        let paths: Vec<PathBuf> = entries.keys().chain(durable.keys()).cloned().collect();
        for path in paths {
            if entries.get(&path) != durable.get(&path) && random.below(2) == 0 {
                match entries.get(&path) {
                    Some(entry) => durable.insert(path, *entry),
                    None => durable.remove(&path),
                };
            }
        }
        // An entry below a directory that is not there can not be there.
        let known = durable.clone();
        durable.retain(|path, _| {
            path.ancestors().skip(1).all(|above| is_root(above) || known.contains_key(above))
        });
        let mut crashed = Vec::new();
        for entry in durable.values_mut() {
            if let Entry::File(number) = entry {
                let content = inodes[*number].after_crash(&mut random);
                crashed.push(Inode { synced: content.clone(), content, unsynced: Vec::new() });
                *number = inodes.len() + crashed.len() - 1;
            }
        }
        inodes.extend(crashed);
        *entries = durable.clone();
    }

    /// Another disk, with what this one has for certain: what every crash leaves.
    #[must_use]
    pub fn certain(&self) -> SimDisk {
        let state = self.state();
        let mut certain = State { durable: state.durable.clone(), ..State::default() };
        for entry in certain.durable.values_mut() {
            if let Entry::File(number) = entry {
                let content = state.inodes[*number].synced.clone();
                *number = certain.inodes.len();
                certain.inodes.push(Inode { synced: content.clone(), content, unsynced: Vec::new() });
            }
        }
        let known = certain.durable.clone();
        certain.durable.retain(|path, _| {
            path.ancestors().skip(1).all(|above| is_root(above) || known.contains_key(above))
        });
        certain.entries = certain.durable.clone();
        SimDisk(Arc::new(Mutex::new(certain)))
    }

    /// Changes one byte of a file, as a failing disk does.
    ///
    /// # Errors
    /// `NotFound` where there is no such file or byte.
    pub fn damage(&self, path: &Path, at: usize, mask: u8) -> io::Result<()> {
        let mut state = self.state();
        let number = state.file(path)?;
        let inode = &mut state.inodes[number];
        *inode.content.get_mut(at).ok_or(io::ErrorKind::NotFound)? ^= mask;
        if let Some(byte) = inode.synced.get_mut(at) {
            *byte ^= mask;
        }
        Ok(())
    }

    /// The content of a file.
    ///
    /// # Errors
    /// `NotFound` where there is no such file.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        let number = state.file(path)?;
        Ok(state.inodes[number].content.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, with one more call counted; fails where it is that call's turn.
    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        match state.next_fault() {
            None => Ok(state),
            Some(SimFault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(SimFault::Short(_)) => {
                Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()))
            }
        }
    }
}

impl State {
    fn next_fault(&mut self) -> Option<SimFault> {
        self.calls += 1;
        self.failing.take_if(|(number, _)| *number == self.calls).map(|(_, fault)| fault)
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.entries.get(path) {
            Some(Entry::File(number)) => Ok(*number),
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn directory(&self, path: &Path) -> io::Result<()> {
        match self.entries.get(path) {
            _ if is_root(path) => Ok(()),
            Some(Entry::Directory) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The entries at and below a path.
    fn below(&self, path: &Path) -> Vec<(PathBuf, Entry)> {
        let inside = self.entries.iter().filter(|(entry, _)| entry.starts_with(path));
        inside.map(|(path, entry)| (path.clone(), *entry)).collect()
    }
}

impl Inode {
    fn after_crash(&self, random: &mut Random) -> Vec<u8> {
        let mut content = self.synced.clone();
        for change in &self.unsynced {
            match (random.below(3), change) {
                (0, _) => {}
                (1, Unsynced::Write { at, bytes }) => {
                    // A torn write: some bytes in the middle of it arrived.
                    let start = random.below(bytes.len() as u64 + 1) as usize;
                    let end = start + random.below((bytes.len() - start) as u64 + 1) as usize;
                    let start = if random.below(2) == 0 { 0 } else { start };
                    Unsynced::Write { at: at + start, bytes: bytes[start..end].to_vec() }.apply(&mut content);
                }
                (_, change) => change.apply(&mut content),
            }
        }
        content
    }

    fn sync(&mut self) {
        self.synced.clone_from(&self.content);
        self.unsynced.clear();
    }
}

/// The simulated tree hangs below a directory that always exists.
fn is_root(path: &Path) -> bool {
    path.parent().is_none_or(|parent| parent.as_os_str().is_empty() || parent == Path::new("/"))
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let number = self.call()?.file(path)?;
        Ok(Arc::new(SimFile { disk: self.clone(), number }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.call()?;
        if state.entries.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.directory(path.parent().unwrap_or(path))?;
        let number = state.inodes.len();
        state.inodes.push(Inode::default());
        state.entries.insert(path.to_path_buf(), Entry::File(number));
        Ok(Arc::new(SimFile { disk: self.clone(), number }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.call()?;
        let new = state.directory(path).is_err();
        for above in path.ancestors().filter(|above| !is_root(above)) {
            if !state.entries.contains_key(above) {
                state.entries.insert(above.to_path_buf(), Entry::Directory);
            }
            state.directory(above)?;
        }
        Ok(new)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        state.directory(path)?;
        let State { entries, durable, .. } = &mut *state;
        durable.retain(|entry, _| entry.parent() != Some(path) || entries.contains_key(entry));
        for (entry, kind) in entries.iter().filter(|(entry, _)| entry.parent() == Some(path)) {
            durable.insert(entry.clone(), *kind);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let moved = state.below(from);
        if moved.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        for (path, entry) in moved {
            let rest = path.strip_prefix(from).unwrap_or(Path::new(""));
            let target = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
            state.entries.remove(&path);
            state.entries.insert(target, entry);
        }
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        state.directory(path)?;
        for (path, _) in state.below(path) {
            state.entries.remove(&path);
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        state.file(path)?;
        state.entries.remove(path);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.call()?;
        state.directory(path)?;
        let inside = state.entries.keys().filter(|entry| entry.parent() == Some(path));
        Ok(inside.filter_map(|entry| Some(entry.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn barrier(&self) -> io::Result<()> {
        let mut state = self.call()?;
        state.durable = state.entries.clone();
        state.inodes.iter_mut().for_each(Inode::sync);
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    number: usize,
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.call()?;
        let content = &state.inodes[self.number].content;
        let rest = content.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        let bytes = match state.next_fault() {
            None => bytes,
            Some(SimFault::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(SimFault::Short(len)) => &bytes[..len.min(bytes.len())],
        };
        let at = usize::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let inode = &mut state.inodes[self.number];
        let write = Unsynced::Write { at, bytes: bytes.to_vec() };
        write.apply(&mut inode.content);
        inode.unsynced.push(write);
        Ok(bytes.len())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.call()?.inodes[self.number].content.len() as u64)
    }

    /// No call that could fail: it is asked for beside others.
    fn identity(&self) -> io::Result<FileIdentity> {
        Ok(FileIdentity::simulated(self.number as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.call()?;
        let inode = &mut state.inodes[self.number];
        let change = Unsynced::SetLen(usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?);
        change.apply(&mut inode.content);
        inode.unsynced.push(change);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.call()?.inodes[self.number].sync();
        Ok(())
    }
}

/// SplitMix64: a seed in, the same numbers out, on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}
