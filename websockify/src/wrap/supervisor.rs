//! Keeps the wrapped program in view: starts it, sees when it listens and when it is gone, and ends it.
//!
//! Everything happens in one loop that wakes for an order, for a change of a child's state, for a client that was refused, or
//! when it is time to look again; then it looks at what is, and acts on that.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::child::{self, Change, Exit, Spawner, terminal};
use super::proc::{self, Listener};
use super::{Order, State, Wrapped, inspect};
use crate::cli::WrapMode;
use crate::future::or_never;
use crate::sys;

/// How often a program that does not listen yet is looked at: at first, and when it takes its time.
const LOOK_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(100));
/// How long the first interval is kept.
const LOOK_CLOSELY: Duration = Duration::from_secs(2);
/// How often a program is looked at that has left its first process behind.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// How long such a program may be without a listening socket, as while it replaces it.
const GAP_LIMIT: Duration = Duration::from_secs(1);
/// How long a program has to listen to count as stable.
const STABLE: Duration = Duration::from_secs(10);
/// The pauses before a program that is not stable is started again: they double from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long processes may take to end after a signal, before they get the next one.
const END_STEP: Duration = Duration::from_millis(750);

/// Keeps the program in view.
pub(super) struct Supervisor {
    wrapped: Wrapped,
    spawner: Spawner,
    changes: tokio::signal::unix::Signal,
    stage: Stage,
    /// How long to pause before the next start.
    pause: Duration,
    /// Told when the program has ended for good; used up then.
    gone: Option<oneshot::Sender<u8>>,
}

/// How far the program is.
enum Stage {
    /// It runs, or what it left behind does.
    Running(Run),
    /// It is started again then.
    Pausing(Instant),
    /// It has ended and is not started again.
    Over,
}

/// One start of the program, and what has become of it.
struct Run {
    /// Its first process, which leads its process group.
    leader: Pid,
    /// How and when that ended.
    exit: Option<(Exit, Instant)>,
    started: Instant,
    /// When it was first seen to listen.
    ready: Option<Instant>,
    /// When it was last seen to listen.
    seen: Option<Instant>,
    /// The sockets on which it was last seen to listen.
    listeners: Vec<Listener>,
    /// The processes that have those.
    holders: Vec<Pid>,
    /// How a process ended that had.
    holder_exit: Option<Exit>,
    /// Whether anything of it is left.
    any_left: bool,
    /// Whether it was said that it does not listen.
    complained: bool,
    /// Whether it was given the terminal.
    had_terminal: bool,
}

impl Supervisor {
    pub(super) fn new(wrapped: Wrapped, gone: oneshot::Sender<u8>) -> Result<Self> {
        Ok(Self {
            wrapped,
            spawner: Spawner::new().context("cannot start a thread")?,
            changes: signal(SignalKind::child()).context("cannot watch processes")?,
            stage: Stage::Over,
            pause: Duration::ZERO,
            gone: Some(gone),
        })
    }

