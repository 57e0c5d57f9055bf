//! Whether the peers are still there, and what keeps others from believing that they are not.
//!
//! What lies between a client and us, proxies above all, cuts connections on which nothing comes for a minute. So a client that was sent
//! nothing for a while gets a ping. That it answers is asked only where the administrator wants it: old clients do not.
//!
//! A peer that vanished without a word, with its cable or its power, is noticed by the system's keepalive probes while nothing is on its
//! way to it. While something is, we look ourselves whether its system acknowledges anything: `TCP_USER_TIMEOUT` (tcp(7)) would also end
//! connections of peers that are well and only take nothing, as when a program is stopped in a debugger, and lose what waits for them.

use std::future::pending;
use std::os::fd::RawFd;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::Cause;
use super::shared::Shared;
use crate::config::{Pings, SessionConfig};
use crate::sys;

/// How often it is looked, at least. A client that was sent nothing from one look to the next gets a ping, so that it is left alone for
/// no longer than two of them, which is 30 s: half of what most proxies permit.
const LOOKS: Duration = Duration::from_secs(14);

/// Pings a client that was sent nothing for a while, if that is wanted, and gives up a peer that has vanished. Never returns.
pub(super) async fn look(shared: &Shared, config: &SessionConfig, sockets: [RawFd; 2]) {
    let mut sent = shared.written();
    let mut unanswered = [0; 2];
    loop {
        // Boxed: it is the larger part of what an idle session would have to keep for this.
        Box::pin(sleep_until(next_look(interval(config)))).await;
        if shared.is_ending() {
            // That has its own limits.
            return pending().await;
        }
        let sent_before = std::mem::replace(&mut sent, shared.written());
        if config.pings == Pings::WhenSilent && sent == sent_before {
            shared.request_ping();
        }
        for (looks, socket) in unanswered.iter_mut().zip(sockets) {
            *looks = if says_nothing(socket, interval(config)) {
                *looks + 1
            } else {
                0
            };
        }
        // The first of these looks only began it.
        let has_vanished =
            |looks: u32| interval(config) * looks.saturating_sub(1) >= config.peer_timeout;
        if unanswered.into_iter().any(has_vanished) {
            let limit = config.peer_timeout.as_secs_f64();
            shared.note_failure(format!("no acknowledgement for {limit} s"));
            if has_vanished(unanswered[0]) {
                shared.lose_client(Cause::ClientLost);
            } else {
                shared.lose_target();
            }
            return pending().await;
        }
    }
}

/// How often it is looked.
fn interval(config: &SessionConfig) -> Duration {
    LOOKS.min(config.peer_timeout / 4)
}

/// Whether something waits for a peer's system to acknowledge it, which has acknowledged nothing for so long.
fn says_nothing(socket: RawFd, limit: Duration) -> bool {
    sys::unsent_bytes(socket) > 0
        && sys::unacknowledged_for(socket).is_some_and(|silence| silence >= limit)
}

/// When the next look is due. Those of many sessions fall on the same few moments, so that the processor may sleep between them.
fn next_look(interval: Duration) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let grain = (interval / 16).max(Duration::from_millis(1)).as_millis();
    let due = Instant::now() + interval;
    let late = due.saturating_duration_since(*START).as_millis() % grain;
    due + Duration::from_millis((grain - late) as u64)
}

/// Pings the client, if it is to answer, and gives it up when two pings in a row brought no sign of life. Never returns.
pub(super) async fn heartbeat(shared: &Shared, pings: &Pings, client: RawFd) {
    let &Pings::Every(interval) = pings else {
        return pending().await;
    };
    // Boxed: who is not asked to answer need not have room for it.
    Box::pin(beat(shared, interval, client)).await;
}

async fn beat(shared: &Shared, interval: Duration, client: RawFd) {
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unanswered = 0;
    let mut taken = 0;
    loop {
        ticks.tick().await;
        if shared.is_ending() {
            // A client that has said its last word answers nothing more.
            return pending().await;
        }
        // While the target takes nothing we read nothing, and a pong may wait behind that. And a client that is still busy
        // taking data has not come to the ping yet.
        let unsent = sys::unsent_bytes(client);
        let before = std::mem::replace(&mut taken, shared.written().saturating_sub(unsent as u64));
        if shared.take_sign_of_life() || (unsent > 0 && taken > before) {
            unanswered = 0;
        }
        if unanswered == 2 {
            shared.lose_client(Cause::ClientSilent);
            return pending().await;
        }
        shared.request_ping();
        unanswered += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use tokio::time::timeout;

    use super::*;
    use crate::config::WayChoice;

    /// After how many seconds a client is pinged within so many, of whom `is_sent` says in which seconds it is sent something.
    async fn pings_of(pings: Pings, seconds: u64, is_sent: impl Fn(u64) -> bool) -> Vec<u64> {
        let (client, target) = UnixStream::pair().unwrap();
        let shared = Shared::default();
        let config = SessionConfig {
            pings,
            peer_timeout: Duration::from_secs(120),
            traffic: false,
            way: WayChoice::Auto,
        };
        let sockets = [&client, &target].map(AsRawFd::as_raw_fd);
        let mut looking = Box::pin(look(&shared, &config, sockets));
        let mut pinged = Vec::new();
        for second in 1..=seconds {
            if is_sent(second) {
                shared.note_written(7);
            }
            _ = timeout(Duration::from_secs(1), &mut looking).await;
            let frames = shared.take_control();
            if !frames.is_empty() {
                assert_eq!(frames, [0x89, 0]);
                shared.note_written(frames.len());
                pinged.push(second);
            }
        }
        assert!(!shared.is_ending());
        pinged
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_pinged_in_time_and_need_not_answer() {
        let pinged = pings_of(Pings::WhenSilent, 600, |_| false).await;
        assert!(pinged[0] <= 16, "{pinged:?}");
        for pair in pinged.windows(2) {
            assert!((27..=30).contains(&(pair[1] - pair[0])), "{pinged:?}");
        }
        assert!(pinged.len() >= 19, "{pinged:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_client_that_was_sent_nothing_is_pinged_and_before_others_give_it_up() {
        let busy = pings_of(Pings::WhenSilent, 300, |second| second % 10 == 0).await;
        assert!(busy.is_empty(), "{busy:?}");
        for last in 1..60 {
            let pinged = pings_of(Pings::WhenSilent, last + 35, |second| second <= last).await;
            assert!(
                (13..=30).contains(&(pinged[0] - last)),
                "{last}: {pinged:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_pinged_where_that_is_turned_off_or_done_by_the_heartbeat() {
        for pings in [Pings::Never, Pings::Every(Duration::from_secs(3600))] {
            assert!(pings_of(pings, 300, |_| false).await.is_empty());
        }
    }
}
