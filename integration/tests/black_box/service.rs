//! As a service: sockets that are handed over, by systemd and by inetd; what the service manager is told; units; restarts.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use integration::{
    Client, DEADLINE, Handshake, Said, Scratch, Server, Target, executable, in_own_network,
    run_to_end, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wrapping::{program, round_trip};

fn scratch() -> Scratch {
    Scratch::new().unwrap()
}

fn free_listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A service manager, as far as it listens.
struct Manager {
    socket: UnixDatagram,
    name: OsString,
}

impl Manager {
    /// One with a socket in this directory.
    fn in_directory(directory: &Path) -> Self {
        let path = directory.join("notify");
        Self {
            socket: UnixDatagram::bind(&path).unwrap(),
            name: path.into(),
        }
    }

    /// One with a socket of this name in the abstract namespace.
    fn abstract_one(name: &str) -> Self {
        let address = UnixAddr::from_abstract_name(name).unwrap();
        Self {
            socket: UnixDatagram::bind_addr(&address).unwrap(),
            name: format!("@{name}").into(),
        }
    }

    fn name(&self) -> &str {
        self.name.to_str().unwrap()
    }

    /// The next message.
    fn next(&self) -> String {
        self.socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message arrives");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// The messages up to the first one that contains `text`.
    fn up_to(&self, text: &str) -> Vec<String> {
        let mut messages = vec![self.next()];
        while !messages[messages.len() - 1].contains(text) {
            messages.push(self.next());
        }
        messages
    }

    /// Checks that there is no message that was not read, up to now.
    fn has_said_nothing(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let message = self.socket.recv(&mut [0; 4096]);
        self.socket.set_nonblocking(false).unwrap();
        assert!(message.is_err());
    }
}

/// A session through the socket at this address.
fn works(address: SocketAddr, target: &Target) {
    let mut client = Client::connect(address);
    target.accept().write_all(b"hello").unwrap();
    assert_eq!(client.read_binary(5), b"hello");
}

/// The same through a unix socket.
fn works_by_path(path: &Path, target: &Target) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&Handshake::default().bytes()).unwrap();
    let mut start = [0; 13];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 101 ");
    target.accept();
}

