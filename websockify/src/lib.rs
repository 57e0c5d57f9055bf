//! A WebSocket to TCP bridge that can wrap a program which only knows TCP.
//!
//! # The life of a connection
//!
//! [`listener`] accepts → [`sniff`] tells what the client speaks → [`http`] answers requests until one is an upgrade, which
//! [`websocket::handshake`] judges → [`target`] connects → [`relay`] carries bytes both ways, framed by [`websocket::frame`], and
//! ends both legs without losing any. [`connection`] tells this story from one end to the other: to find the way of a byte,
//! start there.
//!
//! # Around it
//!
//! [`cli`] mirrors the command line, [`config`] makes sense of it. [`server`] is the accept loop with its limits, which gives
//! connections to [`workers`]. [`wrap`] starts a
//! program whose port is moved out of the way, and looks after it. [`log`] writes what happens, [`record`] what passes. [`memory`] is where
//! buffers come from. [`run`] puts it all together.

#![deny(unsafe_code)]

mod addr;
mod auth;
pub mod cli;
pub mod config;
mod connection;
mod future;
mod gate;
mod helpers;
mod http;
mod input;
mod listener;
pub mod log;
pub mod memory;
pub mod origin;
mod outage;
mod phase;
mod plugin;
mod record;
mod relay;
mod secret;
mod server;
mod signals;
mod sniff;
mod stamp;
mod stream;
mod sys;
mod target;
mod terminal;
mod tls;
mod token;
mod websocket;
mod workers;
mod wrap;

use std::ffi::OsString;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use config::{Config, RouteConfig, TargetConfig};
use connection::Handling;
use future::or_never;
use gate::Gate;
use http::{Files, Site};
use listener::{Address, Bound};
use phase::Phase;
use record::Recorder;
use signals::{Request, Signals};
use tls::Acceptor;
use wrap::{Order, Wrapped};

/// How long sessions may go on when the wrapped program has ended under `--wrap-mode=exit`.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// How long sessions have to tell their clients of a stop before the wrapped program is told as well.
const GOODBYE: Duration = Duration::from_millis(200);

/// Does what a configuration asks for, to the end. Returns the exit status.
///
/// # Errors
/// What kept it from starting, or ended it; [`exit_status`] tells the status for that.
pub fn run(config: Config) -> Result<u8> {
    let Config {
        listen,
        route,
        wrap,
        limits,
        session,
        door,
        web,
        tls,
        target_tls,
        record,
        warnings,
        ..
    } = config;
    for warning in warnings {
        tracing::warn!("warning: {warning}");
    }
    // A mask that we were started with would keep us from hearing of signals; no other thread runs yet.
    SigSet::empty()
        .thread_set_mask()
        .context("cannot set the signal mask")?;
    // A log that may not grow any more (`ulimit -f`) is full, and no reason to be killed.
    sys::ignore(Signal::SIGXFSZ).context("cannot ignore a signal")?;
    let files = web
        .root
        .map(|root| Files::new(root, web.listings))
        .transpose()?;
    let site = Site {
        files,
        headers: web.headers,
    };
    let acceptor = tls
        .map(Acceptor::new)
        .transpose()
        .context("cannot set up TLS")?
        .map(Arc::new);
    let bound = Bound::new(&listen)?;
    let wrapped = wrap
        .map(|wrap| {
            let old_port = match (wrap.port, bound.address()) {
                (Some(port), _) => port,
                (None, Address::Tcp(address)) => address.port(),
                (None, Address::Unix(_)) => {
                    anyhow::bail!("a wrapped program needs --wrap-port here: we do not listen on a port that could be its own")
                }
            };
            Wrapped::new(wrap, old_port, bound.address().to_string())
        })
        .transpose()?;
    // Only now: what is wrapped may not expect so many.
    sys::raise_descriptor_limit();
    log::start().context("cannot start the threads that write the log")?;
    let recorder = record.as_deref().map(Recorder::start).transpose()?;
    let runtime = workers::runtime().context("cannot start the runtime")?;
    let destination = describe(&route, wrapped.as_ref());
    let patience = door.patience;
    let status = wrapped.as_ref().map(Wrapped::status);
    let gate = Arc::new(runtime.block_on(Gate::open(door, route, target_tls, status))?);
    let (phase, phases) = watch::channel(Phase::Serving);
    let result = runtime.block_on(async {
        let mut signals = Signals::new(wrapped.is_some()).context("cannot take signals")?;
        // From here on a signal ends us in order; whoever waits for these lines may send one.
        announce(
            &bound,
            &site,
            acceptor.as_deref(),
            recorder.as_ref(),
            &destination,
        );
        if session.traffic {
            tracing::info!(
                "Traffic: }} from the client, > to the target, {{ from the target, < to the client; a dot: in part"
            );
        }
        let (gone, program_gone) = oneshot::channel();
        let listener = bound
            .into_listener()
            .context("cannot watch the listening socket")?;
        let handling = Handling {
            gate: Arc::clone(&gate),
            session,
            patience,
            site,
            acceptor: acceptor.clone(),
            recorder: recorder.clone(),
            phase: phases,
        };
        let service = server::serve(listener, handling, limits);
        let supervise = |wrapped: Wrapped| {
            let (orders, received) = mpsc::channel(8);
            (orders, wrapped.supervise(received, gone))
        };
        let (orders, program) = wrapped.map(supervise).unzip();
        conduct(
            &mut signals,
            &phase,
            acceptor,
            orders,
            program,
            program_gone,
            service,
        )
        .await
    });
    runtime.block_on(gate.end());
    // What is left are sessions that had their time, and look-ups that cannot be interrupted.
    runtime.shutdown_background();
    if let Some(recorder) = recorder {
        recorder.finish(*phase.borrow() == Phase::Stopping);
    }
    tracing::info!("In exit");
    result
}

