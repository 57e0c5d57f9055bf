//! What is answered before a connection is a session.

use std::io::{Read, Write};

use integration::{Client, Handshake, Server, Target, frame};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The status that a handshake is answered with, and the client for its other headers.
fn status(server: &Server, handshake: &Handshake) -> (String, Client) {
    let client = Client::ask(server.address(), &handshake.bytes());
    (
        client
            .response
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .to_owned(),
        client,
    )
}

#[test]
fn upgrades_that_lack_something_are_refused_with_a_status() {
    let target = Target::new();
    let server = Server::to(target.address());
    let (code, client) = status(
        &server,
        &Handshake::default().replace("Sec-WebSocket-Version", "12"),
    );
    assert_eq!(
        (&code[..], client.header("Sec-WebSocket-Version")),
        ("426", Some("13, 8, 7"))
    );
    assert_eq!(
        status(&server, &Handshake::default().without("Sec-WebSocket-Key")).0,
        "400"
    );
    assert_eq!(
        status(&server, &Handshake::default().replace("Upgrade", "h2c")).0,
        "405"
    );
    assert_eq!(
        status(
            &server,
            &Handshake::default().request_line("POST / HTTP/1.1")
        )
        .0,
        "405"
    );
    assert_eq!(
        status(&server, &Handshake::default().without("Connection")).0,
        "101"
    );
    assert!(!target.has_visitor_but(1));
}

#[test]
fn subprotocols_are_trimmed_and_ours_is_chosen() {
    let target = Target::new();
    let server = Server::to(target.address());
    for (offer, chosen) in [
        ("binary", Some("binary")),
        ("base64 ,\tbinary", Some("binary")),
        (" chat, base64", Some("base64")),
        ("chat, mqtt", None),
    ] {
        let offered = Handshake::default().with(&format!("Sec-WebSocket-Protocol: {offer}"));
        assert_eq!(
            Client::with(server.address(), &offered).header("Sec-WebSocket-Protocol"),
            chosen,
            "{offer}"
        );
    }
}

#[test]
fn bytes_behind_the_request_belong_to_the_session() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut request = Handshake::default().bytes();
    request.extend(frame(0x82, b"early"));
    request.extend(frame(0x89, b"ping"));
    request.extend(&frame(0x82, &[b'x'; 20_000])[..10_000]);
    let mut client = Client::ask(server.address(), &request);
    assert_eq!(client.read_frame().payload, b"ping");
    client.send(&frame(0x82, &[b'x'; 20_000])[10_000..]);
    let mut arrived = vec![0; 20_005];
    target.accept().read_exact(&mut arrived).unwrap();
    assert!(arrived == [&b"early"[..], &[b'x'; 20_000]].concat());
}

#[test]
fn a_refusal_closes_the_connection_and_is_read_also_by_a_client_that_has_ended() {
    let target = Target::new();
    let server = Server::to(target.address());
    for _ in 0..20 {
        let mut client = Client::raw(server.address());
        client.send(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        client.stream().shutdown(std::net::Shutdown::Write).unwrap();
        client.read_head();
        assert!(
            client.response.starts_with("HTTP/1.1 405 "),
            "{}",
            client.response
        );
        assert_eq!(client.header("Connection"), Some("close"));
        client.read_rest();
    }
}

#[test]
fn header_names_have_the_case_that_old_clients_compare() {
    let target = Target::new();
    let server = Server::to(target.address());
    let offer = Handshake::default().with("sec-websocket-protocol: binary");
    let response = Client::with(server.address(), &offer).response;
    for name in [
        "\r\nServer: WebSockify/",
        "\r\nSec-WebSocket-Accept: ",
        "\r\nSec-WebSocket-Protocol: binary\r\n",
    ] {
        assert!(response.contains(name), "{name:?} in {response}");
    }
}

#[test]
fn an_upgrade_with_a_body_is_refused() {
    let target = Target::new();
    let server = Server::to(target.address());
    for header in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        assert_eq!(
            status(&server, &Handshake::default().with(header)).0,
            "400",
            "{header}"
        );
    }
    assert_eq!(
        status(
            &server,
            &Handshake::default().request_line("GET / HTTP/1.0")
        )
        .0,
        "101"
    );
}

#[test]
fn a_body_is_never_taken_for_the_next_request() {
    let target = Target::new();
    let server = Server::to(target.address());
    let hidden = Handshake::default().bytes();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        hidden.len()
    );
    let mut client = Client::ask(server.address(), &[request.as_bytes(), &hidden].concat());
    assert!(
        client.response.starts_with("HTTP/1.1 405 "),
        "{}",
        client.response
    );
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    let rest = client.read_rest();
    assert!(
        !String::from_utf8_lossy(&rest).contains("101 Switching"),
        "{rest:?}"
    );
    assert!(!target.has_visitor());
}

#[test]
fn nonsense_is_answered_with_400_and_too_much_with_431() {
    let target = Target::new();
    let server = Server::to(target.address());
    let client = Client::ask(server.address(), b"\0\x01nonsense\r\n\r\n");
    assert!(
        client.response.starts_with("HTTP/1.1 400 "),
        "{}",
        client.response
    );
    let mut client = Client::raw(server.address());
    let huge = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    _ = client.try_send(huge.as_bytes());
    client.read_head();
    assert!(
        client.response.starts_with("HTTP/1.1 431 "),
        "{}",
        client.response
    );
}

