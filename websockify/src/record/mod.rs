//! Recordings of sessions, a file for each ([`script`] tells its form).
//!
//! A session hands copies over, and one thread writes for all sessions. No byte is missing within a recording: a session of which
//! [`ROOM`] bytes wait is not read from until there is room again, since otherwise any burst that a disk takes more slowly than a
//! network would end a recording. But a disk that takes nothing, or is full, ends the recording and not the session, and one line
//! of the log tells so.

mod script;

use std::future::poll_fn;
use std::io;
use std::mem::take;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::unistd::{AccessFlags, access};
use tokio::time::{Instant, timeout};

use crate::listener::Peer;
use crate::sys;

use script::{Script, Text};

/// How many bytes of a session may wait to be written.
const ROOM: usize = 1 << 20;
/// How long a session waits for room.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what waits may take to be written at the end; and when we are stopped, which is not to take long.
const FINISH_LIMITS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(600));

/// Makes recordings.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    /// The path of a recording, without the dot and the number at its end.
    path: Arc<Path>,
    orders: Sender<Order>,
}

/// What the thread is to do.
#[derive(Debug)]
enum Order {
    /// Write what waits of this recording.
    Write(Arc<Tape>),
    /// Say that everything before this has been written.
    Finish(Sender<()>),
}

/// The recording of a session, as the session has it.
#[derive(Debug)]
pub(crate) struct Recording {
    /// Always there until this is dropped.
    tape: Option<Arc<Tape>>,
    orders: Sender<Order>,
}

/// Who sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client.
    Client,
    /// The target.
    Target,
}

/// What a session and the thread have in common.
#[derive(Debug)]
struct Tape {
    path: PathBuf,
    peer: Peer,
    /// When the session began.
    began: Instant,
    waiting: Mutex<Waiting>,
    /// The thread's.
    output: Mutex<Output>,
}

/// How far the file of a recording is.
#[derive(Debug, Default)]
enum Output {
    /// It is not made yet.
    #[default]
    ToCome,
    /// It can be written to.
    Open(Script),
    /// Nothing more is written to it.
    Ended,
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Whose the bytes are, one part after another.
    parts: Vec<Part>,
    /// What is in use of [`ROOM`]: by these bytes, and by those that the thread has taken and not written yet.
    used: usize,
    /// Whether the thread has been told.
    ordered: bool,
    /// Whether the recording has ended before its session.
    failed: bool,
    /// Who waits for room.
    waker: Option<Waker>,
}

/// Bytes that passed at once.
#[derive(Clone, Copy, Debug)]
struct Part {
    side: Side,
    /// When they passed, since the beginning of the session.
    at: Duration,
    length: usize,
}

impl Recorder {
    /// Starts the thread for recordings at `path` with a dot and a number at its end.
    ///
    /// # Errors
    /// No file can be made there.
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot record to '{}.*'", path.display());
        // With the dot it has to be a directory.
        let directory = path.parent().unwrap_or(Path::new("/")).join(".");
        access(&directory, AccessFlags::W_OK | AccessFlags::X_OK)
            .map_err(|error| anyhow!(error.desc()))
            .with_context(cannot)?;
        let (orders, received) = channel();
        let thread = thread::Builder::new().name("record".to_owned());
        thread
            .spawn(move || write_all(&received))
            .with_context(cannot)?;
        Ok(Self {
            path: path.into(),
            orders,
        })
    }

    /// The line of the settings about it.
    pub(crate) fn describe(&self) -> String {
        format!("Recording to '{}.*'", self.path.display())
    }

    /// Begins to record a session.
    pub(crate) fn begin(&self, peer: Peer) -> Recording {
        let mut path = self.path.as_os_str().to_owned();
        path.push(format!(".{}", peer.number));
        let tape = Arc::new(Tape {
            path: path.into(),
            peer,
            began: Instant::now(),
            waiting: Mutex::default(),
            output: Mutex::default(),
        });
        let recording = Recording {
            tape: Some(Arc::clone(&tape)),
            orders: self.orders.clone(),
        };
        tape.waiting().ordered = true;
        recording.order(tape);
        recording
    }

    /// Has everything written that was recorded until now; for a bounded time, and a short one when we are `stopped`.
    pub(crate) fn finish(&self, stopped: bool) {
        let (done, written) = channel();
        _ = self.orders.send(Order::Finish(done));
        let limit = if stopped {
            FINISH_LIMITS.1
        } else {
            FINISH_LIMITS.0
        };
        if written.recv_timeout(limit).is_err() {
            tracing::warn!("recordings lack their ends: the disk is too slow");
        }
    }
}

impl Recording {
    /// Where it is written to.
    pub(crate) fn path(&self) -> &Path {
        &self.tape().path
    }

    /// Records bytes that pass at this moment.
    pub(crate) fn note(&self, side: Side, bytes: &[u8]) {
        let tape = self.tape();
        let mut waiting = tape.waiting();
        if waiting.failed || bytes.is_empty() {
            return;
        }
        waiting.bytes.extend_from_slice(bytes);
        let (at, length) = (tape.began.elapsed(), bytes.len());
        waiting.parts.push(Part { side, at, length });
        waiting.used += length + size_of::<Part>();
        if !std::mem::replace(&mut waiting.ordered, true) {
            drop(waiting);
            self.order(Arc::clone(tape));
        }
    }

