//! The story of a connection: whose it is → sniff → TLS → HTTP → authenticate → token → upgrade → connect the target → relay →
//! close.
//!
//! Each step is a module that knows nothing of its neighbours. The target is a value that is passed along: nothing about a
//! connection is stored where another connection can see it.

use std::future::pending;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config::{ProxyConfig, SessionConfig};
use crate::crowd::{Standing, Visit};
use crate::gate::{Doorkeeper, Gate};
use crate::http::{self, PlainUpgrade, Session, Site};
use crate::listener::{Peer, PeerAddress, reached_address};
use crate::log;
use crate::metrics::{self, Connect, Reason};
use crate::phase::Phase;
use crate::proxy::{self, Ends, Failure};
use crate::record::{Recorder, Recording};
use crate::relay::{self, Cause, Summary};
use crate::sniff::{self, POLICY, Protocol, Sniffed};
use crate::stream::{Plain, Stream};
use crate::sys;
use crate::target::{ConnectError, Target};
use crate::tls::{Acceptor, HANDSHAKE_FAILURE, Refused};
use crate::websocket::Close;
use crate::websocket::frame::{CLOSE_FRAME, append_close};

/// How long connections that are no sessions may still ask something when the server takes no more.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// The same when it is stopped: what they ask may be on its way, and is not to be met by a reset.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What every connection is handled with.
#[derive(Debug)]
pub(crate) struct Handling {
    /// Who may become a session, and where it goes.
    pub(crate) gate: Arc<Gate>,
    /// What each session does.
    pub(crate) session: SessionConfig,
    /// How long a client may take to say what it wants.
    pub(crate) patience: Duration,
    /// What is heard of clients from proxies, and told to targets.
    pub(crate) proxies: ProxyConfig,
    /// What the others get.
    pub(crate) site: Site,
    /// What records sessions, if that is asked for.
    pub(crate) recorder: Option<Recorder>,
    /// TLS, if there is a certificate.
    pub(crate) acceptor: Option<Arc<Acceptor>>,
    /// How far the server is.
    pub(crate) phase: watch::Receiver<Phase>,
}

/// Handles the connection of a peer, which may be a client or a proxy, to its end. Returns whose session it became, if it did.
pub(crate) async fn handle(
    socket: Plain,
    peer: Peer,
    handling: &Handling,
    visit: &Visit,
) -> Option<Peer> {
    // Boxed, as are the next steps, so that a session does not carry the room for them along.
    let upgraded = Box::pin(become_session(socket, peer, handling, visit)).await;
    let session = upgraded.map(|upgraded| {
        let client = upgraded.session.client;
        (client, Box::pin(serve_session(upgraded, handling)))
    });
    let (client, session) = session?;
    session.await;
    Some(client)
}

/// Waits until the server is stopped.
async fn stopping(mut phase: watch::Receiver<Phase>) {
    _ = phase.wait_for(|&phase| phase == Phase::Stopping).await;
}

/// Waits until it is, and what was on its way then has had the time to come and to be answered.
async fn stopped(phase: watch::Receiver<Phase>) {
    stopping(phase).await;
    sleep(LAST_WORDS).await;
}

/// Waits until what is no session yet need not become one any more, and has had the time to be told so; `end` waits for its end.
async fn last_answers(mut phase: watch::Receiver<Phase>, end: impl Future<Output = ()>) {
    _ = phase.wait_for(|&phase| phase > Phase::Serving).await;
    _ = timeout(LAST_ANSWERS, end).await;
}

/// A connection that has become a session.
struct Upgraded {
    stream: Stream,
    /// What the client sent right behind its request.
    early: Bytes,
    session: Session,
    /// What its target is told first of the client, if anything.
    introduction: Option<Box<[u8]>>,
}

