//! Who is here: how many connections are open and were, how many there may be, of all and of each address, and when the last has gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::listener::PeerAddress;

/// How soon after the log was told of an address there may be another line: who comes and goes in crowds would fill it.
const QUIET: Duration = Duration::from_secs(10);

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at once.
    pub(crate) connections: usize,
    /// The same of each address.
    pub(crate) per_address: Option<usize>,
    /// Whether there may be one session ever.
    pub(crate) run_once: bool,
}

#[cfg(test)]
impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: usize::MAX,
            per_address: None,
            run_once: false,
        }
    }
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Crowd {
    bounds: Bounds,
    open: AtomicUsize,
    total: AtomicU64,
    none_open: Notify,
    /// Told when there was no room, and is again.
    one_gone: Notify,
    /// When the last of them ended.
    last_end: Mutex<Instant>,
    addresses: Option<Addresses>,
    /// Whether the one session of [`Bounds::run_once`] has been given away.
    once: AtomicBool,
    once_taken: Notify,
}

/// A connection that is open; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Visit {
    crowd: Arc<Crowd>,
    /// The address that it counts for, and what it was to that when it came.
    address: OnceLock<(IpAddr, Standing)>,
}

/// What a client is that comes from an address of which others may be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// One of those who may be here.
    Welcome,
    /// One more than that, who is told so.
    TooMany,
    /// One of so many that telling them would cost too much.
    FarTooMany,
}

