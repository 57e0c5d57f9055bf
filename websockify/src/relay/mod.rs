//! Carries a session's bytes both ways until both ends have had everything that was sent to them.
//!
//! Two directions run in one task: [`up`] from the client to the target, [`down`] from the target to the client. Each ends when
//! its reading side ends, finishes its own writing side (a half-close towards the target; a close frame, then a half-close
//! towards the client), and goes on draining what it reads from for a bounded time: closing a socket that still has unread
//! input makes the kernel send a reset, which destroys what was written before.
//!
//! What one direction must know of the other is in [`Shared`]. Within the task the order is fixed: heartbeat and stop first,
//! then up, then down. So what comes earlier in that order is seen in the same turn; the other way round the task is woken once
//! more.
//!
//! No direction holds a buffer while it waits. Data is read into a buffer of the worker thread and written on at once, or goes
//! through a pipe ([`splice`]) when much of it waits; only what the other side does not take is kept, by the session, which reads no
//! more until it is gone.

mod alive;
mod buffer;
mod down;
mod shared;
mod splice;
mod up;

use std::fmt;
use std::future::{pending, poll_fn, ready};
use std::io;
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{SessionConfig, WayChoice};
use crate::metrics::End;
use crate::phase::Phase;
use crate::record::Recording;
use crate::stream::{ReadHalf, Stream, WriteHalf};
use crate::sys;
use crate::websocket::frame::{self, Decoder, append_close};
use crate::websocket::{Close, Encoding};

use shared::Shared;
pub(crate) use splice::limit_pipes;

/// How long a client may take to answer our close frame, from when its system has taken everything.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How long an ended connection is drained, from when the peer's system has taken everything.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// How long the target may go on in silence after a client that went away without a close frame.
const EOF_LIMIT: Duration = Duration::from_secs(5);
/// How long a peer may take nothing at all once its session has begun to end.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// How long a session has to end when the bridge is stopped: no longer than that waits, so that its end is logged.
const STOP_LIMIT: Duration = Duration::from_millis(1900);

/// How often a peer that always has something is read from before the other direction has its turn: without that, it would use
/// up what the runtime grants a task at once, and the other direction would never get any.
const TURNS_IN_A_ROW: usize = 8;
/// How often it is looked whether a peer takes anything.
const STALL_INTERVAL: Duration = Duration::from_millis(250);

/// The way of payload from the target to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through the worker's buffer.
    Copy,
    /// Through a pipe when much waits, through the buffer when little does.
    Splice,
    /// Always through a pipe.
    SpliceAll,
}

impl Way {
    /// The one place where it is decided: what has to be looked at or changed on its way is copied.
    fn choose(encoding: Encoding, encrypts: bool, records: bool, asked: WayChoice) -> Self {
        match asked {
            _ if encrypts || records || encoding == Encoding::Base64 => Self::Copy,
            WayChoice::Copy => Self::Copy,
            WayChoice::Auto => Self::Splice,
            WayChoice::Splice => Self::SpliceAll,
        }
    }
}

/// What there is to know of a session that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Payload bytes from the client.
    pub(crate) up: u64,
    /// Payload bytes from the target.
    pub(crate) down: u64,
    /// What ended it first.
    pub(crate) cause: Cause,
    /// What is known of why.
    pub(crate) failure: Option<String>,
    /// The status code of the close frame that we sent, if we sent one with a code.
    pub(crate) code: Option<u16>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            up,
            down,
            cause,
            failure,
            code,
        } = self;
        write!(f, "{cause}")?;
        // Of a target that could not be reached there has been a line.
        if let Some(failure) = failure
            && *cause != Cause::TargetUnreachable
        {
            write!(f, " ({failure})")?;
        }
        write!(f, ": {up} bytes from the client, {down} from the target")?;
        code.map_or(Ok(()), |code| write!(f, ", close code {code}"))
    }
}

impl Summary {
    /// Of a session that came to its end before its target was connected.
    pub(crate) fn unconnected(cause: Cause, failure: Option<String>, close: Option<Close>) -> Self {
        Self {
            cause,
            failure,
            code: close.and_then(|close| close.code),
            ..Self::default()
        }
    }

    /// What went wrong, unless the session came to an orderly end.
    pub(crate) fn error(&self) -> Option<&str> {
        self.failure.as_deref().or(self.cause.error())
    }
}

