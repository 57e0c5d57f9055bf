//! What goes over the client's connection: a server's frames undone, exactly and without a copy, or plain bytes.

use anyhow::{Result, bail, ensure};

/// The first byte of a whole binary message.
pub(crate) const BINARY: u8 = 0x82;
/// The first byte of a close frame.
pub(crate) const CLOSE: u8 = 0x88;
/// The longest payload of a control frame.
const MAX_CONTROL: usize = 125;

/// What a relay's clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    /// The target's bytes as they are.
    Plain,
    /// WebSocket.
    WebSocket,
}

impl Speech {
    /// A message as a client sends it.
    pub(crate) fn message(self, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => payload.to_vec(),
            Self::WebSocket => integration::frame(BINARY, payload),
        }
    }
}

/// Takes apart what a client receives.
#[derive(Debug)]
pub(crate) struct Decoder {
    speech: Speech,
    /// The part of a frame's header that has come.
    header: Vec<u8>,
    /// How much of the frame's payload has not come.
    remaining: u64,
    /// The payload of a close frame, once its header has come.
    close: Option<Vec<u8>>,
}

impl Decoder {
    /// A decoder for a new connection.
    pub(crate) fn new(speech: Speech) -> Self {
        Self {
            speech,
            header: Vec::new(),
            remaining: 0,
            close: None,
        }
    }

    /// Hands the next part's payload over, piece by piece.
    pub(crate) fn decode(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.speech == Speech::Plain && !bytes.is_empty() {
            return take(bytes);
        }
        while let Some(&next) = bytes.first() {
            if self.remaining == 0 {
                bytes = &bytes[1..];
                self.header.push(next);
                self.finish_header()?;
                continue;
            }
            let length = bytes
                .len()
                .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
            let (payload, rest) = bytes.split_at(length);
            match &mut self.close {
                Some(close) => close.extend_from_slice(payload),
                None => take(payload)?,
            }
            self.remaining -= length as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// The code of the close frame, if it has come whole; 1005 if it has none (RFC 6455, section 7.1.5).
    pub(crate) fn close_code(&self) -> Option<u16> {
        let close = self.close.as_ref().filter(|_| self.remaining == 0)?;
        let code = close
            .first_chunk::<2>()
            .map_or(1005, |code| u16::from_be_bytes(*code));
        Some(code)
    }

    /// Looks whether the header is whole now.
    fn finish_header(&mut self) -> Result<()> {
        ensure!(
            self.close.is_none(),
            "the server sent something after its close frame"
        );
        let [first, length, extended @ ..] = &self.header[..] else {
            return Ok(());
        };
        self.remaining = match (length, extended.len()) {
            (0..126, _) => (*length).into(),
            (126, 2) | (127, 8) => extended
                .iter()
                .fold(0, |length, &byte| length << 8 | u64::from(byte)),
            (126 | 127, _) => return Ok(()),
            (128.., _) => bail!("the server masks"),
        };
        match first {
            // Whole messages, and the parts of one in several frames.
            &BINARY | 0x02 | 0x00 | 0x80 => {}
            &CLOSE if self.remaining <= MAX_CONTROL as u64 => self.close = Some(Vec::new()),
            _ => bail!("the server sent an unexpected frame: {:02x?}", self.header),
        }
        self.header.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A binary frame of each form of length, and a close frame.
    fn stream() -> (Vec<u8>, Vec<u8>) {
        let payload = integration::pattern(200 + 70_000 + 3);
        let mut bytes = vec![BINARY, 126, 0, 200];
        bytes.extend_from_slice(&payload[..200]);
        bytes.extend_from_slice(&[0x02, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
        bytes.extend_from_slice(&payload[200..70_200]);
        bytes.extend_from_slice(&[BINARY, 0, 0x80, 3]);
        bytes.extend_from_slice(&payload[70_200..]);
        bytes.extend_from_slice(&[CLOSE, 3, 0x03, 0xe9, b'x']);
        (bytes, payload)
    }

    #[test]
    fn frames_are_undone_wherever_they_are_cut() {
        let (bytes, payload) = stream();
        for cut in (0..300).chain(bytes.len() - 30..bytes.len()) {
            let mut decoder = Decoder::new(Speech::WebSocket);
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                assert_eq!(decoder.close_code(), None);
                decoder
                    .decode(part, |piece| {
                        got.extend_from_slice(piece);
                        Ok(())
                    })
                    .expect("the stream is right");
            }
            assert!(got == payload, "cut at {cut}");
            assert_eq!(decoder.close_code(), Some(1001));
        }
    }

    #[test]
    fn what_a_server_must_not_send_is_an_error() {
        for wrong in [&[BINARY, 0x81][..], &[0x81, 1], &[CLOSE, 0, BINARY]] {
            let mut decoder = Decoder::new(Speech::WebSocket);
            assert!(decoder.decode(wrong, |_| Ok(())).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn plain_bytes_stay_as_they_are() {
        let mut decoder = Decoder::new(Speech::Plain);
        let mut got = Vec::new();
        decoder
            .decode(&[BINARY, 0x81], |piece| {
                got.extend_from_slice(piece);
                Ok(())
            })
            .expect("plain bytes are always right");
        assert_eq!(got, [BINARY, 0x81]);
        assert_eq!(decoder.close_code(), None);
    }
}
