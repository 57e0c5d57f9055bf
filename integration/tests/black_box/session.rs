//! Frames in and out, in all the ways in which they may and may not come.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use integration::{
    Client, Handshake, Server, Target, close_payload, frame, frame_header, hash, pattern, session,
    wait_until,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};

/// A port that is taken, and refuses connections for as long as the first value lives.
pub(crate) fn nobody_listens() -> (OwnedFd, SocketAddr) {
    let guard = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(guard.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let address: SockaddrIn = getsockname(guard.as_raw_fd()).unwrap();
    (guard, SocketAddr::from(([127, 0, 0, 1], address.port())))
}

fn read_exact(stream: &mut impl Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn sizes_around_every_boundary_pass_both_ways() {
    let (_server, mut client, mut peer) = session();
    for length in [
        0, 1, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, 131_072, 1_000_003,
    ] {
        let bytes = pattern(length);
        client.send_binary(&bytes);
        assert!(read_exact(&mut peer, length) == bytes, "{length} bytes up");
        peer.write_all(&bytes).unwrap();
        assert!(client.read_binary(length) == bytes, "{length} bytes down");
    }
}

#[test]
fn sixteen_mebibytes_pass_both_ways_at_once() {
    let (_server, mut client, mut peer) = session();
    let (up, down) = (pattern(16 << 20), pattern((16 << 20) + 1));
    let (up_hash, down_hash) = (hash(&up), hash(&down));
    let mut sender = client.sibling();
    let mut peer_sender = peer.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || up.chunks(100_001).for_each(|part| sender.send_binary(part)));
        scope.spawn(move || peer_sender.write_all(&down).unwrap());
        let arrived = scope.spawn(|| hash(&read_exact(&mut peer, 16 << 20)));
        assert_eq!(hash(&client.read_binary((16 << 20) + 1)), down_hash);
        assert_eq!(arrived.join().unwrap(), up_hash);
    });
}

#[test]
fn one_huge_frame_streams_through_without_memory() {
    const LENGTH: usize = 256 << 20;
    const PART: usize = 1 << 20;
    let (server, mut client, mut peer) = session();
    client.send_binary(b"warm");
    read_exact(&mut peer, 4);
    let before = server.resident_memory();
    client.send(&frame_header(0x82, LENGTH));
    // Zeroes are sent as the mask itself, so that every part is the same.
    let part = frame(0x82, &vec![0; PART]).split_off(frame_header(0x82, PART).len());
    let mut most = 0;
    for _ in 0..LENGTH / PART {
        client.send(&part);
        assert!(read_exact(&mut peer, PART).iter().all(|&byte| byte == 0));
        most = most.max(server.resident_memory());
    }
    assert!(
        most < before + (1 << 20),
        "memory went from {before} to {most}"
    );
    client.send_binary(b"still there");
    assert_eq!(read_exact(&mut peer, 11), b"still there");
}

#[test]
fn payload_arrives_while_its_frame_is_still_open() {
    let (_server, mut client, mut peer) = session();
    let whole = frame(0x82, b"half and half");
    let (first, second) = whole.split_at(whole.len() - 4);
    client.send(first);
    assert_eq!(read_exact(&mut peer, 9), b"half and ");
    client.send(second);
    assert_eq!(read_exact(&mut peer, 4), b"half");
}

#[test]
fn single_bytes_in_single_segments_make_the_same_stream() {
    let (_server, mut client, mut peer) = session();
    let stream = [
        frame(0x02, b"one"),
        frame(0x89, b"ping"),
        frame(0x80, &[b'x'; 200]),
        frame(0x88, b""),
    ]
    .concat();
    for byte in &stream {
        client.send(&[*byte]);
    }
    let pong = client.read_frame();
    assert_eq!((pong.first, &pong.payload[..]), (0x8a, &b"ping"[..]));
    let mut arrived = Vec::new();
    peer.read_to_end(&mut arrived).unwrap();
    assert_eq!(arrived, [b"one", &[b'x'; 200][..]].concat());
}

#[test]
fn pings_between_fragments_are_answered_in_order() {
    let (_server, mut client, mut peer) = session();
    client.send(&frame(0x02, b"a"));
    for number in 0..20_u8 {
        client.send(&frame(0x89, &[number]));
        client.send(&frame(0x00, &[number]));
        client.send(&frame(0x8a, b"a pong that nobody asked for"));
    }
    client.send(&frame(0x80, b"z"));
    for number in 0..20_u8 {
        let pong = client.read_frame();
        assert_eq!((pong.first, &pong.payload[..]), (0x8a, &[number][..]));
    }
    let expected: Vec<u8> = [b'a'].into_iter().chain(0..20).chain([b'z']).collect();
    assert_eq!(read_exact(&mut peer, 22), expected);
}

#[test]
fn a_flood_of_pings_from_a_client_that_does_not_read_grows_nothing() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    client.send_binary(b"warm");
    read_exact(&mut peer, 4);
    let before = server.resident_memory();
    let pings = frame(0x89, &[1; 125]).repeat(1000);
    for _ in 0..100 {
        client.send(&pings);
    }
    // What comes behind the pings still reaches the target, and the last ping its answer.
    client.send(&frame(0x89, b"last"));
    client.send_binary(b"data");
    assert_eq!(read_exact(&mut peer, 4), b"data");
    assert!(server.resident_memory() < before + (1 << 20));
    while client.read_frame().payload != b"last" {}
}

