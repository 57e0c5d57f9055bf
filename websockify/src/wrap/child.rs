//! What becomes of processes, and how they are ended.

#![allow(unsafe_code, reason = "waitpid, of which nix loses real-time signals")]

use std::fmt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// How long processes have to end before SIGKILL.
const END_LIMIT: Duration = Duration::from_millis(2200);
/// How long they have after it.
const KILL_LIMIT: Duration = Duration::from_millis(500);

/// A change of a process's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The program was started.
    Started(Pid),
    /// It could not be.
    Failed(Errno),
    /// A process has ended.
    Ended(Pid, Exit),
    /// A process was stopped by the signal of this number.
    Stopped(Pid, i32),
    /// None is left.
    AllEnded,
}

impl Change {
    /// What a wait status says; `None` for one that says nothing of interest.
    pub(super) fn new(pid: Pid, status: i32) -> Option<Self> {
        if libc::WIFSTOPPED(status) {
            Some(Self::Stopped(pid, libc::WSTOPSIG(status)))
        } else if libc::WIFSIGNALED(status) {
            Some(Self::Ended(pid, Exit::Signal(libc::WTERMSIG(status))))
        } else if libc::WIFEXITED(status) {
            Some(Self::Ended(pid, Exit::Status(libc::WEXITSTATUS(status))))
        } else {
            None
        }
    }
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

/// Waits for all children whose state has changed, adopted ones included, so that none stays a zombie. `note` is told of each
/// and its wait status. Returns whether children are left.
pub(super) fn reap(mut note: impl FnMut(Pid, i32)) -> bool {
    loop {
        let mut status = 0;
        // nix's own waitpid takes a status with a real-time signal for an error, and loses it.
        // SAFETY: `status` is a valid place for one.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
        match pid {
            -1 if Errno::last() == Errno::EINTR => {}
            0 => return true,
            -1 => return false,
            _ => note(Pid::from_raw(pid), status),
        }
    }
}

/// Processes that are being ended: with a signal, then with SIGTERM if that is another, then with SIGKILL.
#[derive(Debug)]
pub(super) struct Ending {
    /// The signal that is being tried, and those to come, each with its time.
    signals: Vec<(Signal, Duration)>,
    deadline: Option<Instant>,
    /// The processes that have got the present one.
    told: Vec<Pid>,
}

/// What to do next about an [`Ending`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// To look again soon.
    Wait,
    /// Nothing: they do not end.
    GaveUp,
}

impl Ending {
    pub(super) fn new(signal: Signal) -> Self {
        let mut signals = match signal {
            Signal::SIGTERM => vec![(Signal::SIGTERM, END_LIMIT)],
            other => vec![(other, END_LIMIT / 2), (Signal::SIGTERM, END_LIMIT / 2)],
        };
        signals.push((Signal::SIGKILL, KILL_LIMIT));
        signals.reverse();
        Self {
            signals,
            deadline: None,
            told: Vec::new(),
        }
    }

    /// Tells the processes that are `left` to end by means of `send`, as far as they have not been told. What they start meanwhile is
    /// told as well.
    pub(super) fn step(&mut self, left: &[Pid], send: impl Fn(Pid, Signal)) -> Step {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.signals.pop();
            self.deadline = None;
            self.told.clear();
        }
        let Some(&(signal, limit)) = self.signals.last() else {
            return Step::GaveUp;
        };
        self.deadline.get_or_insert(now + limit);
        for &pid in left {
            if !self.told.contains(&pid) {
                send(pid, signal);
                // A stopped one has to go on to notice.
                send(pid, Signal::SIGCONT);
                self.told.push(pid);
            }
        }
        Step::Wait
    }
}
