//! Whom we believe who they are: certificates that are signed by trusted ones, or that are among them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoClientAuth, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use x509_cert::certificate::{Raw, TbsCertificateInner, Version};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::time::Validity;

use super::identity;
use crate::config::Trust;

/// Verifies the certificates of servers.
pub(super) fn servers(
    trust: &Trust,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>> {
    let provider = Arc::clone(provider);
    let file = match trust {
        Trust::Anybody => return Ok(Arc::new(Anybody { provider })),
        Trust::System => None,
        Trust::File(file) => Some(&**file),
    };
    let build =
        |roots, provider| WebPkiServerVerifier::builder_with_provider(roots, provider).build();
    Ok(Arc::new(OrTrusted::new(file, provider, build)?))
}

/// Verifies the certificates of clients.
pub(super) fn clients(
    trust: &Trust,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let file = match trust {
        Trust::Anybody => return Ok(Arc::new(NoClientAuth)),
        Trust::System => None,
        Trust::File(file) => Some(&**file),
    };
    let build =
        |roots, provider| WebPkiClientVerifier::builder_with_provider(roots, provider).build();
    Ok(Arc::new(OrTrusted::new(file, Arc::clone(provider), build)?))
}

/// The certificates of a file, or of the system (`SSL_CERT_FILE` and `SSL_CERT_DIR` are respected): the authorities among them, and
/// those of the file as they are. What is no authority's has signed nobody who is to be trusted (RFC 5280, section 4.2.1.9), and
/// webpki does not look at that.
fn roots(file: Option<&Path>) -> Result<(Arc<RootCertStore>, Vec<CertificateDer<'static>>)> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        let found = rustls_native_certs::load_native_certs();
        let (usable, _) = roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            let why = found.errors.first().map(|error| format!(": {error}"));
            bail!(
                "there are no certificates that the system trusts{}; install ca-certificates, or give a file of your own",
                why.unwrap_or_default()
            );
        }
        return Ok((Arc::new(roots), Vec::new()));
    };
    let certificates = identity::certificates(file)?;
    for certificate in &certificates {
        let no_good = || format!("{} has a certificate that is no good", file.display());
        let parsed = identity::parse(certificate).with_context(no_good)?;
        if is_authority(parsed.tbs_certificate()) {
            roots.add(certificate.clone()).with_context(no_good)?;
        }
    }
    Ok((Arc::new(roots), certificates))
}

/// Whether a certificate may sign others. Those of version 1 cannot say so.
fn is_authority(certificate: &TbsCertificateInner<Raw>) -> bool {
    if certificate.version() == Version::V1 {
        return true;
    }
    let constraints = certificate.get_extension::<BasicConstraints>();
    let usage = certificate.get_extension::<KeyUsage>();
    matches!(constraints, Ok(Some((_, constraints))) if constraints.ca)
        && !matches!(usage, Ok(Some((_, usage))) if !usage.key_cert_sign())
}

/// The part of every verifier that is about signatures, and not about whom to believe.
macro_rules! verifies_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            let algorithms = &self.provider.signature_verification_algorithms;
            algorithms.supported_schemes()
        }
    };
}

/// A verifier that also takes a certificate which is itself among the trusted ones, as one is that has signed itself: webpki does
/// not, since it takes it for an authority's.
#[derive(Debug)]
struct OrTrusted<V> {
    /// There is none when there are no authorities.
    inner: Option<V>,
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl<V> OrTrusted<V> {
    /// Trusts the certificates of a file, or those that the system does; `build` makes webpki's verifier for the authorities.
    fn new(
        file: Option<&Path>,
        provider: Arc<CryptoProvider>,
        build: impl FnOnce(Arc<RootCertStore>, Arc<CryptoProvider>) -> Result<V, VerifierBuilderError>,
    ) -> Result<Self> {
        let (roots, trusted) = roots(file)?;
        let inner = (!roots.is_empty())
            .then(|| build(roots, Arc::clone(&provider)))
            .transpose()
            .context("the trusted certificates are no good")?;
        Ok(Self {
            inner,
            trusted,
            provider,
        })
    }

    /// Whether a certificate is trusted as it is. An error when it is, and it is not its time.
    fn trusts(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<bool, Error> {
        if !self.trusted.iter().any(|trusted| trusted == certificate) {
            return Ok(false);
        }
        let parsed = identity::parse(certificate).map_err(|_| CertificateError::BadEncoding)?;
        check_time(parsed.tbs_certificate().validity(), now)?;
        Ok(true)
    }
}

/// Whether it is the time of a certificate.
pub(super) fn check_time(validity: &Validity<Raw>, now: UnixTime) -> Result<(), CertificateError> {
    let now = Duration::from_secs(now.as_secs());
    if now < validity.not_before.to_unix_duration() {
        return Err(CertificateError::NotValidYet);
    }
    if now > validity.not_after.to_unix_duration() {
        return Err(CertificateError::Expired);
    }
    Ok(())
}

impl ServerCertVerifier for OrTrusted<Arc<WebPkiServerVerifier>> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.trusts(certificate, now)? {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let inner = self.inner.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        inner.verify_server_cert(certificate, intermediates, name, ocsp_response, now)
    }

    verifies_signatures!();
}

impl ClientCertVerifier for OrTrusted<Arc<dyn ClientCertVerifier>> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner
            .as_ref()
            .map_or(&[], |inner| inner.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.trusts(certificate, now)? {
            return Ok(ClientCertVerified::assertion());
        }
        let inner = self.inner.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        inner.verify_client_cert(certificate, intermediates, now)
    }

    verifies_signatures!();
}

/// Believes every server, whatever its certificate says.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    verifies_signatures!();
}
