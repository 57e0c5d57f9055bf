//! The accept loop: takes connections, gives each a task, and ends when it is told to or has done what it was started for.
//!
//! No client can hurt it: an error of one connection is no error of the listener, and when descriptors run out it pauses for
//! longer and longer instead of spinning.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::config::Limits;
use crate::connection::{self, Handling};
use crate::crowd::{Bounds, Crowd, Visit};
use crate::future::or_never;
use crate::listener::{Listener, Peer, Socket};
use crate::metrics;
use crate::phase::Phase;
use crate::sys;
use crate::workers::{Job, Load, Workers};

/// How long sessions may take to say goodbye when the server is stopped.
const STOP_LIMIT: Duration = Duration::from_millis(2000);
/// How many connections are accepted before those that are there have their turn.
const ACCEPTS_IN_A_ROW: usize = 32;
/// The first pause when accepting fails, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long no client has to wait before the log tells of one again.
const QUIET: Duration = Duration::from_secs(60);

/// Serves until the phase of `handling` or the limits end it, so many at once as the bounds say. When it returns, every session has
/// ended or had its time to.
///
/// # Errors
/// The listener broke.
pub(crate) async fn serve(
    mut listener: Listener,
    mut handling: Handling,
    limits: Limits,
    bounds: Bounds,
) -> Result<()> {
    // What the sessions know: the phase that is asked for, or that the limits have led to.
    let (told, known) = watch::channel(Phase::Serving);
    let mut phase = std::mem::replace(&mut handling.phase, known);
    let handling = Arc::new(handling);
    let crowd = Arc::new(Crowd::new(bounds));
    let mut workers = Workers::new();
    let result = tokio::select! {
        biased;
        _ = phase.wait_for(|&phase| phase > Phase::Serving) => Ok(()),
        () = crowd.once_taken() => Ok(()),
        () = expire(limits, &crowd) => Ok(()),
        ended = accept_all(&mut listener, &handling, &crowd, &mut workers) => ended,
    };
    metrics::note_closed();
    drop(listener);
    // The receivers are the connections'.
    told.send_replace(Phase::Finishing);
    let open = crowd.open();
    if result.is_ok() && open > 0 && *phase.borrow() == Phase::Finishing {
        tracing::info!("{open} connections are waited for");
    }
    if result.is_ok() {
        tokio::select! {
            biased;
            _ = phase.wait_for(|&phase| phase == Phase::Stopping) => {}
            () = crowd.all_ended() => return Ok(()),
        }
    }
    told.send_replace(Phase::Stopping);
    if timeout(STOP_LIMIT, crowd.all_ended()).await.is_err() {
        tracing::info!("{} connections are cut off", crowd.open());
    }
    result
}

/// Accepts until the listener breaks, or until the one client has gone that there is.
async fn accept_all(
    listener: &mut Listener,
    handling: &Arc<Handling>,
    crowd: &Arc<Crowd>,
    workers: &mut Workers<Accepted>,
) -> Result<()> {
    let mut pause = PAUSES.0;
    let mut in_a_row = 0;
    let mut waits = Waits::default();
    loop {
        if crowd.is_full() {
            tokio::select! {
                biased;
                () = crowd.room() => {}
                () = listener.has_visitor() => {
                    waits.note(crowd);
                    crowd.room().await;
                }
            }
        }
        match listener.accept().await {
            Ok((socket, address)) => {
                pause = PAUSES.0;
                let (number, visit) = crowd.begin();
                workers.assign(Accepted {
                    socket,
                    peer: Peer { number, address },
                    handling: Arc::clone(handling),
                    visit,
                });
                if listener.is_guest() {
                    crowd.all_ended().await;
                    return Ok(());
                }
                in_a_row += 1;
                if in_a_row == ACCEPTS_IN_A_ROW {
                    in_a_row = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => match triage(&error) {
                Triage::Ignore => tracing::debug!(
                    "a client left before it was accepted: {}",
                    sys::describe(&error)
                ),
                Triage::Pause => {
                    if pause == PAUSES.0 {
                        tracing::warn!(
                            "cannot accept connections for now: {}",
                            sys::describe(&error)
                        );
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Triage::GiveUp => {
                    return Err(error).context("cannot accept connections any more");
                }
            },
        }
    }
}

/// What the log knows of clients that had to wait for others to leave.
#[derive(Debug, Default)]
struct Waits {
    last: Option<Instant>,
}

impl Waits {
    /// A client has to wait; it is told of the first only, until none has had to for a while.
    fn note(&mut self, crowd: &Crowd) {
        let now = Instant::now();
        let last = self.last.replace(now);
        if last.is_none_or(|last| now - last > QUIET) {
            tracing::warn!(
                "{} connections are open, as many as there may be (--max-connections): new clients wait until others leave",
                crowd.open()
            );
        }
    }
}

/// A connection for a worker.
struct Accepted {
    socket: Socket,
    peer: Peer,
    handling: Arc<Handling>,
    visit: Visit,
}

impl Job for Accepted {
    fn start(self, load: Load) {
        let Self {
            socket,
            peer,
            handling,
            visit,
        } = self;
        let stream = match socket.attach() {
            Ok(stream) => stream,
            Err(error) => {
                return tracing::warn!(%peer, "cannot watch a connection: {}", sys::describe(&error));
            }
        };
        tokio::spawn(async move {
            let _load = load;
            let _counted = metrics::connection();
            let client = connection::handle(stream, peer, &handling, &visit).await;
            if let Some(client) = client.filter(|_| visit.is_the_only_one()) {
                tracing::info!("{client}: exiting due to --run-once");
            }
        });
    }
}

/// What an error of `accept` means.
#[derive(Debug, PartialEq, Eq)]
enum Triage {
    /// It concerns one client only.
    Ignore,
    /// The system lacks something just now.
    Pause,
    /// The listener is broken.
    GiveUp,
}

fn triage(error: &io::Error) -> Triage {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Triage::Pause,
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => {
            Triage::GiveUp
        }
        // Aborted connections, and the network's errors that Linux passes on from them (accept(2)).
        _ => Triage::Ignore,
    }
}

/// Waits until the server has been up, or idle, for as long as it may.
async fn expire(limits: Limits, crowd: &Crowd) {
    let timeout = limits.timeout.map(sleep);
    let idle = limits.idle_timeout.map(|limit| crowd.idle_for(limit));
    let (option, limit) = tokio::select! {
        // Of two that are over at the same time it is the first.
        biased;
        () = or_never(timeout) => ("--timeout", limits.timeout),
        () = or_never(idle) => ("--idle-timeout", limits.idle_timeout),
    };
    let limit = limit.unwrap_or_default();
    tracing::info!("listener exit due to {option} {}", limit.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_broken_listener_ends_the_server() {
        let triage = |number| triage(&io::Error::from_raw_os_error(number));
        for number in [
            libc::ECONNABORTED,
            libc::EPROTO,
            libc::EHOSTUNREACH,
            libc::ENETDOWN,
            libc::EPERM,
        ] {
            assert_eq!(triage(number), Triage::Ignore);
        }
        for number in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS] {
            assert_eq!(triage(number), Triage::Pause);
        }
        for number in [libc::EBADF, libc::EINVAL] {
            assert_eq!(triage(number), Triage::GiveUp);
        }
    }
}
