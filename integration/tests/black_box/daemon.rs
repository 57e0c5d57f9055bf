//! Going to the background, and the file with the process number.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use integration::{
    Client, Daemon, Handshake, Said, Scratch, Target, executable, is_alive, pid_in, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::wrapping::{processes_with, program, round_trip};

/// A command in a directory that starts a daemon on a free port of 127.0.0.1.
fn command(directory: &Path, arguments: &[&str]) -> Command {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(executable());
    command
        .args(["-D", "--inetd"])
        .args(arguments)
        .current_dir(directory)
        .stdin(OwnedFd::from(listener));
    command
}

/// A session through a daemon.
fn serves(daemon: &Daemon, target: &Target) {
    let mut client = Client::connect(daemon.address());
    target.accept().write_all(b"hello").unwrap();
    assert_eq!(client.read_binary(5), b"hello");
}

/// Where a link in the directory of a process in `/proc` leads.
fn link(pid: Pid, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap()
}

/// The fields of a process's `stat` after its name: state, parent, group, session, terminal.
fn stat(pid: Pid) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.map(str::to_owned).collect()
}

#[test]
fn the_command_ends_when_the_daemon_serves_and_has_said_what_it_does() {
    let target = Target::new();
    let address = target.address().to_string();
    let daemon = Daemon::with(&["-v", &address]);
    let said = daemon.said();
    assert_eq!(said.stdout, "");
    let expected = format!(
        "WebSocket server settings:\n  - Listen for inetd connections\n  - No SSL/TLS support (no cert file)\n  \
         - Backgrounding (daemon)\n  - proxying from inetd to {address}\n"
    );
    assert!(said.stderr.ends_with(&expected), "{}", said.stderr);
    serves(&daemon, &target);
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    assert!(!daemon.pid_file().exists());
}

#[test]
fn a_daemon_has_nothing_of_whoever_started_it() {
    let target = Target::new();
    let address = target.address().to_string();
    // As a script has it that shall not run twice.
    let script = "umask 27; exec 9>lock; exec nohup \"$0\" \"$@\"";
    let daemon = Daemon::through(&["sh", "-c", script], |_| vec!["-v".to_owned(), address]);
    let locked = daemon.directory().join("lock");
    let pid = daemon.pid();
    for descriptor in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(pid, descriptor), Path::new("/dev/null"));
    }
    assert_eq!(link(pid, "cwd"), Path::new("/"));
    let fields = stat(pid);
    let [_, _, group, session, terminal] = &fields[..5] else {
        panic!()
    };
    assert_eq!((group, &terminal[..]), (session, "0"));
    assert_ne!(*session, pid.to_string());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Umask:\t0027\n"), "{status}");
    // It has told how its start went, and is about to let go of that pipe as well.
    wait_until("all that was inherited to be closed", || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let mut files = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        let inherited = |file: PathBuf| file == locked || file.to_string_lossy().contains("pipe:");
        (!files.any(inherited)).then_some(())
    });
    // There is no terminal that could have been hung up: it is asked to read its files again, and goes on.
    daemon.signal(Signal::SIGHUP);
    serves(&daemon, &target);
}

#[test]
fn a_daemon_is_found_by_its_name_and_by_its_command_line() {
    let target = Target::new();
    let daemon = Daemon::with(&["--verbose", &target.address().to_string()]);
    let find = |arguments: &[&str]| {
        let output = Command::new("pgrep").args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let pids = text.lines().map(|line| line.parse().unwrap());
        pids.map(Pid::from_raw).collect::<Vec<_>>()
    };
    assert!(find(&["-x", "websockify"]).contains(&daemon.pid()));
    let line = format!(
        "{} -D --inetd --pid-file pid --verbose {}",
        executable().display(),
        target.address()
    );
    assert_eq!(find(&["-f", "-x", &line]), [daemon.pid()]);
}

#[test]
fn what_keeps_a_daemon_from_starting_is_an_error_of_the_command() {
    let directory = Scratch::new().unwrap();
    let target = Target::new();
    let target = target.address().to_string();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    fs::write(directory.path().join("no-program"), "").unwrap();
    fs::write(directory.path().join("empty.pem"), "").unwrap();
    let empty_pem = ["--cert", "empty.pem", &target];
    for (arguments, status, what) in [
        (
            &[&taken[..], &target][..],
            1,
            "another program listens there",
        ),
        (
            &["--inetd", "--cert", "missing.pem", &target],
            1,
            "missing.pem",
        ),
        (
            &[&["--inetd"], &empty_pem[..]].concat(),
            1,
            "has no certificate",
        ),
        (&["--inetd", "--web", "missing", &target], 1, "missing"),
        (
            &["--inetd", "--pid-file", "missing/pid", &target],
            1,
            "pid: there is no such directory",
        ),
        (&["--inetd", "--", "./missing"], 127, "./missing"),
        (&["--inetd", "--", "./no-program"], 126, "./no-program"),
        (
            &["--inetd", "--log-file", "missing/log", &target],
            1,
            "cannot open the log file",
        ),
        (
            &["--inetd", "--record", "missing/record", &target],
            1,
            "cannot record to",
        ),
        (&["127.0.0.1:0"], 2, "Too few arguments"),
    ] {
        let mut command = Command::new(executable());
        let mark = format!("{}-{what}", directory.path().display());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        command
            .args(["-D", "--key-password", &mark])
            .args(arguments)
            .current_dir(directory.path())
            .stdin(OwnedFd::from(listener));
        let said = Said::by(command);
        assert_eq!(said.status.code(), Some(status), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(what), "{arguments:?}: {said:?}");
        assert_eq!(said.stderr.matches("error:").count(), 1, "{said:?}");
        assert_eq!(said.stdout, "");
        wait_until("the daemon to be gone", || {
            processes_with(&mark).is_empty().then_some(())
        });
    }
}