    /// Whether more may be recorded at once.
    pub(crate) fn has_room(&self) -> bool {
        let waiting = self.tape().waiting();
        waiting.failed || waiting.used < ROOM
    }

    /// Waits until more may be recorded, or that is `needless`, which is asked each time that the task runs. When it takes too long, the
    /// recording ends.
    pub(crate) async fn room(&self, needless: impl Fn() -> bool) {
        let tape = self.tape();
        let room = poll_fn(|cx| {
            if needless() {
                return Poll::Ready(());
            }
            tape.poll_room(cx)
        });
        if timeout(PATIENCE, room).await.is_err() {
            let seconds = PATIENCE.as_secs();
            tape.fail(&format!("the disk has taken too little for {seconds} s"));
        }
    }

    fn tape(&self) -> &Arc<Tape> {
        self.tape.as_ref().expect("it is there until the end")
    }

    fn order(&self, tape: Arc<Tape>) {
        // Without the thread, which only a panic ends, nobody would make room again.
        if let Err(error) = self.orders.send(Order::Write(tape))
            && let Order::Write(tape) = error.0
        {
            tape.fail("nobody writes it any more");
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // The thread is to be the last to have it: to close a file may take its time.
        if let Some(tape) = self.tape.take() {
            self.order(tape);
        }
    }
}

impl Tape {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.waiting();
        if waiting.failed || waiting.used < ROOM {
            return Poll::Ready(());
        }
        waiting.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ends the recording; what waits is still written if that is possible.
    fn fail(&self, reason: &str) {
        let mut waiting = self.waiting();
        if !std::mem::replace(&mut waiting.failed, true) {
            let peer = self.peer;
            tracing::warn!(
                %peer,
                event = "recording_failed",
                error = reason,
                "recording to '{}' ends: {reason}",
                self.path.display()
            );
        }
    }

    /// Writes what waits, in the thread.
    fn write(&self, text: &mut Text) {
        let (bytes, parts) = {
            let mut waiting = self.waiting();
            waiting.ordered = false;
            (take(&mut waiting.bytes), take(&mut waiting.parts))
        };
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = output.append(&self.path, &bytes, &parts, text) {
            *output = Output::Ended;
            self.fail(&sys::describe(&error));
        }
        let mut waiting = self.waiting();
        waiting.used -= bytes.len() + parts.len() * size_of::<Part>();
        if let Some(waker) = waiting.waker.take() {
            waker.wake();
        }
    }
}

impl Output {
    fn append(
        &mut self,
        path: &Path,
        bytes: &[u8],
        parts: &[Part],
        text: &mut Text,
    ) -> io::Result<()> {
        if matches!(self, Self::ToCome) {
            *self = Self::Open(Script::create(path, text)?);
        }
        let Self::Open(script) = self else {
            return Ok(());
        };
        let mut rest = bytes;
        for part in parts {
            let (data, behind) = rest.split_at(part.length);
            script.add(text, part.side, part.at, data)?;
            rest = behind;
        }
        script.flush(text)
    }
}

/// The thread: writes until nobody is left who could order it to.
fn write_all(orders: &Receiver<Order>) {
    let mut text = Text::default();
    for order in orders {
        match order {
            Order::Write(tape) => tape.write(&mut text),
            // Whoever asked may have given up.
            Order::Finish(done) => _ = done.send(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A recorder whose thread has not started yet.
    fn stopped_recorder(directory: &Path) -> (Recorder, Receiver<Order>) {
        let (orders, received) = channel();
        let path = directory.join("recording").into();
        (Recorder { path, orders }, received)
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_takes_nothing_ends_the_recording_and_keeps_what_came_before() {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, received) = stopped_recorder(directory.path());
        let recording = recorder.begin(Peer::UNIX);
        recording.note(Side::Client, b"first");
        recording.note(Side::Target, &vec![b'x'; ROOM]);
        assert!(!recording.has_room());
        recording.room(|| true).await;
        assert!(!recording.has_room());
        let start = Instant::now();
        recording.room(|| false).await;
        assert_eq!(start.elapsed(), PATIENCE);
        assert!(recording.has_room());
        recording.note(Side::Client, b"too late");
        drop((recording, recorder));
        write_all(&received);
        let text = fs::read_to_string(directory.path().join("recording.7")).unwrap();
        let all = format!(
            "var VNC_frame_data = [\n'}}0}}first',\n'{{0{{{}',\n'EOF'];\n",
            "x".repeat(ROOM)
        );
        assert!(text == all);
    }

    #[tokio::test]
    async fn a_session_goes_on_when_there_is_room_again() {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, received) = stopped_recorder(directory.path());
        let recording = recorder.begin(Peer::UNIX);
        for _ in 0..3 {
            recording.note(Side::Target, &vec![0; ROOM]);
            let room = recording.room(|| false);
            let write = async {
                received.try_iter().for_each(|order| match order {
                    Order::Write(tape) => tape.write(&mut Text::default()),
                    Order::Finish(_) => unreachable!(),
                });
            };
            tokio::join!(biased; room, write);
            assert!(recording.has_room());
        }
    }
}
