//! Who is let in: by name and password, by the origin of a page, by a certificate; and who only pretends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use integration::{
    Certificates, Client, ClientTls, FAST, Handshake, Identity, Scratch, Server, Target,
    run_to_end, text,
};
use nix::sys::signal::Signal;
use rustls::{HandshakeKind, ProtocolVersion};

/// A server that asks this authenticator, and its target.
struct Guarded {
    target: Target,
    server: Server,
}

impl Guarded {
    fn by(plugin: &str, source: &str) -> Self {
        Self::with(&["--auth-plugin", plugin, "--auth-source", source])
    }

    fn with(options: &[&str]) -> Self {
        let target = Target::new();
        let address = target.address().to_string();
        let server = Server::with(&[options, &[&address]].concat());
        Self { target, server }
    }

    /// The status that an upgrade with these header lines is answered with.
    fn status(&self, lines: &[&str]) -> String {
        let handshake = lines
            .iter()
            .fold(Handshake::default(), |all, line| all.with(line));
        let client = Client::ask(self.server.address(), &handshake.bytes());
        client.status().to_owned()
    }

    /// The same with a name and a password.
    fn status_of(&self, pair: &[u8]) -> String {
        self.status(&[&authorization(pair)])
    }

    /// Checks that an upgrade with these header lines becomes a session.
    fn lets_in(&self, lines: &[&str]) {
        assert_eq!(self.status(lines), "101", "{lines:?}");
        self.target.accept();
    }

    /// Everything that the server has said, once it has ended. The target must not have been reached but where a test looked.
    fn log(mut self) -> String {
        assert!(!self.target.has_visitor());
        self.server.signal(Signal::SIGTERM);
        self.server.rest_of_log()
    }
}

/// The header line for a name and a password.
fn authorization(pair: &[u8]) -> String {
    format!("Authorization: Basic {}", base64(pair))
}

