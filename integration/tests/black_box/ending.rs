//! Nothing is lost, whoever ends first and however.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use integration::{
    Client, DEADLINE, Server, Target, frame, hash, pattern, reset, session, wait_until,
};

#[test]
fn a_burst_of_a_target_that_closes_at_once_reaches_a_slow_client_whole() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    let burst = pattern(8 << 20);
    let expected = hash(&burst);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Unread input of the target's own must not turn its end into a loss either.
            peer.write_all(&burst).unwrap();
            drop(peer);
        });
        let mut bytes = Vec::new();
        loop {
            let message = client.read_frame();
            if message.first == 0x88 {
                assert_eq!(message.close(), (Some(1000), "Target closed".to_owned()));
                break;
            }
            bytes.extend_from_slice(&message.payload);
            // A slow reader: it does something else after every frame.
            std::hint::black_box(hash(&bytes[bytes.len().saturating_sub(1 << 20)..]));
        }
        assert_eq!((bytes.len(), hash(&bytes)), (8 << 20, expected));
    });
    client.send_close(1000);
    client.expect_end();
}

#[test]
fn data_that_crosses_the_end_of_the_target_costs_nothing() {
    let target = Target::new();
    let server = Server::to(target.address());
    for _ in 0..50 {
        let mut client = Client::connect(server.address());
        let mut peer = target.accept();
        // The client goes on sending into a target that reads nothing and closes.
        client.send_binary(&pattern(10_000));
        peer.write_all(&pattern(100_000)).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        client.send_binary(&pattern(10_000));
        let (bytes, code, _) = client.read_to_close();
        assert!(
            bytes == pattern(100_000) && code == Some(1000),
            "{} bytes, {code:?}",
            bytes.len()
        );
        _ = client.try_send(&frame(0x88, b""));
        client.expect_end();
    }
}

#[test]
fn everything_before_a_close_reaches_a_slow_target() {
    let (_server, mut client, mut peer) = session();
    let bytes = pattern(8 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            bytes
                .chunks(1 << 16)
                .for_each(|part| client.send_binary(part));
            client.send_close(1000);
            // It leaves without waiting for anything.
            drop(client);
        });
        let mut arrived = Vec::new();
        let mut part = vec![0; 10_000];
        loop {
            match peer.read(&mut part).unwrap() {
                0 => break,
                length => arrived.extend_from_slice(&part[..length]),
            }
            std::hint::black_box(hash(&arrived[arrived.len().saturating_sub(1 << 16)..]));
        }
        assert_eq!((arrived.len(), hash(&arrived)), (8 << 20, hash(&bytes)));
    });
}

#[test]
fn a_client_that_just_disappears_has_delivered_what_it_sent() {
    let target = Target::new();
    let mut server = Server::to(target.address());
    for half_closed in [true, false] {
        let mut client = Client::connect(server.address());
        let mut peer = target.accept();
        client.send_binary(&pattern(300_000));
        if half_closed {
            client.stream().shutdown(Shutdown::Write).unwrap();
        } else {
            drop(client);
        }
        let mut arrived = Vec::new();
        peer.read_to_end(&mut arrived).unwrap();
        assert!(arrived == pattern(300_000));
        drop(peer);
        server.wait_for_line("Client connection lost: 300000 bytes from the client");
    }
}

#[test]
fn the_answer_to_a_half_closed_client_still_reaches_it() {
    let (_server, mut client, mut peer) = session();
    client.send_binary(b"question");
    client.stream().shutdown(Shutdown::Write).unwrap();
    let mut question = Vec::new();
    peer.read_to_end(&mut question).unwrap();
    peer.write_all(&pattern(1 << 20)).unwrap();
    drop(peer);
    let (bytes, code, _) = client.read_to_close();
    assert!(question == b"question" && bytes == pattern(1 << 20) && code == Some(1000));
    client.expect_end();
}

#[test]
fn a_half_closed_target_still_gets_what_the_client_sends_before_it_answers() {
    let (_server, mut client, mut peer) = session();
    peer.write_all(b"that is all").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    let (bytes, code, _) = client.read_to_close();
    assert_eq!((&bytes[..], code), (&b"that is all"[..], Some(1000)));
    client.send_binary(b"understood");
    client.send_close(1000);
    let mut arrived = Vec::new();
    peer.read_to_end(&mut arrived).unwrap();
    assert_eq!(arrived, b"understood");
    client.expect_end();
}

#[test]
fn a_reset_of_the_target_gives_the_client_what_arrived_and_a_close() {
    let (mut server, mut client, mut peer) = session();
    peer.write_all(b"before").unwrap();
    assert_eq!(client.read_binary(6), b"before");
    reset(&peer);
    drop(peer);
    assert_eq!(client.read_frame().close().0, Some(1011));
    client.send_close(1011);
    client.expect_end();
    server.wait_for_line("Target connection lost");
}

#[test]
fn a_reset_of_the_client_ends_the_target() {
    let (mut server, mut client, mut peer) = session();
    client.send_binary(b"before");
    let mut arrived = [0; 6];
    peer.read_exact(&mut arrived).unwrap();
    reset(client.stream());
    drop(client);
    assert_eq!(peer.read(&mut arrived).unwrap(), 0);
    server.wait_for_line("Client connection lost: 6 bytes from the client");
}

