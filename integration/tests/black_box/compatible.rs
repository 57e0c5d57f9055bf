//! What clients and scripts rely on, and what the Python original does as well.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use integration::{
    Certificates, Client, ClientTls, DEADLINE, FAST, Handshake, Scratch, Server, Target,
    close_payload, frame, over_tls, pattern, session, text, wait_until,
};

#[test]
fn an_upgrade_gets_the_accept_key_of_the_rfc() {
    let target = Target::new();
    let server = Server::to(target.address());
    let client = Client::connect(server.address());
    assert_eq!(
        client.header("Sec-WebSocket-Accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(
        client.header("Upgrade").map(str::to_lowercase).as_deref(),
        Some("websocket")
    );
    assert_eq!(client.header("Connection"), Some("Upgrade"));
    assert_eq!(client.header("Sec-WebSocket-Protocol"), None);
    assert!(
        client
            .header("Server")
            .is_some_and(|server| server.starts_with("WebSockify"))
    );
}

#[test]
fn headers_may_have_any_case_and_list_more_than_one_thing() {
    let target = Target::new();
    let server = Server::to(target.address());
    let handshake = Handshake::default()
        .replace("Upgrade", "WebSocket")
        .replace("Connection", "keep-alive, Upgrade")
        .with("sec-websocket-protocol: binary");
    let client = Client::with(server.address(), &handshake);
    assert_eq!(client.header("Sec-WebSocket-Protocol"), Some("binary"));
}

#[test]
fn versions_8_and_7_are_spoken_too() {
    let target = Target::new();
    let server = Server::to(target.address());
    for version in ["8", "7"] {
        Client::with(
            server.address(),
            &Handshake::default().replace("Sec-WebSocket-Version", version),
        );
    }
}

#[test]
fn a_plain_request_without_web_is_405() {
    let target = Target::new();
    let server = Server::to(target.address());
    for method in ["GET", "HEAD"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
        let client = Client::ask(server.address(), request.as_bytes());
        assert!(
            client.response.starts_with("HTTP/1.1 405 "),
            "{}",
            client.response
        );
        assert!(
            client.response.contains("\r\nServer: WebSockify"),
            "{}",
            client.response
        );
    }
}

#[test]
fn bytes_pass_both_ways_in_binary_messages() {
    let (_server, mut client, mut peer) = session();
    for length in [1, 125, 126, 127, 65535, 65536, 200_000] {
        let bytes = pattern(length);
        client.send_binary(&bytes);
        let mut arrived = vec![0; length];
        std::io::Read::read_exact(&mut peer, &mut arrived).unwrap();
        assert!(arrived == bytes, "{length} bytes up");
        peer.write_all(&bytes).unwrap();
        assert!(client.read_binary(length) == bytes, "{length} bytes down");
    }
}

#[test]
fn fragments_and_empty_messages_are_a_stream_of_bytes() {
    let (_server, mut client, mut peer) = session();
    for frame in [
        frame(0x02, b"one"),
        frame(0x00, b""),
        frame(0x80, b"two"),
        frame(0x82, b""),
        frame(0x82, b"three"),
    ] {
        client.send(&frame);
    }
    let mut arrived = [0; 11];
    std::io::Read::read_exact(&mut peer, &mut arrived).unwrap();
    assert_eq!(&arrived, b"onetwothree");
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    let (_server, mut client, _peer) = session();
    for payload in [&b""[..], b"payload", &[7; 125]] {
        client.send(&frame(0x89, payload));
        let pong = client.read_frame();
        assert_eq!((pong.first, &pong.payload[..]), (0x8a, payload));
    }
}

#[test]
fn a_close_is_echoed_and_the_target_reads_the_end_after_all_data() {
    let (_server, mut client, mut peer) = session();
    client.send_binary(b"last words");
    client.send(&frame(0x88, &close_payload(1000, b"bye")));
    assert_eq!(client.read_frame().close().0, Some(1000));
    let mut arrived = Vec::new();
    std::io::Read::read_to_end(&mut peer, &mut arrived).unwrap();
    assert_eq!(arrived, b"last words");
}

#[test]
fn a_target_that_ends_closes_the_client_with_1000() {
    let (_server, mut client, mut peer) = session();
    peer.write_all(b"last words").unwrap();
    drop(peer);
    let (bytes, code, reason) = client.read_to_close();
    assert_eq!(
        (&bytes[..], code, &reason[..]),
        (&b"last words"[..], Some(1000), "Target closed")
    );
}

#[test]
fn a_target_that_cannot_be_reached_closes_the_client_with_1011() {
    // A port on which nobody listens, kept by a socket that is bound only.
    let (_guard, address) = crate::session::nobody_listens();
    let mut server = Server::to(address);
    let mut client = Client::connect(server.address());
    let (_, code, reason) = client.read_to_close();
    assert_eq!(
        (code, &reason[..]),
        (Some(1011), "Failed to connect to downstream server")
    );
    server.wait_for_line(&format!("connecting to: {address}"));
}

#[test]
fn a_text_frame_is_refused_with_1003() {
    let (_server, mut client, _peer) = session();
    client.send(&frame(0x81, b"text"));
    let (code, reason) = client.read_frame().close();
    assert_eq!(
        (code, &reason[..]),
        (Some(1003), "Unsupported: Text frames are not supported")
    );
}

#[test]
fn an_unmasked_frame_is_a_protocol_error() {
    let (_server, mut client, _peer) = session();
    client.send(&[0x82, 3, b'b', b'a', b'd']);
    assert_eq!(client.read_frame().close().0, Some(1002));
}

#[test]
fn the_log_has_the_lines_that_scripts_wait_for() {
    let target = Target::new();
    let mut server = Server::to(target.address());
    server.wait_for_line("WebSocket server settings:");
    let (support, kind) = if over_tls() {
        ("SSL/TLS support", "SSL/TLS (wss://)")
    } else {
        ("No SSL/TLS support (no cert file)", "Plain non-SSL (ws://)")
    };
    server.wait_for_line(&format!("  - {support}"));
    let target_address = target.address();
    server.wait_for_line(&format!("  - proxying from inetd to {target_address}"));
    let _client = Client::connect(server.address());
    let line = server.wait_for_line(&format!("127.0.0.1: {kind} WebSocket connection"));
    assert_eq!(line.split(' ').next(), Some("127.0.0.1"));
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    server.wait_for_line("127.0.0.1: Path: '/path?query'");
    let line = server.wait_for_line("connecting to: ");
    assert!(
        line.starts_with("127.0.0.1 - - [") && line.ends_with(&target_address.to_string()),
        "{line}"
    );
}

#[test]
fn a_log_file_gets_what_stderr_gets_behind_what_it_has() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("log");
    std::fs::write(&file, "before\n").unwrap();
    let arguments = ["--log-f", text(&file), &target.address().to_string()];
    let mut server = Server::with(&arguments);
    let _client = Client::connect(server.address());
    let line = server.wait_for_line("connecting to: ");
    let log = wait_until("the line in the file", || {
        let log = std::fs::read_to_string(&file).unwrap();
        log.ends_with(&format!("{line}\n")).then_some(log)
    });
    assert!(
        log.starts_with("before\nWebSocket server settings:\n  - "),
        "{log}"
    );
}