#[test]
fn all_sockets_that_systemd_hands_over_are_served_and_named() {
    let directory = scratch();
    let path = directory.path().join("socket");
    let (listener, address) = free_listener();
    let unix = UnixListener::bind(&path).unwrap();
    let target = Target::new();
    let names = [("LISTEN_FDNAMES", "outside:inside")];
    let sockets = vec![OwnedFd::from(listener), OwnedFd::from(unix)];
    let mut server = Server::activated(sockets, &names, &[&target.address().to_string()]);
    let path_name = path.display();
    server.wait_for_line(&format!("  - Listen on {address} (systemd: outside)"));
    server.wait_for_line(&format!("  - Listen on {path_name} (systemd: inside)"));
    server.wait_for_line(&format!("proxying from {address}, {path_name} to "));
    for _ in 0..3 {
        works(address, &target);
        works_by_path(&path, &target);
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    // It is systemd's.
    assert!(path.exists());
}

#[test]
fn what_is_for_the_service_alone_is_not_inherited() {
    let directory = scratch();
    let manager = Manager::in_directory(directory.path());
    let (listener, _) = free_listener();
    let variables = [
        ("LISTEN_FDNAMES", "x"),
        ("NOTIFY_SOCKET", manager.name()),
        ("WATCHDOG_USEC", "60000000"),
        ("WEBSOCKIFY_KEY_PASSWORD", "secret"),
    ];
    let script = "env >&2; ls -l /proc/$$/fd >&2; echo done >&2; exec sleep 1000";
    let command = ["--", "sh", "-c", script];
    let mut server = Server::activated(vec![listener.into()], &variables, &command);
    server.wait_for_line("done");
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    assert!(log.contains("\nPATH="), "{log}");
    for name in ["LISTEN_", "NOTIFY_", "WATCHDOG_", "secret", "socket:"] {
        assert!(!log.contains(name), "{name}: {log}");
    }
}

#[test]
fn the_service_manager_is_told_of_the_start_of_reloads_and_of_the_end() {
    let directory = scratch();
    let name = format!("websockify-test-{}", directory.path().display());
    for manager in [
        Manager::in_directory(directory.path()),
        Manager::abstract_one(&name),
    ] {
        let target = Target::new();
        let (listener, address) = free_listener();
        let variables = [("NOTIFY_SOCKET", manager.name())];
        let target_name = target.address().to_string();
        let mut server = Server::activated(vec![listener.into()], &variables, &[&target_name]);
        let expected = format!("STATUS=proxying from {address} to {target_name}");
        assert_eq!(manager.up_to("READY=1"), [&expected, "READY=1"]);
        works(address, &target);
        manager.has_said_nothing();
        server.signal(Signal::SIGHUP);
        let reload = manager.next();
        let (reloading, since) = reload.split_once("\nMONOTONIC_USEC=").unwrap();
        assert_eq!(reloading, "RELOADING=1");
        assert!(since.parse::<u64>().unwrap() > 0);
        assert_eq!(manager.next(), "READY=1");
        server.signal(Signal::SIGTERM);
        assert!(manager.next().starts_with("STOPPING=1\n"));
        assert_eq!(server.wait().code(), Some(0));
        manager.has_said_nothing();
    }
}

#[test]
fn with_a_program_it_is_ready_when_that_listens() {
    let directory = scratch();
    let manager = Manager::in_directory(directory.path());
    let (listener, address) = free_listener();
    let port = address.port().to_string();
    let script = program();
    let variables = [("NOTIFY_SOCKET", manager.name())];
    let command = ["--", "python3", script.to_str().unwrap(), "late", &port];
    let options = ["--wrap-mode=respawn"];
    let arguments = [&options[..], &command].concat();
    let mut server = Server::activated(vec![listener.into()], &variables, &arguments);
    // It is not taken for ready when it has only read its files again.
    server.wait_for_line("Starting '");
    server.signal(Signal::SIGHUP);
    server.wait_for_line("no file to read again");
    let messages = manager.up_to("READY=1");
    assert!(messages[0].ends_with("the program does not listen yet"));
    let readiness = messages
        .iter()
        .filter(|message| !message.starts_with("STATUS="));
    assert_eq!(readiness.collect::<Vec<_>>(), ["READY=1"]);
    manager.up_to("the program listens");
    let pid = round_trip(address).parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    manager.up_to("the program does not listen yet");
    manager.up_to("the program listens");
    server.signal(Signal::SIGTERM);
    manager.up_to("STOPPING=1");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_program_that_never_listens_is_not_waited_for_once_it_is_gone() {
    let directory = scratch();
    let manager = Manager::in_directory(directory.path());
    let (listener, _) = free_listener();
    let variables = [("NOTIFY_SOCKET", manager.name())];
    let arguments = ["--wrap-mode=ignore", "--", "true"];
    let _server = Server::activated(vec![listener.into()], &variables, &arguments);
    // It may still have left something behind that listens.
    manager.up_to("READY=1");
    manager.up_to("the program is gone");
}

#[test]
fn the_watchdog_is_told_twice_as_often_as_it_wants() {
    let directory = scratch();
    let manager = Manager::in_directory(directory.path());
    let target = Target::new();
    let target_name = target.address().to_string();
    let start = |variables: &[(&str, &str)]| {
        let (listener, _) = free_listener();
        Server::activated(vec![listener.into()], variables, &[&target_name])
    };
    let notify = ("NOTIFY_SOCKET", manager.name());
    let server = start(&[notify, ("WATCHDOG_USEC", "400000")]);
    manager.up_to("WATCHDOG=1");
    let first = Instant::now();
    (0..5).for_each(|_| drop(manager.up_to("WATCHDOG=1")));
    let passed = first.elapsed().as_secs_f64();
    assert!((0.8..1.9).contains(&passed), "{passed}");
    drop(server);
    manager.up_to("STOPPING=1");
    // It is for another process.
    let variables = [notify, ("WATCHDOG_USEC", "1"), ("WATCHDOG_PID", "1")];
    let mut server = start(&variables);
    manager.up_to("READY=1");
    server.signal(Signal::SIGTERM);
    server.wait();
    assert!(manager.next().starts_with("STOPPING=1\n"));
}

#[test]
fn a_manager_that_hangs_holds_up_no_session() {
    let directory = scratch();
    let manager = Manager::in_directory(directory.path());
    let target = Target::new();
    let (listener, address) = free_listener();
    let variables = [
        ("NOTIFY_SOCKET", manager.name()),
        ("WATCHDOG_USEC", "20000"),
    ];
    let _server = Server::activated(
        vec![listener.into()],
        &variables,
        &[&target.address().to_string()],
    );
    manager.up_to("READY=1");
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    wait_until("its socket to be full", || {
        other.send_to(b"", directory.path().join("notify")).err()
    });
    // Each of a hundred messages a second would hold up its worker, and who waits to be accepted, for a second.
    let began = Instant::now();
    while began.elapsed().as_secs() < 1 {
        let sent = Instant::now();
        works(address, &target);
        let passed = sent.elapsed().as_secs_f64();
        assert!(passed < 0.5, "{passed}");
    }
}

#[test]
fn sockets_that_cannot_be_served_and_addresses_too_many_are_one_clear_line() {
    let target = Target::new();
    let target = target.address().to_string();
    let directory = scratch();
    let run = |socket: OwnedFd, variables: &[(&str, &str)], arguments: &[&str]| {
        let mut server = Server::activated(vec![socket], variables, arguments);
        (server.wait().code(), server.rest_of_log())
    };
    let listening = || OwnedFd::from(free_listener().0);
    let bound = || {
        let path = directory.path().join("datagrams");
        _ = fs::remove_file(&path);
        UnixDatagram::bind(path).unwrap()
    };
    let file = || fs::File::open("/dev/null").unwrap();
    let unconnected = || crate::session::nobody_listens().0;
    let named = [("LISTEN_FDNAMES", "x.socket")];
    for (socket, variables, arguments, status, what) in [
        (
            file().into(),
            &named[..],
            &[&target[..]][..],
            1,
            "'x.socket' that systemd has handed over: it is no socket",
        ),
        (
            bound().into(),
            &named,
            &[&target],
            1,
            "it is no stream socket",
        ),
        (
            unconnected(),
            &named,
            &[&target],
            1,
            "it neither listens nor is it connected",
        ),
        (
            listening(),
            &[("LISTEN_FDS", "2")],
            &[&target],
            1,
            "systemd has not handed over what it says",
        ),
        (
            listening(),
            &[("LISTEN_FDS", "many")],
            &[&target],
            2,
            "LISTEN_FDS='many'",
        ),
        (
            listening(),
            &[],
            &["6080", &target],
            2,
            "leave out the source address '6080'",
        ),
        (
            listening(),
            &[],
            &["6080", "--", "true"],
            2,
            "leave out the source address '6080'",
        ),
        (
            listening(),
            &[],
            &["--unix-listen", "s", &target],
            2,
            "leave out --unix-listen",
        ),
        (listening(), &[], &[], 2, "Too few arguments"),
        // They are for another process.
        (
            listening(),
            &[("LISTEN_FDS", "0")],
            &[&target],
            2,
            "Too few arguments",
        ),
    ] {
        let (code, log) = run(socket, variables, arguments);
        assert_eq!(code, Some(status), "{arguments:?}: {log}");
        assert!(log.contains(what), "{arguments:?}: {log}");
    }
}

#[test]
fn a_program_is_wrapped_behind_the_one_port_that_was_handed_over() {
    let script = program();
    let (first, address) = free_listener();
    let port = address.port().to_string();
    let command = ["--", "python3", script.to_str().unwrap(), "echo", &port];
    let server = Server::activated(vec![first.into()], &[], &command);
    round_trip(address);
    drop(server);
    let sockets = vec![free_listener().0.into(), free_listener().0.into()];
    let mut server = Server::activated(sockets, &[], &command);
    assert_eq!(server.wait().code(), Some(1));
    assert!(server.rest_of_log().contains("needs --wrap-port here"));
}

/// The arguments with which systemd-socket-activate hands over sockets to the program under test.
fn activate(options: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new("systemd-socket-activate");
    command.args(options).arg(executable()).args(arguments);
    command
}

#[test]
fn systemd_socket_activate_starts_it() {
    if !in_own_network("service::systemd_socket_activate_starts_it") {
        return;
    }
    let directory = scratch();
    let path = directory.path().join("socket");
    let target = Target::new();
    let target_name = target.address().to_string();
    let address = SocketAddr::from(([127, 0, 0, 1], 6080));
    let listen = ["-l", "127.0.0.1:6080"];
    let listen_twice = [
        &listen[..],
        &["-l", path.to_str().unwrap(), "--fdname=one:two"],
    ]
    .concat();
    // The first client starts it.
    let mut server = Server::with_command(activate(&listen_twice, &[&target_name]));
    server.wait_for_line("Listening on ");
    server.wait_for_line("Listening on ");
    works(address, &target);
    works_by_path(&path, &target);
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    assert!(
        log.contains("Listen on 127.0.0.1:6080 (systemd: one)"),
        "{log}"
    );
    // Each client starts one of its own, which is handed the connection.
    for (options, arguments, what) in [
        (
            &["-a"][..],
            &[&target_name[..]][..],
            "Serve one connection on 127.0.0.1:6080 (systemd: ",
        ),
        (
            &["-a", "--inetd"],
            &["--inetd", &target_name],
            "Serve one inetd connection",
        ),
    ] {
        let options = [&listen, options].concat();
        let mut server = Server::with_command(activate(&options, arguments));
        server.wait_for_line("Listening on ");
        for _ in 0..2 {
            works(address, &target);
            server.wait_for_line(what);
            server.wait_for_line("In exit");
        }
    }
    let mut server = Server::with_command(activate(
        &[&listen[..], &["--inetd"]].concat(),
        &["--inetd", &target_name],
    ));
    server.wait_for_line("Listening on ");
    works(address, &target);
    works(address, &target);
    server.wait_for_line("Listen for inetd connections");
}

/// The program with a connection as standard input, output and error, as inetd has it, and the client at its other end.
pub(crate) fn with_connection(arguments: &[&str]) -> (std::process::Child, Client) {
    let (listener, address) = free_listener();
    let client = Client::raw(address);
    let connection = OwnedFd::from(listener.accept().unwrap().0);
    let copy = || Stdio::from(connection.try_clone().unwrap());
    let child = Command::new(executable())
        .args(["--inetd", "-v"])
        .args(arguments)
        .stdin(copy())
        .stdout(copy())
        .stderr(copy())
        .spawn()
        .unwrap();
    (child, client)
}

pub(crate) fn ends(child: &mut std::process::Child) -> Option<i32> {
    wait_until("the program to end", || child.try_wait().unwrap()).code()
}

#[test]
fn the_one_connection_of_inetd_is_served_and_nothing_else_is_said_on_it() {
    let target = Target::new();
    let target_name = target.address().to_string();
    let directory = scratch();
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, format!("t: {target_name}")).unwrap();
    let by_token = ["--target-config", tokens.to_str().unwrap()];
    let limited = [
        "--timeout",
        "500",
        "--idle-timeout",
        "500",
        "--run-once",
        &target_name,
    ];
    let handshake = Handshake::default().request_line("GET /?token=t HTTP/1.1");
    for arguments in [&[&target_name[..]][..], &by_token, &limited] {
        let (mut child, mut client) = with_connection(arguments);
        client.request(&handshake.bytes());
        assert_eq!(client.status(), "101", "{}", client.response);
        target.accept().write_all(b"hello").unwrap();
        assert_eq!(client.read_binary(5), b"hello");
        client.send_close(1000);
        client.read_to_close();
        client.expect_end();
        assert_eq!(ends(&mut child), Some(0), "{arguments:?}");
    }
    // What is no session is served to its end as well.
    let (mut child, mut client) = with_connection(&[&target_name]);
    client.request(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(client.status(), "405");
    client.read_body();
    client.expect_end();
    assert_eq!(ends(&mut child), Some(0));
    // Nor does one that says nothing keep it for ever.
    let (mut child, client) = with_connection(&["--handshake-timeout", "0.2", &target_name]);
    assert_eq!(ends(&mut child), Some(0));
    drop(client);
    // A stop is told on it as well.
    let (mut child, mut client) = with_connection(&[&target_name]);
    client.request(&Handshake::default().bytes());
    let _peer = target.accept();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(client.read_frame().close().0, Some(1001));
    client.send_close(1001);
    client.expect_end();
    assert_eq!(ends(&mut child), Some(0));
}

/// Echoes to whoever connects, until the end of the test.
fn echo() -> SocketAddr {
    let (listener, address) = free_listener();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                // Who leaves in the middle is no concern of ours.
                _ = std::io::copy(&mut stream, &mut copy);
            });
        }
    });
    address
}

