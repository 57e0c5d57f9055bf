//! Python classes made for the original: a script that is within this executable asks them. It is the plugin that we start.
//!
//! The interpreter gets the script as a file without a name, is told what to load in the first line of its input, and tells what
//! came of that in the first line of its output.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::Level;

use super::Kind;
use super::program::{Order, Pipes, Running};
use super::protocol::latin1;
use crate::config::PythonClass;
use crate::wrap::{self, Obstacle};

/// The interpreter.
const INTERPRETER: &str = "python3";
/// What runs in it.
const SCRIPT: &str = include_str!("python/host.py");
/// What stands in for the original where that is not installed.
const MODULES: [(&str, &str); 2] = [
    (
        "websockify.token_plugins",
        include_str!("python/token_plugins.py"),
    ),
    (
        "websockify.auth_plugins",
        include_str!("python/auth_plugins.py"),
    ),
];
/// How many questions it works at; the script has the same number.
pub(super) const MAX_WORKERS: usize = 64;
/// How long classes may take to be imported, and their objects to be made.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// An interpreter and the classes that it loads.
pub(super) struct Host {
    order: Order,
    tokens: Option<PythonClass>,
    auth: Option<PythonClass>,
}

impl Host {
    /// An interpreter for these classes.
    pub(super) fn new(tokens: Option<PythonClass>, auth: Option<PythonClass>) -> Result<Self> {
        let script = script().context("cannot hand a script to python3")?;
        let names = tokens.iter().chain(&auth).map(|class| class.name.clone());
        let run = format!("exec(open({}).read())", script.as_raw_fd());
        // The names are for those who look at the processes.
        let arguments = ["-c".to_owned(), run].into_iter().chain(names);
        let order = Order {
            name: match (&tokens, &auth) {
                (Some(_), Some(_)) => "plugins",
                (None, Some(_)) => Kind::Auth.name(),
                (_, None) => Kind::Token.name(),
            },
            program: INTERPRETER.into(),
            arguments: arguments.map(OsString::from).collect(),
            file: Some(script),
        };
        Ok(Self {
            order,
            tokens,
            auth,
        })
    }

    /// What the classes are, for the log.
    pub(super) fn name(&self) -> &'static str {
        self.order.name
    }

    /// Starts the interpreter, and has it load the classes.
    pub(super) async fn start(&self) -> Result<Running> {
        let failure = || format!("cannot load {}", self.classes());
        if matches!(wrap::find(INTERPRETER.as_ref()), Err(Obstacle::Missing(_))) {
            bail!("{}: there is no {INTERPRETER} in PATH", failure());
        }
        let mut running = self.order.start().with_context(failure)?;
        let loaded = match running.pipes.as_mut() {
            Some(pipes) => timeout(LOAD_LIMIT, self.load(pipes)).await,
            None => Ok(Ok(false)),
        };
        match loaded {
            Ok(Ok(true)) => Ok(running),
            // It has told why.
            Ok(Err(error)) => {
                running.end().await;
                Err(error)
            }
            Ok(Ok(false)) => Err(anyhow!(
                "{}: {INTERPRETER} {}",
                failure(),
                running.end().await
            )),
            Err(_) => {
                running.end().await;
                let limit = LOAD_LIMIT.as_secs();
                Err(anyhow!("{}: that takes longer than {limit} s", failure()))
            }
        }
    }

    /// Has the interpreter load the classes. Returns false when it has ended over that.
    async fn load(&self, pipes: &mut Pipes) -> Result<bool> {
        // That it has ended shows when it is listened to.
        _ = pipes.input.write_all(self.orders().as_bytes()).await;
        let answer = loop {
            let Ok(Some(line)) = pipes.lines.next().await else {
                return Ok(false);
            };
            // What is set up for all of Python may print something before.
            let answer: Value = serde_json::from_slice(line.text).unwrap_or_default();
            if answer["ready"] == true {
                return Ok(true);
            }
            if answer["failed"].is_string() {
                break answer;
            }
        };
        let class = match answer["failed"].as_str() {
            Some("auth") => &self.auth,
            _ => &self.tokens,
        };
        let name = class
            .as_ref()
            .map(|class| class.name.as_str())
            .unwrap_or_default();
        let reason = answer["reason"].as_str().unwrap_or_default();
        let advice = if reason.starts_with("ModuleNotFoundError") {
            "; modules are looked for in the working directory, in PYTHONPATH, and among those that are installed"
        } else if answer["clear"] == true || tracing::enabled!(Level::DEBUG) {
            ""
        } else {
            "; --verbose tells where"
        };
        bail!("cannot load the Python class {name}: {reason}{advice}")
    }

    /// The first line of its input.
    fn orders(&self) -> String {
        let order = |class: &Option<PythonClass>| {
            class.as_ref().map(|PythonClass { name, source }| {
                let source = source.as_ref().map(|source| latin1(source.expose()));
                json!({ "class": name, "source": source })
            })
        };
        let orders = json!({
            "verbose": tracing::enabled!(Level::DEBUG),
            "modules": serde_json::Map::from_iter(MODULES.map(|(name, text)| (name.to_owned(), text.into()))),
            "token": order(&self.tokens),
            "auth": order(&self.auth),
        });
        format!("{orders}\n")
    }

    /// The classes, for people.
    fn classes(&self) -> String {
        match (&self.tokens, &self.auth) {
            (Some(tokens), Some(auth)) => {
                format!("the Python classes {} and {}", tokens.name, auth.name)
            }
            (class, None) | (None, class) => {
                let name = class.as_ref().map(|class| class.name.as_str());
                format!("the Python class {}", name.unwrap_or_default())
            }
        }
    }
}

/// The script as a file that has no name.
fn script() -> Result<File> {
    let mut file = File::from(memfd_create(c"plugin", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(SCRIPT.as_bytes())?;
    Ok(file)
}
