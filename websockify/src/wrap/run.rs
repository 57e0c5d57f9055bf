//! One start of the wrapped program, and what has become of it: does it listen, is it gone, does it want the terminal?

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::child::Exit;
use super::guard::Handle;
use super::listening::{self, Listener};
use super::{Program, State, proc};
use crate::cli::WrapMode;
use crate::config::WrapConfig;
use crate::terminal;

/// How long such a program may be without a listening socket, as while it replaces it.
const GAP_LIMIT: Duration = Duration::from_secs(1);

/// One start of the program, and what has become of it.
pub(super) struct Run {
    /// Its first process, which leads its process group.
    pub(super) leader: Pid,
    /// How and when that ended.
    pub(super) exit: Option<(Exit, Instant)>,
    pub(super) started: Instant,
    /// When it was first seen to listen.
    pub(super) ready: Option<Instant>,
    /// When it was last seen to listen.
    pub(super) seen: Option<Instant>,
    /// The sockets on which it was last seen to listen.
    pub(super) listeners: Vec<Listener>,
    /// The processes that have those, or had when there were any last.
    pub(super) holders: Vec<Pid>,
    /// Whether any process has them now.
    holds: bool,
    /// Whether no process has ended since that was found out.
    holders_are_current: bool,
    /// The one of them that stands for the program when its first process has ended: the nearest to us in the family.
    daemon: Option<Pid>,
    /// How the last one of those ended.
    daemon_exit: Option<Exit>,
    /// How the first process ended of those that it had left behind, for a daemon that was never seen.
    other_exit: Option<Exit>,
    /// Whether anything of it is left.
    pub(super) any_left: bool,
    /// Whether it was said that it does not listen.
    complained: bool,
    /// Whether it waits for the terminal.
    pub(super) wants_terminal: bool,
    /// Whether it was given the terminal.
    pub(super) had_terminal: bool,
}

impl Run {
    /// A program that has just been started.
    pub(super) fn new(leader: Pid) -> Self {
        Self {
            leader,
            exit: None,
            started: Instant::now(),
            ready: None,
            seen: None,
            listeners: Vec::new(),
            holders: Vec::new(),
            holds: false,
            holders_are_current: true,
            daemon: None,
            daemon_exit: None,
            other_exit: None,
            any_left: true,
            complained: false,
            wants_terminal: false,
            had_terminal: false,
        }
    }

    /// Takes note of the end of a process.
    pub(super) fn note_end(&mut self, pid: Pid, exit: Exit) {
        // Whoever held the sockets may be another one now.
        self.holders_are_current = false;
        if pid == self.leader {
            self.exit = Some((exit, Instant::now()));
            terminal::take_back(pid);
        } else if self.daemon == Some(pid) {
            self.daemon_exit = Some(exit);
        } else {
            self.other_exit.get_or_insert(exit);
        }
    }

    /// Brings what is known of the listening sockets up to date, if that is of interest now.
    pub(super) fn look_for_listeners(&mut self, program: &mut Program, guard: &Handle) {
        let status = &program.status;
        if status.get() == State::Listening && self.exit.is_none() {
            return;
        }
        let listeners = status.listeners(|| guard.processes());
        if listeners != self.listeners || !self.holds || !self.holders_are_current {
            self.holders_are_current = true;
            let holders = holders(&listeners, guard);
            self.listeners = listeners;
            self.holds = !holders.is_empty();
            if self.exit.is_some() && !self.daemon.is_some_and(|daemon| holders.contains(&daemon)) {
                self.daemon = holders.first().copied().or(self.daemon);
            }
            if self.holds {
                self.holders = holders;
            }
        }
        if !self.holds {
            if status.get() == State::Listening {
                status.set(State::Starting);
            }
            self.complain(program, guard);
            return;
        }
        self.seen = Some(Instant::now());
        if self.ready.is_none() {
            self.ready = self.seen;
            let pid = self
                .holders
                .iter()
                .copied()
                .find(|&pid| pid == self.leader)
                .unwrap_or(self.holders[0]);
            if let Some(file) = &mut program.ready_file
                && let Err(error) = file.write(&self.listeners[0].address, pid)
            {
                tracing::error!("{error:#}");
            }
        }
        program.status.set(State::Listening);
    }

