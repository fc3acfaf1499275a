//! What a process asks the kernel to change under a directory, as `strace` sees it.
//!
//! An instance that waits for a data directory must not change anything in it. So it runs under
//! `strace`, and every call that could change a file or a directory is listed, whether it succeeded or
//! not. Reading is not traced, and neither are calls that need a descriptor open for writing other than
//! the plain writes: opening such a descriptor is itself listed.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;
use crate::service::{Service, ServiceSettings};

/// Calls that name a file and change it or its directory.
const BY_PATH: [&str; 27] = [
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
    "rmdir",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
    "mknodat",
    "truncate",
    "chmod",
    "fchmodat",
    "chown",
    "lchown",
    "fchownat",
    "utime",
    "utimes",
    "futimesat",
    "utimensat",
    "setxattr",
    "lsetxattr",
    "removexattr",
];
/// Calls that are given a descriptor. `fsync` changes no content, and has no business there either.
const BY_DESCRIPTOR: [&str; 16] = [
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "ftruncate",
    "fallocate",
    "fchmod",
    "fchown",
    "fsetxattr",
    "fremovexattr",
    "fsync",
    "fdatasync",
    "syncfs",
    "sync_file_range",
    "msync",
];
const OPENS: [&str; 4] = ["open", "openat", "openat2", "creat"];
/// Allowed: it changes nothing that outlives the process. Counted, to show that calls are seen at all.
const LOCKS: [&str; 1] = ["flock"];
const WRITABLE: [&str; 6] = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"];

/// The trace of one process.
#[derive(Clone, Debug)]
pub struct Audit {
    trace: PathBuf,
    directory: PathBuf,
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Calls that could change something under the directory.
    pub mutating: Vec<String>,
    /// Files opened for reading and locks tried there.
    pub harmless: u64,
}

impl Audit {
    /// Has the service that these settings start traced into the file `trace`.
    ///
    /// # Errors
    /// The data directory does not exist yet, or there is no `strace`.
    pub fn attach(settings: &mut ServiceSettings, trace: &Path) -> Outcome<Self> {
        let strace = std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path).map(|folder| folder.join("strace")).find(|file| file.is_file())
        });
        let strace = strace.ok_or("strace is missing: ./dev setup installs it")?;
        // As the kernel names it.
        let directory = settings.data_dir.canonicalize()?;
        let calls: Vec<&str> =
            BY_PATH.iter().chain(&BY_DESCRIPTOR).chain(&OPENS).chain(&LOCKS).copied().collect();
        // `?`: not every machine has every call. -D: the service, not strace, is the child.
        let calls: Vec<String> = calls.iter().map(|call| format!("?{call}")).collect();
        settings.wrapper = vec![
            strace.to_string_lossy().into_owned(),
            "-D".to_owned(),
            "-f".to_owned(),
            "--seccomp-bpf".to_owned(),
            "-qq".to_owned(),
            "-y".to_owned(),
            "-s0".to_owned(),
            "-o".to_owned(),
            trace.to_string_lossy().into_owned(),
            "-e".to_owned(),
            format!("trace={}", calls.join(",")),
        ];
        Ok(Self { trace: trace.to_owned(), directory })
    }

    /// What the process has done since it started.
    ///
    /// # Errors
    /// There is no trace, as where the process may not be traced.
    pub fn seen(&self) -> Outcome<Seen> {
        self.read(false)
    }

    /// The same up to the moment when it tried the lock in earnest, having found it free: that is the only
    /// time when it opens the lock file for writing.
    ///
    /// # Errors
    /// As [`Audit::seen`].
    pub fn seen_while_waiting(&self) -> Outcome<Seen> {
        self.read(true)
    }

    /// Has `strace` let go of the process, which then runs at full speed.
    pub fn detach(&self, service: &Service) {
        let status = service.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let tracer = status.as_deref().and_then(|status| {
            status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()
        });
        if let Some(tracer) = tracer.and_then(Pid::from_raw) {
            // It may have gone by itself.
            let _gone = kill_process(tracer, Signal::TERM);
        }
    }

    fn read(&self, only_waiting: bool) -> Outcome<Seen> {
        let text = fs::read(&self.trace)
            .map_err(|error| format!("no trace: {error}; may processes be traced here?"))?;
        let directory = self.directory.to_string_lossy();
        let mut seen = Seen::default();
        for line in String::from_utf8_lossy(&text).lines() {
            if only_waiting && line.contains("\"LOCK\", O_RDWR") {
                break;
            }
            match judge(line, &directory) {
                Verdict::Elsewhere => {}
                Verdict::Harmless => seen.harmless += 1,
                Verdict::Mutating => seen.mutating.push(line.to_owned()),
            }
        }
        Ok(seen)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Elsewhere,
    Harmless,
    Mutating,
}

