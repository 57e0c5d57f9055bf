//! Frames in and out (RFC 6455, section 5).
//!
//! [`Decoder`] turns what a client sent into payload, in place and as it arrives: a frame is never assembled, whatever its
//! length. The only things kept between two calls are a header that has not come whole and a control frame's 125 bytes.

use std::io::Cursor;
use std::ops::Range;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{
    Control as ControlCode, Data as DataCode, OpCode,
};

use super::{Close, Encoding, base64};

/// The longest header of a frame that a server sends.
pub(crate) const HEADER_ROOM: usize = 10;
/// The first byte of a close frame.
pub(crate) const CLOSE_FRAME: u8 = 0x88;
/// The longest header of a frame that a client sends.
const MAX_HEADER: usize = 14;
/// The longest payload of a control frame.
const MAX_CONTROL: usize = 125;

/// A client's frames, undone.
#[derive(Debug)]
pub(crate) struct Decoder {
    encoding: Encoding,
    base64: base64::Decoder,
    /// Whether a message has begun whose last frame has not come.
    in_message: bool,
    state: State,
    /// The part of a header that has come, or of a control frame's payload.
    partial: [u8; MAX_CONTROL],
    partial_length: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Within a header, or before one.
    Header,
    /// Within the payload of a data frame; the mask is turned to where the rest of the payload begins.
    Data {
        remaining: u64,
        mask: [u8; 4],
        last: bool,
    },
    /// Within the payload of a control frame.
    Control {
        code: ControlCode,
        length: usize,
        mask: [u8; 4],
    },
    /// The client has closed, or broken the protocol.
    Ended,
}

/// What a part of a client's stream came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Where in the buffer the payload stands.
    pub(crate) payload: Range<usize>,
    /// Set when nothing after it counts.
    pub(crate) end: Option<End>,
}

/// Why a client's stream has ended before its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It sent a close frame; this is the answer.
    Closed(Close),
    /// It broke the protocol; this is what to tell it.
    Violation(Close),
}

