//! The guard: a small process between the bridge and the wrapped program, so that nothing of the program outlives the bridge,
//! even one that is killed.
//!
//! It starts the program when it is told to, adopts what the program leaves behind (it is the child subreaper), reaps, and tells
//! the bridge of every change. When its channel ends, the bridge is gone, however that came about, and the guard ends everything
//! below it. No signal ends it but SIGKILL; should that happen, the program's first process goes with it, and the bridge
//! adopts the rest.
//!
//! It is forked before the first thread is started, so it may do whatever a program may; it holds no file but its standard ones
//! and its channels, and logs nothing.

#![allow(unsafe_code, reason = "fork, prctl, and closing inherited descriptors")]

mod process;

use std::ffi::OsStr;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram as Channel, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use tokio::net::UnixDatagram;

use super::child::Change;
use super::redirect::Rule;
use super::{Method, proc, seccomp};
use crate::config::WrapConfig;
use crate::helpers;
use process::Guard;

/// How long a guard has to end when nothing is left to guard.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// What the guard tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The program was started.
    Started(Pid),
    /// It could not be.
    Failed(Errno),
    /// The state of a process has changed; the number is a wait status.
    Changed(Pid, i32),
    /// The last process has ended.
    AllEnded,
}

impl Event {
    /// Three numbers of the machine's own kind.
    const LENGTH: usize = 12;

    fn encode(self) -> [u8; Self::LENGTH] {
        let [kind, first, second] = match self {
            Self::Started(pid) => [0, pid.as_raw(), 0],
            Self::Failed(error) => [1, error as i32, 0],
            Self::Changed(pid, status) => [2, pid.as_raw(), status],
            Self::AllEnded => [3, 0, 0],
        };
        let mut bytes = [0; Self::LENGTH];
        let (words, _) = bytes.as_chunks_mut::<4>();
        (words[0], words[1], words[2]) = (
            i32::to_ne_bytes(kind),
            first.to_ne_bytes(),
            second.to_ne_bytes(),
        );
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<4>() else {
            return None;
        };
        match *words {
            [kind, first, second] => {
                let [first, second] = [first, second].map(i32::from_ne_bytes);
                match i32::from_ne_bytes(kind) {
                    0 => Some(Self::Started(Pid::from_raw(first))),
                    1 => Some(Self::Failed(Errno::from_raw(first))),
                    2 => Some(Self::Changed(Pid::from_raw(first), second)),
                    3 => Some(Self::AllEnded),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// What the guard is told; an empty message would be the end of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order<'a> {
    /// To start the program, with the shim at this path.
    Start(&'a Path),
    /// To send a signal to a process, or to a process group if its number is negative.
    Signal(Pid, Signal),
}

impl<'a> Order<'a> {
    /// What kind of order a message is.
    const START: u8 = b'+';
    const SIGNAL: u8 = b'!';
    /// The longest one.
    const MAX_LENGTH: usize = 1 + libc::PATH_MAX as usize;

    fn start(shim: &Path) -> Vec<u8> {
        [&[Self::START], shim.as_os_str().as_bytes()].concat()
    }

    fn signal(target: Pid, signal: Signal) -> Vec<u8> {
        let numbers = [target.as_raw(), signal as i32].map(i32::to_ne_bytes);
        [&[Self::SIGNAL], numbers.as_flattened()].concat()
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&Self::START, shim) => Some(Self::Start(Path::new(OsStr::from_bytes(shim)))),
            (&Self::SIGNAL, numbers) => {
                let (&[target, signal], []) = numbers.as_chunks::<4>() else {
                    return None;
                };
                let [target, signal] = [target, signal].map(i32::from_ne_bytes);
                Some(Self::Signal(Pid::from_raw(target), signal.try_into().ok()?))
            }
            _ => None,
        }
    }
}

/// A guard that waits to be attached to a runtime.
#[derive(Debug)]
pub(super) struct Unattached {
    pid: Pid,
    channel: Channel,
    /// Where the listener of a seccomp filter arrives, and what it is for.
    questions: Option<(UnixStream, Rule)>,
    /// Children that this process had before, as a shell script has that replaced itself by us.
    strangers: Vec<Pid>,
}

impl Unattached {
    /// Forks a guard that will start the program, moved by `method`. No other thread may run.
    pub(super) fn new(config: &WrapConfig, method: &Method) -> Result<Self> {
        ensure!(
            proc::is_ours(),
            "cannot wrap a program: /proc shows the processes of another namespace; mount it anew (unshare --mount-proc)"
        );
        Self::fork(config, method).context("cannot start the process that guards the program")
    }

    fn fork(config: &WrapConfig, method: &Method) -> Result<Self> {
        let strangers = proc::descendants(Pid::this());
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let (questions, asked) = match method {
            Method::Seccomp(filter, rule) => {
                let (ours, theirs) = UnixStream::pair()?;
                (Some((ours, *rule)), Some((filter.clone(), theirs)))
            }
            Method::Preload(_) | Method::Untouched => (None, None),
        };
        let rule = match method {
            Method::Preload(rule) => Some(*rule),
            Method::Seccomp(..) | Method::Untouched => None,
        };
        // Should the guard be killed, we adopt what it had.
        // SAFETY: PR_SET_CHILD_SUBREAPER takes one number. A kernel without it is older than Rust supports.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        // SAFETY: no other thread runs, so the child is as free as its parent.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                channel: ours.into(),
                questions,
                strangers,
            }),
            ForkResult::Child => {
                let guard = || Guard::new(theirs, config, rule, asked)?.run();
                let done = catch_unwind(AssertUnwindSafe(guard)).is_ok_and(|result| result.is_ok());
                // SAFETY: nothing of the parent's is to be run, flushed or dropped here.
                unsafe { libc::_exit(i32::from(!done)) }
            }
        }
    }

