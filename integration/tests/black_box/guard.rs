//! Nothing of a wrapped program outlives the bridge, whoever is killed; and the bridge is a good first process of a container.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::Command;

use integration::{Server, executable, in_own_network, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wrapping::{greeting, processes_with, program, round_trip, wrap_script};

/// The children of a process.
pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let of_parent =
                stat.rsplit(')').next()?.split_whitespace().nth(1)? == parent.to_string();
            let pid = entry.file_name().to_str()?.parse().ok()?;
            of_parent.then(|| Pid::from_raw(pid))
        })
        .collect()
}

fn name_of(pid: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

#[test]
fn a_killed_bridge_takes_the_program_along_with_all_that_it_left_behind() {
    for kind in ["echo", "daemon", "stubborn", "workers"] {
        let mut server = wrap_script(&[], kind, "PORT");
        round_trip(server.address());
        let mark = format!("wrapped.py {kind} {}", server.address().port());
        assert!(!processes_with(&mark).is_empty(), "{kind}");
        server.signal(Signal::SIGKILL);
        server.wait();
        wait_until("the program to go", || {
            processes_with(&mark).is_empty().then_some(())
        });
    }
}

#[test]
fn a_killed_guard_ends_the_program_and_the_bridge_says_so() {
    for kind in ["echo", "daemon"] {
        let mut server = wrap_script(&[], kind, "PORT");
        round_trip(server.address());
        let mark = format!("wrapped.py {kind} {}", server.address().port());
        let guards = children(server.pid());
        assert_eq!(guards.len(), 1, "{kind}");
        let (mut client, _) = greeting(server.address());
        kill(guards[0], Signal::SIGKILL).unwrap();
        // Whether the program or the bridge is the first to go: its client is told, and so is the log.
        let (_, code, _) = client.read_to_close();
        client.send_close(code.expect("the close frame says why"));
        client.expect_end();
        assert_eq!(server.wait().code(), Some(1), "{kind}");
        let log = server.rest_of_log();
        assert!(
            log.contains("guards the wrapped program was killed"),
            "{kind}"
        );
        assert_eq!(log.matches(" from the target, ").count(), 2, "{log}");
        assert_eq!(processes_with(&mark), [], "{kind}");
    }
}

#[test]
fn a_guard_that_is_killed_or_stopped_while_the_program_ends_does_not_keep_it_alive() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let mut server = wrap_script(&[], "stubborn", "PORT");
        round_trip(server.address());
        let mark = format!("wrapped.py stubborn {}", server.address().port());
        let guard = children(server.pid())[0];
        server.signal(Signal::SIGTERM);
        server.wait_for_line("still here");
        kill(guard, signal).unwrap();
        assert_eq!(server.wait().code(), Some(0), "{signal}");
        _ = kill(guard, Signal::SIGCONT);
        wait_until("the program to go", || {
            processes_with(&mark).is_empty().then_some(())
        });
    }
}

#[test]
fn a_stop_is_heard_while_the_guard_does_not_answer() {
    let mut server = wrap_script(&["--wrap-mode=respawn"], "exit_with", "1");
    server.wait_for_line("exited with status 1");
    let guard = children(server.pid())[0];
    kill(guard, Signal::SIGSTOP).unwrap();
    server.wait_for_line("Starting '");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    kill(guard, Signal::SIGCONT).unwrap();
}

#[test]
fn the_end_of_the_program_is_noticed_though_whoever_started_us_ignores_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = [
        "python3",
        "-c",
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])",
    ];
    let mut server = Server::through(&launcher, listener, &["--", "sh", "-c", "exit 3"]);
    assert_eq!(server.wait().code(), Some(3));
}

#[test]
fn many_processes_that_end_at_once_are_not_taken_for_ones_that_do_not() {
    let script = "for i in $(seq 500); do sleep 1000 & done; echo ready >&2; wait";
    let mut server = crate::wrapping::wrap(&[], &["sh", "-c", script]);
    server.wait_for_line("ready");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!server.rest_of_log().contains("cannot be ended"));
}

