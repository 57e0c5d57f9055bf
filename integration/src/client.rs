//! A WebSocket client that is as exact, or as wrong, as a test wants it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, MutexGuard};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
use rustls::ClientConnection;

use crate::target::limit;
use crate::tls::{self, ClientTls, TlsWire};

/// The mask of all frames; no byte of it equals another.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The request line and header lines, without the empty line.
    lines: Vec<String>,
}

impl Default for Handshake {
    fn default() -> Self {
        let lines = [
            "GET /path?query HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            // The key of RFC 6455, section 1.3.
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ];
        Self {
            lines: lines.map(str::to_owned).to_vec(),
        }
    }
}

impl Handshake {
    /// Adds a header line.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Removes the header of this name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.lines
            .retain(|line| !line.starts_with(&format!("{name}:")));
        self
    }

    /// Replaces the header of this name.
    #[must_use]
    pub fn replace(self, name: &str, value: &str) -> Self {
        self.without(name).with(&format!("{name}: {value}"))
    }

    /// Replaces the request line.
    #[must_use]
    pub fn request_line(mut self, line: &str) -> Self {
        line.clone_into(&mut self.lines[0]);
        self
    }

    /// The request as it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        format!("{}\r\n\r\n", self.lines.join("\r\n")).into_bytes()
    }
}

/// A frame that came from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The first byte: FIN, reserved bits and opcode.
    pub first: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// The status code and reason of a close frame.
    pub fn close(&self) -> (Option<u16>, String) {
        assert_eq!(self.first, 0x88, "not a close frame: {self:?}");
        match self.payload.split_first_chunk::<2>() {
            Some((code, reason)) => (
                Some(u16::from_be_bytes(*code)),
                String::from_utf8(reason.to_vec()).expect("reasons are UTF-8"),
            ),
            None => (None, String::new()),
        }
    }
}

/// The header of a client's frame of this length, mask included.
pub fn frame_header(first: u8, length: usize) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..126 => header.push(0x80 | length as u8),
        126..65536 => {
            header.push(0x80 | 126);
            header.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    header.extend_from_slice(&MASK);
    header
}

/// A client's frame: `first` is FIN, reserved bits and opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_header(first, payload.len());
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

/// The payload of a close frame.
pub fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason].concat()
}

/// What a client's bytes go through.
#[derive(Debug)]
enum Wire {
    Plain(TcpStream),
    Tls(Arc<TlsWire>),
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(data),
            Self::Tls(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    /// The head of the server's answer.
    pub response: String,
}

impl Client {
    /// Connects without sending anything.
    pub fn raw(address: SocketAddr) -> Self {
        match tls::everywhere() {
            None => Self::over(Wire::Plain(connect(address))),
            Some((.., tls)) => Self::tls(address, tls).expect("the server speaks TLS"),
        }
    }

    /// Connects by TLS, without sending anything else.
    ///
    /// # Errors
    /// There was no handshake.
    pub fn tls(address: SocketAddr, tls: &ClientTls) -> io::Result<Self> {
        let wire = TlsWire::new(connect(address), tls)?;
        Ok(Self::over(Wire::Tls(Arc::new(wire))))
    }

    /// Connects from one of this machine's addresses, as if it were another machine, and without TLS in any case.
    pub fn from_host(host: Ipv4Addr, address: SocketAddr) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC;
        let family = AddressFamily::Inet;
        let socket = socket(family, SockType::Stream, flags, None).expect("there are descriptors");
        let source = SockaddrStorage::from(SocketAddr::from((host, 0)));
        bind(socket.as_raw_fd(), &source).expect("all of 127.0.0.0/8 is this machine");
        let target = SockaddrStorage::from(address);
        socket::connect(socket.as_raw_fd(), &target).expect("the server listens");
        let stream = TcpStream::from(socket);
        tune(&stream);
        Self::over(Wire::Plain(stream))
    }

    /// Speaks TLS from here on.
    ///
    /// # Errors
    /// There was no handshake.
    pub fn start_tls(self, tls: &ClientTls) -> io::Result<Self> {
        let Wire::Plain(stream) = self.wire else {
            panic!("it speaks TLS already");
        };
        let wire = TlsWire::new(stream, tls)?;
        Ok(Self::over(Wire::Tls(Arc::new(wire))))
    }

    fn over(wire: Wire) -> Self {
        Self {
            wire,
            response: String::new(),
        }
    }

    /// The same as [`Client::connect`] by TLS.
    pub fn connect_tls(address: SocketAddr, tls: &ClientTls) -> Self {
        let mut client = Self::tls(address, tls).expect("the server speaks TLS");
        client.request(&Handshake::default().bytes());
        client.expect_session();
        client
    }

