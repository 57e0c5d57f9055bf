//! TLS with the target: which one is believed, and what is said of one that is not.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use integration::{
    Certificates, Client, FAST, Identity, Server, Target, accept_tls, hash, pattern, text,
};

/// A bridge to `localhost` with TLS.
fn bridge(target: &Target, options: &[&str]) -> Server {
    let address = format!("localhost:{}", target.address().port());
    Server::with(&[&["--ssl-target"], options, &[&address]].concat())
}

/// The code that a session ends with of which the target shows this certificate.
fn shown(server: &Server, target: &Target, identity: &Identity) -> Option<u16> {
    let mut client = Client::connect(server.address());
    let stream = target.accept();
    std::thread::scope(|scope| {
        // It may be refused, and has then nothing to say.
        scope.spawn(|| _ = accept_tls(stream, identity).write_all(b"welcome"));
        let (bytes, code, _) = client.read_to_close();
        assert_eq!(
            &bytes[..],
            if code == Some(1000) {
                &b"welcome"[..]
            } else {
                b""
            }
        );
        code
    })
}

#[test]
fn a_target_is_believed_by_its_authority_or_its_own_certificate_or_at_all() {
    let certificates = Certificates::new();
    let root = certificates.authority("root");
    let signed = certificates.host("signed", FAST, Some(&root));
    let itself = certificates.host("itself", FAST, None);
    let target = Target::new();
    let trusted = certificates.join("trusted.pem", &[&root.certificate, &itself.certificate]);
    let mut server = bridge(&target, &["--target-cafile", text(&trusted)]);
    server.wait_for_line("proxying from");
    for identity in [&signed, &itself] {
        assert_eq!(shown(&server, &target, identity), Some(1000));
    }
    server.wait_for_line("(using SSL)");
    for (identity, why) in [
        (
            certificates.host("unknown", FAST, None),
            "signed by nobody who is trusted",
        ),
        (certificates.expired("expired", &root), "has expired"),
        (
            certificates.other_host("other", &root),
            "is for another name",
        ),
    ] {
        assert_eq!(shown(&server, &target, &identity), Some(1011), "{why}");
        let line = server.wait_for_line("TLS with the target failed: ");
        assert!(
            line.contains(why) && line.starts_with("127.0.0.1 - - ["),
            "{line}"
        );
        let credulous = bridge(&target, &["--target-insecure"]);
        assert_eq!(shown(&credulous, &target, &identity), Some(1000), "{why}");
    }
    // Whoever is trusted is not trusted to vouch for others.
    let vouched = certificates.host("vouched", FAST, Some(&itself));
    assert_eq!(shown(&server, &target, &vouched), Some(1011));
    // An authority that is its own host, as `openssl req -x509` makes it.
    let naive = certificates.naive("naive");
    let server = bridge(&target, &["--target-cafile", text(&naive.certificate)]);
    assert_eq!(shown(&server, &target, &naive), Some(1000));
}

#[test]
fn the_system_s_certificates_are_trusted_by_default_and_an_address_is_a_name_as_well() {
    let certificates = Certificates::new();
    let root = certificates.authority("root");
    let signed = certificates.host("signed", FAST, Some(&root));
    let target = Target::new();
    let start = |environment: &Path| {
        let environment = format!("SSL_CERT_FILE={}", text(environment));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = target.address().to_string();
        Server::through(
            &["env", "-u", "SSL_CERT_DIR", &environment],
            listener,
            &["--ssl-target", &address],
        )
    };
    assert_eq!(
        shown(&start(&root.certificate), &target, &signed),
        Some(1000)
    );
    let empty = certificates.write("empty", b"");
    let mut server = start(&empty);
    assert_eq!(server.wait().code(), Some(1));
    assert!(
        server
            .rest_of_log()
            .contains("there are no certificates that the system trusts")
    );
}

#[test]
fn a_target_that_does_not_speak_tls_is_said_to() {
    let target = Target::new();
    let mut server = bridge(&target, &["--target-insecure"]);
    let mut client = Client::connect(server.address());
    target.accept().write_all(b"RFB 003.008\n").unwrap();
    assert_eq!(client.read_to_close().1, Some(1011));
    server.wait_for_line("TLS with the target failed: ");
    let mut client = Client::connect(server.address());
    drop(target.accept());
    assert_eq!(client.read_to_close().1, Some(1011));
    server.wait_for_line("TLS with the target failed: ");
}

