//! The forms of the log, and the log file.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use integration::{
    Client, Handshake, Scratch, Server, Target, enlarge_disk, executable, frame, in_own_mounts,
    over_tls, run_to_end, small_disk, text, wait_until,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::session::nobody_listens;

/// A token that must never be seen.
pub(crate) const TOKEN: &str = "jvcqmxnwkz";

/// An upgrade whose address has all that could hurt a log: it looks like a line of it, ends lines, turns text around, quotes, and is
/// secret.
pub(crate) fn hostile() -> Handshake {
    let path = "/\u{2028}127.0.0.1 - - [x] In exit\u{85}\u{202e}\"}\\u0000'%0a%0D%00\u{9b}1m";
    let path = path.replace(' ', "%20");
    let value = path.replace('"', "");
    Handshake::default().request_line(&format!("GET {path}?token={TOKEN}&x={value} HTTP/1.1"))
}

/// What nothing in a log may have.
pub(crate) fn is_harmless(line: &str) -> bool {
    !line.contains(TOKEN)
        && !line
            .chars()
            .any(|char| char.is_control() || ('\u{2028}'..='\u{202e}').contains(&char))
}

/// A target that reads everything and closes when its client does, for as long as the tests run.
pub(crate) fn listening_target() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    address
}

/// A session that its client closes at once.
pub(crate) fn short_session(address: SocketAddr, handshake: &Handshake) {
    let mut client = Client::with(address, handshake);
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
}

/// An upgrade that makes for a line of the greatest length.
pub(crate) fn long() -> Handshake {
    Handshake::default().request_line(&format!("GET /{} HTTP/1.1", "x".repeat(5000)))
}

/// Stops a server. Returns its log.
pub(crate) fn stop(server: &mut Server) -> String {
    server.signal(Signal::SIGTERM);
    server.rest_of_log()
}

/// The objects of a log in JSON.
fn objects(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Those of this event.
fn events<'a>(objects: &'a [Value], event: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["event"] == event)
        .collect()
}

