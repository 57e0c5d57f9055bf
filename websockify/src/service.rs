//! The whole: from a configuration to a service that runs, and to its end.

use std::convert::Infallible;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{SigSet, Signal};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};

use crate::addr::ListenAddr;
use crate::conduct::{Parts, Supervised, conduct};
use crate::config::{Config, CrowdConfig, Limits, RouteConfig, TargetConfig, WrapConfig};
use crate::connection::Handling;
use crate::crowd::Bounds;
use crate::daemon::{self, Side};
use crate::gate::Gate;
use crate::http::{Files, Site};
use crate::listener::{self, Entrance};
use crate::metrics::Facts;
use crate::monitor::{Monitor, Watched};
use crate::phase::Phase;
use crate::record::Recorder;
use crate::reload::Readers;
use crate::signals::Signals;
use crate::start::Start;
use crate::systemd::Manager;
use crate::tls::Acceptor;
use crate::user::Identity;
use crate::wrap::{self, Wrapped};
use crate::{descriptors, exit_status, log, relay, server, sys, workers};

/// Does what a configuration asks for, to the end. Returns the exit status; what kept it from starting, or ended it, is in the log.
pub fn run(config: Config) -> u8 {
    // First of all: nothing has been opened yet, nothing was said, and no other thread runs.
    let activated = match &config.listen {
        ListenAddr::Activated(names) => sys::activated(names.len())
            .map_err(|error| anyhow!(sys::describe(&error)))
            .context("systemd has not handed over what it says"),
        ListenAddr::Inherited => listener::say_nothing_to_client()
            .map(|()| Vec::new())
            .context("cannot keep the log from the client"),
        _ => Ok(Vec::new()),
    };
    let fork = || daemon::fork(activated.as_deref().unwrap_or_default());
    let side = config.background.then(fork).transpose();
    if let Ok(Some(Side::Launcher(status))) = side {
        return status;
    }
    let logged = log::init(&config.log);
    let mut start = Start::new(&config);
    let served = side.and_then(|side| {
        if let Some(Side::Daemon(launcher)) = side {
            start.is_awaited_by(launcher);
        }
        logged?;
        serve(config, activated?, &mut start)
    });
    let status = served.unwrap_or_else(|error| {
        tracing::error!("websockify: error: {error:#}");
        exit_status(&error)
    });
    start.remove_number();
    log::finish();
    start.end(status);
    status
}

/// What a service is made of, when all is bound and read.
struct Prepared {
    entrance: Entrance,
    handling: Handling,
    wrapped: Option<Wrapped>,
    bounds: Bounds,
    limits: Limits,
    manager: Manager,
    /// Where figures are served, and what of, if that is asked for.
    monitor: Option<(Monitor, Watched)>,
    /// What is carried from where to where, as the settings tell.
    direction: String,
    background: bool,
}

/// Starts, serves to the end, and returns the exit status.
fn serve(config: Config, activated: Vec<OwnedFd>, start: &mut Start) -> Result<u8> {
    start.check()?;
    // A mask that we were started with would keep us from hearing of signals; no other thread runs yet.
    SigSet::empty()
        .thread_set_mask()
        .context("cannot set the signal mask")?;
    // A log that may not grow any more (`ulimit -f`) is full, and no reason to be killed.
    sys::ignore(Signal::SIGXFSZ).context("cannot ignore a signal")?;
    let (phase, reached) = watch::channel(Phase::Serving);
    let (runtime, prepared) = prepare(config, activated, reached.clone(), start)?;
    let handling = &prepared.handling;
    let (gate, recorder) = (Arc::clone(&handling.gate), handling.recorder.clone());
    let result = runtime.block_on(serve_clients(prepared, phase, start));
    runtime.block_on(gate.end());
    // What is left are sessions that had their time, and look-ups that cannot be interrupted.
    runtime.shutdown_background();
    if let Some(recorder) = recorder {
        recorder.finish(*reached.borrow() == Phase::Stopping);
    }
    tracing::info!("In exit");
    result
}

