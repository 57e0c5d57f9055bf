//! Keeps the wrapped program in view: starts it, sees when it listens and when it is gone, and ends it.
//!
//! Everything happens in one loop that wakes for an order, for a change of a child's state, for a client that was refused, or
//! when it is time to look again; then it looks at what is, and acts on that.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::Flock;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getpgrp};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::child::{self, Change, Ending, Exit, Step};
use super::guard::{Handle, Unattached};
use super::run::{Run, holders, stop_self};
use super::{Order, Program, State, inspect, preload};
use crate::cli::WrapMode;
use crate::future::or_never;
use crate::terminal;

/// How often a program that does not listen is looked at: the more often, the shorter it has been so.
const LOOK_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(500));
/// How many times it is looked at in the time that has passed already.
const LOOKS: u32 = 20;
/// How often a program is looked at that has left its first process behind.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How long a program has to listen to count as stable.
const STABLE: Duration = Duration::from_secs(10);
/// The pauses before a program that is not stable is started again: they double from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long after the end of a program a client may tell that it was served.
const SECOND_THOUGHT: Duration = Duration::from_millis(100);
/// How often processes that are being ended are looked at.
const END_INTERVAL: Duration = Duration::from_millis(10);

/// The exit status of a program that was ended by SIGINT, or says so.
const INTERRUPTED: u8 = 130;

/// Keeps the program in view.
pub(super) struct Supervisor {
    program: Program,
    guard: Handle,
    /// Children of our own have ended: the guard, or what we adopted as the first process of a container.
    ended: tokio::signal::unix::Signal,
    stage: Stage,
    /// Keeps the shim from cleaners of old files.
    shim_lock: Option<Flock<File>>,
    /// How long to pause before the next start, if the program is not stable.
    pause: Duration,
    /// Whether it was said why a program may end that was not seen to listen.
    hinted: bool,
    /// Whether it was started at all.
    began: bool,
    /// Whether everything is about to end.
    stopping: bool,
    /// Told when the program has ended for good; used up then.
    gone: Option<oneshot::Sender<u8>>,
}

/// How far the program is.
enum Stage {
    /// The guard was told to start it.
    Starting,
    /// It runs, or what it left behind does.
    Running(Run),
    /// It is started again at the second of these times; the first is when that is said, unless a client was served after all.
    Pausing(Option<Instant>, Instant),
    /// It has ended and is not started again.
    Over,
}

