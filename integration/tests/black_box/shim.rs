//! The preloaded library itself.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration::{Scratch, compile, in_own_network, run_to_end};

fn library() -> PathBuf {
    integration::executable().with_file_name("librebind.so")
}

/// What a command prints.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("the command starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_exports_the_hooks_and_nothing_else() {
    let symbols = output(
        Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(library()),
    );
    let names: Vec<&str> = symbols
        .lines()
        .filter_map(|line| line.split(' ').nth(2))
        .collect();
    assert_eq!(names, ["bind", "getsockname"]);
}

#[test]
fn it_needs_only_what_every_program_of_its_c_library_can_load() {
    let headers = output(Command::new("objdump").arg("-p").arg(library()));
    let needed: Vec<&str> = headers
        .lines()
        .filter_map(|line| line.trim().strip_prefix("NEEDED").map(str::trim))
        .collect();
    for name in &needed {
        assert!(
            ["libc.so.6", "libgcc_s.so.1"].contains(name) || name.starts_with("ld-linux"),
            "{needed:?}"
        );
    }
    let newest = headers
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("GLIBC_2."))
        .filter_map(|minor| {
            minor
                .split('.')
                .next()
                .and_then(|minor| minor.parse::<u32>().ok())
        });
    // Debian 11 has 2.31, and 2.34 came when threads moved into libc; Rust's own library asks for no more.
    assert!(newest.max().unwrap_or_default() <= 34, "{headers}");
}

/// A port that was free a moment ago: a socket that is bound again and again by the program cannot be kept from others.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// The probe, built in a directory of its own.
fn probe(directory: &Scratch) -> PathBuf {
    compile(directory.path(), "probe", "cc", &[])
}

/// What the probe prints for these ports under the shim, with these variables in its environment.
fn preloaded(probe: &Path, ports: (u16, u16), variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(probe);
    command
        .args([ports.0.to_string(), ports.1.to_string()])
        .env("LD_PRELOAD", library())
        .env_remove("REBIND_OLD_PORT")
        .env_remove("REBIND_NEW_PORT");
    output(command.envs(variables.iter().copied()))
}

/// Addresses that are not this machine's: the kernel refuses them, and a moved bind does not get there.
const NOT_OURS: [&str; 2] = ["v4 not ours", "v6 not ours"];

/// The attempts of which the two outputs tell differently.
fn differences<'a>(native: &'a str, other: &str) -> Vec<&'a str> {
    assert_eq!(native.lines().count(), other.lines().count());
    native
        .lines()
        .zip(other.lines())
        .filter(|(native, other)| native != other)
        .map(|(native, _)| native.split(':').next().unwrap())
        .collect()
}

#[test]
fn binds_look_the_same_to_the_program_whether_they_are_moved_or_not() {
    if !in_own_network("shim::binds_look_the_same_to_the_program_whether_they_are_moved_or_not") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let probe = probe(&directory);
    let native = output(Command::new(&probe).args(["2023", "2024"]));
    assert!(native.lines().count() >= 50, "{native}");
    assert!(!native.contains("CHANGED"), "{native}");
    assert!(
        native.contains("v4 any: 0 0 (0.0.0.0 PORT 0 length 16)\n"),
        "{native}"
    );
    assert!(native.contains("v4 privileged: -1 13 "), "{native}");
    // Without a rule the shim is not there.
    assert_eq!(preloaded(&probe, (2023, 2024), &[]), native);
    let rule = [("REBIND_OLD_PORT", "2023"), ("REBIND_NEW_PORT", "40000")];
    let moved = preloaded(&probe, (2023, 2024), &rule);
    assert_eq!(differences(&native, &moved), NOT_OURS);
}

#[test]
fn binds_have_the_same_results_under_seccomp() {
    if !in_own_network("shim::binds_have_the_same_results_under_seccomp") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let probe = probe(&directory);
    let native = output(Command::new(&probe).args(["2023", "2024"]));
    let options = ["127.0.0.1:0", "--wrap-method=seccomp", "--wrap-port=2023"];
    let command = ["--", probe.to_str().unwrap(), "2023", "2024"];
    let run = run_to_end(&[&options[..], &command].concat());
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    let moved = String::from_utf8(run.stdout).unwrap();
    // The name of a moved socket is the loopback address: the results are what is the same.
    let results = |text: &str| -> String {
        text.lines()
            .map(|line| format!("{}\n", line.split(" (").next().unwrap()))
            .collect()
    };
    assert_eq!(differences(&results(&native), &results(&moved)), NOT_OURS);
    assert!(!moved.contains("CHANGED"), "{moved}");
    assert!(
        !moved.contains("v4 any: 0 0 (0.0.0.0 PORT"),
        "moved at all: {moved}"
    );
}

