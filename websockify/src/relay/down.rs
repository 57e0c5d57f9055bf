//! From the target to the client: what comes in goes out as frames, each as long as what there was to read.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::shared::Shared;
use super::{CLOSE_LIMIT, Cause, EOF_LIMIT, STALL_LIMIT, buffer, drain, while_taking, write_all};
use crate::log;
use crate::stream::{ReadHalf, WriteHalf};
use crate::sys;
use crate::websocket::frame::{self, HEADER_ROOM};
use crate::websocket::{Close, Encoding, base64};

/// The direction from the target to the client. It alone writes to the client.
pub(super) struct Down<'a> {
    target: ReadHalf<'a>,
    client: WriteHalf<'a>,
    encoding: Encoding,
    shared: &'a Shared,
    traffic: bool,
}

/// What one turn came to.
enum Turn {
    /// The target sent something; the client has not taken this part of its frame yet.
    Moved(Vec<u8>),
    /// The other direction has something for the client, or the session ends.
    Look,
    /// The target has ended its side.
    TargetFinished(Cause, Close),
    /// The target said nothing for too long after its client went away.
    GiveUp,
    /// The client's connection broke.
    ClientLost,
}

impl<'a> Down<'a> {
    pub(super) fn new(
        target: ReadHalf<'a>,
        client: WriteHalf<'a>,
        encoding: Encoding,
        shared: &'a Shared,
        traffic: bool,
    ) -> Self {
        Self {
            target,
            client,
            encoding,
            shared,
            traffic,
        }
    }

    /// Runs to the end.
    pub(super) async fn run(mut self) {
        let target_finished = self.carry().await;
        // Boxed, as is everything that is not the ordinary case: an idle session need not have room for it.
        Box::pin(self.finish(target_finished)).await;
    }

    /// Ends the client's side, and drains the target's unless that has ended.
    async fn finish(mut self, target_finished: bool) {
        if !self.shared.client_is_lost() && self.say_goodbye().await.is_ok() {
            let client = self.client.as_fd().as_raw_fd();
            let stall_limit = self.shared.patience().unwrap_or(STALL_LIMIT);
            let answer =
                while_taking(client, CLOSE_LIMIT, stall_limit, self.shared.up_ended()).await;
            if answer.is_none() {
                self.shared.cut_up().await;
            }
            self.client.finish();
        } else {
            self.shared.lose_client(Cause::ClientLost);
        }
        self.shared.finish_down().await;
        if !target_finished {
            drain(&mut self.target, self.shared.up_finished()).await;
        }
    }

    /// Carries data until either side ends. Returns whether it was the target's.
    async fn carry(&mut self) -> bool {
        loop {
            if self.shared.client_is_lost() || self.shared.close().is_some() {
                return false;
            }
            let control = self.shared.take_control();
            if !control.is_empty() && Box::pin(self.write(&control)).await.is_err() {
                return false;
            }
            let client_had_finished = self.shared.client_has_finished();
            let next_turn = poll_fn(|cx| self.poll_turn(cx, client_had_finished));
            let turn = if client_had_finished {
                // It went away without a word, so a silent target is not waited for.
                let limited = Box::pin(timeout(EOF_LIMIT, next_turn));
                limited.await.unwrap_or(Turn::GiveUp)
            } else {
                next_turn.await
            };
            match turn {
                Turn::Look => {}
                Turn::Moved(rest) => {
                    if !rest.is_empty() && Box::pin(self.write(&rest)).await.is_err() {
                        return false;
                    }
                }
                Turn::TargetFinished(cause, close) => {
                    let cause = if client_had_finished {
                        Cause::ClientLost
                    } else {
                        cause
                    };
                    self.shared.end(cause, Some(close));
                    return true;
                }
                Turn::GiveUp => {
                    self.shared
                        .end(Cause::ClientLost, Some(Close::TARGET_CLOSED));
                    return false;
                }
                Turn::ClientLost => {
                    self.shared.lose_client(Cause::ClientLost);
                    return false;
                }
            }
        }
    }

