//! Recordings: node evaluates each as a browser does, and what it finds is what passed.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use integration::{
    Client, Handshake, Scratch, Server, Target, frame, frame_header, hash, in_own_mounts, pattern,
    run_to_end, small_disk, text, wait_until,
};
use nix::sys::signal::Signal;

/// What passed at once.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    from_client: bool,
    milliseconds: u64,
    bytes: Vec<u8>,
}

/// Evaluates a recording and takes its strings apart as noVNC does. It has to end as it should.
fn play(path: &Path) -> Vec<Passed> {
    const SCRIPT: &str = "
        const text = require('node:fs').readFileSync(process.argv[1], 'latin1');
        const data = require('node:vm').runInNewContext(text + '\\nVNC_frame_data');
        if (data.pop() !== 'EOF') throw new Error('no end');
        for (const entry of data) {
            const end = entry.indexOf(entry[0], 1);
            const bytes = Buffer.from(entry.slice(end + 1), 'latin1').toString('hex');
            console.log(entry[0], entry.slice(1, end), bytes);
        }";
    let output = Command::new("node")
        .args(["-e", SCRIPT])
        .arg(path)
        .output()
        .expect("node starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", path.display());
    let output = String::from_utf8(output.stdout).unwrap();
    let parse = |line: &str| {
        let [mark, milliseconds, bytes] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let (pairs, []) = bytes.as_bytes().as_chunks::<2>() else {
            panic!("{line}")
        };
        let byte = |pair: &[u8; 2]| {
            let digits = std::str::from_utf8(pair).unwrap();
            u8::from_str_radix(digits, 16).unwrap()
        };
        Passed {
            from_client: match mark {
                "}" => true,
                "{" => false,
                _ => panic!("{line}"),
            },
            milliseconds: milliseconds.parse().unwrap(),
            bytes: pairs.iter().map(byte).collect(),
        }
    };
    output.lines().map(parse).collect()
}

/// What the client and what the target has sent.
fn both(recording: &[Passed]) -> [Vec<u8>; 2] {
    [true, false].map(|from_client| {
        let passed = recording.iter();
        let theirs = passed.filter(|passed| passed.from_client == from_client);
        theirs.flat_map(|passed| passed.bytes.clone()).collect()
    })
}

/// A server that records in a directory.
fn recorder(directory: &Path, target: &Target) -> Server {
    let path = directory.join("rec");
    Server::with(&["--record", text(&path), &target.address().to_string()])
}

fn every_byte() -> Vec<u8> {
    (0..=255).collect()
}

#[test]
fn a_recording_has_all_bytes_in_the_order_and_at_the_time_in_which_they_passed() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let mut server = recorder(directory.path(), &target);
    let path = directory.path().join("rec.1");
    let line = format!(
        "  - Recording to '{}.*'",
        directory.path().join("rec").display()
    );
    assert_eq!(server.wait_for_line("Recording to"), line);
    let mut client = Client::connect(server.address());
    server.wait_for_line(&format!("opening record file: {}", path.display()));
    let mut peer = target.accept();
    let mut expected = Vec::new();
    for round in 0..20 {
        let bytes = [every_byte(), vec![round]].concat();
        peer.write_all(&bytes).unwrap();
        assert_eq!(client.read_binary(257), bytes);
        expected.push((false, bytes.clone()));
        client.send_binary(&bytes);
        peer.read_exact(&mut [0; 257]).unwrap();
        expected.push((true, bytes));
    }
    // It can be played at any time.
    let recorded = wait_until("all to be written", || {
        Some(play(&path)).filter(|recorded| recorded.len() == expected.len())
    });
    client.send_close(1000);
    client.read_to_close();
    assert!(recorded.is_sorted_by_key(|passed| passed.milliseconds));
    let recorded: Vec<_> = recorded
        .into_iter()
        .map(|passed| (passed.from_client, passed.bytes))
        .collect();
    assert_eq!(recorded, expected);
}

#[test]
fn the_number_is_the_connections_and_a_recording_replaces_an_older_one() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let file = |number: u32| directory.path().join(format!("rec.{number}"));
    fs::write(file(2), "of another time").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = ["env", "--chdir", text(directory.path())];
    let arguments = ["--rec", "rec", &target.address().to_string()];
    let mut server = Server::through(&launcher, listener, &arguments);
    let address = server.address();
    let plain = Client::ask(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(plain.status(), "405");
    for number in 2..4 {
        let mut client = Client::connect(address);
        let mut peer = target.accept();
        client.send_binary(&[number]);
        peer.read_exact(&mut [0]).unwrap();
        client.send_close(1000);
        client.read_to_close();
        client.expect_end();
    }
    server.signal(Signal::SIGTERM);
    server.wait();
    for number in 2..4 {
        let recorded = play(&file(number.into()));
        assert_eq!(both(&recorded), [vec![number], vec![]]);
    }
    assert!(!file(1).exists() && !file(4).exists());
}

