//! Building the programs that the tests wrap, from `programs/`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The source of a program.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(name)
}

/// Builds the C program `programs/NAME.c` by this compiler with these options, under a name that tells them apart.
pub fn compile(directory: &Path, name: &str, compiler: &str, options: &[&str]) -> PathBuf {
    let built = directory.join(format!("{name}-{compiler}{}", options.concat()));
    let mut command = Command::new(compiler);
    command
        .args(["-O1", "-Wall", "-Werror", "-pthread"])
        .args(options)
        .arg(source(&format!("{name}.c")))
        .arg("-o")
        .arg(&built);
    run(command, name);
    built
}

/// Builds the Go program `programs/NAME.go`, with or without the C library. What Go keeps for the next time is kept in `cache`.
pub fn compile_go(directory: &Path, cache: &Path, name: &str, with_c: bool) -> PathBuf {
    let built = directory.join(format!("{name}-go{}", if with_c { "-c" } else { "" }));
    let mut command = Command::new("go");
    command
        .args(["build", "-o"])
        .arg(&built)
        .arg(source(&format!("{name}.go")))
        .env("CGO_ENABLED", if with_c { "1" } else { "0" })
        .env("GOCACHE", cache)
        .env("GOFLAGS", "")
        .env("GO111MODULE", "off");
    run(command, name);
    built
}

fn run(mut command: Command, name: &str) {
    let status = command.status().expect("the compiler starts");
    assert!(status.success(), "{name}: {command:?}");
}
