//! As much as goes through in one direction, with TLS or without: megabytes per second, and what a gigabyte costs.
//!
//! Each run is a session of its own. Its first megabytes are compared byte by byte and not measured; they open the windows of
//! both connections and tell how much the peer moves in the time that a run is to take. The measured bytes are counted exactly.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::bench::Bench;
use crate::metric::{
    DOWN_CPU, DOWN_RATE, Metric, TLS_DOWN_CPU, TLS_DOWN_RATE, TLS_UP_CPU, TLS_UP_RATE, UP_CPU,
    UP_RATE,
};
use crate::peers::{Kind, Service};
use crate::relay::Relay;
use crate::session::Session;
use crate::tls::Tls;
use crate::wire::Speech;

/// The lengths of a cycle's messages: 64 KiB to 128 KiB.
const LENGTHS: Range<usize> = 8..17;
/// What the lengths are counted in.
const LENGTH_UNIT: usize = 8 * 1024;
/// Cycles whose content is compared, before the measurement.
const COMPARED: usize = 10;
/// The most bytes of a run.
const MOST: f64 = (1 << 30) as f64;
/// How much is read at once.
const READ: usize = 256 * 1024;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the target to the client.
    Down,
    /// From the client to the target.
    Up,
}

/// Measures both directions without TLS.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let service = Service::Plain;
    measure(bench, service, Direction::Down, &DOWN_RATE, &DOWN_CPU);
    measure(bench, service, Direction::Up, &UP_RATE, &UP_CPU);
    Ok(())
}

/// Measures both directions with TLS towards the client.
pub(crate) fn run_tls(bench: &mut Bench) -> Result<()> {
    let tls = Tls::new(bench.scratch())?;
    let service = Service::Tls(&tls);
    measure(
        bench,
        service,
        Direction::Down,
        &TLS_DOWN_RATE,
        &TLS_DOWN_CPU,
    );
    measure(bench, service, Direction::Up, &TLS_UP_RATE, &TLS_UP_CPU);
    Ok(())
}

fn measure(
    bench: &mut Bench,
    service: Service<'_>,
    direction: Direction,
    rate: &'static Metric,
    cpu: &'static Metric,
) {
    let length = Duration::from_millis(bench.pick(500, 2000));
    let mut relays: BTreeMap<Kind, Relay> = BTreeMap::new();
    let rounds = bench.pick(5, 7);
    bench.in_turn(
        rate.label,
        rounds,
        |kind| service.is_of(kind),
        |bench, peer| {
            let relay = match relays.entry(peer.kind) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(bench.start(peer, service)?),
            };
            let run = transfer(relay, direction, length)?;
            relay.check()?;
            Ok(vec![
                (rate, run.bytes as f64 / 1e6 / run.elapsed.as_secs_f64()),
                (cpu, run.cpu.as_secs_f64() * 1e9 / run.bytes as f64),
            ])
        },
    );
}

/// What a run came to.
struct Run {
    bytes: usize,
    elapsed: Duration,
    cpu: Duration,
}

/// One session that carries bytes one way for about so long.
fn transfer(relay: &Relay, direction: Direction, length: Duration) -> Result<Run> {
    let (mut session, mut target) = relay.session()?;
    let speech = match direction {
        Direction::Down => Speech::Plain,
        Direction::Up => relay.speech(),
    };
    let source = Source::new(speech);
    let compared = pump(
        &source,
        &mut session,
        &mut target,
        direction,
        COMPARED,
        true,
    )?;
    let whole = compared.as_secs_f64() / COMPARED as f64;
    let most = MOST / source.payload.len() as f64;
    let cycles = (length.as_secs_f64() / whole).clamp(COMPARED as f64, most) as usize;

    let cpu = relay.cpu_time()?;
    let elapsed = pump(&source, &mut session, &mut target, direction, cycles, false)?;
    let cpu = relay.cpu_time()?.saturating_sub(cpu);
    session.finish()?;
    drop(target);
    session.expect_end()?;
    Ok(Run {
        bytes: cycles * source.payload.len(),
        elapsed,
        cpu,
    })
}

