//! The dashboard's time machine over a journal that no service writes.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::admin::asker;
use crate::inspect::History;
use crate::server::admin::{Admin, Sources, serve};

use super::{Failure, Where};

/// Characters of the token that is made up for one run.
const TOKEN_CHARACTERS: usize = 32;

/// Look at a journal in the browser: the dashboard's time machine over any journal.
///
/// Prints an address with a token made for this run, and answers until Ctrl-C. Files that are dropped on the
/// page can be looked at, too.
#[derive(Debug, clap::Args)]
pub struct Open {
    #[command(flatten)]
    pub journal: Where,
    /// Port of the page; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    listen: IpAddr,
    /// The token to ask for, instead of one made up.
    #[arg(long, env = "SHAPEFOLD_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl Open {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let history = Arc::new(History::open(&self.journal.journal)?);
        let made_up =
            || rand::rng().sample_iter(Alphanumeric).take(TOKEN_CHARACTERS).map(char::from).collect();
        let token: String = self.token.clone().filter(|token| !token.is_empty()).unwrap_or_else(made_up);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let served: Result<(), std::io::Error> = runtime.block_on(async {
            let listener = TcpListener::bind(SocketAddr::new(self.listen, self.port)).await?;
            let address = listener.local_addr()?;
            // Behind #, so that it is sent to nobody.
            let fragment = if self.token.is_some() { String::new() } else { format!("#token={token}") };
            writeln!(out, "open http://{address}/{fragment}")?;
            out.flush()?;
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                () = serve(listener, Admin::new(token, Sources::Opened(history), asker())) => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            Ok(())
        });
        // Questions under way have nobody to answer to.
        runtime.shutdown_background();
        Ok(served?)
    }
}
