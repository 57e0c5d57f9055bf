//! The text form: the words that scripts know from the original.
//!
//! An event with a `peer` field is about a connection and starts with `PEER - - [DATE] `; every other one is bare text.

use std::fmt::{self, Write as _};

use tracing::Event;
use tracing::field::{Field, Visit};

use super::MAX_LINE;
use crate::sys;

/// The line for an event.
pub(super) fn line(event: &Event<'_>) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let mut line = String::with_capacity(128);
    if !fields.peer.is_empty() {
        let date = sys::LocalTime::now();
        // Writing to a string cannot fail.
        _ = write!(line, "{} - - [{date}] ", fields.peer);
    }
    escape_into(&mut line, &fields.message);
    line.truncate(line.floor_char_boundary(MAX_LINE));
    line
}

/// The fields of an event that a line shows.
#[derive(Default)]
struct Fields {
    message: String,
    peer: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "message" => &mut self.message,
            "peer" => &mut self.peer,
            _ => return,
        };
        // Writing to a string cannot fail.
        _ = write!(text, "{value:?}");
    }
}

/// Appends `text` with its control characters as `\xHH` or `\u{…}`.
fn escape_into(line: &mut String, text: &str) {
    for char in text.chars() {
        match char {
            _ if !needs_escape(char) => line.push(char),
            '\0'..='\u{7f}' => _ = write!(line, "\\x{:02x}", u32::from(char)),
            _ => _ = write!(line, "{}", char.escape_unicode()),
        }
    }
}

/// Whether a character could end a line, or make it look like another: control characters, and those that turn the direction of
/// what follows.
pub(super) fn needs_escape(char: char) -> bool {
    matches!(
        char,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_forge_a_line() {
        let mut line = String::new();
        escape_into(&mut line, "a\nb\r\x1b[1m\0\u{85}\u{2028}\u{202e}é");
        assert_eq!(line, "a\\x0ab\\x0d\\x1b[1m\\x00\\u{85}\\u{2028}\\u{202e}é");
    }
}