#[test]
fn megabytes_both_ways_at_once_are_recorded_to_the_last_byte() {
    const LENGTH: usize = 12 << 20;
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = directory.path().join("rec");
    // What is asked for here cannot be recorded, and is not done.
    let launcher = ["env", "WEBSOCKIFY_RELAY=splice"];
    let address = target.address().to_string();
    let arguments = ["--run-once", "--record", text(&path), &address];
    let mut server = Server::through(&launcher, listener, &arguments);
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    let (up, down) = (pattern(LENGTH), pattern(LENGTH + 1));
    let hashes = [hash(&up), hash(&down)];
    let (mut sender, mut peer_sender) = (client.sibling(), peer.try_clone().unwrap());
    thread::scope(|scope| {
        scope.spawn(move || up.chunks(100_001).for_each(|part| sender.send_binary(part)));
        scope.spawn(move || peer_sender.write_all(&down).unwrap());
        let mut arrived = vec![0; LENGTH];
        scope.spawn(move || peer.read_exact(&mut arrived).unwrap());
        client.read_binary(LENGTH + 1);
    });
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
    let log = server.rest_of_log();
    let recorded = both(&play(&directory.path().join("rec.1")));
    assert!(recorded.map(|bytes| hash(&bytes)) == hashes, "{log}");
}

#[test]
fn payload_is_recorded_as_the_target_sees_it() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let server = recorder(directory.path(), &target);
    let base64 = Handshake::default().with("Sec-WebSocket-Protocol: base64");
    let mut client = Client::with(server.address(), &base64);
    let mut peer = target.accept();
    client.send(&frame(0x81, b"AAEC/w=="));
    peer.read_exact(&mut [0; 4]).unwrap();
    peer.write_all(b"\xff\xfe\xfd").unwrap();
    assert_eq!(client.read_frame().payload, b"//79");
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
    // What is in the same segment as the request, fragments, a ping between them, half a frame.
    let mut early = Handshake::default().bytes();
    early.extend(frame(0x82, b"early "));
    let mut client = Client::ask(server.address(), &early);
    let mut peer = target.accept();
    client.send(&frame(0x02, b"one "));
    client.send(&frame(0x89, b"ping"));
    client.send(&frame(0x80, b"two "));
    client.send(&frame_header(0x82, 10));
    client.send(&frame(0x82, b"three")[6..]);
    peer.read_exact(&mut [0; 19]).unwrap();
    drop(client);
    peer.read_to_end(&mut Vec::new()).unwrap();
    drop(peer);
    for (number, expected) in [
        (1, [&b"\x00\x01\x02\xff"[..], b"\xff\xfe\xfd"]),
        (2, [b"early one two three", b""]),
    ] {
        let path = directory.path().join(format!("rec.{number}"));
        wait_until("all to be written", || {
            (both(&play(&path)) == expected.map(<[u8]>::to_vec)).then_some(())
        });
    }
}

#[test]
fn a_recording_is_whole_after_a_stop_and_after_a_kill() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let target = Target::new();
        let directory = Scratch::new().unwrap();
        let mut server = recorder(directory.path(), &target);
        let mut client = Client::connect(server.address());
        let mut peer = target.accept();
        client.send_binary(b"up");
        peer.read_exact(&mut [0; 2]).unwrap();
        peer.write_all(b"down").unwrap();
        client.read_binary(4);
        let path = directory.path().join("rec.1");
        let expected = [b"up".to_vec(), b"down".to_vec()];
        if signal == Signal::SIGKILL {
            wait_until("all to be written", || {
                (both(&play(&path)) == expected).then_some(())
            });
        }
        server.signal(signal);
        server.wait();
        assert_eq!(both(&play(&path)), expected, "{signal}");
    }
}

#[test]
fn a_full_disk_ends_a_recording_and_not_its_session() {
    let name = "recording::a_full_disk_ends_a_recording_and_not_its_session";
    if !in_own_mounts(name) {
        return;
    }
    const LENGTH: usize = 3 << 20;
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    small_disk(directory.path());
    let mut server = recorder(directory.path(), &target);
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    let down = pattern(LENGTH);
    let mut sender = peer.try_clone().unwrap();
    let sent = down.clone();
    let sending = thread::spawn(move || sender.write_all(&sent).unwrap());
    assert!(client.read_binary(LENGTH) == down);
    sending.join().unwrap();
    client.send_binary(b"still there");
    peer.read_exact(&mut [0; 11]).unwrap();
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
    // The next one fits no better, and is served as well.
    let mut client = Client::connect(server.address());
    target.accept().write_all(b"hello").unwrap();
    assert_eq!(client.read_binary(5), b"hello");
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    let line = format!(
        "recording to '{}' ends: No space left on device",
        directory.path().join("rec.1").display()
    );
    assert_eq!(log.matches(&line).count(), 1, "{log}");
    let [_, recorded] = both(&play(&directory.path().join("rec.1")));
    assert!(recorded.len() > 100_000 && down.starts_with(&recorded));
}

#[test]
fn a_place_where_no_file_can_be_made_is_an_error_of_the_start() {
    let directory = Scratch::new().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    for (path, why) in [
        ("no/rec", "No such file or directory"),
        ("file/rec", "Not a directory"),
    ] {
        let path: PathBuf = directory.path().join(path);
        let output = run_to_end(&["127.0.0.1:0", "h:1", "--record", text(&path)]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let path = path.display();
        assert_eq!(
            stderr,
            format!("websockify: error: cannot record to '{path}.*': {why}\n")
        );
    }
}
