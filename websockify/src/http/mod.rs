//! The HTTP/1.1 part of a connection: requests for files are answered, or refused, until one upgrades it to WebSocket.

mod activity;
mod files;
mod listing;
mod refusal;
mod shown;

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, EXPECT, HeaderValue, SERVER, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::config::WebHeader;
use crate::gate::{Closed, Doorkeeper};
use crate::listener::Peer;
use crate::metrics::{self, Reason};
use crate::stream::Stream;
use crate::target::Target;
use crate::websocket::Encoding;
use crate::websocket::handshake::{self, Acceptance, Judgement};

use activity::{Activity, Watched};
use files::Body;
pub(crate) use files::Files;
use refusal::Refusal;
use shown::shown;

/// Bytes that a request's head may have; beyond it the answer is 431.
const MAX_HEAD: usize = 64 * 1024;
/// Headers that a plain upgrade may have; a browser sends some fifteen.
const MAX_PLAIN_HEADERS: usize = 32;
/// The `Server` header.
const SERVER_NAME: &str = concat!("WebSockify/", env!("CARGO_PKG_VERSION"));

/// What a client gets that does not speak TLS where it has to.
pub(crate) const TLS_ONLY: &str = concat!(
    "HTTP/1.1 400 Bad Request\r\nServer: WebSockify/",
    env!("CARGO_PKG_VERSION"),
    "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 64\r\nConnection: close\r\n\r\n",
    "Bad Request: this port takes TLS only, use https:// or wss://\r\n\n"
);

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
    /// Whose it is.
    pub(crate) client: Peer,
    /// Path and query, without secrets.
    pub(crate) path: String,
    /// Where it goes.
    pub(crate) target: Arc<Target>,
    /// How payload travels.
    pub(crate) encoding: Encoding,
    /// The answer to the upgrade, which is still to be sent.
    pub(crate) response: String,
}

/// What requests get that are no upgrades.
#[derive(Debug, Default)]
pub(crate) struct Site {
    /// The files for browsers, if there are any.
    pub(crate) files: Option<Files>,
    /// What every answer has in addition.
    pub(crate) headers: Vec<WebHeader>,
}

/// Answers requests until one is an upgrade that passes the gate; of the first upgrade that may be `decided` already. The first must
/// be complete before the deadline, and the connection must not be idle for too long afterwards. After `last` there is only an end to
/// the answer that is under way.
pub(crate) async fn serve(
    stream: Stream,
    peer: Peer,
    deadline: Instant,
    site: &Site,
    last: impl Future<Output = ()>,
    doorkeeper: &Doorkeeper<'_>,
    decided: Option<Closed>,
) -> Ended {
    let accepted = Mutex::new(None);
    // Whether anything was asked.
    let asked = AtomicBool::new(decided.is_some());
    let decided = Mutex::new(decided);
    let activity = Activity::new(stream.descriptor(), deadline);
    let service = service_fn(|request: Request<Incoming>| {
        activity.note(doorkeeper.gate.patience());
        asked.store(true, Ordering::Relaxed);
        let accepted = &accepted;
        let decided = decided.lock().expect("no other thread has it").take();
        // Boxed because `poll_without_shutdown` wants to move it.
        Box::pin(async move {
            let client = doorkeeper.client(request.headers());
            // Whose request it is that names two is not known.
            let peer = *client.as_ref().unwrap_or(&peer);
            let answer = match decided.map_or(client, Err) {
                Ok(client) => answer(&request, client, doorkeeper).await,
                Err(closed) => Answer::Closed(closed),
            };
            let response = match answer {
                Answer::Session(session) => {
                    *accepted.lock().expect("no other thread has it") = Some(session);
                    // The answer to an upgrade is not hyper's to give: see below.
                    pending().await
                }
                // The log knows of their address, and they may be many.
                Answer::Closed(Closed::TooMany) => {
                    metrics::refused(Reason::TooMany);
                    return Ok(site.finish(refusal::closed(Closed::TooMany).map(Either::Left)));
                }
                Answer::Closed(closed) => {
                    metrics::refused(closed.counted());
                    tracing::info!(%peer, event = "refused", error = %closed, "{peer}: refused: {closed}");
                    refusal::closed(closed).map(Either::Left)
                }
                Answer::Refusal(reason, refusal) => {
                    metrics::refused(reason);
                    refusal.map(Either::Left)
                }
                Answer::Plain => {
                    let response = site.answer(&request).await;
                    if let Some(reason) = reason_of(response.status()) {
                        metrics::refused(reason);
                    }
                    response
                }
            };
            let response = site.finish(response);
            log_request(&request, &response, peer);
            Ok::<_, Infallible>(response)
        })
    });
    let io = TokioIo::new(Watched {
        stream,
        activity: activity.clone(),
    });
    let mut connection = http1::Builder::new()
        // Deadlines are the activity's business.
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD)
        .max_buf_size(2 * MAX_HEAD)
        .half_close(true)
        .title_case_headers(true)
        .serve_connection(io, service);
    let mut last = pin!(last);
    let mut is_last = false;
    let ended = poll_fn(|cx| {
        if !is_last && last.as_mut().poll(cx).is_ready() {
            is_last = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        let polled = connection.poll_without_shutdown(cx);
        // An upgrade ends hyper's part at its request, once earlier answers are on their way: so the answer has the header names
        // that clients of the original know, which some of them compare byte by byte.
        let upgraded = accepted.lock().expect("no other thread has it").is_some();
        if upgraded && activity.is_flushed() {
            Poll::Ready(Ok(()))
        } else {
            polled
        }
    });
    tokio::select! {
        biased;
        ended = ended => if let Err(error) = ended {
            if error.is_parse() {
                // hyper has answered it.
                metrics::refused(Reason::BadRequest);
            }
            tracing::debug!(%peer, "HTTP: {error}");
        },
        () = activity.expired() => if activity.is_flushed() {
            if !asked.load(Ordering::Relaxed) {
                metrics::refused(Reason::Timeout);
            }
            tracing::debug!(%peer, "HTTP: no request in time");
        } else {
            tracing::info!(%peer, "Client took nothing of an answer for too long");
        },
    }
    let parts = connection.into_parts();
    let session = accepted.lock().expect("no other thread has it").take();
    Ended {
        stream: parts.io.into_inner().stream,
        early: parts.read_buf,
        session: session.filter(|_| activity.is_flushed()),
    }
}

