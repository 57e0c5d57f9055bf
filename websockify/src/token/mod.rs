//! Where a client's token leads: the sources that know tokens, each in its own file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::addr::HostPort;

/// What a client names its target by. Whoever knows it is let through to that target, so it is not shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Token(String);

/// Characters that a token must have for its last four to tell nothing.
const TELLS_NOTHING: usize = 16;

impl Token {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The token itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// The last four characters of a long token, nothing of a short one.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last: Vec<_> = self.0.chars().rev().take(TELLS_NOTHING).collect();
        if last.len() < TELLS_NOTHING {
            last.clear();
        }
        last.truncate(4);
        write!(f, "…{}", last.iter().rev().collect::<String>().escape_default())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a token leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A host and a port.
    Tcp {
        /// The port is not 0.
        address: HostPort,
        /// Whether TLS is spoken with it: `tls://host:port`.
        tls: bool,
        /// Whether the source gave the port as text and not as a number, which plugins can tell.
        text_port: bool,
    },
    /// A unix socket: `unix_socket:/path`.
    Unix(PathBuf),
}

/// The text of it is for the log: it names no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadDestination(&'static str);

impl fmt::Display for BadDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The port of a destination as a source gave it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Port<'a> {
    /// A number.
    Number(u64),
    /// Text; the path of the socket where the host is [`UNIX_HOST`].
    Text(&'a str),
}

/// The host that stands for a unix socket.
pub(crate) const UNIX_HOST: &str = "unix_socket";
/// What a host is preceded by with which TLS is spoken.
const TLS_SCHEME: &str = "tls://";

impl FromStr for Destination {
    type Err = BadDestination;

    /// `host:port`, `[v6]:port`, `unix_socket:/path`, `tls://host:port`, with blanks around it.
    fn from_str(text: &str) -> Result<Self, BadDestination> {
        let text = text.trim();
        let (host, port) = match text.strip_prefix(UNIX_HOST).and_then(|rest| rest.strip_prefix(':')) {
            Some(path) => (UNIX_HOST, path),
            None => text.rsplit_once(':').ok_or(BadDestination("it is not host:port"))?,
        };
        Self::from_parts(host, Port::Text(port))
    }
}

impl Destination {
    /// A host and a port, as sources of the original's kind give them.
    pub(crate) fn from_parts(host: &str, port: Port<'_>) -> Result<Self, BadDestination> {
        if host == UNIX_HOST {
            return match port {
                Port::Text(path) if path.starts_with('/') && !path.contains('\0') => Ok(Self::Unix(path.into())),
                _ => Err(BadDestination("a unix socket is not given by an absolute path")),
            };
        }
        let (tls, host) = match host.strip_prefix(TLS_SCHEME) {
            Some(host) => (true, host),
            None => (false, host),
        };
        let (number, text_port) = match port {
            Port::Number(number) => (u16::try_from(number).ok(), false),
            Port::Text(text) => {
                let digits = text.trim();
                let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
                (digits.parse().ok().filter(|_| is_number), true)
            }
        };
        let port = number.filter(|&port| port != 0).ok_or(BadDestination("its port is not from 1 to 65535"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).trim();
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control() || "/[]@".contains(c)) {
            return Err(BadDestination("its host is no name or address"));
        }
        Ok(Self::Tcp {
            address: HostPort { host: host.to_owned(), port },
            tls,
            text_port,
        })
    }
}

/// Why a source cannot say where a token leads; the text is for the log, and has no secrets in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unavailable(pub(crate) String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
