//! A peer that runs, with a target of its own behind it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, listen};

use crate::connection::Connection;
use crate::measure::{self, Memory};
use crate::peers::{Kind, Peer, Service};
use crate::process::{DEADLINE, Process, until};
use crate::session::{Session, limit};
use crate::tls::{Clients, Tls};
use crate::wire::Speech;

/// How many ports are tried: a port that was free may be taken until the peer binds it.
const ATTEMPTS: usize = 5;
/// What the first session carries.
const GREETING: &[u8] = b"is it you?";

/// A relay that works: one session has gone through it. Killed in the end.
#[derive(Debug)]
pub(crate) struct Relay {
    process: Process,
    /// Which peer.
    pub(crate) kind: Kind,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What it connects to.
    pub(crate) target: TcpListener,
    /// How long it took from its start until it accepted a connection.
    pub(crate) started_in: Duration,
    /// Its clients, if they speak TLS.
    clients: Option<Clients>,
}

impl Relay {
    /// Starts a peer; its files go to `scratch`.
    pub(crate) fn start(peer: &Peer, service: Service<'_>, scratch: &Path) -> Result<Self> {
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            match Self::try_start(peer, service, scratch) {
                Ok(relay) => return Ok(relay),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no attempt was made")?)
    }

    fn try_start(peer: &Peer, service: Service<'_>, scratch: &Path) -> Result<Self> {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
        listen(&target, Backlog::MAXCONN).context("listen")?;
        let behind = target.local_addr().context("ask for our own address")?;
        let address = free_address()?;
        let arguments = peer.arguments(service, address, behind, scratch)?;
        let log = scratch.join(format!("{}.log", peer.kind.name()));
        let begun = Instant::now();
        let mut process = Process::start(&peer.program, &arguments, &log)?;
        let first = connect_when_it_listens(address, &mut process)?;
        let clients = service.tls().map(Tls::clients).transpose()?;
        let mut relay = Self {
            process,
            clients,
            kind: peer.kind,
            address,
            target,
            started_in: begun.elapsed(),
        };
        match service {
            // Answers are looked at when they come.
            Service::Files(_) | Service::Tokens(_) => {}
            _ => relay.greet(first).with_context(|| {
                format!("the first session; its log: {}", relay.process.log_end())
            })?,
        }
        relay.check()?;
        Ok(relay)
    }

    /// What its clients speak.
    pub(crate) fn speech(&self) -> Speech {
        self.kind.speech()
    }

    /// Its process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Fails if it does not run any more.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// The processor time that it has used so far.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        measure::cpu_time(self.process.pid())
    }

    /// The memory that it has now.
    pub(crate) fn memory(&self) -> Result<Memory> {
        measure::memory(self.process.pid())
    }

    /// The size of its executable, if that is all there is to it.
    pub(crate) fn executable_size(&self) -> Result<Option<u64>> {
        if self.kind == Kind::Python {
            return Ok(None);
        }
        let path = format!("/proc/{}/exe", self.process.pid());
        Ok(Some(
            fs::metadata(path).context("find the executable")?.len(),
        ))
    }

    /// A new session.
    pub(crate) fn open(&self) -> Result<Session> {
        self.open_on(TcpStream::connect(self.address).context("connect")?)
    }

    /// A new session with the target's end of it. There must be nobody else who accepts.
    pub(crate) fn session(&self) -> Result<(Session, TcpStream)> {
        let session = self.open()?;
        Ok((session, self.accept()?))
    }

    /// Waits until the processes are gone that served ended sessions, so that their time is all counted.
    pub(crate) fn settle(&self) -> Result<()> {
        if !matches!(self.kind, Kind::Socat | Kind::Python) {
            return Ok(());
        }
        until("the end of all sessions' processes", || {
            (measure::tree(self.process.pid()).len() == 1).then_some(())
        })
    }

    /// Makes the first connection a session, so that nothing of it is left when the measurement begins.
    fn greet(&self, first: TcpStream) -> Result<()> {
        let mut session = self.open_on(first)?;
        session.send(GREETING)?;
        let mut target = self.accept()?;
        let mut got = [0; GREETING.len()];
        std::io::Read::read_exact(&mut target, &mut got).context("read at the target")?;
        std::io::Write::write_all(&mut target, &got).context("write at the target")?;
        session.expect(GREETING)?;
        session.finish()?;
        drop(target);
        session.expect_end()?;
        self.settle()
    }

    fn open_on(&self, socket: TcpStream) -> Result<Session> {
        limit(&socket)?;
        let connection = match &self.clients {
            None => Connection::Plain(socket),
            Some(clients) => Connection::encrypt(socket, clients.stranger()?)?,
        };
        Session::begin(connection, self.speech())
    }

    /// The next connection to the target.
    fn accept(&self) -> Result<TcpStream> {
        let timeout = PollTimeout::try_from(DEADLINE).context("the deadline is too long")?;
        let mut waiting = [PollFd::new(self.target.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, timeout).context("wait for the relay")? == 0 {
            bail!("it did not connect to its target");
        }
        let (stream, _) = self.target.accept().context("accept")?;
        limit(&stream)?;
        Ok(stream)
    }
}

/// An address of 127.0.0.1 that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("find a free port")
}

/// The first connection that a starting process accepts.
fn connect_when_it_listens(address: SocketAddr, process: &mut Process) -> Result<TcpStream> {
    until("the peer to listen", || {
        match TcpStream::connect(address) {
            // A connection from a port to itself, which the system may choose while nobody listens there.
            Ok(stream) if stream.local_addr().is_ok_and(|own| own == address) => None,
            Ok(stream) => Some(Ok(stream)),
            Err(_) => process.check().err().map(Err),
        }
    })?
}
