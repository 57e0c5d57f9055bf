//! Many sessions that are open and do nothing: what memory each takes, whether they make the others dearer, and how long it takes
//! to end them all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use nix::sys::signal::{Signal, kill};

use crate::bench::{Bench, make_room_for_sessions};
use crate::figures::Reading;
use crate::load::{self, Client};
use crate::metric::{
    ACTIVE_1_OF_1000, ACTIVE_1_OF_10000, ACTIVE_1000_OF_1000, ACTIVE_1000_OF_10000, IDLE_100,
    IDLE_1000, IDLE_10000, Metric, SHUTDOWN_1000, SHUTDOWN_10000, TLS_IDLE_1000, TOLD_1000,
    TOLD_10000,
};
use crate::peers::{Kind, MOST_SESSIONS, Peer, Service};
use crate::process::DEADLINE;
use crate::relay::Relay;
use crate::target::{EVENTS, Echo, watch};
use crate::tls::Tls;
use crate::wire::CLOSE;

/// The close code of a server that is being stopped.
const GOING_AWAY: u16 = 1001;

/// The figures of so many open sessions.
struct Stage {
    sessions: usize,
    memory: &'static Metric,
    /// How many are put to work then, and what that shows.
    active: &'static [(usize, &'static Metric)],
    /// How long it takes to end them all, and how many of the clients are told.
    shutdown: Option<(&'static Metric, &'static Metric)>,
}

static STAGES: [Stage; 3] = [
    Stage {
        sessions: 100,
        memory: &IDLE_100,
        active: &[],
        shutdown: None,
    },
    Stage {
        sessions: 1000,
        memory: &IDLE_1000,
        active: &[(1, &ACTIVE_1_OF_1000), (1000, &ACTIVE_1000_OF_1000)],
        shutdown: Some((&SHUTDOWN_1000, &TOLD_1000)),
    },
    Stage {
        sessions: 10_000,
        memory: &IDLE_10000,
        active: &[(1, &ACTIVE_1_OF_10000), (1000, &ACTIVE_1000_OF_10000)],
        shutdown: Some((&SHUTDOWN_10000, &TOLD_10000)),
    },
];

static TLS_STAGES: [Stage; 1] = [Stage {
    sessions: 1000,
    memory: &TLS_IDLE_1000,
    active: &[],
    shutdown: None,
}];

/// Measures at 100, 1,000 and 10,000 sessions; peers for which that is too many stay at fewer.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    run_stages(bench, Service::Plain, &STAGES)?;
    let most = |peer: &Peer| format!("{} {}", peer.kind.name(), peer.kind.most_sessions());
    let relays = bench
        .peers
        .iter()
        .filter(|peer| Service::Plain.is_of(peer.kind));
    let most: Vec<_> = relays.map(most).collect();
    let note = format!("So many idle sessions at most: {}.", most.join(", "));
    bench.notes.push(note);
    Ok(())
}

/// Measures 1,000 sessions with TLS.
pub(crate) fn run_tls(bench: &mut Bench) -> Result<()> {
    let tls = Tls::new(bench.scratch())?;
    run_stages(bench, Service::Tls(&tls), &TLS_STAGES)
}

fn run_stages(bench: &mut Bench, service: Service<'_>, stages: &'static [Stage]) -> Result<()> {
    let possible = make_room_for_sessions(MOST_SESSIONS)?;
    let rounds = bench.pick(2, 5);
    for stage in stages {
        let sessions = stage.sessions.min(possible);
        if sessions < stage.sessions {
            bench.notes.push(format!(
                "Descriptors (ulimit -n) are enough for {sessions} sessions instead of {}.",
                stage.sessions
            ));
        }
        // Fewer would not show what many show.
        if sessions < stage.sessions * 9 / 10 {
            continue;
        }
        let takes_part = |kind: Kind| service.is_of(kind) && stage.sessions <= kind.most_sessions();
        let what = format!("{sessions} sessions");
        bench.in_turn(&what, rounds, takes_part, |bench, peer| {
            measure(bench, peer, service, stage, sessions)
        });
    }
    Ok(())
}

fn measure(
    bench: &Bench,
    peer: &Peer,
    service: Service<'_>,
    stage: &Stage,
    sessions: usize,
) -> Result<Vec<Reading>> {
    let length = Duration::from_millis(bench.pick(400, 1500));
    let mut relay = bench.start(peer, service)?;
    let echo = Echo::start(&relay.target)?;
    let before = relay.memory()?;
    let mut clients = (0..sessions)
        .map(|number| Client::open(&relay, number))
        .collect::<Result<Vec<_>>>()?;
    let memory = relay.memory()?.since(before) / sessions as f64 / 1024.0;
    let mut readings = vec![(stage.memory, memory)];
    for (active, metric) in stage.active {
        let outcome = load::run(&relay, &mut clients[..*active], length)?;
        readings.push((metric, outcome.cpu_each()));
    }
    relay.check()?;
    if let Some((duration, told)) = stage.shutdown.filter(|_| peer.kind == Kind::Ours) {
        let shutdown = shut_down(&mut relay, clients).context("stop it")?;
        let each = 1.0 / sessions as f64;
        readings.push((duration, shutdown.elapsed.as_secs_f64() * 1e6 * each));
        readings.push((told, shutdown.told as f64 * 100.0 * each));
    }
    echo.stop()?;
    Ok(readings)
}

/// What stopping a relay came to.
struct Shutdown {
    /// How long it took until it was gone.
    elapsed: Duration,
    /// How many clients were told, and their connections ended in order.
    told: usize,
}

/// Stops the relay while these sessions are open.
fn shut_down(relay: &mut Relay, clients: Vec<Client>) -> Result<Shutdown> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
    for (number, client) in clients.iter().enumerate() {
        watch(&epoll, &client.session.stream, number as i32)?;
    }
    let process = relay.process();
    let begun = Instant::now();
    kill(process.pid(), Signal::SIGTERM).context("stop the relay")?;
    let answering = std::thread::spawn(move || answer_all(&epoll, clients));
    let status = process.wait()?;
    let elapsed = begun.elapsed();
    ensure!(status.success(), "it ended with {status}");
    let told = answering
        .join()
        .map_err(|_| anyhow!("the clients panicked"))??;
    Ok(Shutdown { elapsed, told })
}

/// Answers each close frame, and closes at the end of each connection. Returns how many had both.
fn answer_all(epoll: &Epoll, clients: Vec<Client>) -> Result<usize> {
    let timeout = EpollTimeout::try_from(DEADLINE).context("the deadline is too long")?;
    let mut clients: Vec<Option<Client>> = clients.into_iter().map(Some).collect();
    let answer = integration::frame(CLOSE, &GOING_AWAY.to_be_bytes());
    let mut events = [EpollEvent::empty(); EVENTS];
    let (mut left, mut told) = (clients.len(), 0);
    while left > 0 {
        let count = match epoll.wait(&mut events, timeout) {
            Ok(0) => bail!("{left} sessions did not end"),
            Err(Errno::EINTR) => 0,
            other => other.context("wait for events")?,
        };
        for event in &events[..count] {
            let place = &mut clients[event.data() as usize];
            let client = place.as_mut().context("it is watched")?;
            // A server that gives its sessions up resets them: that is a result, and no failure of the measurement.
            let more = client.answer_close(&answer);
            if !matches!(more, Ok(true)) {
                let close = client.session.decoder.close_code();
                told += usize::from(more.is_ok() && close == Some(GOING_AWAY));
                *place = None;
                left -= 1;
            }
        }
    }
    Ok(told)
}
