//! `--metrics`: what is counted, whether clients can be served, and who may hurt the service by that port.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use integration::{
    Certificates, Client, DEADLINE, Daemon, FAST, Handshake, Said, Scratch, Server, Target,
    as_root, executable, pattern, reset, run_to_end, text, wait_until,
};
use nix::libc::O_NONBLOCK;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Backlog, listen};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;

use crate::proxies::Proxy;
use crate::session::nobody_listens;
use crate::wrapping::{program, round_trip};

/// What judges the page; `make test` fetches it.
const PROMTOOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/promtool/promtool");
const DASHBOARD: &str = include_str!("../../../websockify/contrib/grafana/websockify.json");
const README: &str = include_str!("../../../README.md");

/// A bridge with these arguments that serves its figures, and where it does.
fn watched(arguments: &[&str]) -> (Server, SocketAddr) {
    let mut server = Server::with(&[&["--metrics", "0"], arguments].concat());
    let figures = figures_of(&server.wait_for_line("  - Metrics on "));
    (server, figures)
}

/// The address in a line of the settings.
fn figures_of(settings: &str) -> SocketAddr {
    let (_, address) = settings.split_once("  - Metrics on http://").unwrap();
    let (address, rest) = address.split_once("/metrics").unwrap();
    assert!(rest.is_empty() || rest.starts_with('\n'), "{settings}");
    address.parse().unwrap()
}

/// A connection that gives up after the deadline.
fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends a request, and returns the head of the answer and what follows.
fn ask(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn get(address: SocketAddr, path: &str) -> (String, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"))
}

/// The page with the figures.
fn page(address: SocketAddr) -> String {
    let (head, page) = get(address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    page
}

/// Status and line of the other page.
fn health(address: SocketAddr) -> (String, String) {
    let (head, line) = get(address, "/healthz");
    (head[9..12].to_owned(), line)
}

/// The figures of a page.
fn figures(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let figures = lines.map(|line| {
        let (series, figure) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), figure.parse().unwrap())
    });
    figures.collect()
}

fn figure(address: SocketAddr, series: &str) -> f64 {
    let figures = figures(&page(address));
    *figures.get(series).unwrap_or_else(|| panic!("{series}"))
}

fn wait_for_figure(address: SocketAddr, series: &str, figure: f64) {
    wait_until(series, || {
        (self::figure(address, series) == figure).then_some(())
    });
}

/// What has changed of the figures that do not change by themselves; of durations, how many there were.
fn changes(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
    assert!(before.keys().eq(after.keys()));
    let steady = |series: &str| {
        let is_duration = series.contains("_bucket{") || series.contains("_seconds_sum{");
        series.starts_with("websockify_") && !is_duration
    };
    let changed = after.iter().filter(|(series, _)| steady(series));
    let changed = changed.map(|(series, figure)| (series.clone(), figure - before[series]));
    changed.filter(|(_, change)| *change != 0.0).collect()
}

/// Checks that `cause`, in which one client connects and leaves, changes these figures by one and the number of connections, and
/// nothing else.
fn counts(address: SocketAddr, what: &str, expected: &[&str], cause: impl FnOnce()) {
    let one = expected.iter().map(|series| ((*series).to_owned(), 1.0));
    counts_so(address, what, one.collect(), cause);
}

