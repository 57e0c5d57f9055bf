//! Where lines go besides stderr: each place has a thread of its own, which takes them from a queue, so that no disk and no server can
//! hold up what is logged.
//!
//! What cannot be written stays in the queue and is tried again every second. The queue has room for a mebibyte; lines beyond that
//! are lost, which a line tells in their place once there is room again.

use std::io::{self, ErrorKind};
use std::mem::take;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::Level;

use super::file::LogFile;
use super::notice;
use super::syslog::Syslog;
use crate::sys;

/// How many bytes may wait to be written.
const ROOM: usize = 1 << 20;
/// What a line takes besides its text.
const LINE_OVERHEAD: usize = 64;
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The same for what could take nothing just now.
const BUSY_RETRY: Duration = Duration::from_millis(20);
/// How long lines are gathered after others have been written: a write for each would cost more.
const GATHERING: Duration = Duration::from_millis(20);
/// How many bytes need not be gathered any more.
const MUCH: usize = 64 << 10;
/// How soon after a line about a failure there may be another.
const QUIET: Duration = Duration::from_secs(10);

/// A line to be written.
#[derive(Debug)]
pub(super) struct Line {
    /// How grave it is.
    pub(super) level: Level,
    /// When it was logged.
    pub(super) time: SystemTime,
    /// What it says, without the end of a line.
    pub(super) text: String,
}

impl Line {
    fn size(&self) -> usize {
        self.text.len() + LINE_OVERHEAD
    }
}

/// A place for lines.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file.
    File(LogFile),
    /// A syslog server.
    Syslog(Syslog),
}

impl Sink {
    /// What it is called in the log.
    fn name(&self) -> String {
        match self {
            Self::File(file) => file.name(),
            Self::Syslog(syslog) => syslog.name(),
        }
    }

    /// Adds lines to those that are to be written.
    fn add(&mut self, lines: Vec<Line>) {
        match self {
            Self::File(file) => file.add(&lines),
            Self::Syslog(syslog) => syslog.add(lines),
        }
    }

    /// Writes all that is to be written; what is left after an error can be tried again.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Syslog(syslog) => syslog.flush(),
        }
    }

    /// Opens it anew.
    fn reopen(&mut self) {
        match self {
            Self::File(file) => file.reopen(),
            Self::Syslog(syslog) => syslog.disconnect(),
        }
    }

    /// How many lines have turned out to be lost since this was last asked.
    fn take_lost(&mut self) -> usize {
        match self {
            Self::File(file) => take(&mut file.lost),
            Self::Syslog(syslog) => take(&mut syslog.lost),
        }
    }
}

/// The way to a sink.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Arc<Queue>,
    /// The sink, until the thread has it.
    sink: Mutex<Option<Sink>>,
}

/// What is between those who log and the thread.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    /// What is in use of [`ROOM`]: by these lines, and by those that the thread has taken and not written yet.
    used: usize,
    /// How many lines were lost since the last that was taken.
    lost: usize,
    /// Whether the thread waits to be told of lines.
    waiting: bool,
    /// Whether the sink is to be opened anew.
    reopen: bool,
    /// Whether no more lines will come.
    closing: bool,
    /// Whether the thread has ended.
    ended: bool,
}

impl Writer {
    /// A writer whose lines wait for [`Writer::start`].
    pub(super) fn new(sink: Sink) -> Self {
        Self {
            queue: Arc::default(),
            sink: Mutex::new(Some(sink)),
        }
    }

    /// Starts the thread, if that has not been done.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sink) = sink.take() else {
            return Ok(());
        };
        let queue = Arc::clone(&self.queue);
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || queue.write_all(sink)).map(drop)
    }

    /// Takes a line, or counts it as lost.
    pub(super) fn write_line(&self, level: Level, time: SystemTime, text: &str) {
        let mut state = self.queue.state();
        // After a loss there is to be some room first: each gap is told.
        let room = if state.lost > 0 { ROOM / 2 } else { ROOM };
        if state.used + text.len() + LINE_OVERHEAD > room {
            state.lost += 1;
            return;
        }
        state.tell_loss();
        let text = text.to_owned();
        state.push(Line { level, time, text });
        if take(&mut state.waiting) {
            self.queue.changed.notify_all();
        }
    }

    /// Has the sink opened anew, once the lines until now have been written.
    pub(super) fn reopen(&self) {
        self.queue.state().reopen = true;
        self.queue.changed.notify_all();
    }

    /// Has what waits written, and the sink closed then.
    pub(super) fn close(&self) {
        // Without a thread there would be nobody to do it.
        if self.start().is_ok() {
            self.queue.state().closing = true;
            self.queue.changed.notify_all();
        }
    }

    /// Waits until that is done; gives up at the deadline.
    pub(super) fn wait_for_end(&self, deadline: Instant) {
        let mut state = self.queue.state();
        while state.closing && !state.ended {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return;
            };
            state = self.queue.wait(state, left);
        }
    }
}