#[test]
fn a_target_that_echoes_does_not_block_the_end() {
    // The client reads nothing, sends more than all buffers hold of the echo, and closes.
    let (_server, mut client, peer) = session();
    let mut echo = peer.try_clone().unwrap();
    let received = std::thread::spawn(move || {
        let (mut peer, mut part, mut total) = (peer, vec![0; 1 << 16], 0);
        loop {
            match peer.read(&mut part) {
                Ok(0) => return total,
                Ok(length) => {
                    total += length;
                    // An echo that nobody wants any more is no reason to stop reading.
                    _ = echo.write_all(&part[..length]);
                }
                Err(error) => panic!("after {total} bytes: {error}"),
            }
        }
    });
    client.send_binary(&pattern(200_000));
    client.send_close(1000);
    assert_eq!(client.read_to_close().1, Some(1000));
    client.expect_end();
    assert_eq!(received.join().unwrap(), 200_000);
}

#[test]
fn a_client_that_ignores_our_close_is_cut_off_within_ten_seconds() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut reading = Client::connect(server.address());
    drop(target.accept());
    let mut sending = Client::connect(server.address());
    drop(target.accept());
    let start = Instant::now();
    let chatter = std::thread::spawn(move || {
        // It goes on sending until it is told off.
        while sending.try_send(&frame(0x82, &[0; 1000])).is_ok() {
            assert!(start.elapsed() < DEADLINE, "never cut off");
        }
        start.elapsed()
    });
    assert_eq!(reading.read_to_close().1, Some(1000));
    reading.expect_end();
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    let elapsed = chatter.join().unwrap();
    assert!(elapsed.as_secs() < 10, "{elapsed:?}");
    // And its socket is really gone: what it sends now is answered with a reset.
    wait_until("the reset", || {
        reading.try_send(&frame(0x82, b"anybody there?")).err()
    });
}

#[test]
fn a_client_that_floods_still_gets_what_its_target_sends_and_a_close() {
    let (server, mut flooder, mut peer) = session();
    let mut reader = flooder.sibling();
    let mut sink = peer.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let flood = frame(0x82, b"x").repeat(10_000);
            while flooder.try_send(&flood).is_ok() {}
        });
        scope.spawn(move || while sink.read(&mut [0; 1 << 16]).is_ok_and(|length| length > 0) {});
        for _ in 0..200 {
            peer.write_all(b"tick").unwrap();
            assert_eq!(reader.read_binary(4), b"tick");
        }
        server.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(reader.read_to_close().1, Some(1001));
    });
}

#[test]
fn a_target_that_pauses_longer_than_any_drain_still_gets_everything() {
    let (_server, mut client, mut peer) = session();
    nix::sys::socket::setsockopt(&peer, nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
    let sent = pattern(300_000);
    client.send_binary(&sent);
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
    // Counted from the close the bridge would have given up by then, and the answers would reset the connection.
    let pause = Instant::now();
    wait_until("four seconds", || {
        (pause.elapsed().as_secs() >= 4).then_some(())
    });
    let mut arrived = Vec::new();
    let mut part = [0; 10_000];
    loop {
        match peer.read(&mut part).unwrap() {
            0 => break,
            length => arrived.extend_from_slice(&part[..length]),
        }
        peer.write_all(b"ok").unwrap();
    }
    assert!(arrived == sent, "{} bytes", arrived.len());
}

#[test]
fn a_violation_while_the_target_is_sending_is_still_told() {
    let (_server, mut client, mut peer) = session();
    let flood = std::thread::spawn(move || while peer.write_all(&[0; 1 << 16]).is_ok() {});
    assert_eq!(client.read_frame().first, 0x82);
    client.send(&frame(0x83, b"bad"));
    let (_, code, _) = client.read_to_close();
    assert_eq!(code, Some(1002));
    client.expect_end();
    flood.join().unwrap();
}

#[test]
fn five_hundred_ends_in_random_order_lose_no_byte() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut random = pattern(4000).into_iter();
    for round in 0..500 {
        let mut next = || usize::from(random.next().unwrap());
        let (up, down) = (next() * next(), next() * next());
        let mut client = Client::connect(server.address());
        let mut peer = target.accept();
        let client_first = next() % 2 == 0;
        let mut sender = client.sibling();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                sender.send_binary(&pattern(up));
                if client_first {
                    sender.send_close(1000);
                }
            });
            let target_side = scope.spawn(move || {
                let mut arrived = vec![0; up];
                peer.read_exact(&mut arrived).unwrap();
                assert!(arrived == pattern(up), "round {round}: up");
                if client_first {
                    assert_eq!(
                        peer.read(&mut [0]).unwrap(),
                        0,
                        "round {round}: more than was sent"
                    );
                } else {
                    peer.write_all(&pattern(down)).unwrap();
                }
            });
            let (bytes, code, _) = client.read_to_close();
            target_side.join().unwrap();
            assert_eq!(code, Some(1000), "round {round}");
            if !client_first {
                assert!(
                    bytes == pattern(down),
                    "round {round}: down {} of {down}",
                    bytes.len()
                );
                client.send_close(1000);
            }
            client.expect_end();
        });
    }
}
