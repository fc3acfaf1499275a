//! How the owner is configured, in words and without secrets, kept beside the journal so that whoever gets a
//! copy of the directory knows which settings produced it. Written anew by each owner; nothing is decided by it.

use std::fs::File;
use std::io::{self, Read};

use super::error::{Finding, JournalError, Stage};
use super::files::{JournalPaths, write_by_rename};

const NAME: &str = "CONFIGURATION";
const HEAD: &str = "shapefold-configuration 1";
/// A few dozen settings.
const CONFIGURATION_BYTES_MAX: u64 = 64 * 1024;

/// Replaces the file. Only under the ownership lock.
///
/// # Errors
/// The disk refuses.
pub fn write_configuration(paths: &JournalPaths, json: &str) -> Result<(), JournalError> {
    let checksum = crc32c::crc32c(json.as_bytes());
    let text = format!("{HEAD} crc32c={checksum:08x}\n{json}\n");
    write_by_rename(&paths.root().join(NAME), text.as_bytes()).map_err(JournalError::io(Stage::Open))
}

/// The settings as the newest owner wrote them; `None` where it wrote none. What is wrong with them is a
/// finding: they are for people only.
pub(super) fn read(paths: &JournalPaths, findings: &mut Vec<Finding>) -> Option<String> {
    let unreadable = |reason: &str| Finding::Unreadable { what: NAME.to_owned(), reason: reason.to_owned() };
    let mut text = String::new();
    let read = File::open(paths.root().join(NAME))
        .and_then(|file| file.take(CONFIGURATION_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            findings.push(unreadable(&error.to_string()));
            return None;
        }
    }
    let json = parse(&text);
    if json.is_none() {
        findings.push(unreadable("it is damaged, or of another version"));
    }
    json
}

/// The settings, if every byte is what was written.
fn parse(text: &str) -> Option<String> {
    let (head, json) = text.split_once('\n')?;
    let json = json.strip_suffix('\n')?;
    let checksum = head.strip_prefix(HEAD)?.strip_prefix(" crc32c=")?;
    (checksum == format!("{:08x}", crc32c::crc32c(json.as_bytes()))).then(|| json.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_its_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let paths = JournalPaths::new(dir.path());
        paths.write_stamp().unwrap();
        let mut findings = Vec::new();
        assert_eq!((read(&paths, &mut findings), findings.len()), (None, 0), "an older owner wrote none");
        write_configuration(&paths, r#"{"stream_id":"default"}"#).unwrap();
        assert_eq!(read(&paths, &mut findings).as_deref(), Some(r#"{"stream_id":"default"}"#));
        let path = paths.root().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            findings.clear();
            assert_eq!((read(&paths, &mut findings), findings.len()), (None, 1), "byte {at}");
        }
    }

    #[test]
    fn version_1_is_read() {
        let text = include_str!("../../tests/data/journal/v1/CONFIGURATION");
        assert_eq!(
            parse(text).as_deref(),
            Some(r#"{"config_hash":"5ee10ff5e77e0001","stream_id":"default"}"#)
        );
    }
}
