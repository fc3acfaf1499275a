//! A static nginx over a folder: how fast bytes can be served that need no thought.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;
use crate::directory::free_port;
use crate::http::HttpClient;

/// Longest wait until it answers.
const START_WAIT_MAX: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// One worker, without privileges, that serves the files of a folder with sendfile.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    pub address: SocketAddr,
}

impl Nginx {
    /// Starts it over `folder`, where its own files go, too.
    ///
    /// # Errors
    /// It is not installed, or does not answer.
    pub async fn start(folder: &Path) -> Outcome<Nginx> {
        let port = free_port()?;
        let configuration = format!(
            "daemon off; pid nginx.pid; worker_processes 1; error_log error.log;
             events {{ worker_connections 64; }}
             http {{
                 access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
                 client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
                 server {{ listen 127.0.0.1:{port}; location / {{ root {}; }} }}
             }}",
            folder.display()
        );
        std::fs::write(folder.join("nginx.conf"), configuration)?;
        let installed = PathBuf::from("/usr/sbin/nginx");
        let program = if installed.exists() { installed } else { PathBuf::from("nginx") };
        let child = Command::new(program)
            .arg("-p")
            .arg(folder)
            .args(["-e", "error.log", "-c", "nginx.conf"])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => "nginx is not installed: ./dev setup".to_owned(),
                _ => format!("nginx: {error}"),
            })?;
        let nginx = Nginx { child, address: ([127, 0, 0, 1], port).into() };
        let begun = Instant::now();
        while HttpClient::new(nginx.address).get("/").await.is_err() {
            if begun.elapsed() > START_WAIT_MAX {
                let said = std::fs::read_to_string(folder.join("error.log")).unwrap_or_default();
                return Err(format!("nginx does not answer: {said}").into());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker when it is told to, not when it is killed.
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
