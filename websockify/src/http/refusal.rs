//! The answers that refuse a request: a status, and one line for whoever reads it.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Response, StatusCode};

use crate::gate::Closed;
use crate::websocket::handshake::VERSIONS_HEADER;

/// An answer that refuses a request.
pub(super) type Refusal = Response<Full<Bytes>>;

/// There is nothing of that name.
pub(super) fn not_found() -> Refusal {
    refusal(StatusCode::NOT_FOUND, "Not Found\n", &[])
}

/// The system does not let us read it.
pub(super) fn unreadable() -> Refusal {
    refusal(StatusCode::FORBIDDEN, "Forbidden\n", &[])
}

/// It failed for a reason that is for the log.
pub(super) fn failure() -> Refusal {
    let text = "Internal Server Error\n";
    refusal(StatusCode::INTERNAL_SERVER_ERROR, text, &[])
}

/// Somebody is not let in.
pub(super) fn closed(closed: Closed) -> Refusal {
    match closed {
        Closed::Contradiction => {
            let text = "Bad Request: Forwarded and X-Forwarded-For name different clients\n";
            closing(StatusCode::BAD_REQUEST, text, &[])
        }
        Closed::Origin => {
            let text = "Forbidden: pages of this origin may not connect\n";
            closing(StatusCode::FORBIDDEN, text, &[])
        }
        Closed::Refused(refused) => {
            let text = format!("{}\n", refused.message);
            closing(refused.status, text, &refused.headers)
        }
        Closed::NoToken(reason) => closing(
            StatusCode::BAD_REQUEST,
            format!("Bad Request: {reason}\n"),
            &[],
        ),
        Closed::UnknownToken(_) => {
            closing(StatusCode::FORBIDDEN, "Forbidden: token not found\n", &[])
        }
        Closed::Unavailable => {
            let text = "Service Unavailable: try again later\n";
            closing(StatusCode::SERVICE_UNAVAILABLE, text, &[])
        }
        Closed::TooMany => {
            let text = "Service Unavailable: too many connections of your address\n";
            closing(StatusCode::SERVICE_UNAVAILABLE, text, &[])
        }
        Closed::Full => closing(
            StatusCode::SERVICE_UNAVAILABLE,
            "No more connections\n",
            &[],
        ),
    }
}

/// It is no upgrade, and there are no files.
pub(super) fn sessions_only() -> Refusal {
    let text = "Method Not Allowed: this port speaks WebSocket only\n";
    let allow = (ALLOW, HeaderValue::from_static(""));
    closing(StatusCode::METHOD_NOT_ALLOWED, text, &[allow])
}

/// Files are read, and nothing else.
pub(super) fn reading_only() -> Refusal {
    let text = "Method Not Allowed: files are there for GET and HEAD\n";
    let allow = (ALLOW, HeaderValue::from_static("GET, HEAD"));
    closing(StatusCode::METHOD_NOT_ALLOWED, text, &[allow])
}

/// An upgrade to a version of the protocol that we do not speak.
pub(super) fn unknown_version() -> Refusal {
    let text = "Upgrade Required: WebSocket version 13, 8 or 7\n";
    let headers = [
        (SEC_WEBSOCKET_VERSION, VERSIONS_HEADER),
        (UPGRADE, HeaderValue::from_static("websocket")),
    ];
    closing(StatusCode::UPGRADE_REQUIRED, text, &headers)
}

/// An upgrade that is no good; the text says why.
pub(super) fn bad_upgrade(text: &'static str) -> Refusal {
    closing(StatusCode::BAD_REQUEST, text, &[])
}

/// A refusal after which nothing more of the client is read.
fn closing(
    status: StatusCode,
    text: impl Into<Bytes>,
    headers: &[(HeaderName, HeaderValue)],
) -> Refusal {
    let mut response = refusal(status, text, headers);
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

fn refusal(
    status: StatusCode,
    text: impl Into<Bytes>,
    headers: &[(HeaderName, HeaderValue)],
) -> Refusal {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    for (name, value) in headers {
        if name == CONTENT_TYPE {
            response.headers_mut().insert(name, value.clone());
        } else {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}