/// What ended a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The client was gone before it was connected.
    ClientLeft,
    /// The client sent a close frame.
    ClientClosed,
    /// The client's connection ended without one.
    #[default]
    ClientLost,
    /// The client answered no ping.
    ClientSilent,
    /// The client broke the protocol.
    ClientViolation,
    /// The target could not be connected to.
    TargetUnreachable,
    /// The target closed.
    TargetClosed,
    /// The target's connection broke.
    TargetFailed,
    /// The bridge is being stopped.
    Stopped,
}

impl Cause {
    /// The same as it is counted.
    pub(crate) fn counted(self) -> End {
        match self {
            Self::ClientLeft => End::ClientLeft,
            Self::ClientClosed => End::ClientClosed,
            Self::ClientLost => End::ClientLost,
            Self::ClientSilent => End::ClientSilent,
            Self::ClientViolation => End::ClientViolation,
            Self::TargetUnreachable => End::TargetUnreachable,
            Self::TargetClosed => End::TargetClosed,
            Self::TargetFailed => End::TargetLost,
            Self::Stopped => End::Stopped,
        }
    }

    fn error(self) -> Option<&'static str> {
        match self {
            Self::ClientLeft | Self::ClientClosed | Self::TargetClosed | Self::Stopped => None,
            Self::TargetUnreachable => Some("could not be reached"),
            Self::ClientLost | Self::TargetFailed => Some("connection lost"),
            Self::ClientSilent => Some("no ping was answered"),
            Self::ClientViolation => Some("the protocol was broken"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientLeft => "Client left before it was connected",
            Self::ClientClosed => "Client closed connection",
            Self::ClientLost => "Client connection lost",
            Self::ClientSilent => "Client answered no ping",
            Self::ClientViolation => "Client broke the protocol",
            Self::TargetUnreachable => "Target could not be reached",
            Self::TargetClosed => "Target closed",
            Self::TargetFailed => "Target connection lost",
            Self::Stopped => "Server is shutting down",
        })
    }
}

/// Carries both directions to their ends. `early` is what the client sent right behind its request; payload also goes into the
/// `recording`, if there is one; `phase` tells when the bridge is to end.
pub(crate) async fn run(
    client: &mut Stream,
    target: &mut Stream,
    early: Bytes,
    encoding: Encoding,
    config: SessionConfig,
    recording: Option<&Recording>,
    phase: watch::Receiver<Phase>,
) -> Summary {
    let shared = Shared::default();
    let sockets = [client.descriptor(), target.descriptor()];
    let encrypts = client.is_tls() || target.is_tls();
    let (client_read, client_write) = client.split();
    let (target_read, target_write) = target.split();
    let mut up = up::Up::new(
        client_read,
        target_write,
        Decoder::new(encoding),
        &shared,
        recording,
        config.traffic,
    );
    let mut down = down::Down::new(
        target_read,
        client_write,
        encoding,
        Way::choose(encoding, encrypts, recording.is_some(), config.way),
        &shared,
        recording,
        config.traffic,
    );
    let directions = async {
        tokio::join!(biased; up.run(early), down.run());
    };
    tokio::select! {
        biased;
        () = stopped(&shared, phase) => {}
        () = alive::heartbeat(&shared, &config.pings, sockets[0]) => {}
        () = alive::look(&shared, &config, sockets) => {}
        () = directions => {}
    }
    shared.summary()
}

/// Writes `last_words` and ends a connection of which nothing more is wanted, so that the client gets to read them.
pub(crate) async fn farewell(client: &mut Stream, last_words: &[u8]) {
    let (mut read, mut write) = client.split();
    if write_all(&mut write, last_words, || Some(CLOSE_LIMIT))
        .await
        .is_ok()
    {
        finish(&mut write, CLOSE_LIMIT).await;
        drain(&mut read, ready(CLOSE_LIMIT)).await;
    }
}

/// Answers the close frame of a client that has sent nothing else, or the end of its data; `early` is the part of it that has been read.
pub(crate) async fn answer_close(client: &mut Stream, early: &[u8], encoding: Encoding) {
    let mut decoder = Decoder::new(encoding);
    let mut part = early.to_vec();
    let reading = async {
        loop {
            let end = decoder.decode(&mut part, |_| {}).end;
            if let Some(frame::End::Closed(close) | frame::End::Violation(close)) = end {
                return Some(close);
            }
            part.resize(64, 0);
            let length = client
                .read(&mut part)
                .await
                .ok()
                .filter(|&length| length > 0)?;
            part.truncate(length);
        }
    };
    let close = timeout(CLOSE_LIMIT, reading).await.ok().flatten();
    let mut frame = Vec::new();
    append_close(close.unwrap_or(Close::UNREACHABLE), &mut frame);
    farewell(client, &frame).await;
}

