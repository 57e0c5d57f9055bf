//! TLS on either leg, by rustls: no OpenSSL is needed at run time.
//!
//! [`Acceptor`] is the server that clients meet, [`Connector`] the client that targets meet; both give a [`TlsStream`]. Nothing below TLS 1.2
//! is spoken, and of 1.2 only suites with forward secrecy and authenticated encryption.

mod acceptor;
mod ciphers;
mod connector;
mod identity;
mod key;
mod stream;
mod subject;
mod trust;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{AlertDescription, CertificateError, Error};

use crate::sys;

pub(crate) use acceptor::{Acceptor, Refused};
pub(crate) use ciphers::Ciphers;
pub(crate) use connector::Connector;
pub(crate) use stream::TlsStream;

/// What TLS has to say of an error of reading or writing, if it is the one that has an error.
pub(crate) fn explain(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(Failure::Protocol(error.clone()).to_string())
}

/// What a client is told with which there is nothing to agree on: the fatal alert `handshake_failure` (RFC 8446, section 6).
pub(crate) const HANDSHAKE_FAILURE: &[u8] = &[0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x28];

/// Where the cryptography comes from, with these suites for TLS 1.2 and 1.3.
fn provider(ciphers: &Ciphers) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: ciphers.suites().to_vec(),
        ..aws_lc_rs::default_provider()
    })
}

/// Why a handshake did not come about; the text is for the log.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the peer sent, or the certificate that it showed, is no good.
    Protocol(Error),
    /// The connection broke.
    Connection(io::Error),
    /// It took too long.
    TimedOut(Duration),
    /// There is no such name.
    Name(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.downcast() {
            Ok(error) => Self::Protocol(error),
            Err(error) => Self::Connection(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(error) => describe(error, f),
            Self::Connection(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the connection was closed within the handshake")
            }
            Self::Connection(error) => f.write_str(&sys::describe(error)),
            Self::TimedOut(limit) => write!(f, "no handshake within {} s", limit.as_secs_f64()),
            Self::Name(name) => write!(f, "'{name}' is not a name that a certificate can be for"),
        }
    }
}

/// The errors that people meet, in words.
fn describe(error: &Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = match error {
        Error::NoCertificatesPresented => "it has shown no certificate",
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is signed by nobody who is trusted"
        }
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired",
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet",
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name",
        Error::InvalidCertificate(CertificateError::Other(_)) => {
            let details = format!("{error:?}");
            if details.contains("CaUsedAsEndEntity") {
                "its certificate has signed itself, and is not among those that are trusted"
            } else if details.contains("UnsupportedCertVersion") {
                "its certificate is of X.509 version 1, which is not supported"
            } else {
                return write!(f, "{error}");
            }
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a certificate of ours"
        }
        Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            "it has nothing in common with us, or wants a certificate of ours (handshake failure)"
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => {
            "it does not trust our certificate (unknown CA)"
        }
        Error::AlertReceived(AlertDescription::CertificateUnknown) => {
            "it does not trust our certificate (certificate unknown)"
        }
        _ => return write!(f, "{error}"),
    };
    f.write_str(text)
}
