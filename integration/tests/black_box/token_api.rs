//! Tokens that a service knows which is asked by HTTP: every kind of answer, and services that are slow, wrong, huge or gone.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use integration::{
    Certificates, Client, DEADLINE, FAST, Identity, Server, Target, accept_tls, reset, run_to_end,
    text, wait_until,
};
use nix::sys::signal::Signal;

use crate::limits::FULL;
use crate::tokens::{reaches, status, with};

/// What a proxy is named by; the tests say themselves whether there is one.
const PROXIES: [&str; 8] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// What a service reads from and writes to.
trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A request, and what it is in the order of things.
struct Asked {
    /// The request line and the headers.
    head: String,
    /// How many requests the connection has brought before this one.
    number: usize,
}

impl Asked {
    /// Path and query.
    fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// A header's value.
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Whether a connection goes on after an answer.
type Next = io::Result<bool>;

/// A service of which the test plays every move.
struct Service {
    address: SocketAddr,
    /// The heads of all requests.
    heads: Arc<Mutex<Vec<String>>>,
    /// How many connections there have been.
    connections: Arc<AtomicUsize>,
}

impl Service {
    /// One that answers each request by this.
    fn new(answer: impl Fn(&Asked, &mut dyn Wire) -> Next + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, None, answer)
    }

    /// The same with TLS.
    fn with_tls(
        identity: Identity,
        answer: impl Fn(&Asked, &mut dyn Wire) -> Next + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, Some(identity), answer)
    }

    fn on(
        listener: TcpListener,
        identity: Option<Identity>,
        answer: impl Fn(&Asked, &mut dyn Wire) -> Next + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let (heads, connections) = (
            Arc::<Mutex<Vec<_>>>::default(),
            Arc::new(AtomicUsize::new(0)),
        );
        let (kept, counted) = (Arc::clone(&heads), Arc::clone(&connections));
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::Relaxed);
                let (answer, heads, identity) =
                    (Arc::clone(&answer), Arc::clone(&kept), identity.clone());
                thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    let mut wire: Box<dyn Wire> = match identity {
                        Some(identity) => Box::new(accept_tls(stream, &identity)),
                        None => Box::new(stream),
                    };
                    // A connection that breaks is over.
                    _ = serve(&mut *wire, &heads, &*answer);
                });
            }
        });
        Self {
            address,
            heads,
            connections,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// The URL with this path.
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn serve(
    wire: &mut dyn Wire,
    heads: &Mutex<Vec<String>>,
    answer: &(impl Fn(&Asked, &mut dyn Wire) -> Next + ?Sized),
) -> io::Result<()> {
    let mut number = 0;
    loop {
        let head = read_head(wire)?;
        heads.lock().unwrap().push(head.clone());
        if !answer(&Asked { head, number }, wire)? {
            return Ok(());
        }
        number += 1;
    }
}

fn read_head(wire: &mut dyn Wire) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        wire.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head).unwrap())
}

/// An answer with a status, headers (each with its line end), and a body.
fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

/// Sends an answer, after which the connection goes on.
fn send(wire: &mut dyn Wire, answer: &str) -> Next {
    wire.write_all(answer.as_bytes())?;
    Ok(true)
}

/// The same with status 200 and this body.
fn ok(wire: &mut dyn Wire, body: &str) -> Next {
    send(wire, &answer("200 OK", "", body))
}

/// A bridge that asks this URL.
fn bridge(plugin: &str, url: &str) -> Server {
    bridge_with(&[], plugin, url, &[])
}

/// The same with variables in its environment, and options.
fn bridge_with(environment: &[&str], plugin: &str, url: &str, options: &[&str]) -> Server {
    let without = PROXIES.iter().flat_map(|name| ["-u", name]);
    let launcher: Vec<_> = std::iter::once("env")
        .chain(without)
        .chain(environment.iter().copied())
        .collect();
    let arguments = [&["--token-plugin", plugin, "--token-source", url], options].concat();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Server::through(&launcher, listener, &arguments);
    server.wait_for_line("to targets generated by ");
    server
}

/// Asks for a token, and returns the status with how long it took.
fn timed(server: &Server, token: &str) -> (String, Duration) {
    let begin = Instant::now();
    let status = status(server, token);
    (status, begin.elapsed())
}