/// Hands the stop on to the session. Returns when that has had its time to end.
async fn stopped(shared: &Shared, mut phase: watch::Receiver<Phase>) {
    // Without a sender nobody can stop us.
    let observer = phase.clone();
    let mut told = pin!(phase.wait_for(|&phase| phase == Phase::Stopping));
    let mut asked = false;
    let stopped = poll_fn(|cx| {
        // A task has one waker: until something has changed, asking again would only take the lock that all sessions share.
        if std::mem::replace(&mut asked, true) && observer.has_changed().is_ok_and(|news| !news) {
            return Poll::Pending;
        }
        told.as_mut().poll(cx)
    });
    if stopped.await.is_err() {
        return pending().await;
    }
    shared.end(Cause::Stopped, Some(Close::GOING_AWAY));
    // Boxed: an idle session need not have room for it.
    Box::pin(sleep(STOP_LIMIT)).await;
}

/// Writes all of `data`, as patiently as [`patiently`] does.
async fn write_all(
    half: &mut WriteHalf<'_>,
    mut data: &[u8],
    patience: impl Fn() -> Option<Duration>,
) -> io::Result<()> {
    let write = |cx: &mut Context<'_>, progress: &mut bool| {
        while !data.is_empty() {
            let written = ready!(Pin::new(&mut *half).poll_write(cx, data))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            data = &data[written..];
            *progress = true;
        }
        Poll::Ready(Ok(()))
    };
    patiently(write, patience).await
}

/// Polls `write`, which tells of progress, until it is done. A peer that takes nothing for as long as `patience` says by then is
/// given up; `None` is for ever, since before the end of a session a stalled peer stalls the other one and nothing else.
async fn patiently(
    mut write: impl FnMut(&mut Context<'_>, &mut bool) -> Poll<io::Result<()>>,
    patience: impl Fn() -> Option<Duration>,
) -> io::Result<()> {
    let mut since = Instant::now();
    loop {
        let mut progress = false;
        let written = poll_fn(|cx| write(cx, &mut progress));
        if let Ok(done) = timeout(STALL_INTERVAL, written).await {
            return done;
        }
        if progress {
            since = Instant::now();
        }
        if patience().is_some_and(|limit| since.elapsed() >= limit) {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Ends our side of a connection. A peer that takes nothing for as long as `patience` is not told so by TLS.
async fn finish(half: &mut WriteHalf<'_>, patience: Duration) {
    let at_once = poll_fn(|cx| Poll::Ready(half.poll_finish(cx))).await;
    if at_once.is_pending() {
        let finish = |cx: &mut Context<'_>, _: &mut bool| half.poll_finish(cx);
        // How it fails makes no difference any more.
        _ = Box::pin(patiently(finish, || Some(patience))).await;
    }
}

/// Reads and throws away what still comes: until the end of the data, or for a bounded time after `finished`, when the peer
/// has got the end of ours.
async fn drain(half: &mut ReadHalf<'_>, finished: impl Future<Output = Duration>) {
    let socket = half.descriptor();
    let mut to_the_end = pin!(poll_fn(|cx| {
        buffer::with(|buffer| {
            for _ in 0..TURNS_IN_A_ROW {
                let mut read = ReadBuf::new(buffer);
                match ready!(Pin::new(&mut *half).poll_read(cx, &mut read)) {
                    Ok(()) if !read.filled().is_empty() => {}
                    _ => return Poll::Ready(()),
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }));
    tokio::select! {
        biased;
        () = &mut to_the_end => {}
        stall_limit = finished => {
            _ = while_taking(socket, DRAIN_LIMIT, stall_limit, to_the_end).await;
        }
    }
}

/// Waits for `done`: no longer than `limit` once the peer of `socket` has taken all that was written to it, and no longer than
/// `stall_limit` while it takes nothing.
async fn while_taking<F: Future>(
    socket: RawFd,
    limit: Duration,
    stall_limit: Duration,
    done: F,
) -> Option<F::Output> {
    let mut done = pin!(done);
    let mut unsent = usize::MAX;
    let mut since = Instant::now();
    loop {
        if let Ok(output) = timeout(STALL_INTERVAL, &mut done).await {
            return Some(output);
        }
        let before = std::mem::replace(&mut unsent, sys::unsent_bytes(socket));
        if unsent < before {
            since = Instant::now();
        }
        if since.elapsed() >= if unsent == 0 { limit } else { stall_limit } {
            return None;
        }
    }
}
