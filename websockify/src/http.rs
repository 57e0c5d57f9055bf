//! The HTTP/1.1 part of a connection: its request upgrades it to WebSocket, or is refused.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Mutex;
use std::task::Poll;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue,
    SEC_WEBSOCKET_VERSION, SERVER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use crate::listener::Peer;
use crate::stream::Stream;
use crate::websocket::Encoding;
use crate::websocket::handshake::{self, Acceptance, Judgement, VERSIONS_HEADER};

/// Bytes that a request's head may have; beyond it the answer is 431.
const MAX_HEAD: usize = 64 * 1024;
/// Headers that a plain upgrade may have; a browser sends some fifteen.
const MAX_PLAIN_HEADERS: usize = 32;
/// The `Server` header.
const SERVER_NAME: &str = concat!("WebSockify/", env!("CARGO_PKG_VERSION"));

/// A connection that speaks HTTP no more.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The connection; an answer that was due has been written, and our side is still open.
    pub(crate) stream: Stream,
    /// What the client sent right behind its last request.
    pub(crate) early: Bytes,
    /// The request that has made a WebSocket of it, if one has.
    pub(crate) session: Option<Session>,
}

/// What the request that became a session said.
#[derive(Debug)]
pub(crate) struct Session {
    /// Path and query.
    pub(crate) path: String,
    /// How payload travels.
    pub(crate) encoding: Encoding,
    /// The answer to the upgrade, which is still to be sent.
    pub(crate) response: String,
}

/// Why an upgrade that is right is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The page is of an origin that is not let in.
    Origin,
    /// There are enough sessions.
    Full,
}

/// Answers a request, unless it is an upgrade that `judge` lets pass; its head must come before the deadline.
pub(crate) async fn serve(
    stream: Stream,
    peer: Peer,
    deadline: Instant,
    judge: impl Fn(&HeaderMap) -> Result<(), Closed>,
) -> Ended {
    let accepted = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        let mut response = match answer(&request, &judge) {
            Answer::Session(session) => {
                *accepted.lock().expect("no other thread has it") = Some(session);
                None
            }
            Answer::Refusal(response) => {
                log_request(&request, &response, peer);
                Some(response)
            }
        };
        // The answer to an upgrade is not hyper's to give: see below.
        poll_fn(move |_| match response.take() {
            Some(response) => Poll::Ready(Ok::<_, Infallible>(response)),
            None => Poll::Pending,
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(deadline.saturating_duration_since(Instant::now()))
        .max_header_size(MAX_HEAD)
        .max_buf_size(2 * MAX_HEAD)
        .half_close(true)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    // An upgrade ends hyper's part at its request: so the answer has the header names that clients of the original know,
    // which some of them compare byte by byte. Every other answer closes the connection, so none can be under way then.
    let ended = poll_fn(|cx| {
        let polled = connection.poll_without_shutdown(cx);
        let upgraded = accepted.lock().expect("no other thread has it").is_some();
        if upgraded {
            Poll::Ready(Ok(()))
        } else {
            polled
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%peer, "HTTP: {error}");
    }
    let parts = connection.into_parts();
    let session = accepted.lock().expect("no other thread has it").take();
    Ended {
        stream: parts.io.into_inner(),
        early: parts.read_buf,
        session,
    }
}

/// The length of the head of a request, if all of it is in `start`, and the session that it begins, if it is an upgrade like nearly
/// all of them. What is none, or not as plain, is left to [`serve`], which makes the same of it at greater cost.
pub(crate) fn plain_upgrade(
    start: &[u8],
    judge: impl Fn(&HeaderMap) -> Result<(), Closed>,
) -> Option<(usize, Session)> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_PLAIN_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = parsed.parse(start) else {
        return None;
    };
    let mut request = Request::builder().method(parsed.method?).uri(parsed.path?);
    for header in parsed.headers {
        request = request.header(header.name, header.value);
    }
    let request = request.body(()).ok()?;
    let is_plain = parsed.version == Some(1)
        && ![CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT]
            .iter()
            .any(|name| request.headers().contains_key(name));
    // Judged once only: who is let in may be the last one.
    match is_plain.then(|| answer(&request, judge))? {
        Answer::Session(session) => Some((length, session)),
        Answer::Refusal(_) => None,
    }
}

/// What a request came to.
enum Answer {
    /// It becomes a session.
    Session(Session),
    /// It gets this answer, and the connection ends.
    Refusal(Response<Full<Bytes>>),
}

/// What to make of a request.
fn answer<B>(request: &Request<B>, judge: impl Fn(&HeaderMap) -> Result<(), Closed>) -> Answer {
    let Acceptance {
        accept_key,
        subprotocol,
        encoding,
    } = match handshake::judge(request) {
        Judgement::Accepted(acceptance) => match judge(request.headers()) {
            Ok(()) => acceptance,
            Err(Closed::Origin) => {
                let text = "Forbidden: pages of this origin may not connect\n";
                return Answer::Refusal(refusal(StatusCode::FORBIDDEN, text));
            }
            Err(Closed::Full) => {
                let text = "No more connections\n";
                return Answer::Refusal(refusal(StatusCode::SERVICE_UNAVAILABLE, text));
            }
        },
        Judgement::Plain => {
            let text = "Method Not Allowed: this port speaks WebSocket only\n";
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, text);
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(""));
            return Answer::Refusal(response);
        }
        Judgement::UnknownVersion => {
            let text = "Upgrade Required: WebSocket version 13, 8 or 7\n";
            let mut response = refusal(StatusCode::UPGRADE_REQUIRED, text);
            response
                .headers_mut()
                .insert(SEC_WEBSOCKET_VERSION, VERSIONS_HEADER);
            response
                .headers_mut()
                .insert(UPGRADE, HeaderValue::from_static("websocket"));
            return Answer::Refusal(response);
        }
        Judgement::Bad(text) => return Answer::Refusal(refusal(StatusCode::BAD_REQUEST, text)),
    };
    let subprotocol = subprotocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nServer: {SERVER_NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept_key}\r\n{}\r\n",
        subprotocol.unwrap_or_default()
    );
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    Answer::Session(Session {
        path,
        encoding,
        response,
    })
}

fn refusal(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A line for a request that is no session; sessions have their own.
fn log_request<B, R>(request: &Request<B>, response: &Response<R>, peer: Peer) {
    let (method, uri, version) = (request.method(), request.uri(), request.version());
    tracing::info!(%peer, "\"{method} {uri} {version:?}\" {} -", response.status().as_u16());
}
