//! How many clients there may be at once, and what becomes of more.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use integration::{Client, Handshake, Server, Target, executable, reset, run_to_end, wait_until};
use nix::sys::signal::Signal;

/// A server with so many descriptors at most.
fn with_descriptors(count: usize, arguments: &[&str]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let limit = format!("ulimit -n {count}; exec \"$0\" \"$@\"");
    Server::through(&["sh", "-c", &limit], listener, arguments)
}

/// How often a line is in the log of a server, which ends with this.
fn told(mut server: Server, text: &str) -> usize {
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    log.matches(text).count()
}

const FULL: &str = "as many as there may be (--max-connections)";

#[test]
fn clients_wait_in_the_backlog_until_others_leave_and_the_log_tells_it_once() {
    let target = Target::new();
    let address = target.address().to_string();
    let mut server = Server::with(&["--max-connections", "2", &address]);
    let mut first = Client::connect(server.address());
    let _second = Client::connect(server.address());
    let peers = [target.accept(), target.accept()];
    let mut waiting: Vec<Client> = (0..5).map(|_| Client::raw(server.address())).collect();
    for client in &mut waiting {
        client.send(&Handshake::default().bytes());
    }
    assert!(
        server
            .wait_for_line(FULL)
            .contains("2 connections are open")
    );
    // None of them is lost: each has its turn when one has left.
    let mut peers = Vec::from(peers);
    for mut client in waiting {
        assert!(!target.has_visitor());
        first.send_close(1000);
        first.read_to_close();
        drop(first);
        client.read_head();
        assert_eq!(client.status(), "101");
        let mut peer = target.accept();
        peer.write_all(b"welcome").unwrap();
        assert_eq!(client.read_binary(7), b"welcome");
        peers.push(peer);
        first = client;
    }
    assert_eq!(told(server, FULL), 1);
}

#[test]
fn descriptors_are_never_used_up_by_clients() {
    let target = Target::new();
    let address = target.address().to_string();
    let mut server = with_descriptors(64, &[&address, "--web", "."]);
    let mut first = Client::connect(server.address());
    let mut peer = target.accept();
    // Sessions, requests for files, and silence, until some have to wait.
    let clients: Vec<Client> = (0..60)
        .map(|number| {
            let mut client = Client::raw(server.address());
            match number % 3 {
                0 => client.send(&Handshake::default().bytes()),
                1 => client.send(b"GET /Cargo.toml HTTP/1.1\r\nHost: x\r\n\r\n"),
                _ => {}
            }
            client
        })
        .collect();
    server.wait_for_line(FULL);
    peer.write_all(&[7; 1 << 20]).unwrap();
    assert_eq!(first.read_binary(1 << 20).len(), 1 << 20);
    assert!(server.descriptors() <= 60, "{}", server.descriptors());
    for client in &clients {
        reset(client.stream());
    }
    drop(clients);
    let mut last = Client::connect(server.address());
    last.send_binary(b"me");
    wait_until("the last one's turn", || {
        let mut received = Vec::new();
        let mut peer = target.accept().take(2);
        peer.read_to_end(&mut received)
            .ok()
            .filter(|_| received == b"me")
    });
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    assert!(
        !log.contains("cannot accept") && !log.contains("Too many open files"),
        "{log}"
    );
}

#[test]
fn with_any_number_of_descriptors_it_serves_or_says_how_many_it_needs() {
    let target = Target::new();
    let address = target.address().to_string();
    let mut has_served = false;
    for count in 8..48 {
        let limit = format!("ulimit -n {count}; exec \"$0\" \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &limit])
            .arg(executable())
            .args(["127.0.0.1:0", &address, "--timeout", "0.05"])
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            has_served = true;
            continue;
        }
        assert!(!has_served, "{count}: {errors}");
        assert_eq!(output.status.code(), Some(1), "{count}: {errors}");
        let last = errors.lines().last().unwrap();
        assert!(last.starts_with("websockify: error: "), "{count}: {errors}");
        assert!(
            last.contains("descriptors") || last.contains("Too many open files"),
            "{count}: {errors}"
        );
    }
    assert!(has_served);
}

#[test]
fn more_connections_than_there_are_descriptors_for_are_a_warning() {
    let target = Target::new();
    let address = target.address().to_string();
    let arguments = ["--max-connections", "50", &address];
    let mut server = with_descriptors(64, &arguments);
    let line = server.wait_for_line("warning: --max-connections 50: descriptors are there for ");
    assert!(line.ends_with(" (ulimit -n, LimitNOFILE=)"), "{line}");
    for wrong in ["0", "-1", "many"] {
        let output = run_to_end(&[
            "127.0.0.1:0",
            &address,
            &format!("--max-connections={wrong}"),
        ]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}
