//! Where the harness keeps its files, and the unprivileged user that Postgres runs as.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;

/// A user to run as, from `/etc/passwd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// Whom to run Postgres as: nobody special when we are not root, else `postgres` or `nobody`
    /// (Postgres refuses to run as root).
    pub fn for_postgres() -> Outcome<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd")?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| parse_passwd(&passwd, name))
            .map(Some)
            .ok_or_else(|| "running as root, and neither user postgres nor nobody exists".into())
    }
}

fn parse_passwd(passwd: &str, name: &str) -> Option<User> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

/// Makes the command run as that user.
pub fn run_as(command: &mut Command, user: Option<User>) {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

/// The folder for everything that a run leaves behind: `$SHAPEFOLD_DEV_DIR`, else `.dev` of the
/// checkout, else, where the Postgres user cannot enter that, a private folder below `$TMPDIR`.
pub fn dev_directory() -> Outcome<PathBuf> {
    let wanted = match std::env::var_os("SHAPEFOLD_DEV_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => std::env::current_dir()?.join(".dev"),
    };
    fs::create_dir_all(&wanted)?;
    let wanted = wanted.canonicalize()?;
    let Some(user) = User::for_postgres()? else { return Ok(wanted) };
    if can_enter(&wanted, user) {
        return Ok(wanted);
    }
    let fallback = std::env::temp_dir().join(format!("shapefold-dev-{:016x}", fnv1a(&wanted)));
    fs::create_dir_all(&fallback)?;
    fs::set_permissions(&fallback, fs::Permissions::from_mode(0o755))?;
    if !can_enter(&fallback, user) {
        return Err(format!(
            "the Postgres user can enter neither {} nor {}: set SHAPEFOLD_DEV_DIR to a folder that it can enter",
            wanted.display(),
            fallback.display()
        )
        .into());
    }
    Ok(fallback)
}

fn can_enter(directory: &Path, user: User) -> bool {
    let mut command = Command::new("ls");
    command.arg("-d").arg(directory.join(".")).stdout(Stdio::null()).stderr(Stdio::null());
    run_as(command.current_dir("/"), Some(user));
    command.status().is_ok_and(|status| status.success())
}

/// Stable across runs, so that the same checkout finds its folder again.
fn fnv1a(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// An empty folder for one run of one command, held by a lock so that two runs in one checkout do
/// not tread on each other.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Empties and takes `<dev>/<name>`.
    pub fn claim(name: &str) -> Outcome<Self> {
        let dev = dev_directory()?;
        let lock = File::create(dev.join(format!("{name}.lock")))?;
        if let Err(error) = lock.try_lock() {
            return Err(format!("another run of {name} holds {}/{name}.lock ({error})", dev.display()).into());
        }
        let path = dev.join(name);
        crate::service::stop_leftover(&path);
        crate::postgres::stop_leftover(&path.join("postgres"));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { path, _lock: lock })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Creates a folder that belongs to the user Postgres runs as.
pub fn create_owned(directory: &Path, user: Option<User>) -> Outcome<()> {
    fs::create_dir_all(directory)?;
    if let Some(user) = user {
        chown(directory, Some(user.uid), Some(user.gid))?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    Ok(())
}

/// A TCP port on the loopback address that was free a moment ago.
pub fn free_port() -> Outcome<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_is_read_by_exact_name() {
        let passwd = "root:x:0:0:root:/:/bin/sh\npostgres2:x:7:7::/:\npostgres:x:101:104:PG:/var:/bin/sh\n";
        assert_eq!(parse_passwd(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(parse_passwd(passwd, "nobody"), None);
    }
}