/// Runs the program, if there is one, and the service side by side until both have ended, and passes on what signals ask for.
/// Returns the exit status.
async fn conduct(
    signals: &mut Signals,
    phase: &watch::Sender<Phase>,
    acceptor: Option<Arc<Acceptor>>,
    orders: Option<mpsc::Sender<Order>>,
    program: Option<impl Future<Output = Result<()>>>,
    program_gone: oneshot::Receiver<u8>,
    service: impl Future<Output = Result<()>>,
) -> Result<u8> {
    let mut program = pin!(or_never(program));
    let (mut service, mut program_gone) = (pin!(service), pin!(program_gone));
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
            Ok(exit_status) = &mut program_gone, if orders.is_some() && status.is_none() && end.1.is_none() => {
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

/// Where clients go, as the settings tell.
fn describe(route: &RouteConfig, wrapped: Option<&Wrapped>) -> String {
    match (route, wrapped) {
        (RouteConfig::Tokens(tokens), _) => format!("targets generated by {}", tokens.name),
        (_, Some(wrapped)) => wrapped.status().to_string(),
        (RouteConfig::Fixed(TargetConfig::Tcp { address, .. }), None) => address.to_string(),
        (RouteConfig::Fixed(TargetConfig::Unix(path)), None) => path.display().to_string(),
        (RouteConfig::Fixed(TargetConfig::Wrapped), None) => String::new(),
    }
}

/// The settings, in the lines that scripts wait for.
fn announce(
    bound: &Bound,
    site: &Site,
    acceptor: Option<&Acceptor>,
    recorder: Option<&Recorder>,
    destination: &str,
) {
    tracing::info!("WebSocket server settings:");
    tracing::info!("  - {}", bound.describe());
    if let Some(files) = &site.files {
        tracing::info!("  - {}", files.describe());
    }
    match acceptor {
        Some(acceptor) => {
            tracing::info!("  - SSL/TLS support");
            if !acceptor.is_optional() {
                tracing::info!("  - Deny non-SSL/TLS connections");
            }
        }
        None => tracing::info!("  - No SSL/TLS support (no cert file)"),
    }
    if let Some(recorder) = recorder {
        tracing::info!("  - {}", recorder.describe());
    }
    tracing::info!("  - proxying from {} to {destination}", bound.name());
}

/// Replaces this process by a program whose `bind()` to `old_port` goes to `new_port` on loopback. Returns only when it cannot,
/// and then why; [`exit_status`] tells the status for that.
#[must_use]
pub fn execute_rebound(old_port: u16, new_port: u16, command: &[OsString]) -> anyhow::Error {
    wrap::execute(old_port, new_port, command)
}

/// The exit status for an error of [`run`] or [`execute_rebound`].
#[must_use]
pub fn exit_status(error: &anyhow::Error) -> u8 {
    error
        .downcast_ref::<wrap::Obstacle>()
        .map_or(1, wrap::Obstacle::exit_status)
}
