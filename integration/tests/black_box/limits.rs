//! How many clients there may be at once, and what becomes of more.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use integration::{
    Client, Handshake, Scratch, Server, Target, executable, reset, run_to_end, wait_until,
};
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

/// What the log says when clients have to wait for others to leave.
pub(crate) const FULL: &str = "as many as there may be (--max-connections)";

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
fn recordings_are_reckoned_with() {
    let directory = Scratch::new().unwrap();
    let record = directory.path().join("session");
    let target = Target::new();
    let address = target.address().to_string();
    let arguments = ["--record", record.to_str().unwrap(), &address];
    let mut server = with_descriptors(64, &arguments);
    let mut clients: Vec<Client> = (0..30)
        .map(|_| {
            let mut client = Client::raw(server.address());
            client.send(&Handshake::default().bytes());
            client
        })
        .collect();
    let line = server.wait_for_line(FULL);
    let count: usize = line.split(' ').find_map(|word| word.parse().ok()).unwrap();
    // All that are let in are connected, and recorded.
    let mut peers = Vec::new();
    for _ in &clients[..count] {
        let mut peer = target.accept();
        peer.write_all(b"hello").unwrap();
        peers.push(peer);
    }
    for client in &mut clients[..count] {
        client.read_head();
        assert_eq!(client.read_binary(5), b"hello");
    }
    wait_until("all recordings", || {
        let found = fs::read_dir(directory.path()).unwrap().count();
        (found >= count).then_some(())
    });
    for client in &clients {
        reset(client.stream());
    }
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    assert!(!log.contains("Too many open files"), "{log}");
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

/// Asks from an address of its own for a session, as it may be with a header.
fn ask(server: &Server, last: u8, header: &str) -> Client {
    let mut client = Client::from_host(Ipv4Addr::new(127, 0, 0, last), server.address());
    let mut handshake = Handshake::default();
    if !header.is_empty() {
        handshake = handshake.with(header);
    }
    client.request(&handshake.bytes());
    client
}

#[test]
fn an_address_has_so_many_connections_and_the_log_tells_once_that_it_wants_more() {
    let target = Target::new();
    let address = target.address().to_string();
    let options = ["--max-connections-per-address", "2", "--web", "."];
    let mut server = Server::with(&[&options[..], &[&address]].concat());
    let mut first = ask(&server, 2, "");
    let second = ask(&server, 2, "");
    assert_eq!((first.status(), second.status()), ("101", "101"));
    let _peers = [target.accept(), target.accept()];
    let before = server.descriptors();
    for _ in 0..20 {
        let mut more = ask(&server, 2, "");
        assert_eq!(more.status(), "503");
        assert_eq!(
            more.read_body(),
            b"Service Unavailable: too many connections of your address\n"
        );
        let mut page = Client::from_host(Ipv4Addr::new(127, 0, 0, 2), server.address());
        page.request(b"GET /Cargo.toml HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(page.status(), "503");
        // Those that were refused count until they are gone.
        drop((more, page));
        wait_until("both to be gone", || {
            (server.descriptors() <= before).then_some(())
        });
    }
    let line = server
        .wait_for_line("127.0.0.2 has as many connections as it may, 2: more of it are refused");
    assert!(!line.contains("["), "{line}");
    // Others are not concerned.
    assert_eq!(ask(&server, 3, "").status(), "101");
    // Those who are far too many are not even told so.
    let silent = [0; 2].map(|_| Client::from_host(Ipv4Addr::new(127, 0, 0, 2), server.address()));
    let mut far = Client::from_host(Ipv4Addr::new(127, 0, 0, 2), server.address());
    assert_eq!(far.read_rest(), b"");
    drop(silent);
    first.send_close(1000);
    first.read_to_close();
    drop(first);
    wait_until("its place", || {
        (ask(&server, 2, "").status() == "101").then_some(())
    });
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    assert_eq!(
        log.matches("as many connections as it may").count(),
        1,
        "{log}"
    );
    assert!(!log.contains("503"), "{log}");
}

#[test]
fn behind_a_proxy_the_sessions_of_its_clients_are_counted() {
    let target = Target::new();
    let address = target.address().to_string();
    let options = [
        "--max-connections-per-address",
        "2",
        "--trusted-proxy",
        "127.0.0.2",
    ];
    let server = Server::with(&[&options[..], &[&address]].concat());
    let of = |client: &str| ask(&server, 2, &format!("X-Forwarded-For: {client}"));
    let mut sessions = Vec::new();
    for client in ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1"] {
        for status in ["101", "101", "503"] {
            let session = of(client);
            assert_eq!(session.status(), status, "{client}");
            sessions.push(session);
        }
    }
    // The same network.
    assert_eq!(of("2001:db8::77").status(), "503");
    // Who is no proxy says what it wants.
    for status in ["101", "101", "503"] {
        let session = ask(&server, 3, "X-Forwarded-For: 10.0.0.9");
        assert_eq!(session.status(), status);
        sessions.push(session);
    }
}
