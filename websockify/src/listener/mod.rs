//! The listening socket: TCP, a unix socket, or one that was handed over as standard input.
//!
//! It is made before the runtime exists, so that a port in use is an error of the start. Accepting gives a [`Plain`] and a
//! [`PeerAddress`]; what to do about an error is the server's decision.

mod inetd;
mod tcp;
mod unix;

use std::fmt;
use std::io;
use std::net::{self, IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net as unix_net;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::socket::{self, SockaddrStorage};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};

use crate::addr::ListenAddr;
use crate::stream::Plain;
use crate::sys;

use self::unix::SocketFile;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A bound and listening socket, not yet attached to a runtime.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: OwnedFd,
    /// How the settings name it: `:6080`, a path, `inetd`.
    name: String,
    /// The unix socket file that goes when we go.
    file: Option<SocketFile>,
    /// How a client reaches it.
    address: Address,
}

/// The local address of a listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// TCP, with the port that the system chose if it was 0.
    Tcp(SocketAddr),
    /// A unix socket's path; empty for one without a name.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Who connected. It is shown as the address; in the alternate form (`{:#}`) the number and a blank come before that, which is how
/// the log gets to know the number of whatever it is told with `%peer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The connection's number: 1, 2, … in the order in which they were accepted.
    pub(crate) number: u64,
    /// Where it comes from.
    pub(crate) address: PeerAddress,
}

#[cfg(test)]
impl Peer {
    /// One for tests.
    pub(crate) const UNIX: Self = Self {
        number: 7,
        address: PeerAddress::Unix,
    };
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            write!(f, "{} ", self.number)?;
        }
        write!(f, "{}", self.address)
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerAddress {
    /// A TCP client's address; IPv4 also when it came to a dual-stack socket.
    Ip(IpAddr),
    /// The unix socket.
    Unix,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl Bound {
    /// Binds and listens.
    ///
    /// # Errors
    /// Says what could not be listened on and why.
    pub(crate) fn new(listen: &ListenAddr) -> Result<Self> {
        match listen {
            ListenAddr::Tcp {
                address,
                prefer_ipv6,
            } => tcp::listen(address, *prefer_ipv6),
            ListenAddr::Unix { path, mode } => unix::listen(path, *mode),
            ListenAddr::Inherited => inetd::inherit(),
        }
    }

    /// How the settings name it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The local address.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The line of the settings about it.
    pub(crate) fn describe(&self) -> String {
        match (&self.file, self.name.as_str()) {
            (Some(_), path) => format!("Listen on unix socket {path}"),
            (None, INETD) => "Listen for inetd connections".to_owned(),
            (None, name) => format!("Listen on {name}"),
        }
    }

    /// Attaches it to the runtime that this is called in.
    pub(crate) fn into_listener(self) -> io::Result<Listener> {
        Ok(Listener {
            is_inherited: self.name == INETD,
            socket: sys::watch_for_input(self.socket)?,
            _file: self.file,
        })
    }
}

/// The name of a handed-over socket.
const INETD: &str = "inetd";

/// A listening socket in a runtime. The unix socket file goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
    _file: Option<SocketFile>,
    /// Whether others have listened on it before us: what waits to be accepted may not have taken after it as we have set it up.
    is_inherited: bool,
}

/// A connection that no runtime watches yet.
#[derive(Debug)]
pub(crate) enum Socket {
    /// TCP.
    Tcp(net::TcpStream),
    /// Of the unix socket.
    Unix(unix_net::UnixStream),
}

impl Socket {
    /// Attaches it to the runtime that this is called in.
    pub(crate) fn attach(self) -> io::Result<Plain> {
        Ok(match self {
            Self::Tcp(socket) => Plain::Tcp(TcpStream::from_std(socket)?),
            Self::Unix(socket) => Plain::Unix(UnixStream::from_std(socket)?),
        })
    }
}

impl Listener {
    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        let accept = |listener: &OwnedFd| sys::accept(listener.as_fd());
        let (socket, address) = self.socket.async_io(Interest::READABLE, accept).await?;
        Ok(match ip_address(&address) {
            Some(address) => {
                if self.is_inherited {
                    sys::tune_tcp(socket.as_fd());
                }
                let peer = PeerAddress::Ip(address.ip().to_canonical());
                (Socket::Tcp(socket.into()), peer)
            }
            None => (Socket::Unix(socket.into()), PeerAddress::Unix),
        })
    }
}

/// The local address of an IP socket; `None` for another family.
fn tcp_address(socket: &OwnedFd) -> Result<Option<SocketAddr>> {
    let name =
        socket::getsockname(socket.as_raw_fd()).context("cannot read the socket's address")?;
    Ok(ip_address(&name))
}

/// An address of IPv4 or IPv6; `None` for another family.
fn ip_address(name: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = name
        .as_sockaddr_in()
        .map(|&v4| net::SocketAddrV4::from(v4).into());
    v4.or_else(|| {
        name.as_sockaddr_in6()
            .map(|&v6| net::SocketAddrV6::from(v6).into())
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn a_peer_is_shown_by_its_address_and_in_the_alternate_form_with_its_number() {
        for (address, shown) in [
            (PeerAddress::Unix, "unix"),
            (PeerAddress::Ip(Ipv6Addr::LOCALHOST.into()), "::1"),
        ] {
            let peer = Peer { number: 7, address };
            assert_eq!(peer.to_string(), shown);
            assert_eq!(format!("{peer:#}"), format!("7 {shown}"));
        }
    }
}
