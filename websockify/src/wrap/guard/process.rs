//! The guard itself: what runs in the process between the bridge and the program.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram as Channel, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, sendmsg};
use nix::unistd::{Pid, setpgid};

use super::super::child::{Ending, Step, reap};
use super::super::redirect::Rule;
use super::super::seccomp::Filter;
use super::super::{preload, proc};
use super::{Event, Order};
use crate::config::{OWN_VARIABLES, WrapConfig};
use crate::sys;
use crate::user::Identity;

/// The guard's name in `ps`, instead of ours.
const NAME: &str = "wrap-guard";
/// How often processes that are being ended are looked at, in milliseconds.
const LOOK_INTERVAL: u16 = 10;

/// The guard itself.
pub(super) struct Guard {
    channel: Channel,
    changes: SignalFd,
    command: Vec<OsString>,
    /// Whose rights it has, if not those that we were started with.
    user: Option<Identity>,
    /// The port that the shim moves.
    rule: Option<Rule>,
    /// The filter of the program, and where its listener is sent.
    filter: Option<(Filter, UnixStream)>,
}

impl Guard {
    pub(super) fn new(
        channel: OwnedFd,
        config: &WrapConfig,
        rule: Option<Rule>,
        filter: Option<(Filter, UnixStream)>,
    ) -> io::Result<Self> {
        // A group of its own: what is sent to ours, by a terminal or by `kill %1`, does not reach it.
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
        // Where it is ignored, the kernel reaps by itself and tells nobody.
        // SAFETY: the default disposition runs no handler.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        // SAFETY: this takes one number.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        rename();
        let kept: Vec<RawFd> = [0, 1, 2, channel.as_raw_fd()]
            .into_iter()
            .chain(filter.iter().map(|(_, channel)| channel.as_raw_fd()))
            .collect();
        // SAFETY: what owns the others in this copy of our memory is never used or dropped here.
        unsafe { sys::close_all_but(&kept) }?;
        if config.silent {
            sys::silence(sys::STANDARD)?;
        }
        let mut awaited = SigSet::empty();
        awaited.add(Signal::SIGCHLD);
        Ok(Self {
            channel: channel.into(),
            changes: SignalFd::with_flags(
                &awaited,
                SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
            )?,
            command: config.command.clone(),
            user: config.user.clone(),
            rule,
            filter,
        })
    }

    /// Starts and reports until the bridge is gone; then ends everything.
    pub(super) fn run(&self) -> io::Result<()> {
        let result = self.serve();
        self.end();
        result
    }

    fn serve(&self) -> io::Result<()> {
        let mut order = vec![0; Order::MAX_LENGTH];
        loop {
            let ready = self.wait(PollTimeout::NONE)?;
            if !self.report() {
                return Ok(());
            }
            if ready {
                match self.channel.recv(&mut order)? {
                    0 => return Ok(()),
                    length => match Order::decode(&order[..length]) {
                        Some(Order::Start(shim)) => self.start(shim),
                        // One that is gone is fine.
                        Some(Order::Signal(target, signal)) => _ = kill(target, signal),
                        None => return Err(io::ErrorKind::InvalidData.into()),
                    },
                }
            }
        }
    }

    /// Waits for an order (true) or a change of a process, at most so long.
    fn wait(&self, limit: PollTimeout) -> io::Result<bool> {
        let mut files = [
            PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.changes.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut files, limit)?;
        let ordered = files[0].any().unwrap_or(true);
        while self.changes.read_signal()?.is_some() {}
        Ok(ordered)
    }

    /// Tells of what became of processes. Returns whether somebody listens.
    fn report(&self) -> bool {
        let (mut any, mut heard) = (false, true);
        let left = reap(|pid, status| {
            any = true;
            heard &= self.tell(Event::Changed(pid, status));
        });
        if any && !left {
            heard &= self.tell(Event::AllEnded);
        }
        heard
    }

    fn tell(&self, event: Event) -> bool {
        let bytes = event.encode();
        // The bridge may be gone, which is no reason for a signal.
        let sent = sendmsg::<()>(
            self.channel.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[],
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        sent.is_ok()
    }

    /// Starts the program without a shell, in a process group of its own, with signals as a program expects them.
    fn start(&self, shim: &Path) {
        let event = match self.spawn(shim) {
            Ok(pid) => Event::Started(pid),
            Err(error) => Event::Failed(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
        };
        self.tell(event);
    }

    fn spawn(&self, shim: &Path) -> io::Result<Pid> {
        if let Some(user) = &self.user {
            // From the first start on we have them ourselves, and so need no others to start it again.
            user.assume()?;
        }
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or(io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut order = Command::new(program);
        order.args(arguments).process_group(0);
        for variable in OWN_VARIABLES {
            order.env_remove(variable);
        }
        if let Some(user) = &self.user {
            order.envs(user.variables());
        }
        if let Some(rule) = self.rule {
            order.envs(preload::variables(rule, shim));
        }
        let parent = Pid::this();
        // SAFETY: this makes system calls only, as is demanded between fork and exec.
        unsafe { order.pre_exec(move || sys::become_program_of(parent)) };
        if let Some((filter, channel)) = &self.filter {
            let (filter, channel) = (filter.clone(), channel.as_raw_fd());
            // SAFETY: so does this, and what it uses was made before.
            unsafe { order.pre_exec(move || filter.apply(channel)) };
        }
        Ok(Pid::from_raw(order.spawn()?.id().cast_signed()))
    }

    /// Ends all processes below this one.
    fn end(&self) {
        let mut ending = Ending::new(Signal::SIGTERM);
        loop {
            // All that is left is below us, so without children nothing is.
            let left = reap(|_, _| ());
            // One that is gone is fine.
            let send = |pid, signal| _ = kill(pid, signal);
            if !left || ending.step(&proc::descendants(Pid::this()), send) == Step::GaveUp {
                return;
            }
            _ = self.wait_for_change();
        }
    }

    fn wait_for_change(&self) -> io::Result<()> {
        let mut files = [PollFd::new(self.changes.as_fd(), PollFlags::POLLIN)];
        poll(&mut files, PollTimeout::from(LOOK_INTERVAL))?;
        while self.changes.read_signal()?.is_some() {}
        Ok(())
    }
}

/// Takes another name than the bridge, so that whoever looks for that, or kills it by name, finds one process: `ps` and
/// `pgrep` read it, and `pgrep -f` the command line, which is overwritten where the kernel keeps it.
fn rename() {
    let name = std::ffi::CString::new(NAME).unwrap_or_default();
    // SAFETY: the name ends in NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    let Some((start, end)) = proc::command_line_range() else {
        return;
    };
    let title = [NAME.as_bytes(), b"\0"].concat();
    for (offset, place) in (start..end).enumerate() {
        let byte = title.get(offset).copied().unwrap_or(0);
        // SAFETY: the kernel says that this process's arguments are there, on its stack; the copy here is used by nobody.
        unsafe { (place as *mut u8).write_volatile(byte) };
    }
}
