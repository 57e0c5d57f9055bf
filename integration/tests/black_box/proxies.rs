//! Clients' addresses: heard from proxies, by the PROXY protocol and in headers of HTTP, and told to targets. haproxy and nginx as they
//! are, and peers that play them and forge what they say.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};

use integration::{
    Certificates, Client, ClientTls, DEADLINE, FAST, Handshake, Scratch, Server, Target,
    accept_tls, reset, run_to_end, text, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::logs::{listening_target, stop};
use crate::service::{ends, with_connection};
use crate::wrapping::wrap_script;

/// Where the proxy is.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// Another proxy, in front of that.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 4, 4);
/// Where somebody is who is believed nothing.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);

/// Believes the proxies.
const TRUSTING: [&str; 2] = ["--trusted-proxy", "127.0.0.3,127.0.4.0/24"];

/// Headers that say that the client is 192.0.2.1, port 50000, and has connected to 198.51.100.2, port 80.
const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 80\r\n";
const BLOCK: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\xc3\x50\0\x50";
/// The same with a TLV that nobody knows.
const EXTENDED: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\xc0\0\x02\x01\xc6\x33\x64\x02\xc3\x50\0\x50\xee\0\x02ab";
/// A header that says that the connection is the proxy's own.
const OWN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// A bridge that believes the proxies.
fn bridge(target: SocketAddr, options: &[&str]) -> Server {
    Server::with(&[&TRUSTING, options, &[&target.to_string()]].concat())
}

/// One whose proxies send a header.
fn behind_header(target: SocketAddr, options: &[&str]) -> Server {
    bridge(target, &[&["--accept-proxy-protocol"], options].concat())
}

/// A session from the proxy, which sends all of this at once.
fn session(server: &Server, header: &[u8], handshake: &Handshake) -> Client {
    let mut client = Client::from_host(PROXY, server.address());
    client.request(&[header, &handshake.bytes()].concat());
    assert_eq!(client.status(), "101", "{}", client.response);
    client
}

fn close(client: &mut Client) {
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
}

/// The addresses that lines of a log begin with.
fn peers(log: &str) -> BTreeSet<&str> {
    let peers = log.lines().filter_map(|line| line.split_once(" - - ["));
    peers.map(|(peer, _)| peer).collect()
}

/// Stops a server, and checks that every line of its log about a connection begins with one of these addresses, and each of them does so.
fn only(server: &mut Server, expected: &[&str]) -> String {
    let log = stop(server);
    assert_eq!(peers(&log), expected.iter().copied().collect(), "{log}");
    log
}

#[test]
fn a_header_of_a_trusted_proxy_says_whose_connection_it_is() {
    for header in [LINE, BLOCK, EXTENDED] {
        let target = Target::new();
        let mut server = behind_header(target.address(), &[]);
        let mut client = session(&server, header, &Handshake::default());
        let mut peer = target.accept();
        client.send_binary(b"hello");
        peer.read_exact(&mut [0; 5]).unwrap();
        peer.write_all(b"hello, you").unwrap();
        client.read_binary(10);
        close(&mut client);
        drop(peer);
        // Somebody else is who it is.
        let mut client = Client::from_host(STRANGER, server.address());
        client.request(&Handshake::default().bytes());
        assert_eq!(client.status(), "101");
        drop(target.accept());
        close(&mut client);
        let log = only(&mut server, &["192.0.2.1", "127.0.0.5"]);
        assert!(
            log.contains("] 192.0.2.1: Plain non-SSL (ws://) WebSocket"),
            "{log}"
        );
    }
}

#[test]
fn a_proxy_may_not_know_or_speak_for_itself() {
    let target = listening_target();
    for header in [
        OWN,
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ::1 ::1 1 1\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0",
    ] {
        let mut server = behind_header(target, &[]);
        close(&mut session(&server, header, &Handshake::default()));
        // Whoever is at the other end cannot speak for the proxy.
        let forged = Handshake::default().with("X-Forwarded-For: 6.6.6.6");
        close(&mut session(&server, header, &forged));
        only(&mut server, &["127.0.0.3"]);
    }
}

#[test]
fn a_header_may_come_in_any_pieces_and_nothing_behind_it_is_lost() {
    let target = Target::new();
    let server = behind_header(target.address(), &[]);
    let frame = integration::frame(0x82, b"what comes at once");
    for header in [LINE, EXTENDED] {
        let whole = [header, &Handshake::default().bytes(), &frame].concat();
        let check = |client: &mut Client| {
            client.read_head();
            assert_eq!(client.status(), "101");
            let mut peer = target.accept();
            let mut payload = [0; 18];
            peer.read_exact(&mut payload).unwrap();
            assert_eq!(&payload, b"what comes at once");
            close(client);
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        };
        for split in 1..whole.len() {
            let mut client = Client::from_host(PROXY, server.address());
            client.send(&whole[..split]);
            client.send(&whole[split..]);
            check(&mut client);
        }
        let mut client = Client::from_host(PROXY, server.address());
        for byte in whole {
            client.send(&[byte]);
        }
        check(&mut client);
    }
}

#[test]
fn a_trusted_proxy_that_breaks_the_rules_is_refused_with_one_line() {
    let target = Target::new();
    let long = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", &[7; 60_000][..]].concat();
    let request = Handshake::default().bytes();
    let absent = "it begins without a PROXY header, which --accept-proxy-protocol wants of every --trusted-proxy \
                  (haproxy: send-proxy-v2)";
    for (start, why) in [
        (&request[..], absent),
        (b"\x16\x03\x01\0\x05hello", absent),
        (b"\0", absent),
        (b"PROXY TCP4 nonsense\r\n", "its PROXY header is malformed"),
        (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n\n",
            "its PROXY header is malformed",
        ),
        (
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
            "its PROXY header is malformed",
        ),
        (
            &[b"PROXY UNKNOWN", &[b' '; 100][..]].concat(),
            "its PROXY header is too long",
        ),
        (&long, "its PROXY header is too long"),
    ] {
        let mut server = behind_header(target.address(), &[]);
        let mut client = Client::from_host(PROXY, server.address());
        client.send(start);
        client.expect_end();
        let log = only(&mut server, &["127.0.0.3"]);
        assert!(
            log.contains(&format!("] the proxy is refused: {why}\n")),
            "{why}: {log}"
        );
        assert_eq!(log.matches("127.0.0.3 - - [").count(), 1, "{log}");
    }
    assert!(!target.has_visitor());
}

#[test]
fn a_header_that_is_late_or_breaks_off_is_refused() {
    let target = listening_target();
    for part in [&b""[..], &LINE[..LINE.len() - 1], &BLOCK[..20], &BLOCK[..3]] {
        let mut server = behind_header(target, &["--handshake-timeout", "0.3"]);
        let mut client = Client::from_host(PROXY, server.address());
        client.send(part);
        client.expect_end();
        let line = server.wait_for_line("the proxy is refused: ");
        assert!(
            line.ends_with("its PROXY header did not come in time"),
            "{line}"
        );
        let mut server = behind_header(target, &["-v"]);
        let mut client = Client::from_host(PROXY, server.address());
        client.send(part);
        client.stream().shutdown(Shutdown::Write).unwrap();
        client.expect_end();
        let line = server.wait_for_line("the proxy is refused: ");
        let why = if part.is_empty() {
            "it ended without a word"
        } else {
            "it ended within its PROXY header"
        };
        assert!(line.ends_with(why), "{line}");
    }
    // Whoever only looks whether somebody listens is not worth a line.
    let mut server = behind_header(target, &[]);
    let mut client = Client::from_host(PROXY, server.address());
    client.stream().shutdown(Shutdown::Write).unwrap();
    client.expect_end();
    only(&mut server, &[]);
    let mut server = behind_header(target, &["-v"]);
    reset(Client::from_host(PROXY, server.address()).stream());
    server.wait_for_line("127.0.0.3 - - [");
    let log = only(&mut server, &["127.0.0.3"]);
    assert!(
        log.contains("] the proxy is refused: it ended without a word\n"),
        "{log}"
    );
}

#[test]
fn nothing_that_a_stranger_says_of_itself_counts() {
    let target = listening_target();
    for options in [&["--accept-proxy-protocol"][..], &[]] {
        let mut server = bridge(target, options);
        for header in [LINE, BLOCK] {
            let mut client = Client::from_host(STRANGER, server.address());
            client.request(&[header, &Handshake::default().bytes()].concat());
            assert_eq!(client.status(), "400", "{}", client.response);
        }
        let forged = Handshake::default()
            .with("X-Forwarded-For: 192.0.2.1")
            .with("Forwarded: for=192.0.2.1");
        let mut client = Client::from_host(STRANGER, server.address());
        client.request(&forged.bytes());
        assert_eq!(client.status(), "101");
        close(&mut client);
        let log = only(&mut server, &["127.0.0.5"]);
        assert!(!log.contains("192.0.2.1"), "{log}");
    }
    // Nor does what comes behind a header count that does not name somebody who is believed.
    let mut server = behind_header(target, &[]);
    let forged = Handshake::default().with("X-Forwarded-For: 6.6.6.6");
    close(&mut session(&server, LINE, &forged));
    // A second one is no request.
    let mut client = Client::from_host(PROXY, server.address());
    client.request(&[LINE, b"PROXY TCP4 6.6.6.6 6.6.6.6 6 6\r\n", &forged.bytes()].concat());
    assert_eq!(client.status(), "400");
    only(&mut server, &["192.0.2.1"]);
    // Without --trusted-proxy nobody is believed.
    let mut server = Server::to(target);
    let mut client = Client::from_host(PROXY, server.address());
    client.request(&forged.bytes());
    close(&mut client);
    only(&mut server, &["127.0.0.3"]);
}

#[test]
fn headers_of_http_name_the_client_as_far_as_proxies_are_trusted() {
    let target = listening_target();
    for (lines, client) in [
        (&[][..], "127.0.0.3"),
        (&["X-Forwarded-For: 192.0.2.1"], "192.0.2.1"),
        (
            &["x-forwarded-for: 6.6.6.6, 192.0.2.1, 127.0.4.4"],
            "192.0.2.1",
        ),
        (
            &["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 192.0.2.1"],
            "192.0.2.1",
        ),
        (&["X-Forwarded-For: 192.0.2.1, unknown"], "127.0.0.3"),
        (&["X-Forwarded-For: 127.0.4.9"], "127.0.4.9"),
        (
            &["Forwarded: for=\"[2001:db8::1]:4711\";proto=https"],
            "2001:db8::1",
        ),
        (
            &["Forwarded: for=\"6.6.6.6, for=192.0.2.1, for=127.0.4.1"],
            "192.0.2.1",
        ),
        (&["Forwarded: for=::ffff:192.0.2.1"], "192.0.2.1"),
        (&["Forwarded: for=_hidden"], "127.0.0.3"),
        (
            &["Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.1"],
            "192.0.2.1",
        ),
    ] {
        let handshake = lines
            .iter()
            .fold(Handshake::default(), |handshake, line| handshake.with(line));
        let mut server = bridge(target, &[]);
        close(&mut session(&server, b"", &handshake));
        only(&mut server, &[client]);
        // The same behind a header that names the other proxy.
        let mut server = behind_header(target, &[]);
        let header = format!("PROXY TCP4 {OTHER} 127.0.0.1 5 80\r\n");
        close(&mut session(&server, header.as_bytes(), &handshake));
        let client = client.replace("127.0.0.3", "127.0.4.4");
        only(&mut server, &[&client]);
    }
}

#[test]
fn two_headers_that_name_different_clients_are_refused() {
    let target = Target::new();
    let web = Scratch::new().unwrap();
    let mut server = bridge(target.address(), &["--web", text(web.path())]);
    for (forwarded, other) in [
        ("for=6.6.6.6", "192.0.2.1"),
        ("for=192.0.2.1", "6.6.6.6"),
        ("for=unknown", "6.6.6.6"),
        ("for=\"", "192.0.2.1"),
    ] {
        let handshake = Handshake::default()
            .with(&format!("Forwarded: {forwarded}"))
            .with(&format!("X-Forwarded-For: {other}"));
        // By the way of plain upgrades, by that of others, and where it is no upgrade.
        for handshake in [
            handshake.clone(),
            handshake.clone().with("Expect: nothing"),
            handshake.without("Upgrade"),
        ] {
            let mut client = Client::from_host(PROXY, server.address());
            client.request(&handshake.bytes());
            assert_eq!(client.status(), "400", "{}", client.response);
            let body = client.read_body();
            assert_eq!(
                body,
                b"Bad Request: Forwarded and X-Forwarded-For name different clients\n"
            );
            client.expect_end();
            let line = server.wait_for_line("refused: ");
            assert!(line.starts_with("127.0.0.3 - - ["), "{line}");
            assert!(
                line.ends_with(
                    "refused: the Forwarded and X-Forwarded-For headers name different clients"
                ),
                "{line}"
            );
        }
    }
    only(&mut server, &["127.0.0.3"]);
    assert!(!target.has_visitor());
}

/// The addresses and connections of the events of this kind.
fn peers_and_connections(log: &str, event: &str) -> Vec<(String, u64)> {
    let objects = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("it is JSON"));
    let events = objects.filter(|object| object["event"] == event);
    let told = events.map(|object| {
        let peer = object["peer"].as_str().expect("it has a peer");
        (
            peer.to_owned(),
            object["connection"].as_u64().expect("it has a number"),
        )
    });
    told.collect()
}