fn counts_so(
    address: SocketAddr,
    what: &str,
    mut expected: Vec<(String, f64)>,
    cause: impl FnOnce(),
) {
    let before = figures(&page(address));
    cause();
    expected.push(("websockify_connections_total".to_owned(), 1.0));
    expected.sort_by(|one, other| one.0.cmp(&other.0));
    let deadline = Instant::now() + DEADLINE;
    loop {
        let changes = changes(&before, &figures(&page(address)));
        if changes == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {changes:#?}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

fn ended(closed_by: &str, cause: &str) -> String {
    format!("websockify_sessions_total{{closed_by=\"{closed_by}\",cause=\"{cause}\"}}")
}

fn connected(outcome: &str) -> String {
    format!("websockify_target_connect_duration_seconds_count{{outcome=\"{outcome}\"}}")
}

fn refused(reason: &str) -> String {
    format!("websockify_refused_total{{reason=\"{reason}\"}}")
}

fn asked(what: &str, plugin: &str, outcome: &str) -> String {
    format!("websockify_{what}_duration_seconds_count{{plugin=\"{plugin}\",outcome=\"{outcome}\"}}")
}

/// Sends bytes as a client, and reads what is answered to the end.
fn send(address: SocketAddr, bytes: &[u8]) {
    let mut stream = connect(address);
    stream.write_all(bytes).unwrap();
    _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn each_end_of_a_session_counts_once_and_nothing_else_does() {
    let target = Target::new();
    let listening = target.address().to_string();
    let (server, figures) = watched(&[&listening]);
    let address = server.address();
    let session = || (Client::connect(address), target.accept());
    let ends = |closed_by, cause| [ended(closed_by, cause), connected("connected")];
    let check = |what: &str, expected: [String; 2], cause: &dyn Fn()| {
        counts(
            figures,
            what,
            &expected.each_ref().map(|text| &text[..]),
            cause,
        );
    };
    check("close frame", ends("client", "closed"), &|| {
        let (mut client, _peer) = session();
        client.send_close(1000);
        client.read_to_close();
    });
    check("no close frame", ends("client", "lost"), &|| {
        drop(session());
    });
    check("no mask", ends("client", "violation"), &|| {
        let (mut client, _peer) = session();
        client.send(&[0x82, 0]);
    });
    let (impatient, its_figures) = watched(&["--heartbeat", "0.3", &listening]);
    let silent = ends("client", "silent");
    let silent = silent.each_ref().map(|text| &text[..]);
    counts(its_figures, "no pong", &silent, || {
        let mut client = Client::connect(impatient.address());
        let _peer = target.accept();
        _ = client.read_rest();
    });
    check("target closes", ends("target", "closed"), &|| {
        let (mut client, peer) = session();
        drop(peer);
        client.read_to_close();
    });
    check("target resets", ends("target", "lost"), &|| {
        let (mut client, peer) = session();
        reset(&peer);
        drop(peer);
        client.read_to_close();
    });
    let bytes = |direction| format!("websockify_bytes_total{{direction=\"{direction}\"}}");
    let expected = vec![
        (ended("client", "closed"), 1.0),
        (connected("connected"), 1.0),
        (bytes("from_client"), 3.0),
        (bytes("from_target"), 7.0),
    ];
    counts_so(figures, "bytes", expected, || {
        let (mut client, mut peer) = session();
        client.send_binary(b"ask");
        peer.read_exact(&mut [0; 3]).unwrap();
        peer.write_all(b"answer!").unwrap();
        client.read_binary(7);
        client.send_close(1000);
        client.read_to_close();
    });
    counts(figures, "not a word", &[], || drop(connect(address)));
}

#[test]
fn what_becomes_of_connecting_is_counted_by_its_outcome() {
    let (_guard, nowhere) = nobody_listens();
    let target = Target::new();
    let listening = target.address().to_string();
    let directory = Scratch::new().unwrap();
    let socket = directory.path().join("missing");
    let long_name = format!("{}:1", "a".repeat(64));
    for (arguments, outcome) in [
        (&[&nowhere.to_string()[..]][..], "unreachable"),
        (&["--unix-target", text(&socket)], "unreachable"),
        (&[&long_name], "unresolved"),
        (
            &["--wrap-timeout", "0.2", "--", "sleep", "1000"],
            "not_listening",
        ),
        (&["--wrap-mode=ignore", "--", "true"], "not_listening"),
        (&["--ssl-target", &listening], "tls"),
    ] {
        let (server, figures) = watched(arguments);
        if outcome == "not_listening" {
            wait_for_figure(figures, "websockify_program_starts_total", 1.0);
        }
        if arguments.contains(&"true") {
            let state = "websockify_program_state{state=\"gone\"}";
            wait_for_figure(figures, state, 1.0);
        }
        let expected = [ended("target", "unreachable"), connected(outcome)];
        counts(
            figures,
            outcome,
            &expected.each_ref().map(|text| &text[..]),
            || {
                let mut client = Client::connect(server.address());
                if outcome == "tls" {
                    target.accept();
                }
                assert_eq!(client.read_to_close().1, Some(1011));
            },
        );
    }
    // A client that does not wait for the program.
    let (server, figures) = watched(&["--", "sleep", "1000"]);
    wait_for_figure(figures, "websockify_program_starts_total", 1.0);
    let expected = [ended("client", "left"), connected("abandoned")];
    let expected = expected.each_ref().map(|text| &text[..]);
    counts(figures, "left", &expected, || {
        drop(Client::connect(server.address()));
    });
}

#[test]
fn each_refusal_counts_once_by_its_reason() {
    let target = Target::new();
    let target = target.address().to_string();
    let certificates = Certificates::new();
    let identity = certificates.host("server", FAST, None);
    let encrypted = identity.options();
    let directory = Scratch::new().unwrap();
    fs::write(directory.path().join("page.html"), "hello").unwrap();
    let upgrade = Handshake::default();
    let plain = |line: &str| upgrade.clone().without("Upgrade").request_line(line);
    let hello = b"\x16\x03\x01\x00\x05hello";
    let web = ["--web", text(directory.path())];
    let header = ["--trusted-proxy", "127.0.0.1", "--accept-proxy-protocol"];
    let contradiction = upgrade.clone().with("Forwarded: for=192.0.2.1");
    let contradiction = contradiction.with("X-Forwarded-For: 192.0.2.2");
    // Arguments, bytes of a client, reasons.
    let cases: [(&[&str], Vec<u8>, &[&str]); 21] = [
        (&[], hello.to_vec(), &["tls_unavailable"]),
        (&[], b"\x80\x2e\x01".to_vec(), &["tls"]),
        (&encrypted, hello.to_vec(), &["tls"]),
        (
            &[&encrypted[..], &["--ssl-only"]].concat(),
            upgrade.bytes(),
            &["tls_required"],
        ),
        (&["--handshake-timeout", "0.2"], b"".to_vec(), &["timeout"]),
        (
            &["--handshake-timeout", "0.2"],
            b"GET / HTTP/1.1\r\nHost: ".to_vec(),
            &["timeout"],
        ),
        (
            &[&encrypted[..], &["--handshake-timeout", "0.2"]].concat(),
            b"\x16\x03".to_vec(),
            &["timeout"],
        ),
        (&[], b"not HTTP\r\n\r\n".to_vec(), &["bad_request"]),
        (
            &[],
            upgrade
                .clone()
                .with(&format!("X: {}", "x".repeat(1 << 17)))
                .bytes(),
            &["bad_request"],
        ),
        (
            &[],
            upgrade.clone().without("Sec-WebSocket-Key").bytes(),
            &["bad_request"],
        ),
        (
            &[],
            upgrade
                .clone()
                .replace("Sec-WebSocket-Version", "99")
                .bytes(),
            &["version"],
        ),
        (&[], plain("GET / HTTP/1.1").bytes(), &["not_upgrade"]),
        (
            &web,
            plain("PUT /page.html HTTP/1.1").bytes(),
            &["not_upgrade"],
        ),
        (
            &web,
            plain("GET /missing HTTP/1.1")
                .with("Connection: close")
                .bytes(),
            &["not_found"],
        ),
        (
            &web,
            plain("GET /page.html HTTP/1.1")
                .with("Connection: close")
                .bytes(),
            &[],
        ),
        (
            &["--allow-origin", "https://ours.example"],
            upgrade
                .clone()
                .with("Origin: https://theirs.example")
                .bytes(),
            &["origin"],
        ),
        (&header, upgrade.bytes(), &["proxy"]),
        (
            &[&header[..], &["--handshake-timeout", "0.2"]].concat(),
            b"PROXY TCP4".to_vec(),
            &["timeout"],
        ),
        (&header[..2], contradiction.bytes(), &["proxy"]),
        // A Flash player gets what it wants.
        (&[], b"<policy-file-request/>\0".to_vec(), &[]),
        // One that leaves in the middle was not refused.
        (&[], b"GET / HT".to_vec(), &[]),
    ];
    for (arguments, bytes, reasons) in cases {
        let (server, figures) = watched(&[arguments, &[&target]].concat());
        let expected: Vec<_> = reasons.iter().map(|reason| refused(reason)).collect();
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        let what = format!(
            "{arguments:?} {}",
            bytes[..bytes.len().min(60)].escape_ascii()
        );
        counts(figures, &what, &expected, || {
            let leaves = reasons.is_empty() && bytes.starts_with(b"GET / HT");
            if leaves {
                return connect(server.address()).write_all(&bytes).unwrap();
            }
            send(server.address(), &bytes);
        });
    }
}

#[test]
fn look_ups_and_questions_are_counted_by_their_outcomes() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, format!("desk: {}\n", target.address())).unwrap();
    let arguments = [
        "--token-plugin",
        "TokenFile",
        "--token-source",
        text(&tokens),
        "--auth-plugin",
        "BasicHTTPAuth",
        "--auth-source",
        "u:p",
    ];
    let (server, figures) = watched(&arguments);
    let upgrade = |path: &str, credentials: &str| {
        let handshake = Handshake::default().request_line(&format!("GET {path} HTTP/1.1"));
        handshake
            .with(&format!("Authorization: Basic {credentials}"))
            .bytes()
    };
    // `u:p`, and another.
    let (right, wrong) = ("dTpw", "dTpx");
    let look_up = |outcome| asked("lookup", "TokenFile", outcome);
    let auth = |outcome| asked("auth", "BasicHTTPAuth", outcome);
    let allowed = auth("allowed");
    let all = |series: &[String], cause: &dyn Fn()| {
        let series: Vec<_> = series.iter().map(String::as_str).collect();
        counts(figures, &series.join(", "), &series, cause);
    };
    let address = server.address();
    all(&[refused("auth"), auth("refused")], &|| {
        send(address, &upgrade("/?token=desk", wrong));
    });
    all(&[refused("token_missing"), allowed.clone()], &|| {
        send(address, &upgrade("/", right));
    });
    let unknown = [
        refused("token_unknown"),
        allowed.clone(),
        look_up("unknown"),
    ];
    all(&unknown, &|| {
        send(address, &upgrade("/?token=other", right));
    });
    let found = [
        ended("client", "closed"),
        connected("connected"),
        allowed,
        look_up("found"),
    ];
    all(&found, &|| {
        let mut client = Client::ask(address, &upgrade("/?token=desk", right));
        let _peer = target.accept();
        client.send_close(1000);
        client.read_to_close();
    });
    // What cannot be asked.
    let (_guard, nowhere) = nobody_listens();
    let source = format!("http://{nowhere}/%s");
    let (server, figures) = watched(&["--token-plugin", "BaseTokenAPI", "--token-source", &source]);
    let expected = [
        refused("unavailable"),
        asked("lookup", "BaseTokenAPI", "unavailable"),
    ];
    counts(
        figures,
        "no service",
        &expected.each_ref().map(|text| &text[..]),
        || {
            send(
                server.address(),
                &Handshake::default()
                    .request_line("GET /?token=t HTTP/1.1")
                    .bytes(),
            );
        },
    );
    let target = target.address().to_string();
    let script = "while read -r line; do id=${line#'{\"id\":'}; echo \"{\\\"id\\\":${id%%,*},\\\"error\\\":\\\"x\\\"}\"; done";
    let script_file = directory.path().join("auth.sh");
    fs::write(&script_file, script).unwrap();
    let source = format!("sh {}", script_file.display());
    let (server, figures) = watched(&["--auth-plugin", "Exec", "--auth-source", &source, &target]);
    let expected = [refused("unavailable"), asked("auth", "Exec", "unavailable")];
    counts(
        figures,
        "no answer",
        &expected.each_ref().map(|text| &text[..]),
        || send(server.address(), &Handshake::default().bytes()),
    );
}

#[test]
fn each_connection_that_is_too_many_of_its_address_counts_whether_it_is_answered_or_not() {
    let target = Target::new();
    let options = ["--max-connections-per-address", "1"];
    let (server, figures) = watched(&[&options[..], &[&target.address().to_string()]].concat());
    let address = server.address();
    let _client = Client::connect(address);
    let _peer = target.accept();
    counts(figures, "one too many", &[&refused("too_many")], || {
        let client = Client::ask(address, &Handshake::default().bytes());
        assert_eq!(client.status(), "503");
    });
    // The second is there, and has said nothing.
    let _second = Client::raw(address);
    wait_for_figure(figures, "websockify_connections_open", 2.0);
    counts(figures, "far too many", &[&refused("too_many")], || {
        assert_eq!(connect(address).read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn who_comes_after_the_one_session_is_counted_and_health_says_that_nobody_is_taken() {
    let target = Target::new();
    let (server, figures) = watched(&["--run-once", &target.address().to_string()]);
    let mut late = Client::raw(server.address());
    wait_for_figure(figures, "websockify_connections_open", 1.0);
    assert_eq!(health(figures), ("200".to_owned(), "ok\n".to_owned()));
    // It was asked for as well.
    target.accept();
    let _client = Client::connect(server.address());
    let _peer = target.accept();
    late.request(&Handshake::default().bytes());
    assert_eq!(late.status(), "503");
    wait_for_figure(figures, &refused("full"), 1.0);
    assert_eq!(figure(figures, "websockify_sessions_open"), 1.0);
    let full = ("503".to_owned(), "no more clients are taken\n".to_owned());
    assert_eq!(health(figures), full);
}

#[test]
fn the_bytes_of_a_long_session_show_while_it_lasts() {
    const LENGTH: usize = 4 << 20;
    let from = |direction| format!("websockify_bytes_total{{direction=\"{direction}\"}}");
    let target = Target::new();
    let (server, figures) = watched(&[&target.address().to_string()]);
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    for round in 1..=2 {
        let data = pattern(LENGTH);
        thread::scope(|scope| {
            let mut writer = peer.try_clone().unwrap();
            let sent = data.clone();
            scope.spawn(move || writer.write_all(&sent).unwrap());
            assert_eq!(client.read_binary(LENGTH), data);
        });
        wait_for_figure(figures, &from("from_target"), (round * LENGTH) as f64);
        client.send_binary(&data[..round]);
        peer.read_exact(&mut vec![0; round]).unwrap();
    }
    wait_for_figure(figures, &from("from_client"), 3.0);
    assert_eq!(figure(figures, "websockify_sessions_open"), 1.0);
    assert_eq!(figure(figures, "websockify_connections_open"), 1.0);
}

#[test]
fn figures_stay_exact_and_are_told_while_much_goes_on() {
    const SESSIONS: usize = 40;
    const LENGTH: usize = 100_000;
    let target = Target::new();
    let (server, address) = watched(&[&target.address().to_string()]);
    let done = AtomicBool::new(false);
    let bridge = server.address();
    let pages = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut last = figures(&page(address));
            let mut pages = 1;
            while !done.load(Ordering::Relaxed) {
                let next = figures(&page(address));
                let only_up = |series: &str| series.contains("_total") || series.contains("_count");
                for (series, figure) in next.iter().filter(|(series, _)| only_up(series)) {
                    assert!(last[series] <= *figure, "{series}");
                }
                assert!(next["websockify_sessions_open"] <= SESSIONS as f64);
                last = next;
                pages += 1;
            }
            pages
        });
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..SESSIONS / 4 {
                        let mut client = Client::connect(bridge);
                        let mut peer = target.accept();
                        // Whichever session it is of.
                        let writer = scope.spawn(move || {
                            peer.write_all(&vec![7; LENGTH]).unwrap();
                            peer.read_exact(&mut [0; 5]).unwrap();
                        });
                        client.send_binary(b"hello");
                        client.read_binary(LENGTH);
                        writer.join().unwrap();
                        client.send_close(1000);
                        client.read_to_close();
                    }
                })
            })
            .collect();
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
        wait_for_figure(address, "websockify_connections_open", 0.0);
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert!(pages > 3, "{pages}");
    let figures = figures(&page(address));
    let sum = |start: &str| -> f64 {
        let series = figures
            .iter()
            .filter(|(series, _)| series.starts_with(start));
        series.map(|(_, figure)| figure).sum()
    };
    assert_eq!(sum("websockify_sessions_total"), SESSIONS as f64);
    assert_eq!(sum("websockify_connections_total"), SESSIONS as f64);
    assert_eq!(sum("websockify_sessions_open"), 0.0);
    let from_target = &figures["websockify_bytes_total{direction=\"from_target\"}"];
    assert_eq!(*from_target, (SESSIONS * LENGTH) as f64);
    let from_client = &figures["websockify_bytes_total{direction=\"from_client\"}"];
    assert_eq!(*from_client, (SESSIONS * 5) as f64);
}

