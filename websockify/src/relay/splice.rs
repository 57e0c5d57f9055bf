//! Payload that goes from one socket to another without coming into this process's memory (splice(2)).
//!
//! What waits in the one socket is moved into a pipe, which is a matter of references; then it is known how long the frame is; then
//! the header is written, and the pipe is moved into the other socket. A pipe is held by a session only while data is in it, and
//! there is a limited number of them, since each may pin as much memory as it has room.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, read};

/// Bytes that a pipe is given room for; the system grants as much to everybody unless it is told otherwise.
const ROOM: usize = 512 * 1024;
/// Pipes that are kept while nobody uses them.
const MAX_IDLE: usize = 2;

thread_local! {
    static IDLE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}
/// How many there are, and may be at once: a session that gets none copies.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(64);

/// Has at most so many pipes at once, from now on.
pub(crate) fn limit_pipes(limit: usize) {
    LIMIT.store(limit, Ordering::Relaxed);
}

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    input: OwnedFd,
    output: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty pipe, if there is one.
    pub(super) fn take() -> Option<Self> {
        let idle = IDLE.with_borrow_mut(Vec::pop);
        idle.or_else(|| {
            let may = COUNT.fetch_add(1, Ordering::Relaxed) < LIMIT.load(Ordering::Relaxed);
            let pipe = may.then(Self::new).and_then(Result::ok);
            if pipe.is_none() {
                COUNT.fetch_sub(1, Ordering::Relaxed);
            }
            pipe
        })
    }

    fn new() -> nix::Result<Self> {
        let (output, input) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // With less room it does as well.
        _ = fcntl(&input, FcntlArg::F_SETPIPE_SZ(ROOM as libc::c_int));
        Ok(Self {
            input,
            output,
            held: 0,
        })
    }

    /// Keeps it for the next one who needs a pipe, unless there are enough or something is in it.
    pub(super) fn put_back(self) {
        IDLE.with_borrow_mut(|idle| {
            if self.held == 0 && idle.len() < MAX_IDLE {
                idle.push(self);
            }
        });
    }

    /// How many bytes are in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what waits in a socket into the pipe; 0 is the end of its data.
    pub(super) fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = move_between(from, &self.input, ROOM)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what a socket takes out of the pipe.
    pub(super) fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = move_between(&self.output, to, self.held)?;
        self.held -= moved;
        Ok(moved)
    }

    /// Takes everything out of the pipe into memory.
    pub(super) fn empty(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += read(&self.output, &mut bytes[filled..])?;
        }
        self.held = 0;
        Ok(bytes)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether this error says that one of the two is not to be spliced, or that nothing is on this system, which a filter may forbid.
/// Nothing was moved then.
pub(super) fn is_unfit(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EOPNOTSUPP)
    )
}

fn move_between(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(from.as_fd(), None, to.as_fd(), None, most, flags) {
            Err(Errno::EINTR) => {}
            moved => return Ok(moved?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_pass_through_and_stay_when_nobody_takes_them() {
        let (mut target, from) = UnixStream::pair().unwrap();
        let (to, mut client) = UnixStream::pair().unwrap();
        let mut pipe = Pipe::take().unwrap();
        target.write_all(b"bytes").unwrap();
        assert_eq!(pipe.fill(from.as_fd()).unwrap(), 5);
        assert_eq!((pipe.held(), pipe.drain(to.as_fd()).unwrap()), (5, 5));
        let mut bytes = [0; 5];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!((&bytes, pipe.held()), (b"bytes", 0));
        target.write_all(b"others").unwrap();
        pipe.fill(from.as_fd()).unwrap();
        assert_eq!(pipe.empty().unwrap(), b"others");
        drop(target);
        assert_eq!(pipe.fill(from.as_fd()).unwrap(), 0);
    }

    #[test]
    fn pipes_are_used_again_unless_something_is_in_them_and_their_number_is_limited() {
        let (mut target, from) = UnixStream::pair().unwrap();
        target.write_all(b"left").unwrap();
        // The other test may have one at the same time.
        let limit = LIMIT.load(Ordering::Relaxed);
        let mut pipes: Vec<Pipe> = std::iter::from_fn(Pipe::take).take(limit + 1).collect();
        assert!((limit - 1..=limit).contains(&pipes.len()));
        pipes[0].fill(from.as_fd()).unwrap();
        pipes.drain(..).for_each(Pipe::put_back);
        assert_eq!(IDLE.with_borrow(Vec::len), MAX_IDLE);
        let again: Vec<Pipe> = std::iter::from_fn(Pipe::take).take(MAX_IDLE).collect();
        assert!(again.iter().all(|pipe| pipe.held() == 0));
    }
}