#[test]
fn requests_of_different_clients_share_a_connection_of_their_proxy() {
    let target = listening_target();
    let web = Scratch::new().unwrap();
    fs::write(web.path().join("page"), "hello").unwrap();
    let mut server = bridge(target, &["--log-format=json", "--web", text(web.path())]);
    let mut client = Client::from_host(PROXY, server.address());
    for number in [1, 2] {
        let line =
            format!("GET /page HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.{number}\r\n\r\n");
        client.request(line.as_bytes());
        assert_eq!(client.read_body(), b"hello");
    }
    client.request(
        &Handshake::default()
            .with("X-Forwarded-For: 192.0.2.3")
            .bytes(),
    );
    assert_eq!(client.status(), "101");
    close(&mut client);
    let log = stop(&mut server);
    let is = |event: &str, expected: &[(&str, u64)]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|(peer, number)| ((*peer).to_owned(), *number))
            .collect();
        assert_eq!(peers_and_connections(&log, event), expected, "{log}");
    };
    is("request", &[("192.0.2.1", 1), ("192.0.2.2", 1)]);
    is("session_start", &[("192.0.2.3", 1)]);
    is("session_end", &[("192.0.2.3", 1)]);
}

#[test]
fn plugins_judge_the_client_and_not_its_proxy() {
    let target = listening_target();
    let script = "import json, sys\n\
        for line in sys.stdin:\n\
        \x20   asked = json.loads(line)\n\
        \x20   print(json.dumps({'id': asked['id'], 'allow': asked['peer'] == '192.0.2.1'}), flush=True)\n";
    let directory = Scratch::new().unwrap();
    let program = directory.path().join("judge.py");
    fs::write(&program, script).unwrap();
    let source = format!("python3 {}", program.display());
    let web = ["--web", text(directory.path()), "--web-auth"];
    let options = [
        &["--auth-plugin", "Exec", "--auth-source", &source][..],
        &web,
    ]
    .concat();
    let behind_http = bridge(target, &options);
    let behind_header = behind_header(target, &options);
    for (server, header, line, status) in [
        (&behind_http, &b""[..], "X-Forwarded-For: 192.0.2.1", "101"),
        (
            &behind_http,
            b"",
            "X-Forwarded-For: 192.0.2.1, 192.0.2.2",
            "403",
        ),
        (&behind_http, b"", "Nothing: 1", "403"),
        (&behind_header, LINE, "Nothing: 1", "101"),
        (&behind_header, OWN, "Nothing: 1", "403"),
    ] {
        let handshake = Handshake::default().with(line);
        for (handshake, status) in [
            (handshake.clone(), status),
            (handshake.clone().with("Expect: nothing"), status),
            (
                handshake
                    .without("Upgrade")
                    .request_line("GET /judge.py HTTP/1.1"),
                if status == "101" { "200" } else { status },
            ),
        ] {
            let mut client = Client::from_host(PROXY, server.address());
            client.request(&[header, &handshake.bytes()].concat());
            assert_eq!(client.status(), status, "{line}: {}", client.response);
        }
    }
}

