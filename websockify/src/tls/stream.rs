//! A TLS connection as the relay wants it: like a socket that happens to encrypt.
//!
//! rustls does the cryptography; what it needs of the network is done here instead of in tokio-rustls, for two reasons. A write is
//! done only when the socket has taken all of it, so that nobody has to remember to flush, and what the system says of bytes
//! that the peer has not taken is true. And ciphertext is received into a buffer of the thread, 64 KiB at once, not 4 KiB.

use std::cell::RefCell;
use std::io::{self, BufRead, ErrorKind, IoSlice, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{Shutdown, shutdown};
use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::subject;
use crate::stream::Plain;

/// Bytes that are received at once.
const CHUNK: usize = 64 * 1024;
/// Bytes that are encrypted at once: the relay's buffer with the header of its frame fits.
const MAX_WRITE: usize = 2 * CHUNK;

thread_local! {
    static CIPHERTEXT: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// A connection that encrypts.
#[derive(Debug)]
pub(crate) struct TlsStream {
    socket: Plain,
    connection: Connection,
    /// What was received and could not be decrypted because nobody has taken what was before it.
    received: Vec<u8>,
    /// Bytes of the write that is under way: encrypted, and not all in the socket.
    under_way: usize,
    /// Whether the peer was told the end of our data.
    finished: bool,
    /// What was wrong with what was received; it is told when everything before it was taken.
    failure: Option<rustls::Error>,
}

impl TlsStream {
    pub(super) fn new(socket: Plain, connection: impl Into<Connection>) -> Self {
        let mut connection = connection.into();
        // How much there may be is decided here.
        connection.set_buffer_limit(None);
        Self {
            socket,
            connection,
            received: Vec::new(),
            under_way: 0,
            finished: false,
            failure: None,
        }
    }

    /// The socket below, when nothing more is to be encrypted.
    pub(super) fn into_socket(self) -> Plain {
        self.socket
    }

    /// The socket's descriptor.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }

    /// The common name of the certificate that a client has shown, if it had to, and if that says who it is. Whoever resumes a session
    /// is who has begun it.
    pub(crate) fn common_name(&self) -> Option<String> {
        // Nobody is asked for one without being verified.
        let Connection::Server(connection) = &self.connection else {
            return None;
        };
        let certificate = connection.peer_certificates()?.first()?;
        match subject::common_name(certificate) {
            Ok(name) => Some(name),
            Err(reason) => {
                tracing::info!("the certificate of a client does not say who it is: {reason}");
                None
            }
        }
    }

    /// Goes on with the handshake until it is done and the peer has been sent our part of it.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send(cx))?;
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if !ready!(self.poll_receive(cx, &mut ReadBuf::new(&mut [])))? {
                return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// The first byte that waits to be read, which stays; `None` at the end of the data.
    pub(crate) fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        loop {
            match self.connection.reader().fill_buf() {
                Ok(waiting) => return Poll::Ready(Ok(waiting.first().copied())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Ok(None)),
            }
            ready!(self.poll_receive(cx, &mut ReadBuf::new(&mut [])))?;
        }
    }

    /// Ends our side: the peer reads the end of the data after everything that was written.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !mem::replace(&mut self.finished, true) {
            self.connection.send_close_notify();
        }
        ready!(self.poll_send(cx))?;
        // A peer that has gone needs to be told nothing.
        _ = shutdown(self.descriptor(), Shutdown::Write);
        Poll::Ready(Ok(()))
    }

    /// Takes what is decrypted. Returns whether the end of the data is behind it.
    fn take(&mut self, out: &mut ReadBuf<'_>) -> bool {
        while out.remaining() > 0 {
            match self.connection.reader().read(out.initialize_unfilled()) {
                Ok(length @ 1..) => out.advance(length),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // Its peer said so, or just ended the connection: that is no more than it could do without TLS.
                Ok(0) | Err(_) => return true,
            }
        }
        false
    }

    /// Receives once, as much as `out` has room for, decrypts it, and takes what came of it. Returns false at the end.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, failure.clone())));
        }
        // Answers to what was received earlier, such as to a change of keys, go out when they can.
        if self.connection.wants_write() {
            _ = self.poll_send(cx);
        }
        if !self.received.is_empty() {
            let received = mem::take(&mut self.received);
            return Poll::Ready(self.decrypt(cx, &received, out).map(|()| true));
        }
        CIPHERTEXT.with_borrow_mut(|buffer| {
            // At least a record, and its plaintext is no longer than it.
            let most = out.remaining().clamp(CHUNK / 4, CHUNK);
            let mut received = ReadBuf::new(&mut buffer[..most]);
            let read = Pin::new(&mut self.socket).poll_read(cx, &mut received)?;
            if read.is_pending() {
                // Before it reads, rustls gives up the room that it has made for whole records, unless part of one is there.
                _ = self.connection.read_tls(&mut NothingYet);
                return Poll::Pending;
            }
            if received.filled().is_empty() {
                // Lets rustls know that this is the end.
                _ = self.connection.read_tls(&mut io::empty());
                return Poll::Ready(Ok(false));
            }
            Poll::Ready(self.decrypt(cx, received.filled(), out).map(|()| true))
        })
    }

    /// Decrypts what was received, and takes what came of it. What is wrong with it is told later.
    fn decrypt(
        &mut self,
        cx: &mut Context<'_>,
        mut data: &[u8],
        out: &mut ReadBuf<'_>,
    ) -> io::Result<()> {
        while !data.is_empty() {
            match self.connection.read_tls(&mut data) {
                // Nothing counts that comes behind the end.
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // It has enough that nobody took.
                Err(error) if error.kind() == ErrorKind::Other => {
                    self.received = data.to_vec();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            let processed = self.connection.process_new_packets();
            self.take(out);
            if let Err(failure) = processed {
                self.failure = Some(failure);
                // The peer is told by an alert, if it can be told at once.
                _ = self.poll_send(cx);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes what is encrypted.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            let mut output = Output {
                socket: &mut self.socket,
                cx,
            };
            match self.connection.write_tls(&mut output) {
                Ok(0) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Completes the write that is under way, which `encrypt` begins if there is none.
    fn poll_encrypted(
        &mut self,
        cx: &mut Context<'_>,
        encrypt: impl FnOnce(&mut Connection) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if self.under_way == 0 {
            self.under_way = encrypt(&mut self.connection)?;
        }
        ready!(self.poll_send(cx))?;
        Poll::Ready(Ok(mem::take(&mut self.under_way)))
    }
}

/// A connection on which nothing is to be read now.
struct NothingYet;

impl Read for NothingYet {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }
}

/// The socket as rustls writes to it.
struct Output<'a, 'b> {
    socket: &'a mut Plain,
    cx: &'a mut Context<'b>,
}

impl Output<'_, '_> {
    fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
        match poll {
            Poll::Ready(result) => result,
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Output<'_, '_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Self::now(Pin::new(&mut *self.socket).poll_write(self.cx, data))
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::now(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, data))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            let ended = self.take(out);
            if ended || out.remaining() == 0 || out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_receive(cx, out))?;
        }
    }
}

/// A write that is pending has begun: it must be tried again with the same data, as everything that is told "not yet" does here.
impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = &data[..data.len().min(MAX_WRITE)];
        self.poll_encrypted(cx, |connection| connection.writer().write(most))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // As many as are not too much together, of a first one that is too much alone a part.
        let mut length = 0;
        let fitting = data.iter().take_while(|part| {
            length += part.len();
            length <= MAX_WRITE
        });
        match fitting.count() {
            0 => self.poll_write(cx, data.first().map_or(&[], |part| part)),
            count => self.poll_encrypted(cx, |connection| {
                connection.writer().write_vectored(&data[..count])
            }),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_finish(cx)
    }
}