#[test]
fn a_process_namespace_that_proc_does_not_show_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = ["unshare", "--map-root-user", "--pid", "--fork"];
    let mut server = Server::through(&launcher, listener, &["--", "sleep", "1000"]);
    assert_eq!(server.wait().code(), Some(1));
    assert!(
        server
            .rest_of_log()
            .contains("/proc shows the processes of another namespace")
    );
}

#[test]
fn the_guard_has_a_name_of_its_own_and_no_other_signal_ends_it() {
    let server = wrap_script(&[], "echo", "PORT");
    round_trip(server.address());
    let guard = children(server.pid())[0];
    assert_eq!(name_of(guard), "wrap-guard\n");
    // Whoever looks for the bridge by its command line finds one process.
    let mark = "websockify --inetd -- python3".to_owned();
    let found = processes_with(&mark);
    assert!(
        found.contains(&server.pid()) && !found.contains(&guard),
        "{found:?}"
    );
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
    ] {
        kill(guard, signal).unwrap();
    }
    round_trip(server.address());
    assert_eq!(children(server.pid()), [guard]);
}

/// Starts the bridge as the first process of a process namespace.
fn first_process(kind: &str, argument: &str) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let script = program();
    let unshare = [
        "unshare",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
    ];
    let command = [
        "--",
        "python3",
        script.to_str().unwrap(),
        kind,
        &argument.replace("PORT", &port),
    ];
    Server::through(&unshare, listener, &command)
}

#[test]
fn as_the_first_process_of_a_container_it_reaps_forwards_and_exits() {
    let mut server = first_process("report", "PORT");
    server.wait_for_line("ready");
    let bridge = wait_until("the bridge to start", || {
        children(server.pid()).first().copied()
    });
    assert!(name_of(bridge).starts_with("websockify"));
    kill(bridge, Signal::SIGUSR1).unwrap();
    server.wait_for_line("got SIGUSR1");
    // An orphan that is not the program's, as `docker exec` leaves them behind.
    let target = bridge.to_string();
    let enter = ["-t", &target, "-U", "-p", "-m", "--preserve-credentials"];
    let left = Command::new("nsenter")
        .args(enter)
        .args(["sh", "-c", "sh -c 'exit 3' & exit 0"])
        .status()
        .unwrap();
    assert!(left.success());
    wait_until("the orphan to be reaped", || {
        (children(bridge).len() == 1).then_some(())
    });
    round_trip(server.address());
    kill(bridge, Signal::SIGTERM).unwrap();
    assert_eq!(server.wait().code(), Some(0));
    // Its own end is that of the program.
    assert_eq!(first_process("exit_with", "6").wait().code(), Some(6));
}

/// Sockets that take every port which the system gives to whoever asks for any.
fn take_all_ports() -> Vec<TcpListener> {
    let any = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ];
    any.iter()
        .flat_map(|address| std::iter::from_fn(move || TcpListener::bind(address).ok()))
        .collect()
}

#[test]
fn fifty_respawns_succeed_while_no_port_is_free() {
    if !in_own_network("guard::fifty_respawns_succeed_while_no_port_is_free") {
        return;
    }
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40400").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ready");
    let script = program();
    let mut command = Command::new(executable());
    command
        .args(["127.0.0.1:2023", "--wrap-mode=respawn", "--ready-file"])
        .arg(&file)
        .args(["--", "python3", script.to_str().unwrap(), "echo", "2023"]);
    let mut server = Server::with_command(command);
    server.wait_for_line("Starting '");
    let ready = |old: &str| {
        wait_until("the program to listen", || {
            let text = std::fs::read_to_string(&file).ok()?;
            let ready: serde_json::Value = serde_json::from_str(&text).ok()?;
            let (pid, target) = (ready["pid"].to_string(), ready["target"].to_string());
            (pid != old).then_some((pid, target))
        })
    };
    let bridge = "127.0.0.1:2023".parse().unwrap();
    let (mut pid, first_target) = ready("");
    for round in 0..50 {
        assert_eq!(round_trip(bridge), pid, "round {round}");
        let taken = take_all_ports();
        assert!(taken.len() > 200, "round {round}: {}", taken.len());
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
        let target;
        (pid, target) = ready(&pid);
        // The same port again, although somebody wanted every one.
        assert_eq!(target, first_target, "round {round}");
        drop(taken);
    }
    round_trip(bridge);
}
