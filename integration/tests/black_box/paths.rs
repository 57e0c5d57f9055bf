//! Nothing is lost or changed on any of the ways that payload takes: through memory, within the kernel, or by turns.
//!
//! What is sent, in which parts and when, is drawn by chance from a fixed seed; a pause is a wait for the other end to have come
//! as far. (`make test` runs the tests of sessions and of their ends over each of the ways as well.)

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use integration::{Chance, Client, Server, Target, frame, hash, pattern, wait_until};
use nix::sys::socket::{MsgFlags, send};

/// The ways, as `WEBSOCKIFY_RELAY` names them; without it, the bridge chooses.
const WAYS: [&str; 3] = ["auto", "copy", "splice"];

/// A bridge whose payload takes this way.
fn bridge(way: &str, target: SocketAddr) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let variable = format!("WEBSOCKIFY_RELAY={way}");
    let launcher: &[&str] = match way {
        "auto" => &["env", "-u", "WEBSOCKIFY_RELAY"],
        _ => &["env", &variable],
    };
    Server::through(launcher, listener, &[&target.to_string()])
}

/// How far a reader has come, for a writer that pauses until then.
#[derive(Default)]
struct Progress {
    bytes: Mutex<usize>,
    changed: Condvar,
}

impl Progress {
    fn advance(&self, length: usize) {
        *self.bytes.lock().unwrap() += length;
        self.changed.notify_all();
    }

    fn wait_for(&self, bytes: usize) {
        let come = self.bytes.lock().unwrap();
        drop(self.changed.wait_while(come, |come| *come < bytes).unwrap());
    }
}

/// Cuts `bytes` into parts of random lengths, small and large ones alike, and gives them to `send`; sometimes it pauses until the
/// other end has got all of it.
fn in_parts(bytes: &[u8], chance: &mut Chance, progress: &Progress, mut send: impl FnMut(&[u8])) {
    let mut sent = 0;
    while sent < bytes.len() {
        let longest = 1 << chance.below(21);
        let length = (1 + chance.below(longest)).min(bytes.len() - sent);
        send(&bytes[sent..sent + length]);
        sent += length;
        if chance.below(8) == 0 {
            progress.wait_for(sent);
        }
    }
}

/// Sends payload as frames of random lengths, the bytes of which are written in random parts.
fn send_frames(mut stream: &TcpStream, bytes: &[u8], seed: u64, progress: &Progress) {
    let (mut chance, mut cuts) = (Chance::new(seed), Chance::new(!seed));
    in_parts(bytes, &mut chance, progress, |payload| {
        let frame = frame(0x82, payload);
        let cut = cuts.below(frame.len() + 1);
        stream.write_all(&frame[..cut]).unwrap();
        stream.write_all(&frame[cut..]).unwrap();
    });
}

#[test]
fn random_sizes_splits_and_pauses_change_nothing() {
    for way in WAYS {
        let target = Target::new();
        let server = bridge(way, target.address());
        for seed in 1..=12 {
            let mut chance = Chance::new(seed);
            let up = pattern(chance.below(6 << 20));
            let down = pattern(chance.below(12 << 20));
            let mut client = Client::connect(server.address());
            let (writer, peer) = (client.stream().try_clone().unwrap(), target.accept());
            let (up_progress, down_progress) = (Progress::default(), Progress::default());
            std::thread::scope(|scope| {
                scope.spawn(|| send_frames(&writer, &up, seed, &up_progress));
                scope.spawn(|| {
                    let mut chance = Chance::new(seed << 32);
                    in_parts(&down, &mut chance, &down_progress, |part| {
                        (&peer).write_all(part).unwrap();
                    });
                });
                scope.spawn(|| {
                    let (mut arrived, mut part) = (Vec::new(), vec![0; 1 << 16]);
                    while arrived.len() < up.len() {
                        let length = (&peer).read(&mut part).unwrap();
                        assert_ne!(length, 0, "{way}, seed {seed}");
                        arrived.extend_from_slice(&part[..length]);
                        up_progress.advance(length);
                    }
                    assert!(arrived == up, "{way}, seed {seed}: up");
                });
                let mut arrived = Vec::new();
                while arrived.len() < down.len() {
                    let message = client.read_frame();
                    arrived.extend_from_slice(&message.payload);
                    down_progress.advance(message.payload.len());
                }
                assert!(arrived == down, "{way}, seed {seed}: down");
            });
            client.send_close(1000);
            client.read_to_close();
            client.expect_end();
        }
    }
}

