//! What the two directions of a session know of each other.
//!
//! They run in one task, so nothing here is ever contended, and a direction that waits for a flag is polled again whenever the
//! task is. What is asked at every turn is a plain load.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio_tungstenite::tungstenite::protocol::frame::coding::Control as ControlCode;

use super::{CLOSE_LIMIT, Cause, STALL_LIMIT, Summary};
use crate::metrics;
use crate::sys;
use crate::tls;
use crate::websocket::Close;
use crate::websocket::frame;

/// Bytes of pongs that may wait. A client that pings on without reading gets an answer to its latest pings only, as RFC 6455,
/// section 5.5.3, allows.
const MAX_CONTROL: usize = 4096;

/// The session's state beside its two directions.
#[derive(Debug, Default)]
pub(super) struct Shared {
    flags: AtomicU32,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    /// Bytes written to the client's socket, frame headers included.
    written: AtomicU64,
    state: Mutex<State>,
}

/// Something that is so, or not.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Flag {
    /// There are pings or pongs for the client.
    Control = 1,
    /// The session ends, see [`State::ending`].
    Ending = 1 << 1,
    /// The client's connection is of no use any more.
    ClientLost = 1 << 2,
    /// The client ended its side without a close frame.
    ClientFinished = 1 << 3,
    /// Nothing more of the client will be passed on.
    UpEnded = 1 << 4,
    /// The client had its time to answer our close frame.
    UpCut = 1 << 5,
    /// The client has got everything, a close frame and the end of our side.
    DownFinished = 1 << 6,
    /// The target has got everything and the end of our side.
    UpFinished = 1 << 7,
    /// The client was heard since this was last asked.
    SignOfLife = 1 << 8,
    /// We do not listen to the client because the target is stalled.
    Stalled = 1 << 9,
    /// A write to the target was answered with a reset.
    TargetReset = 1 << 10,
    /// The target's connection is of no use any more.
    TargetLost = 1 << 11,
}

/// What is looked at only when a flag says so.
#[derive(Debug, Default)]
struct State {
    /// Pings and pongs that the client is to get before the next data.
    control: Vec<u8>,
    /// Set once the session ends.
    ending: Option<Ending>,
    /// What is known of the first error, as the log tells it.
    failure: Option<String>,
}

