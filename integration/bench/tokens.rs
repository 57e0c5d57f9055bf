//! What it takes to look a token up: the time by which a client that has one which nobody knows is refused later than a client that has
//! none.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::Handshake;

use crate::bench::Bench;
use crate::figures::Reading;
use crate::metric::LOOK_UP;
use crate::peers::{Peer, Service};
use crate::relay::Relay;
use crate::session::limit;

/// Lines of the file.
const LINES: usize = 100_000;

/// Measures a file that does not change.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let file = bench.scratch().join("tokens");
    let mut text = String::new();
    for number in 0..LINES {
        _ = writeln!(text, "token-{number}: 127.0.0.1:{}", number % 60_000 + 1);
    }
    fs::write(&file, text).context("write the tokens")?;
    let rounds = bench.pick(5, 7);
    let service = Service::Tokens(&file);
    bench.in_turn(
        LOOK_UP.label,
        rounds,
        |kind| service.is_of(kind),
        |bench, peer| measure(bench, peer, service),
    );
    Ok(())
}

fn measure(bench: &Bench, peer: &Peer, service: Service<'_>) -> Result<Vec<Reading>> {
    let pairs = bench.pick(500, 2000);
    let mut relay = bench.start(peer, service)?;
    let unknown = Request::new("GET /?token=nobody-knows-me HTTP/1.1", "403");
    let none = Request::new("GET /?nokey=nobody-knows-me HTTP/1.1", "400");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        with.push(unknown.time(&relay)?);
        without.push(none.time(&relay)?);
    }
    relay.check()?;
    let difference = median(with).as_secs_f64() - median(without).as_secs_f64();
    Ok(vec![(&LOOK_UP, difference * 1e6)])
}

/// An upgrade that is refused.
struct Request {
    bytes: Vec<u8>,
    status: &'static str,
}

impl Request {
    fn new(line: &str, status: &'static str) -> Self {
        Self {
            bytes: Handshake::default().request_line(line).bytes(),
            status,
        }
    }

    /// How long it takes until it is answered.
    fn time(&self, relay: &Relay) -> Result<Duration> {
        let mut stream = TcpStream::connect(relay.address).context("connect")?;
        limit(&stream)?;
        let begun = Instant::now();
        stream.write_all(&self.bytes).context("ask")?;
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer).context("read the answer")?;
        let elapsed = begun.elapsed();
        let status = format!("HTTP/1.1 {} ", self.status);
        ensure!(
            answer[..length].starts_with(status.as_bytes()),
            "another answer than {}",
            self.status
        );
        Ok(elapsed)
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}
