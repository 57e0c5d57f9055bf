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
    let library = directory.join(target).join("release/librebind.so");
    println!("cargo::rustc-env=REBIND_LIBRARY={}", library.display());
}

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