/// How a session ends.
#[derive(Clone, Copy, Debug)]
struct Ending {
    cause: Cause,
    /// The close frame that the client is to get.
    close: Option<Close>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, flag: Flag) -> bool {
        self.flags.load(Ordering::Relaxed) & flag as u32 != 0
    }

    fn set(&self, flag: Flag, value: bool) {
        let flags = self.flags.load(Ordering::Relaxed) & !(flag as u32);
        let bit = if value { flag as u32 } else { 0 };
        self.flags.store(flags | bit, Ordering::Relaxed);
    }

    /// Begins the end of the session; what came first stays.
    pub(super) fn end(&self, cause: Cause, close: Option<Close>) {
        self.state().ending.get_or_insert(Ending { cause, close });
        self.set(Flag::Ending, true);
    }

    fn ending(&self) -> Option<Ending> {
        self.is(Flag::Ending).then(|| self.state().ending).flatten()
    }

    /// The close frame with which the client is to be told the end, once that has begun.
    pub(super) fn close(&self) -> Option<Close> {
        self.ending()?.close
    }

    /// Whether the session ends, for whatever reason.
    pub(super) fn is_ending(&self) -> bool {
        self.is(Flag::Ending) || self.is(Flag::ClientFinished)
    }

    /// How long a peer may take nothing before it is given up: for ever unless the session ends.
    pub(super) fn patience(&self) -> Option<Duration> {
        match self.ending() {
            Some(Ending {
                cause: Cause::ClientViolation,
                ..
            }) => Some(CLOSE_LIMIT),
            Some(_) => Some(STALL_LIMIT),
            None => self.is(Flag::ClientFinished).then_some(STALL_LIMIT),
        }
    }

    /// The client's connection broke: it gets nothing more.
    pub(super) fn lose_client(&self, cause: Cause) {
        self.end(cause, None);
        self.set(Flag::ClientLost, true);
        self.set(Flag::UpCut, true);
    }

    /// Whether [`Shared::lose_client`] was called.
    pub(super) fn client_is_lost(&self) -> bool {
        self.is(Flag::ClientLost)
    }

    /// The target's connection broke without its system saying so: it is not waited for.
    pub(super) fn lose_target(&self) {
        self.end(Cause::TargetFailed, Some(Close::TARGET_FAILED));
        self.set(Flag::TargetLost, true);
    }

    /// Whether [`Shared::lose_target`] was called.
    pub(super) fn target_is_lost(&self) -> bool {
        self.is(Flag::TargetLost)
    }

    /// The client ended its side without a close frame; it may still read.
    pub(super) fn finish_client(&self) {
        self.set(Flag::ClientFinished, true);
    }

    /// Whether [`Shared::finish_client`] was called.
    pub(super) fn client_has_finished(&self) -> bool {
        self.is(Flag::ClientFinished)
    }

    /// Queues the answer to a ping.
    pub(super) fn queue_pong(&self, payload: &[u8]) {
        let control = &mut self.state().control;
        if control.len() + payload.len() > MAX_CONTROL {
            control.clear();
        }
        frame::append_control(ControlCode::Pong, payload, control);
        self.set(Flag::Control, true);
    }

    /// Queues a ping of our own, unless something waits to be sent anyway.
    pub(super) fn request_ping(&self) {
        let control = &mut self.state().control;
        if control.is_empty() {
            frame::append_control(ControlCode::Ping, b"", control);
            self.set(Flag::Control, true);
        }
    }

    /// Whether there are frames for [`Shared::take_control`].
    pub(super) fn has_control(&self) -> bool {
        self.is(Flag::Control)
    }

    /// The pings and pongs that wait.
    pub(super) fn take_control(&self) -> Vec<u8> {
        if !self.has_control() {
            return Vec::new();
        }
        self.set(Flag::Control, false);
        std::mem::take(&mut self.state().control)
    }

    /// Notes that bytes came from the client, `payload` of them for the target.
    pub(super) fn note_up(&self, payload: usize) {
        add(&self.up_bytes, payload);
        metrics::from_client(payload);
        self.set(Flag::SignOfLife, true);
    }

    /// Notes that `bytes` were written to the client's socket.
    pub(super) fn note_written(&self, bytes: usize) {
        add(&self.written, bytes);
    }

    /// Bytes written to the client's socket so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Notes that the target's connection was reset, which may be told to the first who writes or reads only.
    pub(super) fn note_target_reset(&self) {
        self.set(Flag::TargetReset, true);
    }

    /// Whether [`Shared::note_target_reset`] was called.
    pub(super) fn target_was_reset(&self) -> bool {
        self.is(Flag::TargetReset)
    }

    /// Notes that the client got `payload` bytes.
    pub(super) fn note_down(&self, payload: usize) {
        add(&self.down_bytes, payload);
        metrics::from_target(payload);
    }

    /// Notes whether the target lets the client wait.
    pub(super) fn set_stalled(&self, stalled: bool) {
        self.set(Flag::Stalled, stalled);
        self.set(Flag::SignOfLife, true);
    }

    /// Whether the client was heard since the last call, or cannot be heard because the target takes nothing.
    pub(super) fn take_sign_of_life(&self) -> bool {
        let heard = self.is(Flag::SignOfLife) || self.is(Flag::Stalled);
        self.set(Flag::SignOfLife, false);
        heard
    }

    /// Nothing more of the client will be passed on.
    pub(super) fn end_up(&self) {
        self.set(Flag::UpEnded, true);
    }

    /// Whether [`Shared::end_up`] was called.
    pub(super) fn up_has_ended(&self) -> bool {
        self.is(Flag::UpEnded)
    }

    /// Waits for [`Shared::end_up`].
    pub(super) async fn up_ended(&self) {
        self.wait_for(Flag::UpEnded).await;
    }

    /// Stops waiting for the client's close frame.
    pub(super) async fn cut_up(&self) {
        self.set(Flag::UpCut, true);
        tokio::task::yield_now().await;
    }

    /// Whether the client's stream is not to be followed any longer.
    pub(super) fn up_is_cut(&self) -> bool {
        self.is(Flag::UpCut)
    }

    /// The target has got everything and the end of our side.
    pub(super) fn finish_up(&self) {
        self.set(Flag::UpFinished, true);
    }

    /// Waits for [`Shared::finish_up`]. Returns how long the target may take nothing then.
    pub(super) async fn up_finished(&self) -> Duration {
        self.wait_for(Flag::UpFinished).await;
        STALL_LIMIT
    }

    /// The client has got everything and the end of our side, or is lost.
    pub(super) async fn finish_down(&self) {
        self.set(Flag::DownFinished, true);
        tokio::task::yield_now().await;
    }

    /// Waits for [`Shared::finish_down`]. Returns how long the client may take nothing then.
    pub(super) async fn down_finished(&self) -> Duration {
        self.wait_for(Flag::DownFinished).await;
        self.patience().unwrap_or(STALL_LIMIT)
    }

    async fn wait_for(&self, flag: Flag) {
        poll_fn(|_| {
            if self.is(flag) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Notes why a connection broke, if that is more than that it did.
    pub(super) fn note_error(&self, error: &io::Error) {
        if let Some(failure) = tls::explain(error) {
            self.note_failure(format!("TLS: {failure}"));
        } else if error.kind() != io::ErrorKind::ConnectionReset {
            self.note_failure(sys::describe(error));
        }
    }

    /// Notes why a connection broke; what came first stays.
    pub(super) fn note_failure(&self, failure: String) {
        self.state().failure.get_or_insert(failure);
    }

    /// What became of the session.
    pub(super) fn summary(&self) -> Summary {
        let ending = self.ending();
        let code = ending
            .and_then(|ending| ending.close?.code)
            .filter(|_| !self.client_is_lost());
        Summary {
            up: self.up_bytes.load(Ordering::Relaxed),
            down: self.down_bytes.load(Ordering::Relaxed),
            cause: ending.map(|ending| ending.cause).unwrap_or_default(),
            failure: self.state().failure.take(),
            code,
        }
    }
}

/// Adds to a counter that nobody else changes at the same time.
fn add(counter: &AtomicU64, bytes: usize) {
    let sum = counter.load(Ordering::Relaxed) + bytes as u64;
    counter.store(sum, Ordering::Relaxed);
}