/// One of the script's programs, wrapped, that waits at a gate before it listens.
struct Gated {
    server: Server,
    figures: SocketAddr,
    directory: Scratch,
}

impl Gated {
    fn new(options: &[&str], kind: &str) -> Self {
        let directory = Scratch::new().unwrap();
        mkfifo(&directory.path().join("gate"), Mode::S_IRWXU).unwrap();
        let wait = format!(
            "cat {}/gate; exec python3 \"$0\" \"$@\"",
            directory.path().display()
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let script = program();
        let command = ["--", "sh", "-c", &wait, text(&script), kind, &port];
        let arguments = [&["--metrics", "0"], options, &command].concat();
        let mut server = Server::on(listener, &arguments);
        let figures = figures_of(&server.wait_for_line("  - Metrics on "));
        Self {
            server,
            figures,
            directory,
        }
    }

    /// Lets it go on that waits.
    fn open(&self) {
        let mut gate = OpenOptions::new();
        gate.write(true).custom_flags(O_NONBLOCK);
        let path = self.directory.path().join("gate");
        wait_until("the program to come to the gate", || gate.open(&path).ok());
    }

    fn wait_for_state(&self, state: &str) {
        wait_until(state, || is_in_state(self.figures, state).then_some(()));
    }
}

/// What is said of a program in one state.
fn is_in_state(address: SocketAddr, state: &str) -> bool {
    let figures = figures(&page(address));
    let figure = |other| figures[&format!("websockify_program_state{{state=\"{other}\"}}")];
    let states = ["starting", "listening", "gone"].map(figure);
    assert_eq!(states.iter().sum::<f64>(), 1.0);
    let up = figures["websockify_program_up"];
    assert_eq!(up, figure("listening"));
    figure(state) == 1.0
}

#[test]
fn a_wrapped_program_is_told_of_from_its_start_to_its_end() {
    let starts = |address| figure(address, "websockify_program_starts_total");
    let ready = || ("200".to_owned(), "ok\n".to_owned());
    let not_ready = |why: &str| ("503".to_owned(), format!("the wrapped program {why}\n"));
    let program = Gated::new(&["--wrap-mode=respawn"], "echo");
    let figures = program.figures;
    wait_for_figure(figures, "websockify_program_starts_total", 1.0);
    assert!(is_in_state(figures, "starting"));
    assert_eq!(health(figures), not_ready("does not listen yet"));
    program.open();
    program.wait_for_state("listening");
    assert_eq!(health(figures), ready());
    assert_eq!(starts(figures), 1.0);
    let pid = round_trip(program.server.address()).parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    program.wait_for_state("starting");
    assert_eq!(health(figures), not_ready("does not listen yet"));
    program.open();
    program.wait_for_state("listening");
    assert_eq!(health(figures), ready());
    assert_eq!(starts(figures), 2.0);
    // It was never probed: its only client was ours.
    let page = self::figures(&page(figures));
    for series in [connected("connected"), ended("client", "closed")] {
        assert_eq!(page[&series], 1.0);
    }

    let program = Gated::new(&["--wrap-mode=ignore"], "one_shot");
    program.open();
    program.wait_for_state("listening");
    drop(Client::connect(program.server.address()));
    program.wait_for_state("gone");
    assert_eq!(health(program.figures), not_ready("is gone"));
}

#[test]
fn health_follows_the_target_which_is_not_asked_too_often() {
    let (socket, address) = nobody_listens();
    let (_server, figures) = watched(&[&address.to_string()]);
    let expected = format!("the target: Connection refused ({address})\n");
    assert_eq!(health(figures), ("503".to_owned(), expected));
    listen(&socket, Backlog::new(128).unwrap()).unwrap();
    let target = TcpListener::from(socket);
    target.set_nonblocking(true).unwrap();
    let start = Instant::now();
    wait_until("health", || (health(figures).0 == "200").then_some(()));
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(health(figures).1, "ok\n")));
        }
    });
    let visitors = std::iter::from_fn(|| target.accept().ok()).count();
    let seconds = start.elapsed().as_secs() as usize;
    assert!(
        (1..=seconds + 1).contains(&visitors),
        "{visitors} in {seconds} s"
    );
    drop(target);
    wait_until("health", || (health(figures).0 == "503").then_some(()));

    let directory = Scratch::new().unwrap();
    let path = directory.path().join("socket");
    let (_server, figures) = watched(&["--unix-target", text(&path)]);
    let missing = "the target: No such file or directory\n".to_owned();
    assert_eq!(health(figures), ("503".to_owned(), missing));
    let _target = UnixListener::bind(&path).unwrap();
    wait_until("health", || (health(figures).0 == "200").then_some(()));
    // Where each client has a target of its own.
    let (_server, figures) = watched(&[
        "--token-plugin",
        "TokenFile",
        "--token-source",
        text(directory.path()),
    ]);
    assert_eq!(health(figures), ("200".to_owned(), "ok\n".to_owned()));
}