#[test]
fn an_object_in_json_tells_each_event_with_its_fields() {
    let target = Target::new();
    let address = target.address().to_string();
    let mut server = Server::with(&["--log-format=json", &address]);
    let mut client = Client::with(
        server.address(),
        &Handshake::default().request_line("GET /a?token=0123456789abcdef&b HTTP/1.1"),
    );
    let mut peer = target.accept();
    client.send_binary(b"hello");
    peer.read_exact(&mut [0; 5]).unwrap();
    peer.write_all(b"hello, you").unwrap();
    client.read_binary(10);
    client.send_close(4321);
    client.read_to_close();
    client.expect_end();
    server.wait_for_line("session_end");
    Client::ask(server.address(), b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n");
    server.wait_for_line("\"request\"");
    let objects = objects(&stop(&mut server));
    for object in &objects {
        let time = object["time"].as_str().unwrap();
        assert!(
            time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
            "{time}"
        );
        assert!(object["message"].is_string() && object["level"] == "info");
    }
    let expect = |event: &str, mut expected: Value| {
        let [found] = events(&objects, event)[..] else {
            panic!("{event}: {objects:#?}")
        };
        for name in ["time", "message"] {
            expected[name] = found[name].clone();
        }
        for (name, value) in [("level", "info"), ("event", event), ("peer", "127.0.0.1")] {
            expected[name] = value.into();
        }
        if event == "session_end" {
            let duration = found["duration"].as_f64().unwrap();
            assert!((0.0..30.0).contains(&duration), "{duration}");
            expected["duration"] = duration.into();
        }
        assert_eq!(found, &expected);
    };
    expect(
        "session_start",
        json!({ "connection": 1, "path": "/a?token=…cdef&b", "target": address, "tls": over_tls() }),
    );
    expect(
        "session_end",
        json!({ "connection": 1, "target": address, "bytes_from_client": 5, "bytes_from_target": 10,
                "closed_by": "client", "close_code": 4321 }),
    );
    expect(
        "request",
        json!({ "connection": 2, "method": "GET", "path": "/b", "status": 405 }),
    );
}

#[test]
fn each_session_has_one_end_that_says_whose_doing_it_was() {
    let target = Target::new();
    let (_guard, nobody) = nobody_listens();
    let end = |target: &str, play: &dyn Fn(&mut Server)| {
        let mut server = Server::with(&["--log-format=json", target]);
        play(&mut server);
        let objects = objects(&server.rest_of_log());
        let [end] = events(&objects, "session_end")[..] else {
            panic!("{objects:#?}")
        };
        assert_eq!(events(&objects, "session_start").len(), 1);
        let duration = end["duration"].as_f64().unwrap();
        assert!((0.0..30.0).contains(&duration), "{duration}");
        let [by, code, error] = ["closed_by", "close_code", "error"].map(|name| end[name].clone());
        (by.as_str().unwrap().to_owned(), code.as_u64(), error)
    };
    let address = target.address().to_string();
    let stop = |server: &mut Server| server.signal(Signal::SIGTERM);
    let is = |end: (String, Option<u64>, Value), by: &str, code: Option<u64>, error: Value| {
        assert_eq!(end, (by.to_owned(), code, error));
    };
    is(
        end(&address, &|server| {
            let client = Client::connect(server.address());
            drop(target.accept());
            server.wait_for_line("session_end");
            stop(server);
            drop(client);
        }),
        "target",
        Some(1000),
        Value::Null,
    );
    is(
        end(&address, &|server| {
            let mut client = Client::connect(server.address());
            client.send(&frame(0x81, b"text"));
            server.wait_for_line("session_end");
            stop(server);
        }),
        "client",
        Some(1003),
        json!("the protocol was broken"),
    );
    is(
        end(&address, &|server| {
            let _client = Client::connect(server.address());
            server.wait_for_line("session_start");
            target.accept();
            stop(server);
        }),
        "server",
        Some(1001),
        Value::Null,
    );
    let (by, code, error) = end(&nobody.to_string(), &|server| {
        let _client = Client::connect(server.address());
        let line = server.wait_for_line("cannot connect to");
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["level"], "warn");
        server.wait_for_line("session_end");
        stop(server);
    });
    assert_eq!((&*by, code), ("target", Some(1011)));
    assert!(error.as_str().unwrap().contains("refused"), "{error}");
}

#[test]
fn who_is_refused_is_told_with_the_reason() {
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("tokens");
    fs::write(&file, "a: 127.0.0.1:1").unwrap();
    let mut server = Server::with(&["--log-format=json", "--target-config", text(&file)]);
    let asked = Handshake::default().request_line(&format!("GET /?token={TOKEN} HTTP/1.1"));
    let client = Client::ask(server.address(), &asked.bytes());
    assert_eq!(client.status(), "403");
    server.wait_for_line("\"request\"");
    let log = stop(&mut server);
    assert!(log.lines().all(is_harmless), "{log}");
    let objects = objects(&log);
    let [refused] = events(&objects, "refused")[..] else {
        panic!("{log}")
    };
    assert!(refused["error"].as_str().unwrap().contains("is not known"));
    assert_eq!(events(&objects, "request")[0]["status"], 403);
}

#[test]
fn nothing_from_the_network_forges_a_line_or_tells_a_secret_in_any_form() {
    let target = listening_target();
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("log");
    let log = |form: &str, ask: bool| {
        _ = fs::remove_file(&file);
        let form = format!("--log-format={form}");
        let arguments = [&form, "--log-file", text(&file), "-v"];
        let mut server = Server::with(&[&arguments[..], &[&target.to_string()]].concat());
        let handshake = if ask { hostile() } else { Handshake::default() };
        short_session(server.address(), &handshake);
        let plain = handshake.without("Upgrade").bytes();
        let plain = Client::ask(server.address(), &plain);
        assert_eq!(plain.status(), "405");
        server.wait_for_line(" 405 -");
        let log = stop(&mut server);
        // What two threads say at the same time may be in either order.
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        assert_eq!(sorted(&fs::read_to_string(&file).unwrap()), sorted(&log));
        log
    };
    for form in ["text", "json"] {
        let (harmless, forged) = (log(form, false), log(form, true));
        assert_eq!(harmless.lines().count(), forged.lines().count(), "{forged}");
        assert!(forged.lines().all(is_harmless), "{forged}");
        assert_eq!(forged.matches("127.0.0.1 - - [x]").count(), 0, "{forged}");
    }
    objects(&log("json", true));
}

