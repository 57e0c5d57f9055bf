//! What hyper does with a connection, as far as those around it need to know: when something last went on, and whether an answer is
//! still on its way.

use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use crate::stream::Stream;
use crate::sys;

/// How long nothing may go on: the client neither completes a request nor takes anything of an answer.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// What is known of a connection that hyper has.
#[derive(Debug)]
pub(super) struct Activity {
    /// When the client has had its time.
    deadline: Mutex<Instant>,
    /// Whether something was written that is not flushed.
    unflushed: AtomicBool,
    socket: RawFd,
    /// Bytes that the client had not taken when the socket took no more.
    unsent: AtomicUsize,
}

impl Activity {
    /// A connection on this socket of which the first request is due at `deadline`.
    pub(super) fn new(socket: RawFd, deadline: Instant) -> Arc<Self> {
        Arc::new(Self {
            deadline: Mutex::new(deadline),
            unflushed: AtomicBool::new(false),
            socket,
            unsent: AtomicUsize::new(0),
        })
    }

    /// Notes that a request is complete, which may be thought about for so long, or that some of an answer was taken. Bytes of a
    /// request that is not complete are none: a client may send them one by one for ever.
    pub(super) fn note(&self, thought: Duration) {
        *self.deadline() = Instant::now() + IDLE_LIMIT + thought;
    }

    fn deadline(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything that hyper had to write has been written.
    pub(super) fn is_flushed(&self) -> bool {
        !self.unflushed.load(Ordering::Relaxed)
    }

    /// Waits until nothing has gone on for too long.
    pub(super) async fn expired(&self) {
        loop {
            let deadline = *self.deadline();
            sleep_until(deadline).await;
            if *self.deadline() != deadline {
                continue;
            }
            // A socket that was full says that there is room only when much of it is free: so a client that reads slowly shows in
            // what its system has not acknowledged.
            let before = self.unsent.load(Ordering::Relaxed);
            if self.is_flushed() || self.look_at_unsent() >= before {
                return;
            }
            self.note(Duration::ZERO);
        }
    }

    /// Notes how much the client has not taken.
    fn look_at_unsent(&self) -> usize {
        let unsent = sys::unsent_bytes(self.socket);
        self.unsent.store(unsent, Ordering::Relaxed);
        unsent
    }
}

/// A connection that tells of itself.
#[derive(Debug)]
pub(super) struct Watched {
    /// The connection.
    pub(super) stream: Stream,
    /// What it tells.
    pub(super) activity: Arc<Activity>,
}

impl Watched {
    /// Notes an attempt to write.
    fn note(&self, written: &Poll<io::Result<usize>>) {
        self.activity.unflushed.store(true, Ordering::Relaxed);
        match written {
            Poll::Ready(Ok(1..)) => self.activity.note(Duration::ZERO),
            Poll::Pending => _ = self.activity.look_at_unsent(),
            Poll::Ready(_) => {}
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper asks for this when it has nothing left to write.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.activity.unflushed.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_expires_when_nothing_has_gone_on_for_long_enough() {
        let start = Instant::now();
        let activity = Activity::new(-1, start + Duration::from_secs(10));
        let steps = async {
            for seconds in [9, 29, 29] {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                activity.note(Duration::ZERO);
            }
        };
        tokio::join!(steps, activity.expired());
        assert_eq!(start.elapsed(), Duration::from_secs(9 + 29 + 29 + 30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_has_not_expired() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[0; 4096]).is_ok() {}
        let start = Instant::now();
        let activity = Activity::new(ours.as_raw_fd(), start + Duration::from_secs(10));
        activity.unflushed.store(true, Ordering::Relaxed);
        activity.look_at_unsent();
        client.read_exact(&mut [0; 8192]).unwrap();
        // It takes nothing more.
        activity.expired().await;
        assert_eq!(start.elapsed(), Duration::from_secs(10 + 30));
    }
}
