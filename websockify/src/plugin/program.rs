//! One run of a program that answers questions, from its start to its end.
//!
//! It is a helper of ours (see [`crate::helpers`]) with three pipes. It has ended when its first process has or when it has closed
//! its standard output, whichever comes first: somebody else may have taken its exit status, and somebody else may hold the
//! pipe. Closed standard input tells it to end; signals for its process group follow.

use std::ffi::OsString;
use std::fs::File;
use std::io::Seek;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::AsyncRead;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::lines::Lines;
use super::protocol::MAX_LINE;
use crate::config::OWN_VARIABLES;
use crate::helpers::Helper;
use crate::{sys, wrap};

/// How long a program has to end after its input has, and again after SIGTERM.
const END_LIMIT: Duration = Duration::from_millis(300);
/// How often it is looked after orphans that were killed.
const REAP_INTERVAL: Duration = Duration::from_millis(5);
/// How long what it wrote to stderr is waited for when it has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How many bytes of questions it may have before it reads them: what waits longer than that waits here, where it can be given up.
const BACKLOG: i32 = 4096;
/// How many bytes of a line on stderr are shown, and how many lines in a [`QUOTA_TIME`].
const MAX_SHOWN: usize = 1000;
const QUOTA: u32 = 100;
const QUOTA_TIME: Duration = Duration::from_secs(1);

/// How a program is started. What its arguments are, is nobody's business.
pub(super) struct Order {
    /// What it is, for the log.
    pub(super) name: &'static str,
    pub(super) program: OsString,
    pub(super) arguments: Vec<OsString>,
    /// A file that it inherits under the number that it has here, to read it from the beginning.
    pub(super) file: Option<File>,
}

impl Order {
    /// Starts it in the runtime that this is called in. It ends with the calling thread at the latest.
    pub(super) fn start(&self) -> Result<Running> {
        // It says more of what is missing than the system does.
        wrap::find(&self.program).map_err(|error| obstacle(&error))?;
        if let Some(mut file) = self.file.as_ref() {
            file.rewind()?;
        }
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for variable in OWN_VARIABLES {
            command.env_remove(variable);
        }
        sys::as_helper(&mut command, self.file.as_ref().map(AsRawFd::as_raw_fd));
        let mut child = tokio::process::Command::from(command)
            .spawn()
            .map_err(|error| obstacle(&wrap::unstartable(&error, &self.program)))?;
        let pid = child.id().context("it ended at once")?;
        let helper = Helper::new(Pid::from_raw(pid.cast_signed()));
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            bail!("it has no pipes");
        };
        // Where that is not allowed, more waits there.
        let input = pipe::Sender::from_owned_fd(input.into_owned_fd()?)?;
        _ = fcntl(&input, FcntlArg::F_SETPIPE_SZ(BACKLOG));
        Ok(Running {
            child,
            helper,
            began: Instant::now(),
            pipes: Some(Pipes {
                input,
                lines: Lines::new(output, MAX_LINE),
            }),
            errors: tokio::spawn(show(self.name, errors)),
            over: false,
        })
    }
}

/// The pipes to a program and from it.
pub(super) struct Pipes {
    /// Where questions go.
    pub(super) input: pipe::Sender,
    /// Where answers come from.
    pub(super) lines: Lines<ChildStdout>,
}

/// A program that was started.
pub(super) struct Running {
    child: Child,
    helper: Helper,
    began: Instant,
    /// Unless somebody has taken them.
    pub(super) pipes: Option<Pipes>,
    /// Shows what it writes to stderr.
    errors: JoinHandle<()>,
    /// Whether it was ended with all that it started.
    over: bool,
}

impl Running {
    /// When it was started.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Waits until it has ended by itself.
    pub(super) async fn exit(&mut self) {
        // The status is asked for again later. An error says that somebody else has it.
        _ = self.child.wait().await;
    }

