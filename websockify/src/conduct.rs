//! The program and the service side by side, from the start of both to the end of both, and what signals ask of them meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use crate::future::or_never;
use crate::log;
use crate::phase::Phase;
use crate::signals::{Request, Signals};
use crate::tls::Acceptor;
use crate::wrap::Order;

/// How long sessions may go on when the wrapped program has ended under `--wrap-mode=exit`.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// How long sessions have to tell their clients of a stop before the wrapped program is told as well.
const GOODBYE: Duration = Duration::from_millis(200);

/// What is conducted.
#[derive(Debug)]
pub(crate) struct Parts<P, B, S> {
    /// What is asked of us.
    pub(crate) signals: Signals,
    /// Tells the service how far it is to be.
    pub(crate) phase: watch::Sender<Phase>,
    /// What has certificates that may be read again.
    pub(crate) acceptor: Option<Arc<Acceptor>>,
    /// The wrapped program, if there is one.
    pub(crate) program: Option<Supervised<P>>,
    /// Ends when both have begun.
    pub(crate) begin: B,
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
pub(crate) async fn conduct<P, B, S>(parts: Parts<P, B, S>) -> Result<u8>
where
    P: Future<Output = Result<()>>,
    B: Future<Output = Result<()>>,
    S: Future<Output = Result<()>>,
{
    let Parts {
        mut signals,
        phase,
        acceptor,
        program,
        begin,
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
    let mut program = pin!(or_never(program));
    let mut gone = pin!(or_never(gone));
    let mut begin = pin!(begin);
    let mut service = pin!(service);
    let mut began = false;
    let mut status = None;
    let mut finish_by = None;
    // What ends the program, and when.
    let mut end = (Signal::SIGTERM, None);
    let served = loop {
        tokio::select! {
            biased;
            request = signals.next() => match (request, &orders) {
                (Request::Stop(signal), orders) => {
                    end = (signal, end.1.or(Some(Instant::now() + GOODBYE)));
                    phase.send_replace(Phase::Stopping);
                    if let Some(orders) = orders {
                        _ = orders.try_send(Order::Stopping);
                    }
                }
                (Request::Reload, orders) => {
                    log::reopen();
                    match &acceptor {
                        // Decrypting a key takes its time.
                        Some(acceptor) => {
                            let acceptor = Arc::clone(acceptor);
                            drop(spawn_blocking(move || acceptor.reload()));
                        }
                        None => tracing::info!("HUP: there is no certificate to read again"),
                    }
                    if let Some(orders) = orders {
                        _ = orders.try_send(Order::Forward(Signal::SIGHUP));
                    }
                }
                // With a full queue the supervisor is busy ending the program.
                (Request::Program(order), Some(orders)) => _ = orders.try_send(order),
                (Request::Program(_), None) => {}
            },
            // It returns before it is ordered to only when it could not be started.
            ended = &mut program => return ended.map(|()| 0),
            done = &mut begin, if !began => {
                done?;
                began = true;
            }
            Ok(exit_status) = &mut gone, if status.is_none() && end.1.is_none() => {
                status = Some(exit_status);
                phase.send_if_modified(|phase| std::mem::replace(phase, Phase::Finishing.max(*phase)) != *phase);
                finish_by = Some(Instant::now() + FINISH_LIMIT);
            }
            () = or_never(finish_by.map(sleep_until)) => {
                phase.send_replace(Phase::Stopping);
                finish_by = None;
            }
            () = or_never(end.1.map(sleep_until)), if orders.is_some() => break None,
            served = &mut service => break Some(served),
        }
    };
    // Nobody takes the order only when there is no program.
    let end_program = async {
        match orders {
            Some(orders) if orders.send(Order::End(end.0)).await.is_ok() => program.await,
            _ => Ok(()),
        }
    };
    let end_service = async {
        match served {
            Some(served) => served,
            None => service.await,
        }
    };
    let (ended, served) = tokio::join!(end_program, end_service);
    ended.and(served).map(|()| status.unwrap_or(0))
}
