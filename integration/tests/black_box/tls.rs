//! TLS with clients: who gets in, by which certificate, and that nothing weak is spoken.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use integration::{
    Certificates, Client, ClientTls, FAST, Handshake, Identity, Server, Target, frame, hash,
    openssl, pattern, run_to_end, text, wait_until,
};
use nix::sys::signal::Signal;
use rustls::{HandshakeKind, ProtocolVersion};

/// A server with a certificate of its own, and clients that trust it.
struct Secured {
    _certificates: Certificates,
    identity: Identity,
    tls: ClientTls,
    target: Target,
    server: Server,
}

impl Secured {
    fn new(options: &[&str]) -> Self {
        let certificates = Certificates::new();
        let identity = certificates.host("server", FAST, None);
        let target = Target::new();
        let address = target.address().to_string();
        let server = Server::with(&[&identity.options(), options, &[&address]].concat());
        let tls = ClientTls::trusting(&identity.certificate);
        Self {
            _certificates: certificates,
            identity,
            tls,
            target,
            server,
        }
    }

    fn connect(&self) -> Client {
        Client::connect_tls(self.server.address(), &self.tls)
    }

    /// A session there and back.
    fn check(&self, mut client: Client) {
        let mut peer = self.target.accept();
        check(&mut client, &mut peer);
        client.send_close(1000);
        client.read_to_close();
        // Which also says that the end was announced by TLS.
        client.expect_end();
    }
}

/// A byte there and back.
fn check(client: &mut Client, peer: &mut TcpStream) {
    client.send_binary(b"?");
    let mut byte = [0];
    peer.read_exact(&mut byte).unwrap();
    peer.write_all(b"!").unwrap();
    assert_eq!((&byte, &client.read_binary(1)[..]), (b"?", &b"!"[..]));
}

/// What `openssl s_client` says of a connection.
fn s_client(server: &Server, options: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &server.address().to_string()])
        .args(options)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn plain_and_tls_clients_share_a_port_a_hundred_at_once() {
    let secured = Secured::new(&[]);
    let address = secured.server.address();
    let data = pattern(16 << 20);
    let mut pairs = Vec::new();
    for index in 0..100 {
        let client = if index % 2 == 0 {
            Client::connect(address)
        } else {
            secured.connect()
        };
        pairs.push((client, secured.target.accept()));
    }
    // Every client has a part of the data that is its own.
    std::thread::scope(|scope| {
        for (index, (mut client, mut peer)) in pairs.into_iter().enumerate() {
            let part = &data[index * (data.len() / 100)..][..data.len() / 100];
            let (mut sender, mut out) = (client.sibling(), peer.try_clone().unwrap());
            scope.spawn(move || sender.send_binary(part));
            scope.spawn(move || out.write_all(part).unwrap());
            scope.spawn(move || assert_eq!(hash(&client.read_binary(part.len())), hash(part)));
            scope.spawn(move || {
                let mut up = vec![0; part.len()];
                peer.read_exact(&mut up).unwrap();
                assert_eq!(hash(&up), hash(part));
            });
        }
    });
}

#[test]
fn sixteen_mebibytes_pass_both_ways_at_once_by_either_version() {
    let secured = Secured::new(&[]);
    let old = ClientTls::old(&secured.identity.certificate);
    for tls in [&secured.tls, &old] {
        let mut client = Client::connect_tls(secured.server.address(), tls);
        let mut peer = secured.target.accept();
        let (data, mut sender, mut out) = (
            pattern(16 << 20),
            client.sibling(),
            peer.try_clone().unwrap(),
        );
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send_binary(&data));
            scope.spawn(|| out.write_all(&data).unwrap());
            let up = scope.spawn(|| {
                let mut up = vec![0; 16 << 20];
                peer.read_exact(&mut up).unwrap();
                hash(&up)
            });
            assert_eq!(hash(&client.read_binary(16 << 20)), hash(&data));
            assert_eq!(up.join().unwrap(), hash(&data));
        });
    }
}

