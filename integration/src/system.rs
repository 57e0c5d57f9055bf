//! What tests need of the system.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::DEADLINE;
use crate::tls::text;

/// A directory of the test's own that is gone afterwards.
pub type Scratch = tempfile::TempDir;

/// Asks again and again until there is an answer, and fails when that takes too long.
pub fn wait_until<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Numbers that look like chance and are the same every time (xorshift64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The numbers of a seed, which is not 0.
    pub fn new(seed: u64) -> Self {
        // Seeds that are alike are not to begin alike.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.draw() % limit as u64) as usize
    }
}

/// Bytes that do not repeat at any short distance.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut chance = Chance::new(1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&chance.draw().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A hash, to compare what is too long to print.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The pids that listen on a TCP port, each with the address, as the system's `ss` tells.
pub fn listeners_on(port: u16) -> Vec<(String, u32)> {
    let output = Command::new("ss")
        .args(["-Hltnp", &format!("sport = :{port}")])
        .output()
        .expect("ss starts");
    let text = String::from_utf8(output.stdout).expect("ss prints text");
    let mut found = Vec::new();
    for line in text.lines() {
        let address = line
            .split_whitespace()
            .nth(3)
            .expect("ss prints the local address")
            .to_owned();
        let pids = line
            .split("pid=")
            .skip(1)
            .map(|rest| rest.split(',').next().unwrap_or_default());
        found.extend(pids.map(|pid| (address.clone(), pid.parse().expect("a pid is a number"))));
    }
    found
}

/// Runs the rest of the test `name` as root, which can become any user: as it is, or in a namespace of users, of which an ordinary user
/// needs some (`/etc/subuid`) and the program newuidmap. Returns true there, and false outside once all is done.
pub fn as_root(name: &str) -> bool {
    nix::unistd::geteuid().is_root() || inside(name, &["--map-root-user", "--map-auto"])
}

/// Runs the rest of the test `name` in a network namespace of its own, where every port is free. Returns true there, and false
/// outside once all is done.
pub fn in_own_network(name: &str) -> bool {
    let inside = inside(name, &["--map-root-user", "--net"]);
    if inside {
        run("ip", &["link", "set", "lo", "up"]);
    }
    inside
}

/// The same in a mount namespace of its own, where [`small_disk`] can be used.
pub fn in_own_mounts(name: &str) -> bool {
    inside(name, &["--map-root-user", "--mount"])
}

/// Puts an empty file system of 1 MiB on a directory.
pub fn small_disk(directory: &Path) {
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=1m", "none", text(directory)],
    );
}

/// Makes it one of 8 MiB.
pub fn enlarge_disk(directory: &Path) {
    run("mount", &["-o", "remount,size=8m", text(directory)]);
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    let done = status.is_ok_and(|status| status.success());
    assert!(done, "{program} {arguments:?}");
}

/// Runs the test `name` in namespaces of its own, by unshare with these options. Returns true in there, and false outside once all is
/// done.
fn inside(name: &str, options: &[&str]) -> bool {
    const INSIDE: &str = "INTEGRATION_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let output = Command::new("unshare")
        .args(options)
        .arg(std::env::current_exe().expect("the tests have a path"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{name} in namespaces of its own, by unshare {options:?}:\n{text}\n{errors}"
    );
    false
}
