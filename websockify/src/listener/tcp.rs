//! Listening on TCP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::{self, Backlog, SockFlag, SockaddrStorage, setsockopt, sockopt};

use super::{Address, BACKLOG, Bound, local_address};
use crate::addr::HostPort;
use crate::sys;

/// Listens on the first of the address's that can be had.
pub(super) fn listen(address: &HostPort, prefer_ipv6: bool) -> Result<Bound> {
    let candidates = resolve(address, prefer_ipv6)?;
    let mut failure = None;
    for candidate in candidates {
        match bind_tcp(candidate) {
            Ok(socket) => {
                let Address::Tcp(local) = local_address(&socket)? else {
                    bail!("the socket that was just bound has no address");
                };
                let name = HostPort {
                    host: address.host.clone(),
                    port: local.port(),
                }
                .to_string();
                return Ok(Bound {
                    socket,
                    description: format!("Listen on {name}"),
                    name,
                    file: None,
                    is_handed_over: false,
                    address: Address::Tcp(local),
                });
            }
            Err(error) => {
                failure = failure.or(Some(error));
                // The other family stands in for one that this machine lacks, and not for one that is in use.
                let lacking = matches!(error, Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL);
                if address.host.is_empty() && !lacking {
                    break;
                }
            }
        }
    }
    let failure = failure.unwrap_or(Errno::EADDRNOTAVAIL);
    let advice = match failure {
        Errno::EADDRINUSE => " (another program listens there; stop it or choose another port)",
        Errno::EACCES => " (a port below 1024 needs root or CAP_NET_BIND_SERVICE)",
        Errno::EADDRNOTAVAIL => " (no interface of this machine has that address)",
        _ => "",
    };
    bail!("cannot listen on {address}: {}{advice}", failure.desc())
}

/// The addresses to try in order.
fn resolve(address: &HostPort, prefer_ipv6: bool) -> Result<Vec<SocketAddr>> {
    let HostPort { host, port } = address;
    if host.is_empty() {
        return Ok(vec![
            (Ipv6Addr::UNSPECIFIED, *port).into(),
            (Ipv4Addr::UNSPECIFIED, *port).into(),
        ]);
    }
    let mut found: Vec<SocketAddr> = (host.as_str(), *port)
        .to_socket_addrs()
        .map_err(|error| anyhow!("cannot listen on {address}: cannot resolve '{host}': {error}"))?
        .collect();
    found.sort_by_key(|candidate| candidate.is_ipv6() != prefer_ipv6);
    Ok(found)
}

/// Binds and listens on one address; the any address of IPv6 takes IPv4 as well.
fn bind_tcp(address: SocketAddr) -> nix::Result<OwnedFd> {
    let socket = sys::tcp_socket(address, SockFlag::SOCK_NONBLOCK)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(
            &socket,
            sockopt::Ipv6V6Only,
            &!address.ip().is_unspecified(),
        )?;
    }
    // What is to be accepted takes after it from the moment that it listens.
    sys::tune_tcp(socket.as_fd());
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::super::Entrance;
    use super::*;
    use crate::addr::ListenAddr;

    #[test]
    fn port_zero_says_which_port_it_got() {
        let any = HostPort {
            host: String::new(),
            port: 0,
        };
        let bound = Entrance::open(
            &ListenAddr::Tcp {
                address: any,
                prefer_ipv6: false,
            },
            Vec::new(),
        )
        .unwrap();
        let Address::Tcp(address) = bound.address() else {
            panic!()
        };
        assert_ne!(address.port(), 0);
        assert_eq!(bound.name(), format!(":{}", address.port()));
    }
}
