//! The admin API's settings, and what it is given to answer from.

use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use crate::cli::{journal, values};
use crate::runtime::Running;
use crate::server::admin::{Admin, Asker, Command, Sources, serve};

// A group of its own: its type is called as that of the service.
#[derive(Debug, clap::Args)]
#[group(id = "admin")]
pub struct Arguments {
    /// Port of the admin API and the dashboard; 0 picks a free one. Off unless set.
    #[arg(long, env = "SHAPEFOLD_ADMIN_PORT")]
    admin_port: Option<u16>,
    /// Address that the admin API listens on.
    #[arg(long, env = "SHAPEFOLD_ADMIN_LISTEN", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    admin_listen: IpAddr,
    /// What clients of the admin API must send as their bearer token. Required with the port.
    #[arg(long, env = "SHAPEFOLD_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
    /// How often the engine's views are compared with the fold of the journal.
    #[arg(long, env = "SHAPEFOLD_PROJECTION_CHECK_INTERVAL", value_parser = values::duration, default_value = "60s")]
    pub projection_check_interval: Duration,
}

/// Where to listen, and for whom.
pub struct Settings {
    address: SocketAddr,
    token: String,
}

/// Without the token.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Arguments {
    /// `None` where nobody asked for it.
    ///
    /// # Errors
    /// A port without a token.
    pub fn settings(&self) -> Result<Option<Settings>, String> {
        let Some(port) = self.admin_port else { return Ok(None) };
        let token = self.admin_token.as_ref().filter(|token| !token.is_empty());
        let token = token.ok_or("SHAPEFOLD_ADMIN_PORT needs SHAPEFOLD_ADMIN_TOKEN: set it to a secret")?;
        Ok(Some(Settings { address: SocketAddr::new(self.admin_listen, port), token: token.clone() }))
    }
}

/// A port that is listened on already.
pub struct Listening {
    listener: TcpListener,
    token: String,
}

/// Takes the port.
///
/// # Errors
/// What to tell the person who started us.
pub fn listen(settings: &Settings) -> Result<Listening, String> {
    let failed = |error| format!("the admin port {} cannot be listened on: {error}", settings.address);
    let listener = TcpListener::bind(settings.address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!("admin API and dashboard on http://{address}/");
    Ok(Listening { listener, token: settings.token.clone() })
}

impl Listening {
    /// Answers until the process ends, on a thread and a runtime of its own: whatever is asked here, those
    /// who read shapes do not notice.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn serve(self, running: &Running) -> std::io::Result<()> {
        let sources = Sources::running(running.service.clone(), running.observed.clone());
        let admin = Admin::new(self.token, sources, asker());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(async {
                match tokio::net::TcpListener::from_std(self.listener) {
                    Ok(listener) => serve(listener, admin).await,
                    Err(error) => tracing::error!(%error, "the admin port cannot be served"),
                }
            });
        })?;
        Ok(())
    }
}

/// Commands of `shapefold journal` that are asked over the API.
pub fn asker() -> Asker {
    Arc::new(|command: Command<'_>, out: Box<dyn Write + Send>| journal::answer(command, out))
}
