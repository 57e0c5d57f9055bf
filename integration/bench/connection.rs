//! A client's end of a connection to a relay, with TLS or without.

use std::io::{self, BufReader, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustls::{ClientConnection, StreamOwned};

/// Bytes that are received at once; rustls by itself takes 4 KiB.
const RECEIVED: usize = 256 * 1024;

/// A connection.
#[derive(Debug)]
pub(crate) enum Connection {
    /// A socket as it is.
    Plain(TcpStream),
    /// TLS over a socket.
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Connection {
    /// Makes TLS of a socket.
    pub(crate) fn encrypt(socket: TcpStream, mut client: ClientConnection) -> Result<Self> {
        let mut socket = Socket(BufReader::with_capacity(RECEIVED, socket));
        while client.is_handshaking() {
            client.complete_io(&mut socket).context("speak TLS")?;
        }
        Ok(Self::Tls(Box::new(StreamOwned::new(client, socket))))
    }

    /// Says that nothing more will be written.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown(Shutdown::Write),
            Self::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush()
            }
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => match stream.read(buffer) {
                // Not everybody says so before the end; bytes are counted anyway.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
                read => read,
            },
        }
    }
}

impl Write for Connection {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(data),
            Self::Tls(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.as_fd(),
            Self::Tls(stream) => stream.sock.0.get_ref().as_fd(),
        }
    }
}

/// A socket below TLS.
#[derive(Debug)]
pub(crate) struct Socket(BufReader<TcpStream>);

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(data)
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
