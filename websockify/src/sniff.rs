//! What a new connection speaks, told from its first bytes, which stay in the socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::time::{Instant, timeout_at};

use crate::stream::Plain;
use crate::sys;

/// What an old Flash player asks before it opens a socket.
const POLICY_REQUEST: &[u8] = b"<policy-file-request/>\0";
/// The answer to [`POLICY_REQUEST`]: every page may connect.
pub(crate) const POLICY: &[u8] =
    b"<cross-domain-policy><allow-access-from domain=\"*\" to-ports=\"*\" /></cross-domain-policy>\n";

/// What the first bytes announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// A TLS handshake record.
    Tls,
    /// An SSLv2 hello, which nobody should send any more.
    Ssl2,
    /// Flash's policy file request.
    FlashPolicy,
    /// Anything else: the HTTP parser judges it.
    Http,
}

/// The first bytes that are looked at: the request of a browser, as a rule.
pub(crate) const FIRST_BYTES: usize = 2048;

/// How the sniffing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed<T> {
    /// The client speaks this, and this was made of its first bytes.
    Protocol(Protocol, T),
    /// It closed without a word.
    Closed,
    /// It said too little for too long.
    TimedOut,
}

/// What `start`, the first bytes of a connection, announce; `None` when more of them are needed.
fn classify(start: &[u8]) -> Option<Protocol> {
    match start.first()? {
        0x16 => Some(Protocol::Tls),
        0x80 => Some(Protocol::Ssl2),
        _ if start.starts_with(POLICY_REQUEST) => Some(Protocol::FlashPolicy),
        _ if POLICY_REQUEST.starts_with(start) => None,
        _ => Some(Protocol::Http),
    }
}

/// Waits until the client has said enough to be classified, at most until `deadline`. `look` is shown the first bytes as far as they are there
/// by then.
pub(crate) async fn sniff<T>(
    stream: &Plain,
    deadline: Instant,
    mut look: impl FnMut(Protocol, &[u8]) -> T,
) -> Sniffed<T> {
    let mut attempt = || {
        let mut buffer = [0; FIRST_BYTES];
        let length = sys::peek(stream.as_fd(), &mut buffer)?;
        let start = &buffer[..length];
        let mut speaks =
            |protocol| -> io::Result<_> { Ok(Sniffed::Protocol(protocol, look(protocol, start))) };
        match classify(start) {
            Some(protocol) => speaks(protocol),
            None if length == 0 => Ok(Sniffed::Closed),
            None if sys::has_finished(stream.as_fd().as_raw_fd()) => speaks(Protocol::Http),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    };
    // As a rule the request came right behind the connection.
    match attempt() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        done => return done.unwrap_or(Sniffed::Closed),
    }
    match timeout_at(deadline, stream.when_readable(attempt)).await {
        Ok(sniffed) => sniffed.unwrap_or(Sniffed::Closed),
        Err(_) => Sniffed::TimedOut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_tells() {
        assert_eq!(classify(b"\x16\x03\x01"), Some(Protocol::Tls));
        assert_eq!(classify(b"\x80\x2e\x01"), Some(Protocol::Ssl2));
        assert_eq!(classify(b"G"), Some(Protocol::Http));
        assert_eq!(classify(b"\0"), Some(Protocol::Http));
        assert_eq!(classify(b""), None);
    }

    #[test]
    fn a_flash_request_is_told_at_its_last_byte_from_every_look_alike() {
        for length in 0..POLICY_REQUEST.len() {
            assert_eq!(classify(&POLICY_REQUEST[..length]), None, "{length}");
            if length > 0 {
                let look_alike = [&POLICY_REQUEST[..length], b"?"].concat();
                assert_eq!(classify(&look_alike), Some(Protocol::Http), "{length}");
            }
        }
        assert_eq!(classify(POLICY_REQUEST), Some(Protocol::FlashPolicy));
    }
}