    /// Starts the program and looks after it until it is ordered to end.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Result<()> {
        self.start().await?;
        loop {
            let next_look = self.next_look();
            tokio::select! {
                biased;
                order = orders.recv() => match order.unwrap_or(Order::End(Signal::SIGTERM)) {
                    Order::Forward(signal) => self.forward(signal),
                    Order::Suspend => self.suspend(),
                    Order::End(signal) => {
                        self.end(signal).await;
                        return Ok(());
                    }
                },
                _ = self.changes.recv() => self.note_changes(),
                () = self.wrapped.status.0.doubt.notified() => {}
                () = or_never(next_look.map(sleep_until)) => {}
            }
            self.look().await;
        }
    }

    /// Starts the program.
    async fn start(&mut self) -> Result<()> {
        let status = &self.wrapped.status;
        tracing::info!("Starting '{}'", status.0.command);
        status
            .0
            .served
            .store(false, std::sync::atomic::Ordering::Relaxed);
        let command = &self.wrapped.config.command;
        let leader = self
            .spawner
            .spawn(command, &self.wrapped.environment)
            .await
            .map_err(|error| {
                let text = format!(
                    "cannot execute '{}': {}",
                    command[0].display(),
                    sys::describe(&error)
                );
                inspect::unstartable(&error, text)
            })?;
        self.stage = Stage::Running(Run::new(leader));
        Ok(())
    }

    /// When to look again without anything having happened.
    fn next_look(&self) -> Option<Instant> {
        let now = Instant::now();
        match &self.stage {
            Stage::Over => None,
            Stage::Pausing(until) => Some(*until),
            Stage::Running(run) => {
                let awaited = run.ready.is_none() || self.wrapped.status.is_awaited();
                let closely = run.started.elapsed() < LOOK_CLOSELY || run.ready.is_some();
                let starting = self.wrapped.status.get() == State::Starting && awaited;
                let look = starting.then_some(if closely {
                    LOOK_INTERVALS.0
                } else {
                    LOOK_INTERVALS.1
                });
                let watch = run.exit.is_some().then_some(WATCH_INTERVAL);
                look.into_iter()
                    .chain(watch)
                    .min()
                    .map(|interval| now + interval)
            }
        }
    }

    /// Takes note of the processes that have ended or stopped.
    fn note_changes(&mut self) {
        let (changes, any_left) = child::reap();
        let Stage::Running(run) = &mut self.stage else {
            return;
        };
        run.any_left = any_left;
        for change in changes {
            match change {
                Change::Ended(pid, exit) if pid == run.leader => {
                    run.exit = Some((exit, Instant::now()));
                }
                Change::Ended(pid, exit) if run.holders.contains(&pid) => {
                    run.holder_exit = Some(exit);
                }
                Change::Ended(..) => {}
                Change::Stopped(pid, signal) => run.answer_stop(pid, signal),
            }
        }
    }

    /// Looks at the program, and acts on what is seen.
    async fn look(&mut self) {
        match &mut self.stage {
            Stage::Over => {}
            Stage::Pausing(until) if Instant::now() < *until => {}
            Stage::Pausing(_) => {
                if let Err(error) = self.start().await {
                    tracing::error!("{error:#}");
                    self.start_later();
                }
            }
            Stage::Running(run) => {
                run.look_for_listeners(&self.wrapped);
                if let Some(exit) = run.gone(self.wrapped.config.timeout) {
                    self.act_on_end(exit).await;
                }
            }
        }
    }

    /// Does what the mode says, now that the program is gone.
    async fn act_on_end(&mut self, exit: Exit) {
        let Stage::Running(run) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return;
        };
        terminal::take_back(run.leader);
        let status = &self.wrapped.status;
        tracing::info!("'{}' {exit}", status.0.command);
        let interrupted = run.had_terminal && exit == Exit::Signal(Signal::SIGINT);
        match self.wrapped.config.mode {
            WrapMode::Respawn if !interrupted => {
                status.set(State::Starting);
                let served = status.0.served.load(std::sync::atomic::Ordering::Relaxed);
                if served || run.ready.is_some_and(|ready| ready.elapsed() >= STABLE) {
                    self.pause = Duration::ZERO;
                }
                self.end_processes(Signal::SIGTERM, || run.current_holders())
                    .await;
                self.start_later();
            }
            WrapMode::Ignore if !interrupted => {
                status.set(State::Gone);
                tracing::warn!(
                    "the wrapped program is gone; clients are refused from now on (--wrap-mode=ignore)"
                );
            }
            _ => {
                status.set(State::Gone);
                // Nobody listens only when we are about to end anyway.
                self.gone.take().map(|gone| gone.send(exit.status()));
            }
        }
    }

    /// Starts the program after the pause that is due, and doubles it.
    fn start_later(&mut self) {
        if !self.pause.is_zero() {
            tracing::info!("starting it again in {} s", self.pause.as_secs());
        }
        self.stage = Stage::Pausing(Instant::now() + self.pause);
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
    }

    fn forward(&self, signal: Signal) {
        if let Stage::Running(run) = &self.stage {
            child::signal_group(run.leader, signal);
        }
    }

    /// Stops the program and this process, and goes on when somebody continues it.
    fn suspend(&mut self) {
        self.forward(Signal::SIGTSTP);
        stop_self();
        self.forward(Signal::SIGCONT);
    }

    /// Ends everything that was started.
    async fn end(&mut self, signal: Signal) {
        if let Stage::Running(run) = &self.stage {
            terminal::take_back(run.leader);
        }
        self.end_processes(signal, proc::descendants).await;
    }

    /// Ends the processes that `which` names, time and again: with `signal`, then SIGTERM, then SIGKILL.
    async fn end_processes(&mut self, signal: Signal, which: impl Fn() -> Vec<Pid>) {
        let mut signals = vec![signal, Signal::SIGTERM, Signal::SIGKILL];
        signals.dedup();
        for signal in signals {
            let deadline = Instant::now() + END_STEP;
            let mut told = Vec::new();
            loop {
                child::reap();
                let left = which();
                if left.is_empty() {
                    return;
                }
                if Instant::now() >= deadline {
                    break;
                }
                // What they start meanwhile is told as well.
                let news: Vec<Pid> = left.into_iter().filter(|pid| !told.contains(pid)).collect();
                child::signal_all(&news, signal);
                child::signal_all(&news, Signal::SIGCONT);
                told.extend(news);
                _ = timeout(LOOK_INTERVALS.0, self.changes.recv()).await;
            }
        }
        let left = which();
        if !left.is_empty() {
            tracing::warn!("processes {left:?} of the wrapped program cannot be ended");
        }
    }
}

