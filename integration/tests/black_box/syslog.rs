//! The log of a syslog server: raw sockets that take each message apart, and a real rsyslog.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use integration::{
    DEADLINE, Handshake, Scratch, Server, in_own_network, run_to_end, text, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::logs::{TOKEN, hostile, is_harmless, listening_target, long, short_session, stop};

/// A message of RFC 5424.
#[derive(Debug)]
struct Message {
    facility: u8,
    severity: u8,
    time: String,
    process: u32,
    text: String,
}

impl Message {
    /// Takes one apart that has all parts that we send; section 6 has the grammar.
    fn parse(message: &[u8]) -> Self {
        let message = std::str::from_utf8(message).expect("it is UTF-8");
        let (priority, rest) = message
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>'))
            .expect("it has a priority");
        let priority: u8 = priority.parse().expect("which is a number");
        let parts: Vec<&str> = rest.splitn(8, ' ').collect();
        let [version, time, host, name, process, id, data, text] = parts[..] else {
            panic!("it has too few parts: {message:?}")
        };
        assert_eq!((version, name, id, data), ("1", "websockify", "-", "-"));
        assert_eq!(host, hostname(), "{message:?}");
        let text = match text.strip_prefix('\u{feff}') {
            Some(marked) => marked,
            None => {
                assert!(text.is_ascii(), "without a mark: {message:?}");
                text
            }
        };
        assert!(
            !text.contains(['\n', '\r', '\0', '\u{feff}']),
            "{message:?}"
        );
        Self {
            facility: priority / 8,
            severity: priority % 8,
            time: time.to_owned(),
            process: process.parse().expect("a process has a number"),
            text: text.to_owned(),
        }
    }
}

fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    name.trim_end().to_owned()
}

/// A unix socket of which messages are read as they come.
struct Receiver {
    socket: UnixDatagram,
    buffer: Vec<u8>,
}

impl Receiver {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self {
            socket,
            buffer: vec![0; 1 << 16],
        }
    }

    fn receive(&mut self) -> Vec<u8> {
        let length = self.socket.recv(&mut self.buffer).expect("another message");
        self.buffer[..length].to_vec()
    }

    /// All messages until the last one of a server.
    fn rest(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.receive());
            if messages[messages.len() - 1].ends_with(b"In exit") {
                return messages;
            }
        }
    }
}

fn server(arguments: &[&str]) -> Server {
    let target = listening_target().to_string();
    Server::with(&[arguments, &[&target]].concat())
}

#[test]
fn a_unix_socket_gets_each_line_of_stderr_as_a_message_of_rfc_5424() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("log");
    let mut receiver = Receiver::at(&path);
    let mut server = server(&["--syslog", text(&path), "-v"]);
    short_session(server.address(), &hostile());
    server.wait_for_line("Client closed");
    let process = server.pid().as_raw().cast_unsigned();
    let log = stop(&mut server);
    let messages = receiver.rest();
    let messages: Vec<_> = messages.iter().map(|bytes| Message::parse(bytes)).collect();
    let texts: Vec<_> = messages.iter().map(|message| &*message.text).collect();
    assert_eq!(texts, log.lines().collect::<Vec<_>>());
    let mut before = String::new();
    for message in messages {
        assert!(is_harmless(&message.text), "{message:?}");
        assert_eq!((message.facility, message.process), (3, process));
        let time = message.time;
        assert!(
            time.len() == 24 && time.ends_with('Z') && time >= before,
            "{time}"
        );
        before = time;
        assert_eq!(message.severity, 6);
    }
}

#[test]
fn severities_tell_levels() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("log");
    let mut receiver = Receiver::at(&path);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let output = run_to_end(&[
        &taken,
        "h:1",
        "--cafile",
        "/f",
        "--syslog",
        text(&path),
        "--log-format=json",
    ]);
    assert_eq!(output.status.code(), Some(1));
    for (severity, level) in [(4, "warn"), (3, "error")] {
        let message = Message::parse(&receiver.receive());
        assert_eq!(message.severity, severity, "{message:?}");
        let object: serde_json::Value = serde_json::from_str(&message.text).unwrap();
        assert_eq!(object["level"], level);
    }
}

