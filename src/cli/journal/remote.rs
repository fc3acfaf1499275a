//! A journal that is asked over the network: `shapefold journal … http://HOST:PORT`.
//!
//! The command itself is sent, and answered by the service as it would be here. What writes files is
//! answered here, from an export that is fetched first.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use super::{Answered, Command, Failure, perform};

const TOKEN_VARIABLE: &str = "SHAPEFOLD_ADMIN_TOKEN";
/// How long the service may take to accept, and to say the next piece of an answer.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(600);
/// Bytes of an answer's head.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of a refusal that are shown.
const REFUSAL_BYTES_MAX: u64 = 16 * 1024;

/// The address of the service whose journal a command asks, if it asks one.
pub fn service_of(command: &mut Command) -> Option<String> {
    let (journal, _) = command.journal()?;
    let place = journal.journal.to_str()?;
    let is_url = ["http://", "https://"].iter().any(|scheme| place.starts_with(scheme));
    is_url.then(|| place.to_owned())
}

/// Asks the service at `url`.
///
/// # Errors
/// The service cannot be reached, refuses, or breaks off; or the command fails there or here.
pub fn run(url: &str, command: &mut Command, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let service = Service::of(url)?;
    let answered = command.journal().map_or(Answered::Never, |(_, answered)| answered);
    let wanted = command.journal().is_some_and(|(journal, _)| journal.progress);
    match answered {
        Answered::There => service.ask(arguments(), wanted, out),
        Answered::Here => {
            let folder = tempfile::Builder::new().prefix("shapefold-fetched-").tempdir()?;
            let path = folder.path().join("journal.sfx");
            service.fetch(&mut std::fs::File::create_new(&path)?)?;
            if let Some((journal, _)) = command.journal() {
                journal.journal = path;
            }
            perform(command, out).map(ExitCode::from)
        }
        Answered::Never => {
            Err(Failure::Service(format!("open {url} in the browser: it is the dashboard itself")))
        }
    }
}

/// What stands behind `shapefold journal`.
fn arguments() -> Vec<String> {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    words.skip_while(|word| word != "journal").skip(1).collect()
}

struct Service {
    authority: String,
    token: String,
}

impl Service {
    fn of(url: &str) -> Result<Service, Failure> {
        let wrong = |why: &str| Failure::Service(format!("{url}: {why}"));
        let rest = url.strip_prefix("http://").ok_or_else(|| wrong("only http is spoken; use a tunnel"))?;
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() || rest.contains('/') {
            return Err(wrong("expected http://HOST:PORT"));
        }
        let authority = if rest.contains(':') { rest.to_owned() } else { format!("{rest}:80") };
        let token = std::env::var(TOKEN_VARIABLE).unwrap_or_default();
        if token.is_empty() || token.chars().any(char::is_control) {
            return Err(wrong("set SHAPEFOLD_ADMIN_TOKEN to its token"));
        }
        Ok(Service { authority, token })
    }

    fn ask(&self, arguments: Vec<String>, wanted: bool, out: &mut impl Write) -> Result<ExitCode, Failure> {
        let terminal = std::io::stderr().is_terminal();
        let body = serde_json::json!({ "arguments": arguments, "progress": wanted || terminal }).to_string();
        let mut shown = false;
        for line in self.send("POST", "/v1/ask", &body)?.lines() {
            let line = line.map_err(|error| self.broken(&error))?;
            let said: serde_json::Value = serde_json::from_str(&line)?;
            if std::mem::take(&mut shown) && terminal {
                // Over the line of progress.
                eprint!("\r\x1b[K");
            }
            if let Some(progress) = said["progress"].as_str() {
                shown = true;
                if terminal {
                    eprint!("{progress}");
                } else {
                    eprintln!("{progress}");
                }
            } else if let Some(text) = said["out"].as_str() {
                out.write_all(text.as_bytes())?;
            } else if let Some(code) = said["code"].as_u64() {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            } else {
                return Err(Failure::Service(said["error"].as_str().unwrap_or(&line).trim_end().to_owned()));
            }
        }
        Err(Failure::Service(format!("{}: the answer was cut off", self.authority)))
    }

    /// Every block of the file has a checksum, and so has its end.
    fn fetch(&self, file: &mut std::fs::File) -> Result<(), Failure> {
        let mut body = self.send("GET", "/v1/export", "")?;
        std::io::copy(&mut body, file).map_err(|error| self.broken(&error))?;
        Ok(())
    }

    fn broken(&self, error: &std::io::Error) -> Failure {
        Failure::Service(format!("{}: {error}", self.authority))
    }

    /// Sends a request of HTTP/1.0, so that the end of the answer is the end of the connection.
    fn send(&self, method: &str, path: &str, body: &str) -> Result<BufReader<TcpStream>, Failure> {
        let io = |error: std::io::Error| self.broken(&error);
        let addresses = std::net::ToSocketAddrs::to_socket_addrs(&self.authority).map_err(io)?;
        let mut failure = std::io::Error::from(std::io::ErrorKind::NotFound);
        let mut connected = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_WAIT_MAX) {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                Err(error) => failure = error,
            }
        }
        let mut stream = connected.ok_or(failure).map_err(io)?;
        stream.set_read_timeout(Some(ANSWER_WAIT_MAX)).map_err(io)?;
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.authority,
            self.token,
            body.len()
        );
        stream.write_all(request.as_bytes()).map_err(io)?;
        let mut answer = BufReader::new(stream);
        let (mut head, mut status) = (Vec::new(), None);
        loop {
            head.clear();
            (&mut answer).take(HEAD_BYTES_MAX).read_until(b'\n', &mut head).map_err(io)?;
            let line = String::from_utf8_lossy(&head);
            let line = line.trim_end();
            if status.is_none() {
                status = line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
                if status.is_none() {
                    return Err(Failure::Service(format!("{}: this is no HTTP", self.authority)));
                }
            } else if line.is_empty() {
                break;
            }
        }
        if status == Some(200) {
            return Ok(answer);
        }
        let mut text = String::new();
        answer.take(REFUSAL_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
        let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let reason = said["error"].as_str().unwrap_or("no reason was given");
        Err(Failure::Service(format!("{}: {} ({reason})", self.authority, status.unwrap_or_default())))
    }
}
