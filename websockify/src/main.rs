//! The `websockify` command: arguments → configuration → log → run → exit status.

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
    let result = websockify::log::init(&config.log).and_then(|()| websockify::run(config));
    let status = match result {
        Ok(status) => status,
        Err(error) => {
            tracing::error!("websockify: error: {error:#}");
            websockify::exit_status(&error)
        }
    };
    websockify::log::finish();
    ExitCode::from(status)
}
