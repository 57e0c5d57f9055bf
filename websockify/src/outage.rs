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
        state.since.get_or_insert(now);
        // One that began in the quiet is told of when that is over, if it still lasts then.
        let is_quiet = state.last_line.is_some_and(|last| now - last < QUIET);
        if state.told || is_quiet {
            return tracing::debug!("{}: {reason}", self.name);
        }
        (state.told, state.last_line) = (true, Some(now));
        tracing::error!(
            "{}: {reason}; who needs it is refused until it answers",
            self.name
        );
    }

    /// Notes that it answered.
    pub(crate) fn over(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (met, told) = (
            std::mem::take(&mut state.met),
            std::mem::take(&mut state.told),
        );
        if let Some(since) = state.since.take()
            && told
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

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn is_told(outage: &Outage) -> bool {
        outage.state.lock().unwrap().told
    }

    #[tokio::test(start_paused = true)]
    async fn each_outage_is_told_of_once_and_a_flapping_one_now_and_then() {
        let outage = Outage::of("it");
        let seconds = |seconds| advance(Duration::from_secs(seconds));
        outage.met("gone");
        assert!(is_told(&outage));
        outage.met("gone");
        outage.over();
        assert!(!is_told(&outage));
        // Too soon after the last line, but it stays.
        outage.met("gone");
        assert!(!is_told(&outage));
        seconds(9).await;
        outage.met("gone");
        assert!(!is_told(&outage));
        seconds(2).await;
        outage.met("gone");
        assert!(is_told(&outage));
        outage.over();
        seconds(11).await;
        outage.met("gone");
        assert!(is_told(&outage));
    }
}