#[test]
fn keys_of_every_kind_in_every_form_and_order_are_taken() {
    let certificates = Certificates::new();
    let target = Target::new();
    let address = target.address().to_string();
    let password = certificates.write("password", b"secret\nnot this\n");
    let rsa = certificates.host("rsa", &["-algorithm", "RSA"], None);
    let ec = certificates.host("ec", FAST, None);
    let p384 = certificates.host(
        "p384",
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        None,
    );
    let ed25519 = certificates.host("ed25519", &["-algorithm", "ED25519"], None);
    let encrypted = ["-passout", "pass:secret"];
    let converted = |identity: &Identity, name: &str, command: &[&str]| {
        let file = certificates.path(name);
        openssl(&[command, &["-in", text(&identity.key), "-out", text(&file)]].concat());
        file
    };
    let pkcs8 = |cipher: &[&'static str]| [&["pkcs8", "-topk8"], cipher, &encrypted].concat();
    let cases = [
        (&rsa, rsa.key.clone()),
        (&rsa, converted(&rsa, "pkcs1", &["rsa", "-traditional"])),
        (
            &rsa,
            converted(
                &rsa,
                "pkcs1-aes",
                &[&["rsa", "-traditional", "-aes256"][..], &encrypted].concat(),
            ),
        ),
        (
            &rsa,
            converted(
                &rsa,
                "pkcs1-aes128",
                &[&["rsa", "-traditional", "-aes128"][..], &encrypted].concat(),
            ),
        ),
        (
            &rsa,
            converted(
                &rsa,
                "pkcs1-3des",
                &[&["rsa", "-traditional", "-des3"][..], &encrypted].concat(),
            ),
        ),
        (
            &rsa,
            converted(&rsa, "pkcs8-aes", &pkcs8(&["-v2", "aes-256-cbc"])),
        ),
        (&rsa, converted(&rsa, "pkcs8-scrypt", &pkcs8(&["-scrypt"]))),
        (
            &rsa,
            converted(&rsa, "pkcs8-3des", &pkcs8(&["-v2", "des3"])),
        ),
        (&ec, ec.key.clone()),
        (&ec, converted(&ec, "sec1", &["ec"])),
        (
            &ec,
            converted(
                &ec,
                "sec1-aes",
                &[&["ec", "-aes256"][..], &encrypted].concat(),
            ),
        ),
        (&p384, p384.key.clone()),
        (&ed25519, ed25519.key.clone()),
        (
            &ed25519,
            converted(&ed25519, "ed25519-aes", &pkcs8(&["-v2", "aes-256-cbc"])),
        ),
    ];
    for (index, (identity, key)) in cases.iter().enumerate() {
        // In files of their own, and in one in either order.
        let joined = match index % 3 {
            0 => None,
            1 => Some(certificates.join("joined.pem", &[key, &identity.certificate])),
            _ => Some(certificates.join("joined.pem", &[&identity.certificate, key])),
        };
        let files = match &joined {
            None => vec!["--cert", text(&identity.certificate), "--key", text(key)],
            Some(joined) => vec!["--cert", text(joined)],
        };
        let password = ["--key-password-file", text(&password), &address];
        let server = Server::with(&[&files[..], &password].concat());
        let tls = ClientTls::trusting(&identity.certificate);
        let mut client = Client::connect_tls(server.address(), &tls);
        check(&mut client, &mut target.accept());
    }
}

#[test]
fn the_password_of_the_key_comes_from_an_option_a_file_or_the_environment() {
    let certificates = Certificates::new();
    let identity = certificates.host("server", FAST, None);
    let key = certificates.path("encrypted");
    openssl(&[
        "ec",
        "-aes256",
        "-passout",
        "pass:geheim ü",
        "-in",
        text(&identity.key),
        "-out",
        text(&key),
    ]);
    let identity = Identity { key, ..identity };
    let target = Target::new();
    let address = target.address().to_string();
    let tls = ClientTls::trusting(&identity.certificate);
    let server = Server::with(
        &[
            &identity.options()[..],
            &["--key-password", "geheim ü", &address],
        ]
        .concat(),
    );
    Client::connect_tls(server.address(), &tls);
    let mut command = Command::new(integration::executable());
    command
        .args(["127.0.0.1:0", &address])
        .args(identity.options());
    command.env("WEBSOCKIFY_KEY_PASSWORD", "geheim ü");
    let mut server = Server::with_command(command);
    server.wait_for_line("SSL/TLS support");
}

#[test]
fn a_chain_in_any_order_leads_to_a_root_that_is_all_that_clients_know() {
    let certificates = Certificates::new();
    let root = certificates.authority("root");
    let middle = certificates.authority_of("middle", &root);
    let host = certificates.host("server", FAST, Some(&middle));
    let target = Target::new();
    let address = target.address().to_string();
    let tls = ClientTls::trusting(&root.certificate);
    for parts in [
        [&host.certificate, &middle.certificate, &host.key],
        [&host.key, &middle.certificate, &host.certificate],
    ] {
        let chain = certificates.join("chain.pem", &parts.map(|part| &**part));
        let server = Server::with(&["--cert", text(&chain), &address]);
        Client::connect_tls(server.address(), &tls);
    }
    let alone = Server::with(&[&host.options()[..], &[&address]].concat());
    assert!(
        Client::tls(alone.address(), &tls).is_err(),
        "the chain was not needed"
    );
}

#[test]
fn nothing_below_tls_1_2_and_nothing_weak_is_spoken() {
    let certificates = Certificates::new();
    let target = Target::new();
    let address = target.address().to_string();
    for kind in [&["-algorithm", "RSA"][..], FAST] {
        let identity = certificates.host("server", kind, None);
        let server = Server::with(&[&identity.options()[..], &[&address]].concat());
        let scan = Command::new("sslscan")
            .args(["--no-colour", "--no-groups", "--show-ciphers"])
            .arg(server.address().to_string())
            .output()
            .unwrap();
        let scan = String::from_utf8(scan.stdout).unwrap();
        for line in [
            "SSLv2     disabled",
            "SSLv3     disabled",
            "TLSv1.0   disabled",
            "TLSv1.1   disabled",
            "TLSv1.2   enabled",
            "TLSv1.3   enabled",
            "TLSv1.2 not vulnerable to heartbleed",
            "Session renegotiation not supported",
        ] {
            assert!(scan.contains(line), "no {line:?} in {scan}");
        }
        let suites: Vec<_> = scan
            .lines()
            .filter(|line| line.starts_with("Accepted") || line.starts_with("Preferred"))
            .collect();
        assert_eq!(suites.len(), 6, "{scan}");
        for suite in suites {
            let good = suite.contains("GCM") || suite.contains("CHACHA20");
            assert!(
                good && (suite.contains("TLSv1.3") || suite.contains(" ECDHE-")),
                "{suite}"
            );
        }
        for version in ["-tls1", "-tls1_1"] {
            let said = s_client(&server, &[version, "-cipher", "ALL@SECLEVEL=0"]);
            assert!(said.contains("Cipher is (NONE)"), "{said}");
        }
    }
}

#[test]
fn versions_and_ciphers_are_those_that_were_asked_for() {
    let newest = Secured::new(&["--ssl-version", "tlsv1_3"]);
    let old = ClientTls::old(&newest.identity.certificate);
    assert!(Client::tls(newest.server.address(), &old).is_err());
    newest.check(newest.connect());
    let mut one = Secured::new(&[
        "--ssl-ciphers",
        "RC4-SHA:ECDHE-ECDSA-AES128-GCM-SHA256",
        "--ssl-version=tlsv1_1",
    ]);
    one.server.wait_for_line("nothing below TLS 1.2");
    one.server
        .wait_for_line("--ssl-ciphers: 'RC4-SHA' is not supported");
    let old = ClientTls::old(&one.identity.certificate);
    let client = Client::tls(one.server.address(), &old).unwrap();
    let suite = client.tls_connection().negotiated_cipher_suite().unwrap();
    assert_eq!(
        format!("{:?}", suite.suite()),
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
    );
    let said = s_client(
        &one.server,
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
    );
    assert!(said.contains("Cipher is (NONE)"), "{said}");
}

#[test]
fn sessions_are_resumed_and_http_is_agreed_on_if_it_is_offered() {
    let secured = Secured::new(&[]);
    let old = ClientTls::old(&secured.identity.certificate);
    for (tls, version) in [
        (&secured.tls, ProtocolVersion::TLSv1_3),
        (&old, ProtocolVersion::TLSv1_2),
    ] {
        for kind in [
            HandshakeKind::Full,
            HandshakeKind::Resumed,
            HandshakeKind::Resumed,
        ] {
            let client = Client::connect_tls(secured.server.address(), tls);
            assert_eq!(client.tls_connection().handshake_kind(), Some(kind));
            assert_eq!(client.tls_connection().protocol_version(), Some(version));
            secured.check(client);
        }
    }
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some(&b"http/1.1"[..])),
        (&["h2"], None),
        (&[], None),
    ] {
        let tls = secured.tls.clone().offering(offered);
        let client = Client::connect_tls(secured.server.address(), &tls);
        assert_eq!(
            client.tls_connection().alpn_protocol(),
            agreed,
            "{offered:?}"
        );
        secured.check(client);
    }
    let said = s_client(&secured.server, &["-reconnect", "-tls1_2"]);
    assert_eq!(said.matches("Reused, TLSv1.2").count(), 5, "{said}");
}

