//! The accept loop: takes connections, gives each a task, and ends when it is told to or has done what it was started for.
//!
//! No client can hurt it: an error of one connection is no error of the listener, and when descriptors run out it pauses for
//! longer and longer instead of spinning.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::Limits;
use crate::connection::{self, Handling};
use crate::future::or_never;
use crate::listener::{Listener, Peer, Socket};
use crate::phase::Phase;
use crate::sys;
use crate::workers::{Job, Load, Workers};

/// How long sessions may take to say goodbye when the server is stopped.
const STOP_LIMIT: Duration = Duration::from_millis(2000);
/// How many connections are accepted before those that are there have their turn.
const ACCEPTS_IN_A_ROW: usize = 32;
/// The first pause when accepting fails, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Serves until the phase of `handling` or the limits end it. When it returns, every session has ended or had its time to.
///
/// # Errors
/// The listener broke.
pub(crate) async fn serve(
    mut listener: Listener,
    mut handling: Handling,
    limits: Limits,
) -> Result<()> {
    // What the sessions know: the phase that is asked for, or that the limits have led to.
    let (told, known) = watch::channel(Phase::Serving);
    let mut phase = std::mem::replace(&mut handling.phase, known);
    let handling = Arc::new(handling);
    let connections = Arc::new(Connections::new());
    let mut workers = Workers::new();
    let result = tokio::select! {
        biased;
        _ = phase.wait_for(|&phase| phase > Phase::Serving) => Ok(()),
        () = connections.once_taken(), if limits.run_once => Ok(()),
        () = expire(limits, &connections) => Ok(()),
        ended = accept_all(&mut listener, &handling, &connections, limits.run_once, &mut workers) => ended,
    };
    drop(listener);
    // The receivers are the connections'.
    told.send_replace(Phase::Finishing);
    let open = connections.open.load(Ordering::Relaxed);
    if result.is_ok() && open > 0 && *phase.borrow() == Phase::Finishing {
        tracing::info!("{open} connections are waited for");
    }
    if result.is_ok() {
        tokio::select! {
            biased;
            _ = phase.wait_for(|&phase| phase == Phase::Stopping) => {}
            () = connections.all_ended() => return Ok(()),
        }
    }
    told.send_replace(Phase::Stopping);
    if timeout(STOP_LIMIT, connections.all_ended()).await.is_err() {
        tracing::info!(
            "{} connections are cut off",
            connections.open.load(Ordering::Relaxed)
        );
    }
    result
}

/// Accepts until the listener breaks, or until the one client has gone that there is.
async fn accept_all(
    listener: &mut Listener,
    handling: &Arc<Handling>,
    connections: &Arc<Connections>,
    run_once: bool,
    workers: &mut Workers<Accepted>,
) -> Result<()> {
    let mut pause = PAUSES.0;
    let mut in_a_row = 0;
    loop {
        match listener.accept().await {
            Ok((socket, address)) => {
                pause = PAUSES.0;
                let (number, guard) = connections.begin();
                workers.assign(Accepted {
                    socket,
                    peer: Peer { number, address },
                    handling: Arc::clone(handling),
                    guard,
                    run_once,
                });
                if listener.is_guest() {
                    connections.all_ended().await;
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

/// A connection for a worker.
struct Accepted {
    socket: Socket,
    peer: Peer,
    handling: Arc<Handling>,
    guard: Guard,
    run_once: bool,
}

impl Job for Accepted {
    fn start(self, load: Load) {
        let Self {
            socket,
            peer,
            handling,
            guard,
            run_once,
        } = self;
        let stream = match socket.attach() {
            Ok(stream) => stream,
            Err(error) => {
                return tracing::warn!(%peer, "cannot watch a connection: {}", sys::describe(&error));
            }
        };
        tokio::spawn(async move {
            let _load = load;
            let admit = || !run_once || guard.0.take_once();
            if connection::handle(stream, peer, &handling, admit).await && run_once {
                tracing::info!("exiting due to --run-once");
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
async fn expire(limits: Limits, connections: &Connections) {
    let timeout = limits.timeout.map(sleep);
    let idle = limits.idle_timeout.map(|limit| connections.idle_for(limit));
    let (option, limit) = tokio::select! {
        () = or_never(timeout) => ("--timeout", limits.timeout),
        () = or_never(idle) => ("--idle-timeout", limits.idle_timeout),
    };
    let limit = limit.unwrap_or_default();
    tracing::info!("listener exit due to {option} {}", limit.as_secs_f64());
}

/// How many connections there are and were.
#[derive(Debug)]
struct Connections {
    open: AtomicUsize,
    total: AtomicU64,
    none_open: Notify,
    /// When the last of them ended that was open.
    last_end: Mutex<Instant>,
    /// Whether the one session of `--run-once` has been given away.
    once: AtomicBool,
    once_taken: Notify,
}

/// A connection that is open; it counts until it is dropped.
struct Guard(Arc<Connections>);

impl Connections {
    fn new() -> Self {
        Self {
            open: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            none_open: Notify::new(),
            last_end: Mutex::new(Instant::now()),
            once: AtomicBool::new(false),
            once_taken: Notify::new(),
        }
    }

    /// Counts a connection, which is the returned number's.
    fn begin(self: &Arc<Self>) -> (u64, Guard) {
        self.open.fetch_add(1, Ordering::Relaxed);
        let before = self.total.fetch_add(1, Ordering::Relaxed);
        (before + 1, Guard(Arc::clone(self)))
    }

    /// Takes the one session of `--run-once`; only the first call gets it.
    fn take_once(&self) -> bool {
        let first = !self.once.swap(true, Ordering::AcqRel);
        if first {
            self.once_taken.notify_one();
        }
        first
    }

    /// Waits for the first [`Connections::take_once`].
    async fn once_taken(&self) {
        self.once_taken.notified().await;
    }

    /// Waits until no connection is open.
    async fn all_ended(&self) {
        loop {
            let none_open = self.none_open.notified();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            none_open.await;
        }
    }

    /// Waits until no connection has been open for `limit`.
    async fn idle_for(&self, limit: Duration) {
        let mut since = Instant::now();
        loop {
            let total = self.total.load(Ordering::Acquire);
            sleep_until(since + limit).await;
            if self.open.load(Ordering::Acquire) == 0 && self.total.load(Ordering::Acquire) == total
            {
                return;
            }
            self.all_ended().await;
            since = *self.last_end.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self
                .0
                .last_end
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Instant::now();
            self.0.none_open.notify_waiters();
        }
    }
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

    #[tokio::test(start_paused = true)]
    async fn idle_time_starts_again_with_every_connection() {
        let connections = Arc::new(Connections::new());
        let start = Instant::now();
        let limit = Duration::from_secs(5);
        let idle = connections.idle_for(limit);
        let visit = async {
            for stay in [0, 1, 30] {
                sleep(Duration::from_secs(3)).await;
                let (_, guard) = connections.begin();
                sleep(Duration::from_secs(stay)).await;
                drop(guard);
            }
        };
        tokio::join!(idle, visit);
        assert_eq!(start.elapsed(), Duration::from_secs(9 + 31 + 5));
    }
}