#[test]
fn a_flash_player_gets_its_policy() {
    let target = Target::new();
    let server = Server::to(target.address());
    let mut client = Client::raw(server.address());
    // In two segments, since the answer must wait for the last byte.
    client.send(b"<policy-file-");
    client.send(b"request/>\0");
    let policy = "<cross-domain-policy><allow-access-from domain=\"*\" to-ports=\"*\" /></cross-domain-policy>\n";
    assert_eq!(String::from_utf8(client.read_rest()).unwrap(), policy);
    let mut client = Client::raw(server.address());
    client.send(b"<policy-file-");
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(
        !String::from_utf8(client.read_rest())
            .unwrap()
            .contains("allow-access-from")
    );
}

#[test]
fn tls_without_a_certificate_is_refused_with_an_alert_and_a_line() {
    let target = Target::new();
    let mut server = Server::to(target.address());
    let mut client = Client::raw(server.address());
    client.send(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03");
    assert_eq!(client.read_rest(), [0x15, 3, 1, 0, 2, 2, 40]);
    server.wait_for_line("127.0.0.1 - - [");
    let mut client = Client::raw(server.address());
    client.send(b"\x80\x2e\x01\x00\x02");
    assert_eq!(client.read_rest(), b"");
    server.wait_for_line("SSLv2 connection refused");
}

#[test]
fn a_path_cannot_forge_a_log_line() {
    let target = Target::new();
    let mut server = Server::to(target.address());
    let client = Client::ask(
        server.address(),
        &Handshake::default()
            .request_line("GET /\u{1b}[31m\u{85} HTTP/1.1")
            .bytes(),
    );
    drop(client);
    let _client = Client::with(
        server.address(),
        &Handshake::default().request_line("GET /\u{e9}%0a HTTP/1.1"),
    );
    let line = server.wait_for_line("Path: ");
    assert!(
        line.ends_with("Path: '/\u{e9}%0a'") && !line.contains('\u{1b}'),
        "{line}"
    );
}

#[test]
fn a_client_that_says_nothing_is_let_go_when_it_leaves() {
    let target = Target::new();
    let server = Server::to(target.address());
    for _ in 0..50 {
        let client = Client::raw(server.address());
        _ = client.stream().write(b"G");
    }
    // All of them together keep nobody waiting.
    let mut client = Client::connect(server.address());
    client.send_close(1000);
    assert_eq!(client.read_frame().close().0, Some(1000));
}

#[test]
fn pages_of_other_origins_are_refused_and_who_is_no_page_is_not() {
    let target = Target::new();
    let options = [
        "--allow-origin",
        "https://example.com",
        "--allow-origin=same",
    ];
    let address = target.address().to_string();
    let server = Server::with(&[&options[..], &[&address]].concat());
    let host = server.address().to_string();
    let own = format!("http://{host}");
    for (origin, code) in [
        ("https://example.com", "101"),
        (&own, "101"),
        ("https://evil.example", "403"),
        ("null", "403"),
    ] {
        let handshake = Handshake::default()
            .replace("Host", &host)
            .replace("Origin", origin);
        assert_eq!(status(&server, &handshake).0, code, "{origin}");
        // A body makes it a request that is not as plain, and is judged all the same.
        let handshake = handshake.with("Content-Length: 0");
        assert_eq!(status(&server, &handshake).0, code, "{origin}");
    }
    assert_eq!(status(&server, &Handshake::default()).0, "101");
    // Without the option every page may.
    let open = Server::to(target.address());
    let handshake = Handshake::default().with("Origin: https://evil.example");
    assert_eq!(status(&open, &handshake).0, "101");
}

#[test]
fn who_says_nothing_or_too_little_is_closed_when_its_time_is_over() {
    let target = Target::new();
    let address = target.address().to_string();
    let server = Server::with(&["--handshake-timeout", "0.5", &address]);
    let mut silent = Client::raw(server.address());
    let mut dripping = Client::raw(server.address());
    dripping
        .stream()
        .set_read_timeout(Some(std::time::Duration::from_millis(20)))
        .unwrap();
    let request = Handshake::default().bytes();
    let mut answer = Vec::new();
    let ended = request.iter().any(|byte| {
        dripping.try_send(&[*byte]).is_err()
            || !matches!(
                dripping.stream().read_to_end(&mut answer),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock
            )
    });
    assert!(ended, "it was allowed to go on");
    silent.expect_end();
    // Whoever has become a session in time is not bounded by it.
    let mut client = Client::connect(server.address());
    Client::raw(server.address()).expect_end();
    client.send_close(1000);
    assert_eq!(client.read_frame().close().0, Some(1000));
}

#[test]
fn a_thousand_silent_and_dripping_connections_keep_nobody_waiting() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let target = Target::new();
    let server = Server::to(target.address());
    let silent: Vec<Client> = (0..900).map(|_| Client::raw(server.address())).collect();
    let mut dripping: Vec<Client> = (0..100).map(|_| Client::raw(server.address())).collect();
    for client in &mut dripping {
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n");
    }
    // Far less than the ten seconds that those have.
    let start = std::time::Instant::now();
    for _ in 0..20 {
        Client::connect(server.address());
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    drop((silent, dripping));
}