#[test]
fn only_clients_with_a_trusted_certificate_are_let_in() {
    let certificates = Certificates::new();
    let [root, other] = ["root", "other"].map(|name| certificates.authority(name));
    let middle = certificates.authority_of("middle", &root);
    let itself = certificates.host("itself", FAST, None);
    let trusted = certificates.join("trusted.pem", &[&root.certificate, &itself.certificate]);
    let mut good = certificates.host("good", FAST, Some(&root));
    let far = certificates.host("far", FAST, Some(&middle));
    let chained = Identity {
        certificate: certificates.join("chained.pem", &[&far.certificate, &middle.certificate]),
        key: far.key.clone(),
    };
    let mut secured = Secured::new(&["--verify-client", "--cafile", text(&trusted)]);
    secured.server.wait_for_line("Deny non-SSL/TLS connections");
    let showing = |identity: &Identity| ClientTls::showing(&secured.identity.certificate, identity);
    for identity in [&good, &chained, &itself] {
        let client = Client::connect_tls(secured.server.address(), &showing(identity));
        secured.check(client);
    }
    // With TLS 1.3 the client is done before it is judged.
    let address = secured.server.address();
    let refused = |tls: &ClientTls| {
        Client::tls(address, tls).and_then(|mut client| {
            client.try_send(&Handshake::default().bytes())?;
            client.read_some()
        })
    };
    for (tls, why) in [
        (secured.tls.clone(), "it has shown no certificate"),
        (
            showing(&certificates.host("foreign", FAST, Some(&other))),
            "signed by nobody who is trusted",
        ),
        (showing(&far), "signed by nobody who is trusted"),
        // Whoever is trusted is not trusted to vouch for others.
        (
            showing(&certificates.host("vouched", FAST, Some(&itself))),
            "signed by nobody who is trusted",
        ),
        (
            showing(&certificates.expired("expired", &root)),
            "has expired",
        ),
    ] {
        assert!(refused(&tls).is_err(), "{why}");
        let line = secured.server.wait_for_line("TLS with the client failed: ");
        assert!(line.contains(why), "{line}");
    }
    // Whose key is another one is not who the certificate says.
    good.key = certificates.host("thief", FAST, Some(&root)).key;
    let said = s_client(
        &secured.server,
        &["-cert", text(&good.certificate), "-key", text(&good.key)],
    );
    assert!(!said.contains("Verify return code: 0"), "{said}");
    // A plain client cannot show any.
    let mut plain = Client::ask(secured.server.address(), &Handshake::default().bytes());
    assert_eq!(plain.status(), "400");
    assert!(
        String::from_utf8(plain.read_body())
            .unwrap()
            .contains("TLS only")
    );
    plain.expect_end();
    assert!(!secured.target.has_visitor());
}

