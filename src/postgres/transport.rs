//! The byte stream to the server: TCP with keepalive, plain or under TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::postgres::channel_binding::tls_server_end_point;
use crate::postgres::{DatabaseUrl, PgError, PgErrorKind, SslMode, Tls};

/// How long one address may take to accept a connection, and then to finish its TLS handshake.
pub(crate) const DIAL_WAIT_MAX: Duration = Duration::from_secs(10);

/// Settings of the socket; `None` leaves the choice to the system, keepalive itself is always on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    pub keepalive_idle: Option<Duration>,
    pub keepalive_interval: Option<Duration>,
    pub keepalive_count: Option<u32>,
    pub user_timeout: Option<Duration>,
    /// Try IPv6 addresses first, then IPv4; otherwise the other way round.
    pub prefer_ipv6: bool,
}

/// A host that is gone is noticed after two minutes; most systems take more than two hours.
impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions {
            keepalive_idle: Some(Duration::from_secs(60)),
            keepalive_interval: Some(Duration::from_secs(10)),
            keepalive_count: Some(6),
            user_timeout: None,
            prefer_ipv6: false,
        }
    }
}

/// What one attempt to connect asks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    Plain,
    /// TLS if the server has it.
    Offered,
    Required,
}

/// The attempts to make, in order: where TLS is optional, a server that refuses an encrypted
/// connection (`hostnossl` in pg_hba.conf) is asked for a plain one.
pub(crate) fn encryption_attempts(mode: SslMode, tls: &Tls) -> &'static [Encryption] {
    match mode {
        SslMode::Disable => &[Encryption::Plain],
        SslMode::Require => &[Encryption::Required],
        SslMode::Allow | SslMode::Prefer if tls.verified() => &[Encryption::Required],
        SslMode::Allow | SslMode::Prefer => &[Encryption::Offered, Encryption::Plain],
    }
}

/// Opens a TCP connection: the addresses of the host one after the other.
pub(crate) async fn dial(url: &DatabaseUrl, options: &TcpOptions) -> Result<TcpStream, PgError> {
    let mut last = PgError::new(PgErrorKind::UnknownHost, "the name has no address");
    for address in addresses(url, options.prefer_ipv6).await? {
        match tokio::time::timeout(DIAL_WAIT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                configure(&stream, options).map_err(|error| PgError::from_io(&error))?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = PgError::from_io(&error),
            Err(_) => last = PgError::new(PgErrorKind::Unreachable, "connecting timed out"),
        }
    }
    Err(last)
}

async fn addresses(url: &DatabaseUrl, prefer_ipv6: bool) -> Result<Vec<SocketAddr>, PgError> {
    let found = tokio::net::lookup_host((url.host(), url.port())).await.map_err(|error| {
        // The resolver's own words: a name server that does not answer is worth another try.
        let temporary = error.to_string().contains("Temporary failure");
        let kind = if temporary { PgErrorKind::Unreachable } else { PgErrorKind::UnknownHost };
        PgError::new(kind, "the host name cannot be resolved")
    })?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(|address| address.is_ipv6() != prefer_ipv6);
    Ok(found)
}

fn configure(stream: &TcpStream, options: &TcpOptions) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    if let Some(idle) = options.keepalive_idle {
        sockopt::set_tcp_keepidle(stream, idle)?;
    }
    if let Some(interval) = options.keepalive_interval {
        sockopt::set_tcp_keepintvl(stream, interval)?;
    }
    if let Some(count) = options.keepalive_count {
        sockopt::set_tcp_keepcnt(stream, count)?;
    }
    #[cfg(target_os = "linux")]
    if let Some(timeout) = options.user_timeout {
        let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(stream, millis)?;
    }
    Ok(())
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Asks the server for TLS as `encryption` says and does the handshake.
    pub(crate) async fn negotiate(
        stream: TcpStream,
        host: &str,
        encryption: Encryption,
        tls: &Tls,
    ) -> Result<Transport, PgError> {
        if encryption == Encryption::Plain {
            return Ok(Transport::Plain(stream));
        }
        match tokio::time::timeout(DIAL_WAIT_MAX, handshake(stream, host, encryption, tls)).await {
            Ok(result) => result,
            Err(_) => Err(PgError::new(PgErrorKind::Unreachable, "the TLS handshake timed out")),
        }
    }
}

impl Transport {
    /// What ties a password exchange to this connection, where there is TLS.
    pub(crate) fn channel_binding(&self) -> Option<Vec<u8>> {
        match self {
            Transport::Plain(_) => None,
            Transport::Tls(stream) => {
                let certificate = stream.get_ref().1.peer_certificates()?.first()?;
                tls_server_end_point(certificate)
            }
        }
    }
}

async fn handshake(
    mut stream: TcpStream,
    host: &str,
    encryption: Encryption,
    tls: &Tls,
) -> Result<Transport, PgError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(|error| PgError::from_io(&error))?;
    // Exactly one byte: more would be text that somebody slipped in before the encryption.
    match stream.read_u8().await.map_err(|error| PgError::from_io(&error))? {
        b'S' => {}
        b'N' if encryption == Encryption::Offered => return Ok(Transport::Plain(stream)),
        b'N' => return Err(PgError::new(PgErrorKind::Tls, "the server does not offer TLS")),
        _ => return Err(PgError::malformed("unexpected answer to the request for TLS")),
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| PgError::new(PgErrorKind::Tls, "the host is no valid server name"))?;
    let stream = TlsConnector::from(tls.config()).connect(name, stream).await.map_err(|error| {
        // Also where the stream just broke: the handshake is what failed, but trying again may help.
        PgError::from_io(&error)
    })?;
    Ok(Transport::Tls(Box::new(stream)))
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
