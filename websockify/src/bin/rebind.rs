//! The `rebind` command: starts a program whose TCP port is moved to loopback, without a bridge.

use std::process::ExitCode;

use clap::Parser;
use websockify::config::LogConfig;

/// Starts PROGRAM so that its bind() to OLD_PORT goes to NEW_PORT on loopback
#[derive(Debug, Parser)]
#[command(version, name = "rebind")]
struct Args {
    /// Port that the program binds
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    old_port: u16,

    /// Port on 127.0.0.1 or ::1 that it gets
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    new_port: u16,

    /// The program and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM [ARGS]"
    )]
    command: Vec<std::ffi::OsString>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Stderr cannot fail.
    _ = websockify::log::init(&LogConfig::default());
    let error = websockify::execute_rebound(args.old_port, args.new_port, &args.command);
    tracing::error!("rebind: error: {error:#}");
    ExitCode::from(websockify::exit_status(&error))
}
