//! The questions and answers themselves, each one line of JSON; [`super`] tells what they look like.

use hyper::StatusCode;
use hyper::header::{CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::auth::{Credentials, Denied, Refused, Visitor};
use crate::token::{BadDestination, Destination, Port, Token, UNIX_HOST, Unavailable};

/// An answer, with its id taken out.
pub(super) type Answer = Map<String, Value>;

/// The longest line, in bytes, in either direction.
pub(super) const MAX_LINE: usize = 64 * 1024;

/// How much of a plugin's own words about a failure is told.
const MAX_REASON: usize = 300;
/// How many headers a refusal may have.
const MAX_HEADERS: usize = 32;

/// A question without its number, as the members of a JSON object.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Question(String);

impl Question {
    /// Where does this token lead?
    pub(super) fn token(token: &Token) -> Self {
        Self(format!("\"token\":{}", quoted(token.expose())))
    }

    /// Is this visitor let in, who wants to go there?
    pub(super) fn visitor(visitor: &Visitor<'_>, destination: Option<&Destination>) -> Self {
        let (user, password) = credentials(visitor.headers).unzip();
        let (host, port) = match destination {
            None => (None, Value::Null),
            Some(Destination::Unix(path)) => (
                Some(UNIX_HOST),
                Value::from(path.to_string_lossy().into_owned()),
            ),
            Some(Destination::Tcp {
                address, text_port, ..
            }) => {
                let port = if *text_port {
                    Value::from(address.port.to_string())
                } else {
                    Value::from(address.port)
                };
                (Some(address.host.as_str()), port)
            }
        };
        let headers: Vec<String> = visitor
            .headers
            .iter()
            .map(|(name, value)| format!("[{},{}]", quoted(name.as_str()), quoted(&text(value))))
            .collect();
        Self(format!(
            "\"peer\":{},\"path\":{},\"file\":{},\"user\":{},\"password\":{},\"common_name\":{},\
             \"target_host\":{},\"target_port\":{port},\"headers\":[{}]",
            quoted(&visitor.peer.to_string()),
            quoted(visitor.path),
            visitor.file,
            quoted_or_null(user.as_deref()),
            quoted_or_null(password.as_deref()),
            quoted_or_null(visitor.common_name),
            quoted_or_null(host),
            headers.join(",")
        ))
    }

    /// The line that asks it; `None` when it is too long.
    pub(super) fn line(&self, id: u64) -> Option<String> {
        let line = format!("{{\"id\":{id},{}}}\n", self.0);
        (line.len() <= MAX_LINE).then_some(line)
    }
}

/// A text as JSON.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn quoted_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), quoted)
}

/// The value of a header, of which each byte is one character, whatever it was meant to be.
fn text(value: &HeaderValue) -> String {
    latin1(value.as_bytes())
}

/// Bytes of which each is one character.
pub(super) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// User and password of a request, in whichever encoding they came.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let text = |bytes: &[u8]| str::from_utf8(bytes).map_or_else(|_| latin1(bytes), str::to_owned);
    let credentials = Credentials::of(headers)?;
    Some((text(credentials.name()), text(credentials.password())))
}

/// Takes a line for an answer: the id, and the rest.
pub(super) fn parse(line: &[u8]) -> Option<(u64, Answer)> {
    let Ok(Value::Object(mut answer)) = serde_json::from_slice(line) else {
        return None;
    };
    let id = answer.remove("id")?.as_u64()?;
    Some((id, answer))
}

/// Why an answer names no destination although it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Misleading {
    /// The token leads somewhere where there can be nothing.
    Target(BadDestination),
    /// It cannot be said where the token leads.
    Unavailable(Unavailable),
}

