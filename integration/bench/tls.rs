//! TLS as the clients of the benchmark speak it: version 1.3, with what browsers put first (AES-128-GCM, X25519), so that all peers
//! encrypt alike.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    SignatureScheme, version,
};

/// What the clients and the peers agree on, for the report.
pub(crate) const IN_WORDS: &str =
    "TLS 1.3, AES-128-GCM, X25519, a certificate for ECDSA with P-256";
/// How many tickets the clients of a relay keep.
const TICKETS: usize = 1024;

/// A certificate for the relays, and what its clients need.
#[derive(Debug)]
pub(crate) struct Tls {
    /// The file with the certificate and its key.
    pub(crate) file: PathBuf,
    verifier: Arc<Pinned>,
    provider: Arc<CryptoProvider>,
}

/// The clients of a relay.
#[derive(Debug)]
pub(crate) struct Clients {
    config: Arc<ClientConfig>,
    strangers: AtomicU32,
}

impl Tls {
    /// Makes a certificate in this directory.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let file = directory.join("self.pem");
        let output = Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost".split(' '))
            .args(["-keyout".as_ref(), file.as_os_str(), "-out".as_ref(), file.as_os_str()])
            .output()
            .context("start openssl")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl: {error}");
        let provider = CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![kx_group::X25519],
            ..default_provider()
        };
        let verifier = Pinned {
            certificate: CertificateDer::from_pem_file(&file).context("read the certificate")?,
            algorithms: provider.signature_verification_algorithms,
        };
        Ok(Self {
            file,
            verifier: Arc::new(verifier),
            provider: Arc::new(provider),
        })
    }

    /// Clients that have met nobody yet.
    pub(crate) fn clients(&self) -> Result<Clients> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])
            .context("set TLS up")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier) as _)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        Ok(Clients {
            config: Arc::new(config),
            strangers: AtomicU32::new(0),
        })
    }
}

// Tickets are kept by the server's name. An address is a name that the server is not told, so it may be any.
impl Clients {
    /// One that has no ticket.
    pub(crate) fn stranger(&self) -> Result<ClientConnection> {
        let number = self.strangers.fetch_add(1, Ordering::Relaxed);
        self.client(Ipv4Addr::from_bits(number))
    }

    /// The client of this number, once more: it has the tickets that it was given the last time.
    pub(crate) fn regular(&self, number: u8) -> Result<ClientConnection> {
        self.client(Ipv4Addr::new(255, 255, 255, number))
    }

    fn client(&self, name: Ipv4Addr) -> Result<ClientConnection> {
        let name = ServerName::from(IpAddr::from(name));
        ClientConnection::new(Arc::clone(&self.config), name).context("begin with TLS")
    }
}

/// Trusts one certificate. The signature is not looked at: to verify it takes the time of the processors that the relay is to have.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *certificate == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