#[test]
fn the_system_s_certificates_are_trusted_without_a_file_of_our_own() {
    let certificates = Certificates::new();
    let root = certificates.authority("root");
    let good = certificates.host("good", FAST, Some(&root));
    let server = certificates.host("server", FAST, None);
    let target = Target::new();
    let environment = format!("SSL_CERT_FILE={}", text(&root.certificate));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = target.address().to_string();
    let arguments = [&server.options()[..], &["--verify-client", &address]].concat();
    let server_process = Server::through(
        &["env", "-u", "SSL_CERT_DIR", &environment],
        listener,
        &arguments,
    );
    let tls = ClientTls::showing(&server.certificate, &good);
    let mut client = Client::connect_tls(server_process.address(), &tls);
    check(&mut client, &mut target.accept());
}

#[test]
fn plain_clients_are_refused_where_tls_is_demanded() {
    let mut secured = Secured::new(&["--ssl-only"]);
    secured.server.wait_for_line("Deny non-SSL/TLS connections");
    for request in [
        &Handshake::default().bytes()[..],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"x",
    ] {
        let mut client = Client::raw(secured.server.address());
        client.send(request);
        client.read_head();
        assert_eq!(client.status(), "400");
        client.read_body();
        client.expect_end();
    }
    secured.server.wait_for_line("non-SSL connection refused");
    secured.check(secured.connect());
    assert!(!secured.target.has_visitor());
}

