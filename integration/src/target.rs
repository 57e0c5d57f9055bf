//! What the bridge connects to.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};

use crate::DEADLINE;
use crate::system::wait_until;

/// A TCP server of which the test plays every move.
#[derive(Debug)]
pub struct Target {
    listener: TcpListener,
}

impl Target {
    /// Listens on a free port of 127.0.0.1.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener
            .set_nonblocking(true)
            .expect("a socket can be non-blocking");
        Self { listener }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener
            .local_addr()
            .expect("a bound socket has an address")
    }

    /// The next connection; reading from it fails after the deadline.
    pub fn accept(&self) -> TcpStream {
        let (stream, _) = wait_until("a connection to the target", || self.listener.accept().ok());
        stream
            .set_nonblocking(false)
            .expect("a socket can be blocking");
        limit(&stream);
        stream
    }

    /// Whether more than `expected` connections wait to be accepted; takes them.
    pub fn has_visitor_but(&self, expected: usize) -> bool {
        (0..=expected).all(|_| self.has_visitor())
    }

    /// Whether a connection waits to be accepted; takes it.
    pub fn has_visitor(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

impl Default for Target {
    fn default() -> Self {
        Self::new()
    }
}

/// Ends a connection with a reset when it is closed.
pub fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream.as_fd(), sockopt::Linger, &linger).expect("a socket can be reset");
}

/// Gives reading and writing the deadline.
pub(crate) fn limit(stream: &TcpStream) {
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a socket has a timeout");
    stream
        .set_write_timeout(Some(DEADLINE))
        .expect("a socket has a timeout");
}
