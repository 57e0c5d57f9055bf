//! A connection of any kind, so that everything after the listener is written once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use crate::sys;
use crate::tls::TlsStream;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Plain {
    /// TCP.
    Tcp(TcpStream),
    /// A unix stream socket.
    Unix(UnixStream),
}

/// A client's or a target's connection.
#[derive(Debug)]
pub(crate) enum Stream {
    /// A socket as it is.
    Plain(Plain),
    /// TLS over a socket. Both directions of a session use it, though never at the same time.
    Tls(Box<Mutex<TlsStream>>),
}

/// The reading half of a [`Stream`].
#[derive(Debug)]
pub(crate) enum ReadHalf<'a> {
    /// TCP.
    Tcp(tcp::ReadHalf<'a>),
    /// A unix stream socket.
    Unix(unix::ReadHalf<'a>),
    /// TLS.
    Tls(&'a Mutex<TlsStream>),
}

/// The writing half of a [`Stream`].
#[derive(Debug)]
pub(crate) enum WriteHalf<'a> {
    /// TCP.
    Tcp(tcp::WriteHalf<'a>),
    /// A unix stream socket.
    Unix(unix::WriteHalf<'a>),
    /// TLS.
    Tls(&'a Mutex<TlsStream>),
}

/// Does the same with whichever socket it is.
macro_rules! each {
    ($type:ident, $value:expr, $stream:ident => $body:expr) => {
        match $value {
            $type::Tcp($stream) => $body,
            $type::Unix($stream) => $body,
        }
    };
}

/// Does the same with whichever half it is, and something else with TLS.
macro_rules! each_half {
    ($type:ident, $value:expr, $half:ident => $body:expr, $tls:ident => $tls_body:expr) => {
        match $value {
            $type::Tcp($half) => $body,
            $type::Unix($half) => $body,
            $type::Tls($tls) => $tls_body,
        }
    };
}

impl Plain {
    /// Runs `operation`, which reads from the socket, when there is something to read; again when it says
    /// `WouldBlock`; then it waits for something new, so `operation` must not say so of what it will be asked for later.
    pub(crate) async fn when_readable<T>(
        &self,
        operation: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        each!(Self, self, stream => stream.async_io(Interest::READABLE, operation).await)
    }
}

impl Stream {
    /// Both halves, to be used by two directions of one task.
    pub(crate) fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        match self {
            Self::Plain(Plain::Tcp(stream)) => {
                let (read, write) = stream.split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Plain(Plain::Unix(stream)) => {
                let (read, write) = stream.split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
            Self::Tls(stream) => (ReadHalf::Tls(stream), WriteHalf::Tls(stream)),
        }
    }

    /// Whether it is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The common name of the certificate that a client has shown, if it was verified, and says who the client is.
    pub(crate) fn common_name(&self) -> Option<String> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => lock(stream).common_name(),
        }
    }

    /// The socket's descriptor.
    pub(crate) fn descriptor(&self) -> RawFd {
        match self {
            Self::Plain(stream) => stream.as_fd().as_raw_fd(),
            Self::Tls(stream) => lock(stream).descriptor(),
        }
    }

    /// Waits for the first byte that is there to be read, which stays there with the knowledge that it does; `None` is the end of
    /// the data.
    pub(crate) async fn first_byte(&self) -> io::Result<Option<u8>> {
        match self {
            Self::Plain(stream) => {
                let mut first = [0];
                let peek = || sys::peek(stream.as_fd(), &mut first);
                let length = stream.when_readable(peek).await?;
                Ok((length > 0).then_some(first[0]))
            }
            Self::Tls(stream) => std::future::poll_fn(|cx| lock(stream).poll_peek(cx)).await,
        }
    }
}

impl From<TlsStream> for Stream {
    fn from(stream: TlsStream) -> Self {
        Self::Tls(Box::new(Mutex::new(stream)))
    }
}

fn lock(stream: &Mutex<TlsStream>) -> MutexGuard<'_, TlsStream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unlocked(stream: &mut Mutex<TlsStream>) -> Pin<&mut TlsStream> {
    Pin::new(stream.get_mut().unwrap_or_else(PoisonError::into_inner))
}

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(Self, self, stream => stream.as_fd())
    }
}

/// Runs an operation on the socket of a half when that is ready for it; again when it says `WouldBlock`. Below TLS there is nothing
/// for it.
macro_rules! when_ready {
    ($half:expr, $cx:expr, $ready:ident, $interest:expr, $operation:expr) => {
        each_half!(Self, $half, half => {
            let stream = half.as_ref();
            loop {
                ready!(stream.$ready($cx))?;
                match stream.try_io($interest, || $operation(stream.as_fd())) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            }
        }, _stream => Poll::Ready(Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))))
    };
}

impl ReadHalf<'_> {
    /// Runs `operation`, which takes something from the socket or says `WouldBlock`, when there is something. TLS does not support
    /// that (`EOPNOTSUPP`).
    pub(crate) fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        when_ready!(self, cx, poll_read_ready, Interest::READABLE, operation)
    }

    /// The socket's descriptor.
    pub(crate) fn descriptor(&self) -> RawFd {
        each_half!(Self, self, half => half.as_ref().as_raw_fd(), stream => lock(stream).descriptor())
    }
}

impl WriteHalf<'_> {
    /// Runs `operation`, which gives something to the socket or says `WouldBlock`, when there is room. TLS does not support that
    /// (`EOPNOTSUPP`).
    pub(crate) fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        when_ready!(self, cx, poll_write_ready, Interest::WRITABLE, operation)
    }

    /// Ends our side: the peer reads the end of the data after everything that was written.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_half!(Self, self, half => {
            // A peer that has gone needs to be told nothing.
            _ = shutdown(half.as_ref().as_raw_fd(), Shutdown::Write);
            Poll::Ready(Ok(()))
        }, stream => lock(stream).poll_finish(cx))
    }

    /// Writes as much as there is room for, when the end of our side follows at once, so that both travel in the same segment.
    /// Returns how much that was, which is nothing when it would not help.
    pub(crate) fn send_more(&self, data: &[u8]) -> usize {
        // What goes wrong shows when the rest is written.
        each_half!(Self, self, half => sys::send_more(half.as_ref().as_fd(), data).unwrap_or(0), _stream => 0)
    }

    /// The socket's descriptor.
    pub(crate) fn descriptor(&self) -> RawFd {
        each_half!(Self, self, half => half.as_ref().as_raw_fd(), stream => lock(stream).descriptor())
    }
}

impl AsyncRead for ReadHalf<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each_half!(Self, self.get_mut(), half => Pin::new(half).poll_read(cx, buffer),
            stream => Pin::new(&mut *lock(stream)).poll_read(cx, buffer))
    }
}

impl AsyncWrite for WriteHalf<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        each_half!(Self, self.get_mut(), half => Pin::new(half).poll_write(cx, data),
            stream => Pin::new(&mut *lock(stream)).poll_write(cx, data))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_half!(Self, self.get_mut(), half => Pin::new(half).poll_flush(cx),
            stream => Pin::new(&mut *lock(stream)).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_finish(cx)
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(Self, self.get_mut(), stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Plain {
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

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => unlocked(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Tls(stream) => unlocked(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            Self::Tls(stream) => unlocked(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => unlocked(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => unlocked(stream).poll_shutdown(cx),
        }
    }
}