/// Binds, reads and starts what has to be before clients are served, and gives up the rights that this takes.
fn prepare(
    config: Config,
    activated: Vec<OwnedFd>,
    phase: watch::Receiver<Phase>,
    start: &mut Start,
) -> Result<(Runtime, Prepared)> {
    let Config {
        listen,
        route,
        wrap: wrap_config,
        crowd,
        limits,
        session,
        door,
        proxies,
        web,
        tls,
        target_tls,
        record,
        user,
        background,
        metrics,
        warnings,
        ..
    } = config;
    let program_user = wrap_config.as_ref().and_then(|wrap| wrap.user.as_ref());
    for (user, option) in [(user.as_ref(), "--user"), (program_user, "--wrap-user")] {
        user.map_or(Ok(()), |user| user.check(option))?;
    }
    let manager = Manager::from_environment();
    for warning in warnings {
        tracing::warn!("warning: {warning}");
    }
    let files = web
        .root
        .map(|root| Files::new(root, web.listings))
        .transpose()?;
    let site = Site {
        files,
        headers: web.headers,
    };
    let acceptor = tls
        .map(Acceptor::new)
        .transpose()
        .context("cannot set up TLS")?
        .map(Arc::new);
    // What listens hands its options on to what it accepts.
    sys::set_peer_timeout(session.peer_timeout);
    let entrance = Entrance::open(&listen, activated)?;
    let monitor = metrics.as_ref().map(Monitor::bind).transpose()?;
    let wrap = |wrap: WrapConfig| {
        let old_port = wrap.port.or_else(|| entrance.port()).context(
            "a wrapped program needs --wrap-port here: we do not listen on one port that could be its own",
        )?;
        Wrapped::new(wrap, old_port, entrance.address().to_string())
    };
    let wrapped = wrap_config.map(wrap).transpose()?;
    // Only now: what is wrapped may not expect so many.
    descriptors::claim()?;
    log::start().context("cannot start the threads that write the log")?;
    let runtime = workers::runtime().context("cannot start the runtime")?;
    let destination = describe(&route, wrapped.as_ref());
    let direction = format!("proxying from {} to {destination}", entrance.name());
    let patience = door.patience;
    let status = wrapped.as_ref().map(Wrapped::status);
    let mut watched = Watched {
        facts: Facts {
            started: SystemTime::now(),
            token_plugin: match &route {
                RouteConfig::Tokens(tokens) => Some(tokens.name.clone()),
                RouteConfig::Fixed(_) => None,
            },
            auth_plugin: door.auth.as_ref().map(|auth| auth.name.clone()),
            max_connections: 0,
        },
        program: status.clone(),
        target: None,
    };
    let gate = Gate::open(door, route, target_tls, status, || {
        give_up_rights(user.as_ref(), start)
    });
    let gate = Arc::new(runtime.block_on(gate)?);
    watched.target = gate.fixed_target();
    wrapped.as_ref().map_or(Ok(()), Wrapped::prepare)?;
    let recorder = record.as_deref().map(Recorder::start).transpose()?;
    let set_aside = monitor.as_ref().map_or(0, |_| Monitor::DESCRIPTORS);
    let bounds = bound(crowd, set_aside + gate.descriptors(), recorder.is_some());
    watched.facts.max_connections = bounds.connections;
    let handling = Handling {
        gate,
        session,
        patience,
        proxies,
        site,
        acceptor,
        recorder,
        phase,
    };
    let prepared = Prepared {
        entrance,
        handling,
        wrapped,
        bounds,
        limits,
        manager,
        monitor: monitor.map(|monitor| (monitor, watched)),
        direction,
        background,
    };
    Ok((runtime, prepared))
}

/// How many there may be, as far as descriptors go, of which so many are set aside; sessions may take some for their recordings.
fn bound(config: CrowdConfig, set_aside: usize, records: bool) -> Bounds {
    let budget = descriptors::budget(set_aside, records);
    relay::limit_pipes(budget.pipes);
    let connections = config.connections.unwrap_or(budget.connections);
    if connections > budget.connections {
        tracing::warn!(
            "warning: --max-connections {connections}: descriptors are there for {} (ulimit -n, LimitNOFILE=)",
            budget.connections
        );
    }
    Bounds {
        connections: connections.min(budget.connections),
        per_address: config.per_address,
        run_once: config.run_once,
    }
}

