//! Files for browsers over connections that stay open: how many per second, and what each costs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::bench::Bench;
use crate::figures::Reading;
use crate::metric::{LARGE_CPU, LARGE_RATE, Metric, SMALL_CPU, SMALL_RATE};
use crate::peers::{Peer, Service};
use crate::process::DEADLINE;
use crate::relay::Relay;
use crate::session::limit;
use crate::target::{EVENTS, watch};

/// Connections that are open at the same time.
const CONNECTIONS: usize = 16;
/// The longest head of an answer.
const MAX_HEAD: usize = 4096;
/// How much is read at once.
const READ: usize = 256 * 1024;

/// The figures of a file of so many bytes.
struct Stage {
    name: &'static str,
    length: usize,
    rate: &'static Metric,
    cpu: &'static Metric,
}

static STAGES: [Stage; 2] = [
    Stage {
        name: "small",
        length: 4 * 1024,
        rate: &SMALL_RATE,
        cpu: &SMALL_CPU,
    },
    Stage {
        name: "large",
        length: 1024 * 1024,
        rate: &LARGE_RATE,
        cpu: &LARGE_CPU,
    },
];

/// Measures a small file and a large one.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let directory = bench.scratch().join("web");
    fs::create_dir_all(&directory).context("make a directory")?;
    let service = Service::Files(&directory);
    let rounds = bench.pick(5, 7);
    for stage in &STAGES {
        let content = integration::pattern(stage.length);
        fs::write(directory.join(stage.name), &content).context("write a file")?;
        let takes_part = |kind| service.is_of(kind);
        bench.in_turn(stage.rate.label, rounds, takes_part, |bench, peer| {
            measure(bench, peer, service, stage, &content)
        });
    }
    Ok(())
}

fn measure(
    bench: &Bench,
    peer: &Peer,
    service: Service<'_>,
    stage: &Stage,
    content: &[u8],
) -> Result<Vec<Reading>> {
    let length = Duration::from_millis(bench.pick(500, 1500));
    let mut relay = bench.start(peer, service)?;
    let mut load = Load::new(&relay, stage.name, content)?;
    load.run(length / 5, true)?;
    let cpu = relay.cpu_time()?;
    let begun = Instant::now();
    let done = load.run(length, false)?;
    let elapsed = begun.elapsed();
    let cpu = relay.cpu_time()?.saturating_sub(cpu);
    relay.check()?;
    Ok(vec![
        (stage.rate, done as f64 / elapsed.as_secs_f64()),
        (stage.cpu, cpu.as_secs_f64() * 1e6 / done as f64),
    ])
}

/// Clients that ask for the same file over and over.
struct Load<'a> {
    epoll: Epoll,
    clients: Vec<Client>,
    request: String,
    content: &'a [u8],
}

/// A client with its connection.
struct Client {
    socket: TcpStream,
    /// The head of the present answer, as far as it has come.
    head: Vec<u8>,
    /// How much of the file has come, once the head is whole.
    received: Option<usize>,
}

impl<'a> Load<'a> {
    fn new(relay: &Relay, name: &str, content: &'a [u8]) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        let mut clients = Vec::new();
        for number in 0..CONNECTIONS {
            let socket = TcpStream::connect(relay.address).context("connect")?;
            limit(&socket)?;
            watch(&epoll, &socket, number as i32)?;
            clients.push(Client {
                socket,
                head: Vec::new(),
                received: None,
            });
        }
        Ok(Self {
            epoll,
            clients,
            request: format!("GET /{name} HTTP/1.1\r\nHost: {}\r\n\r\n", relay.address),
            content,
        })
    }

    /// Puts the clients to work for so long; the content is compared only if asked for. Returns how many answers came; all is quiet
    /// again then.
    fn run(&mut self, length: Duration, compare: bool) -> Result<usize> {
        let timeout = EpollTimeout::try_from(DEADLINE).context("the deadline is too long")?;
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut buffer = vec![0; READ];
        let end = Instant::now() + length;
        for client in &mut self.clients {
            client.ask(&self.request)?;
        }
        let (mut asked, mut done) = (self.clients.len(), 0);
        while done < asked {
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(0) => bail!("{} answers did not come", asked - done),
                Err(Errno::EINTR) => 0,
                other => other.context("wait for events")?,
            };
            for event in &events[..count] {
                let client = &mut self.clients[event.data() as usize];
                if !client.receive(&mut buffer, self.content, compare)? {
                    continue;
                }
                done += 1;
                if Instant::now() < end {
                    client.ask(&self.request)?;
                    asked += 1;
                }
            }
        }
        Ok(done)
    }
}

impl Client {
    fn ask(&mut self, request: &str) -> Result<()> {
        self.head.clear();
        self.received = None;
        self.socket.write_all(request.as_bytes()).context("ask")
    }

    /// Reads what has come. Returns whether the answer is complete.
    fn receive(&mut self, buffer: &mut [u8], content: &[u8], compare: bool) -> Result<bool> {
        let length = self.socket.read(buffer).context("read")?;
        ensure!(length > 0, "the server closed");
        let mut bytes = &buffer[..length];
        if self.received.is_none() {
            let before = self.head.len();
            self.head.extend(bytes.iter().take(MAX_HEAD));
            let Some(end) = end_of_head(&self.head) else {
                ensure!(self.head.len() < MAX_HEAD, "the answer's head does not end");
                return Ok(false);
            };
            check_head(&self.head[..end], content.len())?;
            bytes = &bytes[end - before..];
        }
        let before = self.received.unwrap_or(0);
        let after = before + bytes.len();
        ensure!(after <= content.len(), "more than the file came");
        ensure!(!compare || content[before..after] == *bytes, "wrong bytes");
        self.received = Some(after);
        Ok(after == content.len())
    }
}

/// Where the head of an answer ends, if it has come whole.
fn end_of_head(head: &[u8]) -> Option<usize> {
    let end = head.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// Fails unless this is the head of a file of this length.
fn check_head(head: &[u8], length: usize) -> Result<()> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let has_length = head.contains(&format!("\r\ncontent-length: {length}\r\n"));
    ensure!(
        head.starts_with("http/1.1 200 ") && has_length,
        "an unexpected answer: {head}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_its_empty_line() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
        assert_eq!(end_of_head(head), Some(head.len() - 2));
        assert_eq!(end_of_head(&head[..head.len() - 3]), None);
    }

    #[test]
    fn only_the_head_of_the_file_will_do() {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
        assert!(check_head(head, 2).is_ok());
        assert!(check_head(head, 20).is_err());
        assert!(check_head(&head.map(|byte| if byte == b'0' { b'4' } else { byte }), 2).is_err());
    }
}