impl Decoder {
    /// A decoder for a new session.
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            base64: base64::Decoder::default(),
            in_message: false,
            state: State::Header,
            partial: [0; MAX_CONTROL],
            partial_length: 0,
        }
    }

    /// Whether the last byte that was decoded ended a frame.
    pub(crate) fn at_frame_boundary(&self) -> bool {
        matches!(self.state, State::Header) && self.partial_length == 0
    }

    /// Decodes the next part of the stream. Payload of all its data frames is moved together within `buffer`; `on_ping` is
    /// called with each ping's payload.
    pub(crate) fn decode(&mut self, buffer: &mut [u8], mut on_ping: impl FnMut(&[u8])) -> Decoded {
        let mut payload = 0..0;
        let end = self.decode_frames(buffer, &mut payload, &mut on_ping).err();
        if end.is_some() {
            self.state = State::Ended;
        }
        Decoded { payload, end }
    }

    fn decode_frames(
        &mut self,
        buffer: &mut [u8],
        payload: &mut Range<usize>,
        on_ping: &mut impl FnMut(&[u8]),
    ) -> Result<(), End> {
        let mut at = 0;
        while at < buffer.len() {
            match self.state {
                State::Header => {
                    self.take_header_byte(buffer[at])?;
                    at += 1;
                }
                State::Data {
                    remaining,
                    mut mask,
                    last,
                } => {
                    let available = buffer.len() - at;
                    let length = usize::try_from(remaining)
                        .map_or(available, |remaining| remaining.min(available));
                    unmask(&mut buffer[at..at + length], &mut mask);
                    let decoded = match self.encoding {
                        Encoding::Binary => length,
                        Encoding::Base64 => self
                            .base64
                            .decode(&mut buffer[at..at + length])
                            .map_err(bad_base64)?,
                    };
                    append(buffer, payload, at..at + decoded);
                    at += length;
                    self.state = State::Data {
                        remaining: remaining - length as u64,
                        mask,
                        last,
                    };
                }
                State::Control { length, .. } => {
                    let part = (length - self.partial_length).min(buffer.len() - at);
                    self.partial[self.partial_length..][..part]
                        .copy_from_slice(&buffer[at..at + part]);
                    self.partial_length += part;
                    at += part;
                }
                State::Ended => return Ok(()),
            }
            self.finish_frame(on_ping)?;
        }
        Ok(())
    }

    /// Adds a byte to the header; one that is wrong is refused as soon as that can be told.
    fn take_header_byte(&mut self, byte: u8) -> Result<(), End> {
        self.partial[self.partial_length] = byte;
        self.partial_length += 1;
        match self.partial[..self.partial_length] {
            [first] => self.check_first_byte(first),
            [first, second] => check_second_byte(first, second),
            _ => self.parse_header(),
        }
    }

    fn check_first_byte(&self, first: u8) -> Result<(), End> {
        if first & 0x70 != 0 {
            return violation("Reserved bits are set");
        }
        let last = first & 0x80 != 0;
        match (OpCode::from(first & 0x0f), self.in_message) {
            (
                OpCode::Data(DataCode::Reserved(_)) | OpCode::Control(ControlCode::Reserved(_)),
                _,
            ) => violation("Unknown opcode"),
            (OpCode::Control(_), _) if !last => violation("Control frame is fragmented"),
            (OpCode::Data(DataCode::Continue), false) => {
                violation("Continuation without a message")
            }
            (OpCode::Data(DataCode::Text | DataCode::Binary), true) => {
                violation("New message within a message")
            }
            (OpCode::Data(DataCode::Text), false) if self.encoding == Encoding::Binary => {
                Err(End::Violation(Close::TEXT))
            }
            _ => Ok(()),
        }
    }

    fn parse_header(&mut self) -> Result<(), End> {
        debug_assert!(self.partial_length <= MAX_HEADER);
        let bytes = &self.partial[..self.partial_length];
        let (header, length) = match FrameHeader::parse(&mut Cursor::new(bytes)) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok(()),
            Err(_) => return violation("Malformed frame header"),
        };
        let shortest_form = match bytes[1] & 0x7f {
            126 => length >= 126,
            127 => length > u64::from(u16::MAX) && length >> 63 == 0,
            _ => true,
        };
        if !shortest_form {
            return violation("Malformed frame length");
        }
        let mask = header.mask.unwrap_or_default();
        self.partial_length = 0;
        self.state = match header.opcode {
            OpCode::Control(code) => State::Control {
                code,
                length: length as usize,
                mask,
            },
            OpCode::Data(_) => {
                self.in_message = !header.is_final;
                State::Data {
                    remaining: length,
                    mask,
                    last: header.is_final,
                }
            }
        };
        Ok(())
    }

    /// Ends the current frame if all of it has come.
    fn finish_frame(&mut self, on_ping: &mut impl FnMut(&[u8])) -> Result<(), End> {
        match self.state {
            State::Data {
                remaining: 0, last, ..
            } => {
                if last && self.encoding == Encoding::Base64 {
                    self.base64.finish().map_err(bad_base64)?;
                }
            }
            State::Control {
                code,
                length,
                mut mask,
            } if self.partial_length == length => {
                let payload = &mut self.partial[..length];
                unmask(payload, &mut mask);
                match code {
                    ControlCode::Ping => on_ping(payload),
                    ControlCode::Close => return Err(parse_close(payload)),
                    ControlCode::Pong | ControlCode::Reserved(_) => {}
                }
                self.partial_length = 0;
            }
            _ => return Ok(()),
        }
        self.state = State::Header;
        Ok(())
    }
}

fn check_second_byte(first: u8, second: u8) -> Result<(), End> {
    if second & 0x80 == 0 {
        return violation("Frame is not masked");
    }
    if first & 0x08 != 0 && usize::from(second & 0x7f) > MAX_CONTROL {
        return violation("Control frame is too long");
    }
    Ok(())
}