#[test]
fn syslog_gets_lines_as_both_standards_tell() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("log");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    for (options, head) in [
        (&["--syslog"][..], "1 "),
        (&["--legacy-syslog", "--syslog"], "websockify["),
    ] {
        let target = Target::new();
        let address = target.address().to_string();
        let arguments = [options, &[text(&path), &address]].concat();
        let server = Server::with(&arguments);
        let mut buffer = [0; 1 << 12];
        let length = socket.recv(&mut buffer).unwrap();
        let message = std::str::from_utf8(&buffer[..length]).unwrap();
        let (priority, rest) = message[1..].split_once('>').unwrap();
        let severity = priority.parse::<u8>().unwrap() % 8;
        assert!(severity == 6 && rest.starts_with(head), "{message}");
        let text = if head == "1 " {
            let parts: Vec<_> = rest.splitn(8, ' ').collect();
            assert_eq!((parts[3], parts[5], parts[6]), ("websockify", "-", "-"));
            parts[7]
        } else {
            rest.split_once("]: ").unwrap().1
        };
        assert_eq!(text, "WebSocket server settings:");
        drop(server);
        socket.set_nonblocking(true).unwrap();
        while socket.recv(&mut buffer).is_ok() {}
        socket.set_nonblocking(false).unwrap();
    }
}