/// Where the token leads that was asked for.
pub(super) fn destination(answer: &Answer) -> Result<Option<Destination>, Misleading> {
    if let Some(failure) = failure(answer) {
        return Err(Misleading::Unavailable(Unavailable(failure)));
    }
    let parsed = match (answer.get("target"), answer.get("host"), answer.get("port")) {
        (Some(Value::Null), ..) | (None, Some(Value::Null), _) => return Ok(None),
        (Some(Value::String(target)), ..) => target.parse(),
        (None, Some(Value::String(host)), Some(Value::String(port))) => {
            Destination::from_parts(host, Port::Text(port))
        }
        (None, Some(Value::String(host)), Some(Value::Number(port))) => {
            // Out of range is what any bad number is.
            Destination::from_parts(host, Port::Number(port.as_u64().unwrap_or(0)))
        }
        _ => {
            let reason = "it gave a bad answer: neither a target nor a host and a port";
            return Err(Misleading::Unavailable(Unavailable(reason.to_owned())));
        }
    };
    parsed.map(Some).map_err(Misleading::Target)
}

/// Whether the visitor is let in that was asked for.
pub(super) fn verdict(answer: &Answer) -> Result<(), Denied> {
    if let Some(failure) = failure(answer) {
        return Err(Denied::Unavailable(failure));
    }
    match answer.get("allow") {
        Some(Value::Bool(true)) => Ok(()),
        Some(Value::Bool(false)) => Err(Denied::Refused(refusal(answer))),
        _ => Err(Denied::Unavailable(
            "it gave a bad answer: allow is neither true nor false".to_owned(),
        )),
    }
}

/// Why the plugin cannot answer, in its own words.
fn failure(answer: &Answer) -> Option<String> {
    let mut reason = answer.get("error")?.as_str()?.to_owned();
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    Some(format!("it says: {reason}"))
}

/// How a plugin wants somebody to be refused, as far as that is a refusal at all.
fn refusal(answer: &Answer) -> Refused {
    let status = answer
        .get("status")
        .and_then(Value::as_u64)
        .and_then(|status| StatusCode::from_u16(status.try_into().ok()?).ok())
        .filter(|status| status.is_client_error() || status.is_server_error())
        .unwrap_or(StatusCode::FORBIDDEN);
    let message = answer.get("message").and_then(Value::as_str);
    Refused {
        status,
        headers: answer.get("headers").map(headers).unwrap_or_default(),
        message: message
            .or(status.canonical_reason())
            .unwrap_or("Forbidden")
            .to_owned(),
    }
}