impl Site {
    /// Answers a request that is no upgrade.
    async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        match &self.files {
            Some(files) => {
                let headers = request.headers().clone();
                let method = request.method().clone();
                files.answer(method, request.uri(), headers).await
            }
            None => refusal::sessions_only().map(Either::Left),
        }
    }

    /// Adds what every answer has.
    fn finish(&self, mut response: Response<Body>) -> Response<Body> {
        let headers = response.headers_mut();
        headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
        // The administrator's come last, and win; of one name there may be several.
        for header in &self.headers {
            headers.remove(&header.name);
        }
        for WebHeader { name, value } in &self.headers {
            headers.append(name, value.clone());
        }
        response
    }
}

/// An upgrade like nearly all of them, that came as a whole. What is none, or not as plain, is left to [`serve`], which makes the same
/// of it at greater cost.
#[derive(Debug)]
pub(crate) struct PlainUpgrade {
    /// Bytes of its head.
    length: usize,
    request: Request<()>,
    acceptance: Acceptance,
}

impl PlainUpgrade {
    /// The one that a connection starts with.
    pub(crate) fn read(start: &[u8]) -> Option<Self> {
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
        match is_plain.then(|| handshake::judge(&request))? {
            Judgement::Accepted(acceptance) => Some(Self {
                length,
                request,
                acceptance,
            }),
            _ => None,
        }
    }

    /// Bytes of its head, and the session that it becomes.
    ///
    /// # Errors
    /// It does not pass the gate.
    pub(crate) async fn pass(
        self,
        doorkeeper: &Doorkeeper<'_>,
    ) -> Result<(usize, Session), Closed> {
        let client = doorkeeper.client(self.request.headers())?;
        let target = doorkeeper.pass(client, &self.request).await?;
        let session = session(&self.request, client, self.acceptance, target);
        Ok((self.length, session))
    }
}

/// What a request came to.
enum Answer {
    /// It becomes a session.
    Session(Session),
    /// It does not pass the gate.
    Closed(Closed),
    /// It gets this answer, for this reason, and the connection ends.
    Refusal(Reason, Refusal),
    /// It is no upgrade.
    Plain,
}

/// What to make of a client's request.
async fn answer<B>(request: &Request<B>, client: Peer, doorkeeper: &Doorkeeper<'_>) -> Answer {
    match handshake::judge(request) {
        Judgement::Accepted(acceptance) => match doorkeeper.pass(client, request).await {
            Ok(target) => Answer::Session(session(request, client, acceptance, target)),
            Err(closed) => Answer::Closed(closed),
        },
        Judgement::Plain => match doorkeeper.pass_to_files(client, request).await {
            Ok(()) => Answer::Plain,
            Err(closed) => Answer::Closed(closed),
        },
        Judgement::UnknownVersion => Answer::Refusal(Reason::Version, refusal::unknown_version()),
        Judgement::Bad(text) => Answer::Refusal(Reason::BadRequest, refusal::bad_upgrade(text)),
    }
}

/// Why a request that is no upgrade did not get what it wanted, if it did not.
fn reason_of(status: StatusCode) -> Option<Reason> {
    match status {
        StatusCode::METHOD_NOT_ALLOWED => Some(Reason::NotUpgrade),
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::INTERNAL_SERVER_ERROR => {
            Some(Reason::NotFound)
        }
        StatusCode::BAD_REQUEST => Some(Reason::BadRequest),
        _ => None,
    }
}

/// The session that an upgrade becomes.
fn session<B>(
    request: &Request<B>,
    client: Peer,
    acceptance: Acceptance,
    target: Arc<Target>,
) -> Session {
    let Acceptance {
        accept_key,
        subprotocol,
        encoding,
    } = acceptance;
    let subprotocol = subprotocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nServer: {SERVER_NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept_key}\r\n{}\r\n",
        subprotocol.unwrap_or_default()
    );
    Session {
        client,
        path: shown(request.uri()).into_owned(),
        target,
        encoding,
        response,
    }
}

/// A line for a request that is no session; sessions have their own.
fn log_request<B, R>(request: &Request<B>, response: &Response<R>, peer: Peer) {
    let (method, version) = (request.method(), request.version());
    let path = &*shown(request.uri());
    let status = response.status().as_u16();
    tracing::info!(
        %peer,
        event = "request",
        %method,
        path,
        status,
        "\"{method} {path} {version:?}\" {status} -"
    );
}
