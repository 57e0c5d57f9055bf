//! Base64 (RFC 4648, section 4) as a stream: the payload of 0.8.0's `base64` subprotocol.
//!
//! Decoding works in place and keeps at most six bits between two calls, so that a message of any length passes through. The
//! `base64` crate wants a whole message at once, which is why it only encodes here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Decodes one message after another.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// Bits that have come and do not make a byte yet, in the low end.
    bits: u16,
    /// Characters of the current group of four that have come, padding included.
    position: u8,
    /// Whether the current group has padding.
    padded: bool,
}

/// A character that has no place in base64, or a message that ends within a byte.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

impl Decoder {
    /// Decodes `text`, the next part of a message, in place. Returns the number of bytes that are now at its front.
    pub(crate) fn decode(&mut self, text: &mut [u8]) -> Result<usize, Invalid> {
        let mut length = 0;
        for index in 0..text.len() {
            let char = text[index];
            let six_bits = match char {
                b'A'..=b'Z' => char - b'A',
                b'a'..=b'z' => char - b'a' + 26,
                b'0'..=b'9' => char - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' if self.position >= 2 => {
                    self.padded = true;
                    self.advance();
                    continue;
                }
                // Encoders that break lines are forgiven.
                b'\r' | b'\n' => continue,
                _ => return Err(Invalid),
            };
            if self.padded {
                return Err(Invalid);
            }
            self.bits = (self.bits & 0x3f) << 6 | u16::from(six_bits);
            // After the first character of a group there are 6 bits, after the others 12, 10 and 8.
            if self.position > 0 {
                text[length] = (self.bits >> (6 - 2 * u16::from(self.position))) as u8;
                length += 1;
            }
            self.advance();
        }
        Ok(length)
    }

    /// Ends a message, whose padding may be missing.
    pub(crate) fn finish(&mut self) -> Result<(), Invalid> {
        let whole = self.position == 0 || (self.position != 1 && !self.padded);
        *self = Self::default();
        if whole { Ok(()) } else { Err(Invalid) }
    }

    fn advance(&mut self) {
        self.position = (self.position + 1) % 4;
        if self.position == 0 {
            self.padded = false;
        }
    }
}

/// The length of `length` bytes in base64.
#[cfg(test)]
fn encoded_length(length: usize) -> usize {
    length.div_ceil(3) * 4
}

/// Encodes `data` into the front of `text`, which must have room for four bytes per three begun.
pub(crate) fn encode(data: &[u8], text: &mut [u8]) -> usize {
    STANDARD
        .encode_slice(data, text)
        .expect("there is room for the encoded length")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a message in parts of `step` bytes.
    fn decode(text: &str, step: usize) -> Result<Vec<u8>, Invalid> {
        let mut decoder = Decoder::default();
        let mut bytes = Vec::new();
        for part in text.as_bytes().chunks(step) {
            let mut part = part.to_vec();
            let length = decoder.decode(&mut part)?;
            bytes.extend_from_slice(&part[..length]);
        }
        decoder.finish().map(|()| bytes)
    }

    #[test]
    fn every_length_survives_in_parts_of_every_size() {
        let data: Vec<u8> = (0..=255).cycle().skip(7).take(300).collect();
        for length in 0..data.len() {
            let mut text = vec![0; encoded_length(length)];
            assert_eq!(encode(&data[..length], &mut text), text.len());
            let text = String::from_utf8(text).unwrap();
            for step in [1, 2, 3, 4, 5, 64, 1000] {
                assert_eq!(
                    decode(&text, step).as_deref(),
                    Ok(&data[..length]),
                    "{length} in parts of {step}"
                );
                assert_eq!(
                    decode(text.trim_end_matches('='), step).as_deref(),
                    Ok(&data[..length]),
                    "unpadded"
                );
            }
        }
    }

    #[test]
    fn line_breaks_are_forgiven_and_groups_may_follow_padding() {
        assert_eq!(decode("YW\r\nJj\n", 1).as_deref(), Ok(&b"abc"[..]));
        assert_eq!(decode("YQ==YQ==", 3).as_deref(), Ok(&b"aa"[..]));
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for bad in [
            "A",
            "AAAAA",
            "=",
            "A=",
            "AA=A",
            "AA=",
            "AA==A",
            "A A=",
            "AAA-",
            "AAA_",
            "\u{e9}AAA",
            "====",
        ] {
            assert_eq!(decode(bad, 1), Err(Invalid), "{bad:?}");
            assert_eq!(decode(bad, 100), Err(Invalid), "{bad:?}");
        }
    }
}
