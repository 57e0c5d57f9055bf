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
fn limits_and_run_once_go_together_in_every_way() {
    let target = Target::new();
    let address = target.address().to_string();
    let (run_once, timeout, idle_timeout) = (
        &["--run-once"][..],
        &["--timeout", "5"],
        &["--idle-timeout", "5"],
    );
    for limits in [
        [run_once, timeout, &[]].concat(),
        [run_once, idle_timeout, &[]].concat(),
        [timeout, idle_timeout, run_once].concat(),
    ] {
        let port_zero = [&limits[..], &["127.0.0.1:0", &address]].concat();
        let mut server =
            Server::listening_by_itself(&[&port_zero[limits.len()..], &limits].concat());
        let mut client = Client::connect(server.address());
        let _peer = target.accept();
        client.send_close(1000);
        client.read_to_close();
        client.expect_end();
        assert_eq!(server.wait().code(), Some(0), "{limits:?}");
        assert!(server.rest_of_log().contains("exiting due to --run-once"));
    }
    // Whichever is over first.
    for (options, first) in [
        (
            ["--timeout", "0.1", "--idle-timeout", "500"],
            "--timeout 0.1",
        ),
        (
            ["--timeout", "500", "--idle-timeout", "0.1"],
            "--idle-timeout 0.1",
        ),
    ] {
        let arguments = [&options[..], &["--run-once", &address]].concat();
        let mut server = Server::with(&arguments);
        assert_eq!(server.wait().code(), Some(0));
        let log = server.rest_of_log();
        assert!(
            log.contains(&format!("listener exit due to {first}")),
            "{log}"
        );
    }
}

#[test]
fn run_once_is_not_used_up_by_a_token_that_is_unknown() {
    let target = Target::new();
    let directory = integration::Scratch::new().unwrap();
    let tokens = directory.path().join("tokens");
    std::fs::write(&tokens, format!("t: {}", target.address())).unwrap();
    let options = ["--run-once", "--target-config", tokens.to_str().unwrap()];
    let mut server = Server::with(&options);
    let with = |token| Handshake::default().request_line(&format!("GET /?token={token} HTTP/1.1"));
    for unknown in ["u", ""] {
        let refused = Client::ask(server.address(), &with(unknown).bytes());
        assert!(["403", "400"].contains(&refused.status()));
    }
    let mut client = Client::with(server.address(), &with("t"));
    drop(target.accept());
    client.read_to_close();
    client.send_close(1000);
    client.expect_end();
    assert_eq!(server.wait().code(), Some(0));
}

/// A session of which both ends are the test's, by a server with these options.
fn session_with(options: &[&str]) -> (Server, Client, std::net::TcpStream) {
    let target = Target::new();
    let address = target.address().to_string();
    let server = Server::with(&[options, &[&address]].concat());
    let client = Client::connect(server.address());
    let peer = target.accept();
    (server, client, peer)
}

/// That data goes both ways.
fn check(client: &mut Client, peer: &mut std::net::TcpStream) {
    client.send_binary(b"ask");
    let mut asked = [0; 3];
    peer.read_exact(&mut asked).unwrap();
    peer.write_all(b"answer").unwrap();
    assert_eq!(client.read_binary(6), b"answer");
}

#[test]
fn sessions_finish_before_a_drain_is_over() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut server, mut client, mut peer) = session_with(&["--drain", "500"]);
        let silent = Client::raw(server.address());
        server.signal(signal);
        let line = server.wait_for_line("no more clients are taken");
        assert!(
            line.starts_with(&format!("{signal}: ")) && line.contains("up to 500 s"),
            "{line}"
        );
        server.wait_for_line("connections are waited for");
        wait_until("the port to be closed", || {
            std::net::TcpStream::connect(server.address()).err()
        });
        check(&mut client, &mut peer);
        drop(peer);
        assert_eq!(client.read_to_close().1, Some(1000));
        client.send_close(1000);
        client.expect_end();
        // Who has said nothing is not waited for.
        assert_eq!(server.wait().code(), Some(0));
        drop(silent);
    }
}

