//! The log: one line per event on stderr, in the form that scripts know from the original.
//!
//! An event with a `peer` field is about a connection and starts with `PEER - - [DATE] `; every other one is bare text. Control
//! characters are escaped here, for all lines, so nothing that came from the network can forge one. A line leaves in one
//! write, and a stderr that is closed or full is no reason to stop.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry;

use crate::sys;

/// Sends the events of this crate to stderr from now on, `debug` ones only if `verbose`.
pub fn init(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let subscriber = registry().with(Stderr { level });
    // Only a second call can fail, and the first one's settings stand.
    _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("internal error, please report it: {panic}");
    }));
}

/// Writes `text` to stderr as it is; nobody listening is not an error.
pub(crate) fn write_raw(text: &str) {
    _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// The layer behind [`init`].
struct Stderr {
    /// The most detailed level that is shown.
    level: Level,
}

impl<S: Subscriber> Layer<S> for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = String::with_capacity(128);
        if !fields.peer.is_empty() {
            let date = sys::LocalTime::now();
            // Writing to a string cannot fail.
            _ = write!(line, "{} - - [{date}] ", fields.peer);
        }
        escape_into(&mut line, &fields.message);
        line.push('\n');
        write_raw(&line);
    }
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
            '\u{20}'..='\u{7e}' => line.push(char),
            '\0'..='\u{7f}' => _ = write!(line, "\\x{:02x}", u32::from(char)),
            '\u{80}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                _ = write!(line, "{}", char.escape_unicode());
            }
            _ => line.push(char),
        }
    }
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
