//! The program under test as a daemon.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::DEADLINE;
use crate::server::executable;
use crate::system::{Scratch, wait_until};

/// A command that is to end soon, with what it said; whoever it leaves behind must have let go of its pipes.
#[derive(Debug)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Said {
    /// Runs a command to its end and to that of its output.
    pub fn by(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::by_child(command.spawn().expect("the program starts"))
    }

    /// The same for one that runs, of which stdout and stderr are pipes.
    pub fn by_child(mut child: Child) -> Self {
        let stdout = text_of(child.stdout.take());
        let stderr = text_of(child.stderr.take());
        let (stdout, stderr) = (stdout(), stderr());
        let status = wait_until("the command to end", || {
            child.try_wait().expect("it can be waited for")
        });
        Self {
            status,
            stdout,
            stderr,
        }
    }
}

/// Reads from a pipe to its end; what is returned waits for that.
fn text_of(pipe: Option<impl Read + Send + 'static>) -> impl FnOnce() -> String {
    let mut pipe = pipe.expect("it is piped");
    let (sender, text) = channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = pipe.read_to_string(&mut text);
        _ = sender.send(read.map(|_| text));
    });
    move || {
        let read = text.recv_timeout(DEADLINE);
        read.expect("the pipe reaches its end").expect("it is text")
    }
}

/// A daemon, ended by a signal if it still runs at the end.
#[derive(Debug)]
pub struct Daemon {
    pid: Pid,
    address: SocketAddr,
    said: Said,
    directory: Scratch,
}

impl Daemon {
    /// One on a free port of 127.0.0.1, started in a directory of its own with these arguments, which say nothing of where to
    /// listen.
    pub fn with(arguments: &[&str]) -> Self {
        Self::through(&[], |_| arguments.iter().map(ToString::to_string).collect())
    }

    /// The same by a command that is to execute it; `prepare` is shown the directory, and returns the arguments. In these,
    /// `PORT` stands for the port.
    pub fn through(launcher: &[&str], prepare: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = Scratch::new().expect("there is a temporary directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let arguments = prepare(directory.path());
        let port = address.port().to_string();
        let program = executable().to_str().expect("the path is text");
        let mut words = launcher.iter().copied().chain([program]);
        let mut command = Command::new(words.next().expect("there is a program"));
        command
            .args(words)
            .args(["-D", "--inetd", "--pid-file", "pid"])
            .args(arguments.iter().map(|word| word.replace("PORT", &port)))
            .current_dir(directory.path())
            .stdin(OwnedFd::from(listener));
        let said = Said::by(command);
        assert_eq!(said.status.code(), Some(0), "{said:?}");
        let pid = pid_in(&directory.path().join("pid")).expect("the file has a number");
        Self {
            pid,
            address,
            said,
            directory,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What was said while it started.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// The directory that it was started in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file with its number.
    pub fn pid_file(&self) -> PathBuf {
        self.directory().join("pid")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("the daemon still runs");
    }

    /// Waits for its end.
    pub fn wait(&self) {
        wait_until("the daemon to end", || (!is_alive(self.pid)).then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if is_alive(self.pid) {
            _ = kill(self.pid, Signal::SIGTERM);
            self.wait();
        }
    }
}

/// The process number in a file, if there is one.
pub fn pid_in(file: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok().map(Pid::from_raw)
}

/// Whether a process is there that has not ended; whoever adopted it may not have taken note of that.
pub fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| {
        let state = stat.rsplit(')').next().unwrap_or_default();
        !state.starts_with(" Z") && !state.starts_with(" X")
    })
}