/// Sends so many cycles from a thread, and receives them here. Returns how long that took.
fn pump(
    source: &Source,
    session: &mut Session,
    target: &mut TcpStream,
    direction: Direction,
    cycles: usize,
    compare: bool,
) -> Result<Duration> {
    let mut sink = Sink {
        source,
        received: 0,
        compare,
    };
    let whole = cycles * source.payload.len();
    let begun = Instant::now();
    thread::scope(|scope| {
        let sender = match direction {
            Direction::Down => {
                let sender = scope.spawn(|| source.send(target, cycles));
                sink.fill_from_session(session, whole)?;
                sender
            }
            Direction::Up => {
                let sender = scope.spawn(|| source.send(&mut session.stream, cycles));
                sink.fill_from_target(target, whole)?;
                sender
            }
        };
        let elapsed = begun.elapsed();
        sender
            .join()
            .map_err(|_| anyhow!("the sender panicked"))??;
        Ok(elapsed)
    })
}

/// What is sent over and over, made once.
struct Source {
    /// A cycle's payload.
    payload: Vec<u8>,
    /// A cycle's messages as they are sent: masked frames, or the payload itself.
    messages: Vec<Vec<u8>>,
}

impl Source {
    fn new(speech: Speech) -> Self {
        let payload = integration::pattern(LENGTHS.sum::<usize>() * LENGTH_UNIT);
        let mut rest = &payload[..];
        let messages = LENGTHS
            .map(|units| {
                let (message, after) = rest.split_at(units * LENGTH_UNIT);
                rest = after;
                speech.message(message)
            })
            .collect();
        Self { payload, messages }
    }

    fn send(&self, to: &mut impl Write, cycles: usize) -> Result<()> {
        for _ in 0..cycles {
            for message in &self.messages {
                to.write_all(message).context("send")?;
            }
        }
        Ok(())
    }
}

/// What counts the bytes at the other end.
struct Sink<'a> {
    source: &'a Source,
    received: usize,
    compare: bool,
}

impl Sink<'_> {
    fn fill_from_session(&mut self, session: &mut Session, whole: usize) -> Result<()> {
        let mut buffer = vec![0; READ];
        while self.received < whole {
            let more = session.receive(&mut buffer, |piece| self.take(piece))?;
            ensure!(more, "only {} of {whole} bytes came", self.received);
        }
        self.check(whole)
    }

    fn fill_from_target(&mut self, target: &mut TcpStream, whole: usize) -> Result<()> {
        let mut buffer = vec![0; READ];
        while self.received < whole {
            let length = target.read(&mut buffer).context("read at the target")?;
            ensure!(length > 0, "only {} of {whole} bytes came", self.received);
            self.take(&buffer[..length])?;
        }
        self.check(whole)
    }

    fn take(&mut self, mut piece: &[u8]) -> Result<()> {
        let payload = &self.source.payload;
        while self.compare && !piece.is_empty() {
            let expected = &payload[self.received % payload.len()..];
            let (part, rest) = piece.split_at(piece.len().min(expected.len()));
            ensure!(
                expected.starts_with(part),
                "wrong bytes after {}",
                self.received
            );
            self.received += part.len();
            piece = rest;
        }
        self.received += piece.len();
        Ok(())
    }

    fn check(&self, whole: usize) -> Result<()> {
        ensure!(
            self.received == whole,
            "{} bytes came instead of {whole}",
            self.received
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_the_payload() {
        let source = Source::new(Speech::Plain);
        assert_eq!(source.messages.concat(), source.payload);
        assert_eq!(source.messages[0].len(), 64 * 1024);
        assert_eq!(source.messages[8].len(), 128 * 1024);
    }

    #[test]
    fn wrong_bytes_are_noticed_in_any_cycle() {
        let source = Source::new(Speech::Plain);
        let mut sink = Sink {
            source: &source,
            received: 0,
            compare: true,
        };
        let mut twice = [&source.payload[..], &source.payload].concat();
        sink.take(&twice[..70_000]).expect("it is right");
        sink.take(&twice[70_000..]).expect("it is right");
        assert_eq!(sink.received, twice.len());
        let last = twice.len() - 1;
        twice[last] ^= 1;
        assert!(sink.take(&twice).is_err());
    }
}