    /// Reads once and writes what the client takes at once.
    fn poll_turn(&mut self, cx: &mut Context<'_>, client_had_finished: bool) -> Poll<Turn> {
        let news = self.shared.has_control()
            || self.shared.client_is_lost()
            || self.shared.close().is_some()
            || self.shared.client_has_finished() != client_had_finished;
        if news {
            return Poll::Ready(Turn::Look);
        }
        buffer::with(|buffer| {
            // Base64 grows by a third: its text is made in front of the bytes.
            let start = match self.encoding {
                Encoding::Binary => HEADER_ROOM,
                Encoding::Base64 => HEADER_ROOM + buffer::PAYLOAD / 3 * 2,
            };
            let mut read = ReadBuf::new(&mut buffer[start..]);
            let result = ready!(Pin::new(&mut self.target).poll_read(cx, &mut read));
            if result.is_err() || (read.filled().is_empty() && self.shared.target_was_reset()) {
                return Poll::Ready(Turn::TargetFinished(
                    Cause::TargetFailed,
                    Close::TARGET_FAILED,
                ));
            }
            if read.filled().is_empty() {
                return Poll::Ready(Turn::TargetFinished(
                    Cause::TargetClosed,
                    Close::TARGET_CLOSED,
                ));
            }
            let length = read.filled().len();
            let frame = self.frame(buffer, start, length);
            Poll::Ready(self.pass_on(cx, frame, length))
        })
    }

    /// Makes a frame of the `length` bytes at `start`.
    fn frame<'b>(&self, buffer: &'b mut [u8], start: usize, length: usize) -> &'b [u8] {
        let (room, rest) = buffer
            .split_first_chunk_mut::<HEADER_ROOM>()
            .expect("the buffer begins with that room");
        let payload = match self.encoding {
            Encoding::Binary => length,
            Encoding::Base64 => {
                let (text, data) = rest.split_at_mut(start - HEADER_ROOM);
                base64::encode(&data[..length], text)
            }
        };
        let header = frame::write_header(self.encoding, payload, room);
        &buffer[header..HEADER_ROOM + payload]
    }

    /// Writes a frame with `length` bytes of the target's as far as the client takes it now.
    fn pass_on(&mut self, cx: &mut Context<'_>, frame: &[u8], length: usize) -> Turn {
        let mut rest = frame;
        while !rest.is_empty() {
            match Pin::new(&mut self.client).poll_write(cx, rest) {
                Poll::Ready(Ok(written)) => {
                    self.shared.note_written(written);
                    rest = &rest[written..];
                }
                Poll::Ready(Err(_)) => return Turn::ClientLost,
                Poll::Pending => break,
            }
        }
        self.shared.note_down(length);
        if self.traffic {
            log::mark(if rest.is_empty() { "{<" } else { "{<." });
        }
        Turn::Moved(rest.to_vec())
    }

    /// Writes what the client did not take at once; until it does, nothing more is read of the target.
    async fn write(&mut self, rest: &[u8]) -> io::Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        let lost = poll_fn(|_| {
            if self.shared.client_is_lost() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let written = tokio::select! {
            biased;
            () = lost => Err(io::ErrorKind::ConnectionAborted.into()),
            written = write_all(&mut self.client, rest, || self.shared.patience(), |written| self.shared.note_written(written)) => written,
        };
        match &written {
            Ok(()) if self.traffic => log::mark("<"),
            Ok(()) => {}
            Err(_) => self.shared.lose_client(Cause::ClientLost),
        }
        written
    }

    /// Sends what still waits of pongs, and the close frame.
    async fn say_goodbye(&mut self) -> io::Result<()> {
        let mut frames = self.shared.take_control();
        if let Some(close) = self.shared.close() {
            frame::append_close(close, &mut frames);
        }
        let mut sent = 0;
        if self.shared.up_has_ended() {
            // The client has had its last word, so ours is followed by the end at once.
            sent = sys::send_last(self.client.as_fd(), &frames);
            self.shared.note_written(sent);
        }
        self.write(&frames[sent..]).await
    }
}
