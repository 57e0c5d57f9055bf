//! Remembers which address a moved socket asked for.
//!
//! The key is the socket's cookie (`SO_COOKIE`), which duplicates and forks share and which the kernel never gives out twice. The
//! table is small and fixed, since nothing may be allocated here; when it is full the oldest entry goes, and its socket
//! answers with the loopback address and the old port. So does a socket that was handed to another program by `exec`.

use core::net::{Ipv6Addr, SocketAddr};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

/// Moved sockets remembered at once in one process.
const CAPACITY: usize = 64;

/// One moved socket: its cookie (0 for none) and the address that it asked for, IPv4 as a mapped one.
struct Entry {
    cookie: AtomicU64,
    high: AtomicU64,
    low: AtomicU64,
}

static TABLE: [Entry; CAPACITY] = [const {
    Entry {
        cookie: AtomicU64::new(0),
        high: AtomicU64::new(0),
        low: AtomicU64::new(0),
    }
}; CAPACITY];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Notes that the socket with this cookie asked for `address`.
pub(crate) fn remember(cookie: u64, address: SocketAddr) {
    let bits = match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
        SocketAddr::V6(v6) => *v6.ip(),
    }
    .to_bits();
    let known = TABLE
        .iter()
        .find(|entry| entry.cookie.load(Ordering::Acquire) == cookie);
    let entry = known.unwrap_or_else(|| &TABLE[NEXT.fetch_add(1, Ordering::Relaxed) % CAPACITY]);
    // Taken out of the table while it changes: a reader finds either nothing or a whole address.
    entry.cookie.store(0, Ordering::Relaxed);
    fence(Ordering::Release);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves of the address"
    )]
    {
        entry.high.store((bits >> 64) as u64, Ordering::Relaxed);
        entry.low.store(bits as u64, Ordering::Relaxed);
    }
    entry.cookie.store(cookie, Ordering::Release);
}

/// The address that the socket with this cookie asked for, IPv4 as a mapped one.
pub(crate) fn recall(cookie: u64) -> Option<Ipv6Addr> {
    let entry = TABLE
        .iter()
        .find(|entry| entry.cookie.load(Ordering::Acquire) == cookie)?;
    let bits = u128::from(entry.high.load(Ordering::Acquire)) << 64
        | u128::from(entry.low.load(Ordering::Acquire));
    fence(Ordering::Acquire);
    // Re-used for another socket meanwhile: then it is not known any more.
    (entry.cookie.load(Ordering::Acquire) == cookie).then(|| Ipv6Addr::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_sockets_are_remembered_and_the_oldest_forgotten() {
        let address =
            |cookie: u64| -> SocketAddr { format!("10.0.0.{cookie}:2023").parse().unwrap() };
        for cookie in 1..=CAPACITY as u64 + 1 {
            remember(cookie, address(cookie));
        }
        assert_eq!(recall(1), None);
        assert_eq!(recall(2), Some("::ffff:10.0.0.2".parse().unwrap()));
        remember(2, "[2001:db8::1]:2023".parse().unwrap());
        assert_eq!(recall(2), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(recall(3), Some("::ffff:10.0.0.3".parse().unwrap()));
    }
}
