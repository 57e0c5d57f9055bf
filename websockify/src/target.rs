//! What clients are connected to, and connecting to it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::addr::HostPort;
use crate::config::TargetConfig;
use crate::metrics::Connect;
use crate::stream::{Plain, Stream};
use crate::sys;
use crate::tls::{Connector, Failure};
use crate::token::Destination;
use crate::wrap::{Acceptance, Status, acceptance};

/// How long all attempts to connect may take together.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How soon a full backlog of a unix socket is tried again.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// The pauses when the wrapped program listens and refuses all the same: they double from the first to the second.
const REFUSED_PAUSES: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(500));

/// The pauses between looks whether a program has accepted a connection: they double from the first to the second.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How soon a program that serves one client at a time turns the others away.
const TURN_AWAY_LIMIT: Duration = Duration::from_secs(2);

/// What a client is connected to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    place: Place,
    /// How to encrypt on the way there, if that is wanted.
    tls: Option<Connector>,
}

/// Where a target is.
#[derive(Clone, Debug)]
enum Place {
    /// A host and a port.
    Tcp {
        /// An empty host means this machine.
        address: HostPort,
        /// Whether IPv6 addresses of a name come first.
        prefer_ipv6: bool,
    },
    /// A unix socket.
    Unix(PathBuf),
    /// The wrapped program, wherever it listens.
    Wrapped(Status),
}

/// Why there is no connection; the text is for the log.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// The name has no address.
    Resolve(io::Error),
    /// No address could be connected to; this is the first one's reason.
    Connect(SocketAddr, io::Error),
    /// The unix socket could not be connected to.
    Unix(io::Error),
    /// It took too long.
    TimedOut,
    /// The wrapped program did not listen in time.
    NotListening(Duration),
    /// The wrapped program has ended and is not started again.
    Gone,
    /// It was reached, and TLS did not come about.
    Tls(Failure),
}

impl ConnectError {
    /// The reason as it is counted.
    pub(crate) fn counted(&self) -> Connect {
        match self {
            Self::Resolve(_) => Connect::Unresolved,
            Self::Connect(_, error) | Self::Unix(error)
                if error.kind() == io::ErrorKind::TimedOut =>
            {
                Connect::TimedOut
            }
            Self::Connect(..) | Self::Unix(_) => Connect::Unreachable,
            Self::TimedOut => Connect::TimedOut,
            Self::NotListening(_) | Self::Gone => Connect::NotListening,
            Self::Tls(_) => Connect::Tls,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(error) => {
                write!(f, "cannot resolve the host name: {}", sys::describe(error))
            }
            Self::Connect(address, error) => write!(f, "{} ({address})", sys::describe(error)),
            Self::Unix(error) => f.write_str(&sys::describe(error)),
            Self::TimedOut => write!(f, "no answer within {} s", CONNECT_LIMIT.as_secs()),
            Self::NotListening(limit) => {
                write!(
                    f,
                    "the wrapped program did not listen within {} s",
                    limit.as_secs_f64()
                )
            }
            Self::Gone => f.write_str("the wrapped program has ended"),
            Self::Tls(failure) => write!(f, "TLS with the target failed: {failure}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { address, .. } => address.fmt(f),
            Place::Unix(path) => path.display().fmt(f),
            Place::Wrapped(status) => status.fmt(f),
        }
    }
}

impl Target {
    /// The target of a configuration; `wrapped` is the program's, if there is one.
    pub(crate) fn new(
        config: TargetConfig,
        wrapped: Option<Status>,
        tls: Option<Connector>,
    ) -> Self {
        let place = match (config, wrapped) {
            (_, Some(status)) => Place::Wrapped(status),
            (
                TargetConfig::Tcp {
                    address,
                    prefer_ipv6,
                },
                None,
            ) => Place::Tcp {
                address,
                prefer_ipv6,
            },
            (TargetConfig::Unix(path), None) => Place::Unix(path),
            (TargetConfig::Wrapped, None) => {
                unreachable!("a wrapped target comes with its program")
            }
        };
        Self { place, tls }
    }

    /// Where a token leads.
    pub(crate) fn at(destination: Destination, prefer_ipv6: bool, tls: Option<Connector>) -> Self {
        let place = match destination {
            Destination::Tcp { address, .. } => Place::Tcp {
                address,
                prefer_ipv6,
            },
            Destination::Unix(path) => Place::Unix(path),
        };
        Self { place, tls }
    }