    /// Has it end, if it has not, with all that it started. The other ends of its pipes are to be closed. Returns how its first
    /// process ended.
    pub(super) async fn end(mut self) -> String {
        self.pipes = None;
        let mut was_told = false;
        let mut ended = timeout(END_LIMIT, self.child.wait()).await;
        if ended.is_err() {
            was_told = true;
            self.signal(Signal::SIGTERM);
            ended = timeout(END_LIMIT, self.child.wait()).await;
        }
        // What its first process has left behind has nobody to answer to.
        self.signal(Signal::SIGKILL);
        self.over = true;
        if ended.is_err() {
            ended = timeout(END_LIMIT, self.child.wait()).await;
        }
        _ = timeout(END_LIMIT, self.reap_adopted()).await;
        _ = timeout(LAST_WORDS, &mut self.errors).await;
        match ended {
            _ if was_told => "ended its output, and was ended".to_owned(),
            Ok(Ok(status)) => describe(status),
            Ok(Err(_)) => "has ended".to_owned(),
            Err(_) => "does not end".to_owned(),
        }
    }

    /// Waits for what it has left behind, if that is ours now, as all orphans are in a container of which we are the first process.
    async fn reap_adopted(&self) {
        let group = Pid::from_raw(-self.helper.pid().as_raw());
        while let Ok(status) = waitpid(group, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                sleep(REAP_INTERVAL).await;
            }
        }
    }

    /// Sends a signal to it and all that it has started, as far as that has not left its process group.
    fn signal(&self, signal: Signal) {
        // Nobody is left, if that fails.
        _ = killpg(self.helper.pid(), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.signal(Signal::SIGKILL);
        }
        self.errors.abort();
    }
}

/// The same as an error whose exit status is not that of a wrapped program.
fn obstacle(obstacle: &wrap::Obstacle) -> anyhow::Error {
    anyhow!("{obstacle}")
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {number}"),
        },
        (None, None) => "has ended".to_owned(),
    }
}

/// How many lines may be shown just now.
#[derive(Debug)]
struct Quota {
    since: Instant,
    shown: u32,
    left_out: u64,
}

impl Quota {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            shown: 0,
            left_out: 0,
        }
    }

    /// Whether one more may be shown, and how many were left out before it.
    fn admits(&mut self) -> Option<u64> {
        if self.since.elapsed() >= QUOTA_TIME {
            (self.since, self.shown) = (Instant::now(), 0);
        }
        if self.shown == QUOTA {
            self.left_out += 1;
            return None;
        }
        self.shown += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Passes on to the log what a program writes to stderr, to its end.
async fn show(name: &'static str, errors: impl AsyncRead + Unpin) {
    let mut lines = Lines::new(errors, MAX_SHOWN);
    let mut quota = Quota::new();
    // What cannot be read any more is like an end.
    while let Ok(Some(line)) = lines.next().await {
        let text = line.text.trim_ascii_end();
        if text.is_empty() {
            continue;
        }
        if let Some(left_out) = quota.admits() {
            tell_left_out(name, left_out);
            let more = if line.cut { "…" } else { "" };
            tracing::info!("{name}: {}{more}", String::from_utf8_lossy(text));
        }
        let length = line.text.len();
        lines.was_useless(length).await;
    }
    tell_left_out(name, quota.left_out);
}

fn tell_left_out(name: &str, lines: u64) {
    if lines > 0 {
        tracing::info!("{name}: ({lines} lines of it were left out, there were too many)");
    }
}

/// The program and its arguments, as a shell would split them, but nothing in them means more than itself.
///
/// # Errors
/// A quote lacks its end, or there is no program.
pub(super) fn split(line: &[u8]) -> Result<(OsString, Vec<OsString>)> {
    let words = shlex::bytes::split(line).context("a quote has no end")?;
    let mut words = words.into_iter().map(OsString::from_vec);
    let program = words.next().context("it is empty")?;
    Ok((program, words.collect()))
}
