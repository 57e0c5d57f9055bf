//! From the options to the log.

use std::ffi::OsStr;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use crate::addr::HostPort;
use crate::cli::{Args, LogFormat};

use super::{UsageError, absolute, usage};

/// What is logged, how, and where besides stderr.
#[derive(Clone, Debug, Default)]
pub struct LogConfig {
    /// Whether to say more.
    pub verbose: bool,
    /// How it is written.
    pub format: LogFormat,
    /// The file that it also goes to, as an absolute path.
    pub file: Option<PathBuf>,
    /// The syslog server that it also goes to.
    pub syslog: Option<SyslogConfig>,
}

/// A syslog server, and how to speak with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyslogConfig {
    /// Where it is.
    pub server: SyslogServer,
    /// Whether it is spoken with as RFC 3164 tells, and not RFC 5424.
    pub legacy: bool,
}

/// Where a syslog server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogServer {
    /// A unix socket, by its absolute path.
    Socket(PathBuf),
    /// A UDP port.
    Udp {
        /// Its host.
        address: HostPort,
        /// Whether IPv6 addresses of a name come first.
        prefer_ipv6: bool,
    },
}

/// The port of syslog (RFC 5426, section 3.3).
const SYSLOG_PORT: u16 = 514;

impl LogConfig {
    pub(super) fn new(args: &Args) -> Result<Self, UsageError> {
        if args.legacy_syslog && args.syslog.is_none() {
            return usage("You must use --syslog to use --legacy-syslog");
        }
        let file = args.log_file.as_deref();
        let syslog = args.syslog.as_deref().map(|text| {
            Ok(SyslogConfig {
                server: server(text, args.prefer_ipv6)?,
                legacy: args.legacy_syslog,
            })
        });
        Ok(Self {
            verbose: args.verbose,
            format: args.log_format,
            file: file.map(|path| absolute(path, "--log-file")).transpose()?,
            syslog: syslog.transpose()?,
        })
    }
}

/// A server as it was given: what has a slash in it, or is there as a file, is a socket's path.
fn server(text: &OsStr, prefer_ipv6: bool) -> Result<SyslogServer, UsageError> {
    let path = Path::new(text);
    let name = text
        .to_str()
        .filter(|name| !name.contains('/') && !path.exists());
    let Some(name) = name else {
        return Ok(SyslogServer::Socket(absolute(path, "--syslog")?));
    };
    let address = address(name).ok_or_else(|| {
        UsageError(format!(
            "Error parsing syslog port: '{name}' does not end in a port from 1 to 65535"
        ))
    })?;
    Ok(SyslogServer::Udp {
        address,
        prefer_ipv6,
    })
}

/// A host with or without a port; an IPv6 address may come without its brackets.
fn address(name: &str) -> Option<HostPort> {
    let is_ipv6 = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    let split: Option<HostPort> = name.parse().ok();
    let has_port = split
        .as_ref()
        .is_some_and(|address| !address.host.contains(':') || is_ipv6(&address.host));
    if !has_port && (is_ipv6(bare) || !name.contains(':')) {
        let host = bare.to_owned();
        return Some(HostPort {
            host,
            port: SYSLOG_PORT,
        });
    }
    split.filter(|address| has_port && address.port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_socket_or_a_host() {
        let shown = |text: &str| match server(OsStr::new(text), false) {
            Ok(SyslogServer::Socket(path)) => format!("socket {}", path.display()),
            Ok(SyslogServer::Udp { address, .. }) => format!("udp {address}"),
            Err(UsageError(error)) => error,
        };
        let here = std::env::current_dir().unwrap();
        let here = here.display();
        for (given, meant) in [
            ("/dev/log", "socket /dev/log".to_owned()),
            ("/odd:1", "socket /odd:1".to_owned()),
            ("./log", format!("socket {here}/log")),
            // It is there.
            ("src", format!("socket {here}/src")),
            ("host", "udp host:514".to_owned()),
            ("host:5140", "udp host:5140".to_owned()),
            (":5140", "udp :5140".to_owned()),
            ("::1", "udp [::1]:514".to_owned()),
            ("[::1]", "udp [::1]:514".to_owned()),
            ("2001:db8::7", "udp [2001:db8::7]:514".to_owned()),
            ("::1:5140", "udp [::1]:5140".to_owned()),
            ("[::1]:5140", "udp [::1]:5140".to_owned()),
        ] {
            assert_eq!(shown(given), meant, "{given}");
        }
        for bad in [
            "host:",
            "host:x",
            "host:0",
            "host:65536",
            "a:b:1",
            "[::1]:x",
        ] {
            assert!(shown(bad).starts_with("Error parsing syslog port"), "{bad}");
        }
    }
}