#[test]
fn a_target_that_does_not_answer_holds_up_nobody_else_who_asks() {
    let (socket, address) = nobody_listens();
    listen(&socket, Backlog::new(0).unwrap()).unwrap();
    // There is room for one, and others are left without an answer.
    let _first = TcpStream::connect(address).unwrap();
    let (_server, figures) = watched(&[&address.to_string()]);
    thread::scope(|scope| {
        let start = Instant::now();
        let asking = (0..3).map(|_| {
            scope.spawn(move || {
                let answer = health(figures);
                (answer, start.elapsed())
            })
        });
        let asking: Vec<_> = asking.collect();
        page(figures);
        assert!(start.elapsed() < Duration::from_secs(2));
        for asking in asking {
            let ((status, line), passed) = asking.join().unwrap();
            assert_eq!(status, "503");
            assert_eq!(line, "the target: no answer within 2 s\n");
            assert!(passed < Duration::from_secs(4), "{passed:?}");
        }
    });
}

#[test]
fn a_service_that_drains_can_be_watched_to_the_end() {
    let target = Target::new();
    let (mut server, figures) = watched(&["--drain", "500", &target.address().to_string()]);
    let mut client = Client::connect(server.address());
    let peer = target.accept();
    assert_eq!(health(figures).0, "200");
    server.signal(Signal::SIGTERM);
    server.wait_for_line("1 connections are waited for");
    let closed = ("503".to_owned(), "no more clients are taken\n".to_owned());
    assert_eq!(health(figures), closed);
    assert_eq!(figure(figures, "websockify_sessions_open"), 1.0);
    drop(peer);
    client.read_to_close();
    client.send_close(1000);
    client.expect_end();
    assert_eq!(server.wait().code(), Some(0));
    assert!(TcpStream::connect(figures).is_err());
}