    /// Says once, when its time is over, that the program does not listen where it should.
    fn complain(&mut self, program: &Program, guard: &Handle) {
        if self.ready.is_some()
            || self.complained
            || self.started.elapsed() < program.config.timeout
        {
            return;
        }
        self.complained = true;
        let (status, method, old_port) = (&program.status, &program.method, program.old_port);
        let processes = guard.processes();
        let is_its_own = |listener: &Listener| {
            processes
                .iter()
                .any(|&pid| proc::may_hold(pid, std::slice::from_ref(listener)))
        };
        let addresses: Vec<String> = listening::everywhere()
            .into_iter()
            .filter(is_its_own)
            .map(|listener| listener.address)
            .collect();
        let seen = if addresses
            .iter()
            .any(|address| address.ends_with(&format!(":{old_port}")))
        {
            format!(
                "it listens on port {old_port} by itself, so its port was not moved: {}",
                method.unreached()
            )
        } else if addresses.is_empty() {
            "it listens on no TCP port; it may need a longer --wrap-timeout, or its own log may tell more".to_owned()
        } else {
            format!(
                "it listens on {}; --wrap-port tells which port it binds",
                addresses.join(" and ")
            )
        };
        tracing::warn!(
            "{status} does not listen there after {} s, where port {old_port} is moved {method}: {seen}",
            program.config.timeout.as_secs_f64()
        );
    }

    /// How the program ended, if it is gone.
    ///
    /// When its first process ended well and left others behind, as a daemon does, it lives as long as one of them listens, and
    /// as long as one may still begin to. When that process failed, what is left counts only as far as it listens; and a
    /// program that is started again does not wait for that.
    pub(super) fn gone(&self, config: &WrapConfig) -> Option<Exit> {
        let (exit, ended) = self.exit?;
        if exit != Exit::Status(0) {
            let lives_on = self.holds && config.mode != WrapMode::Respawn;
            return (!lives_on).then_some(exit);
        }
        let (last_seen, limit) = match self.seen {
            Some(seen) => (seen.max(ended), GAP_LIMIT),
            None => (ended, config.timeout),
        };
        let may_live = self.any_left && (self.holds || last_seen.elapsed() < limit);
        (!may_live).then_some(self.daemon_exit.or(self.other_exit).unwrap_or(exit))
    }

    /// Takes note that a process of the program was stopped: it wants to read from the terminal, or somebody pressed Ctrl-Z
    /// while it had it. Then we stop as well.
    pub(super) fn note_stop(&mut self, pid: Pid, signal: i32, guard: &Handle) {
        match signal {
            libc::SIGTTIN | libc::SIGTTOU => self.wants_terminal = true,
            libc::SIGTSTP if pid == self.leader && terminal::take_back(self.leader) => {
                stop_self();
                if terminal::is_ours() {
                    terminal::give_to(self.leader);
                }
                guard.signal_group(self.leader, Signal::SIGCONT);
            }
            _ => {}
        }
    }

    /// Gives the program the terminal that it wants, as soon as that is ours to give.
    pub(super) fn answer_wish_for_terminal(&mut self, guard: &Handle) {
        if self.wants_terminal && terminal::is_ours() {
            terminal::give_to(self.leader);
            guard.signal_group(self.leader, Signal::SIGCONT);
            self.wants_terminal = false;
            self.had_terminal = true;
        }
    }
}

/// The processes of the program that have one of these sockets.
pub(super) fn holders(listeners: &[Listener], guard: &Handle) -> Vec<Pid> {
    if listeners.is_empty() {
        return Vec::new();
    }
    guard
        .processes()
        .into_iter()
        .filter(|&pid| proc::may_hold(pid, listeners))
        .collect()
}

/// Stops this process until somebody continues it.
pub(super) fn stop_self() {
    // A process can always stop itself.
    _ = kill(Pid::this(), Signal::SIGSTOP);
}
