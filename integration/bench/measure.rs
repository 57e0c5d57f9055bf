//! What a process and its children have used so far.
//!
//! Processor time comes from the process's clock: it is in nanoseconds, counts all threads, those that have ended as well, and
//! is up to date while they run. Children that have ended and were waited for are in their parent's `stat`, in ticks.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// All resident pages; what several processes share is counted for each.
    resident: u64,
    /// Resident pages, each divided by the number of processes that have it.
    proportional: u64,
    /// How many processes there are.
    pub(crate) processes: usize,
}

impl Memory {
    /// How much more this is than `before`. Resident memory, if there was one process all along; of several, what they share
    /// is counted only once.
    pub(crate) fn since(self, before: Self) -> f64 {
        let (after, before) = if self.processes == 1 {
            (self.resident, before.resident)
        } else {
            (self.proportional, before.proportional)
        };
        after as f64 - before as f64
    }

    /// All resident memory of one process; of several, with what they share counted once.
    pub(crate) fn total(self) -> f64 {
        if self.processes == 1 {
            self.resident as f64
        } else {
            self.proportional as f64
        }
    }
}

/// The process and all its descendants.
pub(crate) fn tree(root: Pid) -> Vec<Pid> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(children(parent));
        next += 1;
    }
    found
}

/// The processor time that the process and all its descendants have used, those that have ended included.
pub(crate) fn cpu_time(root: Pid) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for process in tree(root) {
        let clock = ClockId::pid_cpu_clock_id(process).context("find a process's clock")?;
        let own = clock_gettime(clock).context("read a process's clock")?;
        sum += Duration::from(own) + ended_children(process)?;
    }
    Ok(sum)
}

/// The memory of the process and all its descendants.
pub(crate) fn memory(root: Pid) -> Result<Memory> {
    let mut sum = Memory {
        resident: 0,
        proportional: 0,
        processes: 0,
    };
    for process in tree(root) {
        let text = proc_file(process, "smaps_rollup")?;
        sum.resident += kibibytes(&text, "Rss:")? * 1024;
        sum.proportional += kibibytes(&text, "Pss:")? * 1024;
        sum.processes += 1;
    }
    Ok(sum)
}

/// A process's children, of whichever thread.
fn children(parent: Pid) -> Vec<Pid> {
    // A process or a thread that has ended meanwhile has no children.
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for thread in threads.map_while(Result::ok) {
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .map(Pid::from_raw),
        );
    }
    found
}

/// What a process's children have used that have ended and were waited for.
fn ended_children(process: Pid) -> Result<Duration> {
    let stat = proc_file(process, "stat")?;
    let ticks = ended_children_ticks(&stat).context("read a process's stat")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .context("ask for the length of a tick")?
        .context("ticks have a length")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// The sum of `cutime` and `cstime` (proc_pid_stat(5), fields 16 and 17).
fn ended_children_ticks(stat: &str) -> Option<u64> {
    // The name before may contain anything, spaces and parentheses too; field 3 is the first after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(13);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// A value of a file of lines like `Rss:   12 kB`.
fn kibibytes(text: &str, name: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|value| value.split_whitespace().next())
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("there is no {name}"))
}

/// A file of a process's directory in `/proc`.
fn proc_file(process: Pid, name: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{process}/{name}"))
        .with_context(|| format!("read {name} of process {process}"))
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::process::Command;
    use std::time::Instant;

    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;

    use super::*;

    #[test]
    fn the_time_of_ended_children_is_found_behind_any_name() {
        let stat = "7 (a) b) R 1 7 7 0 -1 4194304 85 1000 0 0 11 12 31 42 20 0 1 0 5 6 7";
        assert_eq!(ended_children_ticks(stat), Some(73));
        assert_eq!(ended_children_ticks("7 (a) R 1"), None);
    }

    #[test]
    fn values_of_smaps_are_found() {
        let text = "0-7 ---p 0 00:00 0 [rollup]\nRss:      1780 kB\nPss:  440 kB\n";
        assert_eq!(kibibytes(text, "Pss:").expect("it is there"), 440);
        assert!(kibibytes(text, "Swap:").is_err());
    }

    #[test]
    fn the_time_is_what_the_system_accounts_for() {
        let own = nix::unistd::getpid();
        let accounted = || {
            [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
                .map(|who| getrusage(who).expect("a process has a usage"))
                .iter()
                .flat_map(|usage| [usage.user_time(), usage.system_time()])
                .map(|time| time.num_microseconds())
                .sum::<i64>()
        };
        let count = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let status = Command::new("sh").args(["-c", count]).status();
        assert!(status.expect("the shell starts").success());
        let (before, time, after) = (accounted(), cpu_time(own), accounted());
        let time = time.expect("our own time").as_micros() as i64;
        // Two ticks of children's user and system time may be cut off, and others test meanwhile.
        let tolerance = 40_000;
        assert!(time > before - tolerance && time < after + tolerance);
    }

    #[test]
    fn a_thread_that_has_ended_is_counted() {
        let own = nix::unistd::getpid();
        let before = cpu_time(own).expect("our own time");
        let busy = Duration::from_millis(50);
        let thread = std::thread::spawn(move || {
            let thread_time = || {
                let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
                Duration::from(clock_gettime(clock).expect("a thread has a clock"))
            };
            let begun = Instant::now();
            while thread_time() < busy {
                black_box(begun);
            }
        });
        thread.join().expect("the thread does not panic");
        assert!(cpu_time(own).expect("our own time") - before >= busy);
    }
}