/// Takes a connection as far as its upgrade; `None` when it came to another end.
async fn become_session(
    mut socket: Plain,
    mut peer: Peer,
    handling: &Handling,
    visit: &Visit,
) -> Option<Upgraded> {
    let Handling {
        gate,
        patience,
        proxies,
        site,
        acceptor,
        ..
    } = handling;
    let deadline = Instant::now() + *patience;
    let phase = || handling.phase.clone();
    let last = || last_answers(phase(), stopped(phase()));
    let mut reached = None;
    let mut is_nobodys = false;
    if proxies.awaits_header(peer.address) {
        let introduced = Box::pin(introduced(socket, peer, deadline));
        let ends = tokio::select! {
            biased;
            introduced = introduced => {
                let (plain, ends) = introduced?;
                socket = plain;
                ends
            }
            () = last() => return None,
        };
        match ends {
            Some(ends) => {
                peer.address = PeerAddress::from(ends.source);
                reached = Some(ends.destination);
            }
            None => is_nobodys = true,
        }
    }
    // From here on the peer is the client, or a proxy whose word counts on whose each request is. Where the proxy does not know who is at
    // the other end, what comes from there is nobody's word.
    let is_proxy = proxies.trusts(peer.address);
    // A proxy may have any number of clients.
    let standing = if is_proxy {
        Standing::Welcome
    } else {
        visit.standing(peer.address)
    };
    if standing == Standing::FarTooMany {
        metrics::refused(Reason::TooMany);
        return None;
    }
    let mut doorkeeper = Doorkeeper {
        gate,
        peer,
        proxies: (is_proxy && !is_nobodys).then_some(proxies),
        common_name: None,
        visit,
        is_one_too_many: standing == Standing::TooMany,
    };
    let introduce = |client: Peer, socket| {
        let reached = || reached.or_else(|| reached_address(socket));
        proxies.introduction(client.address, reached)
    };
    let takes_plain = acceptor.as_ref().is_none_or(|tls| tls.is_optional());
    let look = |protocol, start: &[u8]| {
        (protocol == Protocol::Http && takes_plain)
            .then(|| PlainUpgrade::read(start))
            .flatten()
    };
    let sniffed = tokio::select! {
        biased;
        sniffed = sniff::sniff(&socket, deadline, look) => sniffed,
        () = last() => return None,
    };
    let mut decided = None;
    let stream = match sniffed {
        Sniffed::Protocol(Protocol::Http, Some(upgrade)) => {
            let passed = tokio::select! {
                biased;
                passed = upgrade.pass(&doorkeeper) => passed,
                () = last() => return None,
            };
            match passed {
                Ok((head, session)) => {
                    let introduction = introduce(session.client, socket.as_fd().as_raw_fd());
                    return take_over(socket, head, session, introduction);
                }
                Err(closed) => decided = Some(closed),
            }
            Stream::Plain(socket)
        }
        Sniffed::Protocol(Protocol::Http, None) if takes_plain => Stream::Plain(socket),
        Sniffed::Protocol(protocol, _) => match (protocol, acceptor) {
            (Protocol::Tls, Some(acceptor)) => {
                let encrypted = Box::pin(encrypt(socket, peer, acceptor, deadline));
                tokio::select! {
                    biased;
                    encrypted = encrypted => encrypted?,
                    () = last() => return None,
                }
            }
            _ => {
                let mut stream = Stream::Plain(socket);
                let answer = Box::pin(answer_other(&mut stream, peer, protocol));
                tokio::select! {
                    () = answer => {}
                    () = last() => {}
                }
                return None;
            }
        },
        Sniffed::Closed => return None,
        Sniffed::TimedOut => {
            metrics::refused(Reason::Timeout);
            tracing::debug!(%peer, "nothing came within {} s", patience.as_secs_f64());
            return None;
        }
    };
    if gate.looks_at_certificates() {
        doorkeeper.common_name = stream.common_name();
    }
    let serve = Box::pin(async {
        // Who has been answered, and asks nothing, is not waited for.
        let last = last_answers(phase(), stopping(phase()));
        let mut ended = http::serve(stream, peer, deadline, site, last, &doorkeeper, decided).await;
        if ended.session.is_none() {
            relay::farewell(&mut ended.stream, b"").await;
        }
        ended
    });
    let ended = tokio::select! {
        biased;
        ended = serve => ended,
        () = stopped(phase()) => return None,
    };
    ended.session.map(|session| Upgraded {
        introduction: introduce(session.client, ended.stream.descriptor()),
        stream: ended.stream,
        early: ended.early,
        session,
    })
}