/// How a session came to its end.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    ByUs,
    ByStop,
}

/// A session of some echoes, which is refused or broken by nobody.
fn visit(address: SocketAddr) -> Ending {
    let mut client = Client::connect(address);
    for _ in 0..3 {
        client.send_binary(b"echo");
        let message = client.read_frame();
        if message.first == 0x88 {
            assert_eq!(message.close().0, Some(1001));
            client.send_close(1001);
            client.expect_end();
            return Ending::ByStop;
        }
        assert_eq!(message.payload, b"echo");
    }
    client.send_close(1000);
    match client.read_to_close().1 {
        Some(1000) => {}
        code => assert_eq!(code, Some(1001)),
    }
    client.expect_end();
    Ending::ByUs
}

/// Restarts it again and again on a listening socket that the test keeps, as systemd does, while clients come and go. Returns how many
/// sessions were ended by a stop.
fn restart_under_load(options: &[&str]) -> usize {
    let target = echo().to_string();
    let (listener, address) = free_listener();
    let arguments = [options, &[&target]].concat();
    let start = || {
        let socket = listener.try_clone().unwrap().into();
        let mut server = Server::activated(vec![socket], &[], &arguments);
        server.wait_for_line("proxying from ");
        server
    };
    let (stop, served, stopped) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let mut server = start();
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if visit(address) == Ending::ByStop {
                        stopped.fetch_add(1, Ordering::Relaxed);
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..8 {
            let before = served.load(Ordering::Relaxed);
            wait_until("clients to be served", || {
                (served.load(Ordering::Relaxed) > before + 20).then_some(())
            });
            server.signal(Signal::SIGTERM);
            assert_eq!(server.wait().code(), Some(0));
            server = start();
        }
        stop.store(true, Ordering::Relaxed);
    });
    stopped.into_inner()
}