#[test]
fn data_passes_both_ways_and_both_ends_are_announced() {
    let certificates = Certificates::new();
    let identity = certificates.host("target", FAST, None);
    let target = Target::new();
    let server = bridge(&target, &["--target-cafile", text(&identity.certificate)]);
    let mut client = Client::connect(server.address());
    let data = pattern(16 << 20);
    let mut sender = client.sibling();
    let stream = target.accept();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut peer = accept_tls(stream, &identity);
            let mut echo = Vec::new();
            let mut part = vec![0; 1 << 16];
            // The end of the data is one that TLS knows of, or this is an error.
            while let length @ 1.. = peer.read(&mut part).unwrap() {
                peer.write_all(&part[..length]).unwrap();
                echo.extend_from_slice(&part[..length]);
            }
            assert_eq!(hash(&echo), hash(&data));
        });
        scope.spawn(|| sender.send_binary(&data));
        assert_eq!(hash(&client.read_binary(16 << 20)), hash(&data));
        client.send_close(1000);
        assert_eq!(client.read_to_close().1, Some(1000));
        client.expect_end();
    });
}

#[test]
fn unix_and_wrapped_targets_are_believed_as_localhost() {
    let certificates = Certificates::new();
    let identity = certificates.host("target", FAST, None);
    let socket = certificates.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let trust = [
        "--ssl-target",
        "--target-cafile",
        text(&identity.certificate),
    ];
    let server = Server::with(&[&trust[..], &["--unix-target", text(&socket)]].concat());
    let _client = Client::connect(server.address());
    let (stream, _) = listener.accept().unwrap();
    // A TLS client's first byte.
    let mut first = [0];
    (&stream).read_exact(&mut first).unwrap();
    assert_eq!(first, [0x16]);

    let both = certificates.join("both.pem", &[&identity.certificate, &identity.key]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = format!("OPENSSL-LISTEN:{port},cert={},verify=0,fork", text(&both));
    let program = ["--", "socat", &options, "EXEC:cat"];
    let server = Server::on(listener, &[&trust[..], &program].concat());
    let mut client = Client::connect(server.address());
    client.send_binary(b"through a wrapped program");
    assert_eq!(client.read_binary(25), b"through a wrapped program");
}

#[test]
fn what_came_before_an_error_reaches_the_client_and_the_error_is_told() {
    let certificates = Certificates::new();
    let identity = certificates.host("target", FAST, None);
    let target = Target::new();
    let mut server = bridge(&target, &["--target-insecure"]);
    for length in [1_000, 30_000, 100_000] {
        let mut client = Client::connect(server.address());
        let mut peer = accept_tls(target.accept(), &identity);
        while peer.conn.is_handshaking() {
            peer.conn.complete_io(&mut peer.sock).unwrap();
        }
        peer.conn.set_buffer_limit(None);
        peer.conn.writer().write_all(&pattern(length)).unwrap();
        let mut records = Vec::new();
        while peer.conn.wants_write() {
            peer.conn.write_tls(&mut records).unwrap();
        }
        records.extend(b"\x17\x03\x03\x00\x20This looks like a record, no more");
        peer.sock.write_all(&records).unwrap();
        let (bytes, code, _) = client.read_to_close();
        assert!(bytes == pattern(length), "{} of {length}", bytes.len());
        assert_eq!(code, Some(1011));
        client.send_close(1011);
        server.wait_for_line("Target connection lost (TLS: ");
    }
}

#[test]
fn a_target_that_wants_a_certificate_of_ours_is_said_to() {
    let certificates = Certificates::new();
    let identity = certificates.host("target", FAST, None);
    let both = certificates.join("both.pem", &[&identity.certificate, &identity.key]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let file = text(&both);
    let options = format!("OPENSSL-LISTEN:{port},cert={file},cafile={file},verify=1,fork");
    let program = ["--", "socat", &options, "EXEC:cat"];
    let trust = ["--ssl-target", "--target-insecure"];
    let mut server = Server::on(listener, &[&trust[..], &program].concat());
    let mut client = Client::connect(server.address());
    assert_eq!(client.read_to_close().1, Some(1011));
    server.wait_for_line("it wants a certificate of ours");
}
