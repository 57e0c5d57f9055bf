//! Whose rights it has: `--user` and `--wrap-user`.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use integration::{
    Certificates, Client, Daemon, FAST, Handshake, Scratch, Server, Target, as_root, executable,
    is_alive, pid_in, run_to_end, text, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use crate::wrapping::{processes_with, program, round_trip};

/// Users that every Debian has.
const OURS: &str = "www-data";
const THEIRS: &str = "daemon";

fn uid(name: &str) -> u32 {
    User::from_name(name).unwrap().unwrap().uid.as_raw()
}

/// The numbers in a line of a process's `status`.
fn numbers(pid: Pid, line: &str) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|found| found.strip_prefix(line));
    let numbers = found.unwrap().split_whitespace();
    numbers.map(|number| number.parse().unwrap()).collect()
}

/// That a process has this user and group, these groups, and no rights that others have not.
fn has_ids(pid: Pid, uid: u32, gid: u32, groups: &[u32]) {
    assert_eq!(numbers(pid, "Uid:"), [uid; 4]);
    assert_eq!(numbers(pid, "Gid:"), [gid; 4]);
    assert_eq!(numbers(pid, "Groups:"), groups);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert!(
            status.contains(&format!("{line}\t0000000000000000\n")),
            "{status}"
        );
    }
}

fn has_user(pid: Pid, name: &str) {
    let user = User::from_name(name).unwrap().unwrap();
    let gid = user.gid.as_raw();
    has_ids(pid, user.uid.as_raw(), gid, &[gid]);
}

/// A directory for programs that every user may start, and a copy of the script that is in it.
fn open_directory() -> (Scratch, String) {
    let directory = Scratch::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = directory.path().join("wrapped.py");
    fs::copy(program(), &script).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap().to_owned();
    (directory, script)
}

/// A bridge to one of the script's programs, in which `PORT` stands for the port that we listen on.
fn wrap(options: &[&str], script: &str, kind: &str) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let command = ["--", "python3", script, kind, &port];
    Server::on(listener, &[options, &command].concat())
}