#[test]
fn haproxy_leads_clients_here_as_long_as_they_can_be_served() {
    let (socket, address) = nobody_listens();
    let (mut server, figures) = watched(&["--drain", "500", &address.to_string()]);
    let (bridge, port) = (server.address(), figures.port());
    let proxy = Proxy::haproxy(&format!(
        "listen it\n  bind fd@3\n  mode http\n  option httpchk GET /healthz\n  \
         server desk {bridge} check port {port} inter 100 fall 1 rise 1\n"
    ));
    // What it was answered, in the words of its table.
    proxy.ask("show stat", "L7STS");
    let ask = || Client::ask(proxy.address, &Handshake::default().bytes());
    assert_eq!(ask().status(), "503");
    assert_eq!(figure(figures, "websockify_connections_total"), 0.0);
    listen(&socket, Backlog::new(128).unwrap()).unwrap();
    proxy.ask("show stat", "L7OK");
    let target = TcpListener::from(socket);
    let mut client = ask();
    assert_eq!(client.status(), "101");
    server.signal(Signal::SIGTERM);
    server.wait_for_line("connections are waited for");
    proxy.ask("show stat", "L7STS");
    assert_eq!(ask().status(), "503");
    // The session is not the worse for it.
    client.send_binary(b"hello");
    wait_until("the session's connection", || {
        let (mut peer, _) = target.accept().unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut heard = [0; 5];
        peer.read_exact(&mut heard).ok()?;
        (&heard == b"hello").then_some(())
    });
    client.read_to_close();
    client.send_close(1000);
}

