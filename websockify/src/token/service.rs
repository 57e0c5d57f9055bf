//! Reaching the services that know tokens. What is asked of them is asked on the main thread, which lasts: a connection that is kept
//! for the next question must not be of a thread that has something else to do.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

use super::Unavailable;
use crate::addr::HostPort;
use crate::stream::{Plain, Stream};
use crate::sys;
use crate::target::{ConnectError, connect_any, connect_unix};
use crate::tls::Connector;

/// How long all attempts to connect may take together.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Names may be looked up by so many threads at once: they cannot be interrupted, and others need threads, too.
static RESOLVERS: Semaphore = Semaphore::const_new(32);

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A host, which is not empty, and a port.
    Tcp(HostPort),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Place {
    /// Connects to it.
    pub(super) async fn connect(&self) -> Result<Plain, Unavailable> {
        let reached = match self {
            Self::Tcp(address) => return connect_tcp(address).await,
            Self::Unix(path) => connect_unix(path).await,
        };
        reached.map_err(|error| {
            Unavailable(format!(
                "cannot connect to {self}: {}",
                sys::describe(&error)
            ))
        })
    }
}

async fn connect_tcp(address: &HostPort) -> Result<Plain, Unavailable> {
    let candidates = resolve(address).await.map_err(|error| {
        let error = sys::describe(&error);
        Unavailable(format!(
            "cannot find the address of {}: {error}",
            address.host
        ))
    })?;
    let connected = connect_any(&candidates, Instant::now() + CONNECT_LIMIT).await;
    connected.map_err(|error| {
        Unavailable(match error {
            ConnectError::Connect(place, error) => {
                format!("cannot connect to {place}: {}", sys::describe(&error))
            }
            error => format!("cannot connect to {address}: {error}"),
        })
    })
}

/// The addresses of a host.
async fn resolve(address: &HostPort) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = address.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, address.port)]);
    }
    let permit = RESOLVERS.acquire().await.map_err(io::Error::other)?;
    let name = (address.host.clone(), address.port);
    let found = spawn_blocking(move || {
        let _permit = permit;
        name.to_socket_addrs().map(Iterator::collect)
    });
    found.await.map_err(io::Error::other)?
}

/// Makes TLS of a connection to the host of this address.
pub(super) async fn encrypt(
    socket: Plain,
    connector: &Connector,
    address: &HostPort,
) -> Result<Stream, Unavailable> {
    let stream = connector.connect(socket, &address.host).await;
    stream
        .map(Stream::from)
        .map_err(|failure| Unavailable(format!("TLS with {address} failed: {failure}")))
}

/// Does something in a runtime, of whichever thread that is, and gives it up when nobody waits for it any more.
pub(super) async fn within<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = Result<T, Unavailable>> + Send + 'static,
) -> Result<T, Unavailable> {
    let mut tasks = JoinSet::new();
    tasks.spawn_on(work, runtime);
    let done = tasks.join_next().await.and_then(Result::ok);
    done.unwrap_or_else(|| Err(Unavailable("nobody is there to ask any more".to_owned())))
}

/// Host and port of a URL (RFC 3986, 3.2): `host`, `host:port`, `[v6]`, `[v6]:port`.
///
/// # Errors
/// It is none, and why; the text has nothing of it.
pub(super) fn host_and_port(text: &str, default: u16) -> Result<HostPort, &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
            if host.parse::<Ipv6Addr>().is_err() {
                return Err("what is in brackets is no IPv6 address");
            }
            let port = match rest.strip_prefix(':') {
                None if !rest.is_empty() => return Err("something follows the bracket"),
                port => port.unwrap_or_default(),
            };
            (host, port)
        }
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            if host.is_empty() {
                return Err("there is no host in it");
            }
            if !host.is_ascii() {
                return Err("a host's name has other letters than ASCII's; write it as xn--…");
            }
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if !host.bytes().all(is_name) {
                return Err("its host is no name or address");
            }
            (host, port)
        }
    };
    let port = match port {
        "" => default,
        port => number(port).ok_or("its port is not from 1 to 65535")?,
    };
    Ok(HostPort {
        host: host.to_owned(),
        port,
    })
}

/// A port number in decimal digits.
pub(super) fn number(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| is_number && port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_host_in_every_form() {
        for (text, host, port) in [
            ("h", "h", 80),
            ("h:", "h", 80),
            ("h:81", "h", 81),
            ("a_b.c-d", "a_b.c-d", 80),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]", "::1", 80),
            ("[::1]:81", "::1", 81),
        ] {
            let address = host_and_port(text, 80).unwrap();
            assert_eq!(
                (address.host.as_str(), address.port),
                (host, port),
                "{text}"
            );
        }
        for text in [
            "",
            ":80",
            "h:x",
            "h:0",
            "h:65536",
            "h:+1",
            "h:1:2",
            "::1",
            "[::1",
            "[h]",
            "[::1]x",
            "[::1]80",
            "h%s",
            "h/",
            "ü.example",
            "u@h",
            "h h",
        ] {
            assert!(host_and_port(text, 80).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_reached_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let place = Place::Tcp(address.to_string().parse().unwrap());
        let Unavailable(text) = place.connect().await.unwrap_err();
        assert_eq!(
            text,
            format!("cannot connect to {address}: Connection refused")
        );
        let place = Place::Unix("/not/there".into());
        let Unavailable(text) = place.connect().await.unwrap_err();
        assert_eq!(
            text,
            "cannot connect to /not/there: No such file or directory"
        );
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_given_up() {
        let (held, mut released) = tokio::sync::mpsc::channel::<()>(1);
        let work = async move {
            let _held = held;
            std::future::pending::<Result<(), Unavailable>>().await
        };
        let runtime = Handle::current();
        let waiting = within(&runtime, work);
        let given_up = tokio::time::timeout(Duration::ZERO, waiting).await;
        assert!(given_up.is_err());
        assert_eq!(released.recv().await, None);
    }
}