impl Supervisor {
    pub(super) fn new(
        program: Program,
        guard: Unattached,
        gone: oneshot::Sender<u8>,
    ) -> Result<Self> {
        Ok(Self {
            program,
            guard: guard.attach().context("cannot reach the guard")?,
            ended: signal(SignalKind::child()).context("cannot watch processes")?,
            stage: Stage::Over,
            shim_lock: None,
            pause: PAUSES.0,
            hinted: false,
            began: false,
            stopping: false,
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
                    Order::Stopping => self.stopping = true,
                    Order::End(signal) => {
                        self.end(signal).await;
                        return Ok(());
                    }
                },
                change = self.guard.change() => match change {
                    Ok(change) => self.note(change)?,
                    Err(_) => return self.abandon().await,
                },
                _ = self.ended.recv() => drop(child::reap(|_, _| ())),
                () = self.program.status.0.doubt.notified() => {}
                () = or_never(next_look.map(sleep_until)) => {}
            }
            self.look().await;
        }
    }

    /// Has the program started.
    async fn start(&mut self) -> Result<()> {
        tracing::info!("Starting '{}'", self.program.status.0.command);
        let shim = self.program.method.shim()?;
        self.shim_lock = preload::lock(&shim);
        self.stage = Stage::Starting;
        // That it is gone shows when it is listened to.
        _ = self.guard.start(&shim).await;
        Ok(())
    }

    /// When to look again without anything having happened.
    fn next_look(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Over | Stage::Starting => None,
            Stage::Pausing(told, until) => (!self.stopping).then_some(told.unwrap_or(*until)),
            Stage::Running(run) => {
                let status = &self.program.status;
                let wanted = run.ready.is_none() || status.is_awaited();
                let look = (status.get() == State::Starting && wanted).then(|| {
                    let passed = run.seen.unwrap_or(run.started).elapsed();
                    (passed / LOOKS).clamp(LOOK_INTERVALS.0, LOOK_INTERVALS.1)
                });
                let watch = (run.exit.is_some() || run.wants_terminal).then_some(WATCH_INTERVAL);
                look.into_iter()
                    .chain(watch)
                    .min()
                    .map(|interval| Instant::now() + interval)
            }
        }
    }

    /// Takes note of what has become of the program's processes.
    ///
    /// # Errors
    /// It could not be started in the first place.
    fn note(&mut self, change: Change) -> Result<()> {
        match (change, &mut self.stage) {
            (Change::Started(leader), _) => {
                self.began = true;
                self.program.status.note_begin();
                self.stage = Stage::Running(Run::new(leader));
                if let Err(error) = self.guard.supervise() {
                    tracing::error!("cannot answer the program's filter: {error}");
                    self.guard.signal_group(leader, Signal::SIGKILL);
                }
            }
            (Change::Failed(error), _) => {
                // A filter without a program wants to be closed.
                _ = self.guard.supervise();
                let command = &self.program.config.command;
                let error = inspect::unstartable(&error.into(), &command[0]);
                if !self.began {
                    return Err(error.into());
                }
                tracing::error!("{error}");
                self.start_later(false);
            }
            (Change::Ended(pid, exit), Stage::Running(run)) => run.note_end(pid, exit),
            (Change::Stopped(pid, signal), Stage::Running(run)) => {
                run.note_stop(pid, signal, &self.guard);
            }
            (Change::AllEnded, Stage::Running(run)) => run.any_left = false,
            // Of an earlier start.
            (Change::Ended(..) | Change::Stopped(..) | Change::AllEnded, _) => {}
        }
        Ok(())
    }

    /// Ends what the guard has left behind, which somebody has killed.
    async fn abandon(&mut self) -> Result<()> {
        self.end_processes(Signal::SIGTERM, Handle::processes).await;
        bail!(
            "the process that guards the wrapped program was killed, and so the program was ended"
        )
    }

    /// Looks at the program, and acts on what is seen.
    async fn look(&mut self) {
        let status = &self.program.status;
        match &mut self.stage {
            Stage::Over | Stage::Starting => {}
            Stage::Pausing(..) if self.stopping => {}
            Stage::Pausing(told, until) => {
                let now = Instant::now();
                // A client that it served may tell so only after its end.
                if status.has_served() {
                    self.pause = PAUSES.0;
                } else if now < *until {
                    if told.take_if(|told| *told <= now).is_some() {
                        let pause = (*until - now).as_secs_f64().ceil();
                        tracing::info!("starting it again in {pause} s");
                    }
                    return;
                }
                if let Err(error) = self.start().await {
                    tracing::error!("{error:#}");
                    self.start_later(false);
                }
            }
            Stage::Running(run) => {
                run.answer_wish_for_terminal(&self.guard);
                run.look_for_listeners(&mut self.program, &self.guard);
                if let Some(exit) = run.gone(&self.program.config) {
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
        if let Some(file) = &mut self.program.ready_file {
            file.remove();
        }
        let status = &self.program.status;
        tracing::info!("'{}' {exit}", status.0.command);
        if self.stopping {
            return status.set(State::Gone);
        }
        let failed = run.ready.is_none() && exit != Exit::Status(0);
        if failed && !std::mem::replace(&mut self.hinted, true) {
            tracing::info!(
                "it was not seen to listen; port {} is moved {}: if it could not bind that, {}",
                self.program.old_port,
                self.program.method,
                self.program.method.unreached()
            );
        }
        // Somebody pressed Ctrl-C, which only the program that had the terminal was told.
        let interrupted = run.had_terminal && exit.status() == INTERRUPTED;
        match self.program.config.mode {
            WrapMode::Respawn if !interrupted => {
                status.set(State::Starting);
                let stable =
                    status.has_served() || run.ready.is_some_and(|ready| ready.elapsed() >= STABLE);
                self.end_processes(Signal::SIGTERM, |guard| holders(&run.listeners, guard))
                    .await;
                self.start_later(stable);
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

    /// Starts the program again: at once after a stable run, else after a pause, which doubles.
    fn start_later(&mut self, stable: bool) {
        if stable {
            self.pause = PAUSES.0;
            self.stage = Stage::Pausing(None, Instant::now());
            return;
        }
        let now = Instant::now();
        self.stage = Stage::Pausing(Some(now + SECOND_THOUGHT), now + self.pause);
        self.pause = (self.pause * 2).min(PAUSES.1);
    }

    /// Passes a signal on: to the program's process group, or to those of the processes that it has left behind.
    fn forward(&self, signal: Signal) {
        let Stage::Running(run) = &self.stage else {
            return;
        };
        if run.exit.is_none() {
            return self.guard.signal_group(run.leader, signal);
        }
        let mut groups: Vec<Pid> = run
            .holders
            .iter()
            .filter_map(|&pid| getpgid(Some(pid)).ok())
            .collect();
        groups.sort_unstable();
        groups.dedup();
        // A process that has not left our own group gets the signal alone.
        groups
            .into_iter()
            .filter(|&group| group != getpgrp())
            .for_each(|group| self.guard.signal_group(group, signal));
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
        self.end_processes(signal, Handle::processes).await;
    }

    /// Ends the processes that `which` names, time and again, beginning with this signal, until it names none or the last one of
    /// the program has ended.
    async fn end_processes(&mut self, signal: Signal, which: impl Fn(&Handle) -> Vec<Pid>) {
        let mut ending = Ending::new(signal);
        // Right after a look a process may have been there that was not seen; that none was seen twice says that none is left.
        let mut unseen = 0;
        loop {
            child::reap(|_, _| ());
            let left = which(&self.guard);
            unseen = if left.is_empty() { unseen + 1 } else { 0 };
            if unseen == 2 {
                return;
            }
            let send = |pid, signal| self.guard.signal(pid, signal);
            if ending.step(&left, send) == Step::GaveUp {
                let (some, all) = (&left[..left.len().min(10)], left.len());
                return tracing::warn!(
                    "{all} processes of the wrapped program cannot be ended, among them {some:?}"
                );
            }
            let until = Instant::now() + END_INTERVAL;
            loop {
                match timeout_at(until, self.guard.change()).await {
                    Ok(Ok(Change::AllEnded)) => return,
                    Ok(Ok(_)) => {}
                    // The guard is gone.
                    Ok(Err(_)) => break sleep_until(until).await,
                    Err(_) => break,
                }
            }
        }
    }
}