/// The children of a process.
fn children(parent: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let pids = children.split_whitespace();
    pids.map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

#[test]
fn users_that_do_not_exist_are_usage_errors() {
    for (arguments, what) in [
        (
            &["--user", "no-such-user"][..],
            "--user: there is no user 'no-such-user'",
        ),
        (
            &["--user", "root:no-such"],
            "--user: there is no group 'no-such'",
        ),
        (
            &["--user", "123456789"],
            "give its group as well, '123456789:GROUP'",
        ),
        (
            &["--wrap-user", "root"],
            "--wrap-user needs a wrapped program",
        ),
    ] {
        let output = run_to_end(&[arguments, &["127.0.0.1:0", ":1"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(what), "{stderr}");
    }
    let wrapped = ["127.0.0.1:0", "--wrap-user", "no-such-user", "--", "true"];
    assert_eq!(run_to_end(&wrapped).status.code(), Some(2));
}

#[test]
fn an_ordinary_user_can_be_nobody_else() {
    if !as_root("user::an_ordinary_user_can_be_nobody_else") {
        return;
    }
    let target = Target::new().address().to_string();
    let id = uid(OURS).to_string();
    let launcher = [
        "setpriv",
        "--reuid",
        &id,
        "--regid",
        &id,
        "--clear-groups",
        "--",
    ];
    let (directory, _) = open_directory();
    let copy = directory.path().join("websockify");
    fs::copy(executable(), &copy).unwrap();
    let copy = copy.to_str().unwrap();
    let start = |arguments: &[&str]| {
        let mut command = Command::new(launcher[0]);
        command
            .args(&launcher[1..])
            .args([copy, "127.0.0.1:0"])
            .args(arguments);
        Server::with_command(command)
    };
    for (arguments, what) in [
        (&["--user", THEIRS, &target][..], "--user daemon needs root"),
        (&["--user", "root", &target], "--user root needs root"),
        (
            &["--wrap-user", THEIRS, "--", "true"],
            "--wrap-user daemon needs root",
        ),
    ] {
        let mut server = start(arguments);
        assert_eq!(server.wait().code(), Some(1));
        assert!(server.rest_of_log().contains(what), "{what}");
    }
    // What it is already.
    start(&["--user", OURS, &target]).wait_for_line("proxying from ");
}

#[test]
fn rights_are_given_up_when_everything_is_bound_and_read() {
    if !as_root("user::rights_are_given_up_when_everything_is_bound_and_read") {
        return;
    }
    let target = Target::new();
    let directory = Scratch::new().unwrap();
    let certificates = Certificates::new();
    let identity = certificates.host("server", FAST, None);
    // Nobody but root may read anything of this.
    let write = |name: &str, content: &[u8]| -> PathBuf {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let key = write("key.pem", &fs::read(&identity.key).unwrap());
    let tokens = write("tokens", format!("t: {}", target.address()).as_bytes());
    let password = write("password", b"alice:secret\n");
    let socket = directory.path().join("socket");
    let number = directory.path().join("pid");
    let log = directory.path().join("log");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let from_file = format!("@{}", password.display());
    for (user, ids) in [
        (OURS.to_owned(), (uid(OURS), uid(OURS))),
        (format!("{OURS}:{THEIRS}"), (uid(OURS), uid(THEIRS))),
        ("4711:4712".to_owned(), (4711, 4712)),
    ] {
        let mut command = Command::new(executable());
        command.args([
            "--user",
            &user,
            "--unix-listen",
            text(&socket),
            "--pid-file",
            text(&number),
            "--log-file",
            text(&log),
            "--cert",
            text(&identity.certificate),
            "--key",
            text(&key),
            "--token-plugin",
            "ReadOnlyTokenFile",
            "--token-source",
            text(&tokens),
            "--auth-plugin",
            "BasicHTTPAuth",
            "--auth-source",
            &from_file,
        ]);
        let mut server = Server::with_command(command);
        server.wait_for_line("proxying from ");
        has_ids(server.pid(), ids.0, ids.1, &[ids.1]);
        assert_eq!(pid_in(&number), Some(server.pid()));
        let owner = fs::metadata(&socket).unwrap();
        assert_eq!((owner.uid(), owner.gid()), ids);
        let mut client = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let handshake = Handshake::default()
            .request_line("GET /?token=t HTTP/1.1")
            .with("Authorization: Basic YWxpY2U6c2VjcmV0");
        client.write_all(&handshake.bytes()).unwrap();
        target.accept();
        // What cannot be read any more changes nothing.
        server.signal(Signal::SIGHUP);
        for kept in [
            "the certificate stays what it was",
            "user and password stay what they were",
            "the tokens stay what they were",
        ] {
            server.wait_for_line(kept);
        }
        wait_until("the log to tell of itself", || {
            let log = fs::read_to_string(&log).unwrap();
            log.contains("the old one is kept: Permission denied")
                .then_some(())
        });
        let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        for thread in threads {
            let thread = thread.unwrap().file_name().into_string().unwrap();
            assert_eq!(
                numbers(Pid::from_raw(thread.parse().unwrap()), "Uid:"),
                [ids.0; 4]
            );
        }
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0));
        // It could not be removed, and misleads nobody.
        assert_eq!(fs::read(&number).unwrap(), b"");
    }
}

#[test]
fn a_daemon_gives_its_rights_up_as_well() {
    if !as_root("user::a_daemon_gives_its_rights_up_as_well") {
        return;
    }
    let target = Target::new();
    let daemon = Daemon::with(&["--user", OURS, &target.address().to_string()]);
    has_user(daemon.pid(), OURS);
    let mut client = Client::connect(daemon.address());
    target.accept().write_all(b"hello").unwrap();
    assert_eq!(client.read_binary(5), b"hello");
}

#[test]
fn a_plugin_is_started_as_the_user() {
    if !as_root("user::a_plugin_is_started_as_the_user") {
        return;
    }
    let target = Target::new().address();
    let script = format!(
        "id -u >&2; while read -r line; do id=${{line#*:}}; echo \"{{\\\"id\\\":${{id%%,*}},\\\"target\\\":\\\"{target}\\\"}}\"; done"
    );
    let plugin = format!("sh -c '{script}'");
    let options = [
        "--user",
        OURS,
        "--token-plugin",
        "Exec",
        "--token-source",
        &plugin,
    ];
    let mut server = Server::with(&options);
    server.wait_for_line(&format!("token plugin: {}", uid(OURS)));
    let handshake = Handshake::default().request_line("GET /?token=t HTTP/1.1");
    drop(Client::with(server.address(), &handshake));
}

#[test]
fn a_wrapped_program_has_the_user_whatever_moves_its_port() {
    if !as_root("user::a_wrapped_program_has_the_user_whatever_moves_its_port") {
        return;
    }
    let (_directory, script) = open_directory();
    for options in [
        &["--user", OURS][..],
        &["--user", OURS, "--wrap-method=seccomp"],
        &["--wrap-user", OURS],
        &["--wrap-user", OURS, "--wrap-method=seccomp"],
        &["--user", OURS, "--wrap-user", OURS, "--wrap-method=seccomp"],
    ] {
        let options = [options, &["--wrap-mode=respawn"]].concat();
        let mut server = wrap(&options, &script, "echo");
        for _ in 0..2 {
            server.wait_for_line("Starting '");
            let pid = Pid::from_raw(round_trip(server.address()).parse().unwrap());
            has_user(pid, OURS);
            // Whoever starts it again needs no other rights.
            has_user(children(server.pid())[0], OURS);
            let variables = fs::read(format!("/proc/{pid}/environ")).unwrap();
            let variables = String::from_utf8_lossy(&variables).into_owned();
            for expected in ["HOME=/var/www\0", "USER=www-data\0", "LOGNAME=www-data\0"] {
                assert!(format!("{variables}\0").contains(expected), "{variables}");
            }
            kill(pid, Signal::SIGKILL).unwrap();
        }
        server.wait_for_line("Starting '");
        round_trip(server.address());
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0), "{options:?}");
        let mark = format!("wrapped.py echo {}", server.address().port());
        assert_eq!(processes_with(&mark), [], "{options:?}");
        let log = server.rest_of_log();
        let warned = log.contains("set-user-ID programs have no power");
        let by_seccomp = options.contains(&"--wrap-method=seccomp");
        assert_eq!(warned, by_seccomp, "{options:?}: {log}");
    }
}