#[test]
fn the_legacy_form_is_that_of_the_original() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("log");
    let mut receiver = Receiver::at(&path);
    let mut server = server(&["--syslog", text(&path), "--legacy-syslog"]);
    short_session(server.address(), &hostile());
    server.wait_for_line("Client closed");
    let process = server.pid();
    let log = stop(&mut server);
    for (message, line) in receiver.rest().iter().zip(log.lines()) {
        let message = std::str::from_utf8(message).unwrap();
        assert_eq!(message, format!("<30>websockify[{process}]: {line}"));
    }
}

#[test]
fn udp_is_spoken_with_ipv4_and_ipv6() {
    for host in ["127.0.0.1", "::1"] {
        let host: IpAddr = host.parse().unwrap();
        let socket = UdpSocket::bind((host, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let mut server = server(&["--syslog", &address]);
        server.wait_for_line("proxying");
        let log = stop(&mut server);
        let mut buffer = [0; 1 << 16];
        for line in log.lines() {
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(Message::parse(&buffer[..length]).text, line);
        }
    }
}

#[test]
fn a_syslog_that_comes_late_or_is_replaced_gets_everything() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("log");
    let mut server = server(&["--syslog", text(&path)]);
    server.wait_for_line("cannot write to syslog at");
    let mut receiver = Receiver::at(&path);
    server.wait_for_line("takes lines again");
    short_session(server.address(), &Handshake::default());
    let mut messages = Vec::new();
    while !messages.ends_with(b"connecting to: ") {
        let message = Message::parse(&receiver.receive()).text;
        messages.extend_from_slice(message.split("127.0.0.1:").next().unwrap().as_bytes());
        messages.push(b'\n');
        if message.contains("Client closed") {
            break;
        }
    }
    let messages = String::from_utf8(messages).unwrap();
    assert!(
        messages.starts_with("WebSocket server settings:"),
        "{messages}"
    );
    fs::remove_file(&path).unwrap();
    drop(receiver);
    let mut receiver = Receiver::at(&path);
    server.signal(Signal::SIGTERM);
    let rest = receiver.rest();
    assert!(Message::parse(&rest[rest.len() - 1]).text == "In exit");
}

#[test]
fn a_syslog_that_takes_nothing_keeps_nobody_waiting_and_the_loss_is_counted() {
    let directory = Scratch::new().unwrap();
    let path = directory.path().join("log");
    let mut receiver = Receiver::at(&path);
    let mut server = server(&["--syslog", text(&path)]);
    // More than the socket and memory have room for.
    (0..700).for_each(|_| short_session(server.address(), &long()));
    server.wait_for_line("cannot write to syslog at");
    let (mut received, mut lost, mut told) = (0, 0, 0);
    let mut sessions = 700;
    let mut note = |message: &[u8]| {
        let message = Message::parse(message);
        match message.text.strip_suffix(" lines were lost)") {
            Some(notice) => {
                assert_eq!(message.severity, 4);
                lost += notice[1..].parse::<usize>().unwrap();
                told += 1;
            }
            None => received += 1,
        }
        told
    };
    // What waits comes before the line that tells of the loss, and that comes with the first one that there is room for.
    for count in 0_usize.. {
        if note(&receiver.receive()) > 0 {
            break;
        }
        if count.is_multiple_of(8) {
            short_session(server.address(), &long());
            sessions += 1;
        }
    }
    server.signal(Signal::SIGTERM);
    receiver.rest().iter().for_each(|message| _ = note(message));
    let log = server.rest_of_log();
    assert!(log.contains("takes lines again"));
    assert!(lost > 100, "{lost}");
    // The settings, the end, the trouble and its end.
    assert_eq!(received + lost, 4 * sessions + 4 + 1 + 2, "{told}");
}

#[test]
fn udp_to_nobody_and_names_that_are_none_keep_nobody_waiting() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = socket.local_addr().unwrap().to_string();
    drop(socket);
    for dead in [&nobody, "no-such-host.invalid", "[2001:db8::1]"] {
        let mut server = server(&["--syslog", dead]);
        for _ in 0..20 {
            short_session(server.address(), &Handshake::default());
        }
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0), "{dead}");
    }
}

