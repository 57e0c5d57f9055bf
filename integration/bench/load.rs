//! Many clients in one thread: each sends a message, waits for its echo, and sends the next.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::process::DEADLINE;
use crate::relay::Relay;
use crate::session::Session;
use crate::target::{EVENTS, watch};

/// The length of a message.
pub(crate) const MESSAGE: usize = 64;

/// A client with its session.
#[derive(Debug)]
pub(crate) struct Client {
    /// The session.
    pub(crate) session: Session,
    /// What it sends and expects back, different for each client.
    payload: [u8; MESSAGE],
    /// The same as it is sent.
    message: Vec<u8>,
    /// How much of the echo has come.
    received: usize,
    sent_at: Instant,
}

impl Client {
    /// Opens a session with an echo target, and has one echo.
    pub(crate) fn open(relay: &Relay, number: usize) -> Result<Self> {
        let payload = payload(number);
        let mut session = relay
            .open()
            .with_context(|| format!("open session {number}"))?;
        session.send(&payload)?;
        session.expect(&payload)?;
        Ok(Self {
            message: session.speech.message(&payload),
            session,
            payload,
            received: 0,
            sent_at: Instant::now(),
        })
    }

    /// Reads what has come, which is to be a close frame, then answers it; or the end of the connection. Returns false at the end.
    pub(crate) fn answer_close(&mut self, answer: &[u8]) -> Result<bool> {
        let session = &mut self.session;
        let was_closed = session.decoder.close_code().is_some();
        let more = session.receive(&mut [0; 256], |_| bail!("there came data"))?;
        if more && !was_closed && session.decoder.close_code().is_some() {
            session.stream.write_all(answer).context("answer a close")?;
        }
        Ok(more)
    }

    fn send(&mut self, now: Instant) -> Result<()> {
        self.sent_at = now;
        self.received = 0;
        self.session
            .stream
            .write_all(&self.message)
            .context("send to the relay")
    }

    /// Reads what has come. Returns whether the echo is complete.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let Self {
            session,
            payload,
            received,
            ..
        } = self;
        let more = session.receive(buffer, |piece| {
            let end = *received + piece.len();
            ensure!(payload.get(*received..end) == Some(piece), "a wrong echo");
            *received = end;
            Ok(())
        })?;
        ensure!(more, "the relay closed");
        Ok(*received == MESSAGE)
    }
}

/// What a load came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How long each round trip took, in nanoseconds.
    pub(crate) latencies: Vec<u32>,
    /// How long all took.
    pub(crate) elapsed: Duration,
    /// What the relay used meanwhile.
    pub(crate) cpu: Duration,
}

impl Outcome {
    /// Processor time of the relay per round trip, in microseconds.
    pub(crate) fn cpu_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies.len() as f64
    }

    /// Round trips per second.
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Puts these clients to work for so long, after a while that is not measured. All is quiet again in the end.
pub(crate) fn run(relay: &Relay, clients: &mut [Client], length: Duration) -> Result<Outcome> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
    for (number, client) in clients.iter().enumerate() {
        watch(&epoll, &client.session.stream, number as i32)?;
    }
    echo_for(&epoll, clients, length / 5)?;
    let cpu = relay.cpu_time()?;
    let begun = Instant::now();
    let latencies = echo_for(&epoll, clients, length)?;
    let elapsed = begun.elapsed();
    let cpu = relay.cpu_time()?.saturating_sub(cpu);
    Ok(Outcome {
        latencies,
        elapsed,
        cpu,
    })
}

fn echo_for(epoll: &Epoll, clients: &mut [Client], length: Duration) -> Result<Vec<u32>> {
    let timeout = EpollTimeout::try_from(DEADLINE).context("the deadline is too long")?;
    let mut events = [EpollEvent::empty(); EVENTS];
    let mut buffer = [0; 4096];
    let mut latencies = Vec::with_capacity(1 << 16);
    let end = Instant::now() + length;
    for client in &mut *clients {
        client.send(Instant::now())?;
    }
    let mut outstanding = clients.len();
    while outstanding > 0 {
        let count = match epoll.wait(&mut events, timeout) {
            Ok(0) => bail!("{outstanding} echoes did not come"),
            Err(Errno::EINTR) => 0,
            other => other.context("wait for events")?,
        };
        for event in &events[..count] {
            let client = &mut clients[event.data() as usize];
            if !client.receive(&mut buffer)? {
                continue;
            }
            let now = Instant::now();
            let latency = now.duration_since(client.sent_at).as_nanos();
            latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
            if now < end {
                client.send(now)?;
            } else {
                outstanding -= 1;
            }
        }
    }
    Ok(latencies)
}

/// A client's message: text with its number, filled up.
pub(crate) fn payload(number: usize) -> [u8; MESSAGE] {
    let mut payload = [b'.'; MESSAGE];
    let text = format!("client {number}");
    payload[..text.len()].copy_from_slice(text.as_bytes());
    payload
}
