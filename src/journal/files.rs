//! Where the journal's files are, and the few ways in which they may be made durable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::{JournalError, Position, Stage};

const STAMP_NAME: &str = "shapefold-journal";
const STAMP_VERSION: u32 = 1;
const STAMP_BYTES_MAX: u64 = 256;

/// The layout of the journal under one data directory.
#[derive(Clone, Debug)]
pub struct JournalPaths {
    root: PathBuf,
}

impl JournalPaths {
    #[must_use]
    pub fn new(data_dir: &Path) -> JournalPaths {
        JournalPaths { root: data_dir.join("journal") }
    }

    /// The layout where `root` itself is the journal's directory.
    #[must_use]
    pub fn at(root: &Path) -> JournalPaths {
        JournalPaths { root: root.to_owned() }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn sled(&self) -> PathBuf {
        self.root.join("sled")
    }

    #[must_use]
    pub fn archive(&self) -> PathBuf {
        self.root.join("archive")
    }

    #[must_use]
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    pub(super) fn mark(&self) -> PathBuf {
        self.root.join("MARK")
    }

    fn stamp(&self) -> PathBuf {
        self.root.join("FORMAT")
    }

    /// Reads the version stamp without changing anything. `false` if there is none yet.
    pub(super) fn check_stamp(&self) -> Result<bool, JournalError> {
        use std::io::Read;
        let mut text = String::new();
        let file = match File::open(self.stamp()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(JournalError::io(Stage::Open)(error)),
        };
        file.take(STAMP_BYTES_MAX).read_to_string(&mut text).map_err(JournalError::io(Stage::Open))?;
        match parse_stamp(&text) {
            Some(STAMP_VERSION) => Ok(true),
            Some(found) => {
                Err(JournalError::NewerFormat { what: "the journal", found, supported: STAMP_VERSION })
            }
            None => Err(JournalError::Damaged {
                at: Position::File { name: "FORMAT".to_owned(), offset: 0 },
                what: "format stamp",
            }),
        }
    }

    /// Writes the stamp durably, making the directories. Only under the ownership lock.
    pub(super) fn write_stamp(&self) -> io::Result<()> {
        fs::create_dir_all(&self.root)?;
        if let Some(data_dir) = self.root.parent() {
            sync_dir(data_dir)?;
        }
        write_by_rename(&self.stamp(), format_stamp(STAMP_VERSION).as_bytes())
    }
}

fn format_stamp(version: u32) -> String {
    let text = format!("{STAMP_NAME} {version}");
    format!("{text} crc32c={:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// The version, if the line is intact.
fn parse_stamp(text: &str) -> Option<u32> {
    let version: u32 = text.strip_prefix(STAMP_NAME)?.split_ascii_whitespace().next()?.parse().ok()?;
    (format_stamp(version) == text && version != 0).then_some(version)
}

/// fsync of a directory: makes creations and renames in it durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Replaces a small file: temporary name beside it, fsync, rename, fsync of the directory.
pub(super) fn write_by_rename(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_read_back_and_its_damage_noticed() {
        assert_eq!(parse_stamp(&format_stamp(1)), Some(1));
        assert_eq!(parse_stamp(&format_stamp(70)), Some(70));
        for bad in ["", "shapefold-journal", "shapefold-journal 1\n", "shapefold-journal 2 crc32c=00000000\n"]
        {
            assert_eq!(parse_stamp(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_newer_stamp_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = JournalPaths::new(dir.path());
        fs::create_dir(paths.root()).unwrap();
        fs::write(paths.stamp(), format_stamp(2)).unwrap();
        let error = paths.check_stamp().unwrap_err();
        assert!(matches!(error, JournalError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
        assert_eq!(fs::read_to_string(paths.stamp()).unwrap(), format_stamp(2));
    }
}