/// A real rsyslog with a configuration of the test's, ended when dropped.
struct Rsyslog(Child);

impl Rsyslog {
    fn start(directory: &Path, inputs: &str) -> Self {
        let configuration = directory.join("rsyslog.conf");
        let text = format!(
            "{inputs}\n\
             template(name=\"parts\" type=\"string\" string=\"%syslogfacility-text%.%syslogseverity-text%|%protocol-version%|\
             %hostname%|%app-name%|%procid%|%timereported:::date-rfc3339%|%msg%\\n\")\n\
             action(type=\"omfile\" file=\"{}\" template=\"parts\")\n",
            directory.join("messages").display()
        );
        fs::write(&configuration, text).unwrap();
        let child = Command::new("/usr/sbin/rsyslogd")
            .arg("-n")
            .arg("-f")
            .arg(&configuration)
            .arg("-i")
            .arg(directory.join("pid"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("rsyslogd starts");
        Self(child)
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        _ = self.0.wait();
    }
}

/// Runs a server that logs to rsyslog, and checks what that makes of it.
fn rsyslog_understands(directory: &Path, arguments: &[&str], version: &str) {
    let messages = directory.join("messages");
    fs::write(&messages, "").unwrap();
    let mut server = server(arguments);
    short_session(server.address(), &hostile());
    server.wait_for_line("Client closed");
    let process = server.pid();
    let log = stop(&mut server);
    let found = wait_until("all messages", || {
        let found = fs::read_to_string(&messages).ok()?;
        found.ends_with("In exit\n").then_some(found)
    });
    assert!(!found.contains(TOKEN) && found.lines().count() == log.lines().count());
    for (found, line) in found.lines().zip(log.lines()) {
        let parts: Vec<_> = found.splitn(7, '|').collect();
        let process = process.to_string();
        assert_eq!(parts[..2], ["daemon.info", version], "{found}");
        assert_eq!(parts[3..5], ["websockify", &process], "{found}");
        // In the old form it is what the receiver calls the sender.
        assert!(parts[2] == hostname() || version == "0", "{found}");
        // The mark, and the blank behind a tag, are rsyslog's to show or not.
        let shown = parts[6].trim_start_matches('\u{feff}').trim_start();
        assert_eq!(shown, line.trim_start(), "{found}");
    }
}

#[test]
fn rsyslog_understands_both_forms_at_its_unix_sockets() {
    let directory = Scratch::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    // As it comes, it reads the old form only at a unix socket.
    let input = |name: &str, option: &str| {
        let path = path(name);
        format!(
            "input(type=\"imuxsock\" Socket=\"{}\" {option})\n",
            path.display()
        )
    };
    let inputs = [
        "module(load=\"imuxsock\" SysSock.Use=\"off\")\n".to_owned(),
        input("both", "UseSpecialParser=\"off\""),
        input("old", ""),
    ];
    let _rsyslog = Rsyslog::start(directory.path(), &inputs.concat());
    wait_until("rsyslog to listen", || {
        (path("both").exists() && path("old").exists()).then_some(())
    });
    rsyslog_understands(directory.path(), &["--syslog", text(&path("both"))], "1");
    for socket in [path("both"), path("old")] {
        let legacy = ["--syslog", text(&socket), "--legacy-syslog"];
        rsyslog_understands(directory.path(), &legacy, "0");
    }
}

#[test]
fn rsyslog_understands_both_forms_by_udp() {
    if !in_own_network("syslog::rsyslog_understands_both_forms_by_udp") {
        return;
    }
    let directory = Scratch::new().unwrap();
    let inputs = "module(load=\"imudp\")\ninput(type=\"imudp\" port=\"514\" address=\"127.0.0.1\")";
    let _rsyslog = Rsyslog::start(directory.path(), inputs);
    wait_until("rsyslog to listen", || {
        let sockets = fs::read_to_string("/proc/net/udp").unwrap();
        sockets.contains(":0202 ").then_some(())
    });
    rsyslog_understands(directory.path(), &["--syslog", "127.0.0.1"], "1");
    let legacy = ["--syslog", "127.0.0.1:514", "--legacy-syslog"];
    rsyslog_understands(directory.path(), &legacy, "0");
}
