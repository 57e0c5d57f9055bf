//! Where clients come from: a listening socket, TCP or unix; what was handed over, by inetd or systemd.
//!
//! The [`Entrance`] is made before the runtime exists, so that a port in use is an error of the start. Accepting gives a [`Socket`]
//! and a [`PeerAddress`]; what to do about an error is the server's decision.

mod handed;
mod tcp;
mod unix;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{self, IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net as unix_net;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, Result};
use nix::sys::socket::{self, SockaddrStorage};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};

use crate::addr::ListenAddr;
use crate::stream::Plain;
use crate::sys;

pub(crate) use self::handed::say_nothing_to_client;
use self::unix::SocketFile;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Where clients come from, not yet attached to a runtime.
#[derive(Debug)]
pub(crate) enum Entrance {
    /// They connect to these sockets, of which there is at least one.
    Listening(Vec<Bound>),
    /// There is one client only, who is there already.
    Connected(Guest),
}

/// A bound and listening socket, not yet attached to a runtime.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: OwnedFd,
    /// How the settings name it: `:6080`, a path, `inetd`.
    name: String,
    /// What the settings say of it.
    description: String,
    /// The unix socket file that goes when we go.
    file: Option<SocketFile>,
    /// Whether others have listened on it before us: what waits to be accepted may not have taken after it as we have set it up.
    is_handed_over: bool,
    /// How a client reaches it.
    address: Address,
}

/// The connection that was handed over, and whose it is.
#[derive(Debug)]
pub(crate) struct Guest {
    socket: Socket,
    peer: PeerAddress,
    /// How the settings name it.
    name: String,
    /// What the settings say of it.
    description: String,
    /// The address at our end.
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

/// Where a connection comes from; shown without the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerAddress {
    /// A TCP client's address and port; IPv4 also when it came to a dual-stack socket. The port is 0 where it is not known. As a
    /// `SocketAddr` it would be half as long again, in each of the places where a session has it.
    Ip(IpAddr, u16),
    /// The unix socket.
    Unix,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip, _) => ip.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address.ip().to_canonical(), address.port())
    }
}

impl Entrance {
    /// Binds and listens, or takes what was handed over; `activated` by systemd.
    ///
    /// # Errors
    /// Says what could not be listened on and why.
    pub(crate) fn open(listen: &ListenAddr, activated: Vec<OwnedFd>) -> Result<Self> {
        Ok(match listen {
            ListenAddr::Tcp {
                address,
                prefer_ipv6,
            } => Self::Listening(vec![tcp::listen(address, *prefer_ipv6)?]),
            ListenAddr::Unix { path, mode, owner } => {
                Self::Listening(vec![unix::listen(path, *mode, owner.as_ref())?])
            }
            ListenAddr::Inherited => handed::by_inetd()?,
            ListenAddr::Activated(names) => handed::by_systemd(activated, names)?,
        })
    }

    /// How the settings name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Listening(sockets) => {
                let names: Vec<_> = sockets.iter().map(|socket| &socket.name[..]).collect();
                names.join(", ")
            }
            Self::Connected(guest) => guest.name.clone(),
        }
    }

    /// The lines of the settings about it.
    pub(crate) fn describe(&self) -> Vec<String> {
        match self {
            Self::Listening(sockets) => {
                let descriptions = sockets.iter().map(|socket| socket.description.clone());
                descriptions.collect()
            }
            Self::Connected(guest) => vec![guest.description.clone()],
        }
    }

    /// How a client reaches it: the first of several ways.
    pub(crate) fn address(&self) -> &Address {
        match self {
            Self::Listening(sockets) => &sockets[0].address,
            Self::Connected(guest) => &guest.address,
        }
    }

    /// The port that clients connect to, if there is exactly one.
    pub(crate) fn port(&self) -> Option<u16> {
        let addresses: Vec<_> = match self {
            Self::Listening(sockets) => sockets.iter().map(|socket| &socket.address).collect(),
            Self::Connected(guest) => vec![&guest.address],
        };
        let mut ports = addresses.into_iter().filter_map(|address| match address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) => None,
        });
        let first = ports.next()?;
        ports.all(|port| port == first).then_some(first)
    }

    /// Attaches it to the runtime that this is called in.
    pub(crate) fn into_listener(self) -> io::Result<Listener> {
        let (sockets, guest) = match self {
            Self::Listening(sockets) => (sockets, None),
            Self::Connected(guest) => (Vec::new(), Some((guest.socket, guest.peer))),
        };
        let sockets = sockets.into_iter().map(Bound::watch);
        Ok(Listener {
            sockets: sockets.collect::<io::Result<_>>()?,
            next: 0,
            is_guest: guest.is_some(),
            guest,
        })
    }
}

