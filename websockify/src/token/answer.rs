//! What services answer: a target as text, or as a JSON object with a host and a port.
//!
//! Nothing of an answer is logged, which may well repeat the token.

use serde_json::Value;

use super::{BadDestination, Destination, Port, Token};

/// The longest answer, in bytes.
pub(super) const MAX_ANSWER: usize = 64 * 1024;

/// How an answer tells the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `host:port`.
    Text,
    /// `{"host": …, "port": …}`; without a port the host is `host:port`.
    Json,
    /// JSON if it begins like an object, else text.
    Either,
}

/// Where the token leads by this answer. One that makes no sense is no answer that any other client would have to wait for: it
/// is logged, and leads nowhere.
pub(super) fn read(token: &Token, answer: &[u8], form: Form) -> Option<Destination> {
    parse(answer, form).unwrap_or_else(|error| {
        let length = answer.len();
        tracing::warn!("the answer for the token {token} ({length} bytes) is no target: {error}");
        None
    })
}

/// The target of an answer; `None` where it names none.
fn parse(answer: &[u8], form: Form) -> Result<Option<Destination>, BadDestination> {
    let text = std::str::from_utf8(answer).map_err(|_| BadDestination("it is not UTF-8"))?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Ok(None);
    }
    if form == Form::Text || form == Form::Either && !text.starts_with('{') {
        return text.parse().map(Some);
    }
    match serde_json::from_str(text) {
        Ok(Value::Null) => Ok(None),
        Ok(Value::Object(fields)) => {
            let field = |name| fields.get(name).unwrap_or(&Value::Null);
            from_fields(field("host"), field("port"))
        }
        Ok(_) => Err(BadDestination("it is no JSON object")),
        Err(_) => Err(BadDestination("it is not JSON")),
    }
}

fn from_fields(host: &Value, port: &Value) -> Result<Option<Destination>, BadDestination> {
    let host = match host {
        Value::String(host) => host,
        Value::Null => return Ok(None),
        _ => return Err(BadDestination("its host is no string")),
    };
    let bad_port = BadDestination("its port is no number");
    let destination = match port {
        Value::Null => host.parse(),
        Value::String(port) => Destination::from_parts(host, Port::Text(port)),
        Value::Number(port) => {
            Destination::from_parts(host, Port::Number(port.as_u64().ok_or(bad_port)?))
        }
        _ => Err(bad_port),
    };
    destination.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::HostPort;

    fn tcp(host: &str, port: u16, tls: bool, text_port: bool) -> Option<Destination> {
        Some(Destination::Tcp {
            address: HostPort {
                host: host.to_owned(),
                port,
            },
            tls,
            text_port,
        })
    }

    #[test]
    fn text_is_a_target_with_blanks_around_it() {
        for (text, target) in [
            ("host:5900", tcp("host", 5900, false, true)),
            ("\u{feff}host:5900\r\n", tcp("host", 5900, false, true)),
            (" [::1]:5900 ", tcp("::1", 5900, false, true)),
            ("tls://host:443", tcp("host", 443, true, true)),
            (
                "unix_socket:/run/a",
                Some(Destination::Unix("/run/a".into())),
            ),
            ("", None),
            (" \n", None),
        ] {
            assert_eq!(parse(text.as_bytes(), Form::Text), Ok(target.clone()));
            assert_eq!(parse(text.as_bytes(), Form::Either), Ok(target));
        }
    }

    #[test]
    fn json_has_a_host_and_a_port_or_both_in_one() {
        for (text, target) in [
            (r#"{"host":"h","port":5900}"#, tcp("h", 5900, false, false)),
            (
                r#" {"port": "5900", "host": "h", "more": []} "#,
                tcp("h", 5900, false, true),
            ),
            (r#"{"host":"h:5900"}"#, tcp("h", 5900, false, true)),
            (
                r#"{"host":"h:5900","port":null}"#,
                tcp("h", 5900, false, true),
            ),
            (
                r#"{"host":"tls://::1","port":1}"#,
                tcp("::1", 1, true, false),
            ),
            (
                r#"{"host":"unix_socket","port":"/run/a"}"#,
                Some(Destination::Unix("/run/a".into())),
            ),
            (r#"{"error":"no such token"}"#, None),
            (r#"{"host":null,"port":1}"#, None),
            ("{}", None),
        ] {
            assert_eq!(
                parse(text.as_bytes(), Form::Json),
                Ok(target.clone()),
                "{text}"
            );
            assert_eq!(parse(text.as_bytes(), Form::Either), Ok(target), "{text}");
        }
        for nothing in ["", "null"] {
            assert_eq!(parse(nothing.as_bytes(), Form::Json), Ok(None));
        }
    }

    #[test]
    fn nonsense_is_no_target() {
        for text in ["x", "h:x", "<html>", "h:1\nh:2", "null", "[]", "\"h:1\""] {
            assert!(parse(text.as_bytes(), Form::Text).is_err(), "{text}");
            assert!(parse(text.as_bytes(), Form::Either).is_err(), "{text}");
        }
        for text in [
            "h:1",
            "[]",
            "\"h:1\"",
            r#"{"host":"h:1""#,
            r#"{"host":"h"}"#,
            r#"{"host":["h"],"port":1}"#,
            r#"{"host":"h","port":0}"#,
            r#"{"host":"h","port":65536}"#,
            r#"{"host":"h","port":-1}"#,
            r#"{"host":"h","port":1.5}"#,
            r#"{"host":"h","port":true}"#,
            r#"{"host":"h/..","port":1}"#,
        ] {
            assert!(parse(text.as_bytes(), Form::Json).is_err(), "{text}");
        }
        assert!(parse(b"h\xff:1", Form::Text).is_err());
    }

    #[test]
    fn what_makes_no_sense_leads_nowhere() {
        let token = Token::new("t".to_owned());
        assert_eq!(read(&token, b"<html>", Form::Text), None);
        assert_eq!(read(&token, b"h:1", Form::Text), tcp("h", 1, false, true));
    }
}