#[test]
fn a_service_answers_in_text_or_in_json() {
    let target = Target::new();
    let address = target.address();
    let port = address.port();
    let bodies = [
        ("text", format!(" {address}\r\n")),
        (
            "number",
            format!("{{\"host\":\"127.0.0.1\",\"port\":{port}}}"),
        ),
        (
            "string",
            format!("{{\"port\":\"{port}\", \"host\":\"127.0.0.1\", \"x\":[1]}}"),
        ),
        ("empty", String::new()),
        ("object", "{}".to_owned()),
        ("null", "null".to_owned()),
        ("html", "<html>no such page</html>".to_owned()),
        ("port0", "h:0".to_owned()),
    ];
    let service = Service::new(move |asked, wire| {
        let name = asked.path().rsplit('/').next().unwrap();
        let body = bodies.iter().find(|(known, _)| *known == name).unwrap();
        ok(wire, &body.1)
    });
    let mut server = bridge("BaseTokenAPI", &service.url("/%s"));
    reaches(&server, "text", &target);
    for unknown in ["empty", "number", "html", "port0", "null"] {
        assert_eq!(status(&server, unknown), "403", "{unknown}");
    }
    server.wait_for_line("the answer for the token … (25 bytes) is no target: it is not host:port");
    let mut server = bridge("JSONTokenApi", &service.url("/%s"));
    for known in ["number", "string"] {
        reaches(&server, known, &target);
    }
    for unknown in ["empty", "text", "object", "null", "html"] {
        assert_eq!(status(&server, unknown), "403", "{unknown}");
    }
    server.wait_for_line("(25 bytes) is no target: it is not JSON");
}

#[test]
fn connections_that_are_kept_take_no_descriptors_from_clients() {
    let target = Target::new();
    let address = target.address().to_string();
    let released = Arc::new(AtomicUsize::new(0));
    let may_answer = Arc::clone(&released);
    let service = Service::new(move |_, wire| {
        while may_answer.load(Ordering::Relaxed) == 0 {
            thread::park_timeout(Duration::from_millis(2));
        }
        ok(wire, &address)
    });
    let few = ["sh", "-c", "ulimit -n 100; exec \"$0\" \"$@\""];
    let mut server = bridge_with(&few, "BaseTokenAPI", &service.url("/%s"), &[]);
    let mut clients: Vec<Client> = (0..60)
        .map(|_| {
            let mut client = Client::raw(server.address());
            client.send(&with("t").bytes());
            client
        })
        .collect();
    let line = server.wait_for_line(FULL);
    let count: usize = line.split(' ').find_map(|word| word.parse().ok()).unwrap();
    // All of them are asked for at the same time, so that many connections are there to be kept.
    wait_until("all questions", || {
        let asked = service.heads.lock().unwrap().len();
        (asked >= count).then_some(())
    });
    released.store(1, Ordering::Relaxed);
    let mut peers = Vec::new();
    for client in &mut clients[..count] {
        client.read_head();
        assert_eq!(client.status(), "101");
        peers.push(target.accept());
    }
    for client in &clients {
        reset(client.stream());
    }
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    assert!(!log.contains("Too many open files"), "{log}");
}

#[test]
fn a_status_tells_whether_the_token_is_unknown_or_the_service_does_not_know() {
    let target = Target::new();
    let address = target.address().to_string();
    let service = Service::new(move |asked, wire| {
        let status = asked.path().trim_start_matches('/');
        send(wire, &answer(&format!("{status} Whatever"), "", &address))
    });
    let mut server = bridge("BaseTokenAPI", &service.url("/%s"));
    for known in ["200", "201", "203", "299", "300"] {
        reaches(&server, known, &target);
    }
    for unknown in ["404", "410"] {
        assert_eq!(status(&server, unknown), "403", "{unknown}");
    }
    for unknown in ["400", "401", "403", "405", "418"] {
        assert_eq!(status(&server, unknown), "403", "{unknown}");
        server.wait_for_line(&format!("HTTP status {unknown} for the token …"));
    }
    for unavailable in ["407", "408", "429", "500", "502", "503", "599"] {
        assert_eq!(status(&server, unavailable), "503", "{unavailable}");
    }
    server.wait_for_line("BaseTokenAPI: HTTP status 407; who needs it is refused until it answers");
    reaches(&server, "200", &target);
    server.wait_for_line("BaseTokenAPI: answers again");
}

