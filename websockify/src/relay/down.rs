//! From the target to the client: what comes in goes out as frames, each as long as what there was to read.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::shared::Shared;
use super::splice::{self, Pipe};
use super::{
    CLOSE_LIMIT, Cause, EOF_LIMIT, STALL_LIMIT, Way, buffer, drain, finish, patiently, while_taking,
};
use crate::log;
use crate::record::{Recording, Side};
use crate::stream::{ReadHalf, WriteHalf};
use crate::sys;
use crate::websocket::frame::{self, HEADER_ROOM};
use crate::websocket::{Close, Encoding, base64};

/// How often a full pipe is moved before others have their turn.
const PIPES_IN_A_ROW: usize = 8;

/// The direction from the target to the client. It alone writes to the client.
pub(super) struct Down<'a> {
    target: ReadHalf<'a>,
    client: WriteHalf<'a>,
    encoding: Encoding,
    way: Way,
    shared: &'a Shared,
    recording: Option<&'a Recording>,
    traffic: bool,
    /// Whether much waits, so that a pipe is worth its while.
    much: bool,
    /// How often a pipe was full in a row.
    pipes_in_a_row: usize,
}

/// What one turn came to.
enum Turn {
    /// The target sent something; the client has not taken this part of its frame yet.
    Moved(Rest),
    /// The other direction has something for the client, or the session ends.
    Look,
    /// The target has ended its side.
    TargetFinished(Cause, Close),
    /// The target said nothing for too long after its client went away.
    GiveUp,
    /// The client's connection broke.
    ClientLost,
}

/// The rest of a frame: bytes, then what is in a pipe.
#[derive(Default)]
struct Rest {
    bytes: Vec<u8>,
    pipe: Option<Pipe>,
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.pipe.is_none()
    }
}

impl From<Vec<u8>> for Rest {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, pipe: None }
    }
}

impl<'a> Down<'a> {
    pub(super) fn new(
        target: ReadHalf<'a>,
        client: WriteHalf<'a>,
        encoding: Encoding,
        way: Way,
        shared: &'a Shared,
        recording: Option<&'a Recording>,
        traffic: bool,
    ) -> Self {
        Self {
            target,
            client,
            encoding,
            way,
            shared,
            recording,
            traffic,
            much: way == Way::SpliceAll,
            pipes_in_a_row: 0,
        }
    }

    /// Runs to the end.
    pub(super) async fn run(&mut self) {
        let target_finished = self.carry().await;
        // Boxed, as is everything that is not the ordinary case: an idle session need not have room for it.
        Box::pin(self.finish(target_finished)).await;
    }