#[test]
fn a_restart_refuses_and_resets_nobody() {
    // How many sessions were told of the stop instead of being refused or reset.
    assert!(restart_under_load(&[]) > 0);
    assert_eq!(restart_under_load(&["--drain", "20"]), 0);
}

/// The directory with the units.
fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../websockify/contrib/systemd")
}

#[test]
fn the_units_are_what_systemd_wants() {
    let directory = scratch();
    let mut files = Vec::new();
    for entry in fs::read_dir(units()).unwrap() {
        let unit = entry.unwrap().path();
        let text = fs::read_to_string(&unit).unwrap();
        let text = text.replace("/usr/local/bin/websockify", executable().to_str().unwrap());
        let name = unit.file_name().unwrap().to_str().unwrap();
        // A template is looked at as one of its instances.
        let names = [name.to_owned(), name.replace('@', "@instance")];
        for name in &names {
            fs::write(directory.path().join(name), &text).unwrap();
        }
        files.push(directory.path().join(&names[1]));
    }
    assert_eq!(files.len(), 3);
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").args(&files);
    let said = Said::by(command);
    assert!(said.status.success(), "{said:?}");
    assert_eq!((&said.stdout[..], &said.stderr[..]), ("", ""));
    for service in ["websockify.service", "websockify@instance.service"] {
        let mut command = Command::new("systemd-analyze");
        command
            .args(["security", "--offline=true", "--no-pager", "--threshold=20"])
            .arg(directory.path().join(service));
        let said = Said::by(command);
        assert!(said.status.success(), "{said:?}");
    }
}

#[test]
fn the_arguments_of_the_units_are_understood() {
    for entry in fs::read_dir(units()).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text
            .lines()
            .filter_map(|line| line.strip_prefix("#     ARGUMENTS="))
        {
            let words = line.trim_matches('"').split(' ');
            // Nothing is started: there is no such option.
            let words = words.chain(["--no-such-option"]).collect::<Vec<_>>();
            let stderr = String::from_utf8(run_to_end(&words).stderr).unwrap();
            assert!(stderr.contains("'--no-such-option'"), "{stderr}");
        }
    }
}
