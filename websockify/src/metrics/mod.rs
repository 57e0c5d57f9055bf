//! What is counted, for `--metrics`. It is always counted, since that costs next to nothing: each thread has a sheet of its own, to
//! which nobody else writes, and the sheets are added up when somebody asks.
//!
//! [`mod@page`] writes what was counted as Prometheus reads it. Nothing here has to do with sockets; that is [`crate::monitor`]'s.

mod labels;
mod page;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

pub(crate) use labels::{Answer, Connect, End, LookUp, Program, Reason};
pub(crate) use page::CONTENT_TYPE;

/// The bounds of what durations are told apart by, in seconds: from a look-up in a file to what is waited for at most.
const BOUNDS: [f64; 15] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// A number that only the thread changes whose it is.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, number: u64) {
        let sum = self.get().wrapping_add(number);
        self.0.store(sum, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What comes and goes.
#[derive(Debug, Default)]
struct Visits {
    gone: Counter,
    come: Counter,
}

impl Visits {
    /// How many have not gone.
    fn open(&self) -> u64 {
        // In this order: who goes meanwhile has come before.
        let gone = self.gone.get();
        self.come.get().saturating_sub(gone)
    }

    fn add(&self, other: &Self) {
        let gone = other.gone.get();
        self.come.add(other.come.get());
        self.gone.add(gone);
    }
}

/// Durations, told apart by [`BOUNDS`]; the last ones are above all of them.
#[derive(Debug, Default)]
struct Durations {
    counts: [Counter; BOUNDS.len() + 1],
    nanoseconds: Counter,
}

impl Durations {
    fn note(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let place = BOUNDS.partition_point(|&bound| bound < seconds);
        self.counts[place].add(1);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.add(nanoseconds);
    }

    fn add(&self, other: &Self) {
        add_all(&self.counts, &other.counts);
        self.nanoseconds.add(other.nanoseconds.get());
    }
}

/// What one thread has counted, or all of them. No other sheet shares its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Sheet {
    /// Payload bytes.
    from_client: Counter,
    from_target: Counter,
    connections: Visits,
    sessions: Visits,
    ends: [Counter; End::ALL.len()],
    refused: [Counter; Reason::ALL.len()],
    connects: [Durations; Connect::ALL.len()],
    look_ups: [Durations; LookUp::ALL.len()],
    answers: [Durations; Answer::ALL.len()],
}

impl Sheet {
    /// Adds what is on another one.
    fn add(&self, other: &Self) {
        self.from_client.add(other.from_client.get());
        self.from_target.add(other.from_target.get());
        self.connections.add(&other.connections);
        self.sessions.add(&other.sessions);
        add_all(&self.ends, &other.ends);
        add_all(&self.refused, &other.refused);
        for (own, others) in [
            (&self.connects[..], &other.connects[..]),
            (&self.look_ups, &other.look_ups),
            (&self.answers, &other.answers),
        ] {
            own.iter()
                .zip(others)
                .for_each(|(sum, other)| sum.add(other));
        }
    }
}

fn add_all(sums: &[Counter], others: &[Counter]) {
    sums.iter()
        .zip(others)
        .for_each(|(sum, other)| sum.add(other.get()));
}

/// The sheets of all threads that have counted something, also of those that have ended since: what they counted stays.
static SHEETS: Mutex<Vec<&Sheet>> = Mutex::new(Vec::new());

thread_local! {
    /// The sheet of this thread, if it has counted something.
    static OWN: Cell<Option<&'static Sheet>> = const { Cell::new(None) };
}

fn own() -> &'static Sheet {
    OWN.get().unwrap_or_else(begin_sheet)
}

#[cold]
fn begin_sheet() -> &'static Sheet {
    // There is one for each worker thread, and these end with the process.
    let sheet: &Sheet = Box::leak(Box::default());
    OWN.set(Some(sheet));
    SHEETS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(sheet);
    sheet
}

/// What all threads have counted so far.
fn total() -> Sheet {
    let total = Sheet::default();
    let sheets = SHEETS.lock().unwrap_or_else(PoisonError::into_inner);
    sheets.iter().for_each(|sheet| total.add(sheet));
    total
}

/// A connection of a client, open until this is dropped.
#[derive(Debug)]
pub(crate) struct Connection(());

/// Counts a connection.
pub(crate) fn connection() -> Connection {
    own().connections.come.add(1);
    Connection(())
}

impl Drop for Connection {
    fn drop(&mut self) {
        own().connections.gone.add(1);
    }
}

/// A session, open until this is dropped.
#[derive(Debug)]
pub(crate) struct Session(());

/// Counts a session.
pub(crate) fn session() -> Session {
    own().sessions.come.add(1);
    Session(())
}

impl Session {
    /// Counts its end.
    pub(crate) fn ended(self, end: End) {
        own().ends[end as usize].add(1);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        own().sessions.gone.add(1);
    }
}

/// Counts payload bytes from a client.
pub(crate) fn from_client(bytes: usize) {
    own().from_client.add(bytes as u64);
}

/// Counts payload bytes from a target.
pub(crate) fn from_target(bytes: usize) {
    own().from_target.add(bytes as u64);
}

/// Counts a client that did not get what it wanted, or said nothing of that.
pub(crate) fn refused(reason: Reason) {
    own().refused[reason as usize].add(1);
}

/// Counts what came of connecting to a target, and how long it took.
pub(crate) fn connected(outcome: Connect, duration: Duration) {
    own().connects[outcome as usize].note(duration);
}

/// Counts what came of looking up a token, and how long it took.
pub(crate) fn looked_up(outcome: LookUp, duration: Duration) {
    own().look_ups[outcome as usize].note(duration);
}

/// Counts what an authenticator has answered, and how long it took.
pub(crate) fn answered(outcome: Answer, duration: Duration) {
    own().answers[outcome as usize].note(duration);
}

/// Whether clients are taken no more.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Notes that clients are taken no more.
pub(crate) fn note_closed() {
    CLOSED.store(true, Ordering::Relaxed);
}

/// Whether clients are taken no more.
pub(crate) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// What there is to know that is not counted here.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Since when we run.
    pub(crate) started: SystemTime,
    /// What knows tokens, if anything does.
    pub(crate) token_plugin: Option<String>,
    /// What knows who is let in, if anything does.
    pub(crate) auth_plugin: Option<String>,
    /// How many connections there may be.
    pub(crate) max_connections: usize,
}

/// The page, as of now; `program` is what the wrapped program does, and how often it was started, if there is one. It reads files of the
/// system, which may take a while.
pub(crate) fn page(facts: &Facts, program: Option<(Program, u64)>) -> String {
    page::write(total(), facts.clone(), program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_below_the_first_bound_that_it_does_not_exceed() {
        let durations = Durations::default();
        for microseconds in [0, 100, 101, 10_000_000, 10_000_001] {
            durations.note(Duration::from_micros(microseconds));
        }
        let counts: Vec<_> = durations.counts.iter().map(Counter::get).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(durations.nanoseconds.get(), 20_000_202_000);
    }

    #[test]
    fn what_threads_have_counted_is_added_up_and_stays_when_they_end() {
        let before = total().refused[Reason::Full as usize].get();
        let count = || {
            let session = session();
            refused(Reason::Full);
            session.ended(End::Stopped);
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(count);
            }
        });
        count();
        let total = total();
        assert_eq!(total.refused[Reason::Full as usize].get() - before, 4);
        assert_eq!(total.sessions.open(), 0);
    }
}
