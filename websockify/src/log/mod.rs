//! The log: one line per event, on stderr and, if that is asked for, in a file and to syslog as well.
//!
//! Control characters are escaped in all lines, so nothing that came from the network can forge one. Nobody who logs waits: what is
//! full, gone or slow costs lines, which are counted, and nothing else.

mod file;
mod json;
mod stderr;
mod syslog;
mod text;
mod writer;

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry;

use crate::cli::LogFormat;
use crate::config::LogConfig;
use crate::sys;

use file::LogFile;
use syslog::Syslog;
use writer::{Sink, Writer};

pub(crate) use stderr::{mark, own_descriptor, together};

/// The target of events that are lines of the text form only: in the JSON form another event has what they say.
pub(crate) const TEXT: &str = concat!(env!("CARGO_PKG_NAME"), "::text");

/// The longest line, in bytes.
const MAX_LINE: usize = 3900;

/// How long what is still to be written may take at the end.
const FINISH_LIMIT: Duration = Duration::from_millis(400);

/// How lines are written.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();
/// Where they go besides stderr.
static WRITERS: OnceLock<Vec<Writer>> = OnceLock::new();

/// Sends the events of this crate to where `config` says from now on; only the first call counts. What goes elsewhere than to stderr
/// waits for [`start`].
///
/// # Errors
/// The log file cannot be opened; stderr is written to all the same.
pub fn init(config: &LogConfig) -> Result<()> {
    _ = FORMAT.set(config.format);
    let level = if config.verbose {
        Level::DEBUG
    } else {
        Level::INFO
    };
    stderr::open();
    // Only a second call can fail.
    _ = tracing::subscriber::set_global_default(registry().with(Lines { level }));
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("internal error, please report it: {panic}");
    }));
    let mut writers = Vec::new();
    if let Some(path) = &config.file {
        let file = LogFile::open(path)
            .map_err(|error| anyhow!(sys::describe(&error)))
            .with_context(|| format!("cannot open the log file '{}'", path.display()))?;
        writers.push(Writer::new(Sink::File(file)));
    }
    if let Some(config) = &config.syslog {
        writers.push(Writer::new(Sink::Syslog(Syslog::new(config.clone()))));
    }
    _ = WRITERS.set(writers);
    Ok(())
}

/// Starts the threads that write. From here on this process must not fork without executing something else.
pub(crate) fn start() -> io::Result<()> {
    writers().try_for_each(Writer::start)
}

/// Opens the log file anew, and has syslog connected anew.
pub(crate) fn reopen() {
    writers().for_each(Writer::reopen);
}

/// Writes what is still to be written, and ends the log, for a bounded time. A process that leaves its log to a child that it has
/// forked does not call this.
pub fn finish() {
    let deadline = Instant::now() + FINISH_LIMIT;
    writers().for_each(Writer::close);
    writers().for_each(|writer| writer.wait_for_end(deadline));
}

fn writers() -> impl Iterator<Item = &'static Writer> {
    WRITERS.get().into_iter().flatten()
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
        let time = SystemTime::now();
        let line = match format() {
            LogFormat::Text => text::line(event),
            LogFormat::Json => json::line(event, time),
        };
        stderr::write_line(&line);
        for writer in writers() {
            writer.write_line(*event.metadata().level(), time, &line);
        }
    }
}
