//! The story of a connection: sniff → HTTP → upgrade → connect the target → relay → close.
//!
//! Each step is a module that knows nothing of its neighbours. The target is a value that is passed along: nothing about a
//! connection is stored where another connection can see it.

use std::time::Duration;

use tokio::sync::watch;

use crate::config::SessionConfig;
use crate::http::{self, Session};
use crate::listener::Peer;
use crate::relay;
use crate::sniff::{self, POLICY, Protocol, Sniffed};
use crate::stream::Stream;
use crate::target::{ConnectError, Target};
use crate::websocket::Close;
use crate::websocket::frame::append_close;

/// How long a client may take to say what it wants.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// What a TLS client is told when there is no certificate: a fatal `handshake_failure` alert (RFC 8446, section 6).
const TLS_ALERT: &[u8] = &[0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x28];

/// What every connection is handled with.
#[derive(Debug)]
pub(crate) struct Handling {
    /// Where sessions go.
    pub(crate) target: Target,
    /// What each session does.
    pub(crate) session: SessionConfig,
    /// Turns true when all sessions are to end.
    pub(crate) stop: watch::Receiver<bool>,
}

/// Handles a connection to its end. Returns whether it became a session; `admit` is asked whether it may.
pub(crate) async fn handle(
    mut stream: Stream,
    peer: Peer,
    handling: &Handling,
    admit: impl Fn() -> bool,
) -> bool {
    let mut stop = handling.stop.clone();
    let until_session = async {
        match sniff::sniff(&stream, HANDSHAKE_LIMIT).await {
            Sniffed::Protocol(Protocol::Http) => {}
            Sniffed::Protocol(protocol) => {
                answer_other(&mut stream, peer, protocol).await;
                return None;
            }
            Sniffed::Closed => return None,
            Sniffed::TimedOut => {
                tracing::debug!(%peer, "nothing came within {} s", HANDSHAKE_LIMIT.as_secs());
                return None;
            }
        }
        // Boxed, so that a session does not carry the room for it along.
        let mut ended = Box::pin(http::serve(stream, peer, HANDSHAKE_LIMIT, admit)).await;
        match ended.session {
            Some(session) => Some((ended.stream, ended.early, session)),
            None => {
                relay::farewell(&mut ended.stream, b"").await;
                None
            }
        }
    };
    let upgraded = tokio::select! {
        biased;
        _ = stop.wait_for(|&stop| stop) => None,
        upgraded = until_session => upgraded,
    };
    let Some((mut client, early, session)) = upgraded else {
        return false;
    };
    tracing::info!(%peer, "{peer}: Plain non-SSL (ws://) WebSocket connection");
    tracing::info!(%peer, "{peer}: Path: '{}'", session.path);
    serve_session(&mut client, peer, &early, &session, handling).await;
    true
}

/// Connects a client to its target and carries its bytes.
async fn serve_session(
    client: &mut Stream,
    peer: Peer,
    early: &[u8],
    session: &Session,
    handling: &Handling,
) {
    let Handling {
        target,
        session: config,
        stop,
    } = handling;
    tracing::info!(%peer, "{}", target.announcement());
    let mut stopped = stop.clone();
    let connected = tokio::select! {
        biased;
        _ = stopped.wait_for(|&stop| stop) => Err(Close::GOING_AWAY),
        connected = target.connect() => connected.map_err(|error| {
            tracing::warn!(%peer, "cannot connect to {target}: {error}");
            match error {
                ConnectError::NotListening(_) | ConnectError::Gone => Close::NOT_READY,
                _ => Close::UNREACHABLE,
            }
        }),
    };
    let mut downstream = match connected {
        Ok(downstream) => downstream,
        Err(close) => {
            let mut frame = Vec::new();
            append_close(close, &mut frame);
            return relay::farewell(client, &frame).await;
        }
    };
    let summary = relay::run(
        client,
        &mut downstream,
        early,
        session.encoding,
        *config,
        stop.clone(),
    )
    .await;
    tracing::info!(%peer, "{summary}");
}

/// Answers a client that does not speak HTTP.
async fn answer_other(stream: &mut Stream, peer: Peer, protocol: Protocol) {
    match protocol {
        Protocol::FlashPolicy => {
            tracing::info!(%peer, "Sending flash policy response");
            relay::farewell(stream, POLICY).await;
        }
        Protocol::Tls => {
            tracing::info!(%peer, "SSL/TLS connection refused: there is no certificate");
            relay::farewell(stream, TLS_ALERT).await;
        }
        Protocol::Ssl2 => {
            tracing::info!(%peer, "SSLv2 connection refused");
            relay::farewell(stream, b"").await;
        }
        Protocol::Http => unreachable!("HTTP is handled by its own step"),
    }
}