    /// The same as a token could lead to, for those who judge clients by it; `None` for a wrapped program.
    pub(crate) fn destination(&self) -> Option<Destination> {
        match &self.place {
            Place::Tcp { address, .. } => Some(Destination::Tcp {
                address: address.clone(),
                tls: self.tls.is_some(),
                text_port: false,
            }),
            Place::Unix(path) => Some(Destination::Unix(path.clone())),
            Place::Wrapped(_) => None,
        }
    }

    /// The log line before a connection is made.
    pub(crate) fn announcement(&self) -> String {
        let tls = if self.tls.is_some() {
            " (using SSL)"
        } else {
            ""
        };
        match &self.place {
            Place::Tcp { .. } => format!("connecting to: {self}{tls}"),
            Place::Unix(_) => format!("connecting to unix socket: {self}{tls}"),
            Place::Wrapped(_) => format!("connecting to command: {self}{tls}"),
        }
    }

    /// Whether connecting may take as long as a program takes to start.
    pub(crate) fn may_be_starting(&self) -> bool {
        matches!(self.place, Place::Wrapped(_))
    }

    /// Connects, trying every address and waiting for a wrapped program that is still starting. What the target is told first, if anything,
    /// is the `introduction`, which is never encrypted.
    pub(crate) async fn connect(
        &self,
        introduction: Option<&[u8]>,
    ) -> Result<Stream, ConnectError> {
        let mut socket = self.connect_socket().await?;
        if let Some(introduction) = introduction {
            introduce(&mut socket, introduction, self.tls.is_some()).await;
        }
        match &self.tls {
            None => Ok(Stream::Plain(socket)),
            Some(connector) => {
                let handshake = Box::pin(connector.connect(socket, self.server_name()));
                let done = timeout(CONNECT_LIMIT, handshake).await;
                let done = done.map_err(|_| ConnectError::Tls(Failure::TimedOut(CONNECT_LIMIT)))?;
                done.map(Stream::from).map_err(ConnectError::Tls)
            }
        }
    }

    /// Whether it can be connected to, without TLS and without a word.
    pub(crate) async fn reach(&self) -> Result<(), ConnectError> {
        self.connect_socket().await.map(drop)
    }

    async fn connect_socket(&self) -> Result<Plain, ConnectError> {
        match &self.place {
            Place::Tcp {
                address,
                prefer_ipv6,
            } => connect_tcp(address, *prefer_ipv6).await,
            Place::Unix(path) => connect_unix(path).await.map_err(ConnectError::Unix),
            Place::Wrapped(status) => connect_wrapped(status).await,
        }
    }

    /// The name that the target's certificate is to be for.
    fn server_name(&self) -> &str {
        match &self.place {
            Place::Tcp { address, .. } => host_of(address),
            // They are on this machine.
            Place::Unix(_) | Place::Wrapped(_) => THIS_MACHINE,
        }
    }
}

/// Tells a target whose connection it is. It may wait for that, so nothing else is waited for, unless `more` follows at once.
async fn introduce(socket: &mut Plain, introduction: &[u8], more: bool) {
    let sent = match more {
        true => sys::send_more(socket.as_fd(), introduction).unwrap_or(0),
        false => 0,
    };
    // What goes wrong shows when the rest is written; what a target said before it went is still to be read.
    _ = socket.write_all(&introduction[sent..]).await;
}

/// The name of an empty host.
const THIS_MACHINE: &str = "localhost";

fn host_of(address: &HostPort) -> &str {
    if address.host.is_empty() {
        THIS_MACHINE
    } else {
        &address.host
    }
}

async fn connect_tcp(address: &HostPort, prefer_ipv6: bool) -> Result<Plain, ConnectError> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    let host = host_of(address);
    let mut candidates: Vec<_> = match timeout_at(deadline, lookup_host((host, address.port))).await
    {
        Ok(found) => found.map_err(ConnectError::Resolve)?.collect(),
        Err(_) => return Err(ConnectError::TimedOut),
    };
    candidates.sort_by_key(|candidate| candidate.is_ipv6() != prefer_ipv6);
    connect_any(&candidates, deadline).await
}

