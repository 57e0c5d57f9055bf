//! Addresses as people write them on the command line: `6080`, `:6080`, `0.0.0.0:6080`, `[::1]:6080`, `host:6080`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::user::Identity;

/// A host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address without brackets; empty where none was given.
    pub host: String,
    /// The port; 0 only where the system is to choose one.
    pub port: u16,
}

/// Why a text is no [`HostPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// There is no colon in it.
    NoPort,
    /// What follows the last colon is no port number.
    BadPort,
}

impl FromStr for HostPort {
    type Err = AddressError;

    /// Splits at the last colon, so that an IPv6 address may come without its brackets.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        Ok(Self {
            host: host.to_owned(),
            port: parse_port(port)?,
        })
    }
}

impl HostPort {
    /// Like `from_str`, and a lone port will do.
    ///
    /// # Errors
    /// [`AddressError::BadPort`].
    pub fn parse_source(text: &str) -> Result<Self, AddressError> {
        match text.parse() {
            Err(AddressError::NoPort) => Ok(Self {
                host: String::new(),
                port: parse_port(text)?,
            }),
            parsed => parsed,
        }
    }
}

/// A port number in decimal digits; unlike `u16::from_str` it takes no sign.
fn parse_port(text: &str) -> Result<u16, AddressError> {
    if text.starts_with('+') {
        return Err(AddressError::BadPort);
    }
    text.parse().map_err(|_| AddressError::BadPort)
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// On TCP; an empty host means every address of the machine.
    Tcp {
        /// The address to bind.
        address: HostPort,
        /// Whether IPv6 addresses of a name come first.
        prefer_ipv6: bool,
    },
    /// On a unix socket with these permission bits.
    Unix {
        /// The socket file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Whose it is to be, unless ours.
        owner: Option<Identity>,
    },
    /// On the socket that was handed over as standard input, or for the one client that is connected to it.
    Inherited,
    /// On the sockets that systemd has handed over, of which there is at least one, with these names.
    Activated(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<String, AddressError> {
        text.parse()
            .map(|HostPort { host, port }| format!("{host} {port}"))
    }

    #[test]
    fn every_form_of_an_address_is_understood() {
        assert_eq!(target("host:5900").as_deref(), Ok("host 5900"));
        assert_eq!(target(":5900").as_deref(), Ok(" 5900"));
        assert_eq!(target("[::1]:5900").as_deref(), Ok("::1 5900"));
        assert_eq!(target("::1:5900").as_deref(), Ok("::1 5900"));
        assert_eq!(
            HostPort::parse_source("6080"),
            Ok(HostPort {
                host: String::new(),
                port: 6080
            })
        );
    }

    #[test]
    fn what_is_no_port_is_refused() {
        assert_eq!(target("5900"), Err(AddressError::NoPort));
        for bad in [
            "host:",
            "host:x",
            "host:65536",
            "host:-1",
            "host:+1",
            "host: 1",
        ] {
            assert_eq!(target(bad), Err(AddressError::BadPort), "{bad}");
        }
        assert_eq!(HostPort::parse_source("x"), Err(AddressError::BadPort));
    }

    #[test]
    fn an_address_is_shown_as_it_can_be_given() {
        for text in ["host:5900", ":5900", "[::1]:5900"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
    }
}