    /// Attaches it to the runtime that this is called in.
    pub(super) fn attach(self) -> io::Result<Handle> {
        self.channel.set_nonblocking(true)?;
        Ok(Handle {
            pid: self.pid,
            channel: UnixDatagram::from_std(self.channel)?,
            questions: self.questions,
            strangers: self.strangers,
        })
    }
}

/// What the bridge knows the guard by.
#[derive(Debug)]
pub(super) struct Handle {
    pid: Pid,
    channel: UnixDatagram,
    questions: Option<(UnixStream, Rule)>,
    strangers: Vec<Pid>,
}

impl Handle {
    /// Has the program started, with the shim at this path; [`Change::Started`] or [`Change::Failed`] tells what came of it.
    pub(super) async fn start(&self, shim: &Path) -> io::Result<()> {
        self.channel.send(&Order::start(shim)).await.map(drop)
    }

    /// Sends a signal to a process of the program, or to a process group if its number is negative; one that is gone is fine. What
    /// we may not signal, because it is another user's, the guard may.
    pub(super) fn signal(&self, target: Pid, signal: Signal) {
        if kill(target, signal) == Err(Errno::EPERM) {
            // It fails when the guard is gone.
            _ = self.channel.try_send(&Order::signal(target, signal));
        }
    }

    /// Sends a signal to a process group.
    pub(super) fn signal_group(&self, group: Pid, signal: Signal) {
        self.signal(Pid::from_raw(-group.as_raw()), signal);
    }

    /// Answers for the filter of a program that was started, or that failed to be.
    pub(super) fn supervise(&self) -> io::Result<()> {
        // The listener was sent before the program began. Until it is heard, a bind waits; if that fails, a bind fails.
        self.questions
            .as_ref()
            .map_or(Ok(()), |(channel, rule)| seccomp::supervise(channel, *rule))
    }

    /// The next change of the program's processes; an error when the guard is gone. May be dropped and called again.
    pub(super) async fn change(&self) -> io::Result<Change> {
        loop {
            let mut bytes = [0; Event::LENGTH];
            let length = self.channel.recv(&mut bytes).await?;
            let event = Event::decode(&bytes[..length]).ok_or(io::ErrorKind::UnexpectedEof)?;
            let change = match event {
                Event::Started(pid) => Some(Change::Started(pid)),
                Event::Failed(error) => Some(Change::Failed(error)),
                Event::Changed(pid, status) => Change::new(pid, status),
                Event::AllEnded => Some(Change::AllEnded),
            };
            if let Some(change) = change {
                return Ok(change);
            }
        }
    }

    /// The processes of the program, whoever of us two has adopted them: children before grandchildren. One that was started
    /// just now may be missing, one that has ended just now may be there.
    pub(super) fn processes(&self) -> Vec<Pid> {
        let spared: Vec<Pid> = self
            .strangers
            .iter()
            .copied()
            .chain(helpers::all())
            .flat_map(|stranger| [vec![stranger], proc::descendants(stranger)].concat())
            .chain([self.pid])
            .collect();
        let mut processes = proc::descendants(Pid::this());
        processes.retain(|&pid| !spared.contains(&pid) && !helpers::is_related(pid));
        processes
    }
}

impl Drop for Handle {
    /// Lets the guard end, which ends what is left of the program, and waits for that; for a bounded time.
    fn drop(&mut self) {
        // It fails only when the guard is gone.
        _ = self.channel.shutdown(Shutdown::Write);
        let deadline = Instant::now() + CLOSE_LIMIT;
        while let Some(limit) = deadline.checked_duration_since(Instant::now()) {
            let mut files = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
            _ = poll(
                &mut files,
                PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO),
            );
            match recv(
                self.channel.as_raw_fd(),
                &mut [0; Event::LENGTH],
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Ok(0) | Err(_) => {
                    // Its files are closed, so it is about to end; it may have been reaped already.
                    _ = waitpid(self.pid, None);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_their_way() {
        let pid = Pid::from_raw(4711);
        for event in [
            Event::Started(pid),
            Event::Failed(Errno::ENOENT),
            Event::Changed(pid, -1),
            Event::AllEnded,
        ] {
            assert_eq!(Event::decode(&event.encode()), Some(event));
        }
        assert_eq!(Event::decode(&[]), None);
        assert_eq!(Event::decode(&[9; Event::LENGTH]), None);
    }

    #[test]
    fn orders_survive_their_way() {
        let (shim, group) = (Path::new("/shim"), Pid::from_raw(-4711));
        assert_eq!(Order::decode(&Order::start(shim)), Some(Order::Start(shim)));
        let signal = Order::signal(group, Signal::SIGUSR1);
        let expected = Order::Signal(group, Signal::SIGUSR1);
        assert_eq!(Order::decode(&signal), Some(expected));
        for bad in [&b""[..], b"?", &signal[..5], b"!12345678"] {
            assert_eq!(Order::decode(bad), None, "{bad:?}");
        }
    }
}