#[test]
fn a_recording_has_the_form_that_novnc_plays() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("rec");
    let arguments = ["--rec", text(&path), &target.address().to_string()];
    let mut server = Server::with(&arguments);
    server.wait_for_line(&format!("  - Recording to '{}.*'", path.display()));
    // As a browser does; without it the original refuses.
    let handshake = Handshake::default().with("Sec-WebSocket-Protocol: binary");
    let mut client = Client::with(server.address(), &handshake);
    server.wait_for_line(&format!("opening record file: {}.1", path.display()));
    let mut peer = target.accept();
    let bytes: Vec<u8> = (0..=255).collect();
    Write::write_all(&mut peer, &bytes).unwrap();
    assert_eq!(client.read_binary(256), bytes);
    client.send_binary(b"'\\\"{}\n");
    std::io::Read::read_exact(&mut peer, &mut [0; 6]).unwrap();
    drop(peer);
    client.read_to_close();
    client.send_close(1000);
    drop(client);
    let escaped: String = bytes.iter().map(|&byte| escaped(byte)).collect();
    let ends = [
        "var VNC_frame_data = [\n'{".to_owned(),
        format!("{{{escaped}',\n'}}"),
        "}\\'\\\\\"{}\\n',\n'EOF'];\n".to_owned(),
    ];
    let mut rest = wait_until("the recording", || {
        let recording = std::fs::read_to_string(directory.path().join("rec.1")).ok()?;
        recording.ends_with(&ends[2]).then_some(recording)
    });
    for (number, part) in ends.iter().enumerate() {
        let Some((between, behind)) = rest.split_once(&**part) else {
            panic!("{part} is not in {rest}")
        };
        // Between them are the milliseconds.
        assert!(between.is_empty() == (number == 0), "{between}");
        assert!(
            between.bytes().all(|byte| byte.is_ascii_digit()),
            "{between}"
        );
        rest = behind.to_owned();
    }
    assert!(rest.is_empty());
}

/// A byte as it stands in a string of JavaScript.
fn escaped(byte: u8) -> String {
    match byte {
        b'\n' => "\\n".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'\t' => "\\t".to_owned(),
        b'\\' | b'\'' => format!("\\{}", char::from(byte)),
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    }
}

#[test]
fn run_once_serves_one_session_and_exits() {
    let target = Target::new();
    let mut server = Server::with(&["--run-once", &target.address().to_string()]);
    let mut client = Client::connect(server.address());
    drop(target.accept());
    assert_eq!(client.read_to_close().1, Some(1000));
    client.send_close(1000);
    drop(client);
    assert!(server.wait().success());
}

#[test]
fn a_client_on_a_unix_target_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("target");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = Server::with(&["--unix-target", path.to_str().unwrap()]);
    let mut client = Client::connect(server.address());
    let (mut peer, _) = listener.accept().unwrap();
    client.send_binary(b"up");
    let mut arrived = [0; 2];
    std::io::Read::read_exact(&mut peer, &mut arrived).unwrap();
    peer.write_all(b"down").unwrap();
    assert_eq!(
        (&arrived, &client.read_binary(4)[..]),
        (b"up", &b"down"[..])
    );
}

/// The status that an upgrade with this header line is answered with.
fn status(server: &Server, line: &str) -> String {
    let request = Handshake::default().with(line).bytes();
    Client::ask(server.address(), &request).status().to_owned()
}

/// A server that asks this authenticator.
fn guarded(target: &Target, plugin: &str, source: &str) -> Server {
    let address = target.address().to_string();
    Server::with(&["--auth-plugin", plugin, "--auth-source", source, &address])
}

#[test]
fn a_name_and_a_password_are_asked_for() {
    let target = Target::new();
    let source = "user:pass:word";
    for plugin in ["BasicHTTPAuth", "websockify.auth_plugins.BasicHTTPAuth"] {
        let server = guarded(&target, plugin, source);
        assert_eq!(
            status(&server, "Authorization: Basic dXNlcjpwYXNzOndvcmQ="),
            "101"
        );
        assert_eq!(status(&server, "Authorization: Basic dXNlcjpwYXNz"), "401");
        let client = Client::ask(server.address(), &Handshake::default().bytes());
        assert_eq!(client.status(), "401");
        assert_eq!(
            client.header("WWW-Authenticate"),
            Some("Basic realm=\"Websockify\"")
        );
    }
}

#[test]
fn a_page_has_to_be_of_an_expected_origin() {
    let target = Target::new();
    let server = guarded(
        &target,
        "ExpectOrigin",
        "http://a.example:81 https://b.example null",
    );
    for (line, expected) in [
        ("Origin: http://a.example:81", "101"),
        ("Origin: https://b.example", "101"),
        ("Origin: null", "101"),
        ("Origin: http://a.example", "403"),
        ("Origin: http://b.example", "403"),
        ("Origin: https://b.example.evil", "403"),
        ("X: y", "403"),
    ] {
        assert_eq!(status(&server, line), expected, "{line}");
    }
}