#[test]
fn every_violation_has_its_code_and_nothing_of_its_frame_reaches_the_target() {
    let target = Target::new();
    let server = Server::to(target.address());
    let long_form = |length: u16| {
        [
            &[0x82, 0xfe],
            &length.to_be_bytes()[..],
            &[0; 4],
            &vec![0; length.into()],
        ]
        .concat()
    };
    for (name, bad, code) in [
        ("text", frame(0x81, b"bad"), 1003),
        ("unmasked", vec![0x82, 3, b'b', b'a', b'd'], 1002),
        ("rsv1", frame(0xc2, b"bad"), 1002),
        ("rsv2", frame(0xa2, b"bad"), 1002),
        ("rsv3", frame(0x92, b"bad"), 1002),
        ("opcode 3", frame(0x83, b"bad"), 1002),
        ("opcode 15", frame(0x8f, b"bad"), 1002),
        ("continuation of nothing", frame(0x80, b"bad"), 1002),
        (
            "message within a message",
            [frame(0x02, b""), frame(0x82, b"bad")].concat(),
            1002,
        ),
        ("fragmented ping", frame(0x09, b"bad"), 1002),
        ("oversized ping", frame(0x89, &[0; 126]), 1002),
        ("length not in its shortest form", long_form(125), 1002),
        (
            "negative length",
            [&[0x82, 0xff, 0x80][..], &[0; 7], &[1, 2, 3, 4]].concat(),
            1002,
        ),
        ("close with one byte", frame(0x88, b"x"), 1002),
        (
            "close with code 1006",
            frame(0x88, &close_payload(1006, b"")),
            1002,
        ),
        (
            "close reason no UTF-8",
            frame(0x88, &close_payload(1000, b"\xff")),
            1007,
        ),
    ] {
        let mut client = Client::connect(server.address());
        let mut peer = target.accept();
        client.send(&frame(0x82, b"good"));
        client.send(&bad);
        _ = client.try_send(&frame(0x82, b"after"));
        assert_eq!(client.read_frame().close().0, Some(code), "{name}");
        client.expect_end();
        let mut arrived = Vec::new();
        peer.read_to_end(&mut arrived).unwrap();
        assert_eq!(arrived, b"good", "{name}");
    }
}

#[test]
fn allowed_close_codes_are_echoed() {
    let target = Target::new();
    let server = Server::to(target.address());
    for code in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999] {
        let mut client = Client::connect(server.address());
        client.send(&frame(0x88, &close_payload(code, "r\u{e9}ason".as_bytes())));
        assert_eq!(client.read_frame().close(), (Some(code), String::new()));
        client.expect_end();
    }
    let mut client = Client::connect(server.address());
    client.send(&frame(0x88, b""));
    assert_eq!(client.read_frame().close(), (None, String::new()));
    client.expect_end();
}

fn base64_client(server: &Server) -> Client {
    let client = Client::with(
        server.address(),
        &Handshake::default().with("Sec-WebSocket-Protocol: base64"),
    );
    assert_eq!(client.header("Sec-WebSocket-Protocol"), Some("base64"));
    client
}

#[test]
fn base64_sessions_carry_bytes_as_text_both_ways() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut client = base64_client(&server);
    let mut peer = target.accept();
    client.send(&frame(0x81, b"AAEC/w=="));
    client.send(&frame(0x01, b"YW"));
    client.send(&frame(0x89, b"ping"));
    client.send(&frame(0x80, b"Jj"));
    assert_eq!(read_exact(&mut peer, 7), [0, 1, 2, 255, b'a', b'b', b'c']);
    assert_eq!(client.read_frame().first, 0x8a);
    peer.write_all(&[0, 1, 2, 255]).unwrap();
    let message = client.read_frame();
    assert_eq!(
        (message.first, &message.payload[..]),
        (0x81, &b"AAEC/w=="[..])
    );
    client.send(&frame(0x81, b"YWJj!"));
    assert_eq!(client.read_frame().close().0, Some(1007));
}

#[test]
fn a_megabyte_of_base64_survives_in_one_message() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut client = base64_client(&server);
    let mut peer = target.accept();
    let sent = b"QUJD".repeat(300_000);
    let mut sender = client.sibling();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.send(&frame(0x81, &sent)));
        let arrived = read_exact(&mut peer, 900_000);
        assert!(arrived == b"ABC".repeat(300_000));
        scope.spawn(move || peer.write_all(&arrived).unwrap());
        let mut text = Vec::new();
        while text.len() < 1_200_000 {
            let message = client.read_frame();
            assert_eq!(message.first, 0x81);
            assert_eq!(message.payload.len() % 4, 0, "each message is whole base64");
            text.extend_from_slice(&message.payload);
            if message.payload.ends_with(b"=") {
                break;
            }
        }
        assert!(text.starts_with(b"QUJDQUJD"));
    });
}

