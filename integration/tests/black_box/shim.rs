//! The preloaded library itself.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use crate::wrapping::program;

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

/// What the program of many binds prints for a port that is free, with these variables in its environment.
fn binds(port: u16, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new("python3");
    command
        .arg(program())
        .args(["binds", &port.to_string()])
        .env("LD_PRELOAD", library());
    output(
        command
            .env_remove("REBIND_OLD_PORT")
            .env_remove("REBIND_NEW_PORT")
            .envs(variables.iter().copied()),
    )
}

/// A port that was free a moment ago: a socket that is bound again and again by the program cannot be kept from others.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn binds_look_the_same_to_the_program_whether_they_are_moved_or_not() {
    let (old, new) = (free_port(), free_port());
    let native = binds(old, &[]);
    assert!(
        native.contains(&format!("any 0 ('0.0.0.0', {old})")),
        "{native}"
    );
    // A second bind is refused, and the socket keeps its name.
    assert!(
        native.contains(&format!("any 22 ('0.0.0.0', {old})")),
        "{native}"
    );
    let moved = binds(
        old,
        &[
            ("REBIND_OLD_PORT", &old.to_string()),
            ("REBIND_NEW_PORT", &new.to_string()),
        ],
    );
    assert_eq!(moved, native);
}

#[test]
fn a_moved_bind_is_where_it_was_sent() {
    let old = free_port();
    // The new port is in use without SO_REUSEADDR: so a bind that was moved fails, and one that was not does not.
    let taken = nobody_shares();
    let new = taken.1.to_string();
    let moved = binds(
        old,
        &[
            ("REBIND_OLD_PORT", &old.to_string()),
            ("REBIND_NEW_PORT", &new),
        ],
    );
    assert!(moved.contains("any 98 "), "{moved}");
    assert!(moved.contains("udp 0 "), "{moved}");
    // With half a rule, or a bad one, nothing is moved.
    for variables in [
        &[("REBIND_OLD_PORT", &old.to_string()[..])][..],
        &[
            ("REBIND_OLD_PORT", &old.to_string()),
            ("REBIND_NEW_PORT", "0"),
        ],
        &[("REBIND_OLD_PORT", " 1"), ("REBIND_NEW_PORT", &new)],
    ] {
        assert!(binds(old, variables).contains("any 0 "), "{variables:?}");
    }
}

/// A port of the IPv4 loopback that cannot be shared.
fn nobody_shares() -> (std::os::fd::OwnedFd, u16) {
    let (socket, address) = crate::session::nobody_listens();
    (socket, address.port())
}

#[test]
fn it_tells_what_it_moves_only_when_asked() {
    let (old, new) = (free_port(), free_port());
    let run = |debug: &str| {
        let output = Command::new("python3")
            .arg(program())
            .args(["binds", &old.to_string()])
            .env("LD_PRELOAD", library())
            .envs([
                ("REBIND_OLD_PORT", old.to_string()),
                ("REBIND_NEW_PORT", new.to_string()),
            ])
            .env("REBIND_DEBUG", debug)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(run("0"), "");
    let told = run("1");
    assert!(
        told.contains(&format!(
            "bind 0.0.0.0:{old} moved to 127.0.0.1:{new}: errno 0"
        )),
        "{told}"
    );
    assert!(
        told.contains(&format!("bind [::1]:{old} moved to [::1]:{new}: errno 0")),
        "{told}"
    );
}

#[test]
fn the_rebind_command_moves_a_program_and_leaves_it_alone_otherwise() {
    let rebind = integration::executable().with_file_name("rebind");
    let (old, new) = (free_port(), free_port());
    let script = program();
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
        "python3",
        script.to_str().unwrap(),
        "binds",
        &old_port,
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
