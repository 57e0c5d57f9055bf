//! TLS with clients: what they are shown, and what they are to show.
//!
//! Certificates are replaced without a restart: when it is asked for, and when a file has changed, which a new connection looks at
//! once a second. Sessions go on with what they began with. What cannot be used changes nothing.

use std::future::poll_fn;
use std::io::{self, ErrorKind, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{Accepted, AcceptedAlert};
use rustls::sign::SingleCertAndKey;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::{Failure, HANDSHAKE_FAILURE, TlsStream, provider, trust};
use crate::config::{Password, TlsConfig, TlsVersion, Trust};
use crate::stamp::Stamp;
use crate::stream::Plain;

/// What we offer by ALPN (RFC 7301).
const HTTP: &[u8] = b"http/1.1";
/// How often it is looked whether a file has changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the client that has come at that moment waits for it.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a client's first message that are received at once; as a rule it has some hundred.
const HELLO: usize = 4096;

/// Accepts connections that begin with TLS.
#[derive(Debug)]
pub(crate) struct Acceptor {
    config: TlsConfig,
    state: Mutex<State>,
    /// Held by whoever looks at the files or reads them, which may take as long as a file system and the decryption of a key take.
    files: Mutex<()>,
}

/// What changes when files do.
#[derive(Debug)]
struct State {
    offers: Offers,
    /// How the files were when they were last read.
    seen: Vec<Option<Stamp>>,
    /// When it was last looked.
    looked: Instant,
}

/// The settings for a client that offers ALPN with what we have, and for all others, which are served all the same.
#[derive(Clone, Debug)]
struct Offers {
    with_alpn: Arc<ServerConfig>,
    without: Arc<ServerConfig>,
}

/// A client that was not accepted.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Its connection, on which it was told by an alert.
    pub(crate) socket: Plain,
    /// Why.
    pub(crate) failure: Failure,
}

impl Acceptor {
    /// One for this configuration.
    ///
    /// # Errors
    /// Says which file is no good, and why.
    pub(crate) fn new(config: TlsConfig) -> Result<Self> {
        let seen = stamps(&config);
        let state = Mutex::new(State {
            offers: Offers::load(&config)?,
            seen,
            looked: Instant::now(),
        });
        Ok(Self {
            config,
            state,
            files: Mutex::default(),
        })
    }

    /// Whether clients may also do without TLS.
    pub(crate) fn is_optional(&self) -> bool {
        !self.config.only
    }

    /// Makes TLS of a client's connection.
    pub(crate) async fn accept(self: &Arc<Self>, socket: Plain) -> Result<TlsStream, Refused> {
        let (mut socket, hello) = read_hello(socket).await?;
        let offers = self.current().await;
        let ours = hello
            .client_hello()
            .alpn()
            .is_some_and(|mut names| names.any(|name| name == HTTP));
        let config = if ours {
            offers.with_alpn
        } else {
            offers.without
        };
        let connection = match hello.into_connection(config) {
            Ok(connection) => connection,
            Err((error, alert)) => {
                send_alert(&mut socket, alert).await;
                let failure = Failure::Protocol(error);
                return Err(Refused { socket, failure });
            }
        };
        let mut stream = TlsStream::new(socket, connection);
        match poll_fn(|cx| stream.poll_handshake(cx)).await {
            Ok(()) => Ok(stream),
            Err(error) => Err(Refused {
                socket: stream.into_socket(),
                failure: error.into(),
            }),
        }
    }

    /// Reads the files again, and says what came of it.
    pub(crate) fn reload(&self) {
        let _files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_again(stamps(&self.config));
    }

    /// What clients are offered now.
    async fn current(self: &Arc<Self>) -> Offers {
        if self.is_due() {
            let this = Arc::clone(self);
            let look = spawn_blocking(move || this.look());
            // Whoever waits for longer gets what there was.
            _ = timeout(LOOK_PATIENCE, look).await;
        }
        self.state().offers.clone()
    }

