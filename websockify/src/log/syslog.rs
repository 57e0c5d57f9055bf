//! Syslog: RFC 5424, or the form that the original's `--legacy-syslog` has, over a unix socket or UDP.
//!
//! No crate does this for us: `syslog`, the best kept one, writes to sockets that it opens once and that block, and needs three more
//! crates, for what are two lines of format here.
//!
//! A server that is gone, or takes nothing, is tried again; nothing waits here for longer than a tenth of a second but for the
//! resolution of a name.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use tracing::Level;

use super::format;
use super::writer::Line;
use crate::addr::HostPort;
use crate::cli::LogFormat;
use crate::config::{SyslogConfig, SyslogServer};
use crate::sys::UniversalTime;

/// The facility `daemon` (RFC 5424, section 6.2.1).
const FACILITY: u8 = 3;
/// The name of the program.
const NAME: &str = "websockify";
/// Says that a message is UTF-8 (RFC 5424, section 6.4).
const BYTE_ORDER_MARK: &str = "\u{feff}";
/// The longest name of a host (RFC 5424, section 6).
const MAX_HOST: usize = 255;
/// How long a socket may take nothing.
const SEND_LIMIT: Duration = Duration::from_millis(100);
/// How long the addresses of a host are believed once it refuses.
const ADDRESS_LIFE: Duration = Duration::from_secs(10);

/// A syslog server.
#[derive(Debug)]
pub(super) struct Syslog {
    config: SyslogConfig,
    /// This machine's name.
    host: String,
    addresses: Addresses,
    link: Option<Link>,
    lines: VecDeque<Line>,
    /// How much of the first line a stream has taken.
    sent: usize,
    /// Lines that the server has not got.
    pub(super) lost: usize,
}

/// A connected socket.
#[derive(Debug)]
enum Link {
    Datagram(UnixDatagram),
    Stream(UnixStream),
    Udp(UdpSocket),
}

/// The addresses of a host.
#[derive(Debug, Default)]
struct Addresses {
    found: Vec<SocketAddr>,
    /// When they were found.
    since: Option<Instant>,
    /// The one to try next.
    next: usize,
}

impl Syslog {
    /// A server that is not connected yet.
    pub(super) fn new(config: SyslogConfig) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = host.to_str().unwrap_or_default();
        let fits = (1..=MAX_HOST).contains(&host.len())
            && host.bytes().all(|byte| byte.is_ascii_graphic());
        Self {
            config,
            host: if fits { host } else { "-" }.to_owned(),
            addresses: Addresses::default(),
            link: None,
            lines: VecDeque::new(),
            sent: 0,
            lost: 0,
        }
    }

    /// What it is called in the log.
    pub(super) fn name(&self) -> String {
        match &self.config.server {
            SyslogServer::Socket(path) => format!("syslog at '{}'", path.display()),
            SyslogServer::Udp { address, .. } => format!("syslog at {address}"),
        }
    }

    /// Adds lines to those that are to be sent.
    pub(super) fn add(&mut self, lines: Vec<Line>) {
        self.lines.extend(lines);
    }

    /// Sends all lines, or as many as the server takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some(line) = self.lines.front() {
            let message = self.message(line);
            self.send(message.as_bytes())?;
            self.lines.pop_front();
            self.sent = 0;
        }
        Ok(())
    }

    /// Has the server connected anew for the next line.
    pub(super) fn disconnect(&mut self) {
        (self.link, self.sent) = (None, 0);
        self.addresses.since = None;
    }

    /// A line as the server is to get it. The text is short enough for each kind of socket.
    fn message(&self, line: &Line) -> String {
        let severity = match line.level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        let (priority, process) = (FACILITY * 8 + severity, std::process::id());
        let text = &line.text;
        if self.config.legacy {
            // Without time and host, which the receiver knows as well, there is nothing that servers read in different ways.
            return format!("<{priority}>{NAME}[{process}]: {text}");
        }
        let (time, host) = (UniversalTime::from(line.time), &self.host);
        let mark = if text.is_ascii() || format() == LogFormat::Json {
            ""
        } else {
            BYTE_ORDER_MARK
        };
        format!("<{priority}>1 {time} {host} {NAME} {process} - - {mark}{text}")
    }

    /// Sends a message. A server that was there before may have been replaced by another.
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        if self.link.is_some() {
            match self.try_send(message) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    if error.kind() == ErrorKind::ConnectionRefused
                        && matches!(self.config.server, SyslogServer::Udp { .. })
                    {
                        // It says so of the message before.
                        self.lost += 1;
                    }
                }
                sent => return sent,
            }
        }
        self.link = Some(self.connect()?);
        self.try_send(message)
    }

    fn try_send(&mut self, message: &[u8]) -> io::Result<()> {
        let link = self.link.as_mut().ok_or(ErrorKind::NotConnected)?;
        let sent = link.send(message, &mut self.sent);
        if let Err(error) = &sent
            && error.kind() != ErrorKind::WouldBlock
        {
            (self.link, self.sent) = (None, 0);
        }
        sent
    }

    fn connect(&mut self) -> io::Result<Link> {
        let link = match &self.config.server {
            SyslogServer::Socket(path) => {
                let socket = UnixDatagram::unbound()?;
                match socket.connect(path) {
                    Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                        Link::Stream(UnixStream::connect(path)?)
                    }
                    connected => connected.map(|()| Link::Datagram(socket))?,
                }
            }
            SyslogServer::Udp {
                address,
                prefer_ipv6,
            } => Link::Udp(self.addresses.connect(address, *prefer_ipv6)?),
        };
        match &link {
            Link::Datagram(socket) => socket.set_write_timeout(Some(SEND_LIMIT)),
            Link::Stream(socket) => socket.set_write_timeout(Some(SEND_LIMIT)),
            Link::Udp(socket) => socket.set_write_timeout(Some(SEND_LIMIT)),
        }?;
        Ok(link)
    }
}