/// What to answer to a close frame with this payload.
fn parse_close(payload: &[u8]) -> End {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload {
            [] => End::Closed(Close {
                code: None,
                reason: "",
            }),
            _ => End::Violation(Close::protocol_error("Close frame has half a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    match code {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        _ => return End::Violation(Close::protocol_error("Close code is not allowed")),
    }
    if std::str::from_utf8(reason).is_err() {
        return End::Violation(Close::BAD_REASON);
    }
    End::Closed(Close::new(code, ""))
}

fn violation<T>(reason: &'static str) -> Result<T, End> {
    Err(End::Violation(Close::protocol_error(reason)))
}

fn bad_base64(_: base64::Invalid) -> End {
    End::Violation(Close::BAD_BASE64)
}

/// Appends `part` of the buffer to the payload before it.
fn append(buffer: &mut [u8], payload: &mut Range<usize>, part: Range<usize>) {
    if payload.start == payload.end {
        *payload = part;
    } else {
        let length = part.len();
        if part.start != payload.end {
            buffer.copy_within(part, payload.end);
        }
        payload.end += length;
    }
}

/// Removes the mask from `data` and turns it for what follows.
fn unmask(data: &mut [u8], mask: &mut [u8; 4]) {
    let narrow = u128::from(u32::from_ne_bytes(*mask));
    let wide = narrow | narrow << 32 | narrow << 64 | narrow << 96;
    let (words, rest) = data.as_chunks_mut::<16>();
    for word in words {
        *word = (u128::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    mask.rotate_left(data.len() % 4);
}

/// Writes the header of a whole message of `length` bytes so that it ends where `room` ends; returns where it begins.
pub(crate) fn write_header(
    encoding: Encoding,
    length: usize,
    room: &mut [u8; HEADER_ROOM],
) -> usize {
    let code = match encoding {
        Encoding::Binary => DataCode::Binary,
        Encoding::Base64 => DataCode::Text,
    };
    let header = FrameHeader {
        opcode: OpCode::Data(code),
        mask: None,
        ..FrameHeader::default()
    };
    let start = HEADER_ROOM - header.len(length as u64);
    header
        .format(length as u64, &mut &mut room[start..])
        .expect("the room is as long as the header");
    start
}

/// A pong with this payload, or our own ping, appended to `frames`.
pub(crate) fn append_control(code: ControlCode, payload: &[u8], frames: &mut Vec<u8>) {
    let header = FrameHeader {
        opcode: OpCode::Control(code),
        mask: None,
        ..FrameHeader::default()
    };
    header
        .format(payload.len() as u64, frames)
        .expect("a vector takes everything");
    frames.extend_from_slice(payload);
}

/// A close frame, appended to `frames`.
pub(crate) fn append_close(close: Close, frames: &mut Vec<u8>) {
    // A reason is at most 123 bytes, see `Close`.
    let mut payload = Vec::with_capacity(MAX_CONTROL);
    if let Some(code) = close.code {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(close.reason.as_bytes());
    }
    append_control(ControlCode::Close, &payload, frames);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame with a mask that is not symmetric.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ ..126 => frame.push(0x80 | length as u8),
            length @ 126..65536 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        let mask = [0x12, 0x34, 0x56, 0x78];
        frame.extend_from_slice(&mask);
        frame.extend(
            payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, key)| byte ^ key),
        );
        frame
    }

    /// Everything that a stream comes to when it arrives in parts of `step` bytes.
    fn decode(
        encoding: Encoding,
        stream: &[u8],
        step: usize,
    ) -> (Vec<u8>, Vec<Vec<u8>>, Option<End>) {
        let mut decoder = Decoder::new(encoding);
        let (mut data, mut pings) = (Vec::new(), Vec::new());
        for part in stream.chunks(step) {
            let mut part = part.to_vec();
            let decoded = decoder.decode(&mut part, |ping| pings.push(ping.to_vec()));
            data.extend_from_slice(&part[decoded.payload]);
            if decoded.end.is_some() {
                return (data, pings, decoded.end);
            }
        }
        (data, pings, None)
    }

    /// The same for every way to cut the stream into equal parts.
    fn decode_all_ways(encoding: Encoding, stream: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>, Option<End>) {
        let whole = decode(encoding, stream, stream.len());
        for step in 1..stream.len().min(200) {
            assert_eq!(decode(encoding, stream, step), whole, "in parts of {step}");
        }
        whole
    }

    #[test]
    fn payload_of_every_length_class_comes_out_whole() {
        for length in [0, 1, 124, 125, 126, 127, 65535, 65536, 70000] {
            let payload: Vec<u8> = (0..=250).cycle().take(length).collect();
            let stream = [frame(0x82, b"<"), frame(0x82, &payload), frame(0x82, b">")].concat();
            for step in [stream.len(), 1, 7, 4096] {
                let (data, _, end) = decode(Encoding::Binary, &stream, step);
                assert!(
                    data == [b"<", &payload[..], b">"].concat() && end.is_none(),
                    "{length} in parts of {step}"
                );
            }
        }
    }

    #[test]
    fn fragments_with_pings_between_them_make_one_stream() {
        let stream = [
            frame(0x02, b"one"),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x00, b"two"),
            frame(0x8a, b"pong"),
            frame(0x89, b""),
            frame(0x80, b"three"),
            frame(0x82, b""),
            frame(0x82, b"four"),
        ]
        .concat();
        let (data, pings, end) = decode_all_ways(Encoding::Binary, &stream);
        assert_eq!(data, b"onetwothreefour");
        assert_eq!(pings, [&b"ping"[..], b""]);
        assert_eq!(end, None);
    }

    #[test]
    fn base64_messages_are_decoded_across_fragments() {
        let stream = [
            frame(0x01, b"YWJ"),
            frame(0x89, b"!"),
            frame(0x80, b"jZGU="),
            frame(0x81, b"Zg=="),
            frame(0x82, b"Zw=="),
        ];
        let (data, _, end) = decode_all_ways(Encoding::Base64, &stream.concat());
        assert_eq!((&data[..], end), (&b"abcdefg"[..], None));
        let (data, _, end) = decode_all_ways(
            Encoding::Base64,
            &[frame(0x81, b"YWJj"), frame(0x81, b"Y")].concat(),
        );
        assert_eq!(
            (&data[..], end),
            (&b"abc"[..], Some(End::Violation(Close::BAD_BASE64)))
        );
    }

    #[test]
    fn a_close_is_answered_with_its_code_and_ends_the_stream() {
        let after = frame(0x82, b"after");
        for (payload, code) in [
            (&b""[..], None),
            (&[3, 232, b'x'][..], Some(1000)),
            (&[0x13, 0x87][..], Some(4999)),
        ] {
            let stream = [frame(0x82, b"before"), frame(0x88, payload), after.clone()].concat();
            let (data, _, end) = decode_all_ways(Encoding::Binary, &stream);
            assert_eq!(data, b"before");
            assert_eq!(end, Some(End::Closed(Close { code, reason: "" })));
        }
    }

    #[test]
    fn every_violation_has_its_code_and_lets_nothing_of_its_frame_through() {
        let unmasked = [0x82, 0x03, b'a', b'b', b'c'].to_vec();
        let sixteen_bit_zero = [&[0x82, 0xfe, 0, 125, 0, 0, 0, 0][..], &[0; 125]].concat();
        let sixty_four_bit_short = [
            &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0][..],
            &[0; 99],
        ]
        .concat();
        let negative = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].to_vec();
        for (name, bad, code) in [
            ("text", frame(0x81, b"bad"), 1003),
            ("text fragment", frame(0x01, b"bad"), 1003),
            ("rsv1", frame(0xc2, b"bad"), 1002),
            ("rsv2", frame(0xa2, b"bad"), 1002),
            ("rsv3", frame(0x92, b"bad"), 1002),
            ("opcode 3", frame(0x83, b"bad"), 1002),
            ("opcode 11", frame(0x8b, b"bad"), 1002),
            ("unmasked", unmasked, 1002),
            ("continuation", frame(0x80, b"bad"), 1002),
            ("fragmented ping", frame(0x09, b"bad"), 1002),
            ("long ping", frame(0x89, &[0; 126]), 1002),
            ("long length", sixteen_bit_zero, 1002),
            ("longer length", sixty_four_bit_short, 1002),
            ("negative length", negative, 1002),
            ("half a close code", frame(0x88, &[3]), 1002),
            ("close code 1005", frame(0x88, &[3, 237]), 1002),
            ("close code 999", frame(0x88, &[3, 231]), 1002),
            ("close code 5000", frame(0x88, &[0x13, 0x88]), 1002),
            ("close reason", frame(0x88, &[3, 232, 0xff]), 1007),
        ] {
            let stream = [frame(0x82, b"good"), bad, frame(0x82, b"after")].concat();
            let (data, _, end) = decode_all_ways(Encoding::Binary, &stream);
            assert_eq!(data, b"good", "{name}");
            let Some(End::Violation(close)) = end else {
                panic!("{name}: {end:?}")
            };
            assert_eq!(close.code, Some(code), "{name}");
            assert!(
                !close.reason.is_empty() && close.reason.len() <= 123,
                "{name}"
            );
        }
        let nested = [frame(0x02, b"good"), frame(0x82, b"bad")].concat();
        let (data, _, end) = decode_all_ways(Encoding::Binary, &nested);
        assert_eq!(data, b"good");
        assert!(matches!(
            end,
            Some(End::Violation(Close {
                code: Some(1002),
                ..
            }))
        ));
    }

    #[test]
    fn headers_have_the_shortest_form() {
        for (length, expected) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65535, &[0x82, 126, 0xff, 0xff]),
            (65536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut room = [0; HEADER_ROOM];
            let start = write_header(Encoding::Binary, length, &mut room);
            assert_eq!(&room[start..], expected);
        }
        let mut room = [0; HEADER_ROOM];
        let start = write_header(Encoding::Base64, 4, &mut room);
        assert_eq!(&room[start..], [0x81, 4]);
    }
}