/// One line: `PID call(arguments) = result`. Of a call that another thread's interrupts, the arguments are
/// in the first part; the second begins with `<...`.
fn judge(line: &str, directory: &str) -> Verdict {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    let Some((call, arguments)) = rest.split_once('(') else { return Verdict::Elsewhere };
    // A result shows where a symbolic link led: it belongs to the places.
    if call.starts_with('<') || !places(arguments).iter().any(|place| is_under(place, directory)) {
        return Verdict::Elsewhere;
    }
    let opens = OPENS.contains(&call);
    if LOCKS.contains(&call)
        || (opens && call != "creat" && !WRITABLE.iter().any(|flag| arguments.contains(flag)))
    {
        return Verdict::Harmless;
    }
    Verdict::Mutating
}

/// Every path in the arguments: of descriptors, between angle brackets, and those given, which are
/// relative to the descriptor before them.
fn places(arguments: &str) -> Vec<String> {
    let mut places = Vec::new();
    let mut base = String::new();
    let mut rest = arguments;
    while let Some(at) = rest.find(['<', '"']) {
        let end = if rest.as_bytes()[at] == b'<' { '>' } else { '"' };
        let Some(len) = rest[at + 1..].find(end) else { break };
        let text = &rest[at + 1..at + 1 + len];
        if end == '>' {
            base = text.to_owned();
            places.push(text.to_owned());
        } else if text.starts_with('/') {
            places.push(text.to_owned());
        } else {
            places.push(format!("{base}/{text}"));
        }
        rest = &rest[at + len + 2..];
    }
    places
}

fn is_under(place: &str, directory: &str) -> bool {
    place.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_something_is_found_and_nothing_else() {
        for (line, expected) in [
            (r#"12 openat(AT_FDCWD</w>, "/d/LOCK", O_RDONLY|O_CLOEXEC) = 5</d/LOCK>"#, Verdict::Harmless),
            (
                r#"12 openat(AT_FDCWD</w>, "/d/LOCK", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 5</d/LOCK>"#,
                Verdict::Mutating,
            ),
            (r#"12 openat(5</d>, "LOCK", O_RDWR|O_CLOEXEC <unfinished ...>"#, Verdict::Mutating),
            (r#"12 openat(5</d>, "a/b", O_RDONLY) = -1 ENOENT"#, Verdict::Harmless),
            (r#"12 openat(AT_FDCWD</w>, "/tmp/link", O_RDWR) = 7</d/MARK>"#, Verdict::Mutating),
            (r#"12 openat(AT_FDCWD</w>, "/data/x", O_RDWR) = 7</data/x>"#, Verdict::Elsewhere),
            (r#"12 write(7</d/shapes/log>, ""..., 10) = 10"#, Verdict::Mutating),
            (r#"12 write(2<pipe:[1]>, ""..., 10) = 10"#, Verdict::Elsewhere),
            (r#"12 renameat2(AT_FDCWD</w>, "/tmp/a", AT_FDCWD</w>, "/d/a", 0) = 0"#, Verdict::Mutating),
            (r#"12 mkdir("/d", 0777) = -1 EEXIST"#, Verdict::Mutating),
            (r#"12 unlink("/dd/a") = 0"#, Verdict::Elsewhere),
            (r#"12 flock(5</d/LOCK>, LOCK_EX|LOCK_NB) = -1 EAGAIN"#, Verdict::Harmless),
            (r#"12 <... openat resumed>) = 5</d/LOCK>"#, Verdict::Elsewhere),
            ("12 +++ exited with 0 +++", Verdict::Elsewhere),
        ] {
            assert_eq!(judge(line, "/d"), expected, "{line}");
        }
    }
}