impl State {
    fn push(&mut self, line: Line) {
        self.used += line.size();
        self.lines.push(line);
    }

    /// Adds a line for those that were lost.
    fn tell_loss(&mut self) {
        let text = match take(&mut self.lost) {
            0 => return,
            1 => notice("1 line was lost"),
            lost => notice(&format!("{lost} lines were lost")),
        };
        let (level, time) = (Level::WARN, SystemTime::now());
        self.push(Line { level, time, text });
    }

    /// Whether there is something to be done that is not writing.
    fn is_urgent(&self) -> bool {
        self.reopen || self.closing
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits so long, unless something becomes urgent.
    fn pause(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.state();
        let was_closing = state.closing;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if state.reopen || state.closing != was_closing {
                return;
            }
            state = self.wait(state, left);
        }
    }

    /// Waits for lines, or for something urgent.
    fn next(&self) -> Vec<Line> {
        let mut state = self.state();
        while state.lines.is_empty() && !state.is_urgent() {
            state.waiting = true;
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting = false;
        if state.closing {
            state.tell_loss();
        }
        take(&mut state.lines)
    }

    /// The thread: writes until no more lines will come.
    fn write_all(&self, mut sink: Sink) {
        let mut trouble = Trouble::new(sink.name());
        loop {
            let lines = self.next();
            let size: usize = lines.iter().map(Line::size).sum();
            sink.add(lines);
            let written = self.flush(&mut sink, &mut trouble);
            let mut state = self.state();
            state.used -= size;
            state.lost += sink.take_lost();
            let none_left = state.lines.is_empty() && state.lost == 0;
            if state.closing && (none_left || !written) {
                drop(sink);
                state.ended = true;
                self.changed.notify_all();
                return;
            }
            let much = state.used > MUCH;
            drop(state);
            if !much {
                self.pause(GATHERING);
            }
        }
    }

    /// Writes what the sink has, however long that takes; when no more lines will come, as long as it does not fail. Returns whether
    /// that was all of it.
    fn flush(&self, sink: &mut Sink, trouble: &mut Trouble) -> bool {
        let mut written = sink.flush();
        loop {
            if take(&mut self.state().reopen) {
                sink.reopen();
                written = sink.flush();
            }
            let error = match written {
                Ok(()) => {
                    trouble.over();
                    return true;
                }
                Err(error) => error,
            };
            trouble.met(&error);
            let busy = error.kind() == ErrorKind::WouldBlock;
            if self.state().closing && !busy {
                return false;
            }
            self.pause(if busy { BUSY_RETRY } else { RETRY });
            written = sink.flush();
        }
    }
}

/// What the log says of a sink that cannot be written to: that it lasts, and that it is over.
#[derive(Debug)]
struct Trouble {
    name: String,
    since: Option<Instant>,
    told: bool,
    last_line: Option<Instant>,
}

impl Trouble {
    fn new(name: String) -> Self {
        Self {
            name,
            since: None,
            told: false,
            last_line: None,
        }
    }

    fn met(&mut self, error: &io::Error) {
        let now = Instant::now();
        let lasts = now - *self.since.get_or_insert(now) >= RETRY;
        let quiet = self.last_line.is_none_or(|last| now - last >= QUIET);
        if lasts && quiet && !self.told {
            self.told = true;
            self.last_line = Some(now);
            let (name, error) = (&self.name, sys::describe(error));
            tracing::warn!(
                error,
                "cannot write to {name}: {error}; lines wait until that is over, and are lost if they become too many"
            );
        }
    }

    fn over(&mut self) {
        let since = self.since.take();
        if take(&mut self.told)
            && let Some(since) = since
        {
            self.last_line = Some(Instant::now());
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!("{} takes lines again, after {seconds:.1} s", self.name);
        }
    }
}