impl Link {
    /// Sends a message, of which a stream has taken so much already.
    fn send(&mut self, message: &[u8], sent: &mut usize) -> io::Result<()> {
        match self {
            Self::Datagram(socket) => socket.send(message).map(drop),
            Self::Udp(socket) => {
                socket.send(message)?;
                // On this machine a port at which nobody listens refuses at once.
                socket.take_error()?.map_or(Ok(()), Err)
            }
            Self::Stream(socket) => {
                let text = [message, b"\n"].concat();
                while *sent < text.len() {
                    *sent += match socket.write(&text[*sent..])? {
                        0 => return Err(ErrorKind::WriteZero.into()),
                        length => length,
                    };
                }
                Ok(())
            }
        }
    }
}

impl Addresses {
    /// A socket that sends to the next address of a host to which there is a way.
    fn connect(&mut self, host: &HostPort, prefer_ipv6: bool) -> io::Result<UdpSocket> {
        if self
            .since
            .is_none_or(|since| since.elapsed() > ADDRESS_LIFE)
        {
            let name = if host.host.is_empty() {
                "localhost"
            } else {
                &host.host
            };
            self.found = (name, host.port).to_socket_addrs()?.collect();
            self.found
                .sort_by_key(|address| address.is_ipv6() != prefer_ipv6);
            (self.since, self.next) = (Some(Instant::now()), 0);
        }
        let mut failure = io::Error::from(ErrorKind::NotFound);
        for _ in 0..self.found.len() {
            let address = self.found[self.next % self.found.len()];
            self.next += 1;
            match connect_udp(address) {
                Ok(socket) => return Ok(socket),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

fn connect_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;

    fn syslog(path: &Path, legacy: bool) -> Syslog {
        let server = SyslogServer::Socket(path.to_owned());
        Syslog::new(SyslogConfig { server, legacy })
    }

    fn line(level: Level, text: &str) -> Line {
        let time = SystemTime::UNIX_EPOCH;
        let text = text.to_owned();
        Line { level, time, text }
    }

    #[test]
    fn messages_have_the_form_of_the_rfc_or_that_of_the_original() {
        let (host, process) = (nix::unistd::gethostname().unwrap(), std::process::id());
        let host = host.to_str().unwrap();
        let syslog = |legacy| syslog(Path::new("/s"), legacy);
        for (level, priority) in [
            (Level::ERROR, 27),
            (Level::WARN, 28),
            (Level::INFO, 30),
            (Level::DEBUG, 31),
        ] {
            assert_eq!(
                syslog(false).message(&line(level, "text")),
                format!(
                    "<{priority}>1 1970-01-01T00:00:00.000Z {host} websockify {process} - - text"
                )
            );
            assert_eq!(
                syslog(true).message(&line(level, "té")),
                format!("<{priority}>websockify[{process}]: té")
            );
        }
        let marked = syslog(false).message(&line(Level::INFO, "té"));
        assert!(marked.ends_with(" - - \u{feff}té"), "{marked}");
    }

    #[test]
    fn a_stream_gets_lines_and_a_server_that_was_replaced_gets_the_next_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut syslog = syslog(&path, true);
        let lines = |texts: &[&str]| texts.iter().map(|text| line(Level::INFO, text)).collect();
        syslog.add(lines(&["one", "two"]));
        assert!(syslog.flush().is_err());
        let server = UnixListener::bind(&path).unwrap();
        syslog.flush().unwrap();
        let mut stream = server.accept().unwrap().0;
        let head = format!("<30>websockify[{}]: ", std::process::id());
        let expected = format!("{head}one\n{head}two\n");
        let mut text = vec![0; expected.len()];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(text, expected.as_bytes());
        drop((stream, server));
        std::fs::remove_file(&path).unwrap();
        let datagrams = UnixDatagram::bind(&path).unwrap();
        syslog.add(lines(&["three"]));
        syslog.flush().unwrap();
        let mut text = [0; 100];
        let length = datagrams.recv(&mut text).unwrap();
        assert_eq!(text[..length], *format!("{head}three").as_bytes());
    }
}