/// Takes what a proxy that is believed says at the beginning of a connection; `None` when it says nothing that can be used, which is its end.
async fn introduced(socket: Plain, peer: Peer, deadline: Instant) -> Option<(Plain, Option<Ends>)> {
    let failure = match proxy::receive(&socket, deadline).await {
        Ok(ends) => return Some((socket, ends)),
        Err(failure) => failure,
    };
    match failure {
        Failure::Silent => tracing::debug!(%peer, "the proxy is refused: {failure}"),
        _ => {
            metrics::refused(match failure {
                Failure::Late => Reason::Timeout,
                _ => Reason::Proxy,
            });
            tracing::info!(%peer, event = "refused", error = %failure, "the proxy is refused: {failure}");
        }
    }
    relay::farewell(&mut Stream::Plain(socket), b"").await;
    None
}

/// Takes the head of the upgrade off the connection of a session; all of it is there, as it was seen.
fn take_over(
    socket: Plain,
    head: usize,
    session: Session,
    introduction: Option<Box<[u8]>>,
) -> Option<Upgraded> {
    // Something may be behind it.
    let mut bytes = [0; 2 * sniff::FIRST_BYTES];
    let received = sys::receive(socket.as_fd(), &mut bytes);
    let early = received.ok().and_then(|length| bytes[..length].get(head..));
    if early.is_none() {
        let peer = session.client;
        tracing::info!(%peer, "Client connection lost before its upgrade");
    }
    early.map(Bytes::copy_from_slice).map(|early| Upgraded {
        stream: Stream::Plain(socket),
        early,
        session,
        introduction,
    })
}

/// Makes TLS of a client's connection, if it does its part until the deadline.
async fn encrypt(
    socket: Plain,
    peer: Peer,
    acceptor: &Arc<Acceptor>,
    deadline: Instant,
) -> Option<Stream> {
    match timeout_at(deadline, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => Some(Stream::from(stream)),
        Ok(Err(Refused { socket, failure })) => {
            metrics::refused(Reason::Tls);
            tracing::info!(%peer, event = "refused", error = %failure, "TLS with the client failed: {failure}");
            relay::farewell(&mut Stream::Plain(socket), b"").await;
            None
        }
        Err(_) => {
            metrics::refused(Reason::Timeout);
            let failure = "no handshake in time";
            tracing::info!(%peer, event = "refused", error = failure, "TLS with the client failed: {failure}");
            None
        }
    }
}

/// Accepts the upgrade, connects the client to its target and carries its bytes. One line of the log tells how that began, and one how
/// it ended.
async fn serve_session(upgraded: Upgraded, handling: &Handling) {
    let Upgraded {
        stream: mut client,
        early,
        session,
        introduction,
    } = upgraded;
    let began = Instant::now();
    let counted = metrics::session();
    let peer = session.client;
    let encoding = session.encoding;
    let target = Arc::clone(&session.target);
    let recording = handling.recorder.as_ref();
    let recording = recording.map(|recorder| recorder.begin(peer));
    log_start(peer, &session, client.is_tls(), recording.as_ref());
    let accepted = client.write_all(session.response.as_bytes()).await;
    drop(session);
    if let Err(error) = accepted {
        let failure = Some(sys::describe(&error));
        let summary = Summary::unconnected(Cause::ClientLost, failure, None);
        return log_end(peer, &target, began, &summary, counted);
    }
    let connected = connect(&client, peer, &early, &target, introduction, handling);
    let connected = Box::pin(connected).await;
    let summary = match connected {
        Ok(mut downstream) => {
            relay::run(
                &mut client,
                &mut downstream,
                early,
                encoding,
                handling.session,
                recording.as_ref(),
                handling.phase.clone(),
            )
            .await
        }
        Err((summary, last_words)) => {
            // Before it is heard out, which takes its time.
            log_end(peer, &target, began, &summary, counted);
            return match last_words {
                Some(close) => {
                    let mut frame = Vec::new();
                    append_close(close, &mut frame);
                    Box::pin(relay::farewell(&mut client, &frame)).await;
                }
                None => Box::pin(relay::answer_close(&mut client, &early, encoding)).await,
            };
        }
    };
    log_end(peer, &target, began, &summary, counted);
}

