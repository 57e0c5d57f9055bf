//! The benchmark (`make bench`): websockify beside other relays, all on this machine and in one run.
//!
//! It plays both the client and the target, starts each relay that it finds between the two, and lets them have their turns,
//! round after round. What is compared is the ratio to haproxy as a plain TCP relay, which knows nothing of WebSocket: machines
//! differ, and are noisy. Absolute figures are of this machine and this hour only.
//!
//! The load comes from one blocking thread, or one with epoll, at each end: it must not cost more than what it measures.

mod arguments;
mod bench;
mod bulk;
mod echo;
mod figures;
mod load;
mod measure;
mod metric;
mod peers;
mod process;
mod relay;
mod session;
mod statistics;
mod target;
mod wire;

use std::process::ExitCode;

use anyhow::Result;

use arguments::{Options, Task, USAGE};
use bench::{Bench, say};
use peers::Kind;

/// A workload: its name and what runs it.
type Workload = (&'static str, fn(&mut Bench) -> Result<()>);

/// All workloads, in the order in which they run.
pub(crate) const WORKLOADS: &[Workload] = &[("bulk", bulk::run), ("echo", echo::run)];

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
        _ => Ok(true),
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
    let mut bench = Bench::new(options)?;
    bench.most_sessions(usize::MAX)?;
    for (name, run) in WORKLOADS {
        let only = &bench.options.only;
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        if let Err(error) = run(&mut bench) {
            bench.fail(name, Kind::Ours, &error);
        }
    }
    for m in metric::ALL {
        for p in &bench.peers {
            say(&format!(
                "{} {} {:?} {:?}",
                m.key,
                p.kind.name(),
                bench.figures.summary(m, p.kind),
                bench.figures.ratio(m, p.kind)
            ));
        }
    }
    Ok(!bench.failed)
}
