//! One client's session, by blocking calls.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};
use integration::{Handshake, close_payload, frame};

use crate::connection::Connection;
use crate::process::DEADLINE;
use crate::wire::{CLOSE, Decoder, Speech};

/// The longest head of an answer to an upgrade.
const MAX_HEAD: usize = 4096;

/// A session that is open: upgraded, if its relay is a bridge.
#[derive(Debug)]
pub(crate) struct Session {
    /// The connection.
    pub(crate) stream: Connection,
    /// Undoes what comes.
    pub(crate) decoder: Decoder,
    /// What the relay speaks.
    pub(crate) speech: Speech,
}

impl Session {
    /// Upgrades a new connection.
    pub(crate) fn begin(mut stream: Connection, speech: Speech) -> Result<Self> {
        if speech == Speech::WebSocket {
            stream
                .write_all(&Handshake::default().bytes())
                .context("ask for an upgrade")?;
            let mut head = Vec::new();
            while !head_is_whole(&head)? {
                let mut bytes = [0; MAX_HEAD];
                match stream
                    .read(&mut bytes)
                    .context("read an upgrade's answer")?
                {
                    0 => bail!("closed instead of an upgrade"),
                    length => head.extend_from_slice(&bytes[..length]),
                }
            }
        }
        Ok(Self {
            stream,
            decoder: Decoder::new(speech),
            speech,
        })
    }

    /// Sends a message.
    pub(crate) fn send(&mut self, payload: &[u8]) -> Result<()> {
        self.stream
            .write_all(&self.speech.message(payload))
            .context("send to the relay")
    }

    /// Reads until this has come, and fails if it is something else.
    pub(crate) fn expect(&mut self, payload: &[u8]) -> Result<()> {
        let mut got = Vec::with_capacity(payload.len());
        while got.len() < payload.len() {
            let more = self.receive(&mut [0; 4096], |piece| {
                got.extend_from_slice(piece);
                Ok(())
            })?;
            ensure!(more, "the relay closed too early");
        }
        ensure!(got == payload, "the relay sent something else");
        Ok(())
    }

    /// Reads once. Returns false at the end of the connection.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut [u8],
        take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<bool> {
        let length = self.stream.read(buffer).context("read from the relay")?;
        self.decoder.decode(&buffer[..length], take)?;
        Ok(length > 0)
    }

    /// Says that nothing more will come.
    pub(crate) fn finish(&mut self) -> Result<()> {
        match self.speech {
            Speech::Plain => self.stream.finish(),
            Speech::WebSocket => self.stream.write_all(&close_frame()),
        }
        .context("close towards the relay")
    }

    /// Reads to the end, and fails if anything comes before it but a close frame.
    pub(crate) fn expect_end(&mut self) -> Result<()> {
        while self.receive(&mut [0; 4096], |_| bail!("there came data after the close"))? {}
        let closed = self.speech == Speech::Plain || self.decoder.close_code().is_some();
        ensure!(closed, "there was no close frame");
        Ok(())
    }
}

/// The close frame of a client that is done.
pub(crate) fn close_frame() -> Vec<u8> {
    frame(CLOSE, &close_payload(1000, b""))
}

/// Whether the head of an answer has come whole; fails if it is no upgrade, or if there is something behind it.
pub(crate) fn head_is_whole(head: &[u8]) -> Result<bool> {
    let end = head.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else {
        ensure!(head.len() < MAX_HEAD, "the upgrade's answer does not end");
        return Ok(false);
    };
    ensure!(
        head.starts_with(b"HTTP/1.1 101 "),
        "the upgrade was refused"
    );
    ensure!(end + 4 == head.len(), "data came before it was asked for");
    Ok(true)
}

/// No delay for what is written, and a deadline for everything.
pub(crate) fn limit(stream: &TcpStream) -> Result<()> {
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(DEADLINE)))
        .and_then(|()| stream.set_write_timeout(Some(DEADLINE)))
        .context("set a connection up")
}
