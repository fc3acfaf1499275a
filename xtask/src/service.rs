//! The real service binary as a child process: start, freeze, kill, start again on the same data.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;
use crate::http::{HttpClient, Response};

/// How long the service may take until `/v1/health` says active.
pub const START_DURATION_MAX: Duration = Duration::from_secs(60);
/// How long a graceful stop may take before the service is killed.
const STOP_DURATION_MAX: Duration = Duration::from_secs(20);
/// The same, when a run is abandoned.
const DROP_DURATION_MAX: Duration = Duration::from_secs(5);
/// Lines of output kept in memory for each stream; the log file has them all.
const OUTPUT_LINES_MAX: usize = 5_000;
/// Beside the log file: the process to end when this run was itself killed.
const PID_FILE: &str = "service.pid";

/// How the service is started. The variables are Electric's.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    pub binary: PathBuf,
    pub database_url: String,
    pub data_dir: PathBuf,
    /// 0 lets the service pick one; a restart then uses that one again.
    pub port: u16,
    pub stream_id: String,
    /// Further variables, which win over the ones set here.
    pub environment: Vec<(String, String)>,
    /// Where all output is appended to, besides being kept in memory.
    pub log_file: Option<PathBuf>,
    /// A program with its arguments that the binary is started by, and that makes way for it: the child
    /// must be the service itself.
    pub wrapper: Vec<String>,
}

impl ServiceSettings {
    #[must_use]
    pub fn new(binary: &Path, database_url: &str, data_dir: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            database_url: database_url.to_owned(),
            data_dir: data_dir.to_owned(),
            port: 0,
            stream_id: "default".to_owned(),
            environment: Vec::new(),
            log_file: None,
            wrapper: Vec::new(),
        }
    }

    /// Sets one more environment variable.
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }
}

#[derive(Debug, Default)]
struct Output {
    stdout: Vec<String>,
    stderr: Vec<String>,
}

/// A running (or killed) service. Stopped when dropped.
#[derive(Debug)]
pub struct Service {
    settings: ServiceSettings,
    child: Option<Child>,
    output: Arc<Mutex<Output>>,
    readers: Vec<JoinHandle<()>>,
    port: Option<u16>,
}

impl Service {
    /// Starts the service and waits until it is active.
    pub async fn start(settings: ServiceSettings) -> Outcome<Self> {
        let mut service = Self::spawn(settings)?;
        service.wait_active(START_DURATION_MAX).await?;
        Ok(service)
    }

    /// Starts the process only: for tests of a service that cannot become active.
    pub fn spawn(settings: ServiceSettings) -> Outcome<Self> {
        let port = (settings.port != 0).then_some(settings.port);
        let mut service = Self { settings, child: None, output: Arc::default(), readers: Vec::new(), port };
        service.launch()?;
        Ok(service)
    }