#[test]
fn the_service_is_asked_for_the_token_and_nothing_else() {
    let target = Target::new();
    let address = target.address().to_string();
    let service = Service::new(move |_, wire| ok(wire, &address));
    let host = service.address;
    let url = format!("http://us%40er:pa%%3Ass@{host}/a%20b/%%/%s?t=%s&x=1#fragment");
    let server = bridge("BaseTokenAPI", &url);
    for (token, sent) in [
        ("abc", "abc"),
        ("a%2F..%2Fb", "a%2F..%2Fb"),
        ("a%3Fb%23c%26d%3De+f", "a%3Fb%23c%26d%3De%20f"),
        ("%0D%0AX%3A+y", "%0D%0AX%3A%20y"),
        ("%C3%BC%00%25", "%C3%BC%00%25"),
        ("%40%5C", "%40%5C"),
    ] {
        reaches(&server, token, &target);
        let head = service.heads().pop().unwrap();
        let line = format!("GET /a%20b/%25/{sent}?t={sent}&x=1 HTTP/1.1\r\n");
        assert!(head.starts_with(&line), "{head}");
        let asked = Asked { head, number: 0 };
        assert_eq!(asked.header("Host"), Some(host.to_string().as_str()));
        // us@er:pa:ss
        assert_eq!(
            asked.header("Authorization"),
            Some("Basic dXNAZXI6cGE6c3M=")
        );
        assert_eq!(asked.header("X"), None);
    }
    let asked = service.heads().len();
    for climbing in [".", "..", "...", &"x".repeat(60_000)] {
        assert_eq!(status(&server, climbing), "403");
    }
    assert_eq!(service.heads().len(), asked, "nobody needed to ask");
}

#[test]
fn an_answer_may_come_in_every_form_of_http() {
    let target = Target::new();
    let address = target.address().to_string();
    let service = Service::new(move |asked, wire| {
        let (first, last) = address.split_at(5);
        let (first_length, last_length) = (first.len(), last.len());
        let chunks = format!(
            "{first_length:x}\r\n{first}\r\n{last_length:X};x=y\r\n{last}\r\n0\r\nTrailer: t\r\n\r\n"
        );
        let head = "HTTP/1.1 200 OK\r\n";
        match asked.path() {
            "/chunked" => send(
                wire,
                &format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}"),
            ),
            "/both" => {
                let lengths = "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n";
                send(wire, &format!("{head}{lengths}\r\n{chunks}"))?;
                Ok(false)
            }
            "/end" => {
                send(wire, &format!("{head}\r\n{address}"))?;
                Ok(false)
            }
            "/old" => {
                send(wire, &format!("HTTP/1.0 200 OK\r\n\r\n{address}"))?;
                Ok(false)
            }
            "/hints" => {
                let hints = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(3);
                send(wire, &format!("{hints}{}", answer("200 OK", "", &address)))
            }
            "/bytes" => {
                for byte in answer("200 OK", "", &address).bytes() {
                    wire.write_all(&[byte])?;
                    thread::yield_now();
                }
                Ok(true)
            }
            _ => {
                send(wire, &answer("200 OK", "Connection: close\r\n", &address))?;
                Ok(false)
            }
        }
    });
    let server = bridge("BaseTokenAPI", &service.url("/%s"));
    for _ in 0..3 {
        for token in ["chunked", "both", "end", "old", "hints", "bytes", "close"] {
            reaches(&server, token, &target);
        }
    }
}

