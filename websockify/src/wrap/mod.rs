//! The wrapped program: its port is moved to loopback, and it is looked after until the end.
//!
//! [`Wrapped`] is made before anything runs: it reserves the port and looks at the program. [`Wrapped::supervise`] then starts
//! the program and keeps it in view. Connections know it as [`Status`] only: where it listens, and whether it does.

mod child;
mod guard;
mod inspect;
mod listening;
mod port;
mod preload;
mod proc;
#[path = "../../../rebind/src/redirect.rs"]
#[allow(
    dead_code,
    reason = "the shim's own decision, of which the shim uses more"
)]
mod redirect;
mod run;
mod seccomp;
mod supervisor;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::cli::WrapMethod;
use crate::config::WrapConfig;
use crate::metrics;
use crate::user::Identity;
use crate::{sys, whole_file};

use guard::Unattached;
pub(crate) use inspect::{Obstacle, find, unstartable};
use listening::Listener;
pub(crate) use listening::{Acceptance, acceptance};
use port::Reservation;
use redirect::Rule;
use seccomp::Filter;
use supervisor::Supervisor;

/// A program that is ready to be started, and the process that will start it.
#[derive(Debug)]
pub(crate) struct Wrapped {
    program: Program,
    guard: Unattached,
}

/// A program, how it is moved, and what is known of it.
#[derive(Debug)]
struct Program {
    config: WrapConfig,
    method: Method,
    /// The port that the program binds.
    old_port: u16,
    ready_file: Option<ReadyFile>,
    status: Status,
    _reservation: Option<Reservation>,
}

/// How a program's port is moved.
#[derive(Debug)]
enum Method {
    /// By the shim.
    Preload(Rule),
    /// By a seccomp filter.
    Seccomp(Filter, Rule),
    /// Not at all.
    Untouched,
}

/// In words that follow "its port is moved".
impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preload(_) => "by preloading",
            Self::Seccomp(..) => "by seccomp",
            Self::Untouched => "by nobody",
        })
    }
}

impl Method {
    /// The method that is asked for, or that reaches the program.
    fn choose(config: &WrapConfig, rule: Rule) -> Result<Self> {
        let filter = || {
            ensure!(
                !config.is_foreign,
                "the port can only be moved by seccomp, for which we have to see into the program: so it has to be the same user's as we \
                 are (--wrap-user, --user)"
            );
            let keeps_rights = config.user.as_ref().is_none_or(Identity::is_root);
            Filter::new(keeps_rights && Uid::effective().is_root())
        };
        let preloadable = inspect::check_preload(&config.command);
        let method = match (config.method, preloadable) {
            (_, Err(obstacle @ (Obstacle::Missing(_) | Obstacle::Unexecutable(_)))) => {
                return Err(obstacle.into());
            }
            (WrapMethod::Preload | WrapMethod::Auto, Ok(())) => {
                // Whether it can be had, is better known before anything is started.
                preload::library()?;
                Self::Preload(rule)
            }
            (WrapMethod::Preload, Err(obstacle)) => return Err(obstacle.into()),
            // It is asked for on its unix socket, so its port does not matter.
            (WrapMethod::Auto, Err(_)) if config.unix_target.is_some() => Self::Untouched,
            (WrapMethod::Auto, Err(obstacle)) => {
                tracing::debug!("{obstacle}");
                Self::Seccomp(filter().with_context(|| obstacle.to_string())?, rule)
            }
            (WrapMethod::Seccomp, _) => Self::Seccomp(filter()?, rule),
            (WrapMethod::None, _) => Self::Untouched,
        };
        if matches!(&method, Self::Seccomp(filter, _) if filter.weakens()) {
            tracing::warn!(
                "the port is moved by seccomp, not as root: set-user-ID programs have no power under it"
            );
        }
        Ok(method)
    }

    /// Why it may not have reached a program, and what to try.
    fn unreached(&self) -> &'static str {
        match self {
            Self::Preload(_) => {
                "what binds it does not load the library, as a static program that a script starts; try --wrap-method=seccomp"
            }
            Self::Seccomp(..) => "what binds it is not seen by the filter, as io_uring is not",
            Self::Untouched => "--wrap-port tells which port it binds",
        }
    }

    /// The path of the shim, if it is needed. It is written again if somebody has removed it, as cleaners of /tmp do.
    fn shim(&self) -> Result<PathBuf> {
        match self {
            Self::Preload(_) => preload::library(),
            Self::Seccomp(..) | Self::Untouched => Ok(PathBuf::new()),
        }
    }
}

