//! The run as a whole: who takes part, whose turn it is, what came of it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::Scratch;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::arguments::Options;
use crate::figures::{Figures, Reading};
use crate::peers::{Kind, Peer, Service};
use crate::relay::Relay;

/// Descriptors that a session needs: one for the client and one for the target, and as many in the relay.
const PER_SESSION: usize = 2;
/// Descriptors for everything else.
const BESIDE: usize = 200;

/// A run.
#[derive(Debug)]
pub(crate) struct Bench {
    /// How to measure.
    pub(crate) options: Options,
    /// Who takes part.
    pub(crate) peers: Vec<Peer>,
    /// What was measured.
    pub(crate) figures: Figures,
    /// What the reader ought to know: who is missing, what failed.
    pub(crate) notes: Vec<String>,
    /// Whether a measurement of ours failed.
    pub(crate) failed: bool,
    scratch: Scratch,
    begun: Instant,
}

impl Bench {
    /// Finds the peers.
    pub(crate) fn new(options: Options) -> Result<Self> {
        let environment = std::path::absolute(options.output.join("venv"))
            .context("find the virtual environment")?;
        let find = |kind| Peer::find(kind, &options.websockify, &environment);
        let peers: Vec<Peer> = Kind::ALL.into_iter().filter_map(find).collect();
        let has = |kind| peers.iter().any(|peer| peer.kind == kind);
        ensure!(
            has(Kind::Ours),
            "there is no {}",
            options.websockify.display()
        );
        let notes = Kind::ALL
            .into_iter()
            .filter(|kind| !has(*kind))
            .map(|kind| format!("{} is not installed, and left out.", kind.name()))
            .collect();
        Ok(Self {
            peers,
            notes,
            options,
            figures: Figures::default(),
            failed: false,
            scratch: Scratch::new().context("make a scratch directory")?,
            begun: Instant::now(),
        })
    }

    /// One of two values: for a quick run, or for a full one.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.options.quick { quick } else { full }
    }

    /// A directory for files that are gone afterwards.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Starts a peer.
    pub(crate) fn start(&self, peer: &Peer, service: Service<'_>) -> Result<Relay> {
        Relay::start(peer, service, self.scratch())
    }

    /// Has each peer that takes part measured in its turn, round after round. One that fails is left out from then on.
    pub(crate) fn in_turn(
        &mut self,
        what: &str,
        rounds: usize,
        takes_part: impl Fn(Kind) -> bool,
        mut measure: impl FnMut(&Self, &Peer) -> Result<Vec<Reading>>,
    ) {
        let mut peers = self.peers.clone();
        peers.retain(|peer| takes_part(peer.kind));
        for round in 0..rounds {
            peers.retain(|peer| {
                self.tell(what, round, rounds, peer);
                let readings = measure(self, peer).and_then(all_finite);
                match readings {
                    Ok(readings) => {
                        for reading in readings {
                            self.figures.add(peer.kind, round, reading);
                        }
                        true
                    }
                    Err(error) => {
                        self.fail(what, peer.kind, &error);
                        false
                    }
                }
            });
        }
    }

    /// Notes that a measurement failed.
    pub(crate) fn fail(&mut self, what: &str, kind: Kind, error: &anyhow::Error) {
        let note = format!("{} failed at {what}: {error:#}", kind.name());
        say(&note);
        self.notes.push(note);
        self.failed |= kind == Kind::Ours;
    }

    /// Shows what is being measured.
    fn tell(&self, what: &str, round: usize, rounds: usize, peer: &Peer) {
        let seconds = self.begun.elapsed().as_secs();
        let name = peer.kind.name();
        say(&format!(
            "{seconds:4} s  {what:<28} round {}/{rounds}  {name}",
            round + 1
        ));
    }

    /// How long it has run.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// Prints a line of progress.
#[expect(clippy::print_stderr, reason = "progress is for the person who waits")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// A figure that is no number comes from nothing having been done.
fn all_finite(readings: Vec<Reading>) -> Result<Vec<Reading>> {
    let wrong = readings.iter().find(|(_, value)| !value.is_finite());
    ensure!(wrong.is_none(), "nothing was measured: {wrong:?}");
    Ok(readings)
}

/// Lets us, and the children to come, have as many descriptors as `wanted` sessions need. Returns how many sessions it is
/// enough for.
pub(crate) fn make_room_for_sessions(wanted: usize) -> Result<usize> {
    let resource = Resource::RLIMIT_NOFILE;
    let (_, hard) = getrlimit(resource).context("ask for the limit of descriptors")?;
    // No more than needed: haproxy makes room for as many as it may have.
    let needed = (wanted * PER_SESSION + BESIDE) as u64;
    // Only a privileged process may raise the hard limit.
    if hard >= needed || setrlimit(resource, needed, needed).is_err() {
        setrlimit(resource, hard.min(needed), hard).context("raise the limit of descriptors")?;
    }
    let (soft, _) = getrlimit(resource).context("ask for the limit of descriptors")?;
    let possible = usize::try_from(soft)
        .unwrap_or(usize::MAX)
        .saturating_sub(BESIDE);
    Ok(wanted.min(possible / PER_SESSION))
}