#[test]
fn another_signal_and_the_end_of_its_time_cut_a_drain_short() {
    for (first, second) in [
        (Some(Signal::SIGTERM), Signal::SIGTERM),
        (Some(Signal::SIGINT), Signal::SIGTERM),
        (Some(Signal::SIGTERM), Signal::SIGQUIT),
        // One alone does not drain.
        (None, Signal::SIGQUIT),
    ] {
        let (mut server, mut client, mut peer) = session_with(&["--drain", "500"]);
        if let Some(first) = first {
            server.signal(first);
            server.wait_for_line("1 connections are waited for");
            check(&mut client, &mut peer);
        }
        let start = Instant::now();
        server.signal(second);
        assert_eq!(client.read_frame().close().0, Some(1001));
        client.send_close(1001);
        client.expect_end();
        assert_eq!(server.wait().code(), Some(0));
        assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
    }
    let (mut server, mut client, _peer) = session_with(&["--drain", "0.5"]);
    server.signal(Signal::SIGTERM);
    server.wait_for_line("the time for sessions to finish is over");
    assert_eq!(client.read_frame().close().0, Some(1001));
    client.send_close(1001);
    client.expect_end();
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_wrapped_program_lives_as_long_as_sessions_finish() {
    for mode in ["--wrap-mode=exit", "--wrap-mode=respawn"] {
        let options = [mode, "--drain", "500"];
        let mut server = crate::wrapping::wrap_script(&options, "echo", "PORT");
        let mut client = Client::connect(server.address());
        let mut greeting = client.read_frame().payload;
        while !greeting.ends_with(b"\n") {
            greeting.extend(client.read_frame().payload);
        }
        server.signal(Signal::SIGTERM);
        server.wait_for_line("1 connections are waited for");
        client.send_binary(b"echo");
        assert_eq!(client.read_binary(4), b"echo");
        client.send_close(1000);
        client.read_to_close();
        client.expect_end();
        assert_eq!(server.wait().code(), Some(0), "{mode}");
        let mark = format!("wrapped.py echo {}", server.address().port());
        assert_eq!(crate::wrapping::processes_with(&mark), []);
    }
}

#[test]
fn a_stop_answers_a_request_that_is_on_its_way() {
    let target = Target::new();
    let mut server = Server::to(target.address());
    let mut client = Client::raw(server.address());
    let (first, rest) = (b"GET / HTTP/1.1\r\n", Handshake::default().bytes());
    let rest = rest
        .split_at(rest.iter().position(|&byte| byte == b'\n').unwrap() + 1)
        .1;
    client.send(first);
    // Once another is served, this one was accepted.
    drop(Client::connect(server.address()));
    server.signal(Signal::SIGTERM);
    client.send(rest);
    client.read_head();
    assert_eq!(client.status(), "101");
    assert_eq!(client.read_frame().close().0, Some(1001));
    client.send_close(1001);
    client.expect_end();
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn files_are_read_again_when_it_is_asked_for_and_kept_when_they_are_no_good() {
    let target = Target::new();
    let directory = integration::Scratch::new().unwrap();
    let [tokens, password] = ["tokens", "password"].map(|name| directory.path().join(name));
    let token_line = |token| format!("{token}: {}\n", target.address());
    std::fs::write(&tokens, token_line("one")).unwrap();
    std::fs::write(&password, "alice:one\n").unwrap();
    let from_file = format!("@{}", password.display());
    let options = [
        "--token-plugin",
        "ReadOnlyTokenFile",
        "--token-source",
        tokens.to_str().unwrap(),
        "--auth-plugin",
        "BasicHTTPAuth",
        "--auth-source",
        &from_file,
    ];
    let mut server = Server::with(&options);
    let address = server.address();
    // `alice:one` and `alice:two`.
    let [one, two] = ["YWxpY2U6b25l", "YWxpY2U6dHdv"];
    let status = |token: &str, password: &str| {
        let handshake = Handshake::default()
            .request_line(&format!("GET /?token={token} HTTP/1.1"))
            .with(&format!("Authorization: Basic {password}"));
        let client = Client::ask(address, &handshake.bytes());
        client.status().to_owned()
    };
    let [session_token, session_password] = ["one", one];
    let handshake = Handshake::default()
        .request_line(&format!("GET /?token={session_token} HTTP/1.1"))
        .with(&format!("Authorization: Basic {session_password}"));
    let mut client = Client::with(address, &handshake);
    let mut peer = target.accept();
    std::fs::write(&tokens, token_line("two")).unwrap();
    std::fs::write(&password, "alice:two").unwrap();
    assert_eq!(status("one", one), "101");
    server.signal(Signal::SIGHUP);
    server.wait_for_line(&format!(
        "User and password read again: {}",
        password.display()
    ));
    server.wait_for_line(&format!("Tokens read again: '{}' has 1", tokens.display()));
    assert_eq!(status("two", two), "101");
    assert_eq!(
        (&status("one", two)[..], &status("two", one)[..]),
        ("403", "401")
    );
    // What is no good changes nothing.
    std::fs::write(&password, "no colon").unwrap();
    std::fs::remove_file(&tokens).unwrap();
    server.signal(Signal::SIGHUP);
    let line = server.wait_for_line("user and password stay what they were");
    assert!(!line.contains("no colon"), "{line}");
    server.wait_for_line("the tokens stay what they were");
    assert_eq!(status("two", two), "101");
    check(&mut client, &mut peer);
}

#[test]
fn what_is_read_anyway_says_so_when_it_is_asked_for() {
    let directory = integration::Scratch::new().unwrap();
    let [tokens, users] = ["tokens", "users"].map(|name| directory.path().join(name));
    std::fs::write(&tokens, "a: h:1\nb: h:1\n").unwrap();
    std::fs::write(&users, "").unwrap();
    let options = [
        "--target-config",
        tokens.to_str().unwrap(),
        "--auth-plugin",
        "HtpasswdFile",
        "--auth-source",
        users.to_str().unwrap(),
    ];
    let mut server = Server::with(&options);
    server.wait_for_line("proxying from ");
    for _ in 0..2 {
        server.signal(Signal::SIGHUP);
        server.wait_for_line("read again: 0 who can log in");
        server.wait_for_line("Tokens read again: ");
    }
    std::fs::remove_file(&tokens).unwrap();
    std::fs::remove_file(&users).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for_line("who can log in stays as it was");
    server.wait_for_line("no token is known until that works");
    let key = directory.path().join("key");
    std::fs::write(&key, "a secret that is long enough for a key").unwrap();
    let options = ["--token-plugin", "JWTTokenApi", "--token-source"];
    let mut signed = Server::with(&[&options[..], &[key.to_str().unwrap()]].concat());
    signed.wait_for_line("proxying from ");
    signed.signal(Signal::SIGHUP);
    signed.wait_for_line("Key of tokens read again: ");
    std::fs::write(&key, "").unwrap();
    signed.signal(Signal::SIGHUP);
    signed.wait_for_line("the key of tokens stays what it was");
    let mut nothing = Server::with(&[":1"]);
    nothing.wait_for_line("proxying from ");
    nothing.signal(Signal::SIGHUP);
    nothing.wait_for_line("HUP: there is no file to read again");
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