/// The lines of a session's beginning.
fn log_start(peer: Peer, session: &Session, tls: bool, recording: Option<&Recording>) {
    let Session { path, target, .. } = session;
    let announcement = target.announcement();
    let recording = recording.map(|recording| recording.path().display().to_string());
    let kind = if tls {
        "SSL/TLS (wss://)"
    } else {
        "Plain non-SSL (ws://)"
    };
    log::together(|| {
        tracing::info!(target: log::TEXT, %peer, "{peer}: {kind} WebSocket connection");
        tracing::info!(target: log::TEXT, %peer, "{peer}: Path: '{path}'");
        if let Some(file) = &recording {
            tracing::info!(target: log::TEXT, %peer, "opening record file: {file}");
        }
        tracing::info!(%peer, event = "session_start", path, %target, tls, recording, "{announcement}");
    });
}

/// The line of a session's end, which is counted.
fn log_end(
    peer: Peer,
    target: &Target,
    began: Instant,
    summary: &Summary,
    counted: metrics::Session,
) {
    let end = summary.cause.counted();
    counted.ended(end);
    let duration = began.elapsed().as_micros() as f64 / 1e6;
    tracing::info!(
        %peer,
        event = "session_end",
        %target,
        bytes_from_client = summary.up,
        bytes_from_target = summary.down,
        duration,
        closed_by = end.closed_by(),
        close_code = summary.code,
        error = summary.error(),
        "{summary}, after {duration:.3} s"
    );
}

/// Connects the target of a client, unless that leaves or the bridge is stopped.
///
/// # Errors
/// What became of the session, and what its client is told; without that its close is answered.
async fn connect(
    client: &Stream,
    peer: Peer,
    early: &[u8],
    target: &Target,
    introduction: Option<Box<[u8]>>,
    handling: &Handling,
) -> Result<Stream, (Summary, Option<Close>)> {
    let mut stopping = handling.phase.clone();
    let began = Instant::now();
    let ended = |cause, failure, close| (Summary::unconnected(cause, failure, close), close);
    let (outcome, connected) = tokio::select! {
        biased;
        () = has_left(client, early, target.may_be_starting()) => {
            (Connect::Abandoned, Err(ended(Cause::ClientLeft, None, None)))
        }
        _ = stopping.wait_for(|&phase| phase == Phase::Stopping) => {
            (Connect::Abandoned, Err(ended(Cause::Stopped, None, Some(Close::GOING_AWAY))))
        }
        connected = target.connect(introduction.as_deref()) => match connected {
            Ok(stream) => (Connect::Connected, Ok(stream)),
            Err(error) => {
                let failure = error.to_string();
                tracing::warn!(%peer, %target, error = failure, "cannot connect to {target}: {failure}");
                let close = match error {
                    ConnectError::NotListening(_) | ConnectError::Gone => Close::NOT_READY,
                    _ => Close::UNREACHABLE,
                };
                (error.counted(), Err(ended(Cause::TargetUnreachable, Some(failure), Some(close))))
            }
        },
    };
    metrics::connected(outcome, began.elapsed());
    connected
}

