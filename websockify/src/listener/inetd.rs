//! Listening on what was handed over as standard input.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{self, UnixAddr, getsockopt, sockopt};

use super::{Address, Bound, INETD, tcp_address};

/// Takes the listening socket from standard input.
pub(super) fn inherit() -> Result<Bound> {
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