#[test]
fn a_moved_bind_is_where_it_was_sent() {
    let directory = tempfile::tempdir().unwrap();
    let probe = probe(&directory);
    let old = free_port();
    let ports = (old, free_port());
    let old = old.to_string();
    // The new port is in use without SO_REUSEADDR: so a bind that was moved fails, and one that was not does not.
    let (_guard, taken) = crate::session::nobody_listens();
    let new = taken.port().to_string();
    let rule = [("REBIND_OLD_PORT", &old[..]), ("REBIND_NEW_PORT", &new)];
    let moved = preloaded(&probe, ports, &rule);
    assert!(moved.contains("v4 any: -1 98 "), "{moved}");
    assert!(moved.contains("udp any: 0 0 "), "{moved}");
    // With half a rule, or a bad one, nothing is moved.
    for variables in [
        &[("REBIND_OLD_PORT", &old[..])][..],
        &[("REBIND_OLD_PORT", &old), ("REBIND_NEW_PORT", "0")],
        &[("REBIND_OLD_PORT", " 1"), ("REBIND_NEW_PORT", &new)],
    ] {
        let left_alone = preloaded(&probe, ports, variables);
        assert!(left_alone.contains("v4 any: 0 0 "), "{variables:?}");
    }
}

#[test]
fn a_fork_during_the_first_bind_does_not_hang() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "fork_at_bind", "cc", &[]);
    for _ in 0..10 {
        let port = free_port().to_string();
        let options = ["127.0.0.1:0", "--wrap-method=preload", "--wrap-port", &port];
        let command = ["--", program.to_str().unwrap(), &port];
        let run = run_to_end(&[&options[..], &command].concat());
        assert_eq!(run.status.code(), Some(0), "{run:?}");
    }
}

#[test]
fn it_tells_what_it_moves_only_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let probe = probe(&directory);
    let (old, new) = (free_port(), free_port());
    let run = |debug: &str| {
        let output = Command::new(&probe)
            .args([old.to_string(), free_port().to_string()])
            .env("LD_PRELOAD", library())
            .env("REBIND_OLD_PORT", old.to_string())
            .env("REBIND_NEW_PORT", new.to_string())
            .env("REBIND_DEBUG", debug)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(run("0"), "");
    let told = run("1");
    for line in [
        format!("bind 0.0.0.0:{old} moved to 127.0.0.1:{new}: errno 0"),
        format!("bind [::1]:{old} moved to [::1]:{new}: errno 0"),
    ] {
        assert!(told.contains(&line), "{told}");
    }
}

#[test]
fn the_rebind_command_moves_a_program_and_leaves_it_alone_otherwise() {
    let rebind = integration::executable().with_file_name("rebind");
    let (old, new) = (free_port(), free_port());
    let directory = tempfile::tempdir().unwrap();
    let probe = probe(&directory);
    let run = |arguments: &[&str]| {
        Command::new(&rebind)
            .args(arguments)
            .env("REBIND_DEBUG", "1")
            .output()
            .unwrap()
    };
    let (old_port, new_port) = (old.to_string(), new.to_string());
    let moved = run(&[
        &old_port,
        &new_port,
        probe.to_str().unwrap(),
        &old_port,
        &free_port().to_string(),
    ]);
    let stderr = String::from_utf8(moved.stderr).unwrap();
    assert!(
        stderr.contains(&format!(
            "bind 0.0.0.0:{old} moved to 127.0.0.1:{new}: errno 0"
        )),
        "{stderr}"
    );
    assert_eq!(
        run(&[&old_port, &new_port, "sh", "-c", "exit 5"])
            .status
            .code(),
        Some(5)
    );
    assert_eq!(
        run(&[&old_port, &new_port, "no-such-program"])
            .status
            .code(),
        Some(127)
    );
    assert_eq!(
        run(&[&old_port, &new_port, "/etc/passwd"]).status.code(),
        Some(126)
    );
    assert_eq!(run(&[&old_port, "0", "true"]).status.code(), Some(2));
    assert_eq!(run(&[&old_port]).status.code(), Some(2));
}
