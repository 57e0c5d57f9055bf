//! What the log says of something that does not answer: that it began and that it is over, and not each client that meets it.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How soon after the last line there may be another: what fails for some clients only would fill the log.
const QUIET: Duration = Duration::from_secs(10);

/// Whether something answers.
#[derive(Debug)]
pub(crate) struct Outage {
    /// What it is about, for the log.
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when it does not answer.
    since: Option<Instant>,
    /// How many have met that.
    met: u64,
    /// Whether the log knows.
    told: bool,
    /// When the log was last told something.
    last_line: Option<Instant>,
}

impl Outage {
    pub(crate) fn of(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            state: Mutex::default(),
        }
    }

    /// Notes that it did not answer.
    pub(crate) fn met(&self, reason: impl Display) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        state.met += 1;
        if state.since.is_none() {
            state.since = Some(now);
            state.told = state.last_line.is_none_or(|last| now - last >= QUIET);
            if state.told {
                state.last_line = Some(now);
                tracing::error!(
                    "{}: {reason}; who needs it is refused until it answers",
                    self.name
                );
                return;
            }
        }
        tracing::debug!("{}: {reason}", self.name);
    }

    /// Notes that it answered.
    pub(crate) fn over(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let met = std::mem::take(&mut state.met);
        if let Some(since) = state.since.take()
            && state.told
        {
            let seconds = since.elapsed().as_secs_f64();
            state.last_line = Some(Instant::now());
            tracing::info!(
                "{}: answers again, after {seconds:.1} s and {met} that it refused",
                self.name
            );
        }
    }
}