impl Bound {
    fn watch(self) -> io::Result<Watched> {
        Ok(Watched {
            socket: sys::watch_for_input(self.socket)?,
            _file: self.file,
            is_handed_over: self.is_handed_over,
        })
    }
}

/// What accepts connections, in a runtime.
#[derive(Debug)]
pub(crate) struct Listener {
    sockets: Vec<Watched>,
    /// The socket that is asked first, so that each has its turn.
    next: usize,
    /// The one client, until it was accepted, where there are no others.
    guest: Option<(Socket, PeerAddress)>,
    is_guest: bool,
}

/// A listening socket in a runtime. The unix socket file goes with it.
#[derive(Debug)]
struct Watched {
    socket: AsyncFd<OwnedFd>,
    _file: Option<SocketFile>,
    is_handed_over: bool,
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
    /// Whether there is one client only.
    pub(crate) fn is_guest(&self) -> bool {
        self.is_guest
    }

    /// The next connection.
    pub(crate) async fn accept(&mut self) -> io::Result<(Socket, PeerAddress)> {
        if let Some(guest) = self.guest.take() {
            return Ok(guest);
        }
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Waits until a client waits to be accepted.
    pub(crate) async fn has_visitor(&self) {
        poll_fn(|cx| {
            let is_ready = |socket: &Watched| socket.poll_visitor(cx).is_ready();
            if self.sockets.iter().any(is_ready) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, PeerAddress)>> {
        let count = self.sockets.len();
        for place in (self.next..count).chain(0..self.next) {
            if let Poll::Ready(accepted) = self.sockets[place].poll_accept(cx) {
                self.next = (place + 1) % count;
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

impl Watched {
    fn poll_visitor(&self, cx: &mut Context<'_>) -> Poll<()> {
        while let Ok(mut ready) = ready!(self.socket.poll_read_ready(cx)) {
            // That the runtime knows of something is from before the last was accepted.
            if sys::is_readable(self.socket.get_ref().as_fd()) {
                return Poll::Ready(());
            }
            ready.clear_ready();
        }
        // Accepting tells what is wrong.
        Poll::Ready(())
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, PeerAddress)>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            if let Ok(accepted) = ready.try_io(|socket| sys::accept(socket.get_ref().as_fd())) {
                return Poll::Ready(accepted.map(|(socket, address)| {
                    if self.is_handed_over && ip_address(&address).is_some() {
                        sys::tune_tcp(socket.as_fd());
                    }
                    connection(socket, &address)
                }));
            }
        }
    }
}

/// A connection of the peer at this address.
fn connection(socket: OwnedFd, address: &SockaddrStorage) -> (Socket, PeerAddress) {
    match ip_address(address) {
        Some(address) => {
            let peer = PeerAddress::from(address);
            (Socket::Tcp(socket.into()), peer)
        }
        None => (Socket::Unix(socket.into()), PeerAddress::Unix),
    }
}

/// The local address of a socket, of one of the families that we know.
fn local_address(socket: &OwnedFd) -> Result<Address> {
    let name: SockaddrStorage =
        socket::getsockname(socket.as_raw_fd()).context("cannot read the socket's address")?;
    if let Some(address) = ip_address(&name) {
        return Ok(Address::Tcp(address));
    }
    let name = name
        .as_unix_addr()
        .context("it is neither TCP nor a unix socket")?;
    Ok(Address::Unix(
        name.path().map(Path::to_owned).unwrap_or_default(),
    ))
}

/// The address at our end of a TCP connection; IPv4 also on a dual-stack socket.
pub(crate) fn reached_address(socket: RawFd) -> Option<SocketAddr> {
    let name: SockaddrStorage = socket::getsockname(socket).ok()?;
    let address = ip_address(&name)?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
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
            (PeerAddress::Ip(Ipv6Addr::LOCALHOST.into(), 80), "::1"),
            (
                PeerAddress::from(SocketAddr::from((
                    [0, 0, 0, 0, 0, 0xffff, 0xc000, 0x201],
                    80,
                ))),
                "192.0.2.1",
            ),
        ] {
            let peer = Peer { number: 7, address };
            assert_eq!(peer.to_string(), shown);
            assert_eq!(format!("{peer:#}"), format!("7 {shown}"));
        }
    }
}