#[test]
fn other_paths_and_methods_are_refused_and_head_has_no_body() {
    let target = Target::new();
    let (_server, figures) = watched(&[&target.address().to_string()]);
    for (line, status) in [
        ("GET / HTTP/1.1", "404"),
        ("GET /metrics/ HTTP/1.1", "404"),
        ("POST /other HTTP/1.1", "404"),
        ("POST /metrics HTTP/1.1", "405"),
        ("DELETE /healthz HTTP/1.1", "405"),
        ("GET /metrics?x=y HTTP/1.1", "200"),
        ("GET http://h/metrics HTTP/1.1", "200"),
        ("GET /metrics HTTP/1.0", "200"),
        ("nonsense", "400"),
    ] {
        let (head, body) = ask(figures, &format!("{line}\r\nHost: h\r\n\r\n"));
        assert_eq!(&head[9..12], status, "{line}");
        assert_eq!(head.contains("\r\nAllow: GET, HEAD"), status == "405");
        assert_eq!(body.is_empty(), status == "400", "{line}");
    }
    let (head, body) = ask(figures, "HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4"));
    assert_eq!(body, "");
    // A body that nobody reads does not destroy the answer.
    let body = "x".repeat(1 << 20);
    let length = body.len();
    let request =
        format!("PUT /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}");
    assert!(ask(figures, &request).0.starts_with("HTTP/1.1 405 "));
}

#[test]
fn nobody_can_hurt_the_service_by_the_port_of_its_figures() {
    const CROWD: usize = 100;
    let target = Target::new();
    let (server, figures) = watched(&[&target.address().to_string()]);
    let mut client = Client::connect(server.address());
    let mut peer = target.accept();
    // Two sessions have two worker threads.
    works(&server, &target);
    page(figures);
    let before = server.descriptors();
    let memory = server.resident_memory();
    let start = Instant::now();
    // Who says nothing, who never ends, and who does not read.
    let mut crowd: Vec<_> = (0..CROWD).map(|_| connect(figures)).collect();
    for (number, stream) in crowd.iter_mut().enumerate() {
        let words: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /metrics HTTP/1.1\r\nX: ",
            _ => b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n",
        };
        // It may have made room already.
        _ = stream.write_all(words);
    }
    // They do not keep anybody out.
    assert_eq!(figure(figures, "websockify_sessions_open"), 1.0);
    assert_eq!(health(figures).0, "200");
    // It was asked for that.
    target.accept();
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    let more = server.descriptors() - before;
    assert!(more <= 20, "{more}");
    let mut flood = connect(figures);
    let header = [b'x'; 1 << 16];
    let sent = (0..1024).take_while(|_| flood.write_all(&header).is_ok());
    assert!(sent.count() < 1024);
    client.send_binary(b"hello");
    peer.read_exact(&mut [0; 5]).unwrap();
    works(&server, &target);
    let grown = server.resident_memory().saturating_sub(memory);
    assert!(grown < 4 << 20, "{grown}");
    // All of them are sent away.
    for mut stream in crowd {
        _ = stream.read_to_end(&mut Vec::new());
    }
    let passed = start.elapsed();
    assert!(passed < Duration::from_secs(12), "{passed:?}");
    wait_until("descriptors to be closed", || {
        (server.descriptors() <= before).then_some(())
    });
}

