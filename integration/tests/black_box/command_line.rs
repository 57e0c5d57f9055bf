//! The command line as a user meets it: usage errors, help, settings.

use integration::{Server, Target, run_to_end};

fn usage_error(arguments: &[&str]) -> String {
    let output = run_to_end(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(stderr.contains("error:"), "{arguments:?}: {stderr}");
    stderr
}

#[test]
fn usage_errors_exit_with_2_and_say_what_is_wrong() {
    for (arguments, what) in [
        (&[][..], "Too few arguments"),
        (&["6080"], "Too few arguments"),
        (&["6080", "--"], "Too few arguments"),
        (&["6080", "h:1", "h:2"], "Too many arguments"),
        (&["6080", "h:1", "--", "prog"], "Too many arguments"),
        (&["6080", "h:1", "--unix-target", "s"], "Too many arguments"),
        (&["x", "h:1"], "Error parsing listen port"),
        (&["65536", "h:1"], "Error parsing listen port"),
        (&["6080", "h"], "Error parsing target"),
        (&["6080", "h:"], "Error parsing target port"),
        (&["6080", "h:1", "--heartbeat"], "--heartbeat"),
        (
            &["6080", "h:1", "--heartbeat", "soon"],
            "not a number of seconds",
        ),
        (
            &["6080", "h:1", "--allow-origin", "example.com"],
            "not an origin such as https://example.com",
        ),
        (
            &["6080", "h:1", "--handshake-timeout", "0"],
            "not a number of seconds above 0",
        ),
        (
            &["6080", "h:1", "--unix-listen-mode", "9"],
            "permission bits",
        ),
        (
            &["6080", "--wrap-mode", "never", "--", "prog"],
            "--wrap-mode",
        ),
        (
            &["6080", "h:1", "--wrap-port", "1"],
            "needs a wrapped program",
        ),
        (
            &["6080", "h:1", "--web-header", "X: 1"],
            "--web-header needs --web",
        ),
        (
            &["6080", "h:1", "--web=.", "--web-header", "X"],
            "not 'Name: value'",
        ),
        (
            &["6080", "h:1", "--web=.", "--web-header", "a b: 1"],
            "not the name of a header",
        ),
        (
            &["6080", "h:1", "--web=.", "--web-header", "X: a\nb"],
            "not the value of a header",
        ),
        (
            &[
                "6080",
                "h:1",
                "--web=.",
                "--web-header",
                "content-length: 1",
            ],
            "for the server to set",
        ),
        (
            &["6080", "h:1", "--ssl-only"],
            "--ssl-only needs a certificate",
        ),
        (
            &["6080", "h:1", "--ssl-only", "--cert", "/no/such"],
            "/no/such does not exist",
        ),
        (
            &["6080", "h:1", "--verify-client"],
            "--verify-client needs a certificate",
        ),
        (&["6080", "h:1", "--key", "k"], "--key needs --cert"),
        (
            &["6080", "h:1", "--key-password=a", "--key-password-file=b"],
            "give one of them",
        ),
        (&["6080", "h:1", "--ssl-version", "sslv3"], "--ssl-version"),
        (&["6080", "h:1", "--ssl-ciphers", "RC4"], "leaves no cipher"),
        (&["6080", "h:1", "--target-insecure"], "need --ssl-target"),
        (
            &["6080", "h:1", "--target-cafile", "f"],
            "need --ssl-target",
        ),
        (
            &[
                "6080",
                "h:1",
                "--ssl-target",
                "--target-insecure",
                "--target-cafile=f",
            ],
            "give one of them",
        ),
        (
            &["6080", "h:1", "--legacy-syslog"],
            "You must use --syslog to use --legacy-syslog",
        ),
        (
            &["6080", "h:1", "--syslog", "host:x"],
            "Error parsing syslog port",
        ),
        (&["6080", "h:1", "--log-format", "xml"], "--log-format"),
        (&["6080", "h:1", "--no-such-option"], "--no-such-option"),
    ] {
        let stderr = usage_error(arguments);
        assert!(stderr.contains(what), "{arguments:?}: {stderr}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for option in ["--help", "-h", "--version", "-V"] {
        let output = run_to_end(&[option]);
        assert_eq!(output.status.code(), Some(0), "{option}");
        assert!(output.stderr.is_empty(), "{option}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains("websockify"), "{option}: {stdout}");
    }
}

#[test]
fn options_stand_anywhere_in_any_form() {
    let target = Target::new();
    let address = target.address().to_string();
    for arguments in [
        &["-v", "127.0.0.1:0", &address][..],
        &["127.0.0.1:0", "-v6", &address],
        &["127.0.0.1:0", &address, "--verb", "--heart=30", "--"],
        &[
            "127.0.0.1:0",
            &address,
            "--key-pass",
            "x",
            "--ssl-ver=default",
        ],
        &[
            "--auto-pong",
            "--libserver",
            "--wrap-mode=respawn",
            "127.0.0.1:0",
            &address,
        ],
        &[
            "--timeout",
            "5",
            "--idle-timeout",
            "5",
            "--run-once",
            "127.0.0.1:0",
            "--timeout=500",
            &address,
        ],
    ] {
        let mut server = Server::with_command({
            let mut command = std::process::Command::new(integration::executable());
            command.args(arguments);
            command
        });
        server.wait_for_line(&format!("to {address}"));
    }
}

#[test]
fn the_settings_say_what_was_asked_for_and_which_port_was_got() {
    let mut server = Server::listening_by_itself(&[":0", ":5900"]);
    let port = server.address().port();
    assert_ne!(port, 0);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let log = server.rest_of_log();
    let expected = format!(
        "WebSocket server settings:\n  - Listen on :{port}\n  - No SSL/TLS support (no cert file)\n  - proxying from :{port} to :5900\n"
    );
    assert!(log.starts_with(&expected), "{log}");
    assert!(log.ends_with("\nIn exit"), "{log}");
}
