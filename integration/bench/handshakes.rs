//! TLS handshakes from beginning to end: connect, handshake, close; a few at a time, over and over, as strangers and as clients that
//! resume what they agreed on before.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use rustls::{ClientConnection, HandshakeKind};

use crate::bench::Bench;
use crate::metric::{FULL_CPU, FULL_RATE, RESUMED_CPU, RESUMED_RATE};
use crate::peers::{Peer, Service};
use crate::process::DEADLINE;
use crate::relay::Relay;
use crate::target::{EVENTS, watch};
use crate::tls::{Clients, Tls};

/// Connections that are open at the same time.
const LOOPS: u8 = 16;
/// The most handshakes of a run: far fewer than there are ports, all of which the system keeps for a while after their use.
const MOST: usize = 6000;

/// Measures the rate of handshakes, and what each costs.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let tls = Tls::new(bench.scratch())?;
    let service = Service::Handshakes(&tls);
    let rounds = bench.pick(5, 7);
    let takes_part = |kind| service.is_of(kind);
    bench.in_turn("TLS handshakes", rounds, takes_part, |bench, peer| {
        let (full_rate, full_cpu) = measure(bench, peer, &tls, HandshakeKind::Full)?;
        let (resumed_rate, resumed_cpu) = measure(bench, peer, &tls, HandshakeKind::Resumed)?;
        Ok(vec![
            (&FULL_RATE, full_rate),
            (&FULL_CPU, full_cpu),
            (&RESUMED_RATE, resumed_rate),
            (&RESUMED_CPU, resumed_cpu),
        ])
    });
    Ok(())
}

/// Handshakes of this kind per second, and the microseconds of the relay's processor time for each.
fn measure(bench: &Bench, peer: &Peer, tls: &Tls, kind: HandshakeKind) -> Result<(f64, f64)> {
    let length = Duration::from_millis(bench.pick(600, 1500));
    // A new one each time listens on a new port, so that no connection of the last round is in the way.
    let mut relay = bench.start(peer, Service::Handshakes(tls))?;
    let clients = tls.clients()?;
    let mut run = Run {
        relay: &relay,
        clients: &clients,
        kind,
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?,
    };
    // Those that are to resume have nothing to resume yet.
    run.repeat(length / 5, &[HandshakeKind::Full, kind])?;
    let cpu = relay.cpu_time()?;
    let begun = Instant::now();
    let done = run.repeat(length, &[kind])?;
    let elapsed = begun.elapsed();
    let cpu = relay.cpu_time()?.saturating_sub(cpu);
    relay.check()?;
    Ok((
        done as f64 / elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / done as f64,
    ))
}

/// Clients that make one handshake after the other.
struct Run<'a> {
    relay: &'a Relay,
    clients: &'a Clients,
    /// What the clients are after.
    kind: HandshakeKind,
    epoll: Epoll,
}

/// A client's present connection.
struct Client {
    socket: TcpStream,
    tls: ClientConnection,
    finished: bool,
}

impl Run<'_> {
    /// Makes handshakes for so long, at most [`MOST`], each of one of these kinds. Returns how many; all connections have ended then.
    fn repeat(&mut self, length: Duration, kinds: &[HandshakeKind]) -> Result<usize> {
        let timeout = EpollTimeout::try_from(DEADLINE).context("the deadline is too long")?;
        let end = Instant::now() + length;
        let mut clients = (0..LOOPS)
            .map(|place| self.begin(place).map(Some))
            .collect::<Result<Vec<_>>>()?;
        let (mut begun, mut done) = (clients.len(), 0);
        let mut events = [EpollEvent::empty(); EVENTS];
        while done < begun {
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(0) => bail!("{} connections did not end", begun - done),
                Err(Errno::EINTR) => 0,
                other => other.context("wait for events")?,
            };
            for event in &events[..count] {
                let place = event.data() as u8;
                let client = &mut clients[usize::from(place)];
                if !client.as_mut().context("it is watched")?.step(kinds)? {
                    continue;
                }
                done += 1;
                *client = None;
                if begun < MOST && Instant::now() < end {
                    *client = Some(self.begin(place)?);
                    begun += 1;
                }
            }
        }
        Ok(done)
    }

    /// Connects the client at `place`.
    fn begin(&self, place: u8) -> Result<Client> {
        let socket = TcpStream::connect(self.relay.address).context("connect")?;
        socket.set_nodelay(true).context("set a connection up")?;
        watch(&self.epoll, &socket, place.into())?;
        let tls = match self.kind {
            HandshakeKind::Resumed => self.clients.regular(place)?,
            _ => self.clients.stranger()?,
        };
        let mut client = Client {
            socket,
            tls,
            finished: false,
        };
        client.send()?;
        Ok(client)
    }
}

impl Client {
    /// Takes what has come, and goes on; closes after the handshake and a ticket for the next one. Returns whether the connection has ended.
    fn step(&mut self, kinds: &[HandshakeKind]) -> Result<bool> {
        if self.tls.read_tls(&mut self.socket).context("read")? == 0 {
            ensure!(self.finished, "the relay closed too early");
            return Ok(true);
        }
        self.tls.process_new_packets().context("speak TLS")?;
        let complete = !self.tls.is_handshaking() && self.tls.tls13_tickets_received() > 0;
        if complete && !self.finished {
            let kind = self.tls.handshake_kind().context("there was a handshake")?;
            ensure!(kinds.contains(&kind), "a handshake that is {kind:?}");
            self.tls.send_close_notify();
            self.finished = true;
        }
        self.send()?;
        Ok(false)
    }

    fn send(&mut self) -> Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket).context("send")?;
        }
        Ok(())
    }
}