/// Base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=part.len()].copy_from_slice(part);
        let bits = u32::from_be_bytes(bits);
        for place in 0..4 {
            text.push(match part.len() < place {
                true => '=',
                false => char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]),
            });
        }
    }
    text
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("the program is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn who_knows_name_and_password_is_let_in_and_others_are_asked() {
    let guarded = Guarded::by("BasicHTTPAuth", "jürgen:ge:heim-é");
    let utf8 = "jürgen:ge:heim-é".as_bytes();
    let latin1 = b"j\xfcrgen:ge:heim-\xe9";
    for line in [
        authorization(utf8),
        authorization(latin1),
        authorization(utf8).replace("Basic", "basic"),
        authorization(utf8)
            .replace("Basic", "BASIC")
            .replace("Authorization", "AUTHORIZATION"),
        authorization(utf8).trim_end_matches('=').to_owned(),
    ] {
        guarded.lets_in(&[&line]);
    }
    let mut client = Client::ask(guarded.server.address(), &Handshake::default().bytes());
    assert_eq!(client.status(), "401");
    let challenge = "\r\nWWW-Authenticate: Basic realm=\"Websockify\"\r\n".to_lowercase();
    assert!(
        client.response.to_lowercase().contains(&challenge),
        "{}",
        client.response
    );
    client.read_body();
    client.expect_end();
    for wrong in [
        &b""[..],
        b":",
        b"j\xfcrgen",
        b"j\xfcrgen:",
        b"j\xfcrgen:ge",
        b"j\xfcrgen:ge:heim-e",
        b"j\xfcrgen:ge:heim-\xe9 ",
        b"j\xfcrgen:ge:heim-\xe9\0",
        b"j\xfcrgen:ge:heim-\xe9\n",
        b"J\xfcrgen:ge:heim-\xe9",
    ] {
        assert_eq!(guarded.status_of(wrong), "401", "{wrong:?}");
    }
    let log = guarded.log();
    for secret in ["ge:heim", "heim-", &base64(utf8), &base64(latin1)] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn a_header_that_can_be_read_in_two_ways_lets_nobody_in() {
    let guarded = Guarded::by("BasicHTTPAuth", "a:b");
    let right = authorization(b"a:b");
    guarded.lets_in(&[&right]);
    let wrong = authorization(b"a:c");
    for (lines, status) in [
        (&[&*right, &*right][..], "401"),
        (&[&right, &wrong], "401"),
        (&[&wrong, &right], "401"),
        (&[&right, "Authorization: Bearer x"], "401"),
        (&["Authorization:", &right], "401"),
        (&[&format!("{right}, {right}")], "401"),
        (&["Authorization: BasicYTpi"], "401"),
        (&["Authorization: Basic\tYTpi"], "401"),
        (&["Authorization: Basic YTpi=="], "401"),
        (&["Authorization: Basic =YTpi"], "401"),
        (&["Authorization: Basic YT pi"], "401"),
        (&["Authorization: Basic %YTpi"], "401"),
        (&["Authorization: Bearer YTpi"], "401"),
        (&["Authorization: Digest username=a"], "401"),
        (&["X-Authorization: Basic YTpi"], "401"),
        (&["Proxy-Authorization: Basic YTpi"], "401"),
        (&["Authorization : Basic YTpi"], "400"),
        (&["Authorization\0: Basic YTpi"], "400"),
        (&["Authorization: Basic YTpi\0"], "400"),
        (&["X: y\r\n Authorization: Basic YTpi"], "400"),
        (&["X: y\rAuthorization: Basic YTpi"], "400"),
        (&["Authorization:\r\n Basic YTpi"], "400"),
    ] {
        assert_eq!(guarded.status(lines), status, "{lines:?}");
    }
    // A line of its own ends with a line feed alone as well, for us as for others.
    guarded.lets_in(&[&format!("X: y\n{right}")]);
    let huge = "x".repeat(32 * 1024);
    assert_eq!(guarded.status_of(huge.as_bytes()), "401");
    assert_eq!(guarded.status_of(format!("a:b{huge}").as_bytes()), "401");
    let too_huge = format!("Authorization: Basic {huge}{huge}{huge}");
    assert_eq!(guarded.status(&[&too_huge]), "431");
    guarded.lets_in(&[&right]);
    assert!(!guarded.target.has_visitor());
}

#[test]
fn files_are_asked_about_only_where_that_is_wanted() {
    let web = Scratch::new().unwrap();
    fs::write(web.path().join("a.txt"), "hello").unwrap();
    let options = [
        "--web",
        text(web.path()),
        "--auth-plugin=websockify.auth_plugins.BasicHTTPAuth",
        "--auth-source=a:b",
    ];
    let status = |guarded: &Guarded, line: &str| {
        let request = format!("GET /a.txt HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n");
        let client = Client::ask(guarded.server.address(), request.as_bytes());
        client.status().to_owned()
    };
    let (right, wrong) = (authorization(b"a:b"), authorization(b"a:c"));
    let open = Guarded::with(&options);
    assert_eq!(status(&open, "X: y"), "200");
    assert_eq!(status(&open, &wrong), "200");
    assert_eq!(open.status(&[]), "401");
    open.lets_in(&[&right]);
    let closed = Guarded::with(&[&options[..], &["--web-auth"]].concat());
    assert_eq!(status(&closed, "X: y"), "401");
    assert_eq!(status(&closed, &wrong), "401");
    assert_eq!(status(&closed, &right), "200");
    assert_eq!(closed.status(&[]), "401");
    closed.lets_in(&[&right]);
}

#[test]
fn a_password_may_stand_in_a_file() {
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("password");
    for end in ["", "\n", "\r\n"] {
        fs::write(&file, format!("a:b c{end}")).unwrap();
        let guarded = Guarded::by("BasicHTTPAuth", &format!("@{}", file.display()));
        guarded.lets_in(&[&authorization(b"a:b c")]);
        assert_eq!(guarded.status_of(format!("a:b c{end} ").as_bytes()), "401");
    }
}

#[test]
fn what_lets_nobody_in_is_said_at_the_start() {
    for (plugin, source, said) in [
        ("BasicHTTPAuth", "hunter2", "user:password"),
        ("HtpasswdFile", "/none/users", "'/none/users'"),
        ("HtpasswdFile", "/", "'/'"),
    ] {
        let options = ["0", ":1", "--auth-plugin", plugin, "--auth-source", source];
        let output = run_to_end(&options);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(
            errors.contains(said) && !errors.contains("hunter2"),
            "{errors}"
        );
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

/// A file that the real htpasswd(1) writes.
struct Users {
    _directory: Scratch,
    file: PathBuf,
}

impl Users {
    fn new() -> Self {
        let directory = Scratch::new().unwrap();
        let file = directory.path().join("users");
        fs::write(&file, "").unwrap();
        Self {
            _directory: directory,
            file,
        }
    }

    /// Has it do something, such as `-bB`.
    fn htpasswd(&self, options: &[&str], words: &[&str]) {
        run("htpasswd", &[options, &[text(&self.file)], words].concat());
    }

    fn add(&self, name: &str, password: &str) {
        self.htpasswd(&["-bB", "-C", "4"], &[name, password]);
    }

    fn guard(&self) -> Guarded {
        Guarded::by("HtpasswdFile", text(&self.file))
    }
}

#[test]
fn users_of_the_real_htpasswd_are_let_in() {
    let users = Users::new();
    let long = "x".repeat(80);
    users.htpasswd(&["-cbB"], &["alice", "pass:word"]);
    users.add("jürgen", "süß");
    users.add("long", &long);
    users.add("empty", "");
    let guarded = users.guard();
    for right in [
        &b"alice:pass:word"[..],
        "jürgen:süß".as_bytes(),
        b"j\xfcrgen:s\xfc\xdf",
        format!("long:{long}").as_bytes(),
        // What htpasswd has cut off cannot be looked at.
        format!("long:{}", &long[..72]).as_bytes(),
        b"empty:",
    ] {
        // The second time it is remembered.
        guarded.lets_in(&[&authorization(right)]);
        guarded.lets_in(&[&authorization(right)]);
    }
    for wrong in [
        &b"alice:"[..],
        b"alice:pass",
        b"alice:pass:word\0",
        b"alice:pass:word\0x",
        b"Alice:pass:word",
        b"bob:pass:word",
        b":",
        b"#:x",
        format!("long:{}", &long[..71]).as_bytes(),
        format!("alice:{}", "x".repeat(32 * 1024)).as_bytes(),
    ] {
        assert_eq!(guarded.status_of(wrong), "401", "{wrong:?}");
        assert_eq!(guarded.status_of(wrong), "401", "{wrong:?}");
    }
    let log = guarded.log();
    for secret in ["pass:word", "$2y$", &base64(b"alice:pass:word")] {
        assert!(!log.contains(secret), "{log}");
    }
}

/// The C library's, which Python's own way to it was once.
const CRYPT: &str = "import ctypes, sys
crypt = ctypes.CDLL('libcrypt.so.1').crypt
crypt.restype = ctypes.c_char_p
print(crypt(sys.argv[1].encode(), sys.argv[2].encode()).decode())";

#[test]
fn bcrypt_of_any_version_is_taken_and_nothing_else() {
    let users = Users::new();
    let mut lines = String::from("# users\r\n\r\n");
    for version in ["2a", "2b", "2y"] {
        let salt = format!("${version}$05$abcdefghijklmnopqrstuu");
        let hash = run("python3", &["-c", CRYPT, "hunter2", &salt]);
        assert!(hash.starts_with(&salt), "{hash}");
        lines += &format!("u{version}:{hash}\r\n");
    }
    // Who comes first counts.
    lines += "u2y:nothing\n";
    fs::write(&users.file, lines).unwrap();
    for (option, name) in [
        ("-m", "md5"),
        ("-s", "sha1"),
        ("-d", "crypt"),
        ("-p", "plain"),
    ] {
        users.htpasswd(&["-b", option], &[name, "hunter2"]);
    }
    let mut guarded = users.guard();
    let name = text(&users.file);
    for (line, reason) in [
        (6, "an earlier one"),
        (7, "its hash is MD5, and only bcrypt is taken"),
        (8, "its hash is SHA-1, and only bcrypt is taken"),
        (
            9,
            "its hash is crypt or plain text, and only bcrypt is taken",
        ),
        (
            10,
            "its hash is crypt or plain text, and only bcrypt is taken",
        ),
    ] {
        let said = guarded
            .server
            .wait_for_line(&format!("'{name}', line {line} is passed over: "));
        assert!(said.contains(reason) && !said.contains("hunter2"), "{said}");
    }
    for good in ["u2a", "u2b", "u2y"] {
        guarded.lets_in(&[&authorization(format!("{good}:hunter2").as_bytes())]);
    }
    for bad in ["md5", "sha1", "crypt", "plain"] {
        assert_eq!(
            guarded.status_of(format!("{bad}:hunter2").as_bytes()),
            "401",
            "{bad}"
        );
    }
    assert!(!guarded.log().contains("hunter2"));
}

#[test]
fn a_change_of_the_file_counts_from_then_on() {
    let users = Users::new();
    users.add("alice", "one");
    let mut guarded = users.guard();
    guarded.lets_in(&[&authorization(b"alice:one")]);
    // These take the place of the file, and leave its size.
    for password in ["two", "six", "ten"] {
        users.add("alice", password);
        assert_eq!(guarded.status_of(b"alice:one"), "401");
        let pair = format!("alice:{password}");
        guarded.lets_in(&[&authorization(pair.as_bytes())]);
    }
    users.add("bob", "bob");
    guarded.lets_in(&[&authorization(b"bob:bob")]);
    users.htpasswd(&["-D"], &["alice"]);
    assert_eq!(guarded.status_of(b"alice:ten"), "401");
    guarded.lets_in(&[&authorization(b"bob:bob")]);
    guarded.server.wait_for_line("read again: 1 who can log in");
    // Who can log in stays who can, until there is a file again.
    let away = users.file.with_extension("away");
    fs::rename(&users.file, &away).unwrap();
    for _ in 0..3 {
        guarded.lets_in(&[&authorization(b"bob:bob")]);
        assert_eq!(guarded.status_of(b"alice:ten"), "401");
    }
    fs::write(&users.file, "").unwrap();
    assert_eq!(guarded.status_of(b"bob:bob"), "401");
    fs::rename(&away, &users.file).unwrap();
    guarded.lets_in(&[&authorization(b"bob:bob")]);
    let log = guarded.log();
    assert_eq!(log.matches("cannot read").count(), 1, "{log}");
    assert_eq!(
        log.matches("read again: 0 who can log in").count(),
        1,
        "{log}"
    );
}

/// All at once, of whom the half does not know the password.
#[test]
fn a_crowd_is_told_apart() {
    let users = Users::new();
    for name in ["a", "b", "c"] {
        users.add(name, name);
    }
    let guarded = users.guard();
    let address = guarded.server.address();
    let asked = (0..36).map(|number| {
        let name = ["a", "b", "c"][number % 3];
        let (password, status) = [(name, "101"), ("x", "401")][number % 2];
        let line = authorization(format!("{name}:{password}").as_bytes());
        thread::spawn(move || {
            let request = Handshake::default().with(&line).bytes();
            assert_eq!(Client::ask(address, &request).status(), status, "{number}");
        })
    });
    let asked: Vec<_> = asked.collect();
    asked.into_iter().for_each(|one| one.join().unwrap());
}

#[test]
fn only_pages_of_the_expected_origins_are_let_in() {
    let source = "https://a.example http://B.example:8080 app:/x null";
    let guarded = Guarded::by("ExpectOrigin", source);
    for origin in [
        "https://a.example",
        "https://A.example:443",
        "http://b.example:8080",
        "app:/x",
        "null",
    ] {
        guarded.lets_in(&[&format!("Origin: {origin}")]);
    }
    guarded.lets_in(&["Origin: null", "origin: https://a.example"]);
    for lines in [
        &[][..],
        &["Origin:"],
        &["Origin: https://b.example"],
        &["Origin: http://a.example"],
        &["Origin: https://a.example.evil"],
        &["Origin: https://a.example, https://a.example"],
        &["Origin: https://evil.example", "Origin: https://a.example"],
        &["Origin: https://a.example", "Origin: https://evil.example"],
        &["X-Origin: https://a.example"],
        &["Sec-WebSocket-Origin: https://a.example"],
    ] {
        assert_eq!(guarded.status(lines), "403", "{lines:?}");
    }
    for smuggled in ["Origin : null", "X: y\r\n Origin: null", "Origin:\r\n null"] {
        assert_eq!(guarded.status(&[smuggled]), "400", "{smuggled:?}");
    }
    let request = Handshake::default().bytes();
    let mut client = Client::ask(guarded.server.address(), &request);
    let body = String::from_utf8(client.read_body()).unwrap();
    assert!(
        body.contains("Invalid Origin") && !body.contains("a.example"),
        "{body}"
    );
}

/// What a client may send that takes itself for a certificate.
const FORGED: &[&str] = &[
    "SSL_CLIENT_S_DN_CN: alice",
    "ssl_client_s_dn_cn: alice",
    "Ssl_Client_S_Dn_Cn: alice",
    "SSL-CLIENT-S-DN-CN: alice",
    "Ssl-Client-S-Dn-Cn: alice",
    "ssl-client_s-dn_cn: alice",
    "SSL.CLIENT.S.DN.CN: alice",
    "HTTP_SSL_CLIENT_S_DN_CN: alice",
    "_SSL_CLIENT_S_DN_CN: alice",
    "X-SSL-Client-CN: alice",
    "SSL_CLIENT_VERIFY: SUCCESS\r\nSSL_CLIENT_S_DN: CN=alice\r\nSSL_CLIENT_S_DN_CN: alice",
];

/// The same, by headers that are none.
const SMUGGLED: &[&str] = &[
    "SSL_CLIENT_S_DN_CN : alice",
    "SSL_CLIENT_S_DN_CN\t: alice",
    "SSL_CLIENT_S_DN_CN\0: alice",
    " SSL_CLIENT_S_DN_CN: alice",
    "X: y\r\n SSL_CLIENT_S_DN_CN: alice",
    "X: y\r\n\tSSL_CLIENT_S_DN_CN: alice",
    "X: y\rSSL_CLIENT_S_DN_CN: alice",
    "SSL_CLIENT_S_DN_CN: alice\0",
];

/// A server that knows alice and bob by their certificates, and whoever signs these.
struct Certified {
    certificates: Certificates,
    root: Identity,
    server: Identity,
    guarded: Guarded,
}

impl Certified {
    fn new() -> Self {
        let certificates = Certificates::new();
        let root = certificates.authority("root");
        let server = certificates.host("server", FAST, None);
        let trust = ["--verify-client", "--cafile", text(&root.certificate)];
        let auth = [
            "--auth-plugin=ClientCertCNAuth",
            "--auth-source=alice jürgen\tbob",
        ];
        let guarded = Guarded::with(&[&server.options()[..], &trust, &auth].concat());
        Self {
            certificates,
            root,
            server,
            guarded,
        }
    }

    /// A certificate about this subject.
    fn subject(&self, name: &str, subject: &str) -> Identity {
        self.certificates
            .subject(name, subject, "utf8only", &self.root)
    }

    fn showing(&self, identity: &Identity) -> ClientTls {
        ClientTls::showing(&self.server.certificate, identity)
    }

    fn ask(&self, tls: &ClientTls, line: &str) -> Client {
        let mut client = Client::tls(self.guarded.server.address(), tls).unwrap();
        client.request(&Handshake::default().with(line).bytes());
        client
    }

    fn lets_in(&self, identity: &Identity) -> bool {
        let client = self.ask(&self.showing(identity), "X: y");
        match client.status() {
            "101" => drop(self.guarded.target.accept()),
            status => assert_eq!(status, "403"),
        }
        client.status() == "101"
    }
}

#[test]
fn who_shows_a_certificate_with_an_expected_name_is_let_in() {
    let certified = Certified::new();
    for (name, subject) in [
        ("plain", "/CN=alice"),
        ("second", "/CN=bob"),
        ("umlaut", "/CN=jürgen"),
        ("more", "/O=alice's/CN=alice/OU=bob/emailAddress=x@y"),
        ("grouped", "/O=x/CN=alice+UID=carol"),
        ("twice", "/CN=alice/CN=alice"),
    ] {
        assert!(
            certified.lets_in(&certified.subject(name, subject)),
            "{subject}"
        );
    }
    for (mask, kind) in [
        ("MASK:0x2", "PRINTABLESTRING"),
        ("MASK:0x4", "T61STRING"),
        ("MASK:0x800", "BMPSTRING"),
    ] {
        let subject = if mask == "MASK:0x2" {
            "/CN=alice"
        } else {
            "/CN=jürgen"
        };
        let Certified {
            certificates, root, ..
        } = &certified;
        let identity = certificates.subject("kind", subject, mask, root);
        let parsed = run(
            "openssl",
            &["asn1parse", "-in", text(&identity.certificate)],
        );
        assert!(parsed.contains(kind), "{parsed}");
        assert!(certified.lets_in(&identity), "{kind}");
    }
}

#[test]
fn who_shows_another_certificate_is_not_let_in() {
    let certified = Certified::new();
    for (name, subject) in [
        ("other", "/CN=carol"),
        ("case", "/CN=Alice"),
        ("comma", "/CN=alice,bob"),
        ("blank", "/CN=alice bob"),
        ("longer", "/CN=alice "),
        ("within", "/CN=x, CN=alice"),
        ("slash", "/CN=x\\/CN=alice"),
        ("unit", "/O=alice/OU=alice/UID=alice"),
        ("first", "/CN=alice/CN=carol"),
        ("last", "/CN=carol/CN=alice"),
        ("both", "/CN=alice/CN=bob"),
        ("group", "/CN=alice+CN=carol"),
    ] {
        assert!(
            !certified.lets_in(&certified.subject(name, subject)),
            "{subject}"
        );
    }
    // Its SAN says localhost, and that is not asked.
    let host = certified
        .certificates
        .host("host", FAST, Some(&certified.root));
    assert!(!certified.lets_in(&host));
    for (new, name) in [("alice\0evil", "nul"), ("alice\nevil", "line")] {
        let identity = certified.subject(name, "/CN=alice#evil");
        let Certified {
            certificates, root, ..
        } = &certified;
        certificates.alter(&identity, "alice#evil", new, root);
        assert!(!certified.lets_in(&identity), "{name}");
    }
    let log = certified.guarded.log();
    assert_eq!(
        log.matches("it has several common names").count(),
        4,
        "{log}"
    );
    assert_eq!(log.matches("it has no common name").count(), 1, "{log}");
    assert_eq!(log.matches("has control characters").count(), 2, "{log}");
}

#[test]
fn what_another_authority_has_signed_says_nothing() {
    let certified = Certified::new();
    let other = certified.certificates.authority("other");
    let forged = certified
        .certificates
        .subject("forged", "/CN=alice", "utf8only", &other);
    let itself = certified.certificates.host("alice", FAST, None);
    for identity in [&forged, &itself] {
        let address = certified.guarded.server.address();
        let answer = Client::tls(address, &certified.showing(identity)).and_then(|mut client| {
            client.try_send(&Handshake::default().bytes())?;
            client.read_some()
        });
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(!certified.guarded.target.has_visitor());
}

#[test]
fn a_header_does_not_replace_a_certificate() {
    let certified = Certified::new();
    let carol = certified.subject("carol", "/CN=carol");
    let alice = certified.subject("alice", "/CN=alice");
    for line in FORGED {
        assert_eq!(
            certified.ask(&certified.showing(&carol), line).status(),
            "403",
            "{line:?}"
        );
        // Nor does it hurt who has one.
        let mut client = certified.ask(&certified.showing(&alice), &line.replace("alice", "x"));
        assert_eq!(client.status(), "101", "{line:?}");
        certified.guarded.target.accept();
        client.send_close(1000);
    }
    for line in SMUGGLED {
        assert_eq!(
            certified.ask(&certified.showing(&carol), line).status(),
            "400",
            "{line:?}"
        );
    }
    // By plain connections nobody says anything.
    for line in FORGED.iter().chain(SMUGGLED) {
        assert_eq!(certified.guarded.status(&[line]), "400", "{line:?}");
    }
    assert!(!certified.guarded.target.has_visitor());
}

#[test]
fn who_resumes_a_session_is_who_has_begun_it() {
    let certified = Certified::new();
    let alice = certified.subject("alice", "/CN=alice");
    let carol = certified.subject("carol", "/CN=carol");
    let file: &Path = &certified.server.certificate;
    for (version, showing) in [
        (
            ProtocolVersion::TLSv1_3,
            ClientTls::showing as fn(&Path, &Identity) -> ClientTls,
        ),
        (ProtocolVersion::TLSv1_2, ClientTls::old_showing),
    ] {
        for (identity, status) in [(&alice, "101"), (&carol, "403")] {
            let tls = showing(file, identity);
            for kind in [
                HandshakeKind::Full,
                HandshakeKind::Resumed,
                HandshakeKind::Resumed,
            ] {
                let client = certified.ask(&tls, "SSL_CLIENT_S_DN_CN: alice");
                assert_eq!(client.tls_connection().protocol_version(), Some(version));
                assert_eq!(client.tls_connection().handshake_kind(), Some(kind));
                assert_eq!(client.status(), status);
            }
        }
    }
}

#[test]
fn a_certificate_says_nothing_where_none_is_verified() {
    let options = [
        "0",
        ":1",
        "--auth-plugin=ClientCertCNAuth",
        "--auth-source=alice",
    ];
    let output = run_to_end(&options);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("--verify-client"), "{errors}");
}
