//! The connection with Redis: one for all questions, which go out as they come and are answered in turn. It is made when it is
//! needed, and made again when it was lost, by one attempt at a time that everybody waits for.
//!
//! A connection can be lost without a sign, and Redis can hang. So whoever waits long, or gives up, casts doubt on the connection;
//! then Redis is asked for a sign of life, and what gives none is closed, with all that was asked on it.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ProtocolVersion, RedisConnectionInfo, RedisError, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::fault;
use crate::stream::Stream;
use crate::tls::Connector;
use crate::token::Unavailable;
use crate::token::service::{Place, encrypt};

/// How long an attempt to connect may take; the next one may do better.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(2);
/// How long an answer may take before there is doubt.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a sign of life may take.
const SIGN_LIMIT: Duration = Duration::from_secs(1);
/// The pauses between attempts that fail: they double from the first to the second. Whoever asks meanwhile waits.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Where Redis is and what it is told first.
pub(super) struct Server {
    pub(super) place: Place,
    /// For TLS with it, if that is spoken.
    pub(super) connector: Option<Connector>,
    /// The commands that a connection begins with.
    pub(super) greeting: Vec<Cmd>,
}

/// The connection with a server, whether there is one at the moment or not.
pub(super) struct Link {
    server: Arc<Server>,
    /// Where the connection lives.
    runtime: Handle,
    state: Mutex<State>,
}

struct State {
    /// The latest attempt to connect, and what became of it.
    attempt: Option<Attempt>,
    /// How long to wait after it, if it fails.
    pause: Duration,
}

/// What an attempt comes to, once it is over.
type Attempt = watch::Receiver<Option<Result<Arc<Live>, Failed>>>;

#[derive(Clone)]
struct Failed {
    at: Instant,
    reason: Unavailable,
}

/// A connection that was made.
struct Live {
    connection: MultiplexedConnection,
    /// Told when somebody doubts that it is good.
    doubt: Arc<Notify>,
    /// Whether somebody has found that it is not.
    lost: AtomicBool,
    /// What reads and writes, and looks after it.
    driver: AbortHandle,
}

impl Link {
    /// One to this server; nothing is connected yet. The connection will live in the runtime that this is called in.
    pub(super) fn new(server: Server) -> Self {
        Self {
            server: Arc::new(server),
            runtime: Handle::current(),
            state: Mutex::new(State {
                attempt: None,
                pause: PAUSES.0,
            }),
        }
    }

    /// Asks something that may be asked twice, and does so when the connection is lost over it.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, Unavailable> {
        let mut failure = None;
        for _ in 0..2 {
            let live = self.live().await?;
            match live.ask(command).await {
                Ok(value) => return Ok(value),
                Err(error) => failure = Some(fault::of_connection(&error)),
            }
            live.lost.store(true, Ordering::Relaxed);
        }
        Err(self.server.unavailable(&failure.unwrap_or_default()))
    }

    /// Says that it is this server that cannot be asked, and why.
    pub(super) fn unavailable(&self, reason: &str) -> Unavailable {
        self.server.unavailable(reason)
    }

    /// The connection, as soon as there is one.
    async fn live(&self) -> Result<Arc<Live>, Unavailable> {
        let mut attempt = self.attempt();
        let over = attempt.wait_for(Option::is_some).await;
        match over.as_deref() {
            Ok(Some(Ok(live))) => Ok(Arc::clone(live)),
            Ok(Some(Err(failed))) => Err(failed.reason.clone()),
            _ => Err(Unavailable(
                "the attempt to connect was given up".to_owned(),
            )),
        }
    }

    /// The attempt that is under way or has come to something; if there is none, it begins.
    fn attempt(&self) -> Attempt {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut begin = Instant::now();
        if let Some(attempt) = &state.attempt {
            match &*attempt.borrow() {
                None if attempt.has_changed().is_ok() => return attempt.clone(),
                Some(Ok(live)) if live.is_good() => return attempt.clone(),
                Some(Err(failed)) => begin = failed.at + state.pause,
                _ => {}
            }
        }
        let failed_before = begin > Instant::now();
        state.pause = if failed_before {
            (state.pause * 2).min(PAUSES.1)
        } else {
            PAUSES.0
        };
        let (result, attempt) = watch::channel(None);
        let server = Arc::clone(&self.server);
        self.runtime.spawn(async move {
            sleep_until(begin).await;
            let limited = timeout(ATTEMPT_LIMIT, connect(&server)).await;
            let made = limited.unwrap_or_else(|_| Err(server.unavailable("it does not answer")));
            let at = Instant::now();
            result.send_replace(Some(made.map_err(|reason| Failed { at, reason })));
        });
        state.attempt = Some(attempt.clone());
        attempt
    }
}

