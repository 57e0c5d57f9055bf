//! Ending by itself: `--run-once`, `--timeout` and `--idle-timeout`, alone and together, and whom they concern.
//!
//! That a limit is over while the test holds something open is told by another server, with a longer limit, that was started later
//! and has ended. The original takes whole seconds only.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;

use integration::{
    Client, Daemon, Handshake, Scratch, Server, Target, frame, text, theirs, wait_until,
};
use nix::sys::signal::Signal;

use crate::wrapping::{processes_with, wrap_script};

/// Every combination of the three, with the line that tells of the end after a session during which the limits have been over.
const COMBINATIONS: [(&[&str], &str); 7] = [
    (&["--run-once"], "exiting due to --run-once"),
    (&["--timeout=1"], "listener exit due to --timeout 1"),
    (
        &["--idle-timeout=1"],
        "listener exit due to --idle-timeout 1",
    ),
    (&["--run-once", "--timeout=1"], "exiting due to --run-once"),
    (
        &["--run-once", "--idle-timeout=1"],
        "exiting due to --run-once",
    ),
    (
        &["--timeout=1", "--idle-timeout=1"],
        "listener exit due to --timeout 1",
    ),
    (
        &["--timeout=1", "--idle-timeout=1", "--run-once"],
        "exiting due to --run-once",
    ),
];

/// A request that is no upgrade, on a connection of its own.
const PLAIN: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// Waits until limits of one second are over.
fn limits_pass() {
    let mut clock = Server::with(&["--timeout=2", "localhost:1"]);
    assert!(clock.wait().success());
}

/// That data goes both ways.
fn check(client: &mut Client, peer: &mut TcpStream) {
    client.send_binary(b"ask");
    peer.read_exact(&mut [0; 3]).unwrap();
    peer.write_all(b"answer").unwrap();
    assert_eq!(client.read_binary(6), b"answer");
}

/// Ends a session in order.
fn leave(mut client: Client) {
    client.send_close(1000);
    client.read_to_close();
}

/// What a server has logged that has ended without an error.
fn log_of(server: &mut Server) -> String {
    let log = server.rest_of_log();
    assert!(server.wait().success(), "{log}");
    log
}

/// Checks that of the lines that tell of an end by itself there is this one only.
fn expect_only(log: &str, line: &str) {
    let is_told = |text: &&str| text.contains("exit due to") || text.contains("exiting due to");
    let told: Vec<&str> = log.lines().filter(is_told).collect();
    assert!(
        told.len() == 1 && told[0].ends_with(line),
        "not {line:?} in {log}"
    );
}

#[test]
fn a_session_goes_on_when_limits_are_over_and_the_server_ends_with_it() {
    let target = Target::new();
    let address = target.address().to_string();
    let sessions: Vec<_> = COMBINATIONS
        .iter()
        .map(|(options, line)| {
            let server = Server::with(&[options, &[address.as_str()][..]].concat());
            let client = Client::connect(server.address());
            (server, client, target.accept(), line)
        })
        .collect();
    limits_pass();
    for (mut server, mut client, mut peer, line) in sessions {
        check(&mut client, &mut peer);
        leave(client);
        drop(peer);
        expect_only(&log_of(&mut server), line);
    }
}

#[test]
fn without_a_client_the_first_limit_that_is_over_ends_the_server() {
    let target = Target::new();
    let address = target.address().to_string();
    for (timeout, idle, line) in [
        ("1", "0", "listener exit due to --timeout 1"),
        ("0", "1", "listener exit due to --idle-timeout 1"),
        ("1", "500", "listener exit due to --timeout 1"),
        ("500", "1", "listener exit due to --idle-timeout 1"),
        ("1", "1", "listener exit due to --timeout 1"),
    ] {
        let limits = ["--timeout", timeout, "--idle-timeout", idle];
        let servers = [&[][..], &["--run-once"]]
            .map(|once| Server::with(&[&limits[..], once, &[address.as_str()]].concat()));
        for mut server in servers {
            expect_only(&log_of(&mut server), line);
        }
    }
}