#[test]
fn a_program_of_another_user_is_looked_after_without_any_rights() {
    if !as_root("user::a_program_of_another_user_is_looked_after_without_any_rights") {
        return;
    }
    let (directory, script) = open_directory();
    let options = ["--user", OURS, "--wrap-user", THEIRS, "--wrap-mode=respawn"];
    let mut server = wrap(&options, &script, "report");
    for _ in 0..2 {
        server.wait_for_line("ready");
        has_user(server.pid(), OURS);
        let guard = children(server.pid())[0];
        has_user(guard, THEIRS);
        drop(Client::connect(server.address()));
        server.signal(Signal::SIGUSR1);
        server.wait_for_line("got SIGUSR1");
        let program = children(guard)[0];
        has_user(program, THEIRS);
        kill(program, Signal::SIGKILL).unwrap();
    }
    server.wait_for_line("ready");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    // Whatever it has left behind, and whether it wants to end or not.
    for kind in ["daemon", "stubborn", "workers"] {
        let mut server = wrap(&options[..4], &script, kind);
        round_trip(server.address());
        let mark = format!("wrapped.py {kind} {}", server.address().port());
        assert!(!processes_with(&mark).is_empty());
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0), "{kind}");
        assert_eq!(processes_with(&mark), [], "{kind}");
    }
    // A killed bridge takes it along.
    let mut server = wrap(&options[..4], &script, "echo");
    let pid = Pid::from_raw(round_trip(server.address()).parse().unwrap());
    server.signal(Signal::SIGKILL);
    server.wait();
    wait_until("the program to go", || (!is_alive(pid)).then_some(()));
    // For seccomp we would have to see into it.
    let mut server = wrap(
        &[&options[..4], &["--wrap-method=seccomp"]].concat(),
        &script,
        "echo",
    );
    assert_eq!(server.wait().code(), Some(1));
    assert!(
        server
            .rest_of_log()
            .contains("it has to be the same user's")
    );
    drop(directory);
}

#[test]
fn what_the_user_may_not_do_is_an_error_of_the_start() {
    if !as_root("user::what_the_user_may_not_do_is_an_error_of_the_start") {
        return;
    }
    let directory = Scratch::new().unwrap();
    let ready = directory.path().join("ready");
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, "a-secret: 127.0.0.1:1").unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let closed = directory.path().join("program");
    fs::write(&closed, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    for (arguments, status, what) in [
        (
            &["--ready-file", text(&ready), "--", "true"][..],
            1,
            "cannot write ",
        ),
        (&["--", text(&closed)], 126, "Permission denied"),
        (
            &[
                "--token-plugin",
                "TokenFile",
                "--token-source",
                text(&tokens),
            ],
            1,
            "has to be readable for the user that we run as",
        ),
        (
            &[
                "--token-plugin",
                "JWTTokenApi",
                "--token-source",
                text(&tokens),
            ],
            1,
            "has to be readable for the user that we run as",
        ),
    ] {
        let mut server = Server::with(&[&["--user", OURS], arguments].concat());
        assert_eq!(server.wait().code(), Some(status), "{what}");
        assert!(server.rest_of_log().contains(what), "{what}");
    }
}
