//! Programs that know tokens or who is let in, in any language: they answer questions, one JSON object per line.
//!
//! # The protocol
//!
//! A plugin reads questions from its standard input and writes answers to its standard output, each a line of UTF-8, ended by a
//! newline and at most 64 KiB long. Lines are written without blanks between their parts, with `id` first, so that a shell can
//! take them apart. Whatever comes from a client stands within a JSON string, where its quotes are escaped, and headers are
//! a list: so no client can write `"user":"alice"`.
//!
//! Where a token leads:
//!
//! ```text
//! {"id":7,"token":"abc"}
//! {"id":7,"target":"host:5900"}            also [::1]:5900, unix_socket:/path, tls://host:5900
//! {"id":7,"host":"host","port":5900}       the same; the port may be text
//! {"id":7,"target":null}                   nobody knows this token
//! {"id":7,"error":"no database"}           it cannot be said now
//! ```
//!
//! Who is let in:
//!
//! ```text
//! {"id":8,"peer":"192.0.2.1","path":"/websockify?token=abc","file":false,"user":"alice","password":"secret","common_name":null,
//!  "target_host":"host","target_port":5900,"headers":[["host","example.com"],["cookie","a=b"]]}      in one line
//! {"id":8,"allow":true}
//! {"id":8,"allow":false,"status":401,"headers":{"WWW-Authenticate":"Basic"},"message":"Who are you?"}
//! {"id":8,"error":"no database"}
//! ```
//!
//! `user` and `password` are those of HTTP's basic authentication, `common_name` is that of a trusted client certificate; each is
//! null when there is none. `target_host` and `target_port` are null when no target is known: for a file when there is no fixed target, and
//! for a token that is missing, unknown or cannot be looked up; `file` tells whether it is a file that is asked for. Names of headers are in
//! lower case, and each byte of a value is one character. In a refusal `status` (400 to 599, else 403), `headers` (or a list of pairs)
//! and `message` may be missing.
//!
//! Answers may come in any order, and up to [1024](process) questions are asked before the first is answered. The end of its input
//! is the end of the plugin. What it writes to stderr goes to the log. It is started again when it ends.
//!
//! Python classes made for the original are asked in the same way, by a [script](mod@python) that is within this executable.

mod lines;
mod process;
mod program;
mod protocol;
mod python;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::auth::{Denied, Refused, Visitor};
use crate::config::{AuthConfig, AuthenticatorConfig, PythonClass, TokenConfig, TokenSourceConfig};
use crate::secret::Secret;
use crate::token::{Destination, Token, Unavailable};
use process::{Endurance, Failure, Process};
use program::{Order, Running};
use protocol::{Misleading, Question};
use python::Host;

/// What a plugin is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Where tokens lead.
    Token,
    /// Who is let in.
    Auth,
}

impl Kind {
    /// What such a plugin is called.
    fn name(self) -> &'static str {
        match self {
            Self::Token => "token plugin",
            Self::Auth => "auth plugin",
        }
    }

    /// The option that says what it is.
    fn source(self) -> &'static str {
        match self {
            Self::Token => "--token-source",
            Self::Auth => "--auth-source",
        }
    }
}

/// The interpreter with the classes of Python of a configuration, if there are any. `limit` is how long a question may take.
///
/// # Errors
/// A class cannot be used, and why.
pub(crate) async fn python(
    tokens: Option<&TokenConfig>,
    auth: Option<&AuthConfig>,
    limit: Duration,
) -> Result<Option<Plugin>> {
    let tokens = tokens.and_then(|config| match &config.source {
        TokenSourceConfig::Python(class) => Some(class.clone()),
        _ => None,
    });
    let auth = auth.and_then(|config| match &config.authenticator {
        AuthenticatorConfig::Python(class) => Some(class.clone()),
        _ => None,
    });
    match (tokens, auth) {
        (None, None) => Ok(None),
        (tokens, auth) => Plugin::python(tokens, auth, limit).await.map(Some),
    }
}

/// A plugin that runs. It may be asked from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Plugin(Arc<Process>);

impl Plugin {
    /// A program and its arguments, split as a shell splits words, with which nothing else is done. It runs from now on, in the
    /// runtime that this is called in, which is to be on the thread that lives longest.
    ///
    /// # Errors
    /// Says what cannot be started, and why.
    pub(crate) async fn exec(command: &Secret, kind: Kind) -> Result<Self> {
        let (program, arguments) = program::split(command.expose())
            .with_context(|| format!("{} names no program that can be asked", kind.source()))?;
        let order = Order {
            name: kind.name(),
            program,
            arguments,
            file: None,
        };
        let process = Process::start(Launch::Exec(order), None).await?;
        Ok(Self(Arc::new(process)))
    }

    /// Python classes made for the original, in one interpreter. It is started again when it is full of questions that it does not
    /// return from, and nothing else comes of it for `limit`.
    ///
    /// # Errors
    /// Says which class cannot be had, and why.
    async fn python(
        tokens: Option<PythonClass>,
        auth: Option<PythonClass>,
        limit: Duration,
    ) -> Result<Self> {
        let host = Host::new(tokens, auth)?;
        let endurance = Endurance {
            questions: python::MAX_WORKERS,
            time: limit,
        };
        let process = Process::start(Launch::Python(host), Some(endurance)).await?;
        Ok(Self(Arc::new(process)))
    }

    /// Where a token leads; `None` when nobody knows it.
    pub(crate) async fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        match self.0.ask(&Question::token(token)).await {
            Ok(answer) => protocol::destination(&answer).or_else(|error| match error {
                // That is no outage: others may be led somewhere.
                Misleading::Target(error) => {
                    tracing::warn!("{}: a token leads nowhere: {error}", self.0.name());
                    Ok(None)
                }
                Misleading::Unavailable(unavailable) => Err(unavailable),
            }),
            // Nobody can know that one.
            Err(Failure::TooLong) => Ok(None),
            Err(Failure::Unavailable(unavailable)) => Err(unavailable),
        }
    }

    /// Whether a visitor is let in who wants to go to `destination`; `None` for one who wants a file.
    pub(crate) async fn authenticate(
        &self,
        visitor: &Visitor<'_>,
        destination: Option<&Destination>,
    ) -> Result<(), Denied> {
        let question = Question::visitor(visitor, destination);
        match self.0.ask(&question).await {
            Ok(answer) => protocol::verdict(&answer),
            Err(Failure::TooLong) => Err(Denied::Refused(Refused::forbidden())),
            Err(Failure::Unavailable(Unavailable(reason))) => Err(Denied::Unavailable(reason)),
        }
    }

    /// Ends it, in at most a moment. Whoever asks from now on is told that it has ended.
    pub(crate) async fn end(&self) {
        self.0.end().await;
    }
}

/// How a plugin is started, as often as it takes.
enum Launch {
    /// As what it is.
    Exec(Order),
    /// In an interpreter.
    Python(Host),
}

impl Launch {
    /// What it is, for the log.
    fn name(&self) -> &'static str {
        match self {
            Self::Exec(order) => order.name,
            Self::Python(host) => host.name(),
        }
    }

    /// Starts it, and waits until it is ready to be asked.
    async fn start(&self) -> Result<Running> {
        match self {
            Self::Exec(order) => order.start(),
            Self::Python(host) => host.start().await,
        }
    }
}

#[cfg(test)]
mod tests;
