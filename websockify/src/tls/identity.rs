//! Certificates and their keys in files.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use pem::Pem;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SigningKey};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::{self, Decode, Encode};

use super::key::{self, KeyError};
use crate::config::{IdentityFiles, Password};
use crate::input;
use crate::secret::Secret;

impl IdentityFiles {
    /// Reads both.
    pub(super) fn load(&self, provider: &CryptoProvider) -> Result<CertifiedKey> {
        let blocks = blocks(&self.certificate)?;
        let mut chain = chain(&self.certificate, &blocks)?;
        let key_file = self.key.as_ref().unwrap_or(&self.certificate);
        let blocks = match &self.key {
            Some(file) => self::blocks(file)?,
            None => blocks,
        };
        let name = key_file.display();
        let Some(block) = blocks.into_iter().find(key::is_key) else {
            let advice = match self.key {
                Some(_) => "it has to begin with '-----BEGIN PRIVATE KEY-----' or the like",
                None => "give its file with --key",
            };
            bail!("{name} has no private key; {advice}");
        };
        let password = self.password.as_ref().map(Password::read).transpose()?;
        let is_encrypted = key::is_encrypted(&block);
        let key =
            key::read(block, password.as_ref()).map_err(|error| anyhow!("{name}: {error}"))?;
        let key = (provider.key_provider)
            .load_private_key(key)
            .map_err(|_| match is_encrypted {
                // What comes out of a wrong password may look complete.
                true => KeyError::WrongPassword,
                false => KeyError::UnknownKind,
            })
            .map_err(|error| anyhow!("{name}: {error}"))?;
        let Some(position) = chain.iter().position(|one| belongs(one, &*key)) else {
            bail!(
                "the key in {name} does not belong to the certificate in {}",
                self.certificate.display()
            );
        };
        // The others may be in any order, the server's own comes first.
        chain[..=position].rotate_right(1);
        Ok(CertifiedKey::new(chain, key))
    }
}

impl Password {
    /// The password itself.
    fn read(&self) -> Result<Secret> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(file) => {
                let mut text = input::read(file)?;
                let end = text.iter().position(|byte| b"\r\n".contains(byte));
                text.truncate(end.unwrap_or(text.len()));
                Ok(Secret::from(text))
            }
        }
    }
}

/// The certificates of a file, at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    chain(file, &blocks(file)?)
}

fn chain(file: &Path, blocks: &[Pem]) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = (blocks.iter())
        .filter(|block| ["CERTIFICATE", "X509 CERTIFICATE"].contains(&block.tag()))
        .map(|block| CertificateDer::from(block.contents().to_vec()))
        .collect();
    if chain.is_empty() {
        bail!(
            "{} has no certificate; it has to begin with '-----BEGIN CERTIFICATE-----' (PEM)",
            file.display()
        );
    }
    Ok(chain)
}

/// What is in a file in PEM form (RFC 7468), whatever stands around it.
fn blocks(file: &Path) -> Result<Vec<Pem>> {
    let text = input::read(file)?;
    pem::parse_many(text).map_err(|error| anyhow!("{} is damaged: {error}", file.display()))
}

/// The parts of a certificate, as far as it keeps to the form at all.
pub(super) fn parse(certificate: &CertificateDer<'_>) -> der::Result<CertificateInner<Raw>> {
    CertificateInner::from_der(certificate)
}

/// Whether a certificate is for this key. One that cannot be read is for none.
fn belongs(certificate: &CertificateDer<'_>, key: &dyn SigningKey) -> bool {
    let public = parse(certificate).and_then(|certificate| {
        certificate
            .tbs_certificate()
            .subject_public_key_info()
            .to_der()
    });
    public.is_ok_and(|public| key.public_key().is_some_and(|key| *key == *public))
}
