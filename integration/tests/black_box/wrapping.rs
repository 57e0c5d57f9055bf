//! Wrapped programs, from one-liners to daemons.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use integration::{Client, Server, compile, listeners_on, run_to_end, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shim::free_port;

/// The script with the programs to be wrapped.
pub(crate) fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/wrapped.py")
}

/// Wraps a command, in which `PORT` stands for the port that we listen on.
pub(crate) fn wrap(options: &[&str], command: &[&str]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    wrap_on(listener, options, command)
}

/// The same on a listening socket of the test's.
pub(crate) fn wrap_on(listener: TcpListener, options: &[&str], command: &[&str]) -> Server {
    let port = listener
        .local_addr()
        .expect("it is bound")
        .port()
        .to_string();
    let command: Vec<String> = command
        .iter()
        .map(|word| word.replace("PORT", &port))
        .collect();
    let words = options
        .iter()
        .copied()
        .chain(["--"])
        .chain(command.iter().map(String::as_str));
    Server::on(listener, &words.collect::<Vec<_>>())
}

/// Wraps one of the script's programs.
pub(crate) fn wrap_script(options: &[&str], kind: &str, argument: &str) -> Server {
    let script = program();
    let command = [
        "python3",
        script.to_str().expect("the path is text"),
        kind,
        argument,
    ];
    wrap(
        options,
        if argument.is_empty() {
            &command[..3]
        } else {
            &command
        },
    )
}

/// Connects, and returns the client and the line with which the program greets it.
pub(crate) fn greeting(address: SocketAddr) -> (Client, String) {
    try_greeting(address).expect("the program greets")
}

/// The same for a program that may be ended just now.
fn try_greeting(address: SocketAddr) -> Option<(Client, String)> {
    let mut client = Client::connect(address);
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let message = client
            .try_read_frame()
            .ok()
            .filter(|message| message.first == 0x82)?;
        line.extend(message.payload);
    }
    Some((
        client,
        String::from_utf8(line)
            .expect("greetings are text")
            .trim_end()
            .to_owned(),
    ))
}

/// A whole session: greeting, echo, close. Returns the greeting.
pub(crate) fn round_trip(address: SocketAddr) -> String {
    let (mut client, line) = greeting(address);
    client.send_binary(b"echo");
    assert_eq!(client.read_binary(4), b"echo");
    client.send_close(1000);
    client.read_to_close();
    client.expect_end();
    line
}

/// Checks that nobody but `server` listens on its port, by whatever address.
pub(crate) fn nobody_else_listens(server: &Server) {
    let listeners = listeners_on(server.address().port());
    assert!(!listeners.is_empty());
    for (address, pid) in listeners {
        assert_eq!(
            pid,
            server.pid().as_raw().cast_unsigned(),
            "somebody else listens on {address}"
        );
    }
}

/// The processes whose command line contains `text`.
pub(crate) fn processes_with(text: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let matches = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            String::from_utf8_lossy(&line)
                .replace('\0', " ")
                .contains(text)
        })
    };
    pids.filter(matches)
        .map(Pid::from_raw)
        .filter(|&pid| pid != Pid::this())
        .collect()
}

#[test]
fn a_wrapped_web_server_serves_through_the_bridge_only() {
    let server = wrap(&[], &["python3", "-m", "http.server", "PORT"]);
    let mut client = Client::connect(server.address());
    client.send_binary(b"GET / HTTP/1.0\r\n\r\n");
    let (page, code, _) = client.read_to_close();
    assert!(
        page.starts_with(b"HTTP/1.0 200 OK"),
        "{}",
        String::from_utf8_lossy(&page)
    );
    assert_eq!(code, Some(1000));
    nobody_else_listens(&server);
}

#[test]
fn every_way_to_bind_is_moved() {
    for (kind, greeting) in [("both", "four"), ("six", "six"), ("dual", "dual")] {
        let mut server = wrap_script(&[], kind, "PORT");
        assert_eq!(round_trip(server.address()), greeting);
        nobody_else_listens(&server);
        if kind == "both" {
            let port = server.address().port();
            server.wait_for_line(&format!("names ('0.0.0.0', {port}) ('::', {port})"));
        }
    }
}