/// Where Redis is.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.server.place.fmt(f)
    }
}

impl Server {
    fn unavailable(&self, reason: &str) -> Unavailable {
        Unavailable(format!("Redis at {}: {reason}", self.place))
    }
}

impl Live {
    fn is_good(&self) -> bool {
        !self.lost.load(Ordering::Relaxed) && !self.driver.is_finished()
    }

    /// Asks, and waits for the answer as long as the connection lives.
    async fn ask(&self, command: &Cmd) -> Result<Value, RedisError> {
        /// Casts doubt when the answer is not waited for.
        struct Waiting<'a>(Option<&'a Notify>);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                if let Some(doubt) = self.0 {
                    doubt.notify_one();
                }
            }
        }
        let mut waiting = Waiting(Some(&self.doubt));
        let mut connection = self.connection.clone();
        let mut answer = pin!(connection.send_packed_command(command));
        let soon = timeout(PATIENCE, &mut answer).await;
        let answer = match soon {
            Ok(answer) => answer,
            Err(_) => {
                self.doubt.notify_one();
                answer.await
            }
        };
        waiting.0 = None;
        answer
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects, and greets.
async fn connect(server: &Server) -> Result<Arc<Live>, Unavailable> {
    let socket = server.place.connect().await?;
    let stream = match (&server.connector, &server.place) {
        (Some(connector), Place::Tcp(address)) => encrypt(socket, connector, address).await?,
        _ => Stream::Plain(socket),
    };
    let broken = |error: RedisError| server.unavailable(&fault::of_connection(&error));
    // What is to be said first is said below, where the answer tells more.
    let nothing = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let made = MultiplexedConnection::new_with_config(&nothing, stream, config).await;
    let (connection, driver) = made.map_err(broken)?;
    let doubt = Arc::new(Notify::new());
    let looking_after = look_after(connection.clone(), Arc::clone(&doubt));
    let driver = tokio::spawn(async move {
        tokio::select! {
            () = driver => {}
            () = looking_after => {}
        }
    });
    let live = Live {
        connection,
        doubt,
        lost: AtomicBool::new(false),
        driver: driver.abort_handle(),
    };
    for command in &server.greeting {
        let answer = live.ask(command).await.map_err(broken)?;
        if let Some(reason) = fault::of_greeting(&answer) {
            return Err(server.unavailable(&reason));
        }
    }
    Ok(Arc::new(live))
}

/// Ends when there is doubt and no sign of life.
async fn look_after(mut connection: MultiplexedConnection, doubt: Arc<Notify>) {
    let ping = redis::cmd("PING");
    loop {
        doubt.notified().await;
        let sign = timeout(SIGN_LIMIT, connection.send_packed_command(&ping)).await;
        if !matches!(sign, Ok(Ok(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_that_fail_are_made_at_once_and_then_ever_more_seldom() {
        let link = Link::new(Server {
            place: Place::Unix("/not/there".into()),
            connector: None,
            greeting: Vec::new(),
        });
        let begin = Instant::now();
        let failed = link.ask(&redis::cmd("PING")).await;
        let Unavailable(reason) = failed.unwrap_err();
        assert_eq!(
            reason,
            "cannot connect to /not/there: No such file or directory"
        );
        assert_eq!(begin.elapsed(), Duration::ZERO);
        for pause in [20, 40, 80, 160, 320, 500, 500] {
            let before = Instant::now();
            // Everybody waits for the same attempt.
            let ping = redis::cmd("PING");
            let (one, other) = tokio::join!(link.ask(&ping), link.ask(&ping));
            assert!(one.is_err() && other.is_err());
            let waited = before.elapsed().as_millis();
            assert!((pause..pause + 5).contains(&waited), "{waited} for {pause}");
        }
        // Whoever comes later than that does not wait.
        tokio::time::advance(Duration::from_secs(1)).await;
        let before = Instant::now();
        assert!(link.ask(&redis::cmd("PING")).await.is_err());
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