/// What connections know of the program.
#[derive(Clone, Debug)]
pub(crate) struct Status(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The command line, for people.
    command: String,
    spot: Spot,
    timeout: Duration,
    state: watch::Sender<State>,
    /// A client was refused, so the state may be out of date.
    doubt: Notify,
    /// How often the program was started.
    starts: AtomicU64,
    /// For whoever waits for the start: there is news.
    news: Notify,
    /// Whether a client was connected since the program was last asked for that.
    served: AtomicBool,
}

/// Where the program listens for us.
#[derive(Debug)]
enum Spot {
    /// On this port of a loopback address.
    Port(u16),
    /// On a unix socket.
    Unix(PathBuf),
}

/// Whether the program listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not yet, or not just now.
    Starting,
    /// Yes.
    Listening,
    /// It has ended, and is not started again.
    Gone,
}

/// What the supervisor is told to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Pass a signal on to the program.
    Forward(Signal),
    /// Stop the program and then this process, as Ctrl-Z does; go on when this process does.
    Suspend,
    /// The program will be ended soon: what becomes of it until then is no reason to do anything.
    Stopping,
    /// End the program, beginning with this signal.
    End(Signal),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.spot {
            Spot::Port(port) => write!(f, "'{}' (port {port})", self.0.command),
            Spot::Unix(path) => write!(f, "'{}' (unix socket {})", self.0.command, path.display()),
        }
    }
}

impl Status {
    /// How long a client waits for the program.
    pub(crate) fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// The unix socket that the program listens on, if it does not listen on a port.
    pub(crate) fn unix_socket(&self) -> Option<&Path> {
        match &self.0.spot {
            Spot::Unix(path) => Some(path),
            Spot::Port(_) => None,
        }
    }

    /// The addresses of the moved port, in the order in which they are tried.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        let port = match self.0.spot {
            Spot::Port(port) => port,
            Spot::Unix(_) => 0,
        };
        [
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ]
    }

    /// Notes that the program serves a client.
    pub(crate) fn note_service(&self) {
        self.0.served.store(true, Ordering::Relaxed);
        // The program may have ended over it already.
        if self.get() != State::Listening {
            self.0.doubt.notify_one();
        }
    }

    /// Whether the program served a client since this was last asked.
    fn has_served(&self) -> bool {
        self.0.served.swap(false, Ordering::Relaxed)
    }

    /// Waits, for a client that was refused, until the program listens (true) or is gone for good (false).
    pub(crate) async fn listens_again(&self) -> bool {
        let mut state = self.0.state.subscribe();
        self.0.state.send_if_modified(|state| {
            let outdated = *state == State::Listening;
            if outdated {
                *state = State::Starting;
            }
            outdated
        });
        self.0.doubt.notify_one();
        // The sender is part of `self`.
        state
            .wait_for(|&state| state != State::Starting)
            .await
            .is_ok_and(|state| *state == State::Listening)
    }

    fn set(&self, state: State) {
        self.0.state.send_replace(state);
        self.0.news.notify_one();
    }

    /// Notes that the program was started.
    fn note_begin(&self) {
        self.0.starts.fetch_add(1, Ordering::Relaxed);
        self.0.news.notify_one();
    }

    /// Waits until the program was started for the first time. Only one may wait for this and for what follows.
    pub(crate) async fn begun(&self) {
        while self.starts() == 0 {
            self.0.news.notified().await;
        }
    }

    /// Waits until the program listens, or is gone for good.
    pub(crate) async fn settled(&self) {
        while self.get() == State::Starting {
            self.0.news.notified().await;
        }
    }

    /// Waits until the program may do something else than before.
    pub(crate) async fn news(&self) {
        self.0.news.notified().await;
    }

    /// What the program does, in words.
    pub(crate) fn in_words(&self) -> &'static str {
        match self.get() {
            State::Starting => "does not listen yet",
            State::Listening => "listens",
            State::Gone => "is gone",
        }
    }

    /// Whether the program listens.
    pub(crate) fn is_listening(&self) -> bool {
        self.get() == State::Listening
    }

    /// What the program does, as it is counted.
    pub(crate) fn state(&self) -> metrics::Program {
        match self.get() {
            State::Starting => metrics::Program::Starting,
            State::Listening => metrics::Program::Listening,
            State::Gone => metrics::Program::Gone,
        }
    }

    /// How often the program was started.
    pub(crate) fn starts(&self) -> u64 {
        self.0.starts.load(Ordering::Relaxed)
    }

    /// Whether a client waits for the program.
    fn is_awaited(&self) -> bool {
        self.0.state.receiver_count() > 0
    }

    fn get(&self) -> State {
        *self.0.state.borrow()
    }

    /// The sockets on which the program listens for us; `processes` gives those that it consists of.
    fn listeners(&self, processes: impl FnOnce() -> Vec<Pid>) -> Vec<Listener> {
        match &self.0.spot {
            Spot::Port(port) => listening::reachable_on_loopback(*port),
            Spot::Unix(path) => proc::unix_listeners(path, processes),
        }
    }
}

