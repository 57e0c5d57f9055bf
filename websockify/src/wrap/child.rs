//! Starting the wrapped program's process, and everything that is done to processes afterwards.

#![allow(
    unsafe_code,
    reason = "what runs between fork and exec, and the prctl calls around it"
)]

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::{self, Pid};
use tokio::sync::oneshot;

use super::{Method, seccomp};

/// Starts processes from a thread that lives as long as this process: the kernel sends the signal that takes the program along
/// with us when the *thread* that started it ends.
#[derive(Debug)]
pub(super) struct Spawner {
    orders: mpsc::Sender<Order>,
}

type Order = (Command, oneshot::Sender<io::Result<Pid>>);

impl Spawner {
    /// Starts the thread, and makes this process the one that adopts what the program leaves behind.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: PR_SET_CHILD_SUBREAPER takes one number. A kernel without it is older than Rust supports.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        let (orders, received) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, answer) in received {
                    let child = command
                        .spawn()
                        .map(|child| Pid::from_raw(child.id().cast_signed()));
                    // Nobody waits for the answer only when the process ends anyway.
                    _ = answer.send(child);
                }
            })?;
        Ok(Self { orders })
    }

    /// Starts a program without a shell, in a process group of its own, with signals as a program expects them.
    pub(super) async fn spawn(&self, command: &[OsString], method: &Method) -> io::Result<Pid> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut order = Command::new(program);
        order.args(arguments).process_group(0);
        let parent = Pid::this();
        // SAFETY: `prepare` makes system calls only, as is demanded between fork and exec.
        unsafe { order.pre_exec(move || prepare(parent)) };
        let mut questions = None;
        match method {
            Method::Untouched => {}
            Method::Preload(environment) => {
                order.envs(environment.iter().map(|(name, value)| (name, value)));
            }
            Method::Seccomp(filter, rule) => {
                let (ours, theirs) = UnixStream::pair()?;
                let filter = filter.clone();
                // SAFETY: so does this, and what it uses was made before.
                unsafe { order.pre_exec(move || filter.apply(theirs.as_raw_fd())) };
                questions = Some((ours, *rule));
            }
        }
        let (answer, child) = oneshot::channel();
        self.orders
            .send((order, answer))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        let child = child.await.map_err(|_| io::ErrorKind::BrokenPipe)??;
        if let Some((channel, rule)) = questions {
            // It was sent before the program began. Until it is heard, a bind waits; if that fails, a bind fails.
            seccomp::supervise(&channel, rule)?;
        }
        Ok(child)
    }
}

/// Runs in the child before the program: nothing of how we treat signals shall reach it, and it shall not outlive us. (The
/// standard library empties the signal mask.)
fn prepare(parent: Pid) -> io::Result<()> {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition; numbers that cannot be set are refused without harm.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: PR_SET_PDEATHSIG takes a signal number.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if unistd::getppid() != parent {
        // The bridge ended before the line above could take effect.
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(())
}

/// A change of a child's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It has ended.
    Ended(Pid, Exit),
    /// It was stopped by the signal of this number.
    Stopped(Pid, i32),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// By itself.
    Status(i32),
    /// By the signal of this number; real-time signals have no names.
    Signal(i32),
}

impl Exit {
    /// As a shell would give it: 128+n for signal n.
    pub(super) fn status(self) -> u8 {
        match self {
            Self::Status(status) => u8::try_from(status & 0xff).unwrap_or(1),
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(255),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Status(status) => write!(f, "exited with status {status}"),
            Self::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was ended by {signal}"),
                Err(_) => write!(f, "was ended by signal {number}"),
            },
        }
    }
}

/// What became of the children since the last call. Adopted ones are waited for here too, so that
/// none stays a zombie. All children of this process are the wrapped program's; one that a part of the runtime started would
/// have to be waited for by its own pid.
pub(super) fn reap() -> Vec<Change> {
    let mut changes = Vec::new();
    loop {
        let mut status = 0;
        // nix's own waitpid takes a status with a real-time signal for an error, and loses it.
        // SAFETY: `status` is a valid place for one.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
        match pid {
            0 => return changes,
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return changes,
            _ if libc::WIFSTOPPED(status) => {
                changes.push(Change::Stopped(Pid::from_raw(pid), libc::WSTOPSIG(status)));
            }
            _ if libc::WIFSIGNALED(status) => {
                changes.push(Change::Ended(
                    Pid::from_raw(pid),
                    Exit::Signal(libc::WTERMSIG(status)),
                ));
            }
            _ => changes.push(Change::Ended(
                Pid::from_raw(pid),
                Exit::Status(libc::WEXITSTATUS(status)),
            )),
        }
    }
}

/// Sends a signal to a process group; one that is gone is fine.
pub(super) fn signal_group(group: Pid, signal: Signal) {
    _ = signal::killpg(group, signal);
}

/// Sends a signal to processes; ones that are gone are fine.
pub(super) fn signal_all(processes: &[Pid], signal: Signal) {
    for &process in processes {
        _ = signal::kill(process, signal);
    }
}
