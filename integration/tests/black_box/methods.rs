//! How a port is moved: by preloading, by seccomp, or not at all.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration::{Client, Server, run_to_end};

use crate::shim::free_port;
use crate::wrapping::{nobody_else_listens, program, round_trip, wrap, wrap_script};

/// Builds the C program of this name with these options of the compiler.
fn build(directory: &Path, name: &str, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("programs/{name}.c"));
    let built = directory.join(name);
    let mut compiler = Command::new("cc");
    compiler
        .args(["-O1", "-Wall", "-Werror", "-pthread"])
        .args(options);
    let status = compiler
        .arg(&source)
        .arg("-o")
        .arg(&built)
        .status()
        .expect("cc starts");
    assert!(status.success(), "{name} {options:?}");
    built
}

#[test]
fn static_programs_are_moved_by_seccomp() {
    let directory = tempfile::tempdir().unwrap();
    for options in [&["-static"][..], &["-static-pie"]] {
        let server = build(directory.path(), "echo", options);
        let server = wrap(&[], &[server.to_str().unwrap(), "PORT"]);
        assert_eq!(round_trip(server.address()), "echo");
        nobody_else_listens(&server);
    }
    let server = wrap(
        &[],
        &[
            "busybox",
            "httpd",
            "-f",
            "-p",
            "PORT",
            "-h",
            directory.path().to_str().unwrap(),
        ],
    );
    let mut client = Client::connect(server.address());
    client.send_binary(b"GET /echo HTTP/1.0\r\n\r\n");
    assert!(client.read_to_close().0.starts_with(b"HTTP/1.1 200 OK"));
    nobody_else_listens(&server);
}

#[test]
fn programs_that_lose_the_environment_are_moved_by_seccomp() {
    let script = program();
    let python = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let server = wrap(
        &[],
        &[
            "env",
            "-i",
            python.trim(),
            script.to_str().unwrap(),
            "echo",
            "PORT",
        ],
    );
    round_trip(server.address());
    nobody_else_listens(&server);
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
    let threads = build(directory.path(), "threads", &["-static"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    // It exits with the number of binds that did not do what they should.
    let mut server = Server::on(listener, &["--", threads.to_str().unwrap(), &port]);
    assert_eq!(server.wait().code(), Some(0), "{}", server.rest_of_log());
}

#[test]
fn an_ordinary_user_can_do_it_too() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let echo = build(directory.path(), "echo", &["-static"]);
    // The executable may lie where only we may go.
    let copy = directory.path().join("websockify");
    std::fs::copy(integration::executable(), &copy).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let as_nobody: &[&str] = match nix::unistd::Uid::effective().is_root() {
        true => &[
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--",
        ],
        false => &[],
    };
    let launcher = [
        as_nobody,
        &[
            "sh",
            "-c",
            "shift; exec \"$0\" \"$@\"",
            copy.to_str().unwrap(),
        ],
    ]
    .concat();
    let mut server = Server::through(&launcher, listener, &["--", echo.to_str().unwrap(), &port]);
    assert_eq!(round_trip(server.address()), "echo");
    server.wait_for_line("set-user-ID programs have no power under it");
}

#[test]
fn a_method_that_does_not_reach_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "echo", &["-static"]);
    for (command, reason) in [
        (&[program.to_str().unwrap()][..], "it is statically linked"),
        (
            &["env", "A=1", program.to_str().unwrap()],
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

#[test]
fn a_lone_executable_wraps_with_no_other_file_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("websockify");
    std::fs::copy(integration::executable(), &copy).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let script = program();
    let command = [
        "--wrap-method=preload",
        "--",
        "python3",
        script.to_str().unwrap(),
        "echo",
        &port,
    ];
    let launcher = [
        "sh",
        "-c",
        "shift; exec \"$0\" \"$@\"",
        copy.to_str().unwrap(),
    ];
    let server = Server::through(&launcher, listener, &command);
    round_trip(server.address());
    nobody_else_listens(&server);
}