#[test]
fn early_clients_wait_for_a_program_that_takes_its_time() {
    let server = wrap_script(&[], "late", "PORT");
    let clients: Vec<_> = (0..5).map(|_| Client::connect(server.address())).collect();
    for mut client in clients {
        assert_eq!(client.read_frame().first, 0x82);
    }
}

#[test]
fn a_program_that_never_listens_is_told_of_and_its_clients_are_refused() {
    let mut server = wrap_script(&["--wrap-timeout", "0.5"], "never", "");
    let mut client = Client::connect(server.address());
    let (_, code, reason) = client.read_to_close();
    assert_eq!(code, Some(1011));
    assert!(reason.contains("not listening"), "{reason}");
    let port = server.address().port();
    server.wait_for_line(&format!(
        "does not listen there after 0.5 s, where port {port} is moved by preloading: it listens on no TCP port"
    ));
}

#[test]
fn a_program_that_listens_on_its_port_by_itself_is_told_of() {
    // It is not moved, since the shim does not survive the change of its environment.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = free_port().to_string();
    let script = format!(
        "unset LD_PRELOAD; exec python3 '{}' echo {own}",
        program().display()
    );
    let options = ["--wrap-port", &own, "--wrap-timeout", "2"];
    let mut server = wrap_on(listener, &options, &["sh", "-c", &script]);
    server.wait_for_line(&format!(
        "it listens on port {own} by itself, so its port was not moved"
    ));
}

#[test]
fn a_program_that_listens_elsewhere_is_told_of() {
    let other = free_port().to_string();
    // Long enough for Python to start on a busy machine.
    let mut server = wrap_script(&["--wrap-timeout", "5"], "echo", &other);
    server.wait_for_line(&format!(
        "it listens on 0.0.0.0:{other}; --wrap-port tells which port it binds"
    ));
}

#[test]
fn exit_ends_with_the_status_of_the_program() {
    for (kind, argument, status) in [
        ("exit_with", "7", 7),
        ("exit_with", "0", 0),
        ("die", "", 137),
    ] {
        let mut server = wrap_script(&[], kind, argument);
        assert_eq!(server.wait().code(), Some(status), "{kind} {argument}");
        assert!(server.rest_of_log().ends_with("In exit"));
    }
}

#[test]
fn exit_lets_the_session_finish_that_the_program_ended_with() {
    let mut server = wrap_script(&["--wrap-mode=exit"], "one_shot", "PORT");
    let (mut client, _) = greeting(server.address());
    let bytes = integration::pattern(4 << 20);
    let mut sender = client.sibling();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sender.send_binary(&bytes);
        });
        assert!(client.read_binary(4 << 20) == bytes);
    });
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read_to_close().1, Some(1000));
    client.expect_end();
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn programs_that_cannot_be_started_have_the_status_of_a_shell_and_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "not executable").unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (name, status, what) in [
        (
            "no-such-program-anywhere",
            127,
            "'no-such-program-anywhere' not found",
        ),
        ("/no/such/program", 127, "'/no/such/program' not found"),
        (plain.to_str().unwrap(), 126, "Permission denied"),
        (directory.path().to_str().unwrap(), 126, "cannot execute"),
        (script.to_str().unwrap(), 126, "'/no/such/interpreter'"),
    ] {
        let output = run_to_end(&["127.0.0.1:0", "--", name]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(what), "{stderr}");
        assert_eq!(
            stderr
                .lines()
                .filter(|line| line.contains("error:"))
                .count(),
            1,
            "{stderr}"
        );
    }
}

