//! What `--metrics` serves: `/metrics`, what was counted, and `/healthz`, whether clients can be served.
//!
//! It must not cost the service anything that somebody wants to hurt it by this port: connections are few, each has one request and
//! little time, and when there are too many the oldest makes room, so that nobody keeps others out by waiting.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use crate::addr::ListenAddr;
use crate::listener::{Entrance, Listener, Socket};
use crate::metrics::{self, Facts};
use crate::relay;
use crate::stream::Stream;
use crate::sys;
use crate::target::Target;
use crate::wrap::Status;

/// How many connections there may be.
const MAX_CONNECTIONS: usize = 16;
/// How long one may take, from its beginning to its end.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes that a request's head may have.
const MAX_HEAD: usize = 8 * 1024;
/// The pause when a connection cannot be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a target may take to be connected to.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// How long what came of that holds.
const PROBE_HOLDS: Duration = Duration::from_secs(1);

/// The page with the figures.
const FIGURES: &str = "/metrics";
/// The page that tells whether clients can be served.
const HEALTH: &str = "/healthz";

/// A port that is bound, on which nothing is answered yet.
#[derive(Debug)]
pub(crate) struct Monitor {
    entrance: Entrance,
}

/// What is watched.
#[derive(Debug)]
pub(crate) struct Watched {
    /// What is known from the start.
    pub(crate) facts: Facts,
    /// The wrapped program, if there is one.
    pub(crate) program: Option<Status>,
    /// The target of all clients, if they have the same.
    pub(crate) target: Option<Arc<Target>>,
}

/// What requests are answered from.
#[derive(Debug)]
struct Pages {
    facts: Facts,
    program: Option<Status>,
    target: Option<Arc<Target>>,
    /// Held by who writes the page, so that no crowd of clients has many threads do so.
    writing: Arc<Mutex<()>>,
    /// Held by who tries to reach the target.
    probed: Arc<Mutex<Probed>>,
}

/// What came of the last attempt to reach the target, and when that was known.
type Probed = Option<(Instant, Result<(), String>)>;

impl Monitor {
    /// How many descriptors it may take when it has started: its connections', one for a target, and one for what it reads.
    pub(crate) const DESCRIPTORS: usize = MAX_CONNECTIONS + 2;

    /// Binds the port.
    ///
    /// # Errors
    /// It cannot be listened on, and why.
    pub(crate) fn bind(address: &ListenAddr) -> Result<Self> {
        let entrance = Entrance::open(address, Vec::new()).context("--metrics")?;
        Ok(Self { entrance })
    }

    /// What the settings say of it.
    pub(crate) fn describe(&self) -> String {
        format!("Metrics on http://{}{FIGURES}", self.entrance.address())
    }

    /// Begins to answer, in the runtime that this is called in, to the end of that.
    ///
    /// # Errors
    /// The port cannot be watched.
    pub(crate) fn start(self, watched: Watched) -> Result<()> {
        let listener = self.entrance.into_listener();
        let listener = listener.context("cannot watch the port of --metrics")?;
        let Watched {
            facts,
            program,
            target,
        } = watched;
        let pages = Arc::new(Pages {
            facts,
            program,
            target,
            writing: Arc::default(),
            probed: Arc::default(),
        });
        drop(tokio::spawn(serve(listener, pages)));
        Ok(())
    }
}

/// Takes connections, of which the oldest makes room for one that is too many.
async fn serve(mut listener: Listener, pages: Arc<Pages>) {
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                let error = sys::describe(&error);
                tracing::debug!("cannot accept a connection to the port of --metrics: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() == MAX_CONNECTIONS {
            open.pop_front().into_iter().for_each(|old| old.abort());
        }
        let pages = Arc::clone(&pages);
        open.push_back(tokio::spawn(async move {
            _ = timeout(LIMIT, answer(socket, &pages)).await;
        }));
    }
}

/// Answers one request.
async fn answer(socket: Socket, pages: &Pages) {
    let Ok(socket) = socket.attach() else {
        return;
    };
    let respond = |request| async move { Ok::<_, Infallible>(pages.respond(&request).await) };
    let connection = http1::Builder::new()
        .keep_alive(false)
        // Deadlines are ours.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(Stream::Plain(socket)), service_fn(respond))
        .without_shutdown();
    match connection.await {
        // Of what was not read nothing is to be known, but closing over it would destroy the answer.
        Ok(parts) => relay::farewell(&mut parts.io.into_inner(), b"").await,
        Err(error) => tracing::debug!("--metrics: HTTP: {error}"),
    }
}

impl Pages {
    /// The answer to a request.
    async fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if path != FIGURES && path != HEALTH {
            let text = format!("Not Found: there are {FIGURES} and {HEALTH}\n");
            return response(StatusCode::NOT_FOUND, text);
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let text = "Method Not Allowed: there is only something to GET\n";
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, text);
            let methods = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, methods);
            return response;
        }
        if path == FIGURES {
            return self.figures().await;
        }
        match self.health().await {
            Ok(()) => response(StatusCode::OK, "ok\n"),
            Err(reason) => response(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    }

    /// What was counted.
    async fn figures(&self) -> Response<Full<Bytes>> {
        let writing = Arc::clone(&self.writing).lock_owned().await;
        let facts = self.facts.clone();
        let program = self
            .program
            .as_ref()
            .map(|status| (status.state(), status.starts()));
        // Elsewhere, because with many descriptors it takes a while to count them.
        let write = move || {
            // To the end, even if the client has to make room meanwhile.
            let _writing = writing;
            metrics::page(&facts, program)
        };
        match spawn_blocking(write).await {
            Ok(page) => {
                let mut response = response(StatusCode::OK, page);
                let format = HeaderValue::from_static(metrics::CONTENT_TYPE);
                response.headers_mut().insert(CONTENT_TYPE, format);
                response
            }
            Err(error) => {
                tracing::error!("the page of --metrics was not written: {error}");
                response(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n")
            }
        }
    }

    /// Whether clients can be served.
    ///
    /// # Errors
    /// They cannot, and why.
    async fn health(&self) -> Result<(), String> {
        if metrics::is_closed() {
            return Err("no more clients are taken".to_owned());
        }
        match (&self.program, &self.target) {
            (Some(program), _) if program.is_listening() => Ok(()),
            (Some(program), _) => Err(format!("the wrapped program {}", program.in_words())),
            (None, Some(target)) => {
                // Who asks may leave before the target answers, and the next is not to ask that again.
                let probing = probe(Arc::clone(target), Arc::clone(&self.probed));
                let probed = tokio::spawn(probing).await;
                probed.unwrap_or_else(|_| Err("the target: it was not tried".to_owned()))
            }
            // Each client has its own.
            (None, None) => Ok(()),
        }
    }
}

/// Whether the target can be connected to, which is tried by one at a time, and not again so soon.
async fn probe(target: Arc<Target>, probed: Arc<Mutex<Probed>>) -> Result<(), String> {
    let mut probed = probed.lock().await;
    match &*probed {
        Some((when, reached)) if when.elapsed() < PROBE_HOLDS => reached.clone(),
        _ => {
            let reached = match timeout(PROBE_LIMIT, target.reach()).await {
                Ok(reached) => reached.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {} s", PROBE_LIMIT.as_secs())),
            };
            let reached = reached.map_err(|reason| format!("the target: {reason}"));
            probed.insert((Instant::now(), reached)).1.clone()
        }
    }
}

/// An answer in words.
fn response(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
