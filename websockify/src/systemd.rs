//! What the service manager is told (sd_notify(3)): datagrams to the socket that it names in the environment.
//!
//! Not a crate: sd-notify, the best-kept one, does not know abstract sockets, which are what containers and user managers have, and
//! opens a socket for each message, which may be out of reach once rights are given up.

use std::cell::Cell;
use std::convert::Infallible;
use std::env;
use std::ffi::OsStr;
use std::future::pending;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};

/// Whoever started us and wants to know how we are; perhaps nobody.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: Option<OwnedFd>,
    /// How often it wants to hear that we are alive.
    watchdog: Option<Duration>,
    /// Whether it knows that the start has worked.
    is_ready: Cell<bool>,
    /// Whether it knows that we are about to end.
    is_stopping: Cell<bool>,
}

/// What it would mean that the manager does not hear something, because what it was told before fills its socket.
#[derive(Clone, Copy, Debug)]
enum Urgency {
    /// It would wait for that in vain, so we wait a moment, and all sessions with us.
    Needed,
    /// It will be told the like again.
    Passing,
}

impl Manager {
    /// The one that the environment names.
    pub(crate) fn from_environment() -> Self {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = name.and_then(|name| match open(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(
                    "cannot tell the service manager anything: NOTIFY_SOCKET is {}: {}",
                    name.display(),
                    error.desc()
                );
                None
            }
        });
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&limit| limit > 0 && is_ours);
        Self {
            socket,
            watchdog: watchdog.map(Duration::from_micros),
            is_ready: Cell::new(false),
            is_stopping: Cell::new(false),
        }
    }

    /// The start has worked, or what was to be read again has been.
    pub(crate) fn ready(&self) {
        self.is_ready.set(true);
        self.tell("READY=1", Urgency::Needed);
    }

    /// What is going on, in words.
    pub(crate) fn status(&self, text: &str) {
        let text = text.replace(char::is_control, " ");
        self.tell(&format!("STATUS={text}"), Urgency::Passing);
    }

    /// Files are being read again, until [`ready`](Self::ready) is told. Returns whether that is to be told; not so before the start has
    /// worked, for which it would be taken.
    pub(crate) fn reloading(&self) -> bool {
        let is_ready = self.is_ready.get() && !self.is_stopping.get();
        if is_ready {
            let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
            let now = now.unwrap_or_default().as_micros();
            let state = format!("RELOADING=1\nMONOTONIC_USEC={now}");
            self.tell(&state, Urgency::Needed);
        }
        is_ready
    }

    /// We are about to end, which may take so long.
    pub(crate) fn stopping(&self, limit: Duration) {
        self.is_stopping.set(true);
        let limit = limit.as_micros();
        let state = format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={limit}");
        self.tell(&state, Urgency::Needed);
    }

    /// Tells that we are alive, twice as often as is wanted, for ever. It is to be polled by whoever must not hang.
    pub(crate) async fn tell_alive(&self) -> Infallible {
        let Some(limit) = self.watchdog else {
            return pending().await;
        };
        let mut interval = interval(limit / 2);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.tell("WATCHDOG=1", Urgency::Passing);
        }
    }

    fn tell(&self, state: &str, urgency: Urgency) {
        let Some(socket) = &self.socket else {
            return;
        };
        let flags = match urgency {
            Urgency::Needed => MsgFlags::MSG_NOSIGNAL,
            Urgency::Passing => MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        };
        let sent = send(socket.as_raw_fd(), state.as_bytes(), flags);
        if let Err(error) = sent {
            tracing::debug!(
                "cannot tell the service manager '{state}': {}",
                error.desc()
            );
        }
    }
}

/// A socket that is connected to the one of this name: a path, or what follows an `@` in the abstract namespace.
fn open(name: &OsStr) -> nix::Result<OwnedFd> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name)?,
        None => UnixAddr::new(name)?,
    };
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // A manager that hangs is not waited for any longer.
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(1))?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket)
}
