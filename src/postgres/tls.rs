//! TLS towards Postgres. Without a CA nothing is verified, as with libpq's `require`: it keeps
//! listeners out, not an active attacker. With a CA the chain and the host name are.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::postgres::{PgError, PgErrorKind};

/// `sslmode` of the database URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// As `Prefer`: TLS is tried first (contract 6.9).
    Allow,
    #[default]
    Prefer,
    Require,
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
        })
    }
}

/// How to encrypt connections: built once, used for each.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    verified: bool,
}

impl Tls {
    /// Encryption without verification of the server.
    ///
    /// # Errors
    /// Kind `Tls` where the TLS library refuses its own defaults.
    pub fn unverified() -> Result<Tls, PgError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| PgError::new(PgErrorKind::Tls, error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny { provider }))
            .with_no_client_auth();
        Ok(Tls { config: Arc::new(config), verified: false })
    }

    /// Encryption with a server whose certificate a CA in this PEM file has signed.
    ///
    /// # Errors
    /// Kind `Tls` where the file cannot be read or holds no certificate.
    pub fn with_ca_file(path: &Path) -> Result<Tls, PgError> {
        let refuse = |text: String| PgError::new(PgErrorKind::Tls, text);
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(path)
            .map_err(|error| refuse(format!("cannot read the CA file: {error}")))?;
        for certificate in certificates {
            let certificate =
                certificate.map_err(|error| refuse(format!("cannot read the CA file: {error}")))?;
            roots.add(certificate).map_err(|error| refuse(format!("unusable CA certificate: {error}")))?;
        }
        if roots.is_empty() {
            return Err(refuse("the CA file holds no certificate".to_owned()));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| refuse(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Tls { config: Arc::new(config), verified: true })
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// A CA was given: falling back to plain text would make it pointless.
    pub(crate) fn verified(&self) -> bool {
        self.verified
    }
}

/// Accepts any certificate, but still checks that the server holds its key.
#[derive(Debug)]
struct AcceptAny {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