/// Tries one address after the other. Each gets an equal share of the time that is left, so that one which drops packets does
/// not use up all of it.
pub(crate) async fn connect_any(
    candidates: &[SocketAddr],
    deadline: Instant,
) -> Result<Plain, ConnectError> {
    let mut failure = None;
    for (index, &candidate) in candidates.iter().enumerate() {
        let left = (candidates.len() - index) as u32;
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        match timeout(share, connect_one(candidate)).await {
            Ok(Ok(stream)) if is_its_own_peer(&stream, candidate) => {
                failure.get_or_insert((candidate, io::ErrorKind::ConnectionRefused.into()));
            }
            Ok(Ok(stream)) => return Ok(Plain::Tcp(stream)),
            Ok(Err(error)) => {
                failure.get_or_insert((candidate, error));
            }
            Err(_) => {
                failure.get_or_insert((candidate, io::ErrorKind::TimedOut.into()));
            }
        }
    }
    let (candidate, error) = failure.ok_or_else(|| {
        ConnectError::Resolve(io::Error::new(
            io::ErrorKind::NotFound,
            "it has no addresses",
        ))
    })?;
    Err(ConnectError::Connect(candidate, error))
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    let (stream, connected) = sys::connect(address)?;
    let stream = TcpStream::from_std(stream)?;
    if !connected {
        stream.writable().await?;
        // What failed shows here; what a target said before it reset the connection comes first, and is still to be read.
        match sys::peek(stream.as_fd(), &mut [0]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    Ok(stream)
}

/// Whether a socket was connected to itself, as a port of the ephemeral range can be that nobody listens on.
fn is_its_own_peer(stream: &TcpStream, target: SocketAddr) -> bool {
    let local = stream.local_addr().ok();
    local.is_some_and(|local| {
        local.port() == target.port() && stream.peer_addr().is_ok_and(|peer| peer == local)
    })
}

/// Connects to a unix socket, waiting for room in its backlog.
pub(crate) async fn connect_unix(path: &Path) -> io::Result<Plain> {
    let attempts = async {
        loop {
            match UnixStream::connect(path).await {
                // Unlike TCP, a full backlog is an error at once.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sleep(BACKLOG_PAUSE).await;
                }
                done => return done.map(Plain::Unix),
            }
        }
    };
    timeout(CONNECT_LIMIT, attempts)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Connects to the wrapped program as soon as it listens. It is never probed: the first connection that it sees is a client's.
async fn connect_wrapped(status: &Status) -> Result<Plain, ConnectError> {
    let deadline = Instant::now() + status.timeout();
    let mut pause = Duration::ZERO;
    loop {
        let error = match status.unix_socket() {
            Some(path) => connect_unix(path).await.map_err(ConnectError::Unix),
            None => connect_any(&status.addresses(), Instant::now() + CONNECT_LIMIT).await,
        };
        let error = match error {
            Ok(stream) => {
                if !is_turned_away(&stream).await {
                    status.note_service();
                    return Ok(stream);
                }
                None
            }
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            let (ConnectError::Connect(_, reason) | ConnectError::Unix(reason)) = &error else {
                return Err(error);
            };
            let absent = matches!(
                reason.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::NotFound
            );
            if !absent {
                return Err(error);
            }
        }
        let not_listening = |_| ConnectError::NotListening(status.timeout());
        // What listens, and still refuses, is not asked again and again at full speed.
        timeout_at(deadline, sleep(pause))
            .await
            .map_err(not_listening)?;
        pause = (pause * 2).clamp(REFUSED_PAUSES.0, REFUSED_PAUSES.1);
        if !timeout_at(deadline, status.listens_again())
            .await
            .map_err(not_listening)?
        {
            return Err(ConnectError::Gone);
        }
    }
}

/// Whether a program that serves one client at a time has closed its listening socket over this connection, which the kernel had
/// made already: that is a reset before the program has accepted it. Waits until it has, for a bounded time.
async fn is_turned_away(stream: &Plain) -> bool {
    let Plain::Tcp(tcp) = stream else {
        return false;
    };
    // A connection that was reset already has no addresses any more.
    let ends = tcp
        .peer_addr()
        .and_then(|peer| Ok((peer, tcp.local_addr()?)));
    let deadline = Instant::now() + TURN_AWAY_LIMIT;
    let mut pause = ACCEPT_PAUSES.0;
    loop {
        // In this order: what was not accepted may be reset between the two looks, and shall not be taken for accepted then.
        let acceptance = match ends {
            Ok((local, remote)) => acceptance(local, remote),
            Err(_) => Acceptance::Ended,
        };
        match sys::peek(stream.as_fd(), &mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It says something, or has ended.
            _ => return false,
        }
        // A connection that has ended without a word is reset; the reset is on its way.
        let undecided = matches!(acceptance, Acceptance::Waiting | Acceptance::Ended);
        if !undecided || Instant::now() >= deadline {
            return false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(ACCEPT_PAUSES.1);
    }
}