#[test]
fn respawn_gives_one_client_after_another_a_program_of_its_own() {
    let mut server = wrap_script(&["--wrap-mode=respawn"], "one_shot", "PORT");
    for _ in 0..5 {
        assert_eq!(round_trip(server.address()), "one shot");
        server.wait_for_line("Starting 'python3");
    }
    wait_until("all ended programs to be reaped", || {
        no_zombies_of(&server).then_some(())
    });
}

/// Whether no child of the server waits to be reaped.
fn no_zombies_of(server: &Server) -> bool {
    let children = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let fields: Vec<String> = stat
                .rsplit(')')
                .next()?
                .split_whitespace()
                .map(str::to_owned)
                .collect();
            (fields[1] == server.pid().to_string()).then(|| fields[0].clone())
        });
    children.into_iter().all(|state| state != "Z")
}

#[test]
fn a_program_that_serves_one_client_in_no_time_is_there_for_the_next_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "once", "cc", &[]);
    let mut server = wrap(
        &["--wrap-mode=respawn"],
        &[program.to_str().unwrap(), "PORT"],
    );
    for _ in 0..60 {
        let mut client = Client::connect(server.address());
        assert_eq!(client.read_to_close().0, b"once\n");
        client.send_close(1000);
        client.expect_end();
    }
    server.signal(Signal::SIGTERM);
    let log = server.rest_of_log();
    assert!(!log.contains("starting it again in"), "{log}");
}

#[test]
fn respawn_pauses_longer_and_longer_for_a_program_that_fails() {
    let mut server = wrap_script(&["--wrap-mode=respawn"], "exit_with", "3");
    for pause in ["1 s", "2 s"] {
        server.wait_for_line("Starting '");
        server.wait_for_line("exited with status 3");
        server.wait_for_line(&format!("starting it again in {pause}"));
    }
    let start = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(
        start.elapsed().as_secs() < 2,
        "the pause does not hold up the end"
    );
}