#[test]
fn relative_paths_are_meant_from_the_directory_of_the_start() {
    let target = Target::new();
    let address = target.address();
    let daemon = Daemon::through(&[], |directory| {
        fs::write(directory.join("tokens"), format!("t: {address}")).unwrap();
        fs::create_dir(directory.join("web")).unwrap();
        fs::write(directory.join("web/page"), "a page").unwrap();
        let words = ["--target-config", "tokens", "--web", "web"];
        words.map(str::to_owned).to_vec()
    });
    let root = daemon.directory().join("web");
    assert!(
        daemon
            .said()
            .stderr
            .contains(&format!("Web root: {}", root.display()))
    );
    let page = Client::ask(
        daemon.address(),
        b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(page.response.contains("200 OK"), "{}", page.response);
    // Also what is read later.
    for token in ["t", "u"] {
        let file = daemon.directory().join("tokens");
        fs::write(file, format!("{token}: {address}")).unwrap();
        let handshake = Handshake::default().request_line(&format!("GET /?token={token} HTTP/1.1"));
        let mut client = Client::with(daemon.address(), &handshake);
        target.accept().write_all(b"hello").unwrap();
        assert_eq!(client.read_binary(5), b"hello");
    }
}

#[test]
fn a_daemon_logs_to_its_file_and_records_where_it_was_started() {
    let target = Target::new();
    let address = target.address().to_string();
    let options = ["--log-file", "log", "--record", "record"];
    let daemon = Daemon::with(&[&options[..], &[&address]].concat());
    let stderr = &daemon.said().stderr;
    let recorded = daemon.directory().join("record");
    let backgrounding = format!(
        "  - Backgrounding (daemon)\n  - Recording to '{}.*'\n",
        recorded.display()
    );
    assert!(stderr.contains(&backgrounding), "{stderr}");
    serves(&daemon, &target);
    let log = || fs::read_to_string(daemon.directory().join("log")).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("the log to be opened anew", || {
        log().contains("opened anew").then_some(())
    });
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    let log = log();
    assert!(log.starts_with(stderr), "{log}");
    for line in [&format!("connecting to: {address}"), "In exit\n"] {
        assert!(log.contains(line), "{log}");
    }
    let record = fs::read_to_string(recorded.with_extension("1")).unwrap();
    assert!(record.contains("{hello'"), "{record}");
}

#[test]
fn a_wrapped_program_runs_in_the_directory_of_the_start_and_says_nothing_to_the_command() {
    let script = program();
    let daemon = Daemon::through(&[], |_| {
        let options = ["--wrap-mode=respawn", "--ready-file", "ready"];
        let command = ["--", "python3", script.to_str().unwrap(), "echo", "PORT"];
        let words = options.iter().chain(&command);
        words.map(ToString::to_string).collect()
    });
    assert!(daemon.said().stderr.contains("Starting 'python3 "));
    let ready = daemon.directory().join("ready");
    let mut pid = Pid::from_raw(0);
    for _ in 0..2 {
        let before = format!("\"pid\":{pid}");
        wait_until("the file to tell of another program", || {
            let text = fs::read_to_string(&ready).ok()?;
            (!text.contains(&before)).then_some(())
        });
        pid = Pid::from_raw(round_trip(daemon.address()).parse().unwrap());
        assert_eq!(link(pid, "cwd"), daemon.directory());
        for descriptor in ["fd/0", "fd/1", "fd/2"] {
            assert_eq!(link(pid, descriptor), Path::new("/dev/null"));
        }
        kill(pid, Signal::SIGKILL).unwrap();
    }
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    assert!(!ready.exists());
    let mark = format!("wrapped.py echo {}", daemon.address().port());
    assert_eq!(processes_with(&mark), []);
}

#[test]
fn a_plugin_is_started_from_the_directory_of_the_start_also_when_it_has_ended() {
    let target = Target::new();
    let answer = format!(
        "{{\\\"id\\\":${{id%%,*}},\\\"target\\\":\\\"{}\\\"}}",
        target.address()
    );
    let script = format!("#!/bin/sh\nread -r line\nid=${{line#*:}}\necho \"{answer}\"\n");
    let daemon = Daemon::through(&[], |directory| {
        let plugin = directory.join("plugin");
        fs::write(&plugin, script).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let words = ["--token-plugin", "Exec", "--token-source", "./plugin"];
        words.map(str::to_owned).to_vec()
    });
    assert_eq!(link(daemon.pid(), "cwd"), daemon.directory());
    for _ in 0..3 {
        let handshake = Handshake::default().request_line("GET /?token=t HTTP/1.1");
        let mut client = Client::with(daemon.address(), &handshake);
        target.accept().write_all(b"hello").unwrap();
        assert_eq!(client.read_binary(5), b"hello");
    }
}

#[test]
fn a_daemon_serves_what_systemd_hands_over() {
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(executable())
        .args(["-D", "--pid-file", "pid", &target.address().to_string()])
        .current_dir(directory.path())
        .stdin(OwnedFd::from(listener));
    let said = Said::by(command);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert!(
        said.stderr
            .contains(&format!("Listen on {address} (systemd: unknown)"))
    );
    let pid = pid_in(&directory.path().join("pid")).unwrap();
    let mut client = Client::connect(address);
    target.accept().write_all(b"hello").unwrap();
    assert_eq!(client.read_binary(5), b"hello");
    kill(pid, Signal::SIGTERM).unwrap();
    wait_until("the daemon to end", || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_daemon_that_serves_one_session_or_is_idle_ends_by_itself() {
    let target = Target::new();
    let address = target.address().to_string();
    let once = Daemon::with(&["--run-once", "--timeout", "500", &address]);
    serves(&once, &target);
    once.wait();
    assert!(!once.pid_file().exists());
    for limit in ["--timeout", "--idle-timeout"] {
        let limited = Daemon::with(&[limit, "0.1", &address]);
        limited.wait();
        assert!(!limited.pid_file().exists());
    }
}

#[test]
fn a_file_with_a_number_is_another_websockifys_only_while_that_lives() {
    let target = Target::new();
    let target = target.address().to_string();
    let first = Daemon::with(&[&target]);
    let path = first.pid_file();
    let arguments = ["--pid-file", path.to_str().unwrap(), &target];
    let said = Said::by(command(first.directory(), &arguments));
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let expected = format!(
        "has --pid-file {}, process {};",
        path.display(),
        first.pid()
    );
    assert!(said.stderr.contains(&expected), "{said:?}");
    assert_eq!(pid_in(&path), Some(first.pid()));
    first.signal(Signal::SIGKILL);
    first.wait();
    // What is left over is replaced, whoever has that number now.
    assert!(path.exists());
    fs::write(&path, format!("{}\n", Pid::this())).unwrap();
    let said = Said::by(command(first.directory(), &arguments));
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let second = pid_in(&path).unwrap();
    assert_ne!(second, Pid::this());
    kill(second, Signal::SIGTERM).unwrap();
    wait_until("the second one to end", || (!path.exists()).then_some(()));
}

#[test]
fn a_start_that_nobody_waits_for_any_more_is_given_up() {
    let directory = Scratch::new().unwrap();
    let certificates = integration::Certificates::new();
    let identity = certificates.host("server", integration::FAST, None);
    let pem = certificates.join("both.pem", &[&identity.certificate, &identity.key]);
    let password = directory.path().join("password");
    mkfifo(&password, Mode::from_bits_truncate(0o600)).unwrap();
    // Of a pipe that has a writer something is expected.
    let writer = fs::File::options()
        .read(true)
        .write(true)
        .open(&password)
        .unwrap();
    let target = Target::new();
    let arguments = [
        "--cert",
        pem.to_str().unwrap(),
        "--key-password-file",
        "password",
        "--pid-file",
        "pid",
        &target.address().to_string(),
    ];
    let mut command = command(directory.path(), &arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut launcher = command.spawn().unwrap();
    let mark = format!("{} --key-password-file password", pem.display());
    let daemon = wait_until("the daemon to read the password", || {
        let pids = processes_with(&mark).into_iter();
        pids.filter(|pid| pid.as_raw() != launcher.id().cast_signed())
            .find(|&pid| {
                let open = fs::read_dir(format!("/proc/{pid}/fd"));
                open.is_ok_and(|mut open| {
                    open.any(|file| {
                        file.is_ok_and(|file| {
                            fs::read_link(file.path()).is_ok_and(|link| link == password)
                        })
                    })
                })
            })
    });
    launcher.kill().unwrap();
    (&writer).write_all(b"secret\n").unwrap();
    drop(writer);
    let said = Said::by_child(launcher);
    assert!(said.stderr.contains("the start was given up"), "{said:?}");
    wait_until("the daemon to end", || (!is_alive(daemon)).then_some(()));
    assert!(!directory.path().join("pid").exists());
}