    /// Whether it is time to look at the files again.
    fn is_due(&self) -> bool {
        let mut state = self.state();
        let is_due = state.looked.elapsed() >= LOOK_INTERVAL;
        if is_due {
            state.looked = Instant::now();
        }
        is_due
    }

    /// Reads the files again if they are others, unless somebody does so anyway.
    fn look(&self) {
        let _files = match self.files.try_lock() {
            Ok(files) => files,
            Err(TryLockError::Poisoned(files)) => files.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let seen = stamps(&self.config);
        if self.state().seen != seen {
            self.read_again(seen);
        }
    }

    /// Reads the files, which were like this right before.
    fn read_again(&self, seen: Vec<Option<Stamp>>) {
        let name = self.config.identity.certificate.display();
        let loaded = Offers::load(&self.config);
        let mut state = self.state();
        // Also when it is no good: it is not to be tried again before it changes.
        state.seen = seen;
        match loaded {
            Ok(offers) => {
                state.offers = offers;
                tracing::info!("Certificate read again: {name}");
            }
            Err(error) => {
                tracing::error!(
                    "the certificate stays what it was, the new one cannot be used: {error:#}"
                );
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offers {
    fn load(config: &TlsConfig) -> Result<Self> {
        let provider = provider(&config.ciphers);
        let identity = config.identity.load(&provider)?;
        let verifier = trust::clients(&config.clients, &provider)?;
        let mut without = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(config.minimum))
            .context("no cipher is left for this --ssl-version")?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        // What is needed to resume a session is with the client. After a reload nobody resumes what was agreed on before.
        without.ticketer = Ticketer::new().context("cannot make keys for tickets")?;
        let mut with_alpn = without.clone();
        with_alpn.alpn_protocols = vec![HTTP.to_vec()];
        Ok(Self {
            with_alpn: Arc::new(with_alpn),
            without: Arc::new(without),
        })
    }
}

fn versions(minimum: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    const ALL: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
    match minimum {
        TlsVersion::Tls12 => ALL,
        TlsVersion::Tls13 => &ALL[..1],
    }
}

fn stamps(config: &TlsConfig) -> Vec<Option<Stamp>> {
    let identity = &config.identity;
    let authorities = match &config.clients {
        Trust::File(file) => Some(file),
        _ => None,
    };
    let password = match &identity.password {
        Some(Password::File(file)) => Some(file),
        _ => None,
    };
    let files = [
        Some(&identity.certificate),
        identity.key.as_ref(),
        password,
        authorities,
    ];
    files
        .into_iter()
        .flatten()
        .map(|file| Stamp::of(file).ok())
        .collect()
}

/// Reads the client's first message.
async fn read_hello(mut socket: Plain) -> Result<(Plain, Accepted), Refused> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut buffer = Box::new([0; HELLO]);
    loop {
        let received = match socket.read(&mut *buffer).await {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            received => received,
        };
        let fed = received.and_then(|length| feed(&mut acceptor, &buffer[..length]));
        if let Err(error) = fed {
            let failure = error.into();
            return Err(Refused { socket, failure });
        }
        match acceptor.accept() {
            Ok(Some(hello)) => return Ok((socket, hello)),
            Ok(None) => {}
            Err((error, alert)) => {
                send_alert(&mut socket, alert).await;
                let failure = Failure::Protocol(error);
                return Err(Refused { socket, failure });
            }
        }
    }
}

fn feed(acceptor: &mut rustls::server::Acceptor, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        acceptor.read_tls(&mut data)?;
    }
    Ok(())
}

/// Sends an alert, if the socket takes it at once, as a new one does.
async fn send_alert(socket: &mut Plain, mut alert: AcceptedAlert) {
    let mut bytes = Vec::new();
    // Writing to memory cannot fail.
    _ = alert.write_all(&mut bytes as &mut dyn Write);
    if bytes.is_empty() {
        // rustls has none for a client that does not begin as it should.
        bytes.extend_from_slice(HANDSHAKE_FAILURE);
    }
    poll_fn(|cx| {
        _ = Pin::new(&mut *socket).poll_write(cx, &bytes);
        Poll::Ready(())
    })
    .await;
}