#[test]
fn tls_begins_behind_the_header() {
    let target = Target::new();
    let certificates = Certificates::new();
    let identity = certificates.host("host", FAST, None);
    let [option, certificate, key_option, key] = identity.options();
    let options = [option, certificate, key_option, key, "--ssl-only"];
    let mut server = behind_header(target.address(), &options);
    for header in [LINE, BLOCK] {
        let mut client = Client::from_host(PROXY, server.address());
        client.send(header);
        let trust = ClientTls::trusting(&identity.certificate);
        let mut client = client.start_tls(&trust).expect("there is a handshake");
        client.request(&Handshake::default().bytes());
        assert_eq!(client.status(), "101");
        target.accept().write_all(b"hello").unwrap();
        assert_eq!(client.read_binary(5), b"hello");
        close(&mut client);
    }
    only(&mut server, &["192.0.2.1"]);
}

#[test]
fn proxies_come_by_unix_sockets_as_well() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("socket");
    let target = Target::new();
    let address = target.address().to_string();
    for (option, header, line) in [
        ("--accept-proxy-protocol", LINE, "Nothing: 1"),
        ("--verbose", b"", "X-Forwarded-For: 192.0.2.1"),
    ] {
        let listener = UnixListener::bind(&path).unwrap();
        let arguments = [
            "--trusted-proxy",
            "10.0.0.0/8",
            "--trusted-proxy=unix",
            option,
            &address,
        ];
        let mut server = Server::activated(vec![listener.into()], &[], &arguments);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let handshake = Handshake::default().with(line);
        stream
            .write_all(&[header, &handshake.bytes()].concat())
            .unwrap();
        let mut start = [0; 13];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 101 ");
        drop(stream);
        drop(target.accept());
        server.wait_for_line("192.0.2.1 - - [");
        only(&mut server, &["192.0.2.1"]);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn the_one_connection_of_inetd_may_begin_with_a_header() {
    let directory = Scratch::new().unwrap();
    let log = directory.path().join("log");
    let target = Target::new();
    let address = target.address().to_string();
    let options = [
        "--trusted-proxy",
        "127.0.0.1",
        "--accept-proxy-protocol",
        "--log-file",
        text(&log),
    ];
    let (mut child, mut client) =
        with_connection(&[&options[..], &["--proxy-protocol=v1", &address]].concat());
    client.request(&[LINE, &Handshake::default().bytes()].concat());
    assert_eq!(client.status(), "101");
    expect_first(&mut target.accept(), LINE);
    close(&mut client);
    assert_eq!(ends(&mut child), Some(0));
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(peers(&log), BTreeSet::from(["192.0.2.1"]), "{log}");
}

/// Reads what a target is told first, which is this.
fn expect_first(target: &mut impl Read, expected: &[u8]) {
    let mut first = vec![0; expected.len()];
    target.read_exact(&mut first).unwrap();
    assert_eq!(first, expected, "{}", String::from_utf8_lossy(&first));
}

#[test]
fn a_target_is_told_of_the_client_before_anything_else() {
    let target = Target::new();
    for version in ["v1", "v2"] {
        let option = format!("--proxy-protocol={version}");
        let server = behind_header(target.address(), &[&option]);
        let header = match version {
            "v1" => LINE,
            _ => BLOCK,
        };
        // It may be the target that speaks first.
        let mut client = session(&server, OWN, &Handshake::default());
        let mut peer = target.accept();
        let (source, port) = (
            client.stream().local_addr().unwrap(),
            server.address().port(),
        );
        if version == "v1" {
            let own = format!(
                "PROXY TCP4 127.0.0.3 127.0.0.1 {} {port}\r\n",
                source.port()
            );
            expect_first(&mut peer, own.as_bytes());
        } else {
            let ports = [source.port().to_be_bytes(), port.to_be_bytes()].concat();
            let own = [&BLOCK[..16], &[127, 0, 0, 3, 127, 0, 0, 1], &ports].concat();
            expect_first(&mut peer, &own);
        }
        peer.write_all(b"welcome").unwrap();
        assert_eq!(client.read_binary(7), b"welcome");
        client.send_binary(b"hello");
        expect_first(&mut peer, b"hello");
        close(&mut client);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        // What a proxy has said is passed on; what comes at once comes behind it.
        let mut client = Client::from_host(PROXY, server.address());
        let frame = integration::frame(0x82, b"at once");
        client.request(&[EXTENDED, &Handshake::default().bytes(), &frame].concat());
        let mut peer = target.accept();
        expect_first(&mut peer, &[header, b"at once"].concat());
        close(&mut client);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_target_is_told_as_much_as_is_known() {
    let directory = Scratch::new().unwrap();
    let [path, target_path] = ["socket", "target"].map(|name| directory.path().join(name));
    let target = Target::new();
    let server = bridge(target.address(), &["--proxy-protocol=v1"]);
    let port = server.address().port();
    for (named, family, client, destination) in [
        ("192.0.2.1", "TCP4", "192.0.2.1", "127.0.0.1"),
        ("192.0.2.1:4711", "TCP4", "192.0.2.1", "127.0.0.1"),
        ("2001:db8::1", "TCP6", "2001:db8::1", "::ffff:7f00:1"),
    ] {
        let handshake = Handshake::default().with(&format!("X-Forwarded-For: {named}"));
        let mut client_of = session(&server, b"", &handshake);
        let line = format!("PROXY {family} {client} {destination} 0 {port}\r\n");
        expect_first(&mut target.accept(), line.as_bytes());
        close(&mut client_of);
    }
    // By unix sockets there and back.
    let unix_target = UnixListener::bind(&target_path).unwrap();
    for (version, line, told) in [
        ("v1", "Nothing: 1", &b"PROXY UNKNOWN\r\n"[..]),
        ("v2", "Nothing: 1", b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"),
        (
            "v1",
            "X-Forwarded-For: 192.0.2.1",
            b"PROXY TCP4 192.0.2.1 0.0.0.0 0 0\r\n",
        ),
    ] {
        let listener = UnixListener::bind(&path).unwrap();
        let options = [
            "--trusted-proxy=unix",
            "--proxy-protocol",
            version,
            "--unix-target",
        ];
        let arguments = [&options[..], &[text(&target_path)]].concat();
        let _server = Server::activated(vec![listener.into()], &[], &arguments);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
            .write_all(&Handshake::default().with(line).bytes())
            .unwrap();
        let (mut peer, _) = unix_target.accept().unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        expect_first(&mut peer, told);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_target_that_speaks_tls_is_told_before_that() {
    let target = Target::new();
    let certificates = Certificates::new();
    let identity = certificates.host("host", FAST, None);
    let trust = ["--target-cafile", text(&identity.certificate)];
    let options = [&["--ssl-target", "--proxy-protocol=v2"][..], &trust].concat();
    let server = behind_header(target.address(), &options);
    // Header and hello are one segment, unless this machine has too much to do: the system waits 0.2 s for what follows.
    let is_one = (0..20).any(|_| {
        let mut client = session(&server, BLOCK, &Handshake::default());
        let mut stream = target.accept();
        wait_until("the hello", || {
            let length = stream.peek(&mut [0; 4096]).unwrap();
            (length > BLOCK.len()).then_some(())
        });
        let is_one = data_segments(&stream) == 1;
        expect_first(&mut stream, BLOCK);
        std::thread::scope(|scope| {
            scope.spawn(|| accept_tls(stream, &identity).write_all(b"welcome").unwrap());
            assert_eq!(client.read_binary(7), b"welcome");
        });
        close(&mut client);
        is_one
    });
    assert!(is_one);
}

/// How many segments with data a connection has received, as the system's `ss` tells.
fn data_segments(stream: &TcpStream) -> u32 {
    let ends = [stream.local_addr().unwrap(), stream.peer_addr().unwrap()];
    let [local, peer] = ends.map(|end| end.to_string());
    let output = Command::new("ss")
        .args(["-Htni", "src", &local, "dst", &peer])
        .output()
        .expect("ss starts");
    let said = String::from_utf8(output.stdout).expect("ss prints text");
    let mut words = said.split_whitespace();
    let count = words.find_map(|word| word.strip_prefix("data_segs_in:"));
    count
        .and_then(|count| count.parse().ok())
        .expect("ss tells it")
}

#[test]
fn a_wrapped_program_is_told_as_well() {
    let server = wrap_script(&["--proxy-protocol", "v1"], "echo", "PORT");
    for _ in 0..2 {
        let mut client = Client::from_host(STRANGER, server.address());
        client.request(&Handshake::default().bytes());
        assert_eq!(client.status(), "101");
        let source = client.stream().local_addr().unwrap().port();
        let port = server.address().port();
        let line = format!("PROXY TCP4 127.0.0.5 127.0.0.1 {source} {port}\r\n");
        // It greets with its number, then echoes.
        let mut said = Vec::new();
        while !said.ends_with(line.as_bytes()) {
            assert!(said.len() < 100, "{}", String::from_utf8_lossy(&said));
            said.extend(client.read_frame().payload);
        }
        close(&mut client);
    }
}

#[test]
fn proxies_are_named_by_addresses_and_networks() {
    for (arguments, said) in [
        (
            &["--accept-proxy-protocol"][..],
            "error: --accept-proxy-protocol needs --trusted-proxy, ",
        ),
        (
            &["--trusted-proxy", "localhost"],
            "invalid value 'localhost' for '--trusted-proxy <CIDR>': neither an address",
        ),
        (
            &["--trusted-proxy", "10.0.0.0/33"],
            "invalid value '10.0.0.0/33' for '--trusted-proxy <CIDR>'",
        ),
        (
            &["--trusted-proxy", "10.0.0.1,,10.0.0.2"],
            "'--trusted-proxy <CIDR>'",
        ),
        (
            &["--trusted-proxy", "10.0.0.1,x"],
            "invalid value 'x' for '--trusted-proxy <CIDR>'",
        ),
        (
            &["--proxy-protocol", "v3"],
            "invalid value 'v3' for '--proxy-protocol <VERSION>'",
        ),
    ] {
        let output = run_to_end(&[arguments, &["0", ":1"]].concat());
        let said_really = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said_really}");
        assert!(said_really.contains(said), "{said_really}");
    }
}

/// A proxy of the real ones, ended by a signal at the end of the test.
pub(crate) struct Proxy {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    directory: Scratch,
}

impl Proxy {
    /// haproxy, which listens on descriptor 3 and has this configuration beside; `DIRECTORY` in it stands for its own directory.
    pub(crate) fn haproxy(configuration: &str) -> Self {
        let defaults = "global\n  stats socket DIRECTORY/stats\ndefaults\n  timeout connect 10s\n  timeout client 30s\n  \
                        timeout server 30s\n  timeout tunnel 1h\n";
        Self::start(&["/usr/sbin/haproxy", "-db", "-f"], |_| {
            format!("{defaults}{configuration}")
        })
    }

    /// nginx with this in its part for HTTP; `LISTEN` in it stands for where it listens.
    fn nginx(configuration: &str) -> Self {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .unwrap()
            .unwrap()
            .name;
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path DIRECTORY/{name};\n"))
            .concat();
        Self::start(
            &["/usr/sbin/nginx", "-e", "DIRECTORY/errors", "-c"],
            |address| {
                let configuration = configuration.replace("LISTEN", &address.to_string());
                format!(
                    "user {user};\ndaemon off;\npid DIRECTORY/pid;\nevents {{}}\nhttp {{\n{temporary}\
                 access_log off;\n{configuration}}}\n"
                )
            },
        )
    }

    /// Starts a proxy by a command that is to be followed by the name of its configuration.
    fn start(words: &[&str], configuration: impl FnOnce(SocketAddr) -> String) -> Self {
        let directory = Scratch::new().unwrap();
        let name = text(directory.path());
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().unwrap();
        let file = directory.path().join("configuration");
        fs::write(&file, configuration(address).replace("DIRECTORY", name)).unwrap();
        let child = Command::new("sh")
            .args(["-c", "exec 3<&0 </dev/null; exec \"$@\"", "sh"])
            .args(words.iter().map(|word| word.replace("DIRECTORY", name)))
            .arg(file)
            // By this nginx takes sockets over from an older one.
            .env("NGINX", "3;")
            .stdin(OwnedFd::from(listener))
            .spawn()
            .expect("sh starts");
        Self {
            child,
            address,
            directory,
        }
    }

    /// What haproxy answers to a command, once that has `text` in it.
    pub(crate) fn ask(&self, command: &str, text: &str) -> String {
        wait_until("haproxy to say so", || {
            let mut stream = UnixStream::connect(self.directory.path().join("stats")).ok()?;
            stream.write_all(format!("{command}\n").as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.contains(text).then_some(answer)
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        _ = kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        );
        _ = self.child.wait();
    }
}

/// A session from the stranger's address, through a proxy.
fn session_through(proxy: &Proxy) -> Client {
    let mut client = Client::from_host(STRANGER, proxy.address);
    client.request(&Handshake::default().bytes());
    assert_eq!(client.status(), "101", "{}", client.response);
    client
}

#[test]
fn haproxy_in_front_tells_of_its_clients() {
    let target = Target::new();
    for (mode, words) in [
        ("tcp", "send-proxy"),
        ("tcp", "send-proxy-v2"),
        ("http", "send-proxy-v2 proxy-v2-options crc32c,unique-id"),
        ("tcp", "send-proxy-v2-ssl-cn"),
    ] {
        let mut server = behind_header(target.address(), &[]);
        let address = server.address();
        let proxy = Proxy::haproxy(&format!(
            "listen it\n  bind fd@3\n  mode {mode}\n  unique-id-format %ci\n  server bridge {address} source 127.0.0.3 {words}\n"
        ));
        let mut client = session_through(&proxy);
        target.accept().write_all(b"welcome").unwrap();
        assert_eq!(client.read_binary(7), b"welcome");
        close(&mut client);
        only(&mut server, &["127.0.0.5"]);
    }
}

#[test]
fn haproxy_in_front_passes_tls_on_behind_its_header() {
    let target = listening_target();
    let certificates = Certificates::new();
    let identity = certificates.host("host", FAST, None);
    let mut server = behind_header(target, &identity.options());
    let address = server.address();
    let proxy = Proxy::haproxy(&format!(
        "listen it\n  bind fd@3\n  mode tcp\n  server bridge {address} source 127.0.0.3 send-proxy-v2\n"
    ));
    let trust = ClientTls::trusting(&identity.certificate);
    let client = Client::from_host(STRANGER, proxy.address);
    let mut client = client.start_tls(&trust).expect("there is a handshake");
    client.request(&Handshake::default().bytes());
    assert_eq!(client.status(), "101");
    close(&mut client);
    let log = only(&mut server, &["127.0.0.5"]);
    assert!(
        log.contains("SSL/TLS (wss://) WebSocket connection"),
        "{log}"
    );
}

#[test]
fn the_health_checks_of_haproxy_are_its_own() {
    let target = listening_target();
    for words in ["send-proxy", "send-proxy-v2"] {
        let mut server = behind_header(target, &["-v"]);
        let address = server.address();
        let proxy = Proxy::haproxy(&format!(
            "listen it\n  bind fd@3\n  mode http\n  option httpchk GET /healthy\n  http-check expect status 405\n  \
             server bridge {address} source 127.0.0.3 {words} check check-send-proxy inter 50 init-addr none\n"
        ));
        for _ in 0..3 {
            let line = server.wait_for_line("\"GET /healthy HTTP/1.");
            assert!(line.starts_with("127.0.0.3 - - ["), "{line}");
        }
        // L7 OK, in the words of its table.
        proxy.ask("show stat", "L7OK");
        close(&mut session_through(&proxy));
        drop(proxy);
        only(&mut server, &["127.0.0.3", "127.0.0.5"]);
    }
}

#[test]
fn haproxy_behind_learns_of_clients() {
    let target = Target::new();
    // It tells its own target what it was told, by a line that we can read.
    let address = target.address();
    let proxy = Proxy::haproxy(&format!(
        "listen it\n  bind fd@3 accept-proxy\n  mode tcp\n  server target {address} send-proxy\n"
    ));
    for version in ["v1", "v2"] {
        let arguments = [
            &TRUSTING[..],
            &["--proxy-protocol", version, "--accept-proxy-protocol"],
        ]
        .concat();
        let server = Server::with(&[&arguments[..], &[&proxy.address.to_string()]].concat());
        let six = b"PROXY TCP6 2001:db8::1 2001:db8::2 50000 80\r\n";
        for header in [LINE, six] {
            let mut client = session(&server, header, &Handshake::default());
            let mut peer = target.accept();
            expect_first(&mut peer, header);
            peer.write_all(b"welcome").unwrap();
            assert_eq!(client.read_binary(7), b"welcome");
            close(&mut client);
        }
        let mut client = session(&server, OWN, &Handshake::default());
        let source = client.stream().local_addr().unwrap().port();
        let port = server.address().port();
        let line = format!("PROXY TCP4 127.0.0.3 127.0.0.1 {source} {port}\r\n");
        expect_first(&mut target.accept(), line.as_bytes());
        close(&mut client);
        // A client of IPv6 that has come to an address of IPv4.
        let server = bridge(proxy.address, &["--proxy-protocol", version]);
        let named = Handshake::default().with("X-Forwarded-For: 2001:db8::1");
        let mut client = session(&server, b"", &named);
        let port = server.address().port();
        let line = format!("PROXY TCP6 2001:db8::1 ::ffff:127.0.0.1 0 {port}\r\n");
        expect_first(&mut target.accept(), line.as_bytes());
        close(&mut client);
    }
}

#[test]
fn nginx_in_front_names_its_clients() {
    let target = listening_target();
    let web = Scratch::new().unwrap();
    fs::write(web.path().join("page"), "hello").unwrap();
    let mut server = bridge(target, &["--log-format=json", "--web", text(web.path())]);
    let address = server.address();
    let proxy = Proxy::nginx(&format!(
        "upstream bridge {{ server {address}; keepalive 1; }}\n\
         map $http_upgrade $connection_header {{ default upgrade; '' ''; }}\n\
         server {{\n listen LISTEN;\n location / {{\n proxy_pass http://bridge;\n proxy_bind 127.0.0.3;\n\
         proxy_http_version 1.1;\n proxy_set_header Host $http_host;\n proxy_set_header Upgrade $http_upgrade;\n\
         proxy_set_header Connection $connection_header;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n }}\n}}\n"
    ));
    let others = [Ipv4Addr::new(127, 0, 0, 6), Ipv4Addr::new(127, 0, 0, 7)];
    for host in others {
        let mut client = Client::from_host(host, proxy.address);
        client.request(b"GET /page HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n");
        assert_eq!(client.status(), "200", "{}", client.response);
        assert_eq!(client.read_body(), b"hello");
    }
    let mut client = Client::from_host(STRANGER, proxy.address);
    client.request(
        &Handshake::default()
            .with("X-Forwarded-For: 6.6.6.6")
            .bytes(),
    );
    assert_eq!(client.status(), "101", "{}", client.response);
    close(&mut client);
    // It knows nothing of the other header, and passes on what anybody says there.
    let mut client = Client::from_host(STRANGER, proxy.address);
    client.request(&Handshake::default().with("Forwarded: for=6.6.6.6").bytes());
    assert_eq!(client.status(), "400", "{}", client.response);
    drop(client);
    let log = stop(&mut server);
    let requests = peers_and_connections(&log, "request");
    let [first, second, refused] = &requests[..] else {
        panic!("{log}")
    };
    assert_eq!(
        [&first.0[..], &second.0, &refused.0],
        ["127.0.0.6", "127.0.0.7", "127.0.0.3"]
    );
    assert_eq!(first.1, second.1, "nginx has kept its connection: {log}");
    let sessions = peers_and_connections(&log, "session_start");
    assert_eq!(sessions[0].0, "127.0.0.5", "{log}");
    assert!(!log.contains("6.6.6.6"), "{log}");
}