/// Takes the rights of a user instead of root's, if that is asked for.
fn give_up_rights(user: Option<&Identity>, start: &mut Start) -> Result<()> {
    let Some(user) = user else {
        return Ok(());
    };
    // The user may not write there, as a rule.
    start.write_number()?;
    user.assume().map_err(|error| {
        anyhow!(
            "cannot give up root's rights for those of {}: {}",
            user.name(),
            error.desc()
        )
    })
}

/// Serves to the end, and returns the exit status.
async fn serve_clients(
    prepared: Prepared,
    phase: watch::Sender<Phase>,
    start: &mut Start,
) -> Result<u8> {
    let Prepared {
        entrance,
        handling,
        wrapped,
        bounds,
        limits,
        manager,
        monitor,
        direction,
        background,
    } = prepared;
    let signals = Signals::new(wrapped.is_some()).context("cannot take signals")?;
    // From here on a signal ends us in order; whoever waits for these lines may send one.
    let figures = monitor.as_ref().map(|(monitor, _)| monitor);
    announce(&entrance, &handling, figures, background, &direction);
    if handling.session.traffic {
        tracing::info!(
            "Traffic: }} from the client, > to the target, {{ from the target, < to the client; a dot: in part"
        );
    }
    let listener = entrance
        .into_listener()
        .context("cannot watch the listening socket")?;
    let readers = Readers {
        acceptor: handling.acceptor.clone(),
        gate: Arc::clone(&handling.gate),
    };
    if let Some((monitor, watched)) = monitor {
        monitor.start(watched)?;
    }
    let status = wrapped.as_ref().map(Wrapped::status);
    let program = wrapped.map(|wrapped| {
        let (orders, received) = mpsc::channel(8);
        let (told, gone) = oneshot::channel();
        Supervised {
            supervision: wrapped.supervise(received, told),
            orders,
            gone,
        }
    });
    conduct(Parts {
        signals,
        phase,
        drain: limits.drain,
        readers,
        manager: &manager,
        program,
        attendance: attend(status, start, &manager, &direction),
        service: server::serve(listener, handling, limits, bounds),
    })
    .await
}

/// Tells others when the start has worked, and the service manager what the wrapped program does; ends only if that fails.
async fn attend(
    program: Option<wrap::Status>,
    start: &mut Start,
    manager: &Manager,
    direction: &str,
) -> Result<Infallible> {
    if let Some(program) = &program {
        program.begun().await;
    }
    start.complete()?;
    let Some(program) = program else {
        manager.status(direction);
        manager.ready();
        return pending().await;
    };
    let tell = || manager.status(&format!("{direction}; the program {}", program.in_words()));
    tell();
    program.settled().await;
    manager.ready();
    loop {
        tell();
        program.news().await;
    }
}

/// Where clients go, as the settings tell.
fn describe(route: &RouteConfig, wrapped: Option<&Wrapped>) -> String {
    match (route, wrapped) {
        (RouteConfig::Tokens(tokens), _) => format!("targets generated by {}", tokens.name),
        (_, Some(wrapped)) => wrapped.status().to_string(),
        (RouteConfig::Fixed(TargetConfig::Tcp { address, .. }), None) => address.to_string(),
        (RouteConfig::Fixed(TargetConfig::Unix(path)), None) => path.display().to_string(),
        (RouteConfig::Fixed(TargetConfig::Wrapped), None) => String::new(),
    }
}

/// The settings, in the lines that scripts wait for.
fn announce(
    entrance: &Entrance,
    handling: &Handling,
    monitor: Option<&Monitor>,
    background: bool,
    direction: &str,
) {
    tracing::info!("WebSocket server settings:");
    for line in entrance.describe() {
        tracing::info!("  - {line}");
    }
    if let Some(files) = &handling.site.files {
        tracing::info!("  - {}", files.describe());
    }
    match &handling.acceptor {
        Some(acceptor) => {
            tracing::info!("  - SSL/TLS support");
            if !acceptor.is_optional() {
                tracing::info!("  - Deny non-SSL/TLS connections");
            }
        }
        None => tracing::info!("  - No SSL/TLS support (no cert file)"),
    }
    if background {
        tracing::info!("  - Backgrounding (daemon)");
    }
    if let Some(recorder) = &handling.recorder {
        tracing::info!("  - {}", recorder.describe());
    }
    if let Some(monitor) = monitor {
        tracing::info!("  - {}", monitor.describe());
    }
    tracing::info!("  - {direction}");
}