impl Crowd {
    /// Nobody, yet.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            open: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            none_open: Notify::new(),
            one_gone: Notify::new(),
            last_end: Mutex::new(Instant::now()),
            addresses: bounds.per_address.map(Addresses::new),
            once: AtomicBool::new(false),
            once_taken: Notify::new(),
        }
    }

    /// Counts a connection, which is the returned number's.
    pub(crate) fn begin(self: &Arc<Self>) -> (u64, Visit) {
        self.open.fetch_add(1, Ordering::Relaxed);
        let before = self.total.fetch_add(1, Ordering::Relaxed);
        let visit = Visit {
            crowd: Arc::clone(self),
            address: OnceLock::new(),
        };
        (before + 1, visit)
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Whether there are as many as there may be.
    pub(crate) fn is_full(&self) -> bool {
        self.open() >= self.bounds.connections
    }

    /// Waits until there may be one more.
    pub(crate) async fn room(&self) {
        while self.is_full() {
            // One that was told before this is told to the next who waits.
            self.one_gone.notified().await;
        }
    }

    /// Waits until the one session of [`Bounds::run_once`] has been given away.
    pub(crate) async fn once_taken(&self) {
        self.once_taken.notified().await;
    }

    /// Waits until no connection is open.
    pub(crate) async fn all_ended(&self) {
        loop {
            let none_open = self.none_open.notified();
            if self.open() == 0 {
                return;
            }
            none_open.await;
        }
    }

    /// Waits until no connection has been open for `limit`.
    pub(crate) async fn idle_for(&self, limit: Duration) {
        let mut since = Instant::now();
        loop {
            let total = self.total.load(Ordering::Acquire);
            sleep_until(since + limit).await;
            if self.open() == 0 && self.total.load(Ordering::Acquire) == total {
                return;
            }
            self.all_ended().await;
            since = *self.last_end.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Visit {
    /// What it is to its client's address, for which it counts from now on, if that is of a kind that is counted.
    pub(crate) fn standing(&self, client: PeerAddress) -> Standing {
        let (Some(addresses), PeerAddress::Ip(address, _)) = (&self.crowd.addresses, client) else {
            return Standing::Welcome;
        };
        let counted = self.address.get_or_init(|| {
            let customer = customer(address);
            (customer, addresses.enter(customer))
        });
        counted.1
    }

    /// Whether it may become a session, which only one may with [`Bounds::run_once`].
    pub(crate) fn admit(&self) -> bool {
        let crowd = &self.crowd;
        if !crowd.bounds.run_once {
            return true;
        }
        let first = !crowd.once.swap(true, Ordering::AcqRel);
        if first {
            crowd.once_taken.notify_one();
        }
        first
    }

    /// Whether the server ends with the session that this has become.
    pub(crate) fn is_the_only_one(&self) -> bool {
        self.crowd.bounds.run_once
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let crowd = &self.crowd;
        if let Some((addresses, (address, _))) = crowd.addresses.as_ref().zip(self.address.get()) {
            addresses.leave(*address);
        }
        // Before it is seen that none is open.
        let mut last_end = crowd
            .last_end
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last_end = Instant::now();
        drop(last_end);
        let before = crowd.open.fetch_sub(1, Ordering::AcqRel);
        if before == crowd.bounds.connections {
            crowd.one_gone.notify_one();
        }
        if before == 1 {
            crowd.none_open.notify_waiters();
        }
    }
}

/// What counts as one address: of IPv6 the network of 64 bits, in which one customer has all addresses.
fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// How many are open of each address.
#[derive(Debug)]
struct Addresses {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<IpAddr, Count>,
    /// When the log was last told of one that has too many.
    last_line: Option<Instant>,
}

/// How many are open of an address.
#[derive(Debug, Default)]
struct Count {
    open: usize,
    /// Whether the log knows that they are too many.
    told: bool,
}

impl Addresses {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, address: IpAddr) -> Standing {
        let mut guard = self.state();
        let State { open, last_line } = &mut *guard;
        let count = open.entry(address).or_default();
        count.open += 1;
        if count.open <= self.limit {
            return Standing::Welcome;
        }
        let standing = if count.open <= self.limit.saturating_mul(2) {
            Standing::TooMany
        } else {
            Standing::FarTooMany
        };
        let now = Instant::now();
        let is_quiet = last_line.is_some_and(|last| now - last < QUIET);
        if !count.told && !is_quiet {
            (count.told, *last_line) = (true, Some(now));
            drop(guard);
            let network = if address.is_ipv6() { "/64" } else { "" };
            tracing::warn!(
                "{address}{network} has as many connections as it may, {}: more of it are refused",
                self.limit
            );
        }
        standing
    }

    fn leave(&self, address: IpAddr) {
        if let Entry::Occupied(mut entry) = self.state().open.entry(address) {
            entry.get_mut().open -= 1;
            if entry.get().open == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_time_starts_again_with_every_connection() {
        let crowd = Arc::new(Crowd::new(Bounds::default()));
        let start = Instant::now();
        let limit = Duration::from_secs(5);
        let idle = crowd.idle_for(limit);
        let visits = async {
            for stay in [0, 1, 30] {
                sleep(Duration::from_secs(3)).await;
                let (_, visit) = crowd.begin();
                sleep(Duration::from_secs(stay)).await;
                drop(visit);
            }
        };
        tokio::join!(idle, visits);
        assert_eq!(start.elapsed(), Duration::from_secs(9 + 31 + 5));
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_room_again_when_one_of_too_many_has_gone() {
        let bounds = Bounds {
            connections: 2,
            ..Bounds::default()
        };
        let crowd = Arc::new(Crowd::new(bounds));
        let (_, first) = crowd.begin();
        crowd.room().await;
        let (_, _second) = crowd.begin();
        assert!(crowd.is_full());
        let leave = async {
            sleep(Duration::from_secs(1)).await;
            drop(first);
        };
        tokio::join!(crowd.room(), leave);
        assert!(!crowd.is_full());
    }

    #[test]
    fn those_of_an_address_are_counted_while_they_are_there() {
        let bounds = Bounds {
            per_address: Some(2),
            ..Bounds::default()
        };
        let crowd = Arc::new(Crowd::new(bounds));
        let come = |address: &str| {
            let (_, visit) = crowd.begin();
            let standing = visit.standing(PeerAddress::Ip(address.parse().unwrap(), 0));
            (visit, standing)
        };
        let standings = |addresses: [&str; 5]| {
            let visits = addresses.map(come);
            let standings = visits.each_ref().map(|&(_, standing)| standing);
            drop(visits);
            assert!(crowd.addresses.as_ref().unwrap().state().open.is_empty());
            standings
        };
        use Standing::{FarTooMany, TooMany, Welcome};
        let alone = standings(["10.0.0.1"; 5]);
        assert_eq!(alone, [Welcome, Welcome, TooMany, TooMany, FarTooMany]);
        // All addresses of such a network are one customer's.
        let network = standings([
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8:0:1::1",
            "2001:db8::ffff:1",
            "10.0.0.1",
        ]);
        assert_eq!(network, [Welcome, Welcome, Welcome, TooMany, Welcome]);
    }
}
