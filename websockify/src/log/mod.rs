//! The log: one line per event on stderr.
//!
//! Control characters are escaped in all lines, so nothing that came from the network can forge one. A stderr that is closed or full
//! is no reason to stop.

mod stderr;
mod text;

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry;

pub(crate) use stderr::{mark, together};

/// The longest line, in bytes.
const MAX_LINE: usize = 3900;

/// Sends the events of this crate to stderr from now on, `debug` ones only if `verbose`.
pub fn init(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let subscriber = registry().with(Lines { level });
    // Only a second call can fail, and the first one's settings stand.
    _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("internal error, please report it: {panic}");
    }));
}

/// The layer behind [`init`].
struct Lines {
    /// The most detailed level that is shown.
    level: Level,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        stderr::write_line(&text::line(event));
    }
}
