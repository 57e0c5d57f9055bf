//! The benchmark (`make bench`): websockify beside other relays, all on this machine and in one run.
//!
//! It plays both the client and the target, starts each relay that it finds between the two, and lets them have their turns,
//! round after round. What is compared is the ratio to haproxy as a plain TCP relay, which knows nothing of WebSocket: machines
//! differ, and are noisy. Absolute figures are of this machine and this hour only.
//!
//! The load comes from one blocking thread, or one with epoll, at each end: it must not cost more than what it measures.

#![deny(unsafe_code)]

mod arguments;
mod bench;
mod bind;
mod bulk;
mod chart;
mod connection;
mod echo;
mod figures;
mod files;
mod goals;
mod handshakes;
mod idle;
mod load;
mod machine;
mod measure;
mod metric;
mod panels;
mod peers;
mod process;
mod relay;
mod report;
mod session;
mod sessions;
mod start;
mod statistics;
mod target;
mod tls;
mod tokens;
mod wire;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use arguments::{Options, Task, USAGE};
use bench::{Bench, make_room_for_sessions, say};
use machine::Machine;
use peers::{Kind, MOST_SESSIONS};

/// A workload: its name and what runs it.
type Workload = (&'static str, fn(&mut Bench) -> Result<()>);

/// All workloads, in the order in which they run.
pub(crate) const WORKLOADS: &[Workload] = &[
    ("start", start::run),
    ("bind", bind::run),
    ("bulk", bulk::run),
    ("echo", echo::run),
    ("sessions", sessions::run),
    ("idle", idle::run),
    ("tls-bulk", bulk::run_tls),
    ("tls-handshakes", handshakes::run),
    ("tls-idle", idle::run_tls),
    ("files", files::run),
    ("tokens", tokens::run),
];

fn main() -> ExitCode {
    let task = match Task::parse(std::env::args_os().skip(1)) {
        Ok(task) => task,
        Err(error) => {
            say(&format!("bench: {error:#}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let done = match task {
        Task::Measure(options) => measure(options),
        Task::TimeBinds { port, count, file } => {
            bind::time_binds(port, count, &file).map(|()| true)
        }
        Task::TellStart => bind::tell_start().map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("bench: error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the workloads and reports. Returns whether all measurements of ours worked.
fn measure(options: Options) -> Result<bool> {
    let machine = Machine::look();
    let mut bench = Bench::new(options)?;
    make_room_for_sessions(MOST_SESSIONS)?;
    for (name, run) in WORKLOADS {
        let only = &bench.options.only;
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        if let Err(error) = run(&mut bench) {
            bench.fail(name, Kind::Ours, &error);
        }
    }
    report(&bench, &machine)?;
    Ok(!bench.failed)
}

/// Prints the table, and writes the JSON and the chart.
#[expect(clippy::print_stdout, reason = "the table is the program's output")]
fn report(bench: &Bench, machine: &Machine) -> Result<()> {
    println!("{}", report::markdown(bench, machine));
    let output = &bench.options.output;
    fs::create_dir_all(output).context("make the output directory")?;
    let json = format!("{:#}\n", report::json(bench, machine));
    fs::write(output.join("results.json"), json).context("write results.json")?;
    if let Some(chart) = panels::chart(bench, machine) {
        fs::write(output.join("chart.svg"), chart).context("write chart.svg")?;
    }
    Ok(())
}
