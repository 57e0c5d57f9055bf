//! The program under test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::DEADLINE;
use crate::client::Client;
use crate::system::wait_until;
use crate::target::Target;
use crate::tls;

/// Whether the Python original is under test.
pub fn theirs() -> bool {
    std::env::var("WEBSOCKIFY_UNDER_TEST").is_ok_and(|which| which == "theirs")
}

/// The program under test. Ours is built first, with the shim beside it, in the profile of the tests.
pub fn executable() -> &'static Path {
    static EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();
    EXECUTABLE.get_or_init(|| {
        if theirs() {
            return PathBuf::from("websockify");
        }
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "websockify", "-p", "rebind"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(
            build.status().expect("cargo starts").success(),
            "the build failed"
        );
        // This file is target/PROFILE/deps/NAME-HASH.
        let tests = std::env::current_exe().expect("the tests have a path");
        tests
            .ancestors()
            .nth(2)
            .expect("they are in target/PROFILE/deps")
            .join("websockify")
    })
}

/// Runs the program to its end, without a terminal, and returns what it said.
pub fn run_to_end(arguments: &[&str]) -> Output {
    let child = Command::new(executable())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let pid = Pid::from_raw(child.id().cast_signed());
    let (done, finished) = channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if finished.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
            _ = kill(pid, Signal::SIGKILL);
        }
    });
    let output = child
        .wait_with_output()
        .expect("the program can be waited for");
    drop(done);
    watchdog.join().expect("the watchdog does not panic");
    output
}

/// A server, a client that it serves, and the target's end of that session.
pub fn session() -> (Server, Client, TcpStream) {
    let target = Target::new();
    let server = Server::to(target.address());
    let client = Client::connect(server.address());
    (server, client, target.accept())
}

/// A running server, killed at the end if it still runs.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    lines: Receiver<String>,
    log: Vec<String>,
}

impl Server {
    /// A bridge to `target`, listening on a free port of 127.0.0.1 at once.
    pub fn to(target: SocketAddr) -> Self {
        Self::with(&[&target.to_string()])
    }

    /// The same with these arguments, which say nothing of where to listen.
    pub fn with(arguments: &[&str]) -> Self {
        Self::on(listener(), arguments)
    }

    /// Starts it on a listening socket of the test's.
    pub fn on(listener: TcpListener, arguments: &[&str]) -> Self {
        Self::through(&[], listener, arguments)
    }

    /// The same by a command that is to execute it, such as a shell.
    pub fn through(launcher: &[&str], listener: TcpListener, arguments: &[&str]) -> Self {
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let words = launcher
            .iter()
            .map(OsStr::new)
            .chain([executable().as_os_str(), OsStr::new("--inetd")]);
        let certificate = tls::everywhere().map(|(_, identity, _)| identity.options());
        let certificate = certificate.iter().flatten().map(OsStr::new);
        let mut words = words
            .chain(certificate)
            .chain(arguments.iter().map(OsStr::new));
        let mut command = Command::new(words.next().expect("there is a program"));
        command.args(words).stdin(OwnedFd::from(listener));
        Self::start(command, address)
    }

    /// Starts it by a command that says where it listens; its address is not known then.
    pub fn with_command(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::start(command, UNKNOWN)
    }

    /// Starts it by a command that has it listen on this socket, as its standard input; its address is not known then.
    pub fn with_command_on(mut command: Command, listener: TcpListener) -> Self {
        command.stdin(OwnedFd::from(listener));
        Self::start(command, UNKNOWN)
    }

    /// Starts it as systemd does, with one or two sockets and these variables, of which `LISTEN_FDS` and `LISTEN_PID` need not be
    /// given. Its address is not known then.
    pub fn activated(
        sockets: Vec<OwnedFd>,
        variables: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        let script = match sockets.len() {
            1 => "exec 3<&0 </dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"",
            2 => "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"",
            _ => panic!("one or two sockets"),
        };
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(executable())
            .args(arguments)
            .env("LISTEN_FDS", sockets.len().to_string())
            .envs(variables.iter().copied());
        let mut sockets = sockets.into_iter();
        command.stdin(sockets.next().map_or(Stdio::null(), Stdio::from));
        let output = sockets.next().map_or(Stdio::null(), Stdio::from);
        Self::start_with(command.stdout(output), UNKNOWN)
    }

    /// Starts it with arguments of which the first is the source address with port 0, and reads the port that it got.
    pub fn listening_by_itself(arguments: &[&str]) -> Self {
        let mut command = Command::new(executable());
        command.args(arguments);
        let mut server = Self::with_command(command);
        let line = server.wait_for_line("proxying from ");
        let source = line
            .split_whitespace()
            .nth(3)
            .expect("the line names the source");
        let port = source
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .expect("with its port");
        server.address.set_port(port);
        server
    }

    fn start(mut command: Command, address: SocketAddr) -> Self {
        Self::start_with(command.stdout(Stdio::null()), address)
    }

    fn start_with(command: &mut Command, address: SocketAddr) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.split(b'\n').map_while(Result::ok) {
                _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self {
            child,
            address,
            lines,
            log: Vec::new(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for a line of its log that contains `text`, and returns it. Lines before it are passed over.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.log.push(line);
                    if let Some(line) = self.log.last().filter(|line| line.contains(text)) {
                        return line.clone();
                    }
                }
                Err(error) => panic!("no line with {text:?}: {error}; the log: {:#?}", self.log),
            }
        }
    }

    /// Everything that it has logged and will log, once it has ended.
    pub fn rest_of_log(&mut self) -> String {
        self.wait();
        self.log.extend(self.lines.iter());
        self.log.join("\n")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the program still runs");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_until("the program to end", || {
            child.try_wait().expect("it can be waited for")
        })
    }

    /// Its resident memory in bytes.
    pub fn resident_memory(&self) -> u64 {
        let status = self.proc_file("status");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a process has memory");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<u64>().ok())
            .expect("in KiB")
            * 1024
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the program runs")
            .count()
    }

    /// A file of its directory in `/proc`.
    pub fn proc_file(&self, name: &str) -> String {
        let mut text = String::new();
        let path = format!("/proc/{}/{name}", self.pid());
        std::fs::File::open(path)
            .and_then(|mut file| file.read_to_string(&mut text))
            .expect("the program runs");
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // A wrapped program is to go as well, if that works at all.
            _ = kill(self.pid(), Signal::SIGTERM);
            let deadline = Instant::now() + DEADLINE;
            while self.child.try_wait().is_ok_and(|status| status.is_none())
                && Instant::now() < deadline
            {
                std::thread::yield_now();
            }
            _ = self.child.kill();
            _ = self.child.wait();
        }
        if std::thread::panicking() {
            self.log.extend(self.lines.try_iter());
            #[expect(
                clippy::print_stdout,
                reason = "the test harness shows it with the failure"
            )]
            {
                println!("the server's log: {:#?}", self.log);
            }
        }
    }
}

/// An address that is not known.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A socket that listens on a free port of 127.0.0.1.
fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port is free")
}
