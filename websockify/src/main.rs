//! The `websockify` command: arguments → configuration → run → exit status.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use websockify::cli::Args;
use websockify::config::{Config, UsageError};

#[global_allocator]
static ALLOCATOR: websockify::memory::Allocator = websockify::memory::Allocator;

fn main() -> ExitCode {
    let config = match Config::try_from(Args::parse()) {
        Ok(config) => config,
        // Prints it with the usage, and exits with status 2.
        Err(UsageError(message)) => Args::command()
            .error(ErrorKind::ValueValidation, message)
            .exit(),
    };
    ExitCode::from(websockify::run(config))
}