#[test]
fn a_log_file_gets_all_lines_that_stderr_gets_and_keeps_what_it_has() {
    let target = listening_target();
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("log");
    for form in ["text", "json"] {
        let before = fs::read_to_string(&file).unwrap_or_default();
        let mut command = Command::new(executable());
        command.current_dir(directory.path()).args([
            "127.0.0.1:0",
            &target.to_string(),
            "--log-file",
            "log",
            "--log-format",
            form,
        ]);
        let mut server = Server::with_command(command);
        server.wait_for_line("proxying from ");
        let log = stop(&mut server);
        assert!(log.contains("settings") && log.contains("In exit"), "{log}");
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            format!("{before}{log}\n")
        );
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
    }
}

#[test]
fn what_ends_the_start_is_in_the_log_file_as_well() {
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("log");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let output = run_to_end(&[&taken, "h:1", "--log-file", text(&file)]);
    assert_eq!(output.status.code(), Some(1));
    let log = fs::read(&file).unwrap();
    assert!(log.ends_with(b"\n") && output.stderr == log, "{output:?}");
}

#[test]
fn a_log_file_that_cannot_be_opened_is_one_clear_line() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("no/log");
    for (path, why) in [
        (path.as_path(), "No such file or directory"),
        (directory.path(), "Is a directory"),
    ] {
        let told = format!("cannot open the log file '{}': {why}", path.display());
        let output = run_to_end(&["127.0.0.1:0", "h:1", "--log-file", text(path)]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr, format!("websockify: error: {told}\n"));
        let output = run_to_end(&[
            "127.0.0.1:0",
            "h:1",
            "--log-form=json",
            "--log-file",
            text(path),
        ]);
        let [error] = &objects(&String::from_utf8(output.stderr).unwrap())[..] else {
            panic!()
        };
        assert_eq!(error["level"], "error");
        assert!(error["message"].as_str().unwrap().ends_with(&told));
    }
}

/// Checks that a log has all lines of so many sessions, whole ones, and others of which it knows the beginnings.
fn is_complete(log: &str, sessions: usize) {
    const OTHERS: [&str; 4] = ["WebSocket server settings:", "  - ", "HUP: ", "In exit"];
    for line in [
        "WebSocket connection",
        "Path: ",
        "connecting to: ",
        // A client may have left before it was connected.
        " from the target, ",
    ] {
        assert_eq!(log.matches(line).count(), sessions, "{line} in {log}");
    }
    let (about_sessions, others): (Vec<_>, Vec<_>) = log
        .lines()
        .partition(|line| line.starts_with("127.0.0.1 - - ["));
    assert_eq!(about_sessions.len(), 4 * sessions);
    for line in others {
        assert!(OTHERS.iter().any(|start| line.starts_with(start)), "{line}");
    }
    assert!(log.ends_with("\nIn exit\n"));
}

#[test]
fn no_line_is_lost_or_torn_when_a_file_is_rotated_under_load() {
    const ROTATIONS: usize = 20;
    let target = listening_target();
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("log");
    let arguments = ["--log-file", text(&file)];
    let mut server = Server::with(&[&arguments[..], &[&target.to_string()]].concat());
    let address = server.address();
    let (done, sessions) = (AtomicBool::new(false), AtomicUsize::new(0));
    let old = |number: usize| directory.path().join(format!("log.{number}"));
    let load = || {
        while !done.load(Ordering::Relaxed) {
            short_session(address, &Handshake::default());
            sessions.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(load);
        }
        for number in 0..ROTATIONS {
            let before = sessions.load(Ordering::Relaxed);
            wait_until("some sessions", || {
                (sessions.load(Ordering::Relaxed) > before + 10).then_some(())
            });
            fs::rename(&file, old(number)).unwrap();
            server.signal(Signal::SIGHUP);
            wait_until("the file to be made anew", || file.exists().then_some(()));
        }
        done.store(true, Ordering::Relaxed);
    });
    stop(&mut server);
    let mut log = String::new();
    for path in (0..ROTATIONS).map(old).chain([file.clone()]) {
        let part = fs::read_to_string(path).unwrap();
        assert!(part.ends_with('\n'));
        log += &part;
    }
    assert_eq!(log.matches("has been opened anew").count(), ROTATIONS);
    is_complete(&log, sessions.into_inner());
}