    /// What was agreed on by TLS.
    pub fn tls_connection(&self) -> MutexGuard<'_, ClientConnection> {
        match &self.wire {
            Wire::Plain(_) => panic!("it does not speak TLS"),
            Wire::Tls(stream) => stream.connection(),
        }
    }

    /// The same connection once more, for a thread that only sends or only receives.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self::over(match &self.wire {
            Wire::Plain(stream) => Wire::Plain(stream.try_clone().expect("there are descriptors")),
            Wire::Tls(stream) => Wire::Tls(Arc::clone(stream)),
        })
    }

    /// Connects and becomes a WebSocket.
    pub fn connect(address: SocketAddr) -> Self {
        Self::with(address, &Handshake::default())
    }

    /// The same with headers of the test's choice.
    pub fn with(address: SocketAddr, handshake: &Handshake) -> Self {
        let client = Self::ask(address, &handshake.bytes());
        client.expect_session();
        client
    }

    fn expect_session(&self) {
        let accepted = self.response.starts_with("HTTP/1.1 101 ");
        assert!(accepted, "refused: {}", self.response);
    }

    /// Connects, sends `request`, and reads the head of the answer, whatever it is.
    pub fn ask(address: SocketAddr, request: &[u8]) -> Self {
        let mut client = Self::raw(address);
        client.request(request);
        client
    }

    /// Sends `request`, and reads the head of the answer.
    pub fn request(&mut self, request: &[u8]) {
        self.send(request);
        self.read_head();
    }

    /// Reads as much body as the head said that there is.
    pub fn read_body(&mut self) -> Vec<u8> {
        let length = self.header("Content-Length").expect("it has a length");
        let mut body = vec![0; length.parse().expect("it is a number")];
        self.wire.read_exact(&mut body).expect("all of it comes");
        body
    }

    /// The status of the answer.
    pub fn status(&self) -> &str {
        self.response.split(' ').nth(1).unwrap_or_default()
    }

    /// Reads the head of an answer into `response`.
    pub fn read_head(&mut self) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if self.wire.read(&mut byte).expect("the server answers") == 0 {
                break;
            }
            head.push(byte[0]);
        }
        self.response = String::from_utf8(head).expect("heads are text");
    }

    /// The value of a header of the response, its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).expect("the server reads");
    }

    /// Sends bytes as they are, unless the connection is over.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.write_all(bytes)
    }

    /// Sends as much as there is room for. Returns how much that was.
    pub fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wire.write(bytes)
    }

    /// Sends a binary message.
    pub fn send_binary(&mut self, payload: &[u8]) {
        self.send(&frame(0x82, payload));
    }

    /// Sends a close frame with a code.
    pub fn send_close(&mut self, code: u16) {
        self.send(&frame(0x88, &close_payload(code, b"")));
    }

    /// Reads a frame, which must not be masked.
    pub fn read_frame(&mut self) -> Message {
        self.try_read_frame()
            .expect("the server sends a whole frame")
    }

    /// Reads a frame, if the connection is not over.
    pub fn try_read_frame(&mut self) -> io::Result<Message> {
        let mut start = [0; 2];
        self.wire.read_exact(&mut start)?;
        assert_eq!(start[1] & 0x80, 0, "servers do not mask");
        let length = match start[1] {
            126 => {
                let mut length = [0; 2];
                self.wire.read_exact(&mut length)?;
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.wire.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
            length => length.into(),
        };
        let mut payload = vec![0; length as usize];
        self.wire.read_exact(&mut payload)?;
        Ok(Message {
            first: start[0],
            payload,
        })
    }

    /// Reads binary messages until there are `length` bytes of payload.
    pub fn read_binary(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let message = self.read_frame();
            assert_eq!(
                message.first,
                0x82,
                "after {} bytes: {message:?}",
                bytes.len()
            );
            bytes.extend_from_slice(&message.payload);
        }
        assert_eq!(bytes.len(), length);
        bytes
    }

    /// Reads binary messages until the close frame. Returns all payload, and the code and reason.
    pub fn read_to_close(&mut self) -> (Vec<u8>, Option<u16>, String) {
        let mut bytes = Vec::new();
        loop {
            let message = self.read_frame();
            match message.first {
                0x82 => bytes.extend_from_slice(&message.payload),
                0x88 => {
                    let (code, reason) = message.close();
                    return (bytes, code, reason);
                }
                _ => panic!("neither binary nor close: {message:?}"),
            }
        }
    }

    /// Checks that the connection is over: the end of the data, and no reset.
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        self.wire
            .read_to_end(&mut rest)
            .expect("the connection ends without a reset");
        assert!(rest.is_empty(), "after the end: {rest:?}");
    }

    /// What there is to read, at least a byte unless the connection has ended.
    ///
    /// # Errors
    /// The connection broke.
    pub fn read_some(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 1 << 16];
        let length = self.wire.read(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Everything until the end of the connection.
    pub fn read_rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.wire
            .read_to_end(&mut rest)
            .expect("the connection ends without a reset");
        rest
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        match &self.wire {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => stream.socket(),
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    tune(&stream);
    stream
}

fn tune(stream: &TcpStream) {
    limit(stream);
    stream
        .set_nodelay(true)
        .expect("a socket can do without delay");
}