#[test]
fn ignore_goes_on_listening_and_refuses_promptly() {
    let mut server = wrap_script(&["--wrap-mode=ignore"], "one_shot", "PORT");
    assert_eq!(round_trip(server.address()), "one shot");
    server.wait_for_line("the wrapped program is gone");
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(
            Client::connect(server.address()).read_to_close().1,
            Some(1011)
        );
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn a_daemon_is_alive_as_long_as_it_listens() {
    for mode in ["exit", "ignore", "respawn"] {
        let mut server = wrap_script(&["--wrap-mode", mode], "daemon", "PORT");
        let first = round_trip(server.address());
        assert_eq!(round_trip(server.address()), first);
        nobody_else_listens(&server);
        kill(Pid::from_raw(first.parse().unwrap()), Signal::SIGKILL).unwrap();
        match mode {
            "exit" => assert_eq!(server.wait().code(), Some(137)),
            "ignore" => drop(server.wait_for_line("the wrapped program is gone")),
            _ => drop(new_greeting(server.address(), &first)),
        }
    }
}

/// Waits for a program that greets in another way than `first`, and returns how. Until then a client may be cut off.
fn new_greeting(address: SocketAddr, first: &str) -> String {
    wait_until("the program to come back", || {
        Some(try_greeting(address)?.1).filter(|second| second != first)
    })
}

#[test]
fn workers_that_outlive_their_master_are_ended_before_the_respawn() {
    let server = wrap_script(&["--wrap-mode=respawn"], "workers", "PORT");
    let first = round_trip(server.address());
    kill(Pid::from_raw(first.parse().unwrap()), Signal::SIGKILL).unwrap();
    let second = new_greeting(server.address(), &first);
    // None of the old workers answers any more.
    for _ in 0..10 {
        assert_eq!(round_trip(server.address()), second);
    }
}

#[test]
fn a_stop_ends_the_program_with_all_that_it_started() {
    for kind in ["echo", "daemon", "stubborn", "workers"] {
        let mut server = wrap_script(&[], kind, "PORT");
        round_trip(server.address());
        let mark = format!("wrapped.py {kind} {}", server.address().port());
        assert!(!processes_with(&mark).is_empty());
        let (mut client, _) = greeting(server.address());
        let start = Instant::now();
        server.signal(Signal::SIGTERM);
        assert_eq!(client.read_to_close().1, Some(1001), "{kind}");
        client.send_close(1001);
        client.expect_end();
        assert_eq!(server.wait().code(), Some(0), "{kind}");
        // Three seconds, and what a busy machine adds.
        assert!(
            start.elapsed().as_secs() < 5,
            "{kind}: {:?}",
            start.elapsed()
        );
        assert_eq!(processes_with(&mark), [], "{kind}");
        TcpListener::bind(server.address()).expect("the port is free");
    }
}

#[test]
fn signals_reach_the_program() {
    let mut server = wrap_script(&[], "report", "PORT");
    server.wait_for_line("ready");
    for signal in [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ] {
        server.signal(signal);
        server.wait_for_line(&format!("got {signal}"));
    }
}

#[test]
fn the_program_inherits_nothing_of_ours() {
    let mut server = wrap_script(&[], "inside", "PORT");
    let files = server.wait_for_line("files ");
    // Nothing of ours; standard input, which was the listening socket, is /dev/null.
    assert!(files.contains("0: '/dev/null'"), "{files}");
    assert!(
        !files.contains("socket:") && !files.contains("anon_inode:"),
        "{files}"
    );
    let masks = server.wait_for_line("masks ");
    assert!(masks.contains("'SigBlk': '0000000000000000'"), "{masks}");
    // Python itself ignores SIGPIPE (13) and SIGXFSZ (25); 32 and above are the C library's.
    let ignored = masks
        .split("'SigIgn': '")
        .nth(1)
        .and_then(|rest| rest.split('\'').next())
        .unwrap();
    assert_eq!(
        u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff,
        0x0100_1000,
        "{masks}"
    );
    server.wait_for_line("group True");
    assert!(!server.proc_file("environ").contains("LD_PRELOAD"));
}

#[test]
fn programs_with_the_same_built_in_port_run_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    // A port that all of them bind, and that is kept by somebody else all the time.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let built_in = taken.local_addr().unwrap().port().to_string();
    let script = program();
    let servers: Vec<(Server, PathBuf)> = (0..8)
        .map(|number| {
            let file = directory.path().join(format!("ready-{number}"));
            std::fs::write(&file, "stale").unwrap();
            let options = [
                "--wrap-port",
                &built_in,
                "--ready-file",
                file.to_str().unwrap(),
            ];
            let server = wrap(
                &options,
                &["python3", script.to_str().unwrap(), "echo", &built_in],
            );
            (server, file)
        })
        .collect();
    for (server, file) in &servers {
        let ready = wait_until("the ready file", || {
            let text = std::fs::read_to_string(file).ok()?;
            if text == "stale" {
                None
            } else {
                Some(serde_json::from_str::<serde_json::Value>(&text).expect("whole JSON"))
            }
        });
        assert_eq!(ready["listen"], server.address().to_string());
        let pid = round_trip(server.address());
        assert_eq!(ready["pid"].to_string(), pid);
        let direct: SocketAddr = ready["target"].as_str().unwrap().parse().unwrap();
        assert!(direct.ip().is_loopback());
        TcpStream::connect(direct).expect("the program listens there");
    }
    for (mut server, file) in servers {
        server.signal(Signal::SIGTERM);
        server.wait();
        assert!(!file.exists(), "the file says that the program listens");
    }
}

#[test]
fn a_ready_file_that_cannot_be_written_is_an_error_at_once() {
    let output = run_to_end(&[
        "127.0.0.1:0",
        "--ready-file",
        "/no/such/directory/file",
        "--",
        "sh",
        "-c",
        "exit 0",
    ]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("/no/such/directory/file"), "{stderr}");
}

