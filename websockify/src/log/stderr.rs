//! Standard error: a line leaves in one write, and never waits. Lines that stderr does not take at once are lost, and counted; one
//! that is closed takes everything.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::{LazyLock, Mutex, PoisonError};

use nix::libc::STDERR_FILENO;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{MsgFlags, send};

use super::{MAX_LINE, notice};

/// What the writers to stderr have left behind.
#[derive(Default)]
struct State {
    /// The end of a text of which the beginning was taken.
    rest: Vec<u8>,
    /// Lines that nobody took.
    lost: usize,
    /// Whether marks stand where the next line is to begin.
    within_line: bool,
}

static STATE: Mutex<State> = Mutex::new(State {
    rest: Vec::new(),
    lost: 0,
    within_line: false,
});

/// Stderr opened once more, if it is a pipe or a terminal: so that it can be non-blocking for us and for nobody else who has it.
static OWN_STDERR: LazyLock<Option<File>> = LazyLock::new(|| {
    let kind = std::fs::metadata("/proc/self/fd/2").ok()?.file_type();
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let open = || {
        OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open("/proc/self/fd/2")
            .ok()
    };
    (kind.is_fifo() || kind.is_char_device())
        .then(open)
        .flatten()
});

/// Opens what lines are written to. Later on we may not be allowed to.
pub(super) fn open() {
    LazyLock::force(&OWN_STDERR);
}

/// The descriptor beside that of stderr that lines are written to, if there is one.
pub(crate) fn own_descriptor() -> Option<RawFd> {
    OWN_STDERR.as_ref().map(AsRawFd::as_raw_fd)
}

/// Whether stderr is a socket, of which each write can be told not to block.
static IS_SOCKET: LazyLock<bool> = LazyLock::new(|| {
    let kind = std::fs::metadata("/proc/self/fd/2").map(|metadata| metadata.file_type());
    kind.is_ok_and(|kind| kind.is_socket())
});

/// Writes a mark for [`crate::config::SessionConfig::traffic`] to stderr.
pub(crate) fn mark(mark: &str) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.within_line |= write(&mut state.rest, mark);
}

thread_local! {
    /// The lines of a call of [`together`] that is under way.
    static TOGETHER: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Writes the lines that `log` makes at once.
pub(crate) fn together(log: impl FnOnce()) {
    /// Writes them in the end, whatever that is.
    struct Written;
    impl Drop for Written {
        fn drop(&mut self) {
            let lines = TOGETHER.take().unwrap_or_default();
            let lines = lines.trim_end_matches('\n');
            if lines.len() > MAX_LINE {
                lines.lines().for_each(|line| write_lines(line, 1));
            } else if !lines.is_empty() {
                write_lines(lines, lines.lines().count());
            }
        }
    }
    TOGETHER.set(Some(String::with_capacity(512)));
    let _written = Written;
    log();
}

/// Writes a line to stderr.
pub(super) fn write_line(line: &str) {
    let alone = TOGETHER.with_borrow_mut(|lines| match lines {
        Some(lines) => {
            lines.push_str(line);
            lines.push('\n');
            false
        }
        None => true,
    });
    if alone {
        write_lines(line, 1);
    }
}

/// Writes this many lines to stderr, all or none of them.
fn write_lines(lines: &str, count: usize) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let lost = match state.lost {
        0 => String::new(),
        lost => notice(&format!("{lost} lines were lost, stderr was full")) + "\n",
    };
    let start = if state.within_line { "\n" } else { "" };
    if write(&mut state.rest, &format!("{start}{lost}{lines}\n")) {
        (state.lost, state.within_line) = (0, false);
    } else {
        state.lost += count;
    }
}

/// Writes to stderr as far as that does not block; what is left of a text that was begun goes into `rest`, and comes before the
/// next one. Returns whether the text was begun; a stderr that is closed takes everything.
fn write(rest: &mut Vec<u8>, text: &str) -> bool {
    let own = OWN_STDERR.as_ref();
    if own.is_none() && !*IS_SOCKET {
        // A file is always ready; of what could not be opened once more it is not known how much it takes.
        let stderr = std::io::stderr();
        let mut poll = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let ready = nix::poll::poll(&mut poll, PollTimeout::ZERO) != Ok(0);
        if ready {
            _ = stderr.lock().write_all(text.as_bytes());
        }
        return ready;
    }
    let put = |bytes: &[u8]| match own {
        Some(mut stderr) => stderr.write(bytes),
        None => {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            Ok(send(STDERR_FILENO, bytes, flags)?)
        }
    };
    let taken = rest.len();
    rest.extend_from_slice(text.as_bytes());
    match put(rest) {
        Ok(written) if written >= taken => {
            rest.drain(..written);
            true
        }
        Ok(written) => {
            rest.truncate(taken);
            rest.drain(..written);
            false
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            rest.truncate(taken);
            false
        }
        Err(_) => {
            rest.clear();
            true
        }
    }
}
