//! A connected socket of either kind, so that everything after the listener is written once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

/// A client's or a target's connection.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A unix stream socket.
    Unix(UnixStream),
}

/// The reading half of a [`Stream`].
#[derive(Debug)]
pub(crate) enum ReadHalf<'a> {
    /// Plain TCP.
    Tcp(tcp::ReadHalf<'a>),
    /// A unix stream socket.
    Unix(unix::ReadHalf<'a>),
}

/// The writing half of a [`Stream`].
#[derive(Debug)]
pub(crate) enum WriteHalf<'a> {
    /// Plain TCP.
    Tcp(tcp::WriteHalf<'a>),
    /// A unix stream socket.
    Unix(unix::WriteHalf<'a>),
}

/// Does the same with whichever stream it is.
macro_rules! each {
    ($type:ident, $value:expr, $stream:ident => $body:expr) => {
        match $value {
            $type::Tcp($stream) => $body,
            $type::Unix($stream) => $body,
        }
    };
}

impl Stream {
    /// Both halves, to be used by two directions of one task.
    pub(crate) fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Unix(stream) => {
                let (read, write) = stream.split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
        }
    }

    /// Runs `operation`, which reads from the socket, when there is something to read; again when it says
    /// `WouldBlock`; then it waits for something new, so `operation` must not say so of what it will be asked for later.
    pub(crate) async fn when_readable<T>(
        &self,
        operation: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        each!(Self, self, stream => stream.async_io(Interest::READABLE, operation).await)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(Self, self, stream => stream.as_fd())
    }
}

impl WriteHalf<'_> {
    /// Ends our side: the peer reads the end of the data after everything that was written.
    pub(crate) fn finish(&self) {
        // A peer that has gone needs to be told nothing.
        _ = shutdown(self.as_fd().as_raw_fd(), Shutdown::Write);
    }
}

/// Runs an operation on the socket of a half when that is ready for it; again when it says `WouldBlock`.
macro_rules! when_ready {
    ($half:expr, $cx:expr, $ready:ident, $interest:expr, $operation:expr) => {
        each!(Self, $half, half => {
            let stream = half.as_ref();
            loop {
                ready!(stream.$ready($cx))?;
                match stream.try_io($interest, || $operation(stream.as_fd())) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            }
        })
    };
}

impl ReadHalf<'_> {
    /// Runs `operation`, which takes something from the socket or says `WouldBlock`, when there is something.
    pub(crate) fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        when_ready!(self, cx, poll_read_ready, Interest::READABLE, operation)
    }
}

impl WriteHalf<'_> {
    /// Runs `operation`, which gives something to the socket or says `WouldBlock`, when there is room.
    pub(crate) fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        when_ready!(self, cx, poll_write_ready, Interest::WRITABLE, operation)
    }
}

impl AsFd for WriteHalf<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(Self, self, half => half.as_ref().as_fd())
    }
}

impl AsFd for ReadHalf<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(Self, self, half => half.as_ref().as_fd())
    }
}

impl AsyncRead for ReadHalf<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), half => Pin::new(half).poll_read(cx, buffer))
    }
}

impl AsyncWrite for WriteHalf<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(Self, self.get_mut(), half => Pin::new(half).poll_write(cx, data))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), half => Pin::new(half).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), half => Pin::new(half).poll_shutdown(cx))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(Self, self.get_mut(), stream => Pin::new(stream).poll_write(cx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(Self, self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}