/// Sends `part` over and over until all buffers on the way are full: until nothing was taken for a while. Returns how many bytes
/// went in.
fn fill(client: &mut Client, part: &[u8]) -> usize {
    client.stream().set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut last = std::time::Instant::now();
    while last.elapsed().as_millis() < 500 {
        if let Ok(length) = client.write_some(&part[sent % part.len()..]) {
            sent += length;
            last = std::time::Instant::now();
            assert!(sent < 256 << 20, "a client is never stalled");
        }
        std::thread::yield_now();
    }
    client.stream().set_nonblocking(false).unwrap();
    sent
}

#[test]
fn a_slow_target_stalls_its_client_and_nobody_else() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut slow = Client::connect(server.address());
    let mut slow_peer = target.accept();
    let part = frame(0x82, &pattern(1 << 16));
    let sent = fill(&mut slow, &part);
    let before = server.resident_memory();
    let mut other = Client::connect(server.address());
    let mut other_peer = target.accept();
    other.send_binary(b"quick");
    assert_eq!(read_exact(&mut other_peer, 5), b"quick");
    assert!(server.resident_memory() < before + (1 << 20));
    // And what was stalled goes on where it was.
    let missing = part.len() - sent % part.len();
    let frames = (sent + missing) / part.len();
    let rest = part[part.len() - missing..].to_vec();
    std::thread::scope(|scope| {
        scope.spawn(|| slow.send(&rest));
        let expected = pattern(1 << 16);
        for _ in 0..frames {
            assert!(read_exact(&mut slow_peer, 1 << 16) == expected);
        }
    });
}

#[test]
fn heartbeats_ping_the_client_and_drop_a_silent_one() {
    let target = Target::new();
    let mut server = Server::with(&["--heartbeat", "0.2", &target.address().to_string()]);
    let mut answering = Client::connect(server.address());
    let mut peer = target.accept();
    for _ in 0..6 {
        let ping = answering.read_frame();
        assert_eq!(ping.first, 0x89);
        answering.send(&frame(0x8a, &ping.payload));
    }
    answering.send_binary(b"alive");
    assert_eq!(read_exact(&mut peer, 5), b"alive");
    let mut silent = Client::connect(server.address());
    let mut silent_peer = target.accept();
    assert_eq!(silent.read_frame().first, 0x89);
    assert_eq!(silent.read_frame().first, 0x89);
    // The bridge gives it up, and so the target reads the end.
    assert_eq!(silent_peer.read(&mut [0]).unwrap(), 0);
    server.wait_for_line("Client answered no ping");
}

#[test]
fn a_heartbeat_does_not_drop_a_client_whose_target_is_stalled() {
    let target = Target::new();
    let server = Server::with(&["--heartbeat", "0.2", &target.address().to_string()]);
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    let part = frame(0x82, &pattern(1 << 16));
    let sent = fill(&mut client, &part);
    // Its pongs wait behind the data now, but it is not to blame.
    for _ in 0..10 {
        assert_eq!(client.read_frame().first, 0x89);
    }
    let mut sender = client.sibling();
    let rest = part[sent % part.len()..].to_vec();
    let frames = (sent + rest.len()) / part.len();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            sender.send(&rest);
            sender.send(&frame(0x8a, b""));
            sender.send_binary(b"end");
        });
        read_exact(&mut peer, frames << 16);
        assert_eq!(read_exact(&mut peer, 3), b"end");
    });
}

#[test]
fn permessage_deflate_is_not_taken() {
    let target = Target::new();
    let server = Server::to(target.address());
    let offer = Handshake::default()
        .with("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits");
    assert_eq!(
        Client::with(server.address(), &offer).header("Sec-WebSocket-Extensions"),
        None
    );
}

#[test]
fn traffic_is_marked_on_stderr() {
    let target = Target::new();
    let mut server = Server::with(&["--traffic", &target.address().to_string()]);
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    client.send_binary(b"up");
    read_exact(&mut peer, 2);
    peer.write_all(b"down").unwrap();
    client.read_binary(4);
    drop(peer);
    client.read_to_close();
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let log = server.rest_of_log();
    assert!(log.contains("}>{<"), "{log}");
}

#[test]
fn a_real_websocket_library_agrees() {
    use tokio_tungstenite::tungstenite::{self, Message};
    let target = Target::new();
    let server = Server::to(target.address());
    let stream = std::net::TcpStream::connect(server.address()).unwrap();
    let (mut socket, _) =
        tungstenite::client(format!("ws://{}/", server.address()), stream).unwrap();
    let mut peer = target.accept();
    socket.send(Message::binary(pattern(300_000))).unwrap();
    assert!(read_exact(&mut peer, 300_000) == pattern(300_000));
    socket.send(Message::Ping(b"ping".to_vec().into())).unwrap();
    assert_eq!(
        socket.read().unwrap(),
        Message::Pong(b"ping".to_vec().into())
    );
    drop(peer);
    assert!(
        matches!(socket.read().unwrap(), Message::Close(Some(close)) if u16::from(close.code) == 1000)
    );
    wait_until("the end of the closing handshake", || socket.read().err());
}
