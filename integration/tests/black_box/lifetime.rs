//! How the server itself ends, and what it leaves behind: nothing.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Instant;

use integration::{Client, Handshake, Server, Target, frame, pattern, session, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_stop_tells_every_client_and_frees_the_port() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let target = Target::new();
        let mut server = Server::to(target.address());
        let address = server.address();
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(address)).collect();
        let peers: Vec<_> = (0..20).map(|_| target.accept()).collect();
        let start = Instant::now();
        server.signal(signal);
        for client in &mut clients {
            assert_eq!(client.read_frame().close().0, Some(1001));
            client.send_close(1001);
            client.expect_end();
        }
        assert_eq!(server.wait().code(), Some(0), "{signal}");
        assert!(
            start.elapsed().as_secs() < 3,
            "{signal}: {:?}",
            start.elapsed()
        );
        assert!(server.rest_of_log().ends_with("In exit"), "{signal}");
        TcpListener::bind(address).expect("the port is free");
        drop(peers);
    }
}

#[test]
fn a_stop_does_not_wait_for_clients_that_are_stuck() {
    let (mut server, stuck, mut peer) = session();
    peer.set_nonblocking(true).unwrap();
    while peer.write(&[0; 1 << 16]).is_ok() {}
    let silent = Client::raw(server.address());
    let start = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
    drop((stuck, silent));
}

#[test]
fn two_hundred_rounds_leave_no_descriptor_behind() {
    let target = Target::new();
    let server = Server::to(target.address());
    let round = |kind: usize| {
        let mut client = Client::connect(server.address());
        let mut peer = target.accept();
        client.send_binary(b"data");
        match kind % 4 {
            0 => {
                client.send_close(1000);
                client.read_to_close();
                client.expect_end();
            }
            1 => {
                peer.write_all(&pattern(1000)).unwrap();
                drop(peer);
                client.read_to_close();
                client.send_close(1000);
                client.expect_end();
            }
            2 => integration::reset(&peer),
            _ => drop(client),
        }
    };
    (0..8).for_each(round);
    // Two at a time, so that every worker thread has been needed.
    let pairs: Vec<_> = (0..2).map(|_| Client::connect(server.address())).collect();
    drop((target.accept(), target.accept(), pairs));
    let before = wait_until("the first sessions to end", || {
        Some(server.descriptors()).filter(|&open| open < 20)
    });
    (0..200).for_each(round);
    wait_until("all descriptors to be closed", || {
        (server.descriptors() <= before).then_some(())
    });
}

#[test]
fn run_once_takes_the_first_upgrade_and_nobody_else() {
    let target = Target::new();
    let mut server = Server::with(&["--run-once", &target.address().to_string()]);
    let plain = Client::ask(
        server.address(),
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(plain.response.starts_with("HTTP/1.1 405 "));
    let silent = Client::raw(server.address());
    let mut client = Client::connect(server.address());
    let peer = target.accept();
    wait_until("the port to be closed", || {
        std::net::TcpStream::connect(server.address()).err()
    });
    client.send_binary(b"still served");
    drop(peer);
    client.read_to_close();
    client.send_close(1000);
    client.expect_end();
    drop(silent);
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.rest_of_log().contains("exiting due to --run-once"));
}

#[test]
fn run_once_takes_an_upgrade_that_is_not_as_plain_as_others() {
    for header in ["Content-Length: 0", "Expect: 100-continue"] {
        let target = Target::new();
        let mut server = Server::with(&["--run-once", &target.address().to_string()]);
        let handshake = Handshake::default().with(header);
        let mut client = Client::ask(server.address(), &handshake.bytes());
        if client.response.starts_with("HTTP/1.1 100 ") {
            client.read_head();
        }
        assert!(
            client.response.starts_with("HTTP/1.1 101 "),
            "{header}: {}",
            client.response
        );
        client.send_close(1000);
        client.read_to_close();
        client.expect_end();
        assert_eq!(server.wait().code(), Some(0), "{header}");
    }
}

#[test]
fn a_timeout_closes_the_port_and_lets_sessions_finish() {
    let target = Target::new();
    let mut server = Server::with(&["--timeout", "1", &target.address().to_string()]);
    let mut client = Client::connect(server.address());
    let _peer = target.accept();
    server.wait_for_line("listener exit due to --timeout 1");
    wait_until("the port to be closed", || {
        std::net::TcpStream::connect(server.address()).err()
    });
    client.send(&frame(0x89, b"still there?"));
    assert_eq!(client.read_frame().payload, b"still there?");
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn an_idle_timeout_counts_from_the_last_connection() {
    let target = Target::new();
    let mut server = Server::with(&[
        "--idle-timeout",
        "1",
        "--timeout",
        "500",
        "--run-once",
        &target.address().to_string(),
    ]);
    let held = Client::raw(server.address());
    let start = Instant::now();
    // A second server, with nobody connected, tells that the first one's idle time would be over.
    let mut idle = Server::with(&["--idle-timeout", "2", &target.address().to_string()]);
    assert_eq!(idle.wait().code(), Some(0));
    drop(held);
    server.wait_for_line("listener exit due to --idle-timeout 1");
    assert_eq!(server.wait().code(), Some(0));
    assert!(
        start.elapsed().as_secs_f64() >= 2.9,
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_full_stderr_keeps_nobody_waiting() {
    let target = Target::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // A pipe that stays open and of which nobody reads; 300 connections write more than it holds.
    let script = "mkfifo \"$1\"; exec 3<>\"$1\" 2>&3; rm \"$1\"; program=$2; shift 2; exec \"$program\" \"$@\"";
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    let launcher = ["sh", "-c", script, "sh", pipe.to_str().unwrap()];
    let mut server = Server::through(&launcher, listener, &[&target.address().to_string()]);
    for _ in 0..300 {
        let mut client = Client::connect(server.address());
        client.send_close(1000);
        assert_eq!(client.read_frame().close().0, Some(1000));
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_closed_stderr_hurts_nobody() {
    let target = Target::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::through(
        &["sh", "-c", "exec 2>&-; exec \"$0\" \"$@\""],
        listener,
        &[&target.address().to_string()],
    );
    for _ in 0..3 {
        let mut client = Client::connect(server.address());
        client.send_close(1000);
        assert_eq!(client.read_frame().close().0, Some(1000));
    }
}

#[test]
fn a_socket_for_stderr_loses_no_line_while_it_has_room() {
    let target = Target::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (mut log, stderr) = UnixStream::pair().unwrap();
    let mut server = Command::new(integration::executable())
        .args(["--inetd", &target.address().to_string()])
        .stdin(OwnedFd::from(listener))
        .stderr(OwnedFd::from(stderr))
        .spawn()
        .unwrap();
    for _ in 0..80 {
        let mut client = Client::connect(address);
        client.send_close(1000);
        assert_eq!(client.read_frame().close().0, Some(1000));
    }
    kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGTERM).unwrap();
    server.wait().unwrap();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    let connections = text.matches("WebSocket connection").count();
    assert_eq!(
        (connections, text.ends_with("In exit\n")),
        (80, true),
        "{text}"
    );
}