/// The headers of a refusal, given as an object, or as a list of pairs where a name comes twice. What is no header is left out, and
/// so is what the connection is made of.
fn headers(given: &Value) -> Vec<(HeaderName, HeaderValue)> {
    let pairs: Vec<(&str, &str)> = match given {
        Value::Object(members) => members
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
            .collect(),
        Value::Array(pairs) => pairs
            .iter()
            .filter_map(|pair| match pair.as_array()?.as_slice() {
                [name, value] => Some((name.as_str()?, value.as_str()?)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    pairs
        .into_iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let value = HeaderValue::from_str(value).ok()?;
            (!is_of_the_connection(&name)).then_some((name, value))
        })
        .take(MAX_HEADERS)
        .collect()
}

/// Whether a header says where an answer ends, or what becomes of the connection.
fn is_of_the_connection(name: &HeaderName) -> bool {
    [
        CONNECTION,
        CONTENT_LENGTH,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ]
    .contains(name)
        || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::HostPort;
    use crate::listener::Peer;

    fn answer(line: &str) -> Answer {
        parse(line.as_bytes()).unwrap().1
    }

    fn line(visitor: &Visitor<'_>, destination: Option<&Destination>) -> String {
        Question::visitor(visitor, destination).line(8).unwrap()
    }

    #[test]
    fn a_token_stands_alone_at_the_end_of_its_line() {
        let ask = |token: &str| Question::token(&Token::new(token.to_owned())).line(7);
        assert_eq!(ask("abc").unwrap(), "{\"id\":7,\"token\":\"abc\"}\n");
        assert_eq!(
            ask("\"\\\n\u{1}ü").unwrap(),
            "{\"id\":7,\"token\":\"\\\"\\\\\\n\\u0001ü\"}\n"
        );
        assert_eq!(ask(&"x".repeat(MAX_LINE)), None);
    }

    #[test]
    fn a_visitor_is_described() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_bytes(b"a=\xfc\"").unwrap());
        headers.insert("authorization", HeaderValue::from_static("basic YTpiOmM"));
        let visitor = Visitor {
            peer: Peer::UNIX,
            headers: &headers,
            path: "/p?token=\"x",
            file: true,
            common_name: Some("jo"),
        };
        assert_eq!(
            line(&visitor, None),
            "{\"id\":8,\"peer\":\"unix\",\"path\":\"/p?token=\\\"x\",\"file\":true,\"user\":\"a\",\"password\":\"b:c\",\
             \"common_name\":\"jo\",\"target_host\":null,\"target_port\":null,\
             \"headers\":[[\"cookie\",\"a=ü\\\"\"],[\"authorization\",\"basic YTpiOmM\"]]}\n"
        );
        let tcp = |text_port| Destination::Tcp {
            address: HostPort {
                host: "h".to_owned(),
                port: 5900,
            },
            tls: false,
            text_port,
        };
        for (destination, expected) in [
            (tcp(false), "\"target_host\":\"h\",\"target_port\":5900,"),
            (tcp(true), "\"target_host\":\"h\",\"target_port\":\"5900\","),
            (
                Destination::Unix("/s".into()),
                "\"target_host\":\"unix_socket\",\"target_port\":\"/s\",",
            ),
        ] {
            let line = line(&visitor, Some(&destination));
            assert!(line.contains(expected), "{line}");
        }
    }

    #[test]
    fn nobody_can_pretend_to_have_given_a_password() {
        let mut headers = HeaderMap::new();
        let forged = "\"user\":\"a\",\"password\":\"b\"";
        headers.insert("x-forged", HeaderValue::from_str(forged).unwrap());
        headers.insert("user", HeaderValue::from_static("a"));
        let visitor = Visitor {
            peer: Peer::UNIX,
            headers: &headers,
            path: forged,
            file: false,
            common_name: Some(forged),
        };
        assert!(!line(&visitor, None).contains("\"user\":\"a\""));
    }

    #[test]
    fn credentials_come_in_any_encoding() {
        for value in ["Basic YTrDvA==", "basic YTr8"] {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", HeaderValue::from_static(value));
            let expected = Some(("a".to_owned(), "ü".to_owned()));
            assert_eq!(credentials(&headers), expected, "{value}");
        }
    }

    #[test]
    fn what_is_no_answer_is_not_taken_for_one() {
        for line in [
            "",
            "null",
            "7",
            "[]",
            "{",
            "{}",
            "{\"id\":\"7\"}",
            "{\"id\":-1}",
            "{\"id\":7.5}",
            "{\"id\":7} {\"id\":8}",
            "\u{feff}{\"id\":7}",
            "{\"target\":null}",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(b"{\"id\":7,\"a\":\"\xff\"}"), None);
        let deep = [vec![b'['; 30_000], vec![b']'; 30_000]].concat();
        assert_eq!(parse(&deep), None);
        assert!(parse(b" {\"id\" : 7}\r").is_some());
    }

    #[test]
    fn targets_come_in_several_forms() {
        for (text, expected) in [
            ("{\"id\":7,\"target\":null}", None),
            ("{\"id\":7,\"host\":null,\"port\":null}", None),
            (
                "{\"id\":7,\"host\":\"h\",\"port\":5900}",
                Some(("h", Port::Number(5900))),
            ),
            (
                "{\"id\":7,\"host\":\"h\",\"port\":\"5900\"}",
                Some(("h", Port::Text("5900"))),
            ),
            (
                "{\"id\":7,\"target\":\"h:5900\"}",
                Some(("h", Port::Text("5900"))),
            ),
            (
                "{\"id\":7,\"target\":\"tls://h:1\"}",
                Some(("tls://h", Port::Text("1"))),
            ),
            (
                "{\"id\":7,\"target\":\"unix_socket:/s\"}",
                Some((UNIX_HOST, Port::Text("/s"))),
            ),
            (
                "{\"id\":7,\"host\":\"unix_socket\",\"port\":\"/s\"}",
                Some((UNIX_HOST, Port::Text("/s"))),
            ),
        ] {
            let expected =
                expected.map(|(host, port)| Destination::from_parts(host, port).unwrap());
            assert_eq!(destination(&answer(text)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_targets_and_failures_lead_nowhere() {
        for (text, expected) in [
            ("{\"id\":7}", "neither a target"),
            ("{\"id\":7,\"target\":5900}", "neither a target"),
            ("{\"id\":7,\"host\":\"h\"}", "neither a target"),
            ("{\"id\":7,\"host\":[],\"port\":1}", "neither a target"),
            ("{\"id\":7,\"target\":\"h\"}", "target: it is not host:port"),
            (
                "{\"id\":7,\"host\":\"h\",\"port\":65536}",
                "target: its port is not",
            ),
            (
                "{\"id\":7,\"host\":\"h\",\"port\":-1}",
                "target: its port is not",
            ),
            (
                "{\"id\":7,\"host\":\"h\",\"port\":1.5}",
                "target: its port is not",
            ),
            (
                "{\"id\":7,\"error\":\"no database\"}",
                "it says: no database",
            ),
        ] {
            let reason = match destination(&answer(text)) {
                Err(Misleading::Target(error)) => format!("target: {error}"),
                Err(Misleading::Unavailable(error)) => error.to_string(),
                Ok(destination) => panic!("{text} leads to {destination:?}"),
            };
            assert!(reason.contains(expected), "{text}: {reason}");
        }
    }

    #[test]
    fn only_true_lets_somebody_in() {
        assert_eq!(verdict(&answer("{\"id\":8,\"allow\":true}")), Ok(()));
        for text in [
            "{\"id\":8}",
            "{\"id\":8,\"allow\":\"true\"}",
            "{\"id\":8,\"allow\":1}",
            "{\"id\":8,\"allow\":null}",
            "{\"id\":8,\"allow\":true,\"error\":\"no database\"}",
        ] {
            let verdict = verdict(&answer(text));
            assert!(matches!(verdict, Err(Denied::Unavailable(_))), "{text}");
        }
    }

    #[test]
    fn refusals_are_as_they_are_wanted() {
        let refused = |members: &str| {
            let text = format!("{{\"id\":8,\"allow\":false{members}}}");
            match verdict(&answer(&text)) {
                Err(Denied::Refused(refused)) => refused,
                other => panic!("{text}: {other:?}"),
            }
        };
        assert_eq!(refused(""), Refused::forbidden());
        let status = |text: &str| refused(&format!(",\"status\":{text}")).status.as_u16();
        assert_eq!(
            [status("400"), status("401"), status("599")],
            [400, 401, 599]
        );
        for bad in [
            "200", "101", "302", "399", "600", "99999", "-401", "\"401\"", "401.0", "null",
        ] {
            assert_eq!(status(bad), 403, "{bad}");
        }
        assert_eq!(refused(",\"status\":401").message, "Unauthorized");
        assert_eq!(refused(",\"message\":\"Go away\"").message, "Go away");
        let names = |headers: &str| -> Vec<String> {
            let refused = refused(&format!(",\"headers\":{headers}"));
            let shown = |(name, value): &(HeaderName, HeaderValue)| format!("{name}: {value:?}");
            refused.headers.iter().map(shown).collect()
        };
        assert_eq!(
            names("{\"WWW-Authenticate\":\"Basic realm=\\\"x\\\"\"}"),
            ["www-authenticate: \"Basic realm=\\\"x\\\"\""]
        );
        assert_eq!(
            names("[[\"a\",\"1\"],[\"a\",\"2\"],[\"b\"],7]"),
            ["a: \"1\"", "a: \"2\""]
        );
        for bad in [
            "{\"a\":\"b\\r\\nSet-Cookie: c\"}",
            "{\"a\\r\\nb\":\"c\"}",
            "{\"a:\":\"c\"}",
            "{\"\":\"c\"}",
            "{\"a\":7}",
            "{\"Content-Length\":\"7\"}",
            "{\"transfer-encoding\":\"chunked\",\"Connection\":\"x\",\"Keep-Alive\":\"x\"}",
            "\"a: b\"",
            "null",
        ] {
            assert_eq!(names(bad), [""; 0], "{bad}");
        }
        let many = vec!["[\"a\",\"b\"]"; 100].join(",");
        assert_eq!(names(&format!("[{many}]")).len(), MAX_HEADERS);
    }
}
