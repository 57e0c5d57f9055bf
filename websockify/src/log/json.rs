//! The JSON form: one object per event on one line. Its members are `time`, `level`, `message` and the fields of the event by their
//! names; a `peer` becomes `connection` and `peer`.
//!
//! What would break a line, or show as something else than it is, is escaped as JSON knows it. Long texts are cut, so that what
//! is left of the line is an object still.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::MAX_LINE;
use super::text::needs_escape;
use crate::sys::UniversalTime;

/// The line for an event.
pub(super) fn line(event: &Event<'_>, time: SystemTime) -> String {
    let mut limit = MAX_LINE;
    loop {
        let mut object = Object::new(*event.metadata().level(), time, limit);
        event.record(&mut object);
        let line = object.end();
        if line.len() <= MAX_LINE {
            return line;
        }
        limit /= 2;
    }
}

/// The line for a message that is no event.
pub(super) fn message(level: Level, message: &str, time: SystemTime) -> String {
    let mut object = Object::new(level, time, MAX_LINE);
    object.add_text("message", message);
    object.end()
}

/// An object that is being written.
struct Object {
    line: String,
    /// How many bytes of a text are shown.
    limit: usize,
}

impl Object {
    fn new(level: Level, time: SystemTime, limit: usize) -> Self {
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            _ => "debug",
        };
        let mut line = String::with_capacity(384);
        // Writing to a string cannot fail.
        _ = write!(
            line,
            r#"{{"time":"{}","level":"{level}""#,
            UniversalTime::from(time)
        );
        Self { line, limit }
    }

    fn add(&mut self, name: &str, value: impl fmt::Display) {
        _ = write!(self.line, r#","{name}":{value}"#);
    }

    fn add_text(&mut self, name: &str, text: &str) {
        _ = write!(self.line, r#","{name}":""#);
        let end = text.floor_char_boundary(self.limit);
        for char in text[..end].chars() {
            match char {
                '"' | '\\' => {
                    self.line.push('\\');
                    self.line.push(char);
                }
                // What is in need of it has no more than 16 bits.
                _ if needs_escape(char) => _ = write!(self.line, "\\u{:04x}", u32::from(char)),
                _ => self.line.push(char),
            }
        }
        if end < text.len() {
            self.line.push('…');
        }
        self.line.push('"');
    }

    fn end(mut self) -> String {
        self.line.push('}');
        self.line
    }
}

impl Visit for Object {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no other numbers.
        if value.is_finite() {
            self.add(field.name(), value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add_text(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "peer" {
            return self.add_text(field.name(), &format!("{value:?}"));
        }
        // The alternate form of a `Peer`.
        let peer = format!("{value:#?}");
        let (number, address) = peer.split_once(' ').unwrap_or(("0", &peer));
        self.add("connection", number);
        self.add_text("peer", address);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing::Subscriber;
    use tracing_subscriber::layer::{Context, SubscriberExt};
    use tracing_subscriber::{Layer, registry};

    use super::*;
    use crate::listener::Peer;

    /// Keeps the lines of all events.
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0
                .lock()
                .unwrap()
                .push(line(event, SystemTime::UNIX_EPOCH));
        }
    }

    /// The line of the event that is logged by `log`, and what it means.
    fn logged(log: impl FnOnce()) -> (String, Value) {
        let lines = Arc::default();
        let subscriber = registry().with(Kept(Arc::clone(&lines)));
        tracing::subscriber::with_default(subscriber, log);
        let line = lines.lock().unwrap().pop().unwrap();
        let value = serde_json::from_str(&line).unwrap();
        (line, value)
    }

    #[test]
    fn fields_are_members_and_keep_their_types() {
        let peer = Peer::UNIX;
        let none: Option<u16> = None;
        let (_, value) = logged(|| {
            tracing::warn!(%peer, event = "end", count = 3_u64, seconds = 0.5, not = f64::NAN, tls = true, none, "{peer}: it");
        });
        let expected = json!({
            "time": "1970-01-01T00:00:00.000Z", "level": "warn", "message": "unix: it", "connection": 7, "peer": "unix",
            "event": "end", "count": 3, "seconds": 0.5, "tls": true,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn nothing_breaks_or_ends_a_line() {
        let text = "\"\\a\nb\r\x1b\0\u{7f}\u{85}\u{2028}\u{202e}é\u{1f600}";
        let (line, value) = logged(|| tracing::info!(error = text, "{text}"));
        assert_eq!(
            (&value["message"], &value["error"]),
            (&json!(text), &json!(text))
        );
        assert!(!line.chars().any(needs_escape), "{line}");
    }

    #[test]
    fn long_texts_are_cut_so_that_a_line_is_an_object_still() {
        for piece in ["a", "\"", "\0", "é", "\u{202e}"] {
            for count in [1000, 2000, 4000, 100_000] {
                let text = piece.repeat(count);
                let (line, value) = logged(|| tracing::info!(path = text, error = text, "{text}"));
                assert!(line.len() <= MAX_LINE);
                let path = value["path"].as_str().unwrap();
                let shown = path.strip_suffix('…').unwrap_or(path);
                assert!(text.starts_with(shown) && shown.len() > 100, "{line}");
            }
        }
    }
}
