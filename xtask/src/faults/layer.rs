//! The layer between the service and its file system, see `layer.c`: compiled once a run, loaded into the
//! service with `LD_PRELOAD`, and told what to do through a file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::service::{ServiceSettings, last_lines};

const SOURCE: &str = include_str!("layer.c");
/// More than the rule needs: a page.
const FILE_BYTES: u64 = 4_096;
const RULE_BYTES: usize = 448;
const PART_AT: usize = 64;
const PART_MAX: usize = 191;
const WITHOUT_AT: usize = 256;
const SEEN_AT: u64 = 28;
const STRUCK_AT: u64 = 32;
const LOADED_AT: u64 = 36;

/// Calls of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Write,
    Sync,
    Open,
    Rename,
    Mkdir,
    Read,
}

impl Call {
    fn bits(self) -> u32 {
        match self {
            Call::Write => 1,
            Call::Sync => 2,
            Call::Open => 4,
            Call::Rename => 8,
            Call::Mkdir => 16,
            Call::Read => 64,
        }
    }
}

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error(rustix::io::Errno),
    /// Half of what is written, then the error.
    ShortWrite(rustix::io::Errno),
    /// Milliseconds.
    Delay(u32),
}

/// What strikes where.
#[derive(Clone, Debug)]
pub struct Rule {
    pub call: Call,
    pub fault: Fault,
    /// In the path of what is touched.
    pub part: &'static str,
    /// Not in it.
    pub without: &'static str,
    /// So many calls pass first.
    pub skip: u32,
    /// Then so many are struck; 0 strikes all until it is lifted.
    pub times: u32,
}

/// The compiled layer and its file.
#[derive(Debug)]
pub struct Layer {
    library: PathBuf,
    control: PathBuf,
    file: File,
}

impl Layer {
    /// Compiles the layer with `cc` (or `$CC`) into `directory`.
    ///
    /// # Errors
    /// No C compiler, or a machine whose registers the layer does not know.
    pub fn compile(directory: &Path) -> Outcome<Layer> {
        let (source, library) = (directory.join("layer.c"), directory.join("layer.so"));
        fs::write(&source, SOURCE)?;
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let output = Command::new(&compiler)
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(&source)
            .output()
            .map_err(|error| format!("cannot run {}: {error}", compiler.display()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("the fault layer does not compile: {}", last_lines(&text, 5)).into());
        }
        let control = directory.join("faults");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&control)?;
        file.set_len(FILE_BYTES)?;
        Ok(Layer { library, control, file })
    }

    /// Has a service start with it.
    pub fn put_under(&self, settings: &mut ServiceSettings) {
        settings.set("LD_PRELOAD", self.library.to_string_lossy());
        settings.set("SHAPEFOLD_FAULTS", self.control.to_string_lossy());
        // Rules name the files of a shape.
        settings.set("SHAPEFOLD_PACK_SMALL_SHAPES", "false");
    }

    /// From now on this rule holds, and no other.
    ///
    /// # Errors
    /// The file cannot be written, or a path is too long.
    pub fn arm(&self, rule: &Rule) -> Outcome<()> {
        let (error, delay, halve) = match rule.fault {
            Fault::Error(errno) => (errno.raw_os_error(), 0, 0),
            Fault::ShortWrite(errno) => (errno.raw_os_error(), 0, 1),
            Fault::Delay(millis) => (0, millis, 0),
        };
        let mut bytes = [0; RULE_BYTES];
        let numbers = [
            0,
            rule.call.bits(),
            error.cast_unsigned(),
            rule.skip,
            rule.times,
            delay,
            halve,
            0,
            0,
            u32::from(self.is_loaded()),
        ];
        for (slot, number) in bytes.chunks_exact_mut(4).zip(numbers) {
            slot.copy_from_slice(&number.to_ne_bytes());
        }
        for (at, text) in [(PART_AT, rule.part), (WITHOUT_AT, rule.without)] {
            if text.len() > PART_MAX {
                return Err(format!("{text} is too long").into());
            }
            bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        self.lift()?;
        self.file.write_all_at(&bytes, 0)?;
        // Last: nobody may see half a rule.
        Ok(self.file.write_all_at(&1_u32.to_ne_bytes(), 0)?)
    }

    /// No rule holds any more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn lift(&self) -> Outcome<()> {
        Ok(self.file.write_all_at(&0_u32.to_ne_bytes(), 0)?)
    }

    /// Whether a process has loaded it.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.number(LOADED_AT) > 0
    }

    /// Calls that the rule was about, and how many it struck.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        (self.number(SEEN_AT), self.number(STRUCK_AT))
    }

    fn number(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, at).map_or(0, |()| u32::from_ne_bytes(bytes))
    }
}