#[test]
fn a_certificate_has_to_be_of_an_expected_name() {
    let certificates = Certificates::new();
    let root = certificates.authority("root");
    let server = certificates.host("server", FAST, None);
    let [alice, bob] = ["/O=x/CN=alice", "/O=alice/CN=bob"].map(|subject| {
        certificates.subject(&subject[subject.len() - 3..], subject, "utf8only", &root)
    });
    let target = Target::new();
    let address = target.address().to_string();
    let trust = ["--verify-client", "--cafile", text(&root.certificate)];
    let auth = [
        "--auth-plugin=ClientCertCNAuth",
        "--auth-source=carol alice",
        &address,
    ];
    let process = Server::with(&[&server.options()[..], &trust, &auth].concat());
    for (identity, status) in [(alice, "101"), (bob, "403")] {
        let tls = ClientTls::showing(&server.certificate, &identity);
        let mut client = Client::tls(process.address(), &tls).unwrap();
        client.request(&Handshake::default().bytes());
        assert_eq!(client.status(), status);
    }
}

/// A server with Python classes of the tests' own.
fn with_classes(arguments: &[&str]) -> Server {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    let path = format!("PYTHONPATH={}", text(&programs));
    let launcher = ["env", &path, "PYTHONDONTWRITEBYTECODE=1"];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Server::through(&launcher, listener, arguments)
}

#[test]
fn a_class_of_python_tells_where_tokens_lead() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("tokens");
    std::fs::write(&file, format!("ABC: {}\n", target.address())).unwrap();
    let targets = format!("abc={}", target.address());
    for (class, source) in [
        ("Plain", targets.as_str()),
        ("Numbers", &targets),
        ("Upper", text(&file)),
    ] {
        let class = format!("plugin_classes.{class}");
        let server = with_classes(&["--token-plugin", &class, "--token-source", source]);
        let handshake = Handshake::default().request_line("GET /?token=abc HTTP/1.1");
        let mut client = Client::with(server.address(), &handshake);
        target.accept().write_all(b"hello").unwrap();
        assert_eq!(client.read_binary(5), b"hello", "{class}");
    }
}

#[test]
fn a_class_of_python_decides_who_is_let_in() {
    let target = Target::new();
    let address = target.address().to_string();
    let guarded = |class: &str, source: &str| {
        let class = format!("plugin_classes.{class}");
        with_classes(&["--auth-plugin", &class, "--auth-source", source, &address])
    };
    // abc:cba, abc:abc
    let server = guarded("Users", "");
    for (code, expected) in [("YWJjOmNiYQ==", "101"), ("YWJjOmFiYw==", "401")] {
        let line = format!("Authorization: Basic {code}");
        assert_eq!(status(&server, &line), expected);
    }
    let server = guarded("Headers", "");
    let handshake = Handshake::default()
        .with("X-Many: 1")
        .with("X-Many: 2")
        .with("X-Odd: ü");
    let client = Client::ask(server.address(), &handshake.bytes());
    assert_eq!(
        (client.status(), client.header("X-Why")),
        ("418", Some("because"))
    );
    let client = Client::ask(server.address(), &handshake.with("X-User: jo").bytes());
    assert_eq!(client.status(), "101");
}

#[test]
fn a_class_of_python_is_told_of_a_number_or_of_a_tokens_own_port() {
    let target = Target::new();
    let (host, port) = (target.address().ip(), target.address().port());
    let address = target.address().to_string();
    let tokens = format!("abc={address}");
    let fixed = [address.as_str()];
    let ask = |expected: &str, arguments: &[&str]| {
        let auth = ["--auth-plugin=plugin_classes.Told", "--auth-source"];
        let server = with_classes(&[&auth[..], &[expected], arguments].concat());
        let handshake = Handshake::default().request_line("GET /?token=abc HTTP/1.1");
        let client = Client::ask(server.address(), &handshake.bytes());
        client.status().to_owned()
    };
    let source = ["--token-source", &tokens];
    let text = [&["--token-plugin=plugin_classes.Plain"], &source[..]].concat();
    let number = [&["--token-plugin=plugin_classes.Numbers"], &source[..]].concat();
    for (arguments, port) in [
        (&fixed[..], port.to_string()),
        (&number, port.to_string()),
        (&text, format!("'{port}'")),
    ] {
        assert_eq!(
            ask(&format!("'{host}' {port}"), arguments),
            "101",
            "{arguments:?}"
        );
        assert_eq!(ask("else", arguments), "404");
    }
}
