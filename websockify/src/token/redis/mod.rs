//! `TokenRedis`: Redis, where a key of the token's name, or `namespace:token`, has the target: `host:port`, or
//! `{"host": "host:port"}`.
//!
//! The redis crate speaks the protocol, over connections that are made as all others are. Neither its TLS nor its URLs are used,
//! which would bring a second way to verify certificates, and tables of every script's letters.

mod connection;
mod fault;
mod source;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use redis::{Cmd, Value, cmd};

use super::answer::{self, Form, MAX_ANSWER};
use super::{Destination, Token, Unavailable};
use crate::config::Trust;
use crate::secret::Secret;
use crate::tls::Connector;

use connection::{Link, Server};
use source::Source;

/// Redis.
pub(crate) struct RedisSource {
    link: Link,
    /// What keys begin with.
    namespace: Option<String>,
    /// Whether values have to be read whole.
    whole: AtomicBool,
}

impl RedisSource {
    /// How many descriptors it keeps: one connection's.
    pub(crate) const DESCRIPTORS: usize = 1;

    /// One for `host[:port[:db[:password[:namespace]]]]`, or a URL. Its connection lives in the runtime that this is called in.
    ///
    /// # Errors
    /// It is none of them, and why; that Redis does not answer is no error.
    pub(crate) fn new(source: &Secret) -> Result<Self> {
        let text = std::str::from_utf8(source.expose()).context("the source is not UTF-8")?;
        let source =
            Source::parse(text).map_err(|reason| anyhow!("the source is no good: {reason}"))?;
        let connector = source
            .tls
            .then(|| Connector::new(&Trust::System))
            .transpose()?;
        Ok(Self {
            link: Link::new(Server {
                greeting: greeting(&source),
                place: source.place,
                connector,
            }),
            namespace: source.namespace,
            whole: AtomicBool::new(false),
        })
    }

    /// Asks where a token leads.
    ///
    /// # Errors
    /// Redis does not answer, or with an error that is not about the token.
    pub(crate) async fn look_up(&self, token: &Token) -> Result<Option<Destination>, Unavailable> {
        let name = token.expose();
        let key = match &self.namespace {
            Some(namespace) => &format!("{namespace}:{name}"),
            None => name,
        };
        let value = self.read(key).await?;
        self.understand(value, token)
    }

    /// The value of a key, or the beginning of one that is too long: without a namespace a client can name anything that is in there.
    async fn read(&self, key: &str) -> Result<Value, Unavailable> {
        if !self.whole.load(Ordering::Relaxed) {
            let mut beginning = cmd("GETRANGE");
            let value = self
                .link
                .ask(beginning.arg(key).arg(0).arg(MAX_ANSWER))
                .await?;
            match value {
                // Whoever is permitted to use the original is permitted this much.
                Value::ServerError(error) if fault::is_of_command(&error) => {
                    self.whole.store(true, Ordering::Relaxed);
                }
                value => return Ok(value),
            }
        }
        self.link.ask(cmd("GET").arg(key)).await
    }

    fn understand(&self, value: Value, token: &Token) -> Result<Option<Destination>, Unavailable> {
        let text = match value {
            Value::Nil => return Ok(None),
            Value::BulkString(text) => text,
            Value::SimpleString(text) => text.into_bytes(),
            Value::ServerError(error) => {
                let is_of_key = error.code() == "NOPERM" && !fault::is_of_command(&error);
                if error.code() != "WRONGTYPE" && !is_of_key {
                    return Err(self.link.unavailable(&fault::of_answer(&error)));
                }
                let code = error.code();
                tracing::warn!(
                    "what Redis has for the token {token} is no string, or not for us ({code})"
                );
                return Ok(None);
            }
            _ => {
                return Err(self
                    .link
                    .unavailable("it answers with something else than a string"));
            }
        };
        if text.len() > MAX_ANSWER {
            tracing::warn!(
                "what Redis has for the token {token} is longer than {} KiB",
                MAX_ANSWER / 1024
            );
            return Ok(None);
        }
        Ok(answer::read(token, &text, Form::Either))
    }
}

/// Shows where Redis is.
impl fmt::Debug for RedisSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisSource")
            .field(&self.link.to_string())
            .finish()
    }
}

/// What a connection begins with: credentials, the database, and a question that only life answers.
fn greeting(source: &Source) -> Vec<Cmd> {
    let mut commands = Vec::new();
    if let Some(password) = &source.password {
        let mut command = cmd("AUTH");
        if let Some(user) = &source.user {
            command.arg(user);
        }
        command.arg(password);
        commands.push(command);
    }
    if source.database != 0 {
        let mut command = cmd("SELECT");
        command.arg(source.database);
        commands.push(command);
    }
    commands.push(cmd("PING"));
    commands
}