#[test]
fn clients_that_wait_together_for_a_program_of_one_client_all_get_their_turn() {
    let server = wrap_script(&["--wrap-mode=respawn"], "one_shot", "PORT");
    let clients: Vec<_> = (0..4).map(|_| Client::connect(server.address())).collect();
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || {
                assert_eq!(client.read_binary(9), b"one shot\n");
                client.send_close(1000);
                client.read_to_close();
            });
        }
    });
}

#[test]
fn clients_that_speak_first_get_their_turn_as_well() {
    // On a busy machine eight starts of Python take their time.
    let options = ["--wrap-mode=respawn", "--wrap-timeout=25"];
    let server = wrap_script(&options, "one_shot", "PORT");
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(server.address())).collect();
    clients
        .iter_mut()
        .for_each(|client| client.send_binary(b"hello"));
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || {
                assert_eq!(client.read_binary(14), b"one shot\nhello");
                client.send_close(1000);
                client.read_to_close();
            });
        }
    });
}

#[test]
fn a_stop_while_the_program_ends_is_neither_its_status_nor_a_restart() {
    for mode in ["exit", "ignore", "respawn"] {
        let mut server = wrap_script(&["--wrap-mode", mode], "echo", "PORT");
        let (mut client, pid) = greeting(server.address());
        // As systemd does: the signal goes to all processes of the service.
        server.signal(Signal::SIGTERM);
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM).unwrap();
        client.read_to_close();
        client.send_close(1001);
        assert_eq!(server.wait().code(), Some(0), "{mode}");
        let log = server.rest_of_log();
        assert_eq!(log.matches("Starting '").count(), 1, "{mode}: {log}");
    }
}

#[test]
fn a_client_that_left_while_it_waited_is_not_served() {
    let mut server = wrap_script(&["--wrap-mode=exit"], "late_one_shot", "PORT");
    drop(Client::connect(server.address()));
    let mut closing = Client::connect(server.address());
    closing.send_close(1001);
    assert_eq!(closing.read_frame().close().0, Some(1001));
    server.wait_for_line("Client left before it was connected");
    server.wait_for_line("Client left before it was connected");
    assert_eq!(round_trip(server.address()), "one shot");
}

#[test]
fn a_daemon_that_forks_after_it_listens_is_followed_and_its_status_is_ours() {
    for _ in 0..5 {
        let mut server = wrap_script(&[], "fork_late", "PORT");
        round_trip(server.address());
        round_trip(server.address());
        assert_eq!(server.wait().code(), Some(9));
    }
}

#[test]
fn a_death_by_a_real_time_signal_is_noticed() {
    let mut server = wrap_script(&[], "echo", "PORT");
    let pid = round_trip(server.address());
    let killed = std::process::Command::new("sh")
        .args(["-c", &format!("kill -40 {pid}")])
        .status()
        .unwrap();
    assert!(killed.success());
    assert_eq!(server.wait().code(), Some(128 + 40));
}

#[test]
fn children_that_were_there_before_are_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mark = format!("86400.{}", listener.local_addr().unwrap().port());
    let script = format!("sleep {mark} & exec \"$0\" \"$@\"");
    let mut server = Server::through(&["sh", "-c", &script], listener, &["--", "sleep", "86400"]);
    server.wait_for_line("Starting 'sleep 86400'");
    // Nor do they keep a program alive that has ended.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    let mut short = Server::through(
        &["sh", "-c", "sleep 5 & exec \"$0\" \"$@\""],
        other,
        &["--", "true"],
    );
    assert_eq!(short.wait().code(), Some(0));
    assert!(start.elapsed().as_secs() < 4, "{:?}", start.elapsed());
    let stranger = wait_until("the stranger", || {
        processes_with(&format!("sleep {mark}")).first().copied()
    });
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    kill(stranger, Signal::SIGKILL).expect("it is still there");
}

#[test]
fn a_program_on_a_unix_socket_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    let path = path.to_str().unwrap();
    let mut server = wrap_script(&["--unix-target", path], "unix", path);
    assert_eq!(round_trip(server.address()), "unix");
    server.wait_for_line(&format!("(unix socket {path})"));
}