    /// Ends the client's side, and drains the target's unless that has ended.
    async fn finish(&mut self, target_finished: bool) {
        if !self.shared.client_is_lost() && self.say_goodbye().await.is_ok() {
            let client = self.client.descriptor();
            let stall_limit = self.shared.patience().unwrap_or(STALL_LIMIT);
            let answer =
                while_taking(client, CLOSE_LIMIT, stall_limit, self.shared.up_ended()).await;
            if answer.is_none() {
                self.shared.cut_up().await;
            }
            finish(&mut self.client, stall_limit).await;
        } else {
            self.shared.lose_client(Cause::ClientLost);
        }
        self.shared.finish_down().await;
        if !target_finished && !self.shared.target_is_lost() {
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
            if !control.is_empty() && Box::pin(self.write(control.into())).await.is_err() {
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
                    if !rest.is_empty() && Box::pin(self.write(rest)).await.is_err() {
                        return false;
                    }
                    if let Some(recording) = self.recording
                        && !recording.has_room()
                    {
                        let ends = || self.shared.client_is_lost() || self.shared.close().is_some();
                        Box::pin(recording.room(ends)).await;
                    }
                    if self.pipes_in_a_row == PIPES_IN_A_ROW {
                        self.pipes_in_a_row = 0;
                        tokio::task::yield_now().await;
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
        let splices = self.much && self.way != Way::Copy;
        if let Some(pipe) = splices.then(Pipe::take).flatten() {
            return self.poll_splice(cx, pipe);
        }
        self.poll_copy(cx)
    }

    /// Moves what waits into a pipe, and on to the client as far as it takes it at once.
    fn poll_splice(&mut self, cx: &mut Context<'_>, mut pipe: Pipe) -> Poll<Turn> {
        // That nothing is there, or nothing more, is not for splice(2) to say: it stops at urgent data (tcp(7)) and never gets
        // past it. So the runtime is not told, and reading decides.
        let filled = self.target.poll_io(cx, |target| match pipe.fill(target) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            filled => filled,
        });
        let length = match filled {
            Poll::Ready(Ok(0)) => {
                pipe.put_back();
                self.note_much(0);
                return self.poll_copy(cx);
            }
            Poll::Ready(Ok(length)) => length,
            Poll::Ready(Err(error)) if splice::is_unfit(&error) => {
                self.way = Way::Copy;
                return self.poll_copy(cx);
            }
            Poll::Ready(Err(_)) => return Poll::Ready(self.target_finished(true)),
            Poll::Pending => {
                pipe.put_back();
                self.note_much(0);
                return Poll::Pending;
            }
        };
        self.note_much(length);
        self.pipes_in_a_row += 1;
        self.shared.note_down(length);
        let mut room = [0; HEADER_ROOM];
        let start = frame::write_header(self.encoding, length, &mut room);
        let mut rest = Rest {
            bytes: room[start..].to_vec(),
            pipe: Some(pipe),
        };
        let moved = self.poll_rest(cx, &mut rest);
        if self.traffic {
            log::mark(if rest.is_empty() { "{<" } else { "{<." });
        }
        match moved {
            Poll::Ready(Err(_)) => Poll::Ready(Turn::ClientLost),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Turn::Moved(rest)),
        }
    }

    /// Takes note of how much was there at once.
    fn note_much(&mut self, length: usize) {
        self.much = length >= buffer::PAYLOAD || self.way == Way::SpliceAll;
        if length < buffer::PAYLOAD {
            self.pipes_in_a_row = 0;
        }
    }

    /// Writes as much of the rest as the client takes, until all is written.
    fn poll_rest(&mut self, cx: &mut Context<'_>, rest: &mut Rest) -> Poll<io::Result<()>> {
        while let Some(pipe) = &mut rest.pipe {
            if !rest.bytes.is_empty() {
                // The payload follows at once, and is to travel with its header.
                let sent = self
                    .client
                    .poll_io(cx, |client| sys::send_more(client, &rest.bytes));
                let sent = ready!(sent)?;
                self.shared.note_written(sent);
                rest.bytes.drain(..sent);
                continue;
            }
            match ready!(self.client.poll_io(cx, |client| pipe.drain(client))) {
                Ok(moved) => self.shared.note_written(moved),
                Err(error) if splice::is_unfit(&error) => {
                    self.way = Way::Copy;
                    rest.bytes = pipe.empty()?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            if pipe.held() == 0 {
                rest.pipe.take().into_iter().for_each(Pipe::put_back);
            }
        }
        while !rest.bytes.is_empty() {
            let written = ready!(Pin::new(&mut self.client).poll_write(cx, &rest.bytes))?;
            self.shared.note_written(written);
            rest.bytes.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// How the session ends with its target's data.
    fn target_finished(&self, failed: bool) -> Turn {
        if failed || self.shared.target_was_reset() {
            Turn::TargetFinished(Cause::TargetFailed, Close::TARGET_FAILED)
        } else {
            Turn::TargetFinished(Cause::TargetClosed, Close::TARGET_CLOSED)
        }
    }

    /// Reads once into the worker's buffer and writes what the client takes at once.
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        buffer::with(|buffer| {
            // Base64 grows by a third: its text is made in front of the bytes.
            let start = match self.encoding {
                Encoding::Binary => HEADER_ROOM,
                Encoding::Base64 => HEADER_ROOM + buffer::PAYLOAD / 3 * 2,
            };
            let mut read = ReadBuf::new(&mut buffer[start..]);
            let result = ready!(Pin::new(&mut self.target).poll_read(cx, &mut read));
            if let Err(error) = &result {
                self.shared.note_error(error);
            }
            if result.is_err() || read.filled().is_empty() {
                return Poll::Ready(self.target_finished(result.is_err()));
            }
            let length = read.filled().len();
            self.note_much(length);
            if let Some(recording) = self.recording {
                recording.note(Side::Target, &buffer[start..start + length]);
            }
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
        Turn::Moved(rest.to_vec().into())
    }

    /// Writes what the client did not take at once; until it does, nothing more is read of the target.
    async fn write(&mut self, mut rest: Rest) -> io::Result<()> {
        let shared = self.shared;
        let lost = poll_fn(|_| {
            if shared.client_is_lost() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let write = |cx: &mut Context<'_>, progress: &mut bool| {
            let before = shared.written();
            let written = self.poll_rest(cx, &mut rest);
            *progress |= shared.written() > before;
            written
        };
        let written = tokio::select! {
            biased;
            () = lost => Err(io::ErrorKind::ConnectionAborted.into()),
            written = patiently(write, || shared.patience()) => written,
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
            sent = self.client.send_more(&frames);
            self.shared.note_written(sent);
        }
        self.write(frames.split_off(sent).into()).await
    }
}
