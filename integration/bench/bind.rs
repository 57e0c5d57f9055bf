//! What wrapping costs the wrapped program: each `bind` of its port, and its start.
//!
//! The benchmark is the wrapped program itself: it executes itself with a hidden first argument.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
use nix::time::{ClockId, clock_gettime};

use crate::bench::Bench;
use crate::figures::Reading;
use crate::metric::{BIND_NATIVE, BIND_PRELOAD, BIND_SECCOMP, MAIN_NATIVE, MAIN_REBIND};
use crate::peers::Kind;
use crate::process::{Process, die_with_us};
use crate::relay::free_address;
use crate::statistics::{Summary, percentile};

/// How often the port is bound.
const BINDS: u32 = 2000;

/// How the measured program is started.
#[derive(Clone, Copy)]
enum Wrapper {
    None,
    Rebind,
    Seccomp,
}

/// Measures ours only: no other peer wraps.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let programs = Programs {
        bench: std::env::current_exe().context("find our own executable")?,
        websockify: bench.options.websockify.clone(),
        rebind: bench.options.websockify.with_file_name("rebind"),
    };
    ensure!(programs.rebind.is_file(), "rebind is not beside websockify");
    let (rounds, starts) = (bench.pick(5, 7), bench.pick(20, 50));
    let ours = |kind| kind == Kind::Ours;
    bench.in_turn("cost of a bind", rounds, ours, |bench, _| {
        programs.binds(bench.scratch())
    });
    bench.in_turn("start under rebind", 3, ours, |_, _| {
        programs.starts(starts)
    });
    Ok(())
}

/// The executables.
struct Programs {
    bench: PathBuf,
    websockify: PathBuf,
    rebind: PathBuf,
}

impl Programs {
    /// How long a `bind` takes by itself, and how much longer when it is moved.
    fn binds(&self, scratch: &Path) -> Result<Vec<Reading>> {
        let native = self.bind_time(Wrapper::None, scratch)?;
        let preload = self.bind_time(Wrapper::Rebind, scratch)?;
        let seccomp = self.bind_time(Wrapper::Seccomp, scratch)?;
        Ok(vec![
            (&BIND_NATIVE, native),
            (&BIND_PRELOAD, preload - native),
            (&BIND_SECCOMP, seccomp - native),
        ])
    }

    /// Microseconds of a bind.
    fn bind_time(&self, wrapper: Wrapper, scratch: &Path) -> Result<f64> {
        let port = free_address()?.port();
        let file = scratch.join("binds");
        let program = [
            self.bench.clone().into_os_string(),
            "time-binds".into(),
            port.to_string().into(),
            BINDS.to_string().into(),
            file.clone().into_os_string(),
        ];
        let mut words = self.wrapped(wrapper, port)?;
        words.extend(program);
        let (program, arguments) = words.split_first().context("there is a program")?;
        let log = scratch.join("binds.log");
        let mut process = Process::start(Path::new(program), arguments, &log)?;
        let status = process.wait()?;
        ensure!(
            status.success(),
            "it ended ({status}): {}",
            process.log_end()
        );
        let text = fs::read_to_string(&file).context("read how long it took")?;
        fs::remove_file(&file).context("remove a file")?;
        text.trim().parse().context("it is no number")
    }

    /// The milliseconds that a program needs until its `main`, and how many more under `rebind`.
    fn starts(&self, count: usize) -> Result<Vec<Reading>> {
        let port = free_address()?.port();
        let (mut native, mut rebound) = (Vec::new(), Vec::new());
        for _ in 0..count {
            native.push(self.start_time(Wrapper::None, port)?);
            rebound.push(self.start_time(Wrapper::Rebind, port)?);
        }
        let median = |values: &[f64]| Summary::of(values).map(|summary| summary.median);
        let native = median(&native).context("there were starts")?;
        let rebound = median(&rebound).context("there were starts")?;
        Ok(vec![
            (&MAIN_NATIVE, native),
            (&MAIN_REBIND, rebound - native),
        ])
    }

    fn start_time(&self, wrapper: Wrapper, port: u16) -> Result<f64> {
        let mut words = self.wrapped(wrapper, port)?;
        words.extend([self.bench.clone().into_os_string(), "tell-start".into()]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdout(Stdio::piped());
        die_with_us(&mut command);
        let begun = now()?;
        let mut child = command.spawn().context("start ourselves")?;
        let mut told = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut told).context("read a time")?;
        }
        let status = child.wait().context("wait for ourselves")?;
        ensure!(status.success(), "it ended ({status})");
        let main: u64 = told.trim().parse().context("it is no number")?;
        let main = Duration::from_nanos(main).saturating_sub(begun);
        Ok(main.as_secs_f64() * 1000.0)
    }

    /// The words before the program.
    fn wrapped(&self, wrapper: Wrapper, port: u16) -> Result<Vec<OsString>> {
        Ok(match wrapper {
            Wrapper::None => Vec::new(),
            Wrapper::Rebind => vec![
                self.rebind.clone().into_os_string(),
                port.to_string().into(),
                free_address()?.port().to_string().into(),
            ],
            Wrapper::Seccomp => vec![
                self.websockify.clone().into_os_string(),
                "127.0.0.1:0".into(),
                format!("--wrap-port={port}").into(),
                "--wrap-method=seccomp".into(),
                "--".into(),
            ],
        })
    }
}

/// The wrapped program: binds `port` again and again, and writes to `file` how long each time took.
pub(crate) fn time_binds(port: u16, count: u32, file: &Path) -> Result<()> {
    let address = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let mut times = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let begun = Instant::now();
        let socket = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .context("make a socket")?;
        bind(socket.as_raw_fd(), &address).context("bind")?;
        drop(socket);
        times.push(u32::try_from(begun.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }
    let each = f64::from(percentile(&mut times, 0.5)) / 1000.0;
    fs::write(file, each.to_string()).context("write how long it took")
}

/// The program whose start is measured: prints the time of now.
#[expect(clippy::print_stdout, reason = "the parent reads it")]
pub(crate) fn tell_start() -> Result<()> {
    println!("{}", now()?.as_nanos());
    Ok(())
}

/// The time on a clock that all processes share.
fn now() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(now.into())
}
