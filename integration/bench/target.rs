//! The target that echoes: one thread for all connections.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// How many events are taken at once.
pub(crate) const EVENTS: usize = 512;

/// A running echo target; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Echo {
    /// Its end tells the thread to end.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Echo {
    /// Accepts and echoes on this listener from now on.
    pub(crate) fn start(listener: &TcpListener) -> Result<Self> {
        let listener = listener.try_clone().context("share a listener")?;
        listener
            .set_nonblocking(true)
            .context("set a listener up")?;
        let (stop, stopped) = UnixStream::pair().context("make a pair of sockets")?;
        let mut server = Server::new(listener, stopped)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(std::thread::spawn(move || server.run())),
        })
    }

    /// Ends it, and tells whether anything went wrong.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.stop = None;
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow!("the target panicked"))?
                .context("the target"),
            None => Ok(()),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// What the thread works on.
struct Server {
    epoll: Epoll,
    listener: TcpListener,
    stopped: UnixStream,
    /// The connections, each at the place of its descriptor's number.
    connections: Vec<Option<TcpStream>>,
}

impl Server {
    fn new(listener: TcpListener, stopped: UnixStream) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        watch(&epoll, &listener, listener.as_raw_fd())?;
        watch(&epoll, &stopped, stopped.as_raw_fd())?;
        Ok(Self {
            epoll,
            listener,
            stopped,
            connections: Vec::new(),
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut buffer = vec![0; 64 * 1024];
        loop {
            for event in ready(&self.epoll, &mut events)? {
                let descriptor = event.data() as RawFd;
                if descriptor == self.stopped.as_raw_fd() {
                    return Ok(());
                } else if descriptor == self.listener.as_raw_fd() {
                    self.accept_all()?;
                } else {
                    self.echo(descriptor, &mut buffer);
                }
            }
        }
    }

    fn accept_all(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.add(stream)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accept"),
            }
        }
    }

    fn add(&mut self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true).context("set a connection up")?;
        let descriptor = stream.as_raw_fd();
        watch(&self.epoll, &stream, descriptor)?;
        let place = usize::try_from(descriptor).context("descriptors are not negative")?;
        if self.connections.len() <= place {
            self.connections.resize_with(place + 1, || None);
        }
        self.connections[place] = Some(stream);
        Ok(())
    }

    /// Echoes what has come. A connection that has ended is closed; whether it should have is for the client to judge.
    fn echo(&mut self, descriptor: RawFd, buffer: &mut [u8]) {
        let place = descriptor as usize;
        let Some(Some(stream)) = self.connections.get_mut(place) else {
            return;
        };
        let echoed = stream.read(buffer).and_then(|length| {
            stream.write_all(&buffer[..length])?;
            Ok(length > 0)
        });
        if !echoed.unwrap_or(false) {
            self.connections[place] = None;
        }
    }
}

/// Has the epoll tell, by `number`, whenever there is something to read.
pub(crate) fn watch(epoll: &Epoll, socket: impl std::os::fd::AsFd, number: RawFd) -> Result<()> {
    let event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
    epoll.add(socket, event).context("watch a socket")
}

/// Waits for events, as long as it takes.
fn ready<'a>(epoll: &Epoll, events: &'a mut [EpollEvent]) -> Result<&'a [EpollEvent]> {
    let count = loop {
        match epoll.wait(events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other.context("wait for events")?,
        }
    };
    Ok(&events[..count])
}
