//! Builds the shim, whose bytes go into the executable.
//!
//! Cargo cannot yet make one crate's shared library available to another on its stable channel, so this asks it by hand, with a
//! target directory of its own (the outer cargo holds the lock of the usual one). The shim's dependencies are build
//! dependencies here as well, so that whatever has fetched ours has fetched them, and the machine may be offline.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let shim = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../rebind");
    println!("cargo::rerun-if-changed={}", shim.join("src").display());
    println!(
        "cargo::rerun-if-changed={}",
        shim.join("Cargo.toml").display()
    );
    let target = variable("TARGET");
    let directory = PathBuf::from(variable("OUT_DIR")).join("shim");
    let build = |offline: bool| {
        let mut cargo = Command::new(variable("CARGO"));
        cargo.current_dir(&shim).args([
            "build",
            "--quiet",
            "--release",
            "--lib",
            "--target",
            &target,
        ]);
        cargo.arg("--target-dir").arg(&directory);
        if offline {
            cargo.arg("--offline");
        }
        // They are about the crate that this script belongs to.
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
        ] {
            cargo.env_remove(name);
        }
        cargo.status().expect("cargo starts").success()
    };
    assert!(
        build(true) || build(false),
        "the shim in {} cannot be built",
        shim.display()
    );
    let library = directory.join(&target).join("release/librebind.so");
    println!("cargo::rustc-env=REBIND_LIBRARY={}", library.display());
    if knows_packed_relocations(&target) {
        // A third of a mebibyte that need not be read at each start.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether the C library of this machine, which is to run what is built, can read relocations in their packed form (DT_RELR): that of
/// GNU can since 2.36.
fn knows_packed_relocations(target: &str) -> bool {
    if target != variable("HOST") || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return false;
    }
    let version = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let version = version.unwrap_or_default();
    let numbers = version.trim().strip_prefix("glibc 2.");
    numbers.is_some_and(|minor| minor.parse::<u32>().is_ok_and(|minor| minor >= 36))
}

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
