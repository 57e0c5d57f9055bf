//! Starting the wrapped program's process, and everything that is done to processes afterwards.

#![allow(
    unsafe_code,
    reason = "what runs between fork and exec, and the prctl calls around it"
)]

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{self, Pid};
use tokio::sync::oneshot;

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
    pub(super) async fn spawn(
        &self,
        command: &[OsString],
        environment: &[(&'static str, OsString)],
    ) -> io::Result<Pid> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut order = Command::new(program);
        order
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .process_group(0);
        let parent = Pid::this();
        // SAFETY: `prepare` makes system calls only, as is demanded between fork and exec.
        unsafe { order.pre_exec(move || prepare(parent)) };
        let (answer, child) = oneshot::channel();
        self.orders
            .send((order, answer))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        child.await.map_err(|_| io::ErrorKind::BrokenPipe)?
    }
}

/// Runs in the child before the program: nothing of how we treat signals shall reach it, and it shall not outlive us. (The
/// standard library empties the signal mask.)
fn prepare(parent: Pid) -> io::Result<()> {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition; numbers that cannot be set are refused without harm.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // What we were started with beside the standard streams is not the program's. Before Linux 5.11 this is refused.
    // SAFETY: close_range with this flag only marks descriptors, which are closed by the exec.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
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
    /// It has ended with this status, which is 128+n for signal n.
    Ended(Pid, Exit),
    /// It was stopped by this signal.
    Stopped(Pid, Signal),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// By itself.
    Status(i32),
    /// By a signal.
    Signal(Signal),
}

impl Exit {
    /// As a shell would give it: 128+n for signal n.
    pub(super) fn status(self) -> u8 {
        match self {
            Self::Status(status) => u8::try_from(status & 0xff).unwrap_or(1),
            Self::Signal(signal) => u8::try_from(128 + signal as i32).unwrap_or(255),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exited with status {status}"),
            Self::Signal(signal) => write!(f, "was ended by {signal}"),
        }
    }
}

/// What became of the children since the last call, and whether any are left. Adopted ones are waited for here too, so that
/// none stays a zombie. All children of this process are the wrapped program's; one that a part of the runtime started would
/// have to be waited for by its own pid.
pub(super) fn reap() -> (Vec<Change>, bool) {
    let mut changes = Vec::new();
    loop {
        match waitpid(
            None::<Pid>,
            Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED),
        ) {
            Ok(WaitStatus::Exited(pid, status)) => {
                changes.push(Change::Ended(pid, Exit::Status(status)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                changes.push(Change::Ended(pid, Exit::Signal(signal)));
            }
            Ok(WaitStatus::Stopped(pid, signal)) => changes.push(Change::Stopped(pid, signal)),
            Ok(WaitStatus::StillAlive) => return (changes, true),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return (changes, false),
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

/// Our controlling terminal, if standard input is it.
pub(super) mod terminal {
    use std::io::stdin;

    use nix::sys::signal::{SigHandler, Signal, signal};
    use nix::unistd::{self, Pid};

    /// Whether standard input is a terminal whose foreground is ours.
    pub(crate) fn is_ours() -> bool {
        unistd::tcgetpgrp(stdin()) == Ok(unistd::getpgrp())
    }

    /// Makes a process group the one that reads from the terminal.
    pub(crate) fn give_to(group: Pid) {
        // From the background this would stop us.
        // SAFETY: ignoring a signal runs no handler.
        let before = unsafe { signal(Signal::SIGTTOU, SigHandler::SigIgn) };
        // The group may have ended meanwhile.
        _ = unistd::tcsetpgrp(stdin(), group);
        if let Ok(before) = before {
            // SAFETY: the disposition that was there before.
            _ = unsafe { signal(Signal::SIGTTOU, before) };
        }
    }

    /// Takes the terminal back, if one of `groups` has it.
    pub(crate) fn take_back(group: Pid) -> bool {
        let theirs = unistd::tcgetpgrp(stdin()) == Ok(group);
        if theirs {
            give_to(unistd::getpgrp());
        }
        theirs
    }
}
