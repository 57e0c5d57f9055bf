//! How a port is moved: by preloading, by seccomp, or not at all. The table of programs has one row for each kind of program that
//! Linux knows, and each row is tried by every method, as root and as an ordinary user: it ends with a client's bytes going
//! through a port that was moved, or with the diagnosis that the row names.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration::{Client, Scratch, Server, compile, compile_go, run_to_end};
use nix::unistd::Uid;

use crate::shim::free_port;
use crate::wrapping::{nobody_else_listens, program, round_trip, wrap_script};

/// Debian's own Python, which every user can execute.
const PYTHON: &str = "/usr/bin/python3";
/// An echo server in Perl.
const PERL: &str = "$l = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 5) or exit 3; while ($c = $l->accept) \
                    { syswrite $c, \"echo\\n\"; while (sysread $c, $b, 4096) { syswrite $c, $b } close $c }";

/// A kind of program.
struct Row {
    name: &'static str,
    /// Its command line; `PORT` stands for the port.
    command: Vec<String>,
    talk: Talk,
    preload: Preload,
}

/// How a client can tell that it reaches the program.
#[derive(Clone, Copy)]
enum Talk {
    /// The program greets and echoes.
    Echo,
    /// It echoes.
    Cat,
    Redis,
    Http,
}

/// What preloading does to a program.
#[derive(Clone, Copy)]
enum Preload {
    Moves,
    /// It is refused with this reason.
    Refused(&'static str),
    /// That it does not reach cannot be known before; the program fails and the log says this.
    Misses(&'static str),
}

/// The programs, in a directory that every user can read.
struct Programs {
    directory: Scratch,
}

impl Programs {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        fs::copy(program(), directory.path().join("wrapped.py")).unwrap();
        // The executable may lie where only we may go.
        fs::copy(
            integration::executable(),
            directory.path().join("websockify"),
        )
        .unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn compile(&self, name: &str, compiler: &str, options: &[&str]) -> String {
        text(compile(self.directory.path(), name, compiler, options))
    }

    fn go(&self, with_c: bool) -> String {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
        text(compile_go(self.directory.path(), &cache, "echo", with_c))
    }

    /// A shell script.
    fn script(&self, name: &str, first_line: &str, rest: &str) -> String {
        let path = self.path(name);
        fs::write(&path, format!("{first_line}\n{rest}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A copy of a program that gains something when it is executed.
    fn privileged(&self, program: &str, name: &str, gain: impl FnOnce(&str)) -> String {
        let path = self.path(name);
        fs::copy(program, &path).unwrap();
        gain(&path);
        path
    }

    /// The rows of the table; `root` tells who will start them.
    fn rows(&self, root: bool) -> Vec<Row> {
        use Preload::{Misses, Moves, Refused};
        use Talk::{Cat, Echo, Http, Redis};
        let row = |name, command: &[&str], talk, preload| Row {
            name,
            command: command.iter().map(|&word| word.to_owned()).collect(),
            talk,
            preload,
        };
        let echo = self.compile("echo", "cc", &[]);
        let static_echo = self.compile("echo", "cc", &["-static"]);
        let script = self.path("wrapped.py");
        let through_env = self.script(
            "through-env",
            "#!/bin/sh",
            &format!("exec env A=1 '{echo}' \"$1\""),
        );
        let to_static = self.script(
            "to-static",
            "#!/bin/sh",
            &format!("exec '{static_echo}' \"$1\""),
        );
        let by_env = self.script(
            "by-env",
            "#!/usr/bin/env -S sh -e",
            &format!("exec '{echo}' \"$1\""),
        );
        let home = self.directory.path().to_str().unwrap();
        let mut rows = vec![
            row("dynamic", &[&echo, "PORT"], Echo, Moves),
            row("Python", &[PYTHON, &script, "echo", "PORT"], Echo, Moves),
            row(
                "Perl",
                &["perl", "-MIO::Socket::INET", "-e", PERL, "PORT"],
                Echo,
                Moves,
            ),
            row(
                "script to env to program",
                &[&through_env, "PORT"],
                Echo,
                Moves,
            ),
            row("script by env -S", &[&by_env, "PORT"], Echo, Moves),
            row("daemon", &[PYTHON, &script, "daemon", "PORT"], Echo, Moves),
            row(
                "50 forks",
                &[&self.compile("forks", "cc", &[]), "PORT"],
                Echo,
                Moves,
            ),
            row(
                "redis",
                &["redis-server", "--port", "PORT", "--save", "", "--dir", "/"],
                Redis,
                Moves,
            ),
            row(
                "socat",
                &["socat", "TCP-LISTEN:PORT,fork,reuseaddr", "EXEC:cat"],
                Cat,
                Moves,
            ),
            row(
                "static",
                &[&static_echo, "PORT"],
                Echo,
                Refused("it is statically linked"),
            ),
            row(
                "static, position-independent",
                &[&self.compile("echo", "cc", &["-static-pie"]), "PORT"],
                Echo,
                Refused("it is statically linked"),
            ),
            row(
                "static forks",
                &[&self.compile("forks", "cc", &["-static"]), "PORT"],
                Echo,
                Refused("it is statically linked"),
            ),
            row(
                "musl",
                &[&self.compile("echo", "musl-gcc", &[]), "PORT"],
                Echo,
                Refused("it uses the musl C library"),
            ),
            row(
                "static musl",
                &[&self.compile("echo", "musl-gcc", &["-static"]), "PORT"],
                Echo,
                Refused("it is statically linked"),
            ),
            row(
                "Go",
                &[&self.go(false), "PORT"],
                Echo,
                Refused("it is a Go program"),
            ),
            row(
                "Go with C",
                &[&self.go(true), "PORT"],
                Echo,
                Refused("it is a Go program"),
            ),
            row(
                "busybox httpd",
                &["busybox", "httpd", "-f", "-p", "PORT", "-h", home],
                Http,
                Refused("it is statically linked"),
            ),
            row(
                "env -i",
                &["env", "-i", PYTHON, &script, "echo", "PORT"],
                Echo,
                Refused("it is told to clear the environment"),
            ),
            row(
                "script to static",
                &[&to_static, "PORT"],
                Echo,
                Misses("what binds it does not load the library"),
            ),
        ];
        if cfg!(target_arch = "x86_64") {
            let narrow = self.compile("echo", "cc", &["-m32"]);
            rows.push(row(
                "32-bit",
                &[&narrow, "PORT"],
                Echo,
                Refused("it is for machines of another word size"),
            ));
        }
        if Uid::effective().is_root() {
            // It changes hands whoever starts it.
            let owner = if root { 65534 } else { 0 };
            let set_id = self.privileged(&echo, &format!("set-id-{owner}"), |path| {
                std::os::unix::fs::chown(path, Some(owner), None).unwrap();
                fs::set_permissions(path, Permissions::from_mode(0o4755)).unwrap();
            });
            rows.push(row(
                "set-user-ID",
                &[&set_id, "PORT"],
                Echo,
                Refused("it is set-user-ID"),
            ));
            let capable = self.privileged(&echo, &format!("capable-{owner}"), |path| {
                let setcap = Command::new("/sbin/setcap")
                    .args(["cap_net_bind_service=ep", path])
                    .status();
                assert!(setcap.expect("setcap starts").success());
            });
            // Root gains nothing by them.
            let preload = if root {
                Moves
            } else {
                Refused("it has file capabilities")
            };
            rows.push(row("file capabilities", &[&capable, "PORT"], Echo, preload));
        }
        rows
    }

    /// Starts the bridge of a row's program.
    fn start(&self, row: &Row, method: &str, root: bool) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let command: Vec<String> = row
            .command
            .iter()
            .map(|word| word.replace("PORT", &port))
            .collect();
        let method = format!("--wrap-method={method}");
        let arguments: Vec<&str> = [&method[..], "--"]
            .into_iter()
            .chain(command.iter().map(String::as_str))
            .collect();
        let executable = self.path("websockify");
        Server::through(&launcher(&executable, root), listener, &arguments)
    }

    /// Tries a row by a method.
    fn try_row(&self, row: &Row, method: &str, root: bool) {
        let mut server = self.start(row, method, root);
        match (method, row.preload) {
            ("preload", Preload::Refused(reason)) => {
                assert_eq!(server.wait().code(), Some(1), "{}", row.name);
                let log = server.rest_of_log();
                let told = log.contains(reason) && log.contains("try --wrap-method=seccomp");
                assert!(told, "{}: {log}", row.name);
            }
            ("preload" | "auto", Preload::Misses(diagnosis)) => {
                assert_ne!(server.wait().code(), Some(0), "{}", row.name);
                let log = server.rest_of_log();
                assert!(log.contains(diagnosis), "{}: {log}", row.name);
            }
            _ => {
                row.talk.check(&server);
                nobody_else_listens(&server);
            }
        }
    }
}

impl Talk {
    /// Reaches the program as a client.
    fn check(self, server: &Server) {
        if matches!(self, Self::Echo) {
            round_trip(server.address());
            return;
        }
        let (question, answer): (&[u8], &[u8]) = match self {
            Self::Echo | Self::Cat => (b"bytes", b"bytes"),
            Self::Redis => (b"PING\r\n", b"+PONG\r\n"),
            Self::Http => (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 404"),
        };
        let mut client = Client::connect(server.address());
        client.send_binary(question);
        let mut bytes = Vec::new();
        while bytes.len() < answer.len() {
            bytes.extend(client.read_frame().payload);
        }
        assert!(
            bytes.starts_with(answer),
            "{}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

/// The command that executes this copy of the program in place of the usual one, as an ordinary user unless as `root`.
fn launcher(executable: &str, root: bool) -> Vec<&str> {
    let as_nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups --";
    let user = as_nobody
        .split(' ')
        .filter(|_| Uid::effective().is_root() && !root);
    user.chain(["sh", "-c", "shift; exec \"$0\" \"$@\"", executable])
        .collect()
}

fn try_all(root: bool) {
    let programs = Programs::new();
    for row in programs.rows(root) {
        for method in ["auto", "preload", "seccomp"] {
            programs.try_row(&row, method, root);
        }
    }
}

#[test]
fn every_kind_of_program_is_moved_or_told_of_as_root() {
    // Without root's rights there is only the other test.
    if Uid::effective().is_root() {
        try_all(true);
    }
}

#[test]
fn every_kind_of_program_is_moved_or_told_of_as_an_ordinary_user() {
    try_all(false);
}

#[test]
fn an_ordinary_user_is_warned_of_what_seccomp_costs() {
    let programs = Programs::new();
    let echo = programs.compile("echo", "cc", &["-static"]);
    let row = Row {
        name: "static",
        command: vec![echo, "PORT".to_owned()],
        talk: Talk::Echo,
        preload: Preload::Moves,
    };
    let mut server = programs.start(&row, "auto", false);
    server.wait_for_line("set-user-ID programs have no power under it");
}

#[test]
fn seccomp_moves_whatever_preloading_moves() {
    for (kind, greeting) in [
        ("both", "four"),
        ("six", "six"),
        ("dual", "dual"),
        ("daemon", ""),
        ("workers", ""),
    ] {
        let server = wrap_script(&["--wrap-method=seccomp"], kind, "PORT");
        let greeted = round_trip(server.address());
        assert!(
            greeting.is_empty() || greeted == greeting,
            "{kind}: {greeted}"
        );
        nobody_else_listens(&server);
    }
    let server = wrap_script(
        &["--wrap-method=seccomp", "--wrap-mode=respawn"],
        "one_shot",
        "PORT",
    );
    for _ in 0..5 {
        assert_eq!(round_trip(server.address()), "one shot");
    }
}

#[test]
fn binds_of_many_threads_under_signals_all_come_back() {
    let directory = tempfile::tempdir().unwrap();
    for (method, options) in [("seccomp", &["-static"][..]), ("preload", &[])] {
        let threads = compile(directory.path(), "threads", "cc", options);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let method = format!("--wrap-method={method}");
        // It exits with the number of binds that did not do what they should.
        let command = [&method, "--", threads.to_str().unwrap(), &port];
        let mut server = Server::on(listener, &command);
        assert_eq!(server.wait().code(), Some(0), "{}", server.rest_of_log());
    }
}

#[test]
fn a_method_that_does_not_reach_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "echo", "cc", &["-static"]);
    for (command, reason) in [
        (
            &["env", "A=1", program.to_str().unwrap()][..],
            "it is statically linked",
        ),
        (&["env", "-i", "sh"], "clear the environment"),
    ] {
        let output =
            run_to_end(&[&["127.0.0.1:0", "--wrap-method=preload", "--"], command].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains(reason) && stderr.contains("--wrap-method=seccomp"),
            "{stderr}"
        );
    }
    let output = run_to_end(&["127.0.0.1:0", "--wrap-method=none", "--", "sh"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("--wrap-method=none needs --wrap-port")
    );
}

#[test]
fn an_untouched_program_is_reached_where_it_listens_by_itself() {
    let own = free_port().to_string();
    let server = wrap_script(&["--wrap-method=none", "--wrap-port", &own], "report", &own);
    assert_eq!(round_trip(server.address()), "echo");
}
