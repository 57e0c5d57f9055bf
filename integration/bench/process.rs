//! Child processes that end with the benchmark, however it ends.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long anything may take that is bound to happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// How much of a process's log is shown when it fails, in bytes.
const LOG_SHOWN: usize = 600;

/// A process in a process group of its own, all of which is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with stdout and stderr going to the file `log`. Only the main thread may do that: the system kills the
    /// process when the *thread* ends that started it.
    pub(crate) fn start(program: &Path, arguments: &[OsString], log: &Path) -> Result<Self> {
        let file = File::create(log).context("create a log file")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share a log file")?)
            .stderr(file)
            .process_group(0);
        die_with_us(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Fails if it does not run any more, with the end of its log.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("ask for a child's status")? {
            None => Ok(()),
            Some(status) => bail!("it ended ({status}): {}", self.log_end()),
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        until("the end of a process", || child.try_wait().transpose())?
            .context("wait for a process")
    }

    /// The end of what it has said.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_SHOWN)..])
            .trim()
            .to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group may outlive its leader, and must not be taken for somebody else's: so kill before the leader is reaped.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            _ = killpg(self.pid(), Signal::SIGKILL);
            _ = self.child.wait();
        }
    }
}

/// Makes the system end the command's process when we are gone; that is to end its own children, as nginx does if it is told.
pub(crate) fn die_with_us(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let in_child = move || -> io::Result<()> {
        set_pdeathsig(Signal::SIGTERM)?;
        if nix::unistd::getppid() != parent {
            return Err(io::Error::other("the benchmark is gone"));
        }
        Ok(())
    };
    #[expect(
        unsafe_code,
        reason = "there is no safe way to run something between fork and exec"
    )]
    // SAFETY: the closure only makes system calls, and allocates nothing unless it fails.
    unsafe {
        command.pre_exec(in_child);
    }
}

/// Asks again and again until there is an answer, and fails when that takes too long.
pub(crate) fn until<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = answer() {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited in vain for {what}");
        }
        std::thread::park_timeout(Duration::from_micros(100));
    }
}
