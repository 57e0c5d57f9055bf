//! Where the preloaded library comes from: installed beside the executable, or written where programs can load it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use integration::{Server, executable};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wrapping::{program, round_trip, wrap_script};

/// Starts the bridge in file systems of its own, after these commands of a shell.
fn in_own_mounts(prepare: &str, kind: &str, options: &[&str]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let script = program();
    // The executable may lie where something is mounted.
    let prepare = format!("exec 9<\"$1\"\nshift\n{prepare}\nexec /proc/self/fd/9 \"$@\"");
    let unshare = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-ec",
        &prepare,
        "sh",
    ];
    let command = ["--", "python3", script.to_str().unwrap(), kind, &port];
    Server::through(&unshare, listener, &[options, &command].concat())
}

/// The library that a process has loaded, seen from outside of its mounts.
fn loaded_library(pid: &str) -> PathBuf {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let path = maps
        .lines()
        .find_map(|line| Some(&line[line.find('/')?..]).filter(|path| path.contains("librebind")))
        .expect("the library is loaded");
    PathBuf::from(format!("/proc/{pid}/root{path}"))
}

#[test]
fn a_library_that_a_cleaner_has_removed_is_there_again_at_the_next_start() {
    let mut server = in_own_mounts("mount -t tmpfs none /run", "echo", &["--wrap-mode=respawn"]);
    let first = round_trip(server.address());
    let library = loaded_library(&first);
    assert!(
        library.to_str().unwrap().contains("/root/run/websockify/"),
        "{library:?}"
    );
    // Cleaners pass over what is locked.
    let locked = Command::new("flock")
        .args(["--nonblock", "--exclusive"])
        .arg(library.parent().unwrap())
        .arg("true")
        .status()
        .unwrap();
    assert!(!locked.success());
    std::fs::remove_file(&library).unwrap();
    server.wait_for_line("Starting '");
    kill(Pid::from_raw(first.parse().unwrap()), Signal::SIGKILL).unwrap();
    server.wait_for_line("Starting '");
    let second = round_trip(server.address());
    assert!(loaded_library(&second).exists());
}

#[test]
fn a_place_that_permits_no_execution_is_passed_over() {
    let noexec = |places: &[&str]| -> String {
        let mounts = places
            .iter()
            .map(|place| format!("mount -t tmpfs -o noexec none {place}\n"));
        format!(
            "unset XDG_RUNTIME_DIR XDG_CACHE_HOME HOME\n{}",
            mounts.collect::<String>()
        )
    };
    let server = in_own_mounts(&noexec(&["/run", "/var/tmp"]), "echo", &[]);
    let library = loaded_library(&round_trip(server.address()));
    assert!(
        library
            .to_str()
            .unwrap()
            .contains("/root/tmp/websockify-0/"),
        "{library:?}"
    );
    let everywhere =
        noexec(&["/run", "/var/tmp", "/dev/shm"]) + "mount -t tmpfs -o noexec none /tmp";
    let mut server = in_own_mounts(&everywhere, "echo", &[]);
    assert_eq!(server.wait().code(), Some(1));
    let log = server.rest_of_log();
    for part in [
        "no directory takes the library",
        "/run/websockify: it cannot be executed from there",
        "/dev/shm/websockify-0: it cannot be executed from there",
    ] {
        assert!(log.contains(part), "{log}");
    }
}

#[test]
fn an_installed_library_is_used_if_it_is_the_same() {
    let prefix = tempfile::tempdir().unwrap();
    let (bin, lib) = (
        prefix.path().join("bin"),
        prefix.path().join("lib/websockify"),
    );
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir_all(&lib).unwrap();
    let (copy, installed) = (bin.join("websockify"), lib.join("librebind.so"));
    std::fs::copy(executable(), &copy).unwrap();
    let loaded_by_copy = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let script = program();
        let launcher = [
            "sh",
            "-c",
            "shift; exec \"$0\" \"$@\"",
            copy.to_str().unwrap(),
        ];
        let command = ["--", "python3", script.to_str().unwrap(), "echo", &port];
        let server = Server::through(&launcher, listener, &command);
        loaded_library(&round_trip(server.address()))
    };
    let usual = wrap_script(&[], "echo", "PORT");
    std::fs::copy(loaded_library(&round_trip(usual.address())), &installed).unwrap();
    assert!(loaded_by_copy().ends_with(installed.strip_prefix("/").unwrap()));
    // Of another version, say.
    std::fs::write(&installed, "another library").unwrap();
    assert!(!loaded_by_copy().ends_with("lib/websockify/librebind.so"));
}