#[test]
fn redirections_are_followed_and_take_credentials_to_nobody_else() {
    let target = Target::new();
    let address = target.address().to_string();
    let other = Service::new(move |_, wire| ok(wire, &address));
    let elsewhere = other.url("/elsewhere?x=%20y");
    let address = target.address().to_string();
    let service = Service::new(move |asked, wire| {
        let to = |status: &str, location: &str| {
            answer(status, &format!("Location: {location}\r\n"), "ignored:1")
        };
        let again: Option<usize> = asked
            .path()
            .strip_prefix("/again")
            .and_then(|n| n.parse().ok());
        match asked.path() {
            "/t/relative" => send(wire, &to("302 Found", "../here?a b")),
            "/t/absolute" => send(wire, &to("301 Moved Permanently", "/here")),
            "/t/query" => send(wire, &to("307 Temporary Redirect", "?q")),
            "/t/other" => send(wire, &to("308 Permanent Redirect", &elsewhere)),
            "/t/loop" => send(wire, &to("302 Found", "loop")),
            "/t/five" => send(wire, &to("302 Found", "/again4")),
            "/t/six" => send(wire, &to("302 Found", "/again5")),
            "/t/ftp" => send(wire, &to("302 Found", "ftp://h/")),
            "/t/none" => send(wire, &answer("302 Found", "", "")),
            _ => match again {
                Some(left @ 1..) => {
                    send(wire, &to("303 See Other", &format!("/again{}", left - 1)))
                }
                _ => ok(wire, &address),
            },
        }
    });
    let url = format!("http://user:secret@{}/t/%s", service.address);
    let mut server = bridge("BaseTokenAPI", &url);
    for token in ["relative", "absolute", "query", "five"] {
        reaches(&server, token, &target);
    }
    reaches(&server, "other", &target);
    assert!(
        service
            .heads()
            .iter()
            .all(|head| head.contains("uthorization: Basic"))
    );
    assert!(
        service
            .heads()
            .iter()
            .any(|head| head.starts_with("GET /here?a%20b HTTP"))
    );
    let head = other.heads().pop().unwrap();
    assert!(
        head.starts_with("GET /elsewhere?x=%20y HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(!head.to_lowercase().contains("authorization"), "{head}");
    let (before, followed) = (service.heads().len(), 6);
    assert_eq!(status(&server, "loop"), "503");
    assert_eq!(service.heads().len(), before + followed);
    server.wait_for_line("BaseTokenAPI: it redirects more than 5 times; who needs it");
    for token in ["six", "ftp"] {
        assert_eq!(status(&server, token), "503", "{token}");
    }
    assert_eq!(status(&server, "none"), "403");
}

#[test]
fn a_redirection_does_not_lead_out_of_tls() {
    let certificates = Certificates::new();
    let identity = certificates.host("service", FAST, None);
    let target = Target::new();
    let address = target.address().to_string();
    let plain = Service::new(move |_, wire| ok(wire, &address));
    let to = plain.url("/");
    let address = target.address().to_string();
    let encrypted = Service::with_tls(identity.clone(), move |asked, wire| match asked.path() {
        "/out" => send(
            wire,
            &answer("302 Found", &format!("Location: {to}\r\n"), ""),
        ),
        _ => ok(wire, &address),
    });
    let trust = format!("SSL_CERT_FILE={}", text(&identity.certificate));
    let url = format!("https://localhost:{}/%s", encrypted.address.port());
    let mut server = bridge_with(&[&trust], "BaseTokenAPI", &url, &[]);
    reaches(&server, "in", &target);
    assert_eq!(status(&server, "out"), "503");
    server.wait_for_line("it redirects from https to http, where others could read the token");
    assert_eq!(plain.connections(), 0);
    // Into TLS it may lead, with trust that nobody had to ask for before.
    let into = url.replace("%s", "in");
    let plain = Service::new(move |_, wire| {
        send(
            wire,
            &answer("301 Moved", &format!("Location: {into}\r\n"), ""),
        )
    });
    let server = bridge_with(&[&trust], "BaseTokenAPI", &plain.url("/%s"), &[]);
    reaches(&server, "x", &target);
}

#[test]
fn a_service_with_tls_must_be_who_it_says() {
    let certificates = Certificates::new();
    let root = certificates.authority("root");
    let target = Target::new();
    let trust = format!("SSL_CERT_FILE={}", text(&root.certificate));
    for (identity, why) in [
        (certificates.host("signed", FAST, Some(&root)), None),
        (
            certificates.host("unknown", FAST, None),
            Some("signed by nobody who is trusted"),
        ),
        (certificates.expired("expired", &root), Some("has expired")),
        (
            certificates.other_host("other", &root),
            Some("is for another name"),
        ),
    ] {
        let address = target.address().to_string();
        let service = Service::with_tls(identity, move |_, wire| ok(wire, &address));
        let port = service.address.port();
        for host in ["localhost", "127.0.0.1"] {
            let url = format!("https://{host}:{port}/%s");
            let mut server = bridge_with(&[&trust], "BaseTokenAPI", &url, &[]);
            match why {
                None => {
                    reaches(&server, "t", &target);
                    reaches(&server, "t", &target);
                }
                Some(why) => {
                    assert_eq!(status(&server, "t"), "503", "{why}");
                    let line = server.wait_for_line(why);
                    assert!(
                        line.contains(&format!("TLS with {host}:{port} failed")),
                        "{line}"
                    );
                }
            }
        }
        assert_eq!(service.connections(), 2);
    }
}

#[test]
fn a_connection_is_kept_and_replaced_when_it_is_over() {
    let target = Target::new();
    let address = target.address().to_string();
    let service = Service::new(move |asked, wire| match asked.path() {
        // Closes when the next request is there already.
        "/next" if asked.number > 0 => Ok(false),
        // Says nothing of it, and closes.
        "/silent" => {
            ok(wire, &address)?;
            Ok(false)
        }
        _ => ok(wire, &address),
    });
    let server = bridge("BaseTokenAPI", &service.url("/%s"));
    for _ in 0..20 {
        reaches(&server, "kept", &target);
    }
    assert_eq!(service.connections(), 1);
    for _ in 0..10 {
        reaches(&server, "next", &target);
    }
    for _ in 0..10 {
        reaches(&server, "silent", &target);
    }
    // What is broken for everybody is not tried for ever.
    let broken = Service::new(|_, _| Ok(false));
    let mut server = bridge("BaseTokenAPI", &broken.url("/%s"));
    assert_eq!(status(&server, "t"), "503");
    server.wait_for_line("the service has closed the connection before it had answered");
    assert_eq!(broken.connections(), 1);
}

#[test]
fn an_answer_that_nobody_has_asked_for_is_not_taken() {
    let (good, evil) = (Target::new(), Target::new());
    let (right, wrong) = (good.address().to_string(), evil.address().to_string());
    let service = Service::new(move |asked, wire| {
        let forged = answer("200 OK", "", &wrong);
        match asked.path() {
            // In the same segment, and after it.
            "/at-once" => send(wire, &(answer("200 OK", "", &right) + &forged)),
            "/later" => {
                ok(wire, &right)?;
                send(wire, &forged)
            }
            // Two lengths of which one hides an answer.
            "/lengths" => {
                let two = format!("Content-Length: {}\r\n", right.len() + forged.len());
                send(wire, &(answer("200 OK", &two, &right) + &forged))
            }
            "/folded" => send(wire, &answer("200 OK", "X: y\r\n z\r\n", &right)),
            "/bare" => send(wire, &answer("200 OK", "X: y\rz\r\n", &right)),
            "/name" => send(wire, &answer("200 OK", "X y: z\r\n", &right)),
            "/negative" => send(wire, "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nh:1"),
            "/http2" => send(wire, "HTTP/2 200\r\ncontent-length: 3\r\n\r\nh:1"),
            "/short" => {
                send(wire, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nh:1")?;
                Ok(false)
            }
            "/chunk" => {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                send(wire, &format!("{head}zz\r\nh:1\r\n0\r\n\r\n"))
            }
            _ => ok(wire, &right),
        }
    });
    let server = bridge("BaseTokenAPI", &service.url("/%s"));
    for _ in 0..10 {
        for token in ["at-once", "next", "later", "next", "next"] {
            reaches(&server, token, &good);
        }
    }
    for wrong in [
        "lengths", "folded", "bare", "name", "negative", "http2", "short", "chunk",
    ] {
        assert_eq!(status(&server, wrong), "503", "{wrong}");
        reaches(&server, "next", &good);
    }
    assert!(!evil.has_visitor());
}

#[test]
fn an_answer_without_end_is_given_up() {
    let target = Target::new();
    let address = target.address().to_string();
    let service = Service::new(move |asked, wire| {
        let endless = |wire: &mut dyn Wire, text: &str| -> Next {
            loop {
                wire.write_all(text.repeat(1000).as_bytes())?;
            }
        };
        let head = "HTTP/1.1 200 OK\r\n";
        let room = " ".repeat((64 << 10) - address.len());
        match asked.path() {
            "/full" => ok(wire, &format!("{address}{room}")),
            "/more" => ok(wire, &format!("{address}{room} ")),
            "/length" => {
                send(wire, &format!("{head}Content-Length: 99999999999\r\n\r\n"))?;
                endless(wire, "h:1 ")
            }
            "/close" => {
                send(wire, &format!("{head}\r\n"))?;
                endless(wire, "h:1 ")
            }
            "/chunks" => {
                send(wire, &format!("{head}Transfer-Encoding: chunked\r\n\r\n"))?;
                endless(wire, "10\r\n0123456789abcdef\r\n")
            }
            "/line" => {
                send(wire, "HTTP/1.1 200 ")?;
                endless(wire, "OK")
            }
            "/headers" => {
                send(wire, head)?;
                endless(wire, "X: y\r\n")
            }
            "/header" => {
                send(wire, &format!("{head}X: "))?;
                endless(wire, "y")
            }
            "/hints" => endless(wire, "HTTP/1.1 103 Early Hints\r\n\r\n"),
            _ => ok(wire, &address),
        }
    });
    let start = |seconds| {
        let timeout = ["--token-timeout", seconds];
        bridge_with(&[], "BaseTokenAPI", &service.url("/%s"), &timeout)
    };
    let mut server = start("20");
    reaches(&server, "full", &target);
    let memory = server.resident_memory();
    for (token, said) in [
        ("more", "the answer is longer than 64 KiB"),
        ("length", "the answer is longer than 64 KiB"),
        ("close", "the answer is longer than 64 KiB"),
        ("chunks", "the answer is longer than 64 KiB"),
        ("line", "the head of the answer is longer than 64 KiB"),
        ("headers", "the head of the answer is longer than 64 KiB"),
        ("header", "the head of the answer is longer than 64 KiB"),
    ] {
        let mut server = start("20");
        assert_eq!(status(&server, token), "503", "{token}");
        server.wait_for_line(said);
    }
    let mut impatient = start("0.5");
    assert_eq!(status(&impatient, "hints"), "503");
    impatient.wait_for_line("no answer within 0.5 s");
    for _ in 0..10 {
        assert_eq!(status(&server, "length"), "503");
    }
    reaches(&server, "t", &target);
    let grown = server.resident_memory().saturating_sub(memory);
    assert!(grown < 8 << 20, "{grown} bytes");
    server.wait_for_line("answers again");
}

#[test]
fn a_service_that_never_answers_holds_up_nobody_else() {
    let target = Target::new();
    let address = target.address().to_string();
    let (gone, ended) = channel();
    let gone = Mutex::new(gone);
    let service = Service::new(move |asked, wire| match asked.path() {
        "/hang" => {
            // Until the connection is given up.
            let length = wire.read(&mut [0]).unwrap_or_default();
            gone.lock().unwrap().send(length).unwrap();
            Ok(false)
        }
        _ => ok(wire, &address),
    });
    let options = ["--token-timeout", "2"];
    let mut server = bridge_with(&[], "BaseTokenAPI", &service.url("/%s"), &options);
    reaches(&server, "t", &target);
    let descriptors = server.descriptors();
    let hanging: Vec<_> = (0..100)
        .map(|_| {
            let mut client = Client::raw(server.address());
            client.send(&with("hang").bytes());
            client
        })
        .collect();
    for _ in 0..20 {
        reaches(&server, "t", &target);
    }
    for mut client in hanging {
        client.read_head();
        assert_eq!(client.status(), "503");
    }
    // What was given up is over, and leaves nothing behind. On a slow machine some of it has not even begun.
    let asked = || {
        let heads = service.heads();
        heads.iter().filter(|head| head.contains("/hang")).count()
    };
    for _ in 0..asked() {
        assert_eq!(ended.recv_timeout(DEADLINE), Ok(0));
    }
    wait_until("all connections to be closed", || {
        // A second thread has some of its own.
        (server.descriptors() <= descriptors + 10).then_some(())
    });
    server.wait_for_line("BaseTokenAPI: no answer within 2 s; who needs it is refused");
}

#[test]
fn an_outage_is_logged_once_and_is_over_when_the_service_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut server = bridge("BaseTokenAPI", &format!("http://{address}/%s"));
    for _ in 0..20 {
        let (code, took) = timed(&server, "t");
        assert_eq!(code, "503");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    let target = Target::new();
    let to = target.address().to_string();
    let listener = TcpListener::bind(address).unwrap();
    let _service = Service::on(listener, None, move |_, wire| ok(wire, &to));
    reaches(&server, "t", &target);
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    let said = format!("BaseTokenAPI: cannot connect to {address}: Connection refused;");
    assert_eq!(log.matches(&said).count(), 1, "{log}");
    assert!(log.contains("BaseTokenAPI: answers again"), "{log}");
}

#[test]
fn proxies_of_the_environment_are_asked_and_know_only_what_they_have_to() {
    let certificates = Certificates::new();
    let identity = certificates.host("service", FAST, None);
    let target = Target::new();
    let to = target.address().to_string();
    let encrypted = Service::with_tls(identity.clone(), move |_, wire| ok(wire, &to));
    let to = target.address().to_string();
    let proxy = Service::new(move |asked, wire| {
        let Some(host) = asked.head.strip_prefix("CONNECT ") else {
            return ok(wire, &to);
        };
        let host = host.split(' ').next().unwrap();
        if host.starts_with("refused") {
            return send(wire, &answer("403 Forbidden", "", "go away"));
        }
        wire.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        relay(wire, TcpStream::connect(host)?);
        Ok(false)
    });
    let through = format!("http_proxy=http://me:pw@{}", proxy.address);
    let server = bridge_with(
        &[&through],
        "BaseTokenAPI",
        "http://u:p@service.invalid/%s",
        &[],
    );
    reaches(&server, "t", &target);
    let asked = Asked {
        head: proxy.heads().pop().unwrap(),
        number: 0,
    };
    assert_eq!(asked.path(), "http://service.invalid/t");
    assert_eq!(asked.header("Host"), Some("service.invalid"));
    assert_eq!(asked.header("Proxy-Authorization"), Some("Basic bWU6cHc="));
    assert_eq!(asked.header("Authorization"), Some("Basic dTpw"));

    let through = format!("HTTPS_PROXY={}", proxy.address);
    let trust = format!("SSL_CERT_FILE={}", text(&identity.certificate));
    let port = encrypted.address.port();
    let url = format!("https://u:p@localhost:{port}/%s");
    let server = bridge_with(&[&through, &trust], "BaseTokenAPI", &url, &[]);
    for _ in 0..3 {
        reaches(&server, "secret", &target);
    }
    let head = proxy.heads().pop().unwrap();
    assert!(
        head.starts_with(&format!("CONNECT localhost:{port} HTTP/1.1\r\n")),
        "{head}"
    );
    assert!(
        !head.contains("secret") && !head.contains("uthorization"),
        "{head}"
    );
    assert_eq!(encrypted.connections(), 1);

    let asked = proxy.heads().len();
    let but = "NO_PROXY=example.com, localhost";
    let server = bridge_with(&[&through, &trust, but], "BaseTokenAPI", &url, &[]);
    reaches(&server, "t", &target);
    assert_eq!(proxy.heads().len(), asked);

    let url = "https://refused.invalid/%s";
    let mut server = bridge_with(&[&through, &trust], "BaseTokenAPI", url, &[]);
    assert_eq!(status(&server, "t"), "503");
    server.wait_for_line("BaseTokenAPI: the proxy answers HTTP status 403;");
}

/// Carries bytes both ways until one side ends.
fn relay(wire: &mut dyn Wire, mut other: TcpStream) {
    // One request and its answer at a time: that is all that is needed here, after a handshake that goes back and forth.
    other
        .set_read_timeout(Some(Duration::from_millis(5)))
        .unwrap();
    let mut buffer = [0; 1 << 14];
    while let Ok(length @ 1..) = wire.read(&mut buffer) {
        if other.write_all(&buffer[..length]).is_err() {
            return;
        }
        while let Ok(length @ 1..) = other.read(&mut buffer) {
            if wire.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    }
}

#[test]
fn a_host_may_be_an_ipv6_address() {
    let target = Target::new();
    let to = target.address().to_string();
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        // This machine has no IPv6.
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let service = Service::on(listener, None, move |_, wire| ok(wire, &to));
    let server = bridge("BaseTokenAPI", &format!("http://[::1]:{port}/%s"));
    reaches(&server, "t", &target);
    let head = service.heads().pop().unwrap();
    assert!(
        head.to_lowercase()
            .contains(&format!("host: [::1]:{port}\r\n")),
        "{head}"
    );
}

#[test]
fn many_ask_at_once_and_nobody_gets_the_answer_of_another() {
    const TARGETS: usize = 50;
    let targets: Vec<_> = (0..TARGETS)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses: Vec<_> = targets
        .iter()
        .map(|target| target.local_addr().unwrap().to_string())
        .collect();
    for (number, target) in targets.into_iter().enumerate() {
        thread::spawn(move || {
            for stream in target.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let mut stream = stream;
                    _ = stream.write_all(&[number as u8]);
                    // Until the client goes.
                    _ = stream.read(&mut [0]);
                });
            }
        });
    }
    let service = Service::new(move |asked, wire| {
        let number: usize = asked.path()[1..].parse().unwrap();
        // Some connections end in between.
        let close = (asked.number + number).is_multiple_of(7);
        let headers = if close { "Connection: close\r\n" } else { "" };
        send(wire, &answer("200 OK", headers, &addresses[number]))?;
        Ok(!close)
    });
    let server = bridge("BaseTokenAPI", &service.url("/%s"));
    let address = server.address();
    let clients: Vec<_> = (0..4 * TARGETS)
        .map(|client| {
            thread::spawn(move || {
                for round in 0..5 {
                    let number = (client * 7 + round * 13) % TARGETS;
                    let mut client = Client::with(address, &with(&number.to_string()));
                    assert_eq!(client.read_binary(1), [number as u8]);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn what_cannot_be_asked_is_told_at_the_start_and_no_secret_is() {
    for (url, said) in [
        ("http://u:hunter2@h/", "there is no %s in it"),
        ("u:hunter2@h/%s", "does not begin with http:// or https://"),
        (
            "ftp://u:hunter2@h/%s",
            "does not begin with http:// or https://",
        ),
        ("http://u:hunter2@%s/", "there is no host in it"),
        ("http://u:hunter2@h:x/%s", "its port is not from 1 to 65535"),
        (
            "http://u:hunter2@h%s/",
            "%s can only stand in its path or query",
        ),
    ] {
        let output = run_to_end(&["0", "--token-plugin", "JSONTokenApi", "--token-source", url]);
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("--token-plugin JSONTokenApi: "), "{log}");
        assert!(log.contains(said), "{log}");
        assert!(!log.contains("hunter2"), "{log}");
        assert_eq!(log.trim().lines().count(), 1, "{log}");
        assert_eq!(output.status.code(), Some(1), "{log}");
    }
}

#[test]
fn nothing_secret_is_logged_whatever_goes_wrong() {
    let (token, password, key) = ("hunter2-is-the-token", "hunter2pw", "hunter2key");
    let said = Mutex::new(String::new());
    let service = Service::new(move |asked, wire| {
        let path = asked.path().to_owned();
        let again = format!("Location: {path}\r\n");
        match path.split('?').next().unwrap().rsplit('/').next().unwrap() {
            "a" => ok(wire, &path),
            "b" => send(wire, &answer("500 Oops", "", &path)),
            "c" => send(wire, &answer("302 Found", &again, "")),
            "d" => send(wire, &path),
            "e" => send(wire, &answer("404 Not Found", "", &path)),
            "f" => send(wire, &answer("302 Found", "Location: ftp://h/\r\n", &path)),
            _ => Ok(false),
        }
    });
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for case in ["a", "b", "c", "d", "e", "f", "g", "closed", "name"] {
        let host = match case {
            "closed" => closed.to_string(),
            "name" => "no.such.host.invalid".to_owned(),
            _ => service.address.to_string(),
        };
        let url = format!("http://user:{password}@{host}/{key}/{case}?t=%s");
        let mut server = bridge_with(&[], "BaseTokenAPI", &url, &["-v"]);
        let code = status(&server, token);
        assert!(["403", "503"].contains(&code.as_str()), "{case}: {code}");
        server.signal(Signal::SIGTERM);
        writeln!(said.lock().unwrap(), "{}", server.rest_of_log()).unwrap();
    }
    let log = said.into_inner().unwrap();
    assert!(!log.contains("hunter2"), "{log}");
    assert!(
        log.contains("refused: the token …oken is not known"),
        "{log}"
    );
    let lines = BufReader::new(log.as_bytes()).lines();
    assert_eq!(
        lines
            .filter(|line| line.as_ref().unwrap().contains("who needs it is refused"))
            .count(),
        7,
        "{log}"
    );
}