#[test]
fn a_handshake_byte_by_byte_and_records_of_one_byte_make_a_session() {
    let secured = Secured::new(&[]);
    let mut connection = secured.tls.connection();
    let mut socket = Client::raw(secured.server.address());
    socket.stream().set_nodelay(true).unwrap();
    let mut request = Handshake::default().bytes();
    request.extend(frame(0x82, b"one by one"));
    while connection.is_handshaking() {
        let mut flight = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut flight).unwrap();
        }
        flight.iter().for_each(|byte| socket.send(&[*byte]));
        if connection.is_handshaking() {
            connection.read_tls(&mut socket.stream()).unwrap();
            connection.process_new_packets().unwrap();
        }
    }
    for byte in &request {
        connection.writer().write_all(&[*byte]).unwrap();
        let mut record = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut record).unwrap();
        }
        record.iter().for_each(|byte| socket.send(&[*byte]));
    }
    let mut arrived = [0; 10];
    secured.target.accept().read_exact(&mut arrived).unwrap();
    assert_eq!(&arrived, b"one by one");
}

#[test]
fn who_stalls_in_the_handshake_is_closed_when_its_time_is_over_and_keeps_nobody_waiting() {
    let mut secured = Secured::new(&["--handshake-timeout", "1"]);
    let mut hello = Vec::new();
    secured.tls.connection().write_tls(&mut hello).unwrap();
    let stalled: Vec<_> = [1, 5, hello.len() / 2, hello.len()]
        .into_iter()
        .cycle()
        .take(200)
        .map(|length| {
            let mut client = Client::raw(secured.server.address());
            client.send(&hello[..length]);
            client
        })
        .collect();
    for _ in 0..10 {
        secured.check(secured.connect());
    }
    for client in stalled {
        // The last of them have had the server's part of the handshake.
        _ = client.stream().shutdown(std::net::Shutdown::Write);
        let mut client = client;
        while client.read_some().is_ok_and(|bytes| !bytes.is_empty()) {}
    }
    // The same for a request that does not come.
    let mut silent = Client::tls(secured.server.address(), &secured.tls).unwrap();
    silent.expect_end();
    secured.server.wait_for_line("TLS with the client failed: ");
}

#[test]
fn nonsense_in_the_place_of_tls_is_answered_by_an_alert() {
    let mut secured = Secured::new(&[]);
    let mut hello = Vec::new();
    secured.tls.connection().write_tls(&mut hello).unwrap();
    let mut broken = hello.clone();
    // No type of a handshake message.
    broken[5] = 0x55;
    for nonsense in [&broken[..], b"\x16\x03\x01\xff\xff"] {
        let mut client = Client::raw(secured.server.address());
        client.send(nonsense);
        let answer = client.read_rest();
        // A fatal alert is the last that comes: 7 bytes.
        let alert = &answer[answer.len().saturating_sub(7)..];
        let is_alert = matches!(alert, [0x15, 3, _, 0, 2, 2, _]);
        assert!(is_alert, "{} bytes, then {alert:?}", nonsense.len());
        secured.server.wait_for_line("TLS with the client failed: ");
    }
    secured.check(secured.connect());
}

