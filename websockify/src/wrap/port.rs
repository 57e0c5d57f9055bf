//! The port that a wrapped program is moved to: reserved for as long as the bridge lives.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{self, SockFlag, SockaddrIn, SockaddrStorage, setsockopt, sockopt};

use crate::sys;

/// Attempts to find a port that is free on both loopback addresses.
const ATTEMPTS: usize = 100;

/// Sockets that are bound to one port of both loopback addresses and never listen. They carry `SO_REUSEADDR`, as does the
/// program's socket by the shim's doing: so the program can bind and listen there as often as it likes, and the kernel gives
/// the port to nobody else who asks for any free one.
#[derive(Debug)]
pub(super) struct Reservation {
    port: u16,
    _sockets: Vec<OwnedFd>,
}

impl Reservation {
    /// Reserves a free port. Without IPv6 on this machine, of the IPv4 loopback only.
    pub(super) fn new() -> Result<Self> {
        (0..ATTEMPTS)
            .find_map(|_| Self::attempt().transpose())
            .unwrap_or_else(|| Err(anyhow!("no port is free on both 127.0.0.1 and ::1")))
            .context("cannot reserve a loopback port for the wrapped program")
    }

    /// `None` when the port that the kernel chose for IPv4 is taken for IPv6.
    fn attempt() -> Result<Option<Self>> {
        let v4 = bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let port = socket::getsockname::<SockaddrIn>(v4.as_raw_fd())?.port();
        match bind((Ipv6Addr::LOCALHOST, port).into()) {
            Ok(v6) => Ok(Some(Self {
                port,
                _sockets: vec![v4, v6],
            })),
            Err(Errno::EADDRINUSE) => Ok(None),
            Err(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT) => Ok(Some(Self {
                port,
                _sockets: vec![v4],
            })),
            Err(error) => Err(error.into()),
        }
    }

    /// The reserved port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

fn bind(address: SocketAddr) -> nix::Result<OwnedFd> {
    let socket = sys::tcp_socket(address, SockFlag::empty())?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_nobody_elses_but_can_be_listened_on_with_reuse() {
        let reservation = Reservation::new().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, reservation.port()));
        let refused = std::net::TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        // The standard library sets SO_REUSEADDR, as the shim does.
        for _ in 0..2 {
            let listener = std::net::TcpListener::bind(address).unwrap();
            std::net::TcpStream::connect(address).unwrap();
            listener.accept().unwrap();
        }
        assert_ne!(Reservation::new().unwrap().port(), reservation.port());
    }
}
