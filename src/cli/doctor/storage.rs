//! The data directory and the limits of the process.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::findings::{Findings, bytes};

/// Below, a busy day may fill the disk.
const FREE_BYTES_WANTED: u64 = 5 << 30;
/// Below, the service would end itself in order.
const FREE_BYTES_MIN: u64 = 16 << 20;
/// Each shape has a directory and a few files.
const FREE_INODES_WANTED: u64 = 100_000;
/// How long the disk is watched to learn how fast it fills.
const WATCHED: Duration = Duration::from_millis(500);
/// Every acknowledgement waits for one.
const SYNC_WANTED: Duration = Duration::from_millis(50);

/// File systems on which locks or syncs do not mean what they should, or whose files do not last; the
/// numbers are those of statfs(2).
const KINDS: [(i64, &str, Option<&str>); 9] = [
    (0x6969, "NFS", Some("Use a local disk: locks and syncs over NFS are not to be relied upon.")),
    (0x517b, "SMB", Some("Use a local disk: locks over SMB are not to be relied upon.")),
    (0xff53_4d42, "CIFS", Some("Use a local disk: locks over CIFS are not to be relied upon.")),
    (0xfe53_4d42, "SMB2", Some("Use a local disk: locks over SMB are not to be relied upon.")),
    (0x6573_5546, "FUSE", Some("Make sure that this file system has locks and durable syncs.")),
    (0x794c_7630, "overlayfs", Some("Mount a volume: what is in a container's own layer goes with it.")),
    (0x0102_1994, "tmpfs", Some("Use a disk: what is in memory goes with the machine.")),
    (0xef53, "ext4", None),
    (0x5846_5342, "XFS", None),
];

/// Looks at the directory; `None` is storage in memory.
pub(super) fn look(data_dir: Option<&Path>, findings: &mut Findings) {
    let Some(data_dir) = data_dir else {
        let remedy = "Set ELECTRIC_STORAGE=FAST_FILE to keep shapes over a restart.";
        findings.warning("storage", "ELECTRIC_STORAGE=MEMORY: nothing survives the process", remedy);
        return;
    };
    let place = match existing(data_dir) {
        Ok(place) => place,
        Err(error) => {
            let message = format!("{} cannot be looked at: {error}", data_dir.display());
            findings.problem("directory", message, "Point ELECTRIC_STORAGE_DIR at a directory of this user.");
            return;
        }
    };
    if place == data_dir {
        lock(data_dir, findings);
    } else {
        findings.good("directory", format!("{} will be made", data_dir.display()));
    }
    write(&place, findings);
    kind(&place, findings);
    space(&place, findings);
}

/// The directory, or the nearest above it that exists.
fn existing(path: &Path) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for place in absolute.ancestors() {
        match fs::metadata(place) {
            Ok(found) if found.is_dir() => {
                return Ok(if place == absolute { path.to_owned() } else { place.to_owned() });
            }
            Ok(_) => return Err(std::io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::ErrorKind::NotFound.into())
}

fn lock(data_dir: &Path, findings: &mut Findings) {
    let file = match File::open(data_dir.join("LOCK")) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.good("directory", "no service has used it yet");
            return;
        }
        Err(error) => {
            let remedy = "Let the user of the service own the directory and everything in it.";
            findings.problem("directory", format!("its lock cannot be opened: {error}"), remedy);
            return;
        }
    };
    // Given back at once, when the file is closed.
    match fs4::FileExt::try_lock_shared(&file) {
        Ok(()) => findings.good("directory", "no service runs on it"),
        Err(fs4::TryLockError::WouldBlock) => {
            findings.warning(
                "directory",
                "a service runs on it",
                "A second one waits until the first has ended.",
            );
        }
        Err(fs4::TryLockError::Error(error)) => {
            let remedy = "Use a file system with locks: two services on one directory destroy it.";
            findings.problem("directory", format!("it cannot be locked: {error}"), remedy);
        }
    }
}

/// Writes and syncs a file without a name: it leaves no trace.
fn write(place: &Path, findings: &mut Findings) {
    let begun = Instant::now();
    let written = tempfile::tempfile_in(place).and_then(|mut file| {
        file.write_all(&[0; 4_096])?;
        file.sync_all()
    });
    match written {
        Ok(()) if begun.elapsed() > SYNC_WANTED => findings.warning(
            "sync",
            format!("a sync of 4 KiB took {} ms", begun.elapsed().as_millis()),
            "Use a faster disk: changes are acknowledged to Postgres after a sync.",
        ),
        Ok(()) => findings.good("sync", format!("a sync of 4 KiB took {} ms", begun.elapsed().as_millis())),
        Err(error) => {
            let owner = fs::metadata(place).map_or(0, |found| found.uid());
            let message = format!("nothing can be written to {}: {error}", place.display());
            let remedy = format!(
                "Let user {} write there; the directory belongs to user {owner}.",
                rustix::process::geteuid().as_raw()
            );
            findings.problem("sync", message, remedy);
        }
    }
}

fn kind(place: &Path, findings: &mut Findings) {
    // The type is signed on some systems and not on others.
    let Ok(found) = rustix::fs::statfs(place) else { return };
    let number = i64::from(found.f_type as u32);
    match KINDS.iter().find(|(kind, ..)| *kind == number) {
        Some((_, name, Some(remedy))) => {
            findings.warning("file system", format!("the directory is on {name}"), *remedy);
        }
        Some((_, name, None)) => findings.good("file system", format!("the directory is on {name}")),
        None => findings.good("file system", format!("type {number:#x}")),
    }
}

fn space(place: &Path, findings: &mut Findings) {
    let found = match rustix::fs::statvfs(place) {
        Ok(found) => found,
        Err(error) => {
            findings.warning("disk", format!("the free space is not known: {error}"), "Look at it with df.");
            return;
        }
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    thread::sleep(WATCHED);
    let left = rustix::fs::statvfs(place).ok().and_then(|now| {
        let taken = free.saturating_sub(now.f_bavail.saturating_mul(now.f_frsize));
        (taken > 0).then(|| free as f64 / (taken as f64 / WATCHED.as_secs_f64()))
    });
    let message = match left {
        Some(seconds) => format!("{} are free: {:.0} min at the present rate", bytes(free), seconds / 60.0),
        None => format!("{} are free", bytes(free)),
    };
    if free < FREE_BYTES_MIN {
        findings.problem("disk", message, "Make room: the service ends itself where there is none.");
    } else if free < FREE_BYTES_WANTED {
        findings.warning("disk", message, "Make room: shapes are kept on this disk, and so is the journal.");
    } else {
        findings.good("disk", message);
    }
    // Some file systems have no fixed number of them, and say 0.
    if found.f_files > 0 && found.f_favail < FREE_INODES_WANTED {
        let message = format!("{} inodes are free", found.f_favail);
        findings.warning("disk", message, "Each shape takes about five: use a file system with more.");
    }
}

/// Looks at the limit of open files.
pub(super) fn limits(wanted: u64, findings: &mut Findings) {
    let limit = getrlimit(Resource::Nofile);
    // The service raises the soft limit by itself.
    match limit.maximum {
        Some(maximum) if maximum < wanted => {
            let message = format!("at most {maximum} files can be open at once");
            let remedy = format!("Raise the hard limit (ulimit -Hn) to {wanted}: each client takes one.");
            findings.warning("open files", message, remedy);
        }
        Some(maximum) => findings.good("open files", format!("at most {maximum} at once")),
        None => findings.good("open files", "no limit"),
    }
}
