//! The program and the service side by side, from the start of both to the end of both, and what signals ask of them meanwhile.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::future::or_never;
use crate::phase::Phase;
use crate::reload::Readers;
use crate::signals::{Request, Signals};
use crate::systemd::Manager;
use crate::wrap::Order;

/// How long sessions may go on when the wrapped program has ended under `--wrap-mode=exit`.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// How long sessions have to tell their clients of a stop before the wrapped program is told as well.
const GOODBYE: Duration = Duration::from_millis(200);

/// How long a stop takes at most, and a little more.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What is conducted.
#[derive(Debug)]
pub(crate) struct Parts<'a, P, A, S> {
    /// What is asked of us.
    pub(crate) signals: Signals,
    /// Tells the service how far it is to be.
    pub(crate) phase: watch::Sender<Phase>,
    /// How long sessions may go on when a signal asks for the end.
    pub(crate) drain: Duration,
    /// What has read files.
    pub(crate) readers: Readers,
    /// Who wants to know how we are.
    pub(crate) manager: &'a Manager,
    /// The wrapped program, if there is one.
    pub(crate) program: Option<Supervised<P>>,
    /// Tells others when both have begun, and ends only if that fails.
    pub(crate) attendance: A,
    /// The service.
    pub(crate) service: S,
}

/// The wrapped program.
#[derive(Debug)]
pub(crate) struct Supervised<P> {
    /// Supervises it to its end.
    pub(crate) supervision: P,
    /// What the supervision is told.
    pub(crate) orders: mpsc::Sender<Order>,
    /// The exit status, when the program has ended for good.
    pub(crate) gone: oneshot::Receiver<u8>,
}

/// Runs program and service until both have ended, and passes on what signals ask for. Returns the exit status.
pub(crate) async fn conduct<P, A, S>(parts: Parts<'_, P, A, S>) -> Result<u8>
where
    P: Future<Output = Result<()>>,
    A: Future<Output = Result<Infallible>>,
    S: Future<Output = Result<()>>,
{
    let Parts {
        mut signals,
        phase,
        drain,
        readers,
        manager,
        program,
        attendance,
        service,
    } = parts;
    let (program, orders, gone) = match program {
        Some(program) => (
            Some(program.supervision),
            Some(program.orders),
            Some(program.gone),
        ),
        None => (None, None, None),
    };
    let (reload, requests) = mpsc::channel(1);
    let mut program = pin!(or_never(program));
    let mut gone = pin!(or_never(gone));
    let mut attendance = pin!(attendance);
    let mut alive = pin!(manager.tell_alive());
    let mut reloads = pin!(readers.serve(requests, manager));
    let mut service = pin!(service);
    let mut end = End::none_yet(phase, orders, manager, drain);
    let mut failure = Ok(());
    let served = loop {
        tokio::select! {
            biased;
            request = signals.next() => match request {
                Request::Stop(signal) => end.ask(signal),
                Request::Reload => {
                    // One that waits already will do for this as well.
                    _ = reload.try_send(());
                    end.order(Order::Forward(Signal::SIGHUP));
                }
                Request::Program(order) => end.order(order),
            },
            never = &mut alive => match never {},
            never = &mut reloads => match never {},
            failed = &mut attendance => {
                failure = failed.map(|never| match never {});
                end.stop();
                break None;
            }
            // It returns before it is ordered to when it could not be started, or when somebody has killed its guard.
            ended = &mut program => {
                failure = ended;
                end.orders = None;
                end.stop();
                break None;
            }
            Ok(status) = &mut gone, if end.awaits_status() => end.program_gone(status),
            () = or_never(end.finish_by.map(sleep_until)) => end.time_is_over(),
            () = or_never(end.program_by.map(sleep_until)), if end.orders.is_some() => break None,
            served = &mut service => break Some(served),
        }
    };
    end.tell(STOP_LIMIT);
    let end_program = async {
        match end.orders {
            // With a full queue there is no room for the order before the program takes another.
            Some(orders) => tokio::join!(program, orders.send(Order::End(end.signal))).0,
            None => Ok(()),
        }
    };
    let end_service = async {
        match served {
            Some(served) => served,
            None => service.await,
        }
    };
    let (ended, served) = tokio::select! {
        both = async { tokio::join!(end_program, end_service) } => both,
        never = alive => match never {},
    };
    failure.and(ended).and(served)?;
    Ok(end.status.unwrap_or(0))
}

/// How far the end has come.
struct End<'a> {
    phase: watch::Sender<Phase>,
    /// For the program, if there is one.
    orders: Option<mpsc::Sender<Order>>,
    manager: &'a Manager,
    /// How long sessions may go on when a signal asks for the end.
    drain: Duration,
    /// Whether one has, and they may.
    is_draining: bool,
    /// Until when they may.
    finish_by: Option<Instant>,
    /// When the program is told to end.
    program_by: Option<Instant>,
    /// What ends it.
    signal: Signal,
    /// The program's exit status, if it has ended by itself.
    status: Option<u8>,
    /// Whether the service manager was told.
    is_told: bool,
}

impl<'a> End<'a> {
    fn none_yet(
        phase: watch::Sender<Phase>,
        orders: Option<mpsc::Sender<Order>>,
        manager: &'a Manager,
        drain: Duration,
    ) -> Self {
        Self {
            phase,
            orders,
            manager,
            drain,
            is_draining: false,
            finish_by: None,
            program_by: None,
            signal: Signal::SIGTERM,
            status: None,
            is_told: false,
        }
    }

    /// A signal asks for the end: the first for that of the service, and another, or SIGQUIT, for that of the sessions as well.
    fn ask(&mut self, signal: Signal) {
        self.signal = signal;
        let again = self.is_draining || self.program_by.is_some();
        if again || self.drain.is_zero() || signal == Signal::SIGQUIT {
            return self.stop();
        }
        self.is_draining = true;
        let left = self.finish_within(self.drain);
        tracing::info!(
            "{signal}: no more clients are taken; sessions have up to {} s to finish, unless another signal comes",
            left.as_secs_f64()
        );
        self.tell(self.drain + STOP_LIMIT);
    }

    /// Takes no more clients, and lets sessions go on for a while. Returns how long, which may have been decided before.
    fn finish_within(&mut self, limit: Duration) -> Duration {
        let now = Instant::now();
        let by = self
            .finish_by
            .map_or(now + limit, |earlier| earlier.min(now + limit));
        self.finish_by = Some(by);
        self.phase.send_if_modified(|phase| {
            std::mem::replace(phase, Phase::Finishing.max(*phase)) != *phase
        });
        by - now
    }

    fn time_is_over(&mut self) {
        tracing::info!("the time for sessions to finish is over");
        self.stop();
    }

    /// Ends everything.
    fn stop(&mut self) {
        self.finish_by = None;
        self.program_by.get_or_insert(Instant::now() + GOODBYE);
        self.phase.send_replace(Phase::Stopping);
        self.order(Order::Stopping);
        self.tell(STOP_LIMIT);
    }

    /// Whether the end of the program still means something.
    fn awaits_status(&self) -> bool {
        self.status.is_none() && self.program_by.is_none()
    }

    /// The program has ended for good.
    fn program_gone(&mut self, status: u8) {
        self.status = Some(status);
        self.finish_within(FINISH_LIMIT);
    }

    /// Orders the program to do something, if there is one.
    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // With a full queue the supervisor is busy ending the program.
            _ = orders.try_send(order);
        }
    }

    /// Tells the service manager that the end takes this long at most.
    fn tell(&mut self, limit: Duration) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.manager.stopping(limit);
        }
    }
}
