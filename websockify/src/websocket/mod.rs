//! The WebSocket protocol (RFC 6455) as far as a server that carries bytes needs it.
//!
//! Nothing here does I/O: [`handshake`] judges a request, [`frame`] turns bytes into payload and back, [`base64`] is the text
//! encoding of the oldest clients.

pub(crate) mod base64;
pub(crate) mod frame;
pub(crate) mod handshake;

/// How payload travels in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Binary messages: subprotocol `binary`, or none.
    Binary,
    /// Base64 in text messages: subprotocol `base64`.
    Base64,
}

/// Why and how a session is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Close {
    /// The status code; `None` for an empty close frame.
    pub(crate) code: Option<u16>,
    /// The reason, at most 123 bytes.
    pub(crate) reason: &'static str,
}

impl Close {
    /// The target has sent everything and closed.
    pub(crate) const TARGET_CLOSED: Self = Self::new(1000, "Target closed");
    /// The bridge is being stopped.
    pub(crate) const GOING_AWAY: Self = Self::new(1001, "Server is shutting down");
    /// The connection to the target broke.
    pub(crate) const TARGET_FAILED: Self =
        Self::new(1011, "Connection to downstream server failed");
    /// The target could not be reached.
    pub(crate) const UNREACHABLE: Self = Self::new(1011, "Failed to connect to downstream server");
    /// The wrapped program did not listen in time.
    pub(crate) const NOT_READY: Self = Self::new(
        1011,
        "Failed to connect to downstream server: the wrapped program is not listening",
    );
    /// A text message in a binary session.
    pub(crate) const TEXT: Self = Self::new(1003, "Unsupported: Text frames are not supported");
    /// A reason that is no UTF-8.
    pub(crate) const BAD_REASON: Self = Self::new(1007, "Close reason is not UTF-8");
    /// A base64 message that is no base64.
    pub(crate) const BAD_BASE64: Self = Self::new(1007, "Message is not base64");

    /// A close with a status code.
    pub(crate) const fn new(code: u16, reason: &'static str) -> Self {
        Self {
            code: Some(code),
            reason,
        }
    }

    /// A protocol error (1002).
    pub(crate) const fn protocol_error(reason: &'static str) -> Self {
        Self::new(1002, reason)
    }
}
