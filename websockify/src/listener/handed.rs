//! Sockets that were handed over: as standard input by inetd, or by systemd (sd_listen_fds(3)). They listen, or they are
//! connections already; then there is one, which is all that is served.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getpeername, getsockopt, sockopt};
use nix::sys::stat::fstat;

use super::{Address, Bound, Entrance, Guest, connection, local_address};
use crate::sys;

/// How the settings name what is standard input.
const INETD: &str = "inetd";

/// What a socket is that was handed over.
enum Handed {
    Listening(Bound),
    Connected(Guest),
}

/// Silences standard output and error where they are the same socket as standard input, as inetd has it: nothing of what is said
/// there is to reach a client.
pub(crate) fn say_nothing_to_client() -> io::Result<()> {
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let identity = |file: BorrowedFd<'_>| fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    if getsockopt(&input, sockopt::SockType).is_err() {
        return Ok(());
    }
    let same = [output.as_fd(), errors.as_fd()]
        .into_iter()
        .filter(|file| identity(*file) == identity(input.as_fd()))
        .map(|file| file.as_raw_fd());
    sys::silence(same)
}

/// Takes the socket from standard input.
pub(super) fn by_inetd() -> Result<Entrance> {
    const ADVICE: &str = "--inetd wants a stream socket as standard input, as inetd and systemd's `StandardInput=socket` give it";
    let stdin = io::stdin().as_fd().try_clone_to_owned().context(ADVICE)?;
    let descriptions = ["Listen for inetd connections", "Serve one inetd connection"];
    let handed = adopt(stdin, INETD.to_owned(), descriptions.map(str::to_owned))
        .map_err(|error| anyhow!("{ADVICE}; {error:#}"))?;
    // The wrapped program is not to inherit it, and nobody else is to read from it.
    sys::silence([libc::STDIN_FILENO]).context("cannot replace standard input")?;
    Ok(match handed {
        Handed::Listening(bound) => Entrance::Listening(vec![bound]),
        Handed::Connected(guest) => Entrance::Connected(guest),
    })
}

/// Takes the sockets, which have these names in the same order.
pub(super) fn by_systemd(sockets: Vec<OwnedFd>, names: &[String]) -> Result<Entrance> {
    let mut listening = Vec::new();
    for (socket, name) in sockets.into_iter().zip(names) {
        let address = local_address(&socket).map(|address| address.to_string());
        let address = address.unwrap_or_default();
        let descriptions = ["Listen on", "Serve one connection on"]
            .map(|what| format!("{what} {address} (systemd: {name})"));
        let handed = adopt(socket, address, descriptions).with_context(|| {
            format!("cannot serve the socket '{name}' that systemd has handed over")
        })?;
        match handed {
            Handed::Listening(bound) => listening.push(bound),
            Handed::Connected(guest) if names.len() == 1 => return Ok(Entrance::Connected(guest)),
            Handed::Connected(_) => {
                bail!("systemd has handed over the connection '{name}', and others; one is served")
            }
        }
    }
    Ok(Entrance::Listening(listening))
}

/// Finds out what a socket is. The settings name it by `name`, and say the first of `descriptions` if it listens, the second if it is
/// connected.
fn adopt(socket: OwnedFd, name: String, descriptions: [String; 2]) -> Result<Handed> {
    let [when_listening, when_connected] = descriptions;
    let kind = getsockopt(&socket, sockopt::SockType).map_err(|_| anyhow!("it is no socket"))?;
    ensure!(kind == SockType::Stream, "it is no stream socket");
    let address = local_address(&socket)?;
    let listens = getsockopt(&socket, sockopt::AcceptConn) == Ok(true);
    let peer = match listens {
        true => None,
        false => match getpeername(socket.as_raw_fd()) {
            Ok(peer) => Some(peer),
            Err(Errno::ENOTCONN) => bail!("it neither listens nor is it connected"),
            Err(error) => bail!(error.desc()),
        },
    };
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("it cannot be used")?;
    Ok(match peer {
        None => Handed::Listening(Bound {
            socket,
            name,
            description: when_listening,
            file: None,
            is_handed_over: true,
            address,
        }),
        Some(peer) => {
            if matches!(address, Address::Tcp(_)) {
                sys::tune_tcp(socket.as_fd());
            }
            let (socket, peer) = connection(socket, &peer);
            Handed::Connected(Guest {
                socket,
                peer,
                name,
                description: when_connected,
                address,
            })
        }
    })
}