impl Wrapped {
    /// Reserves a port, and checks that the program can be started and moved. `old_port` is the port that it binds; `listen`
    /// is our own address.
    ///
    /// # Errors
    /// Among others an [`Obstacle`], which has an exit status of its own.
    pub(crate) fn new(config: WrapConfig, old_port: u16, listen: String) -> Result<Self> {
        let reservation = (config.method != WrapMethod::None)
            .then(Reservation::new)
            .transpose()?;
        // A program that is not touched listens where it says.
        let new_port = reservation.as_ref().map_or(old_port, Reservation::port);
        let rule = Rule {
            old: old_port,
            new: new_port,
        };
        let method = Method::choose(&config, rule)?;
        let ready_file = config.ready_file.clone().map(|path| ReadyFile {
            path,
            listen,
            content: None,
        });
        let words: Vec<_> = config
            .command
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        let status = Status(Arc::new(Inner {
            command: words.join(" "),
            spot: config
                .unix_target
                .clone()
                .map_or(Spot::Port(new_port), Spot::Unix),
            timeout: config.timeout,
            state: watch::Sender::new(State::Starting),
            doubt: Notify::new(),
            starts: AtomicU64::new(0),
            news: Notify::new(),
            served: AtomicBool::new(false),
        }));
        let guard = Unattached::new(&config, &method)?;
        let program = Program {
            config,
            method,
            old_port,
            ready_file,
            status,
            _reservation: reservation,
        };
        Ok(Self { program, guard })
    }

    /// Checks what has to be done with the rights that we keep.
    ///
    /// # Errors
    /// It cannot be told when the program listens.
    pub(crate) fn prepare(&self) -> Result<()> {
        let file = self.program.ready_file.as_ref();
        file.map_or(Ok(()), ReadyFile::prepare)
    }

    /// What connections need to know.
    pub(crate) fn status(&self) -> Status {
        self.program.status.clone()
    }

    /// Starts the program and looks after it until it is ordered to end. `gone` gets the exit status if the program ends for
    /// good before, under `--wrap-mode=exit`.
    ///
    /// # Errors
    /// The program could not be started.
    pub(crate) async fn supervise(
        self,
        orders: mpsc::Receiver<Order>,
        gone: oneshot::Sender<u8>,
    ) -> Result<()> {
        let status = self.status();
        let result = Supervisor::new(self.program, self.guard, gone)?
            .run(orders)
            .await;
        status.set(State::Gone);
        result
    }
}

/// Replaces this process by a program that is moved, and returns only when that fails.
pub(crate) fn execute(old_port: u16, new_port: u16, command: &[OsString]) -> anyhow::Error {
    let prepared = inspect::check_preload(command)
        .map_err(anyhow::Error::from)
        .and_then(|()| preload::library());
    let rule = Rule {
        old: old_port,
        new: new_port,
    };
    match prepared {
        Ok(library) => {
            let error = Command::new(&command[0])
                .args(&command[1..])
                .envs(preload::variables(rule, &library))
                .exec();
            unstartable(&error, &command[0]).into()
        }
        Err(error) => error,
    }
}

/// The file that says where the program listens, while it does.
#[derive(Debug)]
struct ReadyFile {
    path: PathBuf,
    /// Our own address.
    listen: String,
    /// What we have written, if it is there.
    content: Option<String>,
}

impl ReadyFile {
    /// Removes what an earlier start may have left, and checks that a file can be written.
    fn prepare(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                bail!(
                    "cannot remove {}: {}",
                    self.path.display(),
                    sys::describe(&error)
                );
            }
            _ => {}
        }
        let file = whole_file::beside(&self.path);
        file.map_err(|error| whole_file::failure(&self.path, &error))?;
        Ok(())
    }

    /// Writes it at once or not at all. `target` is where the process `pid` listens.
    fn write(&mut self, target: &str, pid: Pid) -> Result<()> {
        let content =
            serde_json::json!({ "listen": self.listen, "target": target, "pid": pid.as_raw() });
        let content = format!("{content}\n");
        let written = whole_file::beside(&self.path).and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.persist(&self.path).map_err(|error| error.error)
        });
        written.map_err(|error| whole_file::failure(&self.path, &error))?;
        self.content = Some(content);
        Ok(())
    }

    /// Removes it, unless somebody else has put another in its place.
    fn remove(&mut self) {
        let Some(content) = self.content.take() else {
            return;
        };
        let ours = fs::read_to_string(&self.path).is_ok_and(|found| found == content);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::error!(
                "cannot remove {}: {}",
                self.path.display(),
                sys::describe(&error)
            );
        }
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        self.remove();
    }
}