#[test]
fn a_service_that_has_no_more_room_can_still_be_watched() {
    let target = Target::new();
    let address = target.address().to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = ["sh", "-c", "ulimit -n 80 && exec \"$0\" \"$@\""];
    let mut server = Server::through(&launcher, listener, &["--metrics", "0", &address]);
    let figures = figures_of(&server.wait_for_line("  - Metrics on "));
    let max = figure(figures, "websockify_connections_max");
    assert!((4.0..30.0).contains(&max), "{max}");
    let sessions = (0..max as usize).map(|_| (Client::connect(server.address()), target.accept()));
    let sessions: Vec<_> = sessions.collect();
    let _waiting: Vec<_> = (0..20).map(|_| connect(server.address())).collect();
    server.wait_for_line("as many as there may be");
    assert_eq!(figure(figures, "websockify_connections_open"), max);
    // With all the connections that this may have.
    let _crowd: Vec<_> = (0..20).map(|_| connect(figures)).collect();
    assert_eq!(figure(figures, "websockify_sessions_open"), max);
    assert!(figure(figures, "process_open_fds") <= 80.0);
    assert_eq!(health(figures).0, "200");
    drop(sessions);
}

/// That a session works.
fn works(server: &Server, target: &Target) {
    let mut client = Client::connect(server.address());
    target.accept().write_all(b"hello").unwrap();
    assert_eq!(client.read_binary(5), b"hello");
}

#[test]
fn a_port_that_cannot_be_had_is_an_error_of_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let port = taken.local_addr().unwrap().port().to_string();
    for (metrics, background) in [(&address, false), (&port, false), (&address, true)] {
        let mut command = Command::new(executable());
        command
            .args(["127.0.0.1:0", "127.0.0.1:1", "--metrics", metrics])
            .args(background.then_some("-D"))
            .stdin(Stdio::null());
        let said = Said::by(command);
        assert_eq!(said.status.code(), Some(1));
        let expected = format!(
            "error: --metrics: cannot listen on {address}: Address already in use (another program listens there; stop it or choose \
             another port)"
        );
        assert!(said.stderr.contains(&expected), "{}", said.stderr);
    }
    for (bad, background) in [("x", false), ("127.0.0.1", true), ("h:65536", false)] {
        let arguments = ["127.0.0.1:0", "127.0.0.1:1", "--metrics", bad];
        let output = run_to_end(&[&arguments[..], if background { &["-D"] } else { &[] }].concat());
        assert_eq!(output.status.code(), Some(2), "{bad}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let expected = format!("--metrics: '{bad}' is not [host:]port with a port from 0 to 65535");
        assert!(stderr.contains(&expected), "{stderr}");
    }
    // The address that the settings name is the one that works, also of the other family.
    let (_server, figures) = watched(&["--metrics", "[::1]:0", "127.0.0.1:1"]);
    assert!(figures.is_ipv6());
    page(figures);
}

#[test]
fn a_daemon_that_has_given_up_its_rights_tells_all_figures() {
    if !as_root("metrics::a_daemon_that_has_given_up_its_rights_tells_all_figures") {
        return;
    }
    let target = Target::new();
    let (server, figures) = watched(&[&target.address().to_string()]);
    let ordinary = self::figures(&page(figures));
    let address = target.address().to_string();
    let daemon = Daemon::with(&["--metrics", "0", "--user", "www-data", &address]);
    let mut lines = daemon.said().stderr.lines();
    let line = lines.find(|line| line.contains("  - Metrics on "));
    let address = figures_of(line.unwrap());
    let figures = self::figures(&page(address));
    assert!(figures.keys().eq(ordinary.keys()));
    let open = figures["process_open_fds"];
    let there = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count();
    // The connection that asks is one more.
    assert!(
        open == there as f64 || open == there as f64 + 1.0,
        "{open} {there}"
    );
    assert_eq!(health(address).0, "200");
    drop(server);
}