    fn launch(&mut self) -> Outcome<()> {
        let settings = &self.settings;
        let mut command = match settings.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&settings.binary);
                command
            }
            None => Command::new(&settings.binary),
        };
        command.arg("serve").env_clear();
        for name in ["PATH", "HOME", "TMPDIR", "RUST_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("DATABASE_URL", &settings.database_url)
            .env("ELECTRIC_PORT", self.port.unwrap_or(0).to_string())
            .env("ELECTRIC_STORAGE_DIR", &settings.data_dir)
            .env("ELECTRIC_INSECURE", "true")
            .env("ELECTRIC_REPLICATION_STREAM_ID", &settings.stream_id)
            .env("ELECTRIC_ENABLE_INTEGRATION_TESTING", "true")
            .envs(settings.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", settings.binary.display()))?;
        let log = match &settings.log_file {
            Some(path) => Some(File::options().create(true).append(true).open(path)?),
            None => None,
        };
        // Readers of an earlier process may still have a line to write: it stays with that process.
        self.output = Arc::default();
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let log = log.as_ref().map(File::try_clone).transpose()?;
            readers.push(self.collect(stdout, log, |output| &mut output.stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(self.collect(stderr, log, |output| &mut output.stderr));
        }
        if let Some(path) = &settings.log_file {
            fs::write(path.with_file_name(PID_FILE), child.id().to_string())?;
        }
        self.child = Some(child);
        self.readers = readers;
        Ok(())
    }

    /// A thread that reads one stream to its end, so that the service never blocks on a full pipe.
    fn collect(
        &self,
        stream: impl Read + Send + 'static,
        mut log: Option<File>,
        lines: fn(&mut Output) -> &mut Vec<String>,
    ) -> JoinHandle<()> {
        let output = Arc::clone(&self.output);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if let Some(log) = log.as_mut() {
                    let _ = writeln!(log, "{line}");
                }
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                let kept = lines(&mut output);
                if kept.len() == OUTPUT_LINES_MAX {
                    kept.remove(0);
                }
                kept.push(line);
            }
        })
    }

    fn lock_output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `/v1/health` answers 200; an exit of the process ends the wait at once.
    pub async fn wait_active(&mut self, wait_max: Duration) -> Outcome<()> {
        let deadline = Instant::now() + wait_max;
        loop {
            if self.health().await == Some(200) {
                return Ok(());
            }
            if let Some(status) = self.try_wait() {
                return Err(
                    format!("the service ended ({status}):\n{}", last_lines(&self.output(), 40)).into()
                );
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "the service is not active after {} s:\n{}",
                    wait_max.as_secs(),
                    last_lines(&self.output(), 40)
                )
                .into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Status of `/v1/health`, `None` while nobody answers.
    pub async fn health(&mut self) -> Option<u16> {
        self.health_answer().await.map(|response| response.status)
    }

    /// The whole answer of `/v1/health`, `None` while nobody answers.
    pub async fn health_answer(&mut self) -> Option<Response> {
        if self.port.is_none() {
            let output = self.lock_output();
            let port = output.stdout.iter().chain(&output.stderr).find_map(|line| parse_listening(line));
            drop(output);
            self.port = port;
        }
        let mut client = HttpClient::new(([127, 0, 0, 1], self.port?).into());
        let answer = tokio::time::timeout(Duration::from_secs(2), client.get("/v1/health")).await;
        answer.ok()?.ok()
    }

    /// Where the service listens. Panics before it was active for the first time.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port.expect("the service was waited for")).into()
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Process id, `None` while it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.settings.data_dir
    }

    /// For changes that take effect with the next start.
    pub fn settings_mut(&mut self) -> &mut ServiceSettings {
        &mut self.settings
    }

    /// Sends a signal; without effect when the process has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGKILL, and waits for the process to be gone.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits; after a while SIGKILL. True when the service ended by itself with success.
    pub async fn terminate(&mut self) -> bool {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_DURATION_MAX;
        loop {
            if let Some(status) = self.try_wait() {
                self.child = None;
                return status.success();
            }
            if Instant::now() > deadline {
                self.kill9();
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the process on the same data and port, and waits until it is active.
    pub async fn restart(&mut self) -> Outcome<()> {
        self.relaunch()?;
        self.wait_active(START_DURATION_MAX).await
    }

    /// Starts the process on the same data and port, without waiting.
    pub fn relaunch(&mut self) -> Outcome<()> {
        self.kill9();
        self.launch()
    }

    /// Exit status if the process has ended. All that it said can be read then.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        for reader in self.readers.drain(..) {
            // The pipes ended with the process, so this is short. A reader that panicked has said so.
            let _ = reader.join();
        }
        Some(status)
    }

    #[must_use]
    pub fn stdout(&self) -> String {
        self.lock_output().stdout.join("\n")
    }

    #[must_use]
    pub fn stderr(&self) -> String {
        self.lock_output().stderr.join("\n")
    }

    /// Both streams since the last start, stdout first.
    #[must_use]
    pub fn output(&self) -> String {
        format!("{}\n{}", self.stdout(), self.stderr())
    }

    /// Highest resident memory of the running process so far, in bytes.
    #[must_use]
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        self.status_bytes("VmHWM:")
    }

    /// Resident memory of the running process, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + DROP_DURATION_MAX;
        while self.child.is_some() && self.try_wait().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill9();
    }
}

/// Kills the service that an earlier run left behind in that folder. The pid file may be stale: the
/// process is only touched when its environment names the folder.
pub fn stop_leftover(directory: &Path) {
    let Ok(text) = fs::read_to_string(directory.join(PID_FILE)) else { return };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return };
    let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
    let mark = format!("ELECTRIC_STORAGE_DIR={}/", directory.display());
    if memchr::memmem::find(&environment, mark.as_bytes()).is_some() {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The port in a line `… listening on 127.0.0.1:PORT …`, however the line is structured.
fn parse_listening(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once("listening on ")?;
    let address = rest.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).next()?;
    address.rsplit(':').next()?.parse().ok().filter(|port| *port != 0)
}

/// The end of a text.
#[must_use]
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The service binary: `$SHAPEFOLD_BIN`, else the one beside the running program.
pub fn default_binary() -> Outcome<PathBuf> {
    if let Some(path) = std::env::var_os("SHAPEFOLD_BIN") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("shapefold");
    if path.exists() {
        return Ok(path);
    }
    Err(format!("{} is not built: run ./dev, or cargo build", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_in_plain_and_structured_lines() {
        assert_eq!(parse_listening("INFO listening on 127.0.0.1:4711"), Some(4711));
        assert_eq!(
            parse_listening(r#"{"message":"listening on 127.0.0.1:4711","level":"INFO"}"#),
            Some(4711)
        );
        assert_eq!(parse_listening("listening on 127.0.0.1:0"), None);
        assert_eq!(parse_listening("listening"), None);
    }

    #[test]
    fn last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