#[test]
fn the_line_of_a_hub_serves_one_desktop_on_a_port_that_was_free() {
    // It does not say which port it has got.
    if theirs() {
        return;
    }
    let target = Target::new();
    let address = target.address().to_string();
    let hub = [
        "--timeout",
        "5",
        "--idle-timeout",
        "5",
        "--run-once",
        "0",
        &address,
    ];
    let mut server = Server::listening_by_itself(&hub);
    let mut client = Client::connect(server.address());
    check(&mut client, &mut target.accept());
    leave(client);
    let log = log_of(&mut server);
    expect_only(&log, "127.0.0.1: exiting due to --run-once");
    assert!(log.ends_with("\nIn exit"), "{log}");
}

#[test]
fn the_one_session_is_not_used_up_by_those_who_become_none() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let tokens = directory.path().join("tokens");
    std::fs::write(&tokens, format!("known: {}\n", target.address())).unwrap();
    std::fs::write(directory.path().join("page"), "page").unwrap();
    let options = [
        "--run-once",
        "--idle-timeout=500",
        "--web",
        text(directory.path()),
        "--token-plugin=TokenFile",
        "--token-source",
        text(&tokens),
        "--auth-plugin=BasicHTTPAuth",
        "--auth-source=user:pass",
    ];
    let mut server = Server::with(&options);
    let with = |token: &str, code: &str| {
        Handshake::default()
            .request_line(&format!("GET /?token={token} HTTP/1.1"))
            .with(&format!("Authorization: Basic {code}"))
    };
    // `user:pass` and another.
    let [right, wrong] = ["dXNlcjpwYXNz", "dXNlcjpwYXNzOndvcmQ="];
    let silent = Client::raw(server.address());
    drop(Client::raw(server.address()));
    let page = b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for request in [PLAIN, page] {
        assert_eq!(Client::ask(server.address(), request).status(), "200");
    }
    for handshake in [
        with("unknown", right),
        with("", right),
        with("known", wrong),
        with("known", right).without("Sec-WebSocket-Key"),
        with("known", right).replace("Sec-WebSocket-Version", "3"),
    ] {
        let refused = Client::ask(server.address(), &handshake.bytes());
        assert_ne!(refused.status(), "101");
        assert!(!target.has_visitor());
    }
    let mut client = Client::with(server.address(), &with("known", right));
    check(&mut client, &mut target.accept());
    leave(client);
    drop(silent);
    expect_only(&log_of(&mut server), "exiting due to --run-once");
}

#[test]
fn the_one_session_is_used_up_by_a_target_that_cannot_be_reached() {
    let (_guard, address) = crate::session::nobody_listens();
    let mut server = Server::with(&["--run-once", "--timeout=500", &address.to_string()]);
    let mut client = Client::connect(server.address());
    assert_eq!(client.read_to_close().1, Some(1011));
    client.send_close(1011);
    drop(client);
    expect_only(&log_of(&mut server), "exiting due to --run-once");
}

#[test]
fn of_many_clients_at_once_one_is_served() {
    // It keeps the others waiting, to be reset at the end.
    if theirs() {
        return;
    }
    let target = Target::new();
    for options in [
        &["--run-once"][..],
        &["--run-once", "--timeout=500", "--idle-timeout=500"],
    ] {
        let address = target.address().to_string();
        let mut server = Server::with(&[options, &[&address]].concat());
        let mut clients: Vec<Client> = (0..8).map(|_| Client::raw(server.address())).collect();
        thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(|| {
                    client.send(&Handshake::default().bytes());
                    // One that was not accepted any more is reset.
                    let mut byte = [0];
                    if client
                        .stream()
                        .peek(&mut byte)
                        .is_ok_and(|length| length > 0)
                    {
                        client.read_head();
                    }
                });
            }
        });
        let (mut served, others): (Vec<_>, Vec<_>) = clients
            .into_iter()
            .partition(|client| client.status() == "101");
        assert_eq!(served.len(), 1);
        for other in &others {
            assert!(["", "503"].contains(&other.status()), "{}", other.response);
        }
        let mut client = served.remove(0);
        check(&mut client, &mut target.accept());
        assert!(!target.has_visitor());
        leave(client);
        expect_only(&log_of(&mut server), "exiting due to --run-once");
    }
}