#[test]
fn the_figures_of_the_process_are_what_the_system_says() {
    let target = Target::new();
    let (server, address) = watched(&[&target.address().to_string()]);
    let figures = figures(&page(address));
    let (told, seen) = (
        figures["process_resident_memory_bytes"],
        server.resident_memory() as f64,
    );
    assert!((told - seen).abs() < 1e6, "{told} {seen}");
    assert!(figures["process_virtual_memory_bytes"] > told);
    let limits = server.proc_file("limits");
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let limit = limit.unwrap().split_whitespace().nth(3).unwrap();
    assert_eq!(figures["process_max_fds"].to_string(), limit);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let age = now.unwrap().as_secs_f64() - figures["process_start_time_seconds"];
    assert!((0.0..30.0).contains(&age), "{age}");
    let time = figures["process_cpu_seconds_total"];
    assert!(time > 0.0 && time < 30.0, "{time}");
    let version = run_to_end(&["--version"]).stdout;
    let version = String::from_utf8(version).unwrap();
    let version = version.split_whitespace().last().unwrap().to_owned();
    let info = format!("websockify_build_info{{version=\"{version}\"}}");
    assert_eq!(figures[&info], 1.0);
}

/// Pages of bridges of every kind, which have all figures.
fn all_pages() -> Vec<String> {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, format!("t: {}\n", target.address())).unwrap();
    let by_token = [
        "--target-config",
        text(&tokens),
        "--auth-plugin",
        "BasicHTTPAuth",
        "--auth-source",
        "u:p",
    ];
    let target_name = target.address().to_string();
    let kinds: [&[&str]; 3] = [&[&target_name], &by_token, &["--", "sleep", "1000"]];
    let pages = kinds.map(|arguments| {
        let (server, figures) = watched(arguments);
        if arguments.len() == 1 {
            works(&server, &target);
        }
        page(figures)
    });
    pages.into()
}

/// The names of the metrics on pages.
fn names(pages: &[String]) -> BTreeSet<&str> {
    let lines = pages.iter().flat_map(|page| page.lines());
    let types = lines.filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap()).collect()
}

#[test]
fn the_tool_of_prometheus_has_nothing_to_say_against_a_page() {
    for page in all_pages() {
        let mut judge = Command::new(PROMTOOL)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{PROMTOOL}: {error}; make test fetches it"));
        judge
            .stdin
            .take()
            .unwrap()
            .write_all(page.as_bytes())
            .unwrap();
        let said = Said::by_child(judge);
        let complaint = format!("{}{}", said.stdout, said.stderr);
        assert!(said.status.success() && complaint.is_empty(), "{complaint}");
        // It does not look at everything.
        for name in names(slice::from_ref(&page)) {
            assert!(page.contains(&format!("# HELP {name} ")), "{name}");
        }
    }
}

#[test]
fn the_readme_tells_of_all_metrics_and_of_no_others() {
    let pages = all_pages();
    let tables = README.lines().filter(|line| line.starts_with("| `"));
    let mut told = BTreeSet::new();
    let mut reasons = BTreeSet::new();
    for code in tables.flat_map(|line| line.split('`').skip(1).step_by(2)) {
        let name = code.split('{').next().unwrap();
        if name.starts_with("websockify_") || name.starts_with("process_") {
            told.insert(name);
        }
        if let Some(reason) = code.strip_prefix("reason=") {
            reasons.insert(reason.trim_matches('"').to_owned());
        }
    }
    assert_eq!(told, names(&pages));
    let counted = figures(&pages[0]);
    let counted = counted.keys().filter_map(|series| {
        let reason = series.strip_prefix("websockify_refused_total{reason=")?;
        Some(reason.trim_end_matches('}').trim_matches('"').to_owned())
    });
    assert_eq!(reasons, counted.collect());
}

#[test]
fn the_dashboard_shows_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let is_source = |variable: &&Value| variable["type"] == "datasource";
    let source = variables.iter().find(is_source).unwrap();
    assert_eq!(source["query"], "prometheus");
    let source = format!("${{{}}}", source["name"].as_str().unwrap());
    let pages = all_pages();
    let series: BTreeSet<_> = pages
        .iter()
        .flat_map(|page| figures(page).into_keys())
        .map(|series| series.split('{').next().unwrap().to_owned())
        .collect();
    let mut shown = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let position = &panel["gridPos"];
        assert!(
            places.insert((position["y"].as_u64(), position["x"].as_u64())),
            "{title}"
        );
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], source, "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let metrics = words
                .filter(|word| word.starts_with("websockify_") || word.starts_with("process_"));
            let metrics: Vec<_> = metrics.collect();
            assert!(!metrics.is_empty(), "{title}: {query}");
            for metric in metrics {
                assert!(series.contains(metric), "{title}: there is no {metric}");
                shown.insert(metric.to_owned());
            }
            is_understood(query);
        }
    }
    // The figures that the option is there for.
    for name in [
        "sessions_open",
        "sessions_total",
        "bytes_total",
        "refused_total",
        "program_up",
    ] {
        assert!(shown.contains(&format!("websockify_{name}")), "{name}");
    }
}

/// That a query is one, as Prometheus reads it.
fn is_understood(query: &str) {
    let directory = Scratch::new().unwrap();
    let query = query
        .replace("$__rate_interval", "5m")
        .replace("$__range", "1h");
    let rule = serde_json::json!({
        "groups": [{"name": "g", "rules": [{"record": "r", "expr": query}]}]
    });
    let file = directory.path().join("rules.yml");
    // JSON is YAML.
    fs::write(&file, rule.to_string()).unwrap();
    let mut judge = Command::new(PROMTOOL);
    judge.args(["check", "rules"]).arg(&file);
    let said = Said::by(judge);
    assert!(
        said.status.success(),
        "{query}: {}{}",
        said.stdout,
        said.stderr
    );
}