#[test]
fn a_certificate_is_replaced_under_load_without_a_failed_handshake_or_a_broken_session() {
    let certificates = Certificates::new();
    let root = certificates.authority("root");
    let [first, second] = ["first", "second"].map(|name| {
        let host = certificates.host(name, FAST, Some(&root));
        certificates.join(&format!("{name}.pem"), &[&host.key, &host.certificate])
    });
    let current = certificates.join("current.pem", &[&first]);
    let target = Target::new();
    let address = target.address().to_string();
    let mut server = Server::with(&["--cert", text(&current), &address]);
    let tls = ClientTls::trusting(&root.certificate).forgetful();
    let mut client = Client::connect_tls(server.address(), &tls);
    let mut peer = target.accept();
    let (stop, handshakes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let at = server.address();
    let shown = || {
        let client = Client::tls(at, &tls).expect("every handshake succeeds");
        client.tls_connection().peer_certificates().unwrap()[0].to_vec()
    };
    let before = shown();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    shown();
                    handshakes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for (round, new) in [&second, &first, &second].into_iter().enumerate() {
            let old = shown();
            match round % 2 {
                // At once, and in place, where a half-written file is seen now and then.
                0 => {
                    let part = certificates.join("part.pem", &[new]);
                    std::fs::rename(part, &current).unwrap();
                }
                _ => std::fs::write(&current, std::fs::read(new).unwrap()).unwrap(),
            }
            wait_until("the new certificate", || (shown() != old).then_some(()));
            check(&mut client, &mut peer);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(handshakes.into_inner() > 20);
    assert_ne!(shown(), before);
    // What cannot be used changes nothing, and says so.
    let after = shown();
    std::fs::write(&current, "nonsense").unwrap();
    server.signal(Signal::SIGHUP);
    let line = server.wait_for_line("the certificate stays what it was");
    assert!(
        line.contains("current.pem") && line.contains("has no certificate"),
        "{line}"
    );
    assert_eq!(shown(), after);
    std::fs::remove_file(&current).unwrap();
    assert_eq!(shown(), after);
    certificates.join("current.pem", &[&first]);
    server.signal(Signal::SIGHUP);
    server.wait_for_line("Certificate read again: ");
    assert_eq!(shown(), before);
    check(&mut client, &mut peer);
}

#[test]
fn files_that_are_no_good_are_one_line_that_says_which_and_why() {
    let certificates = Certificates::new();
    let identity = certificates.host("server", FAST, None);
    let other = certificates.host("other", FAST, None);
    let [missing, encrypted, old, password] =
        ["missing", "encrypted", "old", "password"].map(|name| certificates.path(name));
    let encrypt = |command: &[&str], file: &std::path::Path| {
        openssl(
            &[
                command,
                &[
                    "-passout",
                    "pass:secret",
                    "-in",
                    text(&identity.key),
                    "-out",
                    text(file),
                ],
            ]
            .concat(),
        );
    };
    encrypt(&["ec", "-aes256"], &encrypted);
    encrypt(&["pkcs8", "-topk8", "-v1", "PBE-SHA1-3DES"], &old);
    std::fs::write(&password, "wrong\n").unwrap();
    let damaged = certificates.write(
        "damaged",
        b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n",
    );
    let empty = certificates.write("empty", b"");
    let cert = text(&identity.certificate);
    for (options, file, why) in [
        (
            vec!["--cert", text(&missing)],
            &missing,
            "No such file or directory",
        ),
        (vec!["--cert", text(&empty)], &empty, "has no certificate"),
        (vec!["--cert", text(&damaged)], &damaged, "is damaged"),
        (
            vec!["--cert", cert],
            &identity.certificate,
            "has no private key; give its file with --key",
        ),
        (
            vec!["--cert", cert, "--key", cert],
            &identity.certificate,
            "has no private key",
        ),
        (
            vec!["--cert", cert, "--key", text(&missing)],
            &missing,
            "No such file or directory",
        ),
        (
            vec!["--cert", cert, "--key", text(&other.key)],
            &other.key,
            "does not belong to the certificate",
        ),
        (
            vec!["--cert", cert, "--key", text(&encrypted)],
            &encrypted,
            "its key is encrypted; give the password",
        ),
        (
            vec![
                "--cert",
                cert,
                "--key",
                text(&encrypted),
                "--key-password",
                "wrong",
            ],
            &encrypted,
            "the password is not the one",
        ),
        (
            vec![
                "--cert",
                cert,
                "--key",
                text(&encrypted),
                "--key-password-file",
                text(&password),
            ],
            &encrypted,
            "the password is not the one",
        ),
        (
            vec![
                "--cert",
                cert,
                "--key",
                text(&encrypted),
                "--key-password-file",
                text(&missing),
            ],
            &missing,
            "No such file",
        ),
        (
            vec![
                "--cert",
                cert,
                "--key",
                text(&old),
                "--key-password",
                "secret",
            ],
            &old,
            "openssl pkcs8 -topk8",
        ),
        (
            vec![
                "--cert",
                cert,
                "--key",
                text(&identity.key),
                "--verify-client",
                "--cafile",
                text(&missing),
            ],
            &missing,
            "No such file",
        ),
        (
            vec![
                "--cert",
                cert,
                "--key",
                text(&identity.key),
                "--verify-client",
                "--cafile",
                text(&empty),
            ],
            &empty,
            "has no certificate",
        ),
        (
            vec!["--ssl-target", "--target-cafile", text(&empty)],
            &empty,
            "has no certificate",
        ),
    ] {
        let output = run_to_end(&[&["127.0.0.1:0", ":1"], &options[..]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{options:?}: {stderr}");
        let line = stderr.lines().last().unwrap_or_default();
        assert!(
            line.contains(text(file)) && line.contains(why),
            "{options:?}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{options:?}: {stderr}");
        assert!(!stderr.contains("wrong"), "{options:?}: {stderr}");
    }
}

#[test]
fn the_default_certificate_is_taken_if_it_is_there_and_missed_if_not() {
    let certificates = Certificates::new();
    let start = || {
        let mut command = Command::new(integration::executable());
        command.args(["127.0.0.1:0", ":1"]);
        command.current_dir(certificates.path("."));
        Server::with_command(command)
    };
    start().wait_for_line("No SSL/TLS support (no cert file)");
    let identity = certificates.host("server", FAST, None);
    certificates.join("self.pem", &[&identity.certificate, &identity.key]);
    start().wait_for_line("  - SSL/TLS support");
}

#[test]
fn a_web_page_and_a_session_come_by_tls_and_by_a_unix_socket_too() {
    let certificates = Certificates::new();
    let identity = certificates.host("server", FAST, None);
    let socket = certificates.path("socket");
    certificates.write("page.html", b"<p>page</p>");
    let web = certificates.path(".");
    let mut command = Command::new(integration::executable());
    command.args(identity.options());
    command.args(["--unix-listen", text(&socket), "--web", text(&web), ":1"]);
    let mut server = Server::with_command(command);
    server.wait_for_line("proxying from");
    let mut client = Command::new("openssl")
        .args([
            "s_client",
            "-quiet",
            "-unix",
            text(&socket),
            "-CAfile",
            text(&identity.certificate),
            "-verify_return_error",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let request = b"GET /page.html HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    client.stdin.as_mut().unwrap().write_all(request).unwrap();
    let mut answer = String::new();
    client
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut answer)
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("<p>page</p>"),
        "{answer}"
    );
    client.wait().unwrap();
}

#[test]
fn a_pipe_in_the_place_of_the_certificate_keeps_nobody_waiting() {
    let mut secured = Secured::new(&[]);
    secured.server.wait_for_line("proxying from");
    let certificate = &secured.identity.certificate;
    std::fs::remove_file(certificate).unwrap();
    nix::unistd::mkfifo(certificate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    secured.server.signal(Signal::SIGHUP);
    secured
        .server
        .wait_for_line("the certificate stays what it was");
    for _ in 0..5 {
        secured.check(secured.connect());
    }
}

#[test]
fn a_key_and_its_password_are_replaced_one_after_the_other() {
    let certificates = Certificates::new();
    let target = Target::new();
    let address = target.address().to_string();
    let [first, second] = ["first", "second"].map(|name| {
        let host = certificates.host(name, FAST, None);
        let key = certificates.path(&format!("{name}.encrypted"));
        let (password, from) = (format!("pass:{name}"), text(&host.key));
        openssl(&[
            "ec",
            "-aes256",
            "-passout",
            &password,
            "-in",
            from,
            "-out",
            text(&key),
        ]);
        let both = certificates.join(&format!("{name}.pem"), &[&host.certificate, &key]);
        (both, ClientTls::trusting(&host.certificate))
    });
    let current = certificates.join("current.pem", &[&first.0]);
    let password = certificates.write("password", b"first\n");
    let files = [
        "--cert",
        text(&current),
        "--key-password-file",
        text(&password),
    ];
    let mut server = Server::with(&[&files[..], &[&address]].concat());
    server.wait_for_line("proxying from");
    certificates.join("current.pem", &[&second.0]);
    server.signal(Signal::SIGHUP);
    server.wait_for_line("the password is not the one");
    assert!(Client::tls(server.address(), &second.1).is_err());
    certificates.write("password", b"second\n");
    let attempt = || Client::tls(server.address(), &second.1).ok();
    wait_until("the new certificate", attempt);
}

#[test]
fn the_wrapped_program_does_not_learn_the_password() {
    let mut command = Command::new(integration::executable());
    let program = ["sh", "-c", "exit ${WEBSOCKIFY_KEY_PASSWORD:-7}"];
    command.args(["127.0.0.1:0", "--"]).args(program);
    command.env("WEBSOCKIFY_KEY_PASSWORD", "8");
    assert_eq!(Server::with_command(command).wait().code(), Some(7));
}
