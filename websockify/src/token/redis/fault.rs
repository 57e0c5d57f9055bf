//! What is wrong with Redis, in words that have nothing of what it was told: its own may repeat the key.

use std::error::Error;
use std::io;

use redis::{ErrorKind, RedisError, ServerError, Value};

use crate::{sys, tls};

/// What is wrong with a connection.
pub(super) fn of_connection(error: &RedisError) -> String {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause {
        Some(cause) => {
            let cause = tls::explain(cause).unwrap_or_else(|| sys::describe(cause));
            format!("the connection broke: {cause}")
        }
        None if error.kind() == ErrorKind::Parse => {
            "what it answers is not Redis' protocol".to_owned()
        }
        None => "it has closed the connection, or does not answer".to_owned(),
    }
}

/// What is wrong with the answer to a command that a connection begins with. One that Redis does not let everybody give, or does not
/// have, shows as well that it answers.
pub(super) fn of_greeting(answer: &Value) -> Option<String> {
    match answer {
        Value::ServerError(error) if !is_of_command(error) => Some(of_answer(error)),
        _ => None,
    }
}

/// Whether a command was refused for what it is, and not for its key.
pub(super) fn is_of_command(error: &ServerError) -> bool {
    let details = error.details().unwrap_or_default();
    match error.code() {
        "NOPERM" => details.contains(" command"),
        "ERR" => details.starts_with("unknown command"),
        _ => false,
    }
}

/// What an error means that is Redis' answer.
pub(super) fn of_answer(error: &ServerError) -> String {
    let details = error.details().unwrap_or_default();
    let meaning = match error.code() {
        "NOAUTH" => "it wants a password",
        "WRONGPASS" => "it refuses the password",
        "NOPERM" => "its access list keeps us from asking",
        "LOADING" => "it is still loading its data",
        "BUSY" => "it is busy with a script",
        "MASTERDOWN" => "it is a replica that has lost its master",
        "DENIED" => "it is in protected mode, and talks to its own machine only",
        "CLUSTERDOWN" => "its cluster is down",
        "MOVED" | "ASK" | "TRYAGAIN" => "it is part of a cluster, which is not supported",
        "ERR" if details.contains("invalid password") => "it refuses the password",
        "ERR" if details.contains("without any password") => "it has no password, and is given one",
        "ERR" if details.contains("max number of clients") => {
            "it has as many clients as it may have"
        }
        "ERR" if details.contains("out of range") => "it has no database of this number",
        code if code.bytes().all(|byte| byte.is_ascii_uppercase()) => {
            return format!("it answers {code}");
        }
        _ => return "it answers with an error".to_owned(),
    };
    format!("{meaning} ({})", error.code())
}
