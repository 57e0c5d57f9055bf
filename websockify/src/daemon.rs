//! Going to the background (`-D`).
//!
//! [`fork`] comes before anything is opened, and before there are threads. What was started, the launcher, only waits: the start
//! happens in the daemon, which says what goes wrong on the stderr that both have, and tells the launcher over a pipe how it went.
//! So an error of the start is an error of the command. When the launcher ends, the daemon has let go of all that it had.

#![allow(unsafe_code, reason = "fork")]

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, chdir, setsid};

use crate::{log, sys};

/// What a process is after [`fork`].
#[derive(Debug)]
pub(crate) enum Side {
    /// The one that was started, which is to end with this status.
    Launcher(u8),
    /// The one in the background.
    Daemon(Launcher),
}

/// The launcher, as the daemon knows it: it waits to be told how the start went.
#[derive(Debug)]
pub(crate) struct Launcher(PipeWriter);

/// Makes a daemon of this process, of which only the launcher is left in the foreground. No other thread may run.
///
/// The daemon keeps standard input, output and error and the working directory until [`Launcher::release`], and its umask for good;
/// besides `activated`, no other descriptor that it has inherited, for somebody may wait for that to be closed.
///
/// # Errors
/// There can be no daemon.
pub(crate) fn fork(activated: &[OwnedFd]) -> Result<Side> {
    let (outcome, pipe) = io::pipe().context("cannot make a pipe for the daemon")?;
    // SAFETY: no other thread runs, so the child is as free as its parent.
    match unsafe { nix::unistd::fork() }.context("cannot start the daemon")? {
        ForkResult::Parent { child } => {
            drop(pipe);
            // It ends at once; what it leaves behind is the daemon.
            _ = waitpid(child, None);
            wait_for(outcome).map(Side::Launcher)
        }
        ForkResult::Child => {
            drop(outcome);
            leave_session()?;
            let kept: Vec<_> = (sys::STANDARD.into_iter())
                .chain([pipe.as_raw_fd()])
                .chain(activated.iter().map(AsRawFd::as_raw_fd))
                .collect();
            // SAFETY: nothing else has been opened yet, so nobody here owns what is closed.
            unsafe { sys::close_all_but(&kept) }.context("cannot close what was inherited")?;
            Ok(Side::Daemon(Launcher(pipe)))
        }
    }
}

/// The status that the daemon tells.
fn wait_for(mut outcome: PipeReader) -> Result<u8> {
    let mut status = [0];
    match outcome.read_exact(&mut status) {
        Ok(()) => Ok(status[0]),
        Err(_) => bail!("the daemon was ended before its start was complete"),
    }
}

/// Goes on as the child of nobody, in a session without a terminal to which none can be added.
fn leave_session() -> Result<()> {
    setsid().context("cannot leave the session")?;
    // SAFETY: still, no other thread runs.
    match unsafe { nix::unistd::fork() }.context("cannot start the daemon")? {
        // SAFETY: nothing of the parent's is to be run, flushed or dropped here.
        ForkResult::Parent { .. } => unsafe { libc::_exit(0) },
        ForkResult::Child => {
            // Under nohup it is ignored, but there is no terminal any more that could be hung up: it asks us to read files again.
            // SAFETY: the default disposition runs no handler.
            unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }.context("cannot take SIGHUP")?;
            Ok(())
        }
    }
}

impl Launcher {
    /// Lets go of what the launcher has, and lets it end: the start has worked. The working directory becomes `/`, so that no file
    /// system is kept busy, unless it is to be kept.
    ///
    /// # Errors
    /// There is no launcher any more: whoever waited for the start has given it up.
    pub(crate) fn release(mut self, keep_directory: bool) -> Result<()> {
        if !self.is_there() {
            return self.tell(0);
        }
        if !keep_directory {
            chdir("/").context("cannot change to /")?;
        }
        let own = log::own_descriptor();
        sys::silence(sys::STANDARD.into_iter().chain(own)).context("cannot leave stderr")?;
        self.tell(0)
    }

    /// Lets the launcher end with this status, which is not 0.
    pub(crate) fn fail(mut self, status: u8) {
        // It may have ended, and has a status of its own then.
        _ = self.tell(status);
    }

    /// Whether the launcher still waits; it may also end after that.
    fn is_there(&self) -> bool {
        let mut pipe = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        _ = poll(&mut pipe, PollTimeout::ZERO);
        pipe[0].any() != Some(true)
    }

    fn tell(&mut self, status: u8) -> Result<()> {
        let told = self.0.write_all(&[status]);
        told.map_err(|_| {
            anyhow!("the start was given up: the command that asked for a daemon has ended")
        })
    }
}