#[test]
fn a_slow_reader_gets_everything_and_costs_no_memory() {
    for way in WAYS {
        let target = Target::new();
        let mut server = bridge(way, target.address());
        server.wait_for_line("proxying from");
        let mut client = Client::connect(server.address());
        let mut peer = target.accept();
        let before = server.resident_memory();
        let bytes = pattern(64 << 20);
        let expected = hash(&bytes);
        let written = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for part in bytes.chunks(1 << 16) {
                    peer.write_all(part).unwrap();
                    written.fetch_add(part.len(), Ordering::Relaxed);
                }
                peer.shutdown(Shutdown::Write).unwrap();
            });
            // Nothing is read until the target cannot write any more: all buffers on the way are full.
            let mut last = usize::MAX;
            wait_until("the target to be stopped", || {
                let now = written.load(Ordering::Relaxed);
                std::thread::park_timeout(std::time::Duration::from_millis(200));
                (now > 0 && std::mem::replace(&mut last, now) == now).then_some(())
            });
            assert!(last < bytes.len(), "{way}: {last}");
            let grown = server.resident_memory().saturating_sub(before);
            assert!(grown < 2 << 20, "{way}: {grown} bytes");
            let mut arrived = Vec::with_capacity(bytes.len());
            while arrived.len() < bytes.len() {
                arrived.extend_from_slice(&client.read_frame().payload);
            }
            assert_eq!(hash(&arrived), expected, "{way}");
        });
        assert_eq!(client.read_frame().close().0, Some(1000), "{way}");
        client.send_close(1000);
        client.expect_end();
    }
}

#[test]
fn a_target_that_closes_while_much_is_under_way_loses_none_of_it() {
    for way in WAYS {
        let target = Target::new();
        let server = bridge(way, target.address());
        for length in [1, 65_536, 65_537, 700_001, 3 << 20] {
            let mut client = Client::connect(server.address());
            let mut peer = target.accept();
            let bytes = pattern(length);
            std::thread::scope(|scope| {
                // It has closed before the client reads, as far as the buffers on the way let it.
                let writer = scope.spawn(|| {
                    peer.write_all(&bytes).unwrap();
                    drop(peer);
                });
                if length < 1 << 20 {
                    writer.join().unwrap();
                }
                let (arrived, code, reason) = client.read_to_close();
                assert!(arrived == bytes, "{way}, {length}: {}", arrived.len());
                assert_eq!((code, reason.as_str()), (Some(1000), "Target closed"));
            });
            client.send_close(1000);
            client.expect_end();
        }
    }
}

#[test]
fn urgent_data_of_the_target_stops_nothing() {
    for way in WAYS {
        let target = Target::new();
        let server = bridge(way, target.address());
        for length in [1, 65_536, 600_000, 1 << 20] {
            let mut client = Client::connect(server.address());
            let mut peer = target.accept();
            let (bytes, tail) = (pattern(length), pattern(100_000));
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    peer.write_all(&bytes).unwrap();
                    // Out of band, as telnetd sends it: it is no part of the stream.
                    assert_eq!(send(peer.as_raw_fd(), b"!", MsgFlags::MSG_OOB), Ok(1));
                    peer.write_all(&tail).unwrap();
                    drop(peer);
                });
                if length < 1 << 19 {
                    writer.join().unwrap();
                }
                let (arrived, code, _) = client.read_to_close();
                assert_eq!(arrived.len(), length + tail.len(), "{way}, {length}");
                assert!(arrived[..length] == bytes && arrived[length..] == tail);
                assert_eq!(code, Some(1000), "{way}, {length}");
            });
            client.send_close(1000);
            client.expect_end();
        }
    }
}

/// One session that ends in a way drawn by chance, and loses nothing.
fn random_close(server: SocketAddr, target: &Mutex<Target>, seed: u64) {
    let mut chance = Chance::new(seed);
    let longest = 1 << chance.below(18);
    let length = chance.below(longest);
    let bytes = pattern(length);
    let (mut client, mut peer) = {
        let target = target.lock().unwrap();
        (Client::connect(server), target.accept())
    };
    match chance.below(4) {
        // The target closes.
        0 => {
            peer.write_all(&bytes).unwrap();
            drop(peer);
            let (arrived, code, _) = client.read_to_close();
            assert!(
                arrived == bytes,
                "seed {seed}: {} of {length}",
                arrived.len()
            );
            assert_eq!(code, Some(1000), "seed {seed}");
            client.send_close(1000);
            client.expect_end();
            return;
        }
        // The client closes.
        1 => {
            client.send_binary(&bytes);
            client.send_close(1000);
        }
        // It ends its side without a word.
        2 => {
            client.send_binary(&bytes);
            client.stream().shutdown(Shutdown::Write).unwrap();
        }
        // It goes away, and its last bytes are under way.
        _ => {
            client.send_binary(&bytes);
            drop(client);
        }
    }
    let mut arrived = Vec::new();
    peer.read_to_end(&mut arrived).unwrap();
    assert!(
        arrived == bytes,
        "seed {seed}: {} of {length}",
        arrived.len()
    );
}

#[test]
fn ten_thousand_random_closes_lose_no_byte() {
    let target = Mutex::new(Target::new());
    let address = target.lock().unwrap().address();
    for (number, way) in WAYS.into_iter().enumerate() {
        let server = bridge(way, address);
        let (bridge, next) = (server.address(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let seed @ ..3334 = next.fetch_add(1, Ordering::Relaxed) {
                        random_close(bridge, &target, (number * 10_000 + seed) as u64 + 1);
                    }
                });
            }
        });
    }
}
