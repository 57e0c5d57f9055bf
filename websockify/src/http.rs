//! The HTTP/1.1 part of a connection: requests are answered until one upgrades it to WebSocket.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, SERVER, UPGRADE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::listener::Peer;
use crate::stream::Stream;
use crate::websocket::Encoding;
use crate::websocket::handshake::{self, Acceptance, Judgement, VERSIONS_HEADER};

/// Bytes that a request's head may have; beyond it the answer is 431.
const MAX_HEAD: usize = 64 * 1024;
/// The `Server` header.
const SERVER_NAME: HeaderValue =
    HeaderValue::from_static(concat!("WebSockify/", env!("CARGO_PKG_VERSION")));

/// A connection that speaks HTTP no more.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The connection; all answers have been written, and our side is still open.
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
}

/// Answers requests until the connection ends, or until one is an upgrade that `admit` lets pass; a request's head must come
/// within `limit`.
pub(crate) async fn serve(
    stream: Stream,
    peer: Peer,
    limit: Duration,
    admit: impl Fn() -> bool,
) -> Ended {
    let accepted = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        let (response, session) = answer(&request, &admit);
        log_request(&request, &response, peer);
        if session.is_some() {
            *accepted.lock().expect("no other thread has it") = session;
        }
        ready(Ok::<_, Infallible>(response))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_header_size(MAX_HEAD)
        .max_buf_size(2 * MAX_HEAD)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = poll_fn(|cx| connection.poll_without_shutdown(cx)).await {
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

fn answer<B>(
    request: &Request<B>,
    admit: impl Fn() -> bool,
) -> (Response<Full<Bytes>>, Option<Session>) {
    let acceptance = match handshake::judge(request) {
        Judgement::Accepted(acceptance) if admit() => acceptance,
        Judgement::Accepted(_) => {
            return (
                refusal(StatusCode::SERVICE_UNAVAILABLE, "No more connections\n"),
                None,
            );
        }
        Judgement::Plain => {
            let text = "Method Not Allowed: this port speaks WebSocket only\n";
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, text);
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(""));
            return (response, None);
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
            return (response, None);
        }
        Judgement::MissingKey => {
            return (
                refusal(
                    StatusCode::BAD_REQUEST,
                    "Bad Request: no Sec-WebSocket-Key\n",
                ),
                None,
            );
        }
    };
    let Acceptance {
        accept_key,
        subprotocol,
        encoding,
    } = acceptance;
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(SERVER, SERVER_NAME)
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_ACCEPT, accept_key)
        .body(Full::default())
        .expect("base64 is a valid header value");
    if let Some(subprotocol) = subprotocol {
        response.headers_mut().insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(subprotocol),
        );
    }
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    (response, Some(Session { path, encoding }))
}

fn refusal(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(SERVER, SERVER_NAME);
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// A line for a request that is no session; sessions have their own.
fn log_request<B, R>(request: &Request<B>, response: &Response<R>, peer: Peer) {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (method, uri, version) = (request.method(), request.uri(), request.version());
        tracing::info!(%peer, "\"{method} {uri} {version:?}\" {} -", response.status().as_u16());
    }
}