impl Run {
    fn new(leader: Pid) -> Self {
        Self {
            leader,
            exit: None,
            started: Instant::now(),
            ready: None,
            seen: None,
            listeners: Vec::new(),
            holders: Vec::new(),
            holder_exit: None,
            any_left: true,
            complained: false,
            had_terminal: false,
        }
    }

    /// Brings what is known of the listening sockets up to date, if that is of interest now.
    fn look_for_listeners(&mut self, wrapped: &Wrapped) {
        let status = &wrapped.status;
        if status.get() == State::Listening && self.exit.is_none() {
            return;
        }
        let listeners = status.listeners();
        if listeners != self.listeners {
            self.holders = holders(&listeners);
            self.listeners = listeners;
        }
        if self.holders.is_empty() {
            if status.get() == State::Listening {
                status.set(State::Starting);
            }
            self.complain(wrapped);
            return;
        }
        self.seen = Some(Instant::now());
        if self.ready.is_none() {
            self.ready = self.seen;
            let pid = if self.exit.is_none() {
                self.leader
            } else {
                self.holders[0]
            };
            if let Err(error) = wrapped.write_ready_file(&self.listeners[0].address, pid) {
                tracing::error!("{error:#}");
            }
        }
        status.set(State::Listening);
    }

    /// Says once, when its time is over, that the program does not listen where it should.
    fn complain(&mut self, wrapped: &Wrapped) {
        if self.ready.is_some()
            || self.complained
            || self.started.elapsed() < wrapped.config.timeout
        {
            return;
        }
        self.complained = true;
        let (status, old_port) = (&wrapped.status, wrapped.old_port);
        let seen = if holders(&proc::port_listeners(old_port)).is_empty() {
            format!("does it listen on port {old_port} at all?")
        } else {
            format!("it listens on port {old_port} by itself, so its port was not moved")
        };
        tracing::warn!(
            "{status} does not listen after {} s; {seen}",
            wrapped.config.timeout.as_secs_f64()
        );
    }

    /// How the program ended, if it is gone.
    ///
    /// Its first process decides, unless that ended well and left others behind, as a daemon does: then the program lives as
    /// long as one of them listens, and as long as one may still begin to.
    fn gone(&self, start_limit: Duration) -> Option<Exit> {
        let (exit, ended) = self.exit?;
        if exit != Exit::Status(0) {
            return Some(exit);
        }
        let (last_seen, limit) = match self.seen {
            Some(seen) => (seen.max(ended), GAP_LIMIT),
            None => (ended, start_limit),
        };
        let may_live = self.any_left && (!self.holders.is_empty() || last_seen.elapsed() < limit);
        (!may_live).then_some(self.holder_exit.unwrap_or(exit))
    }

    /// The processes that listen at this moment.
    fn current_holders(&self) -> Vec<Pid> {
        holders(&self.listeners)
    }

    /// A process of the program was stopped. If it wants to read from the terminal, it gets it, when that is ours to give; if
    /// somebody pressed Ctrl-Z while it had it, we stop as well.
    fn answer_stop(&mut self, pid: Pid, signal: Signal) {
        match signal {
            Signal::SIGTTIN | Signal::SIGTTOU if terminal::is_ours() => {
                terminal::give_to(self.leader);
                self.had_terminal = true;
                child::signal_group(self.leader, Signal::SIGCONT);
            }
            Signal::SIGTSTP if pid == self.leader && terminal::take_back(self.leader) => {
                stop_self();
                if terminal::is_ours() {
                    terminal::give_to(self.leader);
                }
                child::signal_group(self.leader, Signal::SIGCONT);
            }
            _ => {}
        }
    }
}

/// The processes of the program that have one of these sockets.
fn holders(listeners: &[Listener]) -> Vec<Pid> {
    if listeners.is_empty() {
        return Vec::new();
    }
    proc::descendants()
        .into_iter()
        .filter(|&pid| proc::may_hold(pid, listeners))
        .collect()
}

/// Stops this process until somebody continues it.
fn stop_self() {
    // A process can always stop itself.
    _ = kill(Pid::this(), Signal::SIGSTOP);
}