#[test]
fn no_connection_is_idle_while_it_is_open() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let web = ["--web", text(directory.path())];
    let address = target.address().to_string();
    let mut server = Server::with(&[&["--idle-timeout=1"], &web[..], &[&address]].concat());
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut client = Client::ask(server.address(), request);
    client.read_body();
    limits_pass();
    client.request(request);
    assert_eq!(client.status(), "200");
    client.read_body();
    drop(client);
    expect_only(
        &log_of(&mut server),
        "listener exit due to --idle-timeout 1",
    );
}

#[test]
fn a_timeout_waits_for_sessions_only_and_a_stop_ends_the_wait() {
    // It waits for whoever is connected, and says nothing to sessions that it ends.
    if theirs() {
        return;
    }
    let target = Target::new();
    let address = target.address().to_string();
    let mut server = Server::with(&["--timeout=0.2", &address]);
    let silent = Client::raw(server.address());
    expect_only(&log_of(&mut server), "listener exit due to --timeout 0.2");
    drop(silent);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = Server::with(&["--timeout=1", &address]);
        let mut client = Client::connect(server.address());
        let mut peer = target.accept();
        server.wait_for_line("listener exit due to --timeout 1");
        check(&mut client, &mut peer);
        server.signal(signal);
        assert_eq!(client.read_frame().close().0, Some(1001));
        client.send_close(1001);
        client.expect_end();
        let log = log_of(&mut server);
        assert!(log.ends_with("\nIn exit"), "{log}");
    }
}

#[test]
fn a_wrapped_program_lives_as_long_as_the_last_session_and_no_longer() {
    // Its package cannot wrap programs.
    if theirs() {
        return;
    }
    for mode in [
        "--wrap-mode=exit",
        "--wrap-mode=ignore",
        "--wrap-mode=respawn",
    ] {
        let servers = COMBINATIONS.map(|(limits, line)| {
            let server = wrap_script(&[&[mode], limits].concat(), "echo", "PORT");
            let mut client = Client::connect(server.address());
            // It is found by its port, which is nobody else's while it is ours.
            let mark = format!("wrapped.py echo {}", server.address().port());
            let mut greeting = Vec::new();
            while !greeting.ends_with(b"\n") {
                greeting.extend(client.read_frame().payload);
            }
            (server, client, mark, line)
        });
        for (mut server, mut client, mark, line) in servers {
            let told = line
                .contains("--timeout")
                .then(|| server.wait_for_line(line));
            client.send(&frame(0x89, b"still there?"));
            assert_eq!(client.read_frame().payload, b"still there?");
            client.send_binary(b"echo");
            assert_eq!(client.read_binary(4), b"echo");
            leave(client);
            let log = log_of(&mut server);
            assert!(told.is_none_or(|told| told == line), "{log}");
            expect_only(&log, line);
            assert_eq!(processes_with(&mark), []);
        }
    }
}

#[test]
fn a_daemon_ends_by_itself_and_takes_its_number_along() {
    // It has no file for its number.
    if theirs() {
        return;
    }
    let target = Target::new();
    let address = target.address().to_string();
    let daemons = COMBINATIONS.map(|(limits, line)| {
        let arguments = [limits, &["--log-file", "log", &address]].concat();
        let daemon = Daemon::with(&arguments);
        let client = Client::connect(daemon.address());
        (daemon, client, target.accept(), line)
    });
    for (daemon, mut client, mut peer, line) in daemons {
        let log_file = daemon.directory().join("log");
        let log = |path: &Path| std::fs::read_to_string(path).unwrap();
        if line.contains("--timeout") {
            wait_until("the end of its time", || {
                log(&log_file).contains(line).then_some(())
            });
        }
        check(&mut client, &mut peer);
        leave(client);
        drop(peer);
        daemon.wait();
        assert!(!daemon.pid_file().exists());
        expect_only(&log(&log_file), line);
    }
    let alone = Daemon::with(&["--idle-timeout=0.2", &address]);
    alone.wait();
    assert!(!alone.pid_file().exists());
}
