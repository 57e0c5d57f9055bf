//! From the client to the target: frames come in, payload goes out.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::Shared;
use super::{Cause, STALL_LIMIT, TURNS_IN_A_ROW, buffer, drain, finish, write_all};
use crate::log;
use crate::record::{Recording, Side};
use crate::stream::{ReadHalf, WriteHalf};
use crate::sys;
use crate::websocket::frame::{Decoder, End};

/// The direction from the client to the target.
pub(super) struct Up<'a> {
    client: ReadHalf<'a>,
    target: WriteHalf<'a>,
    decoder: Decoder,
    shared: &'a Shared,
    recording: Option<&'a Recording>,
    traffic: bool,
    /// The target takes nothing more; the client's frames are still followed, for its close frame.
    target_is_deaf: bool,
    /// How often the client had something at once.
    turns_in_a_row: usize,
}

/// What one turn came to.
enum Turn {
    /// The client sent something; the target has not taken this part of it yet.
    Moved { rest: Vec<u8>, end: Option<End> },
    /// The client ended its side.
    Finished,
    /// The client's connection broke, or it is not to be followed any longer.
    Cut,
}

impl<'a> Up<'a> {
    pub(super) fn new(
        client: ReadHalf<'a>,
        target: WriteHalf<'a>,
        decoder: Decoder,
        shared: &'a Shared,
        recording: Option<&'a Recording>,
        traffic: bool,
    ) -> Self {
        Self {
            client,
            target,
            decoder,
            shared,
            recording,
            traffic,
            target_is_deaf: false,
            turns_in_a_row: 0,
        }
    }

    /// Runs to the end; `early` is what has been read of the client already.
    pub(super) async fn run(&mut self, early: Bytes) {
        self.carry(early).await;
        self.shared.end_up();
        finish(&mut self.target, STALL_LIMIT).await;
        self.shared.finish_up();
        if !self.shared.client_is_lost() && !self.shared.client_has_finished() {
            Box::pin(drain(&mut self.client, self.shared.down_finished())).await;
        }
    }

    /// Carries payload until the client ends or its time is over.
    async fn carry(&mut self, early: Bytes) {
        let mut turn = {
            let mut early = Vec::from(early);
            poll_fn(|cx| Poll::Ready(self.pass_on(cx, &mut early))).await
        };
        loop {
            match turn {
                Turn::Moved { rest, end } => {
                    if let Some(end) = end {
                        let (cause, close) = match end {
                            End::Closed(close) => (Cause::ClientClosed, close),
                            End::Violation(close) => (Cause::ClientViolation, close),
                        };
                        self.shared.end(cause, Some(close));
                        self.shared.end_up();
                    }
                    if !rest.is_empty() && !self.target_is_deaf {
                        // Boxed: an idle session need not have room for it.
                        Box::pin(self.deliver(&rest)).await;
                    }
                    if end.is_some() {
                        return;
                    }
                    if let Some(recording) = self.recording
                        && !recording.has_room()
                    {
                        Box::pin(recording.room(|| self.shared.up_is_cut())).await;
                    }
                }
                Turn::Finished => return self.shared.finish_client(),
                Turn::Cut => return,
            }
            if self.turns_in_a_row == TURNS_IN_A_ROW {
                self.turns_in_a_row = 0;
                tokio::task::yield_now().await;
            }
            turn = poll_fn(|cx| self.poll_turn(cx)).await;
        }
    }

    /// Reads once and passes on what the target takes at once.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        if self.shared.up_is_cut() {
            return Poll::Ready(Turn::Cut);
        }
        buffer::with(|buffer| {
            let mut read = ReadBuf::new(buffer);
            let Poll::Ready(result) = Pin::new(&mut self.client).poll_read(cx, &mut read) else {
                self.turns_in_a_row = 0;
                return Poll::Pending;
            };
            self.turns_in_a_row += 1;
            if let Err(error) = result {
                self.shared.note_error(&error);
                self.shared.lose_client(Cause::ClientLost);
                return Poll::Ready(Turn::Cut);
            }
            let length = read.filled().len();
            if length == 0 {
                return Poll::Ready(Turn::Finished);
            }
            Poll::Ready(self.pass_on(cx, &mut buffer[..length]))
        })
    }

    /// Decodes what the client sent and writes its payload as far as the target takes it now.
    fn pass_on(&mut self, cx: &mut Context<'_>, data: &mut [u8]) -> Turn {
        let decoded = self
            .decoder
            .decode(data, |ping| self.shared.queue_pong(ping));
        let payload = &data[decoded.payload];
        self.shared.note_up(payload.len());
        if let Some(recording) = self.recording {
            recording.note(Side::Client, payload);
        }
        if self.traffic && !data.is_empty() {
            log::mark(if self.decoder.at_frame_boundary() {
                "}"
            } else {
                "}."
            });
        }
        let mut rest = payload;
        while !rest.is_empty() && !self.target_is_deaf {
            match Pin::new(&mut self.target).poll_write(cx, rest) {
                Poll::Ready(Ok(written)) => rest = &rest[written..],
                Poll::Ready(Err(error)) => self.give_up_target(&error),
                Poll::Pending => break,
            }
        }
        if self.traffic && !payload.is_empty() {
            log::mark(if rest.is_empty() { ">" } else { ">." });
        }
        Turn::Moved {
            rest: rest.to_vec(),
            end: decoded.end,
        }
    }

    /// Writes what the target did not take at once; until it does, nothing more is read of the client.
    async fn deliver(&mut self, rest: &[u8]) {
        self.shared.set_stalled(true);
        let client = self.client.descriptor();
        let patience = || {
            if self.shared.target_is_lost() {
                return Some(Duration::ZERO);
            }
            let client_left = sys::has_finished(client).then_some(STALL_LIMIT);
            self.shared.patience().or(client_left)
        };
        if let Err(error) = write_all(&mut self.target, rest, patience).await {
            self.give_up_target(&error);
        }
        self.shared.set_stalled(false);
        if self.traffic {
            log::mark(">");
        }
    }

    /// Takes note that the target takes nothing more.
    fn give_up_target(&mut self, error: &io::Error) {
        self.target_is_deaf = true;
        // After the end of its data it would be a broken pipe.
        if error.kind() == io::ErrorKind::ConnectionReset {
            self.shared.note_target_reset();
        }
    }
}
