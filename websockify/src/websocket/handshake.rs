//! Judges whether a request is a WebSocket upgrade that we take (RFC 6455, section 4.2).

use hyper::header::{
    CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Encoding;

/// The versions of the protocol that we speak; all three have the same frames.
const VERSIONS: [&str; 3] = ["13", "8", "7"];
/// The same as a header.
pub(crate) const VERSIONS_HEADER: HeaderValue = HeaderValue::from_static("13, 8, 7");

/// What a request is to the WebSocket protocol.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// No upgrade to WebSocket at all.
    Plain,
    /// An upgrade that we take.
    Accepted(Acceptance),
    /// An upgrade to a version that we do not speak.
    UnknownVersion,
    /// An upgrade that is no good for this reason.
    Bad(&'static str),
}

/// How to answer an upgrade that we take.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Acceptance {
    /// The value of `Sec-WebSocket-Accept`.
    pub(crate) accept_key: String,
    /// The value of `Sec-WebSocket-Protocol`, if the client offered one of ours.
    pub(crate) subprotocol: Option<&'static str>,
    /// How payload will travel.
    pub(crate) encoding: Encoding,
}

/// Judges a request. A missing `Connection` header is tolerated, as some proxies drop it.
pub(crate) fn judge<B>(request: &Request<B>) -> Judgement {
    let headers = request.headers();
    let is_upgrade = request.method() == Method::GET
        && list(headers, &UPGRADE).any(|protocol| protocol.eq_ignore_ascii_case("websocket"));
    if !is_upgrade {
        return Judgement::Plain;
    }
    if !list(headers, &SEC_WEBSOCKET_VERSION).any(|version| VERSIONS.contains(&version)) {
        return Judgement::UnknownVersion;
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty()) else {
        return Judgement::Bad("Bad Request: no Sec-WebSocket-Key\n");
    };
    // It would be taken for frames.
    if headers.contains_key(TRANSFER_ENCODING)
        || headers
            .get(CONTENT_LENGTH)
            .is_some_and(|length| length != "0")
    {
        return Judgement::Bad("Bad Request: an upgrade has no body\n");
    }
    let offers =
        |name: &str| list(headers, &SEC_WEBSOCKET_PROTOCOL).any(|protocol| protocol == name);
    let (subprotocol, encoding) = match () {
        () if offers("binary") => (Some("binary"), Encoding::Binary),
        () if offers("base64") => (Some("base64"), Encoding::Base64),
        () => (None, Encoding::Binary),
    };
    Judgement::Accepted(Acceptance {
        accept_key: derive_accept_key(key.as_bytes()),
        subprotocol,
        encoding,
    })
}

/// The elements of a comma-separated header, over all its lines.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge_with(headers: &[(&str, &str)]) -> Judgement {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        judge(&request.body(()).unwrap())
    }

    /// The key and its answer from RFC 6455, section 1.3.
    const KEY: (&str, &str) = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    const UPGRADE: (&str, &str) = ("Upgrade", "WebSocket");
    const VERSION: (&str, &str) = ("Sec-WebSocket-Version", "13");

    fn chosen(protocols: &[(&str, &str)]) -> (Option<&'static str>, Encoding) {
        match judge_with(&[&[UPGRADE, VERSION, KEY], protocols].concat()) {
            Judgement::Accepted(Acceptance {
                accept_key,
                subprotocol,
                encoding,
            }) => {
                assert_eq!(accept_key, ACCEPT);
                (subprotocol, encoding)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_subprotocol_that_we_know_best_is_chosen() {
        let protocol = "Sec-WebSocket-Protocol";
        assert_eq!(chosen(&[]), (None, Encoding::Binary));
        assert_eq!(
            chosen(&[(protocol, "chat ,\tbinary")]),
            (Some("binary"), Encoding::Binary)
        );
        assert_eq!(
            chosen(&[(protocol, "base64,binary")]),
            (Some("binary"), Encoding::Binary)
        );
        assert_eq!(
            chosen(&[(protocol, "base64"), (protocol, "binary")]),
            (Some("binary"), Encoding::Binary)
        );
        assert_eq!(
            chosen(&[(protocol, " base64 ")]),
            (Some("base64"), Encoding::Base64)
        );
        assert_eq!(chosen(&[(protocol, "chat,mqtt")]), (None, Encoding::Binary));
    }

    #[test]
    fn versions_13_8_and_7_are_taken() {
        for version in ["13", "8", "7"] {
            assert!(matches!(
                judge_with(&[UPGRADE, KEY, ("Sec-WebSocket-Version", version)]),
                Judgement::Accepted(_)
            ));
        }
        for version in ["12", "0", "", "13.0"] {
            assert_eq!(
                judge_with(&[UPGRADE, KEY, ("Sec-WebSocket-Version", version)]),
                Judgement::UnknownVersion
            );
        }
        assert_eq!(judge_with(&[UPGRADE, KEY]), Judgement::UnknownVersion);
    }

    #[test]
    fn what_is_no_upgrade_is_told_from_a_bad_one() {
        assert_eq!(judge_with(&[VERSION, KEY]), Judgement::Plain);
        assert_eq!(
            judge_with(&[("Upgrade", "h2c"), VERSION, KEY]),
            Judgement::Plain
        );
        assert!(matches!(judge_with(&[UPGRADE, VERSION]), Judgement::Bad(_)));
        assert!(matches!(
            judge_with(&[UPGRADE, VERSION, ("Sec-WebSocket-Key", "")]),
            Judgement::Bad(_)
        ));
        for body in [("Content-Length", "5"), ("Transfer-Encoding", "chunked")] {
            assert!(matches!(
                judge_with(&[UPGRADE, VERSION, KEY, body]),
                Judgement::Bad(_)
            ));
        }
        assert!(matches!(
            judge_with(&[UPGRADE, VERSION, KEY, ("Content-Length", "0")]),
            Judgement::Accepted(_)
        ));
        let post = Request::builder()
            .method("POST")
            .header("Upgrade", "websocket")
            .body(())
            .unwrap();
        assert_eq!(judge(&post), Judgement::Plain);
    }
}