/// Waits until a client is gone that has sent nothing for its target: it says that it closes, or its connection is broken. With
/// `for_good` the end of its side counts as well: it may still read, but hardly waits for a program to start.
async fn has_left(client: &Stream, early: &[u8], for_good: bool) {
    let left = match early.first() {
        Some(&first) => first == CLOSE_FRAME,
        // Data is left where it is, and with it the knowledge that there is some.
        None => match client.first_byte().await {
            Ok(None) => for_good,
            Ok(Some(first)) => first == CLOSE_FRAME,
            Err(_) => true,
        },
    };
    if !left {
        // What it has sent is its target's, even if it goes now.
        pending::<()>().await;
    }
}

/// Answers a client with which there is nothing to talk about.
async fn answer_other(stream: &mut Stream, peer: Peer, protocol: Protocol) {
    match protocol {
        Protocol::FlashPolicy => {
            tracing::info!(%peer, "Sending flash policy response");
            relay::farewell(stream, POLICY).await;
        }
        Protocol::Tls => {
            metrics::refused(Reason::TlsUnavailable);
            let error = "there is no certificate";
            tracing::info!(%peer, event = "refused", error, "SSL/TLS connection refused: {error}");
            relay::farewell(stream, HANDSHAKE_FAILURE).await;
        }
        Protocol::Ssl2 => {
            metrics::refused(Reason::Tls);
            tracing::info!(%peer, event = "refused", error = "SSLv2", "SSLv2 connection refused");
            relay::farewell(stream, b"").await;
        }
        Protocol::Http => {
            metrics::refused(Reason::TlsRequired);
            let error = "it has to be https:// or wss://";
            tracing::info!(%peer, event = "refused", error, "non-SSL connection refused: {error}");
            relay::farewell(stream, http::TLS_ONLY.as_bytes()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::{Door, Pings, RouteConfig, TargetConfig, TargetTls, Trust, WayChoice};
    use crate::crowd::{Bounds, Crowd};

    /// Most of what an idle session takes is its task, so this is what keeps that small.
    #[tokio::test]
    async fn the_task_of_a_session_is_small() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (_server, phase) = watch::channel(Phase::Serving);
        let session = SessionConfig {
            pings: Pings::WhenSilent,
            peer_timeout: Duration::from_secs(120),
            traffic: false,
            way: WayChoice::Auto,
        };
        let door = Door {
            origins: Default::default(),
            auth: None,
            patience: Duration::from_secs(1),
            look_up_limit: Duration::from_secs(1),
        };
        let tls = TargetTls {
            always: false,
            trust: Trust::System,
        };
        let route = RouteConfig::Fixed(TargetConfig::Unix("/target".into()));
        let handling = Handling {
            patience: door.patience,
            gate: Arc::new(Gate::open(door, route, tls, None, || Ok(())).await.unwrap()),
            session,
            proxies: ProxyConfig::default(),
            site: Site::default(),
            recorder: None,
            acceptor: None,
            phase: phase.clone(),
        };
        let mut legs = (
            Stream::Plain(Plain::Tcp(client.unwrap())),
            Stream::Plain(Plain::Tcp(accepted.unwrap().0)),
        );
        let (early, encoding) = (Bytes::new(), crate::websocket::Encoding::Binary);
        let relay = relay::run(
            &mut legs.0,
            &mut legs.1,
            early,
            encoding,
            session,
            None,
            phase,
        );
        let relay_size = size_of_val(&relay);
        drop(relay);
        let Stream::Plain(socket) = legs.0 else {
            panic!()
        };
        let (_, visit) = Arc::new(Crowd::new(Bounds::default())).begin();
        let task_size = size_of_val(&handle(socket, Peer::UNIX, &handling, &visit));
        assert!(relay_size <= 1536, "{relay_size}");
        assert!(task_size <= 512, "{task_size}");
    }
}
