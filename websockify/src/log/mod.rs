//! The log: one line per event on stderr.
//!
//! Control characters are escaped in all lines, so nothing that came from the network can forge one. A stderr that is closed or full
//! is no reason to stop.

mod json;
mod stderr;
mod text;

use std::sync::OnceLock;
use std::time::SystemTime;

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry;

use crate::cli::LogFormat;
use crate::config::LogConfig;

pub(crate) use stderr::{mark, together};

/// The target of events that are lines of the text form only: in the JSON form another event has what they say.
pub(crate) const TEXT: &str = concat!(env!("CARGO_PKG_NAME"), "::text");

/// The longest line, in bytes.
const MAX_LINE: usize = 3900;

/// How lines are written.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Sends the events of this crate to where `config` says from now on; only the first call counts.
pub fn init(config: &LogConfig) {
    _ = FORMAT.set(config.format);
    let level = if config.verbose {
        Level::DEBUG
    } else {
        Level::INFO
    };
    // Only a second call can fail.
    _ = tracing::subscriber::set_global_default(registry().with(Lines { level }));
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("internal error, please report it: {panic}");
    }));
}

fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or_default()
}

/// A line that tells of lines that were lost.
fn notice(message: &str) -> String {
    match format() {
        LogFormat::Text => format!("({message})"),
        LogFormat::Json => json::message(Level::WARN, message, SystemTime::now()),
    }
}

/// The layer behind [`init`].
struct Lines {
    /// The most detailed level that is shown.
    level: Level,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.level
            && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
            && (format() == LogFormat::Text || metadata.target() != TEXT)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = match format() {
            LogFormat::Text => text::line(event),
            LogFormat::Json => json::line(event, SystemTime::now()),
        };
        stderr::write_line(&line);
    }
}
