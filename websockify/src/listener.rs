//! The listening socket: TCP, a unix socket, or one that was handed over as standard input.
//!
//! It is made before the runtime exists, so that a port in use is an error of the start. Accepting gives a [`Plain`] and a
//! [`PeerAddress`]; what to do about an error is the server's decision.

use std::fmt;
use std::fs;
use std::io;
use std::net::{self, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, getsockopt,
    setsockopt, sockopt,
};
use nix::sys::stat::{Mode, umask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};

use crate::addr::{HostPort, ListenAddr};
use crate::stream::Plain;
use crate::sys;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A bound and listening socket, not yet attached to a runtime.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: OwnedFd,
    /// How the settings name it: `:6080`, a path, `inetd`.
    name: String,
    /// The unix socket file that goes when we go.
    file: Option<SocketFile>,
    /// How a client reaches it.
    address: Address,
}

/// The local address of a listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// TCP, with the port that the system chose if it was 0.
    Tcp(SocketAddr),
    /// A unix socket's path; empty for one without a name.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Who connected. It is shown as the address; in the alternate form (`{:#}`) the number and a blank come before that, which is how
/// the log gets to know the number of whatever it is told with `%peer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The connection's number: 1, 2, … in the order in which they were accepted.
    pub(crate) number: u64,
    /// Where it comes from.
    pub(crate) address: PeerAddress,
}

#[cfg(test)]
impl Peer {
    /// One for tests.
    pub(crate) const UNIX: Self = Self {
        number: 7,
        address: PeerAddress::Unix,
    };
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            write!(f, "{} ", self.number)?;
        }
        write!(f, "{}", self.address)
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerAddress {
    /// A TCP client's address; IPv4 also when it came to a dual-stack socket.
    Ip(IpAddr),
    /// The unix socket.
    Unix,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl Bound {
    /// Binds and listens.
    ///
    /// # Errors
    /// Says what could not be listened on and why.
    pub(crate) fn new(listen: &ListenAddr) -> Result<Self> {
        match listen {
            ListenAddr::Tcp {
                address,
                prefer_ipv6,
            } => listen_tcp(address, *prefer_ipv6),
            ListenAddr::Unix { path, mode } => listen_unix(path, *mode),
            ListenAddr::Inherited => inherit(),
        }
    }

    /// How the settings name it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The local address.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The line of the settings about it.
    pub(crate) fn describe(&self) -> String {
        match (&self.file, self.name.as_str()) {
            (Some(_), path) => format!("Listen on unix socket {path}"),
            (None, INETD) => "Listen for inetd connections".to_owned(),
            (None, name) => format!("Listen on {name}"),
        }
    }

    /// Attaches it to the runtime that this is called in.
    pub(crate) fn into_listener(self) -> io::Result<Listener> {
        Ok(Listener {
            is_inherited: self.name == INETD,
            socket: sys::watch_for_input(self.socket)?,
            _file: self.file,
        })
    }
}

/// The name of a handed-over socket.
const INETD: &str = "inetd";

/// A listening socket in a runtime. The unix socket file goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
    _file: Option<SocketFile>,
    /// Whether others have listened on it before us: what waits to be accepted may not have taken after it as we have set it up.
    is_inherited: bool,
}

/// A connection that no runtime watches yet.
#[derive(Debug)]
pub(crate) enum Socket {
    /// TCP.
    Tcp(net::TcpStream),
    /// Of the unix socket.
    Unix(unix::net::UnixStream),
}

impl Socket {
    /// Attaches it to the runtime that this is called in.
    pub(crate) fn attach(self) -> io::Result<Plain> {
        Ok(match self {
            Self::Tcp(socket) => Plain::Tcp(TcpStream::from_std(socket)?),
            Self::Unix(socket) => Plain::Unix(UnixStream::from_std(socket)?),
        })
    }
}

impl Listener {
    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        let accept = |listener: &OwnedFd| sys::accept(listener.as_fd());
        let (socket, address) = self.socket.async_io(Interest::READABLE, accept).await?;
        Ok(match ip_address(&address) {
            Some(address) => {
                if self.is_inherited {
                    sys::tune_tcp(socket.as_fd());
                }
                let address = PeerAddress::Ip(address.ip().to_canonical());
                (Socket::Tcp(socket.into()), address)
            }
            None => (Socket::Unix(socket.into()), PeerAddress::Unix),
        })
    }
}

