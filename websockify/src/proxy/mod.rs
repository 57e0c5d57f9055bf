//! Proxies between clients and us: whose word on where a client comes from is taken, and how it is given. By the PROXY protocol a
//! connection begins with it, by HTTP each request has it. Our own word to targets is a header of the PROXY protocol.

mod forwarded;
mod header;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::str::FromStr;

use hyper::header::HeaderMap;
use ipnet::{IpNet, Ipv4Net};
use tokio::time::{Instant, timeout_at};

use crate::config::ProxyConfig;
use crate::listener::{Peer, PeerAddress};
use crate::stream::Plain;
use crate::sys;

pub(crate) use forwarded::Contradiction;
pub(crate) use header::Ends;
use header::{Fault, Header, MAX_HEADER};

/// Somebody who is believed; a value of `--trusted-proxy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustedProxy {
    /// Whoever comes from these addresses, of which IPv4 is never written as IPv6.
    Network(IpNet),
    /// Whoever comes by a unix socket.
    Unix,
}

impl FromStr for TrustedProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
        let network = text.parse().ok().or_else(address).ok_or(
            "neither an address such as 192.0.2.1, nor a network such as 10.0.0.0/8 or fd00::/8, nor 'unix'",
        )?;
        Ok(Self::Network(canonical(network)))
    }
}

/// A network of IPv4 as that, also when it was written as IPv6.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    match (network.network().to_canonical(), network.prefix_len()) {
        (IpAddr::V4(address), length @ MAPPED..) if network.max_prefix_len() == 128 => {
            Ipv4Net::new(address, length - MAPPED).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

impl ProxyConfig {
    /// Whether somebody who comes from there is believed.
    pub(crate) fn trusts(&self, address: PeerAddress) -> bool {
        self.trusted.iter().any(|trusted| match (trusted, address) {
            (TrustedProxy::Network(network), PeerAddress::Ip(ip, _)) => network.contains(&ip),
            (TrustedProxy::Unix, PeerAddress::Unix) => true,
            _ => false,
        })
    }

    /// Whether a connection from there has to begin with a header.
    pub(crate) fn awaits_header(&self, address: PeerAddress) -> bool {
        self.takes_header && self.trusts(address)
    }

    /// Whose request it is that this peer, who is believed, has passed on.
    ///
    /// # Errors
    /// That cannot be said.
    pub(crate) fn client(&self, peer: Peer, headers: &HeaderMap) -> Result<Peer, Contradiction> {
        let address = |ip| PeerAddress::Ip(ip, 0);
        let found = forwarded::client(headers, |ip| self.trusts(address(ip)))?;
        Ok(Peer {
            address: found.map_or(peer.address, address),
            ..peer
        })
    }

    /// What a target is told first of a client, which has reached us at this address.
    pub(crate) fn introduction(
        &self,
        client: PeerAddress,
        reached: impl FnOnce() -> Option<SocketAddr>,
    ) -> Option<Box<[u8]>> {
        let version = self.sends_header?;
        let client = match client {
            PeerAddress::Ip(ip, port) => Some(SocketAddr::new(ip, port)),
            PeerAddress::Unix => None,
        };
        Some(header::write(version, client, reached()).into())
    }
}

/// Why a connection that has to begin with a header comes to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It ended or broke before it had begun, as with those that only look whether we are there.
    Silent,
    /// It ended in the middle of its header.
    Ended,
    /// The header did not come in time.
    Late,
    /// There is none.
    Header(Fault),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("it ended without a word"),
            Self::Ended => f.write_str("it ended within its PROXY header"),
            Self::Late => f.write_str("its PROXY header did not come in time"),
            Self::Header(fault) => fault.fmt(f),
        }
    }
}

/// Takes the header that a connection begins with, and not a byte more. Returns the client's connection; `None` when the header
/// says that it is the proxy's own, or that nobody knows.
pub(crate) async fn receive(socket: &Plain, deadline: Instant) -> Result<Option<Ends>, Failure> {
    // As a rule it came right behind the connection.
    let attempt = || take(socket);
    let taken = match attempt() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            timeout_at(deadline, socket.when_readable(attempt)).await
        }
        taken => Ok(taken),
    };
    match taken {
        Ok(taken) => taken.unwrap_or(Err(Failure::Silent)),
        Err(_) => Err(Failure::Late),
    }
}

/// Takes the header if it is there as a whole, and says `WouldBlock` if it may come.
fn take(socket: &Plain) -> io::Result<Result<Option<Ends>, Failure>> {
    let mut buffer = [0; MAX_HEADER];
    let seen = sys::peek(socket.as_fd(), &mut buffer)?;
    match header::parse(&buffer[..seen]) {
        Ok(Some(Header { length, ends })) => {
            let mut header = &mut buffer[..length];
            while !header.is_empty() {
                match sys::receive(socket.as_fd(), header)? {
                    0 => return Ok(Err(Failure::Ended)),
                    taken => header = &mut header[taken..],
                }
            }
            Ok(Ok(ends))
        }
        Ok(None) if seen == 0 => Ok(Err(Failure::Silent)),
        // More may have come with the end.
        Ok(None)
            if sys::has_finished(socket.as_fd().as_raw_fd())
                && sys::peek(socket.as_fd(), &mut buffer)? == seen =>
        {
            Ok(Err(Failure::Ended))
        }
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Err(fault) => Ok(Err(Failure::Header(fault))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What these values of the option believe.
    fn trusting(values: &[&str]) -> ProxyConfig {
        ProxyConfig {
            trusted: values.iter().map(|value| value.parse().unwrap()).collect(),
            ..ProxyConfig::default()
        }
    }

    #[test]
    fn networks_addresses_and_unix_sockets_are_believed() {
        let config = trusting(&[
            "10.1.2.3/8",
            "192.0.2.1",
            "2001:db8::/32",
            "::ffff:172.16.0.0/108",
        ]);
        let trusts = |text: &str| config.trusts(PeerAddress::Ip(text.parse().unwrap(), 1));
        for inside in [
            "10.0.0.0",
            "10.255.255.255",
            "192.0.2.1",
            "2001:db8::1",
            "172.31.0.1",
        ] {
            assert!(trusts(inside), "{inside}");
        }
        for outside in [
            "11.0.0.0",
            "192.0.2.2",
            "2001:db9::",
            "172.32.0.0",
            "::a00:1",
            "::1",
        ] {
            assert!(!trusts(outside), "{outside}");
        }
        assert!(!config.trusts(PeerAddress::Unix));
        assert!(trusting(&["unix"]).trusts(PeerAddress::Unix));
        let all = trusting(&["0.0.0.0/0"]);
        let address = |text: &str| PeerAddress::Ip(text.parse().unwrap(), 5);
        assert!(all.trusts(address("1.2.3.4")) && !all.trusts(address("::1")));
        assert!(!all.awaits_header(address("1.2.3.4")));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "x",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "localhost",
            "[::1]",
            "1.2.3.4:5",
            "Unix",
            "10.0.0.0/",
        ] {
            assert!(text.parse::<TrustedProxy>().is_err(), "{text}");
        }
    }
}
