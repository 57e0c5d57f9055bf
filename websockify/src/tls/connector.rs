//! TLS with a target.

use std::future::poll_fn;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::{Ciphers, Failure, TlsStream, provider, trust};
use crate::config::Trust;
use crate::stream::Plain;

/// Connects with TLS.
#[derive(Clone, Debug)]
pub(crate) struct Connector(Arc<ClientConfig>);

impl Connector {
    /// One that believes what `trust` says.
    ///
    /// # Errors
    /// The certificates that it is to trust cannot be read.
    pub(crate) fn new(trust: &Trust) -> Result<Self> {
        let provider = provider(&Ciphers::default());
        let verifier = trust::servers(trust, &provider)?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("TLS")?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Makes TLS of a connection to the host of this name.
    pub(crate) async fn connect(&self, socket: Plain, name: &str) -> Result<TlsStream, Failure> {
        let server =
            ServerName::try_from(name.to_owned()).map_err(|_| Failure::Name(name.to_owned()))?;
        let connection =
            ClientConnection::new(Arc::clone(&self.0), server).map_err(Failure::Protocol)?;
        let mut stream = TlsStream::new(socket, connection);
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }
}
