//! Sessions from beginning to end: connect, upgrade, one echo, close; a few at a time, over and over.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::Handshake;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::bench::Bench;
use crate::figures::Reading;
use crate::load::{MESSAGE, payload};
use crate::metric::{SESSION_CPU, SESSION_RATE};
use crate::peers::{Peer, Service};
use crate::process::DEADLINE;
use crate::relay::Relay;
use crate::session::{close_frame, head_is_whole};
use crate::target::{EVENTS, Echo, watch};
use crate::wire::{Decoder, Speech};

/// Sessions that are open at the same time.
const LOOPS: usize = 16;
/// The most sessions of a run: far fewer than there are ports, all of which the system keeps for a while after their use.
const MOST: usize = 6000;

/// Measures the rate of sessions, and what each costs.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let rounds = bench.pick(5, 7);
    let relays = |kind| Service::Plain.is_of(kind);
    bench.in_turn("sessions", rounds, relays, measure);
    Ok(())
}

fn measure(bench: &Bench, peer: &Peer) -> Result<Vec<Reading>> {
    let length = Duration::from_millis(bench.pick(600, 1500));
    // A new one each time listens on a new port, so that no connection of the last round is in the way.
    let mut relay = bench.start(peer, Service::Plain)?;
    let echo = Echo::start(&relay.target)?;
    let mut run = Run::new(&relay)?;
    run.repeat(length / 5, MOST)?;
    relay.settle()?;
    let cpu = relay.cpu_time()?;
    let begun = Instant::now();
    let done = run.repeat(length, MOST)?;
    let elapsed = begun.elapsed();
    relay.settle()?;
    let cpu = relay.cpu_time()?.saturating_sub(cpu);
    relay.check()?;
    echo.stop()?;
    Ok(vec![
        (&SESSION_RATE, done as f64 / elapsed.as_secs_f64()),
        (&SESSION_CPU, cpu.as_secs_f64() * 1e6 / done as f64),
    ])
}

/// Clients that open one session after the other.
struct Run<'a> {
    relay: &'a Relay,
    epoll: Epoll,
    request: Vec<u8>,
    close: Vec<u8>,
}

/// A client's present session.
struct Client {
    stream: TcpStream,
    phase: Phase,
    decoder: Decoder,
    payload: [u8; MESSAGE],
    /// What has come in this phase.
    received: Vec<u8>,
}

/// What a client waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The answer to its upgrade.
    Upgrade,
    /// The echo.
    Echo,
    /// The relay's close, and the end of the connection.
    End,
}

impl<'a> Run<'a> {
    fn new(relay: &'a Relay) -> Result<Self> {
        Ok(Self {
            relay,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?,
            request: Handshake::default().bytes(),
            close: close_frame(),
        })
    }

    /// Opens and closes sessions for so long, at most `most`. Returns how many; all have ended then.
    fn repeat(&mut self, length: Duration, most: usize) -> Result<usize> {
        let timeout = EpollTimeout::try_from(DEADLINE).context("the deadline is too long")?;
        let end = Instant::now() + length;
        let mut clients = (0..LOOPS)
            .map(|place| self.begin(place, place).map(Some))
            .collect::<Result<Vec<_>>>()?;
        let (mut begun, mut done) = (LOOPS, 0);
        let mut events = [EpollEvent::empty(); EVENTS];
        while done < begun {
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(0) => bail!("{} sessions did not end", begun - done),
                Err(Errno::EINTR) => 0,
                other => other.context("wait for events")?,
            };
            for event in &events[..count] {
                let place = event.data() as usize;
                let client = clients[place].as_mut().context("it is watched")?;
                if !self.step(client)? {
                    continue;
                }
                done += 1;
                clients[place] = None;
                if begun < most && Instant::now() < end {
                    clients[place] = Some(self.begin(place, begun)?);
                    begun += 1;
                }
            }
        }
        Ok(done)
    }

    /// Connects session `number` for the client at `place`.
    fn begin(&self, place: usize, number: usize) -> Result<Client> {
        let stream = TcpStream::connect(self.relay.address).context("connect")?;
        stream.set_nodelay(true).context("set a connection up")?;
        watch(&self.epoll, &stream, place as i32)?;
        let speech = self.relay.speech();
        let mut client = Client {
            stream,
            phase: Phase::Upgrade,
            decoder: Decoder::new(speech),
            payload: payload(number),
            received: Vec::with_capacity(256),
        };
        match speech {
            Speech::Plain => self.send_message(&mut client)?,
            Speech::WebSocket => client
                .stream
                .write_all(&self.request)
                .context("ask for an upgrade")?,
        }
        Ok(client)
    }

    /// Takes what has come, and goes on. Returns whether the session is over.
    fn step(&self, client: &mut Client) -> Result<bool> {
        let mut buffer = [0; 4096];
        let length = client.stream.read(&mut buffer).context("read")?;
        let bytes = &buffer[..length];
        if client.phase == Phase::End && length == 0 {
            let closed = client.decoder.close_code().is_some();
            ensure!(
                closed || self.relay.speech() == Speech::Plain,
                "there was no close frame"
            );
            return Ok(true);
        }
        ensure!(length > 0, "the relay closed too early");
        match client.phase {
            Phase::Upgrade => {
                client.received.extend_from_slice(bytes);
                if head_is_whole(&client.received)? {
                    self.send_message(client)?;
                }
            }
            Phase::Echo => {
                let received = &mut client.received;
                client.decoder.decode(bytes, |piece| {
                    received.extend_from_slice(piece);
                    Ok(())
                })?;
                if received.len() >= MESSAGE {
                    ensure!(received[..] == client.payload, "a wrong echo");
                    self.finish(client)?;
                }
            }
            Phase::End => client
                .decoder
                .decode(bytes, |_| bail!("there came data after the echo"))?,
        }
        Ok(false)
    }

    fn send_message(&self, client: &mut Client) -> Result<()> {
        client.phase = Phase::Echo;
        client.received.clear();
        let message = self.relay.speech().message(&client.payload);
        client.stream.write_all(&message).context("send")
    }

    fn finish(&self, client: &mut Client) -> Result<()> {
        client.phase = Phase::End;
        match self.relay.speech() {
            Speech::Plain => client.stream.shutdown(Shutdown::Write),
            Speech::WebSocket => client.stream.write_all(&self.close),
        }
        .context("close")
    }
}