fn listen_tcp(address: &HostPort, prefer_ipv6: bool) -> Result<Bound> {
    let candidates = resolve(address, prefer_ipv6)?;
    let mut failure = None;
    for candidate in candidates {
        match bind_tcp(candidate) {
            Ok(socket) => {
                let local = tcp_address(&socket)?
                    .context("the socket that was just bound has no address")?;
                let name = HostPort {
                    host: address.host.clone(),
                    port: local.port(),
                }
                .to_string();
                return Ok(Bound {
                    socket,
                    name,
                    file: None,
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

/// The local address of an IP socket; `None` for another family.
fn tcp_address(socket: &OwnedFd) -> Result<Option<SocketAddr>> {
    let name =
        socket::getsockname(socket.as_raw_fd()).context("cannot read the socket's address")?;
    Ok(ip_address(&name))
}

/// An address of IPv4 or IPv6; `None` for another family.
fn ip_address(name: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = name
        .as_sockaddr_in()
        .map(|&v4| net::SocketAddrV4::from(v4).into());
    v4.or_else(|| {
        name.as_sockaddr_in6()
            .map(|&v6| net::SocketAddrV6::from(v6).into())
    })
}

fn listen_unix(path: &Path, mode: u32) -> Result<Bound> {
    let cannot = |error: Errno| {
        anyhow!(
            "cannot listen on unix socket {}: {}",
            path.display(),
            error.desc()
        )
    };
    let failed = |error: io::Error| {
        anyhow!(
            "cannot listen on unix socket {}: {}",
            path.display(),
            sys::describe(&error)
        )
    };
    let address = UnixAddr::new(path).map_err(cannot)?;
    remove_stale(path, &address)?;
    let socket = unix_socket().map_err(cannot)?;
    // No other thread runs yet, and at no moment is the file more open than it shall be.
    let before = umask(Mode::from_bits_truncate(!mode & 0o777));
    let bound = socket::bind(socket.as_raw_fd(), &address);
    umask(before);
    bound.map_err(cannot)?;
    let file = SocketFile::new(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    socket::listen(&socket, Backlog::new(BACKLOG).map_err(cannot)?).map_err(cannot)?;
    let name = path.display().to_string();
    Ok(Bound {
        socket,
        name,
        file: Some(file),
        address: Address::Unix(path.to_owned()),
    })
}

fn unix_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Removes a socket file that nobody listens on any more.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<()> {
    let refusal =
        |reason: &str| anyhow!("cannot listen on unix socket {}: {reason}", path.display());
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| refusal(&sys::describe(&error)))?,
    };
    if !metadata.file_type().is_socket() {
        bail!(refusal(
            "there is a file of that name which is not a socket; remove it or choose another name"
        ));
    }
    let attempt = unix_socket().and_then(|socket| socket::connect(socket.as_raw_fd(), address));
    match attempt {
        // With a full backlog it is "try again".
        Ok(()) | Err(Errno::EAGAIN) => {
            bail!(refusal(
                "another program listens there; stop it or choose another name"
            ))
        }
        Err(Errno::ECONNREFUSED) => {
            fs::remove_file(path).map_err(|error| refusal(&sys::describe(&error)))
        }
        Err(error) => bail!(refusal(error.desc())),
    }
}

/// The file of a unix socket that we made; removed when dropped, unless somebody has put another in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Takes the listening socket from standard input.
fn inherit() -> Result<Bound> {
    const ADVICE: &str = "--inetd wants a listening stream socket as standard input, as inetd's `wait` mode or systemd's \
                          `StandardInput=socket` gives it";
    let stdin = io::stdin().as_fd().try_clone_to_owned().context(ADVICE)?;
    if getsockopt(&stdin, sockopt::AcceptConn).ok() != Some(true) {
        bail!("{ADVICE}; standard input is something else");
    }
    let address = match tcp_address(&stdin)? {
        Some(address) => Address::Tcp(address),
        None => {
            let name: UnixAddr = socket::getsockname(stdin.as_raw_fd()).context(ADVICE)?;
            Address::Unix(name.path().map(Path::to_owned).unwrap_or_default())
        }
    };
    // The wrapped program is not to inherit it, and nobody else is to read from it.
    let nothing = fs::File::open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(&nothing).context("cannot replace standard input")?;
    nix::fcntl::fcntl(
        &stdin,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
    )
    .context(ADVICE)?;
    Ok(Bound {
        socket: stdin,
        name: INETD.to_owned(),
        file: None,
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_ours_is_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(unix::net::UnixListener::bind(&path).unwrap());
        let bound = Bound::new(&ListenAddr::Unix {
            path: path.clone(),
            mode: 0o620,
        })
        .unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o620
        );
        let second = Bound::new(&ListenAddr::Unix {
            path: path.clone(),
            mode: 0o600,
        })
        .unwrap_err();
        assert!(
            format!("{second:#}").contains("another program listens there"),
            "{second:#}"
        );
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Bound::new(&ListenAddr::Unix {
            path: file.path().to_owned(),
            mode: 0o600,
        })
        .unwrap_err();
        assert!(format!("{error:#}").contains("not a socket"), "{error:#}");
        assert!(file.path().exists());
    }

    #[test]
    fn a_socket_that_somebody_else_put_there_meanwhile_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let bound = Bound::new(&ListenAddr::Unix {
            path: path.clone(),
            mode: 0o600,
        })
        .unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        let theirs = unix::net::UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
        drop(theirs);
    }

    #[test]
    fn a_peer_is_shown_by_its_address_and_in_the_alternate_form_with_its_number() {
        for (address, shown) in [
            (PeerAddress::Unix, "unix"),
            (PeerAddress::Ip(Ipv6Addr::LOCALHOST.into()), "::1"),
        ] {
            let peer = Peer { number: 7, address };
            assert_eq!(peer.to_string(), shown);
            assert_eq!(format!("{peer:#}"), format!("7 {shown}"));
        }
    }

    #[test]
    fn port_zero_says_which_port_it_got() {
        let any = HostPort {
            host: String::new(),
            port: 0,
        };
        let bound = Bound::new(&ListenAddr::Tcp {
            address: any,
            prefer_ipv6: false,
        })
        .unwrap();
        let Address::Tcp(address) = bound.address() else {
            panic!()
        };
        assert_ne!(address.port(), 0);
        assert_eq!(bound.name(), format!(":{}", address.port()));
    }
}