#[test]
fn a_file_that_cannot_be_opened_anew_is_kept() {
    let target = listening_target();
    let directory = Scratch::new().unwrap();
    let (file, old) = (directory.path().join("log"), directory.path().join("old"));
    let arguments = ["--log-file", text(&file)];
    let mut server = Server::with(&[&arguments[..], &[&target.to_string()]].concat());
    server.wait_for_line("proxying");
    fs::rename(&file, &old).unwrap();
    fs::create_dir(&file).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for_line("the old one is kept: Is a directory");
    fs::remove_dir(&file).unwrap();
    short_session(server.address(), &Handshake::default());
    let log = stop(&mut server);
    assert_eq!(fs::read_to_string(&old).unwrap().trim_end(), log);
}

#[test]
fn a_full_disk_stops_nobody_and_what_is_missing_is_counted() {
    let name = "logs::a_full_disk_stops_nobody_and_what_is_missing_is_counted";
    if !in_own_mounts(name) {
        return;
    }
    let target = listening_target();
    let directory = Scratch::new().unwrap();
    small_disk(directory.path());
    let file = directory.path().join("log");
    fs::write(directory.path().join("filler"), vec![0; 900 << 10]).unwrap();
    let arguments = ["--log-file", text(&file)];
    let mut server = Server::with(&[&arguments[..], &[&target.to_string()]].concat());
    // More than there is room for, on the disk and in memory.
    (0..400).for_each(|_| short_session(server.address(), &long()));
    server.wait_for_line("cannot write to the log file");
    enlarge_disk(directory.path());
    server.wait_for_line("takes lines again");
    // The line that tells of the loss comes with the first one after it.
    let mut sessions = 400;
    wait_until("the loss to be told", || {
        short_session(server.address(), &long());
        sessions += 1;
        let log = fs::read_to_string(&file).unwrap();
        log.contains(" lines were lost").then_some(())
    });
    stop(&mut server);
    let log = fs::read_to_string(&file).unwrap();
    let notices: Vec<usize> = log
        .lines()
        .filter_map(|line| line.strip_prefix('(')?.strip_suffix(" lines were lost)"))
        .map(|lost| lost.parse().unwrap())
        .collect();
    let [lost] = notices[..] else {
        panic!("{notices:?}")
    };
    // Settings, end, the trouble and its end; the line that tells of the loss stands for what was lost.
    assert_eq!(log.lines().count() - 1 + lost, 4 * sessions + 4 + 1 + 2);
    assert!(lost > 100 && log.ends_with("\nIn exit\n"), "{lost}");
    for line in log.lines().filter(|line| line.contains("Path: ")) {
        assert_eq!(line.len(), 3900);
    }
}

#[test]
fn a_limit_of_file_sizes_kills_nobody() {
    let target = listening_target();
    let directory = Scratch::new().unwrap();
    let file = directory.path().join("log");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = ["bash", "-c", "ulimit -f 8; exec \"$0\" \"$@\""];
    let arguments = ["--log-file", text(&file), &target.to_string()];
    let mut server = Server::through(&launcher, listener, &arguments);
    for _ in 0..10 {
        short_session(server.address(), &long());
    }
    server.wait_for_line("cannot write to the log file");
    short_session(server.address(), &long());
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(fs::metadata(&file).unwrap().len(), 8 << 10);
}
