//! What the two directions of a session know of each other.
//!
//! They run in one task, so the lock is never contended, and a direction that waits for a flag is polled again whenever the
//! task is.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio_tungstenite::tungstenite::protocol::frame::coding::Control as ControlCode;

use super::{CLOSE_LIMIT, Cause, STALL_LIMIT, Summary};
use crate::websocket::Close;
use crate::websocket::frame;

/// Bytes of pongs that may wait. A client that pings on without reading gets an answer to its latest pings only, as RFC 6455,
/// section 5.5.3, allows.
const MAX_CONTROL: usize = 4096;

/// The session's state beside its two directions.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Pings and pongs that the client is to get before the next data.
    control: Vec<u8>,
    /// Set once the session ends.
    ending: Option<Ending>,
    /// The client's connection is of no use any more.
    client_lost: bool,
    /// The client ended its side without a close frame.
    client_finished: bool,
    /// Nothing more of the client will be passed on.
    up_ended: bool,
    /// The client had its time to answer our close frame.
    up_cut: bool,
    /// The client has got everything, a close frame and the end of our side.
    down_finished: bool,
    /// The target has got everything and the end of our side.
    up_finished: bool,
    /// The client was heard since this was last asked, or we do not listen to it because the target is stalled.
    sign_of_life: bool,
    stalled: bool,
    /// A write to the target was answered with a reset.
    target_reset: bool,
    up_bytes: u64,
    down_bytes: u64,
    /// Bytes written to the client's socket, frame headers included.
    written: u64,
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

    /// Begins the end of the session; what came first stays.
    pub(super) fn end(&self, cause: Cause, close: Option<Close>) {
        self.state().ending.get_or_insert(Ending { cause, close });
    }

    /// The close frame with which the client is to be told the end, once that has begun.
    pub(super) fn close(&self) -> Option<Close> {
        self.state().ending?.close
    }

    /// Whether the session ends, for whatever reason.
    pub(super) fn is_ending(&self) -> bool {
        let state = self.state();
        state.ending.is_some() || state.client_finished
    }

    /// How long a peer may take nothing before it is given up: for ever unless the session ends.
    pub(super) fn patience(&self) -> Option<Duration> {
        let state = self.state();
        match state.ending {
            Some(Ending {
                cause: Cause::ClientViolation,
                ..
            }) => Some(CLOSE_LIMIT),
            Some(_) => Some(STALL_LIMIT),
            None => state.client_finished.then_some(STALL_LIMIT),
        }
    }

    /// The client's connection broke: it gets nothing more.
    pub(super) fn lose_client(&self, cause: Cause) {
        self.end(cause, None);
        let mut state = self.state();
        state.client_lost = true;
        state.up_cut = true;
    }

    /// Whether [`Shared::lose_client`] was called.
    pub(super) fn client_is_lost(&self) -> bool {
        self.state().client_lost
    }

    /// The client ended its side without a close frame; it may still read.
    pub(super) fn finish_client(&self) {
        self.state().client_finished = true;
    }

    /// Whether [`Shared::finish_client`] was called.
    pub(super) fn client_has_finished(&self) -> bool {
        self.state().client_finished
    }

    /// Queues the answer to a ping.
    pub(super) fn queue_pong(&self, payload: &[u8]) {
        let control = &mut self.state().control;
        if control.len() + payload.len() > MAX_CONTROL {
            control.clear();
        }
        frame::append_control(ControlCode::Pong, payload, control);
    }

    /// Queues a ping of our own, unless something waits to be sent anyway.
    pub(super) fn request_ping(&self) {
        let control = &mut self.state().control;
        if control.is_empty() {
            frame::append_control(ControlCode::Ping, b"", control);
        }
    }

    /// Whether there are frames for [`Shared::take_control`].
    pub(super) fn has_control(&self) -> bool {
        !self.state().control.is_empty()
    }

    /// The pings and pongs that wait.
    pub(super) fn take_control(&self) -> Vec<u8> {
        std::mem::take(&mut self.state().control)
    }

    /// Notes that bytes came from the client, `payload` of them for the target.
    pub(super) fn note_up(&self, payload: usize) {
        let mut state = self.state();
        state.up_bytes += payload as u64;
        state.sign_of_life = true;
    }

    /// Notes that `bytes` were written to the client's socket.
    pub(super) fn note_written(&self, bytes: usize) {
        self.state().written += bytes as u64;
    }

    /// Bytes written to the client's socket so far.
    pub(super) fn written(&self) -> u64 {
        self.state().written
    }

    /// Notes that the target's connection was reset, which may be told to the first who writes or reads only.
    pub(super) fn note_target_reset(&self) {
        self.state().target_reset = true;
    }

    /// Whether [`Shared::note_target_reset`] was called.
    pub(super) fn target_was_reset(&self) -> bool {
        self.state().target_reset
    }

    /// Notes that the client got `payload` bytes.
    pub(super) fn note_down(&self, payload: usize) {
        self.state().down_bytes += payload as u64;
    }

    /// Notes whether the target lets the client wait.
    pub(super) fn set_stalled(&self, stalled: bool) {
        let mut state = self.state();
        state.stalled = stalled;
        state.sign_of_life = true;
    }

    /// Whether the client was heard since the last call, or cannot be heard because the target takes nothing.
    pub(super) fn take_sign_of_life(&self) -> bool {
        let mut state = self.state();
        std::mem::take(&mut state.sign_of_life) || state.stalled
    }

    /// Nothing more of the client will be passed on.
    pub(super) fn end_up(&self) {
        self.state().up_ended = true;
    }

    /// Whether [`Shared::end_up`] was called.
    pub(super) fn up_has_ended(&self) -> bool {
        self.state().up_ended
    }

    /// Waits for [`Shared::end_up`].
    pub(super) async fn up_ended(&self) {
        self.wait_for(|state| state.up_ended).await;
    }

    /// Stops waiting for the client's close frame.
    pub(super) async fn cut_up(&self) {
        self.state().up_cut = true;
        tokio::task::yield_now().await;
    }

    /// Whether the client's stream is not to be followed any longer.
    pub(super) fn up_is_cut(&self) -> bool {
        self.state().up_cut
    }

    /// The target has got everything and the end of our side.
    pub(super) fn finish_up(&self) {
        self.state().up_finished = true;
    }

    /// Waits for [`Shared::finish_up`]. Returns how long the target may take nothing then.
    pub(super) async fn up_finished(&self) -> Duration {
        self.wait_for(|state| state.up_finished).await;
        STALL_LIMIT
    }

    /// The client has got everything and the end of our side, or is lost.
    pub(super) async fn finish_down(&self) {
        self.state().down_finished = true;
        tokio::task::yield_now().await;
    }

    /// Waits for [`Shared::finish_down`]. Returns how long the client may take nothing then.
    pub(super) async fn down_finished(&self) -> Duration {
        self.wait_for(|state| state.down_finished).await;
        self.patience().unwrap_or(STALL_LIMIT)
    }

    async fn wait_for(&self, condition: impl Fn(&State) -> bool) {
        poll_fn(|_| {
            if condition(&self.state()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// What became of the session.
    pub(super) fn summary(&self) -> Summary {
        let state = self.state();
        let cause = state.ending.map(|ending| ending.cause).unwrap_or_default();
        let code = state
            .ending
            .and_then(|ending| ending.close?.code)
            .filter(|_| !state.client_lost);
        Summary {
            up: state.up_bytes,
            down: state.down_bytes,
            cause,
            code,
        }
    }
}
